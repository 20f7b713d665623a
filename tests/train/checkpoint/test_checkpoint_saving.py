"""One process: what is saved is loaded, and nothing is lost whatever happens in between."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch

from krzem.errors import CheckpointError, StorageError
from krzem.train.checkpoint import (
    AsyncSaver,
    Part,
    Retention,
    attach,
    check_config,
    checkpoints,
    config_hash,
    latest_good,
    load,
    load_meta,
    prune,
    read_attachment,
    read_manifest,
    save,
    step_folder,
    verify,
)
from krzem.train.checkpoint.pieces import DTYPES


def some_state(value: float = 1.0) -> dict[str, Any]:
    return {
        "weight/a": torch.full((40, 7), value),
        "weight/b": torch.full((3,), value).bfloat16(),
        "count": torch.tensor(int(value)),
    }


def good_value(folder: Path) -> float:
    """The value a checkpoint of ``some_state`` was made with; all tensors must agree."""
    state = some_state(0)
    load(folder, state)
    value = float(state["count"])
    assert all(torch.equal(t, some_state(value)[n]) for n, t in state.items())
    return value


def test_round_trip_of_every_type_and_shape(tmp_path: Path) -> None:
    base = torch.arange(60).reshape(3, 4, 5)
    state = {name: base.to(dtype) for name, dtype in DTYPES.items()}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": base.float().mT}
    state["grad"] = torch.nn.Parameter(torch.randn(5))
    meta = {"tokens": 7, "nested": {"x": [1.5, None, "ł"]}}
    saved = save(tmp_path, 12, state, meta=meta, config={"hidden": 3})
    assert saved.folder == tmp_path / "step-000000012"
    into = {name: torch.zeros_like(t) for name, t in state.items()}
    manifest = load(saved.folder, into, config={"hidden": 3})
    assert manifest.meta == meta
    assert manifest.step == 12
    for name, tensor in state.items():
        same = torch.equal(into[name].detach().float(), tensor.detach().float())
        assert same, name
        assert into[name].dtype == tensor.dtype
    assert manifest.bytes == saved.bytes == sum(t.nbytes for t in state.values())


def test_nothing_is_pickled(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(), meta={}).folder
    names = sorted(p.suffix for p in folder.iterdir())
    assert names == [".json", ".safetensors"]
    for path in folder.iterdir():
        assert b"\x80\x04" not in path.read_bytes()[:4]
    json.loads((folder / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight/a": "text"}, "weight/a is a str"),
        ({"weight/a": torch.zeros(2, dtype=torch.complex64)}, "which checkpoints cannot hold"),
        ({"weight/a": Part(tensor=torch.ones(2), shape=(3,), offset=(2,))}, "is no part of"),
        ({"weight/a": Part(tensor=torch.ones(2), shape=(3,), offset=(0,))}, "hold 2 of them"),
        (
            {"a": [Part(tensor=torch.ones(2), shape=(3,), offset=(o,)) for o in (0, 1)]},
            "or two parts overlap",
        ),
    ],
)
def test_states_that_are_none_teach(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        save(tmp_path, 1, change, meta={})
    assert not checkpoints(tmp_path)


def test_meta_and_config_must_be_json(tmp_path: Path) -> None:
    for bad in ({"x": torch.ones(1)}, {"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(CheckpointError, match="meta of a checkpoint must be plain JSON"):
            save(tmp_path, 1, some_state(), meta=bad)
    with pytest.raises(CheckpointError, match="config of a checkpoint must be plain JSON"):
        save(tmp_path, 1, some_state(), meta={}, config={"x": object()})


def test_types_are_converted_only_on_request(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, {"w": torch.tensor([1.5, 2.25])}, meta={}).folder
    target = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="w is float32 there, bfloat16 here"):
        load(folder, {"w": target})
    load(folder, {"w": target}, cast=True)
    assert target.tolist() == [1.5, 2.25]


def test_another_model_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(), meta={}, config={"hidden": 64, "layers": 2}).folder
    with pytest.raises(CheckpointError, match=r"of another model\. hidden: 64 there, 128 here$"):
        load(folder, some_state(), config={"layers": 2, "hidden": 128})
    load(folder, some_state(), config={"layers": 2, "hidden": 64})
    bare = save(tmp_path, 2, some_state(), meta={}).folder
    with pytest.raises(CheckpointError, match="does not say which model"):
        load(bare, some_state(), config={"hidden": 64})
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def data_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a tensor": (lambda p: flip(data_file(p), -1), "was altered in count at"),
    "a bit of the header": (lambda p: flip(data_file(p), 20), "outside the tensors' data"),
    "cut short": (lambda p: os.truncate(data_file(p), 99), "has 99 bytes, the manifest says"),
    "file gone": (lambda p: data_file(p).unlink(), "is missing"),
    "manifest gone": (lambda p: (p / "manifest.json").unlink(), "incomplete checkpoint"),
    "manifest altered": (lambda p: flip(p / "manifest.json", -9), "altered|not the manifest"),
    "manifest empty": (lambda p: os.truncate(p / "manifest.json", 0), "not the manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    harm, says = DAMAGES[damage]
    for step in (1, 2):
        save(tmp_path, step, some_state(step), meta={})
    newest = step_folder(tmp_path, 2)
    harm(newest)
    state = some_state(0)
    with pytest.raises(CheckpointError, match=says):
        load(newest, state)
    assert all(not t.any() for t in state.values())
    told: dict[Path, str] = {}
    found = latest_good(tmp_path, rejected=told.__setitem__)
    assert found == step_folder(tmp_path, 1)
    assert list(told) == [newest]
    assert good_value(found) == 1


def test_every_single_altered_bit_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, {"w": torch.arange(3.0)}, meta={"t": 1}).folder
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        for at in range(0, len(raw), 7):
            flip(path, at)
            with pytest.raises(CheckpointError):
                verify(folder)
            path.write_bytes(raw)
    verify(folder)


def test_what_is_not_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "none", some_state())
    save(tmp_path, 5, some_state(), meta={})
    with pytest.raises(CheckpointError, match="it holds step-000000005: name one of them"):
        load(tmp_path, some_state())
    assert latest_good(tmp_path / "none") is None


def test_a_format_from_the_future_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(), meta={}).folder
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "version": 9}))
    with pytest.raises(CheckpointError, match="format version 9; this krzem reads version 1"):
        load(folder, some_state())


def test_saving_a_step_again_replaces_it_at_once(tmp_path: Path) -> None:
    save(tmp_path, 1, some_state(1), meta={})
    save(tmp_path, 1, some_state(2), meta={})
    assert good_value(step_folder(tmp_path, 1)) == 2
    assert len(list(step_folder(tmp_path, 1).iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"cannot write .*\.safetensors: the disk is full \(.* GB free\); make room"),
        (errno.EROFS, r"cannot write .*: .*; choose a folder you may write to"),
        (errno.EIO, "cannot write .*: disk on fire"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, call: str
) -> None:
    save(tmp_path, 1, some_state(1), meta={})
    real, calls = getattr(os, call), 0

    def refuse(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(number, "disk on fire")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=says.replace(r"\.safetensors", "")) as caught:
            save(tmp_path, 2, some_state(2), meta={})
    assert "\n" not in str(caught.value)
    assert [s for s, _ in checkpoints(tmp_path)] == [1]
    assert good_value(step_folder(tmp_path, 1)) == 1
    save(tmp_path, 2, some_state(2), meta={})
    assert good_value(step_folder(tmp_path, 2)) == 2


def child(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Run ``work`` in a process of its own, forked from a server that has started no threads.

    A fork of this process would inherit locks that threads of torch may hold.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "krzem.train.checkpoint"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def save_under_a_limit(root: Path) -> None:
    """Save more than the kernel lets this process write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    with pytest.raises(StorageError, match="larger than the file-size limit"):
        save(root, 2, {"w": torch.zeros(100_000)}, meta={})


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """The kernel itself refuses the bytes."""
    save(tmp_path, 1, some_state(1), meta={})
    process = child(save_under_a_limit, tmp_path)
    process.join(60)
    assert process.exitcode == 0
    assert latest_good(tmp_path) == step_folder(tmp_path, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="choose a folder you may write to"):
        save(tmp_path, 1, some_state(), meta={})


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save(tmp_path / "run", 1, some_state(), meta={})


