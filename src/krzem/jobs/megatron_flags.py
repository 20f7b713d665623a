"""Flags of Megatron-LM and its relatives: which field each decides, and which decide none.

Names and defaults are those of ``megatron/training/arguments.py`` (core 0.8 to 0.19), of
MindSpeed's and MindSpeed-LLM's ``arguments.py`` and feature managers of August 2026, and of
Megatron-DeepSpeed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NUMBERS: Mapping[str, tuple[str, ...]] = {
    "model.layers": ("--num-layers", "--encoder-num-layers"),
    "model.hidden": ("--hidden-size",),
    "model.ffn": ("--ffn-hidden-size",),
    "model.heads": ("--num-attention-heads",),
    "model.experts": ("--num-experts", "--num-moe-experts"),
    "model.mtp": ("--mtp-num-layers",),
    "tp": ("--tensor-model-parallel-size", "--model-parallel-size"),
    "cp": ("--context-parallel-size", "--ds-sequence-parallel-size"),
    "pp": ("--pipeline-model-parallel-size", "--pipe-parallel-size"),
    "mbs": ("--micro-batch-size", "--batch-size"),
    "global_batch": ("--global-batch-size",),
    "seq": ("--seq-length", "--encoder-seq-length"),
    "accumulation": ("--gas",),
    "train_steps": ("--train-iters",),
}
"""Fields that one flag states as it stands."""

DEFAULTS: Mapping[str, tuple[int, str]] = {
    "tp": (1, "--tensor-model-parallel-size 1"),
    "cp": (1, "--context-parallel-size 1"),
    "pp": (1, "--pipeline-model-parallel-size 1"),
    "model.mtp": (0, "no --mtp-num-layers"),
}

ON: Mapping[str, tuple[str, ...]] = {
    "switch.overlap-tp": (
        "--tp-comm-overlap", "--use-ascend-mc2", "--use-mc2", "--use-ascend-coc",
    ),
    "switch.overlap-grad-reduce": ("--overlap-grad-reduce",),
    "switch.overlap-param-gather": ("--overlap-param-gather",),
    "switch.offload-activations": (
        "--cpu-offloading", "--cpu-offloading-num-layers", "--fine-grained-activation-offloading",
        "--swap-attention", "--checkpoint-in-cpu",
    ),
    "switch.partition-activations": (
        "--partition-activations", "--distribute-saved-activations",
        "--distribute-checkpointed-activations",
    ),
}  # fmt: skip
"""Switches that any of these flags turns on; off without."""

_DEEPSPEED = """
deepspeed deepspeed-config zero-stage num-key-value-heads use-flash-attn-v2
ds-sequence-parallel-size ds-fused-adam deepspeed-activation-checkpointing
"""
DEEPSPEED = frozenset(f"--{name}" for name in _DEEPSPEED.split())
"""Flags that only Megatron-DeepSpeed has."""

_MINDSPEED = """
use-fused-rotary-pos-emb use-fused-swiglu use-fused-rmsnorm reuse-fp32-param swap-attention
use-ascend-mc2 use-ascend-coc use-mc2 context-parallel-algo use-cp-send-recv-overlap
moe-tp-extend-ep moe-alltoall-overlap-comm moe-fb-overlap moe-permutation-async-comm
recompute-in-advance recompute-activation-function use-fused-moe-token-permute-and-unpermute
use-fused-ring-attention-update first-k-dense-replace noop-layers num-layer-list
enable-recompute-layers-per-pp-rank shape-order norm-topk-prob no-shared-storage
enable-hf2mg-convert handler-name model-type-hf padded-vocab-size schedules-method swap-optimizer
gemm-gradient-accumulation-fusion npu-deterministic ai-framework moe-zero-memory
use-fusion-attn-v2 prompt-type optimize-send-recv-comm adaptive-recompute-device-swap
tokenizer-not-use-fast
"""
MINDSPEED = frozenset(f"--{name}" for name in _MINDSPEED.split())
"""Flags that only MindSpeed and MindSpeed-LLM have."""

_ALONE = re.compile(
    r"--(no-.*|use-.*|disable-.*|enable-.*|overlap-.*|reset-(attention|position|iter).*|bf16|fp16|"
    r"swiglu|geglu|sft|finetune|profile|deepspeed|sequence-parallel|group-query-attention|"
    r"untie-.*|qk-layernorm|add-qkv-bias|apply-.*|multi-latent-attention|tp-comm-overlap|"
    r"multi-head-latent-attention|cross-entropy-loss-fusion|grad-reduce-in-bf16|mock-data|"
    r"accumulate-allreduce-grads-in-fp32|recompute-activations|checkpoint-activations|"
    r"moe-(grouped-gemm|permute-fusion|tp-extend-ep|fb-overlap|.*-overlap-comm)|manual-gc|"
    r"swap-attention|reuse-fp32-param|fp8-param-gather|optimizer-cpu-offload|async-save|"
    r"log-(throughput|progress|params-norm|num-zeros.*|.*-to-tensorboard)|eod-mask-loss|"
    r"exit-signal-handler|auto-detect-ckpt-format|partition-activations|calculate-per-token-loss|"
    r"attention-softmax-in-fp32|override-opt.param-scheduler|deepspeed-activation-checkpointing)"
)


def takes_no_value(flag: str) -> bool:
    """Whether a flag stands alone, so that a variable after it holds further arguments."""
    return _ALONE.fullmatch(flag) is not None


_KNOWN = """
kv-channels group-query-attention num-query-groups num-key-value-heads swiglu vocab-size
padded-vocab-size make-vocab-size-divisible-by position-embedding-type recompute-method
recompute-num-layers recompute-granularity recompute-activations recompute-modules bf16 fp16
fp8-format fp8-hybrid fp8-e4m3 fp8-recipe fp8-param-gather use-flash-attn moe-router-topk
moe-ffn-hidden-size moe-layer-freq moe-token-dispatcher-type expert-model-parallel-size
expert-tensor-parallel-size use-distributed-optimizer sequence-parallel attention-backend
num-layers-per-virtual-pipeline-stage num-virtual-stages-per-pipeline-rank qk-layernorm
untie-embeddings-and-output-weights disable-bias-linear add-qkv-bias optimizer
optimizer-cpu-offload accumulate-allreduce-grads-in-fp32 grad-reduce-in-bf16 train-samples
no-gradient-accumulation-fusion cross-entropy-loss-fusion q-lora-rank kv-lora-rank
moe-expert-parallel-size moe-flex-dispatcher-backend moe-enable-deepep zero-stage
moe-shared-expert-intermediate-size moe-expert-capacity-factor checkpoint-activations
use-precision-aware-optimizer moe-shared-expert-overlap use-rotary-position-embeddings
shared-moe-ffn-hidden-size use-llama2-rotary-position-embeddings
"""
KNOWN = frozenset(f"--{name}" for name in _KNOWN.split()) | {
    flag for table in (NUMBERS, ON) for flags in table.values() for flag in flags
}
"""Flags that rules look at only where others ask for them."""

IGNORED: tuple[tuple[str, str], ...] = (
    (r"(save|load|tensorboard|wandb|log|timing|data|dataset|train-data|valid-data|test-data|"
     r"checkpoint-path|ckpt|dist-ckpt|async-save|non-persistent|profile|pytorch-profiler|nsys|"
     r"trigger|kill-switch|one-logger|mlflow|comet|aml|tokens-per-step|memory-snapshot|"
     r"record-memory|nvtx|straggler|auto-detect-ckpt|use-dist-ckpt|use-checkpoint|"
     r"override-opt|override-ckpt|finetune|reset-iteration|exit|rerun|inprocess|ft-|"
     r"enable-ft|check-|no-check|no-load|no-save|max-checkpoints|use-persistent-ckpt|"
     r"flight-recorder|moe-per-layer-logging|barrier|no-barrier|print-|retro-|rl-|grpo-|"
     r"enable-hf2mg|hf-|mg-|model-type-hf|cache-dir|app-tag|logging|report|tb-|"
     r"no-log|upload|monitor|exp-name|experiment|job-name|run-name|"
     r"inference-|vision-|dino-|swin-|bert-|biencoder|ict-|titles-|ttp-|aiqos)",
     "paths, logging, checkpoints"),
    (r"(lr|min-lr|max-lr|decoupled|weight-decay|adam-(beta|eps)|clip-grad|warmup|init-method|"
     r"seed|data-parallel-random|loss-scale|initial-loss|hysteresis|min-loss|start-weight|"
     r"end-weight|wsd|head-lr|sgd-momentum|muon-(momentum|num|nest|scale|extra|coeff|fp32|no)|"
     r"apply-wd|no-weight-decay|norm-epsilon|layernorm-epsilon|epsilon|ademamix|lion|"
     r"attention-dropout|hidden-dropout|rotary|rope|yarn|mscale|beta-fast|beta-slow|"
     r"original-max|use-rope|partial-rotary|no-rope|apply-layernorm-1p|normalization|"
     r"max-position|embed-layernorm|mup|scale-|embedding-init|embedding-multiplier|"
     r"output-multiplier|softmax-scale|attn-logit|query-pre|attention-softmax-in-fp32|"
     r"apply-query-key|apply-residual|no-query-key|fp32-residual|input-embeds|"
     r"add-rmsnorm|qk-clip|goldfish|softmax-type|layernorm-zero|norm-topk|"
     r"moe-aux|moe-z|moe-router-(bias|topk-scal|score|enable|dtype|pre|num-g|group|load|topk-lim|"
     r"quant|force-bi)|moe-(device|comm)-|moe-input|n-group|topk-group|routed-scaling|seq-aux|"
     r"aux-loss|moe-loss|mtp-loss|moe-revert|topk-softmax|norm-target|use-sns|zero-allgather-b|"
     r"zero-reduce-b|input-jitter|use-global-aux|moe-router-padding|router-gating|use-glm-rope)",
     "learning rate, initialisation, numbers that change neither time nor memory"),
    (r"(tokenizer|vocab-file|merge-file|tiktoken|split|eod|reset-(position|attention)|mmap|"
     r"no-mmap|num-workers|num-dataset|no-create-attention|create-attention|mock-data|"
     r"dataloader|mid-level|eval|skip-train|full-validation|multiple-validation|"
     r"train-weighted|valid-weighted|per-split|s3|object-storage|no-shuffle|handler|"
     r"prompt|template|padded-samples|enable-thinking|cut-max|dataset-additional|"
     r"renormalize|blend|append-eod|fim|answer-loss|chat|null-tokenizer|special-tok|"
     r"vocab-extra|added-token|map-keys|json-keys|trust-remote|no-shared-storage|"
     r"manual-gc|no-manual-gc|empty-unused|iterations-to-skip|phase-transition|"
     r"train-sync|adlr|distributed-(timeout|backend)|local-rank|lazy-mpu|use-cpu-init|"
     r"no-initialization|init-model-with|perform-init|cyclic-train|"
     r"high-priority|nccl-comm|use-sharp|sharp|hccl|use-tp-pp-dp|gloo|use-gloo|no-gloo|"
     r"disable-gloo|npu-|deterministic|no-one-logger|no-bias-(gelu|swiglu|dropout)|"
     r"bias-(gelu|swiglu|dropout|activation)|no-masked|masked-softmax|no-persist|"
     r"no-rope-fusion|apply-rope|rope-fusion|use-fused|use-te-rng|te-rng|use-mcore|"
     r"use-legacy|spec|transformer-impl|shape-order|use-deter|no-async-tensor|"
     r"no-scatter|no-contig|ddp-|no-align|align-|delay-grad|param-and-grad|"
     r"defer-embedding|wgrad-def|overlap-p2p|no-overlap-p2p|batch-p2p|"
     r"calculate-per-token|create-moe|attention-mask|enable-experimental|"
     r"cross-entropy-fusion-impl|moe-(grouped|permute|router-fusion|pad-expert|use-leg|"
     r"deepep|hybridep|flex-dispatcher-num|ncclep|apply-probs|shared-expert-gate|"
     r"permutation)|disable-mem|mem-efficient|fp8-(margin|interval|amax|wgrad|dot|multi)|"
     r"no-fp8|reuse-grad|first-last|num-layers-at|keep-fp8|tp-comm-(?!overlap$)|"
     r"disable-tp-comm|tp-only|delay-wgrad|pp-partition|abort-on|sync-tp|"
     r"log-|universal|memory-centric|contigious|synchronize-each|"
     r"use-pin|no-post|use-one-sent|use-dataset|data-|ds-inference|"
     r"use-checkpoint-opt|flash-|use-ring|no-position|use-nccl|nccl-|"
     r"openai-gelu|squared-relu|quick-geglu|glu-linear|activation-func|onnx|"
     r"moe-(min-capacity|eval-cap|upcyc)|nan|disable-moe-top2|"
     r"ai-framework|tensorboard|distributed-|trigger|env|master|"
     r"enable-msc|disable-msc|account-for|is-instruction|variable-seq|"
     r"no-pad-to|pad-to-multiple|overwrite-cache|max-padding|"
     r"microbatch-group|use-fused-ring|optimize-send|optimize-vpp|"
     r"high-precision|fused-|no-fused|use-cp-send|mla-(fa|mm)|mla-down|coc-|indexer-(loss|log)|"
     r"enable-mg2|shared-expert-gate|longrope|long-factor|short-factor|rmsnorm-weight|init-norm|"
     r"use-triton|use-sparse-flash|use-fused|mtp-spec|patch-tokenizer|DDP-impl|extra-vocab|"
     r"optimizer-offload-fraction|overlap-cpu-opt|scale-fmt|enable-mla-absorb|mrope|"
     r"swap-optimizer-times|epochs|keep-last|enable-shared-expert|output-logit-soft|codecarbon|test-weighted|valid-num-workers|reset-progress|loss-on-targets|zero-contig|"
     r"zero-reduce-scatter|store-param|use-torch-optimizer|no-pin-cpu|te-precision|enable-autocast)",
     "data, kernels, housekeeping"),
)  # fmt: skip
_PATTERNS = tuple((re.compile(rf"--(?:{pattern})"), why) for pattern, why in IGNORED)


def why_ignored(flag: str) -> str | None:
    """Why the price does not depend on a flag; None where it may."""
    return next((why for pattern, why in _PATTERNS if pattern.match(flag)), None)
