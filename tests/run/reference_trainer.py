"""A small honest trainer that keeps the contract: a language model on bytes, in numpy alone.

The model reads four bytes and predicts the next: embedding, one hidden layer, softmax; stochastic
gradient descent with momentum in float64.  Gradients are summed sample by sample in the order of
the global index, so the result is the same, bit for bit, on any number of ranks.  Checkpoints are
krzem's portable ones.  Ranks are processes of their own that talk over pipes, or, where a scheduler
starts one task on each host, over sockets.

Run by a controller as ``python reference_trainer.py SETTINGS.json``.  ``RUN/faults.json`` plants
faults (see :class:`Faults`), each of which strikes once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import sysconfig
import time
import uuid
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np

from krzem.errors import CheckpointError, StorageError
from krzem.run.contract import (
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_FENCED,
    EXIT_NONFINITE,
    EXIT_STOPPED,
    EXIT_STORAGE,
    FencedError,
    StepRecord,
    TrainerContract,
    attempt_folder,
)
from krzem.train.checkpoint.manifest import Chunk, Manifest, StoredTensor, write_manifest
from krzem.train.checkpoint.store import Retention, prune, remove_strays, step_folder, verify
from krzem.train.checkpoint.tensor_file import Entry, TensorFileWriter, read_header
from krzem.train.durable import write_atomic

KEY = b"reference"
CONTEXT, WIDTH, HIDDEN, BYTES = 4, 8, 24, 256
RATE, MOMENTUM = 0.2, 0.9


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``SETTINGS.json``."""

    steps: int
    batch: int = 8
    sequence: int = 16
    ranks: int = 1
    save_every: int = 10
    keep: int = 3
    step_seconds: float = 0.0
    """Added to every rank's work, to make a step take a known time."""
    skip_after_resume: int = 0
    """A planted mistake: samples that are left out whenever a checkpoint was loaded."""


class Faults:
    """Planted faults: ``[{"id": "a", "step": 7, "at": "save.data", "do": "kill"}, …]``.

    ``at`` is compute, save.begin, save.data, save.manifest, save.done or load; ``do`` is kill (this
    process), kill-all (its process group and supervisor), hang, wait (for the file RUN/go), nan,
    or slow (5 times, ``for`` steps).  ``rank`` picks one.  A fault that struck leaves a file, and
    does not strike again.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        path = run_dir / "faults.json"
        self._all = json.loads(path.read_text()) if path.exists() else []
        self._done = run_dir / "faults.done"
        self._go = run_dir / "go"
        self._done.mkdir(exist_ok=True)
        self._rank = rank

    def strike(self, at: str, step: int) -> str:
        """What is to happen here, and happens now unless it is nan or slow."""
        for fault in self._all:
            until = fault["step"] + fault.get("for", 1)
            here = fault["at"] == at and fault["step"] <= step < until
            mark = self._done / fault["id"]
            if not here or fault.get("rank", 0) != self._rank:
                continue
            if fault["do"] == "slow":
                return "slow"
            if not mark.exists():
                mark.write_text("")
                self._do(fault["do"])
                return str(fault["do"])
        return ""

    def _do(self, what: str) -> None:
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "kill-all":
            os.killpg(0, signal.SIGKILL)
        elif what == "hang":
            time.sleep(3600)
        elif what == "wait":
            while not self._go.exists():
                time.sleep(0.005)
        elif what == "exit":
            os._exit(3)


def real_text(size: int = 1 << 20) -> np.ndarray:
    """Text that is on every machine with Python: the standard library's own source."""
    text = b""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            break
    return np.frombuffer(text[:size], dtype=np.uint8)


Weights = dict[str, np.ndarray]


def initial() -> Weights:
    random = np.random.default_rng(0)
    shapes = {
        "embedding": (BYTES, WIDTH),
        "hidden": (CONTEXT * WIDTH, HIDDEN),
        "head": (HIDDEN, BYTES),
    }
    return {name: random.normal(0, 0.1, shape) for name, shape in shapes.items()}


def sample(text: np.ndarray, index: int, sequence: int) -> np.ndarray:
    """Global sample ``index``: a function of the index alone."""
    start = (index * 7919 * sequence) % (len(text) - sequence - CONTEXT)
    return text[start : start + sequence + CONTEXT].astype(np.int64)


