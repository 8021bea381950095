"""A tokenizer of your own, outside the package: finite scalar quantisation (FSQ, arXiv 2309.15505) between two ViTs.

    tok1d --import examples/my_tokenizer.py train examples/my_tokenizer.yaml

With the same --import, every command works on it as on a built-in tokenizer; see examples/README.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tok1d
from tok1d.config.fields import option
from tok1d.nn.embed import PatchEmbed, unpatchify
from tok1d.nn.vit import ViT, ViTShape
from tok1d.tokenizers.base import TokenSpec


@dataclass
class MyConfig:
    """The keys of the recipe's section `model`, with their checks. `name` is the name given to `register` below."""

    name: str = option("my_tokenizer", "which model this is")
    image_size: int = option(28, "side of the square images, in pixels", ge=1)
    channels: int = option(1, "image channels", ge=1)
    patch: int = option(7, "side of a patch, in pixels", ge=1)
    num_tokens: int = option(8, "tokens of an image", ge=1)
    token_dim: int = option(8, "channels of a token", ge=1)
    levels: int = option(5, "values that a channel of a token can take; odd", ge=3)
    dim: int = option(96, "width of both ViTs", ge=1)
    depth: int = option(3, "blocks of each ViT", ge=1)
    heads: int = option(4, "attention heads", ge=1)


class FSQ(nn.Module):
    """The bottleneck: every channel is rounded to one of `levels` values in [-1, 1]. (B, K, dim) -> (B, K, D)."""

    def __init__(self, dim: int, token_dim: int, levels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, token_dim)
        self.half = (levels - 1) / 2

    def forward(self, states: Tensor) -> Tensor:
        bounded = torch.tanh(self.proj(states))
        rounded = torch.round(bounded * self.half) / self.half
        return bounded + (rounded - bounded).detach()  # the gradient skips the rounding (straight-through)


@tok1d.register("my_tokenizer", kind="tokenizer", config=MyConfig)
class MyTokenizer(nn.Module):
    """[patches, queries] -> ViT -> FSQ of the queries' states -> [mask tokens, tokens] -> ViT -> pixels."""

    def __init__(self, config: MyConfig) -> None:
        super().__init__()
        self.config, self.side = config, config.image_size // config.patch
        self.patches = PatchEmbed(config.patch, config.channels, config.dim)
        self.queries = nn.Parameter(0.02 * torch.randn(1, config.num_tokens, config.dim))
        self.encoder = ViT(ViTShape(config.dim, config.depth, config.heads, self.side))
        self.bottleneck = FSQ(config.dim, config.token_dim, config.levels)
        self.token_embed = nn.Linear(config.token_dim, config.dim)
        self.masks = nn.Parameter(0.02 * torch.randn(1, self.side**2, config.dim))
        self.decoder = ViT(ViTShape(config.dim, config.depth, config.heads, self.side))
        self.to_pixels = nn.Linear(config.dim, config.patch**2 * config.channels)
        self.spec = TokenSpec(config.num_tokens, config.token_dim, deterministic=True)  # what generators need to know

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> tokens (B, K, D)."""
        queries = self.queries.expand(len(images), -1, -1)
        return self.bottleneck(self.encoder(self.patches(images), (self.side, self.side), queries)[1])

    def decode(self, tokens: Tensor, cond: Tensor | None = None, **options: object) -> Tensor:
        """Tokens (B, K, D) -> images (B, C, H, W) in [0, 1]. `options` (keep, steps, guidance, ...) have no effect."""
        masks = self.masks.expand(len(tokens), -1, -1)
        states, _ = self.decoder(masks, (self.side, self.side), self.token_embed(tokens))
        return unpatchify(self.to_pixels(states), self.config.patch, self.side, self.side).sigmoid()

    def losses(self, batch: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        """The loss of one training step; `batch` is (images, labels), `progress` the share of the run that is done."""
        return {"loss_mse": nn.functional.mse_loss(self.decode(self.encode(batch[0])), batch[0])}
