"""The Python API: few names, all of them there, the same answers as the command line."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import krzem
from krzem.errors import ClusterError, KrzemError, LayoutError


def test_the_list_of_names_is_what_can_be_used() -> None:
    assert krzem.__all__ == sorted(krzem.__all__)
    for name in krzem.__all__:
        assert getattr(krzem, name) is not None
        assert name in dir(krzem)


def test_public_names_of_the_api_module_are_exported() -> None:
    api = importlib.import_module("krzem.api")
    own = {
        name
        for name, value in vars(api).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == "krzem.api"
    }
    assert own - {"Asking", "Searching"} <= set(krzem.__all__)


def test_every_public_name_is_described() -> None:
    for name in krzem.__all__:
        described = getattr(krzem, name)
        assert inspect.getdoc(getattr(krzem.api, name) if name in ("accuracy",) else described)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        _ = krzem.plann


def test_importing_krzem_loads_nothing_of_it() -> None:
    code = "import sys, krzem; print([m for m in sys.modules if m.startswith('krzem.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["import krzem.plan.price", "import krzem; krzem.plan"])
def test_plan_is_a_package_that_can_be_called(first: str) -> None:
    code = (
        f"{first}\nimport krzem\nimport krzem.plan.goal as g\nprint(callable(krzem.plan), g.Goal)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("True <class 'krzem.plan.goal.Goal'>")
    assert isinstance(krzem.plan, ModuleType)


def test_a_plan_has_its_parts(small: Any) -> None:
    assert isinstance(small, krzem.Plan)
    assert small.best.step_seconds.low < small.best.step_seconds.mid
    assert small.alternatives
    assert small.front
    assert small.wall == small.gains[0].resource
    assert small.whole_run.days is not None
    assert any("as published for qwen3-0.6b" in note for note in small.notes)
    assert str(small).startswith("qwen3-0.6b, 36T tokens on 16 nvidia-h100-sxm")
    assert small.as_dict()["schema"] == "krzem.plan/1"
    assert "--micro-batch-size" in small.script("megatron-lm")


def test_a_model_is_a_small_value() -> None:
    model = krzem.Model.load("deepseek-v3")
    assert model.name == "deepseek-v3"
    assert 670e9 < model.parameters < 672e9
    assert model.active_parameters < model.parameters
    assert model.counts.total == model.parameters
    assert model == krzem.Model.load("deepseek-v3")


def test_values_work_as_well_as_text() -> None:
    cluster = krzem.read_cluster("h100:16")
    layout = krzem.parse_layout("tp=2,dp=8")
    model = krzem.Model.load("qwen3-0.6b")
    by_value = krzem.explain(model, on=cluster, layout=layout, batch=64, seq=4096)
    by_text = krzem.explain("qwen3-0.6b", on="h100:16", layout="tp=2", batch="64",
                            seq="4k")  # fmt: skip
    assert by_value.plan == by_text.plan
    assert by_value.whole_run == by_text.whole_run
    assert str(by_value).startswith("qwen3-0.6b")
    assert by_text.gains == by_value.gains
    assert "--micro-batch-size" in by_text.script("megatron-lm")


def test_a_comparison_keeps_the_order_and_the_reasons() -> None:
    found = krzem.compare("llama-3.1-8b", on=["h100:8", "h100:1"], batch=8, top=1)
    first, second = found.plans
    assert isinstance(first, krzem.Plan)
    assert second is None
    assert found.errors[0] is None
    assert "times too little" in str(found.errors[1])
    assert "no plan" in str(found)


def test_pages(small: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small.write_html(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").stat().st_size > 1000


def test_accuracy_of_a_table(tmp_path: Path) -> None:
    table = Path(krzem.__file__).parent / "facts" / "runs.csv"
    lines = [x for x in table.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    small = tmp_path / "mine.csv"
    small.write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
    found = krzem.accuracy(small).as_dict()
    assert found["rows"] == 19
    assert found["used"] + sum(found["skipped"].values()) == 19
    with pytest.raises(KrzemError):
        krzem.accuracy(tmp_path / "no such file.csv")


def test_lists_of_names() -> None:
    assert "nvidia-h800-sxm" in krzem.devices()
    assert "deepseek-v4-pro" in krzem.models()


def test_every_error_is_one_kind() -> None:
    with pytest.raises(LayoutError):
        krzem.explain("qwen3-0.6b", on="h100:16", layout="tp=3", batch=64)
    with pytest.raises(ClusterError):
        krzem.plan("llama-3.1-405b", on="h100:1")
    with pytest.raises(KrzemError):
        krzem.plan("no such model", on="h100:1")


def test_progress_is_told(small: Any) -> None:
    seen: list[int] = []
    krzem.plan("qwen3-0.6b", on="h100:8", batch=8, progress=seen.append)
    assert seen == sorted(seen)
    assert seen


def test_keywords_are_those_of_the_command_line() -> None:
    from click import Context

    from krzem.asking import KEYWORDS
    from krzem.cli.main import cli

    for verb, function in (("plan", krzem.api.plan), ("explain", krzem.api.explain)):
        command = cli.get_command(Context(cli), verb)
        assert command is not None
        options = {name.lstrip("-") for p in command.params for name in p.opts}
        shown = inspect.signature(function).parameters
        written = {name.rstrip("_").replace("_", "-") for name in shown}
        assert written - {"model", "progress"} <= options
        assert set(shown) - set(KEYWORDS) <= {"model", "on", "top", "progress", "layout"}


def test_help_shows_every_keyword_and_what_it_means() -> None:
    for found in (krzem.plan, krzem.api.plan, krzem.explain, krzem.compare):
        said = inspect.getdoc(found)
        assert said is not None
        for name in ("tokens: ", "seq: ", "batch: ", "finetune: ", "with_: ", "grid: "):
            assert name in said
        assert {"tokens", "seq", "with_"} <= set(inspect.signature(found).parameters)


@pytest.mark.parametrize(
    ("keyword", "says"),
    [("sequence", "Did you mean seq?"), ("global_batch", "Did you mean batch?"),
     ("alternatives", "Did you mean top?"), ("tokenz", "tokens")],
)  # fmt: skip
def test_an_unknown_keyword_offers_the_known_ones(keyword: str, says: str) -> None:
    with pytest.raises(KrzemError) as caught:
        krzem.plan("qwen3-0.6b", on="h100:8", **{keyword: 1})  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_an_answer_is_short_when_it_is_looked_at(small: Any) -> None:
    explained = krzem.explain("qwen3-0.6b", on="h100:16", layout="tp=2", batch=64)
    compared = krzem.compare("qwen3-0.6b", on=["h100:8", "h100:16"], batch=64, top=1)
    for answer in (small, explained, compared):
        assert len(repr(answer)) < 400
        assert "\n" not in repr(answer)
        assert repr(answer).startswith(f"{type(answer).__name__}(qwen3-0.6b")
        page = answer._repr_html_()
        assert page.count("<table>") == page.count("</table>") == 1
        assert "<script" not in page


def test_an_answer_as_columns(small: Any) -> None:
    found = small.to_frame()
    rows = 1 + len(small.alternatives)
    assert {len(column) for column in found.values()} == {rows}
    assert found["layout"][0] == str(small.best.layout)
    assert found["step_time_s_low"][0] < found["step_time_s"][0] < found["step_time_s_high"][0]
    compared = krzem.compare("llama-3.1-8b", on=["h100:8", "h100:1"], batch=8, top=1).to_frame()
    assert compared["cluster"] == ["nvidia-h100-sxm:8", "nvidia-h100-sxm:1"]
    assert compared["days"][1] is None
    assert "times too little" in compared["error"][1]


def test_a_frame_needs_no_library_and_says_so(small: Any) -> None:
    with pytest.raises(KrzemError, match="known are pandas, polars, pyarrow"):
        small.to_frame("excel")
    for library in ("pandas", "polars", "pyarrow"):
        try:
            importlib.import_module(library)
        except ModuleNotFoundError:
            with pytest.raises(KrzemError, match=f"pip install {library}"):
                small.to_frame(library)
        else:
            assert len(small.to_frame(library)) == 1 + len(small.alternatives)
