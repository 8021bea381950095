"""The server: what a participant gets, what is refused, and that no answer is lost."""

import json
import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tok1d.cli import app as cli
from tok1d.errors import ConfigError, DataError
from tok1d.study import results as stored
from tok1d.study.folder import FILE, IMAGES, RESULTS, read_study
from tok1d.study.plan import trials
from tok1d.study.results import Results
from tok1d.study.server import HEADERS, MAX_BODY, make_app, serve

from .made import serving

ANSWER = {"choice": "tie", "shown_ms": 100.0, "frame_ms": 16.7, "frames": 6, "response_ms": 512.5, "hidden": False}


@pytest.fixture
def folder(write: Callable[..., Path]) -> Path:
    return write()


@pytest.fixture
def page(folder: Path) -> TestClient:
    return TestClient(make_app(folder), raise_server_exceptions=False)


def joined(page: TestClient) -> str:
    found = page.post("/api/participants", json={"consent": True})
    assert found.status_code == 200
    return found.json()["code"]


def address(code: str, position: int, rest: str) -> str:
    return f"/api/participants/{code}/trials/{position}/{rest}"


def answered(page: TestClient, code: str, position: int, **changed: object) -> Any:
    assert page.post(address(code, position, "reveal"), json={}).status_code == 200
    return page.post(address(code, position, "answer"), json={**ANSWER, **changed})


def answers_in(folder: Path) -> list:
    return Results(folder / RESULTS, read_study(folder).identity).answers()


def test_a_participant_goes_through_all_trials(folder: Path, page: TestClient) -> None:
    study, code = read_study(folder), joined(page)
    mine = trials(study, 0)
    for position, trial in enumerate(mine):
        state = page.get(f"/api/participants/{code}").json()
        assert (state["position"], state["total"]) == (position, len(mine))
        assert state["trial"] == {"reveal_ms": trial.reveal_ms, "practice": trial.kind == "practice"}
        for what, name in (
            ("original", trial.original),
            ("left", trial.left),
            ("right", trial.right),
            ("mask", study.mask),
        ):
            picture = page.get(address(code, position, f"{what}.png"))
            assert picture.content == (folder / IMAGES / name).read_bytes()
            assert name not in str(picture.headers)
        assert answered(page, code, position, choice=("left", "right", "tie")[position % 3]).status_code == 200
    assert page.get(f"/api/participants/{code}").json()["trial"] is None
    assert page.post(address(code, len(mine), "reveal"), json={}).status_code == 409
    assert page.post(address(code, len(mine), "answer"), json=ANSWER).status_code == 409
    found = answers_in(folder)
    assert [each.answer.choice for each in found] == [("left", "right", "tie")[i % 3] for i in range(len(mine))]
    assert found[0].answer.response_ms == 512.5 and {each.reveals for each in found} == {1}


def test_nothing_sent_to_the_page_tells_the_pictures_apart(folder: Path, page: TestClient) -> None:
    code = joined(page)
    texts = [page.get(path).text for path in ("/", "/study.js", "/api/study", f"/api/participants/{code}")]
    assert not any(word in text for text in texts for word in ("distractor", "keep", 'catch"', "_original.png"))


def test_a_repeated_answer_changes_nothing_and_later_trials_wait(folder: Path, page: TestClient) -> None:
    code = joined(page)
    assert page.post(address(code, 0, "answer"), json=ANSWER).status_code == 409  # not shown yet
    assert answered(page, code, 0, choice="left").json()["position"] == 1
    again = page.post(address(code, 0, "answer"), json={**ANSWER, "choice": "right"})
    assert (again.status_code, again.json()["position"]) == (200, 1)
    for rest in ("answer", "reveal"):
        assert page.post(address(code, 5, rest), json=ANSWER).status_code == 409
    assert page.get(address(code, 0, "left.png")).status_code == 409
    assert page.get(address(code, 5, "original.png")).status_code == 409
    assert [each.answer.choice for each in answers_in(folder)] == ["left"]


def test_reveals_are_counted(folder: Path, page: TestClient) -> None:
    code = joined(page)
    page.post(address(code, 0, "reveal"), json={})
    answered(page, code, 0)
    assert [each.reveals for each in answers_in(folder)] == [2]


