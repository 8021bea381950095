"""Mean and std of the tokens a generator is trained on: measured once before training, saved with its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from tok1d.errors import DataError

# One mean and std for all numbers of all tokens ("scalar"), one for each of the D channels of a token ("channel"), or
# 0 and 1 ("none": tokens are not normalised).
Statistics = Literal["scalar", "channel", "none"]


class NormalisedTokens(nn.Module):
    """Normalisation of tokens to mean 0 and std 1 by buffers that are part of the state dict.

    A subclass calls `hold_statistics` once. Mean and std are 0 and 1 until `fit_statistics` measures them or weights
    are loaded. A generator of this class takes and returns raw tokens; its network receives normalised ones.

    Attributes:
        statistics: what is measured; "none" has buffers as "scalar", which stay 0 and 1.
        token_mean: (1,) or (D,).
        token_std: (1,) or (D,).
    """

    statistics: Statistics

    token_mean: Tensor
    token_std: Tensor

    def hold_statistics(self, statistics: Statistics, token_dim: int) -> None:
        """Make the buffers for tokens of `token_dim` channels."""
        self.statistics = statistics
        shape = (token_dim if statistics == "channel" else 1,)
        self.register_buffer("token_mean", torch.zeros(shape))
        self.register_buffer("token_std", torch.ones(shape))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and std (biased) of raw tokens (B, K, D) in float64; with statistics="none" nothing is read.

        Raises:
            DataError: no tokens, numbers that are not finite, or a std of 0.
        """
        if self.statistics == "none":
            return
        count, shift = 0, None
        total = torch.zeros_like(self.token_mean, dtype=torch.float64)
        squares = total.clone()
        for batch in batches:
            rows = batch.to(self.token_mean.device, torch.float64).reshape(-1, self.token_mean.numel())
            # Sums are taken about a value near the mean: about zero, E[x^2] - E[x]^2 loses digits where |mean| >> std.
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
        """Raw tokens (B, K, D) -> tokens with mean 0 and std 1, as the network receives them."""
        return (tokens - self.token_mean) / self.token_std

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return tokens * self.token_std + self.token_mean
