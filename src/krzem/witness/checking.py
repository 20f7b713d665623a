"""Checking a model on the present hardware against a witness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krzem.errors import CheckpointError, DataError, shorten
from krzem.witness.batches import Source, WitnessBatch
from krzem.witness.judge import judge, permuted_experts
from krzem.witness.measure import measure, measure_parameters
from krzem.witness.quantity import Kind, Reading
from krzem.witness.recording import Progress, check_model_batches, probe_rule
from krzem.witness.setting import Setting
from krzem.witness.subject import Subject
from krzem.witness.tolerance import Tolerance
from krzem.witness.verdict import Verdict, first_departure
from krzem.witness.witness import Witness


def check(
    witness: Witness,
    model: Subject,
    *,
    tolerance: Tolerance | None = None,
    dtype: str | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Recompute on this machine and judge; called by all ranks, the verdict is the same on each.

    ``dtype`` declares that the destination computes in another type than the source; without it a
    model in another type is refused.  ``source`` is the destination's data: its tokens at the
    recorded sample indices have to be the recorded ones.

    Raises:
        CheckpointError: another model or configuration, or arithmetic without a recorded floor.
        DataError: the data at hand has other tokens, or none.
    """
    check_same_model(witness, model)
    check_dtype(witness, model, dtype)
    check_model_batches(model, witness.batches)
    if source is not None:
        check_data(witness.batches, source)
    reading: Reading = {}
    for number, batch in enumerate(witness.batches):
        if progress is not None:
            progress("the step", number, len(witness.batches))
        reading |= measure(model, batch, number, Setting(), witness.samples)
    reading |= measure_parameters(model, witness.samples)
    reading |= probe_rule(model.rule, witness.reading) if witness.rule is not None else {}
    findings, apart = judge(witness, reading, tolerance or Tolerance(), model.dtype)
    return Verdict(
        model=witness.name,
        findings=findings,
        first=first_departure(findings),
        notes=tuple(_notes(witness, reading)),
        not_compared=(*apart, *_missing_parts(witness, model)),
        source=witness.software,
        destination=model.software(),
        dtype=model.dtype,
        settings=witness.settings,
    )


def check_same_model(witness: Witness, model: Subject) -> None:
    """Raise CheckpointError where the witness is of another model."""
    identity = model.identity
    if identity.kind != witness.kind:
        raise CheckpointError(
            f"the witness is of a model in {witness.kind}, {identity.name} here is one in "
            f"{identity.kind}: modules have other names, record it anew"
        )
    theirs, ours = witness.config, identity.config
    apart = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
    if apart:
        shown = "; ".join(
            f"{k}: {_brief(theirs, k)} in the witness, {_brief(ours, k)} here" for k in apart[:4]
        )
        more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
        raise CheckpointError(f"the witness is of another configuration: {shown}{more}")
    if identity.parameters != witness.parameters:
        raise CheckpointError(
            f"the witness is of {witness.parameters:,} parameters, the model here has "
            f"{identity.parameters:,}"
        )


def _brief(config: Any, key: str) -> str:
    return shorten(repr(config[key]), 40) if key in config else "absent"


def check_dtype(witness: Witness, model: Subject, declared: str | None) -> None:
    """Raise CheckpointError where types differ undeclared, or have no floor."""
    if declared is not None and declared != model.dtype:
        raise CheckpointError(
            f"{declared} was declared for the destination, but it computes in {model.dtype}"
        )
    if model.dtype != witness.dtype and declared is None:
        raise CheckpointError(
            f"the witness was recorded in {witness.dtype}, the model here computes in "
            f"{model.dtype}: if that is meant, declare it with --dtype {model.dtype}"
        )
    if model.dtype not in witness.floors:
        raise CheckpointError(
            f"the witness has no noise floor for {model.dtype}, only for "
            f"{', '.join(witness.floors)}: record it with --also {model.dtype}"
        )


def check_data(batches: Sequence[WitnessBatch], source: Source) -> None:
    """Raise DataError where the data here does not give the recorded tokens."""
    for batch in batches:
        first, (n, length) = batch.first_sample, batch.tokens.shape
        if first is None:
            raise DataError(
                "the witness does not say which samples its batches are, so they cannot be "
                "compared with this data"
            )
        found = source.batch(first, n)
        if found.shape != (n, length):
            raise DataError(
                f"samples {first} to {first + n - 1} have {found.shape[1] - 1} tokens here, "
                f"{length - 1} in the witness: the sequence length differs"
            )
        if WitnessBatch(tokens=found).sha256 != batch.sha256:
            raise DataError(
                f"samples {first} to {first + n - 1} hold other tokens here than in the witness: "
                "data, seed, weights or tokenizer differ"
            )


def _notes(witness: Witness, reading: Reading) -> list[str]:
    notes = []
    experts = _experts(witness.config)
    for key, base in witness.reading.items():
        if base.kind is Kind.PARAMETER and "expert" in base.name and key in reading and experts:
            note = permuted_experts(base, reading[key], experts)
            notes += [note] if note else []
    return notes


def _experts(config: Any) -> int:
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    return next((int(config[n]) for n in names if config.get(n)), 0)


def _missing_parts(witness: Witness, model: Subject) -> list[str]:
    if witness.rule is None or model.rule is None:
        return ["the optimiser's rule: none was given on both sides"]
    return []
