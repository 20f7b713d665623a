"""Text from checkpoints: what is kept of earlier tokens changes nothing; the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.train.configs import ALL
from tests.train.loop.folder import tokenised, write
from tests.train.model.test_parity import oracle, ours

from krzem.cli.main import run
from krzem.train.command import main
from krzem.train.sample import Sampling, continue_tokens

FORGETFUL = ("deepseek_v4", "deepseek_v32", "glm_moe_dsa", "qwen3_next")
"""Families whose layers keep no plain keys and values."""
LIKELIEST = Sampling(tokens=12, temperature=0.0)


def prompts() -> torch.Tensor:
    return torch.randint(0, 96, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_likeliest_tokens_are_those_of_transformers(name: str) -> None:
    source = oracle(name, ALL[name]).eval()
    model = ours(ALL[name], source).eval()
    assert model.remembers is (name not in FORGETFUL)
    found = continue_tokens(model, prompts(), LIKELIEST)
    expected = prompts()
    with torch.no_grad():
        for _ in range(LIKELIEST.tokens):
            last = source(expected).logits[:, -1]
            expected = torch.cat((expected, last.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled")
    tokenised(folder)
    assert main(write(folder, "qwen3", tokens=512, save=0)) == 0
    return folder


def test_the_verb_writes_on_from_each_prompt(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["sample", str(trained / "out"), "-p", "the 3", "-p", "a line", "-p", "the 4"]
    capsys.readouterr()
    assert run([*told, "--tokens", "5", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in first["samples"]] == ["the 3", "a line", "the 4"]
    assert Path(first["checkpoint"]).parent == trained / "out" / "checkpoints"
    assert run([*told, "--tokens", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert run([*told, "--tokens", "5", "--json", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out) != first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give text to go on from"),
        (["-p", ""], "a prompt is empty"),
        (["--prompts", "no such file"], "cannot read the prompts"),
        (["-p", "a", "--tokenizer", "no such folder"], "cannot read the tokenizer"),
    ],
)
def test_what_lacks_is_said(
    trained: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", str(trained / "out"), *arguments]) != 0
    assert said in capsys.readouterr().err


def test_no_checkpoint_and_no_tokenizer_are_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", str(tmp_path), "-p", "a"]) != 0
    assert "checkpoint" in capsys.readouterr().err
    (source,) = (trained / "out" / "checkpoints").iterdir()
    copy = tmp_path / "copied" / "checkpoints" / source.name
    copy.mkdir(parents=True)
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert run(["sample", str(copy), "-p", "a"]) != 0
    assert "name one with --tokenizer" in capsys.readouterr().err
    assert run(["sample", str(copy), "-p", "a", "--tokenizer", "bytes", "--tokens", "1"]) == 0
