"""Mean and std of the tokens a generator is trained on: measured once, kept with its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from tok1d.errors import DataError

Statistics = Literal["scalar", "channel", "none"]


class NormalisedTokens(nn.Module):
    """A generator whose network sees tokens at mean 0 and std 1, and which takes and gives raw ones.

    Subclasses call `hold_statistics` once; until `fit_statistics` they are 0 and 1.
    """

    token_mean: Tensor
    token_std: Tensor

    def hold_statistics(self, statistics: Statistics, token_dim: int) -> None:
        """Make the buffers: one mean and std ("scalar"), or one for each of the D numbers of a token ("channel")."""
        self.statistics = statistics
        shape = (token_dim if statistics == "channel" else 1,)
        self.register_buffer("token_mean", torch.zeros(shape))
        self.register_buffer("token_std", torch.ones(shape))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and std of raw tokens (B, K, D), to be kept with the weights; "none" reads nothing.

        Raises:
            DataError: no tokens, numbers that are not finite, or tokens that do not vary.
        """
        if self.statistics == "none":
            return
        count, shift = 0, None
        total = torch.zeros_like(self.token_mean, dtype=torch.float64)
        squares = total.clone()
        for batch in batches:
            rows = batch.to(self.token_mean.device, torch.float64).reshape(-1, self.token_mean.numel())
            # Sums of squares about any nearby value do not cancel, unlike those about zero.
            shift = rows.mean(0) if shift is None else shift
            count += len(rows)
            total = total + (rows - shift).sum(0)
            squares = squares + (rows - shift).square().sum(0)
        if shift is None:
            raise DataError("token statistics: expected tokens, got none: is the token cache empty?")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        if not (torch.isfinite(mean + shift).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise DataError("token statistics: expected finite tokens that vary in every channel; check the tokenizer")
        self.token_mean.copy_(mean + shift)
        self.token_std.copy_(std)

    def normalise(self, tokens: Tensor) -> Tensor:
        """Raw tokens (B, K, D) at mean 0 and std 1, as the network sees them."""
        return (tokens - self.token_mean) / self.token_std

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return tokens * self.token_std + self.token_mean
