"""A trainer's command with its placeholders filled in, as words for the shell."""

from __future__ import annotations

import shlex
import string
import sys
from collections.abc import Mapping, Sequence

from krzem.errors import RunError, shorten
from krzem.run.pool_settings import SLURM, Pool

_PORT_FIRST, _PORTS = 20_000, 20_000
PATHS = ("checkpoint", "export", "witness", "verdict")
"""What commands of ``[witness]`` may name besides."""
WHOLE = ("{torchrun}", "{python}", "{layout_flags}")
"""Placeholders that are a whole word each."""
PLACEHOLDERS = ("attempt", "layout", "pool", "precision", "ranks", "run_dir", "run_toml", "token")


def shell_words(
    command: Sequence[str],
    pool: Pool,
    values: Mapping[str, object],
    also: Sequence[str] = (),
) -> list[str]:
    """``command`` quoted for the shell; ``also`` names further placeholders.

    ``{torchrun}`` alone in a word becomes the launcher for the pool's ranks, ``{python}`` this
    interpreter; other placeholders are filled from ``values`` inside words.

    Raises RunError for a placeholder that does not exist.
    """
    words: list[str] = []
    for word in command:
        if word == "{torchrun}":
            words += _torchrun(pool, str(values["token"]))
        elif word == "{python}":
            words.append(shlex.quote(sys.executable))
        else:
            words.append(shlex.quote(_fill(word, values, (*PLACEHOLDERS, *also))))
    return words


def check_words(command: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raise RunError where :func:`shell_words` could not fill a word of ``command``."""
    for word in command:
        if word not in WHOLE:
            _names(word, (*PLACEHOLDERS, *also))


def _fill(word: str, values: Mapping[str, object], known: Sequence[str]) -> str:
    return word.format_map({name: values[name] for name in _names(word, known)})


def _names(word: str, known: Sequence[str]) -> list[str]:
    """The placeholders of a word."""
    try:
        wanted = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    except ValueError:
        wanted = [""]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise RunError(
            f"the command word {shorten(word, 80)!r} asks for "
            f"{shorten(str(missing[0]), 40)!r} between braces; "
            f"known are {', '.join(WHOLE)} as whole words, and "
            f"{', '.join('{' + name + '}' for name in known)}; write {{{{ for a brace"
        )
    return wanted


def _torchrun(pool: Pool, token: str) -> list[str]:
    """One process needs no torchrun; one host needs no meeting point."""
    python = shlex.quote(sys.executable)
    run = [python, "-m", "torch.distributed.run"]
    if pool.nodes == 1:
        if pool.ranks == 1:
            return [python]
        return [*run, "--standalone", f"--nproc-per-node={pool.ranks}"]
    port = _PORT_FIRST + int(token) % _PORTS
    if pool.launcher != SLURM:
        return [
            *run,
            '--nnodes="$KRZEM_NODES"',
            f"--nproc-per-node={pool.ranks // pool.nodes}",
            "--rdzv-backend=c10d",
            f'--rdzv-id="$KRZEM_JOB-{token}"',
            f'--rdzv-endpoint="$KRZEM_HEAD:{port}"',
        ]
    # A step may have fewer nodes than its allocation.
    hosts = "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}"
    head = f'"$(scontrol show hostnames "{hosts}" | head -n 1)'
    return [
        *run,
        '--nnodes="${SLURM_STEP_NUM_NODES:-$SLURM_NNODES}"',
        f"--nproc-per-node={pool.ranks // pool.slurm.nodes}",
        "--rdzv-backend=c10d",
        f'--rdzv-id="$SLURM_JOB_ID-{token}"',
        f'--rdzv-endpoint={head}:{port}"',
    ]
