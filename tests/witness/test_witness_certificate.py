"""Certificates: joined evidence, a chain of hashes, signatures; runs compared by their losses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from krzem.errors import CheckpointError, DataError, InputError, KrzemError
from krzem.witness.certificate import (
    certify,
    newest_certificate,
    read_certificate,
    verify_certificate,
    write_certificate,
)
from krzem.witness.command import witness_command
from krzem.witness.quantity import Kind, Quantity
from krzem.witness.statistical import compare, last_loss
from krzem.witness.verdict import Finding, Verdict, first_departure


def finding(kind: Kind, signal: str, error: float, dtype: str = "float32") -> Finding:
    quantity = Quantity(kind=kind, name="layers.0.mlp.up_proj.weight")
    return Finding(quantity=quantity, signal=signal, error=error, floor=0.0, tolerance=0.1,
                   dtype=dtype)  # fmt: skip


def verdict(error: float = 0.01) -> Verdict:
    findings = (
        finding(Kind.PARAMETER, "checksum", 0.0),
        finding(Kind.MOMENT, "checksum", 0.0),
        finding(Kind.GRADIENT, "norm", error),
        finding(Kind.GRADIENT, "norm", 0.02, "bfloat16"),
    )
    return Verdict(
        model="llama", findings=findings, first=first_departure(findings),
        dtypes=("float32", "bfloat16"), not_compared=("the settings of the run",),
        equal=("data.order",),
    )  # fmt: skip


def chain(folder: Path, *errors: float, key: Path | None = None) -> list[Path]:
    files = []
    for number, error in enumerate(errors):
        value = certify(verdict(error), previous=newest_certificate(folder))
        files.append(folder / f"step-{number}.json")
        write_certificate(value, files[-1], key=key)
    return files


def test_a_certificate_says_what_was_compared_and_what_was_not(tmp_path: Path) -> None:
    (file,) = chain(tmp_path, 0.01)
    found = read_certificate(file)
    kinds = {e["kind"]: e for e in found["evidence"]}
    assert kinds["bit-exact"]["equal"] == 2
    assert kinds["settings"]["equal"] == ["data.order"]
    assert [e["arithmetic"] for e in found["evidence"] if e["kind"] == "numeric"] == [
        "float32", "bfloat16",
    ]  # fmt: skip
    assert found["not_compared"] == ["the settings of the run"]
    assert found["passed"]


def test_certificates_form_a_chain_that_shows_any_change(tmp_path: Path) -> None:
    files = chain(tmp_path, 0.01, 0.02, 0.03)
    assert newest_certificate(tmp_path) == files[-1]
    found = verify_certificate(files[-1])
    assert found.complete
    assert found.passed
    assert len(found.chain) == 3
    files[1].write_text(files[1].read_text().replace('"passed": true', '"passed": false'))
    with pytest.raises(CheckpointError, match="was altered"):
        read_certificate(files[1])
    assert not verify_certificate(files[-1]).complete, "its link is gone"


def test_a_failed_check_in_the_chain_is_told(tmp_path: Path) -> None:
    files = chain(tmp_path, 0.01, 0.5, 0.01)
    assert not verify_certificate(files[-1]).passed
    told = invoke("verify", str(files[-1]))
    assert told.exit_code == 1
    assert "FAIL" in told.stdout
    assert "not compared: the settings of the run" in told.stdout
    assert json.loads(invoke("verify", str(files[0]), "--json").stdout)["passed"]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_signatures_are_by_whom_they_should_be(tmp_path: Path) -> None:
    keys = []
    for name in ("mine", "other"):
        keys.append(tmp_path / name)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f",
                        str(keys[-1])], check=True)  # fmt: skip
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"me@site {keys[0].with_suffix('.pub').read_text()}")
    signed = chain(tmp_path / "a", 0.01, 0.02, key=keys[0])
    assert verify_certificate(signed[-1], signers=signers, identity="me@site").signer == "me@site"
    other = chain(tmp_path / "b", 0.01, key=keys[1])
    with pytest.raises(InputError, match="ssh-keygen -Y verify"):
        verify_certificate(other[0], signers=signers, identity="me@site")
    plain = chain(tmp_path / "c", 0.01)
    with pytest.raises(InputError, match="has no signature"):
        verify_certificate(plain[0], signers=signers, identity="me@site")


def invoke(*arguments: str) -> Result:
    command: Any = witness_command
    return CliRunner().invoke(command, arguments)


def metrics(path: Path, losses: list[float]) -> Path:
    path.write_text("".join(
        json.dumps({"step": n + 1, "loss": x}) + "\n" for n, x in enumerate(losses)
    ) + '{"step": 7, "lo')  # fmt: skip
    return path


def test_runs_are_accepted_rejected_or_too_few(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ends = {"a": 3.0, "same": 3.0, "off": 3.1}
    files = {
        (name, seed): metrics(tmp_path / f"{name}{seed}", list(end + draw.normal(0, 0.003, 25)))
        for name, end in ends.items()
        for seed in range(4)
    }

    def asked(name: str, seeds: int, *more: str) -> Result:
        on_a = [w for s in range(seeds) for w in ("--on-a", str(files["a", s]))]
        on_b = [w for s in range(2) for w in ("--on-b", str(files[name, s]))]
        return invoke("runs", *on_a, *on_b, *more)

    assert asked("same", 4).exit_code == 0
    rejected = asked("off", 4, "--json")
    assert rejected.exit_code == 1
    assert json.loads(rejected.stdout)["difference"] == pytest.approx(0.033, abs=0.005)
    few = asked("same", 3, "--shift", "0.00001")
    assert few.exit_code == 3
    assert "runs on A and half as many on B would tell" in few.stdout
    assert isinstance(asked("same", 2).exception, KrzemError)
    with pytest.raises(DataError, match="20 are asked for"):
        last_loss(metrics(tmp_path / "short", [1.0] * 5))


def test_false_alarms_and_power_are_those_that_are_stated() -> None:
    draw = np.random.default_rng(1)
    alarms = found = 0
    stated = []
    for _ in range(120):
        a, b = list(draw.normal(3.0, 0.02, 8)), draw.normal(0.0, 0.02, 4)
        alarms += compare(a, list(3.0 + b)).rejected
        told = compare(a, list(3.03 + b))
        found += told.rejected
        stated.append(told.power)
    assert alarms <= 13, "5 % of 120, and three sigmas"
    assert found / 120 == pytest.approx(np.mean(stated), abs=0.15)


@settings(max_examples=20)
@given(st.lists(st.floats(1.0, 5.0), min_size=3, max_size=6), st.floats(0.1, 10.0))
def test_the_test_has_no_unit(losses: list[float], scale: float) -> None:
    assume(max(losses) - min(losses) > 0.01)
    one = compare(losses, losses[:2])
    two = compare([scale * x for x in losses], [scale * x for x in losses[:2]])
    assert two.p_value == pytest.approx(one.p_value, abs=1e-6)
    assert two.power == pytest.approx(one.power, abs=1e-4)
