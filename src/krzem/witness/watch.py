"""Watches the outputs of modules, and their gradients, while a step runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from krzem.witness.positions import scattered
from krzem.witness.subject import Share, Site
from krzem.witness.tally import Tally


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen of one site."""

    order: int
    """Place in the order in which modules finished first."""
    forward: Tally
    backward: Tally


@dataclass(slots=True, kw_only=True)
class Watch:
    """Tallies of sites over the micro-batches of one step.

    ``rows`` are the numbers of the sequences in the order in which they run on this rank; one may
    come several times.
    """

    shape: tuple[int, int]
    """Sequences and length of the whole batch."""
    rows: np.ndarray
    share: Share
    samples: int
    seen: dict[str, Seen] = field(default_factory=dict)
    _first: dict[int, int] = field(default_factory=dict)
    """By root: the first row of its present micro-batch, in ``rows``."""
    _next: dict[int, int] = field(default_factory=dict)
    _met: dict[int, set[str]] = field(default_factory=dict)

    @contextlib.contextmanager
    def watching(self, sites: Iterable[Site]) -> Iterator[None]:
        """Watch ``sites`` within."""
        handles: list[RemovableHandle] = []
        sites = list(sites)
        try:
            for root in {id(s.root): s.root for s in sites}.values():
                handles.append(root.register_forward_pre_hook(self._begin))
            for site in sites:
                handles.append(site.module.register_forward_hook(self._hook(site)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, root: nn.Module, _: Any) -> None:
        """A micro-batch begins: a site counts once in it, recomputation not at all."""
        key = id(root)
        self._first[key] = self._next.get(key, 0)
        self._met[key] = set()

    def _hook(self, site: Site) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            key = id(site.root)
            tensor = output[0] if isinstance(output, tuple) else output
            if site.name in self._met.get(key, {site.name}) or not isinstance(tensor, Tensor):
                return
            first = self._first[key]
            if tensor.dim() < 3 or tensor.shape[1] != self.share.tokens[1] - self.share.tokens[0]:
                return
            self._met[key].add(site.name)
            self._next[key] = first + len(tensor)
            self._take(site.name, tensor, self.rows[first : first + len(tensor)])

        return hook

    def _take(self, name: str, tensor: Tensor, rows: np.ndarray) -> None:
        seen = self.seen.get(name)
        if seen is None:
            whole = (*self.shape, *tensor.shape[2:])
            places = scattered(name, whole, self.samples)
            seen = self.seen[name] = Seen(
                order=len(self.seen),
                forward=Tally(positions=places),
                backward=Tally(positions=places),
            )
        self._add(seen.forward, tensor, rows)
        if tensor.requires_grad:
            backward = seen.backward
            tensor.register_hook(lambda g: self._add(backward, g, rows))

    def _add(self, tally: Tally, tensor: Tensor, rows: np.ndarray) -> None:
        """Count ``tensor``, which holds the sequences ``rows`` and this rank's tokens."""
        tally.add(tensor)
        low, high = self.share.tokens
        at = tally.positions
        inside = (at[:, 1] >= low) & (at[:, 1] < high)
        for place, row in enumerate(rows):
            which = np.flatnonzero(inside & (at[:, 0] == row))
            where = at[which].copy()
            where[:, 0] = place
            where[:, 1] -= low
            tally.sample_at(tensor, which, where)
