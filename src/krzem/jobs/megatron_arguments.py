"""The arguments of a Megatron-like program, however they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.megatron_flags import takes_no_value
from krzem.jobs.shell_words import ShellWord, State
from krzem.jobs.tree import (
    Entry,
    Open,
    Tree,
    UnclearError,
    integer,
    truth,
)

LONGEST_NUMBER = 18
LONGEST_PATTERN = 2_000
"""Characters of a pattern of layers or stages."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A flag and the values after it."""

    flag: str
    """Canonical: ``--num-layers``, whatever underscores were written."""
    values: tuple[str, ...]
    place: Place
    value_place: Place
    state: State = State.KNOWN
    """UNKNOWN where a value is not known, MAYBE where the flag may not be there."""

    @property
    def text(self) -> str:
        """The values, joined."""
        return " ".join(self.values)


class Arguments:
    """All arguments; a later one replaces an earlier one, as argparse has it."""

    def __init__(self, arguments: Iterable[Argument], job: JobBuilder) -> None:
        self.job = job
        self.all: dict[str, Argument] = {}
        self.used: set[str] = set()
        self.unsure: dict[str, Argument] = {}
        """Flags under a condition that is not known."""
        for argument in arguments:
            if argument.state is State.MAYBE:
                self.unsure[argument.flag] = argument
            else:
                self.all.pop(argument.flag, None)
                self.all[argument.flag] = argument

    def find(self, *flags: str) -> Argument | None:
        """The last of these flags that is given; all of them count as understood."""
        found = None
        for flag, argument in self.all.items():
            if flag in flags:
                self.used.add(flag)
                found = argument
        return found

    def has(self, *flags: str) -> bool:
        """Whether one of these flags is given."""
        return self.find(*flags) is not None

    def doubt(self, field: str, *flags: str) -> bool:
        """Whether one of these flags may be given or not; then the field is asked for."""
        for flag in flags:
            argument = self.unsure.get(flag)
            if argument is not None:
                self.used.add(flag)
                self.job.ask(
                    field,
                    f"{flag} at {argument.place} stands under a condition that is not known",
                    f"give {field}",
                )
                return True
        return False

    def text(self, field: str, *flags: str) -> tuple[str, Place] | None:
        """The value of a flag; asked for where it is not known, None where it is not given."""
        argument = self.find(*flags)
        doubtful = self.doubt(field, *flags)
        if argument is None or doubtful:
            return None
        if argument.state is not State.KNOWN:
            self.job.ask(
                field,
                f"{argument.flag} is {argument.text or 'empty'} at {argument.place},"
                " which no given file decides",
                f"give {field}",
            )
            return None
        if not argument.values:
            self.job.fault(argument.place, f"{argument.flag} has no value")
            return None
        return argument.values[0], argument.value_place

    def number(self, field: str, *flags: str) -> tuple[int, Place] | None:
        """The value of a flag that takes a whole number; a fault where it is none."""
        found = self.text(field, *flags)
        if found is None:
            return None
        text, place = found
        number = whole(text)
        several = self.find(*flags)
        if several is not None and len(set(several.values)) > 1:
            self.job.not_understood(
                place, f"{several.flag} has several values, {several.text[:60]}: layers differ"
            )
            return None
        if number is None:
            self.job.fault(place, f"{flags[0]} takes a whole number, not {text[:40]!r}")
            return None
        return number, place

    def open(self, *flags: str) -> bool:
        """Whether one of these flags is given with a value nobody knows, or in doubt."""
        return any(
            flag in self.unsure or (flag in self.all and self.all[flag].state is not State.KNOWN)
            for flag in flags
        )

    def left(self) -> Iterator[Argument]:
        """Arguments that nothing has asked for."""
        for flag, argument in {**self.unsure, **self.all}.items():
            if flag not in self.used:
                yield argument


def whole(text: str) -> int | None:
    """A whole number as Python's ``int`` reads it (``6_348_800`` too), within bounds."""
    if len(text) > LONGEST_NUMBER + 6 or not re.fullmatch(r"[+-]?\d+(_\d+)*", text.strip()):
        return None
    number = int(text)
    return number if abs(number) < 10**LONGEST_NUMBER else None


