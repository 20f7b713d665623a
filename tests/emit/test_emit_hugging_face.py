"""DeepSpeed and FSDP2 under the Trainer: real argument classes, batches that close, refusals."""

from __future__ import annotations

import ast
import dataclasses
import json
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from emit_matrix import CONFIG, GOAL, GOALS, cluster, every_switch, plain, text, tried, written

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import Layout, Precision, StateBytes
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.engines import TABLE as DEEPSPEED
from krzem.plan.emit.fsdp import TABLE as ACCELERATE
from krzem.plan.emit.hugging_face import TABLE as TRAINER
from krzem.plan.emit.parts import fits, keys_of
from krzem.plan.goal import Goal

TABLES = {"deepspeed": DEEPSPEED, "fsdp": ACCELERATE}
LAYOUTS = (
    "dp=64,zero=0", "dp=64,zero=1,offload=1", "dp=64,zero=2,mbs=2,recompute=full", "dp=64,zero=3",
    "dp=64,zero=3,shard=8,recompute=full", "dp=64,zero=3,mbs=4,recompute=attention,offload=1",
    "dp=16,cp=4,zero=3,cpkind=ring", "dp=32,cp=2,zero=2,cpkind=allgather", "tp=8,dp=8,zero=3",
    "pp=4,dp=16,zero=1", "dp=64,zero=3,recompute=modules", "dp=64,zero=3,ep=8",
)  # fmt: skip


def launched(
    engine: str, layout: str, goal: Goal = GOAL, model: str = "llama-3.1-8b", **named: str
) -> Launch:
    switches = {name.replace("_", "-"): choice for name, choice in named.items()}
    return emit(
        engine, text(layout), goal, load_model(model), cluster("h100:64"), CONFIG, 250, switches
    )


def typed(launch: Launch, engine: str) -> None:
    own, theirs, _ = launch.parts
    for part, table in ((own, TABLES[engine]), (theirs, TRAINER)):
        keys = keys_of(table)
        flags = [flag for section in part.sections for flag in section.flags]
        wrong = [(f.name, f.value, keys[f.name].kind) for f in flags
                 if not fits(f.value, keys[f.name])]  # fmt: skip
        assert not wrong
        assert len({flag.name for flag in flags}) == len(flags)


@pytest.mark.parametrize("engine", TABLES)
@pytest.mark.parametrize("model", model_ids())
def test_keys_exist_with_their_types(model: str, engine: str) -> None:
    count = 0
    for layout in LAYOUTS:
        for goal in GOALS:
            launch = tried(engine, text(layout), goal, load_model(model), cluster("h100:64"))
            if launch is not None:
                typed(launch, engine)
                _closes(plain(launch), engine, text(layout), goal)
                count += 1
    assert count >= 4


def _closes(files: dict[str, str], engine: str, layout: Layout, goal: Goal) -> None:
    named = json.loads(files["krzem_arguments.json"])
    ranks = layout.dp
    if engine == "deepspeed":
        own = json.loads(files["krzem_deepspeed.json"])
        assert own["train_micro_batch_size_per_gpu"] == named["per_device_train_batch_size"]
        assert own["gradient_accumulation_steps"] == named["gradient_accumulation_steps"]
        assert own["train_batch_size"] == goal.global_batch
        assert own["zero_optimization"]["stage"] == layout.zero
    else:
        own = yaml.safe_load(files["krzem_accelerate.yaml"])
        mesh = {n.removeprefix("parallelism_config_"): v
                for n, v in own["parallelism_config"].items()}  # fmt: skip
        ranks = mesh["dp_replicate_size"] * mesh["dp_shard_size"]
        assert ranks * mesh["cp_size"] * mesh["tp_size"] == own["num_processes"] == layout.devices
    passes = named["per_device_train_batch_size"] * named["gradient_accumulation_steps"]
    assert passes * ranks == goal.global_batch
    tokens = named["max_steps"] * goal.tokens_per_step
    assert goal.tokens <= tokens < goal.tokens + goal.tokens_per_step
    ast.parse(files["krzem_train.py"])


