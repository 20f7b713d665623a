"""A launch as text, and batch files around it: what Slurm and PBS want, one start per node.

The launch script goes inside, word for word, and is started once on every node, with the address
of the first node and the number of its own in its environment.  What the script asks the user for
is checked before nodes are waited for.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from krzem.errors import GoalError, UnknownNameError
from krzem.hardware.cluster import Cluster
from krzem.plan.emit import parts
from krzem.plan.emit.launch import Flag, Launch, is_asked
from krzem.plan.emit.parts import ASKED

_GIVEN = ("RDZV", "MASTER_ADDR", "NODE_RANK")
"""What the batch file sets, where the launch script alone asks for it."""
_MARK = "KRZEM_LAUNCH"
_RESOURCES = {"cuda": "gpu", "hip": "gpu", "xpu": "gpu", "npu": "npu", "hpu": "hpu"}
"""Generic resource of Slurm by the device string of a framework."""


def batch(script: str, launch: Launch, cluster: Cluster, scheduler: str, devices: int) -> str:
    """The file to submit; with ``none`` the script as it is.

    Raises UnknownNameError for a scheduler, GoalError for an engine that is started by no script.
    """
    if scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise UnknownNameError("scheduler", scheduler, SCHEDULERS, f"Choose from {known}.")
    if scheduler == "none":
        return script
    if not script.startswith("#!"):
        raise GoalError(
            f"{launch.engine} is started by a plan file, not by a script: leave --scheduler out,"
            " and start krzem train in a batch file of your own"
        )
    return "\n".join(SCHEDULERS[scheduler](script, launch, cluster, devices)) + "\n"


def _nodes(cluster: Cluster, devices: int) -> tuple[int, int]:
    """Nodes, and devices of each."""
    each = min(cluster.devices_per_node, devices)
    return -(-devices // each), each


def _clock(seconds: float) -> str:
    """``26:30:00``: hours, minutes, seconds, rounded down to a minute."""
    minutes = int(seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def _name(launch: Launch) -> str:
    return f"krzem-{launch.engine}"


def _slurm(script: str, launch: Launch, cluster: Cluster, devices: int) -> Iterator[str]:
    nodes, each = _nodes(cluster, devices)
    site, kind = cluster.site, _RESOURCES.get(cluster.device.software)
    yield "#!/usr/bin/env bash"
    yield f"#SBATCH --job-name={_name(launch)}"
    yield f"#SBATCH --nodes={nodes}"
    yield "#SBATCH --ntasks-per-node=1"
    if kind is not None:
        yield f"#SBATCH --gres={kind}:{each}"
    yield "#SBATCH --exclusive"
    if site.time_seconds is not None:
        yield f"#SBATCH --time={_clock(site.time_seconds)}"
    if site.account:
        yield f"#SBATCH --account={site.account}"
    if site.partition:
        yield f"#SBATCH --partition={site.partition}"
    yield "#SBATCH --output=%x-%j.log"
    yield "#SBATCH --open-mode=append"
    yield from _before(launch, cluster)
    yield 'read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")'
    yield from _address(script, "$SLURM_JOB_ID")
    inside, wrapped = _container(cluster)
    yield (
        f"srun --kill-on-bad-exit=1 --export=ALL{inside} bash -c"
        f" 'export NODE_RANK=$SLURM_NODEID; exec {wrapped}bash \"$LAUNCH_FILE\"'"
    )


def _pbs(script: str, launch: Launch, cluster: Cluster, devices: int) -> Iterator[str]:
    nodes, each = _nodes(cluster, devices)
    site, kind = cluster.site, _RESOURCES.get(cluster.device.software)
    chunk = f":n{kind}s={each}" if kind is not None else ""
    yield "#!/usr/bin/env bash"
    yield f"#PBS -N {_name(launch)}"
    yield f"#PBS -l select={nodes}:mpiprocs=1{chunk}"
    yield "#PBS -l place=scatter:excl"
    if site.time_seconds is not None:
        yield f"#PBS -l walltime={_clock(site.time_seconds)}"
    if site.account:
        yield f"#PBS -A {site.account}"
    if site.partition:
        yield f"#PBS -q {site.partition}"
    yield "#PBS -j oe"
    yield "#PBS -V"
    yield 'cd "$PBS_O_WORKDIR"'
    yield from _before(launch, cluster)
    yield 'MASTER_ADDR=$(head -n 1 "$PBS_NODEFILE")'
    yield from _address(script, "$PBS_JOBID")
    _, wrapped = _container(cluster, plugin=False)
    yield "# pbsdsh starts one process per node without the environment: it is read from a file"
    yield 'export -p > "$LAUNCH_FILE.environment"'
    yield (
        'pbsdsh -- bash -c ". $LAUNCH_FILE.environment; cd $PWD;'
        f' export NODE_RANK=\\$PBS_NODENUM; exec {wrapped}bash $LAUNCH_FILE"'
    )


def _before(launch: Launch, cluster: Cluster) -> Iterator[str]:
    """Modules, lines of the site, and what has to be set when the file is submitted."""
    yield "set -euo pipefail"
    yield ""
    if cluster.site.modules:
        yield f"module load {' '.join(cluster.site.modules)}"
    yield from cluster.site.setup
    for name, what in _asked(launch).items():
        yield f': "${{{name}:?{what}}}"; export {name}'


def _asked(launch: Launch) -> Mapping[str, str]:
    """What the launch script asks for and the batch file does not know."""
    texts = [flag.value for flag in (*launch.environment, *launch.flags)]
    found: dict[str, str] = {}
    for hit in (hit for text in (*texts, launch.command) for hit in ASKED.finditer(text)):
        if hit[1] not in _GIVEN:
            found.setdefault(hit[1], hit[2])
    return found


def _address(script: str, job: str) -> Iterator[str]:
    """The meeting point, and the launch script as a file of this job."""
    mark = _MARK
    while re.search(rf"^{mark}$", script, re.MULTILINE):
        mark += "_"
    yield "export MASTER_ADDR MASTER_PORT=29500"
    yield 'export RDZV="$MASTER_ADDR:29500"'
    yield f'export LAUNCH_FILE="$PWD/launch-{job}.sh"'
    yield f"cat > \"$LAUNCH_FILE\" <<'{mark}'"
    yield script.rstrip("\n")
    yield mark
    yield ""


def _container(cluster: Cluster, plugin: bool = True) -> tuple[str, str]:
    """Options of the scheduler's plugin, or the words of Apptainer before the command."""
    image = cluster.site.container
    if not image:
        return "", ""
    if plugin and not image.endswith(".sif"):
        return (
            f" --container-image={image} --container-mounts=$PWD:$PWD --container-workdir=$PWD",
            "",
        )
    device = {"cuda": " --nv", "hip": " --rocm"}.get(cluster.device.software, "")
    source = image if image.endswith(".sif") else f"docker://{image}"
    return "", f"apptainer exec{device} {source} "


