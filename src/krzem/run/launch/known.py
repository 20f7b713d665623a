"""Which launchers there are: krzem's own, ready commands, and those of other packages.

Another package brings one by an entry point of the group ``krzem.launchers``: a name, and a
callable that takes a :class:`~krzem.run.pool_settings.Pool` and returns a
:class:`~krzem.run.launch.job.JobLauncher`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from krzem.errors import LaunchError, RunError, UnknownNameError
from krzem.run.launch.commands import CommandLauncher, commands_of, ready
from krzem.run.launch.job import JobLauncher
from krzem.run.launch.local import LocalLauncher
from krzem.run.launch.slurm import slurm_launcher
from krzem.run.pool_settings import LOCAL, SITE, SLURM, Pool

GROUP = "krzem.launchers"
OWN_COMMANDS = "commands"
"""A launcher that the run file states whole, in [pool.scheduler] commands."""


def known() -> dict[str, str]:
    """Every launcher's name, and how far it was tested."""
    found = {LOCAL: "always", SLURM: "Slurm, with two node daemons"}
    found |= {name: c.tested for name, c in ready().items()}
    found |= {OWN_COMMANDS: "yours to test", SITE: "between two folders of one machine"}
    return found | {point.name: f"{point.value}, another package's" for point in _points()}


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def check_launcher(pool: Pool) -> None:
    """Raise UnknownNameError or RunError where the pool's launcher cannot be made."""
    if pool.launcher not in known():
        hint = f"Known are {', '.join(known())}."
        raise UnknownNameError("launcher", pool.launcher, known(), hint)
    if pool.launcher in ready() or pool.launcher == OWN_COMMANDS:
        commands_of(pool.scheduler.commands, ready().get(pool.launcher))


def launcher_of(pool: Pool) -> JobLauncher:
    """The launcher that a pool names; raises LaunchError where there is none."""
    if pool.launcher == LOCAL:
        return LocalLauncher()
    if pool.launcher == SLURM:
        return slurm_launcher(pool.slurm)
    if pool.launcher == SITE:
        from krzem.run.far import SiteLauncher

        return SiteLauncher(pool)
    base = ready().get(pool.launcher)
    if base is not None or pool.launcher == OWN_COMMANDS:
        return CommandLauncher(pool.launcher, commands_of(pool.scheduler.commands, base))
    point = next((p for p in _points() if p.name == pool.launcher), None)
    if point is None:
        raise LaunchError(
            f"no launcher is called {pool.launcher!r}; known are {', '.join(known())}"
        )
    try:
        made: JobLauncher = point.load()(pool)
    except Exception as error:  # a package of somebody else's, which may fail in any way
        raise RunError(f"launcher {pool.launcher} ({point.value}) failed: {error}") from error
    return made
