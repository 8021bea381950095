"""What the servers of pages share: safe headers, short bodies, and a server that runs until it is interrupted.

Needs the packages that the extra `web` brings.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Send

from tok1d.errors import ConfigError, reason_of

MOST_CONNECTIONS: Final = 256
# Forbid framing, guessing the type of a file, and sending the page's address to other sites.
HEADERS: Final = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def with_headers(send: Send, headers: dict[str, str]) -> Send:
    """`send`, with these headers in every response, in place of the app's own of the same names."""
    own = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    names = {name for name, _ in own}

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept: Iterable[tuple[bytes, bytes]] = message["headers"]
            message = {**message, "headers": [*(each for each in kept if each[0].lower() not in names), *own]}
        await send(message)

    return sent


async def body_of(receive: Receive, most: int) -> bytes | None:
    """The body of a request; None if it is longer than `most` bytes."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        if len(body) > most:
            return None
        more = message.get("more_body", False)
    return body


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives this body first, which was read before."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return pending.pop() if pending else await receive()

    return received


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one.

    Raises:
        ConfigError: it cannot listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise ConfigError(f"--port: cannot listen at {host}, port {port} ({reason_of(error)})") from None


def address_of(listening: socket.socket) -> str:
    """The address of a page at a socket, such as http://127.0.0.1:8000/."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(app: ASGIApp, listening: socket.socket, patience: int) -> None:
    """Serve an app at a socket until the process is interrupted; requests then have `patience` seconds to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=patience,
    )
    uvicorn.Server(config).run(sockets=[listening])
