"""Megatron-LM, MindSpeed-LLM and Megatron-DeepSpeed, from the script that starts them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from krzem.errors import InputError
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.launch import (
    Launch,
    at,
    distinct,
    launches,
    scripts,
    state_device,
    state_devices,
)  # fmt: skip
from krzem.jobs.megatron_arguments import Argument, Arguments, canonical_flag, from_words
from krzem.jobs.megatron_flags import (
    DEEPSPEED,
    DEFAULTS,
    KNOWN,
    MINDSPEED,
    NUMBERS,
    why_ignored,
)  # fmt: skip
from krzem.jobs.megatron_layout import layout
from krzem.jobs.megatron_model import deepspeed, model
from krzem.jobs.megatron_precision import precision, switches
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.shell import Command, Script
from krzem.jobs.shell_words import Origin, ShellWord, State

# Arguments of Megatron-LM that a script takes out of a YAML table by ``yq``
# --------------------------------------------------------------------------

_ENTRY = re.compile(r"^\s+[\"']?(--?[\w-]+)[\"']?\s*:\s*(.*?)\s*$")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def tabled(
    word: ShellWord, variables: Mapping[str, ShellWord], sources: Sources
) -> list[ShellWord] | None:
    """The words that the table holds, where this unknown word reads one; None for others."""
    if word.state is not State.UNKNOWN or "yq" not in word.text or "MODEL_ARGS" not in word.text:
        return None
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^MODEL_ARGS\s*:", text, re.M):
            return _words(name, text, variables)
    return None


def _words(name: str, text: str, variables: Mapping[str, ShellWord]) -> list[ShellWord]:
    words: list[ShellWord] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\S", line) and not line.startswith("#"):
            inside = re.match(r"MODEL_ARGS\s*:", line) is not None
        match = _ENTRY.match(re.sub(r"\s#.*$", "", line)) if inside else None
        if match is None:
            continue
        words.extend(_entry(match[1], match[2], Origin(name, number), variables))
    return words


def _entry(
    flag: str, value: str, origin: Origin, variables: Mapping[str, ShellWord]
) -> list[ShellWord]:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    if value in ("false", ""):
        return []
    head = ShellWord(flag, origin)
    if value == "true":
        return [head]
    if not _VARIABLE.search(value):
        return [head, ShellWord(value, origin)]
    used = [variables.get(m[1] or m[2]) for m in _VARIABLE.finditer(value)]
    state = max((State.UNSET if v is None else v.state for v in used), default=State.KNOWN)
    filled = _VARIABLE.sub(lambda m: _text(m, variables), value)
    if filled == "false":
        return []
    if filled == "true":
        return [head]
    source = used[0].origin if len(used) == 1 and used[0] is not None else origin
    return [head, ShellWord(filled, source if source.line else origin, state)]


def _text(match: re.Match[str], variables: Mapping[str, ShellWord]) -> str:
    word = variables.get(match[1] or match[2])
    return match[0] if word is None else word.text


# Megatron-LM, MindSpeed-LLM and Megatron-DeepSpeed, from the script that starts them
# -----------------------------------------------------------------------------------

_PROGRAMS = re.compile(
    r"(pretrain|finetune|posttrain|train)_(gpt|llama\w*|mcore\w*|qwen\w*|mamba|hybrid|deepseek\w*|"
    r"mixtral\w*|t0|megatron\w*|prompt\w*|moe\w*|gpt_\w+|mistral\w*|baichuan\w*)\.py|"
    r"posttrain_gpt\.py"
)
_OTHER = re.compile(
    r".*(convert|eval|generat|infer|preprocess|hf2m|mcore2|export|server|tokeniz|merge|benchmark_|"
    r"analy[sz]|quantize|prune|distill_data|main\.py$|check|test_)",
    re.I,
)
"""Programs with the same arguments that train nothing."""
_SHOWS = ("--tensor-model-parallel-size", "--num-layers", "--hidden-size", "--micro-batch-size")
_VERSIONS = ("MCORE_RELEASE_VERSION",)


def claim(sources: Sources) -> Claim | None:
    """A program of the family is started, or one with its arguments."""
    found = _starts(sources)
    if not found:
        return None
    script, launch = found[0]
    flags = {canonical_flag(w.text.partition("=")[0]) for w in launch.args
             if w.text.startswith("--")}  # fmt: skip
    shown = sum(flag in flags for flag in _SHOWS)
    reads_table = any(tabled(w, launch.command.environment, sources) for w in launch.args)
    named = _PROGRAMS.fullmatch(launch.name) is not None
    if not named and shown < 2 and not reads_table:
        return None
    engine, why = _engine(script, launch, flags)
    return Claim(
        engine=engine,
        strength=100 if shown or named else 60,
        why=f"{launch.name} is started at {at(launch.command.origin, sources.files)}{why}",
    )


def _starts(sources: Sources) -> list[tuple[Script, Launch]]:
    """The launches of all scripts, Megatron's programs first."""
    pairs = [(s, launch) for s in scripts(sources) for launch in distinct(launches(s))]
    pairs = [p for p in pairs if not _OTHER.match(p[1].name)]
    ours = [p for p in pairs if _PROGRAMS.fullmatch(p[1].name) or _has_layout(p[1].args)]
    return ours or pairs


