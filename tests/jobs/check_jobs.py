"""Small jobs of one's own for each engine, and logs of them, that tests of ``check`` confront."""

from __future__ import annotations

MEGATRON = """#!/bin/bash
GPUS_PER_NODE=8
NNODES=2
TP=8
PP=1
MBS=1
GBS=128
torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py \\
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 \\
    --group-query-attention --num-query-groups 8 --swiglu --vocab-size 128256 \\
    --position-embedding-type rope --untie-embeddings-and-output-weights --disable-bias-linear \\
    --seq-length 8192 --max-position-embeddings 8192 \\
    --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP \\
    --micro-batch-size $MBS --global-batch-size $GBS --train-iters 1000 \\
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \\
    --bf16 --use-distributed-optimizer --sequence-parallel --attention-backend flash \\
    --lr 3e-4 --save /checkpoints
"""

MINDSPEED = """#!/bin/bash
NPUS_PER_NODE=8
NNODES=2
TP=2
PP=1
torchrun --nproc_per_node $NPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py \\
    --use-mcore-models --transformer-impl local \\
    --num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 \\
    --group-query-attention --num-query-groups 8 --kv-channels 128 --qk-layernorm --swiglu \\
    --vocab-size 151936 --padded-vocab-size 151936 --position-embedding-type rope \\
    --untie-embeddings-and-output-weights --disable-bias-linear --seq-length 4096 \\
    --tensor-model-parallel-size ${TP} --pipeline-model-parallel-size ${PP} \\
    --micro-batch-size 1 --global-batch-size 64 --train-iters 500 --sequence-parallel \\
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \\
    --bf16 --use-flash-attn --use-distributed-optimizer --use-fused-rmsnorm --use-fused-swiglu
"""

TITAN = """[model]
name = "llama3"
flavor = "8B"

[training]
local_batch_size = 1
global_batch_size = 64
seq_len = 8192
steps = 1000

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
tensor_parallel_degree = 1
pipeline_parallel_degree = 1
context_parallel_degree = 1

[activation_checkpoint]
mode = "full"

[compile]
enable = false
"""

DEEPSPEED_CONFIG = """{
  "train_micro_batch_size_per_gpu": 1,
  "gradient_accumulation_steps": 8,
  "bf16": {
    "enabled": true
  },
  "zero_optimization": {
    "stage": 2,
    "overlap_comm": false
  }
}
"""
DEEPSPEED = """#!/bin/bash
deepspeed --num_gpus 8 train.py \\
    --model_name_or_path meta-llama/Llama-3.1-8B --bf16 true \\
    --per_device_train_batch_size 1 --gradient_accumulation_steps 8 --packing true \\
    --max_seq_length 4096 --gradient_checkpointing true --max_steps 100 \\
    --deepspeed ds_config.json
"""

NANOTRON = """model:
  dtype: bfloat16
  model_config:
    hidden_size: 4096
    intermediate_size: 14336
    num_attention_heads: 32
    num_hidden_layers: 32
    num_key_value_heads: 8
    tie_word_embeddings: false
    vocab_size: 128256
    max_position_embeddings: 4096
    is_llama_config: true
optimizer:
  accumulate_grad_in_fp32: true
  zero_stage: 0
parallelism:
  dp: 2
  pp: 1
  tp: 4
  pp_engine: 1f1b
  tp_linear_async_communication: true
  tp_mode: REDUCE_SCATTER
  recompute_layer: false
tokens:
  batch_accumulation_per_replica: 16
  limit_test_batches: 0
  limit_val_batches: 0
  micro_batch_size: 1
  sequence_length: 4096
  train_steps: 1000
"""

MINDFORMERS = """use_parallel: True
runner_config:
  epochs: 1
  batch_size: 1
  sink_mode: True
parallel_config:
  data_parallel: 2
  model_parallel: 8
  pipeline_stage: 1
  context_parallel: 1
  micro_batch_num: 1
  use_seq_parallel: True
  gradient_aggregation_group: 4
parallel:
  enable_parallel_optimizer: True
optimizer:
  type: AdamW
recompute_config:
  recompute: True
  select_recompute: False
model:
  model_config:
    type: LlamaConfig
    seq_length: 4096
    hidden_size: 4096
    num_layers: 32
    num_heads: 32
    n_kv_heads: 8
    vocab_size: 128256
    intermediate_size: 14336
    compute_dtype: "bfloat16"
    param_init_type: "float32"
    use_flash_attention: True
"""

PRIMUS = """work_group: amd
user_name: someone
exp_name: llama
workspace: ./output
modules:
  pre_trainer:
    framework: megatron
    config: pre_trainer.yaml
    model: llama3.1_8B.yaml
    overrides:
      train_iters: 50
      micro_batch_size: 2
      global_batch_size: 128
      seq_length: 8192
      num_layers: 32
      hidden_size: 4096
      ffn_hidden_size: 14336
      num_attention_heads: 32
      group_query_attention: true
      num_query_groups: 8
      padded_vocab_size: 128256
      swiglu: true
      tensor_model_parallel_size: 1
      pipeline_model_parallel_size: 1
      expert_model_parallel_size: 1
      use_distributed_optimizer: true
      overlap_grad_reduce: true
      overlap_param_gather: true
      gradient_accumulation_fusion: false
      bf16: true
      recompute_granularity: full
      recompute_method: uniform
      recompute_num_layers: 1
"""

JOBS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "megatron-lm": ({"run.sh": MEGATRON}, {"on": "h100"}),
    "mindspeed-llm": ({"run.sh": MINDSPEED}, {"on": "ascend-910b"}),
    "torchtitan": ({"llama3_8b.toml": TITAN}, {"on": "h100:16"}),
    "deepspeed": ({"run.sh": DEEPSPEED, "ds_config.json": DEEPSPEED_CONFIG}, {"on": "h100:8"}),
    "other": ({"nanotron.yaml": NANOTRON}, {"on": "h100"}),
    "mindformers": ({"llama.yaml": MINDFORMERS}, {"on": "ascend-910b"}),
    "primus": ({"llama.yaml": PRIMUS}, {"on": "mi300x:8"}),
}
"""Files of each, and what is told beside them."""


def megatron_log(
    seconds: float, steps: int = 40, tflops: float | None = None, gbs: int = 128
) -> str:
    """A log of Megatron-LM with this step time, the first step slow."""
    lines = []
    for i in range(1, steps + 1):
        ms = seconds * 1000 * (4.0 if i == 1 else 1.0 + 0.002 * ((i * 7) % 5 - 2))
        rate = "" if tflops is None else f" throughput per GPU (TFLOP/s/GPU): {tflops:.1f} |"
        lines.append(
            f" [2026-05-01 10:00:{i % 60:02d}] iteration {i:8d}/    1000 | consumed samples:"
            f" {i * gbs:12d} | elapsed time per iteration (ms): {ms:.1f} |{rate} learning rate:"
            f" 3.000000E-04 | global batch size: {gbs:5d} | lm loss: 2.5E+00 | loss scale: 1.0 |"
            " grad norm: 0.5 | number of skipped iterations:   0 | number of nan iterations:   0 |"
        )
    return "\n".join(lines) + "\n"
