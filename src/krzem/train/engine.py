"""One training step's forward and backward under any layout.

An :class:`Engine` owns this rank's stages of the model.  With one process and no layout it is
the model in a loop over micro-batches; the same loop drives FSDP2, and a schedule drives stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Recompute, stage_ranks
from krzem.train.build import build_model, check_count, fill, set_float8, set_recompute
from krzem.train.config import ModelSpec
from krzem.train.device import keep_freed_memory
from krzem.train.model.context import LossWeights
from krzem.train.model.experts import EXACT, Dispatch, Experts
from krzem.train.model.mixture import Router
from krzem.train.model.transformer import Transformer
from krzem.train.ops.attention import most_documents
from krzem.train.parallel.collectives import ALONE, Axis, max_over, sum_over
from krzem.train.parallel.held import (
    Placement,
    add_shared_gradients,
    held_by,
    local_part,
    place,
    squared_norm,
)
from krzem.train.parallel.mesh import Meshes, Replicas, build_meshes, undivided, uses_fsdp
from krzem.train.parallel.pipeline import Pipeline, forward_only
from krzem.train.parallel.stages import SPLIT_BACKWARD, parts


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Losses of one step, equal on all ranks."""

    losses: dict[str, float]
    """Mean losses over the global batch by name; ``loss`` is next-token prediction."""
    gradient_norm: float
    """Global norm, before clipping."""
    beyond: int = 0
    """Rows that the capacity of the experts' dispatch had no room for: the step was taken again,
    exactly, and the other numbers are of that."""
    needed: float = 0.0
    """The capacity that would have held them."""


