"""Fine-tuning: what is trained, what has adapters beside it; bytes of states of any run.

Full fine-tuning is training that starts from weights: the price of a step is that of
pre-training.  With adapters (LoRA, arXiv 2106.09685) a matrix ``W`` of ``[out, in]`` stays as it
is and ``B A`` of rank ``r`` is trained beside it: ``r (in + out)`` parameters.  The backward pass
then needs the gradient by the input of every matrix and by no weight: two thirds of the FLOPs of
its products.  QLoRA (arXiv 2305.14314) keeps the frozen matrices in 4 bits and restores them before
each use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from krzem.cost.sizes import ADAPTER_RANK, Kept
from krzem.errors import GoalError, UnknownNameError, shorten
from krzem.layout.layout import Optimizer, StateBytes
from krzem.model.architecture import Architecture, Attention, AttentionKind, Layer
from krzem.model.parameters import flops_by_part
from krzem.model.table import projections
from krzem.plan.goal import Goal, Tuning
from krzem.plan.question import Picker, read
from krzem.quantity import Written, parse_count

KINDS = ("full", "lora", "qlora")
EVERYWHERE = ("attention", "mlp")
ON_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ON_MLP = ("gate_proj", "up_proj", "down_proj")
ENDS = "embeddings"
"""Embedding and output matrix, trained whole beside the adapters (PEFT's ``modules_to_save``)."""
TARGETS = ("all", *EVERYWHERE, *ON_ATTENTION, *ON_MLP, ENDS)
MOST_RANK = 4096


def read_tuning(
    kind: str | None, rank: Written | None, targets: str | None, notes: list[str]
) -> Tuning:
    """What ``--finetune``, ``--lora-rank`` and ``--lora-targets`` ask for; choices go to ``notes``.

    Raises UnknownNameError for a kind or target, GoalError for a rank or for options of adapters
    without adapters.
    """
    name = (kind or "none").strip().lower()
    if name not in (*KINDS, "none"):
        raise UnknownNameError("kind of fine-tuning", name, KINDS, f"Known: {', '.join(KINDS)}.")
    if name in ("none", "full"):
        if rank is not None or targets is not None:
            raise GoalError(
                "--lora-rank and --lora-targets are of adapters: add --finetune lora (16-bit base)"
                " or --finetune qlora (4-bit base)"
            )
        return Tuning(kind=name)
    found = int(ADAPTER_RANK) if rank is None else int(read("--lora-rank", parse_count, rank))
    if not 1 <= found <= MOST_RANK:
        raise GoalError(f"--lora-rank {found:,}: a rank from 1 to {MOST_RANK:,} is needed")
    if rank is None or targets is None:
        said = [f"rank {found}"] if rank is None else []
        said += ["adapters on every matrix of the layers"] if targets is None else []
        notes.append(f"{' and '.join(said)}: usual, and not stated (--lora-rank, --lora-targets)")
    return Tuning(kind=name, rank=found, targets=_targets(targets))


def _targets(text: str | None) -> tuple[str, ...]:
    names = [part.strip().lower() for part in (text or "all").split(",") if part.strip()]
    wrong = next((name for name in names if name not in TARGETS), None)
    if wrong is not None or not names:
        raise UnknownNameError(
            "adapter target", wrong or (text or ""), TARGETS, f"Known: {', '.join(TARGETS)}."
        )
    ends = (ENDS,) if ENDS in names else ()
    rest = EVERYWHERE if "all" in names else tuple(n for n in TARGETS[:-1] if n in names)
    return rest + ends


def check_targets(tuning: Tuning, architecture: Architecture) -> None:
    """Refuse names of projections that the model's attention does not have; raises GoalError."""
    named = [t for t in tuning.targets if t in ON_ATTENTION]
    kinds = {run.layer.attention.kind for run in architecture.runs}
    odd = sorted(str(kind) for kind in kinds - {AttentionKind.GROUPED, AttentionKind.NONE})
    if named and odd:
        raise GoalError(
            f"--lora-targets {','.join(named)}: {architecture.name} has {' and '.join(odd)}"
            " attention, whose projections are others: write attention, mlp or all"
        )
    if set(tuning.targets) <= {"mlp", *ON_MLP, ENDS} and tuning.targets and architecture.is_moe:
        raise GoalError(
            f"--lora-targets {','.join(tuning.targets)}: the networks of {architecture.name} are"
            " experts, and adapters on experts are not modelled: write attention or all"
        )


def left_out(tuning: Tuning, architecture: Architecture) -> str | None:
    """What of the model has no adapters here; None where nothing is left out."""
    layers = [run.layer for run in architecture.runs]
    parts = {
        "experts": any(layer.feed_forward.is_moe for layer in layers),
        "recurrent layers": any(layer.recurrence for layer in layers),
    }
    named = " and ".join(name for name, there in parts.items() if there)
    return f"adapters on {named} are not modelled" if tuning.adapters and named else None


def shares(tuning: Tuning, architecture: Architecture) -> tuple[float, float]:
    """Shares (0 to 1) of the width of attention's and of the networks' matrices with adapters."""
    targets, runs, hidden = tuning.targets, architecture.runs, architecture.hidden
    attention = [(r.count, _attention_widths(r.layer.attention, hidden)) for r in runs]
    mlp = [(r.count, _mlp_widths(r.layer, hidden)) for r in runs]
    return _share(targets, "attention", attention), _share(targets, "mlp", mlp)


def adapted(tuning: Tuning) -> tuple[float, float]:
    """Number of matrices with adapters in a layer's attention and in its network."""
    return (
        _number(tuning.targets, "attention", ON_ATTENTION),
        _number(tuning.targets, "mlp", ON_MLP),
    )


def _number(targets: Sequence[str], word: str, names: Sequence[str]) -> float:
    return float(len(names) if word in targets else sum(name in targets for name in names))


def _share(
    targets: Sequence[str], word: str, layers: Sequence[tuple[int, Mapping[str, float]]]
) -> float:
    """Of ``layers`` (how many, width by matrix): the share that ``targets`` names."""
    if word in targets:
        return 1.0
    whole = sum(count * sum(widths.values()) for count, widths in layers)
    asked = sum(count * sum(widths.get(t, 0.0) for t in targets) for count, widths in layers)
    return asked / whole if whole else 0.0


def _attention_widths(a: Attention, hidden: int) -> dict[str, float]:
    if a.kind is not AttentionKind.GROUPED:
        return {}
    keys, values = a.kv_heads * a.head_dim, a.kv_heads * a.value_dim
    widths = (a.heads * a.head_dim, keys, values, a.heads * a.value_dim)
    return dict(zip(ON_ATTENTION, (float(hidden + width) for width in widths), strict=True))


def _mlp_widths(layer: Layer, hidden: int) -> dict[str, float]:
    f = layer.feed_forward
    names = ON_MLP if f.gated else ON_MLP[1:]
    return {} if f.is_moe or not f.width else dict.fromkeys(names, float(hidden + f.width))


def adapter_parameters(tuning: Tuning, architecture: Architecture) -> int:
    """Parameters of all adapters: rank times the inputs and outputs of their matrices.

    Latent attention is counted as its projections are: down, up and out.
    """
    attention, mlp = shares(tuning, architecture)
    hidden = architecture.hidden
    width = sum(
        run.count
        * (
            attention * _all_projections(run.layer.attention, hidden)
            + mlp * sum(_mlp_widths(run.layer, hidden).values())
        )
        for run in architecture.runs
    )
    return round(tuning.rank * width)


def _all_projections(attention: Attention, hidden: int) -> float:
    """Inputs plus outputs of the projections of one layer."""
    if attention.kind is AttentionKind.GROUPED:
        return sum(_attention_widths(attention, hidden).values())
    return sum(count * (k + n) for count, k, n, _ in projections(attention, hidden))


def trained_flops(goal: Goal, architecture: Architecture) -> float:
    """Model FLOPs per token: without those of weight gradients where weights are frozen."""
    part = flops_by_part(architecture, goal.sequence)
    if not goal.tuning.adapters:
        return part.total
    return part.total - (part.linear + part.logits + part.mtp) / 3.0


def kept_of(goal: Goal, architecture: Architecture) -> Kept:
    """What the run keeps in memory beside activations."""
    tuning = goal.tuning
    if not tuning.adapters:
        return Kept(states=goal.states, finetune=tuning.kind)
    attention, mlp = shares(tuning, architecture)
    return Kept(
        finetune=tuning.kind, rank=float(tuning.rank), on_attention=attention, on_mlp=mlp,
        trained_ends=ENDS in tuning.targets,
    )  # fmt: skip


# Bytes per parameter of weights, gradients and optimizer states: given, published or usual
# -----------------------------------------------------------------------------------------

NARROW = StateBytes(weight=2.0, gradient=2.0, master=0.0, moments=4.0)
"""Of loops that train the 16-bit weights they load, one device each (torchtune, TRL)."""
ADAPTERS_KEEP = StateBytes(weight=4.0, gradient=4.0, master=0.0, moments=8.0)
"""Of a parameter of an adapter: all in 32 bits (PEFT's default)."""


def states_of(
    picker: Picker, optimizer: Optimizer, gradient: float, tuning: Tuning, devices: int
) -> StateBytes:
    """Bytes per parameter: those given, over those published, over those that the engine keeps.

    With adapters they are those of a parameter of an adapter.  Raises GoalError where they are
    given all the same.
    """
    moments = 8.0 if optimizer is Optimizer.ADAMW else 4.0
    usual = StateBytes(gradient=gradient, moments=moments)
    published: Mapping[str, float] = {} if picker.recipe is None else picker.recipe.state_bytes
    if picker.question.optimizer not in (None, picker.recipe and picker.recipe.optimizer):
        published = {}
    given = read_state_bytes(picker.question.state_bytes)
    tuned = usual_states(tuning, devices, bool(given), picker.notes)
    if tuned is not None:
        return replace(tuned, **given)
    if set(published) - set(given):
        picker.taken.append("state_bytes")
    return replace(usual, **{**published, **given})


def read_state_bytes(text: str | None) -> dict[str, float]:
    """``weight=2,moments=4`` as numbers by field; raises GoalError."""
    names = [f.name for f in fields(StateBytes)]
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in (text or "").split(","))):
        name, _, raw = (piece.strip() for piece in part.partition("="))
        try:
            value = float(raw)
        except ValueError:
            value = -1.0
        if name not in names or name in found or not 0 <= value <= 64:
            raise GoalError(
                f"--state-bytes {shorten(part, 40)!r}: write each of {', '.join(names)} at most"
                " once, with bytes per parameter from 0 to 64, such as weight=2,moments=4"
            )
        found[name] = value
    if found.get("weight", 1.0) <= 0:
        raise GoalError("--state-bytes weight=0: a weight takes bytes, such as weight=2")
    return found


