import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.errors import DataError
from tok1d.pictures import data_uri, grid, save_png, to_pil, to_uint8


def test_uint8_rounds_clamps_and_inverts_division_by_255() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.6 / 255, 254.4 / 255, 254.6 / 255, 1.0, -3.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 2, 254, 255, 255, 0, 255]
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels.float() / 255), levels.to(torch.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_image_keeps_its_pixels_where_they_are(channels: int, mode: str) -> None:
    pixels = torch.randint(0, 256, (channels, 4, 6), generator=torch.Generator().manual_seed(0))
    picture = to_pil(pixels / 255)
    assert picture.mode == mode and picture.size == (6, 4)
    array = np.asarray(picture).reshape(4, 6, channels)
    assert np.array_equal(array, pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_lays_images_in_rows_with_gaps_between(channels: int) -> None:
    images = torch.arange(1, 6).view(5, 1, 1, 1).expand(5, channels, 3, 2) / 10
    picture = grid(images, 2, zoom=4, gap=1)
    assert picture.size == ((2 + 1 + 2) * 4, (3 + 1 + 3 + 1 + 3) * 4)
    sheet = np.asarray(picture)[..., None].reshape(44, 20, -1)[::4, ::4, 0]  # one pixel of every zoomed block
    assert np.array_equal(np.asarray(picture), np.asarray(picture.resize((5, 11), 0).resize((20, 44), 0)))
    for i in range(6):
        top, left = i // 2 * 4, i % 2 * 3
        level = round((i + 1) / 10 * 255) if i < 5 else 255  # the place of a sixth image is background
        assert (sheet[top : top + 3, left : left + 2] == level).all()
    assert (sheet[[3, 7]] == 255).all() and (sheet[:, 2] == 255).all()


def test_a_data_address_decodes_to_the_same_pixels() -> None:
    picture = grid(torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)), 2)
    head, _, body = data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
    assert back.format == "PNG" and np.array_equal(np.asarray(back), np.asarray(picture))


def test_saving_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    picture = to_pil(torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(2)))
    path = save_png(picture, tmp_path / "a" / "b.png")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    assert os.listdir(tmp_path / "a") == ["b.png"]


def test_a_failed_save_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(to_pil(torch.zeros(1, 2, 2)), tmp_path / "x.png")
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"x\.png: No space left on device"):
        save_png(to_pil(torch.ones(1, 2, 2)), path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["x.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        save_png(to_pil(torch.ones(1, 2, 2)), tmp_path / "file" / "x.png")
