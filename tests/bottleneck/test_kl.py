"""The variational bottleneck: its divergence against PyTorch's, its samples, its deterministic encoding."""

import torch
from torch.distributions import Normal, kl_divergence

from tok1d.bottleneck.kl import KL, Posterior


def test_divergence_is_that_of_the_two_normals() -> None:
    posterior = Posterior.of(torch.randn(3, 5, 8))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(posterior.kl(), expected.sum((1, 2)))
    assert Posterior(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).kl().item() == 0


def test_log_variances_are_clamped() -> None:
    moments = torch.cat([torch.zeros(1, 1, 2), torch.tensor([[[-99.0, 99.0]]])], dim=-1)
    assert Posterior.of(moments).logvar.flatten().tolist() == [-30.0, 20.0]


def test_samples_have_the_posterior_moments() -> None:
    posterior = Posterior(torch.full((20000, 1, 1), 2.0), torch.full((20000, 1, 1), -1.0))
    draws = posterior.sample(torch.randn(20000, 1, 1, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(draws.mean(), torch.tensor(2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(), torch.tensor(-0.5).exp(), atol=0.02, rtol=0)


def test_training_decodes_a_sample_and_encoding_gives_the_mean() -> None:
    layer, features = KL(6, 4, weight=0.5), torch.randn(2, 3, 6)
    mean = layer.encode(features)
    noise = torch.randn(2, 3, 4)
    posterior = layer.posterior(features)
    tokens, terms = layer(features, noise)
    torch.testing.assert_close(layer(features, torch.zeros_like(noise))[0], mean)
    torch.testing.assert_close(tokens, mean + posterior.std * noise)
    torch.testing.assert_close(terms["loss_kl"], 0.5 * posterior.kl().mean())
    assert layer.embed(mean) is mean and layer.vocab_size is None


def test_initial_std_is_about_that_before_training() -> None:
    features = 0.1 * torch.randn(2000, 3, 6)
    for std in (1.0, 0.1):
        torch.manual_seed(0)
        found = KL(6, 4, initial_std=std).posterior(features).std.log().mean().exp()
        torch.testing.assert_close(found, torch.tensor(std), atol=0, rtol=0.35)
    torch.manual_seed(0)
    plain = KL(6, 4)
    torch.manual_seed(0)
    assert torch.equal(torch.nn.Linear(6, 8).bias, plain.proj.bias)  # 1 leaves PyTorch's initial values as they are
