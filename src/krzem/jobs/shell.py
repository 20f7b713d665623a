"""What a shell script would run, found out without running anything.

:func:`read_scripts` follows assignments, arrays, arithmetic, conditions, loops, functions and
here-documents of the given scripts and gives the commands they end in, each word with the line
it was written on.  A command's output, a positional argument or a variable of the machine is not
known and stays so; where a condition is not known both sides are followed and only what they
agree on is kept.  Every loop, depth and size is bounded, and a script beyond a bound ends in one
sentence.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_expand import Expander, Holder, _scalar, _values
from krzem.jobs.shell_glob import matches
from krzem.jobs.shell_parse import origins, parse
from krzem.jobs.shell_test import Operand, Test
from krzem.jobs.shell_tools import is_tool, output, squeezes
from krzem.jobs.shell_words import (
    EMPTY,
    NOWHERE,
    Origin,
    Piece,
    ShellError,
    ShellWord,
    State,
    Value,
    joined,
    known,
    merged,
    merged_words,
    origin_of,
    plain,
    shown,
    split,
    unknown,
    word_of,
)

MOST_COMMANDS = 2_000
_SHELLS = {"bash", "sh", "zsh", "ksh"}
_QUIET = {
    "cd", "mkdir", "rm", "ls", "ln", "cp", "mv", "touch", "chmod", "sleep", "wait", "ulimit",
    "module", "ml", "pip", "pip3", "git", "conda", "hostname", "date", "which", "kill", "pkill",
    "trap", "umask", "pushd", "popd", "alias", "unalias", "shopt", "sync", "clear", "type", "hash",
    "nvidia-smi", "rocm-smi", "npu-smi", "free", "df", "du", "lscpu", "printenv", "logger",
}  # fmt: skip
"""Commands that neither start a training nor set a variable."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the script would run."""

    words: tuple[ShellWord, ...]
    environment: Mapping[str, ShellWord]
    """Variables given on the command, and those exported before it."""
    origin: Origin
    certain: bool = True
    """False where it stands under a condition that is not known."""
    script: str = ""
    """Name of the file whose evaluation led here."""


@dataclass(slots=True)
class Script:
    """What came out of reading the scripts."""

    commands: list[Command] = field(default_factory=list)
    variables: dict[str, ShellWord] = field(default_factory=dict)
    arrays: dict[str, tuple[ShellWord, ...]] = field(default_factory=dict)
    documents: dict[str, tuple[str, Origin, bool]] = field(default_factory=dict)
    """Here-documents by the file they are written to: text, line, whether all of it is known."""
    headers: dict[str, ShellWord] = field(default_factory=dict)
    """Options of ``#SBATCH`` and ``#PBS`` lines."""
    called: set[str] = field(default_factory=set)
    """Given files that another given file runs."""
    missing: dict[str, Origin] = field(default_factory=dict)
    """Scripts that are run but not given."""
    sourced: list[str] = field(default_factory=list)
    """Scripts whose variables and functions the script uses."""
    notes: list[str] = field(default_factory=list)


class _Flow(Exception):  # noqa: N818
    """A jump out of the commands that follow."""


class _Exit(_Flow):
    pass


class _Return(_Flow):
    pass


class _Break(_Flow):
    pass


class _Continue(_Flow):
    pass


def read_scripts(files: Mapping[str, str], roots: Sequence[str]) -> list[Script]:
    """Read each of ``roots``, with every file of ``files`` at hand; those that another runs last.

    Raises ShellError (a DataError) for text that is no shell script and for hostile ones.
    """
    scripts = [(name, Shell(files).run(name)) for name in roots]
    called = set().union(*(script.called for _, script in scripts)) if scripts else set()
    own = [script for name, script in scripts if name not in called]
    return own or [script for _, script in scripts]


