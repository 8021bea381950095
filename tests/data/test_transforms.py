import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tok1d.data import transforms
from tok1d.data.transforms import Transform, decode_image, to_tensor
from tok1d.errors import ConfigError, DataError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("width", "height"), [(28, 28), (40, 28), (28, 43), (31, 28)])
def test_center_crop_of_the_right_short_side_is_a_slice_with_floored_offsets(width, height):
    image = picture(width, height)
    left, top = (width - 28) // 2, (height - 28) // 2
    np.testing.assert_array_equal(
        pixels(transforms.center_crop(image, 28)), pixels(image)[top : top + 28, left : left + 28]
    )


def test_center_crop_by_a_power_of_two_is_box_averaging_alone():
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(pixels(transforms.center_crop(image, 8)), blocks)


@pytest.mark.parametrize("size", [7, 16, 33])
def test_a_constant_image_stays_constant_under_every_crop(size):
    image = Image.new("RGB", (50, 37), (10, 200, 77))
    views = [*transforms.tencrop_views(image, size), *transforms.centercrop_views(image, size)]
    views.append(transforms.random_crop(image, size, 0.7, 0.2))
    for view in views:
        assert view.size == (size, size)
        assert (pixels(view) == (10, 200, 77)).all()


def test_ten_crop_is_corners_centre_and_the_same_of_the_mirror_image():
    image = picture(20, 16)
    crops = transforms.ten_crop(image, 10)
    array = pixels(image)
    expected = [array[:10, :10], array[:10, 10:], array[6:, :10], array[6:, 10:], array[3:13, 5:15]]
    for crop, part in zip(crops[:5], expected, strict=True):
        np.testing.assert_array_equal(pixels(crop), part)
    for crop, mirrored in zip(crops[5:], transforms.ten_crop(ImageOps.mirror(image), 10)[:5], strict=True):
        np.testing.assert_array_equal(pixels(crop), pixels(mirrored))
    with pytest.raises(ValueError, match="ten-crop"):
        transforms.ten_crop(image, 17)


def test_tencrop_views_are_two_scales_in_order():
    image = picture(90, 71)
    views = transforms.tencrop_views(image, 32)
    assert len(views) == 20
    for start, side in ((0, 33), (10, 35)):
        corner = transforms.center_crop(image, side).crop((0, 0, 32, 32))
        np.testing.assert_array_equal(pixels(views[start]), pixels(corner))


def test_centercrop_views_mirror_each_other():
    crop, mirrored = transforms.centercrop_views(picture(40, 30), 16)
    np.testing.assert_array_equal(pixels(crop)[:, ::-1], pixels(mirrored))


def test_random_crops_follow_the_random_numbers_and_reach_both_ends():
    image = Image.fromarray(np.arange(30, dtype=np.uint8)[None].repeat(10, 0))  # grey level = column
    rng = np.random.default_rng(0)
    lefts = [pixels(transforms.random_crop(image, 10, *rng.random(2)))[0, 0] for _ in range(300)]
    assert set(lefts) == set(range(21))
    numbers = np.random.default_rng(0).random((300, 2))
    assert lefts == [int(21 * across) for across, _ in numbers]


def test_crops_of_random_scale_show_eight_tenths_to_all_of_the_short_side():
    """On a ramp of 80 columns a crop of 20 covers 64 to 80 of them; all six short sides are equally likely."""
    ramp = Image.fromarray(np.arange(80, dtype=np.uint8)[None].repeat(80, 0))
    rng = np.random.default_rng(0)
    crops = [pixels(transforms.random_scale_crop(ramp, 20, *rng.random(3))).astype(float) for _ in range(600)]
    steps = np.array([np.polyfit(np.arange(4, 16), crop[5, 4:16], 1)[0] for crop in crops])
    sides = np.round(80 / steps)
    counts = [int((sides == side).sum()) for side in range(20, 26)]
    assert sum(counts) == 600 and min(counts) > 70
    assert min(crop.min() for crop in crops) < 3 and max(crop.max() for crop in crops) > 76
    whole = Transform(20, 1, "random_scale", True)
    numbers = np.random.default_rng(3).random(4)
    assert whole(ramp, np.random.default_rng(3)).equal(whole.apply(ramp, numbers))
    full = Transform(20, 1, "center").apply(ramp, numbers)
    assert Transform(20, 1, "random_scale").apply(ramp, (*numbers[:3], 0.0)).equal(full), (
        "smallest short side: no slack"
    )


def test_to_tensor_is_channels_first_in_0_1():
    image = picture(5, 4)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 4, 5) and tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy() * 255, pixels(image), atol=1e-4)
    assert to_tensor(np.full((4, 5), 255, np.uint8)).equal(torch.ones(1, 4, 5))


def test_exif_rotation_is_applied():
    image = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    np.testing.assert_array_equal(pixels(decode_image(encoded(image, exif=exif))), np.rot90(pixels(image), -1))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_as_pil_shows_it_other_tags_damaged_or_not(orientation):
    image = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x011A] = 72.0  # the horizontal resolution
    whole = encoded(image, "JPEG", exif=exif)
    expected = pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(whole))))
    np.testing.assert_array_equal(pixels(decode_image(whole)), expected)
    fraction, text = b"\x01\x1a\x00\x05\x00\x00\x00\x01", b"\x01\x1a\x00\x02\x00\x00\x00\x04"
    assert fraction in whole
    np.testing.assert_array_equal(pixels(decode_image(whole.replace(fraction, text))), expected)


