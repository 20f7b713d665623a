"""Co-design: which shape of a mixture of experts learns most per day on a given cluster.

Shapes of one active size are laid out on a grid (width, heads, number of experts, their width;
depth follows). Each is planned on the cluster, and judged by two things that pull apart: how fast
the cluster computes it, and what its compute is worth. The second is the *efficiency leverage* of
Ling (arXiv 2507.17702): a mixture with activation ratio ``A`` and granularity ``G`` trained with
``C`` FLOPs reaches the loss of a dense model trained with ``EL(A, G, C) * C``. Their product is
dense-equivalent FLOPs per second; the best shape has most of it.

What the law cannot tell apart is kept within what has been published: ratio of width to depth,
width of heads, latent ranks, one shared expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krzem.errors import GoalError, KrzemError
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.catalogue import load_model, model_ids
from krzem.model.parameters import count
from krzem.plan.answer import Progress, fitting_batch
from krzem.plan.goodput import FLOP_PER_PARAMETER_TOKEN, scaling_laws
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.plan.search import Found, search
from krzem.plan.size import batch_of

LAW = "ling_2025_efficiency_leverage"
TRUSTED = 6.0
"""Leverage up to which the law was fitted; beyond it is carried on, and said."""
RATIO = 400.0
"""Tokens per active parameter where nobody says: DeepSeek-V3's 14.8T over 37B."""
WIDTHS = (1536, 2048, 2560, 3072, 4096, 5120, 6144, 7168, 7680, 8192, 9216, 10240, 12288)
EXPERTS = (64, 128, 256, 384)
ACTIVE = 8
GRANULARITIES = (4.0, 7.0, 12.0)
"""Twice the width over the width of an expert: 7 in DeepSeek-V3, 12 the law's optimum."""
HEADS = (64, 128)
ASPECT = (40.0, 180.0)
"""Width over depth of published models: 44 in Qwen3-235B, 117 in DeepSeek-V3."""
NEAR = (0.6, 1.7)
"""Published models that are set beside: active size over that of the grid."""
QUICK = "cp=1,mbs<=2"
"""Layouts that the grid is priced with; the best shapes are searched whole."""
FINALISTS = 6
VOCABULARY = 129_280


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A mixture with multi-head latent attention, one shared expert and three dense layers."""

    hidden: int
    layers: int
    heads: int
    experts: int
    active: int
    width: int
    """Inner width of one expert."""

    def config(self) -> dict[str, Any]:
        """Its ``config.json``, of DeepSeek-V3's type."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
            "attention_bias": False, "hidden_act": "silu", "first_k_dense_replace": 3,
            "hidden_size": self.hidden, "intermediate_size": (self.active + 1) * self.width,
            "kv_lora_rank": 512, "max_position_embeddings": 4096,
            "moe_intermediate_size": self.width, "moe_layer_freq": 1, "n_group": 8,
            "n_routed_experts": self.experts, "n_shared_experts": 1, "norm_topk_prob": True,
            "num_attention_heads": self.heads, "num_experts_per_tok": self.active,
            "num_hidden_layers": self.layers, "num_key_value_heads": self.heads,
            "num_nextn_predict_layers": 0, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
            "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
            "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128,
            "vocab_size": VOCABULARY,
        }  # fmt: skip

    def architecture(self) -> Architecture:
        """The shape as the planner takes it."""
        return read_config(self.config(), self.label)

    @property
    def label(self) -> str:
        """The shape in one word: ``h7168-L61-e256x2048``."""
        return f"h{self.hidden}-L{self.layers}-n{self.heads}-e{self.experts}x{self.width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A shape on the cluster."""

    name: str
    shape: Shape | None
    """None for a published model."""
    parameters: float
    active: float
    leverage: float
    """Dense-equivalent over actual compute."""
    seconds: float
    """Of a step with the best layout found."""
    mfu: float
    flop_per_second: float
    """``6 N D`` of active parameters over time, all devices together."""
    layout: str
    whole: bool
    """Whether every layout was searched."""

    @property
    def worth(self) -> float:
        """Dense-equivalent FLOPs per second."""
        return self.leverage * self.flop_per_second

    @property
    def extrapolated(self) -> bool:
        """Whether the leverage lies beyond what the law was fitted on."""
        return self.leverage > TRUSTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Shapes by worth, and published ones beside."""

    asked: Asked
    flop: float
    active: float
    tokens: float
    found: tuple[Judged, ...]
    """Best first; the first :data:`FINALISTS` searched whole."""
    published: tuple[Judged, ...]
    left_out: tuple[str, ...]
    """Shapes and models without a plan, and why."""


def leverage(activation: float, granularity: float, flop: float) -> float:
    """Efficiency leverage of a mixture (arXiv 2507.17702, eq. of section 4 with table 2).

    ``activation`` is the share of experts that a token uses, ``granularity`` twice the model's
    width over an expert's. A dense model has 1.
    """
    law = scaling_laws()[LAW]
    alpha = law["a"] + law["d"] * math.log10(flop)
    deep = math.log(max(granularity, 1.0))
    power = alpha + law["gamma"] * deep**2 + law["beta"] * deep
    return float((activation + law["A_start"]) ** power)


def leverage_of(architecture: Architecture, flop: float) -> float:
    """The leverage of a model: of its routed and shared experts; 1 where it has none."""
    routed = [r.layer.feed_forward for r in architecture.runs if r.layer.feed_forward.is_moe]
    if not routed:
        return 1.0
    mixture = routed[-1]
    shared = mixture.shared_width / mixture.width
    ratio = (mixture.experts_per_token + shared) / (mixture.experts + shared)
    return leverage(min(ratio, 1.0), 2.0 * architecture.hidden / mixture.width, flop)


def shapes(active: float) -> Iterator[Shape]:
    """The grid of shapes with about ``active`` parameters at work for a token."""
    for hidden in WIDTHS:
        for experts in EXPERTS:
            for granularity in GRANULARITIES:
                width = round(2.0 * hidden / granularity / 128) * 128
                for heads in HEADS:
                    layers = _layers(active, hidden, heads, width)
                    if ASPECT[0] <= hidden / max(layers, 1) <= ASPECT[1] and width >= 256:
                        yield Shape(hidden=hidden, layers=layers, heads=heads, experts=experts,
                                    active=ACTIVE, width=width)  # fmt: skip


def _layers(active: float, hidden: int, heads: int, width: int) -> int:
    """Depth with which a shape has ``active`` parameters at work."""
    attention = hidden * (1536 + 512 + 64) + 1536 * heads * 192 + 512 * heads * 256
    attention += heads * 128 * hidden
    layer = attention + 3 * hidden * width * (ACTIVE + 1)
    return max(0, round((active - 2 * VOCABULARY * hidden) / layer))


def design(
    on: str | Cluster,
    flop: float,
    *,
    tokens_per_parameter: float = RATIO,
    question: Question | None = None,
    published: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Design:
    """The shapes that learn most per second on ``on`` when ``flop`` are to be trained.

    ``question`` says engine, precision, sequence and what else a plan takes; ``published`` names
    the models to set beside (None: those of like active size).

    Raises GoalError where no shape of that size can be laid out or planned, and what a plan
    raises for the cluster.
    """
    if not 1e18 <= flop <= 1e29:
        raise GoalError(f"--flops {flop:g}: a training run has 1e18 to 1e29, such as 1e24")
    cluster = on if isinstance(on, Cluster) else read_cluster(on)
    active = math.sqrt(flop / FLOP_PER_PARAMETER_TOKEN / tokens_per_parameter)
    tokens = tokens_per_parameter * active
    base = question or Question(model="", on=cluster)
    desk = _Desk(cluster, flop, tokens, base, progress)
    grid = list(shapes(active))
    if not grid:
        raise GoalError(
            f"{flop:.3g} FLOPs at {tokens_per_parameter:g} tokens per active parameter are"
            f" {active:.3g} active parameters: no shape of the grid has so few or so many. Change"
            " --flops or --tokens-per-parameter"
        )
    tried = (desk.judge(shape.architecture(), shape, QUICK) for shape in grid)
    quick = [judged for judged in tried if judged is not None]
    if not quick:
        raise GoalError("no shape has a plan on this cluster: " + "; ".join(desk.left_out[:3]))
    quick.sort(key=lambda j: -j.worth)
    final = [desk.judge(j.shape.architecture(), j.shape, "") or j
             for j in quick[:FINALISTS] if j.shape]  # fmt: skip
    known = [desk.judge(load_model(name), None, "") for name in published or _alike(active)]
    best = sorted([*final, *quick[FINALISTS:]], key=lambda j: -j.worth)
    assert desk.asked is not None
    return Design(
        asked=desk.asked,
        flop=flop,
        active=active,
        tokens=tokens,
        found=tuple(best),
        published=tuple(sorted((j for j in known if j), key=lambda j: -j.worth)),
        left_out=tuple(desk.left_out),
    )


class _Desk:
    """Plans shapes on one cluster under one question."""

    def __init__(
        self, cluster: Cluster, flop: float, tokens: float, question: Question,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.cluster, self.flop, self.tokens, self.question = cluster, flop, tokens, question
        self.progress, self.priced = progress, 0
        self.asked: Asked | None = None
        self.left_out: list[str] = []

    def judge(self, model: Architecture, shape: Shape | None, limits: str) -> Judged | None:
        """``model`` with its best layout; None, with the reason noted, where it has no plan."""
        try:
            asked = self._ask(replace(model, mtp_layers=0), limits)
            pricer = Pricer(asked.task)
            found = search(pricer, asked.space, self._count)
            self.priced += found.evaluated
            best = found.best(asked.sure)
        except KrzemError as error:
            self.left_out.append(f"{model.name}: {error}")
            return None
        if not len(best):
            self.left_out.append(f"{model.name}: does not fit in memory")
            return None
        self.asked = self.asked or asked
        return self._judged(model, shape, asked, pricer, found, int(best[0]), not limits)

    def _count(self, evaluated: int) -> None:
        if self.progress is not None:
            self.progress(self.priced + evaluated)

    def _ask(self, model: Architecture, limits: str) -> Asked:
        sequence = self.question.sequence or 4096
        held = ",".join(filter(None, (limits, self.question.limits)))
        batch = self.question.global_batch or batch_of(self.flop, sequence, self.cluster.devices)
        asked = settle(
            replace(self.question, model=model, on=self.cluster, tokens=round(self.tokens),
                    sequence=sequence, global_batch=batch, limits=held or None,
                    precision=self.question.precision or "bf16")
        )  # fmt: skip
        return fitting_batch(asked)

    def _judged(
        self, model: Architecture, shape: Shape | None, asked: Asked, pricer: Pricer,
        found: Found, best: int, whole: bool,
    ) -> Judged:  # fmt: skip
        counted = count(model)
        seconds = float(np.asarray(found.seconds)[best])
        useful = FLOP_PER_PARAMETER_TOKEN * counted.active * asked.task.goal.tokens_per_step
        ideal = pricer.peak_flops() * self.cluster.devices
        return Judged(
            name=model.name,
            shape=shape,
            parameters=float(counted.total),
            active=float(counted.active),
            leverage=leverage_of(model, self.flop),
            seconds=seconds,
            mfu=pricer.step_flops() / seconds / ideal,
            flop_per_second=useful / seconds,
            layout=str(found.layouts.at(best)),
            whole=whole,
        )


def _alike(active: float) -> list[str]:
    """Published mixtures of like active size."""
    found = []
    for name in model_ids():
        model = load_model(name)
        if model.is_moe and NEAR[0] <= count(model).active / active <= NEAR[1]:
            found.append(name)
    return found
