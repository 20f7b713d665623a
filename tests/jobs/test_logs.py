"""Logs of every engine that is read: small excerpts, written for this test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from krzem.jobs.logs import Measured, describe, read_log

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str) -> Path:
        path = tmp_path / "log.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def jitter(i: int) -> float:
    """A small even scatter, the same in every run."""
    return ((i * 7) % 11 - 5) / 5


DUMP = """\
------------------------ arguments ------------------------
  add_bias_linear ................................. False
  bf16 ............................................ True
  context_parallel_size ........................... 1
  data_parallel_size .............................. 8
  ffn_hidden_size ................................. 14336
  global_batch_size ............................... 128
  group_query_attention ........................... True
  hidden_size ..................................... 4096
  kv_channels ..................................... 128
  micro_batch_size ................................ 1
  moe_router_dtype ................................ None
  num_attention_heads ............................. 32
  num_layers ...................................... 32
  num_query_groups ................................ 8
  padded_vocab_size ............................... 128256
  pipeline_model_parallel_size .................... 2
  position_embedding_type ......................... rope
  recompute_granularity ........................... selective
  seq_length ...................................... 8192
  sequence_parallel ............................... True
  swiglu .......................................... True
  tensor_model_parallel_size ...................... 4
  untie_embeddings_and_output_weights ............. True
  use_distributed_optimizer ....................... True
  world_size ...................................... 64
