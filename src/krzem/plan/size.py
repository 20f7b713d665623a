"""The largest model for a budget of compute, and the fewest devices for a date.

Of the model: its size and tokens, its shape, the loss to expect.  The budget is device-hours of a
cluster.  What it buys depends on the MFU, that on the shape, and that on the budget: so a shape is
made, its run is planned (layouts, failures, the distance of published runs) and the compute is
corrected until the run takes the budget.  How compute is divided between parameters and tokens is a
loss law's optimum or a given number of tokens per parameter.  The shape has the proportions of
published dense models (Llama 3): a start, not an optimum for the chip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from krzem.errors import ClusterError, GoalError, KrzemError
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.parameters import count
from krzem.plan.answer import Progress, plan_of
from krzem.plan.footprint import Loss, losses_of
from krzem.plan.goodput import FLOP_PER_PARAMETER_TOKEN, dense_laws, loss_law, scaling_laws
from krzem.plan.plan import Plan
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.plan.sweep import Point, point_at
from krzem.quantity import Written, parse_count

LAW = "besiroglu_2024"
"""Whose optimum is taken where no tokens per parameter are given."""
RATIOS = (20.0, 100.0, 500.0)
"""Tokens per parameter that are shown beside: Chinchilla's rule, and models made to be served."""
ROUNDS, CLOSE = 6, 0.03
"""Corrections of the compute, and how near to the budget is near enough."""
FIRST_MFU = 0.35
HEAD, WIDE = 128, 3.5
"""Width of a head; inner over outer width of the network (Llama 3 8B and 70B)."""
VOCABULARY = 128_256
SMALLEST, LARGEST = 20e6, 20e12
"""Parameters between which the proportions are meant to hold, roughly."""
LEAST_BATCH = 64
"""Sequences: fewer are below what the law of batches was fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to divide the compute."""

    rule: str
    parameters: float
    tokens: float
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a budget buys."""

    device_hours: float
    """The budget."""
    rule: str
    config: dict[str, Any]
    """A ``config.json`` of the model, to be planned, changed and trained."""
    asked: Asked
    plan: Plan
    flop: float
    """``6 N D`` of the run."""
    splits: tuple[Split, ...]
    """The same compute divided by other rules."""


def shape(parameters: float, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """The config of a dense model of about that many parameters, in Llama 3's proportions.

    Layers follow the width as in Llama 3 (1B to 405B: one for 100 to 130 of width).  Raises
    GoalError outside what the proportions are good for.
    """
    if not SMALLEST <= parameters <= LARGEST:
        raise GoalError(
            f"a model of {parameters:.3g} parameters is outside the {SMALLEST:.0e} to"
            f" {LARGEST:.0e} that shapes are made for: change the budget or --tokens-per-parameter"
        )
    tied = parameters < 2e9
    step = HEAD * (1 if parameters < 5e8 else 4 if parameters < 3e9 else 8)
    sizes = ((abs(_parameters(h, tied, vocabulary) - parameters), h)
             for h in range(step, 400 * HEAD, step))  # fmt: skip
    hidden = min(sizes)[1]
    ends = (1 if tied else 2) * vocabulary * hidden
    layers = max(2, round((parameters - ends) / _of_a_layer(hidden)))
    heads = hidden // HEAD
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _inner(hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _groups(heads),
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
    }


def _groups(heads: int) -> int:
    return next(n for n in (8, 4, 2, 1) if heads % n == 0)


def _inner(hidden: int) -> int:
    return round(WIDE * hidden / 256) * 256


def _of_a_layer(hidden: int) -> float:
    heads = hidden // HEAD
    attention = 2.0 * hidden * hidden + 2.0 * hidden * _groups(heads) * HEAD
    return attention + 3.0 * hidden * _inner(hidden)


def _parameters(hidden: int, tied: bool, vocabulary: int) -> float:
    return (1 if tied else 2) * vocabulary * hidden + hidden / 115.0 * _of_a_layer(hidden)


def size(
    on: str | Cluster,
    device_hours: float,
    *,
    tokens_per_parameter: float | None = None,
    law: str = LAW,
    question: Question | None = None,
    progress: Progress | None = None,
) -> Size:
    """The largest dense model that ``device_hours`` of ``on`` train.

    ``question`` says the rest (precision, engine, sequence, …); its model, cluster and tokens are
    not read.  Raises GoalError for a budget that trains no model, and what a plan raises.
    """
    cluster = on if isinstance(on, Cluster) else read_cluster(on)
    if not 0 < device_hours < 1e12:
        raise GoalError(
            f"a budget of {device_hours:g} device-hours: more than none, and fewer than 1e12, are"
            " needed"
        )
    base = question or Question(model="", on=cluster)
    ratio, rule = _rule(tokens_per_parameter, law)
    peak = max(cluster.device.peak_flops.get(kind, 0.0) for kind in ("bf16", "fp16", "fp32"))
    flop = device_hours * 3600.0 * FIRST_MFU * (peak or 1e14)
    for _ in range(ROUNDS):
        parameters, _tokens = _divided(flop, ratio, law)
        config = shape(parameters)
        asked, plan = _planned(base, cluster, config, flop, progress)
        run = plan.whole_run
        used = (run.device_hours.mid if run.device_hours is not None
                else run.training_days.mid * 24.0 * cluster.devices)  # fmt: skip
        flop = _flop(asked)
        if abs(device_hours / used - 1.0) < CLOSE:
            break
        flop *= device_hours / used
    flop = _flop(asked)
    return Size(
        device_hours=device_hours,
        rule=rule,
        config=config,
        asked=asked,
        plan=plan,
        flop=flop,
        splits=tuple(_splits(flop)),
    )


def _rule(ratio: float | None, law: str) -> tuple[float | None, str]:
    if ratio is None:
        return None, f"compute-optimal by {loss_law(law).name}"
    if not 0.1 <= ratio <= 1e6:
        raise GoalError(f"--tokens-per-parameter {ratio:g}: from 0.1 to a million, such as 20")
    return ratio, f"{ratio:g} tokens per parameter"


def _divided(flop: float, ratio: float | None, law: str) -> tuple[float, float]:
    found = loss_law(law)
    return found.best_size(flop) if ratio is None else found.size_with(flop, ratio)


def _flop(asked: Asked) -> float:
    parameters = count(asked.task.architecture).total
    return FLOP_PER_PARAMETER_TOKEN * parameters * asked.task.goal.tokens


def _planned(
    base: Question, cluster: Cluster, config: dict[str, Any], flop: float,
    progress: Progress | None,
) -> tuple[Asked, Plan]:  # fmt: skip
    architecture: Architecture = read_config(config, _name(config))
    parameters = count(architecture).total
    tokens = flop / FLOP_PER_PARAMETER_TOKEN / parameters
    sequence = base.sequence or 8192
    given = base.global_batch is not None or base.batch_tokens is not None
    batch = base.global_batch if given else batch_of(flop, sequence, cluster.devices)
    asked = settle(
        replace(
            base, model=architecture, on=cluster, tokens=round(tokens), sequence=sequence,
            global_batch=batch, precision=base.precision,
        )
    )  # fmt: skip
    if not given:
        said = f"a batch of {batch:,} sequences: by DeepSeek's law of batches (arXiv 2401.02954)"
        asked = replace(asked, notes=(*asked.notes, said))
    try:
        return asked, plan_of(asked, progress=progress)
    except ClusterError as error:
        raise ClusterError(
            f"{error}. The budget is larger than the memory: a smaller model is"
            " --tokens-per-parameter 100, say"
        ) from None


def _name(config: dict[str, Any]) -> str:
    parameters = count(read_config(config, "dense")).total
    return f"dense-{parameters / 1e9:.3g}b"


def batch_of(flop: float, sequence: Written, devices: int) -> int:
    """Sequences a step: ``0.292 C^0.3271`` tokens, as a power of two times what devices share."""
    assert "0.2920*C^0.3271" in scaling_laws()["deepseek_llm_2024"]["form"]
    wanted = 0.2920 * flop**0.3271 / parse_count(sequence)
    odd = devices // (devices & -devices)
    step = odd if odd <= 16 else 1
    batch = step
    while batch * 1.42 < max(wanted, LEAST_BATCH):
        batch *= 2
    return batch


def _splits(flop: float) -> list[Split]:
    optima = [(f"optimum of {law.name}", law.best_size(flop))
              for law in dense_laws().values() if not law.doubt]  # fmt: skip
    given = [(f"{ratio:g} tokens per parameter", loss_law(LAW).size_with(flop, ratio))
             for ratio in RATIOS]  # fmt: skip
    return [
        Split(rule=rule, parameters=n, tokens=d, losses=losses_of(n, n, d))
        for rule, (n, d) in (*optima, *given)
    ]


# The fewest devices that meet a date: whole nodes, doubled until they do, then halved down
# -----------------------------------------------------------------------------------------

CHANCE = 0.8
"""Of meeting the deadline."""
STEPS = 8
"""Numbers of nodes that are tried between half and all of a number that does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewest:
    """The fewest devices that meet the deadline, and what was tried on the way."""

    chance: float
    """Asked for, of meeting the deadline."""
    best: Point
    tried: tuple[Point, ...]
    """By their number of devices."""


