"""Settings that each of several tokenizers reads, and the networks that classify their reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

from tok1d.analyze.request import JudgedReconstructions
from tok1d.config.options import check_counts
from tok1d.config.sampling import Decoding
from tok1d.errors import InputError
from tok1d.evaluate import setup
from tok1d.evaluate.clip import CLIP, open_clip
from tok1d.evaluate.measures import Measures
from tok1d.evaluate.request import Reconstruction
from tok1d.evaluate.training_networks import training_networks
from tok1d.images.framing import padding_of
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import prefix_lengths
from tok1d.zoo.card import Card

How = TypeVar("How", bound=JudgedReconstructions)
DECODING: dict[str, Any] = asdict(Decoding())  # the defaults, which every decoder accepts


def judges(
    tokenizer: Tokenizer, data: str, network: Sequence[str], metrics: Sequence[str], names: Sequence[str] = ()
) -> Measures:
    """Metrics with the networks of `--network`, by default those of `tok1d evaluate reconstruction`.

    Networks clip:MODEL follow the others.

    Args:
        metrics: names of metrics, such as "semantic". Without an available network none is left, and the result's
            `missing` states why.
        names: of the images' classes, for the prompts of clip:MODEL.

    Raises:
        InputError, ConfigError, WeightsError: a network that does not exist.
    """
    place, pad = next(tokenizer.parameters()).device, padding_of(tokenizer)
    clips = [open_clip(text, names, device=place, pad=pad) for text in network if text.startswith(CLIP)]
    others = tuple(text for text in network if not text.startswith(CLIP))
    if clips and not others:
        return Measures(tuple(metrics), clips, pad, requested=tuple(metrics))
    request = Reconstruction(model="", data=data, metrics=tuple(metrics), network=others)
    recipe = getattr(tokenizer, "card", Card()).recipe
    found = setup.open_measures(request, setup.Place(data, tokenizer.config, place, pad, training_networks(recipe)))
    return replace(found, networks=[*found.networks, *clips], metrics=tuple(metrics)) if clips else found


def settings_of_each(
    tokenizers: Sequence[Tokenizer], how: How, *, partial: bool = False, components: bool = False
) -> list[How]:
    """The settings for each of several tokenizers: those that it does not have are left out if another one has them.

    A setting that none of them has stays, so that it is an error where it is read.

    Args:
        partial: whether unordered tokens are decoded from the first ones too.
        components: whether the numbers are of components of the tokens, at most as many as their numbers.

    Raises:
        InputError: a number of tokens above that of a tokenizer.
    """
    ordered = [each.spec.ordered or partial or components for each in tokenizers]
    flows = [has_flow(each) for each in tokenizers]
    samples = [not each.spec.deterministic for each in tokenizers]
    found = []
    for i, tokenizer in enumerate(tokenizers):
        own = how
        if any(samples) and not samples[i]:
            own = replace(own, **DECODING)
        if any(flows) and not flows[i]:
            own = replace(own, temperature=None, shift=None)
        if any(ordered) and not ordered[i]:
            own = replace(own, keep=())
        most = tokenizer.spec.length
        if not components:
            check_counts(list(own.keep), "--keep", 0, most)
        elif tokenizer.spec.dim is not None:
            check_counts(list(own.keep), "--keep", 0, most * tokenizer.spec.dim)
        found.append(own)
    return found


def has_flow(tokenizer: Tokenizer) -> bool:
    """Whether the decoder is a flow, whose initial noise has a scale and whose times have a shift."""
    return getattr(tokenizer.config, "objective", "") == "flow" and hasattr(tokenizer.config, "flow")


@contextmanager
def flow_settings(tokenizer: Tokenizer, how: JudgedReconstructions) -> Iterator[dict[str, float]]:
    """Decode with the temperature and shift of `how` in the body of the `with` statement; yields those in effect.

    Nothing is yielded for other decoders than flows.

    Raises:
        InputError: a temperature or shift for another decoder.
    """
    given = {name: value for name in ("temperature", "shift") if (value := getattr(how, name)) is not None}
    if not has_flow(tokenizer):
        for name, value in given.items():
            raise InputError(f"--{name}: only a flow decoder (Semanticist) has it, leave it out; got {value:g}")
        yield {}
        return
    flow = getattr(tokenizer.config, "flow")  # noqa: B009  # only the configuration of a flow has the field
    before = {name: getattr(flow, name) for name in ("temperature", "shift")}
    try:
        for name, value in given.items():
            setattr(flow, name, value)
        yield before | given
    finally:
        for name, value in before.items():
            setattr(flow, name, value)


def prefix_counts(keep: Sequence[int], length: int) -> list[int]:
    """Numbers of leading tokens in ascending order; by default the powers of two below `length`, and `length`."""
    return sorted(set(keep or prefix_lengths(length)))
