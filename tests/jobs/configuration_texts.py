"""Small jobs of each engine, in its own words."""

from __future__ import annotations

TITAN_2024 = """
[model]
name = "llama3"
flavor = "8B"
[optimizer]
name = "AdamW"
[training]
batch_size = 2
seq_len = 8192
steps = 10
data_parallel_degree = 16
tensor_parallel_degree = 4
fp8_linear = "delayed"
compile = true
[experimental]
pipeline_parallel_degree = 1
[activation_checkpoint]
mode = "selective"
selective_ac_option = "op"
[job]
description = "flavor = 405B"  # tensor_parallel_degree = 99
"""
TITAN_2025 = """
[model]
name = "deepseek_v3"
flavor = "671B"
converters = ["quantize.linear.float8"]
[training]
local_batch_size = 16
global_batch_size = 1024
seq_len = 4096
steps = 100
[parallelism]
data_parallel_replicate_degree = 2
data_parallel_shard_degree = 8
tensor_parallel_degree = 2
pipeline_parallel_degree = 4
pipeline_parallel_schedule = "Interleaved1F1B"
pipeline_parallel_microbatch_size = 2
expert_parallel_degree = 8
expert_parallel_comm_backend = "deepep"
[activation_checkpoint]
mode = "full"
[compile]
enable = true
components = ["loss"]
[quantize.linear.float8]
recipe_name = "rowwise"
enable_fsdp_float8_all_gather = true
[debug]
moe_force_load_balance = true
"""
TITAN_RECIPE = """
from torchtitan.trainer import Trainer
from torchtitan.models.qwen3 import model_registry
from torchtitan.distributed.activation_checkpoint import FullAC

def stages(counts):
    return [[f"layers.{i}" for i in range(n)] for n in counts]

def big() -> Trainer.Config:
    config = Trainer.Config(model_spec=model_registry("32B"), activation_checkpoint=FullAC.Config())
    config.training.max_context_length = 2048
    config.training.num_tokens_per_microbatch_per_dp_rank = 4 * 2048
    config.training.num_tokens_per_train_step = 256 * 2048
    config.parallelism.data_parallel_shard_degree = 8
    config.parallelism.pipeline_parallel_degree = 2
    config.parallelism.module_fqns_per_model_part = stages([31, 33])
    return config
"""
TITAN_LAUNCH = "torchrun --nnodes 2 --nproc-per-node 8 -m torchtitan.train "

BRIDGE_RECIPE = """
from megatron.bridge.recipes.common import _pretrain_common
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge import AutoBridge

def tiny_pretrain_config() -> ConfigContainer:
    cfg = _pretrain_common()
    cfg.model = AutoBridge.from_hf_pretrained("org/Tiny-8B").to_megatron_provider()
    cfg.model.tensor_model_parallel_size = 2
    cfg.model.pipeline_model_parallel_size = 2
    cfg.model.virtual_pipeline_model_parallel_size = 4
    cfg.model.context_parallel_size = 1
    cfg.model.sequence_parallel = True
    cfg.model.recompute_granularity = "selective"
    cfg.model.recompute_modules = ["core_attn", "mlp"]
    cfg.train.micro_batch_size = 1
    cfg.train.global_batch_size = 64
    cfg.mixed_precision = "bf16_with_mxfp8_mixed"
    cfg.ddp.grad_reduce_in_fp32 = False
    return cfg
"""
NEMO_1 = """
trainer:
  devices: 8
  num_nodes: ${oc.decode:${oc.env:NODES,2}}
  precision: bf16
  max_steps: 100
model:
  micro_batch_size: 2
  global_batch_size: ${multiply:2,${multiply:${trainer.devices},${trainer.num_nodes}}}
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 1
  virtual_pipeline_model_parallel_size: null
  encoder_seq_length: 4096
  hidden_size: 1024
  ffn_hidden_size: ${multiply:4, ${.hidden_size}}
  num_layers: 12
  num_attention_heads: 16
  megatron_amp_O2: false
  activations_checkpoint_granularity: full
  activations_checkpoint_method: block
  activations_checkpoint_num_layers: 3
  optim:
    name: distributed_fused_adam
"""
NEMO_2 = """
from nemo.collections import llm
from nemo.collections.llm.recipes import llama3_8b
import nemo_run as run
from helpers import set_primary_perf_configs

def recipe():
    base = llama3_8b.pretrain_recipe(performance_mode=True)
    sizes = dict(tp_size=2, pp_size=1, cp_size=1, vp_size=1, ep_size=1)
    done = set_primary_perf_configs(base, "pre_train", num_nodes=2, num_gpus_per_node=8, mbs=1,
        gbs=32, max_steps=10, compute_dtype="fp8", fp8_recipe="cs", enable_cuda_graphs=True,
        **sizes)
    return done

if __name__ == "__main__":
    run.cli.main(llm.pretrain, default_factory=recipe)
"""

