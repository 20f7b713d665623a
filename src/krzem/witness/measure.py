"""One reading: all quantities of one batch in one setting, of all ranks, summed in any order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from krzem.train.ops import portable_only
from krzem.witness.batches import WitnessBatch
from krzem.witness.positions import positions
from krzem.witness.quantity import Kind, Quantity, Reading, layer_of
from krzem.witness.subject import HeldTensor, Setting, Share, Subject
from krzem.witness.tally import Tally
from krzem.witness.watch import Watch

_GROUPED = "krzem::grouped_linear"


_PRODUCTS = {"aten::mm": torch.mm, "aten::bmm": torch.bmm}


@contextlib.contextmanager
def split_products(share: float) -> Iterator[None]:
    """Every matrix product below is summed in two parts, attention by plain products.

    ``share`` of the contracted axis goes into the first part.
    """
    with portable_only(), sdpa_kernel([SDPBackend.MATH]), _Split(share):
        yield


@contextlib.contextmanager
def narrow_products() -> Iterator[None]:
    """Operands of every matrix product below are rounded to TF32, sums stay in float32.

    What a device computes whose float32 products are not float32.
    """
    with portable_only(), sdpa_kernel([SDPBackend.MATH]), _Narrow():
        yield


class _Products(TorchDispatchMode):
    """Changes the products of plain tensors."""

    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """The product of ``args``, computed otherwise."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        plain = all(type(a) in (Tensor, torch.nn.Parameter) for a in args if isinstance(a, Tensor))
        if kwargs or not plain:
            return func(*args, **kwargs)
        if name in _PRODUCTS and len(args) == 2:
            return self.change(_PRODUCTS[name], *args)
        if name == "aten::addmm" and len(args) == 3:
            return args[0] + self.change(torch.mm, *args[1:])
        if name == _GROUPED:
            return self.change(func, *args)
        return func(*args)


class _Split(_Products):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """In two parts."""
        halve = _in_two if len(args) == 2 else _grouped
        return halve(product, self.share, *args)


class _Narrow(_Products):
    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """Of rounded operands."""
        return product(tf32(args[0]), tf32(args[1]), *args[2:])


def tf32(x: Tensor) -> Tensor:
    """``x`` rounded to the ten bits after the point that TF32 keeps; other types as they are."""
    if x.dtype is not torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _in_two(
    product: Callable[[Tensor, Tensor], Tensor], share: float, a: Tensor, b: Tensor
) -> Tensor:
    cut = int(a.shape[-1] * share)
    if not cut or not a.is_floating_point():
        return product(a, b)
    low = product(a[..., :cut], b[..., :cut, :])
    return low + product(a[..., cut:], b[..., cut:, :])


def _grouped(func: Any, share: float, x: Tensor, weight: Tensor, *groups: Any) -> Tensor:
    """The experts' products: ``x [P, I]`` with ``weight [E, O, I]``, by ``groups`` of rows."""
    cut = int(x.shape[-1] * share)
    parts = [
        func(x[:, part].contiguous(), weight[..., part].contiguous(), *groups)
        for part in (slice(0, cut), slice(cut, None))
    ]
    total: Tensor = parts[0] + parts[1]
    return total


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
