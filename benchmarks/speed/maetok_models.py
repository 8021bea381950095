"""MAETok and SiT of the benchmark, their training steps, and the amount of work of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from speed.common import Inputs, Stepper
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance, guided
from tok1d.diffusion.solver import Field
from tok1d.generators.sit import SiT, SiTConfig
from tok1d.losses.adversarial import AdversarialConfig, AdversarialLoss
from tok1d.losses.discriminator import DinoConfig, DinoTrunk, DiscriminatorConfig, PatchConfig
from tok1d.losses.features import Teacher
from tok1d.losses.total import total_loss
from tok1d.tokenizers.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from tok1d.tokenizers.maetok import MAETok, MAETokConfig
from tok1d.tokenizers.vit import ViTConfig
from tok1d.zoo.pretrained.discriminator import build_discriminator

TEACHER = "teacher:vit"


def vit(absolute: bool) -> ViTConfig:
    """ViT-S/16, with the paper's positions."""
    return ViTConfig(patch=16, dim=384, depth=12, heads=6, absolute=absolute)


@dataclass(frozen=True)
class MAETokSizes:
    """Model sizes and the work of a run."""

    name: str = "small"
    image_size: int = 128  # of training, encoding and decoding
    resolutions: tuple[int, int] = (256, 512)  # whose costs are compared
    encoder: ViTConfig = field(default_factory=lambda: vit(True))
    decoder: ViTConfig = field(default_factory=lambda: vit(False))
    num_tokens: int = 128
    token_dim: int = 32
    aux_depth: int = 3
    cell: int = 8  # of HOG, in pixels
    patch_discriminator: PatchConfig = field(default_factory=PatchConfig)
    dino_discriminator: DinoConfig = field(default_factory=lambda: DinoConfig(weights="random"))
    sit_dim: int = 384
    sit_depth: int = 12
    sit_heads: int = 6
    published_steps: int = 250  # of the generator
    measured_steps: int = 8  # for any number of steps; the time is extrapolated
    train_batch: int = 2
    encode_batch: int = 8
    batch: int = 2  # images sampled at once
    gemm: int = 2048
    min_seconds: float = 0.1


QUICK_MAETOK = replace(
    MAETokSizes(), name="quick", measured_steps=4, train_batch=1, encode_batch=2, batch=1, gemm=1024, min_seconds=0.02
)


@dataclass(frozen=True)
class MAETokBench(Inputs):
    """Models and inputs on one device, built on first use.

    Args:
        steps: Euler steps of the generator (the quality tables show which number gives equal quality).
        interval: times (0 = noise, 1 = tokens) with guidance; MAETok's [0, 0.75] has noise at 1.
    """

    sizes: MAETokSizes
    steps: int = 25
    interval: tuple[float, float] = (0.25, 1.0)
    scale: float = 1.9  # guidance scale; the value does not affect the cost

    def build(self, targets: tuple[str, ...] = (), *, patches: bool = False) -> MAETok:
        """A tokenizer with auxiliary decoders for targets; with `patches` its tokens are the patches' states."""
        sizes = self.sizes
        torch.manual_seed(0)
        auxiliary = [
            AuxiliaryConfig(
                target=target,
                depth=sizes.aux_depth,
                cell=sizes.cell,
                dim=sizes.encoder.dim if target == TEACHER else None,
                image_size=sizes.image_size,
            )
            for target in targets
        ]
        config = MAETokConfig(
            image_size=sizes.image_size,
            num_tokens=0 if patches else sizes.num_tokens,
            token_dim=sizes.token_dim,
            encoder=sizes.encoder,
            decoder=sizes.decoder,
            auxiliary=auxiliary,
        )
        model = self.ready(MAETok(config))
        for each in model.auxiliary:
            if isinstance(each, AuxiliaryDecoder) and each.config.is_teacher:
                each.teacher = self.teacher
        return model

    @cached_property
    def tokenizer(self) -> MAETok:
        """The tokenizer for inference. Its weights need no gradients: the FLOP counter fails under `no_grad` on views
        of weights that do."""
        return self.build().requires_grad_(False)

    @cached_property
    def teacher(self) -> Teacher:
        """A frozen untrained ViT of the size of the encoder; the cost does not depend on the weights."""
        sizes, encoder = self.sizes, self.sizes.encoder
        with torch.random.fork_rng(devices=[]):
            side = sizes.image_size // encoder.patch
            trunk = DinoTrunk(encoder.dim, encoder.depth, encoder.heads, patch=encoder.patch, side=side)
        return Teacher(_LastStates(trunk), image_size=sizes.image_size)

    def generator(self, tokens: Tensor) -> SiT:
        """A SiT for sequences such as these tokens (B, K, D)."""
        sizes = self.sizes
        torch.manual_seed(0)
        _, length, dim = tokens.shape
        config = SiTConfig(
            num_tokens=length, token_dim=dim, dim=sizes.sit_dim, depth=sizes.sit_depth, heads=sizes.sit_heads
        )
        return self.ready(SiT(config))

    @cached_property
    def sit(self) -> SiT:
        """The generator of the 1D tokens."""
        return self.generator(self.noise(1, self.sizes.num_tokens, self.sizes.token_dim))


