"""Values an Architecture does not hold: from the model's config.json, or asked of the user."""

from __future__ import annotations

from collections.abc import Mapping

from krzem.plan.emit.launch import Flag, ask

_ROTARY = ("rope_theta", "rotary_emb_base")
_EPSILON = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps")


def number(config: Mapping[str, object], *names: str) -> float | None:
    """The first of ``names`` that ``config`` gives as a number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def rotary_base(config: Mapping[str, object]) -> float | None:
    """The base of the rotary frequencies; newer configs keep it in ``rope_parameters``."""
    nested = config.get("rope_parameters")
    inner = number(nested, *_ROTARY) if isinstance(nested, Mapping) else None
    return number(config, *_ROTARY) if inner is None else inner


def norm_epsilon(config: Mapping[str, object]) -> float | None:
    """What a norm adds under its square root."""
    return number(config, *_EPSILON)


def rope_scaling(config: Mapping[str, object]) -> str | None:
    """The name of the long-context scaling of the rotary frequencies, None without one."""
    for name in ("rope_scaling", "rope_parameters"):
        nested = config.get(name)
        if isinstance(nested, Mapping):
            kind = nested.get("rope_type", nested.get("type"))
            if isinstance(kind, str) and kind not in ("default", "rope"):
                return kind
    return None


def written(value: float) -> str:
    """A number as an engine reads it: whole ones as integers, others with the digits they need."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def filled(name: str, value: float | None, variable: str, what: str, why: str) -> Flag:
    """A flag with ``value``, or one that asks for ``variable`` where it is not known."""
    return Flag(name, ask(variable, what) if value is None else written(value), why)
