"""A measured figure and what it is a figure of, as the command line writes them."""

from __future__ import annotations

from pathlib import Path

from krzem.errors import GoalError, InputError, QuantityError, shorten
from krzem.plan.question import Question, read
from krzem.quantity import parse_count

FIELDS = {
    "seq": "sequence", "batch": "global_batch", "batch-tokens": "batch_tokens",
    "precision": "precision", "date": "date", "optimizer": "optimizer", "layout": "limits",
}  # fmt: skip
"""Fields of ``--set`` with a figure, and those of a question."""


def read_figure(mfu: str | None, tokens_per_s: str | None) -> dict[str, float | None]:
    """Keywords of :func:`krzem.accuracy.normal.normal`; raises QuantityError, GoalError."""
    if mfu is not None and tokens_per_s is not None:
        raise GoalError("--mfu and --tokens-per-s say the same: keep one of them")
    rate = (
        None if tokens_per_s is None else float(read("--tokens-per-s", parse_count, tokens_per_s))
    )
    return {"mfu": None if mfu is None else read_share(mfu), "tokens_per_s": rate}


def read_share(text: str) -> float:
    """``38%``, ``38`` and ``0.38`` as a fraction; raises QuantityError.

    Between 1 and 1.5 a bare number might be either: it is refused.
    """
    bare = text.strip().removesuffix("%").strip()
    try:
        value = float(bare)
    except ValueError:
        value = -1.0
    marked = bare != text.strip()
    if not 0 < value <= 1000 or (not marked and 1 < value < 1.5):
        raise QuantityError(f"--mfu {shorten(text, 20)!r}: write a percentage such as 38%")
    return value / 100 if marked or value >= 1.5 else value


def question_of(
    model: str, on: str, engine: str | None, calibration: Path | None, given: tuple[str, ...]
) -> Question:
    """The question that a figure answers; raises InputError for fields that it does not have."""
    fields: dict[str, str] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        name = key.lower().replace("_", "-")
        if name not in FIELDS or not equals or not value:
            raise InputError(
                f"--set {shorten(text, 40)!r}: with --mfu and --tokens-per-s write"
                f" {', '.join(f'{known}=…' for known in FIELDS)}"
            )
        fields[FIELDS[name]] = value
    return Question(
        model=model, on=on, engine=engine, calibration=calibration,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip
