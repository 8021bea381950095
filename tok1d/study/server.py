"""The page of a study as a FastAPI app, and the server of it.

Served are the page's own files, the texts of the study, and the pictures of a participant's current trial under names
that do not tell them apart. Requests are small and checked; errors are one sentence.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteError
from starlette.types import ASGIApp, Receive, Scope, Send

from tok1d.errors import InputError
from tok1d.html import server
from tok1d.study import plan
from tok1d.study.folder import IMAGES, RESULTS, Study, read_study
from tok1d.study.results import CODE, Answer, Choice, NotCurrentError, Results

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/study.css": "study.css", "/study.js": "study.js", "/icon.svg": "icon.svg"}
MAX_BODY = 4096  # bytes
BODY_SECONDS = 10.0
HEADERS = server.HEADERS | {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

Code = Annotated[str, InPath(pattern=f"^{CODE}$")]
Position = Annotated[int, InPath(ge=0, le=1_000_000)]
Picture = Literal["original", "left", "right", "mask"]


class Body(BaseModel):
    """A request's content: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Joining(Body):
    """A participant's consent."""

    consent: Literal[True]


class Answering(Body):
    """An answer, see `tok1d.study.results.Answer`."""

    choice: Choice
    shown_ms: float = Field(ge=0, le=60_000)
    frame_ms: float = Field(gt=0, le=1_000)
    frames: int = Field(ge=1, le=100_000)
    response_ms: float = Field(ge=0, le=86_400_000)
    hidden: bool


class Guard:
    """Adds `HEADERS` to every response, and refuses bodies that are long or slow before the app sees them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        guarded = server.with_headers(send, HEADERS)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await server.body_of(receive, MAX_BODY)
        except TimeoutError:
            await _error(408, "expected the whole request within 10 seconds")(scope, receive, guarded)
            return
        if body is None:
            await _error(413, f"expected at most {MAX_BODY} bytes")(scope, receive, guarded)
            return
        await self.app(scope, server.replayed(body, receive), guarded)


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def make_app(folder: Path) -> FastAPI:
    """The app of a study folder.

    Raises:
        DataError: the folder holds no study, or answers to another one.
    """
    study = read_study(folder)
    results = Results(folder / RESULTS, study.identity)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard)
    _add_errors(app)
    for address, name in FILES.items():
        app.add_api_route(address, _file(PAGE / name), methods=["GET"])
    _add_study(app, study, results, folder / IMAGES)
    return app


def _file(path: Path) -> Callable[[], FileResponse]:
    return lambda: FileResponse(path)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteError)
    async def refused(request: Request, error: StarletteError) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        if first["loc"][:2] == ("path", "code"):
            return _error(404, "expected the code of a participant, such as 7KQX-M2PW")
        return _error(422, f"{where[:40]}: {first['msg'][:120]}")

    @app.exception_handler(NotCurrentError)
    async def elsewhere(request: Request, error: NotCurrentError) -> JSONResponse:
        return _error(409, "expected the current trial; reload the page")

    @app.exception_handler(InputError)
    async def full(request: Request, error: InputError) -> JSONResponse:
        return _error(503, str(error))

    @app.exception_handler(sqlite3.Error)
    async def unwritten(request: Request, error: sqlite3.Error) -> JSONResponse:
        return _error(503, "not stored; try again")


def _add_study(app: FastAPI, study: Study, results: Results, images: Path) -> None:
    @lru_cache(maxsize=256)
    def trials(participant: int) -> list[plan.Trial]:
        return plan.trials(study, participant)

    def known(code: str) -> int:
        participant = results.participant(code)
        if participant is None:
            raise HTTPException(404, "no participant has this code")
        return participant

    def state(code: str, participant: int) -> dict[str, object]:
        mine, position = trials(participant), results.position(participant)
        trial = mine[position] if position < len(mine) else None
        shown = None if trial is None else {"reveal_ms": trial.reveal_ms, "practice": trial.kind == "practice"}
        return {"code": code, "position": position, "total": len(mine), "trial": shown}

    @app.get("/api/study")
    def about() -> dict[str, object]:
        practice = len(study.practice)
        total = practice + len(study.items) + len(study.catch)
        return {"consent": study.consent, "mask_ms": study.mask_ms, "total": total, "practice": practice}

    @app.post("/api/participants")
    def join(joining: Joining) -> dict[str, object]:
        code = results.join()
        return state(code, known(code))

    @app.get("/api/participants/{code}")
    def resume(code: Code) -> dict[str, object]:
        return state(code, known(code))

    @app.post("/api/participants/{code}/trials/{position}/reveal")
    def reveal(code: Code, position: Position) -> dict[str, object]:
        participant = known(code)
        if position >= len(trials(participant)):
            raise NotCurrentError
        results.reveal(participant, position)
        return state(code, participant)

    @app.post("/api/participants/{code}/trials/{position}/answer")
    def answer(code: Code, position: Position, answering: Answering) -> dict[str, object]:
        participant = known(code)
        if position >= len(trials(participant)):
            raise NotCurrentError
        results.answer(participant, position, Answer(**answering.model_dump()))
        return state(code, participant)

    @app.get("/api/participants/{code}/trials/{position}/{picture}.png")
    def picture(code: Code, position: Position, picture: Picture) -> FileResponse:
        participant = known(code)
        mine = trials(participant)
        if position >= len(mine) or position != results.position(participant):
            raise NotCurrentError
        trial = mine[position]
        files = {"original": trial.original, "left": trial.left, "right": trial.right, "mask": study.mask}
        return FileResponse(images / files[picture], media_type="image/png", headers={"ETag": '""'})


def serve(folder: Path, host: str, port: int, started: Callable[[str], object]) -> None:
    """Serve a study until the process is interrupted.

    Args:
        started: is called with the address once connections are accepted.

    Raises:
        ConfigError: it cannot listen there.
        DataError: see `make_app`.
    """
    app = make_app(folder)
    with server.listen(host, port) as listening:
        started(server.address_of(listening))
        server.run(app, listening, patience=5)
