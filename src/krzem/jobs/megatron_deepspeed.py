"""The DeepSpeed configuration beside Megatron's arguments: given, or written by the script."""

from __future__ import annotations

import json
import re
from typing import Any

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.megatron_arguments import Argument, Arguments
from krzem.jobs.registry import Sources
from krzem.jobs.shell import Script

_CONFIG = ("--deepspeed-config", "--deepspeed")
LARGEST = 200_000


def deepspeed(args: Arguments, job: JobBuilder, script: Script, sources: Sources) -> None:
    """Stage, batch, precision and offload of the configuration; what it lacks stays open."""
    named = args.find("--deepspeed-config")
    args.find("--deepspeed", "--deepspeed-mpi", "--no-pipeline-parallel")
    if named is not None:
        _configuration(args, named, job, script, sources)
    _states(job)


def _configuration(
    args: Arguments, named: Argument, job: JobBuilder, script: Script, sources: Sources
) -> None:
    text, place = _document(named.text, named.place, script, sources)
    if text is None:
        job.ask(
            "zero",
            f"the configuration {named.text[-80:]} is not among the given files",
            "give that file, or the stage of ZeRO",
        )
        return
    table = parsed(text)
    if table is None:
        job.not_understood(place, "the DeepSpeed configuration is no JSON that can be read")
        return
    _stage(table, job, place)
    _batch(table, job, place)
    _precision(table, job, place)


def _document(name: str, at: Place, script: Script, sources: Sources) -> tuple[str | None, Place]:
    written = script.documents.get(name)
    if written is None:
        tail = name.rsplit("/", 1)[-1]
        found = [d for n, d in script.documents.items() if n.rsplit("/", 1)[-1] == tail]
        written = found[0] if found else None
    if written is not None and "{" in written[0]:
        return written[0], Place(file=written[1].file, line=written[1].line)
    given = sources.find(name)
    if given is not None and given.endswith(".json"):
        return sources.files[given], Place(file=given)
    return None, at


def parsed(text: str) -> dict[str, Any] | None:
    """The table of a JSON text in which variables may be left; those become null."""
    if len(text) > LARGEST:
        return None
    known = re.sub(r"(?<=[:\[,])\s*\$\{?\w+\}?", " null", text)
    known = re.sub(r",\s*([}\]])", r"\1", known)
    try:
        table = json.loads(known)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _stage(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    zero = table.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage", 0)
    if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage <= 3:
        before = job.number("zero")
        if before is None or before == stage:
            job.state("zero", stage, place)
        else:
            job.fault(place, f"stage {stage} here, but --zero-stage {before}")
    for part in ("offload_optimizer", "cpu_offload"):
        value = zero.get(part)
        device = value.get("device") if isinstance(value, dict) else value
        if device in (True, "cpu", "nvme"):
            job.state("offload", True, place, override=True)
    job.default("offload", False, "no offload_optimizer")


def _batch(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    names = {
        "mbs": "train_micro_batch_size_per_gpu",
        "global_batch": "train_batch_size",
        "accumulation": "gradient_accumulation_steps",
    }
    for field, key in names.items():
        value = table.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            job.state(field, value, place)


def _precision(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    for word in ("bf16", "bfloat16", "fp16"):
        value = table.get(word)
        if isinstance(value, dict) and value.get("enabled") is True:
            job.state("precision", word.replace("bfloat16", "bf16"), place)
            return


def _states(job: JobBuilder) -> None:
    """Bytes per parameter of DeepSpeed's fp16 engine with Adam."""
    if job.get("optimizer") == "adamw" and job.get("precision") in ("bf16", "fp16"):
        job.default("state.moments", 8.0, "moments in fp32")
        job.default("state.master", 4.0, "fp32 master weights")
        job.default("state.weight", 2.0, "16-bit weights")
    if job.get("precision") == "fp16":
        job.default("state.gradient", 2.0, "fp16 gradients")
