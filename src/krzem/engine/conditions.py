"""What engine descriptions are made of: conditions, and the numbers of a design.

Conditions are a small language that says when something is legal: ``zero >= 2 and pp > 1``,
``dispatcher in ('deepep', 'hybridep')``, ``not moe or ep > 1``: names, numbers, strings in single
quotes, comparisons, ``in`` with a tuple, ``and``, ``or``, ``not``, ``+ - * // %``.  A name stands
for one value or for an array with a value for every layout, so that one condition judges a block of
layouts at once.  Nothing else is accepted and nothing is executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np

from krzem.errors import DataError, shorten

Array = Any
Values = Mapping[str, Any]
"""What names stand for: numbers, strings or booleans, or arrays of them."""
Condition = Callable[[Values], Any]

LONGEST = 2_000
"""Characters of a condition."""


def _divisor(value: Any) -> Any:
    """Dividing by zero is dividing by one: a degree of 0 stands for one that is not set."""
    return np.where(value == 0, 1, value) if isinstance(value, np.ndarray) else value or 1


_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: lambda a, b: a // _divisor(b), ast.Mod: lambda a, b: a % _divisor(b),
}  # fmt: skip


@cache
def compiled(text: str) -> Condition:
    """The condition that ``text`` states.

    Raises DataError with the part that the language does not have.
    """
    if len(text) > LONGEST:
        raise DataError(f"a condition of {len(text):,} characters is too long ({LONGEST:,})")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"condition {shorten(text)!r} cannot be read: {error}") from None
    return _compile(tree.body, text)


@cache
def names_in(text: str) -> frozenset[str]:
    """The names that a condition speaks of."""
    return frozenset(n.id for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Name))


def holds(text: str, values: Values) -> Any:
    """Whether ``text`` holds: a bool, or an array of them.

    Raises DataError for a name that ``values`` does not have.
    """
    try:
        return compiled(text)(values)
    except KeyError as error:
        raise DataError(f"condition {shorten(text)!r}: no value is known for {error}") from None


def _compile(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return lambda _: value
        case ast.Name(id=name):
            return lambda values: values[name]
        case ast.BoolOp(op=op, values=parts):
            return _joined(isinstance(op, ast.And), [_compile(p, text) for p in parts])
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return _negated(_compile(inner, text))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _compile(inner, text)
            return lambda values: -number(values)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            return _binary(_ARITHMETIC[type(sign)], _compile(left, text), _compile(right, text))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(left, ops, others, text)
    raise DataError(f"condition {shorten(text)!r}: {ast.unparse(node)!r} is not in its language")


def _joined(all_of: bool, parts: list[Condition]) -> Condition:
    def judge(values: Values) -> Any:
        found: Any = all_of
        for part in parts:
            one = part(values)
            if isinstance(found, bool):
                if found is not all_of:
                    return found
                found = _truth(one)
            else:
                found = (found & _truth(one)) if all_of else (found | _truth(one))
        return found

    return judge


def _truth(found: Any) -> Any:
    """A bool or an array of them: a number is true where it is not zero."""
    if not isinstance(found, np.ndarray):
        return bool(found)
    return found if found.dtype == bool else found != 0


def _negated(inner: Condition) -> Condition:
    def judge(values: Values) -> Any:
        found = inner(values)
        return np.logical_not(found) if isinstance(found, np.ndarray) else not found

    return judge


def _binary(sign: Callable[[Any, Any], Any], a: Condition, b: Condition) -> Condition:
    return lambda values: sign(a(values), b(values))


def _compared(left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], text: str) -> Condition:
    pairs: list[Condition] = []
    before = left
    for op, after in zip(ops, others, strict=True):
        pairs.append(_pair(before, op, after, text))
        before = after
    return pairs[0] if len(pairs) == 1 else _joined(True, pairs)


def _pair(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Condition:
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple):
        inside = _member(_compile(left, text), [_compile(e, text) for e in right.elts])
        return inside if isinstance(op, ast.In) else _negated(inside)
    if type(op) not in _COMPARE:
        raise DataError(f"condition {shorten(text)!r}: {type(op).__name__} is not in its language")
    return _binary(_COMPARE[type(op)], _compile(left, text), _compile(right, text))


def _member(value: Condition, members: list[Condition]) -> Condition:
    def judge(values: Values) -> Any:
        found = value(values)
        inside: Any = False
        for member in members:
            inside = inside | (found == member(values))
        return inside

    return judge


# What an engine's design does with the hardware, as numbers that time and memory depend on
# -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One engine at one date under one set of switches."""

    fits: str
    """Key of its calibrated factor in ``facts/coefficients.json``."""
    elementwise: float
    """Memory traffic of element-wise work over the fused minimum."""
    host_us: float
    """Host time per kernel launch, microseconds."""
    gap_us: float
    """Idle time between kernels, microseconds."""
    launch: float = 1.0
    """Share of launches that still come from the host (below 1: recorded graphs)."""
    expert_launch: float = 0.0
    """The same of the experts where it is more: graphs of parts of layers leave them out."""
    host_waits: float = 1.0
    """1 where the host must learn how many tokens each expert was sent, else 0."""
    fetch_ms: float = 0.0
    """Host time to fetch and release the sharded weights of one module, each pass."""
    expert_cast_bytes: float = 6.0
    """Traffic per operand element of experts to quantise it, in kernels of its own: read for the
    scale, read again, written along rows and columns (Transformer Engine's grouped layers)."""
    turn_ms: float = 0.5
    """Host time of the pipeline engine per micro-batch and chunk, forward and backward together."""
    cut_turn_ms: float = 0.0
    """The same, further, where activations are cut over tensor-parallel ranks."""
    tp_overlap: float = 0.0
    """Share of tensor-parallel communication that runs beside products."""
    tp_backward: float = 0.0
    """Share of backward tensor-parallel communication beside the weight products."""
    reduce_overlap: float = 0.0
    """Share of gradient reduction that may run beside the backward pass."""
    gather_overlap: float = 0.0
    """Share of weight gathering that may run beside computation."""
    ep_overlap: float = 0.0
    """Share of expert all-to-all that runs beside computation by the engine's own design."""
    overlap_a2a: float = 0.0
    """1 where it is overlapped by a switch; the share that hides is calibrated."""
    dedup: float = 0.0
    """1: an expert token crosses the network once per node, 0: once per expert."""
    dispatch_all: float = 0.0
    """1: all tokens are gathered on all expert-parallel ranks."""
    modules_dispatch: float = 0.0
    """1: recomputing ``modules`` sends tokens to experts again; 0: the rows received are kept."""
    permute: float = 1.0
    """Memory passes that sort tokens by expert, over those of sorting before and after sending."""
    latent_rotary: float = 2.0
    """Passes over queries and keys of latent attention for their rotary part, over one."""
    even_routing: float = 0.0
    """1: every expert gets the same number of tokens."""
    gradient_bytes: float = 4.0
    """Bytes per element of reduced gradients."""
    state_gradient_bytes: float = 4.0
    """Bytes per parameter of the gradients that are kept."""
    weight_bytes: float = 2.0
    """Bytes per parameter of the weights that are kept for the products."""
    logit_bytes: float = 10.0
    """Memory per logit at the peak (16-bit logits, 32-bit copies, gradients)."""
    loss_traffic: float = 0.0
    """Bytes moved per logit and pass by the loss (0: by separate kernels, as element-wise work)."""
    bucket_bytes: float = 0.0
    """Memory set aside for communication buckets."""
    master_bytes: float = 4.0
    """Bytes per parameter of master weights beside those for the products."""
    held_bytes: float = 4.0
    """Bytes per parameter of gradients that stay whole between micro-batches."""
    gather_bytes: float = 6.0
    """Memory per weight of the layer at work where weights are sharded: gathered weights of it and
    of the next, gradients, buffers of the collectives."""
    pipe_gathered: float = 0.0
    """1 where sharded weights stay gathered between micro-batches of a pipeline, and under ZeRO-2
    from the forward to the backward pass."""
    score_bytes: float = 0.0
    """Per element that experts return: a copy that the product with their scores keeps."""
    pipe_received: float = 0.0
    """1 where a pipeline stage sets aside a buffer for all that it will receive in a step."""
    pipe_outputs: float = 0.0
    """1 where a pipeline stage keeps what it handed on until its backward pass."""
    kept_products: float = 0.0
    """Share of a layer's products that partial recomputation keeps (0: it is of layers)."""
    kept_dispatch: float = 0.0
    """1 where it keeps what expert dispatch brought, too."""
    end_gather: float = 0.0
    """1 where embedding and output matrix are gathered whole too."""
    norm_bytes: float = 0.0
    """Memory per element that a norm reads, beyond a fused one."""
    gate_bytes: float = 0.0
    """Memory per element of inner width, beyond a fused gate."""
    wide_kv: float = 0.0
    """1 where keys and values are saved once per query head."""
    whole_logits: float = 0.0
    """1 where every tensor-parallel rank holds all logits."""
    lazy_gradients: float = 0.0
    """1 where gradients are made in the backward pass, and not kept in a buffer of their own."""
    step_share: float = 0.0
    """Temporaries of the optimizer's step, as part of one moment of every parameter."""
    step_bytes: float = 0.0
    """The same in bytes per parameter, whatever the moments."""
    offload_gradients: float = 0.0
    """1 where gradients go to the host with the optimizer's states."""
    offload_weights: float = 0.0
    """1 where sharded weights go there too."""
    least_stage: float = 0.0
    """ZeRO stage at which optimizer states are cut at least."""
    fp8_copy_bytes: float = 0.0
    """Bytes per weight of 8-bit copies and transposes beside the weights."""
    rematerialised: float = 0.0
    """1 where recomputation of modules runs all of a layer again but what it was given."""
    moment_bytes: float = 8.0
    """Bytes per parameter of the optimizer's moments where nobody states them."""
    deep_stages: float = 0.0
    """1 where sharding of states shards weights and gradients with them."""
    kept_share: float = 1.0
    """Share of the saved activations that stays on the device."""
    dispatch_copies: float = 0.0
    """Copies of dispatched tokens at once in a layer of experts, on the fullest rank."""
    accumulate_bytes: float = 8.0
    """Memory traffic per weight and micro-batch of adding gradients up, beyond the product."""
    flash2: float = 0.0
    """1 while attention kernels are of the FlashAttention-2 generation on every chip."""
    unfused_attention: float = 0.0
    """1 where attention scores go through memory."""
    rowwise: float = 0.0
    """1 where 8-bit products have scales per row and leave the fast accumulation path."""
    whole_gradients: float = 0.0
    """1 where gradients stay whole between micro-batches although they are sharded."""
    pp_scatter: float = 0.0
    """1: pipeline transfers are cut over tensor-parallel ranks and gathered again."""

    def changed(self, numbers: Mapping[str, float]) -> Design:
        """The design with other ``numbers``; raises DataError for a name it does not have."""
        unknown = sorted(set(numbers) - NUMBERS)
        if unknown:
            raise DataError(f"an engine's design has no number {unknown[0]!r}")
        return replace(self, **numbers) if numbers else self  # type: ignore[arg-type]


NUMBERS = frozenset(item.name for item in fields(Design)) - {"fits"}
