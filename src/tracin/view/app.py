"""The routes of the page: thin, and each checks what it is given."""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tracin.checks import is_int
from tracin.decisions.cells import Cell, as_label
from tracin.decisions.decided import decided_columns
from tracin.decisions.exports import label_studio_bytes
from tracin.decisions.log import KINDS, DecidedElsewhereError
from tracin.errors import DecisionError, TracInError
from tracin.results.saving import as_bytes
from tracin.view.examples import SIZES
from tracin.view.explainer import BATCH
from tracin.view.guard import Guard, media_key
from tracin.view.row_request import MOST_ROWS, RowRequest, number_within
from tracin.view.viewer import Viewer

STATIC = Path(__file__).parent / "static"
KINDS_OF_FILE = {
    "index.html": "text/html; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
EXPORTS: Mapping[str, tuple[str, str, Callable[[Any], bytes]]] = {
    "csv": ("decisions.csv", "text/csv; charset=utf-8", partial(as_bytes, suffix=".csv")),
    "parquet": (
        "decisions.parquet",
        "application/vnd.apache.parquet",
        partial(as_bytes, suffix=".parquet"),
    ),
    "json": ("decisions.json", "application/json", partial(as_bytes, suffix=".json")),
    "label-studio": ("label-studio.json", "application/json", label_studio_bytes),
}
_SECONDS = 120.0


def application(viewer: Viewer, token: str, hosts: tuple[str, ...] = ()) -> Guard:
    """The whole application, behind its guard.

    Args:
        viewer: What is shown.
        token: What requests of the API carry.
        hosts: Names of this machine that are let in besides the usual ones.
    """
    routes = _Routes(viewer, media_key(token))
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.static),
            Route("/api/about", routes.about),
            Route("/api/rows", routes.rows),
            Route("/api/example", routes.example),
            Route("/api/why", routes.why),
            Route("/api/changes", routes.changes),
            Route("/api/export", routes.export),
            Route("/api/ahead", routes.ahead, methods=["POST"]),
            Route("/api/decide", routes.decide, methods=["POST"]),
            Route("/api/undo", routes.undo, methods=["POST"]),
            Route("/api/redo", routes.redo, methods=["POST"]),
            Route("/media/{key}/{row:int}-{side:int}.webp", routes.media),
        ],
        exception_handlers={TracInError: _explained},
    )
    app.router.redirect_slashes = False
    return Guard(app, token, hosts)


