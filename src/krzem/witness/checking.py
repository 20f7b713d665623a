"""Checking a model on the present hardware against a witness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krzem.errors import CheckpointError, shorten
from krzem.witness.batches import Source, found_again
from krzem.witness.judge import Tolerance, judge, judge_state, permuted_experts
from krzem.witness.measure import measure, measure_state
from krzem.witness.quantity import Kind, Reading
from krzem.witness.recording import Progress, check_model_batches, probe_rule
from krzem.witness.subject import Setting, Subject
from krzem.witness.verdict import Verdict, first_departure
from krzem.witness.witness import Witness


def check(
    witness: Witness,
    model: Subject,
    *,
    tolerance: Tolerance | None = None,
    dtypes: Sequence[str] = (),
    source: Source | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Recompute on this machine and judge; called by all ranks, the verdict is the same on each.

    ``dtypes`` are the arithmetic types to compute in, finest first; without them every one that
    was recorded, or that of a model which has but one.  ``tf32`` declares that this device's
    float32 is TF32.  ``source`` is the destination's data: its tokens at the recorded sample
    indices have to be the recorded ones.  ``settings`` are those of the run here, which have to
    equal the recorded ones.

    Raises:
        CheckpointError: another model or configuration, or arithmetic that was not recorded.
        DataError: the data at hand has other tokens, or none.
    """
    check_same_model(witness, model)
    wanted = check_dtypes(witness, model, dtypes)
    batches = found_again(witness.batches, source)
    check_model_batches(model, batches)
    tolerance = tolerance or Tolerance()
    state = measure_state(model, witness.samples)
    state |= probe_rule(model.rule, witness.reading) if witness.rule is not None else {}
    findings, apart = judge_state(witness, state, tolerance, model.dtype)
    total, done = len(wanted) * len(batches), 0
    for dtype in wanted:
        reading: Reading = {}
        with model.under(Setting(name=dtype, dtype="float32" if dtype == "tf32" else dtype)):
            for number, batch in enumerate(batches):
                if progress is not None:
                    progress(f"the step in {dtype}", done, total)
                reading |= measure(model, batch, number, Setting(), witness.samples)
                done += 1
        judged, missing = judge(witness, reading, tolerance, dtype)
        findings, apart = (*findings, *judged), (*apart, *missing)
    unequal, equal = compare_settings(witness.run.get("settings"), settings)
    return Verdict(
        model=witness.name,
        findings=findings,
        first=first_departure(findings),
        notes=tuple(_notes(witness, state)),
        not_compared=(*dict.fromkeys(apart), *_missing_parts(witness, model, settings, wanted)),
        source=witness.software,
        destination=model.software(),
        dtypes=wanted,
        settings=witness.settings,
        unequal=unequal,
        equal=equal,
    )


def compare_settings(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings that differ, each as a sentence, and the names of those that agree."""
    if not recorded or here is None:
        return (), ()
    names = list(dict.fromkeys((*recorded, *here)))
    apart = tuple(
        f"{name} is {_brief(here, name)} here and was {_brief(recorded, name)} at the source"
        for name in names
        if recorded.get(name) != here.get(name)
    )
    return apart, tuple(name for name in names if recorded.get(name) == here.get(name))


_FINEST_FIRST = ("float64", "float32", "tf32", "float16", "bfloat16")


def _fineness(dtype: str) -> int:
    return _FINEST_FIRST.index(dtype) if dtype in _FINEST_FIRST else len(_FINEST_FIRST)


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


def check_dtypes(witness: Witness, model: Subject, asked: Sequence[str]) -> tuple[str, ...]:
    """The arithmetic to check in; CheckpointError where one of them was not recorded."""
    own = (model.dtype,) if model.dtype != witness.dtype else tuple(witness.readings)
    wanted = tuple(sorted(dict.fromkeys(asked or own), key=_fineness))
    missing = [dtype for dtype in wanted if dtype not in witness.floors]
    if missing:
        raise CheckpointError(
            f"the witness holds the step in {', '.join(witness.floors)} and not in "
            f"{', '.join(missing)}: record it with --also {missing[0]} where the run is"
        )
    return wanted


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


def _missing_parts(
    witness: Witness,
    model: Subject,
    settings: Mapping[str, Any] | None,
    wanted: tuple[str, ...],
) -> Iterator[str]:
    """What the certificate has to say was not compared."""
    if witness.rule is None or model.rule is None:
        yield "the optimizer's rule: none was given on both sides"
    if not any(q.kind is Kind.MOMENT for q in witness.state.values()):
        yield "the optimizer's moments and its next step: the source had none of them loaded"
    if not witness.run.get("settings") or settings is None:
        yield "the settings of the run: no run file was given on both sides"
    dropped = [k for k, v in witness.config.items() if _drops(k, v)]
    if dropped:
        yield f"dropout ({', '.join(dropped)}): the step is computed without it, as in evaluation"
    for dtype in witness.readings:
        if dtype not in wanted and not (dtype == "float32" and "tf32" in wanted):
            yield f"the step in {dtype}: it was recorded, and is not asked for here"


def _drops(key: str, value: Any) -> bool:
    """Whether a key of a configuration asks for dropout, by whatever name its family has."""
    named = "dropout" in key or key.endswith(("_pdrop", "drop_rate"))
    return named and isinstance(value, int | float) and not isinstance(value, bool) and value > 0
