"""What a shell script would run, found out without running anything.

:func:`read_scripts` follows assignments, arrays, arithmetic, conditions, loops, functions and
here-documents of the given scripts and gives the commands they end in, each word with the line
it was written on.  A command's output, a positional argument or a variable of the machine is not
known and stays so; where a condition is not known both sides are followed and only what they
agree on is kept.  Every loop, depth and size is bounded, and a script beyond a bound ends in one
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_builtins import Builtins
from krzem.jobs.shell_match import Operand, Test, matches
from krzem.jobs.shell_state import Break, Command, Continue, Exit, Flow, Script, launcher_options
from krzem.jobs.shell_words import (
    NOWHERE,
    Holder,
    Piece,
    State,
    Value,
    element_values,
    joined,
    merged,
    merged_words,
    origin_of,
    plain,
    scalar,
    shown,
    unknown,
)

__all__ = ["Command", "Script", "Shell", "launcher_options", "read_scripts"]

MOST_TURNS = 1_000


def read_scripts(files: Mapping[str, str], roots: Sequence[str]) -> list[Script]:
    """Read each of ``roots``, with every file of ``files`` at hand; those that another runs last.

    Raises ShellError (a DataError) for text that is no shell script and for hostile ones.
    """
    scripts = [(name, Shell(files).run(name)) for name in roots]
    called = set().union(*(script.called for _, script in scripts)) if scripts else set()
    own = [script for name, script in scripts if name not in called]
    return own or [script for _, script in scripts]


class Shell(Builtins):
    """One evaluation."""

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
        self.assumed = False
        left = self.node(node.left)
        if left is not None and left != (node.op == "||") and self.assumed:
            return self.tentative(lambda: self.node(node.right), lambda: left)
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

    def either(self, ways: Sequence[Callable[[], bool | None]]) -> bool | None:
        """Follow every way from here and keep what they agree on; ways that leave do not count."""
        certain, names = self.certain, self.names
        self.certain = False
        self.spend(len(names))
        ends: list[dict[str, Holder]] = []
        statuses: set[bool | None] = set()
        flow: Flow | None = None
        for way in ways:
            self.names = dict(names)
            try:
                statuses.add(way())
            except Flow as jump:
                flow = jump
                continue
            ends.append(self.names)
        self.certain, self.names = certain, names
        if not ends:
            assert flow is not None
            raise flow
        self.names = ends[0] if len(ends) == 1 else self._merged(ends)
        return statuses.pop() if len(statuses) == 1 else None

    def tentative(
        self, way: Callable[[], bool | None], other: Callable[[], bool | None]
    ) -> bool | None:
        """Follow a way taken because a variable is not set; one that gives up is not taken.

        Scripts end so where something must be given first: they are read as if it were.
        """
        names = dict(self.names)
        self.spend(len(names) // 10)
        try:
            return way()
        except Exit:
            self.names = names
            return other()

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
            lists = [[] if h is None else element_values(h) for h in holders]
            self.spend(sum(map(len, lists)) // 10)
            return merged_words(lists)
        values = [absent if h is None else scalar(h) for h in holders]
        return merged(name, values, origin_of(values[0]))

    def if_(self, node: tree.If, at: int = 0) -> bool | None:
        """``if``: one branch where the condition is known, else all that are possible."""
        if at == len(node.branches):
            return self.body(node.otherwise)
        test, body = node.branches[at]
        self.assumed = False
        status = self.body(test)
        if status is True and self.assumed:
            return self.tentative(lambda: self.body(body), lambda: self.if_(node, at + 1))
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
        outer, self.repeated = self.repeated, True
        try:
            self.body(body)
        except Break:
            return False
        except Continue:
            pass
        finally:
            self.repeated = outer
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
        for _ in range(MOST_TURNS):
            self.spend(2)
            test = self.body(node.test)
            if test is None:
                if _asks_arguments(node.test):
                    return True
                return self.either([lambda: self._turn(node.body) and True, lambda: True])
            if test is node.until:
                return True
            before = dict(self.names)
            if not self._turn(node.body):
                return True
            if self.names == before:
                return None  # a monitor beside the job: every turn is like this one
        self.script.notes.append(f"{node.origin.file}:{node.origin.line}: a loop without end")
        return None

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
        except Exit:
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
        self.assume(operands)
        return Test(operands, self._is_set).result()

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

    def _input(self, redirect: tree.Redirect) -> None:
        """What a redirection gives the command to read."""
        if redirect.op in ("<<", "<<-"):
            self.stdin = self.value(redirect.body)
        elif redirect.op == "<<<":
            self.stdin = (*self.value(redirect.target.parts), Piece("\n"))
        elif redirect.op == "<":
            self.stdin = self._read_file(redirect.target)


_RULES: dict[type, Callable[[Shell, Any], bool | None]] = {
    tree.Simple: Shell.simple, tree.Condition: Shell.condition,
    tree.Calculation: Shell.calculation, tree.If: Shell.if_, tree.Case: Shell.case,
    tree.For: Shell.for_, tree.Count: Shell.count, tree.While: Shell.while_,
    tree.Function: Shell.function, tree.Group: Shell.group, tree.Pipe: Shell.pipe,
    tree.Chain: Shell.chain,
}  # fmt: skip  # fmt: skip


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
