"""A trainer's command with its placeholders filled in, as words for the shell."""

from __future__ import annotations

import shlex
import string
import sys
from collections.abc import Mapping, Sequence

from krzem.errors import RunError
from krzem.run.settings import SLURM, Pool

_PORT_FIRST, _PORTS = 20_000, 20_000
PLACEHOLDERS = ("attempt", "layout", "pool", "precision", "ranks", "run_dir", "run_toml", "token")


def shell_words(command: Sequence[str], pool: Pool, values: Mapping[str, object]) -> list[str]:
    """``command`` quoted for the shell.

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
            words.append(shlex.quote(_fill(word, values)))
    return words


def _fill(word: str, values: Mapping[str, object]) -> str:
    wanted = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    missing = [name for name in wanted if name not in PLACEHOLDERS]
    if missing:
        raise RunError(
            f"the command word {word!r} asks for {{{missing[0]}}}; known are "
            f"{{torchrun}} and {{python}} as whole words, and "
            f"{', '.join('{' + name + '}' for name in PLACEHOLDERS)}; write {{{{ for a brace"
        )
    return word.format_map({name: values[name] for name in wanted})


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
