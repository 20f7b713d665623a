"""Suggestions: every edit that is offered was made, read back and priced again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs.check_jobs import JOBS, MEGATRON, TITAN

from krzem.engine.description import engines
from krzem.jobs.advice import Suggestion, advise
from krzem.jobs.answer import Proved, apply, prove, reposing
from krzem.jobs.check import Check, check
from krzem.jobs.edits import Edit, Text, applied, merged, written
from krzem.jobs.given import completed
from krzem.jobs.job import FIELDS
from krzem.jobs.priced import difference_sigma, price_all
from krzem.jobs.question import Posed, pose
from krzem.jobs.reading import read_job
from krzem.jobs.spellings import FSDP2, NUMBERS, Target, parse_flags, targets
from krzem.layout.layout import pack
from krzem.layout.rules import legal

Advised = tuple[Posed, Check, tuple[Suggestion, ...]]


def advised(files: dict[str, str], told: dict[str, Any], most: int = 20) -> Advised:
    posed = pose(read_job(text=files), texts=files, **told)
    pricer = posed.pricer()
    found = check(posed, None, pricer)
    return posed, found, advise(found, pricer, most)


@pytest.fixture(scope="module", params=list(JOBS))
def job(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str], Advised]:
    files, told = JOBS[request.param]
    return files, told, advised(files, told)


def proved(suggestion: Suggestion, posed: Posed, files: dict[str, str], told: Any) -> Proved:
    return prove(suggestion, posed, files, lambda f: read_job(text=f),
                 reposing(texts=files, **told))  # fmt: skip


def test_every_change_reprices_to_its_gain(job: Any) -> None:
    """Applied to the files and read back, a change is worth what was said of it."""
    files, told, (posed, found, suggestions) = job
    made = [proved(s, posed, files, told) for s in suggestions]
    done = [p for p in made if p.edits]
    assert len(done) >= max(1, 0.7 * len(made))
    for p in done:
        text = apply(files, p)
        again = pose(read_job(text=text), texts=text, **told)
        priced = price_all(again.pricer(), [(again.layout, again.task.setup)])[0]
        gain = found.priced.seconds / priced.seconds - 1.0
        assert gain == pytest.approx(p.suggestion.gain.mid, abs=5e-3)
        assert again.task.goal.global_batch == posed.task.goal.global_batch
        assert again.task.cluster.devices == posed.task.cluster.devices


def test_edits_touch_their_lines_and_no_others(job: Any) -> None:
    files, told, (posed, _, suggestions) = job
    for p in (proved(s, posed, files, told) for s in suggestions[:6]):
        text = apply(files, p)
        for name in files:
            before = files[name].splitlines()
            edits = {e.line: e for e in p.edits if e.file == name}
            for number, line in enumerate(before, 1):
                if number in edits:
                    assert edits[number].old == line
                    assert edits[number].new in text[name]
                else:
                    assert line in text[name].splitlines()


def test_suggestions_are_legal_gain_and_are_sorted(job: Any) -> None:
    _, _, (posed, found, suggestions) = job
    gains = [s.gain.mid for s in suggestions]
    assert gains == sorted(gains, reverse=True) or found.priced.fits < 0.5
    for s in suggestions:
        assert bool(legal(posed.task.problem, pack([s.change.layout]))[0])
        assert s.gain.low <= s.gain.mid <= s.gain.high
        assert s.gain.mid > 0
        assert s.fits >= min(0.5, found.priced.fits)
        assert s.change.fields
        assert set(s.change.fields) <= set(FIELDS)
        assert s.gain.mid == pytest.approx(found.priced.seconds / s.priced.seconds - 1.0)


def test_a_difference_is_surer_than_either_side(job: Any) -> None:
    _, _, (_, found, suggestions) = job
    assert difference_sigma(found.priced, found.priced) == 0.0
    small = [s for s in suggestions if s.gain.mid < 0.1]
    assert all(s.sigma < found.sigma for s in small)


def test_a_job_that_does_not_fit_is_first_made_to_fit() -> None:
    text = MEGATRON.replace("--recompute-granularity full --recompute-method uniform"
                            " --recompute-num-layers 1", "").replace("TP=8", "TP=1")  # fmt: skip
    big = text.replace("MBS=1", "MBS=4")
    _, found, suggestions = advised({"run.sh": big}, {"on": "h100"})
    assert found.priced.fits < 0.5
    assert suggestions
    assert suggestions[0].fits >= 0.5


@pytest.mark.parametrize("engine", sorted(set(engines()) & set(NUMBERS)))
def test_flags_of_descriptions_are_read(engine: str) -> None:
    """Every flag of a switch is a name and a value, and its choices differ."""
    for name, switch in engines()[engine].switches.items():
        for choice, text in switch.flags.items():
            for flag, value in parse_flags(text):
                assert flag
                assert " " not in flag
                assert value is not None
            ways = targets(engine, f"switch.{name}", choice, {"layers": 32, "pp": 1, "vpp": 1})
            assert all(way for way in ways)


def test_a_line_edited_twice_is_one_edit() -> None:
    first = [Edit(file="a", line=1, old="x 1", new="x 2")]
    second = [Edit(file="a", line=1, old="x 2", new="y x 2")]
    assert merged(first, second) == [Edit(file="a", line=1, old="x 1", new="y x 2")]
    back = [Edit(file="a", line=1, old="x 2", new="x 1")]
    assert merged(first, back) == []


@pytest.mark.parametrize(
    ("file", "text", "way", "expected"),
    [
        ("a.sh", "x --micro-batch-size 1 --bf16", [("--micro-batch-size", "2")],
         "x --micro-batch-size 2 --bf16"),
        ("a.sh", 'A="--bf16 --lr 1"', [("--tp-comm-overlap", "")],
         'A="--tp-comm-overlap --bf16 --lr 1"'),
        ("a.sh", "x --recompute-modules a b --bf16", [("--recompute-modules", None)], "x --bf16"),
        ("a.yaml", "a:\n  recompute_method: uniform", [("--recompute-method", None)],
         "a:\n  recompute_method: null"),
        ("a.yaml", "a:\n  overlap: True  # no", [("a.overlap", "false")],
         "a:\n  overlap: False  # no"),
        ("a.toml", "[t]\nx = 1", [("t.y", "true")], "[t]\ny = true\nx = 1"),
        ("a.toml", '[t]\nmode = "full"', [("t.mode", '"none"')], '[t]\nmode = "none"'),
        ("a.json", '{\n  "z": {\n    "stage": 2\n  }\n}', [("z.stage", "3")],
         '{\n  "z": {\n    "stage": 3\n  }\n}'),
        ("a.json", '{\n  "z": {\n    "stage": 2\n  }\n}', [("z.overlap_comm", "true")],
         '{\n  "z": {\n    "overlap_comm": true,\n    "stage": 2\n  }\n}'),
    ],
)  # fmt: skip
def test_ways_are_written(file: str, text: str, way: list[Target], expected: str) -> None:
    files = {file: text}
    edits = next(written(way, Text(files)))
    assert applied(files, edits)[file] == expected + "\n"


@given(st.text(max_size=200), st.sampled_from(["a.sh", "a.yaml", "a.toml", "a.json", "a.py"]))
def test_any_text_may_be_edited(text: str, name: str) -> None:
    files = {name: text}
    for way in ([("--tp-comm-overlap", "")], [("a.b", "true")], [("--x", None)]):
        for edits in written(way, Text(files)):
            applied(files, edits)


def test_a_toml_without_the_table_gets_one() -> None:
    text = TITAN.partition("[compile]")[0]
    edits = next(written([("compile.enable", "true")], Text({"a.toml": text})))
    assert applied({"a.toml": text}, edits)["a.toml"].endswith("\n[compile]\nenable = true\n")


def test_gains_hold_their_distance_in_logs(job: Any) -> None:
    _, _, (_, found, suggestions) = job
    for s in suggestions:
        ratio = math.log(found.priced.seconds / s.priced.seconds)
        upper, lower = math.log1p(s.gain.high) - ratio, ratio - math.log1p(s.gain.low)
        assert upper == pytest.approx(lower, rel=1e-6)


def test_a_flag_that_is_there_stays_and_the_others_are_added() -> None:
    script = "torchrun pretrain_gpt.py --micro-batch-size 1 --use-distributed-optimizer\n"
    way: list[Target] = [("--use-megatron-fsdp", ""), ("--use-distributed-optimizer", "")]
    (edit, *_), *_ = written(way, Text({"run.sh": script}))
    assert edit.new.count("--use-distributed-optimizer") == 1
    assert edit.new.count("--use-megatron-fsdp") == 1


def test_a_front_of_an_engine_takes_its_own_keys_alone() -> None:
    assert targets(FSDP2, "tp", 2, {}) == [[("parallel.tp_size", "2")]]
    assert targets(FSDP2, "recompute", "full", {}) == [[("parallel.recompute", "True")]]
    for name, value in (("recompute", "attention"), ("zero", 1), ("switch.overlap-tp", "on")):
        assert targets(FSDP2, name, value, {}) == []


def test_context_ranks_of_torchtitan_shard_along() -> None:
    first, *_ = targets("torchtitan", "dp", 16, {"shard": 8, "cp": 2})
    assert first == [("parallelism.data_parallel_shard_degree", "4"),
                     ("parallelism.data_parallel_replicate_degree", "4")]  # fmt: skip


def test_what_was_given_leaves_the_front_as_it_was() -> None:
    yaml = (
        "parallel:\n  fsdp_modules: [model.layers]\n  recompute: true\n"
        "training:\n  per_device_train_batch_size: 1\ndata:\n  cutoff_len: 4096\n"
    )
    job = read_job(text={"run.yaml": yaml})
    assert job.spelling == FSDP2
    assert completed(job, {"devices": 8}, {}).spelling == FSDP2


@pytest.mark.parametrize(("devices", "tp", "batch"), [(64, 8, 16), (64, 2, 64), (512, 8, 128)])
def test_devices_that_are_given_make_the_batch(devices: int, tp: int, batch: int) -> None:
    """torchtitan's batch is one pass of every rank: with the devices it is decided."""
    toml = (
        '[model]\nname = "llama3"\nflavor = "8B"\n[training]\nlocal_batch_size = 2\n'
        "seq_len = 8192\n[parallelism]\ndata_parallel_shard_degree = -1\n"
        f"tensor_parallel_degree = {tp}\n"
    )
    job = read_job(text={"a.toml": toml})
    assert job.get("global_batch") is None
    assert completed(job, {"devices": devices}, {}).get("global_batch") == batch
