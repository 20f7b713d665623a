"""Which program a script starts, and on how many devices: torchrun, srun, mpirun and others."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.registry import Sources
from krzem.jobs.shell import Command, Script, launcher_options, read_scripts
from krzem.jobs.shell_words import Origin, ShellError, ShellWord

SHELL_SUFFIXES = (".sh", ".slurm", ".sbatch", ".bash", ".pbs", ".job", ".conf", ".sub")
_LAUNCHERS = {
    "torchrun": "torchrun", "deepspeed": "deepspeed", "accelerate": "accelerate",
    "srun": "srun", "mpirun": "mpirun", "mpiexec": "mpirun", "msrun": "msrun",
}  # fmt: skip
_MODULES = {"torch.distributed.launch", "torch.distributed.run"}
_NODES = ("nnodes", "num_nodes", "num-nodes", "num_machines", "nodes")
_LOCAL = ("nproc_per_node", "nproc-per-node", "num_gpus", "local_worker_num")
_RANKS = ("num_processes", "np", "n", "worker_num")
_TASKS = ("ntasks-per-node", "ppn", "npernode", "tasks-per-node")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
            "ROCR_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a training program."""

    program: ShellWord
    """The Python file, or the module given with ``-m``."""
    args: tuple[ShellWord, ...]
    launchers: tuple[str, ...]
    """Launchers from the outermost inwards: ``srun``, ``torchrun``."""
    options: Mapping[str, ShellWord]
    """Options of the launchers; an inner one wins."""
    command: Command
    headers: Mapping[str, ShellWord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The program without its folder."""
        return posixpath.basename(self.program.text)

    def option(self, names: Sequence[str]) -> ShellWord | None:
        """The first of these options that is given."""
        return next((self.options[n] for n in names if n in self.options), None)


def shell_files(sources: Sources) -> list[str]:
    """The given files that are shell scripts, by their names or first lines."""
    return [
        name
        for name, text in sources.files.items()
        if name.lower().endswith(SHELL_SUFFIXES) or re.match(r"#!.*\b(ba|z|k|da)?sh\b", text)
    ]


def scripts(sources: Sources) -> list[Script]:
    """The evaluated scripts among the sources, once for all readers.

    A page (``README.md``) counts where a command of it runs a given script: it gives the arguments.
    Raises ShellError where no script can be followed.
    """
    if "scripts" not in sources.opened:
        try:
            sources.opened["scripts"] = _followed(sources)
        except ShellError as error:
            sources.opened["scripts"] = error
    found = sources.opened["scripts"]
    if isinstance(found, ShellError):
        raise found
    assert isinstance(found, list)
    return found


def _followed(sources: Sources) -> list[Script]:
    names = shell_files(sources)
    pages = [s for n in sources.with_suffix(".md") if (s := _page(n, sources, names)) is not None]
    called = {name for page in pages for name in page.called}
    rest = [name for name in names if name not in called]
    try:
        return [*pages, *read_scripts(sources.files, rest)]
    except ShellError:
        if not pages and len(rest) < 2:
            raise
    return [*pages, *_one_by_one(sources, rest)]


def _one_by_one(sources: Sources, names: Sequence[str]) -> list[Script]:
    """The scripts that can be followed, where not all can."""
    found: list[Script] = []
    refused: ShellError | None = None
    for name in names:
        try:
            found += read_scripts(sources.files, [name])
        except ShellError as error:
            refused = refused or error
    if not found and refused is not None:
        raise refused
    for script in found[:1]:
        script.notes.extend([] if refused is None else [str(refused)])
    return found


def _page(name: str, sources: Sources, names: Sequence[str]) -> Script | None:
    """The first block of a page that runs a given script and starts a program by it."""
    given = [posixpath.basename(n) for n in names]
    for block in blocks(sources.files[name]):
        if not any(base in block for base in given):
            continue
        try:
            (script,) = read_scripts({**sources.files, name: block}, [name])
        except ShellError:
            continue
        if script.called and launches(script):
            return script
    return None


def blocks(page: str) -> Iterator[str]:
    """The fenced blocks of a page; every line keeps its number."""
    lines = page.splitlines()
    inside: list[int] | None = None
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            if inside is not None and inside:
                kept = set(inside)
                yield (
                    "\n".join(
                        re.sub(r"^\s*[$>] ", "", text) if at in kept else ""
                        for at, text in enumerate(lines[: inside[-1] + 1])
                    )
                    + "\n"
                )
            inside = [] if inside is None else None
        elif inside is not None:
            inside.append(number)


def launches(script: Script) -> list[Launch]:
    """Every start of a Python program in the script."""
    return [found for c in script.commands if (found := _launch(c, script)) is not None]


def _launch(command: Command, script: Script) -> Launch | None:
    words = command.words
    program = _program(words)
    if program is None:
        return None
    before = words[:program]
    names = [posixpath.basename(w.text) for w in before]
    kinds = [_LAUNCHERS[n] for n in names if n in _LAUNCHERS]
    if any(n in _MODULES for n in names):
        kinds.append("torchrun")
    return Launch(
        program=words[program],
        args=tuple(words[program + 1 :]),
        launchers=tuple(kinds),
        options=_options(before),
        command=command,
        headers=command.headers or script.headers,
    )


def _program(words: Sequence[ShellWord]) -> int | None:
    """The index of the Python program: a ``.py`` file, or what follows ``-m``."""
    for index, word in enumerate(words):
        text = word.text
        if text.endswith(".py") and not text.startswith("-"):
            inner = _handed_on(words, index)
            return index if inner is None else inner
        if text == "-m" and index + 1 < len(words) and index > 0:
            name = words[index + 1].text
            other = name not in _MODULES and not name.startswith("-")
            if other and _is_python(words[:index]):
                return index + 1
        if text.startswith("--module=") and index > 0:
            return index
    return None


def _handed_on(words: Sequence[ShellWord], at: int) -> int | None:
    """The program after ``--``, where the file before it only submits what follows."""
    marks = [i for i in range(at + 1, len(words) - 1) if words[i].text == "--"]
    if not marks or posixpath.basename(words[marks[0] + 1].text) not in (*_LAUNCHERS, *_PYTHONS):
        return None
    inner = _program(words[marks[0] + 1 :])
    return None if inner is None else marks[0] + 1 + inner


_PYTHONS = ("python", "python3")


def _is_python(before: Sequence[ShellWord]) -> bool:
    names = [posixpath.basename(w.text) for w in before]
    return any(re.match(r"python[\d.]*$|torchrun$|accelerate$|deepspeed$", n) for n in names)


def _options(words: Sequence[ShellWord]) -> dict[str, ShellWord]:
    options = launcher_options(words)
    for index, word in enumerate(words):
        match = re.match(r"-(np|n|ppn|npernode|N|G)$", word.text)
        if match is not None and index + 1 < len(words):
            short = {"N": "nodes", "G": "gpus"}.get(match[1], match[1])
            options.setdefault(short, words[index + 1])
    return options


def distinct(found: Sequence[Launch]) -> list[Launch]:
    """Launches that differ in their program's arguments; the certain ones where there are any."""
    certain = [launch for launch in found if launch.command.certain] or list(found)
    seen: dict[tuple[str, ...], Launch] = {}
    for launch in certain:
        seen.setdefault((launch.name, *(w.text for w in launch.args)), launch)
    return list(seen.values())


# -- devices


def place_of(word: ShellWord, sources: Mapping[str, str]) -> Place:
    """The line a word was written on."""
    return at(word.origin, sources)


def at(origin: Origin, sources: Mapping[str, str]) -> Place:
    """A line of a file, with its text."""
    lines = _lines(sources.get(origin.file, ""))
    text = lines[origin.line - 1].strip() if 0 < origin.line <= len(lines) else ""
    return Place(file=origin.file, line=origin.line, text=text[:400])


@lru_cache(maxsize=64)
def _lines(text: str) -> list[str]:
    return text.splitlines()


def state_devices(job: JobBuilder, launch: Launch, sources: Sources) -> None:
    """Nodes and devices as launcher and header decide them; what they do not is asked for."""
    nodes, local = _nodes(launch), _local(launch)
    ranks = launch.option(_RANKS)
    _state(job, "nodes", nodes, sources, "the number of nodes")
    _state(job, "devices_per_node", local, sources, "the number of devices of a node")
    total = _number(ranks)
    direct = ranks is not None and "torchrun" not in launch.launchers
    if direct and ranks is not None and total:
        job.state("devices", total, place_of(ranks, sources.files), override=True)
    elif direct and ranks is not None:
        _state(job, "devices", ranks, sources, "the number of devices")
    _visible(job, launch, sources)


def _nodes(launch: Launch) -> ShellWord | None:
    given = launch.option(_NODES)
    if given is not None and (given.known or launch.headers.get("nodes") is None):
        return given if ":" not in given.text else _range(given)
    header = launch.headers.get("nodes")
    if header is not None:
        return header
    last = launch.launchers[-1] if launch.launchers else ""
    if last in ("torchrun", "accelerate") or (last == "deepspeed" and launch.option(_LOCAL)):
        return ShellWord("1", launch.command.origin)
    return None  # deepspeed alone takes the nodes of a host file


def _range(word: ShellWord) -> ShellWord:
    """``1:4`` of an elastic launch is not one number."""
    low, _, high = word.text.partition(":")
    return ShellWord(high, word.origin, word.state) if low == high else word


def _local(launch: Launch) -> ShellWord | None:
    given = launch.option(_LOCAL)
    if given is not None and (_number(given) or not launch.headers):
        return given
    tasks = launch.option(_TASKS)
    if tasks is not None and "torchrun" not in launch.launchers:
        return tasks
    header = _header_devices(launch.headers)
    if header is not None:
        return header
    if "torchrun" not in launch.launchers and "ntasks-per-node" in launch.headers:
        return launch.headers["ntasks-per-node"]
    if given is None and launch.launchers[-1:] == ("torchrun",):
        return ShellWord("1", launch.command.origin)
    return given


def _header_devices(headers: Mapping[str, ShellWord]) -> ShellWord | None:
    """Devices of a node by the header: ``--gpus-per-node=4``, ``--gres=gpu:a100:8``."""
    for key in ("gpus-per-node", "gres", "gpus-per-task"):
        word = headers.get(key)
        match = None if word is None else re.search(r"(\d+)(?:\(.*\))?$", word.text)
        if word is not None and match is not None and (key != "gres" or "gpu" in word.text):
            return ShellWord(match[1], word.origin, word.state)
    total, nodes = _number(headers.get("gpus")), _number(headers.get("nodes"))
    if total and nodes and total % nodes == 0:
        return ShellWord(str(total // nodes), headers["gpus"].origin)
    return None


def _number(word: ShellWord | None) -> int | None:
    """A positive count, None where the word is none or not known."""
    if word is None or not word.known or not re.fullmatch(r"\d{1,9}", word.text):
        return None
    return int(word.text) or None


def _state(job: JobBuilder, name: str, word: ShellWord | None, sources: Sources, what: str) -> None:
    number = _number(word)
    if word is not None and number:
        job.state(name, number, place_of(word, sources.files))
    elif word is not None and not word.known:
        job.ask(name, f"{word.text} is known only where the script runs", f"give {what}")
    elif word is not None and word.text not in ("gpu", "auto"):
        at_line = place_of(word, sources.files)
        job.ask(name, f"{shown_word(word)} at {at_line} is no number", f"give {what}")


def shown_word(word: ShellWord) -> str:
    """A word for a message."""
    return repr(word.text[:60])


def _visible(job: JobBuilder, launch: Launch, sources: Sources) -> None:
    """Fewer visible devices than processes on a node cannot run."""
    local = job.number("devices_per_node")
    for name in _VISIBLE:
        word = launch.command.environment.get(name)
        if word is None or not word.known or not re.fullmatch(r"\d+(,\d+)*,?", word.text):
            continue
        count = len([part for part in word.text.split(",") if part])
        if local is not None and count < local:
            job.fault(
                place_of(word, sources.files),
                f"{name} shows {count} devices, but {local} processes start on a node",
            )


# -- the chip, where the files name it

_CHIP = re.compile(
    r"(?<![a-z0-9])(gb200|gb300|b200|b300|h100|h200|h800|h20|a100|a800|v100|l40s?|mi2[15]0x?|"
    r"mi300[xa]|mi325x|mi355x|gaudi-?[23]|hl-?2[02]5|910b[1-4]?|910c|910_93)"
    r"(?![a-z0-9])(-\d{2,3}gb?(?![a-z0-9]))?"
)


def chips(text: str) -> Iterator[str]:
    """Names of chips in a text, as the vendors write them, with their memory where it stands."""
    for match in _CHIP.finditer(text.lower()):
        name = match[1].capitalize() if match[1].startswith("gaudi") else match[1].upper()
        yield name + (match[2] or "").upper()


def state_device(job: JobBuilder, launch: Launch, sources: Sources) -> None:
    """The chip by the scheduler's header, else by the name of the main file."""
    for key in ("constraint", "gres", "gpus-per-node", "partition", "C"):
        word = launch.headers.get(key)
        names = [] if word is None else list(dict.fromkeys(chips(word.text)))
        if word is not None and len(names) == 1:
            job.state("device", names[0], place_of(word, sources.files))
            return
    main = next(iter(sources.files), "")
    names = list(dict.fromkeys(chips(main)))
    if len(names) == 1:
        job.derive("device", names[0], f"the name of the file, {main}", Place(file=main))
