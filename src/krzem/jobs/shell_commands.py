"""Commands of a shell script: functions, harmless tools, inner scripts, and what is recorded."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_parse import origins, parse
from krzem.jobs.shell_state import Command, Exit, Flow, Machine, Return, Script, launcher_options
from krzem.jobs.shell_tools import is_tool, output, squeezes
from krzem.jobs.shell_words import (
    NOWHERE,
    Origin,
    Piece,
    ShellError,
    State,
    Value,
    joined,
    known,
    plain,
    scalar,
    shown,
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
}  # fmt: skip  # fmt: skip
"""Commands that neither start a training nor set a variable."""


class Commands(Machine):
    """Runs simple commands, as far as running means following them."""

    def builtin(
        self, name: str, node: tree.Simple, values: list[Value]
    ) -> tuple[bool | None] | None:
        """The status of a built-in command; None where there is none of that name."""
        raise NotImplementedError

    def run(self, name: str) -> Script:
        """Evaluate a file of ``files`` from the top."""
        self._headers(name, self.files[name], {})
        self._file(name)
        for variable, holder in self.names.items():
            self.script.variables[variable] = word_of(scalar(holder), NOWHERE)
            if isinstance(holder, list):
                self.script.arrays[variable] = tuple(word_of(v, NOWHERE) for v in holder)
        return self.script

    def _file(self, name: str) -> None:
        before, self.file = self.file, name
        text = self.files[name].replace("\r\n", "\n")
        self.spend(1 + len(text) // 100)
        try:
            self.body(parse(text, origins(name, text)))
        except (Exit, Return):
            pass
        except RecursionError:
            raise ShellError(f"{name} nests too deeply to be a launch script") from None
        finally:
            self.file = before

    def _command(self, node: tree.Simple, values: list[Value]) -> bool | None:
        name = plain(values[0])
        if name is not None:
            status = self.builtin(name, node, values)
            if status is not None:
                return status[0]
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
        except Return:
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
        if text is None and args and name in ("cat", "sed") and self.stdin is None:
            text = self._filtered(name, args)
            value = value if text is None else known(text, node.origin)
        if name == "cat" and args and text is None:
            listing = self._host_list(" ".join(map(shown, args)), node.origin)
            value = listing if listing is not None else value
        self._documents(node, value)
        self.printed(value)
        return True

    def _filtered(self, name: str, args: list[Value]) -> str | None:
        """``sed`` or ``cat`` on a given file."""
        given = self.find(shown(args[-1]))
        texts = [plain(value) for value in args[:-1]]
        if given is None or None in texts:
            return None
        return output(name, [t for t in texts if t is not None], self.files[given])

    def _printed(self, name: str, args: list[Value]) -> Value:
        """Output that is not wholly known: for ``echo`` its words, else only the command."""
        if name == "echo":
            return (*joined(args), Piece("\n"))
        if name == "cat" and self.stdin is not None:
            return self.stdin
        return unknown(f"$({name} {' '.join(map(shown, args))})")

    def substitute(self, part: tree.Sub) -> Value:
        """``$(…)``: computed where only harmless commands on known text are in it."""
        outer = (self.names, self.captured, self.silent, self.certain)
        self.names, self.captured, self.silent = dict(self.names), [], True
        self.spend(1 + len(self.names) // 10)
        with suppress(Flow):
            self.body(part.body)
        found = self.captured
        self.names, self.captured, self.silent, self.certain = outer
        value = joined(found, "")
        if not part.body or any(p.state is State.UNKNOWN and p.text == "" for p in value):
            return unknown(part.source, part.origin)
        return _stripped(value, part)

    def _external(self, node: tree.Simple, values: list[Value]) -> bool | None:
        self.printed((Piece("", node.origin, State.UNKNOWN),))
        name = posixpath.basename(plain(values[0]) or "")
        if name not in _QUIET and self._inner(node, values):
            return None
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
            environment[name] = word_of(scalar(self.names[name]), node.origin)
        words = tuple(word_of(value, node.origin) for value in values)
        self.script.commands.append(
            Command(self.prefix + words, environment, node.origin, self.certain, self.file,
                    self.script.headers, self.repeated)
        )  # fmt: skip

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
            with suppress(Flow):
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
        self.spend(1 + length // 10)
        self.body(parse("".join(texts), _piecewise("".join(texts), starts)))


def _script_or_code(texts: Sequence[str], start: int) -> int | None:
    """The index of a shell's script, or of its option ``-c``."""
    for index in range(start, len(texts)):
        if not texts[index].startswith("-") or "c" in texts[index][1:3]:
            return index
    return None


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
