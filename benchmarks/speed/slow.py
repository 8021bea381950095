"""The same computations as in the library, each without one optimisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tok1d.config.optim import OptimConfig
from tok1d.diffusion.guidance import Guidance, combine, guided
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import Field, Randn, euler_maruyama, interpolant_sde
from tok1d.generators.autoregressive import EpsilonLlamaGen, HeadGenerator
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.head import DiffusionHead, SamplingTable
from tok1d.nn.attention import Attend, masked, prefix_causal_mask
from tok1d.nn.block import AdaLNBlock, Block
from tok1d.tokenizers import query_encoder
from tok1d.tokenizers.semanticist import Semanticist
from tok1d.train.ema import EMA
from tok1d.train.optim import Optimizers

_mask = functools.lru_cache(prefix_causal_mask)  # computed once, so that only the attention is compared


def dense_prefix_causal(prefix: int) -> Attend:
    """`prefix_causal` as one boolean mask over the whole sequence; its last rows for `after_prefix`."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return masked(_mask(prefix, k.shape[2] - prefix, q.device)[-q.shape[2] :])(q, k, v)

    return attend


@contextmanager
def dense_mask() -> Iterator[None]:
    """In this context, every causal query encoder uses a dense mask."""
    patch = partial(mock.patch.object, query_encoder)
    with patch("prefix_causal", dense_prefix_causal), patch("after_prefix", dense_prefix_causal), all_rows(Block):
        yield


@contextmanager
def all_rows(*blocks: type[nn.Module]) -> Iterator[None]:
    """In this context, blocks of these classes compute every position and return the requested ones."""
    with ExitStack() as stack:
        for cls in blocks:
            stack.enter_context(mock.patch.object(cls, "forward", _all_rows(cls.forward)))
        yield


