"""Training engines: what a design does with the hardware, and which one a source speaks of."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Design facts of one engine (see ``facts/engines.toml`` for units)."""

    name: str
    match: tuple[str, ...]
    published_by: tuple[str, ...] = ()
    elementwise: float
    host_us: float
    gap_us: float
    turn_ms: float
    cut_turn_ms: float
    tp_overlap: float
    tp_backward: float
    dp_overlap: float
    ep_overlap: float
    dedup: float
    gradient_bytes: float
    state_gradient_bytes: float
    logit_bytes: float
    bucket_bytes: float
    accumulate_bytes: float
    flash2_until: float
    pp_scatter: float
    graphs: float


@cache
def engines() -> Mapping[str, Engine]:
    """All engines by name."""
    raw = tomllib.loads(
        resources.files("krzem.facts").joinpath("engines.toml").read_text(encoding="utf-8")
    )
    found = {}
    for name, values in raw.items():
        words, publishers = (
            tuple(_joined(word) for word in values.pop(key, ()))
            for key in ("match", "published_by")
        )
        found[name] = Engine(name=name, match=words, published_by=publishers, **values)
    return MappingProxyType(found)


def _joined(text: str) -> str:
    """Lower case, with one kind of separator."""
    return text.lower().replace("_", "-").replace(" ", "-")


def engine_of(source: str, notes: str) -> str:
    """The engine whose word stands earliest in the source, else in the notes, else ``other``.

    A publisher's name counts only where neither names an engine: its pages are about several.
    """
    for kind in ("match", "published_by"):
        for text in (_joined(source), _joined(notes)):
            hits = [
                (text.index(word), -len(word), e.name)
                for e in engines().values()
                for word in getattr(e, kind)
                if word in text
            ]
            if hits:
                return min(hits)[2]
    return "other"
