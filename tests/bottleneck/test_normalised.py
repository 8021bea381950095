"""Per-token standardisation: moments, its relation to LayerNorm, prefixes."""

import pytest
import torch
from torch import nn

from tok1d.bottleneck.normalised import Normalised


def bottleneck(token_dim: int, **options: object) -> Normalised:
    torch.manual_seed(0)
    return Normalised(6, token_dim, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("token_dim", [2, 5, 16])
def test_every_token_has_mean_zero_and_unbiased_variance_one(token_dim: int) -> None:
    tokens = bottleneck(token_dim)(torch.randn(3, 4, 6, dtype=torch.float64))
    assert tokens.shape == (3, 4, token_dim)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(tokens.square().sum(-1) / (token_dim - 1), torch.ones(3, 4, dtype=torch.float64))


def test_it_is_layer_norm_but_for_the_degrees_of_freedom() -> None:
    dim = 5
    layer, features = bottleneck(dim), torch.randn(3, 4, 6, dtype=torch.float64)
    layer_norm = nn.LayerNorm(dim, eps=0.0, elementwise_affine=False)
    torch.testing.assert_close(layer(features), layer_norm(layer.proj(features)) * ((dim - 1) / dim) ** 0.5)


def test_it_commutes_with_dropping_later_tokens() -> None:
    layer, features = bottleneck(4), torch.randn(2, 6, 6, dtype=torch.float64)
    for keep in range(1, 7):
        torch.testing.assert_close(layer(features[:, :keep]), layer(features)[:, :keep])


def test_positive_affine_maps_of_a_token_change_nothing() -> None:
    layer = bottleneck(6)
    nn.init.eye_(layer.proj.weight)
    nn.init.zeros_(layer.proj.bias)
    features = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(3 * features + 7), layer(features))
    torch.testing.assert_close(layer(-features), -layer(features))


def test_eps_is_added_to_the_std_and_off_is_the_projection() -> None:
    features = torch.randn(2, 3, 6, dtype=torch.float64)
    plain, soft = bottleneck(4, normalise=False), bottleneck(4, eps=0.5)
    x = plain(features)
    torch.testing.assert_close(x, plain.proj(features))
    torch.testing.assert_close(soft(features), (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.5))


def test_one_channel_cannot_be_standardised() -> None:
    with pytest.raises(ValueError, match="at least 2 channels, got 1"):
        Normalised(6, 1)
    assert Normalised(6, 1, normalise=False)(torch.zeros(1, 2, 6)).shape == (1, 2, 1)
