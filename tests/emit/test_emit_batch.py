"""Batch files, run by a shell with stand-ins for the scheduler's commands."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from emit_matrix import CONFIG, GOAL, cluster, text

from krzem.errors import ClusterError, GoalError, UnknownNameError
from krzem.hardware.cluster import Site
from krzem.hardware.cluster_reader import cluster_of
from krzem.layout.layout import Layout
from krzem.model import load_model
from krzem.plan.emit import ENGINES, Launch, batch, emit, render

SITE = Site(
    modules=("cuda/13.0", "gcc"), account="project-42", partition="gpu", time_seconds=93_600,
    setup=("ulimit -c 0", "export GREETING='a b'"),
)  # fmt: skip
ON = {
    "megatron-lm": "h100:16", "megatron-bridge": "h100:16", "torchtitan": "h100:16",
    "mindspeed-llm": "910b:16", "mindformers": "910b:16", "primus": "mi300x:16",
    "maxtext": "h100:16", "deepspeed": "h100:16", "fsdp": "h100:16",
}  # fmt: skip
STARTS = {"megatron-lm": "torchrun", "megatron-bridge": "torchrun", "torchtitan": "torchrun",
          "mindspeed-llm": "torchrun", "mindformers": "launcher", "primus": "primus",
          "maxtext": "python3", "deepspeed": "torchrun", "fsdp": "accelerate"}  # fmt: skip


def launched(engine: str) -> Launch:
    model = "qwen3-8b" if engine == "mindformers" else "llama-3.1-8b"
    zero = 3 if engine in ("fsdp", "maxtext") else 1
    return emit(engine, Layout(dp=16, zero=zero), GOAL, load_model(model),
                cluster(ON[engine]), CONFIG, 250)  # fmt: skip


def written(engine: str, scheduler: str, site: Site = SITE) -> str:
    launch = launched(engine)
    on = replace(cluster(ON[engine]), site=site)
    return batch(render(launch), launch, on, scheduler, 16)


def stand_ins(folder: Path) -> None:
    """Commands that say what they were given; Slurm's and PBS' start two nodes."""
    says = '#!/bin/bash\necho "$(basename "$0")|$NODE_RANK|$MASTER_ADDR|$RDZV|$*"\n'
    texts = {
        "torchrun": says, "accelerate": says, "module": "#!/bin/bash\necho module $*\n",
        "scontrol": "#!/bin/bash\nprintf 'node0\\nnode1\\n'\n",
        "srun": "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
                'for n in 0 1; do SLURM_NODEID=$n "$@" || exit 1; done\n',
        "pbsdsh": "#!/bin/bash\nshift\nfor n in 0 1; do env -i PATH=\"$PATH\" PBS_NODENUM=$n"
                  ' "$@" || exit 1; done\n',
        "python3": says,
    }  # fmt: skip
    for name, lines in texts.items():
        (folder / name).write_text(lines, encoding="utf-8")
        (folder / name).chmod(0o755)
    runner = folder / "checkout" / "runner"
    scripts = folder / "checkout" / "scripts"
    for place, name in ((runner, "primus-cli"), (scripts, "msrun_launcher.sh")):
        place.mkdir(parents=True, exist_ok=True)
        lines = says.replace('$(basename "$0")', "primus" if name == "primus-cli" else "launcher")
        (place / name).write_text(lines, encoding="utf-8")
        (place / name).chmod(0o755)


def run(script: str, folder: Path, asked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    stand_ins(folder)
    (folder / "nodes").write_text("node0\nnode1\n", encoding="utf-8")
    given = dict.fromkeys(asked, "1")
    given |= {"PRIMUS_PATH": f"{folder}/checkout", "MINDFORMERS_PATH": f"{folder}/checkout"}
    given = {k: v for k, v in given.items() if k not in ("RDZV", "MASTER_ADDR", "NODE_RANK")}
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "ANY_VERSION": "1", "SLURM_JOB_ID": "7",
           "SLURM_JOB_NODELIST": "node[0-1]", "PBS_JOBID": "7", "PBS_O_WORKDIR": str(folder),
           "PBS_NODEFILE": f"{folder}/nodes", **given}  # fmt: skip
    return subprocess.run(
        ["bash"], input=script, cwd=folder, env=env, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("engine", ON)
def test_every_node_starts_with_its_number(engine: str, scheduler: str, tmp_path: Path) -> None:
    done = run(written(engine, scheduler), tmp_path, launched(engine).asked)
    assert done.returncode == 0, done.stderr
    said = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    started = [words for words in said if words[0] == STARTS[engine]]
    assert [words[1:4] for words in started[-2:]] == [
        ["0", "node0", "node0:29500"], ["1", "node0", "node0:29500"],
    ]  # fmt: skip
    assert "module load cuda/13.0 gcc" in done.stdout


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_missing_value_stops_before_a_start(scheduler: str, tmp_path: Path) -> None:
    launch = launched("megatron-lm")
    for name in set(launch.asked) - {"RDZV"}:
        rest = tuple(other for other in launch.asked if other != name)
        done = run(written("megatron-lm", scheduler), tmp_path, rest)
        assert done.returncode != 0
        assert name in done.stderr
        assert "torchrun|" not in done.stdout


def test_headers() -> None:
    slurm = written("megatron-lm", "slurm").splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gres=gpu:8",
                 "#SBATCH --time=26:00:00", "#SBATCH --account=project-42",
                 "#SBATCH --partition=gpu"):  # fmt: skip
        assert line in slurm
    assert "#SBATCH --gres=npu:8" in written("mindspeed-llm", "slurm")
    pbs = written("primus", "pbs").splitlines()
    for line in ("#PBS -l select=2:mpiprocs=1:ngpus=8", "#PBS -l walltime=26:00:00",
                 "#PBS -A project-42", "#PBS -q gpu"):  # fmt: skip
        assert line in pbs
    plain = written("megatron-lm", "slurm", Site())
    assert "--account" not in plain
    assert "module load" not in plain


def test_containers() -> None:
    sif = written("primus", "slurm", Site(container="/images/train.sif"))
    assert "exec apptainer exec --rocm /images/train.sif bash" in sif
    image = written("megatron-lm", "slurm", Site(container="nvcr.io/nvidia/pytorch:26.10"))
    assert "--container-image=nvcr.io/nvidia/pytorch:26.10" in image
    pulled = written("megatron-lm", "pbs", Site(container="nvcr.io/nvidia/pytorch:26.10"))
    assert "apptainer exec --nv docker://nvcr.io/nvidia/pytorch:26.10 bash" in pulled


def test_none_changes_nothing_and_plan_files_are_refused() -> None:
    launch = launched("megatron-lm")
    assert written("megatron-lm", "none") == render(launch)
    own = emit("krzem", text("dp=16"), GOAL, load_model("llama-3.1-8b"), cluster("h100:16"))
    with pytest.raises(GoalError, match="plan file"):
        batch(render(own), own, cluster("h100:16"), "slurm", 16)
    with pytest.raises(UnknownNameError, match="slurm"):
        written("megatron-lm", "slrum")
    assert set(ON) == set(ENGINES) - {"krzem"}


def test_the_site_is_read_and_checked() -> None:
    table = {"device": "h100", "devices": 16, "launch": {
        "modules": ["cuda/13.0"], "container": "/images/train.sif", "account": "p-1",
        "partition": "gpu", "time": "26h", "setup": ["ulimit -c 0"],
    }}  # fmt: skip
    site = cluster_of(table).site
    assert site == Site(
        modules=("cuda/13.0",), container="/images/train.sif", account="p-1", partition="gpu",
        time_seconds=93_600.0, setup=("ulimit -c 0",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"account": "a b"}, "launch.account"),
        ({"account": "x\n#SBATCH"}, "launch.account"),
        ({"partition": "$(rm)"}, "launch.partition"),
        ({"modules": "cuda"}, "launch.modules"),
        ({"setup": ["a\nb"]}, "launch.setup"),
        ({"time": "soon"}, "launch.time"),
        ({"queue": "gpu"}, "launch.queue: unknown key"),
        ("gpu", r"write \[launch\]"),
    ],
)
def test_what_the_site_cannot_be(table: object, says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        cluster_of({"device": "h100", "devices": 16, "launch": table})