@pytest.mark.parametrize("engine", TABLES)
def test_arguments_are_fields_of_the_real_class(engine: str, tmp_path: Path) -> None:
    real = pytest.importorskip("transformers").TrainingArguments
    kinds = typing.get_type_hints(real)
    fields = {field.name for field in dataclasses.fields(real)}
    launch = launched(engine, "dp=64,zero=3,recompute=full", loss="chunked", compile="off")
    named = json.loads(written(launch, tmp_path)["krzem_arguments.json"])
    assert set(named) <= fields
    for name, value in named.items():
        wanted = typing.get_args(kinds[name]) or (kinds[name],)
        plain = tuple(typing.get_origin(kind) or kind for kind in wanted)
        classes = tuple(kind for kind in plain if isinstance(kind, type))
        number = float in classes and isinstance(value, int)
        assert isinstance(value, classes) or number, (name, value)


def test_accelerate_reads_its_file(tmp_path: Path) -> None:
    arguments = pytest.importorskip("accelerate.commands.config.config_args")
    launch = launched("fsdp", "dp=64,zero=3,shard=8", grad_sync="last")
    written(launch, tmp_path)
    found = arguments.ClusterConfig.from_yaml_file(str(tmp_path / "krzem_accelerate.yaml"))
    assert found.num_processes == 64
    assert found.fsdp_config["fsdp_version"] == 2


def test_deepspeed_reads_its_file(tmp_path: Path) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    files = written(launched("deepspeed", "dp=64,zero=3,offload=1"), tmp_path)
    own = json.loads(files["krzem_deepspeed.json"])
    assert zero.DeepSpeedZeroConfig(**own["zero_optimization"]).stage == 3


@pytest.mark.parametrize("engine", TABLES)
def test_every_switch_is_written(engine: str) -> None:
    base = launched(engine, "dp=64,zero=3")
    taken: dict[str, set[str]] = {}

    def make(switches: dict[str, str]) -> Launch:
        named = {n.replace("-", "_"): c for n, c in switches.items()}
        return launched(engine, "dp=64,zero=3", **named)

    for switch, choice, launch in every_switch(make):
        typed(launch, engine)
        taken.setdefault(switch, set()).add(choice)
        if choice in ("chunked", "on"):
            assert launch.flags != base.flags or engine == "fsdp"
    assert taken["loss"] == {"plain", "fused", "chunked"}
    assert taken["compile"] == {"off", "on"}
    assert taken["attention"] == {"fused", "eager"}
    assert taken["dispatcher"] == {"alltoall", "allgather"}
    assert taken["routing"] == {"real"}
    both = {"every", "last"}
    assert taken["grad-sync"] == (both if engine == "fsdp" else {"every"})
    assert taken["overlap-grad-reduce"] == ({"on"} if engine == "fsdp" else {"off", "on"})


def test_attention_reaches_the_program(tmp_path: Path) -> None:
    program = written(launched("fsdp", "dp=64,zero=3", attention="eager"), tmp_path)
    assert '"attn_implementation": "eager"' in program["krzem_train.py"]
    without = written(launched("fsdp", "dp=64,zero=3"), tmp_path)
    assert "    attention = {}  #" in without["krzem_train.py"]


def test_states_of_two_bytes(tmp_path: Path) -> None:
    half = replace(GOAL, states=StateBytes(weight=2, gradient=2, master=0, moments=4))
    fsdp = written(launched("fsdp", "dp=64,zero=3", half), tmp_path)
    assert "dtype = torch.bfloat16" in fsdp["krzem_train.py"]
    files = written(launched("deepspeed", "dp=64,zero=3", half), tmp_path)
    assert json.loads(files["krzem_deepspeed.json"])["bf16"]["bf16_optimizer_states"]


@pytest.mark.parametrize(
    ("engine", "layout", "says"),
    [
        ("fsdp", "dp=64,zero=1", "plan with zero=2 or zero=3"),
        ("fsdp", "dp=16,cp=4,zero=3,cpkind=a2a", "allgather or ring"),
        ("deepspeed", "dp=64,zero=3,shard=8", "shard=0"),
        ("deepspeed", "dp=16,cp=4,zero=3", "plan with cp=1"),
        ("deepspeed", "tp=8,dp=8,zero=3", "plan with tp=1"),
        ("fsdp", "pp=4,dp=16,zero=1", "plan with pp=1"),
    ],
)
def test_impossible_layouts_are_refused(engine: str, layout: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        launched(engine, layout)


def test_other_refusals() -> None:
    fp8 = replace(GOAL, precision=Precision.FP8)
    with pytest.raises(GoalError, match="choose bf16"):
        launched("deepspeed", "dp=64,zero=3", fp8)
    assert launched("fsdp", "dp=64,zero=3", fp8).flags
    with pytest.raises(GoalError, match="offload-activations"):
        launched("deepspeed", "dp=64,zero=3", offload_activations="on")
