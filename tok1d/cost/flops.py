"""How much a training step computes, for throughput in a run's log: what `--dry-run` counts, without its memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from tok1d.config.recipe import Recipe
from tok1d.cost.forecast import frozen_networks, meta_batch
from tok1d.cost.loss_networks import judges
from tok1d.cost.measure import count_flops, use_stand_ins
from tok1d.zoo import store


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of matrix products and convolutions of one optimizer step, forward and backward, over all processes.

    Args:
        before, playing: without and with the discriminator in the game.
        start: first step, counted from 1, at which it plays; where there is none both counts are equal.
        left_out: networks that run in the step and whose cost is not known.
    """

    before: int
    playing: int
    start: int = 0
    left_out: tuple[str, ...] = ()

    def at(self, step: int) -> int:
        """Of step `step`, counted from 1."""
        return self.before if step < self.start else self.playing

    def total(self, first: int, last: int) -> int:
        """Of the steps first..last, counted from 1, both of them among these."""
        before = min(max(self.start - first, 0), last - first + 1)
        return before * self.before + (last - first + 1 - before) * self.playing


def step_flops(recipe: Recipe) -> StepFlops:
    """The count for a recipe, on the meta device; neither data nor weights are read, random numbers stay as they are.

    Frozen networks whose size is known count too: an autoencoder's encoder, LPIPS. What a generator's images cost to
    encode does not (`cache=none`), nor what is computed a second time (`train.checkpoint_activations`). Where SMAP
    drops the same tail of a whole batch, the count is that of the mean number of tokens.
    """
    train, sizes = recipe.train, list[int | None](recipe.data.image_sizes) or [None]
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = store.build_model(recipe.model)
        use_stand_ins(model, average=True)
        counts = [count_flops(model, partial(meta_batch, recipe, size=size)) for size in sizes]
        beside = judges(recipe)
    own = sum(counts) // len(counts)
    frozen = {name: cost for name, cost in frozen_networks(recipe.model).items() if name != "text encoder"}
    own += sum(cost[1] for cost in frozen.values() if cost)
    known = [judge for judge in beside.values() if judge is not None]
    images = train.batch_size * train.accumulate
    return StepFlops(
        before=images * (own + sum(judge.flops_before for judge in known)),
        playing=images * (own + sum(judge.flops_per_image for judge in known)),
        start=recipe.adversarial.start if recipe.adversarial.weight > 0 else 0,
        left_out=tuple(name for name, cost in {**frozen, **beside}.items() if cost is None),
    )


def step_flops_or_none(recipe: Recipe) -> StepFlops | None:
    """`step_flops`, or None where a step cannot be counted: no run stops for a number in its log."""
    try:
        return step_flops(recipe)
    except Exception:  # a layer without a meta kernel raises whatever PyTorch raises
        return None
