"""The tab Look inside."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from tok1d.errors import InputError
from tok1d.serve import reconstruct_tab
from tok1d.serve.controls import QUEUE, Part, Work, answering, status, streaming, visitor_of

KEPT = "inside"
MISSING = "Press Measure first; results of visitors who were away long are removed."


class InsideTab:
    """What the numbers of tokens of the picture at hand hold, and what each token changes."""

    def __init__(self, work: Work) -> None:
        self.work = work
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.status = gr.HTML(status("Press Measure for the picture and the model of the tab Reconstruct."))
                with gr.Row():
                    self.run = gr.Button("Measure", variant="primary")
                    self.stop = gr.Button("Stop")
                self.token = gr.Slider(
                    1,
                    16,
                    value=1,
                    step=1,
                    label="Token to leave out",
                    info="This token is replaced by its mean over other pictures, and all tokens are decoded.",
                    interactive=True,
                )
                self.without = gr.HTML("", elem_id="without")
            with gr.Column(scale=3, min_width=300):
                self.curves = gr.HTML("", elem_id="curves")
        measuring = self.run.click(
            self.measure,
            self.token,
            [self.status, self.token, self.curves, self.without],
            concurrency_id=QUEUE,
            show_progress="minimal",
            show_progress_on=self.status,
            api_name="measure",
        )
        self.stop.click(None, cancels=[measuring], api_name="stop_inside")
        self.token.input(
            self.leave,
            self.token,
            self.without,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_name="leave_out",
        )

    @streaming
    def measure(self, request: gr.Request, token: float) -> Iterator[tuple[Part, Part, Part, Part]]:
        """The curves of the picture of the tab Reconstruct, and the picture without each token."""
        visitor = visitor_of(request)
        found = self.work.visitors.find(visitor, reconstruct_tab.KEPT, list)
        if not found:
            raise InputError("choose a picture in the tab Reconstruct first")
        first = found[0]
        curves = self.work.call("shown:curves", first)
        yield status("decoding without each token ..."), gr.skip(), curves, ""
        for step in self.work.call("prefixes:leave_out", self.work.models, self.work.examples, first):
            if isinstance(step, tuple):
                yield status(f"decoded {step[0]} of {step[1]} pictures"), gr.skip(), gr.skip(), gr.skip()
                continue
            self.work.visitors.keep(visitor, KEPT, step)
            most = len(step.pictures)
            chosen = min(max(int(token), 1), most)
            said = f"{first.look.model}: measured on the picture of the tab Reconstruct."
            view = self.work.call("shown:left_out", step, chosen)
            yield status(said), gr.update(maximum=most, value=chosen), gr.skip(), view

    @answering
    def leave(self, request: gr.Request, token: float) -> str:
        """The picture without another token."""
        kind = self.work.kind("prefixes:LeftOut")
        found = self.work.visitors.find(visitor_of(request), KEPT, kind)
        return status(MISSING) if found is None else self.work.call("shown:left_out", found, int(token))