def test_the_guard_has_the_last_word(tmp_path: Path) -> None:
    save(tmp_path, 1, some_state(1), meta={})
    seen = []

    def guard() -> None:
        folder = step_folder(tmp_path, 2)
        seen.append((any(folder.glob("*.safetensors")), (folder / "manifest.json").exists()))
        raise CheckpointError("token 3 is not the newest, 4 is")

    with pytest.raises(CheckpointError, match="token 3 is not the newest"):
        save(tmp_path, 2, some_state(2), meta={}, commit_guard=guard)
    assert seen == [(True, False)]
    assert [s for s, _ in checkpoints(tmp_path)] == [1]


def save_for_ever(root: Path, first: int, ready: Event) -> None:
    """Save step after step, pruning as it goes."""
    ready.set()
    with AsyncSaver(root, retention=Retention(keep_last=2)) as saver:
        for step in range(first, first + 100_000):
            saver.save(step, some_state(step), {"step": step})


def test_killed_at_any_moment_the_last_good_one_loads(tmp_path: Path) -> None:
    """A saver that prunes as it goes, killed 12 times at random moments."""
    randomness = random.Random(4)
    reached = 0

    for _ in range(12):
        ready = multiprocessing.get_context("forkserver").Event()
        process = child(save_for_ever, tmp_path, reached + 1, ready)
        assert ready.wait(60)
        time.sleep(randomness.uniform(0.0, 0.2))
        process.kill()
        process.join(60)
        found = latest_good(tmp_path)
        if found is None:
            assert reached == 0
            continue
        value = int(good_value(found))
        assert read_manifest(found).meta == {"step": value}
        assert value >= reached
        reached = value
    assert reached > 2
    save(tmp_path, reached + 1, some_state(1), meta={})
    prune(tmp_path, Retention(keep_last=1))
    assert len(checkpoints(tmp_path)) == 1


