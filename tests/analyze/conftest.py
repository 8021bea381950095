"""A user's folder of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 24 colour pictures of several sizes, without classes."""
    folder, generator = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        pixels = generator.integers(0, 256, (30 + number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder
