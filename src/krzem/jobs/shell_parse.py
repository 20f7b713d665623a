"""From the text of a shell script to its tree; nothing is expanded or run here."""

from __future__ import annotations

import re
from collections.abc import Callable

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_tree import Arith, Assign, Body, Lit, Node, Param, Part, Parts, Sub, Word
from krzem.jobs.shell_words import Origin, ShellError

DEEPEST = 60
LONGEST = 2_000_000
MOST_DOCUMENTS = 100
_RESERVED = re.compile(
    r"(if|then|elif|else|fi|for|while|until|do|done|case|esac|function|select|time|\{|\}|!|\[\[)"
    r"(?=[\s;&|()<>]|$)"
)
_ASSIGN = re.compile(r"([A-Za-z_]\w*)(\[[^\]\n]*\])?(\+?)=")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTION = re.compile(r"([A-Za-z_][\w.:-]*)[ \t]*\([ \t]*\)")
_REDIRECT = re.compile(r"(\d*)(<<<|<<-|<<|<>|<&|>&|>>|>\||&>>|&>|<|>)")
_DECLARE = {"export", "declare", "local", "readonly", "typeset"}
_OPERATORS = (
    ":-", ":=", ":?", ":+", "-", "=", "?", "+", "##", "#", "%%", "%", "//", "/#", "/%", "/",
    "^^", "^", ",,", ",", "@", ":",
)  # fmt: skip
_NONE: Parts = ()
_META = " \t\n;&|<>()"
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "", "e": ""}


def parse(text: str, origin: Callable[[int], Origin]) -> Body:
    """The commands of a script; ``origin`` gives the line of a character.

    Raises ShellError with the line of what is not closed or not understood.
    """
    if len(text) > LONGEST:
        raise ShellError(f"a script of {len(text):,} characters is no job (limit {LONGEST:,})")
    try:
        return Parser(text, origin).script()
    except RecursionError:
        raise ShellError("the script nests too deeply to be a job") from None


