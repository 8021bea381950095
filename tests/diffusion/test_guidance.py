"""Guidance: the meaning of its scale, its interval, and the number of network calls."""

import pytest
import torch
from torch import Tensor

from tok1d.diffusion.guidance import Guidance, as_guidance, combine, guided


def conditional(x: Tensor, t: Tensor) -> Tensor:
    return 2 * x + t


def unconditional(x: Tensor, t: Tensor) -> Tensor:
    return x - t


def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return conditional(x, t), unconditional(x, t)


def at(t: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, -3.0]]), torch.tensor([t])


def test_scales_one_and_zero() -> None:
    yes, no = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(combine(yes, no, 1.0), yes)
    assert torch.equal(combine(yes, no, 0.0), no)
    torch.testing.assert_close(combine(yes, no, 3.0), yes + 2 * (yes - no))
    assert guided(both, conditional, Guidance(1.0)) is conditional, "no guidance, no second call"
    torch.testing.assert_close(guided(both, conditional, Guidance(0.0))(*at(0.3)), unconditional(*at(0.3)))


def test_the_interval_decides_where_guidance_acts_and_costs() -> None:
    calls: list[str] = []

    def counted_both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        calls.append("both")
        return both(x, t)

    def counted_conditional(x: Tensor, t: Tensor) -> Tensor:
        calls.append("conditional")
        return conditional(x, t)

    field = guided(counted_both, counted_conditional, Guidance(2.0, interval=(0.25, 0.75)))
    for t in (0.0, 0.25, 0.5, 0.75, 0.9):
        inside = 0.25 <= t <= 0.75
        expected = combine(*both(*at(t)), 2.0) if inside else conditional(*at(t))
        torch.testing.assert_close(field(*at(t)), expected)
    assert calls == ["conditional", "both", "both", "both", "conditional"]


def test_the_interval_is_in_data_time() -> None:
    guidance = Guidance(2.0, interval=(0.0, 0.5))
    field = guided(both, conditional, guidance, lambda t: 1 - t / 1000)
    noisy, clean = at(900.0), at(100.0)
    torch.testing.assert_close(field(*noisy), combine(*both(*noisy), 2.0))
    torch.testing.assert_close(field(*clean), conditional(*clean))


def test_linear_schedule_closed_form() -> None:
    scales = Guidance(5.0, schedule="linear").token_scales(4)
    assert scales.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert Guidance(5.0).token_scales(3).tolist() == [5.0, 5.0, 5.0]
    assert Guidance(1.0, schedule="linear").token_scales(7).tolist() == [1.0] * 7, "exactly 1: guidance stays off"
    assert Guidance(0.0, schedule="linear").token_scales(2).tolist() == [0.5, 0.0]


def test_a_number_takes_the_default_schedule_and_an_object_keeps_its_own() -> None:
    assert as_guidance(3, "linear") == Guidance(3.0, schedule="linear")
    own = Guidance(3.0, schedule="constant")
    assert as_guidance(own, "linear") is own


@pytest.mark.parametrize("scale", [-1.0, 0.5, 4.0])
def test_guidance_is_affine_in_the_scale(scale: float) -> None:
    yes, no = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(combine(yes, no, scale), (1 - scale) * no + scale * yes)


def test_a_rounded_time_counts_as_the_end_it_stands_for() -> None:
    guidance = Guidance(2.0, interval=(0.3, 0.7))
    for end in (0.3, 0.7):
        time = torch.tensor([end])
        assert all(guidance.acts_at(float(torch.nextafter(time, torch.tensor([to])))) for to in (0.0, 1.0))
    assert not guidance.acts_at(0.299) and not guidance.acts_at(0.701)
