"""The adversarial game of tokenizer training: its losses, their weights and when it starts (MAETok, equation 6).

A tokenizer's training has two players. The tokenizer adds `AdversarialLoss.generator_terms` to its losses; the
`AdversarialLoss` is the other player, whose parameters are the discriminator's and whose forward pass is
`discriminator_losses`. It must not become a submodule of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tok1d.bottleneck.shared import mean_over_processes
from tok1d.config.fields import option
from tok1d.losses.augment import augment
from tok1d.losses.discriminator import DinoConfig, DiscriminatorConfig

Kind = Literal["hinge", "vanilla", "non_saturating"]
STRONG_CUTOUT = 0.5  # of the consistency term


@dataclass
class DiscriminatorOptim:
    """The discriminator's AdamW where it differs from the tokenizer's; steps and shape of the schedule are shared."""

    lr: float | None = option(None, "highest learning rate; null is the tokenizer's", gt=0)
    beta1: float | None = option(None, "AdamW decay of the mean gradient; null is the tokenizer's", ge=0, lt=1)
    beta2: float | None = option(None, "AdamW decay of the mean squared gradient; null is the tokenizer's", ge=0, lt=1)
    weight_decay: float | None = option(None, "AdamW weight decay; null is the tokenizer's", ge=0)
    clip: float | None = option(None, "largest gradient norm, 0 is off; null is the tokenizer's", ge=0)


@dataclass
class AdversarialConfig:
    """Whether and how a discriminator takes part in the training."""

    weight: float = option(0.0, "weight of the adversarial loss; 0 is no discriminator (MAETok: 0.4)", ge=0)
    start: int = option(30000, "first step, counted from 1, at which either player plays", ge=0)
    warmup: int = option(0, "steps from then on over which the tokenizer's weight grows linearly from 0", ge=0)
    adaptive: bool = option(True, "scale the weight by the ratio of gradients in the last layer (VQGAN)")
    loss: Kind = option("hinge", "non_saturating: logistic for both; vanilla: logistic, linear for the tokenizer")
    lecam: float = option(0.001, "weight of the LeCAM regulariser", ge=0)
    lecam_of: Literal["logits", "means"] = option("logits", "what LeCAM holds near: each logit, or their mean (TiTok)")
    diff_aug: bool = option(False, "show augmented images to the discriminator (DiffAugment; SoftVQ: true)")
    consistency: float = option(0.0, "weight of equal logits under strong augmentation (SoftVQ: 4)", ge=0)
    discriminator: DiscriminatorConfig = option(DinoConfig())
    optim: DiscriminatorOptim = option(DiscriminatorOptim())


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2 of logits of any shape."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def logistic_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean softplus(-real) + mean softplus(fake)) / 2: cross-entropy of "real" and "fake"."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def linear_g_loss(fake: Tensor) -> Tensor:
    """-mean(fake)."""
    return -fake.mean()


def logistic_g_loss(fake: Tensor) -> Tensor:
    """mean softplus(-fake), the non-saturating loss (arXiv 1406.2661, section 3)."""
    return F.softplus(-fake).mean()


def linear_ramp(step: int, steps: int) -> float:
    """min(1, step / steps), 1 without a warm-up (steps 0)."""
    return min(1.0, step / steps) if steps else 1.0


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, scale: float = 1.0) -> Tensor:
    """|d reconstruction| / (|d adversarial| + 1e-4) in [0, 1e4], without gradient (VQGAN, equation 7).

    Frobenius norms of the gradients in `last_layer`, the weight of the layer that makes the pixels; over several
    processes those of their mean gradients, as the optimizer sees them. 0 where one of them is not finite (fp16).

    Args:
        scale: of the losses in these backward passes, a power of 2, which keeps gradients of half precision from
            becoming 0; the norms are divided by it, so that it changes nothing else.
    """
    numerator, denominator = (
        mean_over_processes(torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0]).float().norm() / scale
        for loss in (reconstruction, adversarial)
    )
    ratio = (numerator / (denominator + 1e-4)).clamp(0, 1e4)
    return torch.where(torch.isfinite(numerator) & torch.isfinite(denominator), ratio, 0.0)


class LeCam(nn.Module):
    """Regulariser that holds logits near running means of the other side (LeCAM, arXiv 2104.03310).

    The running means are buffers, equal in all processes.

    Args:
        of_means: compare them with the mean of the logits instead of every logit (TiTok).
    """

    def __init__(self, decay: float = 0.999, *, of_means: bool = False) -> None:
        super().__init__()
        self.decay, self.of_means = decay, of_means
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))
        self.mean_real: Tensor
        self.mean_fake: Tensor

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Move both means, from 0 at first, towards the means of these logits."""
        for mean, logits in ((self.mean_real, real), (self.mean_fake, fake)):
            mean.lerp_(mean_over_processes(logits.mean()), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean relu(real - mean_fake)^2 + mean relu(mean_real - fake)^2, of logits or of their means."""
        if self.of_means:
            real, fake = real.mean(), fake.mean()
        return F.relu(real - self.mean_fake).square().mean() + F.relu(self.mean_real - fake).square().mean()


class AdversarialLoss(nn.Module):
    """Both sides of the game. Images (B, C, H, W) are in [0, 1], reconstructions may leave it; steps count from 1.

    Args:
        discriminator: called with images in [-1, 1] and `generator=`, gives logits (B, ...).
    """

    def __init__(self, config: AdversarialConfig, discriminator: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.discriminator = discriminator
        self.lecam = LeCam(of_means=config.lecam_of == "means")

    def generator_terms(
        self,
        real: Tensor,
        fake: Tensor,
        step: int,
        last_layer: Tensor,
        reconstruction: Mapping[str, Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The tokenizer's terms: "loss_adversarial", 0 before the start, and then "adaptive_weight" if it is used.

        The discriminator's parameters collect no gradient, and its buffers stay as they are.

        Args:
            real, fake: images and their reconstruction; these losses judge the reconstruction alone.
            last_layer: the weight of the tokenizer's last layer.
            reconstruction: the weighted reconstruction and perceptual terms, which the adaptive weight compares with.
            generator: of augmentation and crops, on the CPU; default: the global one.
        """
        assert real.shape == fake.shape, f"images {tuple(real.shape)}, reconstructions {tuple(fake.shape)}"
        config = self.config
        if step < config.start:
            return {"loss_adversarial": fake.new_zeros(())}
        # Copies of the buffers take the statistics of this pass and are thrown away.
        state = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        state |= {name: value.clone() for name, value in self.discriminator.named_buffers()}
        logits = functional_call(self.discriminator, state, self._shown(fake, generator), {"generator": generator})
        loss = (logistic_g_loss if config.loss == "non_saturating" else linear_g_loss)(logits.float())
        weight = config.weight * linear_ramp(step - config.start, config.warmup)
        if not config.adaptive:
            return {"loss_adversarial": weight * loss}
        # Losses are means over pixels: times their number, gradients are of the order of 1.
        scale = 2.0 ** math.floor(math.log2(fake.numel()))
        factor = adaptive_weight(torch.stack(list(reconstruction.values())).sum(), loss, last_layer, scale=scale)
        return {"loss_adversarial": weight * factor * loss, "adaptive_weight": factor}

    def discriminator_losses(
        self, real: Tensor, fake: Tensor, step: int, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The discriminator's terms, all 0 before the start: "loss_adversarial", "loss_lecam", "loss_consistency".

        With them, while it looks at images, the mean logits "logits_real" and "logits_fake". LeCAM's running means
        follow from the first step on, so that they are settled at the start.
        """
        config, plays = self.config, step >= self.config.start
        parts = [name for name in ("lecam", "consistency") if getattr(config, name)]
        names = [f"loss_{name}" for name in ("adversarial", *parts)]
        terms = {} if plays else dict.fromkeys(names, self._idle())
        if not plays and not config.lecam:
            return terms
        images = (real, fake.detach())
        with torch.set_grad_enabled(plays and torch.is_grad_enabled()):
            logits = [self._judge(self._shown(x, generator), generator) for x in images]
            if config.lecam:
                self.lecam.update(*logits)
            if plays:
                d_loss = hinge_d_loss if config.loss == "hinge" else logistic_d_loss
                terms["loss_adversarial"] = config.weight * d_loss(*logits)
                if config.lecam:
                    terms["loss_lecam"] = config.weight * config.lecam * self.lecam(*logits)
                if config.consistency:
                    terms["loss_consistency"] = config.consistency * self._inconsistency(images, logits, generator)
        return terms | {f"logits_{name}": x.detach().mean() for name, x in zip(("real", "fake"), logits)}

    forward = discriminator_losses

    def _idle(self) -> Tensor:
        """A zero that reaches every weight: the player can be stepped, and synchronised, as at any other step."""
        return torch.stack([0 * weight.sum() for weight in self.discriminator.parameters()]).sum()

    def _shown(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the discriminator sees of images in [0, 1]."""
        images = 2 * images - 1
        return augment(images, generator=generator) if self.config.diff_aug else images

    def _judge(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.discriminator(images, generator=generator).float()

    def _inconsistency(
        self, images: tuple[Tensor, Tensor], logits: list[Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared difference between logits and those of strongly augmented images."""
        strong = [augment(2 * x - 1, probability=1.0, cutout=STRONG_CUTOUT, generator=generator) for x in images]
        return F.mse_loss(torch.cat([self._judge(x, generator) for x in strong]), torch.cat(logits))
