"""The parts of a tokenizer that become ONNX graphs: modules of tensors alone, and what goes in and out.

Every graph takes images of the model's own size and a batch of any size. Prefixes are an input: `keep` masks the other
tokens, or replaces them by null tokens. The null condition is an input as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tok1d.config.condition import text_condition
from tok1d.errors import InputError
from tok1d.tokenizers.model import TokenizerModel
from tok1d.tokenizers.prefix import prefix_mask
from tok1d.tokenizers.semanticist import Semanticist
from tok1d.zoo.selfcheck import fixed_image

PartName = Literal["encoder", "decoder"]
NAMES: tuple[PartName, ...] = ("encoder", "decoder")
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Value:
    """An input or output of a graph.

    Args:
        shape: without the first axis, which is the batch.
        range: least and largest value, both included; None: any number.
    """

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...]
    about: str
    range: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """A graph to export.

    Args:
        module: takes the inputs as keywords, and for `condition` also None, the null condition.
        kind: "one pass", or "network" for the denoising network of a flow decoder.
        sample: `sample(batch)`: inputs of a batch; the condition of a batch of one is the null condition.
    """

    name: PartName
    kind: Literal["one pass", "network"]
    module: nn.Module
    inputs: tuple[Value, ...]
    output: Value
    sample: Callable[[int], Inputs]


class EncoderGraph(nn.Module):
    """Images and a condition -> tokens or ids."""

    def __init__(self, model: TokenizerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> (B, K, D) or (B, K)."""
        return self.model.encode_images(images, condition)


