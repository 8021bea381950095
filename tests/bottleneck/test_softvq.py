"""Soft quantisation: convex combinations, its two limits, and where gradients go."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tok1d.bottleneck.softvq import SoftVQ


def quantiser(**options: object) -> SoftVQ:
    torch.manual_seed(0)
    layer = SoftVQ(5, 3, size=6, **{"num_codebooks": 2, **options}).double()  # type: ignore[arg-type]
    layer.codebook.data.normal_()
    return layer


@pytest.fixture
def z() -> Tensor:
    return torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("l2", [False, True])
def test_tokens_are_the_stated_combination_of_their_own_codebook(z: Tensor, l2: bool) -> None:
    layer = quantiser(l2=l2, tau=0.5)
    found = layer.quantise(z)[0]
    for i in range(4):  # the first two tokens belong to the first codebook, the others to the second
        codes = layer.codebook[i // 2]
        token = z[:, i]
        if l2:
            codes, token = F.normalize(codes, dim=-1), F.normalize(token, dim=-1)
        weights = (token @ codes.T / 0.5).softmax(-1)
        torch.testing.assert_close(found[:, i], weights @ codes)


def test_on_the_sphere_results_lie_in_the_unit_ball(z: Tensor) -> None:
    found = quantiser().quantise(z)[0]
    assert (found.norm(dim=-1) <= 1).all()
    assert (found.norm(dim=-1) < 0.999).any()  # and are no entries


def test_a_cold_temperature_gives_entries_and_a_hot_one_the_mean(z: Tensor) -> None:
    cold, hot = quantiser(tau=1e-4), quantiser(tau=1e6)
    found, ids, terms = cold.quantise(z)
    codes = F.normalize(cold.codebook, dim=-1)
    own = torch.stack([codes[n][ids[:, n]] for n in range(2)], dim=1).flatten(1, 2)
    torch.testing.assert_close(found, own)
    assert terms["max_weight"].item() == pytest.approx(1)
    mean = codes.mean(1).repeat_interleave(2, 0).expand(2, -1, -1)
    torch.testing.assert_close(hot.quantise(z)[0], mean, atol=1e-5, rtol=0)


def test_the_codebook_learns_from_the_combination_alone(z: Tensor) -> None:
    layer = quantiser(entropy=0.1)
    tokens, _, terms = layer.quantise(z.requires_grad_())
    (gradient,) = torch.autograd.grad(terms["loss_entropy"], layer.codebook, allow_unused=True, retain_graph=True)
    assert gradient is None
    assert torch.autograd.grad(tokens.sum(), layer.codebook)[0].abs().sum() > 0


def test_encoding_is_the_training_pass() -> None:
    layer, features = quantiser(), torch.randn(2, 4, 5, dtype=torch.float64)
    tokens = layer.encode(features)
    torch.testing.assert_close(layer(features)[0], tokens)
    assert layer.embed(tokens) is tokens and layer.vocab_size is None
