"""The witness inside a move: recorded where the run comes from, checked where it is to go on.

Both are jobs under the launcher of the pool, on all its ranks, in the layout planned for it and in
its own micro-batch.  The batches are the very samples that come next, so the check also sees that
the data are the same; ranks beyond them compute them again.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.hardware import CPU
from krzem.run import foreign
from krzem.run.attempts import job_name, placed, surroundings
from krzem.run.contract import CHECKPOINTS, ENV_LAYOUT, ENV_PRECISION, ENV_RUN_DIR, METRICS
from krzem.run.launch.job import Job, JobLauncher, read_json
from krzem.run.launch.words import shell_words
from krzem.run.pool_settings import SITE, Pool
from krzem.run.settings import RunSettings
from krzem.run.side_job import Ended, run_side_job
from krzem.run.trainer import is_own
from krzem.run.verdict import Agreement, Recorded, Verdict
from krzem.train.checkpoint.manifest import Manifest, read_manifest
from krzem.train.checkpoint.store import checkpoints
from krzem.train.config import TRAINABLE
from krzem.witness.overlap import read_steps, start_of_overlap
from krzem.witness.witness import ATTACHMENT

PARITY = "parity"
VERDICT, PAGE, OVERLAP = "verdict.json", "parity.html", "overlap.json"
CERTIFICATES = "certificates"
"""Folder of a run in which the certificates of its moves lie, each with the hash of the last."""
_TRIES = 2
"""A check that breaks off says nothing about the numbers: it is tried again once."""


def record(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layouts: Sequence[str | None],
    also: Sequence[str] = (),
) -> Recorded | None:
    """A :class:`~krzem.run.verdict.WitnessRecord`: in float32 and in the arithmetic of every pool
    to come, and in ``also``.  A few sequences are enough for any layout.

    Raises LaunchError where the launcher cannot say what became of the job.
    """
    manifest = read_manifest(checkpoint)
    why = unproven(settings, pool, manifest)
    if why is None and not is_own(settings, pool):
        return _record_foreign(settings, pool, launcher, token, checkpoint)
    if why is not None or ATTACHMENT in manifest.attachments:
        return None if why is None else Recorded(recorded=False, message=why)
    if pool.launcher == SITE:
        return Recorded(recorded=False, message=f"none was recorded at the site of {pool.name}")
    types = list(dict.fromkeys([*_arithmetics(settings, pool), *also]))
    w = settings.witness
    words = ["record", checkpoint, "--sequences", w.sequences, "--batches", w.batches,
             *_data(settings, pool, manifest, first=True),
             *(x for dtype in types for x in ("--also", dtype))]  # fmt: skip
    job = _job(settings, pool, token, words, layouts[0])
    ended = run_side_job(settings, job, launcher, seconds=w.limit_seconds, queued=True)
    done = ended.code == 0 and ATTACHMENT in read_manifest(checkpoint).attachments
    why = f"no witness of {checkpoint.name} could be recorded on {pool.name}: {ended.said}"
    told = (
        f"of {w.sequences * w.batches} samples from {manifest.meta.get('sample', 0):,} on, in "
        f"{' and '.join(('float32', *types))}"
    )
    return Recorded(recorded=done, message=told if done else why)


def check(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layout: str | None,
) -> Verdict:
    """A :class:`~krzem.run.verdict.WitnessCheck`.

    Raises LaunchError where the launcher cannot say what became of the job.
    """
    manifest = read_manifest(checkpoint)
    why, own = unproven(settings, pool, manifest), is_own(settings, pool)
    file = foreign.witness_file(settings, checkpoint)
    if why is None and not (ATTACHMENT in manifest.attachments if own else file.exists()):
        why = f"{checkpoint.name} has no witness"
    if why is not None:
        return Verdict(
            agreement=Agreement.NOT_CHECKED, message=f"{why}: it is not compared on {pool.name}"
        )
    said = ""
    for _ in range(_TRIES):
        job = _check_job(settings, pool, token, manifest, checkpoint, layout)
        ended = run_side_job(settings, job, launcher, seconds=settings.witness.limit_seconds)
        if not own and settings.witness.check is not None:
            if ended.code in (foreign.AGREES, foreign.DEPARTS):
                return _told(ended)
            said = ended.said
            continue
        found = read_json(job.folder / VERDICT)
        if found is not None:
            verdict = _verdict(found, job.folder)
            if verdict.agreement is not Agreement.PASSED:
                return verdict
            return _with_overlap(settings, pool, launcher, token, layout, verdict)
        said = ended.said
    return Verdict(
        agreement=Agreement.FAILED,
        message=f"{checkpoint.name} could not be checked on {pool.name}: {said}",
    )


def _record_foreign(
    settings: RunSettings, pool: Pool, launcher: JobLauncher, token: int, checkpoint: Path
) -> Recorded | None:
    """As the run file says; None where the checkpoint has a witness."""
    file = foreign.witness_file(settings, checkpoint)
    if file.exists():
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    types = ("float32", *_arithmetics(settings, pool))
    folder = _folder(settings, pool, token)
    words = foreign.record_command(settings, pool, token, checkpoint, folder, types)
    job = _shell_job(settings, pool, token, folder, "record", words)
    ended = run_side_job(
        settings, job, launcher, seconds=settings.witness.limit_seconds, queued=True
    )
    done = ended.code == 0 and file.exists()
    why = f"no witness of {checkpoint.name} could be recorded on {pool.name}: {ended.said}"
    return Recorded(recorded=done, message=foreign.way(settings, types) if done else why)


def _told(ended: Ended) -> Verdict:
    """What a user's own check says: its exit code, and its last line."""
    passed = ended.code == foreign.AGREES
    last = ended.said.splitlines()[-1] if ended.said else "it says nothing"
    return Verdict(
        agreement=Agreement.PASSED if passed else Agreement.FAILED,
        message=f"the run file's own check says: {last}",
        evidence={"said": ended.said},
    )


