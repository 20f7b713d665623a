"""Seventy more faults, in operators, routing, losses, gradients and what is loaded.

The list was written down before the witness was changed to see more of them.  Kinds marked with a
source are those of published studies of silent faults in training: TTrace (arXiv 2506.09280, faults
of Megatron-LM) and TrainCheck (arXiv 2506.14813, faults of PyTorch, DeepSpeed and Transformers).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from tests.witness.plants import HERE, LAYER, apart, changed, version
from torch import Tensor, nn

from krzem.train.model import mixture
from krzem.train.model.context import LossWeights
from krzem.train.model.weights import Linear
from krzem.train.ops import keys_values, linear, rotate, rotate_tail
from krzem.witness.trainer import TrainerSubject

Planting = Callable[[TrainerSubject], AbstractContextManager[None]]
FINE = ("float32",)
DENSE = ("llama",)
TTRACE, TRAINCHECK = "TTrace", "TrainCheck"
LAST = ("mtp.0", "lm_head", "norm")
"""Where the backward pass begins."""


def stage(subject: TrainerSubject) -> Any:
    """The whole model."""
    return subject.engine.stages[0]


def layer(subject: TrainerSubject, number: int = LAYER) -> Any:
    """One layer of it."""
    return stage(subject).layers[str(number)]


@contextlib.contextmanager
def patched(thing: Any, name: str, value: Any) -> Iterator[None]:
    """``thing.name`` is ``value`` within."""
    own = name in vars(thing)
    kept = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, kept)
        else:
            delattr(thing, name)


@contextlib.contextmanager
def output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What ``module`` gives is changed."""
    handle = module.register_forward_hook(lambda _, __, y: change(y))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def gradients(
    subject: TrainerSubject, wanted: Callable[[str], bool], change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Gradients of the parameters with ``wanted`` names are changed."""
    handles = [
        p.register_hook(change) for n, p in stage(subject).named_parameters() if wanted(n)
    ]  # fmt: skip
    assert handles
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def operators(op: Any, function: Callable[..., Any]) -> Planting:
    """Another version of an operator, everywhere."""
    return lambda subject: version(op, function)


def specification(**changes: Any) -> Planting:
    """Every module of attention and routing with other constants."""

    @contextlib.contextmanager
    def plant(subject: TrainerSubject) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in stage(subject).modules():
                if hasattr(module, "spec"):
                    stack.enter_context(patched(module, "spec", replace(module.spec, **changes)))
            yield

    return plant


def rope(**changes: Any) -> Planting:
    """Every rotation with other constants."""

    def plant(subject: TrainerSubject) -> AbstractContextManager[None]:
        wrong = replace(subject.engine.spec.rope, **changes)
        return specification(rope=wrong, rope_windowed=wrong, rope_compressed=wrong)(subject)

    return plant


def half(x: Tensor) -> Tensor:
    """Rounded to bfloat16 and back."""
    return x.bfloat16().to(x.dtype)


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        bits = x.detach().float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def narrow(x: Tensor) -> Tensor:
    """Rounded to the ten bits of TF32; the gradient passes."""
    return _Narrow.apply(x)


def eighth(x: Tensor) -> Tensor:
    """Rounded to float8 and back."""
    scale = x.detach().abs().max() / 448
    return ((x / scale).to(torch.float8_e4m3fn).to(x.dtype) - x / scale).detach() * scale + x


def core(
    *,
    scaled: float = 1.0,
    causal: bool = True,
    low: bool = False,
    repeat: bool = False,
    heads: Callable[[Tensor], Tensor] = lambda y: y,
) -> Callable[..., Tensor]:
    """Attention from single operations, with one thing wrong."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
        times = q.shape[1] // k.shape[1]
        spread = [
            t.repeat(1, times, 1, 1) if repeat else t.repeat_interleave(times, dim=1)
            for t in (k, v)
        ]
        scores = (q @ spread[0].mT).float() * (scale * scaled)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        hidden = (hidden if causal else ~hidden & hidden) | apart(given.get("documents"))
        scores = scores.masked_fill(hidden, -torch.inf)
        shares = half(scores).softmax(-1) if low else scores.softmax(-1)
        return heads((half(shares) if low else shares).to(q.dtype) @ spread[1])

    return wrong


def in_layer(number: int, op: Any, function: Callable[..., Any]) -> Planting:
    """Another version of an operator in one layer's attention."""

    @contextlib.contextmanager
    def plant(subject: TrainerSubject) -> Iterator[None]:
        module = layer(subject, number).self_attn
        right = type(module).core

        def core_of(self: Any, inputs: Any, context: Any) -> Tensor:
            with version(op, function):
                found: Tensor = right(self, inputs, context)
            return found

        with patched(module, "core", MethodType(core_of, module)):
            yield

    return plant


def network_output(change: Callable[[Tensor], Tensor]) -> Planting:
    """What one layer's feed-forward network gives is changed."""
    return lambda s: output(layer(s).mlp, change)


def attention_output(change: Callable[[Tensor], Tensor]) -> Planting:
    """What one layer's attention gives is changed."""
    return lambda s: output(layer(s).self_attn, change)


def norm_of(function: Callable[[Any, Tensor], Tensor]) -> Planting:
    """One layer's second norm computes otherwise."""

    def plant(subject: TrainerSubject) -> AbstractContextManager[None]:
        norm = layer(subject).post_attention_layernorm
        return patched(norm, "forward", MethodType(function, norm))

    return plant


def centred(self: Any, x: Tensor) -> Tensor:
    """LayerNorm in place of RMSNorm."""
    return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), None, self.eps)


