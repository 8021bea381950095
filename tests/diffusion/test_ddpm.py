"""The discrete chain against products, Bayes' rule and a target whose optimal denoiser is known."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tok1d.diffusion.ddpm import (
    Chain,
    ancestral,
    cosine_betas,
    ddim,
    discretised_log_likelihood,
    gaussian_kl,
    linear_betas,
    respaced_steps,
)
from tok1d.diffusion.solver import randn_from
from tok1d.errors import InputError

Moments = Callable[..., tuple[float, float]]


def test_schedules() -> None:
    betas = linear_betas()
    assert betas[0] == 1e-4 and betas[-1] == 0.02 and np.allclose(np.diff(betas), (0.02 - 1e-4) / 999)
    level = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    np.testing.assert_allclose(Chain.named("cosine").alpha_bar[:-1], np.array(level[1:-1]) / level[0], rtol=1e-9)
    assert cosine_betas()[-1] == 0.999


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alpha_bar_is_the_product(schedule: str) -> None:
    chain = Chain.named(schedule)
    product = 1.0
    for i, beta in enumerate(chain.betas):
        assert math.isclose(chain.alpha_bar_previous[i], product, rel_tol=1e-9)
        product *= 1 - beta
        assert math.isclose(chain.alpha_bar[i], product, rel_tol=1e-9)


@pytest.mark.parametrize("spec", [250, "10", "ddim25", "5,10,5", [3, 3], 1000, ""])
def test_respacing_keeps_the_signal_levels(spec: Any) -> None:
    chain = Chain.named("linear")
    short = chain.respace(spec)
    np.testing.assert_allclose(short.alpha_bar, chain.alpha_bar[short.step_map], rtol=1e-9)
    assert short.step_map == respaced_steps(1000, spec)


def test_respacing_twice_keeps_original_indices() -> None:
    chain = Chain.named("linear")
    twice = chain.respace(100).respace(10)
    assert twice.step_map[0] == 0 and twice.step_map[-1] == 999
    np.testing.assert_allclose(twice.alpha_bar, chain.alpha_bar[twice.step_map], rtol=1e-9)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), num_steps=st.integers(2, 1200))
def test_respaced_steps_are_increasing_and_keep_the_ends(data: st.DataObject, num_steps: int) -> None:
    count = data.draw(st.integers(2, num_steps))
    kept = respaced_steps(num_steps, str(count))
    assert len(kept) == count and kept[0] == 0 and kept[-1] == num_steps - 1
    assert all(a < b for a, b in itertools.pairwise(kept))
    even = np.linspace(0, num_steps - 1, count)
    assert np.abs(np.array(kept) - even).max() <= 0.5 + 1e-6


@settings(deadline=None, max_examples=100)
@given(num_steps=st.integers(1, 1200), wanted=st.integers(1, 1200))
def test_ddim_strides(num_steps: int, wanted: int) -> None:
    fitting = [s for s in range(1, num_steps + 1) if len(range(0, num_steps, s)) == wanted]
    if fitting:
        assert respaced_steps(num_steps, f"ddim{wanted}") == list(range(0, num_steps, fitting[0]))
    else:
        with pytest.raises(ValueError, match=f"exactly {wanted};"):
            respaced_steps(num_steps, f"ddim{wanted}")


@pytest.mark.parametrize("spec", ["ddim0", "ddim", "ddimx", "ddim-5", "x", "5,,5", "10,0", "-3", "2.5"])
def test_counts_that_are_none_are_one_line(spec: str) -> None:
    with pytest.raises(InputError, match=r"expected a positive number.*got '") as caught:
        respaced_steps(1000, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "advice"), [("ddim37", "; use '37' for evenly spaced steps"), ("ddim1001", "at most 1000")]
)
def test_the_advice_for_a_stride_that_does_not_exist_can_be_followed(spec: str, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        respaced_steps(1000, spec)
    assert len(respaced_steps(1000, "37")) == 37 and len(respaced_steps(1000, "1000")) == 1000


def test_sections_take_their_own_counts() -> None:
    kept = respaced_steps(100, "10,5,2")
    assert len(kept) == 17 and kept[0] == 0
    sections = [range(0, 34), range(34, 67), range(67, 100)]
    assert [sum(k in section for k in kept) for section in sections] == [10, 5, 2]
    assert {section[0] for section in sections} | {section[-1] for section in sections} <= set(kept)
    with pytest.raises(ValueError, match="cannot take 40 steps from a section of 34"):
        respaced_steps(100, "40,5,2")


def test_posterior_by_bayes_rule() -> None:
    chain = Chain.named("linear").respace(20)
    data, x_t = 0.7, -0.4
    for i in range(1, len(chain)):
        beta, previous = chain.betas[i], chain.alpha_bar_previous[i]
        # prior x_{t-1} ~ N(sqrt(previous) x_0, 1 - previous), likelihood x_t ~ N(sqrt(1 - beta) x_{t-1}, beta)
        precision = 1 / (1 - previous) + (1 - beta) / beta
        mean = (math.sqrt(previous) * data / (1 - previous) + math.sqrt(1 - beta) * x_t / beta) / precision
        assert math.isclose(chain.posterior_variance[i], 1 / precision, rel_tol=1e-9)
        assert math.isclose(chain.posterior_log_variance[i], math.log(1 / precision), rel_tol=1e-9)
        ours = chain.posterior_mean(torch.full((1, 1), data), torch.full((1, 1), x_t), torch.tensor([i]))
        assert math.isclose(ours.item(), mean, rel_tol=1e-4, abs_tol=1e-6)
    assert chain.posterior_variance[0] == 0
    assert chain.posterior_log_variance[0] == chain.posterior_log_variance[1], "the first has no logarithm of its own"


def test_noising_and_its_inverse() -> None:
    torch.manual_seed(0)
    chain = Chain.named("linear")
    data, noise, t = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0, 500, 999])
    x_t = chain.noised(data, noise, t)
    level = torch.tensor(chain.alpha_bar[[0, 500, 999]], dtype=torch.float32)[:, None, None]
    torch.testing.assert_close(x_t, level.sqrt() * data + (1 - level).sqrt() * noise)
    torch.testing.assert_close(chain.data_from_noise(x_t, noise, t), data, atol=1e-3, rtol=1e-3)


def test_learned_variance_lies_between_posterior_and_beta() -> None:
    chain, like = Chain.named("linear"), torch.zeros(3, 2)
    t = torch.tensor([1, 500, 999])
    low = torch.tensor(np.log(chain.posterior_variance[[1, 500, 999]]), dtype=torch.float32)[:, None].expand(3, 2)
    high = torch.tensor(np.log(chain.betas[[1, 500, 999]]), dtype=torch.float32)[:, None].expand(3, 2)
    torch.testing.assert_close(chain.log_variance(None, t, like), low)
    torch.testing.assert_close(chain.log_variance(like - 1, t, like), low)
    torch.testing.assert_close(chain.log_variance(like + 1, t, like), high)
    torch.testing.assert_close(chain.log_variance(like, t, like), (low + high) / 2)


def test_gaussian_kl_against_torch() -> None:
    torch.manual_seed(0)
    mean1, log_variance1, mean2, log_variance2 = torch.randn(4, 5, 3, dtype=torch.float64)
    normals = [
        torch.distributions.Normal(mean, (log_variance / 2).exp())
        for mean, log_variance in ((mean1, log_variance1), (mean2, log_variance2))
    ]
    expected = torch.distributions.kl_divergence(*normals)
    torch.testing.assert_close(gaussian_kl(mean1, log_variance1, mean2, log_variance2), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.3, 0.05), (-0.97, 0.2), (2.0, 1.0), (0.0, 0.002)])
def test_discretised_likelihood_sums_to_one(mean: float, std: float) -> None:
    levels = -1 + 2 * torch.arange(256, dtype=torch.float64) / 255
    log_scale = torch.full_like(levels, math.log(std))
    probabilities = discretised_log_likelihood(levels, torch.full_like(levels, mean), log_scale).exp()
    assert abs(probabilities.sum().item() - 1) < 1e-6
    exact = torch.distributions.Normal(mean, std)
    edges = torch.cat([torch.tensor([-torch.inf]), levels[:-1] + 1 / 255, torch.tensor([torch.inf])])
    bins = exact.cdf(edges[1:]) - exact.cdf(edges[:-1])
    torch.testing.assert_close(probabilities, bins, atol=1e-3, rtol=0)  # the tanh form of the normal CDF


def test_impossible_values_have_the_floor_probability() -> None:
    value = discretised_log_likelihood(torch.zeros(1), torch.full((1,), 50.0), torch.zeros(1))
    torch.testing.assert_close(value, torch.tensor([math.log(1e-12)]))


def output_leaves(batch: int = 4) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    noise, raw = torch.randn(2, batch, 2, 3, generator=source)
    return noise.requires_grad_(), raw.requires_grad_()


def test_the_bound_trains_the_variance_alone() -> None:
    chain = Chain.named("linear")
    data, noise = torch.rand(4, 2, 3) * 2 - 1, torch.randn(4, 2, 3)
    t = torch.tensor([0, 1, 400, 999])
    predicted, raw = output_leaves()
    terms = chain.losses(lambda x, s: torch.cat([predicted, raw], dim=1), data, noise, t)
    assert terms["mse"].shape == terms["vb"].shape == (4,)
    of_vb = torch.autograd.grad(terms["vb"].sum(), [predicted, raw], retain_graph=True, allow_unused=True)
    assert of_vb[0] is None or not of_vb[0].any()
    assert of_vb[1] is not None and (of_vb[1].flatten(1).abs().sum(1) > 0).all(), "every step, the first included"
    of_mse = torch.autograd.grad(terms["mse"].sum(), [predicted, raw], allow_unused=True)
    assert of_mse[0] is not None and of_mse[0].abs().min() > 0
    assert of_mse[1] is None or not of_mse[1].any()


def test_terms_against_torch_distributions() -> None:
    chain = Chain.named("linear")
    data, noise = torch.rand(4, 2, 3) * 2 - 1, torch.randn(4, 2, 3)
    t = torch.tensor([5, 50, 400, 999])
    predicted, raw = (leaf.detach() for leaf in output_leaves())
    terms = chain.losses(lambda x, s: torch.cat([predicted, raw], dim=1), data, noise, t)
    torch.testing.assert_close(terms["mse"], (predicted - noise).square().mean((1, 2)))
    x_t = chain.noised(data, noise, t)
    for row, step in enumerate(t.tolist()):
        variance, one = chain.posterior_variance[step], slice(row, row + 1)
        fraction = (raw[row].double() + 1) / 2
        log_variance = fraction * math.log(chain.betas[step]) + (1 - fraction) * math.log(variance)
        guess = chain.data_from_noise(x_t[one], predicted[one], t[one])
        means = [chain.posterior_mean(x, x_t[one], t[one])[0].double() for x in (data[one], guess)]
        truth = torch.distributions.Normal(means[0], math.sqrt(variance))
        model = torch.distributions.Normal(means[1], (log_variance / 2).exp())
        bits = torch.distributions.kl_divergence(truth, model).mean() / math.log(2)
        torch.testing.assert_close(terms["vb"][row].double(), bits, atol=1e-4, rtol=1e-4)


def test_the_bound_at_the_first_step_is_a_likelihood() -> None:
    chain = Chain.named("linear")
    data, noise, t = torch.zeros(1, 1, 2), torch.randn(1, 1, 2), torch.tensor([0])
    vb = chain.losses(lambda x, s: torch.cat([noise, torch.full_like(noise, -1)], dim=1), data, noise, t)["vb"]
    # perfect noise: the mean is the data, the variance the posterior's, the bin [-1/255, 1/255]
    z = 1 / 255 / math.exp(chain.posterior_log_variance[1] / 2)
    probability = math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    torch.testing.assert_close(vb, torch.tensor([-math.log2(probability)]), atol=1e-3, rtol=1e-3)


def test_fixed_variance_has_the_noise_term_only() -> None:
    terms = Chain.named("linear").losses(
        lambda x, s: torch.zeros_like(x),
        torch.zeros(2, 1),
        torch.ones(2, 1),
        torch.tensor([3, 9]),
        learned_variance=False,
    )
    assert set(terms) == {"mse"} and terms["mse"].tolist() == [1, 1]


def perfect_noise(target: Any, chain: Chain) -> Callable[[Tensor, Tensor], Tensor]:
    """E[noise | x_t] of the target, indexed by the original step, as a trained network would be."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        level = torch.from_numpy(chain.alpha_bar)[t][:, None]
        return target.noise(x, level.sqrt(), (1 - level).sqrt())

    return network