def _with_overlap(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    layout: str | None,
    verdict: Verdict,
) -> Verdict:
    """``verdict`` with the steps before trained again here, where bits can agree at all."""
    start = _overlap_from(settings, pool)
    if start is None:
        return verdict
    words = ["overlap", start, "--run-file", settings.path, "--metrics", settings.folder / METRICS,
             "--steps", settings.witness.overlap]  # fmt: skip
    precision = (pool.precision or settings.goal.precision).value
    variables = {ENV_PRECISION: precision} | ({ENV_LAYOUT: layout} if layout else {})
    job = _job(settings, pool, token, words, None, suffix="-overlap", variables=variables)
    ended = run_side_job(settings, job, launcher, seconds=settings.witness.limit_seconds)
    found = read_json(job.folder / OVERLAP)
    if found is None:
        message = f"the steps after {start.name} could not be trained again: {ended.said}"
        return replace(verdict, agreement=Agreement.FAILED, message=message)
    evidence = {**verdict.evidence, "overlap": found}
    if not found["passed"]:
        return replace(verdict, agreement=Agreement.FAILED, message=str(found["message"]),
                       departs=("overlap",), evidence=evidence)  # fmt: skip
    return replace(verdict, message=f"{verdict.message}; {found['message']}", evidence=evidence)


def _overlap_from(settings: RunSettings, pool: Pool) -> Path | None:
    """The checkpoint whose next steps are recorded; None where nothing can be trained again.

    Where an earlier pool computes in another type every number is another: `krzem witness runs` is
    for that.
    """
    before = settings.pools[: [p.name for p in settings.pools].index(pool.name)]
    other = any(_dtype(settings, p) != _dtype(settings, pool) for p in before)
    if not settings.witness.overlap or other or not is_own(settings, pool):
        return None
    return start_of_overlap(
        checkpoints(settings.folder / CHECKPOINTS), read_steps(settings.folder / METRICS),
        settings.witness.overlap,
    )  # fmt: skip


def unproven(settings: RunSettings, pool: Pool, manifest: Manifest | None = None) -> str | None:
    """Why nothing can be proved on ``pool``, in words; None where it can.

    Without a checkpoint as far as the run file tells, so that it can be said before the run starts.
    """
    if not settings.witness.enabled:
        return "the run file says that nothing is compared (witness.enabled = false)"
    if not is_own(settings, pool):
        if foreign.is_provable(settings):
            return None
        return (
            f"the trainer of {pool.name} is not krzem's, and the run file gives no witness.export"
        )
    if manifest is not None and not _is_buildable(manifest):
        return "krzem's trainer does not build this model"
    return None


def announced(settings: RunSettings) -> dict[str, str]:
    """What a move to each pool but the first would be proved by, for ``--dry-run``."""
    gate = settings.gates.witness
    found = {}
    for pool in settings.pools[1:]:
        why = unproven(settings, pool)
        if pool.launcher == SITE:
            found[pool.name] = f"a move to {pool.name} is proved at its site, by the gates there"
        elif gate is None:
            found[pool.name] = f"a move to {pool.name} is not proved: gates.witness = false"
        elif why is not None:
            found[pool.name] = (
                f"a move to {pool.name} would not be proved: {why}; gates.witness.not_checked = "
                f'"{gate.not_checked}"'
            )
        else:
            types = list(dict.fromkeys(("float32", _dtype(settings, pool))))
            w = settings.witness
            how = (
                f"a witness of {w.batches} steps of {w.sequences} sequences in "
                f"{' and '.join(types)}"
                if is_own(settings, pool)
                else foreign.way(settings, types)
            )
            found[pool.name] = f"a move to {pool.name} is proved by {how}"
    return found


