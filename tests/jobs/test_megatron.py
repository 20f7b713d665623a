"""What Megatron's arguments decide, flag by flag, and what they must not decide."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.jobs.job import FIELDS, Basis, Job, Value
from krzem.jobs.megatron_flags import IGNORED, KNOWN, MINDSPEED, NUMBERS, ON, why_ignored
from krzem.jobs.megatron_layout import stage_sizes
from krzem.jobs.megatron_model import layer_pattern
from krzem.jobs.reading import read_job

BASE = {
    "--num-layers": "32", "--hidden-size": "4096", "--num-attention-heads": "32",
    "--seq-length": "4096", "--max-position-embeddings": "4096", "--micro-batch-size": "1",
    "--global-batch-size": "64", "--train-iters": "100", "--vocab-size": "32000", "--bf16": "",
}  # fmt: skip
MOE = "--num-experts 64 --moe-router-topk 6 --moe-ffn-hidden-size 1408"


def script(flags: str = "", *, nodes: int = 1, devices: int = 8, **base: str | None) -> str:
    """A launch script; a keyword replaces or (None) drops a flag of the base."""
    changed = {f"--{name.replace('_', '-')}": value for name, value in base.items()}
    kept = {k: v for k, v in {**BASE, **changed}.items() if v is not None}
    lines = " \\\n  ".join(f"{name} {value}".strip() for name, value in kept.items())
    return (
        f"#!/bin/bash\ntorchrun --nnodes {nodes} --nproc_per_node {devices} pretrain_gpt.py \\\n"
        f"  {lines} {flags}\n"
    )


def read(flags: str = "", **more: object) -> Job:
    return read_job(text={"train.sh": script(flags, **more)})  # type: ignore[arg-type]


# -- the whole matrix of flags

MATRIX: tuple[tuple[str, dict[str, Value | None]], ...] = (
    ("", {"model.ffn": 16384, "model.gated": False, "model.tied": True, "model.kv_heads": 32,
          "model.attention": "mha", "model.head_dim": 128, "model.positions": "learned",
          "model.bias": True, "model.qk_norm": False, "model.mtp": 0, "zero": 0, "sp": False,
          "vpp": 1, "schedule": "1f1b", "recompute": "none", "precision": "bf16",
          "switch.loss": "plain", "switch.attention": "fused", "switch.cuda-graphs": "none",
          "switch.fused-accumulation": "on", "switch.overlap-tp": "off", "offload": False,
          "optimizer": "adamw", "state.weight": 2.0, "state.gradient": 4.0, "state.master": 4.0,
          "state.moments": 8.0, "finetune": "none", "dp": 8, "accumulation": 8,
          "train_tokens": 26_214_400, "model.experts": None, "ep": None, "cpkind": None}),
    ("--swiglu", {"model.gated": True, "model.ffn": 10880}),
    ("--swiglu --ffn-hidden-size 11008", {"model.gated": True, "model.ffn": 11008}),
    ("--num-query-groups 8", {"model.kv_heads": 32, "model.attention": "mha"}),
    ("--group-query-attention --num-query-groups 8", {"model.kv_heads": 8,
                                                      "model.attention": "gqa"}),
    ("--group-query-attention", {"model.kv_heads": 1, "model.attention": "mqa"}),
    ("--kv-channels 64", {"model.head_dim": 64}),
    ("--untie-embeddings-and-output-weights", {"model.tied": False}),
    ("--disable-bias-linear", {"model.bias": False}),
    ("--disable-bias-linear --add-qkv-bias", {"model.bias": None}),
    ("--qk-layernorm", {"model.qk_norm": True}),
    ("--position-embedding-type rope", {"model.positions": "rope"}),
    ("--use-rotary-position-embeddings", {"model.positions": "rope"}),
    ("--position-embedding-type alibi", {"model.positions": "alibi"}),
    ("--window-size 1023,0", {"model.window": 1024}),
    ("--mtp-num-layers 1", {"model.mtp": 1}),
    ("--make-vocab-size-divisible-by 128", {"model.vocab": 32000}),
    ("--make-vocab-size-divisible-by 1280", {"model.vocab": 32000}),
    ("--make-vocab-size-divisible-by 128 --tensor-model-parallel-size 8", {"model.vocab": 32768}),
    ("--tensor-model-parallel-size 8", {"model.vocab": 32000, "tp": 8, "dp": 1}),
    ("--sequence-parallel", {"sp": False}),
    ("--sequence-parallel --tensor-model-parallel-size 2", {"sp": True, "dp": 4}),
    ("--context-parallel-size 2", {"cp": 2, "cpkind": "ring", "dp": 4}),
    ("--context-parallel-size 2 --cp-comm-type a2a", {"cpkind": "a2a"}),
    ("--context-parallel-size 2 --cp-comm-type allgather", {"cpkind": "allgather"}),
    ("--context-parallel-size 2 --cp-comm-type p2p a2a", {"cpkind": None}),
    ("--cp-comm-type a2a", {"cpkind": None}),
    ("--pipeline-model-parallel-size 4", {"pp": 4, "vpp": 1, "schedule": "1f1b", "dp": 2}),
    ("--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 2",
     {"vpp": 4, "schedule": "interleaved"}),
    ("--pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2",
     {"vpp": 2, "schedule": "interleaved"}),
    ("--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 8",
     {"vpp": 1, "schedule": "1f1b"}),
    ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*15|t*17L'",
     {"vpp": 1, "first": 15, "last": 17}),
    ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et|(tt|)*14,t*3|L'",
     {"vpp": None}),  # 17 chunks on 2 stages cannot be
    ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ettt|(tttt|)*6ttttt|L'",
     {"vpp": None}),
    ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 5"
     " --decoder-last-pipeline-num-layers 7", {"first": 5, "last": 7, "vpp": 1}),
    ("--use-distributed-optimizer", {"zero": 1}),
    ("--use-distributed-optimizer --num-distributed-optimizer-instances 2",
     {"zero": 1, "shard": 4}),
    ("--use-megatron-fsdp", {"zero": 3}),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", {"zero": 2}),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy optim", {"zero": 1}),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy no_shard", {"zero": 0}),
    ("--use-torch-fsdp2", {"zero": 3}),
    ("--recompute-activations", {"recompute": "attention"}),
    ("--recompute-granularity selective", {"recompute": "attention"}),
    ("--recompute-granularity selective --recompute-modules mlp layernorm",
     {"recompute": "modules", "recompute_modules": ("mlp", "layernorm")}),
    ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
     {"recompute": "full", "rlayers": 32}),
    ("--recompute-granularity full --recompute-method block --recompute-num-layers 5",
     {"recompute": "full", "rlayers": 5}),
    ("--recompute-granularity full --recompute-method block --recompute-num-layers 3"
     " --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 8",
     {"rlayers": 6, "vpp": 2}),
    ("--fp8-format hybrid", {"precision": "fp8", "switch.fp8-scaling": "delayed",
                             "switch.fp8-params": "off"}),
    ("--fp8-format e4m3 --fp8-recipe tensorwise", {"switch.fp8-scaling": "tensor"}),
    ("--fp8-format e4m3 --fp8-recipe blockwise", {"precision": "fp8-block",
                                                  "switch.fp8-scaling": None}),
    ("--fp8-format e4m3 --fp8-recipe mxfp8 --fp8-param-gather",
     {"precision": "mxfp8", "switch.fp8-params": "on", "state.weight": None}),
    ("--fp4-format e2m1", {"precision": "nvfp4"}),
    ("--grad-reduce-in-bf16", {"state.gradient": 2.0}),
    ("--use-precision-aware-optimizer --main-grads-dtype bf16 --exp-avg-dtype bf16"
     " --exp-avg-sq-dtype bf16", {"state.gradient": 2.0, "state.moments": 4.0,
                                  "state.master": None}),
    ("--exp-avg-dtype bf16", {"state.moments": 8.0}),
    ("--optimizer sgd", {"optimizer": "sgd", "state.moments": 4.0}),
    ("--optimizer dist_muon", {"optimizer": "muon"}),
    ("--optimizer-cpu-offload", {"offload": True}),
    ("--tp-comm-overlap", {"switch.overlap-tp": "on"}),
    ("--overlap-grad-reduce --overlap-param-gather",
     {"switch.overlap-grad-reduce": "on", "switch.overlap-param-gather": "on"}),
    ("--cross-entropy-loss-fusion", {"switch.loss": "fused"}),
    ("--no-gradient-accumulation-fusion", {"switch.fused-accumulation": "off"}),
    ("--attention-backend unfused", {"switch.attention": "eager"}),
    ("--transformer-impl local", {"switch.attention": "eager"}),
    ("--transformer-impl local --use-flash-attn", {"switch.attention": "fused"}),
    ("--cuda-graph-impl full_iteration", {"switch.cuda-graphs": "full"}),
    ("--cuda-graph-impl transformer_engine --cuda-graph-modules attn",
     {"switch.cuda-graphs": "partial"}),
    ("--cuda-graph-impl local --cuda-graph-scope full_iteration", {"switch.cuda-graphs": "full"}),
    ("--enable-cuda-graph", {"switch.cuda-graphs": "partial"}),
    ("--external-cuda-graph", {"switch.cuda-graphs": "partial"}),
    ("--cpu-offloading-num-layers 4", {"switch.offload-activations": "on"}),
    ("--fine-grained-activation-offloading", {"switch.offload-activations": "on"}),
    ("--distribute-saved-activations", {"switch.partition-activations": "on"}),
    ("--lora-r 16", {"finetune": "lora"}),
    ("--is-instruction-dataset", {"finetune": "full"}),
    (MOE, {"model.experts": 64, "model.top_k": 6, "model.moe_ffn": 1408, "ep": 1, "etp": 1,
           "switch.dispatcher": "allgather", "switch.routing": "real",
           "switch.overlap-a2a": "off", "model.dense_layers": 0, "model.shared_experts": 0}),
    (f"{MOE} --tensor-model-parallel-size 2", {"etp": 2}),
    (f"{MOE} --tensor-model-parallel-size 2 --expert-tensor-parallel-size 1"
     " --expert-model-parallel-size 8", {"etp": 1, "ep": 8}),
    (f"{MOE} --moe-token-dispatcher-type alltoall", {"switch.dispatcher": "alltoall"}),
    (f"{MOE} --moe-token-dispatcher-type flex", {"switch.dispatcher": "deepep"}),
    (f"{MOE} --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep",
     {"switch.dispatcher": "hybridep"}),
    (f"{MOE} --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend ncclep",
     {"switch.dispatcher": None}),
    (f"{MOE} --overlap-moe-expert-parallel-comm", {"switch.overlap-a2a": "on"}),
    (f"{MOE} --moe-router-force-load-balancing", {"switch.routing": "balanced"}),
    (f"{MOE} --moe-expert-capacity-factor 1.0", {"switch.routing": "capacity"}),
    (f"{MOE} --moe-shared-expert-intermediate-size 2816",
     {"model.shared_ffn": 2816, "model.shared_experts": 2}),
    (f"{MOE} --moe-layer-freq '([0]*3+[1]*29)'", {"model.dense_layers": 3}),
    (f"{MOE} --moe-layer-freq 1", {"model.dense_layers": 0}),
    ("--num-experts 8", {"model.top_k": 2, "model.moe_ffn": 16384}),
    ("--multi-latent-attention --q-lora-rank 1536 --kv-lora-rank 512 --qk-head-dim 128"
     " --qk-pos-emb-head-dim 64 --v-head-dim 128",
     {"model.attention": "mla", "model.q_lora_rank": 1536, "model.kv_lora_rank": 512,
      "model.qk_nope": 128, "model.qk_rope": 64, "model.v_head": 128, "model.kv_heads": None}),
    ("--multi-latent-attention", {"model.kv_lora_rank": 32, "model.q_lora_rank": 0}),
)  # fmt: skip


@pytest.mark.parametrize(("flags", "expected"), MATRIX, ids=[f or "plain" for f, _ in MATRIX])
def test_flags(flags: str, expected: dict[str, Value | None]) -> None:
    job = read(flags)
    assert {name: job.get(name) for name in expected} == expected
    assert job.engine == "megatron-lm"


@pytest.mark.parametrize("flags", [f for f, _ in MATRIX])
def test_every_setting_has_a_line_or_a_reason(flags: str) -> None:
    for setting in read(flags).settings.values():
        assert setting.name in FIELDS
        assert setting.text
        if setting.basis is Basis.STATED:
            assert setting.file == "train.sh"
            assert setting.line > 1


@pytest.mark.parametrize("flags", [f for f, _ in MATRIX])
def test_nothing_of_the_matrix_is_unknown(flags: str) -> None:
    unclear = ("p2p a2a", "ncclep")
    assert not read(flags).not_understood or any(word in flags for word in unclear)


def test_later_wins() -> None:
    assert read("--num-layers 16").get("model.layers") == 16


def test_a_flag_that_nobody_knows_is_not_understood() -> None:
    (line,) = read("--brand-new-speed-up 3").not_understood
    assert "--brand-new-speed-up" in line.why
    assert line.file == "train.sh"


HOUSEKEEPING = ("--save x", "--lr 1e-4", "--seed 3", "--log-interval 1", "--data-path a b",
                "--tokenizer-model m", "--wandb-project p")  # fmt: skip


@pytest.mark.parametrize("flag", HOUSEKEEPING)
def test_what_the_price_does_not_depend_on_is_left_out(flag: str) -> None:
    job = read(flag)
    assert not job.not_understood
    assert any(flag.split()[0] in line.why for line in job.ignored)


def test_no_flag_of_a_table_counts_as_irrelevant() -> None:
    tables = {flag for table in (NUMBERS, ON) for flags in table.values() for flag in flags}
    assert IGNORED
    assert not [f for f in tables - MINDSPEED if why_ignored(f) and f not in KNOWN]


# -- arithmetic that must close


@settings(max_examples=60, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4]), cp=st.sampled_from([1, 2]),
    nodes=st.integers(1, 8), mbs=st.integers(1, 4), steps=st.integers(4, 8),
)  # fmt: skip
def test_arithmetic_closes_or_is_said_not_to(
    tp: int, pp: int, cp: int, nodes: int, mbs: int, steps: int
) -> None:
    devices, model = nodes * 8, tp * pp * cp
    batch = mbs * max(devices // model, 1) * steps
    job = read(
        f"--tensor-model-parallel-size {tp} --pipeline-model-parallel-size {pp}"
        f" --context-parallel-size {cp}",
        nodes=nodes, micro_batch_size=str(mbs), global_batch_size=str(batch),
    )  # fmt: skip
    assert job.get("devices") == devices
    if devices % model:
        assert any("is not a multiple" in fault.why and fault.line for fault in job.faults)
    else:
        assert not job.faults
        assert (job.get("dp"), job.get("accumulation")) == (devices // model, steps)


def test_without_a_batch_one_micro_batch_a_rank() -> None:
    job = read(global_batch_size=None, micro_batch_size="2")
    assert (job.get("global_batch"), job.get("accumulation")) == (16, 1)


FAULTS = {
    "devices": ("--tensor-model-parallel-size 3", "not a multiple of"),
    "layers": ("--pipeline-model-parallel-size 8 --num-layers 30", "do not divide by pp = 8"),
    "virtual stages": ("--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3",
                       "no whole number"),
    "heads": ("--tensor-model-parallel-size 8 --num-attention-heads 36", "does not divide"),
    "experts": (f"{MOE} --expert-model-parallel-size 7", "does not divide model.experts"),
    "expert ranks": (f"{MOE} --expert-model-parallel-size 16", "ep * etp * pp"),
    "batch": ("--global-batch-size 60", "global_batch = 60"),
    "stages": ("--pipeline-model-parallel-size 64 --num-layers 64 --num-layers 32",
               "more than model.layers"),
    "both formats": ("--fp16", "exclude each other"),
    "word for number": ("--num-layers many", "takes a whole number"),
    "no value": ("--num-layers --bf16", "has no value"),
    "layout": ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|t*4L'",
               "holds 7 layers"),
    "chunks": ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*16|t*16|L'",
               "no multiple of pp"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "why"), FAULTS.values(), ids=FAULTS)
def test_a_job_that_cannot_run_is_refused_with_its_line(flags: str, why: str) -> None:
    (fault, *_) = [f for f in read(flags).faults if why in f.why]
    assert fault.file == "train.sh"
    assert fault.line > 0


def test_too_few_visible_devices() -> None:
    text = "export CUDA_VISIBLE_DEVICES=0,1\n" + script()
    (fault,) = read_job(text={"train.sh": text}).faults
    assert "2 devices" in fault.why


def test_a_comment_inside_a_command_cuts_it_off() -> None:
    text = script().rstrip() + " \\\n  # --swiglu \\\n  --qk-layernorm\n"
    job = read_job(text={"train.sh": text})
    assert job.get("model.qk_norm") is False
    assert any("lacks its backslash or holds a comment" in fault.why for fault in job.faults)


def test_a_comment_inside_a_string_is_left_out() -> None:
    text = "ARGS='\n --qk-layernorm\n # --swiglu\n'\n" + script().rstrip() + " $ARGS\n"
    job = read_job(text={"train.sh": text})
    assert job.get("model.gated") is False
    assert job.get("model.qk_norm") is True
    assert any("no comment for the shell" in note for note in job.notes)


# -- what is open


def asked(job: Job) -> set[str]:
    return {ask.name for ask in job.asks}


@pytest.mark.parametrize(("flag", "field"), [
    ("--tensor-model-parallel-size $1", "tp"), ("--num-layers $(cat x)", "model.layers"),
    ("--global-batch-size ${GBS:?}", "global_batch"), ("--seq-length $SEQ", "seq"),
    ("--optimizer $OPT", "optimizer"), ("--cuda-graph-impl $IMPL", "switch.cuda-graphs"),
])  # fmt: skip
def test_a_value_nobody_knows_is_asked_for_by_name(flag: str, field: str) -> None:
    job = read(flag)
    assert job.get(field) is None
    assert field in asked(job)


MAYBE = {"--use-distributed-optimizer": "zero", "--swiglu": "model.gated", "--bf16": "precision",
         "--untie-embeddings-and-output-weights": "model.tied", "--sequence-parallel": "sp",
         "--overlap-grad-reduce": "switch.overlap-grad-reduce"}  # fmt: skip


@pytest.mark.parametrize(("flag", "field"), MAYBE.items())
def test_a_flag_under_an_unknown_condition_leaves_its_field_open(flag: str, field: str) -> None:
    text = f'A=()\nif [ "$1" = x ]; then A+=({flag}); fi\n'
    text += script("--tensor-model-parallel-size 2 ${A[@]}", bf16=None)
    job = read_job(text={"train.sh": text})
    assert job.get(field) is None
    assert field in asked(job)


def test_a_vocabulary_by_its_tokenizer_alone_is_asked_for() -> None:
    assert "model.vocab" in asked(read(vocab_size=None))


def test_trainings_that_differ_leave_open_what_differs() -> None:
    text = "for TP in 1 2; do\n" + script("--tensor-model-parallel-size $TP") + "done\n"
    job = read_job(text={"train.sh": text})
    assert job.get("tp") is None
    assert job.get("model.layers") == 32


def test_of_trainings_in_turn_the_first_is_read_with_its_own_header() -> None:
    inner = "sbatch <<EOF\n#SBATCH --nodes=$NODES\n#SBATCH --ntasks-per-node=4\n"
    inner += "srun " + script("--tensor-model-parallel-size $TP").partition("torchrun ")[2]
    inner = inner.replace("--nnodes 1 --nproc_per_node 8 ", "python ") + "EOF\n"
    text = "NODES=2 TP=2 bash inner.sh\nNODES=4 TP=4 bash inner.sh\n"
    job = read_job(text={"train.sh": text, "inner.sh": inner})
    assert (job.get("tp"), job.get("nodes"), job.get("devices"), job.get("dp")) == (2, 2, 8, 4)
    assert any("2 trainings" in note for note in job.notes)


def test_what_the_scheduler_counts_is_not_what_stands_in_for_it() -> None:
    text = "N=${SLURM_NNODES:-1}\n" + script(nodes="$N")  # type: ignore[arg-type]
    job = read_job(text={"train.sh": text})
    assert job.get("nodes") is None
    assert "nodes" in asked(job)
    job = read_job(text={"train.sh": "#!/bin/bash\n#SBATCH -N 2\n" + text})
    assert job.get("nodes") == 2


def test_the_memory_of_a_chip_is_kept() -> None:
    for header in ("-C v100-32g", "--constraint=v100-32g"):
        job = read_job(text={"train.sh": f"#!/bin/bash\n#SBATCH {header}\n" + script()})
        assert job.get("device") == "V100-32G"


def test_a_variable_that_no_option_takes_fills_what_is_open() -> None:
    text = "NUM_GPUS=64\nVOCAB_SIZE=50257\n" + script(vocab_size=None).replace(
        "torchrun --nnodes 1 --nproc_per_node 8", "deepspeed"
    )
    job = read_job(text={"train.sh": text})
    assert (job.get("devices"), job.get("model.vocab")) == (64, 50257)
    few = read_job(text={"train.sh": text.replace("=64", "=8")})
    assert few.get("devices") is None


@pytest.mark.parametrize(("flags", "ends"), [
    ("--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split", (7, 7)),
    ("--account-for-loss-in-pipeline-split", (None, None)),
    ("", (None, None)),
])  # fmt: skip
def test_ends_that_count_as_layers(flags: str, ends: tuple[int | None, int | None]) -> None:
    job = read(f"--pipeline-model-parallel-size 4 {flags}", num_layers="30")
    assert (job.get("first"), job.get("last")) == ends


def test_no_leading_dense_layer_by_a_negative_count() -> None:
    job = read(f"{MOE} --first-k-dense-replace -1 --reuse-fp32-param --use-fused-rmsnorm")
    assert job.get("model.dense_layers") == 0


def test_a_helper_that_is_missing_leaves_tuning_open() -> None:
    text = "source helpers.sh\n" + script("$TUNING")
    job = read_job(text={"train.sh": text})
    assert job.get("zero") is None
    assert job.get("model.layers") == 32


# -- relatives


def test_mindspeed() -> None:
    flags = (
        "--use-fused-rmsnorm --use-fused-swiglu --use-ascend-mc2 --swap-attention --noop-layers"
        " 30,31 --pipeline-model-parallel-size 2 --reuse-fp32-param --context-parallel-size 2"
        " --context-parallel-algo ulysses_cp_algo --recompute-activation-function"
        " --padded-vocab-size 32128 --loss-compute-mode chunk"
    )
    job = read(f"{MOE} {flags} --n-shared-experts 2 --first-k-dense-replace 1 --moe-tp-extend-ep"
               " --tensor-model-parallel-size 2 --expert-model-parallel-size 2")  # fmt: skip
    expected: dict[str, Value | None] = {
        "switch.overlap-tp": "on", "switch.offload-activations": "on", "model.layers": 30,
        "cpkind": "a2a", "recompute": "modules", "switch.attention": "eager", "ep": 4, "etp": 1,
        "model.shared_ffn": 2816, "model.dense_layers": 1, "state.weight": None,
        "model.vocab": 32128, "switch.loss": "chunked",
    }  # fmt: skip
    assert job.engine == "mindspeed-llm"
    assert {name: job.get(name) for name in expected} == expected


def test_dual_pipe_of_mindspeed() -> None:
    job = read(
        "--schedules-method dualpipev --use-fused-rmsnorm --use-fused-swiglu"
        " --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 8"
    )
    assert (job.engine, job.get("schedule")) == ("mindspeed-llm", "dualpipev")


def test_npu_variables_show_the_engine() -> None:
    text = "export HCCL_CONNECT_TIMEOUT=1200\n" + script()
    assert read_job(text={"train.sh": text}).engine == "mindspeed-llm"


def test_deepspeed_configuration_written_by_the_script() -> None:
    text = (
        "ZERO=1\nMBS=1\ncat <<EOT > ds.json\n"
        '{"train_micro_batch_size_per_gpu": $MBS, "train_batch_size": 64,\n'
        ' "zero_optimization": {"stage": $ZERO, "offload_optimizer": {"device": "cpu"}},\n'
        ' "fp16": {"enabled": true}}\nEOT\n'
    )
    text += script("--fp16 --deepspeed --deepspeed_config ds.json --zero-stage $ZERO", bf16=None)
    job = read_job(text={"train.sh": text})
    expected = {"zero": 1, "offload": True, "precision": "fp16", "mbs": 1, "global_batch": 64}
    assert job.engine == "megatron-deepspeed"
    assert {name: job.get(name) for name in expected} == expected
    assert not job.faults


def test_deepspeed_configuration_that_contradicts_the_flags() -> None:
    text = 'echo \'{"zero_optimization": {"stage": 2}}\' > ds.json\n'
    text += script("--deepspeed --deepspeed_config ds.json --zero-stage 1")
    faults = read_job(text={"train.sh": text}).faults
    assert any("stage 2" in fault.why for fault in faults)


def test_deepspeed_configuration_that_is_not_given_is_asked_for() -> None:
    job = read("--deepspeed --deepspeed_config other.json")
    assert job.get("zero") is None
    assert "zero" in asked(job)


def test_a_template_filled_by_sed() -> None:
    text = 'sed "s/STAGE/2/" t.json | sed "s/GAS/4/" > ds.json\n'
    text += script("--deepspeed --deepspeed_config ds.json", global_batch_size=None)
    template = '{"zero_optimization": {"stage": STAGE}, "gradient_accumulation_steps": GAS}'
    job = read_job(text={"train.sh": text, "t.json": template})
    assert (job.get("zero"), job.get("accumulation"), job.get("global_batch")) == (2, 4, 32)


def test_bloom_counts_its_embeddings_as_layers() -> None:
    job = read("--deepspeed --num-layers 70 --pipeline-model-parallel-size 12"
               " --pp-partition-method 'type:transformer|embedding' --zero-stage 1",
               nodes=6, global_batch_size="64")  # fmt: skip
    assert (job.get("first"), job.get("last")) == (5, 5)
    assert not job.faults


# -- launchers

LAUNCHES = {
    "header": ("#SBATCH --nodes=4\n#SBATCH --gpus-per-node=4\n", "srun python -u", 4, 4),
    "gres": ("#SBATCH -N 2\n#SBATCH --gres=gpu:a100:8\n", "srun python", 2, 8),
    "total": ("#SBATCH --nodes 4\n#SBATCH --gpus 16\n", "srun python", 4, 4),
    "tasks": ("#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n", "srun python", 2, 8),
    "torchrun under srun": ("#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n",
                            "srun torchrun --nnodes $SLURM_NNODES --nproc_per_node 8", 2, 8),
    "launch module": ("N=2\n", "python -m torch.distributed.launch --nnodes=$N"
                               " --nproc_per_node=4", 2, 4),
    "alone": ("", "torchrun --nproc-per-node 2", 1, 2),
    "deepspeed": ("", "deepspeed --num_nodes 2 --num_gpus 4", 2, 4),
}  # fmt: skip


@pytest.mark.parametrize(("head", "start", "nodes", "devices"), LAUNCHES.values(), ids=LAUNCHES)
def test_launchers(head: str, start: str, nodes: int, devices: int) -> None:
    body = script().partition("pretrain_gpt.py")[2]
    job = read_job(text={"train.sh": f"#!/bin/bash\n{head}{start} pretrain_gpt.py{body}"})
    assert (job.get("nodes"), job.get("devices_per_node")) == (nodes, devices)
    assert job.get("devices") == nodes * devices


def test_devices_that_only_the_machine_knows_are_asked_for() -> None:
    body = script().partition("pretrain_gpt.py")[2]
    text = f"N=$(nvidia-smi -L | wc -l)\ntorchrun --nproc_per_node $N pretrain_gpt.py{body}"
    job = read_job(text={"train.sh": text})
    assert job.get("devices") is None
    assert "devices_per_node" in asked(job)


def test_the_header_names_the_chip() -> None:
    text = "#!/bin/bash\n#SBATCH --constraint=h100\n" + script().partition("\n")[2]
    assert read_job(text={"train.sh": text}).get("device") == "H100"


def test_a_page_gives_a_script_its_arguments() -> None:
    files = {
        "run.sh": "TP=$1\nPP=$2\n" + script("--tensor-model-parallel-size $TP"
                                            " --pipeline-model-parallel-size $PP"),
        "README.md": "# Train\n\n```bash\nsh run.sh \\\n 4 \\\n 2\n```\n\nor\n"
                     "```bash\nsh run.sh 1 1\n```\n",
    }  # fmt: skip
    job = read_job(text=files)
    assert (job.get("tp"), job.get("pp")) == (4, 2)
    setting = job.settings["tp"]
    assert (setting.file, setting.line) == ("README.md", 5)


# -- small languages


def test_layer_patterns() -> None:
    assert layer_pattern("([0]*3+[1]*2)") == [0, 0, 0, 1, 1]
    assert layer_pattern("[0]+[1]*2") == [0, 1, 1]
    assert layer_pattern("'[0,1]*2'") == [0, 1, 0, 1]
    assert layer_pattern("2") == [1, 0]
    assert layer_pattern("__import__('os')") is None


def test_layouts_of_a_pipeline() -> None:
    assert stage_sizes("Et*3|(tt|)*2,tmL") == [3, 2, 2, 1]
    assert stage_sizes("'Et|t|(tt|)*29tL'") == [1, 1, *[2] * 29, 1]
    assert stage_sizes("E|t*2|L") == [0, 2, 0]
    assert stage_sizes("E|((t*9999)*9999)L") is None
    assert stage_sizes("import os") is None


@settings(max_examples=100, deadline=None)
@given(st.text("EtmL|()*,123 ", max_size=30))
def test_any_layout_is_read_or_refused(text: str) -> None:
    sizes = stage_sizes(text)
    assert sizes is None or sum(sizes) >= 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["--num-layers", "--bf16", "--fp8-format", "--num-experts", "0",
                                 "-1", "x", "--moe-layer-freq", "[1]*9", "--vocab-size", "1e9",
                                 "9" * 40, "--pipeline-model-parallel-size", "--window-size",
                                 "--tensor-model-parallel-size", "''", "--noop-layers", "1,2",
                                 "--micro-batch-size", "--global-batch-size", "$X", "#"]),
                max_size=8))  # fmt: skip
def test_any_arguments_are_read(words: list[str]) -> None:
    assert read(" ".join(words)).engine
