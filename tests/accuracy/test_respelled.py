"""The same runs as other people would write them down: the same predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.some import some

from krzem.accuracy.case import card
from krzem.accuracy.evaluate import Report, evaluate
from krzem.accuracy.spellings import SHAPE, known_shape, precision_of, recompute_of, sharding_of
from krzem.facts.table import read_table
from krzem.layout.layout import Precision

Row = dict[str, str]

WORDS = {
    "precision": {"bf16": "BFloat16 (mixed)", "fp16": "float16", "fp8": "FP8-E4M3", "fp32": "FP-32",
                  "mxfp8": "MX-FP8", "nvfp4": "NV-FP4"},
    "recompute": {"full": "Full (uniform)", "none": "No", "selective": "Selective AC"},
    "zero_or_fsdp_stage": {"0": "DDP", "1": "Distributed Optimizer", "2": "SHARD_GRAD_OP",
                           "3": "FULL_SHARD", "": "n/a"},
    "seq_parallel": {"0": "off", "1": "Yes", "unknown": "?"},
    "attention": {"mha": "Multi-Head", "gqa": "grouped-query", "mla": "Multi-head Latent"},
    "family": {"moe": "Mixture of Experts", "dense": "Dense"},
}  # fmt: skip
MONTHS = "January February March April May June July August September October November December"


def words(row: Row) -> Row:
    return row | {name: said.get(row[name], row[name]) for name, said in WORDS.items()}


def numbers(row: Row) -> Row:
    named = ("devices", "hidden", "vocab", "ffn_hidden", "global_batch", "metric_step_time_s")
    separated = {n: f"{int(row[n]):,}" for n in named if row[n].isdigit()}
    seq = row["seq_len"]
    if seq and int(seq) % 1024 == 0:
        separated["seq_len"] = f"{int(seq) // 1024}K"
    if row["params_b"]:
        separated["params_b"] = f"{row['params_b']} B"
    if row["metric_tokens_per_s_per_device"]:
        separated["metric_tokens_per_s_per_device"] = (
            f"~{row['metric_tokens_per_s_per_device']} tok/s/GPU"
        )
    return row | separated


def dates(row: Row) -> Row:
    year, _, month = row["date"][:7].partition("-")
    if not month:
        return row | {"date": f"in {year}"}
    return row | {"date": f"{MONTHS.split()[int(month) - 1]} {year}"}


def tokens(row: Row) -> Row:
    """The batch in tokens."""
    if not (row["global_batch"].isdigit() and row["seq_len"].isdigit()):
        return row
    batch = int(row["global_batch"]) * int(row["seq_len"])
    return row if batch < 100_000 else row | {"global_batch": str(batch)}


def utilisation(row: Row) -> Row:
    try:
        return row | {"metric_mfu_pct": f"{float(row['metric_mfu_pct']) / 100:.6g}"}
    except ValueError:
        return row


def worded_card(row: Row) -> Row:
    """The card by its wording alone, where the wording names one."""
    same = card(row["accelerator"].lower()) == row["accelerator_id"]
    return row | {"accelerator_id": ""} if same else row


def blank_widths(row: Row) -> Row:
    """Widths left out where the name says them."""
    known = known_shape(row["model_name"])
    names = [name for name in SHAPE if name not in ("layers", "dense_layers")]
    if known is None or any(row[n] != known[n] for n in (*names, "attention")):
        return row
    return row | dict.fromkeys((*names, "attention"), "")


def rows() -> list[Row]:
    return [dict(row) for row in some(read_table("runs.csv"), 3)]


@pytest.fixture(scope="module")
def plain() -> Report:
    return evaluate(rows())


def same(report: Report, plain: Report) -> None:
    for found, asked in zip(report.outcomes, plain.outcomes, strict=True):
        assert found.reason == asked.reason, found.id
        assert found.mid_s == pytest.approx(asked.mid_s, rel=1e-6), found.id
        if asked.measured_s is None:
            assert found.measured_s is None
        else:
            assert found.measured_s == pytest.approx(asked.measured_s, rel=1e-5), found.id
        assert found.memory_predicted == pytest.approx(asked.memory_predicted), found.id


@pytest.mark.parametrize(
    "respelled", [words, numbers, dates, tokens, utilisation, worded_card, blank_widths]
)
def test_spelling_changes_no_prediction(respelled: Callable[[Row], Row], plain: Report) -> None:
    changed = [respelled(row) for row in rows()]
    assert sum(a != b for a, b in zip(rows(), changed, strict=True)) > 30
    same(evaluate(changed), plain)


@pytest.mark.parametrize(
    ("mark", "encoding", "newline"),
    [(",", "utf-8-sig", "\r\n"), (";", "utf-8", "\n"), ("\t", "utf-16", "\r\n")],
)
def test_files_of_spreadsheets(
    tmp_path: Path, plain: Report, mark: str, encoding: str, newline: str
) -> None:
    """Columns in another order and more of them, other marks, other encodings."""
    table = [{"remark": "x; y, z", **dict(reversed(row.items()))} for row in rows()]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=mark, lineterminator=newline)
    writer.writeheader()
    writer.writerows(table)
    file = tmp_path / "table.csv"
    file.write_bytes(out.getvalue().encode(encoding))
    same(evaluate(file), plain)


def test_columns_that_are_not_needed(plain: Report) -> None:
    """What only labels a row may be missing altogether."""
    spared = ("id", "reference_accelerator", "params_b", "active_params_b", "device_fraction")
    table = [{k: v for k, v in row.items() if k not in spared} for row in rows()]
    assert [o.reason for o in evaluate(table).outcomes] == [o.reason for o in plain.outcomes]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("meta-llama/Llama 3.1 405B", "llama-3.1-405b"), ("llama3-70b", "llama-3-70b"),
        ("GPT-3 175B", "gpt3-175b"), ("GPT-13B", "gpt3-13b"), ("GPT-1.3B", "gpt3-1.3b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"), ("DeepSeek-V3-671B", "deepseek-v3"),
        ("Qwen3 235B A22B", "qwen3-235b-a22b"), ("MPT-30B", "mpt-30b"),
        ("nemotron-4-340b", "nemotron-4-340b"), ("Qwen1.5-14B-Chat", "qwen-14b"), ("secret", None),
        ("100B LLM", None),
    ],
)  # fmt: skip
def test_models_by_their_names(name: str, model: str | None) -> None:
    found = known_shape(name)
    assert (found and found["id"]) == model


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm"), ("8x A100-PCIE-40GB", "nvidia-a100-pcie-40"),
        ("GB300 NVL72", "nvidia-gb300"), ("AMD Instinct MI355X", "amd-mi355x"),
        ("Intel Gaudi 3", "intel-gaudi3"), ("AWS Trn2", "aws-trainium2"),
        ("TPU v5litepod-256", "google-tpu-v5e"), ("Trillium", "google-tpu-v6e"),
        ("Atlas 800T A2 (Ascend 910B)", "huawei-ascend-910b"), ("H800", "nvidia-h800-sxm"),
        ("Iluvatar BI-V100 (32GB)", "iluvatar-bi-v100"), ("GB200 NVL72 (B200)", "nvidia-gb200"),
        ("NVIDIA 80G (H100/H800 class)", None), ("128 AMD + 640 others", None),
    ],
)  # fmt: skip
def test_cards_by_their_wording(name: str, device: str | None) -> None:
    assert card(name.lower()) == device


@pytest.mark.parametrize(
    ("raw", "stage", "group"),
    [
        ("fsdp2", 3, 0), ("fsdp32", 3, 32), ("hsdp", 3, -1), ("hybrid_shard (shard=16)", 3, 16),
        ("zero-2", 2, 0), ("deepspeed stage 1", 1, 0), ("no_shard", 0, 0), ("none", 0, 0),
        ("zero", None, 0), ("", None, 0),
    ],
)  # fmt: skip
def test_sharding(raw: str, stage: int | None, group: int) -> None:
    assert sharding_of(raw, "") == (stage, group)


def test_other_words() -> None:
    assert precision_of("fp8 (blockwise scaling)") is Precision.FP8_BLOCK
    assert precision_of("bf16 + fp32 accumulation") is Precision.BF16
    assert precision_of("posit16?") is None
    assert recompute_of("no recompute") == "none"
    assert recompute_of("core attention only") == "some"
    assert recompute_of("checkpoint every layer") == "some"
    assert recompute_of("") == ""
