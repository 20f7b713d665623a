"""The programs that a job starts, with their options as a tree of settings.

Scripts are followed by :mod:`krzem.jobs.launch`; here come scripts inside the YAML of a container
cluster (``command: [bash, -c, ...]``), programs that are no Python file, and the options.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from krzem.errors import DataError, KrzemError, shorten
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.launch import (
    SHELL_SUFFIXES,
    Launch,
    at,
    launches,
    scripts,
    state_device,
    state_devices,
)
from krzem.jobs.registry import Sources
from krzem.jobs.shell import Command, Script, launcher_options, read_scripts
from krzem.jobs.shell_words import ShellWord, State
from krzem.jobs.tree import LONGEST_LINE, Entry, Open, Tree

_PROGRAMS = ("swift", "llamafactory-cli", "axolotl", "automodel", "megatron", "primus-cli",
             "xtuner", "litgpt", "arctic_training", "run_train.sh", "run_llama_train.sh",
             "run_pretrain.sh", "msrun_launcher.sh")  # fmt: skip
"""Programs that are no Python file."""
_TRAINS = re.compile(r"\b(python3?|torchrun|accelerate|deepspeed|llamafactory-cli)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One program that is started."""

    program: str
    """The module or the path of the Python file, or the name of a program."""
    options: Tree
    """``--a.b 4``, ``--a.b=4``, ``a.b=4``; a flag alone is true."""
    loose: tuple[ShellWord, ...]
    """Words that belong to no option: subcommands and files."""
    launch: Launch
    place: Place

    def word(self, name: str) -> str | None:
        """An environment variable of the command, where it is known."""
        found = self.launch.command.environment.get(name)
        return found.text if found is not None and found.known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """What all scripts of a job start."""

    programs: tuple[Start, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    """Files that the scripts write, by name."""
    variables: Mapping[str, ShellWord] = field(default_factory=dict)
    """What the scripts' variables hold in the end."""
    fault: str = ""
    """Why scripts could not be followed."""

    def find(self, pattern: str) -> tuple[Start, ...]:
        """The programs whose name matches a regular expression somewhere."""
        return tuple(p for p in self.programs if re.search(pattern, p.program))


def starts_of(sources: Sources) -> Starts:
    """The programs that the files start; found once for all readers."""
    known = sources.opened.get("starts")
    if not isinstance(known, Starts):
        known = sources.opened["starts"] = _starts(sources)
    return known


def _starts(sources: Sources) -> Starts:
    found = _followed(sources)
    if not found.programs and any(_REFUSES.search(t) for t in sources.files.values()):
        files = {n: _REFUSES.sub(r"\1:", t) if is_shell(n) else t for n, t in sources.files.items()}
        found = _followed(Sources(files=files), found)
    return found


_REFUSES = re.compile(r"^([ \t]*)exit[ \t]+[1-9]\d*[ \t]*$", re.M)
"""A script that stops because something is not filled in yet; it is read as if it were."""


def _followed(sources: Sources, before: Starts | None = None) -> Starts:
    inside = dict(_embedded(sources))
    files = {**sources.files, **inside}
    try:
        found = [*scripts(sources), *scripts(Sources(files=inside))]
    except DataError as error:
        return before or Starts(fault=str(error))
    programs = [_start(x, files) for script in found for x in _all(script)]
    if not programs:
        alone = [s for n in files if is_shell(n) for s in read_scripts(files, [n])]
        programs = [_start(x, files) for script in alone for x in _stored(script)]
    return Starts(
        programs=tuple(programs),
        documents={n: text for s in found for n, (text, _, _) in s.documents.items()},
        variables=_variables(found),
    )


def _variables(found: Sequence[Script]) -> dict[str, ShellWord]:
    """Variables of all scripts; the first that is known wins."""
    variables: dict[str, ShellWord] = {}
    for script in found:
        for name, word in script.variables.items():
            if name not in variables or not variables[name].known:
                variables[name] = word
    return variables


def _stored(script: Script) -> Iterator[Launch]:
    """Commands that a script keeps in a variable, to be run by a file that it writes."""
    for word in script.variables.values():
        if _TRAINS.search(word.text) and re.search(r"\.py\b", word.text):
            command = Command(words=(), environment={}, origin=word.origin)
            yield from _told(word, command, script, {})


def _all(script: Script) -> Iterator[Launch]:
    yield from launches(script)
    for command in script.commands:
        found = _other(command, script)
        if found is not None:
            yield found
        yield from _quoted(command, script)


def _quoted(command: Command, script: Script) -> Iterator[Launch]:
    """What a cluster's tool is told to run in its option ``--command``."""
    options = launcher_options(command.words)
    word = options.get("command")
    if word is None or not _TRAINS.search(word.text):
        return
    yield from _told(word, command, script, options)


def _told(
    word: ShellWord, command: Command, script: Script, options: Mapping[str, ShellWord]
) -> Iterator[Launch]:
    """The programs in a text that a shell will run."""
    try:
        tokens = shlex.split(_lines(word.text), comments=False)[:2000]
    except ValueError:
        return
    parts = " ".join("\n" if t in ("&&", ";", "||") else _mark(t) for t in tokens).split("\n")
    for part in parts:
        words = tuple(_token(t, word) for t in part.split())
        inner = replace(command, words=words)
        for launch in launches(Script(commands=[inner], headers=script.headers)):
            yield replace(launch, options={**options, **launch.options})


def _lines(text: str) -> str:
    """Ends of lines as separators; lines that go on, or begin with an option, joined."""
    return re.sub(r"\\[ \t]*\n|\n(?=[ \t]*-)", " ", text).replace("\n", " ; ")


_BLANK = "\x1f"


def _mark(token: str) -> str:
    return re.sub(r"\s", _BLANK, token)


def _token(text: str, word: ShellWord) -> ShellWord:
    known = "$" not in text
    return ShellWord(
        text.replace(_BLANK, " "), word.origin, State.KNOWN if known else State.UNKNOWN
    )


def _other(command: Command, script: Script) -> Launch | None:
    """A start of one of the programs that are no Python file, or of an experiment (``EXP``)."""
    for index, word in enumerate(command.words):
        name = posixpath.basename(word.text)
        if name.endswith(".py") or word.text == "-m":
            return None
        experiment = command.environment.get("EXP")
        if name in ("bash", "sh") and experiment is not None and len(command.words) > index + 1:
            if not experiment.text.endswith((".yaml", ".yml")):
                return None
            return Launch(program=command.words[index + 1], args=command.words[index + 2 :],
                          launchers=(), options=launcher_options(command.words[:index]),
                          command=command, headers=script.headers)  # fmt: skip
        if name in _PROGRAMS:
            before = command.words[:index]
            return Launch(program=word, args=command.words[index + 1 :], launchers=(),
                          options=launcher_options(before), command=command,
                          headers=script.headers)  # fmt: skip
    return None


def _embedded(sources: Sources) -> Iterator[tuple[str, str]]:
    """Scripts inside YAML, at the lines where they stand there; else those of a page."""
    if not any(is_shell(name) for name in sources.files):
        for name, text in sources.with_suffix(".md").items():
            yield from _fenced(name, text)
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if "command:" not in text and "args:" not in text:
            continue
        try:
            body = _body(yaml_tree(text, name))
        except KrzemError:
            continue
        if body is not None:
            first = next((line.strip() for line in body.splitlines() if line.strip()), "")
            before = text.partition(first)[0].count("\n") if first else 0
            yield f"{name}.sh", "\n" * before + body


_ENGINES = re.compile(
    r"(?i)maxtext|torchtitan|megatron|pretrain_\w+\.py|deepspeed|accelerate launch|torchrun"
    r"|llamafactory|swift (sft|pt)|axolotl|nemo|automodel|primus|msrun|mindformer|deepy\.py"
)
_WORK = re.compile(r"train|finetune|benchmark|\bsft\b|sft\.py")
_FENCE = re.compile(r"^[ \t]*```+[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*```", re.M | re.S)
_SHELLS = ("", "bash", "sh", "shell", "console")


def _less_a_job(match: re.Match[str]) -> int:
    """A demonstration on the way to a job names no batch; other tools name no engine."""
    engine = _ENGINES.search(match[2]) is not None
    return 0 if engine and "batch" in match[2] else 1 if engine else 2


def _fenced(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The piece of shell on a page that starts a training: of an engine, with its batch, first."""
    found = [
        m for m in _FENCE.finditer(text)
        if m[1] in _SHELLS and _TRAINS.search(m[2]) and _WORK.search(m[2])
    ]  # fmt: skip
    for match in sorted(found, key=_less_a_job)[:1]:
        yield f"{name}.sh", "\n" * text[: match.start(2)].count("\n") + match[2]


def _body(tree: Tree) -> str | None:
    """The first text of several lines that starts something."""
    texts = (part for entry in tree.entries.values() for part in _texts(entry.value, 0))
    return next((t for t in texts if "\n" in t and _TRAINS.search(t)), None)


def _texts(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth < 20 and isinstance(value, list | dict):
        for part in value if isinstance(value, list) else value.values():
            yield from _texts(part, depth + 1)


def _start(launch: Launch, files: Mapping[str, str]) -> Start:
    options, loose = options_of(launch.args, files)
    name = re.sub(r"^--module=", "", launch.program.text)
    place = _place(launch.program, files)
    return Start(program=name, options=options, loose=tuple(loose), launch=launch, place=place)


def _place(word: ShellWord, files: Mapping[str, str]) -> Place:
    place = at(word.origin, files)
    if place.file.endswith((".yaml.sh", ".yml.sh", ".md.sh")):
        return Place(file=place.file.removesuffix(".sh"), line=place.line, text=place.text)
    return place


# -- options

_NAME = re.compile(r"-{1,2}[A-Za-z][\w.:/-]*|[+~]{1,2}[A-Za-z][\w.@/-]*|[A-Za-z_][\w.@/-]*")
_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/]*=")


def options_of(
    words: Sequence[ShellWord], files: Mapping[str, str]
) -> tuple[Tree, list[ShellWord]]:
    """Options by name (as written, without leading dashes) and the words that belong to none."""
    tree, loose, index = Tree(), list[ShellWord](), 0
    while index < len(words):
        word = words[index]
        name, equals, rest = word.text.partition("=")
        index += 1
        if equals and _NAME.fullmatch(name):
            _put(tree, name, rest if word.known else Open(rest), word, files)
        elif word.text.startswith("-") and _NAME.fullmatch(word.text):
            values = []
            while index < len(words) and not _is_option(words[index].text):
                values.append(words[index])
                index += 1
            _put(tree, name, _joined(values), word, files)
        elif not word.known and re.fullmatch(r"\$\{?\w+\}?", word.text):
            _put(tree, shorten(word.text, 40), Open(word.text), word, files)
        else:
            loose.append(word)
    return tree, loose


def _is_option(text: str) -> bool:
    if re.fullmatch(r"-[\d.][\d.eE+-]*", text):
        return False
    if _SETTING.match(text) is not None:
        return text.count("=") == 1 or "," not in text
    return text.startswith("-") and len(text) > 1


def _joined(values: list[ShellWord]) -> object:
    parts = [value.text if value.known else Open(value.text) for value in values]
    return True if not parts else parts[0] if len(parts) == 1 else parts


def _put(tree: Tree, name: str, value: object, word: ShellWord, files: Mapping[str, str]) -> None:
    place = _place(word, files)
    text = word.text if isinstance(value, bool) or "=" in word.text else f"{name} {_shown(value)}"
    shown = Place(file=place.file, line=place.line, text=shorten(text, LONGEST_LINE))
    tree.put(Entry(key=name.lstrip("+-~") or name, value=value, place=shown))


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_shown(part) for part in value)
    return value.text if isinstance(value, Open) else str(value)


def is_shell(name: str) -> bool:
    """Whether a file's name is that of a shell script."""
    return name.lower().endswith(SHELL_SUFFIXES)


def state_machine(job: JobBuilder, start: Start | None, sources: Sources) -> None:
    """Nodes, devices and the chip as launcher and header give them."""
    if start is not None:
        state_devices(job, start.launch, sources)
        state_device(job, start.launch, sources)
