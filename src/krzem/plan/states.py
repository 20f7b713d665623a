"""Bytes per parameter of weights, gradients and optimizer states: given, published or usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from krzem.errors import GoalError, shorten
from krzem.layout.precision import Optimizer, StateBytes
from krzem.plan.goal import Tuning
from krzem.plan.picker import Picker

NARROW = StateBytes(weight=2.0, gradient=2.0, master=0.0, moments=4.0)
"""Of loops that train the 16-bit weights they load, one device each (torchtune, TRL)."""
ADAPTERS_KEEP = StateBytes(weight=4.0, gradient=4.0, master=0.0, moments=8.0)
"""Of a parameter of an adapter: all in 32 bits (PEFT's default)."""


def states_of(
    picker: Picker, optimizer: Optimizer, gradient: float, tuning: Tuning, devices: int
) -> StateBytes:
    """Bytes per parameter: those given, over those published, over those that the engine keeps.

    With adapters they are those of a parameter of an adapter.  Raises GoalError where they are
    given all the same.
    """
    moments = 8.0 if optimizer is Optimizer.ADAMW else 4.0
    usual = StateBytes(gradient=gradient, moments=moments)
    published: Mapping[str, float] = {} if picker.recipe is None else picker.recipe.state_bytes
    if picker.question.optimizer not in (None, picker.recipe and picker.recipe.optimizer):
        published = {}
    given = read_state_bytes(picker.question.state_bytes)
    tuned = usual_states(tuning, devices, bool(given), picker.notes)
    if tuned is not None:
        return replace(tuned, **given)
    if set(published) - set(given):
        picker.taken.append("state_bytes")
    return replace(usual, **{**published, **given})


def read_state_bytes(text: str | None) -> dict[str, float]:
    """``weight=2,moments=4`` as numbers by field; raises GoalError."""
    names = [f.name for f in fields(StateBytes)]
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in (text or "").split(","))):
        name, _, raw = (piece.strip() for piece in part.partition("="))
        try:
            value = float(raw)
        except ValueError:
            value = -1.0
        if name not in names or name in found or not 0 <= value <= 64:
            raise GoalError(
                f"--state-bytes {shorten(part, 40)!r}: write each of {', '.join(names)} at most"
                " once, with bytes per parameter from 0 to 64, such as weight=2,moments=4"
            )
        found[name] = value
    if found.get("weight", 1.0) <= 0:
        raise GoalError("--state-bytes weight=0: a weight takes bytes, such as weight=2")
    return found


def usual_states(tuning: Tuning, devices: int, given: bool, notes: list[str]) -> StateBytes | None:
    """Bytes of states of fine-tuning where nobody states them; None: those of pre-training.

    ``given`` says that some are stated; raises GoalError where adapters leave nothing to state.
    """
    if tuning.adapters:
        if given:
            raise GoalError(
                f"--state-bytes with --finetune {tuning.kind}: the weights are frozen (2 bytes, or"
                " half a byte with qlora) and adapters are trained in 32 bits; leave it out"
            )
        base = "4 bits" if tuning.kind == "qlora" else "16 bits"
        notes.append(
            f"frozen weights in {base}; adapters, their gradients and moments in"
            " 32 bits; MFU counts no gradients of frozen weights"
        )
        return ADAPTERS_KEEP
    if tuning.kind != "full" or given:
        return None
    if devices == 1:
        notes.append(
            "one device trains the 16-bit weights that it loads, all states in 16 bits: 8 bytes a"
            " parameter (--state-bytes weight=2,gradient=4,master=4,moments=8 for 32 bits)"
        )
        return NARROW
    notes.append(
        "master weights and moments in 32 bits, as in pre-training; loops that train in 16 bits"
        " keep half: --state-bytes weight=2,gradient=2,master=0,moments=4"
    )
    return None
