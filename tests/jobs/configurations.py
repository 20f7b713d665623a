"""What the small jobs of each engine decide and leave open."""

from __future__ import annotations

from tests.jobs.cases import Case
from tests.jobs.configuration_texts import (
    ACCELERATE,
    AUTOMODEL,
    BRIDGE_RECIPE,
    DEEPSPEED,
    FACTORY,
    KEMPNER,
    MAXTEXT,
    MAXTEXT_MODEL,
    MINDFORMERS,
    MLPERF,
    MLPERF_COMMON,
    NANOTRON,
    NEMO_1,
    NEMO_1_IN_2,
    NEMO_2,
    NEMO_2_PROGRAM,
    NEOX,
    PLAN,
    PRIMUS,
    PRIMUS_MEGATRON,
    RUN,
    SWIFT,
    SWIFT_FSDP,
    TITAN_2024,
    TITAN_2025,
    TITAN_LAUNCH,
    TITAN_RECIPE,
)
from tests.jobs.front_texts import FRONTS
from tests.jobs.launched import LAUNCHED
from tests.jobs.loop_texts import LOOPED

CASES: dict[str, Case] = {
    **LAUNCHED,
    **FRONTS,
    **LOOPED,
    "titan 2024": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024},
        fields={"model.name": "8B", "tp": 4, "cp": 1, "pp": 1, "dp": 16, "devices": 64, "zero": 3,
                "mbs": 2, "global_batch": 32, "seq": 8192, "train_steps": 10, "sp": True,
                "precision": "fp8", "switch.fp8-scaling": "delayed", "switch.compile": "on",
                "recompute": "modules", "optimizer": "adamw", "state.weight": 4.0},
        open=("model.layers",),
    ),
    "titan strange": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024 + '[future]\nstrange = 1\n'
               '[z]\ntensor_parallel_degree = 8\n'},
        fields={"tp": 4},
        unknown=("strange = 1", "tensor_parallel_degree = 8"),
    ),
    "titan 2025": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2025},
        fields={"dp": 16, "shard": 8, "tp": 2, "pp": 4, "devices": 128, "zero": 2, "ep": 8,
                "schedule": "interleaved", "vpp": 2, "mbs": 2, "global_batch": 1024,
                "accumulation": 32, "recompute": "full", "switch.compile": "off",
                "switch.fp8-scaling": "row", "switch.fp8-params": "on", "precision": "fp8",
                "switch.dispatcher": "deepep", "switch.routing": "balanced"},
    ),
    "titan command line": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024, "run.sh": TITAN_LAUNCH + "--job.config_file a.toml"
               " --training.data_parallel_degree=-1 --training.batch-size 8\n"},
        fields={"nodes": 2, "devices": 16, "dp": 4, "mbs": 8, "tp": 4},
    ),
    "titan one group": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024.replace("data_parallel_degree = 16",
                                            "data_parallel_degree = 1").replace("delayed", "")},
        fields={"zero": 0, "precision": "fp32", "dp": 1},
    ),
    "titan recipe": Case(
        engine="torchtitan",
        files={"recipe.py": TITAN_RECIPE},
        fields={"model.name": "32B", "pp": 2, "dp": 8, "first": 31, "last": 33, "vpp": 1,
                "mbs": 4, "seq": 2048, "global_batch": 256, "recompute": "full", "zero": 2},
    ),
    "titan named recipe": Case(
        engine="torchtitan",
        files={"run.sh": TITAN_LAUNCH + "--module llama3 --config llama3_8b --training.steps 5\n"},
        fields={"model.name": "llama3_8b", "train_steps": 5, "devices": 16},
        open=("tp", "mbs", "precision", "recompute"),
    ),
    "titan flavors": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024, "titan/models/__init__.py": 'ARGS = {"8B": ModelArgs(dim=4096,'
               " n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim_multiplier=1.3, multiple_of=1024),"
               ' "debug": ModelArgs(dim=1)}\n'},
        fields={"model.hidden": 4096, "model.layers": 32, "model.ffn": 14336,
                "model.attention": "gqa", "model.tied": False, "model.qk_norm": False},
    ),
    "titan all layers": Case(
        engine="torchtitan",
        files={"a.toml": TITAN_2024.replace('mode = "selective"', 'mode = "full"'),
               "train.slurm": "#!/bin/bash\n#SBATCH --nodes=8\nsrun torchrun --nnodes $SLURM_NNODES"
               " --nproc_per_node 8 ./train.py --job.config_file a.toml\n",
               "titan/models/__init__.py": 'ARGS = {"8B": ModelArgs(dim=4096, n_layers=32,'
               ' n_heads=32)}\n'},
        fields={"recompute": "full", "rlayers": 32, "nodes": 8, "devices": 64},
    ),
    "bridge recipe": Case(
        engine="megatron-bridge",
        files={"tiny.py": BRIDGE_RECIPE, "run.sh": "torchrun --nnodes 2 --nproc_per_node 8"
               " scripts/run_recipe.py --recipe tiny_pretrain_config"
               " train.global_batch_size=32 model.seq_length=4096\n"},
        fields={"tp": 2, "pp": 2, "vpp": 4, "schedule": "interleaved", "sp": True, "mbs": 1,
                "global_batch": 32, "seq": 4096, "recompute": "modules", "precision": "mxfp8",
                "recompute_modules": ("core_attn", "mlp"), "state.gradient": 2.0, "zero": 1,
                "finetune": "none", "devices": 16, "dp": 4},
    ),
    "bridge by name": Case(
        engine="megatron-bridge",
        files={"run.sh": "python scripts/performance/setup_experiment.py --gpu gb200 --num_gpus 64"
               " --gpus_per_node 4 --model_recipe_name qwen3_235b --compute_dtype fp8_cs -ep 8\n"},
        fields={"device": "gb200", "devices": 64, "devices_per_node": 4, "precision": "fp8",
                "switch.fp8-scaling": "tensor", "ep": 8, "model.name": "qwen3_235b"},
        open=("tp", "pp", "mbs", "global_batch", "seq"),
        asks=("tp", "pp", "mbs"),
    ),
    "nemo 1": Case(
        engine="megatron-bridge",
        files={"gpt.yaml": NEMO_1},
        fields={"nodes": 2, "devices_per_node": 8, "devices": 16, "global_batch": 32, "mbs": 2,
                "model.ffn": 4096, "seq": 4096, "state.weight": 4.0, "state.master": 0.0,
                "recompute": "full", "rlayers": 3, "precision": "bf16", "vpp": 1},
    ),
    "nemo 1 environment": Case(
        engine="megatron-bridge",
        files={"go.sh": "export NODES=4\nsource common.sh\npython pretrain.py\n",
               "gpt.yaml": NEMO_1},
        fields={"nodes": 4, "devices": 32, "global_batch": 64},
    ),
    "nemo 2": Case(
        engine="megatron-bridge",
        files={"recipe.py": NEMO_2},
        fields={"model.name": "llama3_8b", "tp": 2, "sp": True, "devices": 16,
                "mbs": 1, "global_batch": 32, "precision": "fp8", "switch.cuda-graphs": "partial",
                "switch.fp8-scaling": "tensor", "finetune": "none", "train_steps": 10},
        open=("model.layers",),
    ),
    "nemo 2 with what nothing reads": Case(
        engine="megatron-bridge",
        files={"conf.yaml": NEMO_1_IN_2, "pretrain.py": NEMO_2_PROGRAM},
        fields={"tp": 2, "switch.overlap-tp": "off", "state.master": 4.0, "model.layers": 32,
                "model.name": "Llama31Config8b", "switch.fp8-params": "on",
                "switch.overlap-grad-reduce": "on"},
    ),
    "mlperf": Case(
        engine="megatron-bridge",
        files={"config_DGXB200_2x8.sh": MLPERF, "config_common.sh": MLPERF_COMMON},
        fields={"tp": 2, "pp": 4, "cp": 1, "vpp": 1, "dp": 2, "devices": 16, "mbs": 1,
                "accumulation": 4, "global_batch": 8, "sp": True, "zero": 1, "precision": "fp8",
                "switch.fp8-scaling": "tensor", "switch.overlap-grad-reduce": "on",
                "switch.loss": "fused", "model.layers": 32, "train_steps": 100, "device": "B200"},
        open=("seq", "model.hidden"),
    ),
    "primus megatron": Case(
        engine="primus",
        files=PRIMUS_MEGATRON,
        fields={"model.layers": 8, "model.ffn": 1024, "model.experts": 8, "seq": 4096, "mbs": 2,
                "train_steps": 7, "zero": 1, "switch.dispatcher": "deepep", "device": "MI300X",
                "model.name": "tiny", "switch.overlap-grad-reduce": "on", "model.bias": False},
        open=("tp", "devices"),
        asks=("tp",),
    ),
    "primus variables": Case(
        engine="primus",
        files={**PRIMUS_MEGATRON, "run.sh": "export TP=4\nexport STEPS=9\nls\n"},
        fields={"tp": 4, "train_steps": 9},
    ),
    "primus torchtitan": Case(
        engine="primus",
        files={"t.yaml": PRIMUS.replace("FRAMEWORK", "torchtitan").replace(
            "OVERRIDES", "training: {local_batch_size: 4, seq_len: 4096, steps: 5}\n"
            "      parallelism: {data_parallel_shard_degree: 8, tensor_parallel_degree: 2}")},
        fields={"mbs": 4, "dp": 8, "tp": 2, "devices": 16, "zero": 3},
    ),
    "primus maxtext": Case(
        engine="primus",
        files={"t.yaml": PRIMUS.replace("FRAMEWORK", "maxtext").replace(
            "OVERRIDES", "per_device_batch_size: 3\n      ici_fsdp_parallelism: 8\n"
            "      dcn_data_parallelism: -1\n      weight_dtype: bfloat16")},
        fields={"zero": 3, "shard": 8, "mbs": 3, "tp": 1, "state.weight": 2.0},
        open=("devices", "dp", "global_batch"),
    ),
    "maxtext": Case(
        engine="maxtext",
        files={"run.sh": f"{MAXTEXT}\n"},
        fields={"model.name": "llama3-8b", "tp": 4, "zero": 3, "mbs": 8, "seq": 8192,
                "recompute": "modules", "switch.offload-activations": "on", "precision": "fp8",
                "state.weight": 2.0, "state.moments": 4.0, "switch.fp8-scaling": "tensor"},
        open=("model.layers", "devices", "dp", "global_batch"),
    ),
    "maxtext model": Case(
        engine="maxtext",
        files={"run.sh": f"{MAXTEXT}\n", "models/llama3-8b.yml": MAXTEXT_MODEL,
               "base.yml": "base_emb_dim: 2048\nbase_num_decoder_layers: 16\nsteps: 150_001\n"
               "max_target_length: 2048\nmlp_activations: [relu]\ndtype: bfloat16\n"},
        fields={"model.layers": 32, "model.hidden": 4096, "model.gated": True, "seq": 8192,
                "train_steps": 5, "model.vocab": 128256},
    ),
    "maxtext slices": Case(
        engine="maxtext",
        files={"run.sh": "xpk workload create --device-type=v6e-256 --num-slices=2"
               f' --command="export A=1 && {MAXTEXT}"\n'},
        fields={"devices": 512, "device": "v6e", "dp": 128, "global_batch": 1024},
    ),
    "maxtext cores": Case(
        engine="maxtext",
        files={"run.sh": "xpk workload create --device-type=v4-32 --num-slices=1"
               f' --command="{MAXTEXT}"\n'},
        fields={"devices": 16, "device": "v4"},
    ),
    "maxtext other configuration": Case(
        engine="maxtext",
        files={"run.sh": "python3 MaxText/train.py MaxText/configs/own.yml steps=3"
               " per_device_batch_size=1\n"},
        fields={"train_steps": 3},
        open=("seq", "mbs", "tp"),
        asks=("seq",),
    ),
    "deepspeed": Case(
        engine="deepspeed",
        files={"go.slurm": DEEPSPEED},
        fields={"zero": 3, "offload": True, "switch.overlap-grad-reduce": "on", "mbs": 4,
                "accumulation": 8, "devices": 16, "dp": 16, "global_batch": 512,
                "precision": "bf16", "recompute": "full", "optimizer": "adam8bit",
                "finetune": "full", "model.name": "org/Model-7B", "switch.attention": "fused"},
        open=("seq",),
        asks=("seq",),
    ),
    "llama-factory": Case(
        engine="deepspeed",
        files={"sft.yaml": FACTORY, "ds/ds_z2.json": '{"zero_optimization": {"stage": 2}}'},
        fields={"zero": 2, "finetune": "qlora", "recompute": "full", "seq": 2048, "mbs": 1,
                "precision": "bf16", "switch.attention": "fused"},
        open=("devices", "dp", "global_batch"),
    ),
    "accelerate": Case(
        engine="fsdp",
        files={"sft.yaml": "model_name_or_path: a/b\nper_device_train_batch_size: 2\n",
               "fsdp.yaml": ACCELERATE,
               "run.sh": "accelerate launch --config_file fsdp.yaml sft.py --config sft.yaml\n"},
        fields={"zero": 2, "offload": True, "recompute": "full", "precision": "fp16",
                "devices": 4, "mbs": 2, "global_batch": 8},
    ),
    "accelerate alone": Case(
        engine="fsdp",
        files={"sft.yaml": "model_name_or_path: a/b\nper_device_train_batch_size: 2\n",
               "fsdp.yaml": ACCELERATE},
        fields={"zero": 2},
        open=("devices",),
    ),
    "unclear values": Case(
        engine="fsdp",
        files={"sft.yaml": "model_name_or_path: a/b\nper_device_train_batch_size: 2\n"
               "optim: galore_adamw_8bit\ngradient_checkpointing: maybe\nfinetuning_type: freeze\n"
               "gradient_accumulation_steps: x\nexpert_parallel_size: 4\ncp_parallel: 1\n"},
        fields={"mbs": 2, "zero": 0},
        open=("optimizer", "recompute", "accumulation", "finetune"),
        asks=("optimizer", "recompute", "accumulation", "finetune"),
        unknown=("optim: galore", "maybe", "freeze", "steps: x", "expert_parallel_size"),
    ),
    "copies": Case(
        engine="fsdp",
        files={"run.sh": "torchrun --nproc_per_node 4 sft.py --model_name_or_path a/b"
               " --per_device_train_batch_size 2 --fp16 true --fsdp_config x.json\n"},
        fields={"zero": 0, "precision": "fp16", "recompute": "none", "global_batch": 8},
    ),
    "swift": Case(
        engine="fsdp",
        files={"cmd.sh": SWIFT, "fsdp2.json": SWIFT_FSDP},
        fields={"model.name": "Model-26B", "cp": 2, "cpkind": "a2a", "dp": 4, "devices": 8,
                "zero": 2, "offload": True, "recompute": "full", "global_batch": 16,
                "finetune": "full", "precision": "bf16"},
    ),
    "axolotl": Case(
        engine="fsdp",
        files={"a.yml": "base_model: a/b\nsequence_len: 2048\nsample_packing: true\n"
               "micro_batch_size: 2\ngradient_accumulation_steps: 4\nadapter: qlora\n"
               "load_in_4bit: true\nbf16: auto\ngradient_checkpointing: true\n"},
        fields={"seq": 2048, "mbs": 2, "finetune": "qlora", "recompute": "full"},
    ),
    "automodel": Case(
        engine="fsdp",
        files={"a.yaml": AUTOMODEL},
        fields={"tp": 2, "pp": 2, "ep": 4, "sp": True, "mbs": 2, "global_batch": 64, "seq": 4096,
                "schedule": "interleaved", "finetune": "lora", "recompute": "full",
                "switch.dispatcher": "deepep", "switch.routing": "balanced", "precision": "bf16",
                "model.name": "org/Model-30B", "optimizer": "adamw"},
        open=("dp", "devices"),
    ),
    "nanotron": Case(
        engine="other",
        files={"a.yaml": NANOTRON},
        fields={"dp": 4, "tp": 2, "sp": True, "devices": 8, "mbs": 5, "accumulation": 3,
                "global_batch": 60, "switch.overlap-tp": "on", "state.gradient": 4.0, "zero": 1,
                "model.kv_heads": 2, "model.gated": True, "model.positions": "rope"},
    ),
    "kempner": Case(
        engine="other",
        files={"a.toml": KEMPNER},
        fields={"model.ffn": 14336, "dp": 8, "shard": 4, "tp": 2, "devices": 16, "mbs": 8,
                "global_batch": 128, "precision": "fp8", "recompute": "modules", "zero": 3},
    ),
    "neox": Case(
        engine="megatron-deepspeed",
        files={"a.yml": NEOX, "b.yml": '{\n "seq_length": 4096,\n'
               ' "fp16": {"enabled": false}, "precision": "bfloat16"\n}\n'},
        fields={"pp": 2, "tp": 2, "model.layers": 24, "model.kv_heads": 4, "model.ffn": 2816,
                "model.gated": True, "seq": 4096, "precision": "bf16", "zero": 1, "mbs": 4,
                "accumulation": 8, "recompute": "full", "model.tied": False,
                "switch.attention": "fused", "model.positions": "rope"},
        open=("devices", "dp", "global_batch"),
    ),
    "mindformers": Case(
        engine="mindformers",
        files={"a.yaml": MINDFORMERS},
        fields={"dp": 2, "tp": 8, "pp": 4, "devices": 64, "mbs": 2, "accumulation": 32,
                "global_batch": 128, "model.ffn": 28672, "recompute": "full", "rlayers": 4,
                "first": 21, "last": 19, "finetune": "full", "sp": True, "state.weight": 4.0,
                "precision": "bf16", "model.attention": "gqa", "zero": 1},
    ),
    "plan": Case(
        engine="krzem",
        files={"plan.toml": PLAN},
        fields={"tp": 2, "cp": 2, "pp": 1, "dp": 16, "zero": 3, "recompute": "full", "rlayers": 4,
                "cpkind": "a2a", "train_tokens": 10**12, "seq": 8192, "global_batch": 512,
                "precision": "mxfp8", "device": "nvidia-h100-sxm", "nodes": 8,
                "state.moments": 8.0, "accumulation": 32},
    ),
    "run file": Case(
        engine="krzem",
        files={"run.toml": RUN},
        fields={"train_tokens": 2 * 10**12, "seq": 4096, "device": "ascend-910c",
                "devices": 2048, "model.name": "mixtral-8x7b", "optimizer": "adamw"},
        open=("tp", "dp", "mbs"),
        asks=("tp",),
    ),
    "templates": Case(
        engine="megatron-lm",
        files={
            "config/experiments/a.yaml": "# @package _global_\ndefaults:\n  - /backend: megatron\n"
            "  - /slurm: big\n  - _self_\nbackend:\n  megatron:\n    micro_batch_size: 4\n"
            "    global_batch_size: 64\n",
            "config/backend/megatron.yaml": "torchrun_args:\n  nnodes: ${slurm.nodes}\n"
            "  nproc_per_node: 4\nmegatron:\n  num_layers: 8\n  hidden_size: 512\n"
            "  num_attention_heads: 8\n  seq_length: 2048\n  bf16: true\n"
            "  tensor_model_parallel_size: 2\n",
            "config/slurm/big.yaml": "nodes: 2\n",
        },
        fields={"nodes": 2, "devices": 8, "tp": 2, "dp": 4, "mbs": 4, "global_batch": 64,
                "model.layers": 8, "precision": "bf16"},
    ),
}  # fmt: skip
