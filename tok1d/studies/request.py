"""Settings of the analyses that train small generators, from which their options are made. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.evaluate.request import NETWORK_HELP

NUM_TRAIN = "number of training images whose tokens are learned: the first ones of fashion_mnist, else spread"


@dataclass(frozen=True, kw_only=True)
class SmallTraining:
    """How a small generator is trained."""

    steps: int = option(2000, "training steps; the learning rate falls to 0 over them", ge=1)
    train_batch: int = option(64, "token sequences of a training step", ge=1)
    dim: int = option(128, "width of the generator, a multiple of 32", ge=32)
    depth: int = option(4, "blocks of the generator", ge=1)
    statistics: Literal["scalar", "channel", "position"] = option(
        "scalar",
        "mean and std that normalise the tokens of every model: one of each (scalar), or one per channel or position",
    )
    seed: int = option(0, "seed of all random numbers", ge=0)


@dataclass(frozen=True, kw_only=True)
class Learning(SmallTraining):
    """The settings of `tok1d analyze learnability`."""

    generator: Literal["sit", "card"] = option("sit", "sit (all tokens at once) or card (one after the other)")
    num_train: int = option(10_000, NUM_TRAIN, ge=2)
    num: int = option(1000, "number of test images of the held-out loss, of samples and of training images", ge=2)
    guidance: float = option(1.0, "guidance scale of the samples; 1 is off", ge=0)
    network: tuple[str, ...] = option(
        (), f"network of the distances, repeatable: {NETWORK_HELP}", repeated=True, path="prefixed"
    )
    batch_size: int = option(250, "number of images or samples in a forward pass", ge=1)


@dataclass(frozen=True, kw_only=True)
class Ordering(SmallTraining):
    """The settings of `tok1d analyze order`."""

    repeats: int = option(1, "trainings of each order, with the seeds seed, seed + 1, ...", ge=1)
    num_train: int = option(10_000, NUM_TRAIN, ge=2)
    num: int = option(1000, "number of test images of the held-out loss", ge=2)
    batch_size: int = option(250, "number of images in a forward pass", ge=1)


@dataclass(frozen=True, kw_only=True)
class ModeSettings:
    """The settings of `tok1d analyze modes`."""

    modes: tuple[int, ...] = option((1, 4, 16), "numbers of modes, such as 1,4,16", ge=1)
    samples: tuple[int, ...] = option((256, 1024, 4096), "numbers of training samples, such as 256,1024,4096", ge=1)
    tokens: int = option(4, "number of tokens of a synthetic image", ge=1)
    token_dim: int = option(4, "numbers of a token", ge=1)
    bound: float = option(6.0, "norm of the means, in standard deviations of a mode", ge=0)
    steps: int = option(1000, "training steps, the same for every number of samples", ge=1)
    train_batch: int = option(128, "samples of a training step", ge=1)
    dim: int = option(64, "width of the SiT, a multiple of 32", ge=32)
    depth: int = option(2, "blocks of the SiT", ge=1)
    repeats: int = option(1, "trainings of each point, with other means and samples", ge=1)
    num: int = option(2000, "held-out noisy samples on which the error is measured", ge=1)
    seed: int = option(0, "seed of all random numbers", ge=0)
