"""Bad input: one clear message, exit code 2, a next step, never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Krzem = Callable[..., Any]
SMALL = ("qwen3-0.6b", "--batch", "64")
ON = ("--on", "h100:16")

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown model": (("plan", "lama-3", *ON), "Did you mean llama-3"),
    "unknown device": (("plan", *SMALL, "--on", "h801:16"), "Did you mean nvidia-h800-sxm"),
    "no count": (("plan", *SMALL, "--on", "h100"), "write DEVICE:COUNT"),
    "10^12 devices": (("plan", *SMALL, "--on", "h100:1e12"), "10,000,000"),
    "no devices": (("plan", *SMALL, "--on", "h100:0"), "zero"),
    "less than no devices": (("plan", *SMALL, "--on", "h100:-4"), "negative"),
    "half a device": (("plan", *SMALL, "--on", "h100:16.5"), "not a whole number"),
    "no file": (("plan", *SMALL, "--on", "no.toml"), "does not exist"),
    "no config": (("plan", "./no.json", *ON), "config.json"),
    "nothing published": (("plan", "gpt-oss-20b", *ON), "give --tokens"),
    "tokens nan": (("plan", *SMALL, *ON, "--tokens", "nan"), "not a finite number"),
    "tokens negative": (("plan", *SMALL, *ON, "--tokens", "-5T"), "negative"),
    "tokens in bytes": (("plan", *SMALL, *ON, "--tokens", "5GB"), "'GB' is not a unit"),
    "tokens huge": (("plan", *SMALL, *ON, "--tokens", "1e25"), "1e18"),
    "tokens endless": (("plan", *SMALL, *ON, "--tokens", "1e999999999"), "exponent"),
    "less than one batch": (("plan", *SMALL, *ON, "--tokens", "1k"), "--tokens"),
    "no layout divides": (("plan", "llama-3.1-8b", "--on", "h100:1009", "--batch", "128"),
                          "Choose a batch"),
    "too small": (("plan", "llama-3.1-405b", "--on", "h100:16"), "5.5 times too little"),
    "two batches": (("plan", *SMALL, *ON, "--batch-tokens", "1M"), "keep one"),
    "precision unknown": (("plan", *SMALL, *ON, "--precision", "int3"), "Known: bf16"),
    "precision not there": (("plan", *SMALL, "--on", "910c:16", "--precision", "fp8"),
                            "give one of them with --precision"),
    "optimizer": (("plan", *SMALL, *ON, "--optimizer", "lion"), "muon"),
    "engine": (("plan", *SMALL, *ON, "--engine", "megatorn"), "megatron-lm"),
    "schedule": (("plan", *SMALL, *ON, "--schedules", "zb"), "zb-v"),
    "certainty": (("plan", *SMALL, *ON, "--sure", "2"), "between 0 and 1"),
    "certainty in words": (("plan", *SMALL, *ON, "--sure", "very"), "krzem plan --help"),
    "deadline in words": (("plan", *SMALL, *ON, "--deadline", "soon"), "30s, 90 min"),
    "budget in euros": (("plan", *SMALL, *ON, "--budget", "5EUR"), "USD"),
    "no such day": (("plan", *SMALL, *ON, "--start", "2027-02-30"), "no such day"),
    "deadline yesterday": (("plan", *SMALL, *ON, "--deadline", "2018-01-01"), "not after"),
    "budget of nothing": (("plan", *SMALL, *ON, "--budget", "0"), "above zero"),
    "software before transformers": (("plan", *SMALL, *ON, "--date", "1900-01"), "2017 to 2100"),
    "start after the calendar": (("plan", *SMALL, *ON, "--start", "9999-12-31"), "2017 to 2100"),
    "weights of nothing": (("plan", *SMALL, *ON, "--state-bytes", "weight=0"), "weight=2"),
    "which option": (("plan", *SMALL, *ON, "--seq", "0"), "--seq: cannot read"),
    "page on a device": (("plan", *SMALL, *ON, "--html", "/dev/null"), "not a regular file"),
    "page without a name": (("plan", *SMALL, *ON, "--html", ""), "has no name"),
    "rules on a device": (("rules", "--html", "/dev/null"), "not a regular file"),
    "outlook on a folder": (("outlook", "--html", "/"), "is a folder"),
    "outlook from a device": (("outlook", "/dev/zero"), "is not a file"),
    "no folder": (("plan", *SMALL, *ON, "--html", "/no/such/x.html"), "give another file"),
    "emit for nobody": (("plan", *SMALL, *ON, "--emit", "foo"), "megatron-lm"),
    "emit to nowhere": (("plan", *SMALL, *ON, "--emit-to", "x"), "--emit ENGINE"),
    "unknown facts": (("plan", *SMALL, "--on", "ascend-910d:16"), "cluster.toml"),
    "compare one": (("compare", *SMALL, *ON), "at least twice"),
    "compare with a typo": (("compare", *SMALL, *ON, "--on", "h10:3"), "krzem devices"),
    "compare none fits": (("compare", "llama-3.1-405b", "--on", "h100:1", "--on", "a100:1"),
                          "times too little"),
    "no layout": (("explain", *SMALL, *ON), "--layout"),
    "empty layout": (("explain", *SMALL, *ON, "--layout", ""), "write tp=1"),
    "layout name": (("explain", *SMALL, *ON, "--layout", "tpp=2"), "nearest: tp"),
    "layout of nothing known": (("explain", *SMALL, *ON, "--layout", "zzz"), "known: tp, cp"),
    "layout beyond count": (("explain", *SMALL, *ON, "--layout", "mbs=" + "9" * 30), "10,000,000"),
    "layout twice": (("explain", *SMALL, *ON, "--layout", "tp=1,tp=2"), "twice"),
    "layout devices": (("explain", *SMALL, *ON, "--layout", "tp=3"), "= 3 does not divide"),
    "layout experts": (("explain", *SMALL, *ON, "--layout", "ep=2"), "dense"),
    "verb": (("pln",), "nearest: plan"),
    "option": (("plan", *SMALL, *ON, "--token", "1T"), "--tokens"),
    "no model": (("plan", *ON), "MODEL"),
    "no cluster": (("plan", *SMALL), "--on"),
    "device": (("devices", "zzz"), "krzem devices"),
    "models": (("models", "zzz"), "krzem models"),
}  # fmt: skip


def refused(said: Any, says: str) -> None:
    assert said.code == 2
    assert said.err.startswith("krzem: error: ")
    assert "Traceback" not in said.err
    assert says in said.err
    assert said.out == ""
    assert len(said.err) < 3000


@pytest.mark.parametrize(("arguments", "says"), CASES.values(), ids=CASES)
def test_one_message_with_a_next_step(
    krzem: Krzem, arguments: tuple[str, ...], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused(krzem(*arguments), says)
    assert not list(tmp_path.iterdir())


TOML = {
    "negative rate": ('device = "h800"\ndevices = 8\nscale_up_bandwidth = "-5 GB/s"', "negative"),
    "no unit": ('device = "h800"\ndevices = 8\nscale_up_bandwidth = 200', "unit is missing"),
    "wrong unit": ('device = "h800"\ndevices = 8\nmemory = "80 GB/s"', "is not a unit"),
    "nan": ('device = "h800"\ndevices = nan', "not a finite number"),
    "10^12": ('device = "h800"\ndevices = 1e12', "10,000,000"),
    "unknown key": ('device = "h800"\ndevices = 8\npricce = "$2/h"', "price"),
    "duplicate key": ('device = "h800"\ndevice = "h100"', "not valid TOML"),
    "contradiction": ('device = "h800"\ndevices = 8\nnodes = 3', "disagree"),
    "broken": ("[", "not valid TOML"),
    "deep": ("a=" + "[" * 100_000, "too deeply"),
    "endless key": (".".join("a" * 100_000) + "=1", "more than 40 parts"),
    "no such link": ('device = "h800"\ndevices = 8\nscale_out_bandwidth = "1e-9 B/s"', "1 MB/s"),
    "table": ('[device]\nx=1\n', "text"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), TOML.values(), ids=TOML)
def test_clusters_that_cannot_be(krzem: Krzem, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    refused(krzem("plan", *SMALL, "--on", str(file)), says)


LLAMA: dict[str, object] = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4,
    "vocab_size": 1000, "intermediate_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip
CONFIGS = {
    "not JSON": ('{"model_type": "llama"', "not valid JSON"),
    "NaN": ('{"model_type": "llama", "hidden_size": NaN}', "NaN"),
    "infinite": (
        '{"model_type": "llama", "num_attention_heads": 8, "hidden_size": 1e999}',
        "whole number",
    ),
    "a list": ("[1, 2]", "object"),
    "deep": ("[" * 100_000, "too deeply"),
    "twice": ('{"model_type": "llama", "model_type": "gpt2"}', "twice"),
    "unknown type": (json.dumps(LLAMA | {"model_type": "llame"}), "llama"),
    "missing field": (json.dumps({k: v for k, v in LLAMA.items() if k != "vocab_size"}),
                      "vocab_size"),
    "contradiction": (json.dumps(LLAMA | {"num_attention_heads": 3}), "256 / 3"),
    "negative": (json.dumps(LLAMA | {"num_hidden_layers": -1}), "num_hidden_layers"),
    "huge": (json.dumps(LLAMA | {"num_hidden_layers": 10**12}), "between 1 and"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_cannot_be(krzem: Krzem, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    refused(
        krzem("plan", str(file), *ON, "--tokens", "1B", "--seq", "2k", "--batch", "16",
              "--precision", "bf16"),
        says,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cluster.toml", "config.json"])
def test_a_file_of_a_gigabyte_is_refused_unread(krzem: Krzem, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with file.open("wb") as stream:
        stream.truncate(2**30)
    toml = name.endswith("toml")
    said = krzem("plan", *SMALL, "--on", str(file)) if toml else krzem("plan", str(file), *ON)
    refused(said, "at most" if toml else "more than 16 MiB")


def test_bytes_that_are_no_text(krzem: Krzem, tmp_path: Path) -> None:
    for name in ("cluster.toml", "config.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    refused(krzem("plan", *SMALL, "--on", str(tmp_path / "cluster.toml")), "UTF-8")
    refused(krzem("plan", str(tmp_path), *ON), "UTF-8")


def test_messages_hold_no_control_characters(krzem: Krzem) -> None:
    said = krzem("plan", *SMALL, "--on", "\x1b[2J\udcff:8")
    refused(said, "devices")
    assert "\x1b" not in said.err
    assert said.err.encode()
