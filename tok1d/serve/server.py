"""The app of the page, what it refuses, and its server."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tok1d.html import server
from tok1d.html.parts import style
from tok1d.serve import page
from tok1d.serve.controls import Work

HOST = "127.0.0.1"
MOST_UPLOAD = 20_000_000  # bytes, as `uploads.MOST_BYTES`
MOST_BODY = 200_000  # bytes of a request other than an upload
WARM_SECONDS = 4.0  # without a visitor, after which models are loaded
API = "/gradio_api/"
# What the page asks for; gradio has more, which is not served.
STYLE = "/page.css"
GET = ("/", STYLE, "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
GET_BELOW = ("/assets/", "/static/", *(API + part for part in ("queue/data", "heartbeat/", "file=", "upload_progress")))
GET_BELOW += (f"{API}startup-events", f"{API}app_id")
POST = tuple(API + part for part in ("queue/join", "run/predict", "upload", "cancel", "reset"))
ENVIRONMENT = {  # of gradio: it keeps no statistics of events and asks no other machine
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "10",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
}
HEADERS = server.HEADERS | {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """Adds `HEADERS`, and refuses what the page does not send: other addresses, sites and files, long bodies.

    Args:
        folder: of the uploaded files; no other file is named in a request.
        opened: is called once the page was sent for the first time.
    """

    def __init__(self, app: ASGIApp, folder: str, opened: Callable[[], object]) -> None:
        self.app, self.folder, self.opened = app, os.path.realpath(folder), opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        guarded = server.with_headers(send, HEADERS)
        refusal = refused(scope)
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, guarded)
            return
        if scope["method"] == "POST" and scope["path"] != f"{API}upload":
            body = await server.body_of(receive, MOST_BODY)
            if body is None or (sentence := self.foreign(body)):
                text = f"expected at most {MOST_BODY} bytes" if body is None else sentence
                await PlainTextResponse(text, 413 if body is None else 400)(scope, receive, guarded)
                return
            receive = server.replayed(body, receive)
        await self.app(scope, receive, guarded)
        if scope["path"] == "/":
            self.opened()

    def foreign(self, body: bytes) -> str:
        """Why a body is refused: it is no JSON, or names a file that was not uploaded; "" if it is not."""
        try:
            pending: list[object] = [json.loads(body or b"{}")]
        except (ValueError, RecursionError):
            return "expected JSON"
        while pending:
            each = pending.pop()
            if isinstance(each, list):
                pending += each
            elif isinstance(each, dict):
                path = each.get("path")
                if path is not None and not self._uploaded(path):
                    return "expected an uploaded picture"
                pending += each.values()
        return ""

    def _uploaded(self, path: object) -> bool:
        if not isinstance(path, str) or "\0" in path:
            return False
        return os.path.realpath(path).startswith(self.folder + os.sep)


def refused(scope: Scope) -> tuple[int, str] | None:
    """Status and sentence for a request that the page does not make; None for one that it does."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    method, path, host = scope["method"], scope["path"], headers.get("host", "")
    if host.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]") and host not in ("127.0.0.1", "localhost"):
        return 403, "expected a request to this machine"
    origin = headers.get("origin")
    if method == "POST" and origin is not None and origin.partition("://")[2] != host:
        return 403, "expected a request of this page"
    known = path in GET or path.startswith(GET_BELOW) if method in ("GET", "HEAD") else path in POST
    if method not in ("GET", "HEAD", "POST"):
        return 405, "expected GET or POST"
    if not known or ".." in path.split("/"):
        return 404, "not found"
    length = headers.get("content-length", "")
    if path == f"{API}upload" and (not length.isdecimal() or int(length) > MOST_UPLOAD + MOST_BODY):
        return 413, f"expected a file of at most {MOST_UPLOAD // 1_000_000} MB"
    return None


@contextlib.contextmanager
def opened(work: Work) -> Iterator[ASGIApp]:
    """The app of some models, with a folder of uploaded files that is removed at the end.

    torch and the first model are loaded once the page was sent for the first time, or some seconds after the start.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tok1d-serve-", ignore_cleanup_errors=True))
        stack.enter_context(_variables({**ENVIRONMENT, "GRADIO_TEMP_DIR": folder}))  # where it puts uploaded files
        blocks = page.build(work)
        parent = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        parent.add_api_route(STYLE, lambda: Response(style(), media_type="text/css"), methods=["GET"])
        app = gr.mount_gradio_app(
            parent,
            blocks,
            path="/",
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            max_file_size=MOST_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            show_error=False,
            theme=page.theme(),
            head=f'<link rel="stylesheet" href="{STYLE}">',
        )
        seen = threading.Event()
        threading.Thread(target=_warm, args=(work, seen), daemon=True).start()
        yield Guard(app, folder, seen.set)


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Environment variables, in the body of the `with` statement."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _warm(work: Work, seen: threading.Event) -> None:
    """Load torch and the first model after the first page, or where none is asked for."""
    seen.wait(WARM_SECONDS)
    work.warm()


def serve(work: Work, port: int, started: Callable[[str], object]) -> None:
    """Serve the page on this machine until the process is interrupted.

    Args:
        started: is called with the address once connections are accepted.

    Raises:
        ConfigError: it cannot listen there.
    """
    with server.listen(HOST, port) as listening, opened(work) as app:
        started(server.address_of(listening))
        server.run(app, listening, patience=2)
