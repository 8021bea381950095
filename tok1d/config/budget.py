"""How many leading tokens each image needs: options of commands and a section of recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Budgeting:
    """As many leading tokens as each image needs.

    Of recipes, only those of generators read it (`only`).
    """

    quality: float | None = option(
        None,
        "take for each image the smallest number of leading tokens that reaches this quality in dB (0: one token, inf: "
        "all); ordered tokens only",
        ge=0,
        infinite=True,
        only="generator",
    )
    quality_metric: str = option(
        "psnr",
        "what --quality is measured with: psnr; or -10 log10 of a distance: lpips, or of feature maps of "
        "efficientnet-lite0[:SIZE], timm:NAME[:SIZE][:FILE], model:FOLDER or a bundled classifier",
        path="prefixed",
        only="generator",
    )
    quality_by: Literal["search", "head"] = option(
        "search",
        "search: decode all prefixes and measure them; head: decode all tokens, and predict the others from the tokens "
        "by the head that tok1d train fashion_mnist/budget init_from=MODEL adds to a tokenizer",
        only="generator",
    )


def check_stop(model: object, budget: Budgeting, *, cached: bool) -> None:
    """Check that a generator that stops by itself (`model.stop`) has numbers of tokens, and no other one.

    Args:
        cached: whether it is trained from a token cache, which holds the numbers.

    Raises:
        ConfigError: the message names the key.
    """
    stops, quality = getattr(model, "stop", False), budget.quality
    if stops and (quality is None or not cached):
        found = "cache=none" if quality is not None else "budget.quality=null"
        raise ConfigError(
            f"model.stop: a generator that stops by itself needs budget.quality=Q in dB and a token cache, got {found}"
        )
    if not stops and quality is not None:
        raise ConfigError(f"budget.quality: only a generator with model.stop=true reads it, got {quality:g}")