class Engine:
    """This rank's part of a model under ``layout``, with initial values for ``seed``.

    ``float8`` rounds the operands of linear layers and experts to float8 with block scales, those
    of experts ``by_rows`` with scales of whole rows.  ``dispatch`` is how rows get to experts in a
    step; an evaluation is always exact.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        weights: LossWeights | None = None,
        seed: int = 0,
        float8: bool = False,
        by_rows: bool = False,
        dispatch: Dispatch = EXACT,
    ) -> None:
        check_layout(spec, layout)
        if device.type == "cpu":
            keep_freed_memory()
        self.spec, self.layout, self.device, self.dtype = spec, layout, device, dtype
        self.weights = weights or LossWeights()
        self.meshes: Meshes | None = None
        placements: list[dict[str, Placement]] = [{}]
        if layout.devices == 1:
            self.stages = [
                build_model(spec, device=device, dtype=dtype, seed=seed, weights=self.weights)
            ]
        else:
            self.meshes = build_meshes(layout, device.type)
            self.stages, placements = self._build_stages(self.meshes, seed)
        self.held = held_by(self.stages, placements)
        self._replicas: list[Replicas] = []
        if self.meshes is not None and not uses_fsdp(layout):
            self._replicas = [Replicas(stage, self.meshes) for stage in self.stages]
        set_recompute(self.stages, layout)
        set_float8(self.stages, float8, by_rows=by_rows)
        self.dispatch = dispatch
        self._experts = [m for s in self.stages for m in s.modules() if isinstance(m, Experts)]
        self._set_dispatch(dispatch)
        self._count_anew()
        self._pipelines: dict[tuple[int, int], Pipeline] = {}

    def _build_stages(
        self, meshes: Meshes, seed: int
    ) -> tuple[list[Transformer], list[dict[str, Placement]]]:
        all_parts = parts(len(self.spec.layers), self.layout, self.spec.arch.mtp_layers)
        own = [
            part
            for part, rank in zip(all_parts, stage_ranks(self.layout), strict=True)
            if rank == meshes.pipeline.rank
        ]
        stages, placements = [], []
        for part in own:
            with torch.device("meta"):
                stage = Transformer(
                    self.spec, part, meshes.axes, dtype=self.dtype, weights=self.weights
                )
            placements.append(place(stage, meshes))
            stage.to_empty(device=self.device)
            values = {n: local_part(p) for n, p in stage.named_parameters()}
            self._fill(stage, values, placements[-1], seed)
            stages.append(stage)
        self._check_count(stages, placements, meshes)
        return stages, placements

    def _fill(
        self, stage: Transformer, parts: dict[str, Tensor], placed: dict[str, Placement], seed: int
    ) -> None:
        """Give this rank's parts of the parameters their initial values."""
        fill(stage, parts, {n: p.region for n, p in placed.items()}, seed)

    def _check_count(
        self, stages: list[Transformer], placements: list[dict[str, Placement]], meshes: Meshes
    ) -> None:
        """Refuse a model whose parts over all ranks do not add up to the planner's count."""
        held = held_by(stages, placements)
        own = sum(h.part.numel() / h.placement.copies for h in held if h.primary)
        total = torch.tensor(own, dtype=torch.float64)
        total = total.to(self.device) if self.device.type != "mps" else total
        check_count(self.spec, round(float(sum_over(total, self._world()))))

    def _world(self) -> Axis:
        if self.meshes is None:
            return ALONE
        return Axis(group=dist.group.WORLD, size=dist.get_world_size(), rank=dist.get_rank())

    @property
    def data(self) -> Axis:
        """Ranks that see different sequences."""
        return ALONE if self.meshes is None else self.meshes.data

    @property
    def holders(self) -> Axis:
        """Ranks that hold parts of the same layers."""
        return ALONE if self.meshes is None else self.meshes.holders

    def step(
        self,
        tokens: Tensor,
        *,
        sequences: int,
        documents: Tensor | None = None,
        targets: int = 0,
    ) -> StepResult:
        """Forward and backward of this rank's ``tokens [sequences / dp, S + 1]``.

        Afterwards every held parameter has the gradient of the mean loss over all ``sequences``:
        over the ``targets`` tokens of them that are to be predicted, where these are not all.

        A step whose rows went beyond the capacity of the experts' dispatch is taken again exactly:
        the ranks learn of it with the losses.
        """
        if self.dispatch.capacity is None:
            return self._taken(tokens, sequences, documents, targets)
        loads = {name: router.load.clone() for name, router in self.routers().items()}
        self._count_anew()
        found = self._taken(tokens, sequences, documents, targets)
        if not found.beyond:
            return found
        for name, router in self.routers().items():
            router.load.copy_(loads[name])
        zero = torch.zeros((), device=self.device)
        most = max_over(
            torch.stack([zero, *(e.needed for e in self._experts)]).max(), self._world()
        )
        self._count_anew()
        with self._exactly():
            again = self._taken(tokens, sequences, documents, targets)
        return replace(again, beyond=found.beyond, needed=float(most))

    def _count_anew(self) -> None:
        for experts in self._experts:
            experts.beyond.zero_()
            experts.needed.zero_()

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """Inside, exactly the rows that go to an expert are sent there."""
        self._set_dispatch(replace(self.dispatch, capacity=None))
        try:
            yield
        finally:
            self._set_dispatch(self.dispatch)

    def _set_dispatch(self, dispatch: Dispatch) -> None:
        for experts in self._experts:
            experts.dispatch = dispatch

    def _taken(
        self, tokens: Tensor, sequences: int, documents: Tensor | None, targets: int
    ) -> StepResult:
        self._prepare(sequences, targets, documents)
        if self.layout.pp == 1:
            self._micro_batches(tokens, documents)
        else:
            self._pipeline(tokens).run(tokens, documents)
        for replicas in self._replicas:
            replicas.finish()
        if self.layout.pp > 1:
            assert self.meshes is not None
            add_shared_gradients(self.stages, self.meshes.pipeline)
        return self._result()

    def _prepare(
        self, sequences: int, targets: int, documents: Tensor | None, *, training: bool = True
    ) -> None:
        """Tell the stages what they are to know of the whole batch."""
        most = most_documents(documents)
        for stage in self.stages:
            stage.train(training)
            if training:
                stage.zero_grad()
            stage.sequences, stage.targets, stage.most_documents = sequences, targets, most
            stage.losses.clear()

    def _micro_batches(self, tokens: Tensor, documents: Tensor | None) -> None:
        (model,) = self.stages
        size = self.layout.micro_batch
        starts = range(0, len(tokens), size)
        for start in starts:
            last = start == starts[-1]
            if isinstance(model, FSDPModule):
                reduces = last or self.layout.zero >= 2
                # Where each backward pass reduces, FSDP lets go of what it sent at its end, and of
                # the weights; else these stay gathered for the next micro-batch.
                model.set_is_last_backward(reduces)
                model.set_reshard_after_backward(reduces)
                model.set_requires_gradient_sync(reduces)
            for replicas in self._replicas if last else ():
                replicas.arm()
            piece = slice(start, start + size)
            loss = model(tokens[piece], documents=None if documents is None else documents[piece])
            loss.backward()

    def _pipeline(self, tokens: Tensor) -> Pipeline:
        """The schedule for this many micro-batches, kept for the next step."""
        key = (len(tokens) // self.layout.micro_batch, tokens.shape[1] - 1)
        if key not in self._pipelines:
            assert self.meshes is not None
            self._pipelines[key] = Pipeline(
                self.stages,
                self.layout,
                self.meshes.pipeline,
                micro_batches=key[0],
                length=key[1],
                device=self.device,
            )
        return self._pipelines[key]

    def _result(self) -> StepResult:
        names = ["loss", *(f"mtp_{i + 1}" for i in range(self.spec.arch.mtp_layers))]
        zero = torch.zeros((), device=self.device)
        own = [
            sum((s.losses[n].float() for s in self.stages if n in s.losses), zero) for n in names
        ]
        beyond = sum((e.beyond for e in self._experts), zero)
        values = torch.stack([*own, squared_norm(self.held, self.device), beyond])
        *losses, squares, rows = sum_over(values, self._world()).tolist()
        return StepResult(
            losses=dict(zip(names, losses, strict=True)),
            gradient_norm=squares**0.5,
            beyond=round(rows),
        )

    def has_finite_losses(self) -> bool:
        """Whether the losses that this rank itself computed in the last step are numbers."""
        return all(bool(x.isfinite().all()) for s in self.stages for x in s.losses.values())

    def learned(self, tokens: Tensor) -> int:
        """How many of the global batch's tokens are to be predicted, at least one; ``tokens`` are
        this rank's ``[n, S + 1]``."""
        return max(1, int(sum_over((tokens[:, 1:] >= 0).sum(), self.data)))

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, documents: Tensor | None = None) -> float:
        """The mean next-token loss of ``tokens [n, S + 1]``, every rank giving its own sequences.

        Ranks of one pipeline give the same ones.
        """
        targets, count = self.learned(tokens), len(tokens) * self.data.size
        self._prepare(count, targets, documents, training=False)
        axis = ALONE if self.meshes is None else self.meshes.pipeline
        with self._exactly():
            forward_only(self.stages, self.layout, axis, tokens, documents)
        zero = torch.zeros((), device=self.device)
        own = sum((s.losses["loss"].float() for s in self.stages if "loss" in s.losses), zero)
        return float(sum_over(own, self._world()))

    def routers(self) -> dict[str, Router]:
        """The routers this rank holds, by logical name."""
        return {
            name: module
            for stage in self.stages
            for name, module in stage.named_modules()
            if isinstance(module, Router)
        }

    def loads(self) -> dict[str, Tensor]:
        """Choices per expert of each router since last asked, over all tokens; then cleared."""
        found = {}
        for name, router in self.routers().items():
            found[name] = sum_over(router.load, self.holders).clone()
            router.load.zero_()
        return found


