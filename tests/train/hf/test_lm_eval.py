"""The documented line of lm-eval, on an export and a task of this machine.

The harness has an environment of its own: ``scripts/engine-env lm-eval``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tests.train.configs import ALL
from tests.train.hf.test_roundtrip import engine

from krzem.train.hf import export_model

HARNESS = Path(__file__).parents[3] / ".venv-engines" / "lm-eval"
TASK = """
task: plus_one
dataset_path: json
dataset_kwargs:
  data_files:
    test: task/questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - metric: acc
"""


def with_tokenizer(out: Path) -> None:
    """Export a model whose tokenizer has a token for each byte, and one that ends a text."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"<end>": 256}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = {**ALL["llama"], "vocab_size": 260, "eos_token_id": 256}
    export_model(engine(config), out, config, dtype=torch.float32)
    made.save(str(out / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (out / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.mark.skipif(not (HARNESS / "done").exists(), reason="scripts/engine-env lm-eval makes it")
def test_the_documented_line_scores_an_export(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "checkpoint.md").read_text()
    line = next(row for row in page.splitlines() if row.startswith("lm_eval --model hf"))
    with_tokenizer(tmp_path / "OUT")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "plus_one.yaml").write_text(TASK)
    asked = [
        {"question": f"{n} and one is", "choices": [str(n + 1), str(n + 2)], "label": 0}
        for n in range(8)
    ]
    (tmp_path / "task" / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    words = line.replace("hellaswag", "plus_one").split()
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    more = ["--include_path", "task", "--device", "cpu", "--output_path", "results"]
    subprocess.run(
        [HARNESS / "bin" / words[0], *words[1:], *more],
        cwd=tmp_path,
        env={**os.environ, **offline, "HF_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    (file,) = (tmp_path / "results").rglob("results*.json")
    told = json.loads(file.read_text())
    assert told["n-samples"]["plus_one"]["effective"] == len(asked)
    assert 0 <= told["results"]["plus_one"]["acc,none"] <= 1
