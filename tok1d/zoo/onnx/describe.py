"""The file beside the graphs: what a program without torch and tok1d needs to use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tok1d.config.classes import class_names
from tok1d.config.colour import rgb_of
from tok1d.config.condition import text_condition
from tok1d.images.framing import framing_of
from tok1d.tokenizers.model import TokenizerModel
from tok1d.tokenizers.semanticist import Semanticist
from tok1d.zoo.onnx.parts import Part, Value, condition_value, null_condition

FORMAT = 1

Entry = dict[str, object]

CROPS = {
    "center": "center: halve with a box filter while the short side is at least twice the inner size; resize the short "
    "side to the inner size (bicubic, antialiased); cut out the centre, offsets rounded down",
    "fit": "fit: halve with a box filter while the long side is at least twice the inner size; resize the long side to "
    "the inner size (bicubic, antialiased); centre it on a square of the background, offsets rounded down",
}
VELOCITIES = {
    "velocity": "v = p",
    "data": "v = alpha' p + sigma' (x - alpha p) / sigma",
    "noise": "v = alpha' (x - sigma p) / alpha + sigma' p",
}
PATHS = {
    "linear": "alpha = t, sigma = 1 - t",
    "cosine": "alpha = sin(pi t / 2), sigma = cos(pi t / 2)",
}


def described(model: TokenizerModel, parts: Sequence[Part]) -> Entry:
    """The content of the file, without what is known after the export of each part.

    Pictures: how an image becomes an input. Tokens: number, width or vocabulary, order. Condition: kind, null
    condition, classes or vocabulary. Parts: inputs and outputs. Sampler: the loop around the network of a flow decoder.
    """
    content: Entry = {
        "format": FORMAT,
        "model": model.config.name,
        "pictures": _pictures(model),
        "tokens": _tokens(model),
        "condition": _condition(model) if model.spec.needs_label else None,
        "parts": {part.name: _part(part) for part in parts},
    }
    if any(part.kind == "network" for part in parts):
        assert isinstance(model, Semanticist)
        content["sampler"] = _sampler(model)
    return content


def _part(part: Part) -> Entry:
    return {
        "file": f"{part.name}.onnx",
        "kind": part.kind,
        "inputs": [_value(each) for each in part.inputs],
        "outputs": [_value(part.output)],
    }


def _value(value: Value) -> Entry:
    return {
        "name": value.name,
        "dtype": value.dtype,
        "shape": ["batch", *value.shape],
        "range": None if value.range is None else list(value.range),
        "about": value.about,
    }


def _pictures(model: TokenizerModel) -> Entry:
    config, framing = model.config, framing_of(model)
    return {
        "size": config.image_size,
        "inner_size": config.image_size - 2 * framing["pad"],
        "pad": framing["pad"],
        "channels": config.channels,
        "background": list(rgb_of(framing["background"])),
        "crop": framing["crop"],
        "steps": [
            "composite over the background (red, green, blue) where the picture is transparent",
            "convert to grey, 0.299 R + 0.587 G + 0.114 B" if config.channels == 1 else "convert to RGB",
            CROPS[framing["crop"]],
            "divide by 255; axes (channel, row, column)",
            "add a black border of pad pixels on each side; decoded images have it too",
        ],
        "normalisation": "none: it is part of the graphs",
    }


def _tokens(model: TokenizerModel) -> Entry:
    spec = model.spec
    return {
        "count": spec.length,
        "width": spec.dim,
        "vocabulary": spec.vocab_size,
        "ordered": spec.ordered,
        "prefixes": "the input keep of the decoder is the number of leading tokens that are used, 0 to count"
        if spec.ordered
        else "none: the tokens have no order, the decoder needs all",
    }


def _condition(model: TokenizerModel) -> Entry:
    value, text = condition_value(model), text_condition(model.config)
    entry: Entry = {
        "null": null_condition(model)[0].flatten()[:1].item(),
        "null_is_trained": bool(getattr(model.config, "label_dropout", 0)),
        "about": value.about,
    }
    if text is None:
        return {"kind": "class", "count": model.spec.num_classes, "names": list(class_names(model)), **entry}
    entry["length"] = text.length
    if text.num_words is None:
        return {"kind": "text", "encoder": text.encoder, "width": text.dim, **entry}
    entry["words"] = (
        "of a caption in Unicode form NFKC and lower case: what is between spaces and hyphens, without punctuation at "
        "its ends; words that are not in the vocabulary are left out, later ones than length too"
    )
    return {"kind": "words", **entry, "vocabulary": text.vocabulary}


def _sampler(model: Semanticist) -> Entry:
    config, flow = model.config, model.config.flow
    times = model.flow_times(config.steps).double()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    steps = []
    for t, step in zip(times[:-1], times.diff()):
        # The velocity is linear in the prediction and in x.
        to_velocity = model.objective.path.to_velocity
        of_p, of_x = (to_velocity(p, flow.prediction, x, t[None]) for p, x in ((one, zero), (zero, one)))
        steps.append({"t": float(t), "step": float(step), "of_prediction": float(of_p), "of_x": float(of_x)})
    return {
        "name": "euler",
        "path": flow.path,
        "prediction": flow.prediction,
        "shift": flow.shift,
        "temperature": flow.temperature,
        "steps": steps,
        "shape": list(model.latent_shape),
        "start": "x = temperature * noise, standard normal, of the shape (batch, *shape)",
        "loop": "for each of steps: p = network(x, t, tokens, keep); x = x + step * (of_prediction * p + of_x * x)",
        "end": "image = clip((x + 1) / 2, 0, 1)",
        "guidance": "with a scale s other than 1: u = network(x, t, tokens, 0), then u + s * (p - u) in place of p",
        "other_numbers_of_steps": {
            "times": "t_i = i / (n + (shift - 1) (n - i)), i = 0..n, for n steps"
            + ("; t_0 = min(t_1, 0.02) / 2" if flow.prediction == "noise" else ""),
            "step": "x = x + (t_(i+1) - t_i) v at t = t_i",
            "velocity": f"{VELOCITIES[flow.prediction]}; {PATHS[flow.path]}, alpha' and sigma' are their derivatives",
        },
    }