class _LastStates(nn.Module):
    """The last patch states (B, N, D) of a trunk."""

    def __init__(self, trunk: DinoTrunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images, [self.trunk.depth])[0].transpose(1, 2)


class TokenizerTrainer:
    """Complete steps of stage one on one batch: masking, losses, and the optimizer steps as in `tok1d.train.loop`.

    Args:
        targets: of auxiliary decoders.
        discriminator: trained against the tokenizer, with the adaptive weight and LeCAM.
        fused: see `Stepper`.
    """

    def __init__(
        self,
        bench: MAETokBench,
        *,
        targets: tuple[str, ...] = (),
        discriminator: DiscriminatorConfig | None = None,
        fused: bool = True,
    ) -> None:
        self.bench = bench
        self.model = bench.build(targets).train()
        self.stepper = Stepper(self.model, fused=fused)
        self.images = bench.images(bench.sizes.train_batch)
        self.adversarial: AdversarialLoss | None = None
        if discriminator is not None:
            config = AdversarialConfig(weight=0.4, start=1, discriminator=discriminator)
            torch.manual_seed(0)
            self.adversarial = AdversarialLoss(config, build_discriminator(discriminator, 3)).train().to(bench.device)
            self.other = Stepper(self.adversarial, fused=fused, averaged=False)

    def step(self) -> Tensor:
        """One step of tokenizer and discriminator; returns the loss of the tokenizer before it."""
        torch.manual_seed(0)
        with self.bench.autocast():
            fake, _, terms = self.model.reconstruct((self.images,), 0.0)
            if self.adversarial is not None:
                compared = {"loss_reconstruction": terms["loss_reconstruction"]}
                last = self.model.decoder.last_weight
                terms |= self.adversarial.generator_terms(self.images, fake, 1, last, compared)
            loss = total_loss(terms)
        loss.backward()
        if self.adversarial is not None:
            with self.bench.autocast():
                theirs = total_loss(self.adversarial.discriminator_losses(self.images, fake, 1))
            theirs.backward()
            self.other.step()
        self.stepper.step()
        return loss.detach()


class GeneratorTrainer:
    """Complete training steps of a SiT on tokens (B, K, D)."""

    def __init__(self, bench: MAETokBench, tokens: Tensor) -> None:
        self.bench, self.tokens = bench, tokens
        self.model = bench.generator(tokens).train()
        self.stepper = Stepper(self.model)

    def step(self) -> Tensor:
        """One optimizer step; returns the loss before it."""
        torch.manual_seed(0)
        with self.bench.autocast():
            loss = total_loss(self.model.losses((self.tokens, self.bench.labels(len(self.tokens))), 0.0))
        loss.backward()
        self.stepper.step()
        return loss.detach()


def two_pass_velocity(model: SiT, labels: Tensor, scale: float) -> Field:
    """The guided velocity of a SiT with one call for the classes and one for the null class."""
    null = model.check_cond(None, len(labels))

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return model.net(x, t, labels)

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return conditional(x, t), model.net(x, t, null)

    return guided(both, conditional, Guidance(scale))
