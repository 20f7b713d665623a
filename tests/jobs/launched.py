"""Small jobs that only their launcher completes: pages, submitters, monitors, bases."""

from __future__ import annotations

from tests.jobs.cases import Case
from tests.jobs.configuration_texts import KEMPNER, MINDFORMERS, NANOTRON, SWIFT_FSDP

MINDFORMERS_BASE = """
model:
  model_config: {type: GPT2Config, seq_length: 1024, vocab_size: 50000, embedding_size: 512,
    num_layers: 4, num_heads: 8, expand_ratio: 4, hidden_act: "fast_gelu",
    param_init_type: "float16", compute_dtype: "float16"}
"""
MINDFORMERS_RUN = """
base_config: ['./base.yaml']
runner_config: {batch_size: 2}
parallel_config: {data_parallel: 1, model_parallel: 8, pipeline_stage: 1}
parallel: {enable_parallel_optimizer: False}
recompute_config: {recompute: False}
optimizer: {type: FusedAdamWeightDecay}
use_parallel: False
run_mode: 'eval'
"""
MINDFORMERS_SCRIPT = """#!/bin/bash
RANGE=[0,8]
LEN=${#RANGE}
RANGE=${RANGE:1:LEN-2}
FIRST=${RANGE%%","*}
LAST=${RANGE:${#FIRST}+1}
export RANK_SIZE=$(($LAST - $FIRST))
for ((i=$FIRST; i<$LAST; i++)); do
  python run_mindformer.py --config=$1 --use_parallel=True --run_mode=train &> log &
done
"""
PRIMUS_SCRIPT = """#!/bin/bash
source "$HERE/config.env"
RUN=./examples/run_pretrain.sh
if [ ! -f "$PRIMUS/$RUN" ]; then RUN=./examples/train.sh; fi
NUM_GPUS=$((TP * PP * DP))
GBS=$((MBS * DP * GA))
export EXP="$HERE/output/tiny-BF16-pretrain.yaml"
(
  while true; do
    if command -v rocm-smi; then rocm-smi | grep Used >> log; fi
    sleep 2
  done
) &
bash "$RUN" --train_iters 9 --global_batch_size "$GBS" --micro_batch_size "$MBS" \\
  --seq_length 2048 --tensor_model_parallel_size "$TP" --pipeline_model_parallel_size "$PP" >> log
"""
PAGE = """# A model

```python
import tokens
```

```bash
python3 train_tokenizer.py --dir x
```

## Demo

```bash
python3 -m MaxText.train MaxText/configs/base.yml steps=3 dataset_type=synthetic
```

## Training

We trained it on a v6e-8 slice, and another on something else.

```bash
python3 -m MaxText.train MaxText/configs/base.yml model_name=nano per_device_batch_size=4 \\
  gradient_accumulation_steps=2 max_target_length=1024 steps=50
```
"""
SUBMITTED = (
    "python submit.py --cluster a --num_nodes 2 -- accelerate launch --num_processes 16"
    " --mixed_precision bf16 --use_deepspeed --deepspeed_config_file ds.conf tune.py"
    " --model_name_or_path models/Model-7B --per_device_train_batch_size 2"
    " --gradient_accumulation_steps 3\n"
)
ACCELERATED = """# Train

```shell
accelerate launch --config_file zero3.yaml scripts/sft.py --config full.yaml
```
"""

