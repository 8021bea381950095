"""The study folder that the tests of this package share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tok1d.study.folder import IMAGES, write_study, writing

from .made import make_study


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(...): a study folder of `make_study` with random pictures."""

    def make(**design: object) -> Path:
        study = make_study(**design)  # type: ignore[arg-type]
        rng, folder = np.random.default_rng(0), tmp_path / "study"
        with writing(folder) as temporary:
            for name in study.files():
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(temporary / IMAGES / name)
            write_study(study, temporary)
        return folder

    return make