-------------------- end of arguments ---------------------
[before the start of training step] datetime: 2025-05-01 10:00:00
"""


def megatron(count: int = 30, first: int = 1, *, every: int = 1, flops: bool = True) -> str:
    lines = []
    for i in range(first, first + count):
        step = i * every
        ms = 30000.0 if i == 1 else 4000.0 + 10 * jitter(i)
        tflops = f" throughput per GPU (TFLOP/s/GPU): {1.6e6 / ms:.1f} |" if flops else ""
        lines.append(
            f" [2025-05-01 10:00:{i % 60:02d}] iteration {step:8d}/     500 | consumed samples: "
            f"{128 * step:12d} | elapsed time per iteration (ms): {ms:.1f} |{tflops} learning rate:"
            f" 1.000000E-04 | global batch size:   128 | lm loss: {10 - i / 100:.6E} | loss scale:"
            f" 1.0 | grad norm: 1.234 | number of skipped iterations:   0 | number of nan"
            f" iterations:   0 |"
        )
    return "\n".join(lines) + "\n"


def test_megatron_with_its_dump(write: Write) -> None:
    memory = (
        "[Rank 7] (after 2 iterations) memory (MB) | allocated: 20480.00 | max allocated:"
        " 40960.00 | reserved: 51200.00 | max reserved: 61440.00\n"
    )
    log = read_log(write(DUMP + megatron() + memory))
    assert (log.engine, log.form, log.seen, log.first, log.last) == (
        "megatron-lm", "Megatron", 30, 1, 30,
    )  # fmt: skip
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(4.0, rel=0.002)
    assert log.seconds.dropped == {"after a start": 1}
    assert log.tflops is not None
    assert log.tflops.value == pytest.approx(400, rel=0.003)
    assert log.convention == "megatron: model FLOP, attention halved (causal)"
    assert log.tokens is not None
    assert (log.tokens_of, log.tokens.value) == ("device", pytest.approx(128 * 8192 / 4 / 64, 0.01))
    assert log.flop_per_token == pytest.approx(400e12 / (128 * 8192 / 4 / 64), rel=0.01)
    assert log.memory[0].rank == 7
    assert log.memory[0].max_reserved == 60.0
    values = {name: s.value for name, s in log.fields.items()}
    assert values["devices"] == 64
    assert (values["tp"], values["pp"], values["dp"], values["seq"]) == (4, 2, 8, 8192)
    assert (values["model.kv_heads"], values["model.tied"], values["zero"]) == (8, False, 1)
    assert (values["precision"], values["recompute"]) == ("bf16", "attention")
    assert log.fields["seq"].line > 0
    assert all(check.closes for check in log.checks)
    assert describe(log)


FORMS: dict[str, tuple[str, str, float]] = {}
"""Name: the line (with ``{i}``, ``{s}`` seconds and so on), the engine, seconds expected."""


def lines(make: Callable[[int, float], str], count: int = 30) -> str:
    return "".join(
        make(i, 9.0 if i == 1 else 2.0 + 0.004 * jitter(i)) + "\n" for i in range(1, count + 1)
    )


CASES: dict[str, tuple[str, str]] = {
    "megatron of 2019": (
        "megatron-lm",
        lines(lambda i, s: f" iteration {i:8d}/  320000 | elapsed time per iteration (ms):"
              f" {s * 1e3:.1f} | learning rate 1.000E-04 | lm loss 9.{i:03d}E+00 |"),
    ),
    "megatron-deepspeed": (
        "megatron-deepspeed",
        lines(lambda i, s: f" iteration {i:8d}/     500 | consumed samples: {64 * i:12d} | consumed"
              f" tokens: {64 * 2048 * i:12d} | elapsed time per iteration (ms): {s * 1e3:.1f} |"
              f" learning rate: 1.000E-04 | global batch size:    64 | lm loss: 9.{i:03d}000E+00 |"
              f" actual seqlen:  2048 | number of skipped iterations:   0 | number of nan"
              f" iterations:   0 | samples per second: {64 / s:.3f} | tokens per gpu per second"
              f" (tgs): {64 * 2048 / s / 8:.3f} | TFLOPs: {100 / s:.2f} |"),
    ),
    "megatron-deepspeed of Argonne": (
        "megatron-deepspeed",
        lines(lambda i, s: f"[2025-02-03 04:05:06][I][megatron/training_log:661]  iteration={i:8d}/"
              f"     500 | consumed_samples={64 * i:12d} | elapsed_time_per_iteration_ms="
              f"{s * 1e3:.1f} | learning_rate=0.0001 | global_batch_size=   64 |"
              f" lm_loss=9.{i:03d} |"
              f" tokens_per_gpu_per_second_tgs={64 * 2048 / s / 8:.3f} |"
              f" [LM]TFLOPs={100 / s:.2f} |"),
    ),
    "gpt-neox": (
        "megatron-deepspeed",
        lines(lambda i, s: f" samples/sec: {64 / s:.3f} | iteration {i:8d}/   500 | elapsed"
                           f" time per"
              f" iteration (ms): {s * 1e3:.1f} | learning rate: 1.000E-04 | approx flops per GPU:"
              f" {100 / s:.1f}TFLOPS | lm_loss: 9.{i:03d}000E+00 | number of skipped"
              f" iterations:   0"
              f" | number of nan iterations:   0 |"),
    ),
    "mindspeed": (
        "mindspeed-llm",
        lines(lambda i, s: f" [2025-01-01 00:00:00] iteration {i:8d}/    2000 | consumed samples:"
              f" {64 * i:12d} | elapsed time per iteration (ms): {s * 1e3:.1f} | throughput per GPU"
              f" (TFLOP/s/GPU): {300 / s:.1f} | core attn ratio (%): 50.0 | learning rate:"
              f" 1.0E-06 |"
              f" global batch size:    64 | lm loss: 9.{i:03d}000E+00 | loss scale: 1.0 |"),
    ),
    "mindspeed fsdp2": (
        "megatron-lm",
        lines(lambda i, s: f"iteration: {i} | consumed samples: {64 * i} | elapsed time per"
                           f" iteration"
              f" (ms): {s * 1e3:.1f} | throughput(samples/s): {64 / s:.1f} | learning rate:"
              f" 1.0E-06 |"
              f" global batch size:   64 | lm loss: 9.{i:03d} | grad norm: 1.0"),
    ),
    "bridge": (
        "megatron-bridge",
        lines(lambda i, s: f"Step Time : {s:.2f}s GPU utilization: {800 / s:.1f}MODEL_TFLOP/s/GPU\n"
              f" [2026-01-01 00:00:00] iteration {i:8d}/     100 | consumed samples: {64 * i:12d} |"
              f" elapsed time per iteration (ms): {s * 1e3:.1f} | learning rate: 1.0E-06 |"
              f" global batch size:    64 | lm loss: 9.{i:03d}000E+00 |"),
    ),
    "bridge, first rank only": (
        "megatron-bridge",
        lines(lambda i, s: f"Step Time : {s:.3f}s GPU utilization: {800 / s:.1f}MODEL_TFLOP/s/GPU"),
    ),
    "primus": (
        "primus",
        lines(lambda i, s: f"[20260101 00:00:00][rank-7/8][INFO ] [--------trainer.py:2143] :"
              f" iteration {i:8d}/      50 | consumed samples: {64 * i:12d} | elapsed time per"
              f" iteration (ms): {s * 1e3:.1f}/{s * 1e3 + 1:.1f} | compute per GPU (TFLOP/s/GPU):"
              f" {800 / s:.1f} (avg {799 / s:.1f}) | learning rate: 1.0E-05 | global batch"
              f" size:  64"
              f" | lm loss: 9.{i:03d}E+00 | tokens/s/GPU inst/harmonic mean: {65536 / s:.1f}/1.0 |"
              f" hip mem usage/free/total/usage_ratio: 145.40GB/142.58GB/287.98GB/50.49% |"),
    ),
    "maxtext": (
        "maxtext",
        lines(lambda i, s: f"I0811 21:54:44.943716 1383 metric_logger.py:226] completed step: {i},"
              f" seconds: {s:.3f}, TFLOP/s/device: {600 / s:.3f}, Tokens/s/device:"
              f" {16384 / s:.3f}, total_weights: 131072, loss: 9.{i:03d}"),
    ),
    "maxtext of 2023": (
        "maxtext",
        lines(lambda i, s: f"completed step: {i}, seconds: {s:.3f}, TFLOP/s: {70 / s:.3f},"
              f" loss: 9.{i:03d}"),
    ),
    "nanotron": (
        "other",
        lines(lambda i, s: f"07/02/2024 10:00:00 [INFO|DP=0|PP=0|TP=0|h1]: iteration: {i} / 500 |"
              f" consumed_tokens: {i}.05M | elapsed_time_per_iteration_ms: {s:.2f}K |"
              f" tokens_per_sec: {524.288 / s:.0f}K | tokens_per_sec_per_gpu: {65.536 / s:.1f}K |"
              f" global_batch_size: 524K | lm_loss: 9.{i:03d} | lr: 0.0001 | model_tflops_per_gpu:"
              f" {300 / s:.0f} | hardware_tflops_per_gpu: {330 / s:.0f} | eta: 0:12:00"),
    ),
    "nemo 2": (
        "megatron-bridge",
        lines(lambda i, s: f"Training epoch 0, iteration {i - 1}/99 | lr: 1.5e-07 |"
              f" global_batch_size: 64 | global_step: {i - 1} | max_memory_reserved: 68719476736 |"
              f" reduced_train_loss: 9.{i:03d} | train_step_timing in s: {s:.4} |"
              f" consumed_samples: {64 * i}"),
    ),
    "nemo 1": (
        "megatron-bridge",
        lines(lambda i, s: f"Epoch 0: :   {i}%|▏         | {i}/100 [00:{i:02d}<03:00, v_num=0,"
              f" reduced_train_loss=9.{i:03d}, global_step={i - 1}.0, consumed_samples={64 * i}.0,"
              f" train_step_timing in s={s:.3f}]"),
    ),
    "mindformers": (
        "mindformers",
        lines(lambda i, s: f"[INFO] 2024-01-01 [callback.py:353] -"
                           f" {{ Epoch:[  1/  2], step:[{i:5d}/"
              f"  100], loss: 9.{i:03d}, per_step_time: {s * 1e3:.0f}ms, lr: 1e-05, overflow cond:"
              f" False, loss_scale: 1.0, global_norm: [1.0], train_throughput_per_npu:"
              f" {300 / s:.3f}T\n[INFO] 2024-01-01 -   1.0% |██    | {8 / s:.5f}"
              f" samples/s/p  0:01 }}"),
    ),
    "deepspeed pipeline": (
        "deepspeed",
        lines(lambda i, s: f"steps: {i} loss: 9.{i:03d} iter time (s): {s:.3f} samples/sec:"
              f" {64 / s:.3f}"),
    ),
    "named values": (
        "other",
        lines(lambda i, s: f"[step {i}] loss=9.{i:03d} | lr=3.00e-04 | grad_norm=1.200 | tok/s="
              f"{131072 / s:,.0f} | mfu=52.3% | mem=71.2/80GB | step_time={s:.3f}s"),
    ),
    "composer": (
        "fsdp",
        lines(lambda i, s: f"[batch={i}/100]:\n\t Train time/batch: {i - 1}\n\t Train"
              f" loss/train/total: 9.{i:03d}\n\t Train throughput/batches_per_sec: {1 / s:.5f}\n\t"
              f" Train throughput/device/tokens_per_sec: {65536 / s:.3f}\n\t Train"
              f" memory/peak_reserved_mem: 40.5"),
    ),
    "krzem": (
        "krzem",
        lines(lambda i, s: f'{{"step": {i}, "tokens": {i * 4096}, "loss": 9.{i:03d}, "seconds":'
              f' {s:.6f}, "tokens_per_s": {4096 / s:.6f}, "memory_bytes": 1073741824}}'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_read(name: str, write: Write) -> None:
    engine, text = CASES[name]
    log = read_log(write(text))
    assert log.engine == engine
    assert log.seen == 30
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(2.0, rel=0.006)
    assert log.seconds.used == 29
    assert not [check for check in log.checks if not check.closes]
    if "loss" in text:
        assert log.loss is not None
        assert log.loss[1] == pytest.approx(9.03 if log.loss[1] > 1 else 0, rel=0.01)


@pytest.mark.parametrize("name", [n for n in CASES if "TFLOP" in CASES[n][1]])
def test_flops_are_read(name: str, write: Write) -> None:
    log = read_log(write(CASES[name][1]))
    assert log.tflops is not None
    assert log.tflops.value
    assert log.convention


TITAN = """\
[rank0]:[titan] 2025-08-01 - root - INFO - CUDA capacity: NVIDIA H100 80GB HBM3 with 79.10GiB memory
[rank0]:[titan] 2025-08-01 - root - INFO - Building device mesh with parallelism: pp=1, \
dp_replicate=1, dp_shard=4, cp=1, tp=2, ep=1
[rank0]:[titan] 2025-08-01 - root - INFO - Model llama3 8B size: 8,030,261,248 total parameters
[rank0]:[titan] 2025-08-01 - root - INFO - Trainer is initialized with local batch size 2, global \
batch size 8, gradient accumulation steps 1, sequence length 8192, total steps 100 (warmup 2)
[rank0]:[titan] 2025-08-01 - root - INFO - Training starts at step 1
"""


def titan(colour: bool = False, key: str = "tps", rank: int = 0) -> str:
    red, green, end = ("\x1b[31m", "\x1b[32m", "\x1b[0m") if colour else ("", "", "")
    text = ""
    for i in (1, *range(10, 210, 10)):
        rate = 900 if i == 1 else round(4096 * (1 + 0.002 * jitter(i // 10)))
        text += (
            f"[rank{rank}]:[titan] 2025-08-01 - root - INFO - {red}step: {i:2}  {green}loss:"
            f" {12 - i / 100:8.5f}  memory: {40 + rank}.25GiB(51.00%)  {key}: {rate:,}  tflops:"
            f" {rate * 0.05:,.2f}  mfu: 20.71%{end}\n"
        )
    return text


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("key", ["tps", "wps"])
def test_torchtitan(colour: bool, key: str, write: Write) -> None:
    log = read_log(write(TITAN + titan(colour, key)))
    assert (log.engine, log.seen, log.tokens_of) == ("torchtitan", 21, "device")
    assert log.tokens is not None
    assert log.tokens.value == pytest.approx(4096, rel=0.003)
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(8 * 8192 / 4096 / 8, rel=0.003)
    assert log.seconds.derived
    assert log.flop_per_token == pytest.approx(0.05e12, rel=0.001)
    values = {name: s.value for name, s in log.fields.items()}
    assert (values["dp"], values["tp"], values["zero"], values["devices"]) == (4, 2, 3, 8)
    assert values["device"] == "NVIDIA H100 80GB HBM3"
    assert log.memory[0].max_reserved == 40.25


def test_time_stamps_of_torchtitan_give_its_steps(write: Write) -> None:
    text, now = "", 50000.0
    for i in range(10, 310, 10):
        now += 10 * 1.07 + 0.004 * jitter(i // 10) + (25 if i == 150 else 0)
        stamp = f"{int(now) // 3600:02d}:{int(now) // 60 % 60:02d}:{now % 60:06.3f}"
        text += (
            f"[rank0]:[titan] 2025-06-04 {stamp.replace('.', ',')} - root - INFO - step: {i:2} "
            f" loss: {12 - i / 100:8.5f}  memory: 30.91GiB(32.53%)  tps: 7,656  tflops: 442.66 "
            f" mfu: 44%\n"
        )
    log = read_log(write(text))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(1.07, rel=0.001)


def test_torchtitan_validation_is_no_step(write: Write) -> None:
    text = titan().replace(
        "step: 50 ", "validate step: 50  loss:  3.00  memory: 44.0GiB(5%)  tps: 99\nstep: 50 "
    )
    log = read_log(write(text))
    assert log.seen == 21
    assert log.tokens is not None
    assert log.tokens.value == pytest.approx(4096, rel=0.003)


def trainer(every: int = 10) -> str:
    text = (
        "***** Running training *****\n  Num examples = 4,000\n  Num Epochs = 1\n  Instantaneous"
        " batch size per device = 2\n  Total train batch size (w. parallel, distributed &"
        " accumulation) = 32\n  Gradient Accumulation steps = 4\n  Total optimization steps = 125\n"
        "\rLoading checkpoint shards: 100%|██████████| 4/4 [00:05<00:00,  1.25s/it]\n"
    )
    for i in range(1, 126):
        clock = 20 + 6 * (i - 1)
        rate = 20 if i == 1 else 6.0 + 0.02 * jitter(i)
        text += (
            f"\r {i * 100 // 125:3d}%|███       | {i}/125 [{clock // 60:02d}:{clock % 60:02d}"
            f"<09:00,  {rate:.2f}s/it]"
        )
        if i % every == 0:
            text += f"{{'loss': {3 - i / 100:.4f}, 'grad_norm': 1.2, 'epoch': 0.{i:03d}}}\n"
    return text + (
        "\n{'train_runtime': 764.0, 'train_samples_per_second': 5.236,"
        " 'train_steps_per_second': 0.164, 'train_loss': 2.5, 'epoch': 1.0}\n"
    )


def test_trainer_of_hugging_face(write: Write) -> None:
    log = read_log(write(trainer()))
    assert log.engine == "other"
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(6.0, rel=0.01)
    assert log.fields["global_batch"].value == 32
    assert log.fields["accumulation"].value == 4
    assert log.summary["train_runtime"] == 764.0
    assert next(c for c in log.checks if c.name == "clock").closes
    deep = read_log(write("[2024-01-01] [INFO] DeepSpeed info: version=0.14\n" + trainer()))
    assert deep.engine == "deepspeed"


def test_the_clock_of_a_bar_corrects_its_running_mean(write: Write) -> None:
    text, now, mean = "", 0.0, 0.0
    for i in range(1, 41):
        step = 132.8 if i < 15 else 120.3
        now += step
        mean = step if i == 1 else 0.97 * mean + 0.03 * step
        hours, rest = divmod(int(now), 3600)
        text += (
            f"\r  {i}%|█ | {i}/100 [{hours}:{rest // 60:02d}:{rest % 60:02d}<9:00:00,"
            f" {mean:.2f}s/it]"
        )
    log = read_log(write(text + "\n"))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(120.3, abs=0.6)


def test_summary_alone_is_a_wide_answer(write: Write) -> None:
    log = read_log(write(trainer().splitlines()[-1] + "\n"))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(1 / 0.164)
    assert log.seconds.error >= 0.05 * log.seconds.value
    assert any("whole run" in note for note in log.notes)


def test_swift_prints_a_running_mean(write: Write) -> None:
    text = ""
    for i in range(1, 31):
        elapsed = 100 + 6 * i
        text += (
            f"{{'loss': 2.{i:02d}, 'grad_norm': 1.0, 'memory(GiB)': 50.9, 'train_speed(s/it)':"
            f" {elapsed / i:.6f}, 'epoch': 0.1, 'global_step/max_steps': '{i}/30',"
            f" 'elapsed_time': '{elapsed // 60}m {elapsed % 60}s'}}\n"
        )
    log = read_log(write(text))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(6.0, rel=0.001)
    assert log.memory[0].max_reserved == 50.9


def test_deepspeed_needs_its_batch(write: Write) -> None:
    text = lines(
        lambda i, s: (
            f"[2024-01-01 00:00:00,000] [INFO] [timer.py:260:stop] epoch=0/micro_step={4 * i}/"
            f"global_step={i}, RunningAvgSamplesPerSec=30.0, CurrSamplesPerSec={64 / s},"
            f" MemAllocated=10.5GB, MaxMemAllocated=40.25GB"
        )
    )
    alone = read_log(write(text))
    assert alone.seconds is None
    dump = "[INFO] [config.py:1003:print]   train_batch_size ............. 64\n"
    log = read_log(write(dump + text))
    assert log.engine == "deepspeed"
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(2.0, rel=0.003)
    assert log.memory[0].max_allocated == 40.25


def test_world_of_deepspeed_is_its_data_parallel_ranks(write: Write) -> None:
    dump = "".join(
        f"[2021-01-01 00:00:00,000] [INFO] [config.py:900:print]   {name} {'.' * 9} {value}\n"
        for name, value in (("world_size", 16), ("train_batch_size", 64))
    )
    alone = read_log(write(dump + trainer()))
    assert (alone.fields["dp"].value, alone.fields["devices"].value) == (16, 16)
    cut = "  model_parallel_size ............. 4\n  num_layers ........ 64\n"
    log = read_log(write(cut + dump + CASES["megatron of 2019"][1]))
    assert (log.fields["dp"].value, log.fields["tp"].value) == (16, 4)
    assert "devices" not in log.fields


def test_automodel_names_both_rates(write: Write) -> None:
    text = lines(
        lambda i, s: (
            f"2025-10-10 10:10:10 | INFO | root | step {i} | epoch 0 | loss 9.{i:03d} | grad_norm"
            f" 1.0 | lr 1.00e-05 | mem 50.20 GiB | tps {131072 / s:.2f}({16384 / s:.2f}/gpu) |"
            f" num_label_tokens 131072"
        )
    )
    log = read_log(write(text))
    assert (log.engine, log.tokens_of) == ("fsdp", "device")
    assert log.tokens is not None
    assert log.tokens.value == pytest.approx(8192, rel=0.005)


def test_internevo(write: Write) -> None:
    text = lines(
        lambda i, s: (
            f"2024-01-01 00:00:00,000\tINFO pipeline.py:600 in record -- tflops={200 / s:.2f} step="
            f"{i - 1} loss=9.{i:03d} tgs (tokens/gpu/second)={8192 / s:.2f} tgs/last_tgs_1="
            f"{8192 / s:.2f} lr=1e-05 num_consumed_tokens={65536 * i} fwd_bwd_time={s:.2f} acc=0.1"
        )
    )
    log = read_log(write(text))
    assert (log.engine, log.tokens_of) == ("internevo", "device")
    assert log.tokens is not None
    assert log.tokens.value == pytest.approx(4096, rel=0.005)
    assert log.flop_per_token == pytest.approx(200e12 / 8192, rel=0.01)


def test_mlperf_counts_blocks(write: Write) -> None:
    def event(key: str, at: float, value: object = "null", **meta: int) -> str:
        more = "".join(f', "{k}": {v}' for k, v in meta.items())
        return (
            f':::MLLOG {{"namespace": "", "time_ms": {at * 1e3:.0f}, "event_type": "POINT_IN_TIME",'
            f' "key": "{key}", "value": {value}, "metadata":'
            f' {{"file": "a.py", "lineno": 1{more}}}}}'
        )

    text, now = [event("global_batch_size", 0, 16)], 100.0
    for block in range(12):
        done = block * 384
        text.append(event("block_start", now, samples_count=done))
        now += 384 / 16 * 0.5 + (30 if block == 0 else 0)
        text.append(event("block_stop", now, samples_count=done + 384))
        text.append(event("eval_start", now, samples_count=done + 384))
        now += 20
        text.append(event("eval_stop", now, samples_count=done + 384))
    log = read_log(write("\n".join(text)))
    assert log.form == "MLPerf"
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(0.5)
    assert log.fields["global_batch"].value == 16


def test_nanogpt(write: Write) -> None:
    log = read_log(write(lines(lambda i, s: f"iter {i}: loss 4.{i:03d}, time {s * 1e3:.2f}ms")))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(2.0, rel=0.003)


def test_dump_of_gpt_neox(write: Write) -> None:
    dump = """\
