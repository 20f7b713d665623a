"""MindSpeed-LLM's and MindSpeed-MM's own trainers, and arguments that a script takes from YAML."""

from __future__ import annotations

import pytest

from krzem.jobs.job import Value
from krzem.jobs.reading import read_job

LAUNCH = "NPUS=8\ntorchrun --nproc_per_node $NPUS --nnodes 2"
LLM = """parallel:
  fsdp_size: 8
  fsdp_modules:
    - model.layers.{*}
  recompute: True
data:
  cutoff_len: 4096
training:
  stage: pt
  optimizer: adamw
  max_steps: 2000
  per_device_train_batch_size: 4
"""
MM = """parallel:
  fully_shard_parallel_size: auto
  ulysses_parallel_size: 2
  expert_parallel_size: 8
  fsdp_plan:
    param_dtype: bf16
    reshard_after_forward: false
features:
  enable_chunk_loss: true
training:
  micro_batch_size: 2
  gradient_accumulation_steps: 4
  train_iters: 60
  optimizer: adamw_swap
  lora:
    enable: true
"""


def test_options_of_the_command_win_over_the_yaml() -> None:
    script = (
        f"{LAUNCH} train_fsdp2.py configs/a.yaml --parallel.fsdp_size 16"
        " --training.per_device_train_batch_size 1 --model.model_name_or_path /x/Qwen3-8B/\n"
    )
    job = read_job(text={"run.sh": script, "configs/a.yaml": LLM})
    expected: dict[str, Value | None] = {
        "model.name": "Qwen3-8B", "tp": 1, "pp": 1, "cp": 1, "ep": 1, "dp": 16, "zero": 3,
        "mbs": 1, "accumulation": 1, "global_batch": 16, "seq": 4096, "train_steps": 2000,
        "recompute": "full", "precision": "bf16", "finetune": "none", "devices": 16,
        "model.layers": None,
    }  # fmt: skip
    assert job.engine == "mindspeed-llm"
    assert {name: job.get(name) for name in expected} == expected
    assert not job.faults
    assert not job.not_understood


def test_the_yaml_alone_leaves_devices_open() -> None:
    job = read_job(text={"a.yaml": LLM})
    assert job.get("devices") is None
    assert (job.get("mbs"), job.get("shard")) == (4, 8)


def test_samples_of_a_fine_tuning_have_no_known_length() -> None:
    job = read_job(text={"a.yaml": LLM.replace("stage: pt", "stage: sft")})
    assert job.get("seq") is None
    assert "seq" in {ask.name for ask in job.asks}


def test_multimodal_trainer() -> None:
    script = f"{LAUNCH} mindspeed_mm/fsdp/train/trainer.py a.yaml\n"
    job = read_job(text={"run.sh": script, "a.yaml": MM})
    expected: dict[str, Value | None] = {
        "cp": 2, "cpkind": "a2a", "ep": 8, "dp": 8, "zero": 2, "mbs": 2, "accumulation": 4,
        "global_batch": 64, "train_steps": 60, "finetune": "lora", "offload": True,
        "switch.loss": "chunked", "precision": "bf16", "seq": None,
    }  # fmt: skip
    assert job.engine == "mindspeed-llm"
    assert {name: job.get(name) for name in expected} == expected


def test_multimodal_trainer_by_its_model_table() -> None:
    extra = "\ntraining: {gradient_accumulation_no_sync: true}\nmodel: {enable_chunk_loss: true}\n"
    script = f"{LAUNCH} mindspeed_mm/fsdp/train/trainer.py a.yaml\n"
    job = read_job(text={"run.sh": script, "a.yaml": extra})
    assert (job.get("switch.grad-sync"), job.get("switch.loss")) == ("last", "chunked")


ZOO = """MODEL_ARGS:
  # sizes
  --num-layers: 4
  --hidden-size: 64  # width
  --num-attention-heads: 4
  --tensor-model-parallel-size: ${TP}
  --sequence-parallel: true
  --finetune: false
  --moe-layer-freq: "'([0]*1+[1]*3)'"
  --num-experts: 8
  --seq-length: ${SEQ}
ENV_VARS:
  --hidden-size: 1
"""
TAKES = """export TP=2 SEQ=128
P=$(yq '.MODEL_ARGS | to_entries | .[] | [.key + " " + .value]' model.yaml | tr '\\n' ' ')
P="$P --micro-batch-size 1 --vocab-size 512 --bf16"
sbatch <<EOF
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
srun bash -c \\\\\\${CMD}
EOF
"""


@pytest.mark.parametrize("start", ["inside a submitted script", "directly"])
def test_arguments_taken_from_yaml(start: str) -> None:
    if start == "directly":
        script = (
            TAKES.partition("sbatch")[0]
            + "srun -N 2 --ntasks-per-node=8 python pretrain_gpt.py $P\n"
        )
    else:
        script = TAKES.replace("sbatch <<", 'export CMD="python pretrain_gpt.py $P"\nsbatch <<')
    job = read_job(text={"run.sh": script, "model.yaml": ZOO})
    expected = {
        "tp": 2, "seq": 128, "model.layers": 4, "model.hidden": 64, "sp": True, "nodes": 2,
        "devices_per_node": 8, "model.dense_layers": 1, "model.experts": 8, "dp": 8,
    }  # fmt: skip
    assert {name: job.get(name) for name in expected} == expected
    assert job.settings["model.hidden"].file == "model.yaml"
    assert job.settings["model.hidden"].line == 4