def test_ancestral_samples_have_the_moments_of_the_target(target: Any, moments: Moments) -> None:
    chain = Chain.named("linear")
    errors = []
    for steps in (25, 100, 400):
        short = chain.respace(steps)
        mean, std = moments(
            lambda x, randn, c=short: ancestral(perfect_noise(target, chain), x, c, randn, learned_variance=False),
            steps,
        )
        errors.append(max(abs(mean - target.mean), abs(std - target.std)))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01, errors


def test_the_exact_reverse_variance_makes_a_coarse_chain_exact(target: Any, moments: Moments) -> None:
    chain = Chain.named("linear").respace(100)

    def network(x: Tensor, t: Tensor) -> Tensor:
        index = torch.tensor([chain.step_map.index(int(step)) for step in t])
        level = torch.from_numpy(chain.alpha_bar)[index][:, None]
        noise = target.noise(x, level.sqrt(), (1 - level).sqrt())
        # Var(x_{t-1} | x_t) = posterior variance + (weight of x_0)^2 Var(x_0 | x_t)
        left = target.std**2 * (1 - level) / (level * target.std**2 + 1 - level)
        low, beta = (torch.from_numpy(table)[index][:, None] for table in (chain.posterior_log_variance, chain.betas))
        exact = low.exp() + torch.from_numpy(chain.posterior_mean_data)[index][:, None] ** 2 * left
        fraction = (exact.log() - low) / (beta.log() - low)
        return torch.cat([noise, (2 * fraction - 1).expand_as(noise)], dim=1)

    mean, std = moments(lambda x, randn: ancestral(network, x, chain, randn), 100)
    # the last step adds no noise: the variance of x_0 given x_1 is missing
    level = chain.alpha_bar[0]
    variance_lost = target.std**2 * (1 - level) / (level * target.std**2 + 1 - level)
    assert abs(mean - target.mean) < 0.02
    assert abs(std - math.sqrt(target.std**2 - variance_lost)) < 1e-3


