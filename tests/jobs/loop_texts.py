"""Small jobs of trainers whose run is one YAML file, and what they decide and leave open."""

from __future__ import annotations

from tests.jobs.cases import Case

_MPT = """
max_seq_len: 4096
model:
  name: mpt_causal_lm
  d_model: 3072
  n_heads: 24
  n_layers: 28
  expansion_ratio: 4
  max_seq_len: ${max_seq_len}
  vocab_size: 50368
  attn_config:
    attn_impl: flash
    alibi: true
train_loader:
  name: text
  dataset:
    max_seq_len: ${max_seq_len}
optimizer:
  name: decoupled_adamw
max_duration: 2_000ba
global_train_batch_size: 512
device_train_microbatch_size: 4
precision: amp_bf16
fsdp_config:
  sharding_strategy: SHARD_GRAD_OP
  mixed_precision: PURE
  activation_checkpointing: true
"""
_FOUNDRY_TUNE = """
variables:
  length: 2048
max_seq_len: ${variables.length}
model:
  name: hf_causal_lm
  pretrained: true
  pretrained_model_name_or_path: org/Model-7B
  use_flash_attention_2: true
train_loader:
  name: finetuning
  dataset:
    max_seq_len: ${variables.length}
    allow_pad_trimming: true
optimizer:
  name: decoupled_lionw
max_duration: 2ep
global_train_batch_size: 64
device_train_microbatch_size: auto
precision: amp_bf16
fsdp_config:
  activation_checkpointing: false
"""
_FOUNDRY_CLUSTER = """
compute:
  gpus: 16
parameters:
  max_seq_len: 1024
  model:
    name: mpt_causal_lm
    d_model: 1024
    n_heads: 16
    n_layers: 24
    vocab_size: 50368
    no_bias: true
    tie_word_embeddings: false
    ffn_config:
      ffn_type: mptglu
      ffn_hidden_size: 2816
    attn_config:
      attn_type: grouped_query_attention
      kv_n_heads: 4
      rope: true
  global_train_batch_size: 256
  device_train_microbatch_size: 8
  train_loader:
    name: text
  max_duration: 1e10tok
  precision: fp32
"""
_OLMO = """
model:
  d_model: 2048
  n_heads: 16
  n_layers: 16
  mlp_ratio: 8
  rope: true
  flash_attention: true
  include_bias: false
  weight_tying: false
  attention_layer_norm: true
  max_sequence_length: 2048
  vocab_size: 100278
optimizer:
  name: adamw
max_duration: 4e12T
global_train_batch_size: 512
device_train_microbatch_size: 4
precision: amp_bf16
fsdp:
  sharding_strategy: HYBRID_SHARD
  precision: mixed
activation_checkpointing: one_in_four
compile:
  fullgraph: false
"""
_OLMO_OLD = """
model:
  d_model: 8192
  n_heads: 64
  n_layers: 80
  mlp_hidden_size: 22016
  alibi: true
  multi_query_attention: true
  max_sequence_length: 2048
  vocab_size: 50257
activation_checkpointing: true
global_train_batch_size: 2048
device_train_microbatch_size: 2
compile: null
distributed_strategy: ddp
some_new_parallelism: 4
"""
_LIT = """
model_name: small-llama-300M
precision: bf16-mixed
train:
  global_batch_size: 48
  micro_batch_size: 12
  max_tokens: 3000000000000
  max_seq_length: 2048
  tie_embeddings:
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 4e-4
devices: auto
tokenizer_dir: checkpoints/a
"""
_LIT_SHAPE = """
model_config:
  n_layer: 22
  n_head: 32
  n_embd: 2048
  n_query_groups: 4
  intermediate_size: 5632
  mlp_class_name: LLaMAMLP
  block_size: 4096
  vocab_size: 32000
  bias: false
precision: bf16-true
train:
  global_batch_size: 512
  micro_batch_size: 4
devices: 8
num_nodes: 2
"""
_LIT_QLORA = """
checkpoint_dir: checkpoints/org/Model-8B
quantize: bnb.nf4
precision: bf16-true
devices: 1
lora_r: 32
train:
  global_batch_size: 8
  micro_batch_size: 2
  max_seq_length: 512
"""
_LINGUA = """
steps: 30000
grad_acc_steps: 4
optim:
  lr: 3e-3
distributed:
  fsdp_type: full_shard
  compile: true
  dp_shard: 8
  model_dtype: bf16
  selective_activation_checkpointing: true
model:
  dim: 2048
  n_layers: 25
  n_heads: 16
data:
  batch_size: 2
  seq_len: 4096
"""
_VEOMNI = """
model:
  model_path: org/Model-30B
  attn_implementation: flash_attention_2
data:
  data_type: plaintext
  max_seq_len: 8192
train:
  data_parallel_mode: fsdp2
  ulysses_parallel_size: 2
  expert_parallel_size: 4
  global_batch_size: 32
  micro_batch_size: 1
  optimizer: muon
  enable_gradient_checkpointing: false
"""
_VEOMNI_NEW = """
model:
  config_path: ./shape.json
data:
  data_type: conversation
  max_seq_len: 2048
train:
  accelerator:
    ulysses_size: 1
    fsdp_config:
      fsdp_mode: fsdp1
      full_shard: false
    offload:
      enable_activation: true
  gradient_checkpointing:
    enable: true
  optimizer:
    type: adamw
  global_batch_size: 8
  micro_batch_size: 1
"""
_ARCTIC = """
type: sft
micro_batch_size: 1
activation_checkpoint_cpu_offload: true
tiled_mlp_compute: true
sequence_parallel_size: 8
deepspeed:
  zero_optimization:
    stage: 3
    offload_optimizer:
      device: cpu
optimizer:
  type: cpu_adam
model:
  type: liger
  name_or_path: org/Model-8B
data:
  sources:
    - a/b
  max_length: 64000
  pack_samples: true
"""
_FACTORY = """
model: org/Model-4B
train_dataset: data/a.yaml
micro_batch_size: 1
global_batch_size: 16
cutoff_len: 2048
bf16: true
cp_mode: ulysses
cp_size: 2
dist_config:
  name: fsdp2
peft_config:
  name: lora
  r: 16
max_steps: 10
"""

