"""How one and the same step is computed: what may honestly differ from one run to the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to compute the step; the result should be the same up to rounding."""

    name: str = "as it is"
    micro_batch: int | None = None
    """Sequences at a time; None: as the model is set up."""
    threads: int | None = None
    """Compute threads of the processor; None: as they are."""
    split: float | None = None
    """Matrix products in two parts, of which the first gets this share of the contracted axis, and
    attention by plain products: another reduction order."""
    narrow: bool = False
    """Operands of products rounded to TF32: what some devices call float32."""
    reverse: bool = False
    """The batch's sequences from last to first: another order of summing gradients."""
    layout: str | None = None
    """Another parallel layout, as ``--layout`` reads it."""
    dtype: str | None = None
    """Another arithmetic type than the one the model is set up in."""


def usual_settings(
    *,
    micro_batch: int,
    threads: int,
    cores: int,
    device_type: str,
    layouts: tuple[str, ...] = (),
) -> tuple[Setting, ...]:
    """The ways that give a noise floor on this machine, cheapest first, other layouts last."""
    found = [
        Setting(name="the same again"),
        Setting(name="products in 1/3 and 2/3", split=1 / 3),
        Setting(name="products in 2/3 and 1/3", split=2 / 3),
        Setting(name="sequences reversed", reverse=True),
    ]
    # None larger: the memory of an accelerator is planned for the micro-batch that it has.
    sizes = {1, micro_batch // 2} if micro_batch else {1, 2}
    found += [
        Setting(name=f"micro-batch {n}", micro_batch=n)
        for n in sorted(sizes)
        if n and n != micro_batch
    ]
    if device_type == "cpu" and cores > 1:
        other = 1 if threads > 1 else 2
        found.append(Setting(name=f"{other} threads", threads=other))
    return (*found, *(Setting(name=f"layout {x}", layout=x) for x in layouts))
