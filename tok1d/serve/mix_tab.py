"""The tab Swap and mix."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from tok1d.errors import InputError
from tok1d.serve.controls import (
    QUEUE,
    Part,
    Work,
    answering,
    choice,
    condition_text,
    conditions,
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

KEPT = "mix"
MISSING = "Mix two pictures first; results of visitors who were away long are removed."
EXAMPLES = (1, 4)  # the numbers of the examples that are mixed at first


class MixTab:
    """The first k tokens of one picture with the other tokens of another, and the condition of either."""

    def __init__(self, work: Work) -> None:
        self.work = work
        tokenizers = work.shelf.tokenizers
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.model = choice(Look, "model", "Model", tokenizers, tokenizers[0])
                with gr.Row():
                    with gr.Column(min_width=140):
                        self.a = picture("Picture A", "Gives the first tokens.")
                        self.chosen_a, self.words_a = conditions("A")
                    with gr.Column(min_width=140):
                        self.b = picture("Picture B", "Gives the other tokens.")
                        self.chosen_b, self.words_b = conditions("B")
                self.seed = number(Look, "seed", "Seed", visible=False)
                with gr.Row():
                    self.examples = gr.Button("Use examples")
                    self.run = gr.Button("Mix", variant="primary")
                    self.stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=300):
                self.count = gr.Slider(
                    0,
                    16,
                    value=8,
                    step=1,
                    label="Tokens of A",
                    info="The first tokens are those of A, the others those of B; 0: all of B.",
                    interactive=True,
                )
                self.status = gr.HTML(status("Choose two pictures, or use examples, and press Mix."))
                self.view = gr.HTML("", elem_id="mixed")
                self.all = gr.HTML("", elem_id="mixtures")
        self._connect()

    def _connect(self) -> None:
        given = {self.model, self.a, self.b, self.chosen_a, self.words_a, self.chosen_b, self.words_b}
        pictures = [self.a, self.chosen_a, self.words_a, self.b, self.chosen_b, self.words_b]
        how = {"concurrency_id": QUEUE, "show_progress": "minimal", "show_progress_on": self.status}
        results = [self.status, self.count, self.view, self.all]
        mixing = self.run.click(self.mix, {*given, self.seed, self.count}, results, api_name="mix", **how)
        begun = self.examples.click(self.example, self.model, pictures, show_progress="hidden", api_name="mix_examples")
        again = begun.then(self.mix, {*given, self.seed, self.count}, results, api_name="mix_again", **how)
        self.stop.click(None, cancels=[mixing, begun, again], api_name="stop_mix")
        self.model.input(
            self.adapt,
            self.model,
            [self.chosen_a, self.words_a, self.chosen_b, self.words_b, self.seed],
            show_progress="hidden",
            api_name="mix_model",
        )
        self.count.input(
            self.at,
            self.count,
            self.view,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_name="mix_tokens",
        )

    @property
    def first(self) -> list[Part]:
        """The outputs of `begin`."""
        return [self.chosen_a, self.words_a, self.chosen_b, self.words_b, self.seed]

    @answering
    def begin(self) -> tuple[Part, ...]:
        """The controls of the first model."""
        return self.adapt(self.work.shelf.tokenizers[0])

    @answering
    def adapt(self, model: str) -> tuple[Part, ...]:
        """The controls that a model has."""
        facts = self.work.tokenizer_facts(model)
        return *shown_conditions(facts), *shown_conditions(facts), gr.update(visible=facts.samples)

    @answering
    def example(self, model: str) -> tuple[Part, ...]:
        """Two examples with their classes or captions."""
        facts = self.work.tokenizer_facts(model)
        shown = self.work.examples.of(self.work.models.tokenizer(model))
        found = [shown[min(i, len(shown) - 1)] for i in EXAMPLES]
        return tuple(part for each in found for part in (each.picture, *shown_conditions(facts, each.condition)))

    @streaming
    def mix(self, request: gr.Request, values: dict[Part, Part]) -> Iterator[tuple[Part, Part, Part, Part]]:
        """Encode both pictures and decode all mixtures."""
        visitor, paths = visitor_of(request), (values[self.a], values[self.b])
        if None in paths:
            raise InputError("choose two pictures, A and B")
        with self.work.visitors.replacing(visitor, KEPT):
            pictures = tuple(self.work.call("uploads:read_picture", path) for path in paths)
        facts = self.work.tokenizer_facts(values[self.model])
        texts = (
            condition_text(facts, values[self.chosen_a], values[self.words_a]),
            condition_text(facts, values[self.chosen_b], values[self.words_b]),
        )
        look = settings(Look, {"model": facts.name, "seed": whole(values[self.seed])})
        for step in self.work.call("prefixes:mix", self.work.models, pictures, texts, look):
            if isinstance(step, tuple):
                yield status(f"decoded {step[0]} of {step[1]} mixtures"), gr.skip(), gr.skip(), gr.skip()
                continue
            self.work.visitors.keep(visitor, KEPT, step)
            most = step.counts[-1]
            count = min(int(values[self.count]), most)
            slider = gr.update(maximum=most, value=count, step=most - step.counts[-2])
            view, every = self.work.call("shown:mixed", step, count), self.work.call("shown:mixtures", step)
            yield status(f"Decoded {len(step.counts)} mixtures."), slider, view, every

    @answering
    def at(self, request: gr.Request, count: float) -> str:
        """The mixture with another number of tokens of A."""
        kind = self.work.kind("prefixes:Mixed")
        found = self.work.visitors.find(visitor_of(request), KEPT, kind)
        return status(MISSING) if found is None else self.work.call("shown:mixed", found, int(count))
