"""The Python API: few names, the same answers as the command line.

Everything raises :class:`krzem.errors.KrzemError` on input that cannot be used; its ``str()`` is
one sentence for people.  Quantities are numbers in base units, or text as people write it:
``"14.8T"`` tokens, ``"4k"`` tokens a sequence, ``"60d"``, ``"$5M"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import krzem.plan.plan as planner
from krzem.asking import FIELDS, KEYWORDS, Asking, Searching, spelled_out
from krzem.errors import InputError, nearest, shorten
from krzem.hardware.catalogue import device_ids
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout
from krzem.model.architecture import Architecture
from krzem.model.catalogue import load_model, model_ids
from krzem.model.parameters import ParameterCount, count
from krzem.plan.answer import Candidate as _Candidate
from krzem.plan.answer import candidates_of, explanation_of, plan_of, script_of
from krzem.plan.footprint import Footprint
from krzem.plan.forecast import WholeRun
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.plan.wall import Gain

if TYPE_CHECKING:
    from krzem.accuracy.evaluate import Report as AccuracyReport


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its architecture and its computed sizes."""

    architecture: Architecture

    @classmethod
    def load(cls, name_or_path: str | Path) -> Model:
        """A built-in model, or the Hugging Face config at a path.

        Raises UnknownNameError, DataError or ModelError.
        """
        return cls(load_model(name_or_path))

    @property
    def name(self) -> str:
        """Id of a built-in model, or the name of the config's folder."""
        return self.architecture.name

    @property
    def counts(self) -> ParameterCount:
        """Parameters by module, computed from the shapes."""
        return count(self.architecture)

    @property
    def parameters(self) -> int:
        """All parameters, without multi-token prediction."""
        return self.counts.total

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses."""
        return self.counts.active


class _Answer:
    """What every answer can do: be read, shown, and turned into columns."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        raise NotImplementedError

    def to_frame(self, library: str | None = None) -> Any:
        """A table: columns by name, as a dict of lists, or as a frame of ``library``.

        ``pandas.DataFrame(answer.to_frame())`` and ``polars.DataFrame(answer.to_frame())`` work as
        they are; ``library`` may be ``pandas``, ``polars`` or ``pyarrow``, none of which is needed.

        Raises InputError for another library, or one that is not installed.
        """
        from krzem.report.frame import columns, framed

        return framed(columns(self.as_dict()), library)

    def write_html(self, path: str | Path) -> None:
        """Write a page that opens without a network; raises StorageError."""
        _write_html(self.as_dict(), path)

    def __repr__(self) -> str:
        from krzem.report.frame import short

        return f"{type(self).__name__}({short(self.as_dict())})"

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        from krzem.report.frame import as_html

        return as_html(self.as_dict())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(_Answer):
    """The answer to "how would this run go on this cluster"; ``print`` shows its report."""

    asked: Asked
    """The question as it was settled: task, recipe, notes."""
    result: planner.Plan
    """Everything that was computed."""

    @property
    def best(self) -> planner.LayoutPlan:
        """The fastest layout that fits: step time, MFU, memory, each with its interval."""
        return self.result.best

    @property
    def alternatives(self) -> tuple[planner.LayoutPlan, ...]:
        """The next best layouts of other parallel shapes."""
        return self.result.alternatives

    @property
    def front(self) -> tuple[planner.FrontPoint, ...]:
        """Layouts that no other beats in time and memory."""
        return self.result.front

    @property
    def wall(self) -> str:
        """The resource of which a tenth more gains most."""
        return self.result.wall

    @property
    def gains(self) -> tuple[Gain, ...]:
        """What a tenth more of each resource gains, largest first."""
        return self.result.gains

    @property
    def whole_run(self) -> WholeRun:
        """Days, device-hours, energy, money; None where nobody has published what it takes."""
        return self.result.whole_run

    @property
    def footprint(self) -> Footprint:
        """Training compute against legal thresholds, CO2, expected loss."""
        assert self.result.footprint is not None
        return self.result.footprint

    @property
    def notes(self) -> tuple[str, ...]:
        """Every choice that was made for you."""
        return (*self.asked.notes, *self.result.notes)

    def as_dict(self) -> dict[str, Any]:
        """The document that ``krzem plan --json`` prints (schema ``krzem.plan/1``)."""
        from krzem.report.document import plan_document

        return plan_document(self.result, self.asked)

    def script(self, engine: str) -> str:
        """Launch arguments for megatron-lm, mindspeed-llm, torchtitan or krzem, each explained.

        Raises UnknownNameError, and LayoutError or ModelError where the engine cannot run it.
        """
        return script_of(self.asked, self.result, engine)

    def __str__(self) -> str:
        from krzem.report.text import format_plan

        return format_plan(self.as_dict())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation(_Answer):
    """One layout, term by term; ``print`` shows its report."""

    asked: Asked
    result: planner.Explanation

    @property
    def plan(self) -> planner.LayoutPlan:
        """Step time by term, memory by rank, MFU and the chance of fitting."""
        return self.result.plan

    @property
    def whole_run(self) -> WholeRun | None:
        """Days, device-hours, energy, money of a run with this layout; None without tokens."""
        return self.result.whole_run

    @property
    def gains(self) -> tuple[Gain, ...]:
        """What a tenth more of each resource gains, largest first."""
        return self.result.gains

    def as_dict(self) -> dict[str, Any]:
        """The document that ``krzem explain --json`` prints (schema ``krzem.explain/1``)."""
        from krzem.report.document import explain_document

        return explain_document(self.result, self.asked)

    def script(self, engine: str) -> str:
        """Launch arguments of this layout, as :meth:`Plan.script`."""
        return script_of(self.asked, self.result, engine)

    def __str__(self) -> str:
        from krzem.report.text import format_explanation

        return format_explanation(self.as_dict())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(_Answer):
    """The same run on several clusters; ``print`` shows them side by side."""

    candidates: tuple[_Candidate, ...]

    @property
    def plans(self) -> tuple[Plan | None, ...]:
        """A plan per cluster, in the order asked; None where there is none (see ``errors``)."""
        return tuple(
            None if c.plan is None else Plan(asked=c.asked, result=c.plan) for c in self.candidates
        )

    @property
    def errors(self) -> tuple[str | None, ...]:
        """Why a cluster has no plan."""
        return tuple(c.error for c in self.candidates)

    def as_dict(self) -> dict[str, Any]:
        """The document that ``krzem compare --json`` prints (schema ``krzem.compare/1``)."""
        from krzem.report.document_compare import compare_document

        return compare_document(self.candidates)

    def __str__(self) -> str:
        from krzem.report.text_compare import format_comparison

        return format_comparison(self.as_dict())


