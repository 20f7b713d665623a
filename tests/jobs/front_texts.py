"""Small jobs of fronts over Megatron, NeMo 1, DeepSpeed-Chat and axolotl, and what they decide."""

from __future__ import annotations

from tests.jobs.cases import Case

_SWIFT = """
NPROC_PER_NODE=8 \\
megatron sft \\
    --model org/Model-30B-A3B --dataset a --packing true --max_length 8192 \\
    --pipeline_model_parallel_size 2 --expert_model_parallel_size 4 \\
    --sequence_parallel true --micro_batch_size 1 \\
    --recompute_granularity full --recompute_method uniform --recompute_num_layers 1
"""
_SWIFT_LORA = """
megatron sft --model org/Model-8B --tuner_type lora --max_length 4096 --tensor_model_parallel_size 2
"""
_CASE = """
ENV_VARS:
  CUDA_DEVICE_MAX_CONNECTIONS: 1
MODEL_ARGS:
  --tensor-model-parallel-size: 2
  --pipeline-model-parallel-size: 1
  --num-layers: 12 # of more
  --hidden-size: 1024
  --num-attention-heads: 16
  --swiglu: true
  --untie-embeddings-and-output-weights: true
  --micro-batch-size: 4
  --global-batch-size: 64
  --seq-length: 4096
  --use-distributed-optimizer: true
  --recompute-activations: false
  --bf16: true
METRICS:
  - "lm loss"
"""
_SCALE = """
defaults:
  - _self_
  - train: small
experiment:
  task:
    type: train
    backend: megatron
    entrypoint: flagscale/train/train_gpt.py
  runner:
    nnodes: 2
    nproc_per_node: 8
"""
_SCALE_TRAIN = """
system:
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 4
  sequence_parallel: true
  use_distributed_optimizer: true
  precision:
    bf16: true
  logging:
    log_interval: 1
model:
  num_layers: 32
  hidden_size: 2048
  num_attention_heads: 16
  group_query_attention: true
  num_query_groups: 4
  swiglu: true
  seq_length: 4096
  micro_batch_size: 2
  global_batch_size: 128
  optimizer:
    weight_decay: 0.1
    lr_scheduler:
      lr: 1.0e-4
data:
  tokenizer:
    vocab_size: 32000
"""
_NEMO = """
trainer:
  num_nodes: 4
  devices: 8
  precision: bf16
  max_steps: 100
model:
  mcore_gpt: true
  micro_batch_size: 1
  global_batch_size: 64
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 2
  virtual_pipeline_model_parallel_size: null
  encoder_seq_length: 4096
  num_layers: 32
  hidden_size: 4096
  ffn_hidden_size: 14336
  num_attention_heads: 32
  OTHER
  override_vocab_size: 32000
  activation: fast-swiglu
  sequence_parallel: true
  activations_checkpoint_granularity: null
  optim:
    name: OPTIMIZER
"""
_AXOLOTL = """
base_model: org/Model-8B
plugins:
  - axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin
datasets:
  - path: a
sequence_len: 2048
sample_packing: true
bf16: auto
gradient_accumulation_steps: 2
micro_batch_size: 1
optimizer: adamw_torch
deepspeed:
fsdp:
fsdp_config:
"""
_CHAT = """
deepspeed --num_gpus 8 main.py --data_path a --data_split 2,4,4 --model_name_or_path org/Model-7B \\
  --per_device_train_batch_size 4 --max_seq_len 512 --gradient_checkpointing --zero_stage 3 \\
  --gradient_accumulation_steps 1 --deepspeed
"""
_NAMED = """
torchrun --nproc_per_node 4 train.py --model_name=org/Model-1B --per_device_train_batch_size 2 \\
  --gradient_accumulation_steps 8 --block_size 1024 --bf16 True
"""
_NEOX = """
{
  "pipe_parallel_size": 0, "model_parallel_size": 2, "num_layers": 12, "hidden_size": 768,
  "num_attention_heads": 12, "seq_length": 2048, "train_micro_batch_size_per_gpu": 4,
  "finetune": true, "zero_optimization": {"stage": 1}
}
"""
_QUERY = """
torchrun --nproc_per_node 8 pretrain_gpt.py --num-layers 8 --hidden-size 512 \\
  --num-attention-heads 8 --attention-head-type multiquery --micro-batch-size 1 \\
  --global-batch-size 8 --seq-length 512 --bf16
"""
_SWITCH = """
deepspeed pretrain_gpt.py --num-layers 8 --hidden-size 512 --num-attention-heads 8 \\
  --num-experts 16 --moe-expert-parallel-size 4 --micro-batch-size 1 --global-batch-size 8 \\
  --seq-length 512 --fp16 --deepspeed
"""

