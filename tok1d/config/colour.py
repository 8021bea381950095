"""Colours as recipes write them."""

from __future__ import annotations

import re

from tok1d.errors import ConfigError

WHITE = "white"
_NAMED = {WHITE: "#ffffff", "black": "#000000"}


def rgb_of(text: str) -> tuple[int, int, int]:
    """The red, green and blue of a colour, each in 0..255.

    Args:
        text: white, black or #rrggbb with two hexadecimal digits for each.

    Raises:
        ConfigError: another text.
    """
    digits = _NAMED.get(text, text)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", digits):
        raise ConfigError(f"background: expected white, black or #rrggbb such as #80c0ff, got {text}")
    red, green, blue = bytes.fromhex(digits[1:])
    return red, green, blue