def _has_layout(args: Sequence[ShellWord]) -> bool:
    return sum(word.text.partition("=")[0] in _SHOWS for word in args) >= 2


def _engine(script: Script, launch: Launch, flags: set[str]) -> tuple[str, str]:
    written = any("zero_optimization" in text for text, _, _ in script.documents.values())
    if flags & DEEPSPEED or "deepspeed" in launch.launchers or written:
        return "megatron-deepspeed", " with DeepSpeed"
    marks = flags & MINDSPEED
    spec = any("mindspeed" in word.text for word in launch.args)
    names = {*script.variables, *launch.command.environment}
    npu = [n for n in names if re.match(r"NPUS_PER_NODE|HCCL_|ASCEND_|NPU_", n)]
    if len(marks) >= 2 or spec or (npu and marks):
        return "mindspeed-llm", f" with {min(marks) if marks else 'a MindSpeed layer'}"
    if npu:
        return "mindspeed-llm", f" on NPUs ({npu[0]})"
    return "megatron-lm", ""


def read(sources: Sources, job: JobBuilder) -> None:
    """Everything that the scripts decide; raises InputError where they start no training."""
    found = _starts(sources)
    if not found:
        missing = [name for script in scripts(sources) for name in script.missing]
        hint = f"; it runs {missing[0]}, which was not given" if missing else ""
        raise InputError(f"no given script starts a training program{hint}: give that script too")
    script, launch = found[0]
    job.helpers = next((name[-60:] for name in script.sourced if name in script.missing), "")
    words = [word for w in launch.args for word in (
        tabled(w, launch.command.environment, sources) or [w])]  # fmt: skip
    arguments = _arguments(words, sources, job)
    if len(found) > 1 and _in_turn(found):
        job.note(f"{len(found)} trainings are started one after another; the first is read")
    elif len(found) > 1:
        arguments = _agreed(arguments, [pair[1] for pair in found[1:]], sources, job)
    state_devices(job, launch, sources)
    state_device(job, launch, sources)
    fill(arguments, job, (script, launch, sources))
    _surroundings(script, launch, sources, job)


def _in_turn(found: Sequence[tuple[Script, Launch]]) -> bool:
    """Whether one script starts all of them, each by a command of its own that does run.

    What a loop starts is a sweep: one of its turns is no more the job than another.
    """
    commands = [launch.command for _, launch in found]
    alone = len({id(script) for script, _ in found}) == 1
    return alone and all(c.certain and not c.repeated for c in commands)


def _arguments(words: Sequence[ShellWord], sources: Sources, job: JobBuilder) -> list[Argument]:
    places = {index: at(word.origin, sources.files) for index, word in enumerate(words)}
    return from_words(words, places, job)


def _agreed(
    arguments: list[Argument], others: Sequence[Launch], sources: Sources, job: JobBuilder
) -> list[Argument]:
    """Arguments on which several starts agree; the rest is not known."""
    quiet = JobBuilder(job.engine)
    tables = [{a.flag: a.values for a in _arguments(o.args, sources, quiet)} for o in others]
    job.note(
        f"{len(others) + 1} different trainings are started; what differs between them is open"
    )
    out = []
    for argument in arguments:
        same = all(table.get(argument.flag) == argument.values for table in tables)
        state = argument.state if same else max(argument.state, State.MAYBE)
        out.append(Argument(argument.flag, argument.values, argument.place,
                            argument.value_place, state))  # fmt: skip
    flags = {a.flag for a in arguments}
    for table in tables:
        for flag, values in table.items():
            if flag not in flags:
                out.append(Argument(flag, values, Place(), Place(), State.MAYBE))
    return out