def gradients(weights: Weights, tokens: np.ndarray) -> tuple[float, Weights]:
    """Summed loss and gradients of one sample."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], CONTEXT)
    targets, count = tokens[CONTEXT:], len(tokens) - CONTEXT
    embedded = weights["embedding"][windows].reshape(count, -1)
    hidden = np.tanh(embedded @ weights["hidden"])
    logits = hidden @ weights["head"]
    logits -= logits.max(1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(1, keepdims=True)
    rows = np.arange(count)
    loss = -float(np.log(chances[rows, targets]).sum())
    chances[rows, targets] -= 1.0
    inner = chances @ weights["head"].T * (1 - hidden**2)
    outer = (inner @ weights["hidden"].T).reshape(count, CONTEXT, WIDTH)
    embedding = np.zeros_like(weights["embedding"])
    np.add.at(embedding, windows, outer)
    return loss, {
        "embedding": embedding,
        "hidden": embedded.T @ inner,
        "head": hidden.T @ chances,
    }


class Rank:
    """The work of one rank in a step: its samples, in order."""

    def __init__(self, settings: Settings, contract: TrainerContract) -> None:
        self.settings = settings
        self.contract = contract
        self.text = real_text()
        self.faults = Faults(contract.run_dir, contract.rank)

    def step(self, weights: Weights, step: int) -> list[tuple[float, Weights]]:
        """Gradients of each sample.

        A sleep stands for work on a device.  Own work is its length and the processor's own time:
        how long a loaded machine lets a process wait is no property of the rank.
        """
        s, rank = self.settings, self.contract.rank
        self.contract.beat(step, "compute")
        struck = self.faults.strike("compute", step)
        begun, times = time.thread_time(), 5 if struck == "slow" else 1
        share = np.array_split(np.arange((step - 1) * s.batch, step * s.batch), s.ranks)[rank]
        for _ in range(times):
            done = [gradients(weights, sample(self.text, int(i), s.sequence)) for i in share]
        device = s.step_seconds * times
        time.sleep(device)
        own = time.thread_time() - begun + device
        if struck == "nan" and done:
            done[0] = (math.nan, done[0][1])
        self.contract.beat(step, "reduce", own_seconds=own)
        return done


def worker(settings: Settings, contract: TrainerContract, pipe: Any) -> None:
    """A rank above 0: weights in, gradients out, until told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank = Rank(settings, contract)
    with contextlib.suppress(EOFError):
        while (message := pipe.recv()) is not None:
            weights, step = message
            pipe.send(rank.step(weights, step))