def without_gain(self: Any, x: Tensor) -> Tensor:
    """The gain is not applied."""
    return F.rms_norm(x, x.shape[-1:], None, self.eps)


def one_more(self: Any, x: Tensor) -> Tensor:
    """The gain is taken as an offset from one."""
    return F.rms_norm(x, x.shape[-1:], 1 + self.weight.to(x.dtype), self.eps)


def routers(**members: Any) -> Planting:
    """Every router has other members."""

    @contextlib.contextmanager
    def plant(subject: TrainerSubject) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for gate in subject.engine.routers().values():
                for name, value in members.items():
                    bound = MethodType(value, gate) if callable(value) else value
                    stack.enter_context(patched(gate, name, bound))
            yield

    return plant


def without_bias(self: Any, scores: Tensor) -> Tensor:
    """Chosen without the balancing bias."""
    shape = self.shape
    grouped = scores.view(len(scores), shape.expert_groups, -1)
    chosen = grouped.topk(2, dim=-1).values.sum(-1).topk(shape.groups_per_token, dim=-1).indices
    mask = torch.zeros(len(scores), shape.expert_groups).scatter_(1, chosen, 1.0).bool()
    found = grouped.masked_fill(~mask.unsqueeze(-1), -torch.inf).flatten(1)
    return found.topk(shape.experts_per_token, dim=-1).indices


def ungrouped(self: Any, scores: Tensor) -> Tensor:
    """Chosen among all experts, not among those of the best groups."""
    return (scores + self.e_score_correction_bias).topk(self.shape.experts_per_token, -1).indices


def biased_weights(self: Any, scores: Tensor, index: Tensor) -> Tensor:
    """Weights from scores with the balancing bias."""
    chosen = (scores + self.e_score_correction_bias).gather(1, index)
    return chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * self.spec.routed_scale


def equal_weights(self: Any, scores: Tensor, index: Tensor) -> Tensor:
    """The chosen experts weigh the same."""
    return torch.ones_like(scores.gather(1, index)) / index.shape[1] * self.spec.routed_scale


def dropped(self: Any, scores: Tensor, index: Tensor) -> Tensor:
    """One token in eight loses its second expert, as where an expert's capacity is full."""
    chosen = scores.gather(1, index)
    chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * self.spec.routed_scale
    keep = torch.ones_like(chosen)
    keep[::8, 1] = 0
    return chosen * keep


@contextlib.contextmanager
def low_router(subject: TrainerSubject) -> Iterator[None]:
    """Router logits in bfloat16."""
    with contextlib.ExitStack() as stack:
        for gate in subject.engine.routers().values():
            right = type(gate).forward

            def forward(self: Any, x: Tensor, context: Any, right: Any = right) -> Any:
                with version(linear, lambda x, w, b=None: half(F.linear(half(x), half(w)))):
                    return right(self, x, context)

            stack.enter_context(patched(gate, "forward", MethodType(forward, gate)))
        yield