NEMO_1_IN_2 = """
trainer:
  devices: 8
  num_nodes: 2
  precision: bf16
model:
  base_config: 8b
  megatron_amp_O2: false
  tensor_model_parallel_size: 2
  micro_batch_size: 1
  fp8: true
  fp8_param: false
  ub_tp_comm_overlap: true
  optim: {overlap_grad_reduce: true, fp8_params: true}
"""
NEMO_2_PROGRAM = """
from nemo.collections import llm

def idle(config):
    return Callback(config.model.ub_tp_comm_overlap, config.model.optim.overlap_grad_reduce)

def main(config):
    model = llm.Llama31Config8B(amp=config.model.megatron_amp_O2)
    return train(model, config.model.optim.overlap_grad_reduce)

main(load())
"""
MLPERF = """
source $(dirname ${BASH_SOURCE[0]})/config_common.sh
export MINIBS=4
export TENSOR_MODEL_PARALLEL=2
export SEQ_PARALLEL=True
export PIPELINE_MODEL_PARALLEL=4
export INTERLEAVED_PIPELINE=null
export CONTEXT_PARALLEL=1
export MICRO_BATCH_SIZE=1
export DGXNNODES=2
export DGXNGPU=8
export MAX_STEPS=100
export DGXSYSTEM=$(basename $(readlink -f ${BASH_SOURCE[0]}) | sed 's/^config_//')
"""
MLPERF_COMMON = """
export USE_DIST_OPTIMIZER=True
export FP8=True
export FP8_RECIPE="tensorwise"
export OVERLAP_GRAD_REDUCE=True
export OVERWRITTEN_NUM_LAYERS=32
export CE_FUSION_IMPL=te
"""

PRIMUS = """
exp_name: ${PRIMUS_EXP_NAME:x}
modules:
  pre_trainer:
    framework: FRAMEWORK
    config: pre_trainer.yaml
    model: tiny.yaml
    overrides:
      OVERRIDES
"""
PRIMUS_MEGATRON = {
    "exp/MI300X/tiny.yaml": PRIMUS.replace("FRAMEWORK", "megatron").replace(
        "OVERRIDES",
        "train_iters: ${STEPS:7}\n      micro_batch_size: 2\n      global_batch_size: 16\n"
        "      tensor_model_parallel_size: ${TP}\n      enable_primus_turbo: true\n"
        "      use_turbo_deepep: true",
    ),
    "primus/configs/models/megatron/tiny.yaml": "extends:\n  - base.yaml\nnum_layers: 8\n"
    "hidden_size: 512\nnum_attention_heads: 8\n",
    "primus/configs/models/megatron/base.yaml": "num_layers: 4\nffn_hidden_size: 1024\n"
    "swiglu: true\nadd_bias_linear: false\nnum_experts: 8\nmoe_router_topk: 2\n",
    "primus/configs/modules/megatron/pre_trainer.yaml": "bf16: true\nseq_length: 4096\n"
    "use_distributed_optimizer: true\noverlap_grad_reduce: true\nmicro_batch_size: 9\n",
}

MAXTEXT = (
    "python3 -m MaxText.train MaxText/configs/base.yml model_name=llama3-8b per_device_batch_size=2"
    " ici_fsdp_parallelism=-1 ici_tensor_parallelism=4 max_target_length=8192 steps=5"
    " remat_policy=minimal_offloaded weight_dtype=bfloat16 quantization=te_fp8_currentscaling"
)
MAXTEXT_MODEL = """
base_emb_dim: 4096
base_num_query_heads: 32
base_num_kv_heads: 8
base_mlp_dim: 14336
base_num_decoder_layers: 32
head_dim: 128
vocab_size: 128256
mlp_activations: ["silu","linear"]
"""

DEEPSPEED = """#!/bin/bash
#SBATCH --nodes=2
N=8
cat > ds.json <<EOT
{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "overlap_comm": true},
 "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto",
 "gradient_accumulation_steps": "auto"}
EOT
deepspeed --num_nodes 2 --num_gpus $N train.py --deepspeed ds.json --bf16 true \\
  --model_name_or_path org/Model-7B --per_device_train_batch_size 4 \\
  --gradient_accumulation_steps 8 --gradient_checkpointing true --max_steps 50 \\
  --attn_implementation flash_attention_2 --max_length 4096 --optim paged_adamw_8bit
"""
FACTORY = """
model_name_or_path: org/Model-8B
stage: sft
finetuning_type: lora
quantization_bit: 4
template: llama3
cutoff_len: 2048
packing: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
bf16: true
deepspeed: examples/ds_z2.json
"""
ACCELERATE = """
distributed_type: FSDP
fsdp_config:
  fsdp_sharding_strategy: SHARD_GRAD_OP
  fsdp_offload_params: true
  fsdp_activation_checkpointing: true
mixed_precision: fp16
num_processes: 4
"""
SWIFT = """
NPROC_PER_NODE=8 swift sft --model /data/org/Model-26B --tuner_type full --torch_dtype bfloat16 \\
  --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --sequence_parallel_size 2 \\
  --fsdp fsdp2.json --attn_impl flash_attn --max_steps 9
"""
SWIFT_FSDP = """{"fsdp": "full_shard auto_wrap offload",
 "fsdp_config": {"reshard_after_forward": false, "activation_checkpointing": true}}"""

