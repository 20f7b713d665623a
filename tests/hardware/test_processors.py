from pathlib import Path

import pytest

from krzem.errors import UnknownFactError
from krzem.hardware import read_cluster
from krzem.run.profile import Profile, profile_text

MEASURED = {
    "bf16_flops": 2e11, "tf32_flops": 5e10, "memory_bytes_per_s": 2e10, "memory_bytes": 8e9,
    "scale_up_bytes_per_s": 1e9,
}  # fmt: skip


def test_a_profile_of_processors_is_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    profile = Profile(device="cpu", devices=2, measured=MEASURED)
    path.write_text(profile_text(profile, verdict="passed", when="2026-11-28", evidence={}))
    cluster = read_cluster(path)
    assert (cluster.device.id, cluster.devices, cluster.memory_bytes) == ("cpu", 2, 8e9)
    assert dict(cluster.device.peak_flops) == {"bf16": 2e11, "tf32": 5e10}
    assert cluster.scale_up_bytes_per_s == 1e9


def test_unmeasured_processors_are_unknown_and_say_what_measures_them() -> None:
    with pytest.raises(UnknownFactError, match="krzem probe --out") as caught:
        read_cluster("cpu:2")
    assert "(a bf16 matrix rate, memory bandwidth, memory)" in str(caught.value)
