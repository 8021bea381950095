"""The causal transformer that epsilon-LlamaGen, CARD and LlamaGen share, and its decoding with a cache.

The stack is LLaMA's (RMSNorm, SwiGLU, no biases) over [prefix, token 0, ..., token K-1]. The prefix is made from the
condition. The state at the position before token i depends on the condition and on tokens 0..i-1 only; `outputs` turns
it into what token i is sampled from: the condition of a diffusion head, or logits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import NoiseSource
from tok1d.errors import InputError
from tok1d.generators.base import Generator
from tok1d.generators.captions import causal_after_padding
from tok1d.generators.decoding import CachedDecoder
from tok1d.nn.attention import Attend, Attention, causal, masked
from tok1d.nn.block import Block, SwiGLU, swiglu_hidden
from tok1d.nn.norm import RMSNorm
from tok1d.nn.precision import single

# The next token (B, D) or (B,) from the outputs for the condition, those for the null condition (None without
# guidance) and the guidance scale.
TokenSampler = Callable[[Tensor, Tensor | None, float], Tensor]
# As `TokenSampler`, but `copies` candidates of each row, one after the other: (B * copies, D) or (B * copies,).
CandidateSampler = Callable[[Tensor, Tensor | None, float, int], Tensor]


@dataclass(frozen=True)
class Context:
    """What the stack receives from a batch of conditions; computed once per sequence.

    Args:
        prefix: inputs (B, P, dim) before the tokens.
        visible: (B, P) bool, False for padding in the prefix; None without padding.
        modulations: for every block the modulation of its norms, see `ClassBlock`; None for plain blocks.
    """

    prefix: Tensor
    visible: Tensor | None = None
    modulations: list[tuple[Tensor, ...]] | None = None

    def select(self, rows: Tensor) -> Context:
        """The context of the rows (R,) int64 of the batch."""
        visible = None if self.visible is None else self.visible[rows]
        modulations = self.modulations
        if modulations is not None:
            modulations = [tuple(part[rows] for part in parts) for parts in modulations]
        return Context(self.prefix[rows], visible, modulations)


class CausalGenerator(Generator):
    """A causal stack that generates tokens one at a time.

    Subclasses make the modules below and implement `context`, `embed`, `outputs`, `empty` and `token_sampler`.
    """

    parallel: ClassVar[bool] = False

    token_embed: nn.Module  # tokens (..., D) or ids (...) -> (..., dim)
    stop: nn.Linear | None  # a state -> the log-odds that the sequence ends before the next token; see `end_of`
    blocks: nn.ModuleList
    norm: RMSNorm

    def __init__(self) -> None:
        super().__init__()
        self.stop = None

    @abstractmethod
    def context(self, cond: Tensor) -> Context:
        """What the stack receives from checked conditions, which may be the null condition."""

    @abstractmethod
    def embed(self, x: Tensor, start: int, attends: list[Attend]) -> tuple[Tensor, list[Attend]]:
        """Add positions from `start` on to inputs (B, L, dim), or to every block's attention if they are rotary."""

    @abstractmethod
    def outputs(self, states: Tensor, first: int, context: Context) -> Tensor:
        """States (B, L, dim) for the tokens first, first + 1, ... -> what they are sampled from, (B, L, ...)."""

    @abstractmethod
    def empty(self, rows: int, length: int) -> Tensor:
        """An uninitialised buffer for generated tokens, (rows, length, D) or ids (rows, length)."""

    @abstractmethod
    def token_sampler(self, settings: SampleSettings, noise: NoiseSource, **own: object) -> TokenSampler:
        """The function that samples every token of a call of `sample`."""

    def candidate_sampler(self, settings: SampleSettings, noise: NoiseSource, **own: object) -> CandidateSampler:
        """The function that samples several candidates of every token; of one candidate that of `token_sampler`.

        Candidates are independent samples here. A model of ids may return different ids instead.
        """
        sample = self.token_sampler(settings, noise, **own)

        def candidates(outputs: Tensor, null_outputs: Tensor | None, scale: float, copies: int) -> Tensor:
            if copies == 1:
                return sample(outputs, null_outputs, scale)
            null_rows = None if null_outputs is None else null_outputs.repeat_interleave(copies, 0)
            return sample(outputs.repeat_interleave(copies, 0), null_rows, scale)

        return candidates

    def run(self, x: Tensor, start: int, attends: list[Attend], context: Context, *, skip: int = 0) -> Tensor:
        """Inputs (B, L, dim) at positions from `start` on -> states (B, L - skip, dim), the first `skip` left out."""
        x, attends = self.embed(x, start, attends)
        for i, (block, attend) in enumerate(zip(self.blocks, attends)):
            x = block(x, attend) if context.modulations is None else block(x, attend, parts=context.modulations[i])
        return self.final_norm(x, skip)

    def final_norm(self, x: Tensor, skip: int) -> Tensor:
        """The norm after the blocks, without the first `skip` positions: (B, L, dim) -> (B, L - skip, dim)."""
        return self.norm(x[:, skip:])

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """Outputs (B, 1 + k, ...) of the first k tokens: row i is for token i and depends on tokens before it only.

        Args:
            tokens: (B, k, D) as the stack receives them, or ids (B, k), 0 <= k <= K.
            cond: checked conditions, the null condition included.
        """
        states, context = self.states(tokens, cond)
        return self.outputs(states, 0, context)

    def states(self, tokens: Tensor, cond: Tensor) -> tuple[Tensor, Context]:
        """The states (B, 1 + k, dim) that `forward` makes its outputs from, and the context; arguments as there."""
        context = self.context(cond)
        x = torch.cat([context.prefix, self.token_embed(tokens)], dim=1)
        attend = causal if context.visible is None else masked(causal_after_padding(context.visible, x.shape[1]))
        return self.run(x, 0, [attend] * len(self.blocks), context, skip=context.prefix.shape[1] - 1), context

    def stop_loss(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Mean binary cross-entropy of whether a sequence ends before a token, over the tokens until it does.

        Args:
            states: (B, k, dim); that of token i depends on the tokens before it. A sequence does not end before token
                0, and after the last one it need not be asked.
            lengths: numbers of tokens (B,) int64, from 1 on.
        """
        assert self.stop is not None
        places = torch.arange(1, states.shape[1], device=states.device)
        odds, lengths = single(self.stop(states[:, 1:])[..., 0]), lengths[:, None]
        ends = (places == lengths).to(odds.dtype)
        asked = places <= lengths
        losses = F.binary_cross_entropy_with_logits(odds, ends, reduction="none")
        return (losses * asked).sum() / asked.sum().clamp(min=1)

    def lengths_in(self, batch: Sequence[Tensor | None], length: int) -> Tensor:
        """The numbers of tokens (B,) int64 in a batch (tokens, condition, numbers), at most `length`.

        Raises:
            InputError: a batch without them.
        """
        if len(batch) < 3 or batch[2] is None:
            raise InputError(
                "stop: a model that stops by itself is trained on numbers of tokens, got a batch without them; set "
                "budget.quality"
            )
        return batch[2].to(self.device).clamp(1, length)

    @torch.no_grad()
    def ends(self, states: Tensor, noise: NoiseSource) -> Tensor:
        """Whether sequences end before the token of these states (R, dim), (R,) bool, from a number of each's noise."""
        assert self.stop is not None
        numbers = noise(states.new_empty(len(states), 1))[:, 0]
        uniform = torch.special.ndtr(numbers) if self.kind == "diffusion" else -torch.expm1(-numbers)
        return uniform < self.stop(states)[:, 0].sigmoid()

    def token_scales(self, guidance: Guidance, length: int) -> list[float]:
        """Guidance scales of the first `length` tokens; 1 (off) for a token i with i / K outside of the interval."""
        scales, full = guidance.token_scales(length).tolist(), self.config.num_tokens
        return [scale if guidance.acts_at(i / full) else 1.0 for i, scale in enumerate(scales)]

    def make_tokens(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Tensor:
        """See `Generator.make_tokens`."""
        if self.stop is not None:
            return self.make_ragged(cond, length, guidance, settings, noise, **own)[0]
        *_, tokens = self._growing(cond, length, guidance, settings, noise, **own)
        return self.finished(tokens)

    def make_ragged(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> tuple[Tensor, Tensor]:
        """As `make_tokens` of a model that stops by itself, and the numbers of tokens of the sequences (B,) int64.

        A sequence that has ended is not computed further; the rest of it is zero.
        """
        rows = torch.arange(len(cond), device=self.device)
        lengths, tokens = torch.full_like(rows, length), torch.zeros_like(self.empty(len(cond), length))

        def of_rows(x: Tensor) -> Tensor:
            return noise(x.new_empty(len(cond), *x.shape[1:]))[rows]

        scales, sample = self.token_scales(guidance, length), self.token_sampler(settings, of_rows, **own)
        decoder = CachedDecoder(self, cond, length, with_null=any(scale != 1 for scale in scales))
        for i, scale in enumerate(scales):
            outputs, null_outputs = decoder.step(tokens[rows, i - 1] if i else None)
            if i:
                ended = self.ends(decoder.states[: len(rows)], of_rows)
                lengths[rows[ended]] = i
                going = (~ended).nonzero()[:, 0]
                if not len(going):
                    break
                decoder.select(going)
                rows, outputs = rows[going], outputs[going]
                null_outputs = None if null_outputs is None else null_outputs[going]
            tokens[rows, i] = sample(outputs, null_outputs, scale)
        return self.finished(tokens), lengths

    @torch.no_grad()
    def sample_ragged(
        self, cond: Tensor | Sequence[int] | None = None, **options: object
    ) -> tuple[Tensor, Tensor | None]:
        """See `Generator.sample_ragged`."""
        if self.stop is None:
            return super().sample_ragged(cond, **options)
        args, own = self.checked_arguments(cond, **options)  # type: ignore[arg-type]
        return self.make_ragged(*args, **own)

    @torch.no_grad()
    def sample_steps(self, cond: Tensor | None = None, **options: Any) -> Iterator[Tensor]:
        """As `sample`, but yields the first tokens, (B, 1, ...), then the first two, and so on to all of them."""
        args, own = self.checked_arguments(cond, **options)
        for tokens in self._growing(*args, **own):
            yield self.finished(tokens.clone())

    def finished(self, tokens: Tensor) -> Tensor:
        """Tokens (B, k, ...) as the stack receives them -> as the tokenizer decodes them."""
        return tokens

    def _growing(
        self,
        cond: Tensor,
        length: int,
        guidance: Guidance,
        settings: SampleSettings,
        noise: NoiseSource,
        **own: object,
    ) -> Iterator[Tensor]:
        """The first 1, 2, ..., length tokens, as the stack receives them; all are views of one buffer."""
        scales = self.token_scales(guidance, length)
        sample = self.token_sampler(settings, noise, **own)
        decoder = CachedDecoder(self, cond, length, with_null=any(scale != 1 for scale in scales))
        tokens = self.empty(len(cond), length)
        for i, scale in enumerate(scales):
            outputs, null_outputs = decoder.step(tokens[:, i - 1] if i else None)
            tokens[:, i] = sample(outputs, null_outputs, scale)
            yield tokens[:, : i + 1]


def end_of(dim: int, length: int) -> nn.Linear:
    """The layer that predicts the end of a sequence, at first with odds of 1 to `length` everywhere."""
    layer = nn.Linear(dim, 1)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -math.log(length))
    return layer


def llama_blocks(
    dim: int,
    depth: int,
    heads: int,
    *,
    dropout: float,
    drop_path: float = 0.0,
    kv_heads: int | None = None,
    hidden: int | None = None,
    block: type[Block] = Block,
    norm_eps: float = 1e-5,
) -> nn.ModuleList:
    """LLaMA's blocks without biases.

    Args:
        dropout: after attention and feed-forward.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        kv_heads: heads of keys and values; None: `heads`.
        hidden: hidden width of the feed-forward part; None: `swiglu_hidden(dim)`.
        block: the class of the blocks.
        norm_eps: epsilon of the norms.
    """
    return nn.ModuleList(
        block(
            Attention(dim, heads, bias=False, kv_heads=kv_heads),
            SwiGLU(dim, hidden or swiglu_hidden(dim)),
            (RMSNorm(dim, norm_eps), RMSNorm(dim, norm_eps)),
            dropout=(dropout, dropout),
            drop_path=drop_path * i / max(depth - 1, 1),
        )
        for i in range(depth)
    )


def init_llama(model: nn.Module) -> None:
    """Normal weights with std 0.02 and zero biases of all linear layers and embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