@contextlib.contextmanager
def no_shared_expert(subject: TrainerSubject) -> Iterator[None]:
    """The shared expert is left out."""
    with contextlib.ExitStack() as stack:
        for module in stage(subject).modules():
            if isinstance(module, mixture.Mixture):
                stack.enter_context(output(module.shared_experts, torch.zeros_like))
        yield


def linears(change: Callable[[Tensor], Tensor], wanted: str) -> Planting:
    """Inputs and weights of some linear layers are rounded."""

    @contextlib.contextmanager
    def plant(subject: TrainerSubject) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, module in stage(subject).named_modules():
                if isinstance(module, Linear) and wanted in name:

                    def product(self: Any, x: Tensor, bias: Any = None) -> Tensor:
                        y: Tensor = F.linear(change(x), change(self.weight.to(x.dtype)), bias)
                        return y

                    stack.enter_context(patched(module, "_product", MethodType(product, module)))
            yield

    return plant


@contextlib.contextmanager
def tokens_changed(subject: TrainerSubject, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The engine is given other tokens than the batch holds."""
    right = subject.engine.step

    def step(tokens: Tensor, **given: Any) -> Any:
        return right(change(tokens.clone()), **given)

    with patched(subject.engine, "step", step):
        yield


def other_last_sequence(tokens: Tensor) -> Tensor:
    """The last sequence holds something else."""
    tokens[-1] = (tokens[-1] + 7) % 90
    return tokens


def predicting(change: Callable[..., Any]) -> Planting:
    """The loss is computed otherwise: ``change(right, self, out, tokens, context, **given)``."""

    def plant(subject: TrainerSubject) -> AbstractContextManager[None]:
        whole = stage(subject)
        right = type(whole)._predict

        def predict(self: Any, *args: Any, **given: Any) -> Tensor:
            found: Tensor = change(right, self, *args, **given)
            return found

        return patched(whole, "_predict", MethodType(predict, whole))

    return plant


def later_target(right: Any, self: Any, out: Any, tokens: Any, context: Any, **given: Any) -> Any:
    """Targets one place too far on."""
    return right(self, out, tokens.roll(-1, dims=1), context, **given)


def too_large(right: Any, *args: Any, **given: Any) -> Any:
    """The gradient of the loss is that of the sum over two micro-batches, not of their mean."""
    found = right(*args, **given)
    return found + (found - found.detach())


@contextlib.contextmanager
def last_micro_batch_only(subject: TrainerSubject) -> Iterator[None]:
    """Each micro-batch's gradients replace those before it."""
    engine = subject.engine
    (model,) = engine.stages

    def micro_batches(tokens: Tensor, documents: Any) -> None:
        size = engine.layout.micro_batch
        for start in range(0, len(tokens), size):
            piece = slice(start, start + size)
            model.zero_grad()
            model(tokens[piece], documents=documents[piece]).backward()

    with patched(engine, "_micro_batches", micro_batches):
        yield


@contextlib.contextmanager
def part_of_norm(subject: TrainerSubject) -> Iterator[None]:
    """The global gradient norm is that of half the ranks: the collective left one out."""
    engine, right = subject.engine, subject.engine.step

    def step(*args: Any, **given: Any) -> Any:
        found = right(*args, **given)
        return replace(found, gradient_norm=found.gradient_norm / 2**0.5)

    with patched(engine, "step", step):
        yield


@contextlib.contextmanager
def no_documents(subject: TrainerSubject) -> Iterator[None]:
    """Attention crosses the borders of documents."""
    right = subject.engine.step

    def step(tokens: Tensor, *, documents: Any = None, **given: Any) -> Any:
        return right(tokens, documents=None, **given)

    with patched(subject.engine, "step", step):
        yield


def parameter(name: str, change: Callable[[Tensor], Tensor]) -> Planting:
    """One parameter has other values."""

    def plant(subject: TrainerSubject) -> AbstractContextManager[None]:
        tensor = stage(subject).get_parameter(name)
        return changed(tensor, change(tensor.detach().clone()))

    return plant


def one_bit(x: Tensor) -> Tensor:
    """One element that nobody samples has another exponent."""
    x.view(-1)[x.numel() // 2 + 1] *= 4.0
    return x


@contextlib.contextmanager
def exchanged_layers(subject: TrainerSubject) -> Iterator[None]:
    """Two layers hold each other's weights: a pipeline cut in the wrong place."""
    first, second = (layer(subject, n).self_attn for n in (1, LAYER))
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    with contextlib.ExitStack() as stack:
        copies = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
        for (a, b), (x, y) in zip(pairs, copies, strict=True):
            stack.enter_context(changed(a, y))
            stack.enter_context(changed(b, x))
        yield


@contextlib.contextmanager
def all_low(subject: TrainerSubject) -> Iterator[None]:
    """All weights were stored in bfloat16 on the way."""
    with contextlib.ExitStack() as stack:
        for p in stage(subject).parameters():
            stack.enter_context(changed(p, half(p.detach())))
        yield


@contextlib.contextmanager
def optimizer_with(subject: TrainerSubject, change: Callable[[Any], None]) -> Iterator[None]:
    """The optimizer, as loaded, holds something else."""
    optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
    steps = optimizer.steps
    kept = {k: {n: t.clone() for n, t in s.items()} for k, s in optimizer.state.items()}
    change(optimizer)
    try:
        yield
    finally:
        optimizer.steps = steps
        for key, tensors in kept.items():
            for name, tensor in tensors.items():
                optimizer.state[key][name].copy_(tensor)


def moments(wanted: str, change: Callable[[Tensor], Tensor]) -> Planting:
    """Moments of one kind are changed as they are loaded."""

    def all_of(optimizer: Any) -> None:
        for tensors in optimizer.state.values():
            for name, tensor in tensors.items():
                if name in wanted.split():
                    tensor.copy_(change(tensor))

    return lambda s: optimizer_with(s, all_of)


def steps_lost(optimizer: Any) -> None:
    """The optimizer begins to count anew: its first steps are corrected for bias again."""
    optimizer.steps = 0


def optimizer_constants(**constants: Any) -> Planting:
    """The optimizer with other constants."""

    @contextlib.contextmanager
    def plant(subject: TrainerSubject) -> Iterator[None]:
        optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
        rule: Any = subject.rule
        wrong = replace(optimizer.config, **constants)
        with patched(optimizer, "config", wrong), patched(rule, "config", wrong):
            yield

    return plant


@contextlib.contextmanager
def never_updated(subject: TrainerSubject) -> Iterator[None]:
    """One parameter is not among those that the optimizer was given."""
    optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
    kept = tuple(h for h in optimizer.held if h.name != f"{HERE}.self_attn.o_proj.weight")
    assert len(kept) == len(optimizer.held) - 1
    with patched(optimizer, "held", kept):
        yield


def rate(factor: float) -> Planting:
    """The learning rate of the next step is another: a schedule that began anew."""
    return lambda s: patched(s, "rate", s.rate * factor)  # type: ignore[attr-defined]


@contextlib.contextmanager
def coupled_decay(subject: TrainerSubject) -> Iterator[None]:
    """Weight decay is added to the gradient, as Adam without W does."""
    optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
    right = optimizer.step

    def step(rate: float, norm: float) -> None:
        decay = optimizer.config.weight_decay
        for held in optimizer.held:
            if held.grad is not None and held.part.dim() >= 2:
                held.grad.add_(held.part.detach(), alpha=decay)
        with patched(optimizer, "config", replace(optimizer.config, weight_decay=0.0)):
            right(rate, norm)

    with patched(optimizer, "step", step):
        yield


@contextlib.contextmanager
def low_update(subject: TrainerSubject) -> Iterator[None]:
    """Weights are kept in bfloat16: small updates are rounded away."""
    optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
    right = optimizer.step

    def step(rate: float, norm: float) -> None:
        right(rate, norm)
        with torch.no_grad():
            for held in optimizer.held:
                held.part.copy_(half(held.part))

    with patched(optimizer, "step", step):
        yield


@contextlib.contextmanager
def clipped_apart(subject: TrainerSubject) -> Iterator[None]:
    """Every parameter is clipped by its own norm, not by that of all."""
    optimizer: Any = subject.optimizer  # type: ignore[attr-defined]
    right, limit = optimizer.step, optimizer.config.clip

    def step(rate: float, _: float) -> None:
        for held in optimizer.held:
            if held.grad is not None:
                held.grad.mul_(min(1.0, limit / (float(held.grad.norm()) + 1e-6)))
        right(rate, 0.0)

    with patched(optimizer, "step", step):
        yield


def balancing(change: Callable[[float], float]) -> Planting:
    """Balancing biases move by another amount."""

    def plant(subject: TrainerSubject) -> AbstractContextManager[None]:
        rule: Any = subject.rule
        return patched(rule, "bias_rate", change(rule.bias_rate))

    return plant


@contextlib.contextmanager
def losses(subject: TrainerSubject, **weights: float) -> Iterator[None]:
    """Losses with other weights."""
    whole = stage(subject)
    kept: LossWeights = whole.weights
    with patched(whole, "weights", replace(kept, **weights)):
        yield


@contextlib.contextmanager
def unrolled_embedding(subject: TrainerSubject) -> Iterator[None]:
    """Multi-token prediction is given the embedding of the token itself, not of the next."""
    module = stage(subject).mtp[0]
    right = type(module).forward

    def forward(self: Any, before: Tensor, embedded: Tensor, context: Any) -> Any:
        return right(self, before, embedded.roll(1, dims=1), context)

    with patched(module, "forward", MethodType(forward, module)):
        yield


def first_head_silent(y: Tensor) -> Tensor:
    """One head gives zero, as a dead tensor-parallel rank's would."""
    return torch.cat((torch.zeros_like(y[:, :1]), y[:, 1:]), dim=1)


def heads_turned(y: Tensor) -> Tensor:
    """Heads in another order."""
    return y.roll(1, dims=1)


def exchanged_halves(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """Gate and value exchanged."""
    return F.silu(up) * gate


def with_gelu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """Another activation."""
    return F.gelu(gate, approximate="tanh") * up


def far_rows(subject: TrainerSubject) -> AbstractContextManager[None]:
    """Rows of the second half of the vocabulary give zero: a mask of a vocabulary shard."""
    whole = stage(subject)
    right = type(whole.embed_tokens).forward

    def forward(self: Any, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        found: Tensor = right(self, tokens, dtype)
        return found * (tokens < 48).unsqueeze(-1)

    return patched(whole.embed_tokens, "forward", MethodType(forward, whole.embed_tokens))


def not_rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """No rotation."""
    return x


def other_pairs(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The pairs of another convention."""
    return rotate.portable(x, cos, sin, not interleaved)


def other_pairs_of_tail(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same for the queries of latent attention."""
    return rotate_tail.portable(x, cos, sin, not interleaved)


def low_angles(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Angles in bfloat16."""
    return rotate.portable(x, half(cos), half(sin), interleaved)


def keys_low(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    """The part of the keys that all heads share is left out."""
    return keys_values.portable(kv, torch.zeros_like(rotated), plain)


def noisy(x: Tensor) -> Tensor:
    """A twentieth of noise: recomputed from something that had changed since."""
    random = torch.Generator().manual_seed(3)
    return x + 0.05 * x.square().mean().sqrt() * torch.randn(x.shape, generator=random).to(x.dtype)


@contextlib.contextmanager
def latent_epsilon(subject: TrainerSubject, factor: float) -> Iterator[None]:
    """The norms inside latent attention with another epsilon."""
    with contextlib.ExitStack() as stack:
        for name, module in stage(subject).named_modules():
            if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
                stack.enter_context(patched(module, "eps", module.eps * factor))
        yield


def epsilon_of(subject: TrainerSubject, number: int) -> AbstractContextManager[None]:
    """One layer's second norm with an epsilon a thousand times as large."""
    norm = layer(subject, number).post_attention_layernorm
    return patched(norm, "eps", norm.eps * 1000)


@contextlib.contextmanager
def softmax_router(subject: TrainerSubject) -> Iterator[None]:
    """Routers score by softmax."""
    from krzem.model import RouterKind

    with routers(kind=RouterKind.SOFTMAX)(subject):
        yield


@contextlib.contextmanager
def backward_of(subject: TrainerSubject, factor: float) -> Iterator[None]:
    """The backward of one network is off by a factor, its forward right."""
    handle = layer(subject).mlp.register_full_backward_pre_hook(lambda _, g: (g[0] * factor,))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def no_biases(subject: TrainerSubject) -> Iterator[None]:
    """Balancing biases are zero, as if they had not been stored."""
    with contextlib.ExitStack() as stack:
        for gate in subject.engine.routers().values():
            bias = gate.e_score_correction_bias
            stack.enter_context(changed(bias, torch.zeros_like(bias)))
        yield
