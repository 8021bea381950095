"""The tab Generate."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from tok1d.config.fields import to_mapping
from tok1d.errors import InputError
from tok1d.serve.controls import (
    QUEUE,
    Part,
    Work,
    answering,
    choice,
    dial,
    field,
    number,
    status,
    streaming,
    visitor_of,
    whole,
)
from tok1d.serve.request import MOST_NUM, MOST_TEXT, Wish

KEPT = "generate"
MISSING = "draw pictures first; results of visitors who were away long are removed"
SCHEDULES = ("own", "constant", "linear", "power_cosine")


class GenerateTab:
    """Pictures of a class or a caption, which grow token by token."""

    def __init__(self, work: Work) -> None:
        self.work = work
        generators = work.shelf.generators
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.model = choice(Wish, "model", "Model", generators, generators[0])
                self.caption = gr.Textbox(
                    "red apple",
                    label="Caption",
                    info=field(Wish, "caption").metadata["help"],
                    max_length=MOST_TEXT,
                )
                self.classes = gr.Dropdown(
                    [],
                    value=[],
                    label="Classes",
                    info=field(Wish, "classes").metadata["help"],
                    multiselect=True,
                    allow_custom_value=True,
                    visible=False,
                )
                self.num = gr.Slider(
                    1, MOST_NUM, value=4, step=1, label="How many", info=field(Wish, "num").metadata["help"]
                )
                self.seed = number(Wish, "seed", "Seed")
                with gr.Accordion("Sampling", open=False):
                    self.guidance = dial(Wish, "guidance", "Guidance", 0.1, 10)
                    self.schedule = choice(Wish, "guidance_schedule", "Guidance schedule", SCHEDULES, "own")
                    self.temperature = dial(Wish, "temperature", "Temperature", 0.05)
                    self.steps = number(Wish, "steps", "Steps")
                    self.decoder_steps = number(Wish, "decoder_steps", "Decoder steps", visible=False)
                with gr.Row():
                    self.draw = gr.Button("Draw", variant="primary")
                    self.stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=300):
                self.status = gr.HTML(status("Press Draw."))
                self.view = gr.HTML("", elem_id="drawn")
                self.files = gr.HTML("")
                self.near = gr.Button("Nearest training images", size="sm")
                self.neighbours = gr.HTML("", elem_id="neighbours")
                self.load = gr.UploadButton(
                    "Load settings from a saved PNG", file_types=[".png"], type="filepath", size="sm"
                )
        self._connect()

    @property
    def controls(self) -> dict[str, Part]:
        """The control of each field of `Wish`."""
        return {
            "model": self.model,
            "classes": self.classes,
            "caption": self.caption,
            "num": self.num,
            "seed": self.seed,
            "guidance": self.guidance,
            "guidance_schedule": self.schedule,
            "temperature": self.temperature,
            "steps": self.steps,
            "decoder_steps": self.decoder_steps,
        }

    def _connect(self) -> None:
        drawing = gr.on(
            [self.draw.click, self.caption.submit],
            self.sample,
            set(self.controls.values()),
            [self.status, self.view, self.files, self.neighbours],
            concurrency_id=QUEUE,
            show_progress="minimal",
            show_progress_on=self.status,
            api_name="draw",
        )
        self.stop.click(
            self.stopped, None, self.status, cancels=[drawing], queue=False, show_progress="hidden", api_name="stop"
        )
        self.near.click(
            self.nearest,
            None,
            self.neighbours,
            concurrency_id=QUEUE,
            show_progress="minimal",
            api_name="nearest",
        )
        self.model.input(
            self.adapt,
            self.model,
            [self.classes, self.caption, self.steps, self.decoder_steps],
            show_progress="hidden",
            api_name="generate_model",
        )
        self.load.upload(
            self.loaded,
            self.load,
            [*self.controls.values(), self.status],
            show_progress="hidden",
            api_name="load_settings",
        )

    @property
    def first(self) -> list[Part]:
        """The outputs of `begin`."""
        return [self.classes, self.caption, self.steps, self.decoder_steps]

    @answering
    def begin(self) -> tuple[Part, ...]:
        """The controls of the first model."""
        return self.adapt(self.work.shelf.generators[0])

    @answering
    def adapt(self, model: str) -> tuple[Part, ...]:
        """The controls that a model has."""
        facts = self.work.models.generator_facts(model)
        return (
            gr.update(choices=list(facts.classes), value=list(facts.classes[:1]), visible=bool(facts.classes)),
            gr.update(visible=facts.captions),
            gr.update(visible=facts.steps),
            gr.update(visible=facts.samples),
        )

    @streaming
    def sample(self, request: gr.Request, values: dict[Part, Part]) -> Iterator[tuple[Part, Part, Part, Part]]:
        """Draw, and show the pictures as they grow."""
        visitor = visitor_of(request)
        self.work.visitors.drop(visitor, KEPT)
        given = {name: values[control] for name, control in self.controls.items()}
        given |= {name: whole(given[name]) for name in ("num", "seed", "steps", "decoder_steps")}
        given["classes"] = list(given["classes"] or [])
        wish = self.work.call("drawing:wish_of", given)
        yield status("Drawing ..."), "", "", ""
        for step in self.work.call("drawing:draw", self.work.models, wish):
            if isinstance(step, tuple):
                yield status(f"{step[0]} of {step[1]} tokens"), gr.skip(), gr.skip(), gr.skip()
                continue
            view, files = self.work.call("shown:drawn", step), ""
            said = f"{step.done} of {step.total} {step.unit}"
            if step.finished:
                self.work.visitors.keep(visitor, KEPT, step)
                files, said = self.work.call("shown:drawn_files", step), f"Drawn: {said}, seed {wish.seed}."
            yield status(said), view, files, ""

    def stopped(self) -> str:
        """What is shown after Stop."""
        return status("Stopped.")

    @answering
    def nearest(self, request: gr.Request) -> str:
        """The nearest training images of what was drawn."""
        found: Part = self.work.visitors.get(visitor_of(request), KEPT, self.work.kind("drawing:Drawn"), MISSING)
        images, distances = self.work.call("drawing:nearest", self.work.models, self.work.examples, found)
        return self.work.call("shown:neighbours", found, images, distances)

    @answering
    def loaded(self, path: str | None) -> tuple[Part, ...]:
        """The settings of a saved PNG."""
        if path is None:
            raise InputError("settings: expected a PNG that was saved here, got none")
        wish = self.work.call("drawing:from_json", self.work.call("uploads:read_settings", path))
        facts = self.work.models.generator_facts(wish.model)
        found: dict[str, Part] = to_mapping(wish)
        found["classes"] = gr.update(choices=list(facts.classes), value=list(wish.classes), visible=bool(facts.classes))
        found["caption"] = gr.update(value=wish.caption, visible=facts.captions)
        found["steps"] = gr.update(value=wish.steps or 0, visible=facts.steps)
        found["decoder_steps"] = gr.update(value=wish.decoder_steps or 0, visible=facts.samples)
        return (*(found[name] for name in self.controls), status("Settings loaded; press Draw."))
