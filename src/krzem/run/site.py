"""What a site answers to a courier from another one (:mod:`krzem.run.courier`).

``python -m krzem.run.site REQUEST``: the request is JSON in base64, so that no shell on the
way reads it; the answer is a JSON object on the last line.  A checkpoint that was copied here is
verified byte by byte against its manifest before it is renamed to where checkpoints are looked for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError, RunError
from krzem.run.contract import CHECKPOINTS, METRICS
from krzem.run.launch.known import launcher_of
from krzem.run.ledger import LEDGER, Ledger
from krzem.run.parity import record
from krzem.run.pools import Pools
from krzem.run.processes import RunLock, held
from krzem.run.qualify import real_services
from krzem.run.rows import FINAL
from krzem.run.run_file import identity, read_run
from krzem.run.settings import RunSettings
from krzem.run.status import read_status
from krzem.run.stored import (
    ARRIVED,
    ARRIVING,
    arrival,
    checkpoint_name,
    last_good,
    put_in_place,
)
from krzem.run.untrusted import BadInputError, parse_object, whole, words
from krzem.train.checkpoint.store import committed
from krzem.train.durable import write_atomic

_LINES = 1 << 20
"""Bytes of metrics in one answer."""


def main(arguments: list[str] | None = None) -> int:
    """Answer one request."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        asked = parse_object(base64.b64decode(given[0], validate=True))
        verb = _VERBS[words(asked, "verb")]
        told = verb(read_run(Path(words(asked, "run_file", 4096))), asked)
    except (KrzemError, BadInputError, OSError, ValueError, KeyError, IndexError) as error:
        told = {"error": str(error) or type(error).__name__}
    print(json.dumps(told))
    return 0


def _offer(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """Whether this is the same run; where a copy of the checkpoint is to be put."""
    goal = settings.goal
    mine = {"tokens": int(goal.tokens), "sequence": goal.sequence, "batch": goal.global_batch}
    other = [f"{k}: {asked.get(k)} there, {v} here" for k, v in mine.items() if asked.get(k) != v]
    if other:
        raise RunError(f"{settings.path} is another run ({'; '.join(other)})")
    found = {"arrived": arrival(settings.folder).get("name")}
    name = asked.get("name")
    if name is None or name == found["arrived"]:
        return found
    _is_free(settings.folder)
    place = settings.folder / ARRIVING / checkpoint_name(asked)
    place.mkdir(parents=True, exist_ok=True)
    return {**found, "place": str(place)}


def _receive(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """Verify what was copied, and make it the checkpoint that the run goes on from."""
    folder, name = settings.folder, checkpoint_name(asked)
    _is_free(folder)
    put_in_place(folder, name)
    log = folder / METRICS
    size = log.stat().st_size if log.exists() else 0
    value = {"name": name, "from": words(asked, "from"), "offset": size}
    write_atomic(folder / ARRIVED, json.dumps(value).encode())
    return value


def _begin(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """Start a controller, unless one is at work."""
    folder = settings.folder
    if not held(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "controller.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "krzem", "run", str(settings.path)], env=_clean(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while process.poll() is None and not held(folder):
            time.sleep(0.05)
    return {"controlled": held(folder)}


def _look(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """How the run stands, and the lines of its metrics from a byte on."""
    folder = settings.folder
    if not (folder / LEDGER).exists():
        return {"state": "new", "controlled": held(folder), "offset": 0, "lines": []}
    controlled = held(folder)
    status = read_status(folder)
    offset = max(whole(asked, "offset"), int(arrival(folder).get("offset", 0)))
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError), (folder / METRICS).open("rb") as file:
        file.seek(offset)
        block = file.read(_LINES)
        block = block[: block.rfind(b"\n") + 1]
        lines = block.decode(errors="replace").splitlines()
        offset += len(block)
    newest = committed(folder / CHECKPOINTS)[-1:]
    return {
        "state": status.state, "controlled": controlled, "pool": status.pool, "step": status.step,
        "reason": status.reason or status.last_event, "offset": offset, "lines": lines,
        "newest": str(newest[0][1]) if newest else None,
        "witness": [{k: w[k] for k in ("subject", "choice", "reason")} for w in status.witness],
    }  # fmt: skip


def _stop(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """Have the run stopped, with or without saving; whoever asks looks whether it has."""
    folder, now = settings.folder, words(asked, "how") == "now"
    if not (folder / LEDGER).exists():
        return {"state": "new"}
    if held(folder):
        ledger = Ledger(folder)
        try:
            ledger.request_stop("now" if now else "save")
        finally:
            ledger.close()
    elif read_status(folder).state not in FINAL:
        how = ["--now"] if now else []
        subprocess.run([sys.executable, "-m", "krzem", "stop", *how, str(settings.path)],
                       env=_clean(), check=False, capture_output=True)  # fmt: skip
    return {"state": str(read_status(folder).state), "controlled": held(folder)}


def _record(settings: RunSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """Before the run leaves this site: the witness of its newest checkpoint, on its last pool."""
    types = asked.get("types")
    with RunLock(settings.folder):
        ledger = Ledger(settings.folder)
        try:
            row = ledger.begin(settings.name, identity(settings), settings.sha256)
            good, pools = last_good(ledger), Pools(settings, real_services(), ledger)
            if row.pool is None or good is None:
                return {"recorded": False, "message": "nothing was trained here"}
            pool = settings.pool(row.pool)
            told = record(
                settings, pool, launcher_of(pool), pools.fenced(), checkpoint=good.folder,
                layouts=[pools.layout(pool)], also=types if isinstance(types, list) else (),
            )  # fmt: skip
            ledger.end()
        finally:
            ledger.close()
    done = told is None or told.recorded
    return {"recorded": done, "message": told.message if told else "it had one"}


def _clean() -> dict[str, str]:
    """The environment without what an attempt elsewhere was told."""
    return {k: v for k, v in os.environ.items() if not k.startswith("KRZEM_")}


_VERBS: Mapping[str, Callable[[RunSettings, dict[str, Any]], dict[str, Any]]] = {
    "offer": _offer, "receive": _receive, "begin": _begin, "look": _look, "stop": _stop,
    "record": _record,
}  # fmt: skip


def _is_free(folder: Path) -> None:
    if held(folder):
        raise RunError(f"a controller is at work on {folder}: nothing is taken in meanwhile")


if __name__ == "__main__":
    sys.exit(main())
