"""Which checkpoint a run goes on from, and whether it is one of this run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from krzem.errors import CheckpointError
from krzem.train.checkpoint import latest_good, read_manifest
from krzem.train.checkpoint.manifest import MANIFEST


def newest_good(
    root: Path, rejected: Callable[[Path, str], None], *, anew: bool = False
) -> Path | None:
    """The newest good checkpoint in ``root``; None where nothing was committed there yet.

    ``rejected`` is told of each newer one and why it was passed over.  ``anew``: None also where
    all are damaged, because a controller has decided so.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged: to begin anew in their folder
            would throw the run away without a word.
    """
    damaged: list[Path] = []

    def passed_over(folder: Path, why: str) -> None:
        rejected(folder, why)
        if (folder / MANIFEST).exists():
            damaged.append(folder)

    found = latest_good(root, rejected=passed_over)
    if found is None and damaged and not anew:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {root} is good: put back a copy of one, or "
            "begin anew in another [run] folder"
        )
    return found


def check_optimizer(folder: Path, wanted: Collection[str], optimizer: str) -> None:
    """Refuse a checkpoint that holds every weight of ``wanted`` and another optimizer's states.

    Raises:
        CheckpointError: it was written with another optimizer than ``optimizer``.
    """
    stored = read_manifest(folder).tensors
    missing = {name.partition("/")[0] for name in wanted if name not in stored}
    if missing and "weight" not in missing:
        raise CheckpointError(
            f"{folder} has no {' and '.join(sorted(missing))} for {optimizer}: it was trained with "
            "another goal.optimizer; go on with that one, or carry its weights alone over: "
            "krzem checkpoint export, then import, into another [run] folder"
        )
