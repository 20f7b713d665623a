"""Telling others: hooks on every event, and Prometheus metrics.

Both look at what is already in the ledger, from a thread of their own: a command that hangs or a
server that is away costs the run nothing.  apprise and prometheus_client come with the extra
``monitor``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from krzem.errors import KrzemError, RunError
from krzem.run.ledger import Reader
from krzem.run.limits import spent
from krzem.run.rows import Event
from krzem.run.settings import Hook, Monitor, RunSettings
from krzem.run.status import RunStatus, StatusReader

INSTALL = "pip install 'krzem[monitor]'"
_HOOK_SECONDS = 30.0
_EVERY_SECONDS = 5.0
_MOST_WAITING = 1000


def check_extras(settings: RunSettings) -> None:
    """RunError where the run file asks for a library that is not installed."""
    if any(h.url for h in settings.hooks) and not importlib.util.find_spec("apprise"):
        raise RunError(f"[[hook]] url needs apprise: {INSTALL}")
    monitor = settings.monitor
    wanted = monitor.textfile is not None or monitor.port is not None
    if wanted and not importlib.util.find_spec("prometheus_client"):
        raise RunError(f"[monitor] needs prometheus_client: {INSTALL}")


class Notifier:
    """Follows the events of a run for as long as its controller is at work; use as a context."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._done = threading.Event()
        self._waiting: queue.Queue[tuple[Hook, Event]] = queue.Queue(_MOST_WAITING)
        self._last = 0
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._follow, self._call)
        ]
        self.failed: list[str] = []
        """What hooks and metrics could not be told."""

    def __enter__(self) -> Notifier:
        with contextlib.suppress(KrzemError), Reader(self._settings.folder) as reader:
            self._last = max([e.id for e in reader.events(last=1)], default=0)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(_HOOK_SECONDS)

    def _follow(self) -> None:
        metrics = _metrics(self._settings)
        shown = 0.0
        while True:
            last = self._done.is_set()
            self._take_events()
            if metrics is not None and (last or time.monotonic() - shown > _EVERY_SECONDS):
                shown = time.monotonic()
                with _told(self.failed):
                    metrics.update()
            if last:
                return
            self._done.wait(1.0)

    def _take_events(self) -> None:
        with contextlib.suppress(KrzemError), Reader(self._settings.folder) as reader:
            for event in reader.events(after=self._last):
                self._last = event.id
                for hook in self._settings.hooks:
                    if matches(hook, event):
                        with contextlib.suppress(queue.Full):
                            self._waiting.put_nowait((hook, event))

    def _call(self) -> None:
        while not (self._done.is_set() and self._waiting.empty()):
            try:
                hook, event = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            with _told(self.failed):
                call(hook, event, self._settings)


@contextlib.contextmanager
def _told(failed: list[str]) -> Iterator[None]:
    """Nothing that goes wrong while others are told is a fault of the run."""
    try:
        yield
    except Exception as error:  # somebody else's program, library or server
        failed.append(f"{type(error).__name__}: {error}"[:300])


def matches(hook: Hook, event: Event) -> bool:
    """Whether a hook is for this kind of event; patterns as the shell has them."""
    return any(fnmatch.fnmatchcase(event.kind, pattern) for pattern in hook.on)


def call(hook: Hook, event: Event, settings: RunSettings) -> None:
    """Run a hook's command (the event as JSON on standard input), or send it to its address."""
    told = {"run": settings.name, "folder": str(settings.folder), **asdict(event)}
    if hook.command is not None:
        variables = {"KRZEM_EVENT": event.kind, "KRZEM_MESSAGE": event.message,
                     "KRZEM_RUN": settings.name}  # fmt: skip
        subprocess.run(
            hook.command, input=json.dumps(told, default=str), text=True, check=True,
            timeout=_HOOK_SECONDS, env={**os.environ, **variables}, capture_output=True,
            cwd=settings.path.parent,
        )  # fmt: skip
    if hook.url is not None:
        import apprise

        sender = apprise.Apprise()
        if not sender.add(hook.url):
            raise RunError("apprise does not know this kind of address")
        if not sender.notify(title=f"{settings.name}: {event.kind}", body=event.message):
            raise RunError(f"{event.kind} could not be sent")