async def _explained(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


class _Routes:
    """Plain functions run on threads; what reads a body waits for it first."""

    def __init__(self, viewer: Viewer, media: str) -> None:
        self._viewer, self._media = viewer, media
        # Read once: no path ever comes from a request.
        self._static = {name: (STATIC / name).read_bytes() for name in KINDS_OF_FILE}

    def page(self, request: Request) -> Response:
        return self._file("index.html")

    def static(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def about(self, request: Request) -> Response:
        return JSONResponse({**self._viewer.about(), "media": self._media})

    def rows(self, request: Request) -> Response:
        asked, viewer = request.query_params, self._viewer
        wanted = RowRequest.parsed(asked, viewer.table)
        found = viewer.views.view(wanted, viewer.log.kinds)
        start = number_within(asked, "start", 0, 0, len(viewer.table))
        shown = found[start : start + number_within(asked, "n", 100, 1, MOST_ROWS)].tolist()
        answer = {
            "found": len(found),
            "start": start,
            "rows": [viewer.row(row) for row in shown],
            **viewer.progress(),
        }
        viewer.prepare()  # after the first page, which must not share the processor with it
        return JSONResponse(answer)

    def example(self, request: Request) -> Response:
        return JSONResponse(self._viewer.example(self._row(request)))

    async def why(self, request: Request) -> Response:
        row, k = self._row(request), number_within(request.query_params, "k", 6, 1, 50)
        if self._viewer.explainer is None:
            return JSONResponse({"error": "There is no index that explains rows."}, 404)
        asked = self._viewer.explainer.explained(row)
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(asked), _SECONDS)
        except (CancelledError, asyncio.CancelledError):
            return JSONResponse({"error": "Others were asked for since."}, 503)
        except TimeoutError:
            return JSONResponse({"error": "The search takes too long; ask again."}, 503)
        return JSONResponse(await run_in_threadpool(self._viewer.explanation, row, found, k))

    def changes(self, request: Request) -> Response:
        since = number_within(request.query_params, "since", 0, 0, 1 << 53)
        rows = self._viewer.log.since(since)[:MOST_ROWS]
        changed = [self._viewer.row(row) for row in rows]
        return JSONResponse({"rows": changed, **self._viewer.progress()})

    def export(self, request: Request) -> Response:
        name = request.query_params.get("format", "")
        if name not in EXPORTS:
            raise DecisionError(f"format is one of {', '.join(EXPORTS)}; got {name!r:.40}.")
        file, kind, write = EXPORTS[name]
        content = write(decided_columns(self._viewer.table, self._viewer.log))
        how = {"content-disposition": f'attachment; filename="{file}"'}
        return Response(content, media_type=kind, headers=how)

    def media(self, request: Request) -> Response:
        parts, viewer = request.path_params, self._viewer
        row, side = parts["row"], parts["side"]
        is_there = 0 <= row < len(viewer.table) and side in SIZES and viewer.examples.has_pictures
        # Not the token itself, and compared all the same without a hint of how much is right.
        if not (_equal(parts["key"], self._media) and is_there):
            return Response(status_code=404)
        content = viewer.examples.picture(row, side)
        return Response(
            content,
            media_type="image/webp",
            headers={"cache-control": "private, max-age=86400, immutable"},
        )

    async def ahead(self, request: Request) -> Response:
        body = await _body(request)
        rows = self._rows(body.get("rows"), BATCH)
        if self._viewer.explainer is not None:
            self._viewer.explainer.ahead(rows)
        return JSONResponse({}, 202)

    async def decide(self, request: Request) -> Response:
        body, viewer = await _body(request), self._viewer
        rows, seen = self._rows(body.get("rows"), MOST_ROWS), body.get("seen")
        if not isinstance(seen, list) or not all(is_int(one, 0) for one in seen):
            raise DecisionError("seen lists the seq of each row, as it was shown.")
        if len(seen) != len(rows):
            raise DecisionError("seen and rows are lists of one length.")
        kind, label = body.get("kind"), body.get("label")
        if not isinstance(kind, str):
            raise DecisionError(f"kind is one of {', '.join(KINDS)}.")
        new: Cell = as_label(label, viewer.table.given) if label is not None else None
        try:
            await run_in_threadpool(viewer.log.decide, rows, kind, new, _tab(body), seen)
        except DecidedElsewhereError as elsewhere:
            return self._changed(rows, 409, str(elsewhere))
        return self._changed(rows)

    async def undo(self, request: Request) -> Response:
        body = await _body(request)
        return self._changed(await run_in_threadpool(self._viewer.log.undo, _tab(body)))

    async def redo(self, request: Request) -> Response:
        body = await _body(request)
        return self._changed(await run_in_threadpool(self._viewer.log.redo, _tab(body)))

    def _changed(self, rows: list[int], status: int = 200, error: str | None = None) -> Response:
        shown = [self._viewer.row(row) for row in rows]
        return JSONResponse({"rows": shown, "error": error, **self._viewer.progress()}, status)

    def _row(self, request: Request) -> int:
        text = request.query_params.get("row", "")
        return self._rows([int(text) if text.isdecimal() and len(text) < 12 else -1], 1)[0]

    def _rows(self, given: Any, most: int) -> list[int]:
        last = len(self._viewer.table) - 1
        if not isinstance(given, list) or len(given) > most:
            raise DecisionError(f"rows is a list of up to {most} rows.")
        if not all(is_int(one, 0, last) for one in given):
            raise DecisionError(f"A row is a whole number from 0 to {last}.")
        return given

    def _file(self, name: str) -> Response:
        if name not in self._static:
            return Response(status_code=404)
        how = {"cache-control": "no-store"}
        return Response(self._static[name], media_type=KINDS_OF_FILE[name], headers=how)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise DecisionError("The body is JSON in UTF-8.") from error
    if not isinstance(body, dict):
        raise DecisionError("The body is a JSON object.")
    return body


def _tab(body: Mapping[str, Any]) -> str:
    tab = body.get("tab")
    if not isinstance(tab, str) or not 0 < len(tab) <= 64 or not tab.isascii():
        raise DecisionError("tab names the tab of the browser, in 1 to 64 letters.")
    return tab


def _equal(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(), known.encode())