LAUNCHED = {
    "mindformers gpt": Case(
        engine="mindformers",
        files={"run.sh": "bash run_distribute.sh run.yaml\n",
               "run_distribute.sh": MINDFORMERS_SCRIPT, "run.yaml": MINDFORMERS_RUN,
               "base.yaml": MINDFORMERS_BASE},
        fields={"tp": 8, "dp": 1, "devices": 8, "model.hidden": 512, "model.ffn": 2048,
                "model.attention": "mha", "model.positions": "learned", "model.gated": False,
                "finetune": "none", "state.weight": 2.0, "zero": 0, "mbs": 2},
    ),
    "mindformers experts": Case(
        engine="mindformers",
        files={"a.yaml": MINDFORMERS.replace("micro_batch_interleave_num: 2",
               "moe_config: {expert_num: 8, num_experts_chosen: 2, capacity_factor: 1.1}").replace(
               "seq_length: 8192, ", "intermediate_size: 1024, add_bias_linear: False, ").replace(
               "train_dataset: {batch_size: 7}",
               "train_dataset: {data_loader: {config: {seq_length: 512}}}")},
        fields={"model.experts": 8, "model.moe_ffn": 1024, "switch.routing": "capacity",
                "seq": 512, "model.bias": False},
    ),
    "primus by its launcher": Case(
        engine="primus",
        files={"train.sh": PRIMUS_SCRIPT, "config.env": "TP=2\nPP=1\nDP=4\nGA=3\nMBS=5\n"
               "PRECISION=bf16 # both\n"},
        fields={"tp": 2, "pp": 1, "dp": 4, "devices": 8, "mbs": 5, "accumulation": 3,
                "global_batch": 60, "seq": 2048, "train_steps": 9, "precision": "bf16",
                "model.name": "tiny-BF16-pretrain.yaml", "finetune": "none"},
        open=("model.layers", "recompute", "zero"),
        asks=("model.layers", "recompute"),
    ),
    "maxtext page": Case(
        engine="maxtext",
        files={"README.md": PAGE},
        fields={"model.name": "nano", "device": "v6e", "devices": 8, "mbs": 4, "accumulation": 2,
                "global_batch": 64, "seq": 1024, "train_steps": 50},
        open=("model.layers",),
    ),
    "maxtext random routing": Case(
        engine="maxtext",
        files={"run.sh": "python3 -m MaxText.train base.yml model_name=x num_experts=8"
               " per_device_batch_size=1 use_random_routing=True\n"},
        fields={"switch.routing": "balanced"},
    ),
    "handed on by a submitter": Case(
        engine="deepspeed",
        files={"run.sh": SUBMITTED, "ds.conf": '{"zero_optimization": {"stage": 3}}'},
        fields={"zero": 3, "mbs": 2, "accumulation": 3, "devices": 16, "model.name": "Model-7B",
                "precision": "bf16"},
    ),
    "accelerate on a page": Case(
        engine="deepspeed",
        files={"full.yaml": "model_name_or_path: a/b\nper_device_train_batch_size: 2\nbf16: true\n"
               "gradient_accumulation_steps: 1\n", "README.md": ACCELERATED,
               "zero3.yaml": "distributed_type: DEEPSPEED\nnum_processes: 8\nnum_machines: 1\n"
               "deepspeed_config: {zero_stage: 3}\n"},
        fields={"devices": 8, "nodes": 1, "dp": 8, "zero": 3, "global_batch": 16},
    ),
    "deepspeed that is null": Case(
        engine="fsdp",
        files={"args.json": SWIFT_FSDP[:-1] + ', "deepspeed": null, "tuner_type": "full",'
               ' "per_device_train_batch_size": 1, "model": "/data/Model-1B", "bf16": true}'},
        fields={"zero": 2, "offload": True, "finetune": "full"},
    ),
    "kempner experts": Case(
        engine="other",
        files={"a.toml": KEMPNER.replace("ffn_dim_multiplier = 1.3", "ffn_dim_multiplier = 1.3\n"
               "num_experts = 8\nmoe_top_k = 2\nmoe_capacity_factor = 0.0").replace(
               "dp_replicate = 2", "ep = 2")},
        fields={"model.moe_ffn": 14336, "model.top_k": 2, "switch.routing": "real", "ep": 2,
                "dp": 4, "devices": 16, "global_batch": 64, "shard": 4},
    ),
    "nanotron llama": Case(
        engine="other",
        files={"a.yaml": NANOTRON.replace("rope_theta: 1e4", "is_llama_config: true").replace(
            "optimizer_factory: {name: adamW}", "torch_adam_is_fused: true")},
        fields={"optimizer": "adamw", "model.positions": "rope", "state.moments": 8.0},
    ),
}  # fmt: skip
