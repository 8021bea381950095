"""DiffAugment: each augmentation in closed form, and what decides whether and how it is applied."""

import pytest
import torch
from torch import Tensor

from tok1d.losses.augment import augment, brightness, contrast, cut_out, saturation, translate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=seeded()) - 1


def test_color_changes_keep_what_they_turn_around() -> None:
    x, half, u = images(2, 3, 5, 4), torch.full((2, 1, 1, 1), 0.5), torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    for change in (brightness, saturation, contrast):
        torch.testing.assert_close(change(x, half), x)
    torch.testing.assert_close(brightness(x, u) - x, (u - 0.5).expand_as(x))
    torch.testing.assert_close(saturation(x, u).mean(1), x.mean(1))
    torch.testing.assert_close(saturation(x, 0 * u), x.mean(1, keepdim=True).expand_as(x))
    torch.testing.assert_close(saturation(x[:, :1], u), x[:, :1])
    torch.testing.assert_close(contrast(x, u).mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(contrast(x, u).std((1, 2, 3)), x.std((1, 2, 3)) * (u + 0.5).flatten())


def test_translation_moves_each_image_its_own_way() -> None:
    x = images(2, 3, 6, 5).requires_grad_()
    dy, dx = torch.tensor([2, -1]).view(2, 1, 1), torch.tensor([0, 3]).view(2, 1, 1)
    moved = translate(x, dy, dx)
    assert torch.equal(moved[0, :, :4], x[0, :, 2:]) and not moved[0, :, 4:].any()
    assert (
        torch.equal(moved[1, :, 1:, :2], x[1, :, :5, 3:]) and not moved[1, :, 0].any() and not moved[1, ..., 2:].any()
    )
    # The gradient is the transposed map.
    (gradient,) = torch.autograd.grad(moved, x, images(2, 3, 6, 5))
    assert torch.equal(gradient, translate(images(2, 3, 6, 5), -dy, -dx))


def test_cutout_may_hang_over_the_border() -> None:
    x, places = torch.ones(3, 2, 8, 8), torch.tensor([0, 4, 8]).view(3, 1, 1)
    cut = cut_out(x, places, torch.full((3, 1, 1), 4), 4)
    assert (cut == 0).sum((1, 2, 3)).tolist() == [2 * 2 * 4, 2 * 4 * 4, 2 * 2 * 4]
    assert not cut[1, :, 2:6, 2:6].any() and not cut[0, :, :2, 2:6].any() and not cut[2, :, 6:, 2:6].any()


def test_probability_zero_is_the_identity_and_one_changes_everything() -> None:
    x = images(4, 3, 16, 16)
    assert torch.equal(augment(x, probability=0.0, generator=seeded()), x)
    for group in ("color", "translation", "cutout"):
        for seed in range(5):
            changed = augment(x, groups=[group], probability=1.0, generator=seeded(seed))
            assert not torch.equal(changed, x)


def test_each_group_falls_on_half_of_the_calls() -> None:
    x, generator = torch.ones(1, 1, 8, 8), seeded()
    cut = sum(bool((augment(x, groups=["cutout"], generator=generator) == 0).any()) for _ in range(400))
    assert cut == pytest.approx(200, abs=40)


def test_the_generator_decides_alone_and_the_gradient_flows() -> None:
    x = images(4, 3, 16, 16).requires_grad_()
    torch.manual_seed(1)
    first = augment(x, probability=1.0, cutout=0.5, generator=seeded(3))
    expected_random = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(expected_random, torch.rand(2)), "the global generator is not touched"
    assert torch.equal(first, augment(x, probability=1.0, cutout=0.5, generator=seeded(3)))
    assert not torch.equal(first, augment(x, probability=1.0, cutout=0.5, generator=seeded(4)))
    (gradient,) = torch.autograd.grad(first.sum(), x)
    assert (gradient != 0).any((1, 2, 3)).all()


def test_samples_stay_in_their_ranges() -> None:
    x, generator = torch.ones(64, 1, 16, 16), seeded()
    moved = augment(x, groups=["translation"], probability=1.0, generator=generator)
    rows = (moved[:, 0] != 0).any(2).sum(1)
    assert rows.min() == 14 and rows.max() == 16, "at most an eighth of 16"
    holes = (augment(x, groups=["cutout"], probability=1.0, cutout=0.5, generator=generator) == 0).sum((1, 2, 3))
    assert holes.max() == 64 and holes.min() >= 16, "8 x 8, a quarter of it when it hangs over a corner"
