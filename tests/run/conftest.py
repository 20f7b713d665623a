import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENABLE = "apt-get install -y --no-install-recommends slurm-wlm munge (and run the tests as root)"


@pytest.fixture(scope="session")
def slurm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of our own with two node daemons; skips, with the command, where there is none."""
    if os.environ.get("KRZEM_SLURM") != "1":
        pytest.skip("Slurm tests start daemons on this machine: KRZEM_SLURM=1 make test")
    missing = [t for t in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(t)]
    if missing or os.geteuid():
        pytest.skip(f"Slurm tests need {', '.join(missing) or 'root'}: {ENABLE}")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPTS / "slurm-up", folder], check=True, stdout=subprocess.DEVNULL)
    yield folder
    subprocess.run([SCRIPTS / "slurm-down", folder], check=False)


@pytest.fixture
def slurm(slurm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as this test's Slurm."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_folder / "slurm.conf"))
    return slurm_folder
