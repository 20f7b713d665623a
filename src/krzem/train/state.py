"""What a checkpoint holds of a run, as boxes of logical tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from krzem.train.checkpoint import Part, State
from krzem.train.engine import Engine
from krzem.train.optim import Optimizer
from krzem.train.parallel.held import Held


def run_state(engine: Engine, optimizer: Optimizer | None) -> State:
    """This rank's boxes: ``weight/`` (also routers' biases and tables), optimizer state by kind."""
    return dict(_state(engine, optimizer, primary=True))


def copies_state(engine: Engine, optimizer: Optimizer | None) -> State:
    """The boxes of copies (embeddings used at both ends of a pipeline), to be loaded as well."""
    return dict(_state(engine, optimizer, primary=False))


def _state(
    engine: Engine, optimizer: Optimizer | None, *, primary: bool
) -> Iterator[tuple[str, Tensor | Part]]:
    for held in engine.held:
        if held.primary is primary:
            yield f"weight/{held.name}", _box(held, held.part)
    if optimizer is not None:
        for key, held in optimizer.items():
            if held.primary is primary:
                for kind, tensor in optimizer.state[key].items():
                    yield f"{kind}/{held.name}", _box(held, tensor)
    if primary:
        for name, router in engine.routers().items():
            if router.shape.router_bias:
                yield f"weight/{name}.e_score_correction_bias", router.e_score_correction_bias
            if router.hashed:
                yield f"weight/{name}.tid2eid", router.tid2eid


def _box(held: Held, tensor: Tensor) -> Part:
    region = held.placement.region if held.placement.shape else ()
    return Part(
        tensor=tensor.detach(),
        shape=tuple(held.placement.shape),
        offset=tuple(cut.start for cut in region),
    )
