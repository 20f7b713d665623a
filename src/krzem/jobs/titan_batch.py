"""torchtitan's pipeline stages and batches."""

from __future__ import annotations

import math

from krzem.jobs.job import JobBuilder
from krzem.jobs.titan_keys import LOOPED, OTHER_SCHEDULES, SCHEDULES, SECTIONS
from krzem.jobs.tree import Tree, names_of, number, size_of, word_of


def section_keys(name: str) -> tuple[str, ...]:
    """A setting in each table in which it stood, the newest first."""
    return tuple(f"{section}.{name}" for section in SECTIONS)


def read_pipeline(tree: Tree, job: JobBuilder, complete: bool) -> None:
    """Schedule, stages and the layers of the end stages."""
    pp = job.number("pp")
    if pp is None or pp == 1:
        return
    key = section_keys("pipeline_parallel_schedule")
    said, place = word_of(tree, *key), tree.place(*key)
    kind = SCHEDULES.get((said or "1f1b").lower())
    looped = kind in LOOPED
    if said is not None and kind is None:
        looped = OTHER_SCHEDULES.get(said.lower(), 1) > 1
        job.not_understood(place, f"schedule {said} is none of {', '.join(SCHEDULES)}")
        job.ask("schedule", f"the file names {said}", "say the nearest schedule")
    elif said is not None and kind is not None:
        job.state("schedule", kind, place, override=True)
    elif complete:
        job.default("schedule", "1f1b", "the schedule is 1F1B unless set")
    _stages(tree, job, pp, looped)


def _stages(tree: Tree, job: JobBuilder, pp: int, looped: bool) -> None:
    job.uneven = "the first and last stage hold fewer layers"
    counts = _layers_of_parts(tree)
    names = ("module_fqns_per_model_part", "module_fqns_per_model_part.0",
             "pipeline_parallel_split_points")  # fmt: skip
    place = tree.place(*(k for name in names for k in section_keys(name)))
    points = names_of(tree, *section_keys("pipeline_parallel_split_points"))
    parts = len(counts) if counts else 0
    if not parts and points:
        parts = len(points) + 1
    layers = job.number("model.layers")
    per_stage = size_of(tree, *section_keys("pipeline_parallel_layers_per_stage"))
    if not parts and layers and per_stage:
        ends = [number(tree, *section_keys(f"pipeline_parallel_{end}_stage_less_layers"))
                for end in ("first", "last")]  # fmt: skip
        parts = math.ceil((layers + sum(1 if n is None else n for n in ends)) / per_stage)
    if parts and parts % pp == 0:
        job.derive("vpp", parts // pp, f"{parts} stages on pp = {pp} ranks", place)
    elif per_stage is None and not parts:
        job.derive("vpp", 2 if looped else 1, "stages on a rank of this schedule", place)
    if counts and len(counts) % pp == 0:
        folded = len(counts) == 2 * pp and job.get("schedule") in ("zb-v", "dualpipev")
        ranks = [sum(counts[rank::pp]) for rank in range(pp)]
        if folded:
            ranks = [counts[rank] + counts[-1 - rank] for rank in range(pp)]
        if len(set(ranks)) > 1 or len(counts) == pp:
            job.derive("first", ranks[0], "layers of the first rank's stages", place)
            job.derive("last", ranks[-1], "layers of the last rank's stages", place)


def _layers_of_parts(tree: Tree) -> list[int]:
    """Layers of each stage, from lists of module names or a list of counts."""
    counts = tree.value(*section_keys("module_fqns_per_model_part.0"))
    if isinstance(counts, list) and all(type(n) is int for n in counts):
        return counts
    parts = tree.value(*section_keys("module_fqns_per_model_part"))
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return []
    return [sum(str(name).startswith("layers.") for name in part) for part in parts]


def read_batch(tree: Tree, job: JobBuilder, complete: bool) -> None:
    """Sequences of a micro-batch and micro-batches of a step."""
    keys = ("training.local_batch_size", "training.batch_size")
    local, place = size_of(tree, *keys), tree.place(*keys)
    if tree.has("training.num_tokens_per_microbatch_per_dp_rank"):
        _token_batch(tree, job)
        return
    if local is None or local < 1:
        return
    pp = job.number("pp")
    if pp is None:
        return
    if pp == 1:
        job.state("mbs", local, place, override=True)
        passes = 1
    else:
        size = _micro_batch(tree, job, local, pp)
        if size is None:
            return
        at = tree.place(*section_keys("pipeline_parallel_microbatch_size"),
                        *section_keys("pipeline_parallel_microbatches"))  # fmt: skip
        job.derive("mbs", size, f"{local} sequences of a rank in {local // size} micro-batches", at)
        passes = local // size
    if job.number("global_batch") is None and complete and job.number("accumulation") is None:
        job.derive("accumulation", passes, "no global batch size: one pass over the local batch")


def _micro_batch(tree: Tree, job: JobBuilder, local: int, pp: int) -> int | None:
    """Sequences of a pipeline's micro-batch."""
    pieces = number(tree, *section_keys("pipeline_parallel_microbatches"))
    size = number(tree, *section_keys("pipeline_parallel_microbatch_size"))
    if size is not None and size > 0:
        return size
    if pieces is None and tree.has("training.batch_size"):
        if (job.number("vpp") or 1) > 1:
            job.ask("mbs", "the number of pipeline micro-batches is not set and its default"
                    " changed from stages to ranks between releases", "give sequences")  # fmt: skip
            return None
        pieces = pp
    if pieces is not None and pieces > 0:
        return local // pieces if local % pieces == 0 else None
    return 1


def _token_batch(tree: Tree, job: JobBuilder) -> None:
    """Since the summer of 2026 batches are counted in tokens."""
    key, whole = (
        "training.num_tokens_per_microbatch_per_dp_rank",
        "training.num_tokens_per_train_step",
    )
    tokens, seq, total = size_of(tree, key), job.number("seq"), number(tree, whole)
    if tokens and seq and tokens % seq == 0:
        job.derive("mbs", tokens // seq, f"{tokens} tokens / {seq}", tree.place(key))
    if total and total > 0 and seq and total % seq == 0:
        job.derive("global_batch", total // seq, f"{total} tokens / {seq}", tree.place(whole))
    elif total is None or total < 0:
        pieces = size_of(tree, *section_keys("num_pp_microbatches")) or 1
        pp = job.number("pp")
        if pp is not None:
            job.derive("accumulation", pieces if pp > 1 else 1, "no tokens per step: one pass")
