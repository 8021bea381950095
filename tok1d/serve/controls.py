"""Parts that the tabs share: controls with their explanations, pictures, errors as sentences, and the lazy imports."""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from html import escape
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr

from tok1d.config.fields import bounds_of, build_config
from tok1d.config.registry import attribute
from tok1d.errors import ConfigError, InputError, Tok1dError
from tok1d.html.parts import note
from tok1d.serve.request import MOST_TEXT
from tok1d.serve.shelf import Shelf
from tok1d.serve.visitors import Visitors

if TYPE_CHECKING:
    from tok1d.serve.examples import Examples
    from tok1d.serve.models import Facts, Models

T = TypeVar("T")
Part = Any  # a component, an update of one, or its value, of which gradio has no types
QUEUE = "models"  # the events that compute with models wait for each other
BUSY = "failed here, for a reason that is printed where the server runs; the page goes on"


class Work:
    """The models, the examples and the functions behind the page; torch is imported when they are first used."""

    def __init__(
        self, shelf: Shelf, *, device: str | None = None, data: str | None = None, models: Models | None = None
    ) -> None:
        self.shelf, self.device, self.data, self.visitors = shelf, device, data, Visitors()
        self._models = models
        self._examples: Examples | None = None
        self._lock = RLock()

    @property
    def models(self) -> Models:
        """All models."""
        with self._lock:
            found = self._models or self.call("models:Models", self.shelf, self.device)
            self._models = found
            return found

    @property
    def examples(self) -> Examples:
        """The example pictures."""
        with self._lock:
            found = self._examples or self.call("examples:Examples", self.data)
            self._examples = found
            return found

    def call(self, name: str, *arguments: object) -> Part:
        """Call a function of a module of this package that needs torch, such as "prefixes:mix"."""
        return attribute(f"tok1d.serve.{name}")(*arguments)

    def kind(self, name: str) -> type:
        """A class of a module of this package that needs torch, such as "prefixes:Mixed"."""
        found: type = attribute(f"tok1d.serve.{name}")
        return found

    def warm(self) -> None:
        """Import torch and load the first tokenizer, so that the first visitor need not wait."""
        self.models.tokenizer(self.shelf.tokenizers[0])
        self.call("prefixes:step_of", 1)

    def tokenizer_facts(self, name: str) -> Facts:
        """See `Models.tokenizer_facts`."""
        return self.models.tokenizer_facts(name)


def visitor_of(request: gr.Request) -> str:
    """The visitor of a request; raises InputError without one."""
    if not request.session_hash:
        raise InputError("expected a request of the page")
    return request.session_hash


def as_sentence(error: Exception) -> gr.Error:
    """An error as a sentence on the page; the trace of one that is no user's mistake is printed on the server."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, Tok1dError):
        text = " ".join(str(error).split())[:600]
    else:
        traceback.print_exception(error, file=sys.stderr)
        text = BUSY
    return gr.Error(escape(text), duration=12, title="Not done", print_exception=False)


def answering(handler: Callable[..., Part]) -> Callable[..., Part]:
    """A handler whose errors are sentences on the page."""

    @functools.wraps(handler)
    def run(*values: Part) -> Part:
        try:
            return handler(*values)
        except Exception as error:
            raise as_sentence(error) from None

    return run


def streaming(handler: Callable[..., Iterator[Part]]) -> Callable[..., Iterator[Part]]:
    """As `answering`, for a handler that yields its answers."""

    @functools.wraps(handler)
    def run(*values: Part) -> Iterator[Part]:
        try:
            yield from handler(*values)
        except Exception as error:
            raise as_sentence(error) from None

    return run


def whole(value: object) -> int | None:
    """The value of a number control as a whole number; None for an empty one.

    Raises:
        InputError: it is no whole number.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise InputError(f"expected a whole number, got {str(value)[:40]!r}")
    return int(value)


def settings(of: type[T], values: Mapping[str, object]) -> T:
    """A dataclass of settings from the values of the controls; None is the default.

    Raises:
        InputError: another type, or a value out of range.
    """
    try:
        return build_config(of, {name: value for name, value in values.items() if value is not None})
    except ConfigError as error:
        raise InputError(str(error)) from None


def field(of: type, name: str) -> dataclasses.Field[Part]:
    """A field of a dataclass of settings."""
    return next(each for each in dataclasses.fields(of) if each.name == name)


def number(of: type, name: str, label: str, **changes: Part) -> gr.Number:
    """The control of a whole number; its explanation, default and limits are those of the field."""
    found = field(of, name)
    bounds = bounds_of(found)
    return gr.Number(
        value=found.default or 0,
        label=label,
        info=found.metadata["help"],
        precision=0,
        minimum=bounds.get(">="),
        maximum=bounds.get("<="),
        min_width=130,
        **changes,
    )


def dial(of: type, name: str, label: str, step: float, most: float | None = None) -> gr.Slider:
    """The control of a number as a slider; its explanation, default and limits are those of the field."""
    found = field(of, name)
    bounds = bounds_of(found)
    return gr.Slider(
        bounds[">="], most or bounds["<="], value=found.default, step=step, label=label, info=found.metadata["help"]
    )


def choice(of: type, name: str, label: str, choices: tuple[str, ...], value: str) -> gr.Dropdown:
    """The control of one of several choices, with the explanation of the field."""
    return gr.Dropdown(list(choices), value=value, label=label, info=field(of, name).metadata["help"], filterable=False)


def picture(label: str, hint: str) -> gr.Image:
    """A picture that is uploaded, pasted or taken with the camera."""
    found = gr.Image(
        label=label,
        sources=["upload", "clipboard", "webcam"],
        type="filepath",
        format="png",
        height=260,
        buttons=["fullscreen"],
    )
    found.preprocess = path_of
    gr.HTML(note(hint))
    return found


def path_of(payload: Part) -> str | None:
    """The path of an uploaded file, which the server reads itself, with checks; gradio does not decode it."""
    return None if payload is None else payload.path


def conditions(what: str) -> tuple[gr.Dropdown, gr.Textbox]:
    """The two controls of a tokenizer's condition, of which at most one is shown: a class, or a caption."""
    chosen = gr.Dropdown(
        [""],
        value="",
        label=f"Class of {what}",
        info="The class that encoder and decoder receive; empty: none.",
        allow_custom_value=True,
        visible=False,
    )
    words = gr.Textbox(
        "",
        label=f"Caption of {what}",
        info="The words that encoder and decoder receive; empty: none.",
        max_length=MOST_TEXT,
        visible=False,
    )
    return chosen, words


def shown_conditions(facts: Facts, text: str = "") -> tuple[Part, Part]:
    """Updates of the two controls for a tokenizer; `text` is the class or caption."""
    classes = ["", *facts.classes]
    return (
        gr.update(choices=classes, value=text if text in classes else "", visible=bool(facts.classes)),
        gr.update(value=text if facts.captions else "", visible=facts.captions),
    )


def condition_text(facts: Facts, chosen: object, words: object) -> str:
    """The condition that the two controls state."""
    return str((words if facts.captions else chosen if facts.classes else "") or "")


def status(text: str) -> str:
    """A line that a screen reader reads when it changes."""
    return f'<p class="note" role="status">{escape(text)}</p>'
