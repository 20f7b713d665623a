"""The model of a job: an architecture from the fields that its files decide, or from its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from krzem.accuracy.spellings import known_shape
from krzem.errors import KrzemError, ModelError
from krzem.jobs.job import Job, Value, show
from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Layer,
    LayerRun,
    RouterKind,
)
from krzem.model.catalogue import load_model, model_fact, model_ids
from krzem.model.parameters import count
from krzem.quantity import format_count

Shape = dict[str, Value]
"""Fields of a model without their prefix ``model.``."""

TELLING = ("layers", "hidden", "heads", "kv_heads", "ffn", "experts", "top_k", "moe_ffn", "vocab")
"""Fields in which a model must not differ from a known one to be that one."""
ALIKE = ("layers", "hidden", "heads")
"""Fields that have to be there, and agree, before a shape is taken for a known model's."""
NEEDED = ("layers", "hidden", "heads", "vocab")
PADDED = 0.02
"""Vocabularies are padded to multiples of the tensor degree: so much more is the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFound:
    """The architecture of a job, what was assumed of it, and what is still missing."""

    architecture: Architecture | None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Fields that decide the price and that nothing settles."""


def model_of(job: Job, name: str | None = None) -> ModelFound:
    """The model that the files describe; ``name`` (``--model``) stands for the job's own name.

    A shape in the files wins over a name.  What the shape leaves open comes from the model of that
    name, or of that shape, and is said.
    """
    stated = {
        key.removeprefix("model."): setting.value
        for key, setting in job.settings.items()
        if key.startswith("model.")
    }
    called = name or str(stated.pop("name", "") or "")
    stated.pop("name", None)
    known, notes = (None, []) if not called else _named(called, stated)
    if known is None:
        known, notes = _alike(stated, notes)
    if known is not None and _agrees(stated, shape_of(known), exactly=True):
        return ModelFound(architecture=known, notes=tuple(notes))
    if known is not None and isinstance(mtp := stated.get("mtp"), int):
        other = replace(known, mtp_layers=mtp)
        if _agrees(stated, shape_of(other), exactly=True):
            return ModelFound(architecture=other, notes=tuple(notes))
    shape = {**({} if known is None else shape_of(known)), **stated}
    _usual(shape, notes)
    missing = tuple(f"model.{n}" for n in _missing(shape))
    if missing:
        return ModelFound(architecture=None, notes=tuple(notes), missing=missing)
    found = _dressed(build(shape, called), known)
    if not called:
        found = replace(found, name=f"a model of {format_count(count(found).total, 3)} parameters")
    return ModelFound(architecture=found, notes=tuple(notes))


def _named(name: str, stated: Shape) -> tuple[Architecture | None, list[str]]:
    """The known model of that name, and how it differs from what the files say."""
    known = by_name(name)
    if known is None:
        return None, [f"model {name}: not a model that is known; its shape is taken from the files"]
    apart = _differences(stated, shape_of(known))
    notes = [f"model {name}: the shape of {known.name}, as far as the files do not say it"]
    if apart:
        notes = [f"the files name {name}, but {apart}: the shape in the files is priced"]
    elif not any(key in stated for key in ALIKE):
        notes = [f"model {name}: the shape is that of {known.name}; a name is no promise"
                 " (--set model.layers=… and the like correct it)"]  # fmt: skip
    return known, notes


def _alike(stated: Shape, notes: list[str]) -> tuple[Architecture | None, list[str]]:
    """A built-in model of exactly this shape, where something is left open."""
    if not all(key in stated for key in ALIKE) or not _missing(_with_usual(stated)):
        return None, notes
    same = [n for n in model_ids() if _agrees(stated, shape_of(load_model(n)), exactly=False)]
    if not same:
        return None, notes
    newest = max(same, key=lambda n: model_fact(n).date)
    left = ", ".join(f"model.{n}" for n in _missing(_with_usual(stated)))
    others = f" (as {', '.join(n for n in same if n != newest)} have)" if len(same) > 1 else ""
    more = f"{left}: that of {newest}, which has the same shape otherwise{others}"
    return load_model(newest), [*notes, f"{more}; --set {left.partition(',')[0]}=… corrects it"]


def _with_usual(stated: Shape) -> Shape:
    shape = dict(stated)
    _usual(shape, [])
    return shape