LOOPED: dict[str, Case] = {
    "foundry": Case(
        engine="fsdp",
        files={"a.yaml": _MPT, "run.sh": "composer -n 8 train/train.py a.yaml\n"},
        fields={
            "model.hidden": 3072,
            "model.layers": 28,
            "model.ffn": 12288,
            "model.heads": 24,
            "model.kv_heads": 24,
            "model.positions": "alibi",
            "model.tied": True,
            "model.gated": False,
            "model.vocab": 50368,
            "seq": 4096,
            "global_batch": 512,
            "mbs": 4,
            "precision": "bf16",
            "zero": 2,
            "recompute": "full",
            "train_steps": 2000,
            "optimizer": "adamw",
            "switch.attention": "fused",
            "finetune": "none",
            "tp": 1,
        },
    ),
    "foundry tuned": Case(
        engine="fsdp",
        files={"a.yaml": _FOUNDRY_TUNE},
        fields={
            "model.name": "org/Model-7B",
            "zero": 3,
            "recompute": "none",
            "finetune": "full",
            "optimizer": "lion",
            "global_batch": 64,
        },
        open=("seq", "mbs", "train_steps", "devices"),
        asks=("seq", "mbs"),
        unknown=("auto",),
    ),
    "foundry on a cluster": Case(
        engine="fsdp",
        files={"a.yaml": _FOUNDRY_CLUSTER},
        fields={
            "devices": 16,
            "model.gated": True,
            "model.ffn": 2816,
            "model.kv_heads": 4,
            "model.bias": False,
            "model.tied": False,
            "model.positions": "rope",
            "zero": 0,
            "train_tokens": 10**10,
            "seq": 1024,
            "dp": 16,
            "accumulation": 2,
            "precision": "fp32",
        },
    ),
    "olmo": Case(
        engine="fsdp",
        files={
            "a.yaml": _OLMO,
            "run.sh": "torchrun --nnodes 4 --nproc_per_node 8"
            " scripts/train.py a.yaml --device_train_microbatch_size=8\n",
        },
        fields={
            "model.ffn": 8192,
            "model.gated": True,
            "model.qk_norm": True,
            "model.tied": False,
            "model.bias": False,
            "model.positions": "rope",
            "mbs": 8,
            "devices": 32,
            "accumulation": 2,
            "zero": 3,
            "recompute": "full",
            "rlayers": 4,
            "switch.compile": "on",
            "seq": 2048,
            "train_tokens": 4 * 10**12,
        },
    ),
    "olmo copied": Case(
        engine="fsdp",
        files={"a.yaml": _OLMO_OLD},
        fields={
            "model.ffn": 11008,
            "model.kv_heads": 1,
            "model.positions": "alibi",
            "zero": 0,
            "recompute": "full",
            "switch.compile": "off",
            "model.tied": True,
            "mbs": 2,
        },
        open=("precision",),
        unknown=("some_new_parallelism",),
    ),
    "litgpt": Case(
        engine="fsdp",
        files={
            "a.yaml": _LIT,
            "run.sh": "litgpt pretrain --config a.yaml --train.micro_batch_size 6\n",
        },
        fields={
            "model.name": "small-llama-300M",
            "mbs": 6,
            "global_batch": 48,
            "seq": 2048,
            "precision": "bf16",
            "switch.compile": "on",
            "recompute": "none",
            "zero": 3,
            "finetune": "none",
            "optimizer": "adamw",
        },
        open=("devices", "state.master"),
        asks=("devices_per_node",),
        unknown=("devices: auto",),
    ),
    "litgpt shape": Case(
        engine="fsdp",
        files={"a.yaml": _LIT_SHAPE},
        fields={
            "model.layers": 22,
            "model.kv_heads": 4,
            "model.gated": True,
            "model.bias": False,
            "seq": 4096,
            "devices": 16,
            "shard": 8,
            "accumulation": 8,
            "state.weight": 2.0,
            "state.master": 0.0,
            "state.moments": 4.0,
        },
    ),
    "litgpt qlora": Case(
        engine="fsdp",
        files={"a.yaml": _LIT_QLORA},
        fields={
            "model.name": "org/Model-8B",
            "finetune": "qlora",
            "devices": 1,
            "zero": 0,
            "recompute": "none",
            "accumulation": 4,
            "switch.compile": "off",
        },
        open=("seq", "state.weight"),
        asks=("seq",),
    ),
    "lingua": Case(
        engine="fsdp",
        files={
            "a.yaml": _LINGUA,
            "run.sh": "torchrun --nproc-per-node 8 -m apps.main.train"
            " config=a.yaml data.batch_size=4\n",
        },
        fields={
            "model.hidden": 2048,
            "model.ffn": 5632,
            "model.gated": True,
            "model.tied": False,
            "mbs": 4,
            "seq": 4096,
            "accumulation": 4,
            "zero": 2,
            "devices": 8,
            "global_batch": 128,
            "recompute": "modules",
            "switch.compile": "on",
            "train_steps": 30000,
        },
        open=("model.vocab",),
    ),
    "veomni": Case(
        engine="fsdp",
        files={"a.yaml": _VEOMNI},
        fields={
            "model.name": "org/Model-30B",
            "seq": 8192,
            "zero": 3,
            "cp": 2,
            "cpkind": "a2a",
            "ep": 4,
            "optimizer": "muon",
            "recompute": "none",
            "finetune": "full",
            "mbs": 1,
            "global_batch": 32,
            "precision": "bf16",
        },
        open=("devices", "dp"),
    ),
    "veomni of today": Case(
        engine="fsdp",
        files={"a.yaml": _VEOMNI_NEW},
        fields={
            "zero": 2,
            "recompute": "full",
            "cp": 1,
            "finetune": "none",
            "switch.offload-activations": "on",
            "offload": False,
            "seq": 2048,
        },
        open=("model.name",),
    ),
    "arctic": Case(
        engine="deepspeed",
        files={"a.yml": _ARCTIC, "run.sh": "arctic_training a.yml\n"},
        fields={
            "model.name": "org/Model-8B",
            "cp": 8,
            "cpkind": "a2a",
            "zero": 3,
            "mbs": 1,
            "offload": True,
            "seq": 64000,
            "switch.loss": "chunked",
            "optimizer": "adamw",
            "switch.offload-activations": "on",
            "recompute": "full",
            "accumulation": 1,
        },
        unknown=("tiled_mlp_compute",),
    ),
    "factory v1": Case(
        engine="fsdp",
        files={"a.yaml": _FACTORY},
        fields={
            "model.name": "org/Model-4B",
            "cp": 2,
            "cpkind": "a2a",
            "zero": 3,
            "finetune": "lora",
            "mbs": 1,
            "global_batch": 16,
            "precision": "bf16",
            "train_steps": 10,
        },
        open=("seq", "recompute"),
        asks=("seq",),
    ),
}
