"""A folder to train in: text as tokens, a model of 264 tokens, a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.train.configs import ALL

from krzem.train.data import BuildRequest, build
from krzem.train.data.build import Options

RUN = """
model = "config.json"
layout = "{layout}"
{top}
[run]
folder = "out"
[goal]
tokens = {tokens}
sequence = 32
global_batch = 8
precision = "fp32"
[data]
path = "tokens"
documents = true
[optimizer]
rate = 5e-3
[checkpoint]
every = {save}
[evaluation]
every = {evaluate}
sequences = 4
[metrics]
every = {every}
"""


def tokenised(folder: Path) -> None:
    """Write ``tokens`` into ``folder``, with a held-out split."""
    lines = [f"the {i}th line of a text that repeats itself, line {i * i}. " * 4 for i in range(99)]
    text = folder / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    request = BuildRequest(
        sources=(text,), out=folder / "tokens", tokenizer="bytes", options=Options(held_out=0.1)
    )
    build(request)


def write(folder: Path, model: str = "deepseek_v3", *, end: str = "", **changes: Any) -> Path:
    """The run file, with ``end`` appended; ``top`` are lines above its tables."""
    fields = {
        "layout": "mbs=4",
        "tokens": 2560,
        "evaluate": 0,
        "save": 4,
        "every": 0,
        "top": "",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({**ALL[model], "vocab_size": 264}))
    file = folder / "run.toml"
    file.write_text(RUN.format(**fields) + end)
    return file
