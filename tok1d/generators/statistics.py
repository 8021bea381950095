"""Mean and std of the tokens a generator is trained on: measured once before training, saved with its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.errors import DataError
from tok1d.nn.roles import TOKENS, Roles

# One mean and std for all numbers of all tokens ("scalar"), one for each of the D channels of a token ("channel"), one
# for each of the K tokens of a sequence ("position"), or 0 and 1 ("none": tokens are not normalised).
Statistics = Literal["scalar", "channel", "position", "none"]


class NormalisedTokens(nn.Module):
    """Normalisation of tokens to mean 0 and std 1 by buffers that are part of the state dict.

    A subclass calls `hold_statistics` once. Mean and std are 0 and 1 until `fit_statistics` measures them or weights
    are loaded. A generator of this class takes and returns raw tokens; its network receives normalised ones.

    Attributes:
        statistics: what is measured; "none" has buffers as "scalar", which stay 0 and 1.
        token_mean: (1,), (D,) or (1, K, 1).
        token_std: of the same shape.
    """

    roles: ClassVar[Roles] = {"token_mean": (TOKENS,), "token_std": (TOKENS,)}

    statistics: Statistics

    token_mean: Tensor
    token_std: Tensor

    def hold_statistics(self, statistics: Statistics, num_tokens: int, token_dim: int) -> None:
        """Make the buffers for sequences of `num_tokens` tokens of `token_dim` channels."""
        self.statistics = statistics
        shapes = {"channel": (token_dim,), "position": (1, num_tokens, 1)}
        shape = shapes.get(statistics, (1,))
        self.register_buffer("token_mean", torch.zeros(shape))
        self.register_buffer("token_std", torch.ones(shape))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and std (biased) of raw tokens (B, K, D) in float64; with statistics="none" nothing is read.

        Raises:
            DataError: no tokens, numbers that are not finite, a std of 0, or another number of tokens than positions.
        """
        if self.statistics == "none":
            return
        count, shift = 0, None
        by_position, num = self.statistics == "position", self.token_mean.numel()
        total = torch.zeros_like(self.token_mean, dtype=torch.float64).flatten()
        squares = total.clone()
        for batch in batches:
            if by_position and batch.shape[1] != num:
                raise DataError(f"token statistics: expected {num} tokens of every image, got {batch.shape[1]}")
            rows = batch.to(self.token_mean.device, torch.float64)
            rows = (rows.transpose(1, 2) if by_position else rows).reshape(-1, num)
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
            where = "at every position" if by_position else "in every channel"
            raise DataError(f"token statistics: expected finite tokens that vary {where}; check the tokenizer")
        self.token_mean.copy_((mean + shift).view_as(self.token_mean))
        self.token_std.copy_(std.view_as(self.token_std))

    def _for(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std for the first tokens (B, k, D) of sequences."""
        if self.statistics != "position":
            return self.token_mean, self.token_std
        return self.token_mean[:, : tokens.shape[1]], self.token_std[:, : tokens.shape[1]]

    def normalise(self, tokens: Tensor) -> Tensor:
        """Raw tokens (B, k, D), the first of a sequence -> with mean 0 and std 1, as the network receives them."""
        mean, std = self._for(tokens)
        return (tokens - mean) / std

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = self._for(tokens)
        return tokens * std + mean