def test_alpha_is_composited_over_white_or_the_stated_colour():
    image = Image.new("RGBA", (2, 1), (100, 0, 0, 0))
    image.putpixel((1, 0), (100, 0, 0, 255))
    assert pixels(decode_image(encoded(image))).tolist() == [[[255, 255, 255], [100, 0, 0]]]
    assert pixels(decode_image(encoded(image), 3, (0, 0, 9)))[0, 0].tolist() == [0, 0, 9]
    assert pixels(decode_image(encoded(image), 1))[0, 0] == 255
    half = Image.new("LA", (1, 1), (0, 128))
    assert pixels(decode_image(encoded(half)))[0, 0, 0] == 127


def test_palettes_become_colours_and_their_transparency_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(decode_image(encoded(image))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(decode_image(encoded(image, transparency=0))).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(values))
    assert pixels(decode_image(data, 1)).tolist() == [[0, 1, 128, 255]]
    assert pixels(decode_image(data, 3))[0, 2].tolist() == [128] * 3


def test_grey_is_repeated_or_kept_and_colour_becomes_luma():
    grey = Image.new("L", (3, 2), 77)
    assert (pixels(decode_image(encoded(grey), 3)) == 77).all()
    assert decode_image(encoded(grey), 1).mode == "L"
    assert pixels(decode_image(encoded(Image.new("RGB", (1, 1), (255, 0, 0))), 1)).item() == 76  # 0.299 * 255
    assert pixels(decode_image(encoded(Image.new("1", (1, 1), 1)), 3)).tolist() == [[[255] * 3]]
    assert decode_image(encoded(Image.new("CMYK", (3, 2)), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"text", lambda data: data[: len(data) // 2]])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_named_in_one_line(tmp_path, kind, damage):
    path = tmp_path / "cat.img"
    path.write_bytes(damage(encoded(picture(64, 64), kind)))
    with pytest.raises(DataError, match=r"cat\.img") as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_decompression_bomb_are_data_errors(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png"):
        decode_image(tmp_path / "nothing.png")
    bomb = encoded(Image.new("1", (20000, 20000)))
    assert len(bomb) < 100_000
    with pytest.raises(DataError, match="image bytes"):
        decode_image(bomb)


def test_a_strip_too_long_to_resize_is_refused():
    with pytest.raises(ValueError, match="too long"):
        transforms.center_crop(Image.new("L", (60000, 1)), 64)


def test_transform_repeats_itself_and_matches_the_plain_functions():
    image = picture(50, 30)
    assert Transform(16)(image).equal((to_tensor(transforms.center_crop(image, 16)) * 255).round().byte())
    both = Transform(16, channels=1, crop="random", flip=True)
    views = [both(image, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert views[0].shape == (1, 16, 16) and views[0].dtype == torch.uint8
    assert views[0].equal(views[1]) and not views[0].equal(views[2])
    with pytest.raises(ValueError, match="generator"):
        both(image)


def test_flip_happens_below_one_half():
    image = picture(16, 16)
    flip = Transform(16, flip=True)
    assert flip.apply(image, (0, 0, 0.49)).flip(2).equal(flip.apply(image, (0, 0, 0.5)))


def test_fingerprints_distinguish_transforms_and_never_change():
    every = [
        Transform(size, channels, crop, flip).fingerprint()
        for size in (28, 32)
        for channels in (1, 3)
        for crop in ("center", "random", "random_scale")
        for flip in (False, True)
    ]
    assert len(set(every)) == 24
    assert Transform(28, 1).fingerprint() == "adm-center-crop/28px/1ch/noflip"  # stored in caches and cards


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 8, "channels": 2}, {"size": 8, "crop": "middle"}])
def test_impossible_transforms_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Transform(**wrong)


@pytest.mark.parametrize("crop", ["center", "random", "random_scale", "center+flip", "tencrop"])
def test_a_border_is_black_around_the_smaller_crop(crop):
    image, flip, numbers = picture(50, 40), crop in transforms.RANDOM, (0.3, 0.8, 0.1, 0.6)
    plain, padded = Transform(20, 3, crop, flip), Transform(26, 3, crop, flip, pad=3)
    inner, whole = plain.apply(image, numbers), padded.apply(image, numbers)
    assert whole.shape == (*inner.shape[:-2], 26, 26) and whole.dtype == torch.uint8
    assert torch.equal(transforms.without_border(whole, 3), inner) and int(inner.sum()) == int(whole.sum())
    assert torch.equal(transforms.without_border(inner, 0), inner)
    assert padded.fingerprint() not in (plain.fingerprint(), Transform(26, 3, crop, flip).fingerprint())


@pytest.mark.parametrize("pad", [-1, 13, 14])
def test_a_border_that_leaves_no_image_is_refused(pad):
    with pytest.raises(ConfigError, match=f"^pad: expected less than half of the image size 26, got {pad}$"):
        Transform(26, pad=pad)
