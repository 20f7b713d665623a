"""One reading: all quantities of one batch in one setting."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from krzem.witness.batches import WitnessBatch
from krzem.witness.merging import Partial, merged
from krzem.witness.positions import positions
from krzem.witness.quantity import Kind, Quantity, Reading, layer_of
from krzem.witness.reduction import split_products
from krzem.witness.setting import Setting
from krzem.witness.subject import HeldTensor, Subject
from krzem.witness.tally import Tally
from krzem.witness.watch import Watch


def measure(
    subject: Subject, batch: WitnessBatch, number: int, setting: Setting, samples: int
) -> Reading:
    """Run one step of ``batch`` (the ``number``-th) under ``setting`` and read everything.

    Called by all ranks; the result is the same on each.
    """
    with subject.under(setting), _conditions(setting):
        share = subject.share(batch)
        rows = np.arange(*share.rows)
        run = batch
        if setting.reverse:
            rows, run = rows[::-1], _reversed(batch, share.rows)
        watch = Watch(
            shape=(batch.tokens.shape[0], batch.tokens.shape[1] - 1),
            rows=rows,
            share=share,
            samples=samples,
        )
        with watch.watching(subject.sites()):
            stepped = subject.step(run)
        own: Partial = {}
        for name, seen in watch.seen.items():
            own[f"A|{name}"], own[f"B|{name}"] = seen.forward, seen.backward
            own[f"O|{name}"] = seen.order
        for tensor in subject.tensors():
            if tensor.grad is not None:
                own[f"G|{tensor.name}"] = _tally(tensor, tensor.grad, samples)
        own |= {f"L|{n}": load.float().cpu().numpy() for n, load in stepped.loads.items()}
        found = merged(own)
    reading = list(_read(found, number))
    reading += [_scalar(Kind.LOSS, n, v, number) for n, v in stepped.losses.items()]
    reading.append(_scalar(Kind.GRADIENT_NORM, "", stepped.gradient_norm, number))
    return {q.key: q for q in (*reading, *_layers(reading, number))}


def measure_parameters(subject: Subject, samples: int) -> Reading:
    """Norm and samples of every parameter, and every balancing bias."""
    own: Partial = {f"P|{t.name}": _tally(t, t.part, samples) for t in subject.tensors()}
    for name, bias in subject.biases().items():
        whole = (slice(0, bias.numel()),)
        held = HeldTensor(name=name, shape=tuple(bias.shape), region=whole, part=bias, grad=None)
        own[f"P|{name}.bias"] = _tally(held, bias, samples)
    found = [
        Quantity(
            kind=Kind.PARAMETER,
            name=key[2:],
            stats={**tally.tensor(), "axes": tally.positions.shape[1]},
            samples=tally.samples.astype(np.float32),
        )
        for key, tally in merged(own).items()
    ]
    return {q.key: q for q in found}


def _tally(tensor: HeldTensor, values: torch.Tensor, samples: int) -> Tally:
    tally = Tally(positions=positions(tensor.name, tensor.shape, samples))
    tally.add(values)
    tally.sample(values, tensor.region)
    return tally


_KINDS = {"A": Kind.ACTIVATION, "B": Kind.ACTIVATION_GRADIENT, "G": Kind.GRADIENT}


def _read(found: Partial, number: int) -> Iterator[Quantity]:
    for key, value in found.items():
        what, _, name = key.partition("|")
        if what == "L":
            order = found.get(f"O|{name.rpartition('.')[0]}", 0)  # with the network it is part of
            yield Quantity(kind=Kind.LOAD, name=name, batch=number, order=order, samples=value)
        elif what in _KINDS and value.count:
            activation = what != "G"
            yield Quantity(
                kind=_KINDS[what],
                name=name,
                batch=number,
                order=found.get(f"O|{name}", 0) if activation else 0,
                stats=value.activation() if activation else value.tensor(),
                samples=value.samples.astype(np.float32),
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


def _reversed(batch: WitnessBatch, rows: tuple[int, int]) -> WitnessBatch:
    """The same batch with one rank's sequences from last to first."""
    order = np.arange(len(batch.tokens))
    order[slice(*rows)] = order[slice(*rows)][::-1]
    documents = None if batch.documents is None else batch.documents[order]
    return replace(batch, tokens=batch.tokens[order], documents=documents)


@contextlib.contextmanager
def _conditions(setting: Setting) -> Iterator[None]:
    """What a setting asks of the process, as before afterwards."""
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if setting.split is not None:
            stack.enter_context(split_products(setting.split))
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)
            stack.callback(torch.set_num_threads, threads)
        yield