class _Metrics:
    """The status of a run as Prometheus metrics: a text file, a port, or both."""

    def __init__(self, settings: RunSettings, monitor: Monitor) -> None:
        import prometheus_client

        self._settings, self._monitor = settings, monitor
        self._reader = StatusReader(settings.folder)
        self._status: RunStatus | None = None
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(self)
        if monitor.port is not None:
            prometheus_client.start_http_server(
                monitor.port, addr=monitor.address, registry=self.registry
            )

    def update(self) -> None:
        """Look again, and write the file."""
        import prometheus_client

        self._status = self._reader.read()
        if self._monitor.textfile is not None:
            path = self._settings.path.parent / self._monitor.textfile
            prometheus_client.write_to_textfile(str(path), self.registry)

    def collect(self) -> Iterable[Any]:
        """As prometheus_client asks for it."""
        if self._status is not None:
            with Reader(self._settings.folder) as reader:
                parts = spent(self._settings, reader, self._status.run_seconds)
            yield from families(self._status, {p.pool: (p.device_hours, p.usd) for p in parts})


def _metrics(settings: RunSettings) -> _Metrics | None:
    monitor = settings.monitor
    if monitor.textfile is None and monitor.port is None:
        return None
    return _Metrics(settings, monitor)


def families(status: RunStatus, used: dict[str, tuple[float, float | None]]) -> Iterable[Any]:
    """Metric families; what is unknown is absent.  ``used``: device-hours and dollars by pool."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, text: str, value: float | None) -> Iterable[Any]:
        if value is not None:
            family = GaugeMetricFamily(f"krzem_{name}", text, labels=["run"])
            family.add_metric([status.name], value)
            yield family

    yield from gauge("step", "Optimizer steps done", status.step)
    yield from gauge("tokens", "Tokens trained", status.tokens)
    yield from gauge("goal_tokens", "Tokens of the whole run", status.goal_tokens)
    yield from gauge("loss", "Training loss of the last step", status.loss)
    yield from gauge("tokens_per_second", "Median of the last steps", status.tokens_per_s)
    yield from gauge("planned_tokens_per_second", "As planned", status.planned_tokens_per_s)
    yield from gauge("goodput_ratio", "Time in steps that count", status.goodput)
    yield from gauge("left_seconds", "To the last token, at this speed", status.left_seconds)
    yield from gauge("bad_metric_lines", "Lines that are no steps", status.bad_lines)
    labels = ["run", "state", "pool"]
    state = GaugeMetricFamily("krzem_state", "1 for where the run is", labels=labels)
    state.add_metric([status.name, status.state, status.pool or ""], 1)
    yield state
    labels = ["run", "pool"]
    faults = CounterMetricFamily("krzem_faults", "Attempts that ended in a fault", labels=labels)
    for pool in status.pools:
        faults.add_metric([status.name, pool.name], pool.faults)
    yield faults
    hours = CounterMetricFamily("krzem_device_hours", "Used by the trainer", labels=labels)
    money = CounterMetricFamily("krzem_cost_usd", "Of these device-hours", labels=labels)
    for name, (device_hours, usd) in used.items():
        hours.add_metric([status.name, name], device_hours)
        if usd is not None:
            money.add_metric([status.name, name], usd)
    yield from (hours, money)


def follow(settings: RunSettings) -> contextlib.AbstractContextManager[Any]:
    """What tells others of this run; nothing where nobody asked to be told."""
    monitor = settings.monitor
    if not settings.hooks and monitor.textfile is None and monitor.port is None:
        return contextlib.nullcontext()
    return Notifier(settings)
