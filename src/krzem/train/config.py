"""What a trainer needs of a Hugging Face config beyond shapes: rotations, scales, initial values.

Shapes come from :func:`krzem.model.read_config`, the same reader that the planner uses, so that
both count the same parameters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from krzem.errors import ModelError
from krzem.model import Architecture, Attention, AttentionKind, Layer, RouterKind, read_config
from krzem.model.config_file import Scope, load_config
from krzem.model.description import Fields, describe, described_types


class _Trainable(Collection[str]):
    """Asked for one type it reads the description of that one; a list of them takes all."""

    def __contains__(self, model_type: object) -> bool:
        return model_type in described_types() and describe(str(model_type)).built

    def __iter__(self) -> Iterator[str]:
        return (name for name in described_types() if describe(name).built)

    def __len__(self) -> int:
        return sum(1 for _ in self)


TRAINABLE = _Trainable()
"""Model types that the trainer builds (``[compute]`` of ``facts/families``); the planner reads
more."""
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "xielu", "swish-up-one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of one kind of layer."""

    theta: float
    dim: int
    """Rotated channels of a head: the first of them (latent and shared keys: the last)."""
    kind: str = "default"
    """default, linear, llama3 or yarn."""
    factor: float = 1.0
    original_positions: int = 0
    """Context length before scaling (llama3, yarn)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    amplitude: float = 1.0
    """Multiplies cosines and sines (yarn's attention factor)."""
    truncate: bool = True
    """Whether yarn rounds the bounds of its ramp to whole channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What lies between the matrices of a feed-forward network."""

    kind: str = "silu"
    """One of :data:`ACTIVATIONS`."""
    limit: float | None = None
    """Bound of the gate from above and of the value on both sides."""
    slope: float = 1.0
    """Of swish-up-one: ``gate * sigmoid(slope * gate) * (value + 1)``."""

    @property
    def is_swiglu(self) -> bool:
        """Whether it is ``silu(gate) * value``."""
        return self.kind == "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A trainable model: shapes, and the constants of its formulas."""

    arch: Architecture
    layers: tuple[Layer, ...]
    rope: Rope
    """Rotation of layers without window or compressed keys."""
    rope_windowed: Rope
    """Rotation of layers with a window, where the family has another for them."""
    rope_compressed: Rope
    """Rotation of layers with compressed keys (V4); elsewhere equal to ``rope``."""
    rope_interleaved: bool
    """Pairs are neighbours (DeepSeek) instead of half a head apart (Llama)."""
    index_interleaved: bool
    """The same of an indexer's heads (GLM-5)."""
    gated_heads: bool
    """Whether queries come with a gate for each channel of the heads' output (Qwen3-Next)."""
    attention_scale: float
    """Multiplies query-key products on top of ``head_dim ** -0.5`` (yarn's mscale, Gemma)."""
    norm_eps: float
    latent_eps: float
    """Epsilon of the norms inside latent attention; ``transformers`` fixes it at 1e-6."""
    norms: str
    """Where a layer's norms are: before, after or around attention and network."""
    norm_offset: float
    """What a norm adds to its weight (Gemma: 1)."""
    whole_norms: bool
    """Whether norms of queries and of keys run over all heads together (OLMo)."""
    embedding_scale: float
    init_std: float
    routed_scale: float
    normalise_weights: bool
    """Whether the chosen experts' weights are made to sum to one."""
    group_best: int
    """Experts of a group whose scores rate it, where a token may reach few groups."""
    hash_score: RouterKind
    """How a hash-routed layer scores the experts that its table names (V4)."""
    activation: Activation
    sinkhorn_steps: int
    hyper_eps: float
    woven: bool = False
    """Whether experts are held as GPT-OSS publishes them: inputs before outputs, columns of gate
    and value in turn, with biases."""
    names: tuple[tuple[str, str], ...] = ()
    """Parts of tensors' names, ours and the published ones."""

    @property
    def hidden(self) -> int:
        """Width of the residual."""
        return self.arch.hidden

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.arch.vocab

    @property
    def streams(self) -> int:
        """Residual streams (1 without hyper-connections)."""
        return self.arch.hyper_connections


def model_spec(
    source: str | os.PathLike[str] | Mapping[str, object], *, name: str | None = None
) -> ModelSpec:
    """The trainable model that a ``config.json`` (path, folder or object) describes.

    ``name`` is how messages call it; None: by its path.

    Raises:
        DataError: the file cannot be read.
        ModelError: a model or a feature that the trainer does not build.
    """
    raw = source if isinstance(source, Mapping) else load_config(source)[0]
    arch = read_config(raw, name=name or (None if raw is source else str(source)))
    _refuse_unbuilt(raw, arch)
    fields = Fields(raw, name=arch.name, model_type=arch.model_type)
    scope = Scope(fields, describe(arch.model_type))
    scope.layers = arch.layers
    reader = _Reader(raw, arch, scope)
    reader.refuse_unsupported()
    rope, windowed, compressed = reader.ropes()
    return ModelSpec(
        arch=arch,
        layers=arch.expanded(),
        rope=rope,
        rope_windowed=windowed,
        rope_compressed=compressed,
        rope_interleaved=bool(reader.computed("interleaved")),
        index_interleaved=reader.computed("index_interleaved"),
        gated_heads=reader.computed("gated_heads"),
        attention_scale=reader.attention_scale(),
        norm_eps=reader.computed_number("norm_eps"),
        latent_eps=1e-6,
        norms=reader.computed("norms"),
        norm_offset=float(bool(reader.computed("norm_plus_one"))),
        whole_norms=reader.computed("whole_norms"),
        embedding_scale=arch.hidden**0.5 if reader.computed("scaled_embedding") else 1.0,
        init_std=reader.computed_number("init_std"),
        routed_scale=reader.computed_number("routed_scale"),
        normalise_weights=bool(reader.computed("normalise")),
        group_best=reader.computed("group_best"),
        hash_score=reader.hash_score(),
        activation=reader.activation(),
        sinkhorn_steps=int(reader.number("hc_sinkhorn_iters", 20)),
        hyper_eps=reader.number("hc_eps", 1e-6),
        woven=reader.computed("woven"),
        names=tuple((ours, theirs) for ours, theirs in reader.computed("names")),
    )


def _refuse_unbuilt(raw: Mapping[str, object], arch: Architecture) -> None:
    where = f"config of {arch.name} ({arch.model_type})"
    if raw.get("model_type") != arch.model_type:
        raise ModelError(
            f"{where}: it wraps a language model, and the trainer builds that alone: give it as a "
            "config of its own"
        )
    if arch.model_type in TRAINABLE:
        return
    lacking = ", ".join(dict.fromkeys(_without_block(arch)))
    why = f", which has no block for {lacking}" if lacking else ""
    raise ModelError(
        f"{where}: the trainer does not build this model{why}; it builds {', '.join(TRAINABLE)}"
    )


def _without_block(arch: Architecture) -> Iterator[str]:
    """What the layers hold that no module of the trainer computes."""
    yield from (f"a recurrence ({r.kind})" for r in arch.recurrences)
    for layer, _ in arch.kinds():
        a, network = layer.attention, layer.feed_forward
        held = {
            "layers without attention": a.kind is AttentionKind.NONE and not layer.recurrence,
            "attention in chunks": a.chunk,
            "keys of another layer": a.shares_kv or a.values_are_keys,
            "further matrices in attention": a.matrices or a.input_width,
            "layers that are used again": layer.reuses,
            "further matrices in a layer": layer.matrices or network.matrices,
            "experts that pass tokens on": network.zero_experts,
            "experts of another width": network.input_width or network.router_width,
        }
        yield from (name for name, found in held.items() if found)
    whole = {
        "norms that subtract a mean": arch.norm_bias,
        "learned positions": arch.learned_positions,
        "an embedding of another width": arch.embedding_width,
    }
    yield from (name for name, found in whole.items() if found)


class _Reader:
    def __init__(
        self, raw: Mapping[str, object], arch: Architecture, scope: Scope | None = None
    ) -> None:
        self.raw = raw
        self.arch = arch
        self.scope = scope

    @property
    def is_v4(self) -> bool:
        return self.arch.model_type == "deepseek_v4"

    @property
    def attention(self) -> Attention:
        """Of the first layer that has one."""
        found = (run.layer.attention for run in self.arch.runs if run.layer.recurrence is None)
        return next(found, self.arch.runs[0].layer.attention)

    def fail(self, problem: str) -> NoReturn:
        raise ModelError(f"config of {self.arch.name} ({self.arch.model_type}): {problem}")

    def computed(self, key: str) -> Any:
        """The value of a key of ``[compute]``."""
        assert self.scope is not None
        return self.scope.value(f"compute.{key}", self.scope.description.table("compute")[key])

    def computed_number(self, key: str) -> float:
        return self._float(key, self.computed(key))

    def number(self, name: str, default: float) -> float:
        """``default`` where the field is absent or null."""
        value = self.raw.get(name)
        return default if value is None else self._float(repr(name), value)

    def _float(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{name} is {value!r}; it has to be a number")
        return float(value)

    def refuse_unsupported(self) -> None:
        """Fields that the ``transformers`` class of a family does not read, or reads one value of:
        another value would mean another model there than in other code that reads it."""
        assert self.scope is not None
        for rule in self.scope.description.unbuilt:
            if self.scope.flag("unbuilt", rule["when"]):
                self.fail(self.scope.told(rule["because"]))
        self._refuse_partial_rotation()
        layers = [layer.feed_forward for layer, _ in self.arch.kinds()]
        act = self.computed("act")
        if act not in ACTIVATIONS:
            self.fail(f"'hidden_act' is {act!r}; the trainer has {', '.join(ACTIVATIONS[:-1])}")
        if act == "xielu" and any(layer.gated for layer in layers):
            self.fail("'hidden_act' is 'xielu', which the trainer has for ungated networks")
        if any(layer.is_moe and not layer.gated for layer in layers):
            self.fail("its experts have no gate; the trainer's have")
        if any(layer.is_moe and layer.bias and not self.computed("woven") for layer in layers):
            self.fail("its experts have biases; the trainer's have none")

    def _refuse_partial_rotation(self) -> None:
        ropes = [self.raw, self._rope_fields()]
        ropes += [r for r in ropes[1].values() if isinstance(r, Mapping)]
        stated = {r["partial_rotary_factor"] for r in ropes if r.get("partial_rotary_factor")}
        whole = self.computed("rotated_share")
        if self.is_v4:
            attention = self.attention
            whole = (attention.rope_dim or attention.head_dim) / attention.head_dim
        for factor in stated:
            if not isinstance(factor, int | float) or factor != whole:
                self.fail(
                    f"'partial_rotary_factor' is {factor!r}; by the other fields {whole:g} of "
                    "a head is rotated, which is what is built"
                )
        if self.raw.get("rope_theta", 0) is None and "rope_theta" not in ropes[1]:
            self.fail("'rope_theta' is null; it has to be a number")

    def activation(self) -> Activation:
        limit = self.computed("act_limit")
        return Activation(
            kind=self.computed("act"),
            limit=self.computed_number("act_limit") if limit else None,
            slope=self.computed_number("act_slope"),
        )

    def hash_score(self) -> RouterKind:
        kinds = {"softmax": RouterKind.SOFTMAX, "sigmoid": RouterKind.SIGMOID}
        return kinds.get(str(self.raw.get("scoring_func")), RouterKind.SQRT_SOFTPLUS)

    def _rope_fields(self) -> Mapping[str, object]:
        given = self.raw.get("rope_parameters") or self.raw.get("rope_scaling")
        given = given or self.computed("rope")
        if not isinstance(given, Mapping):
            self.fail("'rope_parameters' has to be an object")
        return given

    def ropes(self) -> tuple[Rope, Rope, Rope]:
        """The rotation of plain layers, of layers with a window and with compressed keys."""
        attention = self.attention
        dim = attention.rope_dim or int(attention.head_dim * self.computed("rotated_share"))
        given, theta = self._rope_fields(), self.computed_number("theta")
        if self.computed("theta_windowed"):
            return self._ropes_by_window(dim)
        if not self.is_v4:
            rope = self._rope(given, dim, theta)
            return rope, rope, rope
        main, compress = given.get("main"), given.get("compress")
        if not (isinstance(main, Mapping) and isinstance(compress, Mapping)):
            main, compress = {}, {k: v for k, v in given.items() if k != "rope_theta"}
        plain = self._rope(main, dim, theta)
        # V4's reference applies yarn's frequencies but not its amplitude.
        scaled = {"attention_factor": 1.0, **compress}
        far = self._rope(scaled, dim, self.number("compress_rope_theta", 160000.0))
        return plain, plain, far

    def _ropes_by_window(self, dim: int) -> tuple[Rope, Rope, Rope]:
        """One rotation for each word of ``layer_types``; an old scaling is of full layers."""
        nested = self.raw.get("rope_parameters")
        scaling = self.raw.get("rope_scaling")
        full = scaling if isinstance(scaling, Mapping) else {}
        windowed: Mapping[str, object] = {}
        if isinstance(nested, Mapping):
            words = ("full_attention", "sliding_attention")
            full, windowed = (p if isinstance(p := nested.get(w), Mapping) else {} for w in words)
        rope = self._rope(full, dim, self.computed_number("theta"))
        return rope, self._rope(windowed, dim, self.computed_number("theta_windowed")), rope

    def _rope(self, given: Mapping[str, object], dim: int, theta: float) -> Rope:
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in ("default", "linear", "llama3", "yarn"):
            self.fail(f"rope type {kind!r}; the trainer has default, linear, llama3 and yarn")
        fields = _Reader(given, self.arch)
        original = fields.number("original_max_position_embeddings", self.arch.max_positions)
        factor = fields.number("factor", self.arch.max_positions / original)
        return Rope(
            theta=fields.number("rope_theta", theta),
            dim=dim,
            kind=str(kind),
            factor=factor,
            original_positions=int(original),
            beta_fast=fields.number("beta_fast", 32.0),
            beta_slow=fields.number("beta_slow", 1.0),
            low_freq_factor=fields.number("low_freq_factor", 1.0),
            high_freq_factor=fields.number("high_freq_factor", 4.0),
            amplitude=fields._amplitude(factor) if kind == "yarn" else 1.0,
            truncate=given.get("truncate") in (None, True),
        )

    def _amplitude(self, factor: float) -> float:
        fixed = self.number("attention_factor", 0.0)
        if fixed:
            return fixed
        mscale, all_dim = self.number("mscale", 0.0), self.number("mscale_all_dim", 0.0)
        if mscale and all_dim:
            return _mscale(factor, mscale) / _mscale(factor, all_dim)
        return _mscale(factor, 1.0)

    def attention_scale(self) -> float:
        given, width = self._rope_fields(), self.computed_number("scale_width")
        if width:
            return (self.attention.head_dim / width) ** 0.5
        kind = given.get("rope_type", given.get("type", "default"))
        fields = _Reader(given, self.arch)
        all_dim = fields.number("mscale_all_dim", 0.0)
        latent = self.attention.kind is AttentionKind.LATENT
        if not latent or kind == "default" or not all_dim:
            return 1.0
        return _mscale(fields.number("factor", 1.0), all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
