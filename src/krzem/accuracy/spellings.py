"""Precision, sharding, recomputation and attention as sources spell them."""

from __future__ import annotations

import re

from krzem.layout.layout import Precision

_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"fp4|nvfp|e2m1", Precision.NVFP4),
    (r"mx\W*fp8", Precision.MXFP8),
    (r"fp8.*(block|sub\W*channel|1x128|deepgemm)|block\w*\W*fp8", Precision.FP8_BLOCK),
    (r"fp\W?8|float8|e4m3|e5m2|f8", Precision.FP8),
    (r"bf\W*16|bfloat|brain", Precision.BF16),
    (r"f(p|loat)?\W*16|half|amp", Precision.FP16),
    (r"tf\W?32|f(p|loat)?\W?32|single", Precision.FP32),
)


def precision_of(raw: str) -> Precision | None:
    """Arithmetic of the products: the narrowest kind that is named; None where none is known."""
    if re.search(r"int\W*\d", raw):
        return None
    return next((kind for words, kind in _PRECISIONS if re.search(words, raw)), None)


NODE = -1
"""Stands for the devices of one node, which hybrid sharding means where nothing else is said."""
_GROUP = re.compile(r"(?:fsdp|hsdp|shard\w*)[ _-]*(?:size|group|degree)?[ =:(x]*(\d+)")
_VERSIONS = ("1", "2", "3")
_STAGES: tuple[tuple[str, int], ...] = (
    (r"grad_?op|(zero|stage|z)[\W_]*2|^2", 2),
    (r"fsdp|hsdp|full|hybrid|(zero|stage|z)[\W_]*(3|\+\+|inf)|^3", 3),
    (r"(zero|stage|z)[\W_]*0|^0|^(none|no|off|false|ddp|disabled|replic)|no_shard|^ddp", 0),
    (r"(zero|stage|z)[\W_]*1|^1|dist\w*[\W_]*opt|optimi[sz]er|^(yes|true|on)", 1),
)


def sharding_of(raw: str, shard: str) -> tuple[int | None, int]:
    """(ZeRO stage or None where it is not told, ranks that share one copy, 0 for all, or NODE).

    ``shard`` is a number of ranks or ``node``; ``raw`` may say it as well (``FSDP32``, ``hsdp``).
    """
    stage = next((n for words, n in _STAGES if re.search(words, raw)), None)
    if stage != 3:
        return stage, 0
    if re.fullmatch(r"\d{1,9}(\.0*)?", shard):
        return 3, int(float(shard))
    said = _GROUP.search(raw)
    # FSDP2 is a version, FSDP32 a group.
    if shard == "node":
        return 3, NODE
    if said is not None and said.group(1) not in _VERSIONS:
        return 3, int(said.group(1))
    return 3, NODE if re.search(r"hsdp|hybrid", raw) else 0


_RECOMPUTES: tuple[tuple[str, str], ...] = (
    (
        r"selective|\bsac\b|partial|core|attn|attention|module|custom|minimal|every|op\b",
        "some",
    ),
    (r"^(none|no|off|false|0|without|disabled)\b", "none"),
    (r"full|uniform|block|all|^(yes|true|on|1)\b|checkpoint|\bac\b|layer|remat", "full"),
)


def recompute_of(raw: str) -> str:
    """``none``, ``some``, ``full`` or, where it is not told, an empty text."""
    return next((kind for words, kind in _RECOMPUTES if re.search(words, raw)), "")


def yes_or_no(raw: str) -> bool | None:
    """A switch; None where it is not told."""
    if re.match(r"(1|y|true|on|enabled)", raw):
        return True
    return False if re.match(r"(0|n|false|off|disabled)", raw) else None


def attention_of(raw: str) -> str:
    """``mla``, ``gqa``, ``mqa``, ``mha`` or, where it is not told, an empty text."""
    kinds = ((r"mla|latent", "mla"), (r"gqa|group", "gqa"), (r"mqa|multi\W*query", "mqa"),
             (r"mha|multi\W*head", "mha"))  # fmt: skip
    return next((kind for words, kind in kinds if re.search(words, raw)), "")
