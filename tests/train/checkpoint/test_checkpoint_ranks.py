"""Saving on some ranks, loading on others: one logical state through every layout."""

from __future__ import annotations

from pathlib import Path

import checkpoint_ranks as ranks
import pytest

from krzem.train.checkpoint import latest_good, read_manifest, verify


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that four ranks began, then two, one and three went on with."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.start(4, folder, ranks.four_ranks)
    ranks.start(2, folder, ranks.move, "grid", 1)
    ranks.move(0, 1, folder, "alone", 2)
    ranks.start(3, folder, ranks.three_ranks)
    ranks.train(0, 1, folder, 5, 1)
    return folder


def test_four_to_two_to_one_to_three_ranks(run: Path) -> None:
    """The ranks themselves compared every tensor, bit for bit, with what it should be."""
    manifests = [verify(run / "run" / f"step-00000000{n}") for n in (1, 2, 3, 4)]
    assert [m.written_by["ranks"] for m in manifests] == [4, 2, 1, 3]
    assert [m.bytes for m in manifests] == [manifests[0].bytes] * 4
    assert len({m.config_sha256 for m in manifests}) == 1
    assert [len(m.tensors["experts"].chunks) for m in manifests] == [6, 6, 1, 3]


def test_replicated_tensors_are_written_once(run: Path) -> None:
    manifest = read_manifest(run / "run" / "step-000000001")
    stored = sum(c.stop - c.start for t in manifest.tensors.values() for c in t.chunks)
    assert stored == manifest.bytes


def test_training_goes_on_under_another_number_of_ranks(run: Path, tmp_path: Path) -> None:
    """Six steps through 4, 3 and 1 ranks give the losses of six steps on one rank."""
    moved = read_manifest(run / "fsdp" / "step-000000006").meta["losses"]
    ranks.train(0, 1, tmp_path, None, 6)
    alone = read_manifest(tmp_path / "fsdp" / "step-000000006").meta["losses"]
    assert moved == pytest.approx(alone, abs=1e-6)


def test_a_rank_killed_while_saving_fails_the_save_on_all(tmp_path: Path) -> None:
    assert ranks.exit_codes(3, tmp_path, ranks.a_rank_dies) == [0, -9, 0]
    assert latest_good(tmp_path / "dies") == tmp_path / "dies" / "step-000000001"
    assert not (tmp_path / "dies" / "step-000000002" / "manifest.json").exists()
