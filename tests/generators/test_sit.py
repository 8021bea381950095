"""SiT and DiT: sizes, positions, and what a DDPM over tokens does."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tok1d.config.fields import build_config
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig, position_table

# The published counts of arXiv 2502.03444's code at these lengths with 32 channels, without fixed tables.
COUNTS = [
    (SiT, SiTConfig, "B", 128, 130_328_096),
    (SiT, SiTConfig, "L", 128, 457_857_056),
    (SiT, SiTConfig, "XL", 128, 674_853_152),
    (DiT, DiTConfig, "SL", 64, 306_772_032),
    (DiT, DiTConfig, "L", 64, 457_889_856),
    (DiT, DiTConfig, "XL", 64, 674_890_048),
]


@pytest.mark.parametrize(("cls", "config", "size", "length", "count"), COUNTS)
def test_parameter_counts(cls: Any, config: Any, size: str, length: int, count: int) -> None:
    with torch.device("meta"):
        model = cls(build_config(config, {"size": size, "num_tokens": length}))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_smallest_size() -> None:
    config = build_config(SiTConfig, {"size": "S"})
    assert (config.dim, config.depth, config.heads) == (384, 12, 6)


def test_positions_are_computed_and_distinguish_tokens() -> None:
    model = SiT(SiTConfig(num_tokens=4, token_dim=3, num_classes=2, dim=8, depth=1, heads=2))
    assert not any("positions" in name for name in model.state_dict())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, t, labels = torch.randn(2, 4, 3), torch.tensor([0.5]), torch.tensor([0, 1])
    order = torch.tensor([2, 0, 3, 1])
    assert not torch.allclose(model.net(x[:, order], t, labels), model.net(x, t, labels)[:, order])
    model.net.positions.zero_()
    torch.testing.assert_close(model.net(x[:, order], t, labels), model.net(x, t, labels)[:, order])


def test_grid_positions_need_a_grid() -> None:
    assert position_table("2d", 8, 9).shape == (9, 8)
    with pytest.raises(ConfigError, match="expected a square number for two-dimensional positions, got 6"):
        SiTConfig(num_tokens=6, dim=8, heads=2, positions="2d").check()
    with pytest.raises(ConfigError, match="multiple of 4 for two-dimensional positions, got 6"):
        SiTConfig(num_tokens=9, dim=6, heads=2, positions="2d").check()


class NoiseOracle(nn.Module):
    """The exact noise prediction for constant tokens, and the variance of the posterior."""

    def __init__(self, model: DiT, point: float) -> None:
        super().__init__()
        self.label_embed = model.label_embed
        self.chain, self.point = model.chain, point

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        level = torch.as_tensor(self.chain.alpha_bar)[t].float().reshape(-1, 1, 1)
        noise = (x - level.sqrt() * self.point) / (1 - level).sqrt()
        return torch.cat([noise, -torch.ones_like(noise)], dim=-1)


def dit() -> DiT:
    return DiT(DiTConfig(num_tokens=4, token_dim=3, num_classes=2, dim=8, depth=1, heads=2, schedule="cosine"))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_the_exact_noise_leads_to_the_data(sampler: str) -> None:
    model = dit()
    model.net = NoiseOracle(model, 0.4)
    sampled = model.sample(num=3, steps=50, sampler=sampler)
    torch.testing.assert_close(sampled, torch.full((3, 4, 3), 0.4), atol=1e-3, rtol=0)


def test_the_loss_of_the_exact_noise_is_zero_but_for_the_last_level() -> None:
    model = dit()
    model.net = NoiseOracle(model, 0.4)
    labels, t = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 400, 800])
    terms = model.loss_rows(torch.full((3, 4, 3), 0.4), labels, t=t)
    torch.testing.assert_close(terms["loss_mse"], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(terms["loss_vb"], torch.zeros(3), atol=1e-3, rtol=0)


def test_guidance_leaves_the_variance_conditional() -> None:
    torch.manual_seed(0)
    model = dit()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, t, labels = torch.randn(2, 4, 3), torch.tensor([500, 500]), torch.tensor([0, 1])
    plain, free = model.net(x, t, labels), model.net(x, t, torch.tensor([2, 2]))
    guided = model.field(labels, Guidance(3.0))(x, t)
    torch.testing.assert_close(guided[..., 3:], plain[..., 3:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided[..., :3], free[..., :3] + 3 * (plain - free)[..., :3], atol=1e-4, rtol=1e-4)


def test_dit_refuses_a_chain_of_one_step_and_flow_samplers() -> None:
    with pytest.raises(InputError, match="at least 2, got 1"):
        dit().sample(num=1, steps=1)
    with pytest.raises(InputError, match="'ancestral' or 'ddim', got 'euler'"):
        dit().sample(num=1, sampler="euler")
    assert math.isfinite(dit().sample(num=1, steps=2).sum())