def fill(
    arguments: Iterable[Argument],
    job: JobBuilder,
    start: tuple[Script, Launch, Sources] | None = None,
) -> None:
    """Fill the builder from Megatron's arguments, wherever they were written.

    ``start`` gives the script and its launch where there is one.
    """
    args = Arguments(arguments, job)
    mindspeed = job.engine == "mindspeed-llm"
    for field, flags in NUMBERS.items():
        found = args.number(field, *flags)
        if found is not None:
            job.state(field, *found)
    for field, (value, why) in DEFAULTS.items():
        if not args.open(*NUMBERS[field]):
            job.default(field, value, why)
    model(args, job, mindspeed)
    layout(args, job, mindspeed)
    precision(args, job, mindspeed)
    switches(args, job, mindspeed)
    if start is not None and job.engine == "megatron-deepspeed":
        deepspeed(args, job, start[0], start[2])
    _kind(args, job, start[1].name if start is not None else "")
    if not args.open("--global-batch-size", "--rampup-batch-size"):
        job.whole_batch = "no --global-batch-size: one micro-batch on every data-parallel rank"
    _rest(args, job)


def _kind(args: Arguments, job: JobBuilder, program: str) -> None:
    """Pre-training, or full or low-rank fine-tuning."""
    rank = args.find("--lora-r", "--lora-target-modules", "--lora-dim", "--lora-rank")
    four = args.find("--qlora", "--qlora-nf4")
    sft = args.find("--is-instruction-dataset", "--sft", "--finetune-mode")
    stage = args.text("finetune", "--stage", "--train-mode")
    if rank is not None:
        job.state("finetune", "qlora" if four is not None else "lora", rank.place)
    elif sft is not None or (stage is not None and stage[0] in ("sft", "finetune")):
        place = sft.place if sft is not None else stage[1] if stage is not None else Place()
        job.state("finetune", "full", place)
    elif program.startswith(("finetune", "posttrain")):
        job.derive("finetune", "full", f"{program} fine-tunes")
    else:
        job.default("finetune", "none", program or "pre-training")


def _rest(args: Arguments, job: JobBuilder) -> None:
    for argument in args.left():
        why = why_ignored(argument.flag)
        if argument.flag in KNOWN:
            continue
        if why is not None:
            job.ignore(argument.place, f"{argument.flag}: {why}")
        else:
            job.not_understood(argument.place, f"{argument.flag} may matter and is not known")


def _surroundings(script: Script, launch: Launch, sources: Sources, job: JobBuilder) -> None:
    for name in _VERSIONS:
        word = launch.command.environment.get(name) or script.variables.get(name)
        if word is not None and word.known and re.match(r"\d+\.\d+", word.text):
            job.state("engine_version", word.text, at(word.origin, sources.files))
            job.version = word.text
    _unused(script, launch, sources, job)
    for command in script.commands:
        _edits(command, sources, job)
    for name, origin in script.missing.items():
        job.note(f"{at(origin, sources.files)}: {name[-80:]} is run, but was not given")
    for command in script.commands:
        if command.words and command.words[0].text.startswith("--"):
            job.fault(
                at(command.origin, sources.files),
                f"the command before ends here, so {command.words[0].text} starts a new one:"
                " a line before it lacks its backslash or holds a comment",
            )


_WORLDS = ("WORLD_SIZE", "NUM_GPUS", "N_GPUS", "NGPUS", "GPU_NUM", "NUM_DEVICES")
LARGEST_NODE = 16
"""Devices of a node; a larger count is that of the job."""


def _unused(script: Script, launch: Launch, sources: Sources, job: JobBuilder) -> None:
    """Variables that the script sets and no option takes, where the options leave it open."""
    rows = script.variables.get("VOCAB_SIZE")
    if rows is not None and job.get("model.vocab") is None and _is_count(rows):
        place = at(rows.origin, sources.files)
        job.derive("model.vocab", int(rows.text), f"VOCAB_SIZE={rows.text}", place)
    if launch.launchers[-1:] != ("deepspeed",) or job.get("devices") or job.get("nodes"):
        return
    for name in _WORLDS:
        count = script.variables.get(name)
        if count is not None and _is_count(count) and int(count.text) > LARGEST_NODE:
            place = at(count.origin, sources.files)
            job.derive("devices", int(count.text), f"{name}={count.text}", place)
            return


def _is_count(word: ShellWord) -> bool:
    return word.known and re.fullmatch(r"[1-9]\d{0,6}", word.text) is not None


def _edits(command: Command, sources: Sources, job: JobBuilder) -> None:
    words = [word.text for word in command.words]
    if words[:1] == ["sed"] and any(w.startswith("-i") for w in words):
        files = [w for w in words if w.endswith(".py")]
        if files:
            job.note(
                f"{at(command.origin, sources.files)}: the script edits the engine's own code"
                f" ({files[0][-60:]}); what that changes is not read"
            )


READERS: tuple[Reader, ...] = (
    Reader(
        kind="Megatron-LM and its family",
        engines=("megatron-lm", "mindspeed-llm", "megatron-deepspeed"),
        claim=claim,
        read=read,
    ),
)
