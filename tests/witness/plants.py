"""Faults of the kinds that happened in moves between vendors, planted on purpose.

Each is planted in a model whose weights and data are right, within a ``with`` block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.model.context import LossWeights
from krzem.train.model.weights import Norm
from krzem.train.ops import attention, rms_norm, swiglu
from krzem.train.optim import optimizer as optimizer_module
from krzem.witness.measure import split_products
from krzem.witness.rule import TrainerRule
from krzem.witness.subject import Setting
from krzem.witness.trainer import TrainerSubject

ALL_MODELS = ("deepseek_v3", "llama")
MIXTURES = ("deepseek_v3",)
BOTH = ("float32", "bfloat16")
LAYER = 2
"""The layer that faults of one layer are planted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A fault, and where a check has to find it first."""

    name: str
    plant: Callable[[TrainerSubject], AbstractContextManager[None]]
    direction: str
    at: str | tuple[str, ...]
    """Beginning of the name of the module or tensor; several where one fault begins at once in
    more than one of them."""
    models: tuple[str, ...] = ALL_MODELS
    dtypes: tuple[str, ...] = BOTH
    """Arithmetic in which it is a fault at all."""
    source: str = ""
    """Where a fault of this kind was published."""

    def is_found_by(self, first: Any) -> bool:
        """Whether a departure names this fault's place."""
        at = (self.at,) if isinstance(self.at, str) else self.at
        return (
            first is not None
            and first.direction == self.direction
            and any(first.name.startswith(place) for place in at)
        )


@contextlib.contextmanager
def wrong_epsilon(subject: TrainerSubject) -> Iterator[None]:
    """Ten times the epsilon in every norm."""
    norms = [m for m in subject.engine.stages[0].modules() if isinstance(m, Norm)]
    kept = [m.eps for m in norms]
    for norm in norms:
        norm.eps *= 10
    yield
    for norm, eps in zip(norms, kept, strict=True):
        norm.eps = eps


@contextlib.contextmanager
def norm_after_residual(subject: TrainerSubject) -> Iterator[None]:
    """The norm acts on the sum with the residual, not on what goes into attention."""
    block: Any = subject.engine.stages[0].layers[str(LAYER)]

    def forward(self: Any, x: Tensor, context: Any) -> Tensor:
        x = self.input_layernorm(x + self.self_attn(x, context))
        return x + self._network(self.post_attention_layernorm(x), context)

    block.forward = MethodType(forward, block)
    yield
    del block.forward


@contextlib.contextmanager
def rope_base(subject: TrainerSubject) -> Iterator[None]:
    """Base 50,000 in place of 10,000."""
    everything = subject.engine.stages[0].modules()
    modules = [m for m in everything if type(m).__name__.endswith("Attention")]
    kept = [m.spec for m in modules]
    for m in modules:
        m.spec = replace(m.spec, rope=replace(m.spec.rope, theta=5 * m.spec.rope.theta))
    yield
    for m, spec in zip(modules, kept, strict=True):
        m.spec = spec


@contextlib.contextmanager
def scaled_gradients(subject: TrainerSubject) -> Iterator[None]:
    """The weight gradients of one layer a tenth too large; activations' gradients are right."""
    layer = subject.engine.stages[0].layers[str(LAYER)]
    handles = [p.register_hook(lambda g: g * 1.1) for p in layer.parameters()]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def rounded_embedding(subject: TrainerSubject) -> Iterator[None]:
    """The output of the embedding in bfloat16 where float32 was meant."""
    module = subject.engine.stages[0].embed_tokens
    handle = module.register_forward_hook(lambda _, __, y: y.bfloat16().to(y.dtype), prepend=True)
    yield
    handle.remove()


@contextlib.contextmanager
def changed(tensor: Tensor, to: Tensor) -> Iterator[None]:
    """``tensor`` with other content."""
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(to)
    yield
    with torch.no_grad():
        tensor.copy_(kept)


def low_embedding(subject: TrainerSubject) -> AbstractContextManager[None]:
    """Embedding weights kept in bfloat16."""
    weight = subject.engine.stages[0].embed_tokens.weight
    return changed(weight, weight.detach().bfloat16().float())


