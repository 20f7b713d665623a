"""Weights as others publish them: right to the bit, or refused with the tensor's name."""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from tests.train.configs import DEEPSEEK_V3, DEEPSEEK_V4, LLAMA
from torch import Tensor

from krzem.errors import CheckpointError
from krzem.layout.layout import Layout
from krzem.train.checkpoint import load
from krzem.train.checkpoint.command import checkpoint_command
from krzem.train.checkpoint.names import correspondence
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.checkpoint.streaming import Initial
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.hf import export_model, import_model

FLOAT, E8M0 = torch.float32, torch.float8_e8m0fnu
BLOCK = (16, 8)
V3 = {**DEEPSEEK_V3, "quantization_config": {"weight_block_size": list(BLOCK)}}
V4 = {
    **DEEPSEEK_V4,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "expert_dtype": "fp4",
    "quantization_config": {"weight_block_size": list(BLOCK), "scale_fmt": "ue8m0"},
}
Tensors = dict[str, Tensor]


def spread(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """The scale of every element, by the definition: that of its row's and its column's block."""
    rows, columns = torch.arange(shape[0]) // block[0], torch.arange(shape[1]) // block[1]
    return scale[rows[:, None], columns[None, :]]


def quantised(tensors: Tensors, name: str, scale: str, *, exponents: bool) -> Tensor:
    """Put ``name`` into ``tensors`` as float8 with block scales; what it then is worth."""
    rows, columns = tensors[name].shape
    blocks = (math.ceil(rows / BLOCK[0]), math.ceil(columns / BLOCK[1]))
    factors = torch.randint(-9, -3, blocks).float().exp2()
    if not exponents:
        factors *= torch.rand(blocks) + 0.5
    wide = spread(factors, BLOCK, tensors[name].shape)
    tensors[name] = (tensors[name] / wide).to(torch.float8_e4m3fn)
    tensors[scale] = factors.to(E8M0) if exponents else factors
    return tensors[name].float() * wide


def packed(tensors: Tensors, name: str, scale: str) -> Tensor:
    """The same with FP4, two in a byte."""
    rows, columns = tensors[name].shape
    halves = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    factors = torch.randint(-9, -3, (rows, math.ceil(columns / 32))).float().exp2()
    low, high = halves[:, ::2], halves[:, 1::2]
    tensors[name] = (low | (high << 4)).view(torch.int8)
    tensors[scale] = factors.to(E8M0)
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[(halves & 7).int()]
    signed = torch.where(halves >= 8, -magnitudes, magnitudes)
    return signed * spread(factors, (1, 32), halves.shape)


def exported(folder: Path, config: dict[str, Any]) -> Tensors:
    engine = Engine(model_spec(config), Layout(), device=torch.device("cpu"), seed=1)
    export_model(engine, folder, config, dtype=FLOAT)
    tensors: Tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


def write(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@functools.cache
def _published_v3() -> tuple[Tensors, Tensors]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tensors = exported(Path(folder) / "hf", V3)
    projections = [n for n in tensors if "_proj" in n]
    worth = {
        n: quantised(tensors, n, f"{n}_scale_inv", exponents=False) for n in sorted(projections)
    }
    last = "model.layers.4"
    tensors[f"{last}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{last}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors, worth


@functools.cache
def _published_v4() -> tuple[Tensors, Tensors]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tensors = exported(Path(folder) / "hf", V4)
    worth = {}
    for name in sorted(n for n in tensors if ".w" in n and n.endswith(".weight")):
        scale = name.removesuffix("weight") + "scale"
        if ".experts." in name:
            worth[name] = packed(tensors, name, scale)
        elif tensors[name].dim() == 2:
            worth[name] = quantised(tensors, name, scale, exponents=True)
    return tensors, worth


def published_v3(folder: Path) -> tuple[Tensors, Tensors]:
    """A folder's tensors as DeepSeek-V3 publishes them, and what they are worth."""
    folder.mkdir()
    tensors, worth = _published_v3()
    return dict(tensors), worth


def published_v4(folder: Path) -> tuple[Tensors, Tensors]:
    """The same for DeepSeek-V4: exponents as scales, FP4 in the routed experts."""
    folder.mkdir()
    tensors, worth = _published_v4()
    return dict(tensors), worth


def imported(folder: Path, run: Path, *more: str) -> str:
    done = CliRunner().invoke(checkpoint_command, ["import", str(folder), str(run), *more])
    if done.exception is not None:
        raise done.exception
    return done.output


def values(run: Path, config: dict[str, Any]) -> Tensors:
    """The weights of an imported checkpoint."""
    model = Engine(model_spec(config), Layout(), device=torch.device("cpu")).stages[0]
    state = {f"weight/{n}": torch.zeros_like(t) for n, t in model.state_dict().items()}
    load(run / "checkpoints" / "step-000000000", state, config=config)
    return {n.removeprefix("weight/"): t for n, t in state.items()}


@pytest.mark.parametrize("published", [published_v3, published_v4])
def test_low_precision_is_read_as_what_it_is_worth(
    published: Callable[[Path], tuple[Tensors, Tensors]], tmp_path: Path
) -> None:
    """By the command and by the running trainer alike, bit for bit."""
    config = V3 if published is published_v3 else V4
    tensors, worth = published(tmp_path / "hf")
    assert len(worth) > 20
    write(tmp_path / "hf", tensors, config)
    imported(tmp_path / "hf", tmp_path / "run")
    stored = values(tmp_path / "run", config)
    engine = Engine(model_spec(config), Layout(), device=torch.device("cpu"), seed=5)
    assert import_model(engine, tmp_path / "hf") == ()
    state = engine.stages[0].state_dict()
    assert all(torch.equal(state[n], stored[n]) for n in stored)
    for copies in correspondence(config, tensors).of_ours().values():
        for copy in copies:
            if copy.theirs in worth:
                place = stored[copy.ours]
                for dim, (at, size) in enumerate(zip(copy.ours_at, copy.shape, strict=True)):
                    place = place.narrow(dim, at, size)
                assert torch.equal(place.reshape(worth[copy.theirs].shape), worth[copy.theirs])


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**16),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_box_of_any_block(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    block: tuple[int, int],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    folder = tmp_path_factory.mktemp("blocks")
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(math.ceil(rows / block[0]), math.ceil(columns / block[1])) + 0.1
    save_file({"w": weight, "w_scale_inv": scale}, folder / "a.safetensors")
    config = {"quantization_config": {"weight_block_size": list(block)}}
    source = SafetensorsFolder(folder, config)
    assert source.tensors() == {"w": ("float32", (rows, columns))}
    expected = weight.float() * spread(scale, block, weight.shape)
    at = (draw.randrange(rows), draw.randrange(columns))
    shape = (draw.randint(1, rows - at[0]), draw.randint(1, columns - at[1]))
    box = expected[at[0] : at[0] + shape[0], at[1] : at[1] + shape[1]]
    assert torch.equal(source.read("w", at, shape), box)
    if math.ceil(rows / (block[0] + 1)) != scale.shape[0]:
        other = {"quantization_config": {"weight_block_size": [block[0] + 1, block[1]]}}
        with pytest.raises(CheckpointError, match="w_scale_inv has shape"):
            SafetensorsFolder(folder, other)


def without_scale(tensors: Tensors, name: str, scale: str) -> None:
    del tensors[scale]


def scale_of_another_shape(tensors: Tensors, name: str, scale: str) -> None:
    tensors[scale] = torch.cat((tensors[scale].float(),) * 2)


def scale_not_finite(tensors: Tensors, name: str, scale: str) -> None:
    changed = tensors[scale].float().clone()
    changed.view(-1)[-1] = math.nan
    tensors[scale] = changed.to(tensors[scale].dtype)


def scale_of_zero(tensors: Tensors, name: str, scale: str) -> None:
    tensors[scale] = torch.zeros_like(tensors[scale].float())


def negative_scale(tensors: Tensors, name: str, scale: str) -> None:
    tensors[scale] = -tensors[scale].float()


def scale_in_integers(tensors: Tensors, name: str, scale: str) -> None:
    tensors[scale] = tensors[scale].float().to(torch.int32)


def scale_beside_numbers(tensors: Tensors, name: str, scale: str) -> None:
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.bfloat16)


def bytes_for_float8(tensors: Tensors, name: str, scale: str) -> None:
    tensors[name] = tensors[name].view(torch.int8)


def value_not_finite(tensors: Tensors, name: str, scale: str) -> None:
    changed = tensors[name].float().clone()
    changed.view(-1)[0] = math.nan
    tensors[name] = changed.to(tensors[name].dtype)


DAMAGES = [
    without_scale,
    scale_of_another_shape,
    scale_not_finite,
    scale_of_zero,
    negative_scale,
    scale_in_integers,
    scale_beside_numbers,
    bytes_for_float8,
    value_not_finite,
]


@pytest.mark.parametrize(
    ("family", "damage"),
    [(f, d) for f in ("v3", "v4") for d in DAMAGES if (f, d) != ("v4", bytes_for_float8)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_damaged_scale_or_value_is_refused_with_its_name(
    family: str, damage: Callable[[Tensors, str, str], None], tmp_path: Path
) -> None:
    """On three tensors drawn at random; an intact folder of the same kind is taken above."""
    published, config = (published_v3, V3) if family == "v3" else (published_v4, V4)
    intact, worth = published(tmp_path / "hf")
    for name in random.Random(damage.__name__).sample(sorted(worth), 3):
        scale = f"{name}_scale_inv" if family == "v3" else name.removesuffix("weight") + "scale"
        if damage is value_not_finite and intact[name].dtype is torch.int8:
            continue
        tensors = dict(intact)
        damage(tensors, name, scale)
        write(tmp_path / "hf", tensors, config)
        with pytest.raises(CheckpointError) as told:
            imported(tmp_path / "hf", tmp_path / "run")
        assert name in str(told.value) or scale in str(told.value)
        assert not list((tmp_path / "run").rglob("manifest.json"))


@pytest.mark.parametrize("nan", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_anywhere(nan: float, tmp_path: Path) -> None:
    tensors = exported(tmp_path / "hf", LLAMA)
    for name in random.Random(str(nan)).sample(sorted(tensors), 4):
        changed = tensors[name].clone()
        changed.view(-1)[random.Random(name).randrange(changed.numel())] = nan
        write(tmp_path / "hf", {**tensors, name: changed}, LLAMA)
        with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
            imported(tmp_path / "hf", tmp_path / "run")


def test_numbers_too_large_for_the_exported_type_are_refused(tmp_path: Path) -> None:
    tensors = exported(tmp_path / "hf", LLAMA)
    tensors["model.norm.weight"][3] = 70_000.0
    write(tmp_path / "hf", tensors, LLAMA)
    imported(tmp_path / "hf", tmp_path / "run")
    out = ["export", str(tmp_path / "run"), str(tmp_path / "out")]
    done = CliRunner().invoke(checkpoint_command, [*out, "--dtype", "float16"])
    assert "norm.weight holds numbers too large for float16" in str(done.exception)
    assert CliRunner().invoke(checkpoint_command, out).exception is None


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA, "lm_head.weight"),
        (V3, "model.layers.4.embed_tokens.weight"),
        (V3, "model.layers.4.shared_head.head.weight"),
        (V4, "mtp.0.emb.tok_emb.weight"),
        (V4, "mtp.0.head.weight"),
    ],
)
def test_what_is_held_twice_has_to_be_equal(
    config: dict[str, Any], name: str, tmp_path: Path
) -> None:
    tensors = exported(tmp_path / "hf", config)
    pairs = correspondence(config, tensors)
    twin = tensors[pairs.twice[name]].clone()
    write(tmp_path / "hf", {**tensors, name: twin}, config)
    imported(tmp_path / "hf", tmp_path / "equal")
    twin.view(-1)[-1] = torch.nextafter(twin.view(-1)[-1], torch.tensor(9.0))
    write(tmp_path / "hf", {**tensors, name: twin}, config)
    with pytest.raises(CheckpointError, match=f"{name} differs from {pairs.twice[name]}"):
        imported(tmp_path / "hf", tmp_path / "run")
    engine = Engine(model_spec(config), Layout(), device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match=f"{name} differs from"):
        import_model(engine, tmp_path / "hf")


@pytest.mark.parametrize("config", [V3, V4])
def test_mtp_modules_may_be_absent_whole_and_not_by_half(
    config: dict[str, Any], tmp_path: Path
) -> None:
    tensors = exported(tmp_path / "hf", config)
    pairs = correspondence(config, tensors)
    module = pairs.groups["mtp.0"]
    assert module
    rest = {n: t for n, t in tensors.items() if n not in module}
    write(tmp_path / "hf", rest, config)
    assert "has no mtp.0: initial values" in imported(tmp_path / "hf", tmp_path / "run")
    stored = values(tmp_path / "run", config)
    drawn = {n: s for n, s in pairs.ours.items() if n.startswith("mtp.0.")}
    initial = Initial(drawn, 0.02)
    for name, shape in drawn.items():
        whole = initial.read(name, (0,) * len(shape), shape)
        expected = torch.zeros(shape) if name in pairs.stateless else whole
        assert torch.equal(stored[name], expected), name
    half = {**rest, min(module): tensors[min(module)]}
    write(tmp_path / "hf", half, config)
    with pytest.raises(CheckpointError, match="missing: "):
        imported(tmp_path / "hf", tmp_path / "half")


def test_a_config_that_does_not_say_how_is_asked(tmp_path: Path) -> None:
    tensors, _ = published_v3(tmp_path / "hf")
    write(tmp_path / "hf", tensors, DEEPSEEK_V3)
    with pytest.raises(CheckpointError, match=r"weight_block_size is needed"):
        imported(tmp_path / "hf", tmp_path / "run")


def test_exports_do_not_say_that_they_are_quantised(tmp_path: Path) -> None:
    tensors, _ = published_v4(tmp_path / "hf")
    write(tmp_path / "hf", tensors, V4)
    imported(tmp_path / "hf", tmp_path / "run")
    CliRunner().invoke(checkpoint_command, ["export", str(tmp_path / "run"), str(tmp_path / "out")])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "expert_dtype"} & config.keys()
    assert config["dtype"] == "bfloat16"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 8)


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html>404 Not Found</html>")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def overlapping(file: Path) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    same = [n for n, e in header.items() if e.get("shape") == [32]][:2]
    header[same[1]]["data_offsets"] = header[same[0]]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cut short or altered"),
        (longer, "no whole safetensors file"),
        (pointer, r"Git LFS pointer.*git lfs pull"),
        (page, "not a safetensors file"),
        (emptied, "not a safetensors file"),
        (overlapping, "no whole safetensors file"),
    ],
    ids=lambda f: getattr(f, "__name__", "said"),
)
def test_broken_files_are_refused_by_name(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "hf", exported(tmp_path / "hf", LLAMA), LLAMA)
    damage(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=said) as told:
        imported(tmp_path / "hf", tmp_path / "run")
    assert "model.safetensors" in str(told.value)


