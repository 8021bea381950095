"""The tab Reconstruct."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from tok1d.serve.controls import (
    QUEUE,
    Part,
    Work,
    answering,
    choice,
    condition_text,
    conditions,
    dial,
    number,
    picture,
    settings,
    shown_conditions,
    status,
    streaming,
    visitor_of,
    whole,
)
from tok1d.serve.request import Look

NONE = "none"
KEPT = "reconstruct"  # the name of the visitor's result
MISSING = "Choose a picture first; results of visitors who were away long are removed."
Answer = tuple[Part, Part, Part, Part, Part]  # status, slider, view, all prefixes, files


class ReconstructTab:
    """A picture, its reconstructions from every number of tokens, and a slider over them."""

    def __init__(self, work: Work) -> None:
        self.work = work
        tokenizers = work.shelf.tokenizers
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.model = choice(Look, "model", "Model", tokenizers, tokenizers[0])
                self.picture = picture(
                    "Picture", "Upload, paste or take a picture, or choose an example. It stays on this machine."
                )
                self.examples = gr.Gallery(
                    label="Examples",
                    show_label=False,
                    columns=6,
                    height="auto",
                    allow_preview=False,
                    format="png",
                    buttons=[],
                    elem_id="examples",
                )
                self.chosen, self.words = conditions("the picture")
                self.other = gr.Dropdown(
                    [NONE, *tokenizers],
                    value=NONE,
                    label="Compare with",
                    info="A second tokenizer, shown below with the same number of tokens.",
                    filterable=False,
                )
                with gr.Accordion("Decoding", open=False, visible=False) as self.decoding:
                    self.steps = number(Look, "steps", "Steps")
                    self.guidance = dial(Look, "guidance", "Guidance", 0.1, 10)
                    self.seed = number(Look, "seed", "Seed")
            with gr.Column(scale=3, min_width=300):
                self.count = gr.Slider(
                    1,
                    16,
                    value=16,
                    step=1,
                    label="Number of tokens",
                    info="The picture is decoded from this number of leading tokens; all are decoded beforehand.",
                    interactive=True,
                )
                self.status = gr.HTML(status("The model is loaded with the first picture."))
                self.view = gr.HTML("", elem_id="reconstruction")
                self.files = gr.HTML("")
                self.all = gr.HTML("", elem_id="prefixes")
                self.all_files = gr.HTML("")
                self.stop = gr.Button("Stop", size="sm", variant="secondary")
        self._connect()

    def _connect(self) -> None:
        given = {self.picture, self.model, self.other, self.chosen, self.words, self.count}
        given |= {self.steps, self.guidance, self.seed}
        results = [self.status, self.count, self.view, self.all, self.all_files]
        adapted = [self.chosen, self.words, self.decoding, self.examples]
        events = [
            gr.on(
                [
                    self.picture.change,
                    self.other.input,
                    self.chosen.input,
                    self.words.submit,
                    self.words.blur,
                    self.steps.change,
                    self.guidance.release,
                    self.seed.change,
                ],
                self.encode,
                given,
                results,
                concurrency_id=QUEUE,
                show_progress="minimal",
                show_progress_on=self.status,
                trigger_mode="always_last",
                api_name="reconstruct",
            )
        ]
        change = self.model.input(self.adapt, self.model, adapted, show_progress="hidden", api_name="reconstruct_model")
        events.append(
            change.then(
                self.encode,
                given,
                results,
                concurrency_id=QUEUE,
                show_progress="minimal",
                show_progress_on=self.status,
                api_name="reconstruct_again",
            )
        )
        events[0].then(self.save, self.count, self.files, show_progress="hidden", queue=False, api_name="save_first")
        events[1].then(self.save, self.count, self.files, show_progress="hidden", queue=False, api_name="save_again")
        self.count.input(
            self.at,
            self.count,
            [self.view, self.files],
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_name="tokens",
        )
        self.examples.select(
            self.example,
            self.model,
            [self.picture, self.chosen, self.words],
            show_progress="hidden",
            api_name="example",
        )
        self.stop.click(None, cancels=events, api_name="stop_reconstruct")

    @property
    def first(self) -> list[Part]:
        """The outputs of `begin`."""
        return [self.picture, self.chosen, self.words, self.decoding, self.examples]

    @answering
    def begin(self) -> tuple[Part, ...]:
        """What the page shows at first: the first model with its first example."""
        name = self.work.shelf.tokenizers[0]
        chosen, words, decoding, examples = self.adapt(name)
        first = self.work.examples.of(self.work.models.tokenizer(name))[0]
        chosen, words = shown_conditions(self.work.tokenizer_facts(name), first.condition)
        return first.picture, chosen, words, decoding, examples

    @answering
    def adapt(self, model: str) -> tuple[Part, ...]:
        """The controls that a model has."""
        facts = self.work.tokenizer_facts(model)
        shown = [each.picture for each in self.work.examples.of(self.work.models.tokenizer(model))]
        chosen, words = shown_conditions(facts)
        return chosen, words, gr.update(visible=facts.samples), gr.update(value=shown, selected_index=None)

    @answering
    def example(self, model: str, event: gr.SelectData) -> tuple[Part, Part, Part]:
        """The example that was chosen, with its class or caption."""
        found = self.work.examples.of(self.work.models.tokenizer(model))
        index = event.index if isinstance(event.index, int) and 0 <= event.index < len(found) else 0
        chosen, words = shown_conditions(self.work.tokenizer_facts(model), found[index].condition)
        return found[index].picture, chosen, words

    @streaming
    def encode(self, request: gr.Request, values: dict[Part, Part]) -> Iterator[Answer]:
        """Encode the picture and decode it from every number of tokens, with one model or two."""
        visitor, path = visitor_of(request), values[self.picture]
        if path is None:
            self.work.visitors.drop(visitor, KEPT)
            yield status("Choose a picture."), gr.skip(), "", "", ""
            return
        found = []
        with self.work.visitors.replacing(visitor, KEPT):
            picture = self.work.call("uploads:read_picture", path)
            for look in self._looks(values):
                for step in self.work.call("prefixes:reconstruct", self.work.models, picture, look):
                    if isinstance(step, tuple):
                        done = f"{look.model}: decoded from {step[0]} of {step[1]} numbers of tokens"
                        yield status(done), gr.skip(), gr.skip(), gr.skip(), gr.skip()
                    else:
                        found.append(step)
        self.work.visitors.keep(visitor, KEPT, found)
        yield self._shown(path, values[self.count], found)

    def _shown(self, path: str, count: float, found: list[Part]) -> Answer:
        first = found[0]
        lowest, most = first.counts[0], first.counts[-1]
        step = first.counts[-1] - first.counts[-2] if len(first.counts) > 1 else 1
        known = first.counts[first.nearest(int(count))]
        several = lowest < most
        said = f"Decoded from {len(first.counts)} numbers of tokens."
        if not several:
            said = f"The tokens of {first.look.model} have no order, so all {most} are decoded."
        if (frames := self.work.call("uploads:frames_of", path)) > 1:
            said += f" An animated file of {frames} frames: the first one is used."
        slider = gr.update(minimum=lowest if several else 0, maximum=most, step=step, value=known, interactive=several)
        return (
            status(said),
            slider,
            self.work.call("shown:reconstruction", found, known),
            self.work.call("shown:prefixes", found) if several else "",
            self.work.call("shown:prefix_files", found) if several else "",
        )

    def _looks(self, values: dict[Part, Part]) -> list[Look]:
        """The settings for each model. The second one reads the condition if it has it, else none."""
        models = self.work.models
        first = models.tokenizer_facts(values[self.model])
        text = condition_text(first, values[self.chosen], values[self.words])
        how = {
            "steps": whole(values[self.steps]),
            "guidance": values[self.guidance],
            "seed": whole(values[self.seed]),
        }
        looks = [settings(Look, {"model": first.name, "condition": text, **how})]
        if values[self.other] not in (None, NONE):
            second = models.tokenizer_facts(values[self.other])
            known = self.work.call("models:known_condition", models.tokenizer(second.name), text)
            looks.append(settings(Look, {"model": second.name, "condition": known, **how}))
        return looks

    @answering
    def at(self, request: gr.Request, count: float) -> tuple[str, str]:
        """The picture from another number of tokens."""
        found = self.work.visitors.find(visitor_of(request), KEPT, list)
        if found is None:
            return status(MISSING), ""
        return (
            self.work.call("shown:reconstruction", found, int(count)),
            self.work.call("shown:reconstruction_files", found, int(count)),
        )

    @answering
    def save(self, request: gr.Request, count: float) -> str:
        """Links that save the picture; none without a picture."""
        found = self.work.visitors.find(visitor_of(request), KEPT, list)
        return "" if not found else self.work.call("shown:reconstruction_files", found, int(count))