def _plain(script: str, launch: Launch, cluster: Cluster, devices: int) -> Iterator[str]:
    yield script


SCHEDULERS: Mapping[str, Callable[[str, Launch, Cluster, int], Iterator[str]]] = MappingProxyType(
    {"slurm": _slurm, "pbs": _pbs, "none": _plain}
)
"""Writers of batch files by the name of their scheduler."""

# A launch as text: a shell script, a Python recipe or a TOML file, each setting explained
# ----------------------------------------------------------------------------------------

WIDTH = 100


def render(launch: Launch, explain: bool = True) -> str:
    """The text to save and run; with ``explain`` every flag carries its reason."""
    writer = {"torchtitan": _recipe, "krzem": _toml}.get(launch.engine, _script)
    return "\n".join(writer(launch, explain)) + "\n"


def _script(launch: Launch, explain: bool) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    yield from _head(launch)
    yield "set -euo pipefail"
    yield ""
    yield from _exports(launch, explain)
    yield from parts.installed(launch.installed)
    if launch.parts:
        yield from parts.asked(launch)
        yield from parts.files(launch, explain)
    if launch.sections or not launch.parts:
        yield from _arguments(launch, explain)
    yield launch.command


def _arguments(launch: Launch, explain: bool) -> Iterator[str]:
    yield "args=("
    for part in launch.sections:
        yield from _comment(part.title, "  ")
        for flag in part.flags:
            value = f" {_shell(flag.value)}" if flag.value else ""
            yield from _explained(f"  {flag.name}{value}", flag, explain)
    yield ")"
    yield ""


def _recipe(launch: Launch, explain: bool) -> Iterator[str]:
    """A shell script that writes the Python recipe beside itself and starts it."""
    yield "#!/usr/bin/env bash"
    yield from _head(launch)
    yield "set -euo pipefail"
    yield ""
    yield from _exports(launch, explain)
    yield from parts.installed(launch.installed)
    yield "cat > krzem_recipe.py <<'PYTHON'"
    base, *settings = launch.flags
    yield from launch.preamble
    yield ""
    yield ""
    yield "def run() -> Trainer.Config:"
    yield from _explained(f"    config = {base.value}", base, explain)
    for flag in settings:
        yield from _explained(f"    config.{flag.name} = {flag.value}", flag, explain)
    yield "    return dataclasses.replace(config)  # checks the whole once more"
    yield "PYTHON"
    yield ""
    yield launch.command


def _toml(launch: Launch, explain: bool) -> Iterator[str]:
    yield from _head(launch)
    for part in launch.sections:
        yield ""
        yield f"[{part.title}]"
        for flag in part.flags:
            yield from _explained(f"{flag.name} = {flag.value}", flag, explain)


def _head(launch: Launch) -> Iterator[str]:
    yield from _comment(f"{launch.engine} {launch.version}, emitted by krzem")
    if launch.model and launch.engine != "krzem":
        yield f"# Model: {launch.model}"
        for title, text in launch.priced:
            yield f"# {title}: {text}"
    if launch.asked:
        yield from _comment(f"Set first: {', '.join(launch.asked)}")
    for note in launch.notes:
        yield from _comment(f"NOTE: {note}")


def _exports(launch: Launch, explain: bool) -> Iterator[str]:
    for flag in launch.environment:
        yield from _explained(f"export {flag.name}={_shell(flag.value)}", flag, explain)
    if launch.environment:
        yield ""


def _explained(line: str, flag: Flag, explain: bool) -> Iterator[str]:
    """The line with its reason behind it, or above it where both do not fit."""
    if not explain:
        yield line
    elif len(line) + len(flag.why) + 4 <= WIDTH:
        yield f"{line}  # {flag.why}"
    else:
        indent = line[: len(line) - len(line.lstrip())]
        yield from _comment(flag.why, indent)
        yield line


def _comment(text: str, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _shell(value: str) -> str:
    """Quoted for the shell; the parts of a list stay apart."""
    if is_asked(value):
        return f'"{value}"'
    return " ".join(shlex.quote(part) for part in value.split(" "))
