"""Residual levels of VQ and SoftVQ: each quantises the residual of the former, and a token is the sum of the levels."""

import pytest
import torch
from torch import Tensor

from tok1d.bottleneck.residual import ResidualVQ
from tok1d.bottleneck.softvq import SoftVQ


def quantiser(levels: int = 3, **options: float) -> ResidualVQ:
    torch.manual_seed(0)
    layer = ResidualVQ(5, 4, levels=levels, size=7, **options).double()
    for level in layer.codebooks:
        level.get_parameter("codebook").data.normal_()
    return layer


@pytest.fixture
def z() -> Tensor:
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_each_level_selects_the_entry_nearest_to_the_residual_and_a_token_is_their_sum(z: Tensor) -> None:
    layer = quantiser()
    layer.proj = torch.nn.Identity()
    entries, ids, terms = layer.quantise(z)
    rest, losses = z, []
    for level, codebook in enumerate(layer.codebooks):
        codes = codebook.get_parameter("codebook")
        nearest = torch.cdist(rest, codes).argmin(-1)
        assert torch.equal(ids[:, level::3], nearest)  # the ids of a token are next to each other
        losses.append((rest - codes[nearest]).square().mean())
        rest = rest - codes[nearest]
    torch.testing.assert_close(entries, z - rest)
    torch.testing.assert_close(layer.embed(ids), z - rest)
    assert torch.equal(layer.encode(z), ids) and (ids.shape, layer.vocab_size) == ((2, 9), 7)
    torch.testing.assert_close(terms["loss_vq"], torch.stack(losses).mean())
    torch.testing.assert_close(terms["loss_commit"], 0.25 * torch.stack(losses).mean())


def test_digits_are_found_and_each_level_divides_the_error_by_ten() -> None:
    layer = ResidualVQ(0, 1, levels=3, size=10).double()
    for i, level in enumerate(layer.codebooks):
        level.get_parameter("codebook").data = (torch.arange(10.0, dtype=torch.float64)[:, None] - 4.5) / 10**i
    digits = torch.randint(10, (50, 3), generator=torch.Generator().manual_seed(0))
    z = ((digits - 4.5) * torch.tensor([1, 0.1, 0.01], dtype=torch.float64)).sum(1)[None, :, None]
    ids = layer.encode(z)
    assert torch.equal(ids.view(50, 3), digits)
    errors = []
    for levels in (1, 2, 3):
        visible = (torch.arange(150) % 3 < levels).expand(1, -1)
        errors.append(float((layer.embed(ids, visible) - z).detach().abs().max()))
    assert 0.2 < errors[0] < 0.496 and 0.02 < errors[1] < 0.046 and errors[2] < 1e-12


def test_an_incomplete_token_is_the_sum_of_its_first_levels(z: Tensor) -> None:
    layer = quantiser()
    ids = layer.encode(torch.randn(2, 3, 5, dtype=torch.float64))
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[0, :4] = first[1, :8] = True
    for row, count in ((0, 4), (1, 8)):
        cut = layer.embed(ids[row : row + 1, :count])
        assert cut.shape == (1, -(-count // 3), 4)
        torch.testing.assert_close(cut[0], layer.embed(ids, first)[row, : cut.shape[1]])
    assert not torch.allclose(layer.embed(ids, first)[0, 1], layer.embed(ids)[0, 1])


def test_gradients_pass_straight_through_and_reach_every_level(z: Tensor) -> None:
    layer, weight = quantiser(), torch.randn(2, 3, 4, dtype=torch.float64)
    z.requires_grad_()
    entries, _, terms = layer.quantise(z)
    (entries * weight).sum().backward(retain_graph=True)
    torch.testing.assert_close(z.grad, weight)
    terms["loss_vq"].backward()
    assert all(level.get_parameter("codebook").grad.any() for level in layer.codebooks)  # type: ignore[union-attr]


def test_revival_moves_unused_entries_of_every_level(z: Tensor) -> None:
    layer = quantiser(revival=True).train()
    before = [level.get_parameter("codebook").clone() for level in layer.codebooks]
    layer(torch.randn(2, 3, 5, dtype=torch.float64))
    assert all(not torch.equal(old, new.get_parameter("codebook")) for old, new in zip(before, layer.codebooks))


@pytest.mark.parametrize("residual", [True, False])
def test_codebooks_of_soft_vq_are_parts_or_levels(z: Tensor, residual: bool) -> None:
    torch.manual_seed(0)
    layer = SoftVQ(5, 4, size=6, num_codebooks=3, l2=False, tau=0.5, residual=residual).double()
    layer.codebook.data.normal_()
    found, ids, terms = layer.quantise(z)
    expected, rest = torch.zeros_like(z), z
    for i, codes in enumerate(layer.codebook):
        mixed = (rest @ codes.T / 0.5).softmax(-1) @ codes
        if residual:
            expected, rest = expected + mixed, rest - mixed
        else:
            expected[:, i] = mixed[:, i]
    torch.testing.assert_close(found, expected)
    assert ids.shape == ((2, 3, 3) if residual else (2, 3, 1)) and 0 < terms["codes_used"] <= 1
    layer.proj = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(layer.proj.weight)
    torch.testing.assert_close(layer.encode(z), found)


def test_soft_levels_with_a_low_temperature_reduce_the_error() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 200, 2, dtype=torch.float64)
    errors = []
    for levels in (1, 2, 3):
        layer = SoftVQ(2, 2, size=4, num_codebooks=levels, l2=False, tau=0.01, residual=True).double()
        corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
        layer.codebook.data = torch.stack([corners / 2**i for i in range(levels)])
        errors.append(float((layer.quantise(z)[0] - z).detach().square().mean()))
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]
