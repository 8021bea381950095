"""Patches, times and labels, and the way back to pixels."""

import math

import pytest
import torch

from tok1d.nn.embed import LabelEmbed, PatchEmbed, TimeEmbed, time_rates, time_waves, unpatchify


def identity_patches(patch: int, channels: int) -> PatchEmbed:
    """A patch embedding that copies pixels, laid out (patch row, patch column, channel)."""
    size = patch**2 * channels
    embed = PatchEmbed(patch, channels, size)
    weight = torch.eye(size).view(size, patch, patch, channels).permute(0, 3, 1, 2)
    embed.proj.weight.data.copy_(weight)
    torch.nn.init.zeros_(embed.proj.bias)
    return embed


@pytest.mark.parametrize(("patch", "channels", "height", "width"), [(2, 3, 2, 3), (3, 1, 4, 2), (1, 2, 3, 3)])
def test_unpatchify_inverts_the_patches(patch: int, channels: int, height: int, width: int) -> None:
    image = torch.randn(2, channels, height * patch, width * patch)
    tokens = identity_patches(patch, channels)(image)
    assert tokens.shape == (2, height * width, patch**2 * channels)
    torch.testing.assert_close(unpatchify(tokens, patch, height, width), image)


def test_patches_are_row_major() -> None:
    image = torch.arange(24.0).view(1, 1, 4, 6)
    tokens = identity_patches(2, 1)(image)
    for index in range(6):
        row, column = divmod(index, 3)
        block = image[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(tokens[0, index], block.flatten())


def test_patches_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match=r"multiples of patch 2, got \(6, 7\)"):
        PatchEmbed(2, 1, 4)(torch.zeros(1, 1, 6, 7))


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_time_embedding_has_cosines_first(scale: float) -> None:
    embed = TimeEmbed(8, frequencies=6, scale=scale)
    waves = []
    embed.fc1.register_forward_hook(lambda module, inputs, output: waves.append(inputs[0]))
    times = [0.0, 0.3, 0.7]
    y = embed(torch.tensor(times))
    rates = [10000 ** (-k / 3) for k in range(3)]
    expected = [
        [math.cos(t * scale * rate) for rate in rates] + [math.sin(t * scale * rate) for rate in rates] for t in times
    ]
    torch.testing.assert_close(waves[0], torch.tensor(expected), atol=1e-4, rtol=0)
    h = embed.fc1(waves[0])
    torch.testing.assert_close(y, embed.fc2(h * h.sigmoid()))


def test_integer_steps_and_float_times_agree() -> None:
    embed = TimeEmbed(8)
    torch.testing.assert_close(embed(torch.tensor([7, 999])), embed(torch.tensor([7.0, 999.0])))


def test_label_dropout_with_given_random_numbers() -> None:
    embed = LabelEmbed(10, 4, dropout=0.25)
    labels, uniforms = torch.tensor([3, 9, 0, 5]), torch.tensor([0.0, 0.2499, 0.25, 0.9])
    dropped = embed.drop(labels, uniforms)
    assert dropped.tolist() == [10, 10, 0, 5]
    assert dropped.dtype == torch.int64
    torch.testing.assert_close(embed(dropped), embed.table.weight[dropped])


def test_label_dropout_has_its_rate() -> None:
    torch.manual_seed(0)
    embed = LabelEmbed(10, 4, dropout=0.25)
    share = (embed.drop(torch.zeros(20000, dtype=torch.int64)) == embed.null).double().mean()
    assert abs(share.item() - 0.25) < 0.02


def test_the_null_row_exists_where_it_is_needed() -> None:
    assert LabelEmbed(10, 4, dropout=0.1).table.num_embeddings == 11
    without = LabelEmbed(10, 4, dropout=0.0)
    assert without.table.num_embeddings == 10 and not without.has_null
    labels = torch.tensor([1, 2])
    assert torch.equal(without.drop(labels, torch.zeros(2)), labels)
    unconditional = LabelEmbed(0, 4, dropout=0.5)
    assert unconditional.table.num_embeddings == 1 and unconditional.has_null and unconditional.null == 0
    assert unconditional(unconditional.drop(torch.zeros(3, dtype=torch.int64))).shape == (3, 4)


def test_an_odd_number_of_time_waves_ends_in_a_zero() -> None:
    t = torch.tensor([0.2, 3.0])
    waves = time_waves(t, time_rates(7), 7)
    torch.testing.assert_close(waves[:, :6], time_waves(t, time_rates(6), 6))
    assert waves.shape == (2, 7) and (waves[:, 6] == 0).all()
