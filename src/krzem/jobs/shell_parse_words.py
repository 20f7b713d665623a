"""Words of a shell script and what stands among them: assignments, redirections, here-documents."""

from __future__ import annotations

import re
from collections.abc import Callable

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_tree import Arith, Assign, Body, Lit, Param, Part, Parts, Sub, Word
from krzem.jobs.shell_words import Origin, ShellError

DEEPEST = 60
MOST_DOCUMENTS = 100
_REDIRECT = re.compile(r"(\d*)(<<<|<<-|<<|<>|<&|>&|>>|>\||&>>|&>|<|>)")
_OPERATORS = (
    ":-", ":=", ":?", ":+", "-", "=", "?", "+", "##", "#", "%%", "%", "//", "/#", "/%", "/",
    "^^", "^", ",,", ",", "@", ":",
)  # fmt: skip
_NONE: Parts = ()
_META = " \t\n;&|<>()"
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "", "e": ""}


class WordParser:
    """Reads words from the characters of one script; commands are read by the class built on it."""

    def __init__(self, text: str, origin: Callable[[int], Origin]) -> None:
        self.text, self.place = text, origin
        self.cuts: list[tuple[int, int]] = []
        self.at = 0
        self.depth = 0
        self.waiting: list[tree.Waiting] = []

    def body(self, stops: tuple[str, ...], close: str = "") -> Body:
        """Commands until a reserved word of ``stops`` or the character ``close``."""
        raise NotImplementedError

    def nested(self, text: str, at: int) -> WordParser:
        """A parser for a text that lies inside this one, from its character ``at``."""
        part = type(self)(text, lambda offset: self.origin(at + offset))
        part.depth = self.depth + 1
        return part

    def origin(self, at: int) -> Origin:
        """The line of a character, here-documents that were taken out counted."""
        for start, gap in reversed(self.cuts):
            at += gap if at >= start else 0
        return self.place(at)

    def fault(self, why: str, at: int | None = None) -> ShellError:
        """An error with the line of a character."""
        place = self.origin(min(self.at if at is None else at, max(len(self.text) - 1, 0)))
        return ShellError(f"{place.file}:{place.line}: {why}: this is no complete shell script")

    def enter(self) -> None:
        """One level deeper."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fault(f"nested deeper than {DEEPEST} levels")

    def blank(self, *, lines: bool = False) -> None:
        """Skip spaces, continued lines and comments; with ``lines`` also newlines."""
        text = self.text
        while self.at < len(text):
            char = text[self.at]
            if char in " \t" or (lines and char == "\n"):
                self.at += 1
            elif text.startswith("\\\n", self.at):
                self.at += 2
            elif char == "#" and (self.at == 0 or text[self.at - 1] in " \t\n;&|()"):
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            else:
                break

    def word(self, *, may_be_empty: bool = False) -> Word:
        """One word."""
        start = self.at
        parts: list[Part] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if self.text.startswith(("<(", ">("), self.at):
                parts.append(self.process())
            elif char in _META:
                break
            else:
                parts.extend(self.piece(False))
        if self.at == start and not may_be_empty:
            raise self.fault(f"{self.text[start : start + 1]!r} is unexpected")
        return Word(tuple(parts), self.origin(start), self.text[start : self.at])

    def process(self) -> Part:
        start = self.at
        self.at += 1
        self.at += 1
        self.body((), ")")
        if not self.text.startswith(")", self.at):
            raise self.fault("'<(' is not closed", start)
        self.at += 1
        return Sub((), True, self.origin(start), self.text[start : self.at])

    def piece(self, quoted: bool, special: str = "") -> list[Part]:
        """The next part: a run of characters, a quoted string or an expansion."""
        start, char = self.at, self.text[self.at]
        if char == "\\":
            self.at += 2
            if self.text.startswith("\n", start + 1):
                return []
            after = self.text[start + 1 : start + 2]
            if quoted and after not in '$`"\\' + special:
                return [Lit("\\" + after, True, self.origin(start))]
            return [Lit(after, True, self.origin(start))]
        if char == "'" and not quoted:
            end = self.text.find("'", self.at + 1)
            if end < 0:
                raise self.fault("a single quote is not closed", start)
            self.at = end + 1
            return self.lines(start + 1, end)
        if char == '"' and not quoted:
            return self.double()
        if char == "`":
            return [self.backquote(quoted)]
        if char == "$":
            return self.dollar(quoted)
        if char == "\n":
            self.at += 1
            return [Lit(char, quoted, self.origin(start))]
        stop = re.compile(
            r"[\n\\`$\"" + ("" if quoted else r"' \t;&|<>()") + re.escape(special) + "]"
        )
        match = stop.search(self.text, self.at + 1)
        self.at = match.start() if match else len(self.text)
        return [Lit(self.text[start : self.at], quoted, self.origin(start))]

    def lines(self, start: int, end: int) -> list[Part]:
        """Quoted text, a part for each line."""
        parts: list[Part] = []
        at = start
        for line in self.text[start:end].splitlines(keepends=True):
            parts.append(Lit(line, True, self.origin(at)))
            at += len(line)
        return parts or [Lit("", True, self.origin(start))]

    def double(self) -> list[Part]:
        start = self.at
        self.at += 1
        parts = list(self.until(('"',), True, opened=start))
        self.at += 1
        return parts or [Lit("", True, self.origin(start))]

    def until(
        self, stops: tuple[str, ...], quoted: bool, *, opened: int | None = None,
        document: bool = False,
    ) -> Parts:  # fmt: skip
        """Parts up to one of ``stops``, which is not taken; brackets inside are balanced."""
        self.enter()
        start = self.at if opened is None else opened
        parts: list[Part] = []
        nested = 0
        special = "".join({s[0] for s in stops} | ({"("} if "))" in stops else set()))
        while True:
            if self.at >= len(self.text):
                if stops:
                    raise self.fault(f"{self.text[start : start + 1]!r} is not closed", start)
                break
            char = self.text[self.at]
            if nested == 0 and any(self.text.startswith(stop, self.at) for stop in stops):
                break
            if "))" in stops and char in "()":
                nested += 1 if char == "(" else -1
            if char == '"' and quoted and (document or '"' not in stops):
                if document:
                    self.at += 1
                    parts.append(Lit('"', True, self.origin(self.at - 1)))
                else:
                    parts.extend(self.double())
                continue
            if not quoted and char in _META:
                self.at += 1
                parts.append(Lit(char, False, self.origin(self.at - 1)))
                continue
            parts.extend(self.piece(quoted, special))
        self.depth -= 1
        return tuple(parts)

    def backquote(self, quoted: bool) -> Part:
        start = self.at
        match = re.compile(r"`((?:[^`\\]|\\.)*+)`", re.S).match(self.text, self.at)
        if match is None:
            raise self.fault("a backquote is not closed", start)
        self.at = match.end()
        inside = re.sub(r"\\([`$\\])", r"\1", match[1])
        body = self.nested(inside, start + 1).body(())
        return Sub(body, quoted, self.origin(start), match[0])

    def dollar(self, quoted: bool) -> list[Part]:
        """An expansion that begins with ``$``."""
        start, text = self.at, self.text
        place = self.origin(start)
        if text.startswith("$((", start):
            self.at += 3
            parts = self.until(("))",), False, opened=start)
            self.at += 2
            return [Arith(parts, quoted, place, text[start : self.at])]
        if text.startswith("$(", start):
            self.at += 2
            body = self.body((), ")")
            if not self.text.startswith(")", self.at):
                raise self.fault("'$(' is not closed", start)
            self.at += 1
            return [Sub(body, quoted, place, self.text[start : self.at])]
        if text.startswith("${", start):
            return [self.braced(quoted)]
        if text.startswith("$'", start) and not quoted:
            return [self.ansi()]
        if text.startswith('$"', start) and not quoted:
            self.at += 1
            return self.double()
        match = re.compile(r"\$([A-Za-z_]\w*|[0-9@*#?$!-])").match(text, start)
        if match is None:
            self.at += 1
            return [Lit("$", True, place)]
        self.at = match.end()
        return [Param(match[1], quoted, place, match[0])]

    def ansi(self) -> Part:
        start = self.at
        match = re.compile(r"\$'((?:[^'\\]|\\.)*+)'", re.S).match(self.text, start)
        if match is None:
            raise self.fault("a quote is not closed", start)
        self.at = match.end()
        text = re.sub(r"\\(.)", lambda m: _ANSI.get(m[1], "\\" + m[1]), match[1], flags=re.S)
        return Lit(text, True, self.origin(start))

    def braced(self, quoted: bool) -> Part:
        """``${…}``."""
        start, place = self.at, self.origin(self.at)
        match = re.compile(r"\$\{([#!]?)([A-Za-z_]\w*|[0-9]+|[@*#?$!-])").match(self.text, start)
        if match is None:
            raise self.fault("'${' without a name", start)
        self.at = match.end()
        index = None
        if self.text.startswith("[", self.at):
            self.at += 1
            index = self.until(("]",), quoted, opened=start)
            self.at += 1
        prefix = {"#": "length", "!": "indirect"}.get(match[1], "")
        op, argument, second = "", _NONE, _NONE
        if not self.text.startswith("}", self.at):
            op = next((o for o in _OPERATORS if self.text.startswith(o, self.at)), "")
            if not op:
                raise self.fault("'${' is not closed or not understood", start)
            self.at += len(op)
            split_at = {"/": ("/", "}"), ":": (":", "}")}.get(op[0] if op != ":-" else "", ("}",))
            if op in (":-", ":=", ":?", ":+"):
                split_at = ("}",)
            plain = quoted and op[0] not in "#%/^,"
            argument = self.until(split_at, plain, opened=start)
            if not self.text.startswith("}", self.at):
                self.at += 1
                second = self.until(("}",), quoted, opened=start)
        self.at += 1
        if prefix and index is not None and prefix == "indirect":
            prefix = "keys"
        return Param(
            match[2], quoted, place, self.text[start : self.at], index, prefix or op, argument,
            second,
        )  # fmt: skip

    # -- what words are part of

    def assign(self, match: re.Match[str]) -> Assign:
        start = self.at
        self.at = match.end()
        index = None
        if match[2]:
            index = self.inner(match[2][1:-1], start + len(match[1]) + 1)
        append = bool(match[3])
        if self.text.startswith("(", self.at):
            return Assign(match[1], self.origin(start), append, index, array=self.array())
        value = self.word(may_be_empty=True)
        return Assign(match[1], self.origin(start), append, index, value=value)

    def inner(self, text: str, at: int) -> Parts:
        """Parts of a text that lies inside this one."""
        part = self.nested(text, at)
        return part.until((), False)

    def array(self) -> tuple[Word, ...]:
        start = self.at
        self.at += 1
        words: list[Word] = []
        while True:
            self.blank(lines=True)
            if self.at >= len(self.text):
                raise self.fault("an array without its ')'", start)
            if self.text[self.at] == ")":
                self.at += 1
                return tuple(words)
            if self.text[self.at] in ";&|<>(":
                raise self.fault(f"{self.text[self.at]!r} inside an array")
            words.append(self.word())

    def redirect(self) -> tree.Redirect | None:
        """A redirection, if one begins here."""
        match = _REDIRECT.match(self.text, self.at)
        if match is None or self.text.startswith(("<(", ">("), self.at):
            return None
        self.at = match.end()
        self.blank()
        op = match[2]
        target = self.word(may_be_empty=True)
        if op not in ("<<", "<<-"):
            return tree.Redirect(
                match[1] + op if op in (">", ">>") and match[1] == "2" else op, target
            )
        name = "".join(p.text for p in target.parts if isinstance(p, Lit))
        quoted = any(isinstance(p, Lit) and p.quoted for p in target.parts)
        waiting = tree.Waiting(name, quoted, op == "<<-")
        self.waiting.append(waiting)
        rest = self.at
        self.documents_from_here()
        self.at = rest
        return tree.Redirect(op, target, tuple(waiting.parts))

    def documents_from_here(self) -> None:
        """Read the text of the here-document just met, which begins after this line.

        The characters are taken out of the script, so that the lines after it follow the command.
        """
        end = self.text.find("\n", self.at)
        waiting = self.waiting.pop()
        if end < 0:
            raise self.fault(f"the here-document up to {waiting.delimiter!r} is missing")
        lines_at, at = [], end + 1
        while True:
            if at >= len(self.text):
                break
            stop = self.text.find("\n", at)
            stop = len(self.text) if stop < 0 else stop
            line = self.text[at:stop]
            if (line.lstrip("\t") if waiting.strip else line) == waiting.delimiter:
                at = stop
                break
            lines_at.append((at, line))
            at = stop + 1
        for begin, line in lines_at:
            kept = line.lstrip("\t") if waiting.strip else line
            begin += len(line) - len(kept)
            self.document_line(waiting, begin, kept)
        self.cut(end, min(at, len(self.text)))

    def document_line(self, waiting: tree.Waiting, begin: int, line: str) -> None:
        slashes = len(line) - len(line.rstrip("\\"))
        goes_on = not waiting.quoted and slashes % 2 == 1
        line = line[:-1] if goes_on else line
        if waiting.quoted or not re.search(r"[$`\\]", line):
            waiting.parts.append(Lit(line, True, self.origin(begin)))
        else:
            part = self.nested(line, begin)
            waiting.parts.extend(part.until((), True, document=True))
        if not goes_on:
            waiting.parts.append(Lit("\n", True, self.origin(begin)))

    def cut(self, start: int, end: int) -> None:
        """Take characters out of the script; lines keep their numbers."""
        self.text = self.text[:start] + self.text[end:]
        self.cuts.append((start, end - start))
        if len(self.cuts) > MOST_DOCUMENTS:
            raise self.fault(f"more than {MOST_DOCUMENTS} here-documents")
