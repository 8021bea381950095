"""FLOPs of a training step, for the throughput in a run's log."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from tok1d.config.recipe import Recipe
from tok1d.cost.forecast import frozen_networks, meta_batch
from tok1d.cost.loss_networks import loss_networks
from tok1d.cost.measure import count_flops, use_stand_ins
from tok1d.zoo import store


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of matrix products and convolutions of one optimizer step, forward and backward, over all processes.

    Args:
        before: without the discriminator.
        after: with the discriminator; equal to `before` where there is none.
        start: first step, counted from 1, with the discriminator; 0 where there is none.
        uncounted: networks that run in the step and whose cost is unknown.
    """

    before: int
    after: int
    start: int = 0
    uncounted: tuple[str, ...] = ()

    def at(self, step: int) -> int:
        """FLOPs of step `step`, counted from 1."""
        return self.before if step < self.start else self.after

    def total(self, first: int, last: int) -> int:
        """FLOPs of the steps first, ..., last, counted from 1."""
        before = min(max(self.start - first, 0), last - first + 1)
        return before * self.before + (last - first + 1 - before) * self.after


def step_flops(recipe: Recipe) -> StepFlops:
    """The count for a recipe, on the meta device, without reading data or weights; random states are unchanged.

    Frozen networks of known size count, too: an autoencoder's encoder, LPIPS. Not counted are the encoding of images
    for a generator (`cache=none`) and recomputation (`train.checkpoint_activations`). Where SMAP drops tokens of a
    whole batch, the count is that of the mean number of tokens.
    """
    train, sizes = recipe.train, list[int | None](recipe.data.image_sizes) or [None]
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = store.build_model(recipe.model)
        use_stand_ins(model, average=True)
        counts = [count_flops(model, partial(meta_batch, recipe, size=size)) for size in sizes]
        networks = loss_networks(recipe)
    own = sum(counts) // len(counts)
    # Captions are embedded once, not in every step.
    frozen = {name: cost for name, cost in frozen_networks(recipe.model).items() if name != "text encoder"}
    own += sum(cost[1] for cost in frozen.values() if cost)
    known = [network for network in networks.values() if network is not None]
    images = train.batch_size * train.accumulate
    return StepFlops(
        before=images * (own + sum(network.flops_before for network in known)),
        after=images * (own + sum(network.flops_per_image for network in known)),
        start=recipe.adversarial.start if recipe.adversarial.weight > 0 else 0,
        uncounted=tuple(name for name, cost in {**frozen, **networks}.items() if cost is None),
    )


def step_flops_or_none(recipe: Recipe) -> StepFlops | None:
    """`step_flops`, or None where a step cannot be counted; an unknown cost does not stop a training."""
    try:
        return step_flops(recipe)
    except Exception:  # a layer without a meta kernel, or a model of the user's own, may raise anything
        return None
