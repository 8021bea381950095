"""The page in Chromium, as two participants use it; one reloads in the middle, and the server is killed once."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tok1d.study.folder import RESULTS, read_study
from tok1d.study.plan import Trial, trials
from tok1d.study.request import Scoring
from tok1d.study.results import Results
from tok1d.study.score import score

from .made import serving

Visit = Callable[..., Any]
pytestmark = [pytest.mark.web, pytest.mark.slow]
DESIGN: dict[str, Any] = {"keep": (1, 4), "reveal": (100, 500), "num": 8, "practice": 2, "catch": 2}


class Participant:
    """Someone at the page; `visited` keeps its errors and requests."""

    def __init__(self, visited: Any) -> None:
        self.visited, self.page, self.address, self.errors = visited, visited.page, visited.address, visited.errors

    def begin(self) -> str:
        self.page.goto(self.address)
        self.page.get_by_label("I have read this").check()
        self.page.get_by_role("button", name="Begin").click()
        go_on = self.page.get_by_role("button", name="Go on")
        go_on.wait_for()
        code = self.page.locator("#instructions .code").inner_text()
        go_on.click()
        return code

    def show(self) -> None:
        """Wait for the next trial, show its original, and wait for the choice."""
        self.page.get_by_role("button", name="Show the picture").click()
        self.page.locator("#choice").wait_for()

    def answered(self, position: int) -> None:
        """Wait until the page has gone on from a trial. (`wait_for_function` uses eval, which the page forbids.)"""
        self.page.locator(f'#meter[value="{position + 1}"], #done h1').locator("visible=true").wait_for()


def wish(number: int, trial: Trial) -> str:
    """What participant `number` chooses: 0 the target, 1 cannot tell but for catch trials."""
    return trial.target if number == 0 or trial.kind == "catch" else "tie"


def test_two_participants_a_reload_and_a_killed_server(write: Callable[..., Path], visit: Visit) -> None:
    folder = write(**DESIGN)
    study = read_study(folder)
    with ExitStack() as stack:
        process, address = stack.enter_context(serving(folder))
        people = [
            Participant(visit(address)),
            Participant(visit(address, viewport={"width": 360, "height": 740}, color_scheme="dark")),
        ]
        codes = [each.begin() for each in people]
        for position in range(12):
            for number, each in enumerate(people):
                trial = trials(study, number)[position]
                choice = wish(number, trial)
                each.show()
                if (position, number) == (5, 1):  # after the original, before the answer
                    each.page.reload()
                    each.show()
                if (position, number) == (7, 0):
                    process.kill()
                    process.wait()
                    each.page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[choice])
                    each.page.get_by_text("Your answers are kept").wait_for()
                    port = int(address.rstrip("/").rpartition(":")[2])
                    process, _ = stack.enter_context(serving(folder, port))
                elif number == 0:
                    each.page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[choice])
                elif choice == "tie":
                    each.page.locator("#tie").click()
                else:
                    each.page.locator(f"#{choice}-picture").click()
                each.answered(position)
        for each in people:
            each.page.get_by_role("heading", name="Thank you").wait_for()
    check_requests(people)
    answers = Results(folder / RESULTS, study.identity).answers()
    assert [(each.participant, each.position) for each in answers] == [(n, i) for n in range(2) for i in range(12)]
    assert [each.answer.choice for each in answers] == [wish(n, trial) for n in range(2) for trial in trials(study, n)]
    assert [(each.participant, each.position) for each in answers if each.reveals > 1] == [(1, 5)]
    assert len(set(codes)) == 2
    check_reveals([(trials(study, each.participant)[each.position], each.answer) for each in answers])
    found, _ = score(study, answers, Scoring(resamples=100, catch_min=1))
    assert found.excluded == [] and found.by_keep[0].mean > 0.5


def check_requests(people: list[Participant]) -> None:
    """No request leaves the server, and no error but those of the killed server."""
    for each in people:
        each.visited.check_requests()
    lost = [error for error in people[0].errors if "ERR_CONNECTION" in error]
    assert lost and people[0].errors == lost and people[1].errors == []


def check_reveals(shown: list[tuple[Trial, Any]]) -> None:
    """No reveal is shorter than asked for by over half a frame; a busy machine drops frames, so some are longer."""
    for trial, answer in shown:
        assert answer.frames >= 1 and not answer.hidden
        assert answer.shown_ms >= trial.reveal_ms - 0.5 * answer.frame_ms - 1
        assert len(shown) == 24


# Frames that come exactly every 1/RATE s of a clock of their own, however slow the machine is.
STEADY = """let now = 0;
window.requestAnimationFrame = (step) => setTimeout(() => { now += 1000 / RATE; step(now); }, 0);"""


@pytest.mark.parametrize("rate", [60, 144])
def test_reveals_are_within_one_frame_of_a_steady_display(write: Callable[..., Path], visit: Visit, rate: int) -> None:
    folder = write(keep=(2,), reveal=(20, 50, 100, 333), num=4, practice=0, catch=0)
    with serving(folder) as (_, address):
        one = Participant(visit(address))
        one.page.add_init_script(STEADY.replace("RATE", str(rate)))
        one.begin()
        for position in range(4):
            one.show()
            one.page.keyboard.press("ArrowDown")
            one.answered(position)
    study = read_study(folder)
    for each in Results(folder / RESULTS, study.identity).answers():
        asked = trials(study, 0)[each.position].reveal_ms
        assert each.answer.frame_ms == pytest.approx(1000 / rate)
        assert each.answer.frames == max(1, round(asked * rate / 1000))
        assert each.answer.shown_ms == pytest.approx(each.answer.frames * 1000 / rate)
        assert abs(each.answer.shown_ms - asked) <= 500 / rate + 1e-6
    assert score(study, Results(folder / RESULTS, study.identity).answers(), Scoring(resamples=100))[0].left_out == {}


def test_by_keyboard_only_with_a_pause(write: Callable[..., Path], visit: Visit) -> None:
    folder = write(keep=(2,), reveal=(100,), num=2, practice=0, catch=0)
    with serving(folder) as (_, address):
        one = Participant(visit(address))
        keys = one.page.keyboard
        one.page.goto(address)
        one.page.locator("#agree").wait_for()
        for key in ("Tab", "Space", "Tab", "Enter"):  # agree, begin
            keys.press(key)
        one.page.locator("#understood:focus").wait_for()
        keys.press("Enter")
        one.page.locator("#show:focus").wait_for()
        keys.press("Shift+Tab")  # pause
        keys.press("Enter")
        one.page.locator("#go-on:focus").wait_for()
        code = one.page.locator("#paused .code").inner_text()
        two = Participant(visit(address))  # goes on elsewhere, with the code typed in small letters
        two.page.goto(address)
        two.page.get_by_label("If you paused").fill(code.lower().replace("-", ""))
        two.page.keyboard.press("Enter")
        for position, key in enumerate(("ArrowDown", "ArrowLeft")):
            two.page.locator("#show:focus").wait_for()
            two.page.keyboard.press("Space")
            two.page.locator("#choice").wait_for()
            two.page.keyboard.press(key)
            two.answered(position)
        two.page.get_by_role("heading", name="Thank you").wait_for()
        keys.press("Enter")  # the first page finds that all is done
        one.page.get_by_role("heading", name="Thank you").wait_for()
        assert one.errors == two.errors == []
    answers = Results(folder / RESULTS, read_study(folder).identity).answers()
    assert [each.answer.choice for each in answers] == ["tie", "left"]


def test_the_page_fits_a_phone_and_shows_text_as_text(write: Callable[..., Path], visit: Visit) -> None:
    folder = write(**DESIGN)
    with serving(folder) as (_, address):
        one = Participant(visit(address, viewport={"width": 320, "height": 640}))
        one.page.goto(address)
        one.page.locator("#consent").get_by_text("<b>Second</b> paragraph.").wait_for()
        one.begin()
        one.show()
        assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert one.page.locator("#tie").bounding_box()["y"] < 640
        one.page.goto(f"{address}#AAAA-2222")
        one.page.reload()
        one.page.get_by_text("no participant has this code").wait_for()
