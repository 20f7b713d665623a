import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENABLE = (
    "apt-get install -y --no-install-recommends slurm-wlm munge && KRZEM_SLURM=1 make test, as root"
)


def start_slurm(folder: Path) -> Path:
    """A Slurm with two node daemons, which ends with this process at the latest; its home."""
    for attempt in range(3):  # the ports that one chooses may be taken
        home = folder / f"slurm{attempt}"
        home.mkdir()
        command = [SCRIPTS / "slurm-up", home, "2", str(os.getpid())]
        said = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, check=False)  # fmt: skip
        if said.returncode == 0:
            return home
    raise RuntimeError(f"Slurm did not start: {said.stderr}")


@pytest.fixture(scope="session")
def new_slurm(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Path]]:
    """Starts a Slurm of our own; skips, with the command that enables it, where that cannot be."""
    missing = [t for t in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(t)]
    if missing or os.geteuid() or os.environ.get("KRZEM_SLURM") != "1":
        pytest.skip(f"tests of Slurm start its daemons on this machine: {ENABLE}")
    started: list[Path] = []

    def new() -> Path:
        started.append(start_slurm(tmp_path_factory.mktemp("slurm")))
        return started[-1]

    yield new
    for home in started:
        subprocess.run([SCRIPTS / "slurm-down", home], check=False)


@pytest.fixture(scope="session")
def slurm_folder(new_slurm: Callable[[], Path]) -> Path:
    """The Slurm that tests share."""
    return new_slurm()


@pytest.fixture
def slurm(slurm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as this test's Slurm."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_folder / "slurm.conf"))
    return slurm_folder


@pytest.fixture
def own_slurm(new_slurm: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm for this test alone, which may break it."""
    home = new_slurm()
    monkeypatch.setenv("SLURM_CONF", str(home / "slurm.conf"))
    return home


ENABLE_GRID_ENGINE = (
    "apt-get install -y --no-install-recommends gridengine-master gridengine-exec "
    "gridengine-client && KRZEM_GRID_ENGINE=1 make test, as root"
)


@pytest.fixture(scope="session")
def grid_engine_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Grid Engine of our own; skips, with the command that enables it, where that cannot be."""
    missing = [t for t in ("sge_qmaster", "sge_execd", "qsub", "qconf") if not shutil.which(t)]
    if missing or os.geteuid() or os.environ.get("KRZEM_GRID_ENGINE") != "1":
        pytest.skip(f"tests of Grid Engine start its daemons on this machine: {ENABLE_GRID_ENGINE}")
    home = Path(tempfile.mkdtemp(prefix="krzem-sge."))
    up = [SCRIPTS / "grid-engine-up", home, str(os.getpid())]
    said = subprocess.run(up, capture_output=True, text=True, check=False)
    if said.returncode:
        raise RuntimeError(f"Grid Engine did not start: {said.stderr}")
    yield dict(word.split("=", 1) for word in said.stdout.split())
    subprocess.run([SCRIPTS / "grid-engine-down", home], check=False)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def grid_engine(grid_engine_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Grid Engine that tests share."""
    for name, value in grid_engine_variables.items():
        monkeypatch.setenv(name, value)
