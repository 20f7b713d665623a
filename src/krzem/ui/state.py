"""What the what-if page asks: its fields as written, and the same as a question, a command, TOML.

One value, four faces: the query of the page's address, the :class:`Question` that is planned, the
command line that gives the same answer, and the cluster file that this command reads.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from krzem.errors import InputError, shorten
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of, short_form
from krzem.plan.request import Question
from krzem.quantity import parse_ratio

LONGEST = 300
"""Characters of one field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The fields of the page as written; empty: what the recipe or the catalogue says."""

    model: str = "llama-3.1-70b"
    device: str = "h100"
    devices: str = "512"
    tokens: str = "2T"
    batch: str = "2048"
    seq: str = ""
    precision: str = ""
    engine: str = ""
    switches: str = ""
    """``--with``."""
    without: str = ""
    layout: str = ""
    """Limits of the search: ``tp<=8,pp=4..16``."""
    deadline: str = ""
    budget: str = ""
    sure: str = "0.9"
    price: str = ""
    """US dollars per device and hour."""
    scale_up: str = ""
    """GB/s per device, one direction."""
    scale_out: str = ""
    failures: str = ""
    """Device-days between interruptions."""
    buyer: str = ""
    """Country whose purchase the trade rules are asked for: CN."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> State:
        """The state that an address holds; what it does not name keeps its default.

        Raises InputError for text that is too long or holds control characters.
        """
        known = {field.name for field in fields(cls)}
        found = {name: text.strip() for name, text in query.items() if name in known}
        for name, text in found.items():
            if len(text) > LONGEST or not text.isprintable():
                raise InputError(
                    f"{name}: {shorten(text, 40)!r} is no value: at most {LONGEST} printable"
                    " characters"
                )
        return cls(**found)

    def query(self) -> str:
        """The address of this state: what differs from the defaults."""
        default = State()
        return urlencode(
            {f.name: value for f in fields(self)
             if (value := getattr(self, f.name)) != getattr(default, f.name)}
        )  # fmt: skip

    def cluster(self) -> Cluster:
        """The cluster; raises what :func:`krzem.hardware.cluster_reader.cluster_of` raises."""
        named = short_form(f"{self.device}:{self.devices}")
        return cluster_of(named | self._overrides(), "the cluster")

    def question(self) -> Question:
        """The question as :func:`krzem.plan.request.settle` takes it.

        Raises InputError for a model that is given as a path: this page reads no files of the
        machine that serves it, only what is dropped onto it.
        """
        if _is_path(self.model):
            raise InputError(
                f"model {shorten(self.model, 60)!r}: give a name that `krzem models` lists, or drop"
                " a config.json onto the page; paths are not opened from here"
            )
        options: dict[str, Any] = {name: text or None for name, text in self._options().items()}
        return Question(
            model=self.model,
            on=self.cluster(),
            sure=parse_ratio(self.sure),
            step_alone=True,
            **options,
        )

    def command(self) -> str:
        """The command line with the same answer."""
        on = "cluster.toml" if self._overrides() else f"{self.device}:{self.devices}"
        words = ["krzem", "plan", self.model, "--on", on]
        for name, written in self._options().items():
            if written:
                words += [_FLAGS[name], written]
        if self.sure != State().sure:
            words += ["--sure", self.sure]
        return shlex.join(words)

    def toml(self) -> str:
        """The cluster file of :meth:`command`; empty where the short form says all."""
        overrides = self._overrides()
        if not overrides:
            return ""
        named = short_form(f"{self.device}:{self.devices}")
        return "".join(f"{key} = {_toml(value)}\n" for key, value in (named | overrides).items())

    def _overrides(self) -> dict[str, str | float]:
        """Keys of a cluster file that overrule the catalogue."""
        found: dict[str, str | float] = {}
        if self.price:
            found["price"] = f"${self.price.strip('$/h ')}/h"
        for key, written in (("scale_up", self.scale_up), ("scale_out", self.scale_out)):
            if written:
                unit = written if written[-1].isalpha() else f"{written} GB/s"
                found[f"{key}_bandwidth"] = unit
        if self.failures:
            found["device_days_between_interruptions"] = self.failures
        return found

    def _options(self) -> dict[str, str]:
        return {
            "tokens": self.tokens, "sequence": self.seq, "global_batch": self.batch,
            "precision": self.precision, "engine": self.engine, "switched": self.switches,
            "switched_off": self.without, "limits": self.layout, "deadline": self.deadline,
            "budget": self.budget,
        }  # fmt: skip


_FLAGS = {
    "tokens": "--tokens", "sequence": "--seq", "global_batch": "--batch",
    "precision": "--precision", "engine": "--engine", "switched": "--with",
    "switched_off": "--without", "limits": "--layout", "deadline": "--deadline",
    "budget": "--budget",
}  # fmt: skip


def _toml(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def _is_path(model: str) -> bool:
    """Whether a model is a path here: Hub ids have a slash too, and no file of that name."""
    return (
        ".." in model
        or "\\" in model
        or model.startswith(("/", "~", "."))
        or ("/" in model and Path(model).exists())
    )
