"""torchtitan's own trainer rehearsed: beside the planner's memory, and beside trials on real cards.

    python benchmarks/torchtitan_rehearsal.py         rehearse what its .json does not hold yet
      ... --only TEXT     those with TEXT in the name
      ... --again TEXT    rehearse these anew
      ... --write         the table of docs/rehearsal.md

It needs torchtitan 0.3.0: in the environment, or in PYTHONPATH (scripts/engine-env torchtitan makes
.venv-engines/torchtitan/lib/python3*/site-packages).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal import told

from krzem.accuracy.evaluate import Outcome, outcomes
from krzem.cost.coefficients import fitted
from krzem.facts.table import read_table
from krzem.hardware import read_cluster
from krzem.layout.layout import parse_layout
from krzem.train.command.planning import needed

FOUND = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "rehearsal.md"
KINDS = ("weights", "gradients", "states", "activations", "transient")
TRIALS_ON = "gh200-96:8"


@dataclass(frozen=True)
class Setup:
    """What the table of trials says of one; runs that it says the same of share a rehearsal."""

    pp: int
    ep: int
    batch: int
    """Sequences of a rank in a step."""
    recompute: str

    @property
    def name(self) -> str:
        """As results are kept."""
        return f"trial pp={self.pp},ep={self.ep},batch={self.batch},recompute={self.recompute}"

    @property
    def layout(self) -> str:
        """In krzem's words; a rank without stages takes its batch in one pass."""
        mbs = 1 if self.pp > 1 else self.batch
        return f"pp={self.pp},dp={8 // self.pp},ep={self.ep},mbs={mbs},zero=3,sp=0"

    @property
    def recipe(self) -> str:
        """torchtitan 0.3.0's own Qwen3-30B-A3B with the trials' vocabulary, everything else at its
        default: 1F1B, micro-batches of one sequence, sums of gradients in 32 bits."""
        checkpoints = {"full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}
        return _RECIPE.format(
            batch=self.batch, ep=self.ep, pp=self.pp, dp=8 // self.pp,
            checkpoints=checkpoints.get(self.recompute, "None"),
        )  # fmt: skip


_RECIPE = """
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.models.qwen3.config_registry import qwen3_30b_a3b


def run():
    config = qwen3_30b_a3b()
    model = config.model_spec.model
    model.vocab_size = model.tok_embeddings.num_embeddings = model.lm_head.out_features = 50304
    config.loss = CrossEntropyLoss.Config(global_vocab_size=50304)
    config.training.seq_len = 4096
    config.training.local_batch_size = {batch}
    config.training.disable_cuda_graphs = True
    config.parallelism.expert_parallel_degree = {ep}
    config.parallelism.pipeline_parallel_degree = {pp}
    config.parallelism.data_parallel_shard_degree = {dp}
    config.activation_checkpoint = {checkpoints}
    return config
"""


def trial_rows() -> list[dict[str, str]]:
    """Trials of torchtitan whose ends are known."""
    return [row for row in read_table("fit_trials.csv") if row["engine"] == "torchtitan"]


def setup_of(row: dict[str, str]) -> Setup:
    """What is rehearsed for a trial."""
    batch = int(row["global_batch"]) // int(row["dp"])
    return Setup(int(row["pp"]), int(row["ep"]), batch, row["recompute"])


def rehearsed_trial(setup: Setup, rank: int) -> dict[str, Any]:
    """One rank of a trial, in this process."""
    from krzem.train.rehearsal.titan import TitanStart, TitanStep, titan_summary

    start = TitanStart(
        words=("--module", "trial", "--config", "run"), files={"trial.py": setup.recipe}
    )
    step = TitanStep(
        start=start,
        layout=parse_layout(setup.layout),
        sequence=4096,
        micro_batches=setup.batch if setup.pp > 1 else 1,
    )
    return told(titan_summary(step, rank), largest=8)


def rehearse_trials(known: dict[str, Any], only: str, workers: int) -> None:
    """Rehearse what is not in ``known`` yet, and write it down as it comes."""
    setups = sorted({setup_of(row) for row in trial_rows()}, key=lambda s: (s.batch, s.name))
    wanted = [
        (setup, rank)
        for setup in setups
        for rank in ([0, 4] if setup.pp > 1 else [0])
        if only in setup.name and str(rank) not in known.get(setup.name, {})
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(rehearsed_trial, setup, rank): (setup, rank) for setup, rank in wanted}
        for job in as_completed(jobs):
            setup, rank = jobs[job]
            try:
                known.setdefault(setup.name, {})[str(rank)] = job.result()
            except Exception as error:  # The others go on.
                print(f"{setup.name} rank {rank}: {error!r}", file=sys.stderr)
                continue
            FOUND.write_text(json.dumps(known, indent=1), encoding="utf-8")
            peak = sum(known[setup.name][str(rank)]["peak"].values()) / 2**30
            print(f"{setup.name} rank {rank}: {peak:.1f} GiB", flush=True)


def needs(known: dict[str, Any], setup: Setup) -> float | None:
    """GiB that a device must have, by the fullest rank that was rehearsed; None where none was."""
    ranks = known.get(setup.name, {})
    if len(ranks) < min(setup.pp, 2):
        return None
    return needed(max(sum(rank["peak"].values()) for rank in ranks.values())) / 2**30


@dataclass(frozen=True)
class Judged:
    """A trial, its end, and what rehearsal and planner say of it."""

    setup: Setup
    ran: bool
    measured: float | None
    """GiB that the run's allocator held."""
    needs: float | None
    planned: Outcome

    @property
    def rehearsal_right(self) -> bool:
        """Whether it fits by its rehearsal where it ran."""
        assert self.needs is not None
        return (self.needs <= ROOM) == self.ran

    @property
    def planner_right(self) -> bool:
        """The same by an even chance."""
        return (self.planned.chance >= 0.5) == self.ran


ROOM = read_cluster(TRIALS_ON).memory_bytes / 2**30


def judged(known: dict[str, Any]) -> list[Judged]:
    """All trials."""
    rows = trial_rows()
    return [
        Judged(
            setup=setup_of(row),
            ran=(row["status"] or "ok") == "ok",
            measured=float(row["metric_peak_mem_gb"]) if row["metric_peak_mem_gb"] else None,
            needs=needs(known, setup_of(row)),
            planned=planned,
        )
        for row, planned in zip(rows, outcomes(rows, fitted()), strict=True)
    ]


def table(known: dict[str, Any]) -> str:
    """Trials of docs/rehearsal.md, one line for what the table of trials says alike."""
    groups: dict[Setup, list[Judged]] = {}
    for one in judged(known):
        groups.setdefault(one.setup, []).append(one)
    lines = [
        "| setup | trials | ran, GiB held | out of memory | rehearsed, needs GiB | planned GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setup, ones in groups.items():
        held = [one.measured for one in ones if one.measured is not None]
        spread = f"{min(held):.1f} to {max(held):.1f}" if len(set(held)) > 1 else ""
        told = spread or "".join(f"{value:.1f}" for value in held[:1])
        need = "" if ones[0].needs is None else f"{ones[0].needs:.1f}"
        planned = sorted(one.planned.memory_predicted / 2**30 for one in ones)
        name = setup.name.removeprefix("trial ")
        lines.append(
            f"| `{name}` | {len(ones)} | {told} | {sum(not one.ran for one in ones) or ''} | "
            f"{need} | {planned[len(planned) // 2]:.1f} |"
        )
    return "\n".join([*lines, "", *score(known)])


def score(known: dict[str, Any]) -> Iterator[str]:
    """How often each is right."""
    found = [one for one in judged(known) if one.needs is not None]
    ends: Counter[str] = Counter("ran" if one.ran else "out" for one in found)
    for name, right in (
        ("rehearsal", [one for one in found if one.rehearsal_right]),
        ("planner", [one for one in found if one.planner_right]),
    ):
        ran = sum(one.ran for one in right)
        yield (
            f"Right by the {name}: {len(right)} of {len(found)} ({ran} of {ends['ran']} that ran, "
            f"{len(right) - ran} of {ends['out']} that ran out of memory)."
        )


def write(known: dict[str, Any]) -> None:
    """Put the table into the page, between its marks."""
    begin, end = "<!-- torchtitan trials -->\n", "<!-- end of torchtitan trials -->\n"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    tail = end + rest.partition(end)[2]
    PAGE.write_text(head + begin + table(known) + "\n" + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    known: dict[str, Any] = {}
    if FOUND.exists():
        known.update(json.loads(FOUND.read_text(encoding="utf-8")))
    if asked.write:
        write(known)
        return
    only = asked.again or asked.only
    for name in [n for n in known if asked.again and only in n]:
        del known[name]
    rehearse_trials(known, only, asked.workers)


if __name__ == "__main__":
    main()
