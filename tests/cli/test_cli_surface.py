"""The command line is a promise: its verbs and options change on purpose only."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from krzem.cli.main import VERBS, cli
from krzem.errors import KrzemError

GOAL = {
    "--tokens", "--seq", "--batch", "--global-batch", "--batch-tokens", "--precision",
    "--optimizer", "--state-bytes", "--deadline", "--budget", "--start",
    "--finetune", "--lora-rank", "--lora-targets", "--grid",
}  # fmt: skip
ENGINE = {"--engine", "--with", "--without", "--date"}
SEARCH = {"--layout", "--schedules", "--sure", "--offload", "--top"}
EMIT = {"--emit", "--emit-to", "--scheduler"}
OUTPUT = {"--json", "--html", "--quiet"}
SURFACE = {
    "plan": {"model", "--on", "--sweep", "--phase", "--fewest", "--chance", "--calibration"}
    | GOAL
    | ENGINE
    | SEARCH
    | EMIT
    | OUTPUT,
    "compare": {"model", "--on"} | GOAL | ENGINE | SEARCH | OUTPUT,
    "explain": {"model", "--on", "--layout", "--calibration", "--trace"}
    | GOAL
    | ENGINE
    | EMIT
    | OUTPUT,
    "size": {
        "--on",
        "--node-hours",
        "--device-hours",
        "--days",
        "--tokens-per-parameter",
        "--law",
        "--config-to",
        "--grid",
        "--seq",
        "--batch",
        "--global-batch",
        "--batch-tokens",
        "--precision",
        "--optimizer",
        "--state-bytes",
        "--json",
        "--quiet",
    }
    | ENGINE,
    "check": {
        "files",
        "--log",
        "--on",
        "--model",
        "--engine",
        "--set",
        "--calibration",
        "--calibrate",
        "--mfu",
        "--tokens-per-s",
        "--top",
        "--rehearse",
        "--rank",
        "--routing",
        "--trace",
    }
    | OUTPUT,
    "devices": {"name", "--json"},
    "models": {"name", "--json"},
}


def command(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


@pytest.mark.parametrize("verb", SURFACE)
def test_options_are_frozen(verb: str) -> None:
    names = [name for p in command(verb).params for name in (*p.opts, *p.secondary_opts)]
    assert set(names) == SURFACE[verb]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("verb", SURFACE)
def test_every_option_says_what_it_is(verb: str) -> None:
    options = [p for p in command(verb).params if isinstance(p, click.Option)]
    assert all(option.help and option.help.endswith((".", ")", "]")) for option in options)


@pytest.mark.parametrize("verb", SURFACE)
def test_help_teaches_with_examples(verb: str, krzem: Callable[..., Any]) -> None:
    said = krzem(verb, "--help")
    assert said.code == 0
    assert f"krzem {verb} " in said.out
    assert "--json" in said.out


def test_examples_in_help_are_real(krzem: Callable[..., Any]) -> None:
    """Each example of the first page names a verb that is there and options that it has."""
    lines = [line.strip() for line in krzem("--help").out.splitlines()]
    examples = [line for line in lines if line.startswith("krzem ")]
    assert len(examples) >= 4
    for line in examples:
        for example in re.split(r"\s{3,}", line):
            verb = example.split()[1]
            assert set(re.findall(r"--[a-z-]+", example)) <= SURFACE[verb]


def test_only_verbs_that_are_installed_are_listed(
    krzem: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = krzem("--help").out
    for name, verb in VERBS.items():
        assert (re.search(rf"^  {name} ", shown, re.MULTILINE) is not None) == verb.exists
    monkeypatch.setattr("krzem.cli.main._PACKAGE", tmp_path)
    assert "plan" not in cli.list_commands(click.Context(cli))
    assert krzem("plan").code == 2


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_torch.py").write_text("import no_such_torch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    verb = type(VERBS["train"])(at="needs_torch:train_command", help="", extra="train")
    with pytest.raises(KrzemError, match=r"pip install 'krzem\[train\]'") as caught:
        verb.load("train")
    assert "no_such_torch" in str(caught.value)


def test_our_own_missing_module_is_not_blamed_on_an_extra() -> None:
    verb = type(VERBS["train"])(at="krzem.no_such_module:x", help="", extra="train")
    with pytest.raises(ModuleNotFoundError):
        verb.load("train")
