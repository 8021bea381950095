"""The adversarial losses of tokenizer training (MAETok, arXiv 2502.03444, equation 6).

Two networks are optimised in turn. The tokenizer adds `AdversarialLoss.generator_terms` to its losses. The
`AdversarialLoss` module holds the discriminator, and its forward pass is `discriminator_losses`; it must not be a
submodule of the tokenizer.
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
from tok1d.config.optim import MuonConfig
from tok1d.losses.augment import augment
from tok1d.losses.discriminator import DinoConfig, DiscriminatorConfig

Kind = Literal["hinge", "vanilla", "non_saturating"]
STRONG_CUTOUT = 0.5  # side of the cut-out square over the height of the image, in the consistency loss


@dataclass
class DiscriminatorOptim:
    """The discriminator's optimizer where it differs from the tokenizer's; the schedule's steps and shape are the
    same."""

    optimizer: Literal["adamw", "muon"] | None = option(None, "as train.optimizer; null: the tokenizer's")
    lr: float | None = option(None, "highest learning rate of AdamW; null: the tokenizer's", gt=0)
    muon: MuonConfig | None = option(None, "settings of Muon; null: the tokenizer's")
    beta1: float | None = option(None, "AdamW decay of the mean gradient; null: the tokenizer's", ge=0, lt=1)
    beta2: float | None = option(None, "AdamW decay of the mean squared gradient; null: the tokenizer's", ge=0, lt=1)
    weight_decay: float | None = option(None, "AdamW weight decay; null: the tokenizer's", ge=0)
    clip: float | None = option(None, "largest gradient norm, 0: off; null: the tokenizer's", ge=0)


@dataclass
class AdversarialConfig:
    """Adversarial training of a tokenizer."""

    weight: float = option(0.0, "weight of the adversarial loss; 0: no discriminator (MAETok: 0.4)", ge=0)
    start: int = option(30000, "first step, counted from 1, with adversarial losses of both networks", ge=0)
    warmup: int = option(
        0, "steps from then on over which the weight of the tokenizer's loss grows linearly from 0", ge=0
    )
    adaptive: bool = option(True, "scale the weight by the ratio of gradient norms in the last layer (VQGAN)")
    loss: Kind = option(
        "hinge", "non_saturating: logistic for both; vanilla: logistic for the discriminator, linear for the tokenizer"
    )
    lecam: float = option(0.001, "weight of the LeCAM regulariser", ge=0)
    lecam_of: Literal["logits", "means"] = option(
        "logits", "what LeCAM regularises: every logit, or their mean (TiTok)"
    )
    diff_aug: bool = option(False, "augment the discriminator's images (DiffAugment; SoftVQ: true)")
    consistency: float = option(0.0, "weight of the consistency of logits under strong augmentation (SoftVQ: 4)", ge=0)
    discriminator: DiscriminatorConfig = option(DinoConfig())
    optim: DiscriminatorOptim = option(DiscriminatorOptim())


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2 of logits of any shape."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def logistic_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean softplus(-real) + mean softplus(fake)) / 2 of logits of any shape: the binary cross-entropy."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def linear_g_loss(fake: Tensor) -> Tensor:
    """-mean(fake) of logits of any shape."""
    return -fake.mean()


def logistic_g_loss(fake: Tensor) -> Tensor:
    """mean softplus(-fake) of logits of any shape, the non-saturating loss (GAN, arXiv 1406.2661, section 3)."""
    return F.softplus(-fake).mean()


def linear_ramp(step: int, steps: int) -> float:
    """min(1, step / steps); 1 with steps = 0, which means no warm-up."""
    return min(1.0, step / steps) if steps else 1.0


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, scale: float = 1.0) -> Tensor:
    """|d reconstruction| / (|d adversarial| + 1e-4), clamped to [0, 1e4], without gradient (VQGAN, 2012.09841, eq. 7).

    The norms are Frobenius norms of the gradients with respect to `last_layer`; with several processes gradients are
    averaged first. The result is 0 if a norm is not finite (fp16).

    Args:
        reconstruction, adversarial: scalar losses.
        last_layer: the weight of the layer that outputs pixels.
        scale: loss scale of these backward passes, a power of 2, against underflow in half precision; the norms are
            divided by it again.
    """
    numerator, denominator = (
        mean_over_processes(torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0]).float().norm() / scale
        for loss in (reconstruction, adversarial)
    )
    ratio = (numerator / (denominator + 1e-4)).clamp(0, 1e4)
    return torch.where(torch.isfinite(numerator) & torch.isfinite(denominator), ratio, 0.0)


class LeCam(nn.Module):
    """Regulariser of the discriminator by running means of its logits (LeCAM, arXiv 2104.03310).

    The running means are buffers and equal in all processes.

    Args:
        decay: decay of the running means per step.
        of_means: whether the means of the logits are regularised (TiTok) instead of every logit.
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
        """Update the running means, which start at 0, with the means of these logits."""
        for mean, logits in ((self.mean_real, real), (self.mean_fake, fake)):
            mean.lerp_(mean_over_processes(logits.mean()), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean relu(real - mean_fake)^2 + mean relu(mean_real - fake)^2, a scalar; of logits or of their means."""
        if self.of_means:
            real, fake = real.mean(), fake.mean()
        return F.relu(real - self.mean_fake).square().mean() + F.relu(self.mean_real - fake).square().mean()


class AdversarialLoss(nn.Module):
    """The adversarial losses of tokenizer and discriminator. Steps are counted from 1.

    Images (B, C, H, W) are in [0, 1]; reconstructions are nominally in [0, 1].

    Args:
        discriminator: a module that is called with images in [-1, 1] and `generator=`, and returns logits (B, ...).
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
        """The scalars of the tokenizer: "loss_adversarial", 0 before `start`, and then "adaptive_weight", if used.

        The parameters of the discriminator get no gradient, and its buffers do not change.

        Args:
            real, fake: images and their reconstructions; only the latter are classified here.
            last_layer: the weight of the tokenizer's last layer.
            reconstruction: the weighted reconstruction and perceptual losses, for the adaptive weight.
            generator: random numbers of augmentation and crops, on the CPU; default: the global generator.
        """
        assert real.shape == fake.shape, f"images {tuple(real.shape)}, reconstructions {tuple(fake.shape)}"
        config = self.config
        if step < config.start:
            return {"loss_adversarial": fake.new_zeros(())}
        # Copies of the buffers, so that this forward pass does not update the statistics of batch normalisation.
        state = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        state |= {name: value.clone() for name, value in self.discriminator.named_buffers()}
        logits = functional_call(self.discriminator, state, self._input(fake, generator), {"generator": generator})
        loss = (logistic_g_loss if config.loss == "non_saturating" else linear_g_loss)(logits.float())
        weight = config.weight * linear_ramp(step - config.start, config.warmup)
        if not config.adaptive:
            return {"loss_adversarial": weight * loss}
        # Losses are means over pixels: multiplied by the number of pixels, gradients are of the order of 1.
        scale = 2.0 ** math.floor(math.log2(fake.numel()))
        factor = adaptive_weight(torch.stack(list(reconstruction.values())).sum(), loss, last_layer, scale=scale)
        return {"loss_adversarial": weight * factor * loss, "adaptive_weight": factor}

    def discriminator_losses(
        self, real: Tensor, fake: Tensor, step: int, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The scalars of the discriminator: "loss_adversarial", "loss_lecam" and "loss_consistency", 0 before `start`.

        Where logits are computed, also their means "logits_real" and "logits_fake". LeCAM's running means are updated
        from the first step on, so that they have converged at `start`.

        Args:
            real, fake: images and their reconstructions.
            generator: random numbers of augmentation and crops, on the CPU; default: the global generator.
        """
        config, active = self.config, step >= self.config.start
        parts = [name for name in ("lecam", "consistency") if getattr(config, name)]
        names = [f"loss_{name}" for name in ("adversarial", *parts)]
        terms = {} if active else dict.fromkeys(names, self._zero())
        if not active and not config.lecam:
            return terms
        images = (real, fake.detach())
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            logits = [self._logits(self._input(x, generator), generator) for x in images]
            if config.lecam:
                self.lecam.update(*logits)
            if active:
                d_loss = hinge_d_loss if config.loss == "hinge" else logistic_d_loss
                terms["loss_adversarial"] = config.weight * d_loss(*logits)
                if config.lecam:
                    terms["loss_lecam"] = config.weight * config.lecam * self.lecam(*logits)
                if config.consistency:
                    terms["loss_consistency"] = config.consistency * self._inconsistency(images, logits, generator)
        return terms | {f"logits_{name}": x.detach().mean() for name, x in zip(("real", "fake"), logits)}

    forward = discriminator_losses

    def _zero(self) -> Tensor:
        """A zero with a zero gradient for every weight: the optimizer and DistributedDataParallel run as usual."""
        return torch.stack([0 * weight.sum() for weight in self.discriminator.parameters()]).sum()

    def _input(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images in [0, 1] -> the discriminator's input in [-1, 1], augmented if configured."""
        images = 2 * images - 1
        return augment(images, generator=generator) if self.config.diff_aug else images

    def _logits(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.discriminator(images, generator=generator).float()

    def _inconsistency(
        self, images: tuple[Tensor, Tensor], logits: list[Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """The mean squared difference between logits and those of strongly augmented images."""
        strong = [augment(2 * x - 1, probability=1.0, cutout=STRONG_CUTOUT, generator=generator) for x in images]
        return F.mse_loss(torch.cat([self._logits(x, generator) for x in strong]), torch.cat(logits))
