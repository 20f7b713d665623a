"""Operators: a portable version each, vendor versions where one helps.

Vendor versions live in the modules ``cpu``, ``cuda`` and ``ascend`` and register
themselves here; importing them needs neither a device nor a vendor's library.
"""

from __future__ import annotations

from krzem.train.ops import ascend, cpu, cpu_attention, cpu_experts, cuda
from krzem.train.ops.attention import attention, sink_attention
from krzem.train.ops.float8 import (
    float8_grouped_linear,
    float8_linear,
    float8_product,
    float8_rows_linear,
)
from krzem.train.ops.grouped import Groups, grouped_linear, grouped_network
from krzem.train.ops.permute import (
    combine,
    count_choices,
    permute,
    place,
    place_unread,
    slots,
)
from krzem.train.ops.portable import (
    dispatch,
    gated_delta,
    keys_values,
    linear,
    logit_gradient,
    logit_sums,
    rms_norm,
    rotate,
    rotate_first,
    rotate_tail,
    swiglu,
)
from krzem.train.ops.registry import OPERATORS, Operator, find_operator, operator, portable_only
from krzem.train.ops.routes import host_counts

__all__ = [
    "OPERATORS",
    "Groups",
    "Operator",
    "ascend",
    "attention",
    "combine",
    "count_choices",
    "cpu",
    "cpu_attention",
    "cpu_experts",
    "cuda",
    "dispatch",
    "find_operator",
    "float8_grouped_linear",
    "float8_linear",
    "float8_product",
    "float8_rows_linear",
    "gated_delta",
    "grouped_linear",
    "grouped_network",
    "host_counts",
    "keys_values",
    "linear",
    "logit_gradient",
    "logit_sums",
    "operator",
    "permute",
    "place",
    "place_unread",
    "portable_only",
    "rms_norm",
    "rotate",
    "rotate_first",
    "rotate_tail",
    "sink_attention",
    "slots",
    "swiglu",
]
