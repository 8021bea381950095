"""Vector quantisation: the nearest entry, its losses and gradients, and the entropy's extremes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tok1d.bottleneck.shared import code_statistics, count_codes
from tok1d.bottleneck.vq import VQ, entropy_loss


def quantiser(l2: bool, **options: float) -> VQ:
    torch.manual_seed(0)
    return VQ(5, 4, size=7, l2=l2, **options).double()


@pytest.fixture
def z() -> Tensor:
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("l2", [False, True])
def test_every_token_becomes_its_nearest_entry(z: Tensor, l2: bool) -> None:
    layer = quantiser(l2)
    layer.codebook.data.normal_()
    entries, ids, _ = layer.quantise(z)
    tokens, codes = (F.normalize(x, dim=-1) if l2 else x for x in (z, layer.codebook))
    nearest = torch.cdist(tokens, codes).argmin(-1)
    assert torch.equal(ids, nearest)
    torch.testing.assert_close(entries, codes[nearest])
    torch.testing.assert_close(layer.embed(ids), entries)


@pytest.mark.parametrize("l2", [False, True])
def test_gradients_pass_straight_through(z: Tensor, l2: bool) -> None:
    layer, weight = quantiser(l2), torch.randn(2, 3, 4, dtype=torch.float64)
    z.requires_grad_()
    (layer.quantise(z)[0] * weight).sum().backward()
    straight = z.detach().requires_grad_()
    ((F.normalize(straight, dim=-1) if l2 else straight) * weight).sum().backward()
    torch.testing.assert_close(z.grad, straight.grad)
    assert layer.codebook.grad is None


def test_codebook_and_commitment_losses_pull_one_side_each(z: Tensor) -> None:
    layer = quantiser(False, beta=0.3)
    z.requires_grad_()
    _, ids, terms = layer.quantise(z)
    error = (z - layer.codebook[ids]).square().mean()
    torch.testing.assert_close(terms["loss_vq"], error)
    torch.testing.assert_close(terms["loss_commit"], 0.3 * error)
    terms["loss_vq"].backward(retain_graph=True)
    assert z.grad is None and layer.codebook.grad is not None
    layer.codebook.grad = None
    terms["loss_commit"].backward()
    assert z.grad is not None and layer.codebook.grad is None
    assert "loss_entropy" not in terms and "loss_entropy" in quantiser(False, entropy=0.1).quantise(z)[2]


def test_features_to_ids_to_entries() -> None:
    layer, features = quantiser(True), torch.randn(2, 3, 5, dtype=torch.float64)
    ids = layer.encode(features)
    assert ids.dtype == torch.int64 and layer.vocab_size == 7
    torch.testing.assert_close(layer.embed(ids), layer(features)[0])


def test_entropy_is_lowest_for_sharp_even_assignments() -> None:
    sharp_even, sharp_same = 10 * torch.eye(4), 10 * torch.eye(4)[[0, 0, 0, 0]]
    assert entropy_loss(sharp_even, eps=0.0).item() == pytest.approx(-math.log(4))
    assert entropy_loss(sharp_same, eps=1e-9).item() == pytest.approx(0, abs=1e-6)
    assert entropy_loss(torch.zeros(4, 4), eps=0.0).item() == pytest.approx(0, abs=1e-6)  # both entropies are log 4


def test_share_of_the_vocabulary_in_use() -> None:
    counts = count_codes(torch.tensor([[0, 3], [3, 0]]), 8, shared=True)
    assert counts.tolist() == [2, 0, 0, 2, 0, 0, 0, 0]
    found = code_statistics(counts)
    assert found["codes_used"].item() == 0.25 and found["perplexity"].item() == pytest.approx(2)