def canonical_flag(text: str) -> str:
    """``--num_layers`` and ``--num-layers`` are one flag."""
    return "--" + text.lstrip("-").replace("_", "-")


def from_words(
    words: Sequence[ShellWord], places: Mapping[int, Place], job: JobBuilder
) -> list[Argument]:
    """Arguments of a command line; ``places`` gives the line of each word by its index."""
    arguments: list[Argument] = []
    index = 0
    commented = _commented(words, job, places)
    kept = [i for i in range(len(words)) if i not in commented]
    while index < len(kept):
        word = words[kept[index]]
        place = places[kept[index]]
        index += 1
        if not _is_flag(word.text):
            _stray(word, place, job)
            continue
        flag, equals, value = word.text.partition("=")
        if "$" in flag:
            _hidden(word, place, job)
        taken: list[ShellWord] = [ShellWord(value, word.origin, word.state)] if equals else []
        first = place
        while not equals and index < len(kept) and not _is_flag(words[kept[index]].text):
            if not taken:
                first = places[kept[index]]
            taken.append(words[kept[index]])
            index += 1
        taken, loose = _limited(taken, takes_no_value(canonical_flag(flag)))
        for odd in loose:
            _stray(odd, place, job)
        arguments.append(
            Argument(
                canonical_flag(flag),
                tuple(unquoted(w.text) for w in taken),
                place,
                first,
                _state(word, taken),
            )
        )
    return arguments


def _limited(taken: list[ShellWord], alone: bool) -> tuple[list[ShellWord], list[ShellWord]]:
    """What a flag takes, and variables after it that rather hold further flags."""
    open_words = [w for w in taken if w.state in (State.UNSET, State.UNKNOWN)]
    loose = [w for w in open_words if alone or (w is not taken[0] and w.state is State.UNSET)]
    return [w for w in taken if not any(w is other for other in loose)], loose


def _state(flag: ShellWord, values: Sequence[ShellWord]) -> State:
    if State.MAYBE in (flag.state, *(v.state for v in values)):
        return State.MAYBE
    return max((flag.state, *(v.state for v in values)), default=State.KNOWN)


def _is_flag(text: str) -> bool:
    return re.match(r"--[A-Za-z$]|-[A-Za-z]", text) is not None


def unquoted(text: str) -> str:
    """A value without the quotes that a string within a string keeps."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return unquoted(text[1:-1])
    return text


def _hidden(word: ShellWord, place: Place, job: JobBuilder) -> None:
    """A flag whose name is in a variable."""
    if re.search(r"prec|type|fp|quant", word.text, re.I):
        job.ask("precision", f"{word.text[:60]} at {place} is not known", "give the precision")
    job.note(f"{word.text[:60]} at {place} is a flag that no given file decides")


def _stray(word: ShellWord, place: Place, job: JobBuilder) -> None:
    """A word that belongs to no flag: what it may hold decides what defaults are worth."""
    if word.state is State.UNSET or re.fullmatch(r"\s*\$\{?[@*\d]+\}?\s*", word.text):
        job.note(f"{word.text} at {place} is set by no given file and was taken as empty")
        if job.helpers:
            job.doubtful = f"{word.text} at {place} may be set by {job.helpers}"
    elif not word.known:
        job.note(f"{word.text[:80]} at {place} is not known; it may hold further arguments")
        job.doubtful = f"{word.text[:80]} at {place} may hold further arguments"
    elif word.text.strip("\\ "):
        job.not_understood(place, f"{word.text[:60]!r} stands where an argument's name must be")


def _commented(
    words: Sequence[ShellWord], job: JobBuilder, places: Mapping[int, Place]
) -> set[int]:
    """Words that follow a ``#`` on the same line of a quoted string."""
    dropped: set[int] = set()
    for index, word in enumerate(words):
        if word.text.startswith("#") and word.known and index not in dropped:
            line = (places[index].file, places[index].line)
            rest = index
            while rest < len(words) and (places[rest].file, places[rest].line) == line:
                dropped.add(rest)
                rest += 1
            job.note(
                f"{places[index]}: '#' inside a quoted string is no comment for the shell;"
                " the words after it were left out as its author means it"
            )
    return dropped