class Shell(Expander):
    """One evaluation."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__()
        self.files = files
        self.script = Script()
        self.functions: dict[str, tree.Body] = {}
        self.exported: set[str] = set()
        self.certain = True
        self.captured: list[Value] | None = None
        self.stdin: Value | None = None
        self.silent = False
        self.file = ""
        self.prefix: tuple[ShellWord, ...] = ()
        self.given: dict[str, ShellWord] = {}
        self.placeholders = 0
        self.locals: list[dict[str, Holder | None]] = []
        """For each function being read, what its local names held outside."""

    def run(self, name: str) -> Script:
        """Evaluate a file of ``files`` from the top."""
        self._headers(name, self.files[name], {})
        self._file(name)
        for variable, holder in self.names.items():
            self.script.variables[variable] = word_of(_scalar(holder), NOWHERE)
            if isinstance(holder, list):
                self.script.arrays[variable] = tuple(word_of(v, NOWHERE) for v in holder)
        return self.script

    # -- files

    def _file(self, name: str) -> None:
        before, self.file = self.file, name
        text = self.files[name].replace("\r\n", "\n")
        self.spend(1 + len(text) // 100)
        try:
            self.body(parse(text, origins(name, text)))
        except (_Exit, _Return):
            pass
        except RecursionError:
            raise ShellError(f"{name} nests too deeply to be a launch script") from None
        finally:
            self.file = before

    def _headers(self, name: str, text: str, given: Mapping[str, ShellWord]) -> None:
        found = read_headers(name, text)
        found.update(given)
        self.script.headers = {**self.script.headers, **found}
        for variable, word in scheduler_variables(found).items():
            self.names.setdefault(variable, (Piece(word.text, word.origin, word.state),))

    def find(self, reference: str) -> str | None:
        """The given file that a path in a script means."""
        base = posixpath.basename(reference)
        names = [n for n in self.files if posixpath.basename(n) == base]
        if len(names) > 1:
            folder = posixpath.basename(posixpath.dirname(reference))
            close = [n for n in names if posixpath.basename(posixpath.dirname(n)) == folder]
            names = close or names
        return names[0] if names else None

    # -- lists

    def body(self, nodes: tree.Body) -> bool | None:
        """Run commands in turn; the status of the last."""
        status: bool | None = True
        self.enter()
        try:
            for node in nodes:
                status = self.node(node)
        finally:
            self.leave()
        return status

    def node(self, node: tree.Node) -> bool | None:
        """Run one command."""
        self.spend()
        rule = _RULES[type(node)]
        return rule(self, node)

    def chain(self, node: tree.Chain) -> bool | None:
        """``&&`` and ``||``."""
        left = self.node(node.left)
        if left is None:
            right = self.either([lambda: self.node(node.right), lambda: True])
            return True if right is True and node.op == "||" else None
        if left == (node.op == "||"):
            return left
        return self.node(node.right)

    def pipe(self, node: tree.Pipe) -> bool | None:
        """``a | b``: what the first prints is what the next reads."""
        outer, stdin = self.captured, self.stdin
        names = dict(self.names)
        status: bool | None = True
        for index, part in enumerate(node.parts):
            last = index == len(node.parts) - 1
            self.captured = outer if last else []
            status = self.node(part)
            self.stdin = joined(self.captured or [], "") if not last else stdin
        self.captured, self.stdin = outer, stdin
        if len(node.parts) > 1:
            self.names = names
        return (None if status is None else not status) if node.negated else status

    # -- branches nobody can decide

    def either(self, ways: Sequence[Callable[[], bool | None]]) -> bool | None:
        """Follow every way from here and keep what they agree on; ways that leave do not count."""
        certain, names = self.certain, self.names
        self.certain = False
        self.spend(len(names))
        ends: list[dict[str, Holder]] = []
        statuses: set[bool | None] = set()
        flow: _Flow | None = None
        for way in ways:
            self.names = dict(names)
            try:
                statuses.add(way())
            except _Flow as jump:
                flow = jump
                continue
            ends.append(self.names)
        self.certain, self.names = certain, names
        if not ends:
            assert flow is not None
            raise flow
        self.names = ends[0] if len(ends) == 1 else self._merged(ends)
        return statuses.pop() if len(statuses) == 1 else None

    def _merged(self, ends: list[dict[str, Holder]]) -> dict[str, Holder]:
        names: dict[str, Holder] = {}
        for name in dict.fromkeys(key for end in ends for key in end):
            holders = [end.get(name) for end in ends]
            first = holders[0]
            if first is not None and all(holder is first for holder in holders):
                names[name] = first
                continue
            self.spend()
            names[name] = self._merge(name, holders)
        return names

    def _merge(self, name: str, holders: list[Holder | None]) -> Holder:
        absent: Value = (Piece(f"${name}", NOWHERE, State.UNSET),)
        if any(isinstance(holder, (list, dict)) for holder in holders):
            lists = [[] if h is None else _values(h) for h in holders]
            self.spend(sum(map(len, lists)) // 10)
            return merged_words(lists)
        values = [absent if h is None else _scalar(h) for h in holders]
        return merged(name, values, origin_of(values[0]))

    # -- compound commands

    def if_(self, node: tree.If, at: int = 0) -> bool | None:
        """``if``: one branch where the condition is known, else all that are possible."""
        if at == len(node.branches):
            return self.body(node.otherwise)
        test, body = node.branches[at]
        status = self.body(test)
        if status is True:
            return self.body(body)
        if status is False:
            return self.if_(node, at + 1)
        return self.either([lambda: self.body(body), lambda: self.if_(node, at + 1)])

    def case(self, node: tree.Case) -> bool | None:
        """``case``."""
        text = plain(self.value(node.subject.parts))
        possible: list[tree.Body] = []
        for patterns, body in node.arms:
            hits = [self._matches(pattern, text) for pattern in patterns]
            if True in hits:
                possible.append(body)
                break
            if None in hits:
                possible.append(body)
        else:
            possible.append(())
        if len(possible) == 1:
            return self.body(possible[0])
        return self.either([lambda body=body: self.body(body) for body in possible])  # type: ignore[misc]

    def _matches(self, word: tree.Word, text: str | None) -> bool | None:
        pattern = self.pattern(word.parts)
        if word.bare == "*":
            return True
        if pattern is None or text is None:
            return None
        self.spend(1 + len(text) * len(pattern) // 50)
        return matches(pattern, text)

    def for_(self, node: tree.For) -> bool | None:
        """``for``: over words that are known; once, with an unknown value, over others."""
        words = node.words
        values = self.args if words is None else [v for w in words for v in self.fields(w)]
        if values is None or any(plain(value) is None for value in values):
            self.names[node.name] = unknown(f"${node.name}", node.origin)
            return self.either([lambda: self._turn(node.body) and True, lambda: True])
        for value in values:
            self.names[node.name] = value
            if not self._turn(node.body):
                break
        return True

    def _turn(self, body: tree.Body) -> bool:
        """One turn of a loop; False where it breaks out."""
        try:
            self.body(body)
        except _Break:
            return False
        except _Continue:
            pass
        return True

    def count(self, node: tree.Count) -> bool | None:
        """``for ((…))``."""
        self.calculate(node.start)
        while True:
            self.spend()
            test = self.calculate(node.test) if node.test else 1
            if test is None:
                return self.either([lambda: self._turn(node.body) and True, lambda: True])
            if not test or not self._turn(node.body):
                return True
            self.calculate(node.step)

    def while_(self, node: tree.While) -> bool | None:
        """``while``: turns while the condition is known; arguments nobody gives end it."""
        while True:
            self.spend(2)
            test = self.body(node.test)
            if test is None:
                if _asks_arguments(node.test):
                    return True
                return self.either([lambda: self._turn(node.body) and True, lambda: True])
            if test is node.until or not self._turn(node.body):
                return True

    def function(self, node: tree.Function) -> bool | None:
        """A definition."""
        self.functions[node.name] = node.body
        return True

    def group(self, node: tree.Group) -> bool | None:
        """``{ }`` and ``( )``."""
        names = dict(self.names) if node.subshell else None
        stdin = self.stdin
        for redirect in node.redirects:
            self._input(redirect)
        try:
            return self.body(node.body)
        except _Exit:
            if names is None:
                raise
            return None
        finally:
            self.stdin = stdin
            if names is not None:
                self.names = names

    def condition(self, node: tree.Condition) -> bool | None:
        """``[[ … ]]``."""
        operands = []
        for index, word in enumerate(node.words):
            before = node.words[index - 1].bare if index else ""
            pattern = self.pattern(word.parts) if before in ("=", "==", "!=") else None
            operands.append(Operand(self.value(word.parts), pattern, word.bare))
        self.spend(len(operands))
        return Test(operands, self._is_set).result()

    def _is_set(self, name: str) -> bool:
        """Whether ``-v name`` or ``-v name[key]`` holds."""
        base, _, key = name.partition("[")
        holder = self.names.get(self.target(base))
        key = key.rstrip("]")
        if not key or holder is None:
            return holder is not None
        return key in holder if isinstance(holder, dict) else not key.isdigit() or (
            int(key) < len(_values(holder)) if len(key) < 9 else False
        )  # fmt: skip

    def calculation(self, node: tree.Calculation) -> bool | None:
        """``(( … ))``."""
        number = self.calculate(node.parts)
        if number is None:
            self._forget(node.parts)
        return None if number is None else bool(number)

    def _forget(self, parts: tree.Parts) -> None:
        """Names that an expression assigns from what is not known are not known any more."""
        text = shown(self.value(parts))[:400]
        for name in re.findall(r"([A-Za-z_]\w*) *(?:[-+*/%]?=(?!=)|\+\+|--)", text):
            self.names[name] = unknown(f"${name}")

    # -- simple commands

    def simple(self, node: tree.Simple) -> bool | None:
        """Assignments, and the command if there is one."""
        values = [value for word in node.words for value in self.fields(word)]
        if not values:
            for assign in node.assigns:
                self.assigned(assign)
            self._documents(node, None)
            return True
        stdin = self.stdin
        for redirect in node.redirects:
            self._input(redirect)
        outer = dict(self.names) if node.assigns else None
        for assign in node.assigns:
            self.assigned(assign)
        try:
            return self._command(node, values)
        finally:
            self.stdin = stdin
            if outer is not None:
                if plain(values[0]) == "read":
                    outer.update({k: v for k, v in self.names.items() if k not in
                                  {a.name for a in node.assigns}})  # fmt: skip
                self.names = outer

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
        values = [] if holder is None else _values(holder)
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

    def _input(self, redirect: tree.Redirect) -> None:
        """What a redirection gives the command to read."""
        if redirect.op in ("<<", "<<-"):
            self.stdin = self.value(redirect.body)
        elif redirect.op == "<<<":
            self.stdin = (*self.value(redirect.target.parts), Piece("\n"))
        elif redirect.op == "<":
            self.stdin = self._read_file(redirect.target)

    def _read_file(self, target: tree.Word) -> Value:
        name = shown(self.value(target.parts))
        found = self.script.documents.get(name)
        if found is not None and found[2]:
            return known(found[0], found[1])
        return self._host_list(name, target.origin) or unknown(f"<{name}", target.origin)

    def _host_list(self, name: str, place: Origin) -> Value | None:
        """A line for each node, where the name of a file says that it lists them."""
        nodes = self.names.get("SLURM_NNODES")
        text = None if nodes is None else plain(_scalar(nodes))
        listing = re.search(r"NODEFILE|NODELIST|HOSTFILE|scontrol show hostname", name)
        if listing is None or text is None or not re.fullmatch(r"\d{1,5}", text):
            return None
        return known("node\n" * int(text), place)

    def _documents(self, node: tree.Simple, text: Value | None) -> None:
        """Remember text that is written to a file."""
        bodies = [r for r in node.redirects if r.op in ("<<", "<<-")]
        targets = [r.target for r in node.redirects if r.op in (">", ">>", ">|", "&>")]
        if bodies and text is None:
            text = self.value(bodies[-1].body)
        for target in targets:
            if text is not None and shown(text).strip():
                self.document(shown(self.value(target.parts)), text, target.origin)

    def document(self, name: str, text: Value, place: Origin) -> None:
        """Text that the script writes to a file."""
        whole = plain(text) is not None
        self.script.documents[name] = (shown(text), origin_of(text[:1], place), whole)

    def _command(self, node: tree.Simple, values: list[Value]) -> bool | None:
        name = plain(values[0])
        if name is not None:
            rule = _BUILTINS.get(name)
            if rule is not None:
                return rule(self, node, values)
            if name in self.functions:
                return self._call(name, values[1:])
            if is_tool(name):
                return self._tool(node, name, values[1:])
        return self._external(node, values)

    def _call(self, name: str, args: list[Value]) -> bool | None:
        """A function, with its arguments in place of the script's."""
        before, self.args = self.args, args
        references = dict(self.references)
        self.locals.append({})
        self.enter()
        try:
            return self.body(self.functions[name])
        except _Return:
            return None
        finally:
            self.leave()
            self.args, self.references = before, references
            for local, holder in self.locals.pop().items():
                if holder is None:
                    self.names.pop(local, None)
                else:
                    self.names[local] = holder

    def _tool(self, node: tree.Simple, name: str, args: list[Value]) -> bool | None:
        texts = [plain(value) for value in args]
        stdin = None if self.stdin is None else plain(self.stdin)
        if self.stdin is not None and squeezes(name, [shown(arg) for arg in args]):
            self.printed(self.stdin)
            return True
        self.spend(1 + len(stdin or "") // 100)
        text = None
        if None not in texts and not (self.stdin is not None and stdin is None):
            text = output(name, [t for t in texts if t is not None], stdin)
        value = self._printed(name, args) if text is None else known(text, node.origin)
        if name == "cat" and args and text is None:
            listing = self._host_list(" ".join(map(shown, args)), node.origin)
            value = listing if listing is not None else value
        self._documents(node, value)
        self.printed(value)
        return True

    def _printed(self, name: str, args: list[Value]) -> Value:
        """Output that is not wholly known: for ``echo`` its words, else only the command."""
        if name == "echo":
            return (*joined(args), Piece("\n"))
        if name == "cat" and self.stdin is not None:
            return self.stdin
        return unknown(f"$({name} {' '.join(map(shown, args))})")

    def printed(self, value: Value) -> None:
        """Output of a command, kept where something reads it."""
        if self.captured is not None:
            self.captured.append(value)

    def substitute(self, part: tree.Sub) -> Value:
        """``$(…)``: computed where only harmless commands on known text are in it."""
        outer = (self.names, self.captured, self.silent, self.certain)
        self.names, self.captured, self.silent = dict(self.names), [], True
        self.spend(1 + len(self.names) // 10)
        with suppress(_Flow):
            self.body(part.body)
        found = self.captured
        self.names, self.captured, self.silent, self.certain = outer
        value = joined(found, "")
        if not part.body or any(p.state is State.UNKNOWN and p.text == "" for p in value):
            return unknown(part.source, part.origin)
        return _stripped(value, part)

    # -- commands that are not computed

    def _external(self, node: tree.Simple, values: list[Value]) -> bool | None:
        self.printed((Piece("", node.origin, State.UNKNOWN),))
        if self._inner(node, values):
            return None
        name = posixpath.basename(plain(values[0]) or "")
        if name == "tee":
            if self.stdin is not None and len(values) > 1:
                self.document(shown(values[-1]), self.stdin, node.origin)
            return True
        if name == "scontrol" and self.captured is not None:
            listing = self._host_list(" ".join(map(shown, values)), node.origin)
            if listing is not None:
                self.captured[-1:] = [listing]
        if name not in _QUIET and not self.silent:
            self._record(node, values)
        return None

    def _record(self, node: tree.Simple, values: list[Value]) -> None:
        if len(self.script.commands) >= MOST_COMMANDS:
            raise ShellError(f"the script runs more than {MOST_COMMANDS:,} commands: no job does")
        names = {a.name for a in node.assigns} | (self.exported & set(self.names))
        environment = dict(self.given)
        for name in names:
            environment[name] = word_of(_scalar(self.names[name]), node.origin)
        words = tuple(word_of(value, node.origin) for value in values)
        self.script.commands.append(
            Command(self.prefix + words, environment, node.origin, self.certain, self.file)
        )

    def _inner(self, node: tree.Simple, values: list[Value]) -> bool:
        """A script inside the command: ``bash file``, ``bash -c text``, ``srun script.sh``."""
        texts = [shown(value) for value in values]
        for index, text in enumerate(texts):
            base = posixpath.basename(text)
            if text.endswith(".py") or base in ("torchrun", "python", "python3", "deepspeed"):
                return False
            if base in _SHELLS and index + 1 < len(texts):
                option = _script_or_code(texts, index + 1)
                if option is not None and texts[option].startswith("-"):
                    return self._text(node, values, index, option + 1)
                if option is not None:
                    return self._script(node, values, index, option)
            if re.search(r"\.(sh|slurm|sbatch|pbs|bash)$", text) and not text.startswith("-"):
                return self._script(node, values, index, index)
            if base in ("sbatch", "qsub", "bash", "sh") and self.stdin is not None:
                return self._piped(node, values, index)
        return False

    def _script(self, node: tree.Simple, values: list[Value], outer: int, at: int) -> bool:
        reference = shown(values[at])
        found = self.find(reference)
        if found is None:
            if not self.silent:
                self.script.missing.setdefault(reference, values[at][0].origin if values[at]
                                               else node.origin)  # fmt: skip
            return False
        self.script.called.add(found)
        self._within(node, values[:outer], lambda: self._file(found), values[at + 1 :], found)
        return True

    def _text(self, node: tree.Simple, values: list[Value], outer: int, at: int) -> bool:
        if at >= len(values):
            return False
        code = values[at]
        self._within(node, values[:outer], lambda: self._eval(code), values[at + 2 :], "")
        return True

    def _piped(self, node: tree.Simple, values: list[Value], at: int) -> bool:
        code = self.stdin
        assert code is not None
        self._headers(self.file, shown(code), {})
        self._within(node, values[: at + 1], lambda: self._eval(code), [], "")
        return True

    def _within(
        self, node: tree.Simple, outer: list[Value], inner: Callable[[], None],
        args: list[Value], name: str,
    ) -> None:  # fmt: skip
        """Evaluate a script of its own: its variables do not come back."""
        self.enter()
        saved = (self.names, self.prefix, self.args, self.functions, self.stdin)
        self.names, self.stdin = dict(self.names), None
        words = tuple(word_of(value, node.origin) for value in outer)
        if name:
            self._headers(name, self.files[name], launcher_options(words))
        self.prefix = self.prefix + words
        self.args, self.functions = args, dict(self.functions)
        try:
            with suppress(_Flow):
                inner()
        finally:
            self.names, self.prefix, self.args, self.functions, self.stdin = saved
            self.leave()

    def _eval(self, code: Value) -> None:
        """Parse a value as commands; what is not known in it stays so."""
        texts: list[str] = []
        starts: list[tuple[int, Origin]] = []
        length = 0
        for piece in code:
            text = piece.text
            if piece.state is not State.KNOWN:
                self.placeholders += 1
                name = f"_not_known_{self.placeholders}"
                self.names[name] = (piece,)
                text = "${" + name + "}"
            starts.append((length, piece.origin))
            texts.append(text)
            length += len(text)
        self.spend(1 + length // 50)
        self.body(parse("".join(texts), _piecewise("".join(texts), starts)))

    # -- built-in commands

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
            separators = (plain(_scalar(self.names["IFS"])) or separators) + "\n"
        words = [] if self.stdin is None or text is None else split(self.stdin, separators)
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
        return Test(operands, self._is_set).result()

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


_KEYED = re.compile(r"\[[^\]]*\]=")
_JUMPS: dict[str, type[_Flow]] = {
    "exit": _Exit, "return": _Return, "break": _Break, "continue": _Continue,
}  # fmt: skip
_BUILTINS: dict[str, Callable[[Shell, tree.Simple, list[Value]], bool | None]] = {
    "export": Shell.declare, "declare": Shell.declare, "local": Shell.declare,
    "readonly": Shell.declare, "typeset": Shell.declare, "set": Shell.set_, "shift": Shell.shift,
    "unset": Shell.unset, "eval": Shell.eval_, "source": Shell.source, ".": Shell.source,
    "read": Shell.read, "mapfile": Shell.mapfile, "readarray": Shell.mapfile, "let": Shell.let,
    "test": Shell.test, "[": Shell.test, "true": Shell.constant, "false": Shell.constant,
    ":": Shell.constant, "printf": Shell.printf,
    **dict.fromkeys(_JUMPS, Shell.leave_with),
}  # fmt: skip
_RULES: dict[type, Callable[[Shell, Any], bool | None]] = {
    tree.Simple: Shell.simple, tree.Condition: Shell.condition,
    tree.Calculation: Shell.calculation, tree.If: Shell.if_, tree.Case: Shell.case,
    tree.For: Shell.for_, tree.Count: Shell.count, tree.While: Shell.while_,
    tree.Function: Shell.function, tree.Group: Shell.group, tree.Pipe: Shell.pipe,
    tree.Chain: Shell.chain,
}  # fmt: skip


def _operator(value: Value) -> str:
    """An operator of ``[`` that came out of quotes or a variable is one all the same."""
    text = plain(value)
    return text if text in ("=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge") else ""


def _script_or_code(texts: Sequence[str], start: int) -> int | None:
    """The index of a shell's script, or of its option ``-c``."""
    for index in range(start, len(texts)):
        if not texts[index].startswith("-") or "c" in texts[index][1:3]:
            return index
    return None


def _asks_arguments(test: tree.Body) -> bool:
    """Whether a loop's condition is about the script's own arguments."""
    words = [
        w for node in test if isinstance(node, (tree.Simple, tree.Condition)) for w in node.words
    ]
    parts = [part for word in words for part in word.parts]
    for node in test:
        if isinstance(node, tree.Calculation):
            parts.extend(node.parts)
    return any(
        isinstance(p, tree.Param) and (p.name in "#@*" or p.name.isdigit()) for p in parts
    ) or any(word.bare == "getopts" for word in words)


def _stripped(value: Value, part: tree.Sub) -> Value:
    """Output without the newlines at its end."""
    pieces = list(value)
    while pieces:
        last = pieces[-1]
        text = last.text.rstrip("\n") if last.state is State.KNOWN else last.text
        if text:
            pieces[-1] = Piece(text, last.origin, last.state)
            break
        pieces.pop()
    return tuple(pieces)


def _piecewise(text: str, starts: list[tuple[int, Origin]]) -> Callable[[int], Origin]:
    """The line of each character of a text put together from pieces."""

    def find(at: int) -> Origin:
        low, high = 0, len(starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if starts[middle][0] <= at else (low, middle)
        return starts[low][1] if starts else NOWHERE

    return find


# -- headers of schedulers

_HEADER = re.compile(r"^#(SBATCH|PBS|BSUB|FLUX:?)[ \t]+(.+?)[ \t]*$", re.M)
_SHORT = {
    "-N": "nodes", "-n": "ntasks", "-G": "gpus", "-c": "cpus-per-task", "-J": "job-name",
    "-p": "partition", "-t": "time",
}  # fmt: skip


def read_headers(file: str, text: str) -> dict[str, ShellWord]:
    """Options of ``#SBATCH`` and ``#PBS`` lines before the first command."""
    found: dict[str, ShellWord] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        match = _HEADER.match(line)
        if match is None:
            continue
        place = Origin(file, number)
        rest = re.sub(r"\s+#.*$", "", match[2])
        if match[1] == "PBS":
            _pbs(rest, place, found)
        else:
            found.update(launcher_options([ShellWord(w, place) for w in rest.split()]))
    return found


def _pbs(rest: str, place: Origin, found: dict[str, ShellWord]) -> None:
    select = re.search(r"\b(?:select|nodes)=(\d+)", rest)
    if select is not None:
        found["nodes"] = ShellWord(select[1], place)
    gpus = re.search(r":ngpus=(\d+)", rest)
    if gpus is not None:
        found["gpus-per-node"] = ShellWord(gpus[1], place)


def launcher_options(words: Sequence[ShellWord]) -> dict[str, ShellWord]:
    """``--name=value``, ``--name value`` and the short forms of Slurm's options."""
    found: dict[str, ShellWord] = {}
    for index, word in enumerate(words):
        name, equals, value = word.text.partition("=")
        if not name.startswith("-"):
            continue
        key = _SHORT.get(name, name[2:] if name.startswith("--") else "")
        if not key and name[:2] in _SHORT:
            key, value, equals = _SHORT[name[:2]], name[2:], "="
        if not key:
            continue
        if equals:
            found[key] = ShellWord(value, word.origin, word.state)
        elif index + 1 < len(words) and not words[index + 1].text.startswith("-"):
            found[key] = words[index + 1]
    return found


def scheduler_variables(headers: Mapping[str, ShellWord]) -> dict[str, ShellWord]:
    """What Slurm sets in the job's environment from the header."""
    found: dict[str, ShellWord] = {}
    counts = {k: _count(headers.get(k)) for k in ("gpus", "nodes")}
    gpus, nodes = counts["gpus"], counts["nodes"]
    if gpus and nodes and gpus % nodes == 0:
        found["SLURM_GPUS_ON_NODE"] = ShellWord(str(gpus // nodes), headers["gpus"].origin)
    for key, names in _VARIABLES.items():
        word = headers.get(key)
        if word is None:
            continue
        match = re.search(r"(\d+)(?:\(.*\))?$", word.text)
        if match is not None:
            for name in names:
                found[name] = ShellWord(match[1], word.origin, word.state)
    return found


def _count(word: ShellWord | None) -> int:
    """A count of a header, 0 where there is none."""
    plain_number = word is not None and word.known and re.fullmatch(r"\d{1,7}", word.text)
    return int(word.text) if word is not None and plain_number else 0


_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "nodes": ("SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
    "ntasks-per-node": ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    "ntasks": ("SLURM_NTASKS", "SLURM_NPROCS"),
    "gpus-per-node": ("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"),
    "gres": ("SLURM_GPUS_ON_NODE",),
    "cpus-per-task": ("SLURM_CPUS_PER_TASK",),
}
