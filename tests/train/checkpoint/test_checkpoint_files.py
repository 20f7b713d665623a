"""The tensor file format and the reading of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from krzem.errors import CheckpointError
from krzem.train.checkpoint import boxes
from krzem.train.checkpoint.manifest import Chunk
from krzem.train.checkpoint.pieces import DTYPES, raw_bytes
from krzem.train.checkpoint.tensor_file import CODES, Entry, TensorFileWriter, read_header

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def write(path: Path, tensors: dict[str, Any]) -> None:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = [
        (name, Entry(dtype=names[t.dtype], shape=tuple(t.shape))) for name, t in tensors.items()
    ]
    with TensorFileWriter(path, entries, {"format": "pt"}) as file:
        for tensor in tensors.values():
            file.write(raw_bytes(tensor))
        file.finish()


def test_every_type_is_read_back_by_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    base = torch.arange(24).reshape(2, 3, 4)
    tensors = {name: base.to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": base.mT}
    write(tmp_path / "a.safetensors", tensors)
    read = library.load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    entries, metadata = read_header(tmp_path / "a.safetensors")
    assert metadata == {"format": "pt"}
    assert set(CODES) == set(DTYPES)
    assert entries["bool"].shape == (2, 3, 4)


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4)}
    library.save_file(tensors, tmp_path / "a.safetensors")
    entries, _ = read_header(tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    for name, tensor in tensors.items():
        assert raw[entries[name].start : entries[name].stop] == bytes(raw_bytes(tensor))


def _header(value: Any) -> bytes:
    raw = json.dumps(value).encode() if not isinstance(value, bytes) else value
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cut short"),
        (b"\xff" * 64, "cut short"),
        (_header(b"{broken"), "damaged"),
        (_header([1]), "damaged"),
        (_header({"a": {"dtype": "F32", "shape": [4]}}), "damaged"),
        (_header({"a": {"dtype": "C128", "shape": [1], "data_offsets": [0, 16]}}), "not supported"),
        (_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "needs bytes"),
        (_header({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 4]}}) + b"1234", "needs"),
        (_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-9, -5]}}), "before"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_header(tmp_path / "a.safetensors")


def test_an_unfinished_file_does_not_stay(tmp_path: Path) -> None:
    entries = [("a", Entry(dtype="float32", shape=(2,)))]
    with pytest.raises(RuntimeError), TensorFileWriter(tmp_path / "a", entries):
        raise RuntimeError("interrupted")
    assert not list(tmp_path.iterdir())


@st.composite
def box_in(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A shape, and offset and size of a box in it."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    offset = tuple(draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True))
    return shape, offset, size


@given(case=box_in(), block=st.sampled_from([1, 64, 10**6]), separate=st.sampled_from([1, 16, 999]))
@QUICK
def test_any_box_is_read_exactly(tmp_path: Path, case: Any, block: int, separate: int) -> None:
    shape, offset, size = case
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
    path = tmp_path / "box"
    path.write_bytes(b"in front" + bytes(raw_bytes(whole)))
    chunk = Chunk(
        offset=(0,) * len(shape),
        shape=shape,
        file="box",
        start=8,
        stop=8 + whole.numel() * 4,
        crc32=0,
    )
    out = torch.full((*size, 2), -1, dtype=torch.int32)[..., 0]  # not contiguous
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "BLOCK_BYTES", block)
        patch.setattr(boxes, "_SEPARATE_READS", separate)
        boxes.read_box(tmp_path, chunk, "int32", offset, out)
    for dim, (start, count) in enumerate(zip(offset, size, strict=True)):
        whole = whole.narrow(dim, start, count)
    assert torch.equal(out, whole)


def test_only_the_bytes_of_the_box_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.zeros(64, 8192)
    (tmp_path / "box").write_bytes(bytes(raw_bytes(whole)))
    chunk = Chunk(offset=(0, 0), shape=(64, 8192), file="box", start=0, stop=whole.nbytes, crc32=0)
    read = []
    real = boxes.pread_exactly

    def counted(descriptor: int, buffer: memoryview, start: int, path: Path) -> None:
        read.append(buffer.nbytes)
        real(descriptor, buffer, start, path)

    monkeypatch.setattr(boxes, "pread_exactly", counted)
    boxes.read_box(tmp_path, chunk, "float32", (8, 0), torch.empty(3, 8192))
    assert sum(read) == 3 * 8192 * 4
    read.clear()
    boxes.read_box(tmp_path, chunk, "float32", (0, 4096), torch.empty(64, 4096))
    assert sum(read) == 64 * 4096 * 4


def test_a_file_cut_short_under_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "box").write_bytes(b"1234")
    chunk = Chunk(offset=(0,), shape=(4,), file="box", start=0, stop=16, crc32=0)
    with pytest.raises(CheckpointError, match="was cut short: it ends at byte 4"):
        boxes.read_box(tmp_path, chunk, "float32", (0,), torch.empty(4))
