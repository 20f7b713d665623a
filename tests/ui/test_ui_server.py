"""The what-if page's server: what it answers, what it refuses, what it keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
from starlette.testclient import TestClient
from tests.command_line import say

from krzem.errors import KrzemError
from krzem.ui.kept import Answers, State, curve_counts
from krzem.ui.server import app

SMALL = State(model="llama-3.1-8b", devices="8", batch="64", tokens="100B")
FIELDS = {
    "model": "qwen3-8b", "device": "a100", "devices": "64", "tokens": "1T", "batch": "512",
    "seq": "8k", "precision": "bf16", "engine": "fsdp", "switches": "loss=fused",
    "without": "cuda-graphs", "layout": "tp=1,pp<=2", "deadline": "90d", "budget": "$1M",
    "sure": "0.8", "price": "1.5", "scale_up": "200", "scale_out": "12.5", "failures": "4000",
    "buyer": "FR",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    made = app(tmp_path_factory.mktemp("desk"), "secret", hosts=("testserver",))
    with TestClient(made) as found:
        found.get("/", params={"key": "secret"})
        yield found


def test_an_address_holds_the_whole_state() -> None:
    state = State(**FIELDS)
    assert {f.name for f in fields(State)} == set(FIELDS)
    assert State.from_query(dict(parse_qsl(state.query()))) == state
    assert State().query() == ""


@pytest.mark.parametrize("name", ["price", "scale_out", "failures", "deadline", "layout", ""])
def test_the_command_gives_the_same_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {"price": "1.5", "scale_out": "12.5", "failures": "900", "deadline": "9d",
               "layout": "tp=2"}  # fmt: skip
    state = replace(SMALL, **{name: written[name]}) if name else SMALL
    Path("cluster.toml").write_text(state.toml(), encoding="utf-8")
    _, *words = shlex.split(state.command())
    printed = json.loads(say(*words, "--json").out)
    found = Answers().plan(state, whole=True).plan
    assert printed["best"]["step_time_s"]["mid"] == pytest.approx(found.best.step_seconds.mid)
    assert printed["whole_run"]["days"]["mid"] == pytest.approx(found.whole_run.days.mid)


def test_kept_layouts_priced_anew_are_the_search_where_nothing_else_could_win() -> None:
    """A price or a date favours no layout: the kept ones give the answer of the whole search."""
    answers = Answers()
    first = answers.plan(SMALL, whole=True)
    assert first.whole
    for change in ({"price": "9"}, {"deadline": "3d"}, {"failures": "100"}, {"tokens": "7B"}):
        state = replace(SMALL, **change)
        quick, whole = answers.plan(state, whole=False), answers.plan(state, whole=True)
        assert (quick.whole, whole.whole) == (False, True)
        assert quick.plan.best.layout == whole.plan.best.layout
        assert quick.plan.whole_run.days == whole.plan.whole_run.days
        assert quick.plan.whole_run.cost_usd == whole.plan.whole_run.cost_usd


@pytest.mark.parametrize("change", [{"devices": "16"}, {"seq": "2k"}, {"layout": "tp=2"}])
def test_what_decides_about_layouts_is_searched_again(change: dict[str, str]) -> None:
    answers = Answers()
    answers.plan(SMALL, whole=True)
    assert answers.plan(replace(SMALL, **change), whole=False).whole


def test_a_later_question_ends_an_earlier_search() -> None:
    with pytest.raises(KrzemError, match="meanwhile"):
        Answers().plan(SMALL, whole=True, superseded=lambda: True)


def test_the_curve_has_the_present_number_in_its_middle() -> None:
    assert curve_counts(64) == (8, 16, 32, 64, 128, 256, 512)
    assert curve_counts(1) == (1, 2, 4, 8)


def test_pages_need_the_key(client: TestClient) -> None:
    stranger = TestClient(client.app)
    for path in ("/", "/answer", "/curve", "/pinned", "/report/x"):
        assert stranger.get(path).status_code == 403
        assert stranger.get(path, params={"key": "wrong"}).status_code == 403
    assert stranger.post("/drop").status_code == 403


def test_other_hosts_names_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_an_answer_is_the_document_of_the_command(client: TestClient) -> None:
    page = client.get("/answer?" + SMALL.query())
    assert page.status_code == 200
    assert "llama-3.1-8b" in page.text
    data = client.get("/answer?" + SMALL.query(), headers={"accept": "application/json"}).json()
    assert data["schema"] == "krzem.plan/1"
    assert data["best"]["layout_text"] in page.text.replace("<wbr>", "")


def test_pins_stand_beside_the_present_answer(client: TestClient) -> None:
    pinned = urlencode({"pin": replace(SMALL, devices="16").query()})
    page = client.get(f"/pinned?{SMALL.query()}&{pinned}")
    assert "8 × NVIDIA" in page.text
    assert "16 × NVIDIA" in page.text


def test_rules_that_bind_stand_beside_the_plan(client: TestClient) -> None:
    page = client.get("/answer?" + replace(SMALL, buyer="CN").query())
    assert "Trade rules: " in page.text
    assert "Trade rules: " not in client.get("/answer?" + SMALL.query()).text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("model=/etc/passwd", "drop a config.json"),
        ("model=../x", "drop a config.json"),
        ("model=no-such-model", "no-such-model"),
        ("device=h1000", "h1000"),
        ("devices=many", "many"),
        ("devices=-3", "-3"),
        ("price=cheap", "price"),
        ("sure=2", "sure"),
        ("tokens=" + "9" * 400, "300 printable"),
        ("engine=nobody", "nobody"),
        ("switches=warp-drive", "warp-drive"),
        ("device=h100.toml", "h100.toml"),
        ("buyer=Atlantis&model=llama-3.1-8b&devices=8&batch=64", "Atlantis"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    client: TestClient, query: str, words: str
) -> None:
    page = client.get("/answer?" + query)
    assert page.status_code == 422
    assert words in page.text
    assert "Traceback" not in page.text


def test_values_are_escaped(client: TestClient) -> None:
    page = client.get("/", params={"model": "<script>alert(1)</script>"})
    assert "<script>alert" not in page.text


def test_a_dropped_configuration_is_the_model(client: TestClient) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
        "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    sent = client.post("/drop", files={"file": ("../../config.json", json.dumps(config))})
    assert sent.status_code == 200
    assert sent.json()["kind"] == "model"
    asked = replace(SMALL, model=sent.json()["model"], seq="2k", precision="bf16")
    assert client.get("/answer?" + asked.query()).status_code == 200


def test_a_dropped_job_is_checked(client: TestClient) -> None:
    from krzem.plan.answer import plan_of, script_of
    from krzem.plan.request import settle

    asked = settle(replace(SMALL.question(), emits="megatron-lm"))
    script = script_of(asked, plan_of(asked), "megatron-lm")
    sent = client.post("/drop", files={"file": ("run.sh", script)}, data={"on": "h100:8"})
    assert sent.status_code == 200, sent.text
    report = client.get(sent.json()["report"])
    assert report.status_code == 200
    assert "krzem check" in report.text


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"file": ("train.log", "iteration 1")},
        {"file": ("run.sh", "echo $(rm -rf /)")},
        {"file": ("config.json", "{" * 10_000)},
        {"file": ("x.bin", b"\x00\xff" * 100)},
    ],
)
def test_what_is_dropped_and_makes_no_job_is_one_sentence(
    client: TestClient, files: dict[str, tuple[str, str]]
) -> None:
    sent = client.post("/drop", files=files or None, data={"on": "h100:8"})
    assert sent.status_code == 422
    assert "Traceback" not in sent.text
    assert "<p>" in sent.text
