"""Losses on a tokenizer's reconstructions: LPIPS, a classifier, and a discriminator (MAETok, equation 6)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from tok1d.config.optim import OptimConfig
from tok1d.config.recipe import Recipe
from tok1d.errors import WeightsError, reason_of
from tok1d.losses.adversarial import AdversarialLoss, DiscriminatorOptim
from tok1d.losses.perceptual import PerceptualLoss
from tok1d.losses.total import Batch, Tensors
from tok1d.train.players import Player, PlayerLosses, Progress
from tok1d.train.processes import processes
from tok1d.zoo import store
from tok1d.zoo.pretrained.discriminator import build_discriminator
from tok1d.zoo.pretrained.lpips import load_perceptual
from tok1d.zoo.weights import load_state

NAME, PREFIX = "discriminator", "d_"  # the discriminator's name in checkpoints, and prefix in the log


class _Decoder(Protocol):
    last_weight: Tensor


class Reconstructing(Protocol):
    """A tokenizer whose deterministic decoder reconstructs images in a training step."""

    decoder: _Decoder

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        """Reconstructions (B, C, H, W), tokens, and the model's own loss terms."""
        ...


def build_players(
    recipe: Recipe, model: nn.Module, *, resumed: bool = False, perceptual: PerceptualLoss | None = None
) -> list[Player]:
    """The players of a recipe with perceptual or adversarial losses; empty where the model has only its own losses.

    The model is built before, so that its initial weights are the same with and without a discriminator.

    Args:
        model: has `reconstruct(batch, progress)` and `decoder.last_weight`, as MAETok does.
        resumed: a checkpoint will replace all weights, so `init_from` is not read.
        perceptual: used instead of the configured networks, whose weights are then not read.

    Raises:
        ConfigError, WeightsError: LPIPS, the classifier or the discriminator's frozen backbone cannot be loaded, or
            the discriminator in `init_from` does not fit.
    """
    adversarial = None
    if recipe.adversarial.weight > 0:
        discriminator = build_discriminator(recipe.adversarial.discriminator, recipe.data.channels)
        adversarial = AdversarialLoss(recipe.adversarial, _synchronised(discriminator))
        if recipe.init_from is not None and not resumed:
            init_discriminator(adversarial, recipe.init_from)
    if recipe.perceptual.used and perceptual is None:
        perceptual = load_perceptual(recipe.perceptual)
    if adversarial is None and perceptual is None:
        return []
    first = Player(model, tokenizer_losses(cast(Reconstructing, model), perceptual, adversarial))
    if adversarial is None:
        return [first]
    return [first, Player(adversarial, discriminator_losses(adversarial), discriminator_optim(recipe), NAME, PREFIX)]


def tokenizer_losses(
    model: Reconstructing, perceptual: PerceptualLoss | None, adversarial: AdversarialLoss | None
) -> PlayerLosses:
    """The losses of the tokenizer. Its output "fake" is the reconstruction (B, C, H, W)."""

    def losses(batch: Batch, progress: Progress, earlier: Tensors) -> tuple[Tensors, Tensors]:
        real, step = batch[0], progress.step + 1
        fake, _, terms = model.reconstruct(batch, progress.fraction)
        # The adaptive weight compares the adversarial loss with losses on the same pixels, not on features.
        compared: Tensors = {"loss_reconstruction": terms["loss_reconstruction"]}
        if perceptual is not None:
            compared |= perceptual.terms(real, fake, step)
        terms |= compared
        if adversarial is not None:
            terms |= adversarial.generator_terms(real, fake, step, model.decoder.last_weight, compared)
        return terms, {"fake": fake}

    return losses


def discriminator_losses(adversarial: AdversarialLoss) -> PlayerLosses:
    """The losses of the discriminator, on the images and the tokenizer's output "fake"."""

    def losses(batch: Batch, progress: Progress, earlier: Tensors) -> tuple[Tensors, Tensors]:
        return adversarial.discriminator_losses(batch[0], earlier["fake"], progress.step + 1), {}

    return losses


def discriminator_optim(recipe: Recipe) -> OptimConfig:
    """The tokenizer's optimizer settings, with the changes of `adversarial.optim`, and without averaged weights.

    A different learning rate scales the whole schedule, including `warmup_init` and `lr_min`.
    """
    train, own = recipe.train, recipe.adversarial.optim
    assert isinstance(own, DiscriminatorOptim)
    scale = 1.0 if own.lr is None else own.lr / train.lr
    given = {key: value for key, value in vars(own).items() if value is not None}
    return replace(
        train,
        ema=0.0,
        lr_min=train.lr_min * scale,
        warmup_init=None if train.warmup_init is None else train.warmup_init * scale,
        **given,
    )


def init_discriminator(adversarial: AdversarialLoss, model: str) -> None:
    """Load the discriminator's state from the newest checkpoint of the run that trained `model`, if there is one.

    Raises:
        WeightsError: the checkpoint cannot be read, or has a discriminator of another kind.
    """
    checkpoints = sorted((store.resolve(model).parent / "checkpoints").glob("step-*.pt"))
    state = _discriminator_state(checkpoints[-1]) if checkpoints else None
    if state is None:
        print(
            f"init_from={model}: its run has no checkpoint with a discriminator, so a new one is trained",
            file=sys.stderr,
        )
        return
    advice = f"{checkpoints[-1]}, use its adversarial.discriminator or move it away to train a new one"
    load_state(adversarial, state, advice)


def _discriminator_state(path: Path) -> dict[str, Tensor] | None:
    try:
        # Mapped, because the file also holds the tokenizer with its optimizer, which are not needed here.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content.get("players", {}).get(NAME, {}).get("model")
    except Exception as error:
        reason = reason_of(error, 120)
        raise WeightsError(f"cannot read the checkpoint {path} ({reason}); delete it to start a new one") from None


def _synchronised(discriminator: nn.Module) -> nn.Module:
    """The discriminator with batch statistics over all processes on GPUs; torch has no such layer for CPUs."""
    if not torch.cuda.is_available() or processes().num_processes == 1:
        return discriminator
    return nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
