"""A visitor of the page without a browser: the requests that the page makes."""

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
from PIL import Image

from tok1d.serve.controls import Work
from tok1d.serve.server import opened

API = "/gradio_api/"
PATIENCE = 120.0


class NotDone(Exception):
    """The sentence that the page shows for an error."""


@contextmanager
def serving(work: Work) -> Iterator[str]:
    """The page in a thread of this process; its address."""
    with opened(work) as app:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)


def png(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


class Visit:
    """One visitor with a session of their own."""

    def __init__(self, address: str, client: httpx.Client | None = None) -> None:
        self.client = client or httpx.Client(base_url=address, timeout=PATIENCE)
        self.session = uuid4().hex[:12]
        config = self.client.get("/config").json()
        self.parts = {part["id"]: part["props"] for part in config["components"]}
        self.events = {each["api_name"]: each for each in config["dependencies"] if each["api_name"]}

    def upload(self, content: bytes, name: str = "picture.png") -> dict[str, Any]:
        answer = self.client.post(f"{API}upload", files={"files": (name, content)})
        if answer.status_code != 200:
            raise NotDone(f"{answer.status_code} {answer.text}")
        return file(answer.json()[0])

    def call(self, event: str, **given: Any) -> list[Any]:
        """The last answer of an event; `given` are values by label (with _ for spaces), others are the defaults."""
        return list(self.answers(event, **given))[-1]

    def answers(self, event: str, **given: Any) -> Iterator[list[Any]]:
        """All answers of an event."""
        found = self.events[event]
        known = {name.replace("_", " "): value for name, value in given.items()}
        data = []
        for each in found["inputs"]:
            props = self.parts[each]
            data.append(known.pop(props.get("label"), props.get("value")))
        assert not known, f"{event} has no {', '.join(known)}"
        body = {"data": data, "fn_index": found["id"], "session_hash": self.session, "trigger_id": None}
        if not found["queue"]:
            answer = self.client.post(f"{API}run/predict", json=body)
            content = answer.json()
            if answer.status_code != 200:
                raise NotDone(content.get("error") or answer.text)
            yield content["data"]
            return
        joined = self.client.post(f"{API}queue/join", json=body)
        if joined.status_code != 200:
            raise NotDone(f"{joined.status_code} {joined.text}")
        yield from self._stream(joined.json()["event_id"])

    def _stream(self, event: str) -> Iterator[list[Any]]:
        last: list[Any] = []
        with self.client.stream("GET", f"{API}queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("event_id") not in (event, None):
                    continue
                if message["msg"] in ("process_generating", "process_completed"):
                    output = message["output"]
                    if not message.get("success", True):
                        raise NotDone(output.get("error") or "no sentence")
                    last = merged(last, output["data"], message["msg"] == "process_generating")
                    if last and (message["msg"] == "process_generating" or output["data"]):
                        yield last
                if message["msg"] == "process_completed":
                    return


def merged(last: list[Any], data: list[Any], generating: bool) -> list[Any]:
    """The whole answer after a further message; all but the first hold differences: ["replace", path, value]."""
    if not (generating and last and any(is_difference(each) for each in data)):
        return data or last
    return [applied(old, new) for old, new in zip(last, data)]


def is_difference(each: Any) -> bool:
    return isinstance(each, list) and all(isinstance(part, list) and len(part) == 3 for part in each)


def applied(old: Any, changes: Any) -> Any:
    """A value after changes: replace, append or add at a path, as gradio sends them."""
    if not is_difference(changes):
        return changes
    for action, path, value in changes:
        if not path:
            old = old + value if action == "append" else value
        elif isinstance(old, dict):
            old = {**old, path[0]: applied(old.get(path[0]), [[action, path[1:], value]])}
            if action == "delete" and len(path) == 1:
                old.pop(path[0])
    return old


def file(path: str) -> dict[str, Any]:
    """A file as the page sends it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "picture.png"}
