"""Logs as they are found: prefixed, doubled, glued, cut, restarted, huge, or no logs at all."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from tests.jobs import test_logs as clean

from krzem.errors import DataError, UnknownNameError
from krzem.jobs import log_series
from krzem.jobs.logs import Measured, read_log

TEXTS = {name: text for name, (_, text) in clean.CASES.items()} | {
    "megatron": clean.DUMP + clean.megatron(),
    "torchtitan": clean.TITAN + clean.titan(),
    "trainer": clean.trainer(),
}
COUNTED = [name for name in TEXTS if name != "bridge, first rank only"]
"""Forms whose lines say which step they mean."""
PREFIXES = {
    "srun": "{r}: ",
    "torchrun": "[default{r}]:",
    "rank": "[rank{r}]: ",
    "mpirun": "[1,{r}]<stdout>:",
    "pdsh": "worker-{r}: ",
    "time": "2025-05-01T10:00:00.123456Z ",
    "kubernetes": "2025-05-01T10:00:00.123Z stdout F ",
}


def read(tmp_path: Path, text: str | bytes, name: str = "log.txt") -> Measured:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(path)


def speed(log: Measured) -> tuple[float, float, int]:
    """What must not change: seconds, tokens/s and steps told."""
    seconds = log.seconds.value if log.seconds else None
    tokens = log.tokens.value if log.tokens else None
    return seconds or 0.0, tokens or 0.0, log.seen


def without_own_rank(text: str) -> str:
    return text.replace("[rank0]:", "").replace("[rank-7/8]", "")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", TEXTS)
def test_a_prefix_changes_nothing(name: str, prefix: str, tmp_path: Path) -> None:
    text = without_own_rank(TEXTS[name])
    put = PREFIXES[prefix].format(r=3)
    lines = text.replace("\r", "\n").splitlines()
    long = "\n".join(put + line for line in lines) + "\n"
    assert speed(read(tmp_path, long)) == speed(read(tmp_path, text))


@pytest.mark.parametrize("name", COUNTED)
def test_every_rank_may_print_the_same(name: str, tmp_path: Path) -> None:
    text = without_own_rank(TEXTS[name])
    once = read(tmp_path, text)
    lines = text.replace("\r", "\n").splitlines()
    many = "\n".join(f"{r}: {line}" for line in lines for r in range(4)) + "\n"
    assert read(tmp_path, many).seconds == once.seconds
    assert read(tmp_path, many).seen == once.seen


def test_ranks_that_lag_are_not_restarts(tmp_path: Path) -> None:
    lines = [clean.titan(rank=r).splitlines() for r in range(4)]
    order = random.Random(3)
    merged: list[str] = []
    places = [0] * 4
    while any(p < len(lines[r]) for r, p in enumerate(places)):
        r = order.choice([r for r, p in enumerate(places) if p < len(lines[r])])
        merged.append(lines[r][places[r]])
        places[r] += 1
    log = read(tmp_path, "\n".join(merged) + "\n")
    assert (log.seen, log.starts, log.repeated) == (21, 1, 63)
    assert [m.rank for m in log.memory] == [3, 2, 1, 0]
    assert log.memory[0].max_reserved == 43.25


@pytest.mark.parametrize("name", COUNTED)
def test_a_log_cut_anywhere_gives_the_same_or_less(name: str, tmp_path: Path) -> None:
    text = TEXTS[name].encode()
    whole = read(tmp_path, text)
    order = random.Random(7)
    for _ in range(12):
        a, b = sorted(order.sample(range(len(text)), 2))
        if b - a < len(text) // 3:
            continue
        try:
            part = read(tmp_path, text[a:b])
        except DataError:
            continue
        assert part.seen <= whole.seen
        told = {s.number: s.values for s in whole.steps}
        for step in part.steps:
            for key, value in step.values.items():
                if key not in ("seconds", "clock", "samples/job") and step.number in told:
                    assert told[step.number].get(key, value) == value
        if part.seconds and whole.seconds and part.seconds.value and whole.seconds.value:
            assert part.seconds.value == pytest.approx(whole.seconds.value, rel=0.01)


@pytest.mark.parametrize("name", TEXTS)
def test_line_ends_and_garbage_between(name: str, tmp_path: Path) -> None:
    text = TEXTS[name]
    once = speed(read(tmp_path, text))
    assert speed(read(tmp_path, text.replace("\n", "\r\n"))) == once
    order = random.Random(5)
    junk = [bytes(order.randrange(128, 256) for _ in range(60)) for _ in range(20)]
    rough = b"".join(
        line + b"\n" + order.choice(junk) + b"\n" for line in text.encode().split(b"\n")
    )
    assert speed(read(tmp_path, rough)) == once
    packed = tmp_path / "log.txt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert speed(read_log(packed)) == once


def test_glued_lines_are_all_read(tmp_path: Path) -> None:
    glued = clean.megatron().replace("|\n", "|").encode()
    assert read(tmp_path, glued + b"\n").seen == 30
    titan = clean.titan().replace("%\n", "%")
    assert read(tmp_path, titan + "\n").seen == 21


def test_a_restart_begins_anew(tmp_path: Path) -> None:
    text = clean.DUMP + clean.megatron(20) + clean.DUMP + clean.megatron(20, 11)
    log = read(tmp_path, text)
    assert (log.starts, log.seen, log.last) == (2, 40, 30)
    assert log.seconds is not None
    assert log.seconds.dropped == {"after a start": 2}
    assert log.seconds.value == pytest.approx(4.0, rel=0.002)


def test_files_are_ranks_or_restarts(tmp_path: Path) -> None:
    paths = []
    for i, text in enumerate((clean.megatron(20), clean.megatron(20, 11), clean.megatron(20))):
        paths.append(tmp_path / f"{i}.log")
        paths[-1].write_text(text)
    log = read_log([paths[0], paths[2]])
    assert (log.starts, log.seen, log.repeated) == (1, 20, 20)
    more = tmp_path / "more.log"
    more.write_text(clean.megatron(20, 21))
    log = read_log([paths[0], more])
    assert (log.starts, log.seen, log.last) == (2, 40, 40)


def test_means_over_an_interval_are_not_gaps(tmp_path: Path) -> None:
    log = read(tmp_path, clean.megatron(30, every=10))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(4.0, rel=0.002)
    assert [s.interval for s in log.steps[:3]] == [1, 10, 10]


def with_times(milliseconds: list[float], between: dict[int, str] | None = None) -> str:
    text = ""
    for i, ms in enumerate(milliseconds, 1):
        text += (between or {}).get(i, "") + (
            f" iteration {i:8d}/     500 | consumed samples: {128 * i:12d} | elapsed time per"
            f" iteration (ms): {ms:.1f} | global batch size:   128 | lm loss: {9 - i / 1e3:.6E} |\n"
        )
    return text


def test_saves_and_evaluations_are_left_out(tmp_path: Path) -> None:
    times = [1000 + 2 * clean.jitter(i) for i in range(60)]
    marks = {}
    for i in range(10, 60, 10):
        times[i] = 1030.0
        marks[i + 1] = "saving checkpoint at iteration 10 to /x\n"
    times[35] = 4000.0
    log = read(tmp_path, with_times(times, marks))
    assert log.seconds is not None
    assert log.seconds.dropped == {
        "after a start": 1, "with an evaluation, a save or a profile": 5, "far from the others": 1,
    }  # fmt: skip
    assert log.seconds.value == pytest.approx(1.0, rel=1e-3)
    assert log.seconds.overall is not None
    assert log.seconds.overall > log.seconds.value


@pytest.mark.parametrize("head", [[9000], [9000, 300, 20], [50, 40, 30], [3000.0] * 12])
def test_a_start_is_left_out_slow_or_fast(head: list[float], tmp_path: Path) -> None:
    times = [float(x) for x in head] + [1000 + 2 * clean.jitter(i) for i in range(40)]
    log = read(tmp_path, with_times(times))
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(1.0, rel=1e-3)
    assert log.seconds.dropped["after a start"] == len(head)


@pytest.mark.parametrize("slope", [0.004, -0.003])
def test_a_drift_is_refused(slope: float, tmp_path: Path) -> None:
    times = [1000 * (1 + slope * i) + clean.jitter(i) for i in range(60)]
    log = read(tmp_path, with_times(times))
    assert log.seconds is not None
    assert log.seconds.value is None
    assert "drifts" in log.seconds.refused
    assert "no steady state" in str(log.seconds)


def test_starts_of_different_speed_are_not_one_job(tmp_path: Path) -> None:
    text = with_times([1000.0] * 20) + clean.DUMP + with_times([1200.0] * 20)
    log = read(tmp_path, text)
    assert log.seconds is not None
    assert log.seconds.value is None
    assert "starts run at different speeds (1: 1, 2: 1.2 s)" in log.seconds.refused


def test_few_lines_that_disagree_give_nothing(tmp_path: Path) -> None:
    log = read(tmp_path, with_times([9000, 1300, 1000]))
    assert log.seconds is not None
    assert log.seconds.value is None
    assert "only 2 lines" in log.seconds.refused


def test_few_lines_give_a_wide_answer(tmp_path: Path) -> None:
    log = read(tmp_path, with_times([9000, 1000, 1004]))
    assert log.seconds is not None
    assert log.seconds.used == 2
    assert log.seconds.error >= 0.05 * (log.seconds.value or 0)
    assert "wide" in str(log.seconds)


def test_a_growing_batch_is_not_a_drift(tmp_path: Path) -> None:
    text = ""
    for i in range(1, 61):
        batch = min(128, 32 * (1 + i // 10))
        text += (
            f" iteration {i:8d}/ 500 | elapsed time per iteration (ms): {batch * 10.0:.1f} |"
            f" global batch size:  {batch} | lm loss: 1.0{i:02d}E+00 |\n"
        )
    log = read(tmp_path, text)
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(1.28)
    assert log.seconds.dropped["of another batch"] == 29


def test_two_jobs_in_one_page_do_not_close(tmp_path: Path) -> None:
    mixed = clean.DUMP.replace("128\n", "256\n", 1) + clean.megatron()
    names = {c.name: c.closes for c in read(tmp_path, mixed).checks}
    assert names["global batch"] is False
    titan = clean.TITAN + clean.titan()
    lines = [
        line.replace("tflops: ", "tflops: 1") if i % 2 else line
        for i, line in enumerate(titan.splitlines())
    ]
    names = {c.name: c.closes for c in read(tmp_path, "\n".join(lines) + "\n").checks}
    assert names["FLOP a token"] is False


@pytest.mark.parametrize(("factor", "who"), [(1, "job"), (8, "replica"), (64, "device")])
def test_arithmetic_settles_whose_tokens_they_are(factor: int, who: str, tmp_path: Path) -> None:
    text = clean.DUMP
    for i in range(1, 31):
        text += (
            f" iteration {i:8d}/ 500 | elapsed time per iteration (ms): 4000.{i % 10} | tokens/s:"
            f" {128 * 8192 / 4 / factor:.1f} | global batch size: 128 | lm loss: 1.0{i:02d}E+00 |\n"
        )
    log = read(tmp_path, text)
    assert log.tokens_of == who
    assert next(c for c in log.checks if c.name == "tokens").closes
    odd = text.replace("tokens/s: ", "tokens/s: 7")
    log = read(tmp_path, odd)
    assert log.tokens_of == ""
    assert not next(c for c in log.checks if c.name == "tokens").closes


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02\x03PK" * 5000, "not text"),
        (b"Loading the data\nDone\n" * 50, "none of 100 lines"),
        (b"\x1f\x8b\x08\x00broken", "empty|none|not text"),
        (b"[batch=3/10]:\n Train loss/train/total: 2.0\n" * 9, "none gives its time"),
    ],
)
def test_what_is_no_log_is_refused(raw: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read(tmp_path, raw)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.log", tmp_path, Path("a\0b")):
        with pytest.raises(DataError):
            read_log(path)
    with pytest.raises(DataError):
        read_log([])
    (tmp_path / "log.txt").write_text(clean.megatron())
    with pytest.raises(UnknownNameError):
        read_log(tmp_path / "log.txt", engine="megatrn")
    assert read_log(tmp_path / "log.txt", engine="nemo").engine == "megatron-bridge"


def test_a_compressed_file_that_ends_early_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    order = random.Random(1)
    text = "".join(
        line + f" {order.random()}\n" for line in clean.megatron(300).splitlines()
    ).encode()
    packed = gzip.compress(text)
    log = read(tmp_path, packed[: len(packed) // 2], "log.gz")
    assert 50 < log.seen < 300
    assert any("ends early" in note for note in log.notes)


def test_random_bytes_never_break_it(tmp_path: Path) -> None:
    order = random.Random(11)
    words = (
        "iteration | elapsed time per iteration (ms): ;|;step: ;tps: ;\n;completed step: ;{;};"
        '"step":;1e999;nan;-5;/;:::MLLOG ;s/it;12%|;] [;99999999999999999999999999; ..... ;, ;='
    )
    bits = [*(word.encode() for word in words.split(";")), b"\xff", b"\x00"]
    for _ in range(200):
        raw = b"".join(order.choice(bits) for _ in range(order.randrange(1, 400)))
        try:
            log = read(tmp_path, raw)
        except DataError:
            continue
        assert log.seen >= 1


def test_a_large_file_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_series, "MOST_STEPS", 500)
    noise = "a library that says something of no interest whatever, many times over and over\n"
    path = tmp_path / "log.txt"
    with path.open("w") as file:
        for first in range(1, 3001, 30):
            file.write(clean.megatron(30, first))
            file.write(noise * 6000)
    assert path.stat().st_size > 45e6
    log = read_log(path)
    assert (log.seen, log.last) == (3000, 3000)
    assert len(log.steps) <= 500
    assert log.seconds is not None
    assert log.seconds.value == pytest.approx(4.0, rel=0.002)
    assert log.lines == 3000 + 600_000


@pytest.mark.parametrize("lead", [0, 1 << 13, 3 << 30])
def test_a_hole_of_any_length_is_skipped(tmp_path: Path, lead: int) -> None:
    line = " iteration {n}/ 100 | elapsed time per iteration (ms): 1500.0 | lm loss: 1.0 |\n"
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        file.seek(lead)
        file.write("".join(line.format(n=n) for n in range(1, 9)).encode())
        file.truncate(2 * lead + 10_000)
    log = read_log(path)
    assert (log.seen, log.lines) == (8, 9)
