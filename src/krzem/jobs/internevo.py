"""InternEvo: one Python file of assignments whose dictionaries hold the run.

The file is read, not run: constants, arithmetic, names and ``dict(...)``.  What the keys mean is
that of ``internlm/core/parallel`` and the comments that InternEvo's own configurations carry.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping

from krzem.errors import DataError, InputError
from krzem.jobs.documents import Lines, check_size
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Entry,
    Open,
    Table,
    Tree,
    apply,
    count,
    fall_back,
    number,
    positive,
    some,
    switch,
    truth_of,
    word_of,
    words,
)

ENGINE = "internevo"
_MARKS = (r"^parallel\s*=\s*dict\(", r"^data\s*=\s*dict\(", r"\bmicro_num\s*=", r"\bmicro_bsz\s*=")
_TYPES = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.half": "fp16",
          "torch.float32": "fp32", "torch.tf32": "fp32"}  # fmt: skip
_TABLE = Table(
    keys={
        "data.seq_len": count("seq"), "data.micro_bsz": count("mbs"),
        "data.micro_num": count("accumulation"), "data.total_steps": positive("train_steps"),
        "model.num_layers": count("model.layers"), "model.hidden_size": count("model.hidden"),
        "model.num_attention_heads": count("model.heads"),
        "model.num_kv_attention_heads": count("model.kv_heads"),
        "model.vocab_size": count("model.vocab"), "model.mlp_ratio": KEPT,
        "model.multiple_of": KEPT, "model.num_chunks": KEPT, "model.checkpoint": KEPT,
        "model.dtype": words("precision", _TYPES), "model.num_experts": some("model.experts", 2),
        "moe.top_k": positive("model.top_k"),
        "model.use_flash_attn": switch("attention", "fused", "eager"),
        "parallel.pipeline": KEPT, "parallel.pipeline.size": count("pp"),
        "parallel.tensor": KEPT, "parallel.tensor.size": KEPT, "parallel.tensor.mode": KEPT,
        "parallel.weight.size": KEPT, "parallel.zero1": KEPT, "parallel.zero1.size": KEPT,
        "parallel.zero1.fsdp": KEPT, "parallel.expert.size": positive("ep"),
        "hybrid_zero_optimizer.overlap_sync_grad": switch("overlap-grad-reduce"),
        "hybrid_zero_optimizer.overlap_sync_param": switch("overlap-param-gather"),
    },
    ignored=(
        r"(ckpt|grad_scaler|loss|adam|lr_scheduler|beta2_scheduler|monitor|generation|data|model"
        r"|hybrid_zero_optimizer|moe|parallel\.(pipeline|weight|expert.*))(\..*)?",
        r"[A-Z_0-9]+|(model_type|cudnn_.*|use_.*|enable_.*|.*_bench|tensorboard.*|expert_.*)",
    ),
)  # fmt: skip
_DEFAULTS: Defaults = {
    "tp": (1, "parallel.tensor is 1"),
    "pp": (1, "parallel.pipeline is 1"),
    "cp": (1, "sequences are not cut for attention"),
    "ep": (1, "parallel.expert is 1"),
    "zero": (1, "zero1.size is that of the data-parallel group"),
    "sp": (False, "tensor mode mtp keeps whole sequences"),
    "optimizer": ("adamw", "adam is AdamW"),
    "offload": (False, "states stay on the device"),
    "finetune": ("none", "all weights are trained"),
    "recompute": ("none", "model.checkpoint is false"),
    "model.gated": (True, "SwiGLU"),
    "model.tied": (False, "embedding and head are two tensors"),
    "model.positions": ("rope", "rotary positions"),
    "switch.compile": ("off", "layers are not compiled"),
}


def claim(sources: Sources) -> Claim | None:
    """A Python file with InternEvo's dictionaries."""
    name = _file(sources)
    return None if name is None else Claim(
        engine=ENGINE, strength=80, why=f"InternEvo's data, model and parallel in {name}"
    )  # fmt: skip


def _file(sources: Sources) -> str | None:
    return sources.first(lambda t: all(re.search(mark, t, re.M) for mark in _MARKS), ".py")


def read(sources: Sources, job: JobBuilder) -> None:
    """The dictionaries of the file; the machine from the launcher."""
    name = _file(sources)
    if name is None:
        raise InputError("no given file is a configuration of InternEvo")
    tree = tree_of_module(sources.files[name], name)
    apply(tree, _TABLE, job)
    start = next(iter(starts_of(sources).find(r"train\.py$")), None)
    state_machine(job, start, sources)
    _shape(tree, job)
    _ranks(tree, job)
    _checkpoints(tree, job)
    fall_back(job, _DEFAULTS)
    describe(sources, job)


