"""What a witness takes from a run file: constants of the step, and the order of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from krzem.train.data import Component, SampleStream, TokenDataset
from krzem.train.loop import loss_weights, optimizer_config
from krzem.train.settings import TrainSettings, read_settings
from krzem.witness.checkpoint import RunConstants


def run_constants(run_file: Path) -> tuple[RunConstants, TrainSettings]:
    """Optimiser, balancing rate and weights of losses of a run.

    Raises:
        RunError: with every fault of the file.
    """
    settings = read_settings(run_file)
    constants = RunConstants(
        optimizer=optimizer_config(settings),
        bias_rate=settings.train.bias_rate,
        weights=loss_weights(settings),
    )
    return constants, settings


def run_stream(settings: TrainSettings, length: int | None = None) -> SampleStream:
    """The run's order of samples.

    Raises:
        DataError: a data set is missing or damaged.
    """
    given = settings.data.path
    weighed = given.items() if isinstance(given, Mapping) else [(given, 1)]
    components = [
        Component(dataset=TokenDataset.open(settings.base / str(path)), weight=weight)
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
