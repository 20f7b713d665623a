"""The witness of a trainer of another house, which krzem can neither load nor step.

Two ways, both stated in ``[witness]`` of the run file.  ``export`` turns a checkpoint into a
Hugging Face folder, of which ``krzem witness`` records and checks a step on the pools: it shows
weights that arrive and machines that compute them alike, and not the trainer's own kernels.
``record`` and ``check`` are the user's own commands, which may ask the trainer itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from krzem.hardware import CPU
from krzem.run.launch.words import PATHS, shell_words
from krzem.run.pool_settings import Pool
from krzem.run.settings import RunSettings

AGREES, DEPARTS = 0, 1
"""Exit codes of a ``check`` command; any other: it could not be checked."""
_FIRST_HOST = 'test "${SLURM_NODEID:-${KRZEM_NODE:-0}}" = 0 || exit 0'
"""A job has a process on each host, and this one runs on one device."""


def is_provable(settings: RunSettings) -> bool:
    """Whether the run file says how a checkpoint of another house's trainer is compared."""
    return settings.witness.export is not None or settings.witness.record is not None


def way(settings: RunSettings, dtypes: Sequence[str]) -> str:
    """By what a move is proved, for people."""
    if settings.witness.export is None:
        return "the run file's own witness.record and witness.check"
    w = settings.witness
    return (
        f"a witness of the exported Hugging Face model, not of the trainer itself: {w.batches} "
        f"steps of {w.sequences} sequences in {' and '.join(dtypes)}"
    )


def record_command(
    settings: RunSettings, pool: Pool, token: int, checkpoint: Path, folder: Path,
    dtypes: Sequence[str],
) -> list[str]:  # fmt: skip
    """What records the witness of ``checkpoint``, as words for the shell, in the job's folder."""
    w = settings.witness
    words = ["record", "--hf", "{export}", "--out", "{witness}", "--sequences", str(w.sequences),
             "--batches", str(w.batches), "--device", _device(pool)]  # fmt: skip
    words += [x for dtype in dtypes if dtype != "float32" for x in ("--also", dtype)]
    if w.tokens is not None:
        words += ["--tokens", str(settings.path.parent / w.tokens)]
    return _command(settings, _quoting(settings, pool, token, checkpoint, folder), w.record, words,
                    folder)  # fmt: skip


def check_command(
    settings: RunSettings, pool: Pool, token: int, checkpoint: Path, folder: Path,
    more: Sequence[str],
) -> list[str]:  # fmt: skip
    """What checks ``checkpoint``; ``more`` are options of ``krzem witness check``."""
    words = ["check", "--hf", "{export}", "--witness", "{witness}", "--out", "{verdict}",
             "--device", _device(pool), *more]  # fmt: skip
    return _command(settings, _quoting(settings, pool, token, checkpoint, folder),
                    settings.witness.check, words, folder)  # fmt: skip


def _command(
    settings: RunSettings,
    quoted: Callable[[Sequence[str]], list[str]],
    own: Sequence[str] | None,
    words: Sequence[str],
    folder: Path,
) -> list[str]:
    """The user's ``own`` command; else an export, and ``krzem witness`` with ``words`` on it."""
    if own is not None:
        return _on_one_host([quoted(own)])
    assert settings.witness.export is not None
    return _on_one_host([quoted(settings.witness.export), quoted(_krzem(words)), *_removed(folder)])


def witness_file(settings: RunSettings, checkpoint: Path) -> Path:
    """Where the witness of a checkpoint lies: beside the run's checks, not in a folder that is the
    trainer's own."""
    return settings.folder / "parity" / f"{checkpoint.name}.witness"


def _removed(folder: Path) -> list[list[str]]:
    """An export is as large as the model, and is wanted no more; one that failed stays."""
    return [["rm", "-rf", shlex.quote(str(folder / "export"))]]


def _krzem(words: Sequence[str]) -> list[str]:
    return ["{python}", "-m", "krzem", "witness", *words]


def _device(pool: Pool) -> str:
    return "cpu" if pool.accelerator == CPU else "auto"


def _quoting(
    settings: RunSettings, pool: Pool, token: int, checkpoint: Path, folder: Path
) -> Callable[[Sequence[str]], list[str]]:
    """Quotes a command with the paths of a check filled in."""
    paths = {
        "checkpoint": checkpoint,
        "export": folder / "export",
        "witness": witness_file(settings, checkpoint),
        "verdict": folder / "verdict.json",
    }
    values = {
        "attempt": 0, "token": token, "pool": pool.name, "ranks": pool.ranks,
        "layout": pool.layout or "", "precision": pool.precision or settings.goal.precision,
        "run_dir": settings.folder, "run_toml": settings.path,
    }  # fmt: skip
    return lambda words: shell_words(words, pool, {**values, **paths}, also=PATHS)


def _on_one_host(commands: Sequence[Sequence[str]]) -> list[str]:
    script = "\n".join([_FIRST_HOST, "set -e", *(" ".join(words) for words in commands)])
    return ["bash", "-c", shlex.quote(script)]
