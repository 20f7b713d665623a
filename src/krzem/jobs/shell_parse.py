"""From the text of a shell script to its tree; nothing is expanded or run here."""

from __future__ import annotations

import re
from collections.abc import Callable

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_parse_words import WordParser
from krzem.jobs.shell_tree import Assign, Body, Lit, Node, Parts, Word
from krzem.jobs.shell_words import Origin, ShellError

LONGEST = 250_000
_RESERVED = re.compile(
    r"(if|then|elif|else|fi|for|while|until|do|done|case|esac|function|select|time|\{|\}|!|\[\[)"
    r"(?=[\s;&|()<>]|$)"
)
_ASSIGN = re.compile(r"([A-Za-z_]\w*)(\[[^\]\n]*\])?(\+?)=")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTION = re.compile(r"([A-Za-z_][\w.:-]*)[ \t]*\([ \t]*\)")
_DECLARE = {"export", "declare", "local", "readonly", "typeset"}
_NONE: Parts = ()


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


class Parser(WordParser):
    """A recursive descent over the characters of one script."""

    def script(self) -> Body:
        """Everything."""
        body = self.body(())
        if self.at < len(self.text):
            raise self.fault(f"{self.text[self.at : self.at + 10].split()[0]!r} is unexpected")
        return body

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
        """A word of ``[[``; operators are words, and a regular expression goes to the blank.

        One in quotes is text (``=~ " $x "``), as any word in quotes.
        """
        begin = self.at
        for op in ("&&", "||", "(", ")", "<", ">"):
            if not regular and self.text.startswith(op, self.at):
                self.at += len(op)
                return Word((Lit(op, False, self.origin(begin)),), self.origin(begin), op)
        if regular and self.text[self.at] not in "\"'":
            match = re.compile(r"(?:\"[^\"]*\"|\S)+").match(self.text, self.at)
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

    def reserved(self) -> str:
        """The reserved word that begins here, or ''."""
        match = _RESERVED.match(self.text, self.at)
        return match[1] if match else ""