def test_participants_are_numbered_and_have_different_codes(folder: Path, page: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: joined(page), range(24)))
    assert len(set(codes)) == 24
    results = Results(folder / RESULTS, read_study(folder).identity)
    numbers = [results.participant(code) for code in codes]
    assert sorted(numbers) == list(range(24))  # type: ignore[type-var]
    start = threading.Barrier(8)

    def all_of(code: str) -> None:
        start.wait()
        for position in range(12):
            assert answered(page, code, position).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(all_of, codes[:8]))
    assert results.counts() == (24, 96)


def test_the_results_hold_no_personal_data(folder: Path, page: TestClient) -> None:
    code = joined(page)
    answered(page, code, 0)
    with sqlite3.connect(folder / RESULTS) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {row[1] for table in tables for row in connection.execute(f"PRAGMA table_info({table})")}
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    known = {"identity", "number", "code", "participant", "position", "times", "choice", "answered", "hidden"}
    assert columns == known | {"shown_ms", "frame_ms", "frames", "response_ms"}


HOSTILE_PATHS = [
    "/study.json",
    "/results.sqlite",
    "/images/0_original.png",
    "/../study.json",
    "/%2e%2e/study.json",
    "/..%2f..%2fetc%2fpasswd",
    "/study.css/../../server.py",
    "//etc/passwd",
    "/docs",
    "/openapi.json",
    "/server.py",
    "/api/participants/AAAA-2222/trials/0/original.png",
    "/api/participants/%2e%2e%2f%2e%2e/trials/0/original.png",
    "/api/participants/AAAA-2222%00",
    "/api/participants/' OR 1=1 --",
    "/api/participants/" + "A" * 5000,
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_nothing_else_can_be_fetched(page: TestClient, path: str) -> None:
    joined(page)
    found = page.get(path)
    assert found.status_code == 404, found.text
    assert list(found.json()) == ["error"] and len(found.text) < 300
    assert headers_of(found) == {name.lower(): value for name, value in HEADERS.items()}


def headers_of(found: Any) -> dict[str, str]:
    return {name: found.headers.get(name) for name in (key.lower() for key in HEADERS)}


@pytest.mark.parametrize("what", ["study.json", "..%2fstudy.json", "catch", "left.png%00", "mask.png.png", "LEFT.png"])
def test_no_other_picture_can_be_fetched(page: TestClient, what: str) -> None:
    assert page.get(address(joined(page), 0, what)).status_code in (404, 405, 422)


@pytest.mark.parametrize(
    "changed",
    [
        {"choice": "both"},
        {"choice": None},
        {"choice": ["left"]},
        {"shown_ms": "100"},
        {"shown_ms": -1},
        {"shown_ms": 1e9},
        {"frames": 2.5},
        {"frames": True},
        {"frames": 10**30},
        {"frame_ms": 0},
        {"hidden": 1},
        {"response_ms": None},
        {"name": "a person"},
    ],
)
def test_invalid_answers_are_refused_in_one_sentence(folder: Path, page: TestClient, changed: dict) -> None:
    found = answered(page, joined(page), 0, **changed)
    assert found.status_code == 422
    assert next(iter(changed)) in found.json()["error"] and "a person" not in found.text
    assert answers_in(folder) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"[" * 4000, b"\xff\xfe", json.dumps(ANSWER).replace("100.0", "NaN").encode()],
)
def test_broken_bodies_are_refused(folder: Path, page: TestClient, body: bytes) -> None:
    code = joined(page)
    page.post(address(code, 0, "reveal"), json={})
    found = page.post(address(code, 0, "answer"), content=body, headers={"Content-Type": "application/json"})
    assert found.status_code in (400, 422), found.text
    assert list(found.json()) == ["error"]
    assert answers_in(folder) == [] and answered(page, code, 0).status_code == 200


def test_a_form_of_another_site_cannot_answer(folder: Path, page: TestClient) -> None:
    """A page elsewhere can only send simple content types without the browser's question first."""
    code = joined(page)
    page.post(address(code, 0, "reveal"), json={})
    text = json.dumps(ANSWER).encode()
    assert (
        page.post(address(code, 0, "answer"), content=text, headers={"Content-Type": "text/plain"}).status_code == 422
    )
    assert answers_in(folder) == []


