"""A tokenizer that is judged by more than its own losses: LPIPS, and a discriminator as a second player (MAETok,
equation 6)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.recipe import OptimConfig, Recipe
from tok1d.errors import WeightsError
from tok1d.losses.adversarial import AdversarialLoss, DiscriminatorOptim
from tok1d.losses.perceptual import PerceptualLoss
from tok1d.losses.total import Batch, Tensors
from tok1d.train.loop import processes
from tok1d.train.players import Moment, Player
from tok1d.zoo import store
from tok1d.zoo.pretrained.discriminator import build_discriminator
from tok1d.zoo.pretrained.lpips import load_perceptual
from tok1d.zoo.weights import load_state

NAME, PREFIX = "discriminator", "d_"  # what checkpoints and logs call the second player


def build_players(
    recipe: Recipe, model: nn.Module, *, resumed: bool = False, perceptual: PerceptualLoss | None = None
) -> list[Player]:
    """The players of a recipe whose loss sections have weight; empty where the model's own losses are all.

    The model is built before, so that it starts from the same weights with a discriminator as without.

    Args:
        model: offers `reconstruct(batch, progress)` and `decoder.last_weight`, as MAETok does.
        resumed: a checkpoint of this run replaces all weights anyway, so nothing is read to start from.
        perceptual: in place of the configured networks, whose weights are then not read.

    Raises:
        ConfigError, WeightsError: LPIPS, the classifier or the discriminator's frozen backbone cannot be had, or the
            discriminator that the recipe starts from does not fit.
    """
    game = None
    if recipe.adversarial.weight > 0:
        discriminator = build_discriminator(recipe.adversarial.discriminator, recipe.data.channels)
        game = AdversarialLoss(recipe.adversarial, _synchronised(discriminator))
        if recipe.init_from is not None and not resumed:
            keep_discriminator(game, recipe.init_from)
    if recipe.perceptual.used and perceptual is None:
        perceptual = load_perceptual(recipe.perceptual)
    if game is None and perceptual is None:
        return []
    first = Player(model, tokenizer_losses(model, perceptual, game))
    if game is None:
        return [first]
    return [first, Player(game, discriminator_losses(game), discriminator_optim(recipe), NAME, PREFIX)]


def tokenizer_losses(model: Any, perceptual: PerceptualLoss | None, game: AdversarialLoss | None) -> Any:
    """The losses of the first player, which shows the second its reconstruction as "fake" (B, C, H, W)."""

    def losses(batch: Batch, moment: Moment, seen: Tensors) -> tuple[Tensors, Tensors]:
        real, step = batch[0], moment.step + 1
        fake, _, terms = model.reconstruct(batch, moment.progress)
        # What the adaptive weight holds the game against: what speaks of the same pixels, not the features.
        judged: dict[str, Tensor] = {"loss_reconstruction": terms["loss_reconstruction"]}
        if perceptual is not None:
            judged |= perceptual.terms(real, fake, step)
        terms |= judged
        if game is not None:
            terms |= game.generator_terms(real, fake, step, model.decoder.last_weight, judged)
        return terms, {"fake": fake}

    return losses


def discriminator_losses(game: AdversarialLoss) -> Any:
    """The losses of the second player."""

    def losses(batch: Batch, moment: Moment, seen: Tensors) -> tuple[Tensors, Tensors]:
        return game.discriminator_losses(batch[0], seen["fake"], moment.step + 1), {}

    return losses


def discriminator_optim(recipe: Recipe) -> OptimConfig:
    """The tokenizer's settings with what `adversarial.optim` says; without averages, which nobody would read.

    Another learning rate scales the whole schedule, its first and last rate included.
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


def keep_discriminator(game: AdversarialLoss, start: str) -> None:
    """Give the game the state that the run which made the model `start` left in its newest checkpoint, if there is one.

    Raises:
        WeightsError: an unreadable checkpoint, or a discriminator of another kind.
    """
    checkpoints = sorted((store.resolve(start).parent / "checkpoints").glob("step-*.pt"))
    state = _discriminator_state(checkpoints[-1]) if checkpoints else None
    if state is None:
        print(f"start={start}: no checkpoint with a discriminator beside it, a new one is trained", file=sys.stderr)
        return
    advice = f"{checkpoints[-1]}, use its adversarial.discriminator or move it away to train a new one"
    load_state(game, state, advice)


def _discriminator_state(path: Path) -> dict[str, Tensor] | None:
    try:
        # Mapped: the file also holds the tokenizer with its optimizer, which nobody asks for here.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content.get("players", {}).get(NAME, {}).get("model")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise WeightsError(f"cannot read the checkpoint {path} ({reason}); delete it to start a new one") from None


def _synchronised(discriminator: nn.Module) -> nn.Module:
    """With batch statistics over all processes, where several train on GPUs (elsewhere torch has no such layer)."""
    if not torch.cuda.is_available() or processes().num_processes == 1:
        return discriminator
    return nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
