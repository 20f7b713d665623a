"""What a trainer needs of a Hugging Face config beyond shapes: rotations, scales, initial values.

Shapes come from :func:`krzem.model.read_config`, the same reader that the planner uses, so that
both count the same parameters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from krzem.errors import ModelError
from krzem.model import Architecture, AttentionKind, Layer, RouterKind, read_config
from krzem.model.config_file import load_config

TRAINABLE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "deepseek_v3",
    "kimi_k2",
    "deepseek_v4",
)
"""Model types that the trainer builds; the planner reads more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of one kind of layer."""

    theta: float
    dim: int
    """Rotated channels of a head."""
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
class ModelSpec:
    """A trainable model: shapes, and the constants of its formulas."""

    arch: Architecture
    layers: tuple[Layer, ...]
    rope: Rope
    """Rotation of layers without compressed keys."""
    rope_compressed: Rope
    """Rotation of layers with compressed keys (V4); elsewhere equal to ``rope``."""
    rope_interleaved: bool
    """Pairs are neighbours (DeepSeek) instead of half a head apart (Llama)."""
    attention_scale: float
    """Multiplies query-key products on top of ``head_dim ** -0.5`` (yarn's mscale)."""
    norm_eps: float
    latent_eps: float
    """Epsilon of the norms inside latent attention; ``transformers`` fixes it at 1e-6."""
    init_std: float
    routed_scale: float
    normalise_weights: bool
    """Whether the chosen experts' weights are made to sum to one."""
    hash_score: RouterKind
    """How a hash-routed layer scores the experts that its table names (V4)."""
    swiglu_limit: float | None
    sinkhorn_steps: int
    hyper_eps: float

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
    reader = _Reader(raw, arch)
    reader.refuse_unsupported()
    rope, compressed = reader.ropes()
    return ModelSpec(
        arch=arch,
        layers=arch.expanded(),
        rope=rope,
        rope_compressed=compressed,
        rope_interleaved=reader.interleaved(),
        attention_scale=reader.attention_scale(),
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        latent_eps=1e-6,
        init_std=reader.number("initializer_range", 0.02),
        routed_scale=reader.routed_scale(),
        normalise_weights=reader.normalise_weights(),
        hash_score=reader.hash_score(),
        swiglu_limit=reader.number("swiglu_limit", 10.0) if reader.is_v4 else None,
        sinkhorn_steps=int(reader.number("hc_sinkhorn_iters", 20)),
        hyper_eps=reader.number("hc_eps", 1e-6),
    )


class _Reader:
    def __init__(self, raw: Mapping[str, object], arch: Architecture) -> None:
        self.raw = raw
        self.arch = arch

    @property
    def is_v4(self) -> bool:
        return self.arch.model_type == "deepseek_v4"

    @property
    def is_latent(self) -> bool:
        return self.arch.runs[0].layer.attention.kind is AttentionKind.LATENT

    def fail(self, problem: str) -> NoReturn:
        raise ModelError(f"config of {self.arch.name} ({self.arch.model_type}): {problem}")

    def number(self, name: str, default: float) -> float:
        value = self.raw.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{name!r} is {value!r}; it has to be a number")
        return float(value)

    def flag(self, name: str, default: bool, *, null: bool | None = None) -> bool:
        """``default`` where the field is absent; ``null`` says what a null means, if not that."""
        value = self.raw.get(name)
        if value is None:
            return default if null is None or name not in self.raw else null
        return bool(value)

    def refuse_unsupported(self) -> None:
        if self.arch.model_type not in TRAINABLE:
            self.fail(f"the trainer does not build this model; it builds {', '.join(TRAINABLE)}")
        act = self.raw.get("hidden_act", "silu")
        if act != "silu":
            self.fail(f"'hidden_act' is {act!r}; the trainer has silu")
        if self.number("attention_dropout", 0.0):
            self.fail("'attention_dropout' is not 0; the trainer has no dropout")
        if self.is_latent and self.flag("attention_bias", False):
            self.fail("'attention_bias' is true; the trainer's latent attention has no biases")
        if self.is_v4 and self.flag("mlp_bias", False):
            self.fail("'mlp_bias' is true; the trainer's experts have no biases")
        self._refuse_partial_rotation()
        for name, allowed, why in self._fixed():
            value = self.raw.get(name, allowed[0])
            if value not in allowed:
                built = " or ".join(repr(a) for a in allowed if a is not None)
                self.fail(f"{name!r} is {value!r}; {why}, {built}")

    def _fixed(self) -> Iterator[tuple[str, tuple[object, ...], str]]:
        """Fields that the ``transformers`` class of a family does not read, or reads one value of:
        another value would mean another model there than in other code that reads it."""
        built = "what is built is"
        if self.arch.model_type in ("deepseek_v3", "kimi_k2"):
            yield "scoring_func", ("sigmoid", None), built
            yield "topk_method", ("noaux_tc", None), built
            yield "moe_layer_freq", (1, None), built
            heads, rotated = self.raw.get("num_attention_heads"), self.raw.get("qk_rope_head_dim")
            yield "num_key_value_heads", (heads, None), "each head has keys of its own, so it is"
            yield "head_dim", (rotated, None), "the class makes it 'qk_rope_head_dim', which is"
        elif self.is_v4:
            yield "scoring_func", ("sqrtsoftplus", "sigmoid"), built
            yield "topk_method", ("noaux_tc", None), built
            yield "n_shared_experts", (1,), built
            if "swiglu_limit" in self.raw and self.raw["swiglu_limit"] is None:
                self.fail("'swiglu_limit' is null; it has to be a number")
        elif self.arch.model_type == "qwen3_moe":
            yield "norm_topk_prob", (False, True), "it has to be"
            yield "scoring_func", ("softmax", None), built
            yield "routed_scaling_factor", (1.0, 1, None), built

    def _refuse_partial_rotation(self) -> None:
        ropes = [self.raw, self._rope_fields()]
        ropes += [r for r in ropes[1].values() if isinstance(r, Mapping)]
        stated = {r["partial_rotary_factor"] for r in ropes if r.get("partial_rotary_factor")}
        whole = 1.0
        if self.is_v4:
            attention = self.arch.runs[0].layer.attention
            whole = (attention.rope_dim or attention.head_dim) / attention.head_dim
        for factor in stated:
            if not isinstance(factor, int | float) or factor != whole:
                self.fail(
                    f"'partial_rotary_factor' is {factor!r}; by the other fields {whole:g} of "
                    "a head is rotated, which is what is built"
                )
        if self.raw.get("rope_theta", 0) is None and "rope_theta" not in ropes[1]:
            self.fail("'rope_theta' is null; it has to be a number")

    def interleaved(self) -> bool:
        if self.is_v4:
            return True
        return self.is_latent and self.flag("rope_interleave", True, null=False)

    def routed_scale(self) -> float:
        if not (self.is_latent or self.is_v4):
            return 1.0
        return self.number("routed_scaling_factor", 1.5 if self.is_v4 else 2.5)

    def normalise_weights(self) -> bool:
        if self.is_v4:
            return True
        return self.flag("norm_topk_prob", self.is_latent, null=False)

    def hash_score(self) -> RouterKind:
        kinds = {"softmax": RouterKind.SOFTMAX, "sigmoid": RouterKind.SIGMOID}
        return kinds.get(str(self.raw.get("scoring_func")), RouterKind.SQRT_SOFTPLUS)

    def _rope_fields(self) -> Mapping[str, object]:
        given = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            self.fail("'rope_parameters' has to be an object")
        return given

    def ropes(self) -> tuple[Rope, Rope]:
        """The rotation of plain layers and of layers with compressed keys."""
        attention = self.arch.runs[0].layer.attention
        dim = attention.rope_dim or attention.head_dim
        given = self._rope_fields()
        if not self.is_v4:
            rope = self._rope(given, dim, self.number("rope_theta", 10000.0))
            return rope, rope
        main, compress = given.get("main"), given.get("compress")
        if not (isinstance(main, Mapping) and isinstance(compress, Mapping)):
            main, compress = {}, {k: v for k, v in given.items() if k != "rope_theta"}
        plain = self._rope(main, dim, self.number("rope_theta", 10000.0))
        # V4's reference applies yarn's frequencies but not its amplitude.
        scaled = {"attention_factor": 1.0, **compress}
        return plain, self._rope(scaled, dim, self.number("compress_rope_theta", 160000.0))

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
            truncate=fields.flag("truncate", True),
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
        given = self._rope_fields()
        kind = given.get("rope_type", given.get("type", "default"))
        fields = _Reader(given, self.arch)
        all_dim = fields.number("mscale_all_dim", 0.0)
        if not self.is_latent or kind == "default" or not all_dim:
            return 1.0
        return _mscale(fields.number("factor", 1.0), all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