@spelled_out(Searching)
def plan(
    model: str | Path | Model,
    *,
    on: str | Path | Cluster,
    top: int = 5,
    progress: Callable[[int], None] | None = None,
    **asking: Unpack[Searching],
) -> Plan:
    """Search every legal layout of ``model`` on the cluster ``on`` and forecast the run.

    ``on`` is ``"h800:2048"``, the path of a TOML file, or a Cluster; ``top`` the number of other
    layouts to describe.  ``progress`` is called with the number of layouts priced so far.

    Raises:
        InputError: a name, quantity, file or combination that cannot be used.
        GoalError: something is neither given nor published, or no layout divides the batch.
        ClusterError: the model does not fit; the message says by how much.
        UnknownFactError: a quantity of the device that nobody has published.
    """
    asked = _settle(model, on, asking)
    return Plan(asked=asked, result=plan_of(asked, alternatives=top, progress=progress))


@spelled_out(Asking)
def explain(
    model: str | Path | Model,
    *,
    on: str | Path | Cluster,
    layout: str | Layout,
    **asking: Unpack[Asking],
) -> Explanation:
    """Price one layout (``"tp=1,pp=16,ep=64,mbs=1"``); ``dp`` is derived where it is left out.

    Raises LayoutError with the arithmetic of every rule it breaks, and what :func:`plan` raises.
    """
    asked = _settle(model, on, asking, step_alone=True)
    return Explanation(asked=asked, result=explanation_of(asked, layout))


@spelled_out(Searching)
def compare(
    model: str | Path | Model,
    *,
    on: Sequence[str | Path | Cluster],
    top: int = 5,
    progress: Callable[[int], None] | None = None,
    **asking: Unpack[Searching],
) -> Comparison:
    """The same run on several clusters, each with its own best layout.

    A cluster on which it does not fit has its reason in ``errors``.  Raises what :func:`plan`
    raises where none has a plan.
    """
    several = [_settle(model, each, asking) for each in on]
    found = candidates_of(several, alternatives=top, progress=progress)
    return Comparison(candidates=found)


def accuracy(table: str | Path, *, progress: Callable[[int], None] | None = None) -> AccuracyReport:
    """Predict every row of a table of measured runs and judge the predictions.

    ``table`` is a CSV file with the columns of the packaged ``facts/runs.csv``; ``progress`` is
    called with the number of rows read so far.  ``as_dict()`` of the result is what
    ``krzem accuracy --json`` prints: fractions, not per cent.

    Raises DataError where the file is missing, too large or no table of runs.
    """
    from krzem.accuracy.evaluate import evaluate

    return evaluate(table, progress=progress)


def devices() -> tuple[str, ...]:
    """Ids of all accelerators known."""
    return device_ids()


def models() -> tuple[str, ...]:
    """Ids of all built-in models."""
    return model_ids()


def _settle(
    model: str | Path | Model, on: str | Path | Cluster, asking: Mapping[str, Any],
    step_alone: bool = False,
) -> Asked:  # fmt: skip
    """The question; raises InputError for a keyword that there is not."""
    unknown = next((name for name in asking if name not in KEYWORDS), None)
    if unknown is not None:
        older = {field: name for name, field in FIELDS.items()} | {"alternatives": "top"}
        near = [older[unknown]] if unknown in older else list(nearest(unknown, KEYWORDS))
        offer = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown keyword {shorten(unknown, 40)!r}.{offer} Keywords: {', '.join(KEYWORDS)}"
        )
    chosen = model.architecture if isinstance(model, Model) else model
    fields = {FIELDS.get(name, name): value for name, value in asking.items()}
    return settle(Question(model=chosen, on=on, step_alone=step_alone, **fields))


def _write_html(document: dict[str, Any], path: str | Path) -> None:
    from krzem.report.html import write_html

    write_html(document, Path(path))