def check_layout(spec: ModelSpec, layout: Layout) -> None:
    """Refuse what the trainer does not do, with every reason at once.

    Raises:
        LayoutError: with one sentence for each.
    """
    x, problems = layout, []
    if x.pp > 1 and x.schedule in SPLIT_BACKWARD and x.recompute is not Recompute.NONE:
        problems.append(
            f"schedule {x.schedule} computes input and weight gradients apart, which "
            f"recompute={x.recompute} does not allow: use recompute=none or schedule=1f1b"
        )
    if x.tp > 1 and not x.sequence_parallel:
        problems.append(f"tp={x.tp} without sequence parallelism: the trainer needs sp=1")
    if x.cp > 1 and x.context_parallel != "a2a":
        problems.append(
            f"context parallelism by {x.context_parallel}: the trainer has the all-to-all form, "
            "cpkind=a2a"
        )
    if x.offload_optimizer:
        problems.append("offload=1: the trainer keeps optimizer states on the device")
    shared = any(i.shared for layer in spec.layers if (i := layer.attention.indexer))
    if x.pp > 1 and shared:
        problems.append(
            f"pp={x.pp}: layers reuse the keys that an indexer of an earlier layer picked, and "
            "what it picked does not travel between stages: use pp=1"
        )
    if (problem := undivided(x)) is not None:
        problems.append(problem)
    for name, size, count in _divisibilities(spec, layout):
        if size % count[1]:
            problems.append(f"{count[0]} = {count[1]} does not divide {name} = {size}")
    if problems:
        raise LayoutError(f"layout {layout}: " + "; ".join(problems))


def _divisibilities(spec: ModelSpec, x: Layout) -> list[tuple[str, int, tuple[str, int]]]:
    found: set[tuple[str, int, tuple[str, int]]] = {("the vocabulary", spec.vocab, ("tp", x.tp))}
    mtp = [spec.arch.mtp_layer] if spec.arch.mtp_layer else []
    for layer in [*spec.layers, *mtp]:
        a, ff = layer.attention, layer.feed_forward
        found.add(("attention heads", a.heads, ("tp*cp", x.tp * x.cp)))
        if layer.recurrence is not None:
            heads = layer.recurrence.key_heads
            found.add(("heads of keys of the recurrence", heads, ("tp*cp", x.tp * x.cp)))
        if a.output_groups:
            found.add(("output groups", a.output_groups, ("tp", x.tp)))
        if ff.is_moe:
            if ff.bias and x.etp > 1:  # biases are whole on each rank of an expert
                found.add(("experts with biases", 1, ("etp", x.etp)))
            found.add(("experts", ff.experts, ("ep", x.ep)))
            found.add(("the expert width", ff.width, ("etp", x.etp)))
            found.add(("the shared expert width", ff.shared_width, ("tp", x.tp)))
        else:
            found.add(("the feed-forward width", ff.width, ("tp", x.tp)))
    return sorted(found)
