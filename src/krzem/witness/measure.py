"""One reading: all quantities of one batch in one setting, put together from all ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from krzem.witness.batches import WitnessBatch
from krzem.witness.positions import positions
from krzem.witness.quantity import Kind, Quantity, Reading, layer_of
from krzem.witness.reduction import narrow_products, split_products
from krzem.witness.setting import Setting
from krzem.witness.subject import HeldTensor, Share, Subject
from krzem.witness.tally import Tally
from krzem.witness.watch import Watch

Partial = dict[str, Any]
"""Tallies by key, or plain values that one rank answers for."""
_TINY = 1e-60
_KINDS = {"A": Kind.ACTIVATION, "B": Kind.ACTIVATION_GRADIENT, "G": Kind.GRADIENT, "U": Kind.STEP}


def measure(
    subject: Subject, batch: WitnessBatch, number: int, setting: Setting, samples: int
) -> Reading:
    """Run one step of ``batch`` (the ``number``-th) under ``setting`` and read everything.

    The first batch also goes through the optimizer, whose state is put back afterwards.
    Called by all ranks; the result is the same on each.
    """
    with subject.under(setting), _conditions(setting):
        share = subject.share(batch)
        rows = share.rows[::-1] if setting.reverse else share.rows
        watch = Watch(shape=batch.shape, rows=rows, share=share, samples=samples)
        with watch.watching(subject.sites()):
            stepped = subject.step(batch, rows)
        own: Partial = {}
        for name, seen in watch.seen.items():
            own[f"A|{name}"], own[f"B|{name}"] = seen.forward, seen.backward
            own[f"O|{name}"] = seen.order
        for tensor in subject.tensors():
            if tensor.grad is not None:
                own[f"G|{tensor.name}"] = _tally(tensor, tensor.grad, samples)
        own |= {f"L|{n}": x.float().cpu().numpy() / share.copies for n, x in stepped.loads.items()}
        if number == 0:
            with subject.updated(stepped.gradient_norm) as changes:
                for tensor in changes:
                    own[f"U|{tensor.name}"] = _tally(tensor, tensor.part, samples)
                    if tensor.spacing is not None:
                        own[f"S|{tensor.name}"] = _norm_alone(tensor.spacing)
        found = merged(own)
    reading = list(_read(found, number, share))
    reading += [_scalar(Kind.LOSS, n, v, number) for n, v in stepped.losses.items()]
    reading.append(_scalar(Kind.GRADIENT_NORM, "", stepped.gradient_norm, number))
    return {q.key: q for q in (*reading, *_layers(reading, number))}


def measure_state(subject: Subject, samples: int) -> Reading:
    """What was loaded: every parameter, balancing bias and moment, and what goes with them."""
    own: Partial = {}
    for mark, tensors in (("P", subject.tensors()), ("M", subject.moments())):
        for tensor in tensors:
            tally = own[f"{mark}|{tensor.name}"] = _tally(tensor, tensor.part, samples)
            tally.check(tensor.part, tensor.shape, tensor.region)
    for name, bias in subject.biases().items():
        whole = (slice(0, bias.numel()),)
        held = HeldTensor(name=name, shape=tuple(bias.shape), region=whole, part=bias, grad=None)
        tally = own[f"P|{name}.bias"] = _tally(held, bias, samples)
        tally.check(bias, held.shape, whole)
    found = [
        Quantity(
            kind=Kind.PARAMETER if key.startswith("P") else Kind.MOMENT,
            name=key[2:],
            stats={**tally.checked(), "axes": tally.positions.shape[1]},
            samples=tally.samples(),
        )
        for key, tally in merged(own).items()
    ]
    for kind, name, value in subject.numbers():
        found.append(Quantity(kind=kind, name=name, stats={"value": value}))
    return {q.key: q for q in found}


def merged(own: Partial) -> Partial:
    """The parts of all ranks, the same on every rank.

    Neighbours merge in pairs, so no rank ever holds more than two parts however many there are.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    rank, size, step = dist.get_rank(), dist.get_world_size(), 1
    while step < size:
        if rank % (2 * step) == step:
            dist.send_object_list([own], dst=rank - step)
            break
        if rank + step < size:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=rank + step)
            _join(own, received[0])
        step *= 2
    whole = [own if rank == 0 else None]
    dist.broadcast_object_list(whole, src=0)
    assert whole[0] is not None
    return whole[0]


def _join(own: Partial, other: Partial) -> None:
    for key, value in other.items():
        mine = own.get(key)
        if isinstance(mine, Tally) and isinstance(value, Tally):
            mine.merge(value)
        else:
            own.setdefault(key, value)


def _tally(tensor: HeldTensor, values: torch.Tensor, samples: int) -> Tally:
    tally = Tally(positions=positions(tensor.name, tensor.shape, samples))
    tally.add(values)
    tally.sample(values, tensor.region)
    return tally


def _norm_alone(values: torch.Tensor) -> Tally:
    tally = Tally(positions=np.empty((0, 1), np.int64))
    tally.add(values)
    return tally


def _grain(spacing: Tally | None, change: Tally) -> dict[str, float]:
    """How coarse the numbers are that a change was stored in, over the change itself (norms)."""
    if spacing is None:
        return {}
    return {"grain": math.sqrt(spacing.squares / max(change.squares, _TINY))}


def _read(found: Partial, number: int, share: Share) -> Iterator[Quantity]:
    for key, value in found.items():
        what, _, name = key.partition("|")
        if what == "L":
            order = found.get(f"O|{name.rpartition('.')[0]}", 0)  # with the network it is part of
            yield Quantity(kind=Kind.LOAD, name=name, batch=number, order=order, samples=value)
        elif what in _KINDS and value.count:
            watched = what in "AB"
            # Each copy of a sequence has its part of the gradient: together they are the whole.
            scale = float(share.copies) if what == "B" else 1.0
            yield Quantity(
                kind=_KINDS[what],
                name=name,
                batch=None if what == "U" else number,
                order=found.get(f"O|{name}", 0) if watched else 0,
                stats=value.activation(share.copies, scale)
                if watched
                else value.tensor() | _grain(found.get(f"S|{name}"), value),
                samples=value.samples(scale),
            )


def _scalar(kind: Kind, name: str, value: float, number: int) -> Quantity:
    return Quantity(kind=kind, name=name, batch=number, stats={"value": value})


def _layers(reading: list[Quantity], number: int) -> Iterator[Quantity]:
    """The gradient norm of each layer, from those of its parameters."""
    squares: dict[str, float] = {}
    for q in reading:
        if q.kind is Kind.GRADIENT:
            layer = layer_of(q.name)
            squares[layer] = squares.get(layer, 0.0) + q.stats["norm"] ** 2
    for layer, total in squares.items():
        yield Quantity(
            kind=Kind.LAYER_GRADIENT, name=layer, batch=number, stats={"norm": math.sqrt(total)}
        )


@contextlib.contextmanager
def _conditions(setting: Setting) -> Iterator[None]:
    """What a setting asks of the process, as before afterwards."""
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if setting.narrow:
            stack.enter_context(narrow_products())
        if setting.split is not None:
            stack.enter_context(split_products(setting.split))
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)
            stack.callback(torch.set_num_threads, threads)
        yield
