"""Files that are no job or no log: ``krzem check`` ends in one sentence, and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RUN = (
    "#!/bin/bash\ntorchrun --nnodes 1 --nproc_per_node 8 pretrain_gpt.py --num-layers 4"
    " --hidden-size 512 --num-attention-heads 8 --seq-length 512 --micro-batch-size 1"
    " --global-batch-size 8 --bf16 --vocab-size 1000 --train-iters 5\n"
)
NESTED = "".join(f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
                 for a, b in zip("abcde", "bcdef", strict=True))  # fmt: skip
TABLES = "runner_config: {a: 1}\nparallel_config: {a: 1}\nmodel_config: {a: 1}\n"

HOSTILE = {
    "fork bomb": ("run.sh", ":(){ :|:& };:\nbomb(){ bomb | bomb & }; bomb\n", "calls itself"),
    "recursion": ("run.sh", "f(){ f; f; }\nf\n", "calls itself"),
    "long range": ("run.sh", "for i in {1..100000000}; do A=$A$A; done\n", "counts 99,999,999"),
    "loops": ("run.sh", "for((i=0;i<9**9;i++)); do for((j=0;j<9**9;j++)); do x=$i; done; done\n",
              "60,000 steps"),
    "substitution": ("run.sh", "$(touch MARK)\n`touch MARK`\nX=$(touch MARK)\n", "no engine"),
    "unclosed": ("run.sh", RUN + 'echo "a\n', "not closed"),
    "aliases": ("a.yaml", "a: &a [x]\n" + NESTED + TABLES, "aliases unfolded"),
    "tag": ("a.yaml", TABLES + "x: !!python/object/apply:os.system ['touch MARK']\n", "decide"),
    "half a table": ("a.yaml", TABLES + "b: {a: 1\nc: [\n", "not valid YAML"),
    "deep": ("a.json", '{"per_device_train_batch_size": ' + "[" * 50_000, "a.json"),
    "recipe": ("a.py", "import os\nimport nemo_run as run\nos.system('touch MARK')\n"
               "from nemo.collections import llm\ndef recipe():\n"
               "    return run.Partial(os.system('touch MARK'))\n", "decide"),
    "unknown": ("a.yaml", "engine: unheard\nsteps: 3\n", "no engine"),
    "nothing": ("run.sh", "", "no engine"),
}  # fmt: skip


def fails(krzem: Callable[..., Any], *arguments: str) -> str:
    said = krzem("check", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("krzem: error: ")
    assert said.err.count("\n") == 1
    assert len(said.err) < 1200
    return str(said.err)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text(krzem: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    name, text, why = HOSTILE[kind]
    mark = tmp_path / "mark"
    (tmp_path / name).write_text(text.replace("MARK", str(mark)), encoding="utf-8")
    assert why in fails(krzem, str(tmp_path / name), "--on", "h100:8")
    assert not mark.exists()


def things(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Names that are no text, and what is said of each."""
    folder.mkdir()
    paths = {name: folder / name for name in ("binary.sh", "huge.sh", "pipe", "folder", "loop")}
    paths["binary.sh"].write_bytes(bytes(range(256)) * 40)
    with paths["huge.sh"].open("wb") as file:
        file.truncate(1 << 32)
    os.mkfifo(paths["pipe"])
    paths["folder"].mkdir()
    paths["loop"].symlink_to(paths["loop"])
    said = {
        "binary.sh": ("UTF-8", "reports a training step"), "huge.sh": ("bytes", "not text"),
        "pipe": ("not a file", "not a file"), "folder": ("not a file", "not a file"),
        "loop": ("cannot be read", "cannot be read"),
    }  # fmt: skip
    named = {name: (path, *said[name]) for name, path in paths.items()}
    return {**named, "/dev/zero": (Path("/dev/zero"), "not a file", "not a file")}


@pytest.mark.parametrize("name", ["binary.sh", "huge.sh", "pipe", "folder", "loop", "/dev/zero"])
@pytest.mark.parametrize("as_log", [False, True])
def test_what_is_no_text(
    krzem: Callable[..., Any], tmp_path: Path, name: str, as_log: bool
) -> None:
    run = tmp_path / "run.sh"
    run.write_text(RUN, encoding="utf-8")
    path, *said = things(tmp_path / "things")[name]
    given = (str(run), "--log", str(path)) if as_log else (str(path),)
    why = fails(krzem, *given, "--on", "h100:8")
    assert said[as_log] in why
    assert shown(path) in why


def shown(path: Path) -> str:
    """The end of a path, as a message shows it."""
    return str(path)[-20:]


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be read")
@pytest.mark.parametrize("as_log", [False, True])
def test_what_may_not_be_read(krzem: Callable[..., Any], tmp_path: Path, as_log: bool) -> None:
    run, shut = tmp_path / "run.sh", tmp_path / "shut"
    run.write_text(RUN, encoding="utf-8")
    shut.write_text(RUN, encoding="utf-8")
    shut.chmod(0)
    given = (str(run), "--log", str(shut)) if as_log else (str(shut),)
    assert "cannot be read" in fails(krzem, *given, "--on", "h100:8")


@pytest.mark.parametrize(("old", "new", "why"), [
    ("--bf16", "--bf16 --fp16", "exclude each other"),
    ("--bf16", "--bf16 --tensor-model-parallel-size 3", "not a multiple of tp = 3"),
    ("--bf16", "--bf16 --pipeline-model-parallel-size 8", "do not divide by pp = 8"),
    ("batch-size 8", "batch-size 12", "not a multiple"),
])  # fmt: skip
def test_flags_that_contradict(
    krzem: Callable[..., Any], tmp_path: Path, old: str, new: str, why: str
) -> None:
    run = tmp_path / "run.sh"
    run.write_text(RUN.replace(old, new), encoding="utf-8")
    said = fails(krzem, str(run), "--on", "h100:8")
    assert why in said
    assert "run.sh:2: " in said
