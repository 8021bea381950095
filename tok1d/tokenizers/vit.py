"""The configuration of a plain ViT, encoder or decoder, and the ViT it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.nn.vit import ViT
from tok1d.tokenizers.query_encoder import EncoderConfig


@dataclass
class ViTConfig:
    """A ViT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = EncoderConfig.SIZES

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width; size=tiny, small, base, large or huge sets width, depth and heads", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    drop_path: float = option(0.0, "stochastic depth of the last block, growing linearly from 0", ge=0, lt=1)
    layer_scale: float = option(1e-5, "initial factor of every branch, learned; 0 has none", ge=0)
    class_token: bool = option(True, "a learned token in front")
    registers: int = option(0, "further learned tokens in front", ge=0)
    absolute: bool = option(True, "learned positions, one a patch, resampled for other image sizes")
    rotary: Literal["none", "mixed", "axial"] = option(
        "mixed", "rotary positions of patches: frequencies learned for every block and head, or fixed (axial)"
    )
    rope_theta: float = option(10.0, "base of the rotary frequencies", gt=0)

    def check(self) -> None:
        """Raise ConfigError on widths that the heads do not divide, or patches without any positions."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.rotary != "none" and self.dim // self.heads % 4:
            raise ConfigError(
                f"heads: rotary positions need a head width that is a multiple of 4, got {self.dim // self.heads}"
            )
        if self.rotary == "none" and not self.absolute:
            raise ConfigError("absolute: patches need positions, expected absolute=true or another rotary than none")


def build_vit(config: ViTConfig, side: int, depth: int | None = None) -> ViT:
    """The ViT of a configuration, for a grid of `side` patches a side; `depth` replaces the configured one."""
    return ViT(
        config.dim,
        config.depth if depth is None else depth,
        config.heads,
        side=side,
        mlp_ratio=config.mlp_ratio,
        class_token=config.class_token,
        registers=config.registers,
        absolute=config.absolute,
        rotation=config.rotary,
        theta=config.rope_theta,
        layer_scale=config.layer_scale or None,
        drop_path=config.drop_path,
    )