def test_ddim_samples_have_the_moments_of_the_target(target: Any, moments: Moments) -> None:
    chain = Chain.named("linear")
    errors = []
    for steps in (50, 100, 200):
        mean, std = moments(
            lambda x, randn, n=steps: ddim(perfect_noise(target, chain), x, chain.respace(n), learned_variance=False), 0
        )
        # the probability flow keeps the standardised value; the start is N(0, 1), not quite the chain's last marginal
        last = chain.alpha_bar[-1]
        spread = math.sqrt(last * target.std**2 + 1 - last)
        errors.append(
            max(abs(mean - target.mean * (1 - math.sqrt(last) * target.std / spread)), abs(std - target.std / spread))
        )
    assert errors[-1] < 0.01 and errors[0] > 1.6 * errors[1] > 2.5 * errors[2], errors


def test_ddim_with_full_eta_is_ancestral(target: Any) -> None:
    chain = Chain.named("linear")
    short, network = chain.respace(30), perfect_noise(target, chain)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with_eta = ddim(network, x, short, randn_from(torch.Generator().manual_seed(1)), eta=1.0, learned_variance=False)
    reference = ancestral(network, x, short, randn_from(torch.Generator().manual_seed(1)), learned_variance=False)
    torch.testing.assert_close(with_eta, reference, atol=1e-4, rtol=1e-4)


