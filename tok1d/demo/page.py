"""The demo's report as one HTML file: a pure function from the measurements to text.

The page is self-contained: images are data URIs, the style sheet is included, and there are no scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from tok1d.evaluate.report import html_table
from tok1d.html.parts import Strip, card, pair, strips, style
from tok1d.zoo.record import Record


@dataclass(frozen=True)
class ModelResults:
    """The results of a tokenizer with its generator.

    Args:
        name: "yours" or "bundled".
        about: one line about their training.
        decoding, sampling: settings of the reconstructions and samples.
        reconstructions: original images, then reconstructions from 1, 2, 4, ... tokens.
        by_length: the same samples decoded from 1, 2, 4, ... tokens; one column per class.
        samples: one row per class.
    """

    name: str
    about: str
    decoding: str
    sampling: str
    reconstructions: list[Strip]
    by_length: list[Strip]
    samples: list[Strip]
    reconstruction_records: list[Record] = field(default_factory=list)
    generation_records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Probe:
    """Accuracy in [0, 1] of a linear classifier of model `model` on features of `size` numbers per image."""

    model: str
    features: str
    size: int
    accuracy: float


@dataclass(frozen=True)
class Check:
    """A measured value and its target; `met` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Gallery:
    """Rows of images under a title; `name` is that of their PNG file."""

    name: str
    title: str
    note: str
    strips: list[Strip]


@dataclass(frozen=True)
class Page:
    """Everything in the report; `curve` is a data URI, `commands` are (purpose, command line).

    Args:
        colour: images of the bundled models of emoji, at the top.
    """

    models: list[ModelResults]
    classes: list[str]
    curve: str
    curve_protocol: str
    checks: list[Check]
    probes: list[Probe]
    probe_protocol: str
    commands: list[tuple[str, str]]
    colour: list[Gallery] = field(default_factory=list)


