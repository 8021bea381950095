"""Quality of decoded images in dB, by which budgets of tokens are chosen: PSNR, or -10 log10 of another distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.errors import InputError
from tok1d.losses.perceptual import LPIPS_NAME, Distance
from tok1d.losses.pixel import mse_per_image
from tok1d.zoo.pretrained.lpips import load_feature_distance, load_lpips
from tok1d.zoo.pretrained.networks import NAMED, parse_network
from tok1d.zoo.pretrained.teachers import load_teacher
from tok1d.zoo.store import bundled_names, read_config, resolve

PSNR = "psnr"
Quality = Callable[[Tensor, Tensor], Tensor]  # decoded images and originals (R, C, H, W) in [0, 1] -> (R,) in dB


def in_decibels(distance: Distance) -> Quality:
    """-10 log10 of a distance; of the mean squared error this is the PSNR. inf for equal images."""

    @torch.no_grad()
    def quality(decoded: Tensor, originals: Tensor) -> Tensor:
        if isinstance(distance, nn.Module):
            distance.to(decoded.device)
        return -10 * torch.log10(distance(decoded.clamp(0, 1), originals))

    return quality


def cosine_distance(features: Callable[[Tensor], Tensor]) -> Distance:
    """(1 - cosine) / 2 of the features at each place, averaged over places: in [0, 1].

    Args:
        features: images -> (B, N, D).
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(features(a), features(b), dim=-1)).clamp(min=0).mean(1) / 2

    return distance


def load_quality(metric: str) -> Quality:
    """The quality that a text names: psnr, lpips, a network as `load_feature_distance` reads it, or a classifier.

    Raises:
        InputError: another text.
        Tok1dError: weights that are missing.
    """
    if metric == PSNR:
        return in_decibels(mse_per_image)
    if metric == LPIPS_NAME:
        return in_decibels(load_lpips())
    if parse_network(metric) is not None:
        return in_decibels(load_feature_distance(metric))
    name = metric.removeprefix("model:")
    if name in bundled_names() or metric != name:
        return in_decibels(cosine_distance(load_teacher(name, image_size=read_config(resolve(name))[0].image_size)))
    raise InputError(f"quality_metric: expected {PSNR}, {LPIPS_NAME}, {NAMED} or model:FOLDER, got {metric!r}")
