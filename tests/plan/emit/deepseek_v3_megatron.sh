#!/usr/bin/env bash
# megatron-lm core 0.19.2, emitted by krzem
# Model: deepseek-v3
# Length: 4096
# Prediction modules: 1
# States: weight=2 gradient=4 master=4 moments=4
# Set first: AUX_LOSS, LR, TOKENIZER, DATA, CHECKPOINTS, RDZV
# NOTE: Megatron-LM has no dualpipe schedule. Emitted instead: interleaved with 2 chunk(s) per rank;
# its bubble and memory differ, so explain the plan again with schedule=interleaved,vpp=2
# NOTE: Megatron-LM recomputes activation functions in experts only, not in dense networks
# NOTE: learning-rate schedule, warm-up, weight decay, clipping and initialisation belong to the
# recipe and are left at the engine's defaults
set -euo pipefail

export CUDA_DEVICE_MAX_CONNECTIONS=32  # several queues, so that all-to-all runs beside compute

found=$(python3 -c 'import megatron.core; print(megatron.core.__version__)' 2>/dev/null || true)
[[ "$found" == 0.19.2* || -n "${ANY_VERSION:-}" ]] || { echo "written for megatron-core 0.19.2, found ${found:-none}: install it, emit again for yours, or set ANY_VERSION=1" >&2; exit 1; }

args=(
  # Model
  --num-layers 61  # transformer layers
  --hidden-size 7168  # width of the residual stream
  --ffn-hidden-size 18432  # inner width of a dense network
  --normalization RMSNorm  # kind of norm
  --norm-epsilon 1e-06  # added under the root of a norm
  --swiglu  # gated network: three matrices, SiLU
  --disable-bias-linear  # matrices without bias
  --untie-embeddings-and-output-weights  # output matrix of its own
  --position-embedding-type rope  # rotary positions
  --rotary-base 10000  # base of the rotary frequencies
  --max-position-embeddings 163840  # at least the sequence length
  --attention-dropout 0.0  # the default is 0.1; the plan assumes none
  --hidden-dropout 0.0  # the default is 0.1; the plan assumes none
  # Vocabulary
  --vocab-size 129280  # tokens of the vocabulary
  --make-vocab-size-divisible-by 128  # times tp = 1 divides the padded vocabulary of 129280
  # Attention
  --num-attention-heads 128  # query heads
  --multi-latent-attention  # keys and values from a low-rank latent
  --q-lora-rank 1536  # rank of the queries
  --kv-lora-rank 512  # rank of keys and values
  --qk-head-dim 128  # part of a head without position
  --qk-pos-emb-head-dim 64  # rotary part of a head
  --v-head-dim 128  # width of a value head
  --qk-layernorm  # the latents are normed
  --rope-type rope  # plain rotary positions (latent attention defaults to yarn)
  --no-rope-fusion  # the fused kernel of latent attention knows yarn only
  # Mixture of experts
  --num-experts 256  # routed experts of a layer
  --moe-ffn-hidden-size 2048  # inner width of one expert
  --moe-layer-freq '([0]*3+[1]*58)'  # 0: dense layer, 1: experts
  --moe-shared-expert-intermediate-size 2048  # inner width of all shared experts together
  --moe-router-topk 8  # experts per token
  --moe-router-score-function sigmoid  # scores of the gate
  --moe-router-dtype fp32  # the gate is computed in fp32
  --moe-router-enable-expert-bias  # balancing bias, not trained by gradient
  --moe-router-num-groups 8  # groups of experts
  --moe-router-group-topk 4  # groups a token may reach
  --moe-router-topk-scaling-factor 2.5  # scales the gates
  --moe-router-load-balancing-type seq_aux_loss  # which loss keeps experts even
  # its weight belongs to the recipe, not to the plan
  --moe-aux-loss-coeff "${AUX_LOSS:?weight of the balancing loss}"
  --moe-token-dispatcher-type alltoall  # tokens travel by all-to-all
  --moe-grouped-gemm  # all local experts in one grouped matrix product
  --moe-permute-fusion  # one kernel sorts tokens by expert
  # Multi-token prediction
  --mtp-num-layers 1  # multi-token prediction modules
  # Parallelism
  --tensor-model-parallel-size 1  # ranks that cut every matrix
  --context-parallel-size 1  # ranks that cut a sequence
  --expert-model-parallel-size 64  # ranks that share the experts
  --expert-tensor-parallel-size 1  # ranks that cut one expert (the default is the tensor degree)
  # Pipeline
  --pipeline-model-parallel-size 16  # pipeline stages
  # 61 layers on 32 stages: E embedding, t layer, m multi-token prediction, L loss
  --pipeline-model-parallel-layout 'Et|(tt|)*29t|tmL'
  # one micro-batch's all-to-all behind another's compute, as DualPipe does
  --overlap-moe-expert-parallel-comm
  --delay-wgrad-compute  # weight gradients are computed later, to fill the waiting
  # Data parallelism
  --use-distributed-optimizer  # optimizer states sharded (ZeRO stage 1)
  --overlap-grad-reduce  # gradients are reduced during backward
  --overlap-param-gather  # weights are gathered during forward
  # Recomputation
  --recompute-granularity selective  # parts of a layer are computed again
  --recompute-modules layernorm mla_up_proj moe_act  # which parts
  # Precision
  --bf16  # weights and activations of 2 bytes
  --fp8-format e4m3  # matrix products in 8 bits
  --fp8-recipe blockwise  # scales per 1x128 and 128x128 block
  # Batch
  --seq-length 4096  # tokens per sequence
  --micro-batch-size 1  # sequences per micro-batch and rank
  --global-batch-size 15360  # sequences per step: 1 x dp 128 x 120 micro-batches
  --train-samples 3613286400  # 235240 steps, 1.48e+13 tokens
  # Optimizer
  --optimizer adam  # AdamW (weight decay is decoupled)
  --lr "${LR:?peak learning rate}"  # belongs to the recipe
  --use-precision-aware-optimizer  # states need not be fp32
  --exp-avg-dtype bf16  # first moment
  --exp-avg-sq-dtype bf16  # second moment
  # Data and checkpoints
  --tokenizer-type HuggingFaceTokenizer  # tokenizer of the model
  --tokenizer-model "${TOKENIZER:?name or folder of the tokenizer}"  # which
  --data-path "${DATA:?prefix of the tokenised data}"  # training data
  --save "${CHECKPOINTS:?folder for checkpoints}"  # where checkpoints go
  --load "${CHECKPOINTS:?folder for checkpoints}"  # and where a restart looks
  --save-interval 250  # steps between checkpoints, as the plan forecasts
)

torchrun --nnodes 256 --nproc-per-node 8 --rdzv-id krzem --rdzv-backend c10d --rdzv-endpoint "${RDZV:?host:port of the first node}" pretrain_gpt.py "${args[@]}"
