"""Configuration files of each engine: what they settle, leave open, and do not survive."""

from __future__ import annotations

import random
import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.cases import Case
from tests.jobs.configurations import CASES

from krzem.errors import InputError, KrzemError
from krzem.jobs.job import Job
from krzem.jobs.reading import read_job

NAMES = sorted(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_job_decides(name: str) -> None:
    case = CASES[name]
    job = read_job(text=case.files)
    assert job.engine == case.engine
    assert {field: job.get(field) for field in case.fields} == case.fields
    assert [str(fault) for fault in job.faults] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_a_job_leaves_open(name: str) -> None:
    case = CASES[name]
    job = read_job(text=case.files)
    assert {field: job.get(field) for field in case.open} == dict.fromkeys(case.open)
    assert {ask.name for ask in job.asks} >= set(case.asks)
    unknown = [line.text for line in job.not_understood]
    assert all(any(part in text for text in unknown) for part in case.unknown)
    assert len(unknown) == len(case.unknown)


@pytest.mark.parametrize("name", NAMES)
def test_each_stated_setting_shows_its_line(name: str) -> None:
    case = CASES[name]
    files = {n: text.splitlines() for n, text in case.files.items()}
    for setting in read_job(text=case.files).settings.values():
        if setting.file in files and setting.line:
            assert 0 < setting.line <= len(files[setting.file])
        if setting.basis == "stated":
            assert setting.file, setting.name


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_do_not_matter_much(name: str) -> None:
    """A job is known by its keys: prefixing all folders changes nothing that is decided."""
    case = CASES[name]
    moved = {f"some/where/{n}": text for n, text in case.files.items()}
    here, there = read_job(text=case.files), read_job(text=moved)
    assert {n: s.value for n, s in here.settings.items()} == {
        n: s.value for n, s in there.settings.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_comments_decide_nothing(name: str) -> None:
    """Every line of the job as a comment is no job."""
    case = CASES[name]
    with pytest.raises(InputError):
        read_job(text={n: "\n".join(f"# {line}" for line in text.splitlines())
                       for n, text in case.files.items() if not n.endswith(".json")})  # fmt: skip


ODD = ("[]", "{}", "null", "-1", "0", "1e400", "nan", "9" * 40, '"x"', "[1, 2]", "[[1]]", "true",
       "1.5", '"${x}"', "''", "1e9", "None", "auto", "${a.b}", "!x y", "*z", "&z 1")  # fmt: skip


def changed(case: Case, seed: int) -> dict[str, str]:
    """The files with some values replaced by ones of a wrong kind."""
    chance = random.Random(seed)
    files = {}
    for name, text in case.files.items():
        lines = text.split("\n")
        for index in chance.sample(range(len(lines)), min(3, len(lines))):
            lines[index] = re.sub(r"(?<=[:=] )[^,{}\s]+|(?<==)[\w.-]+", chance.choice(ODD),
                                  lines[index], count=1)  # fmt: skip
        files[name] = "\n".join(lines)
    return files


@given(st.sampled_from(NAMES), st.integers(0, 10**6))
@settings(deadline=None, max_examples=150)
def test_values_of_a_wrong_kind_end_in_a_sentence(name: str, seed: int) -> None:
    with suppress(KrzemError):
        check(read_job(text=changed(CASES[name], seed)))


@given(st.sampled_from(NAMES), st.integers(0, 400))
@settings(deadline=None, max_examples=100)
def test_a_file_that_ends_early_ends_in_a_sentence(name: str, length: int) -> None:
    with suppress(KrzemError):
        check(read_job(text={n: t[:length] for n, t in CASES[name].files.items()}))


def check(job: Job) -> None:
    """Whatever was read can be shown."""
    for line in (*job.ignored, *job.not_understood, *job.faults):
        assert len(line.text) < 1000
        assert "\n" not in line.why
    assert all(ask.name and ask.why for ask in job.asks)


@pytest.mark.parametrize("name", ["titan 2025", "mindformers", "nanotron", "kempner", "plan"])
def test_arithmetic_closes(name: str) -> None:
    job = read_job(text=CASES[name].files)
    got = {n: job.get(n) for n in ("tp", "cp", "pp", "dp", "devices", "mbs", "accumulation")}
    assert all(isinstance(v, int) for v in got.values())
    product = 1
    for degree in ("tp", "cp", "pp", "dp"):
        product *= int(got[degree] or 0)
    assert product == got["devices"]
    assert job.get("global_batch") == (
        int(got["mbs"] or 0) * int(got["dp"] or 0) * int(got["accumulation"] or 0)
    )


def test_a_recipe_of_many_asks_which() -> None:
    text = CASES["titan recipe"].files["recipe.py"]
    both = text + "\n\ndef other() -> Trainer.Config:\n    return Trainer.Config()\n"
    with pytest.raises(InputError, match=r"big, other|stages, big, other"):
        read_job(text={"recipe.py": both})
    launch = "torchrun --nproc_per_node 8 -m torchtitan.train --module recipe --config big\n"
    job = read_job(text={"recipe.py": both, "run.sh": launch})
    assert job.get("model.name") == "32B"


def test_an_engine_that_primus_does_not_have() -> None:
    files = {n: t.replace("framework: megatron", "framework: unheard")
             for n, t in CASES["primus megatron"].files.items()}  # fmt: skip
    with pytest.raises(InputError, match="megatron, torchtitan and maxtext"):
        read_job(text=files)