def stale_tensor(subject: TrainerSubject) -> AbstractContextManager[None]:
    """One tensor as it was a few steps before: a thousandth off."""
    weight = subject.engine.stages[0].layers[str(LAYER)].self_attn.o_proj.weight
    random = torch.Generator().manual_seed(1)
    step = torch.randn(weight.shape, generator=random) * float(weight.detach().std()) * 1e-3
    return changed(weight, weight.detach() + step)


@contextlib.contextmanager
def shuffled_experts(subject: TrainerSubject) -> Iterator[None]:
    """Two experts of one layer exchanged, the router left as it was."""
    experts = subject.engine.stages[0].layers[str(LAYER)].mlp.experts
    order = list(range(experts.experts))
    order[0], order[1] = order[1], order[0]
    with contextlib.ExitStack() as stack:
        for p in (experts.gate_up_proj, experts.down_proj):
            stack.enter_context(changed(p, p.detach()[order].clone()))
        yield


def apart(documents: Tensor | None) -> Tensor:
    """[B, 1, S, S] or a single value: True where a query and a key are in different documents."""
    if documents is None:
        return torch.zeros((), dtype=torch.bool)
    return documents[:, None, :, None] != documents[:, None, None, :]


@contextlib.contextmanager
def mask_off_by_one(subject: TrainerSubject) -> Iterator[None]:
    """Attention sees one token of the future."""

    def wrong(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, documents: Any = None, **_: Any
    ) -> Tensor:
        n, width = q.shape[2], v.shape[-1]
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        mask = torch.ones(n, n, dtype=torch.bool).tril(1) & ~apart(documents)
        out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out[..., :width]

    with version(attention, wrong):
        yield


@contextlib.contextmanager
def decay_on_norms(subject: TrainerSubject) -> Iterator[None]:
    """Weight decay on gains and biases."""
    kept = optimizer_module._decays
    optimizer_module._decays = lambda held: True
    yield
    optimizer_module._decays = kept


@contextlib.contextmanager
def other_rule(subject: TrainerSubject, **constants: Any) -> Iterator[None]:
    """The optimizer with other constants."""
    kept = subject.rule
    assert isinstance(kept, TrainerRule)
    rate = constants.pop("bias_rate", kept.bias_rate)
    subject.rule = TrainerRule(replace(kept.config, **constants), bias_rate=rate)
    yield
    subject.rule = kept


@contextlib.contextmanager
def wrong_backward(subject: TrainerSubject) -> Iterator[None]:
    """Attention's backward a fifth too large, its forward right."""
    module = subject.engine.stages[0].layers[str(LAYER)].self_attn
    handle = module.register_full_backward_pre_hook(lambda _, g: (g[0] * 1.2,))
    yield
    handle.remove()


@contextlib.contextmanager
def no_balance(subject: TrainerSubject) -> Iterator[None]:
    """The routers' balance loss left out."""
    stage = subject.engine.stages[0]
    kept = stage.weights
    stage.weights = LossWeights(mtp=kept.mtp, balance=0.0)
    yield
    stage.weights = kept


@contextlib.contextmanager
def nan_gradient(subject: TrainerSubject) -> Iterator[None]:
    """One element of one gradient is NaN."""
    weight = subject.engine.stages[0].layers[str(LAYER)].self_attn.o_proj.weight

    def spoil(g: Tensor) -> Tensor:
        g = g.clone()
        g[0, 0] = torch.nan
        return g

    handle = weight.register_hook(spoil)
    yield
    handle.remove()


@contextlib.contextmanager
def top_k(subject: TrainerSubject) -> Iterator[None]:
    """The chosen experts' weights not brought to a sum of one."""
    gates = list(subject.engine.routers().values())
    kept = gates[0].spec
    for gate in gates:
        gate.spec = replace(kept, normalise_weights=False)
    yield
    for gate in gates:
        gate.spec = kept


