"""Witness files: small, checked, read back whole; bad input is one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.witness.models import batches, subject

from krzem.errors import CheckpointError, DataError, InputError
from krzem.witness.batches import (
    WitnessBatch,
    batches_from,
    batches_of,
    check_batches,
    tokens_of_file,
)
from krzem.witness.checking import check
from krzem.witness.judge import Tolerance, explained
from krzem.witness.measure import measure
from krzem.witness.positions import BUDGET, FEWEST, positions, samples_per_tensor
from krzem.witness.quantity import STATE_KINDS, Kind, Quantity, depth, errors, layer_of
from krzem.witness.subject import Setting
from krzem.witness.witness import MOST_BYTES, Witness, from_bytes, read_witness, to_bytes

Recorded = dict[tuple[str, str], tuple[Witness, Any]]


def test_a_witness_reads_back_as_it_was(recorded: Recorded) -> None:
    witness, there = recorded["deepseek_v3", "float32"]
    again = from_bytes(to_bytes(witness), "here")
    assert to_bytes(again) == to_bytes(witness)
    assert check(again, there).passed
    assert again.batches[0].sha256 == witness.batches[0].sha256


def test_inf_and_nan_survive_the_file(recorded: Recorded) -> None:
    witness, _ = recorded["llama", "float32"]
    strange = Quantity(
        kind=Kind.LOSS, name="odd", batch=0, stats={"value": float("nan")},
        samples=np.array([np.inf, np.nan], np.float32),
    )  # fmt: skip
    found = from_bytes(to_bytes(replace(witness, state={strange.key: strange})), "here")
    (q,) = found.state.values()
    assert np.isnan(q.stats["value"])
    assert np.isinf(q.samples[0])


@pytest.mark.parametrize("damage", ["cut", "flip", "format", "other", "field"])
def test_a_damaged_file_is_one_sentence(damage: str, recorded: Recorded) -> None:
    content = to_bytes(recorded["llama", "float32"][0])
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content = content.replace(b'"parameters":', b'"parameterS":')
    elif damage == "format":
        content = content.replace(b"krzem.witness.record/2", b"krzem.witness.record/9")
    elif damage == "other":
        content = b'{"schema": "something else"}'
    else:
        content = json.dumps({"format": "krzem.witness.record/2"}).encode()
    with pytest.raises(CheckpointError) as error:
        from_bytes(content, "x.json")
    assert "x.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_witness_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the witness"):
        read_witness(tmp_path / "none.json")


def test_another_model_or_type_is_refused(recorded: Recorded) -> None:
    witness, there = recorded["llama", "float32"]
    with pytest.raises(CheckpointError, match="another configuration"):
        check(witness, subject("qwen3"))
    changed = replace(witness, config={**witness.config, "rms_norm_eps": 1e-6})
    with pytest.raises(CheckpointError, match="rms_norm_eps: 1e-06 in the witness, 1e-05 here"):
        check(changed, there)
    with pytest.raises(CheckpointError, match="float32 and not in bfloat16: record it with --also"):
        check(witness, subject("llama", "bfloat16"))
    with pytest.raises(CheckpointError, match="not in bfloat16"):
        check(witness, there, dtypes=("float32", "bfloat16"))
    with pytest.raises(CheckpointError, match="modules have other names"):
        check(replace(witness, kind="transformers"), there)


def test_a_declared_type_is_judged_by_its_own_floor() -> None:
    from tests.witness.models import QUICK

    from krzem.witness.recording import record

    witness = record(subject("llama"), batches(), settings=QUICK, also=("bfloat16",))
    assert check(witness, subject("llama", "bfloat16")).dtypes == ("bfloat16",)
    both = check(witness, subject("llama"))
    assert both.passed
    assert both.dtypes == ("float32", "bfloat16")
    floors = [witness.floors[t]["activation|norm|0"]["samples"] for t in both.dtypes]
    assert floors[1] > 100 * floors[0] > 0, "each arithmetic has its own reading and floor"


def test_a_device_whose_float32_is_tf32_has_a_floor_of_its_own() -> None:
    from tests.witness.models import QUICK
    from tests.witness.plants import rope_base

    from krzem.train.device import has_float32
    from krzem.witness.measure import narrow_products
    from krzem.witness.recording import record

    there = subject("llama")
    witness = record(there, batches(), settings=QUICK, also=("tf32",))
    assert set(witness.readings) == {"float32"}
    assert has_float32(torch.device("cpu"))
    with narrow_products():
        assert not has_float32(torch.device("cpu"))
        assert not check(witness, there).passed, "declared as float32 it departs"
        assert check(witness, there, dtypes=("tf32",)).passed
        with rope_base(there):
            assert not check(witness, there, dtypes=("tf32",)).passed


class Rows:
    """An order of samples whose tokens begin with their index."""

    def __init__(self, shift: int = 0, length: int = 24) -> None:
        self.shift, self.length = shift, length

    def batch(self, start: int, count: int) -> np.ndarray:
        rows = np.arange(start, start + count)[:, None] * 7 + np.arange(self.length + 1)[None]
        return (rows + self.shift) % 96


def test_data_at_hand_has_to_hold_the_recorded_tokens(recorded: Recorded) -> None:
    from tests.witness.models import QUICK

    from krzem.witness.recording import record

    _, there = recorded["llama", "float32"]
    witness = record(there, batches_from(Rows(), first=40, batches=1), settings=QUICK[:1])
    assert witness.batches[0].first_sample == 40
    assert check(witness, there, source=Rows()).passed
    with pytest.raises(DataError, match="samples 40 to 43 hold other tokens"):
        check(witness, there, source=Rows(shift=1))
    with pytest.raises(DataError, match="sequence length differs"):
        check(witness, there, source=Rows(length=12))
    with pytest.raises(DataError, match="does not say which samples"):
        check(recorded["llama", "float32"][0], there, source=Rows())


def test_batches_that_cannot_be_used(tmp_path: Path, recorded: Recorded) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        check_batches(())
    big = WitnessBatch(tokens=np.zeros((1, 3_000_000), np.int64))
    with pytest.raises(DataError, match="at most 2,000,000"):
        check_batches((big,))
    with pytest.raises(DataError, match="there are none"):
        batches_of(np.empty(0, np.int64), length=4)
    file = tmp_path / "tokens.txt"
    file.write_text("1 2 3 96")
    with pytest.raises(DataError, match="vocabulary of 96"):
        tokens_of_file(file, 96)
    file.write_text("one two")
    with pytest.raises(DataError, match="cannot be read as token ids"):
        tokens_of_file(file, 96)
    with pytest.raises(InputError, match="above 0"):
        Tolerance(loss=0)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 60), st.text(max_size=5)
)
def test_positions_lie_inside_and_depend_on_name_and_shape_alone(
    shape: list[int], samples: int, name: str
) -> None:
    found = positions(name, tuple(shape), samples)
    assert (found >= 0).all()
    assert (found < np.array(shape)).all()
    assert len({tuple(p) for p in found}) == len(found)
    assert np.array_equal(found, positions(name, tuple(shape), samples))
    if len(shape) == 3:
        assert set(found[:, 0]) == set(range(shape[0]))  # every expert


def test_samples_stay_within_the_budget() -> None:
    assert samples_per_tensor(10) * 10 <= BUDGET
    assert samples_per_tensor(100_000) * 100_000 <= BUDGET
    assert samples_per_tensor(10**9) == FEWEST


def test_the_largest_model_fits_in_fifty_megabytes(recorded: Recorded) -> None:
    """Names, shapes and floors of 1.6 T parameters, with random numbers in them."""
    witness, _ = recorded["deepseek_v3", "float32"]
    random = np.random.default_rng(0)
    layers, experts, batch_count = 61, 384, 2
    shapes = {
        f"layers.{i}.self_attn.part_{j}.weight": (7168, 2048)
        for i in range(layers)
        for j in range(24)
    }
    shapes |= {f"layers.{i}.mlp.experts.gate_up_proj": (experts, 2, 3072, 7168) for i in range(61)}
    shapes |= {f"layers.{i}.mlp.experts.down_proj": (experts, 7168, 3072) for i in range(61)}
    each = samples_per_tensor(len(shapes))
    stats = {"mean": -0.0123456789, "rms": 1.23456789e-2, "absmax": 0.1, "zero": 0.0, "inf": 0.0,
             "nan": 0.0}  # fmt: skip
    found = []
    for name, shape in shapes.items():
        count = len(positions(name, shape, each))
        for kind, batch, of in ((Kind.PARAMETER, None, ""), (Kind.UPDATE, None, ""),
                            (Kind.MOMENT, None, ":exp_avg"), (Kind.MOMENT, None, ":exp_avg_sq"),
                            (Kind.STEP, None, ""),
                            *((Kind.GRADIENT, b, "") for b in range(batch_count))):  # fmt: skip
            values = random.normal(size=count).astype(np.float32)
            found.append(
                Quantity(kind=kind, name=f"{name}{of}", batch=batch,
                         stats={"norm": 1.2345678901234567}, samples=values)
            )  # fmt: skip
    for i in range(layers):
        for site in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "block"):
            for kind in (Kind.ACTIVATION, Kind.ACTIVATION_GRADIENT):
                for b in range(batch_count):
                    values = random.normal(size=each).astype(np.float32)
                    found.append(
                        Quantity(kind=kind, name=f"layers.{i}.{site}", batch=b, order=9,
                                 stats=stats, samples=values)
                    )  # fmt: skip
        found.append(
            Quantity(kind=Kind.LOAD, name=f"layers.{i}.mlp.gate", batch=0,
                     samples=np.ones(experts, np.float32))
        )  # fmt: skip
    both = ("float32", "bfloat16")
    spread = dict.fromkeys(("samples", "far", "norm", "mean", "rms", "absmax"), 1.23456e-5)
    floors = {q.key: spread for q in found if q.kind not in STATE_KINDS}
    tokens = tuple(WitnessBatch(tokens=np.ones((4, 4097), np.int64)) for _ in range(batch_count))
    large = replace(
        witness,
        state={q.key: q for q in found if q.kind in STATE_KINDS},
        readings={t: {q.key: q for q in found if q.kind not in STATE_KINDS} for t in both},
        floors=dict.fromkeys(both, floors),
        batches=tokens,
    )
    assert len(to_bytes(large)) < MOST_BYTES


def test_layers_are_told_from_names() -> None:
    names = ["embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "layers.10.self_attn",
             "model.norm.weight", "lm_head.weight", "mtp.0.block.mlp"]  # fmt: skip
    layers = [layer_of(n) for n in names]
    assert layers == ["embed_tokens", "layers.0", "layers.10", "norm", "lm_head", "mtp.0"]
    assert sorted(layers, key=depth) == layers


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_errors_have_no_unit(values: list[float], scale: float) -> None:
    a = np.array(values, np.float32) + 1
    b = a * np.float32(1.01)
    one = Quantity(kind=Kind.GRADIENT, name="x", stats={"norm": 1.0}, samples=a)
    two = Quantity(kind=Kind.GRADIENT, name="x", stats={"norm": 1.01}, samples=b)
    grown = [replace(q, samples=q.samples * np.float32(scale)) for q in (one, two)]
    assert errors(one, one, "float32") == dict.fromkeys(errors(one, one, "float32"), 0.0)
    before, after = errors(one, two, "float32"), errors(*grown, "float32")
    assert after["samples"] == pytest.approx(before["samples"], rel=1e-3, abs=1e-6)


def test_tally_of_parts_is_the_tally_of_the_whole() -> None:
    from krzem.witness.tally import Tally

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(5))
    x[0, 0], x[5, 4] = torch.nan, torch.inf
    at = positions("x", (6, 5), 12)
    whole = Tally(positions=at)
    whole.add(x)
    whole.sample(x, (slice(0, 6), slice(0, 5)))
    parts = [Tally(positions=at) for _ in range(3)]
    for i, tally in enumerate(parts):
        rows = slice(2 * i, 2 * i + 2)
        tally.add(x[rows])
        tally.sample(x[rows], (rows, slice(0, 5)))
    for tally in parts[1:]:
        parts[0].merge(tally)
    assert parts[0].activation() == pytest.approx(whole.activation(), rel=1e-5, abs=1e-6)
    assert np.array_equal(parts[0].samples(), whole.samples(), equal_nan=True)


@pytest.mark.parametrize("size", [1.0, 1e-21])
def test_norms_do_not_depend_on_how_a_tensor_is_cut(size: float) -> None:
    """Second moments of experts: of one sign, over many sizes, and far below one."""
    from krzem.witness.tally import Tally

    made = torch.Generator().manual_seed(0)
    x = torch.randn(8, 256, 128, generator=made) * torch.randn(8, 1, 128, generator=made).exp()
    x = size * x**2
    exact = float(torch.linalg.vector_norm(x.double()))
    for parts in (1, 2, 8):
        tally = Tally(positions=positions("x", tuple(x.shape), 4))
        for part in x.chunk(parts):
            tally.add(part)
        assert tally.tensor()["norm"] == pytest.approx(exact, rel=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 2**31), st.data())
def test_a_checksum_is_the_same_however_a_tensor_is_cut_and_sees_every_bit(
    shape: list[int], seed: int, data: st.DataObject
) -> None:
    from krzem.witness.tally import checksum

    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    whole = checksum(x, tuple(shape), tuple(slice(0, n) for n in shape))
    axis = data.draw(st.integers(0, len(shape) - 1))
    cut = data.draw(st.integers(0, shape[axis]))
    parts = 0
    for start, stop in ((0, cut), (cut, shape[axis])):
        region = tuple(
            slice(start, stop) if a == axis else slice(0, n) for a, n in enumerate(shape)
        )
        parts += checksum(x[region], tuple(shape), region)
    assert parts % 2**64 == whole
    place = data.draw(st.integers(0, x.numel() - 1))
    bit = data.draw(st.integers(0, 22))
    x.view(-1).view(torch.int32)[place] ^= 1 << bit
    assert checksum(x, tuple(shape), tuple(slice(0, n) for n in shape)) != whole


def test_many_tokens_are_kept_as_positions(recorded: Recorded) -> None:
    from krzem.witness.batches import Positions, found_again, kept

    source = Rows(length=9000)
    many = batches_from(source, first=40, sequences=4, batches=2)
    positions = kept(many)
    assert all(isinstance(p, Positions) for p in positions)
    assert not any(isinstance(b, Positions) for b in kept(batches())), "few are kept"
    witness = replace(recorded["llama", "float32"][0], batches=positions)
    again = from_bytes(to_bytes(witness), "here")
    assert again.batches == positions
    with pytest.raises(DataError, match="positions of its tokens"):
        found_again(again.batches, None)
    assert np.array_equal(found_again(again.batches, source)[1].tokens, many[1].tokens)
    with pytest.raises(DataError, match="other tokens"):
        found_again(again.batches, Rows(shift=1, length=9000))


def test_settings_of_the_run_have_to_be_equal(recorded: Recorded) -> None:
    witness, there = recorded["llama", "float32"]
    settings = {"data.tokenizer": "abc", "optimizer.rate": 3e-4, "schedule.warmup": 0}
    stated = from_bytes(to_bytes(replace(witness, run={"settings": settings})), "here")
    same = check(stated, there, settings=settings)
    assert same.passed
    assert set(same.equal) == set(settings)
    other = check(stated, there, settings={**settings, "data.tokenizer": "abd"})
    assert not other.passed
    assert "data.tokenizer is 'abd' here and was 'abc' at the source" in other.message


def test_a_model_that_ignores_documents_is_refused_where_it_is_recorded() -> None:
    from tests.witness.faults import no_documents
    from tests.witness.models import with_documents

    from krzem.witness.recording import record

    there = subject("llama")
    given = with_documents(batches())
    assert record(there, given, settings=()).batches[0].documents is not None
    with no_documents(there), pytest.raises(DataError, match="ignores the mask"):
        record(there, given, settings=())


@given(st.integers(1, 4000), st.floats(0, 0.1))
def test_the_share_of_far_samples_is_a_quantile_of_counts(samples: int, rate: float) -> None:
    from scipy.stats import poisson

    from krzem.witness.judge import rare

    count = round(rare(samples, rate) * samples)
    assert 0 <= count <= samples
    if count < samples:
        assert poisson.sf(count, samples * rate) <= 3e-6
    if count:
        assert poisson.sf(count - 1, samples * rate) > 0.3e-6


def test_a_change_is_known_no_finer_than_the_numbers_it_is_added_to() -> None:
    """A gain near one that moves by 80 of its roundings: its step's norm is good to a hundredth,
    that of a matrix near nought to some millionths."""
    values = np.ones(32, np.float32)
    limits = Tolerance()
    for grain, error, passes in ((0.012, 0.005, True), (1e-6, 0.005, False), (0.012, 0.05, False)):
        step = Quantity(kind=Kind.STEP, name="x.weight", stats={"norm": 1.0, "grain": grain},
                        samples=values)  # fmt: skip
        limit = max(limits.of(step, "norm", 0.0, "float32"), explained(step, "norm", 0.0))
        assert (error <= limit) is passes
    apart = np.concatenate([values[:16], values[16:] + np.float32(0.015)])
    other = Quantity(kind=Kind.STEP, name="x.weight", stats={"norm": 1.0}, samples=apart)
    assert errors(step, other, "float32")["far"] == 0.0
    plain = Quantity(kind=Kind.STEP, name="x.weight", stats={"norm": 1.0}, samples=values)
    assert errors(plain, other, "float32")["far"] == 0.5


def test_the_spacing_of_a_parameter_is_measured() -> None:
    there = subject("llama")
    step = next(q for q in measure(there, batches()[0], 0, Setting(), 16).values()
                if q.kind is Kind.STEP and q.name == "layers.0.input_layernorm.weight")  # fmt: skip
    gain = there.engine.stages[0].get_parameter(step.name).detach()
    root = float(np.sqrt(np.square(np.spacing(gain.numpy()).astype(np.float64)).sum()))
    assert step.stats["grain"] == pytest.approx(root / step.stats["norm"], rel=1e-3)


def test_noise_of_elements_explains_a_norm_and_no_more() -> None:
    samples = np.ones(100, np.float32)
    noisy = Quantity(kind=Kind.GRADIENT, name="x", stats={"norm": 1.0}, samples=samples)
    assert explained(noisy, "norm", 0.02) == pytest.approx(0.5 * 0.02 + 2 * 0.02**2)
    assert explained(noisy, "samples", 0.02) == 0.0
    counted = Quantity(kind=Kind.ACTIVATION, name="x", stats={"count": 3072.0}, samples=samples)
    assert 4 / 3072 < explained(counted, "zero", 0.0) < 12 / 3072