def _all_rows(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(self: nn.Module, *args: Any, rows: slice | None = None) -> Tensor:
        *args, rows = args if len(args) > 2 and isinstance(args[-1], slice) else (*args, rows)
        return forward(self, *args) if rows is None else forward(self, *args)[:, rows]

    return run


@contextmanager
def separate_modulation() -> Iterator[None]:
    """In this context, DiT blocks multiply and add in separate passes over memory, and compute every position."""
    with (
        mock.patch("tok1d.nn.block.modulate", lambda x, shift, scale: x * (1 + scale) + shift),
        mock.patch("tok1d.nn.block.gated", lambda x, gate, branch: x + gate * branch),
        all_rows(AdaLNBlock),
    ):
        yield


@dataclass(frozen=True)
class HeadSwitches:
    """The optimisations of sampling one token from the diffusion head; the library uses all of them."""

    one_call: bool = True  # one network call per SDE step, instead of one for the drift and one for the score
    prepared: bool = True  # the part that depends on the condition is computed once per token
    shared_time: bool = True  # the time embedding and its modulation computed once for all rows
    tabled: bool = True  # and once for all tokens of a sample, instead of at every step of every token
    one_batch: bool = True  # conditional and unconditional rows in one call


def head_velocity(
    head: DiffusionHead,
    cond: Tensor,
    uncond: Tensor,
    scale: float,
    on: HeadSwitches,
    table: SamplingTable | None = None,
) -> Field:
    """The guided velocity (R, D) of a concat head for conditions (R, C); with a table, times are looked up in it."""
    net = head.net

    def network(rows: Tensor) -> Field:
        prepared = net.prepare(rows) if on.prepared else None

        def call(x: Tensor, t: Tensor) -> Tensor:
            t = t if on.shared_time else t.expand(x.shape[0])
            time = net.time_features(t) if table is None else table(t)
            halves = None if table is None else table.halves
            return net.evaluate(x, time, net.prepare(rows) if prepared is None else prepared, halves)

        return call

    if on.one_batch:
        both = network(torch.cat([cond, uncond]))
        return lambda x, t: combine(*both(x.repeat(2, 1), t).chunk(2), scale)
    first, second = network(cond), network(uncond)
    return lambda x, t: combine(first(x, t), second(x, t), scale)


def two_call_sde(velocity: Field, x: Tensor, steps: int, randn: Randn, last_step: float) -> Tensor:
    """`interpolant_sde` with drift and score from two separate network calls."""
    path = Path("linear")

    def drift(x: Tensor, t: Tensor) -> Tensor:
        score = path.score(velocity(x, t), x, t)
        return velocity(x, t) + (1 - t) * score

    times = torch.linspace(0, 1 - last_step, steps, device=x.device)
    x = euler_maruyama(drift, x, times, randn, lambda t: 1 - t)
    return x + last_step * drift(x, times[-1:])


def sample_head(
    head: DiffusionHead,
    cond: Tensor,
    uncond: Tensor,
    start: Tensor,
    randn: Randn,
    *,
    scale: float,
    steps: int,
    on: HeadSwitches,
    table: SamplingTable | None = None,
) -> Tensor:
    """`DiffusionHead.sample` of a guided interpolant by the SDE: (R, D) tokens from noise `start` (R, D)."""
    velocity = head_velocity(head, cond, uncond, scale, on, table)
    last_step = head.config.last_step
    if on.one_call:
        return interpolant_sde(velocity, start, steps, randn, last_step=last_step)
    return two_call_sde(velocity, start, steps, randn, last_step)


Conditions = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def trunk(model: HeadGenerator, labels: Tensor, length: int, *, cache: bool, one_batch: bool) -> Conditions:
    """Head conditions of token i given tokens (B, length, D), of which those before i count: two (B, dim).

    With a cache, i must be requested in order.
    """
    null = model.check_cond(None, len(labels))
    if not cache:

        def recomputed(tokens: Tensor, i: int) -> tuple[Tensor, Tensor]:
            rows = model.hidden(tokens[:, : i + 1].repeat(2, 1, 1), torch.cat([labels, null]))[:, i]
            return rows[: len(labels)], rows[len(labels) :]

        return recomputed
    together = CachedDecoder(model, labels, length, with_null=True) if one_batch else None
    apart = [] if one_batch else [CachedDecoder(model, ids, length, with_null=False) for ids in (labels, null)]

    def cached(tokens: Tensor, i: int) -> tuple[Tensor, Tensor]:
        before = tokens[:, i - 1] if i else None
        if together is None:
            return apart[0].step(before)[0], apart[1].step(before)[0]
        hidden, null_hidden = together.step(before)
        assert null_hidden is not None
        return hidden, null_hidden

    return cached


def sample_tokens(
    model: EpsilonLlamaGen,
    labels: Tensor,
    randn: Randn,
    *,
    length: int,
    scale: float,
    steps: int,
    on: HeadSwitches,
    cache: bool = True,
) -> Tensor:
    """`EpsilonLlamaGen.sample` with linear guidance and the SDE: (B, length, D)."""
    conditions = trunk(model, labels, length, cache=cache, one_batch=on.one_batch)
    tokens = model.positions.new_zeros(len(labels), length, model.config.token_dim)
    table = model.head.table(steps, "sde") if on.tabled else None
    for i, scale_i in enumerate(Guidance(scale, schedule="linear").token_scales(length).tolist()):
        cond, uncond = conditions(tokens, i)
        start = randn(tokens[:, i])
        tokens[:, i] = sample_head(
            model.head, cond, uncond, start, randn, scale=scale_i, steps=steps, on=on, table=table
        )
    return tokens


def two_pass_velocity(model: Semanticist, tokens: Tensor, scale: float) -> Field:
    """The guided velocity of a flow decoder with one call for the tokens and one for the null tokens."""
    null = model.decoder.null_tokens.expand(len(tokens), -1, -1)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return model.decoder(x, t, tokens)

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return conditional(x, t), model.decoder(x, t, null)

    return model.objective.velocity_field(guided(both, conditional, Guidance(scale)))


def unfused_adamw(model: nn.Module, config: OptimConfig, foreach: bool | None) -> torch.optim.AdamW:
    """AdamW of `Optimizers` without the fused kernel; `foreach` None: the default of PyTorch (on a CPU a loop)."""
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for optimizer in Optimizers(model, config)
        for group in optimizer.param_groups
    ]
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    return torch.optim.AdamW(groups, fused=False, foreach=foreach, **options)


@torch.no_grad()
def loop_ema(ema: EMA) -> None:
    """`EMA.update` one parameter after the other."""
    for name, average in ema.averages.items():
        average.mul_(ema.decay).add_(ema.parameters[name], alpha=1 - ema.decay)