def test_retention_keeps_what_it_says(tmp_path: Path) -> None:
    for step in range(1, 11):
        save(tmp_path, step, some_state(step), meta={})
    removed = prune(tmp_path, Retention(keep_last=2, keep_every=4))
    assert [s for s, _ in checkpoints(tmp_path)] == [4, 8, 9, 10]
    assert len(removed) == 6
    assert prune(tmp_path, Retention(keep_last=2, keep_every=4)) == []
    with pytest.raises(CheckpointError, match="at least one"):
        Retention(keep_last=0)


def test_retention_never_removes_the_last_good_one(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, some_state(step), meta={})
    for step in (4, 5):
        flip(data_file(step_folder(tmp_path, step)), -1)
    assert prune(tmp_path, Retention(keep_last=2)) == []
    assert [s for s, _ in checkpoints(tmp_path)] == [1, 2, 3, 4, 5]
    assert [p.name for p in prune(tmp_path, Retention(keep_last=3))] == [
        "step-000000001",
        "step-000000002",
    ]
    assert latest_good(tmp_path) == step_folder(tmp_path, 3)


def test_interrupted_saves_are_cleared_when_they_are_old(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, some_state(step), meta={})
    for step in (2, 4):
        (step_folder(tmp_path, step) / "manifest.json").unlink()
    prune(tmp_path, Retention(keep_last=2))
    assert [s for s, _ in checkpoints(tmp_path)] == [1, 3, 4]