def test_long_bodies_are_refused_with_and_without_their_length(page: TestClient) -> None:
    def parts() -> Any:
        for _ in range(1000):
            yield b"x" * MAX_BODY

    for content in (b"x" * (MAX_BODY + 1), parts()):
        found = page.post("/api/participants", content=content)
        assert found.status_code == 413 and str(MAX_BODY) in found.json()["error"]
    assert page.get("/").status_code == 200


def test_consent_is_required(folder: Path, page: TestClient) -> None:
    for body in ({}, {"consent": False}, {"consent": "true"}, {"consent": True, "name": "x"}):
        assert page.post("/api/participants", json=body).status_code == 422
    assert Results(folder / RESULTS, read_study(folder).identity).counts() == (0, 0)


def test_the_number_of_participants_is_limited(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_PARTICIPANTS", 1)
    joined(page)
    found = page.post("/api/participants", json={"consent": True})
    assert found.status_code == 503 and "at most 1 participants" in found.json()["error"]


def test_the_page_needs_nothing_from_elsewhere(page: TestClient) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/study.css", "text/css"),
        ("/study.js", "javascript"),
        ("/icon.svg", "svg"),
    ):
        found = page.get(path)
        assert found.status_code == 200 and kind in found.headers["content-type"]
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")
        assert headers_of(found) == {name.lower(): value for name, value in HEADERS.items()}
    assert "<script>" not in page.get("/").text and "style=" not in page.get("/").text


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "secret.png", "", "a/b.png"])
def test_a_study_that_names_files_elsewhere_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret.png").write_bytes(b"x")
    (folder / IMAGES / "secret.png").symlink_to(folder.parent / "secret.png")
    content = json.loads((folder / FILE).read_text())
    content["items"][0]["original"] = name
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is no file in images"):
        make_app(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "tok1d study 1"}'])
def test_a_damaged_study_is_one_line(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / FILE).write_text(text)
    for command in ("serve", "score"):
        assert cli.run(["study", command, str(folder)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "build the study again" in err


def test_results_of_another_study_or_no_results_are_refused(folder: Path) -> None:
    make_app(folder)
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, "seed": 4}))
    with pytest.raises(DataError, match="those to another"):
        make_app(folder)
    (folder / RESULTS).write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(DataError, match="cannot be opened as results"):
        make_app(folder)


def test_a_moved_study_goes_on(folder: Path, tmp_path: Path) -> None:
    page = TestClient(make_app(folder))
    code = joined(page)
    answered(page, code, 0)
    shutil.move(folder, tmp_path / "elsewhere")
    assert TestClient(make_app(tmp_path / "elsewhere")).get(f"/api/participants/{code}").json()["position"] == 1


def test_a_used_port_is_one_line(folder: Path) -> None:
    def inner(first: str) -> None:
        port = int(first.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1, port {port}"):
            serve(folder, "127.0.0.1", port, lambda _: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(folder, "127.0.0.1", 0, inner)


def asked(address: str, content: object = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def test_no_confirmed_answer_is_lost_when_the_server_is_killed(folder: Path) -> None:
    """SIGKILL after every five confirmed answers, between a reveal and its answer."""
    code, total, position, kills = "", 12, 0, 0
    while position < total:
        with serving(folder) as (process, root):
            code = code or asked(f"{root}api/participants", {"consent": True})["code"]
            assert asked(f"{root}api/participants/{code}")["position"] == position
            for _ in range(5):
                asked(f"{root[:-1]}{address(code, position, 'reveal')}", {})
                position = asked(f"{root[:-1]}{address(code, position, 'answer')}", ANSWER)["position"]
                if position == total:
                    break
            else:
                asked(f"{root[:-1]}{address(code, position, 'reveal')}", {})
            process.kill()
            kills += 1
            with pytest.raises((urllib.error.URLError, ConnectionError)):
                asked(f"{root}api/study")
    found = answers_in(folder)
    assert (kills, [each.position for each in found]) == (3, list(range(total)))
    assert [each.reveals for each in found] == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 1]