def test_folders_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    tensors = exported(tmp_path / "hf", LLAMA)
    write(tmp_path / "hf", tensors, LLAMA)
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "hf" / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"model.norm.weight is in .* and in "):
        SafetensorsFolder(tmp_path / "hf")
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "x": "other.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"says that x is in other\.safetensors"):
        SafetensorsFolder(tmp_path / "hf")
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"only pickles such as pytorch_model\.bin"):
        SafetensorsFolder(tmp_path / "pickles")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_with_a_wrapper_before_them_are_refused(prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + n: t for n, t in exported(tmp_path / "hf", LLAMA).items()}
    write(tmp_path / "hf", tensors, LLAMA)
    with pytest.raises(CheckpointError, match=rf"not known in this model: {prefix}"):
        imported(tmp_path / "hf", tmp_path / "run")


def test_an_export_is_what_serving_loads(tmp_path: Path) -> None:
    """Class, type, special tokens and tokenizer lie beside the weights."""
    transformers = pytest.importorskip("transformers")
    config = {**{k: v for k, v in LLAMA.items() if k != "architectures"}, "eos_token_id": 5}
    write(tmp_path / "hf", exported(tmp_path / "hf", config), config)
    imported(tmp_path / "hf", tmp_path / "run")
    words = tmp_path / "words"
    words.mkdir()
    vocabulary = {f"w{i}": i for i in range(96)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    (words / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    out = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--tokenizer", str(words)]
    done = CliRunner().invoke(checkpoint_command, out)
    assert done.exception is None, done.output
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["architectures"], saved["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.eos_token_id == 5
    assert loaded.dtype is torch.bfloat16
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    out[-1] = str(tmp_path / "run")
    out[2] = str(tmp_path / "other")
    told = CliRunner().invoke(checkpoint_command, out)
    assert "holds no tokenizer.json" in str(told.exception)
