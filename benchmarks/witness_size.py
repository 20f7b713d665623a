"""How large a witness of a production model is: ``python benchmarks/witness_size.py [MODEL]``.

The record does not depend on the ranks that make it: tensors, sites and sampled places are those of
the whole model.  The model is built without values, and every quantity that ``krzem run`` records
in float32 and bfloat16 is filled with random numbers, which compress no better than real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from krzem.model.catalogue import load_model_config
from krzem.train.config import model_spec
from krzem.train.model.mixture import Router
from krzem.train.model.transformer import Transformer
from krzem.witness.batches import Positions
from krzem.witness.positions import positions, samples_per_tensor
from krzem.witness.quantity import Kind, Quantity
from krzem.witness.trainer import _blocks
from krzem.witness.witness import Witness, to_bytes

DTYPES, BATCHES = ("float32", "bfloat16"), 2
RANDOM = np.random.default_rng(0)


def values(count: int) -> np.ndarray:
    """Random samples."""
    return RANDOM.normal(size=count).astype(np.float32)


def tensors(model: Transformer, each: int) -> Iterator[tuple[str, int]]:
    """Every parameter with the number of its sampled elements."""
    for name, parameter in model.named_parameters():
        yield name, len(positions(name, tuple(parameter.shape), each))


def state(model: Transformer, each: int) -> Iterator[Quantity]:
    """Parameters, moments and the rule's updates."""
    for name, count in tensors(model, each):
        stats = {"norm": 1.2345678901234567, "inf": 0.0, "nan": 0.0, "axes": 2,
                 "checksum": float(RANDOM.integers(2**52))}  # fmt: skip
        yield Quantity(kind=Kind.PARAMETER, name=name, stats=stats, samples=values(count))
        for moment in ("exp_avg", "exp_avg_sq"):
            yield Quantity(kind=Kind.MOMENT, name=f"{name}:{moment}", stats=stats,
                           samples=values(count))  # fmt: skip
        yield Quantity(kind=Kind.UPDATE, name=name, samples=values(count))


def reading(model: Transformer, each: int) -> Iterator[Quantity]:
    """One step in one arithmetic."""
    norm = {"norm": 1.2345678901234567, "inf": 0.0, "nan": 0.0}
    stats = {"mean": -0.0123456789, "rms": 0.0123456789, "absmax": 0.1234567, "zero": 0.0,
             "count": 117440512.0, "inf": 0.0, "nan": 0.0, "ranks": 0.0}  # fmt: skip
    for name, count in tensors(model, each):
        yield Quantity(kind=Kind.STEP, name=name, stats=norm, samples=values(count))
        for batch in range(BATCHES):
            yield Quantity(kind=Kind.GRADIENT, name=name, batch=batch, stats=norm,
                           samples=values(count))  # fmt: skip
    sites = ["embed_tokens", "norm", *(site.name for site in _blocks(model))]
    for batch in range(BATCHES):
        for name in sites:
            for kind in (Kind.ACTIVATION, Kind.ACTIVATION_GRADIENT):
                yield Quantity(kind=kind, name=name, batch=batch, order=100, stats=stats,
                               samples=values(each))  # fmt: skip
        for name, module in model.named_modules():
            if isinstance(module, Router):
                yield Quantity(kind=Kind.LOAD, name=name, batch=batch,
                               samples=values(module.shape.experts))  # fmt: skip


def main(model: str) -> None:
    """Print counts and bytes."""
    begun = time.perf_counter()
    config, name = load_model_config(model)
    with torch.device("meta"):
        built = Transformer(model_spec(config, name=name))
    count = sum(1 for _ in built.parameters())
    each = samples_per_tensor(count)
    readings = {d: {q.key: q for q in reading(built, each)} for d in DTYPES}
    spread = dict.fromkeys(("samples", "far", "norm", "mean", "rms", "absmax"), 1.23e-5)
    held = {q.key: q for q in state(built, each)}
    witness = Witness(
        kind="krzem", name=name or model, config=dict(config),
        parameters=sum(p.numel() for p in built.parameters()), dtype="float32", samples=each,
        batches=(Positions(first_sample=1, shape=(4, 4096), sha256="0" * 64),) * BATCHES,
        state=held, readings=readings,
        floors={d: dict.fromkeys(found, spread) for d, found in readings.items()},
        settings=("the same again",), rule=None,
    )  # fmt: skip
    size = len(to_bytes(witness))
    quantities = len(held) + sum(map(len, readings.values()))
    print(
        f"{name or model}: {witness.parameters:,} parameters in {count:,} tensors, {each} samples"
        f" each, {quantities:,} quantities:"
        f" {size / 1e6:.1f} MB in {time.perf_counter() - begun:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "deepseek-v3")