def usual_states(tuning: Tuning, devices: int, given: bool, notes: list[str]) -> StateBytes | None:
    """Bytes of states of fine-tuning where nobody states them; None: those of pre-training.

    ``given`` says that some are stated; raises GoalError where adapters leave nothing to state.
    """
    if tuning.adapters:
        if given:
            raise GoalError(
                f"--state-bytes with --finetune {tuning.kind}: the weights are frozen (2 bytes, or"
                " half a byte with qlora) and adapters are trained in 32 bits; leave it out"
            )
        base = "4 bits" if tuning.kind == "qlora" else "16 bits"
        notes.append(
            f"frozen weights in {base}; adapters, their gradients and moments in"
            " 32 bits; MFU counts no gradients of frozen weights"
        )
        return ADAPTERS_KEEP
    if tuning.kind != "full" or given:
        return None
    if devices == 1:
        notes.append(
            "one device trains the 16-bit weights that it loads, all states in 16 bits: 8 bytes a"
            " parameter (--state-bytes weight=2,gradient=4,master=4,moments=8 for 32 bits)"
        )
        return NARROW
    notes.append(
        "master weights and moments in 32 bits, as in pre-training; loops that train in 16 bits"
        " keep half: --state-bytes weight=2,gradient=2,master=0,moments=4"
    )
    return None
