"""Export, import, and torch's own format: same numbers, bounded memory, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from krzem.errors import CheckpointError, DataError
from krzem.train.checkpoint import Part, load, read_manifest, save, verify
from krzem.train.checkpoint import command as command_module
from krzem.train.checkpoint.command import checkpoint_command
from krzem.train.checkpoint.correspondence import Copy, Correspondence, identity
from krzem.train.checkpoint.dcp_format import DcpTensors, read_metadata
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.checkpoint.titan import titan_sources, titan_step
from krzem.train.checkpoint.transfer import (
    WEIGHT,
    export_huggingface,
    import_tensors,
)

EXPERTS, WIDTH, HIDDEN = 3, 4, 6
CONFIG = {"model_type": "deepseek_v3", "hidden_size": HIDDEN}


def model() -> dict[str, Tensor]:
    """Weights under names of ours: experts stacked, gate and up joined, a table turned round."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().float()

    return {
        "embed": draw(11, HIDDEN),
        "experts.gate_up": draw(EXPERTS, 2 * WIDTH, HIDDEN),
        "experts.down": draw(EXPERTS, HIDDEN, WIDTH),
        "turned": draw(5, 7),
        "scale": draw(1).reshape(()),
        "bias": draw(EXPERTS) / 3,
    }


def correspondence(
    config: Mapping[str, Any] | None = None, found: Collection[str] = ()
) -> Correspondence:
    """That model and a Hugging Face-like one."""
    ours = {name: tuple(t.shape) for name, t in model().items()}
    copies = [
        Copy(theirs=t, ours=o, shape=ours[o], theirs_at=(0,) * n, ours_at=(0,) * n)
        for t, o, n in (
            ("model.embed.weight", "embed", 2),
            ("scale", "scale", 0),
            ("gate.e_score_correction_bias", "bias", 1),
        )
    ]
    copies.append(
        Copy(
            theirs="turned.weight",
            ours="turned",
            shape=(5, 7),
            theirs_at=(0, 0),
            ours_at=(0, 0),
            transpose=True,
        )
    )
    theirs: dict[str, tuple[int, ...]] = {
        "model.embed.weight": (11, HIDDEN),
        "scale": (),
        "gate.e_score_correction_bias": (EXPERTS,),
        "turned.weight": (7, 5),
    }
    for e in range(EXPERTS):
        for name, ours_name, row, shape in (
            ("gate", "experts.gate_up", 0, (WIDTH, HIDDEN)),
            ("up", "experts.gate_up", WIDTH, (WIDTH, HIDDEN)),
            ("down", "experts.down", 0, (HIDDEN, WIDTH)),
        ):
            theirs[f"experts.{e}.{name}.weight"] = shape
            copies.append(
                Copy(
                    theirs=f"experts.{e}.{name}.weight",
                    ours=ours_name,
                    shape=(1, *shape),
                    theirs_at=(0, 0),
                    ours_at=(e, row, 0),
                )
            )
    return Correspondence(
        ours=ours,
        theirs=theirs,
        copies=tuple(copies),
        ignored=("*.inv_freq",),
        theirs_dtype={"gate.e_score_correction_bias": "float32"},
        stateless=frozenset({"bias"}),
    )


def checkpoint(tmp_path: Path, config: Mapping[str, Any] | None = CONFIG) -> Path:
    """A checkpoint of the model, its experts saved in awkward parts."""
    state: dict[str, Any] = {f"weight/{n}": t for n, t in model().items()}
    whole = state["weight/experts.gate_up"]
    state["weight/experts.gate_up"] = [
        Part(tensor=whole[e : e + 1, a:b], shape=tuple(whole.shape), offset=(e, a, 0))
        for e in range(EXPERTS)
        for a, b in ((0, 3), (3, 8))
    ]
    state["exp_avg/embed"] = torch.ones(11, HIDDEN)
    return save(tmp_path / "run", 7, state, meta={"tokens": 70}, config=config).folder


def reloaded(folder: Path) -> dict[str, Tensor]:
    state = {f"weight/{n}": torch.zeros_like(t) for n, t in model().items()}
    load(folder, state, strict=False)
    return {n.removeprefix("weight/"): t for n, t in state.items()}