_NXD = """
name: a
model_source: hf
trainer:
  devices: 32
  num_nodes: 4
  max_steps: 100
distributed_strategy:
  tensor_model_parallel_size: 32
  pipeline_model_parallel_size: 2
  zero1: True
  sequence_parallel: True
data:
  micro_batch_size: 1
  global_batch_size: 64
model:
  encoder_seq_length: 8192
  num_layers: 32
  hidden_size: 4096
  fusions:
    softmax: True
    flash_attention: True
  optim:
    name: adamw
precision:
  type: 'mixed_precision'
  master_weights: False
compiler_flags: '--model-type transformer'
"""
_TUNE = """
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: LENGTH
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: True
model:
  _component_: torchtune.models.llama3_1.MODEL
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  fused: True
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
gradient_accumulation_steps: 4
enable_activation_checkpointing: True
compile: False
dtype: bf16
"""

_INTERN = """
SEQ_LEN = 2048
HIDDEN = 4096
LAYERS = 32
ckpt = dict(enable_save_ckpt=False, every=int(50 / 2))
data = dict(seq_len=SEQ_LEN, micro_num=4, micro_bsz=2, total_steps=10 * 5)
lr_scheduler = dict(total_steps=data["total_steps"])
model = dict(
    checkpoint=CHECKPOINT,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    vocab_size=92544,
    hidden_size=HIDDEN,
    num_layers=LAYERS,
    mlp_ratio=8 / 3,
    dtype="torch.bfloat16",
    use_flash_attn=True,
    num_chunks=1,
)
parallel = dict(
    zero1=dict(size=ZERO),
    tensor=dict(size=TENSOR, mode="MODE"),
    pipeline=dict(size=2, interleaved_overlap=True),
    weight=dict(size=WEIGHT, overlap=True),
)
"""


def _intern(**said: object) -> str:
    text = _INTERN
    for name, value in said.items():
        text = text.replace(name.upper(), str(value))
    return text