class DecoderGraph(nn.Module):
    """Tokens or ids, a condition and numbers of kept tokens -> images."""

    def __init__(self, model: TokenizerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, condition: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, K, D) or (B, K), `keep` (B,) -> (B, C, H, W) in [0, 1]."""
        return self.model.decode_tokens(tokens, condition, keep=keep)


class NetworkGraph(nn.Module):
    """One call of the denoising network of a flow decoder."""

    def __init__(self, model: Semanticist) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """Noisy pixels (B, C, H, W), times (B,), tokens, `keep` (B,) -> the prediction (B, C, H, W)."""
        model = self.model
        filled = model.decoder.fill(model.entries(tokens), prefix_mask(keep, model.spec.length))
        return model.decoder(x, t, filled)


def part_of(model: object, name: PartName) -> Part:
    """The encoder or decoder of a tokenizer, as a graph.

    Raises:
        InputError: a model, or a decoder, that is not exported; the message says which are.
    """
    if not isinstance(model, TokenizerModel):
        kind = getattr(getattr(model, "config", None), "name", type(model).__name__)
        raise InputError(f"ONNX export: expected a tokenizer (Semanticist, MAETok, SMAP, TiTok), got a {kind}")
    if name == "encoder":
        return _encoder(model)
    if isinstance(model, Semanticist):
        return _network(model)
    if getattr(model.config, "text", False):
        raise InputError(
            "ONNX export: expected a decoder of tokens alone, this one reads features of a text; use --part encoder"
        )
    if not model.spec.deterministic:
        raise InputError("ONNX export: expected a decoder of one pass or of a flow, got another; use --part encoder")
    return _decoder(model)


def reads_condition(model: TokenizerModel, name: PartName) -> bool:
    """Whether that part of a tokenizer reads its condition."""
    return bool(getattr(model, f"{name}_reads", model.spec.needs_label))


def condition_value(model: TokenizerModel) -> Value:
    """The input for the condition: a class, ids of words, or states of a text encoder."""
    text = text_condition(model.config)
    if text is None:
        num = model.spec.num_classes
        return Value("condition", "int64", (), f"class; {num} is the null class", (0, num))
    if text.num_words is None:
        about = f"states of the text encoder {text.encoder}; zeros after the end; all zeros: no caption"
        return Value("condition", "float32", (text.length, text.dim), about)
    about = "words, 1 for the first of the vocabulary; 0 after the last one; all 0: no caption"
    return Value("condition", "int64", (text.length,), about, (0, text.num_words))


def null_condition(model: TokenizerModel) -> Tensor:
    """The null class, or no caption, of one image: (1,), (1, T) or (1, T, E)."""
    value = condition_value(model)
    zeros = torch.zeros(1, *value.shape, dtype=getattr(torch, value.dtype))
    return zeros if text_condition(model.config) is not None else zeros + model.spec.num_classes


def _images(model: TokenizerModel, about: str) -> Value:
    config = model.config
    return Value("images", "float32", (config.channels, config.image_size, config.image_size), about, (0, 1))


def _tokens(model: TokenizerModel) -> Value:
    spec = model.spec
    if spec.vocab_size:
        return Value("tokens", "int64", (spec.length,), "ids of the codebook", (0, spec.vocab_size - 1))
    return Value("tokens", "float32", (spec.length, spec.dim or 0), "tokens")


def _keep(model: TokenizerModel, about: str) -> Value:
    return Value("keep", "int64", (), about, (0, model.spec.length))


def _encoder(model: TokenizerModel) -> Part:
    inputs = [_images(model, "pixels")]
    if reads_condition(model, "encoder"):
        inputs.append(condition_value(model))

    def sample(batch: int) -> Inputs:
        images, condition = _sampled(model, batch)
        return _named(inputs, images=images, condition=condition)

    return Part("encoder", "one pass", EncoderGraph(model), tuple(inputs), _tokens(model), sample)


def _decoder(model: TokenizerModel) -> Part:
    inputs = [_tokens(model)]
    if reads_condition(model, "decoder"):
        inputs.append(condition_value(model))
    if model.spec.ordered:
        inputs.append(_keep(model, "number of leading tokens that are used; the others are masked, any values"))

    def sample(batch: int) -> Inputs:
        images, condition = _sampled(model, batch)
        tokens = _encoded(model, images, condition)
        return _named(inputs, tokens=tokens, condition=condition, keep=_sampled_keep(model, batch))

    return Part("decoder", "one pass", DecoderGraph(model), tuple(inputs), _images(model, "pixels"), sample)


def _network(model: Semanticist) -> Part:
    config = model.config
    if config.objective != "flow":
        raise InputError(
            f"ONNX export: expected a decoder of objective=flow, got {config.objective}; use --part encoder"
        )
    if config.flow.few_step is not None:
        raise InputError(
            "ONNX export: expected a decoder of the velocity, got one of few steps (flow.few_step), which needs the "
            "length of the step as a further input; use --part encoder"
        )
    if config.latents.space != "pixels":
        raise InputError(
            "ONNX export: expected a decoder of pixels, got one of latents of an autoencoder; use --part encoder"
        )
    shape = model.latent_shape
    inputs = (
        Value("x", "float32", shape, "noisy pixels in the range [-1, 1] of the clean ones"),
        Value("t", "float32", (), "time, 0 is noise and 1 is data", (0, 1)),
        _tokens(model),
        _keep(
            model,
            "number of leading tokens that are used, null tokens replace the others, any values; 0: the unconditional "
            "model",
        ),
    )
    output = Value("prediction", "float32", shape, f"prediction of the {config.flow.prediction}")

    def sample(batch: int) -> Inputs:
        images, _ = _sampled(model, batch)
        source = _source(batch)
        times, noise = torch.rand(batch, generator=source), torch.randn(images.shape, generator=source)
        x = model.objective.path.interpolate(2 * images - 1, noise, times)
        tokens = _encoded(model, images, None)
        return {"x": x, "t": times, "tokens": tokens, "keep": _sampled_keep(model, batch)}

    return Part("decoder", "network", NetworkGraph(model), inputs, output, sample)


def _named(inputs: list[Value], **given: Tensor | None) -> Inputs:
    """Those of the tensors that are inputs, in their order."""
    return {value.name: x for value in inputs if (x := given[value.name]) is not None}


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sampled(model: TokenizerModel, batch: int) -> tuple[Tensor, Tensor | None]:
    """Images, the fixed image under different noise, and a condition; the null condition for a batch of one."""
    source, config = _source(batch), model.config
    fixed = fixed_image(config.image_size, config.channels)
    images = (2 * fixed + torch.rand(batch, *fixed.shape[1:], generator=source)) / 3
    if not model.spec.needs_label:
        return images, None
    if batch == 1:
        return images, null_condition(model)
    value, text = condition_value(model), text_condition(model.config)
    if value.range is None:
        return images, torch.randn(batch, *value.shape, generator=source)
    count = model.spec.num_classes if text is None else value.range[1] + 1
    return images, torch.randint(count, (batch, *value.shape), generator=source)


def _sampled_keep(model: TokenizerModel, batch: int) -> Tensor:
    return torch.randint(model.spec.length + 1, (batch,), generator=_source(batch))


def _encoded(model: TokenizerModel, images: Tensor, condition: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model.encode_images(images, None if len(images) == 1 else condition)