@pytest.mark.parametrize("file_bytes", [10**9, 200])
def test_export_and_import_is_the_identity(tmp_path: Path, file_bytes: int) -> None:
    library = pytest.importorskip("safetensors.torch")
    folder = checkpoint(tmp_path)
    out = tmp_path / "hf"
    pairs = correspondence()
    size = export_huggingface(folder, read_manifest(folder), pairs, out, file_bytes=file_bytes)
    read: dict[str, Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        read |= library.load_file(file)
    ours = model()
    assert {n: tuple(t.shape) for n, t in read.items()} == dict(pairs.theirs)
    assert size == sum(t.nbytes for t in read.values())
    assert torch.equal(read["turned.weight"].float(), ours["turned"].T)
    assert torch.equal(read["experts.2.up.weight"].float(), ours["experts.gate_up"][2, WIDTH:])
    assert read["gate.e_score_correction_bias"].dtype == torch.float32
    assert read["experts.0.down.weight"].dtype == torch.bfloat16
    written = {**CONFIG, "architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16"}
    assert json.loads((out / "config.json").read_text()) == written
    index = out / "model.safetensors.index.json"
    assert index.exists() == (file_bytes == 200)
    if index.exists():
        assert json.loads(index.read_text())["weight_map"].keys() == read.keys()

    again = import_tensors(
        {WEIGHT: SafetensorsFolder(out)},
        pairs,
        tmp_path / "again",
        config=CONFIG,
        meta={},
        file_bytes=file_bytes,
    )
    verify(again)
    assert all(torch.equal(t, ours[n]) for n, t in reloaded(again).items())


@given(
    slab=st.integers(1, 300),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    width=st.integers(1, 5),
    turned=st.booleans(),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_slabs_of_any_size_give_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    slab: int,
    rows: list[int],
    width: int,
    turned: bool,
) -> None:
    """Pieces along rows (or, turned, along columns) of theirs make one tensor of ours."""
    from krzem.train.checkpoint import streaming

    folder = tmp_path_factory.mktemp("slabs")
    starts = [sum(rows[:n]) for n in range(len(rows))]
    whole = torch.randn(sum(rows), width)
    pieces = {f"p{n}": whole[s : s + r] for n, (s, r) in enumerate(zip(starts, rows, strict=True))}
    pieces = {n: (p.T if turned else p).contiguous() for n, p in pieces.items()}
    pairs = Correspondence(
        ours={"w": tuple(whole.shape)},
        theirs={n: tuple(p.shape) for n, p in pieces.items()},
        copies=tuple(
            Copy(
                theirs=f"p{n}",
                ours="w",
                shape=(r, width),
                theirs_at=(0, 0),
                ours_at=(s, 0),
                transpose=turned,
            )
            for n, (s, r) in enumerate(zip(starts, rows, strict=True))
        ),
    )
    saved = save(folder / "a", 1, {f"weight/{n}": p for n, p in pieces.items()}, meta={}).folder
    export_huggingface(
        saved, read_manifest(saved), identity(pairs.theirs), folder / "hf", dtype="float32"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "SLAB_BYTES", slab)
        made = import_tensors(
            {WEIGHT: SafetensorsFolder(folder / "hf")}, pairs, folder / "b", config={}, meta={}
        )
    target = torch.zeros_like(whole)
    load(made, {"weight/w": target})
    assert torch.equal(target, whole)


def test_names_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    out = tmp_path / "hf"
    pairs = correspondence()
    export_huggingface(folder, read_manifest(folder), pairs, out)
    found = {n: s for n, (_, s) in SafetensorsFolder(out).tensors().items()}
    pairs.compare("x", {**found, "layers.0.inv_freq": (3,)})
    with pytest.raises(CheckpointError, match=r"missing: scale; not known .*: other; .* \[1, 2\]"):
        pairs.compare(
            "x",
            {
                **{n: s for n, s in found.items() if n != "scale"},
                "other": (1,),
                "turned.weight": (1, 2),
            },
        )
    with pytest.raises(CheckpointError, match="holds safetensors files already"):
        export_huggingface(folder, read_manifest(folder), pairs, out)
    with pytest.raises(CheckpointError, match="first bias, absent there"):
        export_huggingface(folder, read_manifest(folder), pairs, tmp_path / "no", prefix="none/")


def test_a_correspondence_covers_both_sides_exactly() -> None:
    copy = Copy(theirs="t", ours="o", shape=(2,), theirs_at=(0,), ours_at=(0,))
    with pytest.raises(AssertionError, match="ours: copies cover 2 of o"):
        Correspondence(ours={"o": (3,)}, theirs={"t": (2,)}, copies=(copy,))
    with pytest.raises(AssertionError, match="theirs: t"):
        Correspondence(ours={"o": (2,)}, theirs={"t": (1,)}, copies=(copy,))
    with pytest.raises(AssertionError, match="not a copy"):
        Copy(theirs="t", ours="o", shape=(2, 3), theirs_at=(0,), ours_at=(0, 0))


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors files"):
        SafetensorsFolder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"names 2 files, of which 2 are missing"):
        SafetensorsFolder(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="cannot read"):
        SafetensorsFolder(tmp_path)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from krzem.train.checkpoint import read_manifest, save