@pytest.mark.parametrize("copy_now", [True, False])
def test_saving_behind_training(tmp_path: Path, copy_now: bool) -> None:
    state = some_state(1)
    with AsyncSaver(tmp_path, config={"h": 1}) as saver:
        for step in range(1, 4):
            for name, tensor in some_state(step).items():
                state[name].copy_(tensor)
            before = saver.save(step, state, {"tokens": step}, copy_now=copy_now)
            saver.wait_copied()
            for tensor in state.values():
                tensor.fill_(99)
            assert (before is None) == (step == 1)
        last = saver.close()
    assert last is not None
    assert 0 < last.stall_seconds < last.seconds
    assert [good_value(path) for _, path in checkpoints(tmp_path)] == [1, 2, 3]


def test_a_failed_save_behind_training_is_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = AsyncSaver(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        saver.save(1, some_state(1), {})
        with pytest.raises(StorageError, match="the disk is full"):
            saver.wait()
    assert saver.wait() is None
    saver.save(2, some_state(2), {})
    saved = saver.wait()
    assert saved is not None
    assert good_value(saved.folder) == 2
    saver.save(3, {"w": "text"}, {})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="w is a str"):
        saver.save(4, some_state(4), {})
    assert saver.poll() is None


def test_what_ended_training_is_not_hidden_by_the_save_that_failed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def train() -> None:
        with AsyncSaver(tmp_path) as saver:
            saver.save(1, some_state(1), {})
            raise ArithmeticError("first")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ArithmeticError, match="first"):
        train()


def test_attachments_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(1), meta={}).folder
    attach(folder, "witness", b"first")
    attach(folder, "witness", b"second")
    attach(folder, "witness", b"second")
    attach(folder, "note", b"x")
    assert read_attachment(folder, "witness") == b"second"
    assert len(list(folder.iterdir())) == 4
    assert good_value(folder) == 1
    with pytest.raises(CheckpointError, match=r"no attachment 'other'; it has: note, witness"):
        read_attachment(folder, "other")
    with pytest.raises(CheckpointError, match="plain file name"):
        attach(folder, "../escape", b"x")
    flip(folder / read_manifest(folder).attachments["note"], 0)
    with pytest.raises(CheckpointError, match="was altered"):
        verify(folder)
    with pytest.raises(CheckpointError, match="was altered"):
        read_attachment(folder, "note")


def test_a_guard_protects_attachments_too(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(1), meta={}).folder

    def guard() -> None:
        raise CheckpointError("not ours any more")

    with pytest.raises(CheckpointError, match="not ours"):
        attach(folder, "witness", b"x", guard)
    assert not verify(folder).attachments


def test_looking_at_checkpoints_needs_no_torch(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(), meta={}).folder
    script = (
        "import sys; from pathlib import Path; from krzem.train.checkpoint import latest_good; "
        "import krzem.train.checkpoint.command; "
        f"assert latest_good(Path({str(tmp_path)!r})) == Path({str(folder)!r}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_name_is_exported() -> None:
    import krzem.train.checkpoint as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
    assert dataclasses.is_dataclass(package.Saved)


def test_long_lists_of_faults_are_cut_short(tmp_path: Path) -> None:
    state = {f"t{n}": torch.ones(2) for n in range(12)}
    config = {f"c{n}": n for n in range(9)}
    folder = save(tmp_path, 1, state, meta={}, config=config).folder
    with pytest.raises(CheckpointError, match=r"12 of 12 tensors.* and 7 more"):
        load(folder, {n: torch.ones(3) for n in state})
    with pytest.raises(CheckpointError, match=r"and 4 more"):
        load(folder, state, config=dict.fromkeys(config, -1))
    with pytest.raises(CheckpointError, match=r"11 tensors that no rank asked for: t1, .* …"):
        load(folder, {"t0": torch.ones(2)})
    with pytest.raises(CheckpointError, match="absent is not in it"):
        load(folder, {"absent": torch.ones(2)})


def test_without_torch_exchanging_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from krzem.train.checkpoint import command

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"pip install 'krzem\[train\]'"):
        command._need_torch()


def test_load_meta_and_check_config_stand_alone(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, some_state(), meta={"tokens": 3}, config={"h": 1}).folder
    assert load_meta(folder) == {"tokens": 3}
    check_config(folder, read_manifest(folder), {"h": 1})
    check_config(folder, read_manifest(folder), None)
