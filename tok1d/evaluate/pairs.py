"""Metrics of an image and its reconstruction: SSIM and LPIPS. PSNR and squared error are in `tok1d.losses.pixel`."""

from __future__ import annotations

import torch
from torch import Tensor

from tok1d.errors import DataError, WeightsError
from tok1d.losses.perceptual import LPIPS
from tok1d.zoo.pretrained.lpips import load_lpips, lpips_missing
from tok1d.zoo.weights import fingerprint

SSIM_VARIANT = "Gaussian window of 11 pixels, sigma 1.5, data range 1, borders mirrored"
SSIM_WINDOW = 11
LPIPS_VARIANT = "VGG16, heads v0.1, images at their own size"
MIN_LPIPS_SIZE = 16  # least height and width, in pixels, for the five stages of VGG16


def ssim_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of image pairs (B, C, H, W), clamped to [0, 1] (Wang et al., 2004), by torchmetrics.

    The variant is `SSIM_VARIANT`: the mean over channels and all pixels, borders included. scikit-image leaves out the
    pixels whose window is not inside the image, so its values differ.

    Raises:
        DataError: images of different shapes, or smaller than the window.
    """
    _check("SSIM", a, b, SSIM_WINDOW)
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = a.float().clamp(0, 1), b.float().clamp(0, 1)
    found = structural_similarity_index_measure(a, b, sigma=1.5, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(len(a))


def open_lpips(
    *, device: str | torch.device = "cpu", vgg: str | None = None, heads: str | None = None, download: bool = True
) -> LPIPS:
    """LPIPS with VGG16 and the published linear heads, version 0.1, for `lpips_per_image`.

    Args:
        vgg, heads: weight files; default: torchvision's VGG16, and the heads in the package torchmetrics.
        download: download the weights of VGG16 if they are missing.

    Raises:
        WeightsError: missing weights; the message says how to get them.
    """
    if not download and (missing := lpips_missing(vgg, heads)):
        raise WeightsError(missing)
    return load_lpips(vgg, heads).to(device).eval()


def lpips_variant(network: LPIPS) -> str:
    """The note of a record: `LPIPS_VARIANT` and a hash of all weights."""
    return f"{LPIPS_VARIANT}, weights {fingerprint(network)}"


@torch.no_grad()
def lpips_per_image(network: LPIPS, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS (B,) of image pairs (B, 1 or 3, H, W), clamped to [0, 1] and not resized (Zhang et al., 2018).

    Raises:
        DataError: images of different shapes, or smaller than 16 pixels.
    """
    _check("LPIPS", a, b, MIN_LPIPS_SIZE)
    device = network.shift.device
    return network(a.to(device).float().clamp(0, 1), b.to(device).float().clamp(0, 1))


def _check(name: str, a: Tensor, b: Tensor, least: int) -> None:
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[-2:]) < least:
        raise DataError(
            f"{name}: expected two batches (B, C, H, W) of one shape, of at least {least} pixels a side, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
