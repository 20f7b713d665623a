"""A certificate: what was compared in a move, on what, with which floor, and what was not.

It joins the evidence of one check: bits that are equal, numbers that agree within the source's own
floor, and, where bits cannot agree, a statistical test of short runs.  Certificates of one run form
a chain, each holding the hash of the one before; a hash over its own content shows that none was
altered, and a signature with the user's own SSH key who made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError, InputError
from krzem.train.checkpoint import read_manifest
from krzem.train.durable import canonical_json, write_atomic
from krzem.witness.quantity import Kind
from krzem.witness.text import document
from krzem.witness.verdict import Verdict

SCHEMA = "krzem.certificate/1"
SIGNATURE = ".sig"
"""Ends the name of a signature's file, as ``ssh-keygen -Y sign`` names it."""
NAMESPACE = "krzem-certificate"
"""What an SSH signature is for: one made for something else does not count."""
MOST_BYTES = 20_000_000


def certify(
    verdict: Verdict,
    *,
    checkpoint: Path | None = None,
    previous: Path | None = None,
    statistical: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The certificate of ``verdict``, chained to the one in the file ``previous``.

    Raises:
        CheckpointError: the previous certificate is damaged, or the checkpoint is.
    """
    value = {
        "schema": SCHEMA,
        "passed": verdict.passed and all(bool(x["accepted"]) for x in statistical),
        "message": verdict.message,
        "model": verdict.model,
        "checkpoint": None if checkpoint is None else _checkpoint(checkpoint),
        "source": dict(verdict.source),
        "destination": dict(verdict.destination),
        "evidence": [_bit_exact(verdict), *_numeric(verdict), *_settings(verdict),
                     *({"kind": "statistical", **x} for x in statistical)],
        "not_compared": list(verdict.not_compared),
        "floor_settings": list(verdict.settings),
        "check": document(verdict),
        "previous": None if previous is None else read_certificate(previous)["sha256"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    value["sha256"] = _hash(value)
    return value


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        canonical_json({k: v for k, v in value.items() if k != "sha256"})
    ).hexdigest()


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Which checkpoint: its manifest names every file with its hash.

    Attachments such as the witness itself come later and are left out of the hash.
    """
    manifest = read_manifest(folder)
    attached = set(manifest.attachments.values())
    files = {n: f.sha256 for n, f in sorted(manifest.files.items()) if n not in attached}
    return {
        "name": folder.name,
        "step": manifest.step,
        "sample": manifest.meta.get("sample"),
        "config_sha256": manifest.config_sha256,
        "files_sha256": hashlib.sha256(canonical_json(files)).hexdigest(),
        "files": len(files),
    }


def _bit_exact(verdict: Verdict) -> dict[str, Any]:
    checks = [f for f in verdict.findings if f.signal == "checksum"]
    kinds = {
        str(k): sum(f.quantity.kind is k for f in checks) for k in (Kind.PARAMETER, Kind.MOMENT)
    }
    apart = [f.quantity.name for f in checks if f.departs]
    return {"kind": "bit-exact", "tensors": kinds, "equal": len(checks) - len(apart),
            "unequal": apart[:50]}  # fmt: skip


def _numeric(verdict: Verdict) -> list[dict[str, Any]]:
    found = []
    for dtype in verdict.dtypes:
        own = [f for f in verdict.findings if f.dtype == dtype and f.signal != "checksum"]
        worst = max((min(f.severity, 1e9) for f in own), default=0.0)
        found.append(
            {"kind": "numeric", "arithmetic": dtype, "signals": len(own),
             "depart": sum(f.departs for f in own), "worst_error_over_tolerance": worst}
        )  # fmt: skip
    return found


def _settings(verdict: Verdict) -> list[dict[str, Any]]:
    if not verdict.equal and not verdict.unequal:
        return []
    return [{"kind": "settings", "equal": list(verdict.equal), "unequal": list(verdict.unequal)}]


def write_certificate(value: Mapping[str, Any], path: Path, *, key: Path | None = None) -> None:
    """Write ``path``, and its signature beside it where an SSH ``key`` is given.

    Raises:
        InputError: ssh-keygen is missing, or does not sign with this key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    )
    if key is None:
        return
    Path(f"{path}{SIGNATURE}").unlink(missing_ok=True)
    _keygen("sign", "-f", str(key), "-n", NAMESPACE, str(path))


def _keygen(verb: str, *arguments: str, given: bytes | None = None) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise InputError("signatures need ssh-keygen (OpenSSH 8.0 or newer), which is not here")
    done = subprocess.run(
        [program, "-Y", verb, *arguments], input=given, capture_output=True, check=False,
        stdin=None if given is not None else subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise InputError(f"ssh-keygen -Y {verb}: {said[-1] if said else 'it says nothing'}")
    return done.stdout.decode(errors="replace")


def read_certificate(path: Path) -> dict[str, Any]:
    """A certificate whose content matches its own hash.

    Raises:
        CheckpointError: it cannot be read, is no certificate, or was altered.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {MOST_BYTES:,} bytes: no certificate is")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read the certificate {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no certificate of this kind ({SCHEMA})")
    if value.get("sha256") != _hash(value):
        raise CheckpointError(f"{path} was altered: its content does not match its own hash")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is known of a chain of certificates."""

    chain: tuple[Mapping[str, Any], ...]
    """Newest first, each the one before of the next."""
    complete: bool
    """Whether the chain goes back to a certificate without one before."""
    signer: str | None
    """Who signed the newest; None: nobody was asked for."""

    @property
    def passed(self) -> bool:
        """Whether every check in the chain passed."""
        return all(c["passed"] for c in self.chain)


def verify_certificate(
    path: Path,
    *,
    checkpoint: Path | None = None,
    signers: Path | None = None,
    identity: str = "",
) -> Verified:
    """Check ``path``, every certificate before it that lies in its folder, and their links.

    With a ``checkpoint`` it has to be the one that was certified.  With ``signers`` (a file of
    allowed signers, see ssh-keygen(1)) every certificate has to be signed by ``identity``.

    Raises:
        CheckpointError: altered, broken off, of another checkpoint.
        InputError: a signature is missing or is not by an allowed signer.
    """
    by_hash = {c["sha256"]: (file, c) for file, c in _others(path)}
    newest = read_certificate(path)
    chain, files = [newest], [path]
    while chain[-1]["previous"] is not None and chain[-1]["previous"] in by_hash:
        file, found = by_hash.pop(chain[-1]["previous"])
        chain.append(found)
        files.append(file)
    if checkpoint is not None and newest["checkpoint"] != _checkpoint(checkpoint):
        raise CheckpointError(f"{path} is not of {checkpoint}, or that was altered since")
    for file in files if signers is not None else ():
        signature = Path(f"{file}{SIGNATURE}")
        if not signature.is_file():
            raise InputError(f"{file} has no signature ({signature.name})")
        _keygen("verify", "-f", str(signers), "-I", identity, "-n", NAMESPACE,
                "-s", str(signature), given=file.read_bytes())  # fmt: skip
    return Verified(
        chain=tuple(chain),
        complete=chain[-1]["previous"] is None,
        signer=identity if signers is not None else None,
    )


def newest_certificate(folder: Path) -> Path | None:
    """The certificate in ``folder`` that none other there names as the one before it."""
    found = list(_certificates(folder))
    named = {c["previous"] for _, c in found}
    last = [file for file, c in found if c["sha256"] not in named]
    return last[-1] if last else None


def _others(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(file, c) for file, c in _certificates(path.parent) if file != path]


def _certificates(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every certificate of a folder by the order of its making; other files are passed over."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append((file, read_certificate(file)))
        except CheckpointError:
            continue
    return sorted(found, key=lambda pair: str(pair[1]["created"]))