def _shape(tree: Tree, job: JobBuilder) -> None:
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    ratio, unit = tree.value("model.mlp_ratio"), number(tree, "model.multiple_of") or 256
    if hidden and isinstance(ratio, int | float) and 0 < ratio < 100:
        width = -(-int(hidden * ratio) // unit) * unit
        why = f"{ratio:.4g} * {hidden} in multiples of {unit}"
        job.derive("model.ffn", width, why, tree.place("model.mlp_ratio"))
        if job.number("model.experts"):
            job.derive("model.moe_ffn", width, "an expert is as wide as a layer without")
    if hidden and heads and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
        job.default("model.kv_heads", heads, "num_kv_attention_heads is that of the queries")


def _ranks(tree: Tree, job: JobBuilder) -> None:
    """Tensor, sequence and weight parallelism; ZeRO by the size of its group."""
    size = number(tree, "parallel.tensor.size", "parallel.tensor")
    mode = (word_of(tree, "parallel.tensor.mode") or "mtp").lower()
    place = tree.place("parallel.tensor.size", "parallel.tensor")
    if size and mode == "isp":
        job.derive("cp", size, "isp cuts sequences and gathers heads", place)
        if size > 1:
            job.derive("cpkind", "a2a", "isp exchanges heads", place)
    elif size:
        job.state("tp", size, place)
        job.derive("sp", mode in ("msp", "fsp") and size > 1, f"tensor mode {mode}", place)
    weight = number(tree, "parallel.weight.size")
    if mode == "isp" and weight and weight > 1:
        job.derive("zero", 3, f"weights are gathered from {weight} ranks",
                   tree.place("parallel.weight.size"))  # fmt: skip
        job.note("weight parallelism is priced as ZeRO 3 over all ranks")
        return
    if truth_of(tree, "parallel.zero1.fsdp"):
        job.state("zero", 3, tree.place("parallel.zero1.fsdp"))
        return
    group = number(tree, "parallel.zero1.size", "parallel.zero1")
    at = tree.place("parallel.zero1.size", "parallel.zero1")
    if group is not None:
        job.derive("zero", 0 if group == 1 else 1, f"zero1.size is {group}", at)
        if group > 1:
            job.derive("shard", group, f"zero1.size is {group}", at)
    pp = number(tree, "parallel.pipeline")
    if pp:
        job.state("pp", pp, tree.place("parallel.pipeline"))


def _checkpoints(tree: Tree, job: JobBuilder) -> None:
    """``checkpoint`` is a truth, or the share of layers; ``num_chunks`` interleaves."""
    share, place = tree.value("model.checkpoint"), tree.place("model.checkpoint")
    if isinstance(share, bool) or share in (0, 1, 0.0, 1.0):
        job.state("recompute", "full" if share else "none", place)
    elif isinstance(share, float) and 0 < share < 1:
        job.state("recompute", "full", place)
        layers, pp = job.number("model.layers"), job.number("pp") or 1
        if layers:
            held = max(1, int(layers * share) // pp)
            job.derive("rlayers", held, f"{share:g} of {layers} layers on {pp} stages", place)
    chunks = number(tree, "model.num_chunks")
    if chunks and (job.number("pp") or 1) > 1:
        job.state("vpp", chunks, tree.place("model.num_chunks"))
        kind = "interleaved" if chunks > 1 else "1f1b"
        job.derive("schedule", kind, f"num_chunks is {chunks}", tree.place("model.num_chunks"))
    else:
        job.default("vpp", 1, "no pipeline")
        job.default("schedule", "1f1b", "no pipeline")


# -- a module of assignments as a tree

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip
_DEEPEST = 20


def tree_of_module(text: str, file: str) -> Tree:
    """The assignments of a module; values that arithmetic does not decide are open.

    Raises DataError for what is no Python.
    """
    check_size(text, file)
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{file}: this is no Python file ({error})") from None
    tree, lines = Tree(), Lines(file, text)
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name):
            for key, value in _leaves(target.id, node.value, 0):
                found = _valued(value, tree, 0)
                place = lines.place(value.lineno)
                tree.put(Entry(key=key, value=found, place=place))
    return tree


def _leaves(name: str, node: ast.expr, depth: int) -> Iterator[tuple[str, ast.expr]]:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if called and isinstance(node, ast.Call) and depth < _DEEPEST:
        assert isinstance(node.func, ast.Name)
        if node.func.id == "dict":
            for word in node.keywords:
                if word.arg is not None:
                    yield from _leaves(f"{name}.{word.arg}", word.value, depth + 1)
            return
    yield name, node


def _valued(node: ast.expr, tree: Tree, depth: int) -> object:
    """A constant, a name that stands before, an entry of a dictionary, or their arithmetic."""
    if depth > _DEEPEST:
        return Open("…")
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in tree.entries:
        return tree.entries[node.id].value
    if isinstance(node, ast.Subscript):
        inner = f"{ast.unparse(node.value)}.{ast.unparse(node.slice).strip(chr(39))}"
        return tree.entries[inner].value if inner in tree.entries else Open(ast.unparse(node))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        found = _valued(node.operand, tree, depth + 1)
        return -found if isinstance(found, int | float) else Open(ast.unparse(node))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_valued(part, tree, depth + 1) for part in (node.left, node.right))
        try:
            if isinstance(left, int | float) and isinstance(right, int | float):
                return _OPERATORS[type(node.op)](left, right)
        except (ArithmeticError, ValueError):
            pass
    return Open(ast.unparse(node)[:80])


READERS = (Reader(kind="InternEvo", engines=(ENGINE,), claim=claim, read=read),)
