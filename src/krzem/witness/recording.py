"""Recording a witness, with the noise floor of the machine that records it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from krzem.witness.batches import WitnessBatch, check_batches, check_ids
from krzem.witness.floor import spread
from krzem.witness.measure import measure, measure_parameters
from krzem.witness.positions import samples_per_tensor
from krzem.witness.quantity import Kind, Quantity, Reading
from krzem.witness.rule import Probe, UpdateRule
from krzem.witness.setting import Setting, usual_settings
from krzem.witness.subject import Subject
from krzem.witness.witness import Floors, Witness

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and of how many."""


def record(
    model: Subject,
    batches: Sequence[WitnessBatch],
    *,
    settings: Iterable[Setting] | None = None,
    also: Iterable[str] = (),
    layouts: Iterable[str] = (),
    run: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Witness:
    """Read ``batches`` on this machine, and again in every setting for the noise floor.

    ``also`` names arithmetic types that a destination may compute in; ``layouts`` are other
    parallel layouts of the same number of ranks.  Called by all ranks.

    Raises:
        DataError: no batches, too many tokens, or ids outside the vocabulary.
    """
    batches = tuple(batches)
    check_model_batches(model, batches)
    if settings is None:
        settings = usual(model, batches, tuple(layouts))
    settings = tuple(settings)
    samples = samples_per_tensor(model.tensor_count())
    floored = {model.dtype: settings}
    for dtype in also:
        if dtype != model.dtype:
            light = (s for s in (Setting(name=dtype), *settings) if not s.rebuilds)
            floored[dtype] = tuple(replace(s, dtype=dtype) for s in light)
    steps = _Steps(model, batches, samples, progress, sum(map(len, floored.values())) + 1)
    base = steps.read(Setting())
    parameters = measure_parameters(model, samples)
    floors: dict[str, Floors] = {}
    for dtype, ways in floored.items():
        floors[dtype] = spread(base, map(steps.read, ways), dtype)
    return Witness(
        kind=model.identity.kind,
        name=model.identity.name,
        config=model.identity.config,
        parameters=model.identity.parameters,
        dtype=model.dtype,
        samples=samples,
        batches=batches,
        reading={**parameters, **base, **probe_rule(model.rule, {**parameters, **base})},
        floors=floors,
        settings=tuple(s.name for s in settings),
        rule=None if model.rule is None else model.rule.describe(),
        run=dict(run or {}),
        software=model.software(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def check_model_batches(model: Subject, batches: tuple[WitnessBatch, ...]) -> None:
    """Raise DataError where the model cannot read the batches."""
    check_batches(batches)
    vocabulary = model.identity.config.get("vocab_size")
    if isinstance(vocabulary, int):
        for batch in batches:
            check_ids(batch.tokens, vocabulary, "the batch")


def usual(
    model: Subject, batches: tuple[WitnessBatch, ...], layouts: tuple[str, ...] = ()
) -> tuple[Setting, ...]:
    """The settings that give a floor on this machine."""
    first, last = model.share(batches[0]).rows
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return usual_settings(
        sequences=last - first,
        micro_batch=model.micro_batch,
        threads=torch.get_num_threads(),
        cores=cores,
        device_type=model.device_type,
        layouts=layouts,
    )


class _Steps:
    """Reads all batches in one setting, and counts."""

    def __init__(
        self,
        model: Subject,
        batches: tuple[WitnessBatch, ...],
        samples: int,
        progress: Progress | None,
        settings: int,
    ) -> None:
        self.model, self.batches, self.samples = model, batches, samples
        self.progress, self.total, self.done = progress, settings * len(batches), 0

    def read(self, setting: Setting) -> Reading:
        """All quantities of all batches."""
        found: Reading = {}
        for number, batch in enumerate(self.batches):
            if self.progress is not None:
                self.progress(setting.name, self.done, self.total)
            found |= measure(self.model, batch, number, setting, self.samples)
            self.done += 1
        return found


def probe_rule(rule: UpdateRule | None, reading: Reading) -> Reading:
    """What ``rule`` makes of the parameters, gradients and loads of the first batch."""
    if rule is None:
        return {}
    probes, loads = [], {}
    norm = reading[_key(Kind.GRADIENT_NORM, "", 0)].stats["value"]
    for q in list(reading.values()):
        if q.kind is Kind.PARAMETER:
            gradient = reading.get(_key(Kind.GRADIENT, q.name, 0))
            if gradient is not None:
                probes.append(_probe(q, gradient))
        elif q.kind is Kind.LOAD and q.batch == 0 and _key(
            Kind.PARAMETER, f"{q.name}.bias", None
        ) in reading:  # fmt: skip
            loads[q.name] = q.samples
    found = [_update(Kind.UPDATE, n, x) for n, x in rule.updates(probes, norm).items()]
    found += [_update(Kind.BIAS_UPDATE, n, x) for n, x in rule.bias_updates(loads).items()]
    return {q.key: q for q in found}


def _key(kind: Kind, name: str, batch: int | None) -> str:
    return Quantity(kind=kind, name=name, batch=batch).key


def _probe(parameter: Quantity, gradient: Quantity) -> Probe:
    axes = int(parameter.stats["axes"])
    return Probe(
        name=parameter.name, axes=axes, values=parameter.samples, gradient=gradient.samples
    )


def _update(kind: Kind, name: str, samples: Any) -> Quantity:
    return Quantity(kind=kind, name=name, samples=samples)
