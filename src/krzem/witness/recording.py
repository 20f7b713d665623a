"""Recording a witness, with the noise floor of the machine that records it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from krzem.errors import DataError
from krzem.witness.batches import WitnessBatch, check_batches, check_ids, kept
from krzem.witness.judge import spread
from krzem.witness.measure import measure, measure_state
from krzem.witness.positions import samples_per_tensor
from krzem.witness.quantity import Kind, Quantity, Reading
from krzem.witness.rule import Probe, UpdateRule
from krzem.witness.subject import Setting, Subject, usual_settings
from krzem.witness.witness import Floors, Witness

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and of how many."""
_NARROW = (
    Setting(name="products in TF32", narrow=True),
    Setting(name="products in TF32, sequences reversed", narrow=True, reverse=True),
)
"""What a device does whose float32 is TF32: the floor that it is judged by."""


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

    ``also`` names further arithmetic types: the step is read in each of them too, with a floor of
    its own; ``tf32`` gets a floor beside the reading in float32.  ``layouts`` are other parallel
    layouts of the same number of ranks.  Called by all ranks.

    Raises:
        DataError: no batches, too many tokens, ids outside the vocabulary, or a model that pays no
            attention to the documents of its batches.
    """
    batches = tuple(batches)
    check_model_batches(model, batches)
    ways = usual(model, tuple(layouts)) if settings is None else tuple(settings)
    samples = samples_per_tensor(model.tensor_count())
    dtypes = tuple(dict.fromkeys((model.dtype, *(t for t in also if t != "tf32"))))
    total = len(dtypes) * (len(ways) + 1) + (len(_NARROW) if "tf32" in also else 0)
    steps = _Steps(model, batches, samples, progress, total)
    state = measure_state(model, samples)
    readings: dict[str, Reading] = {}
    floors: dict[str, Floors] = {}
    for dtype in dtypes:
        # The model is set up for an arithmetic once: it may have to be loaded for it.
        with model.under(Setting(name=dtype, dtype=dtype)):
            readings[dtype] = steps.read(Setting())
            floors[dtype] = spread(readings[dtype], map(steps.read, ways), dtype)
            if dtype == "float32" and "tf32" in also:
                floors["tf32"] = spread(readings[dtype], map(steps.read, _NARROW), "tf32")
            if dtype == model.dtype:
                check_documents(model, batches, readings[dtype], samples)
    first = {**state, **readings[model.dtype]}
    return Witness(
        kind=model.identity.kind,
        name=model.identity.name,
        config=model.identity.config,
        parameters=model.identity.parameters,
        dtype=model.dtype,
        samples=samples,
        batches=kept(batches),
        state={**state, **probe_rule(model.rule, first)},
        readings=readings,
        floors=floors,
        settings=tuple(s.name for s in ways),
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


def check_documents(
    model: Subject, batches: tuple[WitnessBatch, ...], reading: Reading, samples: int
) -> None:
    """Raise DataError where documents change nothing: a model that ignores them on both sides of a
    move would agree with itself."""
    batch = batches[0]
    if batch.documents is None or (batch.documents == batch.documents[:, :1]).all():
        return
    plain = measure(model, replace(batch, documents=None), 0, Setting(), samples)
    loss = Quantity(kind=Kind.LOSS, name="loss", batch=0).key
    if loss in plain and plain[loss].stats == reading[loss].stats:
        raise DataError(
            "the sequences hold several documents, and the loss is the same whether attention "
            "stays within them or not: the model ignores the mask"
        )


def usual(model: Subject, layouts: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """The settings that give a floor on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return usual_settings(
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
                self.progress(f"{self.model.dtype}, {setting.name}", self.done, self.total)
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
