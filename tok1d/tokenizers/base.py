"""The interface of tokenizers: `TokenSpec` describes their tokens, `Tokenizer` their methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import Generators
from tok1d.losses.total import Batch, Tensors

Size = int | tuple[int, int]  # the side of a square image, or (height, width), in pixels


@dataclass(frozen=True)
class TokenSpec:
    """What the tokens of a tokenizer are, and what its decoder needs.

    Args:
        length: number K of tokens of an image at the tokenizer's own image size.
        dim: channels D of a continuous token; None for ids.
        vocab_size: number of ids; None for continuous tokens.
        ordered: whether every prefix of the tokens can be decoded; otherwise all K are needed.
        needs_label: whether encoder and decoder are conditioned on a class or a caption. cond=None then selects the
            null class or no caption.
        num_classes: number of classes of that condition; 0 for captions or without a condition.
        reads_captions: whether the condition is a caption: embeddings (B, T, E) of the text encoder that the
            configuration's `condition` names, or ids (B, T) of the words of its vocabulary.
        deterministic: whether the decoder is a single forward pass, which has no steps, sampler or guidance.
    """

    length: int
    dim: int | None
    vocab_size: int | None = None
    ordered: bool = False
    needs_label: bool = False
    num_classes: int = 0
    reads_captions: bool = False
    deterministic: bool = False


class TokenizerConfig(Protocol):
    """The fields that the configuration of every tokenizer has."""

    @property
    def name(self) -> str:
        """Name of the model in recipes and model folders."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square training images, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Image channels."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of tokens K; 0: one per patch."""
        ...

    @property
    def token_dim(self) -> int:
        """Channels of a token, or of a codebook entry."""
        ...


class Tokenizer(Protocol):
    """Images (B, C, H, W) in [0, 1] to tokens (B, K, D) or ids (B, K), and back. Implementations are `nn.Module`s.

    Optional class attributes and methods, which commands look for:
        any_size (bool): can train on batches of several image sizes (`data.image_sizes`).
        adversarial (bool): has `reconstruct`, so the recipe sections perceptual and adversarial apply; see
            `ReconstructingTokenizer`.
        training_only (tuple of str): submodules that only training needs; see `tok1d.nn.roles`.
        use_stand_ins(average=False): prepare a model on the meta device for counting the cost of a training step,
            without frozen networks and without random branches. `average` selects the mean cost over the random
            branches instead of the largest.
        posterior(images, cond=None): the normal distributions of a KL bottleneck, a `Posterior`.
        class_vectors(): the table (num_classes, dim) of class embeddings, for generators that share it.
    """

    @property
    def config(self) -> TokenizerConfig:
        """The configuration the model was built from."""
        ...

    @property
    def spec(self) -> TokenSpec:
        """The description of the tokens."""
        ...

    @property
    def decoder(self) -> nn.Module:
        """The network that `decode` evaluates, once or at every sampling step."""
        ...

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> tokens (B, K, D) or ids (B, K) int64; deterministic in eval mode.

        Args:
            cond: class ids (B,) or captions (B, T, E) where `spec.needs_label`; else ignored.

        Raises:
            InputError: images or a condition that do not fit the model.
        """
        ...

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: Generators | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """Tokens (B, K, D) or ids (B, K) -> images (B, C, H, W) in [0, 1].

        Args:
            cond: as for `encode`.
            keep: number of leading tokens to decode from, one int or (B,) int64; default: all.
            steps: sampling steps of a diffusion decoder; default: the model's own.
            guidance: guidance scale of a diffusion decoder; 1 is off.
            generator: source of a diffusion decoder's random numbers, or a list with one source per image.
            size: image size in pixels, a side or (H, W); default: `config.image_size`.

        Raises:
            InputError: arguments that do not fit the model, or that its decoder does not support.
        """
        ...

    def losses(self, batch: Batch, progress: float) -> Tensors:
        """Scalars of one training step. The sum of those named "loss..." is minimised; others are logged.

        Args:
            batch: images (B, C, H, W) in [0, 1], then class ids (B,) or captions, then other entries that the model
                uses.
            progress: fraction of the training completed, in [0, 1].
        """
        ...

    # The methods of nn.Module that callers use.

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def to(self, device: torch.device | str, /) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class ReconstructingTokenizer(Tokenizer, Protocol):
    """A tokenizer whose training step can use LPIPS, a classifier's logits and a discriminator (`adversarial`)."""

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        """One forward pass of training on `losses`' arguments.

        Returns:
            The reconstruction (B, C, H, W), nominally in [0, 1], not clamped; the input (B, K, D) of the
            decoder; the scalars of `losses`, among them "loss_reconstruction".
        """
        ...

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last layer, for the adaptive adversarial weight (VQGAN, equation 7)."""
        ...
