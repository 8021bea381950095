"""How many patches are masked, which ones, and from what distribution."""

import math

import pytest
import torch

from tok1d.config.fields import build_config
from tok1d.errors import ConfigError
from tok1d.tokenizers.masking import SPREAD, MaskConfig, sample_mask, sample_ratios

UNIFORM = MaskConfig(distribution="uniform", per="sample")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("share", "patches", "masked"), [(0.4, 10, 4), (0.41, 10, 5), (0, 10, 0), (1, 7, 7)])
def test_the_share_is_rounded_up(share: float, patches: int, masked: int) -> None:
    mask = sample_mask(torch.full((5,), share), patches, generator=seeded())
    assert mask.sum(1).tolist() == [masked] * 5


def test_every_sample_masks_its_own_patches_each_as_likely() -> None:
    mask = sample_mask(torch.full((4000,), 0.5), 8, generator=seeded())
    torch.testing.assert_close(mask.float().mean(0), torch.full((8,), 0.5), atol=0.04, rtol=0)
    assert len(mask.unique(dim=0)) == math.comb(8, 4)


def test_uniform_shares_a_sample() -> None:
    ratios = sample_ratios(UNIFORM, 20000, generator=seeded())
    assert ratios.min() >= 0.4 and ratios.max() <= 0.6
    assert ratios.mean().item() == pytest.approx(0.5, abs=0.003)
    assert ratios.var().item() == pytest.approx(0.2**2 / 12, rel=0.05)


def test_the_released_distribution_is_half_a_bell_that_ends_at_the_largest_share() -> None:
    ratios = sample_ratios(MaskConfig(per="sample"), 20000, generator=seeded())
    assert ratios.min() >= 0.4 and ratios.max() <= 0.6
    normal = torch.distributions.Normal(0.6, SPREAD)
    mass = normal.cdf(torch.tensor(0.6)) - normal.cdf(torch.tensor(0.4))
    density = normal.log_prob(torch.tensor([0.4, 0.6])).exp()
    expected = 0.6 + SPREAD**2 * (density[0] - density[1]) / mass  # mean of a truncated normal
    assert ratios.mean().item() == pytest.approx(expected.item(), abs=0.002)


def test_a_batch_may_share_one_share() -> None:
    ratios = sample_ratios(MaskConfig(), 6, generator=seeded())
    assert ratios.unique().numel() == 1
    assert sample_ratios(UNIFORM, 6, generator=seeded()).unique().numel() == 6


@pytest.mark.parametrize("distribution", ["uniform", "truncnorm"])
def test_a_range_of_one_share(distribution: str) -> None:
    config = build_config(MaskConfig, {"low": 0.4, "high": 0.4, "distribution": distribution})
    assert sample_ratios(config, 3).tolist() == pytest.approx([0.4] * 3)


def test_an_empty_range_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^low: expected at most high=0\.2, got 0\.4$"):
        build_config(MaskConfig, {"high": 0.2})
