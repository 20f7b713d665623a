"""A job confronted with what its silicon allows: questions, verdicts, errors and documents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.check_jobs import JOBS, MEGATRON, TITAN, megatron_log

from krzem.engine.switches import switches
from krzem.errors import InputError, KrzemError
from krzem.jobs.answer import Answer, Asking, answer
from krzem.jobs.check import Verdict
from krzem.jobs.given import parse_given
from krzem.jobs.job import FIELDS
from krzem.jobs.job_layout import device_id
from krzem.jobs.job_model import build, model_of, shape_of
from krzem.jobs.priced import price_all, single_values
from krzem.jobs.question import Posed, pose
from krzem.jobs.reading import read_job
from krzem.layout.layout import pack
from krzem.model.catalogue import load_model, model_ids
from krzem.report.document_check import check_document
from krzem.report.html import render
from krzem.report.text_check import format_check


def posed(engine: str, **more: Any) -> Posed:
    files, told = JOBS[engine]
    return pose(read_job(text=files), texts=files, **{**told, **more})


def asked(folder: Path, text: str = MEGATRON, log: str = "", **more: Any) -> Answer:
    (folder / "run.sh").write_text(text)
    logs: tuple[Path, ...] = ()
    if log:
        (folder / "train.log").write_text(log)
        logs = (folder / "train.log",)
    options: dict[str, Any] = {"on": "h100", "most": 2, **more}
    return answer(Asking(files=(folder / "run.sh",), logs=logs, **options))


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return asked(tmp_path_factory.mktemp("job"))


# -- the question


@pytest.mark.parametrize("engine", JOBS)
def test_small_jobs_of_every_engine_become_questions(engine: str) -> None:
    found = posed(engine)
    layout = found.layout
    assert found.task.engine == engine
    assert layout.devices == found.task.cluster.devices
    assert not found.doubts
    names = [name for name, _ in found.task.stated]
    assert set(names) <= set(switches())
    for name, choice in found.task.stated:
        assert found.job.get(f"switch.{name}") == choice


@pytest.mark.parametrize("engine", JOBS)
def test_a_job_priced_alone_is_the_setting_itself(engine: str) -> None:
    """Where nothing is open, the mixture is the price of the pricer itself."""
    found = posed(engine)
    pricer = found.pricer()
    first = price_all(pricer, [(found.layout, found.task.setup)])[0]
    given = {f"switch.{n}": c for n, c in first.choices}
    settled = posed(engine, given=given)
    priced = price_all(settled.pricer(), [(settled.layout, settled.task.setup)])[0]
    assert priced.variance == 0.0
    assert not priced.unknown
    step = settled.pricer().step(pack([settled.layout]))
    assert priced.seconds == pytest.approx(float(step.total[0]), rel=1e-9)
    assert sum(priced.terms.values()) == pytest.approx(priced.seconds, rel=1e-9)


@pytest.mark.parametrize("engine", JOBS)
def test_what_is_open_moves_the_middle_within_its_choices(engine: str) -> None:
    found = posed(engine)
    priced = price_all(found.pricer(), [(found.layout, found.task.setup)])[0]
    away = [moved for _, moved in priced.away.values()]
    assert priced.variance >= 0.0
    assert (priced.variance > 0.0) == any(abs(m) > 1e-12 for m in away)
    values = single_values(found.pricer(), found.layout)
    assert all(not hasattr(value, "shape") or value.shape == () for value in values.values())


@pytest.mark.parametrize("name", [n for n in model_ids() if not load_model(n).recurrences])
def test_a_shape_in_the_files_is_the_model_of_that_shape(name: str) -> None:
    """Every built-in model as fields of a job is itself again, or a model of the same sizes.

    Fields of a job have no words for recurrent layers: such models are known by name alone.
    """
    known = load_model(name)
    shape = shape_of(known)
    again = shape_of(build(shape, "again"))
    same = set(shape) - {"qk_norm", "positions"}
    assert {k: again[k] for k in same if k in again} == {k: shape[k] for k in same if k in again}


def test_a_name_is_no_promise() -> None:
    given = parse_given(["model.name=llama-3.1-8b", "model.layers=16", "model.hidden=4096"])
    text = {"run.sh": MEGATRON.replace("--num-layers 32", "--num-layers 16")}
    found = model_of(pose(read_job(text=text), given=given, on="h100").job)
    assert found.architecture is not None
    assert found.architecture.layers == 16
    assert any("16 in the files and 32 there" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("H100", "nvidia-h100-sxm"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm"),
        ("MI300X", "amd-mi300x"), ("tpu_v6e", "google-tpu-v6e"), ("GB200", "nvidia-gb200"),
        ("Ascend910B", "huawei-ascend-910b"), ("nvidia_a100", "nvidia-a100-sxm-80"),
    ],
)  # fmt: skip
def test_chips_as_jobs_write_them(text: str, device: str) -> None:
    assert device_id(text) == device


def test_what_is_missing_is_asked_for_by_name() -> None:
    job = read_job(text={"run.sh": MEGATRON})
    with pytest.raises(InputError, match=r"device: give --on h100, or --set device=h100"):
        pose(job)
    less = MEGATRON.replace("--vocab-size 128256", "").replace("--hidden-size 4096", "")
    with pytest.raises(InputError) as caught:
        pose(read_job(text={"run.sh": less}), on="h100")
    assert "--set model.hidden=" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["devices=32"], {"devices": 32, "dp": 4, "accumulation": 32}),
        (["tp=4"], {"tp": 4, "dp": 4, "accumulation": 32}),
        (["mbs=2"], {"mbs": 2, "accumulation": 32}),
        (["global_batch=256"], {"global_batch": 256, "accumulation": 128}),
        (["seq=4k"], {"seq": 4096}),
        (["switch.loss=fused"], {"switch.loss": "fused"}),
    ],
)
def test_arithmetic_is_closed_again_after_set(given: list[str], expected: dict[str, Any]) -> None:
    job = read_job(text={"run.sh": MEGATRON})
    found = pose(job, given=parse_given(given), on="h100").job
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("text", ["nothing=1", "tp", "tp=", "tp=x", "recompute=some", "sp=perhaps"])
def test_set_teaches(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_given([text])


def test_a_whole_cluster_settles_the_number_of_devices() -> None:
    found = pose(read_job(text={"run.sh": MEGATRON}), on="h100:32")
    assert found.layout.dp == 4
    with pytest.raises(InputError, match="keep one of them"):
        pose(read_job(text={"run.sh": MEGATRON}), on="h100:32", given={"devices": 16})


# -- the verdict


def test_without_a_log_the_prediction_stands_alone(predicted: Answer) -> None:
    assert predicted.check.verdict is Verdict.UNMEASURED
    assert predicted.check.speed is None
    assert predicted.check.plan.micro_batches == 64


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, Verdict.EXPECTED), (2.5, Verdict.SLOWER), (0.55, Verdict.FASTER)],
)
def test_measured_against_predicted(
    factor: float, verdict: Verdict, predicted: Answer, tmp_path: Path
) -> None:
    step = predicted.check.plan.step_seconds
    found = asked(tmp_path, log=megatron_log(step.mid * factor)).check
    assert found.verdict is verdict
    assert found.ratio == pytest.approx(factor, rel=0.01)
    assert found.speed is not None
    assert found.speed.mfu == pytest.approx(found.plan.mfu.mid / factor, rel=0.01)


def test_a_faster_run_is_explained_by_what_the_files_may_hide(
    predicted: Answer, tmp_path: Path
) -> None:
    log = megatron_log(predicted.check.plan.step_seconds.mid * 0.5)
    found = asked(tmp_path, log=log)
    assert any("recompute=none" in words for words in found.explanations)


def test_printed_flops_are_translated(predicted: Answer, tmp_path: Path) -> None:
    """Megatron counts attention whole: printed over model FLOP/s is above one and named."""
    mid = predicted.check.plan.step_seconds.mid
    arch = predicted.posed.task.architecture
    from krzem.accuracy.conventions import forward_flops

    per_token = 3.0 * forward_flops(arch, 8192, "full")
    tflops = per_token * 128 * 8192 / mid / 16 / 1e12
    found = asked(tmp_path, log=megatron_log(mid, tflops=tflops)).check
    assert found.speed is not None
    assert found.speed.counting is not None
    assert found.speed.counting.says == "attention counted whole"
    assert found.speed.counting.ratio > 1.0


@pytest.mark.parametrize(
    ("seconds", "gbs", "tflops"),
    [(6.0, 256, None), (0.2, 128, None), (8.0, 128, 40.0)],
    ids=["another batch", "faster than the peak", "FLOP of another model"],
)
def test_files_and_log_of_two_jobs(
    seconds: float, gbs: int, tflops: float | None, tmp_path: Path
) -> None:
    found = asked(tmp_path, log=megatron_log(seconds, gbs=gbs, tflops=tflops)).check
    assert found.verdict is Verdict.MIXED
    assert found.conflicts or found.impossible


def test_a_drifting_log_has_no_verdict(predicted: Answer, tmp_path: Path) -> None:
    lines = [megatron_log(10.0 + 0.4 * i, steps=2).splitlines()[1] for i in range(40)]
    numbered = [re.sub(r"iteration +\d+", f"iteration {i:8d}", x) for i, x in enumerate(lines, 1)]
    numbered = [re.sub(r"samples: +\d+", f"samples: {i * 128:12d}", x)
                for i, x in enumerate(numbered, 1)]  # fmt: skip
    found = asked(tmp_path, log="\n".join(numbered)).check
    assert found.verdict is Verdict.UNSTEADY
    assert "drifts" in format_check(check_document(asked(tmp_path, log="\n".join(numbered))))


# -- what is said


def test_the_document_is_plain_and_complete(predicted: Answer) -> None:
    document = check_document(predicted)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == "krzem.check/1"
    stated = document["job"]["fields"]["tp"]
    assert stated == {"value": 8, "basis": "stated", "file": stated["file"], "line": 4,
                      "text": "TP=8"}  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    part = page.partition("## `krzem.check/1`")[2].partition("\n## ")[0]
    assert [key for key in document if f"`{key}" not in part and f", {key}" not in part] == []


def test_the_report_is_at_most_a_hundred_columns(predicted: Answer, tmp_path: Path) -> None:
    step = predicted.check.plan.step_seconds.mid
    measured = asked(tmp_path, log=megatron_log(step * 3, tflops=200.0), most=6)
    for found in (predicted, measured):
        text = format_check(check_document(found))
        assert max(map(len, text.splitlines())) <= 100
        assert text.splitlines()[0].startswith(("A step", "This run", "The files"))


def test_the_page_needs_no_network(predicted: Answer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = megatron_log(predicted.check.plan.step_seconds.mid * 3)
    page = render(check_document(asked(tmp_path, log=log)))
    assert "slower than its settings allow on this silicon" in page
    assert not re.findall(r"src=[\"']https?:|url\((?!#)|<script", page)


# -- errors


def fails(krzem: Callable[..., Any], *arguments: str) -> str:
    said = krzem("check", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("krzem: error: ")
    return str(said.err)


def test_bad_input_is_one_sentence(krzem: Callable[..., Any], tmp_path: Path) -> None:
    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    run = file("run.sh", MEGATRON)
    assert "no engine is recognised" in fails(krzem, file("a.yaml", "foo: 1\n"))
    half = file("half.sh", "\n".join(MEGATRON.splitlines()[:8]))
    assert "do not decide" in fails(krzem, half, "--on", "h100")
    both = file("both.sh", MEGATRON.replace("--bf16", "--bf16 --fp16"))
    assert "exclude each other" in fails(krzem, both, "--on", "h100")
    three = file("three.sh", MEGATRON.replace("TP=8", "TP=3"))
    assert "three.sh:4: " in fails(krzem, three, "--on", "h100")
    empty = file("empty.log", "hello\n")
    assert "reports a training step" in fails(krzem, run, "--on", "h100", "--log", empty)
    assert "does not exist" in fails(krzem, str(tmp_path / "none.sh"))
    assert "--log" in fails(krzem, run, "--on", "h100", "--calibrate", str(tmp_path / "c.toml"))


def test_nothing_is_executed(krzem: Callable[..., Any], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = (
        f"touch {mark}\nX=$(touch {mark}; echo 4)\nwhile true; do :; done\n"
        f"python pretrain_gpt.py --num-layers $(touch {mark}) `touch {mark}`\n"
    )
    (tmp_path / "run.sh").write_text(text)
    fails(krzem, str(tmp_path / "run.sh"), "--on", "h100:8")
    assert not mark.exists()


def test_a_hole_of_two_gigabytes_is_no_log(krzem: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(MEGATRON)
    with (tmp_path / "big.log").open("wb") as file:
        file.truncate(1 << 31)
    said = fails(krzem, str(tmp_path / "run.sh"), "--on", "h100", "--log",
                 str(tmp_path / "big.log"))  # fmt: skip
    assert "is not text" in said


@pytest.mark.parametrize("name", FIELDS)
def test_any_field_may_be_set_to_nonsense(name: str) -> None:
    """A field out of range is refused or priced; nothing else escapes."""
    for raw in ("0", "1", "999999999", "zz"):
        try:
            given = parse_given([f"{name}={raw}"])
            found = pose(read_job(text={"llama.toml": TITAN}), given=given, on="h100",
                         texts={"llama.toml": TITAN})  # fmt: skip
            priced = price_all(found.pricer(), [(found.layout, found.task.setup)])[0]
            assert math.isfinite(priced.seconds)
        except KrzemError:
            continue


# -- a published run that no table holds, as the documentation shows it

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "check"


def example(folder: Path, log: str, **more: Any) -> Answer:
    (folder / "train.log").write_text(log)
    logs = (folder / "train.log",) if log else ()
    files = (EXAMPLE / "pretrain.sh",)
    return answer(Asking(files=files, logs=logs, on="h100:16", most=0, **more))


def test_the_example_is_a_run_as_predicted(tmp_path: Path) -> None:
    found = example(tmp_path, (EXAMPLE / "train.log").read_text()).check
    assert found.verdict is Verdict.EXPECTED
    assert found.speed is not None
    assert found.speed.seconds == pytest.approx(5.626, rel=1e-3)


def test_software_is_as_old_as_the_log_where_nothing_else_says_it(tmp_path: Path) -> None:
    log = (EXAMPLE / "train.log").read_text()
    dated, today = example(tmp_path, log), example(tmp_path, re.sub(r"\[2024-.*?\]", "", log))
    told = example(tmp_path, log, given=("date=2026-01",))
    assert int(dated.posed.task.year) == 2024
    assert 2024 < dated.posed.task.year < told.posed.task.year < today.posed.task.year


@pytest.mark.parametrize(
    "stamp", ["2024-13-41 02:59:36", "1970-01-01 00:00:00", "2999-01-01 00:00"]
)
def test_a_clock_that_is_wrong_dates_nothing(tmp_path: Path, stamp: str) -> None:
    log = re.sub(r"\[2024-.*?\]", f"[{stamp}]", (EXAMPLE / "train.log").read_text())
    undated = example(tmp_path, re.sub(r"\[\d.*?\]", "", log))
    assert example(tmp_path, log).check.priced.seconds == undated.check.priced.seconds


def test_an_edit_shows_what_it_changes(predicted: Answer) -> None:
    text = format_check(check_document(predicted))
    pairs = re.findall(r"\n       - (.*)\n       \+ (.*)", text)
    assert pairs
    assert all(old != new for old, new in pairs)
    assert all(len(line) <= 100 for line in text.splitlines())
