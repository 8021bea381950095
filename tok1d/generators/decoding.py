"""Decoding of a causal generator token by token with a key-value cache, of sequences that may be copied and dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import NoiseSource
from tok1d.generators.captions import causal_after_padding
from tok1d.nn.attention import Attend, Attention, KVCache

if TYPE_CHECKING:
    from tok1d.generators.causal import CausalGenerator


class CachedDecoder:
    """Outputs of a causal generator token by token, with a key-value cache.

    The conditional and the unconditional sequences of guidance share one batch and one cache.

    Args:
        cond: checked conditions of B rows.
        length: number of tokens to decode.
        with_null: also run the null condition, as rows B..2B-1.

    Attributes:
        states: of the stack, (B, dim), or (2B, dim) with `with_null`, from which the last `step` made its outputs.
    """

    states: Tensor

    def __init__(self, model: CausalGenerator, cond: Tensor, length: int, *, with_null: bool) -> None:
        self.model, self.rows, self.with_null = model, len(cond), with_null
        self.cond = torch.cat([cond, model.check_cond(None, self.rows)]) if with_null else cond
        self.context = model.context(self.cond)
        prefix, visible, weight = self.context.prefix, self.context.visible, model.norm.weight
        # A multiple of 8 positions, for the alignment of fused attention kernels.
        positions = -(-(prefix.shape[1] + length) // 8) * 8
        allowed = None if visible is None else causal_after_padding(visible, positions)
        self.caches = [
            KVCache(
                len(self.cond),
                attention.kv_heads,
                positions,
                attention.proj.in_features // attention.heads,
                dtype=weight.dtype,
                device=weight.device,
                allowed=allowed,
            )
            for attention in (cast(Attention, block.attn) for block in model.blocks)
        ]

    def step(self, tokens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Feed the tokens (B, D) or ids (B,) just sampled, None at first.

        Returns:
            The outputs (B, ...) for the next token, and those for the null condition (None without `with_null`).
        """
        if tokens is not None and self.with_null:
            tokens = torch.cat([tokens, tokens])
        outputs = self.step_rows(tokens)
        return outputs[: self.rows], outputs[self.rows :] if self.with_null else None

    def select(self, rows: Tensor) -> None:
        """Make the sequences (R,) int64, some of them perhaps several times, the new batch."""
        both = torch.cat([rows, rows + self.rows]) if self.with_null else rows
        self.cond, self.context, self.rows = self.cond[both], self.context.select(both), len(rows)
        for cache in self.caches:
            cache.select(both)

    def step_rows(self, tokens: Tensor | None) -> Tensor:
        """As `step`, with a token for each row of the batch, those of the null condition included."""
        model, start = self.model, self.caches[0].filled
        x = self.context.prefix if tokens is None else model.token_embed(tokens)[:, None]
        attends: list[Attend] = [cache.attend for cache in self.caches]
        states = model.run(x, start, attends, self.context, skip=x.shape[1] - 1)
        self.states = states[:, 0]
        return model.outputs(states, start + x.shape[1] - self.context.prefix.shape[1], self.context)[:, 0]


class Sequences:
    """The first tokens of R sequences; begins with one empty sequence for each condition.

    Extended once for every token without copies, they become the tokens of `CausalGenerator.sample`, bit for bit. A
    sequence that has ended, of a model that stops by itself, is extended like the others; see `lengths`.

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
        self.noise, self.lengths = noise, torch.full((len(cond),), length, device=self.buffer.device)
        self.places: Tensor | None = None  # the row of each sequence in the cache; None: its own

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def tokens(self) -> Tensor:
        """The first tokens (R, k, ...) as the tokenizer decodes them."""
        return self.model.finished(self.buffer[:, : self.filled])

    @property
    def ended(self) -> Tensor | None:
        """The numbers of tokens (R,) after which sequences end; None for a model that does not stop by itself."""
        return None if self.model.stop is None else self.lengths

    @property
    def over(self) -> Tensor:
        """Which sequences (R,) had ended before their last token, which is therefore not decoded."""
        return self.lengths < self.filled

    def end(self) -> None:
        """Zeros in place of the tokens after the ends of sequences that are complete or over."""
        places = torch.arange(self.buffer.shape[1], device=self.buffer.device)
        self.buffer[places >= self.lengths[:, None]] = 0
        self.filled = len(places)

    def extend(self, copies: int = 1) -> None:
        """Add a token to every sequence in `copies` ways; the R * copies sequences follow in the order of the old."""
        if self.places is not None:
            self.decoder.select(self.places)
            self.places = None
        outputs, null_outputs = self.decoder.step(self.buffer[:, self.filled - 1] if self.filled else None)
        if self.model.stop is not None and self.filled:
            ended = self.model.ends(self.decoder.states[: len(self)], self.noise)
            self.lengths = torch.where(ended, self.lengths.clamp(max=self.filled), self.lengths)
        sampled = self.sample(outputs, null_outputs, self.scales[self.filled], copies)
        if copies > 1:
            self.select(torch.arange(len(self), device=sampled.device).repeat_interleave(copies))
        self.buffer[:, self.filled] = sampled
        self.filled += 1

    def select(self, rows: Tensor) -> None:
        """Keep the sequences of these numbers (R,) int64, some of them perhaps several times."""
        self.buffer, self.lengths = self.buffer[rows], self.lengths[rows]
        self.places = rows if self.places is None else self.places[rows]
