"""The page in Chromium as a person uses it: every tab, wide and narrow, light and dark, and by keyboard only."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .visit import png

Visit = Callable[..., Any]
pytestmark = [pytest.mark.web, pytest.mark.slow]
DEVICES: dict[str, dict[str, Any]] = {
    f"{size}, {scheme}": {**device, "color_scheme": scheme}
    for size, device in (
        ("window", {"viewport": {"width": 1280, "height": 900}}),
        ("phone", {"viewport": {"width": 390, "height": 800}, "has_touch": True}),
    )
    for scheme in ("light", "dark")
}


class Person:
    """Someone at the page; `visited` keeps its errors and requests."""

    def __init__(self, visited: Any) -> None:
        self.visited, self.page, self.errors = visited, visited.page, visited.errors
        self.page.goto(visited.address)
        self.shown("#reconstruction img")

    def shown(self, what: str) -> Any:
        """The first element, once it is visible."""
        found = self.page.locator(what).first
        found.wait_for()
        return found

    def other_than(self, source: str) -> str:
        """The source of the reconstruction, once it is no longer this one."""
        self.page.wait_for_function(
            "old => { const e = document.querySelector('#reconstruction img'); return e && e.src && e.src !== old; }",
            arg=source,
        )
        return str(self.shown("#reconstruction img").get_attribute("src"))

    def says(self, text: str) -> None:
        self.page.get_by_text(text).locator("visible=true").first.wait_for()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()

    def tab(self, name: str) -> None:
        """Open a tab, which a narrow page has in a menu."""
        found = self.page.get_by_role("tab", name=name).first
        if found.is_visible():
            found.click()
            return
        self.page.locator(".overflow-menu button").first.click()
        self.page.locator(".overflow-dropdown button", has_text=name).click()

    def set(self, label: str, value: object) -> None:
        """Write a number into a control."""
        box = self.page.get_by_role("spinbutton", name=label).locator("visible=true").first
        box.fill(str(value))
        box.press("Enter")

    def choose(self, label: str, value: str) -> None:
        """Choose from a list."""
        box = self.page.get_by_role("combobox", name=label).locator("visible=true").first
        box.click()
        self.page.get_by_role("option", name=value).first.click()

    def saved(self, link: str) -> bytes:
        """The content of a file that a link saves."""
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name=link).locator("visible=true").first.click()
        return Path(download.value.path()).read_bytes()

    def check(self) -> None:
        """No error in the console, no request to another machine, nothing wider than the page."""
        assert self.errors == [], self.errors
        self.visited.check_requests()
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("device", DEVICES)
def test_each_tab_as_a_person_uses_it(visit: Visit, address: str, device: str, tmp_path: Path) -> None:
    person = Person(visit(f"{address}/", **DEVICES[device]))
    reconstruct(person)
    generate(person, tmp_path)
    mix(person)
    look_inside(person)
    person.check()
    dark = person.page.evaluate("getComputedStyle(document.body).getPropertyValue('--card').trim()")
    assert dark == ("#1f2429" if "dark" in device else "#f5f7f9")


def reconstruct(person: Person) -> None:
    page = person.page
    assert page.locator("#prefixes img").count() == 17
    upload = {"name": "photo.png", "mimeType": "image/png", "buffer": png(Image.new("RGB", (90, 60), "orange"))}
    before = person.shown("#reconstruction img").get_attribute("src")
    page.get_by_role("button", name="Remove Image").locator("visible=true").first.click()
    person.says("Choose a picture.")
    page.locator("input[type=file]").first.set_input_files(upload)
    person.shown("#reconstruction img")
    after = person.shown("#reconstruction img").get_attribute("src")
    assert after != before
    person.set("Number of tokens", 3)
    person.says("from 3 of 16 tokens")
    page.get_by_role("slider", name="Number of tokens").first.press("ArrowRight")
    person.says("from 4 of 16 tokens")
    picture = Image.open(io.BytesIO(person.saved("PNG, 4 tokens")))
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    animation: Any = Image.open(io.BytesIO(person.saved("animation")))
    assert animation.format == "WEBP" and animation.n_frames == 18
    person.choose("Compare with", "fashion-mnist-semanticist")
    page.get_by_role("heading", name="fashion-mnist-semanticist").wait_for()
    bad = {"name": "photo.png", "mimeType": "image/png", "buffer": b"\x7fELF" + bytes(99)}
    page.get_by_role("button", name="Remove Image").locator("visible=true").first.click()
    person.says("Choose a picture.")
    page.locator("input[type=file]").first.set_input_files(bad)
    person.says("expected a file of PNG")
    page.locator("#examples button").nth(1).click()
    person.says("Decoded from 17 numbers of tokens.")


def generate(person: Person, tmp_path: Path) -> None:
    page = person.page
    person.tab("Generate")
    person.choose("Model", "fashion-mnist-epsilon-llamagen")
    page.get_by_label("Classes").locator("visible=true").first.wait_for()
    person.set("How many", 2)
    person.set("Seed", 7)
    person.press("Draw")
    person.says("Drawn: 16 of 16 tokens, seed 7.")
    assert page.locator("#drawn img").count() == 2
    first = page.locator("#drawn img").first.get_attribute("src")
    saved = person.saved("PNG with the settings")
    person.set("Seed", 8)
    person.press("Draw")
    person.says("seed 8.")
    assert page.locator("#drawn img").first.get_attribute("src") != first
    path = tmp_path / "saved.png"
    path.write_bytes(saved)
    with page.expect_file_chooser() as chooser:
        person.press("Load settings from a saved PNG")
    chooser.value.set_files(path)
    person.says("Settings loaded")
    assert page.get_by_label("Seed").locator("visible=true").first.input_value() == "7"
    person.press("Draw")
    person.says("seed 7.")
    assert page.locator("#drawn img").first.get_attribute("src") == first
    person.press("Nearest training images")
    person.says("are not on this machine")
    person.set("How many", 16)
    page.get_by_text("Sampling").locator("visible=true").first.click()
    person.set("Steps", 250)
    stopped = page.get_by_text("Stopped.").locator("visible=true")
    for _ in range(3):  # a drawing may be done just before Stop is pressed
        person.press("Draw")
        person.says("of 16 tokens")
        person.press("Stop")
        page.get_by_text(re.compile(r"Stopped\.|Drawn: ")).locator("visible=true").first.wait_for()
        if stopped.count():
            break
    assert stopped.count(), "Stop does not stop"


def mix(person: Person) -> None:
    person.tab("Swap and mix")
    person.press("Use examples")
    person.says("Decoded 17 mixtures.")
    person.set("Tokens of A", 16)
    person.says("16 tokens of A, 0 of B")


def look_inside(person: Person) -> None:
    person.tab("Look inside")
    person.press("Measure")
    person.says("measured on the picture of the tab Reconstruct")
    assert person.page.locator("#curves svg").count() == 2
    person.set("Token to leave out", 5)
    person.says("without token 5")


def test_by_keyboard_only(visit: Visit, address: str) -> None:
    """Tab to the tab and to the caption, write words, Enter; then Tab to Draw, Space; all without the mouse."""
    person = Person(visit(f"{address}/", **DEVICES["window, light"]))
    page = person.page
    reach(page, "Generate")
    page.keyboard.press("Enter")
    reach(page, "Caption")
    page.keyboard.press("Control+A")
    page.keyboard.type("blue heart")
    page.keyboard.press("Enter")
    person.says("blue heart 1")
    reach(page, "Draw")
    page.keyboard.press("Space")
    person.says("Drawn: 16 of 16 tokens, seed 0.")
    reach(page, "PNG with the settings")
    person.check()


def reach(page: Any, name: str) -> None:
    """Press Tab until the element with this text or label has the focus, which must be visible."""
    for _ in range(80):
        page.keyboard.press("Tab")
        text = page.evaluate(
            """() => { const e = document.activeElement;
            const label = e.closest('label') || document.querySelector(`label[for="${e.id}"]`);
            return [e.ariaLabel, e.textContent, label && label.textContent].join('|'); }"""
        )
        if name in text:
            return
    pytest.fail(f"{name} cannot be reached with Tab")


def test_controls_have_a_label_and_an_explanation(visit: Visit, address: str) -> None:
    person = Person(visit(f"{address}/", **DEVICES["window, light"]))
    for tab in ("Reconstruct", "Generate", "Swap and mix", "Look inside"):
        person.tab(tab)
        person.page.wait_for_timeout(100)
        unnamed = person.page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button, a')]
            .filter(e => e.checkVisibility() && e.type !== 'file')
            .filter(e => !(e.ariaLabel || e.title || e.textContent.trim() || (e.labels && e.labels.length)))
            .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []
    assert person.errors == []


def test_a_picture_of_the_camera(visit: Visit, address: str) -> None:
    """Chromium's own camera shows a test picture, which is not the example."""
    person = Person(visit(f"{address}/", **DEVICES["window, light"]))
    example = str(person.shown("#reconstruction img").get_attribute("src"))
    person.page.get_by_role("button", name="Remove Image").locator("visible=true").first.click()
    person.says("Choose a picture.")
    person.page.get_by_role("button", name="Capture from camera").locator("visible=true").first.click()
    person.page.get_by_text("Click to Access Webcam").click()
    person.page.wait_for_function("[...document.querySelectorAll('video')].some(e => e.readyState > 2)")
    person.page.get_by_role("button", name="capture photo").click()
    person.other_than(example)
    person.says("Decoded from 17 numbers of tokens.")
    person.check()


def test_two_people_at_once_keep_their_pictures(visit: Visit, address: str) -> None:
    people = [Person(visit(f"{address}/", **DEVICES["window, light"])) for _ in range(2)]
    for person in people:
        person.set("Number of tokens", 16)
        person.says("from 16 of 16 tokens")
    first = people[0].shown("#reconstruction img").get_attribute("src")
    for number, person in enumerate(people):
        person.page.locator("#examples button").nth(number + 2).click()
    sources = [person.other_than(first) for person in people]
    contents = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert contents[0].tobytes() != contents[1].tobytes()
    for person in people:
        person.check()