HERE = f"layers.{LAYER}"
PLANTS = (
    Plant(name="wrong epsilon in norms (x10)", plant=wrong_epsilon, direction="forward",
          at="layers.0.input_layernorm"),
    Plant(name="norm after the residual, one layer", plant=norm_after_residual,
          direction="forward", at=HERE),
    Plant(name="RoPE base 50,000 for 10,000", plant=rope_base, direction="forward",
          at="layers.0.self_attn"),
    Plant(name="one layer's gradients x1.1", plant=scaled_gradients, direction="backward",
          at=HERE),
    Plant(name="embedding output in bf16", plant=rounded_embedding, direction="forward",
          at="embed_tokens", dtypes=("float32",)),
    Plant(name="embedding weights in bf16", plant=low_embedding, direction="parameter",
          at="embed_tokens"),
    Plant(name="no router-bias update", plant=lambda s: other_rule(s, bias_rate=0.0),
          direction="update", at="layers.1.mlp.gate", models=MIXTURES),
    Plant(name="two experts exchanged", plant=shuffled_experts, direction="parameter",
          at=f"{HERE}.mlp.experts", models=MIXTURES),
    Plant(name="attention mask off by one", plant=mask_off_by_one, direction="forward",
          at="layers.0.self_attn"),
    Plant(name="weight decay on norms", plant=decay_on_norms, direction="update",
          at="layers.0."),
    Plant(name="a stale tensor (0.1 % off)", plant=stale_tensor, direction="parameter",
          at=f"{HERE}.self_attn.o_proj"),
    Plant(name="optimizer epsilon x100", plant=lambda s: other_rule(s, eps=1e-6),
          direction="update", at=""),
    Plant(name="attention backward x1.2, one layer", plant=wrong_backward, direction="backward",
          at=HERE),
    Plant(name="balance loss left out", plant=no_balance, direction="backward",
          at="", models=MIXTURES),
    Plant(name="expert weights not normalised", plant=top_k, direction="forward",
          at="layers.1.mlp", models=MIXTURES),
    Plant(name="one NaN in one gradient", plant=nan_gradient, direction="backward", at=HERE),
)  # fmt: skip


@contextlib.contextmanager
def plain_norms(subject: TrainerSubject) -> Iterator[None]:
    """Norms from single operations, rounded in between as an unfused kernel does."""

    def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
        return y if weight is None else y * weight

    with version(rms_norm, norm):
        yield


@contextlib.contextmanager
def plain_attention(subject: TrainerSubject) -> Iterator[None]:
    """Attention from single operations, softmax in float32, probabilities rounded."""

    def core(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, documents: Any = None, **_: Any
    ) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = (q @ k.mT).float() * scale
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) | apart(documents)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype) @ v

    with version(attention, core):
        yield


@contextlib.contextmanager
def plain_swiglu(subject: TrainerSubject) -> Iterator[None]:
    """The gated unit in float32 inside."""

    def unit(gate: Tensor, value: Tensor, limit: float | None = None) -> Tensor:
        return (F.silu(gate.float()) * value.float()).to(gate.dtype)

    with version(swiglu, unit):
        yield


@contextlib.contextmanager
def wide_products(subject: TrainerSubject) -> Iterator[None]:
    """Products in float64, rounded once: what the best hardware could do."""
    plain = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        wide = plain(x.double(), weight.double(), None if bias is None else bias.double())
        return wide.to(x.dtype)

    F.linear = linear
    yield
    F.linear = plain


@contextlib.contextmanager
def version(op: Any, function: Callable[..., Tensor]) -> Iterator[None]:
    """Another version of an operator of the trainer, on the processor."""
    kept = dict(op.versions)
    op.versions["cpu"] = (function, lambda: True)
    try:
        yield
    finally:
        op.versions.clear()
        op.versions.update(kept)


def split(share: float) -> Callable[[TrainerSubject], AbstractContextManager[None]]:
    """Products in two parts, cut elsewhere than for the floor."""
    return lambda subject: split_products(share)


def under(setting: Setting) -> Callable[[TrainerSubject], AbstractContextManager[None]]:
    """Another way to run the step."""
    return lambda subject: subject.under(setting)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Another number of threads."""
    kept = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


HONEST: dict[str, Callable[[TrainerSubject], AbstractContextManager[None]]] = {
    "products in halves": split(0.5),
    "products in a quarter and the rest": split(0.25),
    "products in four fifths and the rest": split(0.8),
    "products in float64": wide_products,
    "unfused norms": plain_norms,
    "unfused attention": plain_attention,
    "gated unit in float32": plain_swiglu,
    "micro-batch 1": under(Setting(micro_batch=1)),
    "micro-batch 4": under(Setting(micro_batch=4)),
    "two threads": lambda subject: threads(2),
    "full recomputation": under(Setting(layout="mbs=2,recompute=full")),
}
"""Changes that other hardware or another layout brings; none of them is a setting of the floor
except the micro-batch of one."""
