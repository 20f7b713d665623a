#!/bin/bash
# Mixtral 8x7B on two nodes of eight H100, settings of a run reported in April 2024
# (https://github.com/NVIDIA/Megatron-LM/issues/756, comment of 5 April); the micro-batch is not said there.
MODEL_ARGS="--use-mcore-models --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
    --group-query-attention --num-query-groups 8 --swiglu --disable-bias-linear --normalization RMSNorm
    --position-embedding-type rope --untie-embeddings-and-output-weights --seq-length 2048 --max-position-embeddings 32768
    --tokenizer-type Llama2Tokenizer --vocab-size 32000"
MOE_ARGS="--num-experts 8 --moe-router-topk 2 --moe-grouped-gemm --moe-token-dispatcher-type alltoall --moe-aux-loss-coeff 1e-2"
PARALLEL_ARGS="--tensor-model-parallel-size 2 --pipeline-model-parallel-size 1 --expert-model-parallel-size 8 --sequence-parallel --use-distributed-optimizer"
torchrun --nnodes 2 --nproc_per_node 8 pretrain_gpt.py $MODEL_ARGS $MOE_ARGS $PARALLEL_ARGS \
    --micro-batch-size 1 --global-batch-size 128 --train-iters 100 --bf16 --lr 1e-5
