"""What every tokenizer offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance


@dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens are.

    Args:
        length: number K of tokens.
        dim: numbers D a token has (None for ids).
        vocab_size: size of the vocabulary (None for continuous tokens).
        ordered: whether the first k tokens alone can be decoded.
        needs_label: whether encoding and decoding want the class, or the caption; without one (cond=None) they take a
            null class, or no caption.
        num_classes: classes that label is out of (0 where none is wanted).
        reads_captions: whether that label is a caption: embeddings (B, T, E) of the encoder that the configuration's
            `condition` names.
        deterministic: whether decoding is one pass, which takes neither steps nor guidance nor a solver.
    """

    length: int
    dim: int | None
    vocab_size: int | None = None
    ordered: bool = False
    needs_label: bool = False
    num_classes: int = 0
    reads_captions: bool = False
    deterministic: bool = False


class Tokenizer(Protocol):
    """Images (B, C, H, W) in [0, 1] to tokens (B, K, D) or ids (B, K), and back."""

    spec: TokenSpec
    config: Any
    decoder: Any

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and buffers by name."""
        ...

    def eval(self) -> Self:
        """The tokenizer itself, in evaluation mode."""
        ...

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Tokens of images."""
        ...

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images of (the first `keep`) tokens."""
        ...

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Scalars of one training step; the entries named "loss..." are summed and minimised, others logged."""
        ...
