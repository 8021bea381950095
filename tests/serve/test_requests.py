"""What the page refuses, through the real app: hostile uploads and requests get a sentence, and the server goes on."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tok1d.serve.controls import Work
from tok1d.serve.server import HEADERS, MOST_BODY, MOST_UPLOAD

from .visit import API, NotDone, Visit, file, png

pytestmark = pytest.mark.slow
GREY, RED = Image.new("L", (40, 30), 90), Image.new("RGB", (40, 30), "red")
MODEL = "fashion-mnist-semanticist"


@pytest.fixture(scope="module")
def visit(address: str) -> Visit:
    return Visit(address)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that states a size, of one bit per pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return png(frames[0], kind, save_all=True, append_images=frames[1:])


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("../../evil.png", "x")
    return buffer.getvalue()


def chunked(text: str) -> bytes:
    info = PngInfo()
    info.add_text("note", text, zip=True)
    return png(RED, pnginfo=info)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (lambda: png_of(20_000, 20_000, bytes(1000)), "pixels"),
    "bomb beyond PIL's limit": (lambda: png_of(60_000, 60_000), "pixels"),
    "executable": (lambda: b"\x7fELF\x02\x01\x01" + bytes(500), "expected a file of PNG"),
    "empty": (lambda: b"", "expected a file of PNG"),
    "html": (lambda: b"<html><script>alert(1)</script></html>", "expected a file of PNG"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "expected a file"),
    "eps": (lambda: png(RED, "EPS"), "expected a file of PNG"),
    "pdf": (lambda: png(RED, "PDF"), "expected a file of PNG"),
    "zip": (zipped, "expected a file of PNG"),
    "icon": (lambda: png(RED, "ICO"), "expected a file of PNG"),
    "truncated PNG": (lambda: png(Image.effect_noise((64, 64), 90))[:900], "picture"),
    "truncated JPEG": (lambda: png(Image.effect_noise((64, 64), 90), "JPEG")[:900], "picture"),
    "header only": (lambda: b"\x89PNG\r\n\x1a\n", "picture"),
    "no rows": (lambda: png_of(100, 100), "picture"),
    "floating point": (lambda: png(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point"),
    "32 bits": (lambda: png(Image.fromarray(np.full((8, 8), 2**20, np.int32)), "TIFF"), "16 bits"),
    "too long": (lambda: png(Image.new("L", (5000, 2))), "too long"),
    "no size": (lambda: png_of(0, 0), "picture"),
}
READ: dict[str, Callable[[], bytes]] = {
    "animated GIF": lambda: animated("GIF"),
    "animated WebP": lambda: animated("WEBP"),
    "CMYK": lambda: png(RED.convert("CMYK"), "JPEG"),
    "16 bit": lambda: png(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)),
    "one pixel": lambda: png(Image.new("RGB", (1, 1), "blue")),
    "palette with transparency": lambda: png(RED.convert("P"), transparency=0),
    "transparent": lambda: png(Image.new("RGBA", (20, 30), (9, 9, 9, 0))),
    "broken EXIF": lambda: png(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "bilevel": lambda: png(RED.convert("1")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_picture_is_a_sentence(visit: Visit, name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(NotDone, match=said) as refused:
        visit.call("reconstruct", Picture=visit.upload(make()), Model=MODEL)
    sentence = str(refused.value)
    assert "Traceback" not in sentence and "/tmp" not in sentence and len(sentence) < 300
    assert "Choose a picture first" in visit.call("tokens", Number_of_tokens=3)[0]  # nothing of an earlier one is left


@pytest.mark.parametrize("name", READ)
def test_an_unusual_picture_is_read(visit: Visit, name: str) -> None:
    status, _, view, *_ = visit.call("reconstruct", Picture=visit.upload(READ[name]()), Model=MODEL)
    assert "PSNR" in view or "equal" in view
    assert ("first one is used" in status) == name.startswith("animated")


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(visit: Visit, address: str) -> None:
    with pytest.raises(NotDone, match="413"):
        visit.upload(bytes(MOST_UPLOAD + MOST_BODY + 1))
    for length in ("524288000", "-1", "x"):  # 500 MB are stated, and not sent
        request = (
            f"POST {API}upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )
        assert sent(address, request)[9:12] in ("413", "400")


def sent(address: str, request: str) -> str:
    """The answer to a request as it is written."""
    import socket

    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode())
        return connection.recv(4096).decode()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../etc/passwd", "http://127.0.0.1:1/x.png", "file:///etc/passwd", 7, "a\0b", __file__],
)
def test_only_uploaded_files_are_read(visit: Visit, path: object) -> None:
    with pytest.raises(NotDone, match="expected an uploaded picture"):
        visit.call("reconstruct", Picture=file(path), Model=MODEL)  # type: ignore[arg-type]


def test_an_upload_stays_in_its_folder(visit: Visit) -> None:
    found = visit.upload(png(RED), name="../../../evil.png")
    assert "tok1d-serve-" in found["path"] and ".." not in found["path"] and Path(found["path"]).is_file()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("GET", f"{API}file={path}")
            for path in ("/etc/passwd", __file__, "../../etc/passwd", "http://127.0.0.1:1/")
        ),
        *(
            ("GET", path)
            for path in (f"{API}proxy=http://127.0.0.1:1/", f"{API}info", "/monitoring", "/docs", "/login")
        ),
        *(
            ("GET", path)
            for path in ("/static/../../routes.py", "/assets/..%2f..%2froutes.py", f"{API}deep_link", "/x")
        ),
        *(
            ("POST", f"{API}{path}")
            for path in ("vibe-code/", "process_recording", "component_server", "api/reconstruct")
        ),
        *(
            ("GET", path)
            for path in (f"{API}vibe-code/", f"{API}profiling/traces", f"{API}openapi.json", f"{API}token")
        ),
        *((method, "/") for method in ("PUT", "DELETE", "POST", "OPTIONS", "PATCH")),
    ],
)
def test_nothing_else_is_served(visit: Visit, method: str, path: str) -> None:
    answer = visit.client.request(method, path)
    assert answer.status_code in (403, 404, 405)
    assert "root:" not in answer.text and "import " not in answer.text


def test_every_answer_forbids_framing_and_foreign_content(visit: Visit) -> None:
    for path in ("/", "/config", "/nothing", "/page.css"):
        headers = visit.client.get(path).headers
        assert {name: headers.get_list(name) for name in HEADERS} == {name: [value] for name, value in HEADERS.items()}
    policy = HEADERS["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy and "http" not in policy


def test_requests_of_other_sites_are_refused(visit: Visit) -> None:
    assert visit.client.get("/", headers={"Host": "evil.example"}).status_code == 403
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert visit.client.post(f"{API}queue/join", json={}, headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"How_many": 10_000}, "16"),
        ({"How_many": 0}, "1"),
        ({"Seed": -1}, "0"),
        ({"Seed": 10**12}, "2147483647"),
        ({"Steps": 10**9}, "250"),
        ({"Temperature": 99}, "2"),
        ({"Guidance": -3}, "0"),
        ({"Guidance_schedule": "no"}, "no"),
        ({"Model": "/etc"}, "etc"),
        ({"Model": "emoji-smap"}, "emoji-smap"),
        ({"Caption": "zzzz qqqq"}, "caption"),
        ({"Caption": "  "}, "caption"),
        ({"Caption": "/etc/passwd.txt"}, "file"),
        ({"Caption": "apple " * 400}, "300"),
        ({"Model": "fashion-mnist-card", "Classes": ["Sneeker"]}, "did you mean Sneaker"),
        ({"Model": "fashion-mnist-card", "Classes": ["<img src=x onerror=alert(1)>"]}, "&lt;img"),
        ({"Model": "fashion-mnist-card", "Classes": ["0-9999"]}, "expected classes of 10"),
        ({"Model": "fashion-mnist-card", "Classes": [], "How_many": 16}, "at most 64"),
    ],
)
def test_a_wish_out_of_range_is_a_sentence(visit: Visit, given: dict[str, Any], said: str) -> None:
    with pytest.raises(NotDone) as refused:
        visit.call("draw", **given)
    assert said in str(refused.value) and "<img" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "[1]",
        json.dumps({"model": "emoji-card", "num": 10_000}),
        json.dumps({"model": "emoji-card", "weak_model": "/etc/passwd"}),
        json.dumps({"model": "../../etc", "num": 1}),
        json.dumps({"model": "emoji-card", "classes": {"a": 1}}),
        json.dumps({"model": "emoji-card", "seed": 1e400}),
    ],
)
def test_a_png_with_other_settings_is_a_sentence(visit: Visit, settings: str) -> None:
    info = PngInfo()
    if settings:
        info.add_text("tok1d", settings)
    uploaded = visit.upload(png(RED, pnginfo=info))
    with pytest.raises(NotDone, match=r"settings|model"):
        visit.call("load_settings", **{"Load_settings_from_a_saved_PNG": uploaded})


def test_damaged_requests_are_answered(visit: Visit) -> None:
    join = f"{API}queue/join"
    for content in (
        b"",
        b"{",
        b"[" * 100_000,
        b'"x"',
        b"\xff\xfe",
        b'{"fn_index": 1}',
        b'{"fn_index": 9999, "data": []}',
    ):
        assert 400 <= visit.client.post(join, content=content).status_code < 600
    assert visit.client.post(join, content=b" " * (MOST_BODY + 1)).status_code == 413
    event = visit.events["reconstruct"]["id"]
    for data in ([], [1], ["x"] * 50, None):
        body = {"fn_index": event, "data": data, "session_hash": visit.session}
        visit.client.post(join, json=body)
    assert visit.client.get("/").status_code == 200


def test_the_server_goes_on_and_the_log_has_no_trace(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The last test of this file: a normal visit after all of the above."""
    visit = Visit(address)
    status, slider, view, *_ = visit.call("reconstruct", Picture=visit.upload(png(GREY)), Model=MODEL)
    assert "16 numbers" in status and slider["maximum"] == 16 and "PSNR" in view
    with pytest.raises(NotDone):
        visit.call("reconstruct", Picture=visit.upload(b"x"), Model=MODEL)
    assert "Traceback" not in capfd.readouterr().err


def test_uploads_are_removed_at_the_end(work: Work) -> None:
    from .visit import serving

    with serving(work) as address:
        path = Path(Visit(address).upload(png(RED))["path"])
        assert path.is_file()
    assert not path.exists() and not path.parents[1].exists()


def test_only_this_machine_can_connect() -> None:
    from tok1d.serve import server

    assert server.HOST == "127.0.0.1"
    assert httpx.URL(f"http://{server.HOST}").host == "127.0.0.1"
