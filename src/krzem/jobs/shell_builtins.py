"""Built-in commands of the shell that set variables or decide what runs next."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_commands import Commands
from krzem.jobs.shell_match import Operand, Test
from krzem.jobs.shell_state import Break, Continue, Exit, Flow, Return
from krzem.jobs.shell_tools import output
from krzem.jobs.shell_words import (
    EMPTY,
    Holder,
    State,
    Value,
    element_values,
    joined,
    known,
    origin_of,
    plain,
    scalar,
    shown,
    split,
    unknown,
)


class Builtins(Commands):
    """The commands that the shell itself has."""

    def builtin(
        self, name: str, node: tree.Simple, values: list[Value]
    ) -> tuple[bool | None] | None:
        """The status of a built-in command; None where there is none of that name."""
        rule = _BUILTINS.get(name)
        return None if rule is None else (rule(self, node, values),)

    def declare(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``export``, ``declare``, ``local``, ``readonly``."""
        options = [shown(v) for v in values[1:] if shown(v).startswith("-")]
        associative = any("A" in option for option in options)
        if any("n" in option for option in options) and plain(values[0]) != "export":
            self._refer(node)
            return True
        self._localise(plain(values[0]) or "", options, node, values)
        for assign in node.declares:
            if associative and not isinstance(self.names.get(assign.name), dict):
                self.names[assign.name] = {}
            self.assigned(assign)
        names = [assign.name for assign in node.declares]
        for value in values[1:]:
            text = shown(value)
            name, equals, _ = text.partition("=")
            if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
                self.names[name] = known(text[len(name) + 1 :], origin_of(value, node.origin))
            elif associative and re.fullmatch(r"[A-Za-z_]\w*", text):
                self.names.setdefault(text, {})
            names.append(name)
        if plain(values[0]) == "export" or any("x" in option for option in options):
            self.exported.update(names)
        return True

    def _refer(self, node: tree.Simple) -> None:
        """``local -n name=other``."""
        for assign in node.declares:
            text = None if assign.value is None else plain(self.value(assign.value.parts))
            if text is not None and text != assign.name and re.fullmatch(r"[A-Za-z_]\w*", text):
                self.references[assign.name] = self.target(text)

    def _localise(
        self, word: str, options: Sequence[str], node: tree.Simple, values: list[Value]
    ) -> None:
        """Names that a function declares are its own, unless ``-g`` says otherwise."""
        if not self.locals or word in ("export", "readonly") or any("g" in o for o in options):
            return
        names = [assign.name for assign in node.declares]
        names += [t for v in values[1:] if re.fullmatch(r"[A-Za-z_]\w*", t := shown(v))]
        for name in names:
            self.locals[-1].setdefault(name, self.names.get(name))
            if word == "local":
                self.names.pop(name, None)

    def set_(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``set -- a b``."""
        texts = [shown(value) for value in values]
        if "--" in texts:
            self.args = values[texts.index("--") + 1 :]
        return True

    def shift(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``shift``."""
        if self.args is not None:
            text = shown(values[1]) if len(values) > 1 else "1"
            self.args = self.args[int(text) if text.isdigit() and len(text) < 6 else 1 :]
        return True

    def unset(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``unset``: empty from now on, whatever the caller sets."""
        for value in values[1:]:
            self.names.pop(shown(value), None)
        return True

    def eval_(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``eval``."""
        self._eval(joined(values[1:]))
        return None

    def source(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``source file``: its variables stay."""
        if len(values) < 2:
            return None
        reference = shown(values[1])
        self.script.sourced.append(reference)
        found = self.find(reference)
        if found is None or found == self.file:
            self.script.missing.setdefault(reference, node.origin)
            return None
        self.script.called.add(found)
        self.enter()
        args = self.args
        if len(values) > 2:
            self.args = values[2:]
        self._file(found)
        self.args = args
        self.leave()
        return True

    def read(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``read -ra NAME <<< text``; without known text the names are not known."""
        names = [shown(v) for v in values[1:] if not shown(v).startswith("-")]
        options = "".join(shown(v) for v in values[1:] if shown(v).startswith("-"))
        text = None if self.stdin is None else plain(self.stdin)
        separators = " \t\n"
        if "IFS" in self.names:
            separators = (plain(scalar(self.names["IFS"])) or separators) + "\n"
        words = _read_words(self.stdin, text, separators)
        if "d" in options:
            return None
        for index, name in enumerate(names):
            if text is None:
                self.names[name] = unknown(f"${name}", node.origin)
            elif "a" in options:
                self.names[name] = words
            elif index == len(names) - 1:
                self.names[name] = joined(words[index:])
            else:
                self.names[name] = words[index] if index < len(words) else EMPTY
        return None

    def mapfile(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``mapfile``: only the names are known."""
        name = shown(values[-1])
        if re.fullmatch(r"[A-Za-z_]\w*", name):
            lines = None if self.stdin is None else plain(self.stdin)
            self.names[name] = (
                [unknown(f"${name}", node.origin)]
                if lines is None
                else [known(line, node.origin) for line in lines.splitlines()]
            )
        return True

    def let(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``let``."""
        number: int | None = 0
        for value in values[1:]:
            number = self.calculate((tree.Lit(shown(value), True, node.origin),))
        return None if number is None else bool(number)

    def test(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``[ … ]`` and ``test``."""
        operands: list[Operand] = []
        for word in node.words[1:]:
            fields = self.fields(word)
            operands.extend(Operand(v, None, word.bare or _operator(v)) for v in fields)
        if shown(values[0]) == "[" and operands and operands[-1].bare == "]":
            operands.pop()
        self.assume(operands)
        return Test(operands, self._is_set).result()

    def assume(self, operands: Sequence[Operand]) -> None:
        """Remember where a condition rests on a variable that nobody sets."""
        if any(p.state is State.UNSET for operand in operands for p in operand.value):
            self.assumed = True

    def leave_with(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``exit``, ``return``, ``break``, ``continue``."""
        raise _JUMPS[shown(values[0])]

    def constant(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``true``, ``false`` and ``:``."""
        return shown(values[0]) != "false"

    def printf(self, node: tree.Simple, values: list[Value]) -> bool | None:
        """``printf``, and ``printf -v NAME``."""
        if len(values) > 2 and shown(values[1]) == "-v":
            texts = [plain(value) for value in values[3:]]
            text = None if None in texts else output("printf", [t or "" for t in texts], None)
            name = shown(values[2])
            place = node.origin
            self.names[name] = unknown(f"${name}", place) if text is None else known(text, place)
            return True
        return self._tool(node, "printf", values[1:])

    def _is_set(self, name: str) -> bool:
        """Whether ``-v name`` or ``-v name[key]`` holds."""
        base, _, key = name.partition("[")
        holder = self.names.get(self.target(base))
        key = key.rstrip("]")
        if not key or holder is None:
            return holder is not None
        return key in holder if isinstance(holder, dict) else not key.isdigit() or (
            int(key) < len(element_values(holder)) if len(key) < 9 else False
        )  # fmt: skip

    def assigned(self, node: tree.Assign) -> None:
        """One assignment."""
        if node.array is not None:
            self._assigned_array(node)
            return
        value = EMPTY if node.value is None else self.value(node.value.parts)
        if node.index is None:
            self.assign(node.name, value, append=node.append)
            return
        index = plain(self.value(node.index))
        holder = self.names.get(node.name)
        if index is None:
            self.names[node.name] = [unknown(f"${node.name}", node.origin)]
        elif isinstance(holder, dict):
            self.names[node.name] = {**holder, index: value}
        else:
            self._put_element(node, holder, value)

    def _put_element(self, node: tree.Assign, holder: Holder | None, value: Value) -> None:
        assert node.index is not None
        number = self.calculate(node.index)
        values = [] if holder is None else element_values(holder)
        if number is None or not 0 <= number <= 10_000:
            self.names[node.name] = [*values, unknown(f"${node.name}", node.origin)]
            return
        values = [*values, *[EMPTY] * (number + 1 - len(values))]
        values[number] = value
        self.names[node.name] = values

    def _assigned_array(self, node: tree.Assign) -> None:
        words = node.array or ()
        pairs = [_KEYED.match(word.source) for word in words]
        if words and all(pairs) and isinstance(self.names.get(node.name), dict):
            self._assigned_map(node, words)
            return
        values = [value for word in words for value in self.fields(word)]
        self.assign_array(node.name, values, append=node.append)

    def _assigned_map(self, node: tree.Assign, words: Sequence[tree.Word]) -> None:
        before = self.names.get(node.name)
        found = dict(before) if node.append and isinstance(before, dict) else {}
        for word in words:
            text = shown(self.value(word.parts))
            key, _, rest = text[1:].partition("]=")
            found[key] = known(rest, word.origin)
        self.names[node.name] = found


_KEYED = re.compile(r"\[[^\]]*\]=")
_JUMPS: dict[str, type[Flow]] = {
    "exit": Exit, "return": Return, "break": Break, "continue": Continue,
}  # fmt: skip  # fmt: skip
B = Builtins
_BUILTINS: dict[str, Callable[[Builtins, tree.Simple, list[Value]], bool | None]] = {
    "export": B.declare, "declare": B.declare, "local": B.declare,
    "readonly": B.declare, "typeset": B.declare, "set": B.set_, "shift": B.shift,
    "unset": B.unset, "eval": B.eval_, "source": B.source, ".": B.source,
    "read": B.read, "mapfile": B.mapfile, "readarray": B.mapfile, "let": B.let,
    "test": B.test, "[": B.test, "true": B.constant, "false": B.constant,
    ":": B.constant, "printf": B.printf,
    **dict.fromkeys(_JUMPS, B.leave_with),
}  # fmt: skip  # fmt: skip


def _operator(value: Value) -> str:
    """An operator of ``[`` that came out of quotes or a variable is one all the same."""
    text = plain(value)
    return text if text in ("=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge") else ""


def _read_words(stdin: Value | None, text: str | None, separators: str) -> list[Value]:
    """The fields of the line that ``read`` takes; other separators than blanks keep empty ones."""
    if stdin is None or text is None:
        return []
    marks = separators.strip()
    if not marks:
        return split(stdin, separators)
    fields = re.split("[" + re.escape(marks) + "]", text.partition("\n")[0])
    if fields and not fields[-1]:
        fields.pop()
    return [known(field.strip() if " " in separators else field) for field in fields]