from krzem.train.checkpoint.correspondence import identity
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.checkpoint.transfer import *
root = Path(sys.argv[1])
pairs = identity({"w": (20_000, 1024)})
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
source = SafetensorsFolder(root / "hf")
folder = import_tensors({WEIGHT: source}, pairs, root / "run", config={}, meta={})
export_huggingface(folder, read_manifest(folder), pairs, root / "out")
print((peak() - before) / (20_000 * 1024 * 4))
"""


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    """A tensor of 82 MB passes through in slabs: the peak would be twice that if it were held."""
    library = pytest.importorskip("safetensors.torch")
    (tmp_path / "hf").mkdir()
    library.save_file({"w": torch.zeros(20_000, 1024)}, tmp_path / "hf" / "w.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 1.2


V3 = {"model_type": "deepseek_v3"}
QWEN = {"model_type": "qwen3_moe", "num_attention_heads": 4, "num_key_value_heads": 2}


def titan_v3() -> dict[str, Tensor]:
    """A layer of torchtitan's DeepSeek-V3, by its names of 0.3.0."""
    shapes = {
        "tok_embeddings.weight": (11, 6),
        "norm.weight": (6,),
        "lm_head.weight": (11, 6),
        "layers.0.attention_norm.weight": (6,),
        "layers.0.attention.wq_a.weight": (3, 6),
        "layers.0.attention.wkv_b.weight": (8, 2),
        "layers.0.moe.routed_experts.inner_experts.w1_EFD": (3, 4, 6),
        "layers.0.moe.routed_experts.inner_experts.w2_EDF": (3, 6, 4),
        "layers.0.moe.router.gate.weight": (3, 6),
        "layers.0.moe.expert_bias_E": (3,),
        "layers.0.moe.tokens_per_expert_E": (3,),
    }
    return {n: torch.randn(s) for n, s in shapes.items()}


