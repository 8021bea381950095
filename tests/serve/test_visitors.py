"""Several visitors: each has their own results, and what is kept does not grow."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from tok1d.errors import InputError
from tok1d.serve.controls import Work
from tok1d.serve.prefixes import Prefixes
from tok1d.serve.visitors import Visitors

from .visit import Visit, png

pytestmark = pytest.mark.slow
MODELS = ("fashion-mnist-semanticist", "fashion-mnist-smap", "emoji-smap", "emoji-maetok")


def picture(number: int) -> bytes:
    return png(Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 128)))


def used(visit: Visit, number: int) -> list[Any]:
    """What visitor `number` does: another picture, model, seed and number of tokens for each."""
    given = {"Model": MODELS[number % len(MODELS)], "Seed": number}
    first = visit.call("reconstruct", Picture=visit.upload(picture(number)), **given)
    moved = visit.call("tokens", Number_of_tokens=1 + number)
    drawn = visit.call("draw", Model="fashion-mnist-card", Classes=[str(number)], How_many=1, Seed=number)
    return [first[2], moved, drawn[1]]


def test_eight_visitors_at_once_get_what_each_gets_alone(address: str) -> None:
    alone = [used(Visit(address), number) for number in range(8)]
    visits = [Visit(address) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(used, visits, range(8)))
    assert together == alone
    assert len({str(each) for each in alone}) == 8
    for number, visit in enumerate(visits):  # all have drawn by now; each slider is still that of its own picture
        assert visit.call("tokens", Number_of_tokens=1 + number) == alone[number][1]


def test_fifty_visitors_in_a_row_leave_no_more_than_a_few(
    work: Work, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "visitors", Visitors(most=4))
    first, before = Visit(address), alive()[0]
    counts: list[tuple[int, int]] = []
    for number in range(50):
        visit = first if number == 0 else again(first)
        visit.call("reconstruct", Picture=visit.upload(picture(number % 8)), Model=MODELS[0])
        visit.call("tokens", Number_of_tokens=2)
        if number in (19, 49):
            counts.append(alive())
    assert len(work.visitors) == 4
    (kept, some), (kept_later, later) = counts
    assert kept == kept_later <= before + 5 and later <= some
    assert "Choose a picture first" in first.call("tokens", Number_of_tokens=2)[0]


def again(visit: Visit) -> Visit:
    """Another visitor with the same connection."""
    found = object.__new__(Visit)
    found.__dict__ = {**visit.__dict__, "session": f"{visit.session}-{id(found)}"}
    return found


def alive() -> tuple[int, int]:
    """The number of results and of tensors in memory."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return kinds.count(Prefixes), kinds.count(torch.Tensor)


def test_a_closed_page_is_forgotten(work: Work, address: str) -> None:
    """The page holds a connection open; the results of the visitor go when it closes."""
    visit = Visit(address)
    visit.call("reconstruct", Picture=visit.upload(picture(1)), Model=MODELS[0])
    assert work.visitors.find(visit.session, "reconstruct", list)
    with visit.client.stream("GET", f"/gradio_api/heartbeat/{visit.session}") as beat:
        next(beat.iter_raw())
    end = time.monotonic() + 120
    while work.visitors.find(visit.session, "reconstruct", list) is not None:
        assert time.monotonic() < end, "the results of a closed page are still kept"
        visit.client.get("/robots.txt")  # the server notices the end of the connection at its next beat


def test_results_are_kept_by_visitor_and_the_longest_away_are_removed() -> None:
    kept = Visitors(most=2)
    for visitor in ("a", "b"):
        kept.keep(visitor, "x", visitor.upper())
    assert kept.get("a", "x", str, "none") == "A"  # now b is the longest away
    kept.keep("c", "x", "C")
    assert [kept.find(visitor, "x", str) for visitor in "abc"] == ["A", None, "C"]
    assert kept.find("a", "x", int) is None and kept.find("a", "y", str) is None
    with pytest.raises(InputError, match="draw first"):
        kept.get("b", "x", str, "draw first")
    kept.drop("a", "x")
    kept.forget("c")
    assert kept.find("a", "x", str) is None and kept.find("c", "x", str) is None and len(kept) == 1
