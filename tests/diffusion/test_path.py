"""The algebra between data, noise and velocity, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tok1d.diffusion.path import Path, Prediction, expand

KINDS: list[Prediction] = ["data", "noise", "velocity"]
PATHS = [Path("linear"), Path("cosine")]
numbers = st.floats(-10, 10)


def double(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(data=numbers, noise=numbers, t=st.floats(0.02, 0.98), path=st.sampled_from(PATHS))
def test_any_prediction_fixes_the_other_two(data: float, noise: float, t: float, path: Path) -> None:
    x, e, time = double(data), double(noise), torch.tensor([t], dtype=torch.float64)
    x_t, v = path.interpolate(x, e, time), path.velocity(x, e, time)
    known = {"data": x, "noise": e, "velocity": v}
    for kind in KINDS:
        given_kind = (known[kind], kind, x_t, time)
        torch.testing.assert_close(path.to_data(*given_kind), x, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(path.to_noise(*given_kind), e, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(path.to_velocity(*given_kind), v, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(t=st.floats(0.0, 1.0), path=st.sampled_from(PATHS))
def test_velocity_predictions_serve_both_ends(t: float, path: Path) -> None:
    x, e, time = double(0.7), double(-1.3), torch.tensor([t], dtype=torch.float64)
    x_t, v = path.interpolate(x, e, time), path.velocity(x, e, time)
    torch.testing.assert_close(path.to_data(v, "velocity", x_t, time), x)
    torch.testing.assert_close(path.to_noise(v, "velocity", x_t, time), e)


@pytest.mark.parametrize("path", PATHS)
def test_paths_begin_in_noise_and_end_in_data(path: Path) -> None:
    data, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(path.interpolate(data, noise, torch.zeros(3)), noise)
    torch.testing.assert_close(path.interpolate(data, noise, torch.ones(3, dtype=torch.float64)), data)
    alpha, sigma, _, _ = path.coefficients(torch.linspace(0, 1, 11))
    assert (alpha.diff() > 0).all() and (sigma.diff() < 0).all()


def test_cosine_path_preserves_variance() -> None:
    alpha, sigma, _, _ = Path("cosine").coefficients(torch.linspace(0, 1, 11, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(11, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_by_autograd(path: Path) -> None:
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t)
    torch.testing.assert_close(torch.autograd.grad(alpha.sum(), t, retain_graph=True)[0], d_alpha.detach())
    torch.testing.assert_close(torch.autograd.grad(sigma.sum(), t)[0], d_sigma.detach())

    x, e = torch.randn(2, 9, 1, dtype=torch.float64)
    (slope,) = torch.autograd.grad(path.interpolate(x, e, t).sum(), t)
    torch.testing.assert_close(slope, path.velocity(x, e, t.detach())[:, 0])


@pytest.mark.parametrize("path", PATHS)
def test_score_is_the_gradient_of_the_log_density(path: Path) -> None:
    mean, std = 1.5, 0.5
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    x = torch.randn(7, 1, dtype=torch.float64, requires_grad=True)
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t[:, None])
    variance = alpha**2 * std**2 + sigma**2
    marginal = torch.distributions.Normal(alpha * mean, variance.sqrt())
    (score,) = torch.autograd.grad(marginal.log_prob(x).sum(), x)
    x = x.detach()
    centred = (x - alpha * mean) / variance
    velocity = d_alpha * (mean + alpha * std**2 * centred) + d_sigma * sigma * centred
    torch.testing.assert_close(path.score(velocity, x, t), score)


def test_expand_appends_axes() -> None:
    t = torch.arange(3.0)
    assert expand(t, torch.zeros(3, 2, 5, 5)).shape == (3, 1, 1, 1)
    assert expand(t[:1], torch.zeros(3, 2)).shape == (1, 1)
    assert torch.equal(expand(t, torch.zeros(3)), t)
