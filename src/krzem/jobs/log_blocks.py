"""Readers of forms that take more than one line for a step, and of progress bars and JSON."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from krzem.errors import DataError, shorten
from krzem.jobs.log_formats import Read
from krzem.jobs.log_series import KEYS, NUMBER, Values, clock, number, units, values_of

_BAR = re.compile(
    r"(?P<label>[^|\r\n%]{0,80}?)(?P<percent>\d{1,3})%\|[^|]*\| *(?P<n>\d+)/(?P<total>\d+) "
    r"\[(?P<elapsed>[\d:]+)<[\d:?, days]+, *(?P<rate>[\d.]+) ?(?P<unit>s/it|it/s)(?P<rest>[^\]]*)"
)
_OTHER_BARS = re.compile(
    r"load|map|token|generat|filter|download|evaluat|valid|saving|shard|fetch|quant|process|sanity"
    r"|compil|warm|group|pack|resolv|cache",
    re.IGNORECASE,
)
_DICT = re.compile(r"\{[^{}]*['\"](?:loss|train_runtime)['\"]\s*:[^{}]*\}")
_ITEM = re.compile(r"['\"]([\w/() .]+)['\"]\s*:\s*['\"]?([^,'\"}]*)")
_PLAIN = re.compile(NUMBER)
_SWIFT = ("train_speed(s/it)", "train_speed(iter/s)")


def trainer() -> Read:
    """The Hugging Face Trainer's bar and dictionaries, ms-swift's included.

    The bar's own rate is a running mean over the last few steps; the clock beside it is kept.
    A dictionary without a step speaks of the step that the bar shows.
    """

    def read(text: str) -> Iterator[Values]:
        for bar in _BAR.finditer(text):
            yield from _bar(bar)
        for match in _DICT.finditer(text):
            yield _dictionary(dict(_ITEM.findall(match[0])))

    return read


def _bar(bar: re.Match[str]) -> Iterator[Values]:
    rate, n = float(bar["rate"]), float(bar["n"])
    elapsed = clock(bar["elapsed"])
    if _OTHER_BARS.search(bar["label"]) or not rate or not n or elapsed is None:
        return
    found = values_of(re.findall(rf"([\w ]+?)=({NUMBER})", bar["rest"]), KEYS)
    total = float(bar["total"])
    found.update(number=n, total=total, track=total, clock=elapsed)
    found["seconds"] = rate if bar["unit"] == "s/it" else 1.0 / rate
    yield found


def _dictionary(items: Mapping[str, str]) -> Values:
    """The numbers of one printed dictionary; ``summary`` marks the last one of a run."""
    found = units(values_of(((k.strip(), v) for k, v in items.items()), KEYS))
    found.pop("tokens/?", None)
    if "train_runtime" in items:
        plain = {k: v for k, v in items.items() if _PLAIN.fullmatch(v.strip())}
        totals = {k: v for k, text in plain.items() if (v := number(text)) is not None}
        return {**totals, "summary": 1.0}
    step, _, total = items.get("global_step/max_steps", "").partition("/")
    at, planned = number(step), number(total)
    if at is None:
        return {**found, "amend": 1.0}
    found.update(number=at, track=planned or 0.0)
    if planned:
        found["total"] = planned
    slow, fast = (number(items.get(key, "")) for key in _SWIFT)
    mean = slow or (1.0 / fast if fast else None)
    told = clock(items.get("elapsed_time", ""))
    if told is not None:
        found["clock"] = at * mean if mean and abs(at * mean - told) < 0.02 * told else told
    return found


# -- MindFormers

_MIND = re.compile(
    rf"Epoch:\[ *(\d+)/ *(\d+)\], step:\[ *(\d+)/ *(\d+)\], loss:? ?\[? *({NUMBER})"
    rf".{{0,200}}?per_step_time: *(\d+)ms(?:.{{0,400}}?train_throughput_per_npu: *([\d.]+)T)?"
)
_SAMPLES = re.compile(r"([\d.]+) samples/s/p")


def mindformers() -> Read:
    """``{ Epoch:[1/2], step:[10/100], loss: 7.1, per_step_time: 812ms, … }`` and the line after."""

    def read(text: str) -> Iterator[Values]:
        for match in _MIND.finditer(text):
            epoch, epochs, step, steps = (int(match[i]) for i in range(1, 5))
            found: Values = {
                "number": float((epoch - 1) * steps + step), "total": float(epochs * steps),
                "seconds": int(match[6]) / 1e3,
            }  # fmt: skip
            loss = number(match[5])
            if loss is not None:
                found["loss"] = loss
            if match[7]:
                found["tflops"] = float(match[7])
            yield found
        for rate in _SAMPLES.finditer(text):
            yield {"samples/device": float(rate[1]), "amend": 1.0}

    return read


# -- MLPerf

_MLLOG = re.compile(r":::MLLO?G? ?(\{.{0,4000}\})")


def mllog() -> Read:
    """``:::MLLOG {…}``: tracked step times, or the time of a block over its samples.

    Where a block begins is where the one before ended: what its start says means other things
    with other submitters.
    """
    state: dict[str, float] = {}

    def read(text: str) -> Iterator[Values]:
        for match in _MLLOG.finditer(text):
            event = _event(match[1])
            if event is None:
                continue
            key, value, at, samples, step = event
            if key == "global_batch_size" and isinstance(value, int | float):
                state["batch"] = float(value)
            elif key == "run_start":
                state["done"] = 0.0
            elif key == "tracked_stats" and isinstance(value, dict):
                yield from _tracked(value, step, state.get("batch"))
            elif key in ("block_start", "epoch_start") and "at" not in state:
                state["at"] = at
                state.setdefault("done", samples or 0.0)
            elif key in ("block_stop", "epoch_stop", "eval_start") and "at" in state:
                yield from _block(state, at, samples)

    return read


def _tracked(value: Mapping[str, object], step: float | None, batch: float | None) -> list[Values]:
    seconds = value.get("train_step_time")
    if step is None or not isinstance(seconds, int | float) or seconds <= 0:
        return []
    found: Values = {"number": step + 1, "seconds": float(seconds), "track": 1.0}
    loss = value.get("reduced_train_loss", value.get("train_loss"))
    if isinstance(loss, int | float):
        found["loss"] = float(loss)
    return [found | ({"batch": batch} if batch else {})]


def _block(state: dict[str, float], at: float, samples: float | None) -> list[Values]:
    batch, done = state.get("batch"), state.get("done", 0.0)
    if samples is None or not batch or samples <= done:
        return []
    seconds = (at - state.pop("at")) / 1e3
    steps = (samples - done) / batch
    state["done"] = samples
    if steps < 1 or seconds <= 0:
        return []
    found = {"number": round(samples / batch), "seconds": seconds / steps, "batch": batch}
    return [found | {"consumed": samples, "samples/job": batch * steps / seconds, "track": 2.0}]


def _event(text: str) -> tuple[str, object, float, float | None, float | None] | None:
    """Key, value, milliseconds, samples so far and step of an MLPerf event."""
    try:
        event = json.loads(text)
        meta = event.get("metadata") or {}
        samples = meta.get("samples_count", meta.get("epoch_num", meta.get("first_epoch_num")))
        counts = [None if x is None else float(x) for x in (samples, meta.get("step"))]
        return str(event["key"]), event.get("value"), float(event["time_ms"]), *counts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


# -- blocks of keys below a step (Composer, LLM Foundry, OLMo)

_BATCH = re.compile(r"\[(?:batch|step)=(\d+)(?:/(\d+))?(?:,[^\]]*)?\]:?")
_BELOW = re.compile(
    rf"(?:Train )?((?:throughput|memory|loss|train|time)/[\w/]+)(?:: |=)({NUMBER}[KMBT]?)"
)


def blocks() -> Read:
    """``[batch=10/100]:`` and, below it, ``Train throughput/device/tokens_per_sec: 9876.5``."""

    def read(text: str) -> Iterator[Values]:
        for match in _BATCH.finditer(text):
            found = {"number": float(match[1])}
            yield found | ({"total": float(match[2])} if match[2] else {})
        below = units(values_of(_BELOW.findall(text), KEYS))
        if below:
            yield {**below, "amend": 1.0}

    return read


# -- JSON Lines

_JSON_MORE: Mapping[str, str] = {**KEYS, "_step": "number", "seq": "seq"}
_LONGEST = 200_000


def json_lines() -> Read:
    """One JSON object a line, with a step and a time or a rate: krzem's own, or another's."""

    def read(text: str) -> Iterator[Values]:
        start = text.find("{")
        if start < 0 or len(text) > _LONGEST:
            return
        try:
            record = json.loads(text[start:])
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            yield from _record(record)

    return read


def _record(record: Mapping[str, object]) -> Iterator[Values]:
    flat = {**record, **_inner(record)}
    numbers = {k: v for k, v in flat.items() if type(v) in (int, float)}
    found: Values = {}
    for key, value in numbers.items():
        name = _JSON_MORE.get(key)
        if name is not None and isinstance(value, int | float) and math.isfinite(value):
            found.setdefault(name, float(value))
    if "tps_per_gpu" in numbers and "tokens/?" in found:
        found["tokens/job"] = found.pop("tokens/?")
    texts = {k: str(v) for k, v in flat.items() if isinstance(v, str | int | float)}
    if "global_step/max_steps" in texts:
        found.update(_dictionary(texts))
    found = units(found)
    if abs(found.get("number", -1.0)) < 1e15 and found.get("number", -1.0) >= 0:
        yield found


def _inner(record: Mapping[str, object]) -> Mapping[str, object]:
    inner = record.get("metrics")
    return inner if isinstance(inner, dict) else {}


# -- lines of interest out of files of any size: plain or gzip, one pass, little memory

CHUNK = 1 << 21
LONGEST_LINE = 1 << 17
"""Bytes; a longer line is cut."""
_GZIP = b"\x1f\x8b"
_WIDE = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
Hit = tuple[int, bytes, bool, frozenset[bytes]]
"""Number of the line, its bytes, whether it ends, and the needles in it."""


class Stream:
    """One file: iterate over the lines that hold one of ``needles``.

    ``needles`` may be taken out while the file is read.  ``lines``, ``binary`` and ``cut`` (a
    compressed file that ends early) tell of the file when it has been read.
    """

    def __init__(self, path: Path, needles: Collection[bytes]) -> None:
        self.path = path
        self.needles = set(needles)
        self.lines = 0
        self.bytes = 0
        self.binary = False
        self.cut = False

    def __iter__(self) -> Iterator[Hit]:
        tail = b""
        for chunk in self._chunks():
            if not chunk.strip(b"\0"):
                continue  # a hole that a rotated log leaves
            block = tail + chunk
            end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            if end < 0 and len(block) <= LONGEST_LINE:
                tail = block
                continue
            end = len(block) if end < 0 else end + 1
            yield from self._hits(block[:end], whole=True)
            tail = block[end:]
        if tail:
            yield from self._hits(tail, whole=False)
            self.lines += 1

    def _hits(self, block: bytes, *, whole: bool) -> Iterator[Hit]:
        """The lines of ``block`` with a needle, in order; carriage returns end a line too."""
        flat = block.replace(b"\r", b"\n") if b"\r" in block else block
        found: dict[int, tuple[int, set[bytes]]] = {}
        for needle in self.needles:
            at = flat.find(needle)
            while at >= 0:
                start = flat.rfind(b"\n", 0, at) + 1
                stop = flat.find(b"\n", at)
                stop = len(flat) if stop < 0 else stop
                found.setdefault(start, (stop, set()))[1].add(needle)
                at = flat.find(needle, stop)
        place, line = 0, self.lines
        for start in sorted(found):
            stop, needles = found[start]
            line += block.count(b"\n", place, start)
            place = start
            yield line + 1, flat[start : min(stop, start + LONGEST_LINE)], whole, frozenset(needles)
        self.lines += block.count(b"\n")

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of the file, decompressed, as UTF-8 where a mark says that they are wider."""
        name = shorten(str(self.path), 120)
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise DataError(f"{name} is not a file: give the log of a training job")
            with self.path.open("rb", buffering=0) as raw:
                yield from self._decoded(raw)
        except FileNotFoundError:
            raise DataError(f"{name} does not exist: give the log of a training job") from None
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror})") from None
        except ValueError:
            raise DataError(f"{name!r} is not the name of a file") from None

    def _decoded(self, raw: BinaryIO) -> Iterator[bytes]:
        magic = raw.read(2)
        raw.seek(0)
        stream = self._unpacked(raw) if magic == _GZIP else _without_holes(raw)
        decoder: codecs.IncrementalDecoder | None = None
        first = True
        for chunk in stream:
            if first:
                wide = _WIDE.get(chunk[:2])
                decoder = codecs.getincrementaldecoder(wide)("replace") if wide else None
                self.binary = decoder is None and _binary(chunk)
                first = False
            self.bytes += len(chunk)
            yield chunk if decoder is None else decoder.decode(chunk).encode()

    def _unpacked(self, raw: BinaryIO) -> Iterator[bytes]:
        """The bytes of gzip members, as far as they go."""
        unpack = zlib.decompressobj(31)
        packed, begun = b"", False
        while packed := packed or raw.read(CHUNK >> 4):
            try:
                chunk = unpack.decompress(packed, CHUNK)
            except zlib.error:
                self.cut = True
                return
            if chunk:
                yield chunk
            packed = unpack.unconsumed_tail
            if unpack.eof:
                packed = unpack.unused_data.lstrip(b"\0")
                unpack = zlib.decompressobj(31)
                begun = bool(packed)
            else:
                begun = True
        self.cut = begun


def _without_holes(raw: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file; a hole that was never written, however long, is one zero."""
    while True:
        at = raw.tell()
        try:
            data = os.lseek(raw.fileno(), at, os.SEEK_DATA)
        except OSError as error:
            data = at if error.errno != errno.ENXIO else -1
        if data < 0 or data > at:
            if data < 0 and raw.seek(0, os.SEEK_END) <= at:
                return
            yield b"\0"
        if data < 0:
            return
        raw.seek(data)
        chunk = raw.read(CHUNK)
        if not chunk:
            return
        yield chunk


def _binary(head: bytes) -> bool:
    """Whether more than a tenth of the first bytes are ones that no text has."""
    part = head[:65536]
    odd = sum(part.count(bytes([c])) for c in range(32) if c not in (7, 8, 9, 10, 12, 13, 27))
    return odd > len(part) * 0.1