AUTOMODEL = """
step_scheduler: {global_batch_size: 64, local_batch_size: 8, max_steps: 9}
distributed:
  strategy: fsdp2
  tp_size: 2
  cp_size: 1
  pp_size: 2
  ep_size: 4
  dp_size: none
  sequence_parallel: true
  activation_checkpointing: true
  pipeline: {pp_schedule: interleaved1f1b, pp_microbatch_size: 2}
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: org/Model-30B
  torch_dtype: bf16
  backend: {attn: te, dispatcher: deepep, fake_balanced_gate: true}
packed_sequence: {packed_sequence_size: 4096}
peft: {_target_: nemo_automodel.components._peft.lora.PeftConfig, dim: 8}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-4}
"""
NANOTRON = """
model:
  dtype: bfloat16
  model_config: {hidden_size: 512, intermediate_size: 1024, num_attention_heads: 8,
    num_key_value_heads: 2, num_hidden_layers: 4, vocab_size: 1000, hidden_act: silu,
    rope_theta: 1e4, tie_word_embeddings: true}
optimizer: {zero_stage: 1, accumulate_grad_in_fp32: true, optimizer_factory: {name: adamW}}
parallelism: {dp: 4, pp: 1, tp: 2, tp_mode: REDUCE_SCATTER, tp_linear_async_communication: true}
tokens: {batch_accumulation_per_replica: 3, micro_batch_size: 5, sequence_length: 2048,
  train_steps: 7}
"""
KEMPNER = """
[model]
dim = 4096
n_layers = 32
n_heads = 32
n_kv_heads = 8
ffn_dim_multiplier = 1.3
[train]
batch_size = 8
grad_accum_steps = 2
seq_len = 4096
mixed_precision = "fp8"
activation_checkpointing = "selective"
[distributed]
dp_shard = 4
dp_replicate = 2
tp = 2
"""
NEOX = """{
  "pipe-parallel-size": 2, "model-parallel-size": 2,
  "num-layers": 24, "hidden-size": 2048, "num-attention-heads": 16, "num_kv_heads": 4,
  "seq-length": 2048, "pos-emb": "rotary", "no-weight-tying": True, "activation": "swiglu",
  "mlp_multiple_of": 256,
  "zero_optimization": {"stage": 1, "overlap_comm": true},
  "fp16": {"enabled": true},
  "checkpoint-activations": true,
  "train_micro_batch_size_per_gpu": 4, "gas": 8,
  "attention-config": [[["flash"], 24]],
}"""
MINDFORMERS = """
run_mode: 'finetune'
trainer: {type: T, model_name: 'llama_70b'}
runner_config: {epochs: 1, batch_size: 2, sink_mode: True}
optimizer: {type: AdamW}
train_dataset: {batch_size: 7}
parallel: {enable_parallel_optimizer: True}
parallel_config: {data_parallel: 2, model_parallel: 8, pipeline_stage: 4, micro_batch_num: 16,
  use_seq_parallel: True}
micro_batch_interleave_num: 2
recompute_config: {recompute: [4, 2, 1, 0], select_recompute: False}
model:
  model_config: {type: LlamaConfig, batch_size: 9, seq_length: 8192, hidden_size: 8192,
    num_layers: 80, num_heads: 64, n_kv_heads: 8, ffn_dim_multiplier: 1.3, multiple_of: 256,
    vocab_size: 128256, compute_dtype: "bfloat16", param_init_type: "float32",
    use_flash_attention: True, offset: [1, 0, 0, -1]}
"""
PLAN = """
[model]
name = "llama-3.1-8b"
[layout]
text = "tp=2,cp=2,pp=1,dp=16,mbs=1,zero=3,recompute=full,rlayers=4,cpkind=a2a"
devices = 64
[goal]
tokens = "1T"
sequence = 8192
global_batch = 512
precision = "mxfp8"
states = { weight = 2.0, gradient = 4, master = 4.0, moments = 8.0 }
[cluster]
device = "nvidia-h100-sxm"
devices = 64
devices_per_node = 8
"""
RUN = """
model = "mixtral-8x7b"
layout = "auto"
[run]
name = "x"
[goal]
tokens = "2T"
sequence = "4k"
global_batch = 1024
[[pool]]
name = "a"
accelerator = "ascend-910c"
count = 2048
[[pool]]
name = "b"
accelerator = "h800"
count = 1024
"""
