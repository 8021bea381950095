"""Histograms of oriented gradients: ramps, an implementation in loops, the order of a patch's numbers."""

import math

import numpy as np
import pytest
import torch

from tok1d.losses.hog import BINS, hog, hog_cells


@pytest.mark.parametrize("degrees", [5, 50, 95, 170, 185, 310])
def test_a_ramp_votes_for_its_own_direction_alone(degrees: float) -> None:
    angle = math.radians(degrees)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    image = 0.01 * (math.cos(angle) * columns + math.sin(angle) * rows)
    cells = hog_cells(image.double()[None, None], 4)[0, 0, 1:-1, 1:-1]  # there is no gradient across the border
    expected = torch.zeros(2, 2, BINS, dtype=torch.float64)
    expected[..., int(degrees % 180 // 20)] = 1
    torch.testing.assert_close(cells, expected, atol=1e-4, rtol=0)


def by_hand(image: np.ndarray, cell: int) -> np.ndarray:
    """One channel (H, W) in loops -> (H / cell, W / cell, 9)."""
    height, width = image.shape
    votes = np.zeros((height // cell, width // cell, BINS))
    for y in range(height):
        for x in range(width):
            dx = image[y, x + 1] - image[y, x - 1] if 0 < x < width - 1 else 0.0
            dy = image[y + 1, x] - image[y - 1, x] if 0 < y < height - 1 else 0.0
            index = int(np.degrees(np.arctan2(dy, dx)) % 180 // 20)
            votes[y // cell, x // cell, index % BINS] += np.sqrt(dx**2 + dy**2) / cell**2
    return votes / np.sqrt((votes**2).sum(-1, keepdims=True) + 1e-10)


def test_it_is_the_histogram_written_in_loops() -> None:
    images = torch.rand(2, 3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = hog_cells(images, 4)
    expected = np.stack([[by_hand(channel, 4) for channel in image] for image in images.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_it_is_that_of_scikit_image() -> None:
    from skimage import feature

    image = torch.rand(1, 1, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = feature.hog(
        image[0, 0].numpy(),
        orientations=BINS,
        pixels_per_cell=(8, 8),
        cells_per_block=(1, 1),
        block_norm="L2",
        feature_vector=False,
    )
    # scikit-image adds up its histograms in single precision.
    np.testing.assert_allclose(hog_cells(image, 8)[0, 0].numpy(), expected[:, :, 0, 0], atol=1e-6)


def test_a_patch_holds_its_cells_their_channels_and_bins_in_this_order() -> None:
    images = torch.rand(2, 3, 32, 48)
    cells, patches = hog_cells(images, 8), hog(images, 16, 8)
    assert patches.shape == (2, 6, 108)
    second_row_last = patches[:, 5].view(2, 2, 2, 3, BINS)
    torch.testing.assert_close(second_row_last, cells[:, :, 2:4, 4:6].permute(0, 2, 3, 1, 4))


def test_contrast_and_brightness_hardly_matter_and_flat_cells_are_zero() -> None:
    images = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(hog(0.5 * images + 0.2, 8, 4), hog(images, 8, 4), atol=1e-3, rtol=0)
    assert not hog(torch.full((1, 1, 16, 16), 0.3), 8, 4).any()
