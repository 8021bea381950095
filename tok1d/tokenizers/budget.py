"""A head on the tokens of an ordered tokenizer that predicts, in one pass, the quality of every prefix.

It replaces the decoding of all prefixes where a budget of tokens is chosen (KARL, arXiv 2507.07995, trains the encoder
to choose; here the tokenizer is frozen). `tok1d train fashion_mnist/budget init_from=MODEL` trains it and stores it
with the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.nn.roles import Roles

MOST = 100.0  # dB; the quality of a prefix that equals the image is infinite


@dataclass
class BudgetHeadConfig:
    """A small residual MLP on all tokens of an image."""

    name: str = option("budget_head", "name of the model")
    num_tokens: int = option(16, "tokens K, set from the tokenizer", ge=1)
    token_dim: int = option(16, "channels D of a token, set from the tokenizer; of ids: width of their vectors", ge=1)
    vocab_size: int = option(0, "size of the vocabulary, set from the tokenizer; 0 for continuous tokens", ge=0)
    metric: str = option(
        "psnr", "quality that is predicted: see --quality-metric of tok1d reconstruct", path="prefixed"
    )
    prefixes: int = option(1, "random prefixes of an image that are decoded in a training step", ge=1)
    width: int = option(256, "width", ge=1)
    depth: int = option(2, "number of residual blocks", ge=0)


class ResidualMLP(nn.Module):
    """x + MLP(LayerNorm(x)), (B, width) -> (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class BudgetHead(nn.Module):
    """Tokens (B, K, D) or ids (B, K) -> predicted qualities (B, K) in dB of the first 1, ..., K tokens."""

    roles: ClassVar[Roles] = {}

    mean: Tensor
    std: Tensor
    base: Tensor

    def __init__(self, config: BudgetHeadConfig) -> None:
        super().__init__()
        self.config = config
        numbers = config.num_tokens * config.token_dim
        self.embed = nn.Embedding(config.vocab_size, config.token_dim) if config.vocab_size else None
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))
        self.register_buffer("base", torch.full((config.num_tokens,), 20.0))
        self.input = nn.Linear(numbers, config.width)
        self.blocks = nn.ModuleList(ResidualMLP(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.num_tokens)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def qualities(self, tokens: Tensor) -> Tensor:
        """Predicted qualities (B, K) in dB, float32."""
        vectors = tokens.float() if self.embed is None else self.embed(tokens)
        x = self.input((vectors.flatten(1) - self.mean) / self.std)
        for block in self.blocks:
            x = block(x)
        return self.base + self.out(self.norm(x))

    def forward(self, tokens: Tensor) -> Tensor:
        """As `qualities`."""
        return self.qualities(tokens)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set mean and std of continuous tokens, and the mean quality of every prefix, from batches of `losses`."""
        tokens, counts, found = (torch.cat(each) for each in zip(*batches, strict=True))
        if self.embed is None:
            flat = tokens.flatten(1).float()
            self.mean.copy_(flat.mean(0))
            self.std.copy_(flat.std(0, correction=0).clamp(min=1e-6))
        places, values = counts.flatten() - 1, found.flatten().clamp(max=MOST).float()
        sums = torch.zeros_like(self.base, device=values.device).index_add_(0, places, values)
        number = torch.zeros_like(sums).index_add_(0, places, torch.ones_like(values))
        self.base.copy_(torch.where(number > 0, sums / number.clamp(min=1), values.mean()))

    def losses(self, batch: tuple[Tensor, Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        """The mean squared error in dB^2, and "error", the mean absolute one.

        Args:
            batch: tokens (B, K, D) or ids (B, K), numbers of tokens (B, P) int64, and the qualities (B, P) in dB of the
                images decoded from them.
        """
        tokens, counts, found = batch
        difference = self.qualities(tokens).gather(1, counts - 1) - found.clamp(max=MOST)
        return {"loss": difference.square().mean(), "error": difference.detach().abs().mean()}