def test_one_step_of_perfect_noise_recovers_the_data() -> None:
    chain = Chain.named("linear").respace(10)
    source = torch.Generator().manual_seed(0)
    data = torch.randn(3, 2, dtype=torch.float64, generator=source)

    def network(x: Tensor, t: Tensor) -> Tensor:
        level = torch.from_numpy(Chain.named("linear").alpha_bar)[t][:, None]
        return (x - level.sqrt() * data) / (1 - level).sqrt()

    start = torch.randn(3, 2, dtype=torch.float64, generator=source)
    out = ancestral(network, start, chain, randn_from(source), learned_variance=False)
    torch.testing.assert_close(out, data, atol=1e-4, rtol=0)
    torch.testing.assert_close(ddim(network, start, chain, learned_variance=False), data, atol=1e-4, rtol=0)


def test_samplers_pass_original_steps_to_the_network_and_are_traced() -> None:
    chain, steps_received, states = Chain.named("linear").respace(4), [], []

    def network(x: Tensor, t: Tensor) -> Tensor:
        steps_received.append(t.tolist())
        return torch.zeros(x.shape[0], 2 * x.shape[1])

    out = ancestral(network, torch.ones(2, 3), chain, torch.randn_like, trace=states.append)
    assert steps_received == [[step] * 2 for step in (999, 666, 333, 0)]
    assert len(states) == 4 and torch.equal(states[-1], out)


def test_temperature_zero_removes_the_noise() -> None:
    chain = Chain.named("linear").respace(5)
    runs = [
        ancestral(lambda x, t: torch.cat([x, x], 1), torch.ones(2, 3), chain, torch.randn_like, temperature=temperature)
        for temperature in (0.0, 0.0, 1.0)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
