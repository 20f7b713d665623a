"""Finding the engine, collecting settings, and refusing what is no job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import DataError, InputError, UnknownNameError
from krzem.jobs.given import close
from krzem.jobs.job import CHOICES, FIELDS, SWITCHES, Basis, JobBuilder, Place
from krzem.jobs.reading import ALIASES, ENGINES, MOST_FILES, canonical, read_job, readers
from krzem.jobs.shell_words import ShellError

SCRIPT = """#!/bin/bash
torchrun --nproc_per_node 8 pretrain_gpt.py --num-layers 4 --hidden-size 64 --bf16 \\
  --num-attention-heads 4 --seq-length 128 --micro-batch-size 1 --vocab-size 512
"""
HERE = Place(file="a.sh", line=3, text="x")
THERE = Place(file="a.sh", line=9, text="y")


# -- files and engines


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT, encoding="utf-8")
    job = read_job([path])
    assert job.engine == "megatron-lm"
    assert job.settings["model.layers"].file == str(path)
    assert job.settings["model.layers"].line == 2


def test_no_files() -> None:
    with pytest.raises(InputError, match="no file of a job"):
        read_job()


def test_too_many_files() -> None:
    with pytest.raises(DataError, match="at most"):
        read_job([Path("x")] * (MOST_FILES + 1))


@pytest.mark.parametrize(("content", "why"), [(None, "does not exist"), (b"\xff\xfe\x00", "UTF-8"),
                                              (b"#" * 3_000_000, "bytes")])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "train.sh"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_job([path])


@pytest.mark.parametrize("text", [
    {"a.txt": "hello"}, {"a.sh": "echo hello\n"}, {"a.sh": ""}, {"a.json": "{}"},
    {"a.sh": "# megatron pretrain_gpt.py --num-layers 4 deepspeed torchtitan\nls\n"},
    {"a.sh": "python convert.py --num-layers 4 --hidden-size 8\n"}, {"a.yaml": "a: 1\n"},
])  # fmt: skip
def test_an_engine_nobody_knows(text: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no engine is recognised") as caught:
        read_job(text=text)
    assert "\n" not in str(caught.value)


def test_half_a_script_says_where() -> None:
    with pytest.raises(ShellError, match=r"train\.sh:2: "):
        read_job(text={"train.sh": "if true; then\n  A='x\n" + SCRIPT.partition("\n")[2]})


def test_a_broken_helper_does_not_hide_the_job() -> None:
    job = read_job(text={"train.sh": SCRIPT, "broken.sh": "if [ 1 = 1\nthen ("})
    assert job.get("model.layers") == 4


def test_a_script_that_starts_nothing_of_a_named_engine() -> None:
    with pytest.raises(InputError, match=r"runs other\.sh, which was not given"):
        read_job(text={"train.sh": "bash other.sh\n"}, engine="megatron-lm")


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_engines(alias: str) -> None:
    assert canonical(alias) in ENGINES


def test_an_engine_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="megatron-lm"):
        read_job(text={"train.sh": SCRIPT}, engine="megatron-ml")


def test_every_reader_reads_engines_that_exist() -> None:
    for reader in readers():
        assert reader.kind
        assert set(reader.engines) <= set(ENGINES)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["a.sh", "a.yaml", "a.toml", "a.json", "a.py", "README.md", "a"]),
    text=st.text(max_size=200) | st.sampled_from([SCRIPT, SCRIPT[:60], "torchrun a.py --x 1\n"]),
)
def test_any_file_ends_in_a_job_or_a_sentence(name: str, text: str) -> None:
    try:
        job = read_job(text={name: text})
    except InputError as error:
        message = str(error)
    else:
        message = job.engine
    assert message


# -- the builder


def test_fields_and_choices_agree() -> None:
    assert set(CHOICES) <= set(FIELDS)
    assert all(f"switch.{name}" in FIELDS for name in SWITCHES)


def test_what_is_stated_wins_over_what_follows_and_both_over_a_default() -> None:
    job = JobBuilder("other")
    job.default("tp", 1, "default")
    job.derive("tp", 2, "arithmetic")
    assert job.get("tp") == 2
    job.state("tp", 4, HERE)
    job.derive("tp", 2, "arithmetic")
    job.default("tp", 1, "default")
    setting = job.setting("tp")
    assert setting is not None
    assert (setting.value, setting.basis, setting.line) == (4, Basis.STATED, 3)


def test_a_line_that_contradicts_another_is_a_fault() -> None:
    job = JobBuilder("other")
    job.state("tp", 4, HERE)
    job.state("tp", 4, THERE)
    assert not job.job().faults
    job.state("tp", 8, THERE)
    (fault,) = job.job().faults
    assert fault.line == 9
    assert "a.sh:3" in fault.why
    job.state("tp", 8, THERE, override=True)
    assert job.get("tp") == 8


def test_a_question_takes_the_place_of_a_default() -> None:
    job = JobBuilder("other")
    job.default("tp", 1, "default")
    job.ask("tp", "why", "how")
    job.default("tp", 1, "default")
    assert job.get("tp") is None
    assert [ask.name for ask in job.job().asks] == ["tp"]
    job.state("tp", 2, HERE)
    assert not job.job().asks


WRONG = (("tp", "2"), ("tp", True), ("zero", 1.0), ("precision", "int3"),
         ("switch.loss", "chunky"))  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_the_wrong_kind_is_our_own_mistake(name: str, value: object) -> None:
    with pytest.raises(AssertionError):
        JobBuilder("other").state(name, value, HERE)  # type: ignore[arg-type]


# -- arithmetic


@settings(max_examples=100, deadline=None)
@given(
    nodes=st.integers(1, 16), local=st.sampled_from([4, 8]), tp=st.sampled_from([1, 2, 4]),
    mbs=st.integers(1, 4), micro=st.integers(1, 6),
    hidden=st.sets(st.sampled_from(["devices", "dp", "accumulation", "global_batch", "nodes"]),
                   max_size=2),
)  # fmt: skip
def test_what_is_missing_follows_from_the_rest(
    nodes: int, local: int, tp: int, mbs: int, micro: int, hidden: set[str]
) -> None:
    devices = nodes * local
    whole = {
        "nodes": nodes, "devices_per_node": local, "devices": devices, "tp": tp, "pp": 1, "cp": 1,
        "dp": devices // tp, "mbs": mbs, "accumulation": micro,
        "global_batch": mbs * micro * (devices // tp),
    }  # fmt: skip
    job = JobBuilder("other")
    for name, value in whole.items():
        if name not in hidden:
            job.state(name, value, HERE)
    close(job)
    assert not job.job().faults
    decided = {name: job.get(name) for name in whole}
    open_batch = {"accumulation", "global_batch"} <= hidden
    open_size = {"devices", "nodes", "dp"} & hidden
    for name, value in whole.items():
        if not (open_batch and name in ("accumulation", "global_batch")) and len(open_size) < 2:
            assert decided[name] == value


def test_a_batch_that_does_not_divide_names_its_line() -> None:
    job = JobBuilder("other")
    for name, value in {"mbs": 2, "dp": 8}.items():
        job.default(name, value, "engine")
    job.state("global_batch", 40, HERE)
    close(job)
    (fault,) = job.job().faults
    assert str(fault).startswith("a.sh:3: global_batch = 40 is not a multiple of mbs = 2 * dp = 8")


def test_too_few_micro_batches_for_an_interleaved_pipeline() -> None:
    job = JobBuilder("other")
    for name, value in {"pp": 8, "vpp": 2, "accumulation": 4}.items():
        job.state(name, value, HERE)
    close(job)
    assert any("fewer than pp = 8" in fault.why for fault in job.job().faults)
