"""What a witness takes from a run file: constants of the step, the order of samples, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krzem.train.checkpoint import read_manifest
from krzem.train.data import Component, SampleStream, TokenDataset, folder_of
from krzem.train.phases import phases_of, standing
from krzem.train.settings import TrainSettings, read_settings
from krzem.train.setup import loss_weights, optimizer_config, schedule_of
from krzem.witness.checkpoint import RunConstants

_TABLES = ("goal", "train", "optimizer", "schedule")
_OWN = frozenset({"goal.deadline", "goal.budget", "goal.deadline_days", "goal.budget_usd",
                  "goal.states", "train.device", "train.compile"})  # fmt: skip
"""What may differ between two machines that train the same run."""


def settings_at(run_file: Path, checkpoint: Path | None = None) -> TrainSettings:
    """The settings of the phase in which a run goes on from ``checkpoint``; of the first without.

    Raises:
        RunError: with every fault of the file.
    """
    phases = phases_of(read_settings(run_file))
    return phases[0] if checkpoint is None else standing(phases, checkpoint)


def run_constants(
    run_file: Path, checkpoint: Path | None = None
) -> tuple[RunConstants, TrainSettings]:
    """Optimizer, balancing rate, weights of losses and settings of a run.

    With a ``checkpoint`` also the learning rate of the step after it.

    Raises:
        RunError: with every fault of the file.
        DataError: a data set is missing or damaged.
    """
    settings = settings_at(run_file, checkpoint)
    sample = None if checkpoint is None else read_manifest(checkpoint).meta.get("sample")
    constants = RunConstants(
        optimizer=optimizer_config(settings),
        bias_rate=settings.train.bias_rate,
        weights=loss_weights(settings),
        rate=None if sample is None else next_rate(settings, int(sample)),
        settings=agreed(settings),
    )
    return constants, settings


def next_rate(settings: TrainSettings, sample: int) -> float:
    """The learning rate of the step that begins at ``sample``."""
    end = sample + settings.batches.at(sample)
    return schedule_of(settings).at(settings.tokens_at(end))


def agreed(settings: TrainSettings) -> dict[str, Any]:
    """What has to be equal wherever the run is trained, by name: schedule, data, tokeniser."""
    found = {
        f"{table}.{name}": value
        for table in _TABLES
        for name, value in asdict(getattr(settings, table)).items()
        if f"{table}.{name}" not in _OWN
    }
    stream = run_stream(settings)
    tokenizers = {c.dataset.tokenizer.sha256 for c in stream.components}
    return {
        **found,
        "data.documents": settings.data.documents,
        "data.order": stream.fingerprint,
        "data.tokenizer": ", ".join(sorted(str(x) for x in tokenizers)),
    }


def run_stream(settings: TrainSettings, length: int | None = None) -> SampleStream:
    """The run's order of samples.

    Raises:
        DataError: a data set is missing or damaged.
    """
    given = settings.data.path
    weighed = given.items() if isinstance(given, Mapping) else [(given, 1)]
    components = [
        Component(dataset=TokenDataset.open(folder_of(settings.base, str(path))), weight=weight)
        for path, weight in weighed
    ]
    return SampleStream(
        components, sequence=length or settings.goal.sequence, seed=settings.train.seed
    )


def data_stream(folder: Path, *, length: int, seed: int) -> SampleStream:
    """The order of samples over one folder of tokens, without a run file.

    Raises:
        DataError: the folder holds no data set.
    """
    return SampleStream(TokenDataset.open(folder), sequence=length, seed=seed)