@cache
def by_name(name: str) -> Architecture | None:
    """The known model that a name means (a Hub id, a flavour, a recipe), or None."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
    try:
        return load_model(last)
    except KrzemError:
        row = known_shape(name) or known_shape(last.removeprefix("meta-"))
    if row is None:
        return None
    try:
        return load_model(row["id"])
    except KrzemError:
        return _of_row(row)


def _of_row(row: Mapping[str, str]) -> Architecture | None:
    """A model of which only the sizes are listed."""
    names = {
        "layers": "layers", "hidden": "hidden", "ffn_hidden": "ffn", "heads": "heads",
        "kv_heads": "kv_heads", "head_dim": "head_dim", "vocab": "vocab", "experts": "experts",
        "experts_per_token": "top_k", "shared_experts": "shared_experts",
        "moe_ffn_hidden": "moe_ffn", "dense_layers": "dense_layers",
    }  # fmt: skip
    shape: Shape = {field: int(row[key]) for key, field in names.items() if row.get(key)}
    if "mla" in row.get("attention", ""):
        return None
    _usual(shape, [])
    return None if _missing(shape) else build(shape, row["id"])


def shape_of(arch: Architecture) -> Shape:
    """An architecture as fields of a job."""
    last, first = arch.runs[-1].layer, arch.runs[0].layer
    a = last.attention
    sparse = next((r.layer.feed_forward for r in arch.runs if r.layer.feed_forward.is_moe), None)
    dense = next((r.layer.feed_forward for r in arch.runs if not r.layer.feed_forward.is_moe), None)
    shape: Shape = {
        "layers": arch.layers, "hidden": arch.hidden, "heads": a.heads, "vocab": arch.vocab,
        "gated": last.feed_forward.gated, "tied": arch.tied_embeddings, "qk_norm": a.qk_norm,
        "bias": last.feed_forward.bias, "mtp": arch.mtp_layers,
        "positions": "learned" if arch.learned_positions else "rope",
    }  # fmt: skip
    if a.kind is AttentionKind.LATENT:
        shape |= {
            "attention": "mla", "q_lora_rank": a.q_lora_rank or 0,
            "kv_lora_rank": a.kv_lora_rank or 0, "qk_rope": a.rope_dim or 0,
            "qk_nope": a.head_dim - (a.rope_dim or 0), "v_head": a.value_dim,
        }  # fmt: skip
    else:
        shape |= {"kv_heads": a.kv_heads, "head_dim": a.head_dim}
    if dense is not None:
        shape["ffn"] = dense.width
    if sparse is not None:
        shape |= {
            "experts": sparse.experts, "top_k": sparse.experts_per_token, "moe_ffn": sparse.width,
            "shared_ffn": sparse.shared_width,
            "dense_layers": 0 if first.feed_forward.is_moe else arch.runs[0].count,
        }  # fmt: skip
    return shape


def _same(name: str, given: Value, known: Value) -> bool:
    if given == known:
        return True
    if name == "vocab" and isinstance(given, int) and isinstance(known, int):
        return 0 <= given - known <= PADDED * known or 0 <= known - given <= PADDED * given
    return name == "qk_norm" or name == "bias"


def _agrees(stated: Shape, known: Shape, *, exactly: bool) -> bool:
    """Whether nothing that is stated differs; ``exactly``: in any field, not the telling alone."""
    names = stated if exactly else TELLING
    if bool(stated.get("experts")) != bool(known.get("experts")) and not exactly:
        return False
    return all(_same(n, stated[n], known[n]) for n in names if n in stated and n in known)


def _differences(stated: Shape, known: Shape) -> str:
    """``layers is 16 in the files and 32 there``; '' where the telling fields agree."""
    apart = [n for n in TELLING if n in stated and n in known and not _same(n, stated[n], known[n])]
    told = [f"{n} is {show(stated[n])} in the files and {show(known[n])} there" for n in apart[:3]]
    return " and ".join(told)


def _number(shape: Shape, name: str) -> int:
    value = shape.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _usual(shape: Shape, notes: list[str]) -> None:
    """Fill what follows from other fields or is nearly always so, and say the latter."""
    hidden, heads, ffn = (_number(shape, name) for name in ("hidden", "heads", "ffn"))
    if shape.get("attention") != "mla" and heads and hidden:
        shape.setdefault("head_dim", max(1, hidden // heads))
        shape.setdefault("kv_heads", 1 if shape.get("attention") == "mqa" else heads)
    if "gated" not in shape and (ffn or _number(shape, "experts")):
        shape["gated"] = ffn != 4 * hidden
        kind = "gated (SwiGLU)" if shape["gated"] else "plain, as an inner width of 4 h shows"
        notes.append(f"model.gated is not said: the feed-forward block is taken to be {kind}")
    if _number(shape, "experts") and not _number(shape, "moe_ffn") and ffn:
        shape["moe_ffn"] = ffn
    if _number(shape, "shared_experts") and "shared_ffn" not in shape:
        shape["shared_ffn"] = _number(shape, "shared_experts") * _number(shape, "moe_ffn")


def _missing(shape: Shape) -> list[str]:
    found = [name for name in NEEDED if not _number(shape, name)]
    if _number(shape, "experts"):
        found += [name for name in ("top_k", "moe_ffn") if not _number(shape, name)]
    elif not _number(shape, "ffn"):
        found.append("ffn")
    if shape.get("attention") == "mla":
        names = ("kv_lora_rank", "qk_nope", "qk_rope", "v_head")
        found += [name for name in names if not _number(shape, name)]
    return found


def build(shape: Shape, name: str) -> Architecture:
    """The architecture of complete fields.

    Raises ModelError where the numbers are no model.
    """
    layers, hidden = _number(shape, "layers"), _number(shape, "hidden")
    if not (1 <= layers <= 10_000 and 1 <= hidden <= 10_000_000):
        raise ModelError(f"{layers} layers of width {hidden}: no model that can be priced")
    attention = _attention(shape)
    dense = FeedForward(
        width=max(1, _number(shape, "ffn")),
        gated=bool(shape.get("gated", True)),
        bias=bool(shape.get("bias", False)),
    )
    layer = Layer(attention=attention, feed_forward=dense)
    runs: tuple[LayerRun, ...] = (LayerRun(layer=layer, count=layers),)
    if _number(shape, "experts"):
        runs = _with_experts(shape, attention, dense, layers)
    learned = shape.get("positions") == "learned"
    return Architecture(
        name=name, model_type="job", hidden=hidden, vocab=_number(shape, "vocab"), runs=runs,
        max_positions=0, tied_embeddings=bool(shape.get("tied", False)),
        learned_positions=_number(shape, "positions_table") or 2048 if learned else 0,
        norm_bias=bool(shape.get("bias", False)),
        mtp_layers=min(_number(shape, "mtp"), layers), source="the files of the job",
    )  # fmt: skip


def _with_experts(
    shape: Shape, attention: Attention, dense: FeedForward, layers: int
) -> tuple[LayerRun, ...]:
    sparse = FeedForward(
        width=_number(shape, "moe_ffn"), gated=bool(shape.get("gated", True)),
        bias=bool(shape.get("bias", False)),
        experts=_number(shape, "experts"), experts_per_token=_number(shape, "top_k"),
        shared_width=_number(shape, "shared_ffn"), router=RouterKind.SOFTMAX,
    )  # fmt: skip
    leading = min(_number(shape, "dense_layers"), layers - 1)
    rest = LayerRun(layer=Layer(attention=attention, feed_forward=sparse), count=layers - leading)
    if not leading:
        return (rest,)
    return (LayerRun(layer=Layer(attention=attention, feed_forward=dense), count=leading), rest)


def _attention(shape: Shape) -> Attention:
    heads = _number(shape, "heads")
    bias, qk_norm = bool(shape.get("bias", False)), bool(shape.get("qk_norm", False))
    if shape.get("attention") == "mla":
        nope, rope = _number(shape, "qk_nope"), _number(shape, "qk_rope")
        return Attention(
            kind=AttentionKind.LATENT, heads=heads, kv_heads=heads, head_dim=nope + rope,
            value_dim=_number(shape, "v_head"), q_lora_rank=_number(shape, "q_lora_rank") or None,
            kv_lora_rank=_number(shape, "kv_lora_rank"), rope_dim=rope,
        )  # fmt: skip
    width = _number(shape, "head_dim")
    return Attention(
        kind=AttentionKind.GROUPED, heads=heads, kv_heads=max(1, _number(shape, "kv_heads")),
        head_dim=width, value_dim=width, window=_number(shape, "window") or None,
        qkv_bias=bias, out_bias=bias, qk_norm=qk_norm,
    )  # fmt: skip


def _dressed(built: Architecture, known: Architecture | None) -> Architecture:
    """What fields cannot say (sinks, indexers, groups of experts), from the model of that name."""
    if known is None or known.layers < 1:
        return built
    same = {_key(run.layer): run.layer for run in known.runs}
    runs = tuple(replace(run, layer=same.get(_key(run.layer), run.layer)) for run in built.runs)
    return replace(built, runs=runs)


def _key(layer: Layer) -> tuple[object, ...]:
    a, f = layer.attention, layer.feed_forward
    return (
        a.kind, a.heads, a.kv_heads, a.head_dim, f.width, f.gated, f.experts, f.experts_per_token,
        f.shared_width,
    )  # fmt: skip
