"""The configuration of a plain ViT, as an encoder or a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tok1d.config.fields import option
from tok1d.errors import ConfigError
from tok1d.nn.vit import ViT, ViTShape

VIT_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16},
}


@dataclass
class ViTConfig:
    """A ViT of a named size, or of any width, depth and heads."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = VIT_SIZES

    patch: int = option(16, "side of a square patch, in pixels", ge=1)
    dim: int = option(768, "width; size=tiny, small, base, large or huge sets width, depth and heads", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads", ge=1)
    mlp_ratio: float = option(4.0, "hidden width of the MLP over the width", gt=0)
    drop_path: float = option(
        0.0, "stochastic depth rate of the last block; the rate grows linearly from 0 over the blocks", ge=0, lt=1
    )
    layer_scale: float = option(1e-5, "initial LayerScale factor of every branch; 0: no LayerScale", ge=0)
    class_token: bool = option(True, "whether the sequence starts with a learned class token")
    registers: int = option(0, "number of learned register tokens after the class token", ge=0)
    absolute: bool = option(True, "whether patches have learned positions, resampled for other image sizes")
    rotary: Literal["none", "mixed", "axial"] = option(
        "mixed", "rotary positions of patches: frequencies learned for every block and head, or fixed (axial)"
    )
    rope_theta: float = option(10.0, "base of the rotary frequencies", gt=0)
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)

    def check(self) -> None:
        """Raise ConfigError on a width that does not fit the heads, or patches without any positions."""
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.rotary != "none" and self.dim // self.heads % 4:
            raise ConfigError(
                f"heads: rotary positions need a head width that is a multiple of 4, got {self.dim // self.heads}"
            )
        if self.rotary == "none" and not self.absolute:
            raise ConfigError("absolute: patches need positions, expected absolute=true or another rotary than none")

    def build(self, side: int, depth: int | None = None) -> ViT:
        """The ViT for a grid of `side` x `side` patches; `depth` replaces the configured number of blocks."""
        return ViT(
            ViTShape(
                self.dim,
                self.depth if depth is None else depth,
                self.heads,
                side,
                mlp_ratio=self.mlp_ratio,
                class_token=self.class_token,
                registers=self.registers,
                absolute=self.absolute,
                rotation=self.rotary,
                theta=self.rope_theta,
                layer_scale=self.layer_scale or None,
                drop_path=self.drop_path,
                eps=self.norm_eps,
            )
        )
