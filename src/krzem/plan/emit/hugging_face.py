"""Hugging Face's Trainer: its arguments as JSON, and a short program that starts it.

Names are fields of ``TrainingArguments`` in transformers 5.23.0
(``facts/engine_flags/transformers-5.23.0.csv``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import Optimizer, Precision, Recompute
from krzem.plan.emit.launch import Choices, Flag, Installed, Part, Request, Section, ask, section
from krzem.plan.emit.parts import known, literal, merged, python_package, quoted

TABLE = "transformers-5.23.0"
ARGUMENTS = "krzem_arguments.json"
PROGRAM = "krzem_train.py"
INSTALLED = Installed(name="transformers", command=python_package("transformers"), version="5.")

_PREAMBLE = (
    '"""Trains a model from its configuration on rows of equally many tokens."""',
    "",
    "import os",
    "import sys",
    "",
    "import torch",
    "from datasets import load_from_disk",
    "from transformers import (",
    "    AutoConfig,",
    "    AutoModelForCausalLM,",
    "    HfArgumentParser,",
    "    Trainer,",
    "    TrainingArguments,",
    "    default_data_collator,",
    ")",
    "from transformers.trainer_utils import get_last_checkpoint",
    "",
    "",
    "def rows(sequence):",
    '    """The data: columns input_ids and labels, each row of ``sequence`` tokens."""',
    '    data = load_from_disk(os.environ["DATA"])',
    '    found = len(data[0]["input_ids"])',
    "    if found != sequence:",
    '        sys.exit(f"rows of {found} tokens, planned for {sequence}: pack them anew")',
    '    if "labels" not in data.column_names:',
    '        data = data.map(lambda row: {"labels": row["input_ids"]})',
    "    return data",
    "",
    "",
    "def main():",
    "    (arguments,) = HfArgumentParser(TrainingArguments).parse_json_file(sys.argv[1])",
)
_ENDING = (
    '    config = AutoConfig.from_pretrained(os.environ["MODEL"], use_cache=False)',
    "    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)",
    "    trainer = Trainer(",
    "        model=model, args=arguments, train_dataset=rows(sequence),",
    "        data_collator=default_data_collator,",
    "    )",
    "    folder = arguments.output_dir",
    "    last = get_last_checkpoint(folder) if os.path.isdir(folder) else None",
    "    trainer.train(resume_from_checkpoint=last)",
    "",
    "",
    'if __name__ == "__main__":',
    "    main()",
)


def arguments(request: Request, extra: Iterable[Flag], switches: Iterable[Flag]) -> Part:
    """The JSON of TrainingArguments; ``extra`` is what an engine adds."""
    priced = tuple(switches)
    flags = merged((*_arguments(request), *extra), over=priced)
    sections = (
        section("Arguments of the Trainer", known(flags, TABLE)),
        section("Switches that were priced", known(merged(priced), TABLE)),
    )
    return Part(
        path=ARGUMENTS, syntax="json", sections=tuple(part for part in sections if part.flags)
    )


def _arguments(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    steps = request.save_steps
    yield Flag("output_dir", quoted(ask("CHECKPOINTS", "folder for checkpoints")), "results")
    yield Flag("per_device_train_batch_size", str(x.micro_batch), "sequences per pass and rank")
    yield Flag("gradient_accumulation_steps", str(request.micro_batches),
               f"passes of a step of {goal.global_batch} sequences on dp = {x.dp}")  # fmt: skip
    yield Flag("max_steps", str(request.steps), f"{goal.tokens:.4g} tokens")
    yield Flag("learning_rate", ask("LR", "peak learning rate"), "belongs to the recipe")
    yield Flag("bf16", _whether(goal.precision is Precision.BF16), "16-bit products, bfloat16")
    yield Flag("fp16", _whether(goal.precision is Precision.FP16), "16-bit products, float16")
    yield Flag("dataloader_drop_last", "true", "every step has the whole batch")
    yield Flag("save_strategy", '"steps"', "checkpoints by steps")
    yield Flag("save_steps",
               ask("SAVE_STEPS", "steps between checkpoints") if steps is None else str(steps),
               "steps between checkpoints, as the plan forecasts")  # fmt: skip
    yield Flag("logging_steps", "1", "a line for each step")


def _whether(value: bool) -> str:
    return "true" if value else "false"


def program(request: Request, dtype: str) -> Part:
    """The program: model by its configuration, rows of tokens, the Trainer."""
    kind = "eager" if request.switches.get("attention") == "eager" else "sdpa"
    given = f'{{"attn_implementation": "{kind}"}}' if "attention" in request.switches else "{}"
    flags = (
        Flag("sequence", str(request.goal.sequence), "tokens per row"),
        Flag("dtype", dtype, "type of the weights that are kept"),
        Flag("attention", given, "kernels of attention, where they were priced"),
    )
    return Part(
        path=PROGRAM,
        syntax="python",
        sections=(Section(title="What the plan says", flags=flags),),
        preamble=_PREAMBLE,
        ending=_ENDING,
    )


def environment() -> Iterator[Flag]:
    """What the program reads."""
    yield Flag("MODEL", ask("MODEL", "folder or name of the model, its config.json"), "the model")
    yield Flag("DATA", ask("DATA", "folder of a tokenised data set (save_to_disk)"), "tokens")


def trainer_choices() -> Choices:
    """Switches that the Trainer has under every engine."""
    liger = ("use_liger_kernel", "true")
    return {
        "loss": {
            "plain": (("use_liger_kernel", "false"),),
            "fused": (liger, ("liger_kernel_config", _liger("cross_entropy"))),
            "chunked": (liger, ("liger_kernel_config", _liger("fused_linear_cross_entropy"))),
        },
        "compile": {
            "off": (("torch_compile", "false"),),
            "on": (("torch_compile", "true"),),
        },
        "attention": {"fused": (), "eager": ()},
        "routing": {"real": ()},
        "cuda-graphs": {"none": ()},
        "fused-accumulation": {"off": ()},
        "overlap-a2a": {"off": ()},
        "overlap-tp": {"off": ()},
        "offload-activations": {"off": ()},
        "dispatcher": {"alltoall": (), "allgather": ()},  # experts are not spread
    }


def _liger(one: str) -> str:
    names = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
    return literal({name: name == one for name in names})


def check(request: Request, engine: str) -> None:
    """What no engine behind the Trainer runs; raises LayoutError, GoalError."""
    x, goal = request.layout, request.goal
    faults = (
        (x.pp > 1, f"pp = {x.pp}: the Trainer has no pipeline; plan with pp=1"),
        (x.tp > 1, f"tp = {x.tp}: a model made from its configuration is not cut; plan with tp=1"),
        (x.ep > 1, f"ep = {x.ep}: experts are not spread; plan with ep=1"),
        (x.recompute is Recompute.MODULES,
         "recompute=modules: whole layers or nothing; plan with none or full"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{engine} cannot run this layout: {text}")
    if goal.optimizer is not Optimizer.ADAMW:
        raise GoalError(f"{engine} is emitted with AdamW, not {goal.optimizer}; choose adamw")


def notes(request: Request) -> Iterator[str]:
    """What the Trainer leaves out or does otherwise."""
    x = request.layout
    if x.recompute is Recompute.FULL and x.recompute_layers is not None:
        yield f"full recomputation is for all layers, not {x.recompute_layers} per rank"
    if request.arch.mtp_layers:
        yield "multi-token prediction is left out: transformers builds no such modules"
    yield "weights are initialised as the model's configuration says, not loaded"
    yield (
        "learning-rate schedule, warm-up, weight decay and clipping belong to the recipe and are"
        " left at the Trainer's defaults"
    )
