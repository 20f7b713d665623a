"""Expansion of words: variables, arithmetic, splitting; what is not known stays so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from krzem.jobs import shell_match as glob
from krzem.jobs.shell_arithmetic import Arithmetic, NotKnownError
from krzem.jobs.shell_tree import Arith, Lit, Param, Parts, Sub, Word
from krzem.jobs.shell_words import (
    COUNTED,
    EMPTY,
    NOWHERE,
    OUTSIDE,
    Field,
    Holder,
    Origin,
    Piece,
    ShellError,
    State,
    Value,
    bounded,
    element,
    element_values,
    joined,
    known,
    length_of,
    origin_of,
    plain,
    runs_of,
    scalar,
    shown,
    unknown,
)

MOST_STEPS = 60_000
LONGEST_PATTERN_TEXT = 3_000
_BRACES = re.compile(r"\{(-?\d{1,9})\.\.(-?\d{1,9})\}")


class Expander:
    """Variables of a script and what words stand for."""

    def __init__(self) -> None:
        self.names: dict[str, Holder] = {}
        self.args: list[Value] | None = None
        """Positional arguments; None where nobody knows them."""
        self.references: dict[str, str] = {}
        """Names that stand for other names (``local -n``)."""
        self.steps = 0
        self.depth = 0

    # -- bounds

    def spend(self, steps: int = 1) -> None:
        """Count work; raises ShellError where a script asks for too much."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise ShellError(
                f"the script needs more than {MOST_STEPS:,} steps to read: no launch script does;"
                " give the command it runs in the end"
            )

    def enter(self) -> None:
        """One level deeper."""
        self.depth += 1
        if self.depth > 40:
            raise ShellError("the script calls itself or nests more than 40 levels deep")

    def leave(self) -> None:
        """One level back."""
        self.depth -= 1

    # -- words

    def fields(self, word: Word) -> list[Value]:
        """The fields that a word becomes: none, one or several."""
        self.spend()
        found: list[Value] = []
        current: list[Piece] | None = None
        for run in self._runs(word.parts, splitting=True):
            if run is None:
                if current is not None:
                    found.append(tuple(current))
                current = None
                continue
            value, quoted = run
            if quoted or value:
                current = [*(current or []), *value]
                self.spend(len(current) // 20)
        if current is not None:
            found.append(bounded(current))
        return [out for value in found for out in _braced(word, value)]

    def value(self, parts: Parts) -> Value:
        """The value of parts where nothing is split: assignments, quoted text."""
        self.spend()
        pieces: list[Piece] = []
        for run in self._runs(parts, splitting=False):
            if run is not None:
                pieces.extend(run[0])
        self.spend(len(pieces) // 10)
        return bounded(pieces)

    def _runs(self, parts: Parts, splitting: bool) -> list[Field | None]:
        """Runs of pieces; None ends a field."""
        runs: list[Field | None] = []
        for part in parts:
            if isinstance(part, Lit):
                value: Value = (Piece(part.text, part.origin),) if part.text else EMPTY
                runs.append((value, part.quoted or bool(part.text)))
                continue
            values = self._part(part)
            if not splitting:
                runs.append((joined(values), True))
            elif part.quoted:
                for index, value in enumerate(values):
                    if index:
                        runs.append(None)
                    runs.append((value, True))
            else:
                runs.extend(runs_of(values))
        return runs

    def _part(self, part: Param | Arith | Sub) -> list[Value]:
        self.enter()
        try:
            if isinstance(part, Param):
                return self.parameter(part)
            if isinstance(part, Arith):
                return [self.arithmetic(part)]
            return [self.substitute(part)]
        finally:
            self.leave()

    def substitute(self, part: Sub) -> Value:
        """What ``$(…)`` would print."""
        return unknown(part.source, part.origin)

    # -- arithmetic

    def arithmetic(self, part: Arith) -> Value:
        """``$((…))``; unknown where a name in it is."""
        number = self.calculate(part.parts)
        if number is None:
            return unknown(part.source, part.origin)
        return known(str(number), part.origin)

    def calculate(self, parts: Parts) -> int | None:
        """The number of an expression, None where it is not known."""
        text = plain(self.value(parts))
        if text is None:
            return None
        self.spend(1 + len(text) // 20)
        try:
            return Arithmetic(text, self._look, self._put).value()
        except NotKnownError:
            return None

    def _look(self, name: str) -> int:
        self.spend()
        base, _, index = name.partition("[")
        holder = self.names.get(self.target(base))
        if holder is None:
            raise NotKnownError(name)
        key = index.rstrip("]").strip("$")
        value = self._element(holder, key) if index else scalar(holder)
        text = plain(value)
        if text is None:
            raise NotKnownError(name)
        self.enter()
        try:
            return Arithmetic(text, self._look, self._put).value()
        finally:
            self.leave()

    def _element(self, holder: Holder, index: str) -> Value:
        if isinstance(holder, dict):
            return holder.get(index, EMPTY)
        at = int(index) if re.fullmatch(r"\d{1,9}", index) else self._look(index)
        return element(holder, at)

    def _put(self, name: str, number: int) -> None:
        if "[" in name:
            raise NotKnownError(name)
        self.names[self.target(name)] = known(str(number))

    def target(self, name: str) -> str:
        """The variable that a name stands for."""
        return self.references.get(name, name) if self.references else name

    # -- parameters

    def parameter(self, p: Param) -> list[Value]:
        """The values of ``${…}``: one, or those of an array."""
        self.spend()
        if p.name in ("@", "*"):
            return self._positional(p)
        if p.name in self.references:
            p = replace(p, name=self.references[p.name])
        index = "" if p.index is None else shown(self.value(p.index))
        if p.index is not None and index in ("@", "*"):
            return self._whole(p, index)
        found = self._found(p, index)
        if p.op in ("indirect", "length"):
            return [self._about(p, found)]
        return [self._operated(p, found)]

    def _positional(self, p: Param) -> list[Value]:
        if self.args is None:
            return [unknown(p.source, p.origin)] if p.op != ":-" else [self.value(p.argument)]
        if p.op == ":":
            start = self.calculate(p.argument)
            return self.args[max((start or 1) - 1, 0) :] if start is not None else []
        return [joined(self.args)] if p.name == "*" and p.quoted else list(self.args)

    def _whole(self, p: Param, index: str) -> list[Value]:
        """``${name[@]}`` and what may be asked of it."""
        holder = self.names.get(p.name)
        if holder is None:
            if p.op in (":-", "-"):
                return [self.value(p.argument)]
            return [known("0")] if p.op == "length" else []
        if p.op == "keys":
            keys = list(holder) if isinstance(holder, dict) else map(str, range(length_of(holder)))
            return [known(key, p.origin) for key in keys]
        values = element_values(holder)
        if p.op == "length":
            whole = all(piece.state is State.KNOWN for value in values for piece in value)
            return [known(str(len(values)), p.origin) if whole else unknown(p.source, p.origin)]
        if p.op == ":":
            start, size = self.calculate(p.argument), self.calculate(p.second)
            if start is None:
                return [unknown(p.source, p.origin)]
            values = values[start : None if not p.second or size is None else start + size]
        elif p.op in (":+", "+"):
            return [self.value(p.argument)] if values else []
        elif p.op and p.op not in (":-", "-"):
            values = [self._operated(p, value) for value in values]
        elif p.op and not values:
            return [self.value(p.argument)]
        return [joined(values)] if index == "*" and p.quoted else values

    def _found(self, p: Param, index: str) -> Value | None:
        """The value of one variable; None where no file sets it."""
        if p.name.isdigit():
            return self._argument(p)
        if p.name in "#?$!-":
            known_count = p.name == "#" and self.args is not None
            return known(str(len(self.args or []))) if known_count else unknown(p.source, p.origin)
        holder = self.names.get(p.name)
        if holder is None:
            return None
        if p.index is None:
            return scalar(holder)
        if isinstance(holder, dict):
            return holder.get(index)
        try:
            return self._element(holder, index.strip())
        except NotKnownError:
            return unknown(p.source, p.origin)

    def _argument(self, p: Param) -> Value | None:
        number = int(p.name) if len(p.name) < 6 else 10**6
        if number == 0:
            return unknown(p.source, p.origin)
        if self.args is None:
            return None
        return self.args[number - 1] if number <= len(self.args) else EMPTY

    def _about(self, p: Param, found: Value | None) -> Value:
        """``${#name}`` and ``${!name}``."""
        text = None if found is None else plain(found)
        if text is None:
            return unknown(p.source, p.origin)
        if p.op == "length":
            return known(str(len(text)), p.origin)
        target = self.names.get(text)
        return unknown(p.source, p.origin) if target is None else scalar(target)

    def absent(self, p: Param) -> Value:
        """What a variable stands for that no file sets."""
        outside = p.name.isdigit() or OUTSIDE.match(p.name) is not None
        return (Piece(p.source, p.origin, State.UNKNOWN if outside else State.UNSET),)

    def _operated(self, p: Param, found: Value | None) -> Value:
        op = p.op
        if op in (":-", "-", ":=", "=", ":?", "?", ":+", "+"):
            return self._defaulted(p, found)
        if found is None:
            return self.absent(p)
        if not op:
            return found
        text = plain(found)
        if text is None or len(text) > LONGEST_PATTERN_TEXT:
            return unknown(p.source, p.origin)
        return self._edited(p, text, origin_of(found, p.origin))

    def _defaulted(self, p: Param, found: Value | None) -> Value:
        there = found is not None
        if found is not None and p.op.startswith(":"):
            if all(piece.state in (State.KNOWN, State.UNSET) for piece in found):
                there = any(piece.text for piece in found if piece.state is State.KNOWN)
            elif p.op in (":-", ":="):
                return found
        if p.op.endswith("+"):
            return self.value(p.argument) if there else EMPTY
        if there:
            assert found is not None
            return found
        if p.op.endswith("?") or (found is None and COUNTED.fullmatch(p.name)):
            return unknown(p.source, p.origin)
        value = self.value(p.argument)
        if p.op.endswith("=") and p.index is None:
            self.names[p.name] = value
        return value

    def _edited(self, p: Param, text: str, place: Origin) -> Value:
        op = p.op
        if op == ":":
            return self._substring(p, text, place)
        if op in ("^", "^^", ",", ",,"):
            low = op.startswith(",")
            first = text[:1].lower() if low else text[:1].upper()
            whole = text.lower() if low else text.upper()
            return known(whole if len(op) == 2 else first + text[1:], place)
        if op.startswith("@"):
            return known(text, place)
        pattern = self.pattern(p.argument)
        if pattern is None:
            return unknown(p.source, p.origin)
        self.spend(len(text) * (1 + len(pattern)) // 50)
        if op in ("#", "##"):
            return known(glob.without_prefix(pattern, text, op == "##"), place)
        if op in ("%", "%%"):
            return known(glob.without_suffix(pattern, text, op == "%%"), place)
        self.spend(len(text) * len(text) * (1 + len(pattern)) // 200)
        by = plain(self.value(p.second))
        if by is None:
            return unknown(p.source, p.origin)
        return known(glob.replaced(pattern, text, by, op[1:]), place)

    def _substring(self, p: Param, text: str, place: Origin) -> Value:
        start = self.calculate(p.argument)
        size = self.calculate(p.second) if p.second else None
        if start is None or (p.second and size is None):
            return unknown(p.source, p.origin)
        start = max(len(text) + start, 0) if start < 0 else start
        end = None if size is None else start + size if size >= 0 else len(text) + size
        return known(text[start:end], place)

    def pattern(self, parts: Parts) -> list[glob.Token] | None:
        """A pattern for matching; None where a piece of it is not known."""
        runs: list[tuple[str, bool]] = []
        for part in parts:
            quoted = part.quoted
            text = plain(self.value((part,)))
            if text is None:
                return None
            runs.append((text, quoted))
        return glob.compiled(runs)

    # -- assignment

    def assign(self, name: str, value: Value, *, append: bool = False) -> None:
        """``name=value`` and ``name+=value``."""
        name = self.target(name)
        before = self.names.get(name)
        if append and before is not None and not isinstance(before, tuple):
            self.names[name] = [joined([scalar(before), value], ""), *element_values(before)[1:]]
        elif append and isinstance(before, tuple):
            self.names[name] = bounded((*before, *value))
        else:
            self.names[name] = value

    def assign_array(self, name: str, values: Sequence[Value], *, append: bool) -> None:
        """``name=(…)`` and ``name+=(…)``."""
        name = self.target(name)
        before = self.names.get(name) if append else None
        kept = [] if before is None else element_values(before)
        self.spend(len(values))
        if len(kept) + len(values) > 20_000:
            raise ShellError(f"the array {name} grows beyond 20,000 words; no job needs that")
        self.names[name] = [*kept, *values]


def _braced(word: Word, value: Value) -> list[Value]:
    """``{1..8}`` in a bare word."""
    match = _BRACES.search(word.bare)
    if match is None:
        return [value]
    low, high = int(match[1]), int(match[2])
    if abs(high - low) > 10_000:
        raise ShellError(f"{match[0]} counts {abs(high - low):,} numbers; no job needs that")
    numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
    text, place = word.bare, origin_of(value, NOWHERE)
    return [known(text[: match.start()] + str(n) + text[match.end() :], place) for n in numbers]
