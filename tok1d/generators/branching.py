"""Token sequences of a causal generator that are continued in several ways, compared outside, and pruned."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import NoiseSource
from tok1d.generators.causal import CachedDecoder, CausalGenerator


class Sequences:
    """The first tokens of R sequences; begins with one empty sequence for each condition.

    Extended once for every token without copies, they become the tokens of `CausalGenerator.sample`, bit for bit.

    Args:
        cond, length, guidance, settings, noise: as for `Generator.make_tokens`. `noise` is called with tensors of as
            many rows as there are candidates, or, for models of ids, as many as there are sequences before them.
    """

    def __init__(
        self,
        model: CausalGenerator,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> None:
        self.model, self.scales = model, model.token_scales(guidance, length)
        self.sample = model.candidate_sampler(settings, noise, **own)
        self.decoder = CachedDecoder(model, cond, length, with_null=any(scale != 1 for scale in self.scales))
        self.buffer, self.filled = model.empty(len(cond), length), 0
        self.places: Tensor | None = None  # the row of each sequence in the cache; None: its own

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def tokens(self) -> Tensor:
        """The first tokens (R, k, ...) as the tokenizer decodes them."""
        return self.model.finished(self.buffer[:, : self.filled])

    def extend(self, copies: int = 1) -> None:
        """Add a token to every sequence in `copies` ways; the R * copies sequences follow in the order of the old."""
        if self.places is not None:
            self.decoder.select(self.places)
            self.places = None
        outputs, null_outputs = self.decoder.step(self.buffer[:, self.filled - 1] if self.filled else None)
        sampled = self.sample(outputs, null_outputs, self.scales[self.filled], copies)
        if copies > 1:
            self.select(torch.arange(len(self), device=sampled.device).repeat_interleave(copies))
        self.buffer[:, self.filled] = sampled
        self.filled += 1

    def select(self, rows: Tensor) -> None:
        """Keep the sequences of these numbers (R,) int64, some of them perhaps several times."""
        self.buffer = self.buffer[rows]
        self.places = rows if self.places is None else self.places[rows]
