"""Headers of schedulers: ``#SBATCH`` and ``#PBS`` lines, and the variables Slurm makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from krzem.jobs.shell_words import Origin, ShellWord

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