class Trainer:
    """Rank 0: the loop."""

    def __init__(self, settings: Settings, contract: TrainerContract) -> None:
        self.settings = settings
        self.contract = contract
        self.weights = initial()
        self.momentum = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.step = 0
        self.skipped = 0
        self.faults = Faults(contract.run_dir, 0)
        self.pipes: list[Any] = []

    def run(self) -> int:
        try:
            return self._run()
        finally:
            for pipe in self.pipes:
                with contextlib.suppress(OSError):
                    pipe.send(None)

    def _run(self) -> int:
        self.contract.install_signals()
        self.contract.beat(0, "load")
        self.faults.strike("load", 0)
        self._load()
        self._spawn()
        self.rank = Rank(self.settings, self.contract)
        while self.step < self.settings.steps:
            self._train_step()
            stop = self.contract.stop_requested()
            last = self.step == self.settings.steps
            if last or stop or self.step % self.settings.save_every == 0:
                self._save()
            if stop and not last:
                return EXIT_STOPPED
        return EXIT_DONE

    def _spawn(self) -> None:
        if "SLURM_NTASKS" in os.environ and int(os.environ["SLURM_NTASKS"]) > 1:
            self._accept()
            return
        context = get_context("fork")
        for rank in range(1, self.settings.ranks):
            ours, theirs = context.Pipe()
            contract = TrainerContract(
                run_dir=self.contract.run_dir,
                attempt=self.contract.attempt,
                token=self.contract.token,
                rank=rank,
            )
            arguments = (self.settings, contract, theirs)
            context.Process(target=worker, args=arguments, daemon=True).start()
            theirs.close()
            self.pipes.append(ours)

    def _accept(self) -> None:
        """Wait for the tasks on other hosts, and sort them by rank."""
        with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
            address = attempt_folder(self.contract.run_dir, self.contract.attempt) / "address"
            write_atomic(address, json.dumps(listener.address).encode())
            joined = [listener.accept() for _ in range(1, self.settings.ranks)]
        self.pipes = [pipe for _, pipe in sorted((pipe.recv(), pipe) for pipe in joined)]

    def _train_step(self) -> None:
        begun = time.perf_counter()
        step = self.step + 1
        for pipe in self.pipes:
            pipe.send((self.weights, step))
        parts = list(self.rank.step(self.weights, step))
        for pipe in self.pipes:
            parts += pipe.recv()
        tokens = self.settings.batch * self.settings.sequence
        loss = sum(part[0] for part in parts) / tokens
        total = {n: sum(part[1][n] for part in parts) / tokens for n in self.weights}
        norm = math.sqrt(sum(float((g**2).sum()) for g in total.values()))
        seconds = time.perf_counter() - begun
        self.contract.log_step(self._record(step, loss, norm, seconds))
        if not math.isfinite(loss):
            sys.exit(EXIT_NONFINITE)
        for name, gradient in total.items():
            self.momentum[name] = MOMENTUM * self.momentum[name] + gradient
            self.weights[name] = self.weights[name] - RATE * self.momentum[name]
        self.step = step
        self.contract.beat(step, "update")

    def _record(self, step: int, loss: float, norm: float, seconds: float) -> StepRecord:
        s = self.settings
        tokens = s.batch * s.sequence
        return StepRecord(
            step=step,
            tokens=step * tokens,
            loss=loss,
            grad_norm=norm,
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            first_sample=(step - 1) * s.batch + self.skipped,
            last_sample=step * s.batch - 1 + self.skipped,
            attempt=self.contract.attempt,
            time=time.time(),
        )

    def _state(self) -> Weights:
        return {**self.weights, **{f"momentum.{n}": m for n, m in self.momentum.items()}}

    def _save(self) -> None:
        self.contract.beat(self.step, "save")
        self.faults.strike("save.begin", self.step)
        folder = step_folder(self.contract.checkpoints, self.step)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{uuid.uuid4().hex[:8]}-00000.safetensors"
        state = {n: np.ascontiguousarray(a) for n, a in sorted(self._state().items())}
        entries = [
            (n, Entry(dtype="float64", shape=a.shape, stop=a.nbytes)) for n, a in state.items()
        ]
        with TensorFileWriter(folder / name, entries) as file:
            placed = {n: file.write(a.data) for n, a in state.items()}
            stored = file.finish()
        self.faults.strike("save.data", self.step)
        tensors = {
            n: StoredTensor(
                dtype="float64",
                shape=a.shape,
                chunks=(
                    Chunk(
                        offset=(0,) * a.ndim, shape=a.shape, file=name, start=placed[n].start,
                        stop=placed[n].stop, crc32=placed[n].crc32,
                    ),
                ),
            )
            for n, a in state.items()
        }  # fmt: skip
        manifest = Manifest(
            step=self.step,
            tensors=tensors,
            files={name: stored},
            meta={"tokens": self.step * self.settings.batch * self.settings.sequence},
            config={"model_type": "reference"},
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_manifest(folder, manifest, self._guard)
        self.faults.strike("save.done", self.step)
        remove_strays(folder, manifest)
        prune(self.contract.checkpoints, Retention(keep_last=self.settings.keep))
        self.contract.beat(self.step, "update")

    def _guard(self) -> None:
        self.faults.strike("save.manifest", self.step)
        self.contract.commit_guard()

    def _load(self) -> None:
        folder = self.contract.resume_from
        if folder is None:
            return
        manifest = verify(folder)
        (name,) = manifest.files
        entries, _ = read_header(folder / name)
        raw = (folder / name).read_bytes()
        state = {
            n: np.frombuffer(raw[e.start : e.stop]).reshape(e.shape) for n, e in entries.items()
        }
        self.weights = {n: state[n] for n in self.weights}
        self.momentum = {n: state[f"momentum.{n}"] for n in self.momentum}
        self.step = manifest.step
        self.skipped = self.settings.skip_after_resume


def join(settings: Settings, contract: TrainerContract) -> int:
    """A task on another host: find rank 0 and work for it."""
    address = attempt_folder(contract.run_dir, contract.attempt) / "address"
    while not address.exists():
        time.sleep(0.01)
    with Client(tuple(json.loads(address.read_bytes())), authkey=KEY) as pipe:
        pipe.send(contract.rank)
        worker(settings, contract, pipe)
    return EXIT_DONE


def main() -> int:
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    contract = TrainerContract.from_environment(rank=int(os.environ.get("SLURM_PROCID", "0")))
    if contract is None:
        raise SystemExit("run this under krzem run")
    contract.beat(0, "start")
    if contract.rank:
        return join(settings, contract)
    try:
        return Trainer(settings, contract).run()
    except FencedError as error:
        print(error)
        return EXIT_FENCED
    except StorageError as error:
        print(error)
        return EXIT_STORAGE
    except CheckpointError as error:
        print(error)
        return EXIT_CHECKPOINT
    except (EOFError, BrokenPipeError, ConnectionError) as error:
        print(f"a rank is gone: {error!r}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