FRONTS: dict[str, Case] = {
    "swift over megatron": Case(
        engine="megatron-lm",
        files={"run.sh": _SWIFT},
        fields={
            "model.name": "org/Model-30B-A3B", "devices": 8, "tp": 1, "pp": 2, "ep": 4, "dp": 4,
            "zero": 1, "sp": False, "mbs": 1, "global_batch": 16, "accumulation": 4, "seq": 8192,
            "recompute": "full", "precision": "bf16", "finetune": "full", "switch.loss": "fused",
            "state.gradient": 4.0,
        },
        open=("model.layers", "model.gated", "model.tied"),
    ),
    "swift over megatron, adapters": Case(
        engine="megatron-lm",
        files={"run.sh": _SWIFT_LORA},
        fields={"finetune": "lora", "recompute": "attention", "tp": 2, "mbs": 1},
        open=("seq", "devices"),
        asks=("seq",),
    ),
    "a case of megatron's tests": Case(
        engine="megatron-lm",
        files={"model_config.yaml": _CASE},
        fields={
            "tp": 2, "pp": 1, "model.layers": 12, "model.hidden": 1024, "model.gated": True,
            "model.tied": False, "mbs": 4, "global_batch": 64, "seq": 4096, "zero": 1,
            "precision": "bf16", "recompute": "none",
        },
        open=("devices",),
    ),
    "flagscale": Case(
        engine="megatron-lm",
        files={"conf/train.yaml": _SCALE, "conf/train/small.yaml": _SCALE_TRAIN},
        fields={
            "devices": 16, "tp": 2, "pp": 4, "dp": 2, "sp": True, "zero": 1, "precision": "bf16",
            "model.layers": 32, "model.kv_heads": 4, "mbs": 2, "global_batch": 128, "seq": 4096,
        },
    ),
    "flagscale, another size than the experiment names": Case(
        engine="megatron-lm",
        files={"conf/train.yaml": _SCALE.replace("small", "large"),
               "conf/train/small.yaml": _SCALE_TRAIN},
        fields={"tp": 2, "pp": 4, "model.layers": 32},
    ),
    "nemo 1": Case(
        engine="megatron-bridge",
        files={"a.yaml": _NEMO.replace("OTHER", "").replace(
            "OPTIMIZER", "mcore_distributed_optim")},
        fields={"cp": 1, "ep": 1, "dp": 4, "accumulation": 16, "zero": 1, "model.kv_heads": 32,
                "model.vocab": 32000, "vpp": 1, "recompute": "none"},
    ),
    "nemo 1 with experts": Case(
        engine="megatron-bridge",
        files={"a.yaml": _NEMO.replace("OTHER", "num_moe_experts: 8").replace(
            "OPTIMIZER", "fused_adam")},
        fields={"model.experts": 8, "model.moe_ffn": 14336, "ep": 1, "zero": 0},
    ),
    "nxd training": Case(
        engine="neuron",
        files={"a.yaml": _NXD},
        fields={"tp": 32, "pp": 2, "dp": 2, "zero": 1, "sp": True, "precision": "bf16",
                "accumulation": 32, "seq": 8192, "switch.attention": "fused", "devices": 128},
    ),
    "internevo": Case(
        engine="internevo",
        files={
            "a.py": _intern(checkpoint=True, zero=8, tensor=4, mode="msp", weight=1),
            "run.sh": "torchrun --nnodes=8 --nproc_per_node=8 train.py --config a.py\n",
        },
        fields={"devices": 64, "tp": 4, "sp": True, "pp": 2, "dp": 8, "zero": 1, "shard": 8,
                "mbs": 2, "accumulation": 4, "global_batch": 64, "seq": 2048, "model.ffn": 11008,
                "model.kv_heads": 8, "recompute": "full", "precision": "bf16", "train_steps": 50},
    ),
    "internevo, weights over ranks": Case(
        engine="internevo",
        files={"a.py": _intern(checkpoint=0.5, zero=-1, tensor=2, mode="isp", weight=4)},
        fields={"tp": 1, "cp": 2, "cpkind": "a2a", "zero": 3, "recompute": "full", "rlayers": 8},
        open=("devices", "global_batch"),
    ),
    "internevo, copies": Case(
        engine="internevo",
        files={"a.py": _intern(checkpoint=False, zero=1, tensor=1, mode="mtp", weight=1)},
        fields={"tp": 1, "cp": 1, "zero": 0, "recompute": "none"},
    ),
    "torchtune on several devices": Case(
        engine="fsdp",
        files={
            "a.yaml": _TUNE.replace("LENGTH", "4096").replace("MODEL", "llama3_1_8b"),
            "run.sh": "tune run --nproc_per_node 8 full_finetune_distributed --config a.yaml\n",
        },
        fields={"model.name": "llama3_1_8b", "mbs": 2, "accumulation": 4, "seq": 4096,
                "recompute": "full", "finetune": "full", "switch.loss": "chunked",
                "switch.compile": "off", "precision": "bf16"},
    ),
    "torchtune with adapters": Case(
        engine="fsdp",
        files={"a.yaml": _TUNE.replace("LENGTH", "null").replace("MODEL", "qlora_llama3_1_8b")},
        fields={"model.name": "llama3_1_8b", "finetune": "qlora"},
        open=("seq", "devices"),
        asks=("seq",),
    ),
    "axolotl by itself": Case(
        engine="fsdp",
        files={"a.yaml": _AXOLOTL},
        fields={"precision": "bf16", "switch.loss": "chunked", "seq": 2048, "mbs": 1,
                "zero": 0},
    ),
    "deepspeed-chat": Case(
        engine="deepspeed",
        files={"run.sh": _CHAT},
        fields={"zero": 3, "seq": 512, "precision": "fp16", "recompute": "full", "devices": 8,
                "global_batch": 32, "finetune": "full"},
    ),
    "a loop that names its model": Case(
        engine="fsdp",
        files={"run.sh": _NAMED},
        fields={"model.name": "org/Model-1B", "finetune": "full", "seq": 1024,
                "global_batch": 64},
    ),
    "gpt-neox tuned": Case(
        engine="megatron-deepspeed",
        files={"a.yml": _NEOX},
        fields={"finetune": "full", "pp": 1, "tp": 2},
    ),
    "one key for all heads": Case(
        engine="megatron-lm",
        files={"run.sh": _QUERY},
        fields={"model.kv_heads": 1, "model.attention": "mqa"},
    ),
    "one expert a token": Case(
        engine="megatron-deepspeed",
        files={"run.sh": _SWITCH},
        fields={"model.top_k": 1, "model.experts": 16, "ep": 4},
    ),
}  # fmt: skip
