"""The page: its tabs, and what they share."""

from __future__ import annotations

import gradio as gr

from tok1d.serve.controls import Part, Work, answering
from tok1d.serve.generate_tab import GenerateTab
from tok1d.serve.inside_tab import InsideTab
from tok1d.serve.mix_tab import MixTab
from tok1d.serve.reconstruct_tab import ReconstructTab

TITLE = "tok1d"
MOST_WAITING = 40  # events in the queue
MOST_SESSIONS = 64  # visitors whose controls gradio keeps
CLEAN_SECONDS, OLD_SECONDS = 300, 3600  # how often, and after which time uploaded files are removed
HEAD = "# tok1d\nImages as short sequences of tokens. All pictures stay on the machine where this page is served."


def build(work: Work) -> gr.Blocks:
    """The page of some models."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEAN_SECONDS, OLD_SECONDS))
    blocks.state_session_capacity = MOST_SESSIONS
    with blocks:
        gr.Markdown(HEAD)
        begun: list[Part] = []
        with gr.Tabs():
            with gr.Tab("Reconstruct", id="reconstruct"):
                begun.append(ReconstructTab(work))
            if work.shelf.generators:
                with gr.Tab("Generate", id="generate"):
                    begun.append(GenerateTab(work))
            with gr.Tab("Swap and mix", id="mix"):
                begun.append(MixTab(work))
            with gr.Tab("Look inside", id="inside"):
                InsideTab(work)
        for tab in begun:
            blocks.load(tab.begin, None, tab.first, show_progress="hidden", api_name=f"begin_{type(tab).__name__}")

        @answering
        def forget(request: gr.Request) -> None:
            work.visitors.forget(request.session_hash or "")

        blocks.unload(forget)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return blocks


def theme() -> gr.themes.Base:
    """The look of the controls, in fonts of the visitor's system."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
    )
