"""What is kept while a shell script is followed: commands, documents, headers, and jumps."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from krzem.jobs import shell_tree as tree
from krzem.jobs.shell_expand import Expander
from krzem.jobs.shell_words import (
    Holder,
    Origin,
    Piece,
    ShellWord,
    Value,
    known,
    origin_of,
    plain,
    scalar,
    shown,
    unknown,
)

# Headers of schedulers, and the variables that Slurm makes of them
# -----------------------------------------------------------------

_HEADER = re.compile(r"^#(SBATCH|PBS|BSUB|FLUX:?)[ \t]+(.+?)[ \t]*$", re.M)
_SHORT = {
    "-N": "nodes", "-n": "ntasks", "-G": "gpus", "-c": "cpus-per-task", "-J": "job-name",
    "-p": "partition", "-t": "time", "-C": "constraint",
}  # fmt: skip  # fmt: skip


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

# What is kept while a shell script is followed: commands, documents, headers, and jumps
# --------------------------------------------------------------------------------------


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
    headers: Mapping[str, ShellWord] = field(default_factory=dict)
    """Options of the scheduler's lines that were read before it."""
    repeated: bool = False
    """Whether a loop runs it, perhaps with other values at each turn."""


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


class Flow(Exception):  # noqa: N818
    """A jump out of the commands that follow."""


class Exit(Flow):
    pass


class Return(Flow):
    pass


class Break(Flow):
    pass


class Continue(Flow):
    pass


class Machine(Expander):
    """The state of one evaluation; what runs commands is in the classes built on it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__()
        self.files = files
        self.script = Script()
        self.functions: dict[str, tree.Body] = {}
        self.exported: set[str] = set()
        self.certain = True
        self.repeated = False
        self.captured: list[Value] | None = None
        self.stdin: Value | None = None
        self.silent = False
        self.file = ""
        self.prefix: tuple[ShellWord, ...] = ()
        self.given: dict[str, ShellWord] = {}
        self.placeholders = 0
        self.assumed = False
        """Whether the last condition rests on a variable that nobody sets."""
        self.locals: list[dict[str, Holder | None]] = []
        """For each function being read, what its local names held outside."""

    def body(self, nodes: tree.Body) -> bool | None:
        """Run commands in turn; the status of the last, None where it is not known."""
        raise NotImplementedError

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

    def _host_list(self, name: str, place: Origin) -> Value | None:
        """A line for each node, where the name of a file says that it lists them."""
        nodes = self.names.get("SLURM_NNODES")
        text = None if nodes is None else plain(scalar(nodes))
        listing = re.search(r"NODEFILE|NODELIST|HOSTFILE|scontrol show hostname", name)
        if listing is None or text is None or not re.fullmatch(r"\d{1,5}", text):
            return None
        return known("node\n" * int(text), place)

    def _read_file(self, target: tree.Word) -> Value:
        name = shown(self.value(target.parts))
        found = self.script.documents.get(name)
        if found is not None and found[2]:
            return known(found[0], found[1])
        given = self.find(name)
        if given is not None:
            return known(self.files[given], Origin(given, 1))
        return self._host_list(name, target.origin) or unknown(f"<{name}", target.origin)

    def document(self, name: str, text: Value, place: Origin) -> None:
        """Text that the script writes to a file."""
        whole = plain(text) is not None
        self.script.documents[name] = (shown(text), origin_of(text[:1], place), whole)

    def _documents(self, node: tree.Simple, text: Value | None) -> None:
        """Remember text that is written to a file."""
        bodies = [r for r in node.redirects if r.op in ("<<", "<<-")]
        targets = [r.target for r in node.redirects if r.op in (">", ">>", ">|", "&>")]
        if bodies and text is None:
            text = self.value(bodies[-1].body)
        for target in targets:
            if text is not None and shown(text).strip():
                self.document(shown(self.value(target.parts)), text, target.origin)

    def printed(self, value: Value) -> None:
        """Output of a command, kept where something reads it."""
        if self.captured is not None:
            self.captured.append(value)
