#!/bin/bash
GPUS_PER_NODE=8
NNODES=2
TP=8
PP=1
MBS=1
GBS=128
torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py \
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 \
    --group-query-attention --num-query-groups 8 --swiglu --vocab-size 128256 \
    --position-embedding-type rope --untie-embeddings-and-output-weights --disable-bias-linear \
    --seq-length 8192 --max-position-embeddings 8192 \
    --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP \
    --micro-batch-size $MBS --global-batch-size $GBS --train-iters 1000 \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
    --bf16 --use-distributed-optimizer --sequence-parallel --attention-backend flash \
    --lr 3e-4 --save /checkpoints
