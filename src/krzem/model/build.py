"""Reads a config into an architecture, by the description of its family."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from krzem.errors import ModelError, nearest, shorten
from krzem.model.architecture import (
    NO_ATTENTION,
    NO_NETWORK,
    Architecture,
    Attention,
    AttentionKind,
    Cut,
    FeedForward,
    Indexer,
    Layer,
    LayerRun,
    Matrix,
    Recurrence,
    RecurrenceKind,
    RouterKind,
)
from krzem.model.config_file import Scope, load_config, unread_notes
from krzem.model.description import (
    MAX_EXPERTS,
    MAX_LAYERS,
    Description,
    Fields,
    describe,
    described_types,
    show,
)

MAX_ELEMENTS = 2**48
"""Weights that no part of a real model comes near."""
_CUTS = {"outputs": Cut.OUTPUTS, "inputs": Cut.INPUTS, "whole": Cut.WHOLE}


def build(fields: Fields, description: Description) -> Architecture:
    """The architecture of the config in ``fields``.

    Raises ModelError with the arithmetic where the config contradicts itself.
    """
    scope = Scope(fields, description)
    _refuse(scope, description.refuse)
    for rule in description.divide:
        if scope.flag("divide", rule["when"]):
            part, whole = (scope.count(rule[k], rule[k], low=1) for k in ("part", "whole"))
            fields.divides(rule["part"], part, rule["whole"], whole)
    model = _Table(scope, "model")
    scope.layers = model.count("layers", low=1)
    if scope.layers > MAX_LAYERS:
        fields.fail(f"{scope.layers} layers; it has to lie between 1 and {MAX_LAYERS}")
    _check_words(scope)
    known: dict[str, Layer] = {}
    layers = [_layer(scope, i, known) for i in range(scope.layers)]
    return _assembled(scope, model, layers)


def _refuse(scope: Scope, rules: Iterable[dict[str, str]]) -> None:
    for rule in rules:
        if scope.flag("refuse", rule["when"]):
            scope.fields.fail(scope.told(rule["because"]))


def _assembled(scope: Scope, model: _Table, layers: list[Layer]) -> Architecture:
    scope.layer = 0
    hidden, vocab = model.count("hidden", low=1), model.count("vocab", low=1)
    rows = model.count("vocab_rows", low=1)
    mtp = model.count("mtp")
    after = _layer(scope, scope.layers, {}) if mtp and model.flag("mtp_next") else layers[-1]
    scope.layer = 0
    return Architecture(
        name=scope.fields.name,
        model_type=scope.fields.model_type,
        hidden=hidden,
        vocab=vocab,
        runs=tuple(
            LayerRun(layer=layer, count=sum(1 for _ in same)) for layer, same in groupby(layers)
        ),
        max_positions=model.count("positions", low=1),
        tied_embeddings=model.flag("tied"),
        learned_positions=model.count("learned_positions"),
        norm_bias=model.flag("norm_bias"),
        embedding_width=model.optional("embedding_width"),
        final_norms=model.count("final_norms"),
        outside_matrices=model.elements("matrices"),
        outside_tables=model.elements("tables") + (rows - vocab) * hidden,
        outside_vectors=model.elements("vectors"),
        hyper_connections=model.count("streams", low=1),
        streams_mix=model.flag("streams_mix"),
        particular=scope.description.particular,
        mtp_layers=mtp,
        mtp_layer=after if mtp else None,
        notes=unread_notes(scope),
    )


class _Table:
    """One table of a description, read for the layer that the scope is at."""

    def __init__(self, scope: Scope, name: str) -> None:
        self.scope = scope
        self.name = name
        self.keys = scope.description.table(name)

    def count(self, key: str, *, low: int = 0) -> int:
        return self.scope.count(f"{self.name}.{key}", self.keys[key], low=low)

    def elements(self, key: str) -> int:
        """A number of weights, which may be larger than any width."""
        return self.scope.count(f"{self.name}.{key}", self.keys[key], high=MAX_ELEMENTS)

    def flag(self, key: str) -> bool:
        return self.scope.flag(f"{self.name}.{key}", self.keys[key])

    def optional(self, key: str) -> int | None:
        return self.scope.optional(f"{self.name}.{key}", self.keys[key])

    def matrices(self) -> tuple[Matrix, ...]:
        """The listed matrices that this layer has."""
        found = []
        for rows, columns, cut, *number in self.keys["matrices"]:
            where = f"{self.name}.matrices"
            times = self.scope.count(where, number[0]) if number else 1
            if times:
                sizes = (self.scope.count(where, size) for size in (rows, columns))
                inputs, outputs = sizes
                found.append(Matrix(inputs=inputs, outputs=outputs, cut=_CUTS[cut], count=times))
        return tuple(found)


def _check_words(scope: Scope) -> None:
    known = scope.description.table("words")
    for name in known:
        fields, names = scope.fields, (name, *scope.description.aliases.get(name, ()))
        words = [word for other in names for word in known.get(other, ())]
        key = next((n for n in names if fields.raw.get(n) is not None), name)
        fields.per_layer(key, scope.layers, words)


def _layer(scope: Scope, index: int, known: dict[str, Layer]) -> Layer:
    """The layer at ``index``; ``known`` holds those that were built, by their signatures."""
    scope.layer = index
    signature = scope.signature()
    if signature not in known:
        known[signature] = _built(scope)
    return known[signature]


def _built(scope: Scope) -> Layer:
    _refuse(scope, scope.description.disagree)
    layer, attention = _Table(scope, "layer"), _Table(scope, "attention")
    recurrence, network = _Table(scope, "recurrence"), _Table(scope, "network")
    return Layer(
        attention=_attention(attention) if attention.flag("when") else NO_ATTENTION,
        recurrence=_recurrence(recurrence) if recurrence.flag("when") else None,
        feed_forward=_network(network) if network.flag("when") else NO_NETWORK,
        norms=layer.count("norms"),
        vectors=layer.elements("vectors"),
        matrices=layer.matrices(),
        reuses=layer.flag("reuses"),
    )


def _attention(table: _Table) -> Attention:
    kind = AttentionKind(table.keys["kind"])
    heads, groups = table.count("heads", low=1), table.count("kv_heads", low=1)
    fields = table.scope.fields
    if kind is AttentionKind.GROUPED:
        fields.divides("num_key_value_heads", groups, "num_attention_heads", heads)
    width, rope = table.count("head_dim", low=1), table.optional("rope")
    if rope and rope > width:
        fields.fail(f"qk_rope_head_dim = {rope} exceeds head_dim = {width}")
    return Attention(
        kind=kind,
        heads=heads,
        kv_heads=heads if kind is AttentionKind.LATENT else groups,
        head_dim=width,
        value_dim=table.count("value_dim", low=1),
        q_lora_rank=table.optional("q_rank"),
        kv_lora_rank=table.optional("kv_rank"),
        rope_dim=rope,
        window=table.optional("window"),
        chunk=table.optional("chunk"),
        compression=table.optional("compression"),
        output_groups=table.optional("output_groups"),
        output_lora_rank=table.optional("output_rank"),
        indexer=_indexer(table),
        qkv_bias=table.flag("qkv_bias"),
        out_bias=table.flag("out_bias"),
        qk_norm=table.flag("qk_norm"),
        sinks=table.flag("sinks"),
        shares_kv=table.flag("shares_kv"),
        values_are_keys=table.flag("values_are_keys"),
        input_width=table.optional("input"),
        matrices=table.matrices(),
        vectors=table.elements("vectors"),
    )


def _indexer(table: _Table) -> Indexer | None:
    heads = table.count("index_heads")
    if not heads:
        return None
    return Indexer(
        heads=heads,
        head_dim=table.count("index_dim", low=1),
        topk=table.count("index_topk", low=1),
        shared=table.flag("index_shared"),
    )


def _recurrence(table: _Table) -> Recurrence:
    heads, groups = table.count("heads", low=1), table.count("key_heads", low=1)
    table.scope.fields.divides("the key heads of the recurrence", groups, "its heads", heads)
    return Recurrence(
        kind=RecurrenceKind(table.keys["kind"]),
        heads=heads,
        key_heads=groups,
        key_dim=table.count("key_dim", low=1),
        value_dim=table.count("value_dim", low=1),
        conv_channels=table.count("conv_channels"),
        conv_taps=table.count("conv_taps"),
        vectors=table.elements("vectors"),
        chunk=table.count("chunk", low=1),
        matrices=table.matrices(),
    )


def _network(table: _Table) -> FeedForward:
    if not table.flag("sparse"):
        return FeedForward(
            width=table.count("width", low=1),
            gated=table.flag("gated"),
            bias=table.flag("bias"),
            matrices=table.matrices(),
            vectors=table.elements("vectors"),
        )
    experts, per_token = table.count("experts", low=1), table.count("per_token", low=1)
    groups, reach = _groups(table, experts)
    zero = table.count("zero_experts")
    within = experts // groups * reach + zero
    if experts > MAX_EXPERTS or per_token > within:
        limit = f" in the {reach} of {groups} groups a token may reach" if groups > 1 else ""
        table.scope.fields.fail(
            f"num_experts_per_tok = {per_token} exceeds the {within} experts{limit}"
        )
    return FeedForward(
        width=table.count("expert_width", low=1),
        gated=table.flag("gated"),
        bias=table.flag("expert_bias"),
        experts=experts,
        experts_per_token=per_token,
        shared_width=table.count("shared_width"),
        shared_gate=table.flag("shared_gate"),
        router=_router(table),
        router_bias=table.flag("router_bias"),
        expert_groups=groups,
        groups_per_token=reach,
        zero_experts=zero,
        input_width=table.optional("expert_input"),
        router_width=table.optional("router_input"),
        matrices=table.matrices(),
        vectors=table.elements("vectors"),
    )


def _router(table: _Table) -> RouterKind:
    text: Any = table.keys["router"]
    kinds = {kind.value: kind for kind in RouterKind}
    word = text if text in kinds else table.scope.value("network.router", text)
    if not isinstance(word, str) or word not in kinds:
        table.scope.fields.fail(
            f"the router is {show(word)}; supported: {', '.join(sorted(kinds))}"
        )
    return kinds[word]


def _groups(table: _Table, experts: int) -> tuple[int, int]:
    groups = table.optional("groups") or 1
    reach = table.optional("groups_per_token") or groups
    table.scope.fields.divides("n_group", groups, "the number of experts", experts)
    if reach > groups:
        table.scope.fields.fail(f"topk_group = {reach} exceeds n_group = {groups}")
    return groups, reach


# Reads a Hugging Face ``config.json`` into an Architecture
# ---------------------------------------------------------

WRAPPED = ("text_config", "llm_config", "language_config")
"""Names under which multimodal configs hold that of their language model."""


def read_config(
    config: str | os.PathLike[str] | Mapping[str, object],
    name: str | None = None,
    *,
    source: str | None = None,
) -> Architecture:
    """The architecture that a config describes.

    ``config`` is the path of a ``config.json``, of a folder holding one, or the object itself.
    A field that the ``transformers`` class can do without may be missing; a field that decides a
    width or a count has to be there, because a silent default would plan another model.  Of a
    multimodal config the language model is read.  ``notes`` of the result says what was taken for
    granted, left out or not read.  ``source`` says where a config given as an object comes from.

    Raises:
        DataError: the file cannot be read as a JSON object.
        ModelError: unknown ``model_type``, a type that is refused for its structure, a missing
            field, or fields that contradict each other.
    """
    if isinstance(config, Mapping):
        return _read(config, name or "the given object", source or "")
    raw, file = load_config(config)
    return _read(raw, name or _name_of(file), source or str(file))


@cache
def supported_types() -> tuple[str, ...]:
    """Every ``model_type`` that can be read."""
    return tuple(name for name in described_types() if not describe(name).structure)


def _read(raw: Mapping[str, object], name: str, source: str) -> Architecture:
    inner = _inner(raw)
    if inner is not None:
        return replace(_unwrapped(raw, inner, name), source=source)
    description = _description(raw, name)
    fields = Fields(raw, name=name, model_type=description.model_type)
    if description.structure:
        fields.fail(f"models of this type are not read: {description.structure}")
    return replace(build(fields, description), source=source)


def _description(raw: Mapping[str, object], name: str) -> Description:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in described_types():
        _refuse_config(name, model_type)
    return describe(model_type)


def _inner(raw: Mapping[str, object]) -> str | None:
    """The field that holds the config of a wrapped language model."""
    if raw.get("model_type") in described_types() and not describe(str(raw["model_type"])).text:
        return None
    return next((key for key in WRAPPED if isinstance(raw.get(key), Mapping)), None)


def _unwrapped(raw: Mapping[str, object], key: str, name: str) -> Architecture:
    """The language model inside a multimodal config."""
    outer, given = raw.get("model_type"), raw[key]
    assert isinstance(given, Mapping)
    known = describe(outer) if isinstance(outer, str) and outer in described_types() else None
    inner = dict(given)
    if known is not None:
        inner.setdefault("model_type", known.text)
    if raw.get("tie_word_embeddings") is not None and (known is None or known.tower_ties):
        inner["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if _inner(inner) is not None:
        raise ModelError(f"config of {shorten(name)}: {key!r} wraps another config")
    arch = _read(inner, name, "")
    towers = sorted(k for k, v in raw.items() if isinstance(v, Mapping) and _is_tower(k, key))
    left = f"; left out of parameters and step: {', '.join(towers)}" if towers else ""
    note = f"the language model of {show(outer)}, from its {key!r}{left}"
    return replace(arch, notes=(note, *arch.notes))


def _is_tower(key: str, text: str) -> bool:
    return key != text and key.endswith("_config") and key != "quantization_config"


def _refuse_config(name: str, model_type: object) -> NoReturn:
    where = f"config of {shorten(name)}"
    if model_type is None:
        raise ModelError(f"{where}: the field 'model_type' is missing; docs/models.md lists them")
    close = nearest(model_type, described_types()) if isinstance(model_type, str) else ()
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ModelError(
        f"{where}: unknown model_type {show(model_type)}.{hint} {len(supported_types())} types are "
        "read: docs/models.md lists them and says how to add one"
    )


def _name_of(file: Path) -> str:
    parent = file.absolute().parent.name
    return parent if file.name == "config.json" and parent else file.stem
