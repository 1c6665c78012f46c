"""The dashboard's server: one page, its data, and the way to the runs' sockets.

A browser sends requests for any page that is open in it, so each one is checked: the host must be this machine (else
another name could point here, DNS rebinding), a page elsewhere is refused by its Origin, and data and controls want the
token that only the printed address holds.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from train.asking import NotRunning
from train.dashboard.runs import Run, Runs

PAGE = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HOSTS = {"127.0.0.1", "localhost", "[::1]"}
LONGEST_BODY = 65_536
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Exception):
    """A request that gets no answer but an error: HTTP status and reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """Lets through what comes from the dashboard's own page, and sends the headers that keep the page to itself."""

    def __init__(self, app, token: str):
        self.app, self.token = app, token.encode()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return

        async def sending(message):
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            self._check(Request(scope))
            answer = self.app
        except Refused as refused:
            answer = PlainTextResponse(f"{refused.reason}\n", refused.status)
        await answer(scope, receive, sending)

    def _check(self, request: Request) -> None:
        headers = request.headers
        host = headers.get("host", "")
        if not {host, host.rpartition(":")[0]} & HOSTS:
            raise Refused(403, "the host must be 127.0.0.1 or localhost")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            raise Refused(403, "requests of other pages are refused")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and request.url.path != "/":
            raise Refused(403, "requests of other pages are refused")
        if request.url.path == "/":
            self._check_token(request.query_params.get("token", ""))
        elif request.url.path.startswith("/api/"):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            self._check_token(token if scheme == "Bearer" else "")

    def _check_token(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self.token):
            raise Refused(401, "open the address that the dashboard printed: it ends with the token")


def make_app(runs: Runs, token: str) -> Guard:
    """The ASGI application."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in PAGE.iterdir() if path.suffix in KINDS}

    def page(request: Request) -> Response:
        return Response(files["index.html"][0], media_type=KINDS[".html"])

    def file(request: Request) -> Response:
        content, kind = files.get(request.path_params["name"], (None, None))
        return PlainTextResponse("not here\n", 404) if content is None else Response(content, media_type=kind)

    def listing(request: Request) -> Response:
        return JSONResponse({"folder": str(runs.path), "runs": runs.rows()})

    def curves(request: Request) -> Response:
        numbers = {name: _number(request, name) for name in ("after", "first", "last")}
        wanted = {name: number for name, number in numbers.items() if number is not None}
        return JSONResponse(_run(runs, request.query_params.get("run")).drawing(
            generation=request.query_params.get("generation", ""), **wanted))

    def samples(request: Request) -> Response:
        return JSONResponse(_run(runs, request.query_params.get("run")).samples())

    async def control(request: Request) -> Response:
        asked = await _body(request)
        run, command, arguments = (asked.get(name) for name in ("run", "command", "arguments"))
        if not isinstance(command, str) or not isinstance(arguments, dict):
            raise Refused(400, "wanted: run, command, arguments")
        try:
            return JSONResponse(await run_in_threadpool(_run(runs, run).command, command, arguments))
        except NotRunning as error:
            return JSONResponse({"error": str(error)}, 409)

    def refused(request: Request, error: Refused) -> Response:
        return PlainTextResponse(f"{error.reason}\n", error.status)

    routes = [Route("/", page), Route("/page/{name}", file), Route("/api/runs", listing), Route("/api/curves", curves),
              Route("/api/samples", samples), Route("/api/control", control, methods=["POST"])]
    return Guard(Starlette(routes=routes, exception_handlers={Refused: refused}), token)


def _run(runs: Runs, name: object) -> Run:
    run = runs.get(name) if isinstance(name, str) else None
    if run is None:
        raise Refused(404, "no such run")
    return run


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise Refused(400, f"{name} must be a whole number")
    return int(text)


async def _body(request: Request) -> dict:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise Refused(415, "the body must be application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise Refused(413, f"the body must have at most {LONGEST_BODY} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body must be JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body must be a JSON object")
    return asked
