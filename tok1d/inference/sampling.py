"""Random numbers, guidance and settings of sampling and decoding, and their form in records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tok1d.config.classes import class_names, shortened
from tok1d.config.condition import is_conditional
from tok1d.config.options import flag_of
from tok1d.config.sampling import EVERYWHERE, Decoding, SampleSettings, Sampling
from tok1d.data.order import seed_from
from tok1d.diffusion.few_step import FewStepModel
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.generators.base import Generator
from tok1d.tokenizers.base import Tokenizer
from tok1d.zoo.checkpoints import load_model
from tok1d.zoo.weights import fingerprint

DecoderOptions = dict[str, Any]  # keyword arguments of `Tokenizer.decode`

# Keys for the random numbers of an image: noise of its tokens, noise of the decoder, choice of its class.
TOKEN_NOISE, DECODER_NOISE, CLASS_NOISE = "tokens", "pixels", "classes"


def noise_of(*key: int | str) -> torch.Generator:
    """A random number generator seeded by a key, such as a seed, a purpose and the number of an image.

    It is always on the CPU, so that models on all devices receive the same random numbers.
    """
    return torch.Generator().manual_seed(seed_from(" ".join(map(str, key))))


class Evaluations:
    """The number of rows that networks were evaluated on; with guidance, a step takes two rows for each image."""

    def __init__(self) -> None:
        self.rows = 0


@contextmanager
def counted(*networks: nn.Module) -> Iterator[Evaluations]:
    """Count the evaluations of networks in the body of the `with` statement; a call counts the rows of its batch."""
    evaluations = Evaluations()

    def count(module: nn.Module, inputs: tuple) -> None:
        evaluations.rows += len(inputs[0])

    hooks = [network.register_forward_pre_hook(count) for network in dict.fromkeys(networks)]
    try:
        yield evaluations
    finally:
        for hook in hooks:
            hook.remove()


def decoder_options(tokenizer: Tokenizer, decoding: Decoding, prefix: str = "") -> DecoderOptions:
    """The keyword arguments of `tokenizer.decode`; {} for a deterministic decoder.

    Args:
        prefix: prefix of the names in messages, such as "--decoder-".

    Raises:
        InputError: settings of diffusion decoders for a deterministic one, or a sampler that the decoder does not have.
    """
    settings = dataclasses.asdict(decoding)
    guidance = Guidance(settings.pop("guidance"), interval=settings.pop("guidance_interval"))
    if not tokenizer.spec.deterministic:
        diffusion: Any = tokenizer
        return {**settings, "guidance": guidance, "sampler": diffusion.sampler(decoding.sampler)}
    for name, value in (*settings.items(), ("guidance", None if guidance.scale == 1 else guidance.scale)):
        if value is not None:
            shown = flag_of(name).removeprefix("--") if prefix.startswith("--") else name
            raise InputError(f"{prefix}{shown}: this tokenizer's decoder is deterministic, leave it out; got {value}")
    return {}


def guidance_of(generator: Generator, sampling: Sampling) -> Guidance:
    """The guidance of the settings. The default scale is 2, or 1 without classes, captions and weak model.

    It is also 1 for a model whose training included guidance (`FewStepConfig.guidance`).

    The default schedule of the scale 0 is constant: a schedule that goes from 1 to 0 is not the null condition.

    Raises:
        InputError: a scale other than 1 without classes, captions and weak model.
        WeightsError: there is no such weak model.
    """
    weak = None
    if sampling.weak_model:
        weak = load_model(sampling.weak_model, device=next(generator.parameters()).device)
        ours, theirs = class_names(generator), class_names(weak)
        if ours and theirs and ours != theirs:
            raise InputError(
                f"--weak-model: expected a model of the same classes in the same order ({shortened(ours)}), got "
                f"{sampling.weak_model} with {shortened(theirs)}"
            )
    guidable = weak is not None or (is_conditional(generator.config) and not sampling.unconditional)
    scale = sampling.guidance
    if scale is None:
        few = generator.few_step if isinstance(generator, FewStepModel) else None
        scale = 2.0 if guidable and (few is None or few.config.guidance == 1) else 1.0
    if scale != 1 and not guidable:
        raise InputError(f"--guidance: without classes it needs a --weak-model, else pass 1; got {scale:g}")
    own = generator.guidance_of(scale)
    schedule = sampling.guidance_schedule or ("constant" if scale == 0 else own.schedule)
    return dataclasses.replace(own, schedule=schedule, interval=sampling.guidance_interval, weak_model=weak)


def sampling_record(
    generator: Generator, settings: SampleSettings, guidance: Guidance, evaluations: float, num_tokens: int
) -> dict[str, object]:
    """The field `sampling` of a record: the settings of a generator, with the model's defaults filled in.

    Args:
        evaluations: number of network evaluations for a sequence of `num_tokens` tokens.
    """
    own = generator.resolved_settings(settings)
    unit = "sequence" if generator.parallel else "token"
    return {
        "sampler": own["sampler"],  # the first key
        **settings.read_by(generator.kind),
        **own,
        **_guidance_record(guidance, scheduled=generator.guidance_interval_of != "time"),
        "evaluations": evaluations / (1 if generator.parallel else num_tokens),
        "unit": unit,
    }


def decoding_record(tokenizer: Tokenizer, options: DecoderOptions, evaluations: float) -> dict[str, object] | None:
    """The field `decoding` of a record: the settings of a decoder; None for a deterministic decoder.

    Args:
        options: from `decoder_options`.
        evaluations: number of network evaluations for an image.
    """
    if not options:
        return None
    settings = {name: value for name, value in options.items() if name != "guidance"}
    steps = settings["steps"] or getattr(tokenizer.config, "steps", None)
    guidance = _guidance_record(options["guidance"], scheduled=False)
    return {**settings, "steps": steps, **guidance, "evaluations": evaluations, "unit": "image"}


def _guidance_record(guidance: Guidance, *, scheduled: bool) -> dict[str, object]:
    """The guidance scale; if it is not 1, also schedule, interval and weak model if they are not the defaults."""
    found: dict[str, object] = {"guidance": float(guidance.scale)}
    if guidance.scale == 1:
        return found
    if scheduled:
        found["guidance_schedule"] = guidance.schedule
        if guidance.schedule == "power_cosine":
            found["guidance_power"] = guidance.power
    if guidance.interval != EVERYWHERE:
        found["guidance_interval"] = list(guidance.interval)
    if guidance.weak_model is not None:
        found["weak_model"] = f"{guidance.weak_model.config.name}@{fingerprint(guidance.weak_model)}"
    return found
