"""Trained timm classifiers for `LogitsDistance`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tok1d.errors import ConfigError, WeightsError, reason_of
from tok1d.losses.classifier import SIDE, LogitsDistance
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.pretrained.networks import Logits, has_download, open_pretrained, parse_network
from tok1d.zoo.weights import load_state


def classifier_network(name: str, *, pretrained: bool) -> nn.Module:
    """A timm classifier, with timm's download or with random weights.

    Args:
        name: timm's name, or, with random weights, also a text that `parse_network` reads.

    Raises:
        ConfigError: timm is not installed, or has no such network.
        WeightsError: timm cannot build or download it.
    """
    if not pretrained and (named := parse_network(name)) is not None:
        name = named.timm
    try:
        import timm
    except ImportError:
        raise ConfigError(f"classifier {name}: timm is not installed; pip install 'tok1d[teachers]'") from None
    if ":" not in name and not timm.is_model(name):
        raise ConfigError(f"classifier {name}: timm has no such model; expected a name such as convnext_small.fb_in1k")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # of the network, the hub or the disk: timm passes on what its libraries raise
        raise WeightsError(
            f"classifier {name}: timm could not create it ({reason_of(error)}); without internet access give "
            "classifier_weights=FILE"
        ) from None


def load_classifier(name: str, weights: str | None = None) -> LogitsDistance:
    """The distance in the logits of a trained classifier.

    Args:
        name: timm's name, or a text that `parse_network` reads.
        weights: a file in timm's layout; default: timm's download. Only with timm's name.

    Raises:
        ConfigError: timm is not installed, or has no such network.
        WeightsError: there are no trained weights, or they do not fit.
    """
    if (named := parse_network(name)) is not None:
        if weights is not None:
            raise ConfigError(f"classifier {name}: expected no classifier_weights, because the name states the weights")
        found = open_pretrained(named)
        return LogitsDistance(Logits(found), side=found.size[0], mean=found.mean, std=found.std)
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        network: Any = classifier_network(name, pretrained=weights is None)
    if weights is not None:
        load_state(network, read_published(weights), weights)
    elif not has_download(network):
        raise WeightsError(f"classifier {name}: timm has no trained weights of it; give classifier_weights=FILE")
    known = network.pretrained_cfg
    return LogitsDistance(network, side=SIDE, mean=known["mean"], std=known["std"])
