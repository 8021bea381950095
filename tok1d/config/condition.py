"""What a model is told of an image: its class, or its caption as a frozen text encoder reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tok1d.config.fields import option
from tok1d.errors import ConfigError


@dataclass
class ConditionConfig:
    """The kind of a model's condition, and where embeddings of captions come from."""

    kind: Literal["class", "text"] = option("class", "what the model is told: a class id, or a caption")
    encoder: str = option(
        "", "text: the frozen text encoder, a transformers name or a local folder; no part of the model's weights"
    )
    dim: int = option(512, "text: width E of the encoder's states, 512 of CLIP ViT-B/32", ge=1)
    length: int = option(77, "text: sub-words T of a caption, special ones included; longer captions are cut", ge=1)

    @property
    def is_text(self) -> bool:
        """Whether the model is told captions."""
        return self.kind == "text"

    def check(self) -> None:
        """Raise ConfigError on a text encoder that nobody asks."""
        if self.encoder and not self.is_text:
            raise ConfigError(f"encoder: read with kind=text alone, expected nothing, got {self.encoder}")

    def check_encoder(self) -> None:
        """Raise ConfigError where no text encoder is named and one is needed."""
        if not self.encoder:
            raise ConfigError(
                "model.condition.encoder: no text encoder is bundled, expected a transformers name or a local folder "
                "(of CLIP, T5 or kin), got nothing"
            )

    def check_classes(self, num_classes: int) -> None:
        """Raise ConfigError, for a generator's `num_classes`, on a model of captions that has classes too."""
        if self.is_text and num_classes:
            raise ConfigError(f"num_classes: condition.kind=text is told no class, expected 0, got {num_classes}")


def is_conditional(config: Any) -> bool:
    """Whether a generator is told anything, a class or a caption."""
    return config.num_classes > 0 or text_condition(config) is not None


def text_condition(config: Any) -> ConditionConfig | None:
    """The condition of a model's configuration if that is a caption; None for classes, or nothing."""
    condition = getattr(config, "condition", None)
    return condition if isinstance(condition, ConditionConfig) and condition.is_text else None