def save_titan(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write it as torchtitan does: weights on top, moments flat, and pickled odds and ends."""
    trained = [n for n in weights if "_E" not in n[-2:]]
    moments = {
        f"state.{n}.{m}": torch.randn_like(weights[n])
        for n in trained
        for m in ("exp_avg", "exp_avg_sq")
    }
    moments |= {f"state.{n}.step": torch.tensor(42.0) for n in trained}
    odd = {"param_groups.norm.weight.lr": 0.1}
    state = {**weights, "optimizer": {**moments, **odd}, "train_state": {"step": 42}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=folder)
    return moments


def test_torchtitan_deepseek_with_moments(tmp_path: Path) -> None:
    weights = titan_v3()
    moments = save_titan(tmp_path / "titan", weights)
    sources = titan_sources(tmp_path / "titan", V3)
    assert list(sources) == ["weight/", "exp_avg/", "exp_avg_sq/"]
    assert titan_step(tmp_path / "titan") == 42
    for prefix, moment in (
        ("weight/", None),
        ("exp_avg/", "exp_avg"),
        ("exp_avg_sq/", "exp_avg_sq"),
    ):
        source = sources[prefix]
        names = source.tensors()
        assert ("model.layers.0.mlp.gate.e_score_correction_bias" in names) == (moment is None)
        assert names["model.layers.0.mlp.experts.2.down_proj.weight"] == ("float32", (6, 4))
        for theirs, titan, index in (
            ("model.layers.0.mlp.experts.2.down_proj.weight", "w2_EDF", 2),
            ("model.layers.0.mlp.experts.1.gate_proj.weight", "w1_EFD", 1),
            ("model.layers.0.self_attn.q_a_proj.weight", "attention.wq_a.weight", slice(None)),
            ("model.embed_tokens.weight", "tok_embeddings.weight", slice(None)),
        ):
            full = next(n for n in weights if n.endswith(titan))
            whole = weights[full] if moment is None else moments[f"state.{full}.{moment}"]
            shape = names[theirs][1]
            assert torch.equal(source.read(theirs, (0, 0), shape), whole[index])
            assert torch.equal(source.read(theirs, (1, 1), (2, 1)), whole[index][1:3, 1:2])


def test_torchtitan_qwen_woven_projections(tmp_path: Path) -> None:
    """Queries, keys and values in one tensor, by key-value group, come apart in order."""
    heads, groups, head, hidden = 4, 2, 3, 5
    q, k, v = (torch.randn(n * head, hidden) for n in (heads, groups, groups))
    woven = torch.cat(
        [t.reshape(groups, -1, head, hidden) for t in (q, k, v)],
        dim=1,
    ).reshape(-1, hidden)
    weights = {"layers.3.attention.qkv_linear.wqkv.weight": woven, "norm.weight": torch.ones(5)}
    save_titan(tmp_path / "titan", weights)
    source = titan_sources(tmp_path / "titan", QWEN)["weight/"]
    for name, expected in (("q", q), ("k", k), ("v", v)):
        full = f"model.layers.3.self_attn.{name}_proj.weight"
        assert source.tensors()[full][1] == tuple(expected.shape)
        assert torch.equal(source.read(full, (0, 0), tuple(expected.shape)), expected)


def test_other_models_and_names_are_refused(tmp_path: Path) -> None:
    save_titan(tmp_path / "titan", {"layers.0.attention.surprise": torch.ones(2)})
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        titan_sources(tmp_path / "titan", {"model_type": "llama"})
    with pytest.raises(CheckpointError, match=r"surprise is not a name that torchtitan gives"):
        titan_sources(tmp_path / "titan", V3)


class Hostile:
    """Unpickling this would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def test_hostile_metadata_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    save_titan(tmp_path / "titan", {"norm.weight": torch.ones(2)})
    metadata = tmp_path / "titan" / ".metadata"
    good = pickle.loads(metadata.read_bytes())
    good.planner_data = Hostile(mark)
    for content in (
        pickle.dumps(Hostile(mark)),
        pickle.dumps(good),
        b"cbuiltins\neval\n(V1\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"ctorch.serialization\nload\n.",
        b"ctorch\nload\n.",
        b"\x80\x04.",
        b"",
        pickle.dumps({"a": 1}),
    ):
        metadata.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is refused|is not the metadata"):
            read_metadata(tmp_path / "titan")
        assert not mark.exists()


def test_metadata_cannot_reach_torch_itself(tmp_path: Path) -> None:
    """Setting attributes on a class named in the file must not touch torch's class."""
    from torch.distributed.checkpoint.metadata import Metadata

    metadata = tmp_path / ".metadata"
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    metadata.write_bytes(name + b"(N(dVversion\nVevil\nstb.")
    with pytest.raises(CheckpointError):
        read_metadata(tmp_path)
    assert getattr(Metadata, "version", None) != "evil"


def test_hostile_tensors_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "titan"
    save_titan(folder, {"norm.weight": torch.ones(2)})
    evil = tmp_path / "evil.pt"
    torch.save(Hostile(mark), evil)
    raw = evil.read_bytes()
    with zipfile.ZipFile(evil) as archive:
        assert any(n.endswith("data.pkl") for n in archive.namelist())
    stored = DcpTensors(folder)
    (piece,) = stored._pieces["norm.weight"]
    content = piece.file.read_bytes()
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for index, info in metadata.storage_data.items():
        if index.fqn == "norm.weight":
            info.offset, info.length = len(content), len(raw)
    piece.file.write_bytes(content + raw)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"cannot read norm\.weight"):
        DcpTensors(folder).read("norm.weight", (0,), (2,))
    assert not mark.exists()


