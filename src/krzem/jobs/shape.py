"""Shapes of models as code of the Llama family names them (``dim``, ``n_layers``, ``n_heads``)."""

from __future__ import annotations

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.tree import (
    KEPT,
    Entry,
    Read,
    Tree,
    UnclearError,
    count,
    positive,
    real,
    settle,
    size_of,
    some,
    truth_of,
    unset,
    yes_no,
)

LLAMA: dict[str, Read] = {
    "dim": count("model.hidden"),
    "n_layers": count("model.layers"),
    "n_heads": count("model.heads"),
    "n_kv_heads": positive("model.kv_heads"),
    "head_dim": positive("model.head_dim"),
    "vocab_size": positive("model.vocab"),
    "hidden_dim": positive("model.ffn"),
    "ffn_hidden_dim": positive("model.ffn"),
    "inter_dim": positive("model.ffn"),
    "moe_inter_dim": positive("model.moe_ffn"),
    "moe_args.num_experts": some("model.experts", 2),
    "moe_args.num_shared_experts": some("model.shared_experts"),
    "moe_args.top_k": positive("model.top_k"),
    "num_experts": some("model.experts", 2),
    "moe_top_k": KEPT,
    "n_dense_layers": some("model.dense_layers"),
    "q_lora_rank": positive("model.q_lora_rank"),
    "kv_lora_rank": positive("model.kv_lora_rank"),
    "qk_nope_head_dim": positive("model.qk_nope"),
    "qk_rope_head_dim": positive("model.qk_rope"),
    "v_head_dim": positive("model.v_head"),
    "qk_norm": yes_no("model.qk_norm"),
    "enable_weight_tying": yes_no("model.tied"),
    "tie_embeddings": yes_no("model.tied"),
    "weight_tying": yes_no("model.tied"),
    "ffn_dim_multiplier": KEPT,
    "multiple_of": KEPT,
    "moe_enabled": KEPT,
}
"""Keys of a table of model arguments."""


def read_shape(tree: Tree, job: JobBuilder, *, llama: bool = True) -> None:
    """Settle a model's shape from a table; ``llama``: gated, rotary, widths by multiplier."""
    for key, entry in tree.entries.items():
        read = LLAMA.get(key)
        if read is not None and not _dense(tree, key):
            settle(entry, read, job)
    place = tree.place("dim", "n_layers")
    heads, hidden = job.number("model.heads"), job.number("model.hidden")
    if heads is None or hidden is None:
        return
    if llama:
        job.default("model.kv_heads", heads, "every head has its own keys and values")
        job.default("model.gated", True, "SwiGLU")
        job.default("model.positions", "rope", "rotary positions")
    if hidden % heads == 0 and job.number("model.kv_lora_rank") is None:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}", place)
    if job.number("model.kv_lora_rank"):
        job.derive("model.attention", "mla", "keys and values have a latent rank", place)
    if llama and job.number("model.ffn") is None:
        _inner_width(tree, job, hidden)
    _experts(job)


def _dense(tree: Tree, key: str) -> bool:
    """Experts of a model that says it has none."""
    return key.startswith("moe") and truth_of(tree, "moe_enabled") is False


def _inner_width(tree: Tree, job: JobBuilder, hidden: int) -> None:
    """2/3 of 4h, times the multiplier, up to a multiple of 256."""
    value = tree.value("ffn_dim_multiplier")
    width, factor = int(2 * 4 * hidden / 3), 1.0
    if not unset(value):
        try:
            factor = real(value)
        except UnclearError:
            return
    width = int(factor * width) if not unset(value) else width
    step = size_of(tree, "multiple_of") or 256
    job.derive("model.ffn", step * -(-width // step),
               f"8/3 * {hidden} * {factor:g} up to a multiple of {step}",
               tree.place("ffn_dim_multiplier", "multiple_of", "dim"))  # fmt: skip


def _experts(job: JobBuilder) -> None:
    if job.number("model.experts") is None:
        return
    job.default("model.dense_layers", 0, "every layer has experts")
    shared, width = job.number("model.shared_experts"), job.number("model.moe_ffn")
    if shared is not None and width is not None:
        job.derive("model.shared_ffn", shared * width, f"{shared} * {width}")


def table_of(arguments: object, place: Place, prefix: str = "") -> Tree:
    """The leaves of a table that stands inside a value (a mapping of plain values)."""
    tree = Tree()
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            tree.put(Entry(key=f"{prefix}{key}", value=value, place=place))
    return tree
