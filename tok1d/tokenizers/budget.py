"""A head on the tokens of an ordered tokenizer that predicts the quality of every prefix from one decoding.

It replaces the decoding of all prefixes where a budget of tokens is chosen (KARL, arXiv 2507.07995, trains the encoder
to choose; here the tokenizer is frozen). The tokens determine the decoded images, but not what all of them leave out of
the original: the head is given the quality of all tokens, which one decoding measures, and predicts how much larger the
error of each prefix is. `tok1d train fashion_mnist/budget init_from=MODEL` trains it and stores it with the tokenizer.
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
    """A small residual MLP on all tokens of an image and their quality."""

    name: str = option("budget_head", "name of the model")
    num_tokens: int = option(16, "tokens K, set from the tokenizer", ge=2)
    token_dim: int = option(16, "channels D of a token, set from the tokenizer; of ids: width of their vectors", ge=1)
    vocab_size: int = option(0, "size of the vocabulary, set from the tokenizer; 0 for continuous tokens", ge=0)
    metric: str = option(
        "psnr", "quality that is predicted: see --quality-metric of tok1d reconstruct", path="prefixed"
    )
    prefixes: int = option(3, "random prefixes of an image that are decoded in a training step", ge=1)
    width: int = option(256, "width", ge=1)
    depth: int = option(2, "number of residual blocks", ge=0)


BudgetBatch = tuple[Tensor, Tensor, Tensor, Tensor]


def error_of(quality: Tensor) -> Tensor:
    """The error d of a quality -10 log10 d in dB, at most 100 dB."""
    return 10 ** (-quality.clamp(max=MOST) / 10)


class ResidualMLP(nn.Module):
    """x + MLP(LayerNorm(x)), (B, width) -> (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class BudgetHead(nn.Module):
    """Tokens (B, K, D) or ids (B, K) and the quality of all K -> the qualities (B, K) in dB of the first 1, ..., K.

    The error of a prefix is that of all tokens plus a positive number, whose logarithm is the output of the network.
    """

    roles: ClassVar[Roles] = {}

    mean: Tensor
    std: Tensor
    base: Tensor

    def __init__(self, config: BudgetHeadConfig) -> None:
        super().__init__()
        self.config = config
        numbers = config.num_tokens * config.token_dim + 1
        self.embed = nn.Embedding(config.vocab_size, config.token_dim) if config.vocab_size else None
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))
        self.register_buffer("base", torch.full((config.num_tokens - 1,), -5.0))
        self.input = nn.Linear(numbers, config.width)
        self.blocks = nn.ModuleList(ResidualMLP(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.num_tokens - 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def qualities(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Predicted qualities (B, K) in dB, float32.

        Args:
            last: measured quality (B,) of all tokens, which is the last column.
        """
        last = last.float().clamp(max=MOST)
        x = self.input((self._inputs(tokens, last) - self.mean) / self.std)
        for block in self.blocks:
            x = block(x)
        more = (self.base + self.out(self.norm(x))).exp()
        return torch.cat([-10 * torch.log10(error_of(last)[:, None] + more), last[:, None]], 1)

    def _inputs(self, tokens: Tensor, last: Tensor) -> Tensor:
        vectors = tokens.float() if self.embed is None else self.embed(tokens)
        return torch.cat([vectors.flatten(1), last[:, None]], 1)

    def forward(self, tokens: Tensor, last: Tensor) -> Tensor:
        """As `qualities`."""
        return self.qualities(tokens, last)

    @torch.no_grad()
    def fit(self, batches: Iterable[BudgetBatch]) -> None:
        """Set mean and std of the inputs, and the mean of the outputs for every prefix, from batches of `losses`."""
        tokens, last, counts, found = (torch.cat(each) for each in zip(*batches, strict=True))
        last = last.float().clamp(max=MOST)
        flat = self._inputs(tokens, last)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(flat.std(0, correction=0).clamp(min=1e-6))
        if self.embed is not None:  # their vectors are trained
            self.mean[:-1], self.std[:-1] = 0, 1
        more = error_of(found.float()) - error_of(last)[:, None]
        places, values = counts.flatten() - 1, more.clamp(min=error_of(torch.tensor(MOST)).item()).log().flatten()
        sums = torch.zeros_like(self.base).index_add_(0, places, values)
        number = torch.zeros_like(sums).index_add_(0, places, torch.ones_like(values))
        self.base.copy_(torch.where(number > 0, sums / number.clamp(min=1), values.mean()))

    def losses(self, batch: BudgetBatch, progress: float) -> dict[str, Tensor]:
        """The mean squared error in dB^2, and "error", the mean absolute one.

        Args:
            batch: tokens (B, K, D) or ids (B, K), the quality of all tokens (B,) in dB, numbers of tokens (B, P) int64
                in 1..K-1, and the qualities (B, P) of the images decoded from them.
        """
        tokens, last, counts, found = batch
        difference = self.qualities(tokens, last).gather(1, counts - 1) - found.clamp(max=MOST)
        return {"loss": difference.square().mean(), "error": difference.detach().abs().mean()}
