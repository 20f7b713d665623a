"""After a run: what it measured, as rows that `krzem accuracy` and calibration read.

One row for each pool that trained: model, layout, devices and the median step.  Pools that are not
in the catalogue (processors) have rows too; a reader that cannot place them says so and passes on.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping
from pathlib import Path

from krzem.layout.layout import Layout, parse_layout
from krzem.model import AttentionKind, load_model
from krzem.run.clock import iso
from krzem.run.history import History
from krzem.run.ledger import Reader
from krzem.run.pool_settings import Pool
from krzem.run.settings import RunSettings
from krzem.train.durable import write_atomic

TABLE = "measured.csv"
_FEWEST = 10
"""Steps below which a pool's median says nothing."""


def write_back(settings: RunSettings) -> Path | None:
    """Write ``measured.csv`` into the run's folder; None where no pool did enough steps.

    Raises StorageError where the disk does not take it.
    """
    rows = measured_rows(settings)
    if not rows:
        return None
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path = settings.folder / TABLE
    write_atomic(path, text.getvalue().encode())
    return path


def measured_rows(settings: RunSettings) -> list[dict[str, str]]:
    """A row for each pool, by the columns of the table of published runs."""
    history = History.of(settings.folder)
    with Reader(settings.folder) as reader:
        attempts = reader.attempts()
        plans = {d.subject: d.evidence for d in reader.decisions()}
        run = reader.run()
    pool_of = {a.id: a.pool for a in attempts}
    rows = []
    for pool in settings.pools:
        seconds = [r.seconds for r in history.kept if pool_of.get(r.attempt) == pool.name]
        if len(seconds) < _FEWEST or run is None:
            continue
        plan = plans.get(f"plan of {pool.name}") or {}
        stated = plan.get("layout") if pool.layout == "auto" else pool.layout
        layout = parse_layout(stated) if stated else None
        rows.append(_row(settings, pool, layout, statistics.median(seconds), iso(run.wall)[:10]))
    return rows


def _row(
    settings: RunSettings, pool: Pool, layout: Layout | None, seconds: float, date: str
) -> dict[str, str]:
    goal = settings.goal
    devices = pool.count or pool.ranks
    values: dict[str, object] = {
        "id": f"{settings.name}-{pool.name}",
        "source": "krzem run, own measurement",
        "date": date,
        **_model(settings.model),
        "seq_len": goal.sequence,
        "accelerator": pool.accelerator or pool.cluster,
        "accelerator_id": pool.accelerator,
        "devices": devices,
        **_layout(layout),
        "global_batch": goal.global_batch,
        "precision": (pool.precision or goal.precision).value,
        "metric_step_time_s": f"{seconds:.6g}",
        "metric_tokens_per_s_per_device": f"{goal.tokens_per_step / seconds / devices:.6g}",
        "notes": "krzem trainer",
        "quality": "ok",
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}


def _layout(layout: Layout | None) -> Mapping[str, object]:
    names = {"tp": "tp", "pp": "pp", "cp": "cp", "ep": "ep", "dp": "dp",
             "zero_or_fsdp_stage": "zero", "micro_batch": "micro_batch"}  # fmt: skip
    return {column: layout and getattr(layout, name) for column, name in names.items()}


def _model(name: str) -> Mapping[str, object]:
    """Shape of the model, from which a reader builds it again."""
    arch = load_model(name)
    layer = arch.runs[-1].layer
    attention, forward = layer.attention, layer.feed_forward
    plain = [r for r in arch.runs if not r.layer.feed_forward.experts]
    leading = sum(r.count for r in plain)
    return {
        "model_name": arch.name,
        "family": "moe" if forward.experts else "dense",
        "layers": arch.layers,
        "hidden": arch.hidden,
        "ffn_hidden": plain[0].layer.feed_forward.width if plain else None,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab": arch.vocab,
        "experts": forward.experts or None,
        "experts_per_token": forward.experts_per_token or None,
        "shared_experts": forward.shared_width // forward.width if forward.experts else None,
        "moe_ffn_hidden": forward.width if forward.experts else None,
        "dense_layers": leading if forward.experts else None,
        "attention": "mla" if attention.kind is AttentionKind.LATENT else "gqa",
    }
