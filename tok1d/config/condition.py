"""The condition of a model: a class, or a caption that a frozen text encoder embeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tok1d.config.fields import option
from tok1d.errors import ConfigError


@dataclass
class ConditionConfig:
    """The kind of a model's condition, and the text encoder of captions."""

    kind: Literal["class", "text"] = option("class", "condition: a class id, or a caption")
    encoder: str = option(
        "",
        "text: the frozen text encoder, a transformers name or a local folder; not part of the model's weights",
        path="path",
    )
    dim: int = option(512, "text: width E of the encoder's states, 512 for CLIP ViT-B/32", ge=1)
    length: int = option(
        77, "text: subword tokens T of a caption, special ones included; longer captions are truncated", ge=1
    )

    @property
    def is_text(self) -> bool:
        """Whether the condition is a caption."""
        return self.kind == "text"

    def check(self) -> None:
        """Raise ConfigError if a text encoder is named but the condition is a class."""
        if self.encoder and not self.is_text:
            raise ConfigError(
                f'encoder: only kind=text uses a text encoder, expected "" for kind={self.kind}, got {self.encoder}'
            )

    def check_encoder(self) -> None:
        """Raise ConfigError if no text encoder is named; call it for models conditioned on captions."""
        if not self.encoder:
            raise ConfigError(
                "model.condition.encoder: no text encoder is bundled, expected a transformers name or a local folder "
                "(CLIP, T5 or similar), got nothing"
            )

    def check_classes(self, num_classes: int) -> None:
        """Raise ConfigError if a generator that is conditioned on captions also has `num_classes` classes."""
        if self.is_text and num_classes:
            raise ConfigError(f"num_classes: condition.kind=text has no classes, expected 0, got {num_classes}")


class HasClasses(Protocol):
    """A generator's configuration; `num_classes` is 0 without classes."""

    @property
    def num_classes(self) -> int: ...


def is_conditional(config: HasClasses) -> bool:
    """Whether a generator with this configuration is conditioned on classes or captions."""
    return config.num_classes > 0 or text_condition(config) is not None


def text_condition(config: object) -> ConditionConfig | None:
    """The condition of a model's configuration if it is a caption; None for classes or no condition."""
    condition = getattr(config, "condition", None)
    return condition if isinstance(condition, ConditionConfig) and condition.is_text else None
