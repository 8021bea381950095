"""The condition of a model: a class, or a caption that a frozen text encoder or a learned table of words embeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tok1d.config.fields import option
from tok1d.errors import ConfigError


@dataclass
class ConditionConfig:
    """The kind of a model's condition, and what embeds captions: a frozen text encoder, or a learned table of words."""

    kind: Literal["class", "text", "words"] = option(
        "class",
        "condition: a class id, or a caption, embedded by a frozen text encoder (text) or by a learned table of the "
        "words of the training captions (words)",
    )
    encoder: str = option(
        "",
        "text: the frozen text encoder, a transformers name or a local folder; not part of the model's weights",
        path="path",
    )
    dim: int = option(
        512, "text: width E of the encoder's states, 512 for CLIP ViT-B/32; words: width of the table", ge=1
    )
    length: int = option(
        77,
        "text: subword tokens T of a caption, special ones included; words: words T; longer captions are truncated",
        ge=1,
    )
    max_words: int = option(10_000, "words: the most frequent words of the training captions are the vocabulary", ge=1)
    vocabulary: list[str] = option([], "words: the vocabulary; []: from the training captions, then part of the model")

    @property
    def is_text(self) -> bool:
        """Whether the condition is a caption."""
        return self.kind in ("text", "words")

    @property
    def num_words(self) -> int | None:
        """Size of the vocabulary of kind=words; None for other kinds."""
        return len(self.vocabulary) if self.kind == "words" else None

    def check(self) -> None:
        """Raise ConfigError on a text encoder or a vocabulary of another kind of condition, or words that repeat."""
        if self.encoder and self.kind != "text":
            raise ConfigError(
                f'encoder: only kind=text uses a text encoder, expected "" for kind={self.kind}, got {self.encoder}'
            )
        if self.vocabulary and self.kind != "words":
            count = len(self.vocabulary)
            raise ConfigError(
                f"vocabulary: only kind=words uses it, expected [] for kind={self.kind}, got {count} words"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary):
            twice = next(word for word in self.vocabulary if self.vocabulary.count(word) > 1)
            raise ConfigError(f"vocabulary: expected each word once, got {twice!r} twice")

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
            raise ConfigError(f"num_classes: condition.kind={self.kind} has no classes, expected 0, got {num_classes}")


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
