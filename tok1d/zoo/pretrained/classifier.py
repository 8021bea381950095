"""Trained timm classifiers for the distance of logits (`LogitsDistance`)."""

from __future__ import annotations

from typing import Any

import torch

from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.classifier import SIDE, LogitsDistance
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.weights import load_state


def classifier_network(name: str, *, pretrained: bool) -> Any:
    """A timm classifier, with the weights that timm downloads or untrained.

    Raises:
        ConfigError: timm is not installed, or has no such network. WeightsError: its weights cannot be had.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"classifier {name}: timm is not installed; pip install 'tok1d[teachers]'") from None
    if ":" not in name and not timm.is_model(name):
        raise ConfigError(f"classifier {name}: timm has no such model; expected a name such as convnext_small.fb_in1k")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # network, hub, disk: timm passes on whatever its libraries raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(
            f"classifier {name}: timm could not make it ({reason}); without a network give classifier_weights=FILE"
        ) from None


def load_classifier(name: str, weights: str | None = None) -> LogitsDistance:
    """The distance of a trained timm classifier.

    Args:
        weights: a file in timm's layout; default: what timm downloads.

    Raises:
        ConfigError, WeightsError: no such network, or no trained weights of it.
    """

    with torch.random.fork_rng(devices=[]):  # the draws of the initial weights are thrown away
        network = classifier_network(name, pretrained=weights is None)
    if weights is not None:
        load_state(network, read_published(weights), weights)
    elif not any(network.pretrained_cfg.get(place) for place in ("hf_hub_id", "url", "file")):
        raise WeightsError(f"classifier {name}: timm has no trained weights of it; give classifier_weights=FILE")
    known = network.pretrained_cfg
    return LogitsDistance(network, side=SIDE, mean=known["mean"], std=known["std"])
