"""One process of a probe: ``python -m krzem.run.probe.rank FOLDER RANK WORLD LOCAL SECONDS USE``.

It measures one device and leaves ``rank-R.json``; ``rank-R.progress`` says how far it is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krzem.run.contract import host_name
from krzem.run.probe import collectives, rates
from krzem.run.probe.backend import Backend, NumpyBackend, torch_or_none
from krzem.run.probe.numerics import check_operators, keeps_float32
from krzem.train.durable import write_atomic

_SHARES = {"matmul": 0.3, "attention": 0.1, "memory": 0.06, "launch": 0.02, "soak": 0.2,
           "collectives": 0.2}  # fmt: skip
"""Of the time allowed; the rest is start-up and numerics."""
_SOAK_SIDE, _SOAK_SIDE_HOST = 4096, 512


class RankProbe:
    """Measures one device and says how far it is."""

    def __init__(self, folder: Path, rank: int, world: int, backend: Backend, seconds: float):
        self.folder = folder
        self.rank = rank
        self.world = world
        self.backend = backend
        self.seconds = seconds
        self._done = 0.0

    def run(self) -> dict[str, Any]:
        """All parts, as JSON."""
        b, precisions = self.backend, self.backend.precisions
        result: dict[str, Any] = {
            "rank": self.rank,
            "host": host_name(),
            "device": b.device,
            "backend": b.name,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "memory_bytes": b.memory_bytes(),
        }
        each = self._budget("matmul") / len(precisions)
        result["matmul"] = [
            asdict(rate)
            for kind in precisions
            for rate in self._part("matmul", lambda k=kind: rates.matmul_rates(b, k, each),  # type: ignore[misc]
                                   1 / len(precisions))
        ]  # fmt: skip
        wanted = self._budget("attention") / len(precisions)
        result["attention"] = [
            asdict(self._part("attention", lambda k=kind: rates.attention_rate(b, k, wanted),  # type: ignore[misc]
                              1 / len(precisions)))
            for kind in precisions
        ]  # fmt: skip
        result["memory"] = asdict(
            self._part("memory", lambda: rates.memory_rate(b, self._budget("memory")))
        )
        result["launch"] = asdict(
            self._part("launch", lambda: rates.launch_seconds(b, self._budget("launch")))
        )
        main = "bf16" if "bf16" in precisions else precisions[0]
        # One size for all devices of a kind: identical work must give identical bits.
        side = _SOAK_SIDE_HOST if b.device == "cpu" else _SOAK_SIDE
        result["soak"] = asdict(
            self._part("soak", lambda: rates.soak(b, main, side, self._budget("soak")))
        )
        checked = [kind for kind in precisions if kind != "fp64"]
        result["numerics"] = [asdict(n) for kind in checked for n in check_operators(b, kind)]
        result["true_float32"] = keeps_float32(b)
        result["collectives"] = self._part("collectives", self._collectives)
        return result

    def _collectives(self) -> list[dict[str, Any]]:
        place = self.folder / "meet"
        found = collectives.measure(
            place, self.rank, self.world, self.backend.device, self._budget("collectives")
        )
        return [asdict(c) for c in found]

    def _budget(self, part: str) -> float:
        return self.seconds * _SHARES[part]

    def _part(self, name: str, work: Callable[[], Any], share: float = 1.0) -> Any:
        result = work()
        self._done = min(1.0, self._done + _SHARES[name] * share / sum(_SHARES.values()))
        (self.folder / f"rank-{self.rank}.progress").write_text(f"{self._done:.3f} {name}")
        return result


def backend_for(index: int, *, use: str = "auto") -> Backend:
    """The device of local rank ``index``; ``use`` is auto, cpu or numpy."""
    torch = None if use == "numpy" else torch_or_none()
    if torch is None:
        return NumpyBackend()
    from krzem.run.probe.torch_backend import TorchBackend

    if use == "cpu" or not torch.accelerator.is_available():
        return TorchBackend("cpu")
    kind = torch.accelerator.current_accelerator().type
    return TorchBackend(f"{kind}:{index % torch.accelerator.device_count()}")


def main(arguments: list[str]) -> int:
    """See above."""
    folder, rank, world = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    local, seconds, use = int(arguments[3]), float(arguments[4]), arguments[5]
    begun = time.perf_counter()
    probe = RankProbe(folder, rank, world, backend_for(local, use=use), seconds)
    result = probe.run()
    result["seconds"] = time.perf_counter() - begun
    write_atomic(folder / f"rank-{rank}.json", json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
