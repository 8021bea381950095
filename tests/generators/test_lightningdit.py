"""LightningDiT: sizes, rotary positions, modulation without shift, the direction loss."""

import pytest
import torch
from torch import nn

from tok1d.config.fields import build_config
from tok1d.errors import ConfigError
from tok1d.generators.lightningdit import LightningBlock, LightningDiT, LightningDiTConfig

SIZES = {"token_dim": 3, "num_classes": 2, "dim": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize(("size", "count"), [("B", 130_359_584), ("XL", 674_961_824)])
def test_parameter_counts(size: str, count: int) -> None:
    # The published model on a grid of 16 x 16 latents of 32 channels, without fixed tables.
    with torch.device("meta"):
        model = LightningDiT(build_config(LightningDiTConfig, {"size": size, "num_tokens": 256}))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("size", "millions"), [("1.0B", 1000), ("1.6B", 1600)])
def test_the_large_sizes_have_about_as_many_parameters_as_their_names_say(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = LightningDiT(build_config(LightningDiTConfig, {"size": size}))
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / millions - 1) < 0.1


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_rotary_positions_alone_distinguish_tokens() -> None:
    model = randomised(LightningDiT(LightningDiTConfig(num_tokens=4, **SIZES)))
    x, t, labels = torch.randn(2, 4, 3), torch.tensor([0.5]), torch.tensor([0, 1])
    assert isinstance(model, LightningDiT) and model.net.positions is None
    out, swapped = model.net(x, t, labels), model.net(x.flip(1), t, labels).flip(1)
    assert not torch.allclose(out, swapped)
    # With all rotation angles zero, the model is permutation-equivariant.
    model.net.cos.fill_(1)
    model.net.sin.zero_()
    torch.testing.assert_close(model.net(x.flip(1), t, labels).flip(1), model.net(x, t, labels))


def test_positions_that_do_not_fit_are_refused() -> None:
    LightningDiTConfig(num_tokens=9, **SIZES, rotary="2d", positions="2d").check()
    with pytest.raises(ConfigError, match="expected a square number for two-dimensional positions, got 8"):
        LightningDiTConfig(num_tokens=8, **SIZES, rotary="2d").check()
    with pytest.raises(ConfigError, match="tokens need positions"):
        LightningDiTConfig(**SIZES, rotary="none").check()
    with pytest.raises(ConfigError, match="multiple of 4 for rotary=2d, got 2"):
        LightningDiTConfig(num_tokens=4, **{**SIZES, "heads": 8}, rotary="2d").check()


def test_a_block_without_shift_is_one_whose_shift_is_zero() -> None:
    dim = 8
    plain = randomised(LightningBlock(dim, 2, qk_norm=True, shift=False))
    shifted = LightningBlock(dim, 2, qk_norm=True, shift=True)
    state = plain.state_dict()
    for name in ("modulation.linear.weight", "modulation.linear.bias"):
        scale1, gate1, scale2, gate2 = state[name].chunk(4)
        zero = torch.zeros_like(scale1)
        state[name] = torch.cat([zero, scale1, gate1, zero, scale2, gate2])
    shifted.load_state_dict(state)
    x, c = torch.randn(2, 3, dim), torch.randn(2, 1, dim)
    torch.testing.assert_close(plain(x, c), shifted(x, c))


def test_the_direction_loss_is_a_term_of_its_own_with_its_weight() -> None:
    tokens, labels = torch.randn(3, 4, 3), torch.tensor([0, 1, 1])
    t, noise = torch.tensor([0.2, 0.5, 0.7]), torch.randn(3, 4, 3)
    rows = []
    for weight in (0.0, 1.0, 2.0):
        model = randomised(LightningDiT(LightningDiTConfig(num_tokens=4, **SIZES, direction_weight=weight)))
        rows.append(model.loss_rows(tokens, labels, t=t, noise=noise))  # type: ignore[operator]
    assert rows[0].keys() == {"loss"} and rows[1].keys() == {"loss", "loss_direction"}
    torch.testing.assert_close(rows[2]["loss_direction"], 2 * rows[1]["loss_direction"])
    assert all(torch.equal(row["loss"], rows[0]["loss"]) for row in rows)
