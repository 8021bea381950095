"""How samples are drawn and decoded, and what a record says of it: sampler, evaluations of the network, guidance."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tok1d.data.order import seed_from
from tok1d.diffusion.guidance import Guidance, Schedule, as_guidance
from tok1d.errors import InputError
from tok1d.generators.llamagen import LlamaGen
from tok1d.generators.maskgit import MaskGIT
from tok1d.generators.sequence import SequenceModel
from tok1d.zoo.weights import fingerprint

TOKEN_NOISE, DECODER_NOISE, CLASS_NOISE = "tokens", "pixels", "classes"  # purposes of an image's noise


def noise_of(*key: int | str) -> torch.Generator:
    """A source of noise that belongs to a key, such as a seed, a purpose and the number of an image.

    It draws on the CPU whatever the model's device, so that all devices see the same noise.
    """
    return torch.Generator().manual_seed(seed_from(" ".join(map(str, key))))


class Evaluations:
    """Rows that networks were evaluated on; two rows an image and step where guidance needs both predictions."""

    def __init__(self) -> None:
        self.rows = 0

    def per(self, num: int) -> str:
        """Evaluations for each of `num` things, as a record writes them."""
        return f"{self.rows / num:g}"


@contextmanager
def counted(*networks: nn.Module) -> Iterator[Evaluations]:
    """Count the evaluations of networks while the block runs; calls on a batch count once a row."""
    evaluations = Evaluations()

    def count(module: nn.Module, inputs: tuple) -> None:
        evaluations.rows += len(inputs[0])

    hooks = [network.register_forward_pre_hook(count) for network in dict.fromkeys(networks)]
    try:
        yield evaluations
    finally:
        for hook in hooks:
            hook.remove()


def decoder_options(
    tokenizer: Any,
    *,
    steps: int | None = None,
    guidance: float | Guidance = 1.0,
    solver: str | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """What `decode` takes to paint so (solver None: the tokenizer's own); nothing where it paints in one pass.

    Args:
        prefix: of the names in messages.

    Raises:
        InputError: steps, guidance or a solver for a decoder without them, or not this solver.
    """
    if not tokenizer.spec.deterministic:
        return {"steps": steps, "guidance": guidance, "solver": tokenizer.solver(solver)}
    scale = as_guidance(guidance).scale
    for name, value in (("steps", steps), ("guidance", None if scale == 1 else scale), ("solver", solver)):
        if value is not None:
            raise InputError(f"{prefix}{name}: this tokenizer paints in one pass, leave it out; got {value}")
    return {}


def sampling_options(generator: Any, prefix: str = "", **options: Any) -> dict[str, Any]:
    """Those options of `sample` that are given (not None).

    Args:
        prefix: of the names in messages.

    Raises:
        InputError: one that this generator's `sample` does not have.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(type(generator).sample).parameters
    for name, value in given.items():
        if name not in known:
            shown = prefix + (name.replace("_", "-") if prefix == "--" else name)
            raise InputError(f"{shown}: {generator.config.name} has none, leave it out; got {value}")
    return given


def samples_all_at_once(generator: Any) -> bool:
    """Whether a generator draws all tokens together, so that only their full number can be asked for."""
    return isinstance(generator, SequenceModel | MaskGIT)


def takes_interval(generator: Any) -> bool:
    """Whether guidance can be confined to an interval: of time, of the steps, of the sequence."""
    return isinstance(generator, SequenceModel | MaskGIT | LlamaGen)


def generator_guidance(generator: Any, guidance: float | Guidance) -> Guidance:
    """A plain scale becomes what this generator is guided by: constant, or growing over its tokens or steps."""
    if isinstance(guidance, Guidance):
        return guidance
    schedule: Schedule = getattr(generator, "guidance_schedule", "constant")
    power = getattr(generator, "guidance_power", 1.0)
    return Guidance(float(guidance), schedule=schedule, power=power)


def sampled_networks(generator: Any, guidance: Guidance) -> list[nn.Module]:
    """What sampling evaluates: a head, or the network over whole sequences and that of a weak model."""
    if isinstance(generator, LlamaGen):
        return [generator.out]
    if isinstance(generator, MaskGIT):
        return [generator.net]
    if not isinstance(generator, SequenceModel):
        return [generator.head.net.input]
    weak = guidance.weak_model
    return [generator.net] if weak is None else [generator.net, weak.net]


def sampling_text(
    generator: Any,
    evaluations: float,
    num_tokens: int,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """A record's words for how tokens were sampled.

    Args:
        evaluations: rows that the networks were evaluated on, for a sequence of `num_tokens` tokens or ids.
    """
    whole = samples_all_at_once(generator)
    warmth = "" if temperature == 1 else f", temperature {temperature:g}"
    told = f"{evaluations / (1 if whole else num_tokens):g} evaluations"
    if isinstance(generator, LlamaGen):
        kept = (f", top-k {top_k}" if top_k else "") + (f", top-p {top_p:g}" if top_p not in (None, 1) else "")
        return f"categorical, {told} a token{kept}{warmth}"
    if isinstance(generator, MaskGIT):
        config = generator.config
        noise = f", noise {config.noise:g}" + (", annealed" if config.annealing else "")
        return f"maskgit {steps or config.steps} steps, {told} a sequence{noise}{warmth}"
    part, unit = (generator, "a sequence") if whole else (generator.head, "a token")
    return f"{part.sampler(sampler)} {steps or part.config.steps} steps, {told} {unit}{warmth}"


def guidance_text(guidance: float | Guidance, *, over_tokens: bool = False) -> float | str:
    """A record's guidance: the plain scale, or with its interval and weak model, or (`over_tokens`) its schedule."""
    guidance = as_guidance(guidance, "linear" if over_tokens else "constant")
    if guidance.scale == 1:
        return 1.0
    low, high = guidance.interval
    within = "" if (low, high) == (0, 1) else f" in {low:g}..{high:g}"
    if over_tokens:
        power = f" {guidance.power:g}" if guidance.schedule == "power_cosine" else ""
        return f"{guidance.scale:g} {guidance.schedule}{power}{within}"
    if guidance.weak_model is None:
        return f"{guidance.scale:g}{within}" if within else guidance.scale

    weak = guidance.weak_model
    return f"{guidance.scale:g}{within} against {weak.config.name}@{fingerprint(weak)}"