-------------------- arguments --------------------
  gradient_accumulation_steps ..... 8...........................updated
  hidden_size ..................... 6144........................updated
  model_parallel_size ............. 2...........................updated
  num_attention_heads ............. 64..........................updated
  num_layers ...................... 44..........................updated
  pipe_parallel_size .............. 4...........................updated
  precision ....................... fp16........................default
  seq_length ...................... 2048........................updated
  train_batch_size ................ 64..........................updated
  no_weight_tying ................. True........................updated
  global_num_gpus ................. 16..........................default
---------------- end of arguments ----------------
"""
    log = read_log(write(dump + CASES["gpt-neox"][1]))
    values = {name: s.value for name, s in log.fields.items()}
    assert (values["tp"], values["pp"], values["devices"], values["accumulation"]) == (2, 4, 16, 8)
    assert (values["precision"], values["global_batch"], values["model.tied"]) == (
        "fp16",
        64,
        False,
    )
    assert log.convention.startswith("gpt-neox")
    assert log.tokens is not None
    assert log.tokens.value == pytest.approx(64 * 2048 / 2 / 16, rel=0.01)
    assert log.flop_per_token == pytest.approx(50e12 / (64 * 2048 / 2 / 16), rel=0.01)


def test_settings_of_maxtext(write: Write) -> None:
    dump = "".join(
        f"I0811 pyconfig.py:584] Config param {key}: {value}\n"
        for key, value in {
            "per_device_batch_size": 2, "max_target_length": 8192, "model_name": "llama3.1-8b",
            "global_batch_size_to_train_on": 16, "gradient_accumulation_steps": 1,
            "dtype": "bfloat16", "quantization": "",
        }.items()
    ) + "Num_devices: 8, shape (1, 8, 1)\n"  # fmt: skip
    log = read_log(write(dump + CASES["maxtext"][1]))
    values = {name: s.value for name, s in log.fields.items()}
    assert (values["seq"], values["global_batch"], values["devices"]) == (8192, 16, 8)
    assert (values["model.name"], values["precision"]) == ("llama3.1-8b", "bf16")
    assert next(c for c in log.checks if c.name == "tokens").closes
    assert log.tokens_of == "device"


def test_targets_of_maxtext_tell_the_devices_unless_some_are_padding(write: Write) -> None:
    text = CASES["maxtext"][1]
    log = read_log(write(text))
    assert log.fields["devices"].value == 131072 // 16384
    padded = read_log(write(text.replace("total_weights: 131072", "total_weights: 103111")))
    assert "devices" not in padded.fields
    assert not [c for c in padded.checks if not c.closes]


def test_rounding_is_part_of_the_error(write: Write) -> None:
    line = (
        "iteration: {} / 90 | elapsed_time_per_iteration_ms: 11.5K | tokens_per_sec: 22.8K | x: 1\n"
    )
    log = read_log(write("".join(line.format(i) for i in range(1, 21))))
    assert log.seconds is not None
    assert 0.02 < log.seconds.error < 0.05


def test_mesh_of_early_torchtitan(write: Write) -> None:
    head = """\
