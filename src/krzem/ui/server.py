"""The server of the what-if page: a page, answers as fragments of it, and what is dropped onto it.

It listens on this machine alone and answers only who knows its key, as Jupyter does: other users of
a login node see nothing. It opens no path that a request names and writes nothing but a folder
of its own, which goes with it.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from krzem.errors import KrzemError, shorten
from krzem.ui.kept import (
    Answered,
    Answers,
    Point,
    State,
    Superseded,
    SupersededError,
    curve_counts,
)
from krzem.ui.view import answer_view, curve_view, form_view, pinned_view

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

INSTALL = "krzem ui needs starlette, uvicorn and jinja2: pip install 'krzem[ui]'"
COOKIE = "krzem-key"
MOST_BYTES = 64 * 2**20
"""Of everything dropped at once."""
MOST_FILES = 12
KEPT_PAGES = 16
PINS = 2
_PAGE_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_REPORT_RULES = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_STATIC = {"app.js": "text/javascript", "ui.css": "text/css"}


View = Callable[["Request"], Awaitable["Response"]]
Work = Callable[["Request", Superseded], "Response"]


class Desk:
    """What the server holds: answers, dropped files, and which question is the newest."""

    def __init__(self, folder: Path, key: str) -> None:
        self.answers = Answers()
        self.folder = folder
        self.key = key
        self.reports: OrderedDict[str, str] = OrderedDict()
        self._newest: dict[str, int] = {}

    def superseded(self, kind: str) -> Superseded:
        """A test of whether a later question of the same kind has come in."""
        mine = self._newest[kind] = self._newest.get(kind, 0) + 1
        return lambda: self._newest[kind] != mine


HERE = ("127.0.0.1", "localhost")


def app(folder: Path, key: str, *, hosts: tuple[str, ...] = HERE) -> Starlette:
    """The application; ``key`` opens it, ``folder`` takes what is dropped.

    Raises KrzemError where the extra is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ImportError:
        raise KrzemError(INSTALL) from None
    made = Starlette(
        routes=[
            Route("/", _guarded(_page)),
            Route("/answer", _guarded(_asked("answer", _answered))),
            Route("/curve", _guarded(_asked("curve", _curved))),
            Route("/pinned", _guarded(_asked("pinned", _compared))),
            Route("/drop", _guarded(_drop), methods=["POST"]),
            Route("/report/{name}", _guarded(_report)),
            Route("/static/{name}", _static),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={SupersededError: _superseded, KrzemError: _refused},
    )
    made.state.desk = Desk(folder, key)
    made.state.templates = _templates()
    return made


def _templates() -> Any:
    import jinja2

    folder = files("krzem.ui") / "pages"
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _guarded(view: View) -> View:
    """``view`` for those who know the key, a refusal for others."""
    from starlette.responses import PlainTextResponse

    async def guarded(request: Request) -> Response:
        given = request.cookies.get(COOKIE, "") or request.query_params.get("key", "")
        if hmac.compare_digest(given.encode(), _desk(request).key.encode()):
            return await view(request)
        return PlainTextResponse(
            "This page needs its key: open the address that `krzem ui` printed.", status_code=403
        )

    return guarded


def _desk(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


def _html(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    from starlette.responses import HTMLResponse

    text = request.app.state.templates.get_template(template).render(**context)
    headers = {"Content-Security-Policy": _PAGE_RULES, "Cache-Control": "no-store"}
    return HTMLResponse(text, status_code=status, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    """What cannot be answered, as a part of the page."""
    return _html(request, "error.html", 422, message=str(error).splitlines())


async def _superseded(_: Request, error: Exception) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(str(error), status_code=409)


def _state(request: Request) -> State:
    return State.from_query(request.query_params)


async def _page(request: Request) -> Response:
    state = _state(request)
    response = _html(request, "page.html", state=state, form=form_view(state))
    response.set_cookie(COOKIE, _desk(request).key, httponly=True, samesite="strict")
    return response


def _asked(kind: str, work: Work) -> View:
    """A view that answers in a thread; the newest question of a kind supersedes earlier ones."""
    from starlette.concurrency import run_in_threadpool

    async def asked(request: Request) -> Response:
        return await run_in_threadpool(work, request, _desk(request).superseded(kind))

    return asked


def _answered(request: Request, superseded: Superseded) -> Response:
    """The answer to a state; ``whole=1`` searches, else the kept layouts are priced again."""
    whole = request.query_params.get("whole") == "1"
    found = _desk(request).answers.plan(_state(request), whole=whole, superseded=superseded)
    view = answer_view(found)
    if "application/json" in request.headers.get("accept", ""):
        return _json(found)
    return _html(request, "answer.html", answer=view)


def _json(found: Answered) -> Response:
    from starlette.responses import Response

    from krzem.report.document import plan_document

    document = plan_document(found.plan, found.asked) | {"whole_search": found.whole}
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")


def _curved(request: Request, superseded: Superseded) -> Response:
    """Days and cost over devices, one more point at each request until all are there."""
    answers, state = _desk(request).answers, _state(request)
    asked = answers.asked(state)
    counts = curve_counts(asked.task.cluster.devices)
    points: list[Point] = list(answers.known_points(state, counts))
    missing = [c for c in counts if c not in {p.devices for p in points}]
    if missing:
        nearest = min(missing, key=lambda c: abs(c - asked.task.cluster.devices))
        points.append(answers.point(state, nearest, superseded))
        points.sort(key=lambda p: p.devices)
    return _html(request, "curve.html", curve=curve_view(points, asked, len(counts)))


def _compared(request: Request, superseded: Superseded) -> Response:
    """Up to two pinned states beside the present one."""
    pins = request.query_params.getlist("pin")[:PINS]
    states = [State.from_query(dict(parse_qsl(pin))) for pin in pins] + [_state(request)]
    answers = _desk(request).answers
    found = [answers.plan(s, whole=False, superseded=superseded) for s in states]
    return _html(request, "pinned.html", pinned=pinned_view(found))


async def _drop(request: Request) -> Response:
    """A config.json becomes the model; launch files and logs are checked and reported."""
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import UploadFile

    _check_size(request)
    async with request.form(max_files=MOST_FILES, max_fields=4) as form:
        folder = Path(tempfile.mkdtemp(dir=_desk(request).folder))
        paths: list[Path] = []
        for value in form.getlist("file"):
            if isinstance(value, UploadFile):
                path = folder / _plain_name(value.filename, len(paths))
                path.write_bytes(await value.read())
                paths.append(path)
        on = str(form.get("on", ""))
    return await run_in_threadpool(_dropped, request, paths, on)


def _check_size(request: Request) -> None:
    size = request.headers.get("content-length", "")
    if not size.isdigit() or int(size) > MOST_BYTES:
        raise KrzemError(
            f"{MOST_BYTES // 2**20} MB at most can be dropped: for a longer log run"
            " `krzem check FILE --log LOG` in a terminal, it reads gigabytes"
        )


def _plain_name(name: str | None, number: int) -> str:
    """A file name without folders or odd characters."""
    last = re.split(r"[/\\]", name or "")[-1]
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-80:]
    return plain or f"file-{number}"


def _dropped(request: Request, paths: list[Path], on: str) -> Response:
    if not paths:
        raise KrzemError("nothing was dropped: drop a config.json, launch files or a log")
    if len(paths) == 1 and _is_model(paths[0]):
        return _model_dropped(request, paths[0])
    logs = [p for p in paths if p.suffix in (".log", ".txt", ".out", ".gz")]
    jobs = [p for p in paths if p not in logs]
    if not jobs:
        raise KrzemError("a log alone names no job: drop its launch script or config with it")
    return _job_dropped(request, jobs, logs, on)


def _is_model(path: Path) -> bool:
    """Whether a file is a Hugging Face configuration."""
    if path.suffix != ".json":
        return False
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and ("model_type" in raw or "architectures" in raw)


def _model_dropped(request: Request, path: Path) -> Response:
    from starlette.responses import JSONResponse

    from krzem.model.catalogue import load_model

    found = load_model(path)
    name = f"dropped:{found.name}"
    _desk(request).answers.drop_model(name, path)
    says = f"{shorten(found.name)} is the model now"
    return JSONResponse({"kind": "model", "model": name, "says": says})


def _job_dropped(request: Request, jobs: list[Path], logs: list[Path], on: str) -> Response:
    from starlette.responses import JSONResponse

    from krzem.jobs.answer import Asking, answer
    from krzem.report.document_check import check_document
    from krzem.report.html import render

    desk = _desk(request)
    found = answer(Asking(files=tuple(jobs), logs=tuple(logs), on=on or None))
    document = check_document(found)
    name = secrets.token_hex(8)
    desk.reports[name] = render(document)
    while len(desk.reports) > KEPT_PAGES:
        desk.reports.popitem(last=False)
    return JSONResponse(
        {"kind": "job", "report": f"/report/{name}", "says": f"{document['sentence']}."}
    )


async def _report(request: Request) -> Response:
    from starlette.responses import HTMLResponse, PlainTextResponse

    page = _desk(request).reports.get(request.path_params["name"])
    if page is None:
        return PlainTextResponse("This report is not kept any more: drop the files again.", 404)
    return HTMLResponse(page, headers={"Content-Security-Policy": _REPORT_RULES})


async def _static(request: Request) -> Response:
    from starlette.responses import PlainTextResponse, Response

    from krzem.report.selfcontained import style_sheet

    name = request.path_params["name"]
    if name not in _STATIC:
        return PlainTextResponse("no such file", status_code=404)
    text = (files("krzem.ui") / "pages" / name).read_text(encoding="utf-8")
    if name == "ui.css":
        text = style_sheet() + text
    return Response(text, media_type=_STATIC[name])


def serve(host: str, port: int, key: str, ready: Callable[[int], None]) -> None:
    """Serve until interrupted; ``ready`` is called with the port once it listens.

    Raises KrzemError where the port is taken or the extra is missing.
    """
    try:
        import uvicorn
    except ImportError:
        raise KrzemError(INSTALL) from None
    import asyncio
    import socket

    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise KrzemError(
            f"port {port} of {host} cannot be used ({error.strerror}): give another with --port,"
            " or --port 0 for any that is free"
        ) from None
    with tempfile.TemporaryDirectory(prefix="krzem-ui-") as folder, listening:
        hosts = (*HERE, host)
        config = uvicorn.Config(app(Path(folder), key, hosts=hosts), log_level="warning")
        ready(listening.getsockname()[1])
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
