"""The decoder of Semanticist: a diffusion transformer with condition tokens appended to the image tokens, or with
cross-attention to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tok1d.config.fields import option
from tok1d.nn.block import AdaLNBlock, CrossAdaLNBlock
from tok1d.nn.embed import IntervalEmbed, PatchEmbed, TimeEmbed, embed_times, unpatchify
from tok1d.nn.norm import Modulation, modulate
from tok1d.nn.position import sincos_2d
from tok1d.nn.roles import PIXELS_OUT, TOKENS, Roles


@dataclass
class DecoderConfig:
    """A DiT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "S": {"dim": 384, "depth": 12, "heads": 6},
        "B": {"dim": 768, "depth": 12, "heads": 12},
        "L": {"dim": 1024, "depth": 24, "heads": 16},
        "XL": {"dim": 1152, "depth": 28, "heads": 16},
    }

    patch: int = option(2, "side of a square patch of the latent", ge=1)
    dim: int = option(1024, "width, a multiple of 4; size=S, B, L or XL sets width, depth and heads", ge=4)
    depth: int = option(24, "number of blocks", ge=1)
    heads: int = option(16, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    conditioning: Literal["joint", "cross"] = option(
        "joint",
        "tokens in the sequence of the image patches (Semanticist's appendix C.1 and release), or attended to by "
        "cross-attention (its section 4.2)",
    )
    null_token: Literal["position", "shared"] = option(
        "position", "null tokens: one per position (appendix C.1 and release), or one for all (section 4.3)"
    )
    token_positions: bool = option(
        False,
        "learned positions of the tokens; without them (appendix C.1 and release) the decoder treats all tokens alike, "
        "and in short trainings some become copies of others",
    )
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)
    patch_dim: int = option(
        0,
        "a patch is projected to so many numbers before the width, so that its noise does not fill the whole width "
        "(JiT, arXiv 2511.13720); 0: straight to the width",
        ge=0,
    )
    align_depth: int = option(
        0, "block, counted from 1, whose states are aligned with a teacher; 0: no alignment", ge=0
    )
    align_hidden: int = option(2048, "hidden width of the alignment projector", ge=1)
    align_dim: int = option(768, "width of the teacher's features", ge=1)


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """The three-layer projector of REPA (arXiv 2410.06940)."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )


class TokenDiT(nn.Module):
    """Denoises latents given a time and K condition tokens (Semanticist, section 4.2; DiT, arXiv 2212.09748).

    Without `token_positions`, only null tokens may differ by position, and the output does not depend on the order of
    the kept tokens.

    Args:
        channels, size: latents are (B, channels, size, size) in training; other sizes that the patches divide are
            accepted as well.
        num_tokens, token_dim: condition tokens are (B, K, D).
        out_channels: channels of the output: `channels`, or 2 * channels with a learned variance.
        time_scale: factor of the times before the sinusoidal embedding.
        intervals: also embed the lengths of intervals, see `diffusion.few_step`.
    """

    roles: ClassVar[Roles] = {"out": (PIXELS_OUT,), "null_tokens": (TOKENS,), "token_positions": (TOKENS,)}

    def __init__(
        self,
        config: DecoderConfig,
        *,
        channels: int,
        size: int,
        num_tokens: int,
        token_dim: int,
        out_channels: int,
        time_scale: float = 1.0,
        intervals: bool = False,
    ) -> None:
        super().__init__()
        dim, patch = config.dim, config.patch
        self.patch, self.dim, self.grid, self.align_depth = patch, dim, size // patch, config.align_depth
        self.num_tokens, self.cross = num_tokens, config.conditioning == "cross"
        self.patch_embed = PatchEmbed(patch, channels, config.patch_dim or dim)
        self.patch_out = nn.Linear(config.patch_dim, dim) if config.patch_dim else nn.Identity()
        self.register_buffer("positions", sincos_2d(dim, self.grid, self.grid)[None], persistent=False)
        self.positions: Tensor
        self._tables: dict[tuple[object, ...], Tensor] = {}  # positions of other latent sizes
        self.time_embed = TimeEmbed(dim, scale=time_scale)
        self.interval_embed = IntervalEmbed(dim) if intervals else None
        block = CrossAdaLNBlock if self.cross else AdaLNBlock
        self.blocks = nn.ModuleList(
            block(dim, config.heads, config.mlp_ratio, eps=config.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.out = nn.Linear(dim, patch**2 * out_channels)
        self._init_weights()
        # Created after the initialisation above: these keep PyTorch's default, as in the release.
        self.token_embed = nn.Linear(token_dim, dim)
        rows = 1 if config.null_token == "shared" else num_tokens
        self.null_tokens = nn.Parameter(torch.randn(1, rows, token_dim) * 0.02)
        # Not close to zero: tokens that start alike become copies.
        self.token_positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.5) if config.token_positions else None
        self.projector = projector(dim, config.align_hidden, config.align_dim) if config.align_depth else None

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)
        for embed in (self.time_embed, self.interval_embed):
            if embed is not None:
                embed.init_weights()
        for module in self.modules():
            if isinstance(module, Modulation | CrossAdaLNBlock):
                module.zero_init()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def fill(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, K, D), replaced by the null token of their position where the mask (B, K) is False."""
        if mask is None:
            return tokens
        return torch.where(mask[..., None], tokens, self.null_tokens.to(tokens.dtype))

    def nulls(self, batch: int) -> Tensor:
        """The input (batch, K, D) of the unconditional model: null tokens alone."""
        return self.null_tokens.expand(batch, self.num_tokens, -1)

    def table(self, rows: int, columns: int) -> Tensor:
        """The fixed sine-cosine positions of a grid of patches, (1, rows * columns, dim)."""
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        key = (rows, columns, self.positions.device, self.positions.dtype)
        if key not in self._tables:
            with torch.inference_mode(False):  # a training step may use it later
                self._tables[key] = sincos_2d(self.dim, rows, columns)[None].to(self.positions)
        return self._tables[key]

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, d: Tensor | None = None) -> Tensor:
        """Latents (B, C, H, W), times (B,) or (1,), tokens (B, K, D) after `fill` -> (B, out_channels, H, W).

        Args:
            d: lengths of intervals, of the shape of t, with `intervals` only; None: 0.
        """
        return self._run(x, t, tokens, d, align=False)[0]

    def forward_aligned(self, x: Tensor, t: Tensor, tokens: Tensor, d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the projected states (B, T, align_dim) of the image tokens after block `align_depth`."""
        out, aligned = self._run(x, t, tokens, d, align=True)
        assert aligned is not None, "this decoder has no alignment projector (align_depth is 0)"
        return out, aligned

    def _run(
        self, x: Tensor, t: Tensor, tokens: Tensor, d: Tensor | None, *, align: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        patches = self.patch_out(self.patch_embed(x)) + self.table(rows, columns)
        extra = self.token_embed(tokens)
        if self.token_positions is not None:
            extra = extra + self.token_positions
        sequence = patches if self.cross else torch.cat([patches, extra], dim=1)
        c = embed_times(self.time_embed, self.interval_embed, t, d)[:, None]
        num_patches, aligned = rows * columns, None
        for depth, block in enumerate(self.blocks, start=1):
            if self.cross:
                sequence = block(sequence, c, extra)
            else:
                # The last block only computes the image tokens: the states of the others are not used afterwards.
                sequence = block(sequence, c, rows=slice(num_patches) if depth == len(self.blocks) else None)
            if align and depth == self.align_depth and self.projector is not None:
                aligned = self.projector(sequence[:, :num_patches])
        shift, scale = self.modulation(c)
        out = self.out(modulate(self.norm(sequence[:, :num_patches]), shift, scale))
        return unpatchify(out, self.patch, rows, columns), aligned