def render(page: Page) -> str:
    """The whole page as HTML text."""
    both = len(page.models) > 1
    origin = (
        "“Yours” are the models that this command trained on this machine; “bundled” are the ones in the package."
        if both
        else "This command trained both models on this machine; the package has no bundled models to compare with."
    )
    parts = [
        "<h1>Images as short sequences of tokens</h1>",
        *([_colour(page.colour)] if page.colour else []),
        "<p>A tokenizer encodes each image as a short sequence of tokens, ordered by importance like principal "
        "components. A generator was then trained to generate such sequences for a given class. "
        f"{origin}</p>",
        *(f'<p class="note"><b>{escape(model.name)}</b>: {escape(model.about)}</p>' for model in page.models),
        _targets(page.checks),
        _reconstructions(page),
        _curve(page),
        _generation(page),
        _numbers(page),
        _probe(page),
        _next(page.commands),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>tok1d demo</title>\n<style>\n{style()}</style>\n</head>\n"
        '<body class="report">\n'
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def _section(name: str, title: str, lead: str, *body: str) -> str:
    inner = "\n".join(body)
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n<p>{escape(lead)}</p>\n{inner}\n</section>'


def _targets(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        verdict = "" if check.met is None else f'<b class="{"yes" if check.met else "no"}">{_yes(check.met)}</b>'
        cells = (escape(check.what), escape(check.measured), escape(check.target), verdict)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = _table(("yours", "measured", "target", "met"), rows)
    return _section("done", "Targets", "The targets of this demo, and the measured values.", table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _colour(galleries: Sequence[Gallery]) -> str:
    lead = (
        "Two models in the package, trained on 3,286 colour emoji of 64x64 pixels: a tokenizer (SMAP) that encodes an "
        "image as 16 tokens, and a generator (CARD) of such tokens from words."
    )
    cards = [card(gallery.title, gallery.note, strips(gallery.strips)) for gallery in galleries]
    return _section("colour", "Colour emoji", lead, pair(cards))


def _reconstructions(page: Page) -> str:
    lead = "The first test images (not selected), and their reconstructions from the first 1, 2, 4, … tokens."
    cards = [card(model.name, model.decoding, strips(model.reconstructions)) for model in page.models]
    return _section("reconstructions", "Originals and reconstructions", lead, pair(cards))


def _curve(page: Page) -> str:
    lead = (
        "How much the first tokens reduce the decoder's denoising loss, as a share of the reduction by all tokens: "
        "0 % without tokens, 100 % with all of them."
    )
    plot = f'<img class="plot" alt="reduction of the denoising loss by number of tokens" src="{page.curve}">'
    return _section(
        "curve", "What each token contributes", lead, plot, f'<p class="note">{escape(page.curve_protocol)}</p>'
    )


def _generation(page: Page) -> str:
    by_length = [card(model.name, model.sampling, strips(model.by_length, page.classes)) for model in page.models]
    samples = [card(model.name, "", strips(model.samples)) for model in page.models]
    return (
        _section(
            "growing",
            "Samples from increasing numbers of tokens",
            "One generated sequence per class, decoded from its first 1, 2, 4, … tokens with the same initial noise.",
            pair(by_length),
        )
        + "\n"
        + _section(
            "samples", "Samples of every class", "The first samples of each class (not selected).", pair(samples)
        )
    )


def _numbers(page: Page) -> str:
    kinds = (("Reconstruction", "reconstruction_records"), ("Generation", "generation_records"))
    body = []
    for title, kind in kinds:
        body += [f"<h3>{title}</h3>", _comparison(page.models, kind)]
    for model in page.models:
        records = [*model.reconstruction_records, *model.generation_records]
        body.append(
            f"<details><summary>all numbers of {escape(model.name)} with their full protocol</summary>"
            f'<div class="scroll">{html_table(records)}</div></details>'
        )
    lead = "Each number with the number of images it was measured on. Numbers of bundled models come from their cards."
    return _section("numbers", "Measured numbers", lead, *body)


def _comparison(models: Sequence[ModelResults], kind: str) -> str:
    """One row for each (metric, tokens kept, remark), one column for each model."""
    cells: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for model in models:
        for record in getattr(model, kind):
            known = record.value is not None
            key = (record.name, "" if record.keep is None else str(record.keep), record.note if known else "")
            cells.setdefault(key, {}).setdefault(model.name, []).append(_cell(record))
    rows = []
    for key, by_model in cells.items():
        columns = [escape(text) for text in key]
        columns += ["<br>".join(by_model.get(model.name, [])) for model in models]
        rows.append("<tr>" + "".join(f"<td>{column}</td>" for column in columns) + "</tr>")
    return _table(("metric", "tokens", "remark", *(model.name for model in models)), rows)


def _cell(record: Record) -> str:
    if record.value is None:
        return f"unavailable <small>{escape(record.note)}</small>"
    protocol = [f"{record.num_images:,} images"]
    protocol += [f"{record.decoder_steps} steps"] if record.decoder_steps is not None else []
    protocol += [f"guidance {record.guidance_text}"] if record.guidance_text else []
    return f"{escape(f'{record.value:.4g} {record.unit}'.rstrip())} <small>{escape(', '.join(protocol))}</small>"


def _probe(page: Page) -> str:
    rows = [
        f"<tr><td>{escape(probe.model)}</td><td>{escape(probe.features)}</td>"
        f'<td class="number">{probe.size}</td><td class="number">{probe.accuracy:.1%}</td></tr>'
        for probe in page.probes
    ]
    table = _table(("model", "features", "numbers per image", "accuracy"), rows)
    lead = "Accuracy of a linear classifier that predicts the class from the tokens, which were trained without labels."
    return _section("probe", "Linear probe", lead, table, f'<p class="note">{escape(page.probe_protocol)}</p>')


def _next(commands: Sequence[tuple[str, str]]) -> str:
    body = [f"<p>{escape(purpose)}</p>\n<pre>{escape(command)}</pre>" for purpose, command in commands]
    return _section("next", "Next steps", "Commands for a shell in the folder where the demo ran.", *body)