_NEGATED: Mapping[str, str] = {
    "add_bias_linear": "--disable-bias-linear",
    "gradient_accumulation_fusion": "--no-gradient-accumulation-fusion",
    "masked_softmax_fusion": "--no-masked-softmax-fusion",
    "apply_rope_fusion": "--no-rope-fusion",
    "bias_gelu_fusion": "--no-bias-gelu-fusion",
    "bias_swiglu_fusion": "--no-bias-swiglu-fusion",
    "bias_dropout_fusion": "--no-bias-dropout-fusion",
    "overlap_p2p_comm": "--no-overlap-p2p-communication",
    "async_tensor_model_parallel_allreduce": "--no-async-tensor-model-parallel-allreduce",
    "check_for_nan_in_loss_and_grad": "--no-check-for-nan-in-loss-and-grad",
    "gated_linear_unit_off": "--no-gated-linear-unit",
}
"""Names that are true where their flag is absent."""


_RENAMED: Mapping[str, str] = {
    "fp8": "--fp8-format",
    "fp4": "--fp4-format",
    "fp8_param_gather": "--fp8-param-gather",
    "fp8_param": "--fp8-param-gather",
    "rope_theta": "--rotary-base",
    "qk_pos_emb_head_dim": "--qk-pos-emb-head-dim",
    "moe_enable_deepep": "--moe-enable-deepep",
    "virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "moe_router_force_load_balancing": "--moe-router-force-load-balancing",
}


_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


_FLAGS = (
    "sequence_parallel", "swiglu", "bf16", "fp16", "group_query_attention", "qk_layernorm",
    "use_distributed_optimizer", "untie_embeddings_and_output_weights", "overlap_grad_reduce",
    "overlap_param_gather", "recompute_activations", "multi_latent_attention", "moe_grouped_gemm",
)  # fmt: skip
"""Names that stand for a flag without a value, so that ``1`` is true."""


def arguments_of(tree: Tree) -> list[Argument]:
    """The flags that a table of settings stands for; an open value is an unknown argument."""
    dropped = set(_dropped(tree))
    found = [_argument(e) for k, e in tree.entries.items() if k not in dropped]
    return [argument for argument in found if argument is not None]


def _dropped(tree: Tree) -> list[str]:
    """Names without effect: of latent attention, groups or experts that the model has not."""
    names: list[str] = []
    if _off(tree, "multi_latent_attention"):
        names.extend(_LATENT)
    if _off(tree, "group_query_attention"):
        names.append("num_query_groups")
    if "num_experts" in tree.entries and _none(tree.value("num_experts")):
        names.extend(k for k in tree.entries if k.startswith("moe_") or k == "num_experts")
    return names


def _off(tree: Tree, key: str) -> bool:
    value = tree.value(key)
    try:
        return value is not None and not isinstance(value, Open) and not truth(value)
    except UnclearError:
        return False


def _none(value: object) -> bool:
    try:
        return value is None or integer(value) < 1
    except UnclearError:
        return False


def _argument(entry: Entry) -> Argument | None:
    key, value, place = entry.key, entry.value, entry.place
    if isinstance(value, Open):
        flag = _NEGATED.get(key) or _RENAMED.get(key) or canonical_flag(key)
        return Argument(flag, (value.text,), place, place, State.UNKNOWN)
    if key in _NEGATED:
        return Argument(_NEGATED[key], (), place, place) if value is False else None
    flag = _RENAMED.get(key) or canonical_flag(key)
    if key in _FLAGS and not isinstance(value, bool):
        try:
            value = truth(value)
        except UnclearError:
            return None
    if value is None or value is False or value in ("null", "None", ""):
        return None
    return Argument(flag, words_of_value(value), place, place)


def words_of_value(value: object) -> tuple[str, ...]:
    if value is True:
        return ()
    if isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**15:
        return (str(int(value)),)
    return (str(value),)