def origins(file: str, text: str) -> Callable[[int], Origin]:
    """The line of each character of a file."""
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    lines = [Origin(file, number + 1) for number in range(len(starts))]

    def find(at: int) -> Origin:
        low, high = 0, len(starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if starts[middle] <= at else (low, middle)
        return lines[low]

    return find


class Parser:
    """A recursive descent over the characters of one script."""

    def __init__(self, text: str, origin: Callable[[int], Origin]) -> None:
        self.text, self.place = text, origin
        self.cuts: list[tuple[int, int]] = []
        self.at = 0
        self.depth = 0
        self.waiting: list[tree.Waiting] = []

    def origin(self, at: int) -> Origin:
        """The line of a character, here-documents that were taken out counted."""
        for start, gap in reversed(self.cuts):
            at += gap if at >= start else 0
        return self.place(at)

    # -- lists of commands

    def script(self) -> Body:
        """Everything."""
        body = self.body(())
        if self.at < len(self.text):
            raise self.fault(f"{self.text[self.at : self.at + 10].split()[0]!r} is unexpected")
        return body

    def fault(self, why: str, at: int | None = None) -> ShellError:
        """An error with the line of a character."""
        place = self.origin(min(self.at if at is None else at, max(len(self.text) - 1, 0)))
        return ShellError(f"{place.file}:{place.line}: {why}: this is no complete shell script")

    def enter(self) -> None:
        """One level deeper."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fault(f"nested deeper than {DEEPEST} levels")

    def body(self, stops: tuple[str, ...], close: str = "") -> Body:
        """Commands until a reserved word of ``stops`` or the character ``close``."""
        self.enter()
        nodes: list[Node] = []
        while True:
            self.blank(lines=True)
            if self.at >= len(self.text):
                break
            if close and self.text[self.at] == close:
                break
            if self.reserved() in stops or self.text.startswith(";;", self.at):
                break
            if self.text[self.at] in ";&" and not self.text.startswith("&>", self.at):
                self.at += 1
                continue
            if self.text[self.at] == ")":
                break
            nodes.append(self.chain())
        self.depth -= 1
        return tuple(nodes)

    def chain(self) -> Node:
        """Pipelines joined by && and ||."""
        left = self.pipe()
        while True:
            self.blank()
            op = self.text[self.at : self.at + 2]
            if op not in ("&&", "||"):
                return left
            self.at += 2
            self.blank(lines=True)
            left = tree.Chain(left.origin, left, op, self.pipe())

    def pipe(self) -> Node:
        """Commands joined by |."""
        self.blank()
        start, negated = self.at, False
        while (word := self.reserved()) in ("!", "time"):
            negated ^= word == "!"
            self.at += len(word)
            self.blank()
        parts = [self.command()]
        while True:
            self.blank()
            if not self.text.startswith("|", self.at) or self.text.startswith("||", self.at):
                break
            self.at += 2 if self.text.startswith("|&", self.at) else 1
            self.blank(lines=True)
            parts.append(self.command())
        if len(parts) == 1 and not negated:
            return parts[0]
        return tree.Pipe(self.origin(start), tuple(parts), negated)

    # -- compound commands

    def command(self) -> Node:
        """One command, compound or simple."""
        self.enter()
        start = self.at
        word = self.reserved()
        rule = {
            "if": self.if_,
            "case": self.case,
            "for": self.for_,
            "select": self.for_,
            "while": self.while_,
            "until": self.while_,
            "{": self.group,
            "[[": self.condition,
            "function": self.function,
        }.get(word)
        if rule is not None:
            node = rule()
        elif word:
            raise self.fault(f"{word!r} is unexpected")
        elif self.text.startswith("((", self.at):
            node = self.calculation()
        elif self.text.startswith("(", self.at):
            node = self.group()
        elif (match := _FUNCTION.match(self.text, self.at)) is not None:
            self.at = match.end()
            self.blank(lines=True)
            node = tree.Function(self.origin(start), match[1], (self.command(),))
        else:
            node = self.simple()
        if not isinstance(node, tree.Simple):
            node = self.redirected(node)
        self.depth -= 1
        return node

    def redirected(self, node: Node) -> Node:
        """Redirections after a compound command."""
        redirects = []
        while True:
            self.blank()
            redirect = self.redirect()
            if redirect is None:
                break
            redirects.append(redirect)
        if not redirects:
            return node
        return tree.Group(node.origin, (node,), False, tuple(redirects))

    def take(self, word: str) -> None:
        """The reserved word that must come now."""
        self.blank(lines=True)
        while self.text.startswith(";", self.at) and not self.text.startswith(";;", self.at):
            self.at += 1
            self.blank(lines=True)
        if self.reserved() != word:
            got = self.text[self.at : self.at + 20].split()
            end = "the script ends" if not got else f"{got[0]!r} stands"
            raise self.fault(f"{end} where {word!r} must be")
        self.at += len(word)

    def if_(self) -> Node:
        start = self.at
        branches = []
        word = "if"
        while word in ("if", "elif"):
            self.at += len(word)
            test = self.body(("then",))
            self.take("then")
            branches.append((test, self.body(("elif", "else", "fi"))))
            word = self.reserved()
        otherwise: Body = ()
        if word == "else":
            self.at += 4
            otherwise = self.body(("fi",))
        self.close("fi", "if", start)
        return tree.If(self.origin(start), tuple(branches), otherwise)

    def close(self, word: str, opened: str, start: int) -> None:
        """The word that ends a compound command."""
        if self.at >= len(self.text):
            raise self.fault(f"{opened!r} without {word!r}", start)
        self.take(word)

    def while_(self) -> Node:
        start, word = self.at, self.reserved()
        self.at += len(word)
        test = self.body(("do",))
        self.take("do")
        body = self.body(("done",))
        self.close("done", word, start)
        return tree.While(self.origin(start), test, body, word == "until")

    def for_(self) -> Node:
        start = self.at
        self.at += len(self.reserved())
        self.blank()
        if self.text.startswith("((", self.at):
            return self.count(start)
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self.fault("a loop without a variable")
        self.at = match.end()
        self.blank(lines=True)
        words: list[Word] | None = None
        if re.compile(r"in(?=\s|;|$)").match(self.text, self.at):
            self.at += 2
            words = []
            self.blank()
            while self.at < len(self.text) and self.text[self.at] not in ";\n&|)":
                words.append(self.word())
                self.blank()
        self.take("do")
        body = self.body(("done",))
        self.close("done", "for", start)
        return tree.For(self.origin(start), match[0], None if words is None else tuple(words), body)

    def count(self, start: int) -> Node:
        self.at += 2
        fields = [self.until((";",), False), _NONE, _NONE]
        self.at += 1
        fields[1] = self.until((";",), False)
        self.at += 1
        fields[2] = self.until(("))",), False)
        self.at += 2
        self.take("do")
        body = self.body(("done",))
        self.close("done", "for", start)
        return tree.Count(self.origin(start), fields[0], fields[1], fields[2], body)

    def case(self) -> Node:
        start = self.at
        self.at += 4
        self.blank()
        subject = self.word()
        self.blank(lines=True)
        if not self.text.startswith("in", self.at):
            raise self.fault("'case' without 'in'", start)
        self.at += 2
        arms = []
        while True:
            self.blank(lines=True)
            if self.reserved() == "esac":
                break
            if self.at >= len(self.text):
                raise self.fault("'case' without 'esac'", start)
            arms.append(self.arm())
        self.close("esac", "case", start)
        return tree.Case(self.origin(start), subject, tuple(arms))

    def arm(self) -> tuple[tuple[Word, ...], Body]:
        if self.text.startswith("(", self.at):
            self.at += 1
        patterns = []
        while True:
            self.blank()
            patterns.append(self.word())
            self.blank()
            if self.text.startswith("|", self.at):
                self.at += 1
                continue
            break
        if not self.text.startswith(")", self.at):
            raise self.fault("a pattern of 'case' without ')'")
        self.at += 1
        body = self.body(("esac",))
        for end in (";;&", ";;", ";&"):
            if self.text.startswith(end, self.at):
                self.at += len(end)
                break
        return tuple(patterns), body

    def function(self) -> Node:
        start = self.at
        self.at += len("function")
        self.blank()
        match = re.compile(r"[^\s(){};&|]+").match(self.text, self.at)
        if match is None:
            raise self.fault("a function without a name")
        self.at = match.end()
        self.blank()
        if self.text.startswith("(", self.at):
            self.at = self.text.find(")", self.at) + 1 or len(self.text)
        self.blank(lines=True)
        return tree.Function(self.origin(start), match[0], (self.command(),))

    def group(self) -> Node:
        start, subshell = self.at, self.text[self.at] == "("
        self.at += 1
        body = self.body(() if subshell else ("}",), ")" if subshell else "")
        if subshell:
            if not self.text.startswith(")", self.at):
                raise self.fault("'(' without ')'", start)
            self.at += 1
        else:
            self.close("}", "{", start)
        return tree.Group(self.origin(start), body, subshell)

    def condition(self) -> Node:
        start = self.at
        self.at += 2
        words: list[Word] = []
        while True:
            self.blank(lines=True)
            if self.at >= len(self.text):
                raise self.fault("'[[' without ']]'", start)
            if self.text.startswith("]]", self.at):
                self.at += 2
                return tree.Condition(self.origin(start), tuple(words))
            words.append(self.test_word(bool(words) and words[-1].bare == "=~"))

    def test_word(self, regular: bool) -> Word:
        """A word of ``[[``; operators are words, and a regular expression goes to the blank."""
        begin = self.at
        for op in ("&&", "||", "(", ")", "<", ">"):
            if not regular and self.text.startswith(op, self.at):
                self.at += len(op)
                return Word((Lit(op, False, self.origin(begin)),), self.origin(begin), op)
        if regular:
            match = re.compile(r"\S+").match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            return Word((Lit(match[0], True, self.origin(begin)),), self.origin(begin), match[0])
        return self.word()

    def calculation(self) -> Node:
        start = self.at
        self.at += 2
        parts = self.until(("))",), False)
        self.at += 2
        return tree.Calculation(self.origin(start), parts)

    # -- simple commands

    def simple(self) -> tree.Simple:
        start = self.at
        assigns: list[Assign] = []
        words: list[Word] = []
        declares: list[Assign] = []
        redirects: list[tree.Redirect] = []
        while self.at < len(self.text):
            self.blank()
            if self.at >= len(self.text) or self.text[self.at] in "\n;)":
                break
            redirect = self.redirect()
            if redirect is not None:
                redirects.append(redirect)
                continue
            if self.text[self.at] in "&|(":
                break
            match = _ASSIGN.match(self.text, self.at)
            if match is not None and not words:
                assigns.append(self.assign(match))
            elif match is not None and words[0].bare in _DECLARE:
                declares.append(self.assign(match))
            else:
                words.append(self.word())
        if self.at == start:
            raise self.fault(f"{self.text[start : start + 1]!r} is unexpected")
        return tree.Simple(
            self.origin(start), tuple(assigns), tuple(words), tuple(redirects), tuple(declares)
        )

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
        part = Parser(text, lambda offset: self.origin(at + offset))
        part.depth = self.depth + 1
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
        if waiting.quoted or not re.search(r"[$`\\]", line):
            waiting.parts.append(Lit(line, True, self.origin(begin)))
        else:
            part = Parser(line, lambda offset: self.origin(begin + offset))
            part.depth = self.depth + 1
            waiting.parts.extend(part.until((), True, document=True))
        waiting.parts.append(Lit("\n", True, self.origin(begin)))

    def cut(self, start: int, end: int) -> None:
        """Take characters out of the script; lines keep their numbers."""
        self.text = self.text[:start] + self.text[end:]
        self.cuts.append((start, end - start))
        if len(self.cuts) > MOST_DOCUMENTS:
            raise self.fault(f"more than {MOST_DOCUMENTS} here-documents")

    # -- words

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

    def reserved(self) -> str:
        """The reserved word that begins here, or ''."""
        match = _RESERVED.match(self.text, self.at)
        return match[1] if match else ""

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
        self.group()
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
        part = Parser(inside, lambda offset: self.origin(start + 1 + offset))
        part.depth = self.depth + 1
        return Sub(part.script(), quoted, self.origin(start), match[0])

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
            argument = self.until(split_at, quoted, opened=start)
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