def _check_job(
    settings: RunSettings,
    pool: Pool,
    token: int,
    manifest: Manifest,
    checkpoint: Path,
    layout: str | None,
) -> Job:
    folder = _folder(settings, pool, token)
    types = dict.fromkeys(("float32", _dtype(settings, pool)))
    certificate = settings.folder / CERTIFICATES / f"{checkpoint.name}-{pool.name}.json"
    more = [*(x for name in types for x in ("--dtype", name)), "--certificate", certificate]
    if all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
        more += ["--html", folder / PAGE]
    if not is_own(settings, pool):
        given = foreign.check_command(
            settings, pool, token, checkpoint, folder, [_plain(word) for word in more]
        )
        return _shell_job(settings, pool, token, folder, "check", given)
    words = ["check", checkpoint, "--out", folder / VERDICT, *more,
             *_data(settings, pool, manifest, first=False)]  # fmt: skip
    return _job(settings, pool, token, words, layout)


def _verdict(found: dict[str, Any], folder: Path) -> Verdict:
    kept = {k: found[k] for k in ("first_departure", "signals_judged", "departures_found",
                                  "whole_model", "layers", "source", "destination", "dtypes",
                                  "notes", "not_compared", "settings_unequal",
                                  "settings_equal")}  # fmt: skip
    page = folder / PAGE
    return Verdict(
        agreement=Agreement.PASSED if found["passed"] else Agreement.FAILED,
        message=str(found["message"]),
        departs=tuple(found["departs"]),
        evidence={
            **kept,
            "file": str(folder / VERDICT),
            "page": str(page) if page.exists() else None,
        },
    )


def _is_buildable(manifest: Manifest) -> bool:
    return (manifest.config or {}).get("model_type") in TRAINABLE


def _arithmetics(settings: RunSettings, pool: Pool) -> list[str]:
    """Beside float32: those of the pools that may go on, and what an accelerator without true
    float32 is judged by."""
    after = settings.after(pool.name)
    found = [_dtype(settings, other) for other in after]
    found += ["tf32" for other in after if other.accelerator != CPU]
    return [name for name in dict.fromkeys(found) if name != "float32"]


def _dtype(settings: RunSettings, pool: Pool) -> str:
    precision = pool.precision or settings.goal.precision
    return "float32" if precision == "fp32" else "bfloat16"


def _data(settings: RunSettings, pool: Pool, manifest: Manifest, *, first: bool) -> list[object]:
    """The run's own constants and samples; another trainer's are not known."""
    if not is_own(settings, pool):
        return []
    given: list[object] = ["--run-file", settings.path]
    return [*given, "--first", int(manifest.meta.get("sample", 0))] if first else given


def _folder(settings: RunSettings, pool: Pool, token: int, suffix: str = "") -> Path:
    return settings.folder / PARITY / f"{pool.name}-{token}{suffix}"


def _job(
    settings: RunSettings,
    pool: Pool,
    token: int,
    words: Sequence[object],
    layout: str | None,
    *,
    suffix: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Job:
    folder = _folder(settings, pool, token, suffix)
    if suffix:
        words = [*words, "--folder", folder, "--out", folder / OVERLAP]
    else:
        words = [*words, "--device", "cpu" if pool.accelerator == CPU else "auto"]
    if layout:
        words = [*words, "--layout", layout]
    given = shell_words(
        ["{torchrun}", "-m", "krzem", "witness", *map(_plain, words)], pool, {"token": token}
    )
    return _shell_job(settings, pool, token, folder, str(words[0]), given, variables)


def _plain(word: object) -> str:
    """A word in which braces are no placeholders."""
    return str(word).replace("{", "{{").replace("}", "}}")


def _shell_job(
    settings: RunSettings,
    pool: Pool,
    token: int,
    folder: Path,
    what: str,
    command: Sequence[str],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Job:
    shutil.rmtree(folder, ignore_errors=True)
    return Job(
        name=job_name(settings, f"{what}-{token}"),
        folder=folder,
        run_dir=settings.folder,
        token=token,
        command=command,
        variables={ENV_RUN_DIR: str(settings.folder), **variables, **surroundings(pool)},
        environment=pool.environment,
        **placed(pool),
    )