def test_metadata_may_not_point_outside(tmp_path: Path) -> None:
    folder = tmp_path / "titan"
    save_titan(folder, {"norm.weight": torch.ones(2)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="points outside itself"):
        DcpTensors(folder)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "_correspondence", correspondence)
    run = CliRunner().invoke
    folder = checkpoint(tmp_path)
    shown = run(checkpoint_command, ["show", str(folder), "--tensors"])
    assert shown.exit_code == 0, shown.output
    assert "tokens       70" in shown.output
    assert "weight       6 tensors" in shown.output
    assert "weight/embed" in shown.output
    listed = json.loads(run(checkpoint_command, ["show", str(tmp_path / "run"), "--json"]).output)
    assert [c["step"] for c in listed["checkpoints"]] == [7]
    assert "all as written" in run(checkpoint_command, ["verify", str(folder)]).output
    out = str(tmp_path / "hf")
    exported = run(checkpoint_command, ["export", str(folder), out, "--dtype", "float32"])
    assert exported.exit_code == 0, exported.output
    imported = run(checkpoint_command, ["import", out, str(tmp_path / "new"), "--tokens", "5"])
    assert imported.exit_code == 0, imported.output
    manifest = verify(tmp_path / "new" / "checkpoints" / "step-000000000")
    assert manifest.meta == {"imported_from": "huggingface hf", "tokens": 5}
    written = {**CONFIG, "architectures": ["DeepseekV3ForCausalLM"], "dtype": "float32"}
    assert manifest.config == written
    again = run(checkpoint_command, ["import", out, str(tmp_path / "new")])
    assert "is a checkpoint already" in str(again.exception)


def test_command_line_imports_torchtitan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = titan_v3()
    moments = save_titan(tmp_path / "titan", weights)
    (tmp_path / "config.json").write_text(json.dumps(V3))

    def same_as_theirs(config: Mapping[str, Any], found: Collection[str]) -> Correspondence:
        source = titan_sources(tmp_path / "titan", config)["weight/"]
        pairs = identity({n: s for n, (_, s) in source.tensors().items()})
        biases = frozenset(n for n in pairs.ours if n.endswith("e_score_correction_bias"))
        return Correspondence(
            ours=pairs.ours, theirs=pairs.theirs, copies=pairs.copies, stateless=biases
        )

    monkeypatch.setattr(command_module, "_correspondence", same_as_theirs)
    arguments = ["import", str(tmp_path / "titan"), str(tmp_path / "run"), "--from", "torchtitan"]
    done = CliRunner().invoke(
        checkpoint_command, [*arguments, "--config", str(tmp_path / "config.json")]
    )
    assert done.exit_code == 0, done.exception
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    folder = tmp_path / "run" / "checkpoints" / "step-000000042"
    assert f"weight/{name}" not in read_manifest(folder).tensors
    target = torch.zeros(4, 6)
    name = "exp_avg/model.layers.0.mlp.experts.1.gate_proj.weight"
    load(folder, {name: target}, strict=False)
    full = "state.layers.0.moe.routed_experts.inner_experts.w1_EFD.exp_avg"
    assert torch.equal(target, moments[full][1])


def test_command_line_finds_the_last_good_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, {"w": torch.ones(step)}, meta={})
    victim = next((tmp_path / "step-000000002").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = CliRunner().invoke(checkpoint_command, ["verify", str(tmp_path)])
    assert "bad " in done.output
    assert "step 1," in done.output
    os.truncate(next((tmp_path / "step-000000001").glob("*.safetensors")), 3)
    failed = CliRunner().invoke(checkpoint_command, ["verify", str(tmp_path)])
    assert isinstance(failed.exception, CheckpointError)
    shown = CliRunner().invoke(checkpoint_command, ["show", str(tmp_path)])
    assert "has 3 bytes" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "run", "hf", "--file-gb", "0"], "x>=0.001"),
        (["export", "run", "hf", "--file-gb", "nan"], "x>=0.001"),
        (["import", "hf", "run", "--step", "-1"], "x>=0"),
        (["import", "hf", "run", "--tokens", "-1"], "x>=0"),
    ],
)
def test_options_out_of_range_are_refused_with_the_range(arguments: list[str], says: str) -> None:
    refused = CliRunner().invoke(checkpoint_command, arguments)
    assert refused.exit_code == 2
    assert says in refused.output


def test_an_import_from_nowhere_says_so(tmp_path: Path) -> None:
    arguments = ["import", str(tmp_path / "nowhere"), str(tmp_path / "run")]
    refused = CliRunner().invoke(checkpoint_command, arguments)
    assert isinstance(refused.exception, DataError)
    assert "no such file or folder" in str(refused.exception)


def test_a_missing_config_says_how_to_name_it(tmp_path: Path) -> None:
    for content in (None, "[]", "{"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(DataError, match=r"--config|is not a model's config"):
            command_module.read_config(tmp_path)