def fewest(
    question: Question, *, chance: float = CHANCE, progress: Progress | None = None
) -> Fewest:
    """The fewest whole nodes with which the run meets ``question.deadline``.

    The cluster of ``question`` says how many there are.  More devices than needed are tried by
    doubling, then numbers of nodes in eighths of the range between: a run on fewer of those tried
    misses the deadline or does not fit.

    Raises GoalError without a deadline, and where all devices miss it; and what a plan raises.
    """
    if question.deadline is None:
        raise GoalError("--fewest looks for the devices that meet a date: give --deadline")
    if not 0 < chance < 1:
        raise GoalError(f"--chance {chance:g}: a chance between 0 and 1 is needed, such as 0.8")
    cluster = question.on if isinstance(question.on, Cluster) else read_cluster(question.on)
    search = _Search(question, cluster, chance, progress)
    first = search.doubled()
    tried = tuple(search.points[n] for n in sorted(search.points))
    if first is None:
        raise _missed(search, tried[-1])
    best = search.between(first // 2, first)
    tried = tuple(search.points[n] for n in sorted(search.points))
    return Fewest(chance=chance, best=search.points[best], tried=tried)


class _Search:
    """Plans at numbers of nodes, each once."""

    def __init__(
        self, question: Question, cluster: Cluster, chance: float, progress: Progress | None
    ) -> None:
        self.question, self.cluster, self.chance = question, cluster, chance
        self.progress = progress
        self.points: dict[int, Point] = {}
        self.error: KrzemError | None = None

    def doubled(self) -> int | None:
        """The first of 1, 2, 4, … nodes, and all of them, that meets the deadline."""
        nodes, most = 1, int(self.cluster.nodes)
        while nodes < most:
            if self.meets(nodes):
                return nodes
            nodes *= 2
        return most if self.meets(most) else None

    def between(self, low: int, high: int) -> int:
        """The fewest of the numbers tried above ``low``, which misses, up to ``high``."""
        step = max(1, (high - low) // STEPS)
        numbers: list[int] = [*range(low + step, high, step), high]
        first, last = 0, len(numbers) - 1
        while first < last:
            middle = (first + last) // 2
            if self.meets(numbers[middle]):
                last = middle
            else:
                first = middle + 1
        return numbers[last]

    def meets(self, nodes: int) -> bool:
        devices = min(nodes * self.cluster.devices_per_node, self.cluster.devices)
        try:
            point = point_at(self.question, "devices", self.cluster, devices, self.progress)
        except (ClusterError, GoalError) as error:
            point, self.error = Point(value=devices, asked=None, plan=None, error=str(error)), error
        self.points[nodes] = point
        chance = None if point.plan is None else point.plan.whole_run.deadline_probability
        return chance is not None and chance >= self.chance


def _missed(search: _Search, last: Point) -> KrzemError:
    devices = search.cluster.devices
    if last.plan is None:
        return search.error or GoalError(f"no plan on {devices:,} devices")
    run = last.plan.whole_run
    if run.days is None:
        return GoalError(f"no chance of meeting a date is known: {' '.join(run.unknown)}")
    return GoalError(
        f"all {devices:,} devices have a {run.deadline_probability:.0%} chance of meeting the"
        f" deadline, and {search.chance:.0%} is asked for: the run takes {run.days.low:,.3g} to"
        f" {run.days.high:,.3g} days. Give more devices in --on, a later --deadline, or a lower"
        " --chance"
    )