[rank0]:2024-08-01 - root - INFO - Building 2-D device mesh with ['dp', 'tp'], [4, 2]
[rank0]:2024-08-01 - root - INFO - Training starts at step 1, with local batch size 2, global \
batch size 8, sequence length 8192, total steps 100 (warmup 2)
"""
    log = read_log(write(head + titan(key="wps")))
    assert log.fields["devices"].value == 8
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(2.0, rel=0.003)


def test_flops_on_lines_of_their_own(write: Write) -> None:
    own = "[Rank 0] Effective Tera Flops per GPU: 50.0 and total parameters 104.3 B\n"
    log = read_log(write(clean_lines(own)))
    assert log.tflops is not None
    assert log.tflops.value == 50.0


def clean_lines(after: str) -> str:
    return megatron(flops=False).replace("\n", "\n" + after)


def test_nothing_is_invented(write: Write) -> None:
    log: Measured = read_log(write(megatron(flops=False)))
    assert log.tflops is None
    assert log.tokens is None
    assert log.convention == ""
    assert "seq" not in log.fields
    assert log.fields["global_batch"].value == 128


BROKEN = """ iteration {n}/ 100 | elapsed time per iteration (ms): 1460.8/1450.4 |
   TFLOP/s/GPU: 633.7 | tokens per GPU (tokens/s/GPU): 1807.5 | lm loss: 3.3632
"""


@pytest.mark.parametrize("first", [7, 90])
def test_a_record_that_a_terminal_broke(tmp_path: Path, first: int) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(BROKEN.format(n=first + n) for n in range(6)), encoding="utf-8")
    log = read_log(path)
    assert log.tokens is not None
    assert log.tflops is not None
    assert (log.tokens.value, log.tokens_of, log.tflops.value) == (1807.5, "device", 633.7)


@pytest.mark.parametrize(("numbers", "steady"), [((1, 2), False), ((8, 9), True), ((9,), True)])
def test_the_first_step_of_a_job_leaves_one_line_and_no_value(
    tmp_path: Path, numbers: tuple[int, ...], steady: bool
) -> None:
    line = " iteration {n}/ 100 | elapsed time per iteration (ms): 150{n}.0 | lm loss: 1.0 |\n"
    path = tmp_path / "log.txt"
    path.write_text("".join(line.format(n=n) for n in numbers), encoding="utf-8")
    log = read_log(path)
    assert log.seconds is not None
    assert (log.seconds.value is not None) is steady
    assert bool(log.seconds.refused) is not steady
