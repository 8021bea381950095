"""The adversarial loss: closed forms, which parameters each player may change, and when."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tok1d.bottleneck import shared
from tok1d.config.fields import build_config
from tok1d.errors import ConfigError
from tok1d.losses.adversarial import (
    AdversarialConfig,
    AdversarialLoss,
    LeCam,
    adaptive_weight,
    hinge_d_loss,
    linear_g_loss,
    logistic_d_loss,
    logistic_g_loss,
)
from tok1d.losses.augment import augment
from tok1d.losses.discriminator import PatchConfig, PatchDiscriminator, SpectralConv1d


class Critic(nn.Module):
    """A few logits with batch normalisation and a spectral norm; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 4, stride=4), nn.BatchNorm2d(4), SpectralConv1d(4, 3)
        self.calls = 0

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.calls += 1
        # Without the nonlinearity the mean of the logits would be the same for all images: their norm's mean is 0.
        return self.out(self.norm(self.conv(images)).relu().flatten(2)).flatten(1)


def adversarial_loss(**options: object) -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(AdversarialConfig(**{"weight": 0.4, "start": 3, "adaptive": False, **options}), Critic())


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    real, fake = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return real, fake.requires_grad_()


def parts(loss: AdversarialLoss) -> dict[str, Tensor]:
    return copy.deepcopy(dict(loss.state_dict()))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_losses_in_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert hinge_d_loss(real, fake).item() == pytest.approx((0.5 + 1.0) / 2)
    assert linear_g_loss(fake).item() == pytest.approx(0.5)
    zeros = torch.zeros(2, 3, requires_grad=True)
    assert logistic_d_loss(zeros, zeros).item() == pytest.approx(math.log(2))
    assert logistic_g_loss(zeros).item() == pytest.approx(math.log(2))
    # Non-saturating: the gradient is largest where the discriminator is certain, and raises the logits.
    logits = torch.tensor([-20.0, 0.0, 20.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(logistic_g_loss(logits), logits)
    torch.testing.assert_close(gradient, torch.tensor([-1 / 3, -1 / 6, 0.0]), atol=1e-6, rtol=0)
    # The optimal logit is the log of the ratio of real to fake probability: 3 to 1, and 1 to 3.
    a, b = (torch.tensor(sign * math.log(3.0), requires_grad=True) for sign in (1, -1))
    best = logistic_d_loss(torch.stack([a, a, a, b]), torch.stack([a, b, b, b]))
    assert torch.stack(torch.autograd.grad(best, [a, b])).abs().max() < 1e-6


def test_lecam_of_means_ignores_the_spread() -> None:
    torch.manual_seed(0)
    of_means, of_logits, (real, fake) = LeCam(of_means=True), LeCam(), torch.randn(2, 3, 8)
    for lecam in (of_means, of_logits):
        lecam.update(10 * real, 10 * fake)
    expected = (real.mean() - of_means.mean_fake).relu() ** 2 + (of_means.mean_real - fake.mean()).relu() ** 2
    torch.testing.assert_close(of_means(real, fake), expected)
    torch.testing.assert_close(of_means(real.flip(1), fake.flip(1)), expected)
    flat = (torch.full((4,), 2.0), torch.full((4,), -1.0))
    torch.testing.assert_close(of_means(*flat), of_logits(*flat), msg="equal where all logits are")
    assert of_logits(real, fake) > expected


def test_lecam_means_and_formula() -> None:
    lecam = LeCam(decay=0.9)
    for _ in range(3):
        lecam.update(torch.full((2, 4), 2.0), torch.full((2, 4), -1.0))
    share = 1 - 0.9**3
    torch.testing.assert_close((lecam.mean_real, lecam.mean_fake), (torch.tensor(2 * share), torch.tensor(-share)))
    real, fake = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 3.0])
    expected = (1 + share) ** 2 / 2 + (2 * share) ** 2 / 2
    assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-5)


def test_means_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(shared.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(shared.distributed, "all_reduce", lambda x: x.add_(10.0))  # the other one's
    lecam, logits = LeCam(decay=0.0), torch.full((2,), 4.0)
    lecam.update(logits, -logits)
    assert (lecam.mean_real.item(), lecam.mean_fake.item()) == (7.0, 3.0)
    assert logits.tolist() == [4.0, 4.0]


def test_adaptive_weight_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    h, target, critic = torch.randn(7, 5), torch.randn(7, 4), torch.randn(4)
    weight = torch.randn(4, 5, requires_grad=True)
    out = h @ weight.T
    found = adaptive_weight((out - target).square().mean(), -(out @ critic).mean(), weight)
    reconstruction = 2 / target.numel() * (out - target).T @ h
    adversarial_gradient = torch.outer(critic, h.mean(0))
    torch.testing.assert_close(found, reconstruction.norm() / (adversarial_gradient.norm() + 1e-4))
    assert not found.requires_grad
    huge = adaptive_weight(1e6 * out.square().sum(), 0 * out.sum(), weight)
    assert huge.item() == 1e4


def test_the_tokenizers_weight_is_adaptive_and_warmed_up() -> None:
    last = torch.tensor(0.7, requires_grad=True)
    real, fake = pair()[0], None
    for adaptive in (False, True):
        loss = adversarial_loss(adaptive=adaptive, warmup=4)
        values = {}
        for step in (2, 3, 5, 7, 9):
            fake = last * real
            terms = loss.generator_terms(real, fake, step, last, {"loss_reconstruction": (fake - real).square().mean()})
            values[step] = terms["loss_adversarial"].item()
            if adaptive and step > 2:
                plain = adversarial_loss(weight=1.0).generator_terms(real, fake, step, last, {})["loss_adversarial"]
                ratio = adaptive_weight((fake - real).square().mean(), plain, last)
                torch.testing.assert_close(terms["adaptive_weight"], ratio)
        full = values[9]
        assert full != 0 and values == pytest.approx({2: 0, 3: 0, 5: full / 2, 7: full, 9: full})


def test_the_tokenizers_pass_changes_nothing_of_the_discriminator() -> None:
    loss, (real, fake) = adversarial_loss(lecam=0.1), pair()
    before = parts(loss)
    expected = copy.deepcopy(loss.discriminator)(2 * fake - 1)  # in train mode, as in the released code
    terms = loss.generator_terms(real, fake, 5, fake, {})
    torch.testing.assert_close(terms["loss_adversarial"], -0.4 * expected.mean())
    terms["loss_adversarial"].backward()
    assert fake.grad is not None and fake.grad.any()
    assert same(before, parts(loss)) and all(p.grad is None for p in loss.parameters())
    assert all(p.requires_grad for p in loss.parameters())
    loss.discriminator_losses(real, fake, 5)
    changed = {name for name, value in parts(loss).items() if not torch.equal(value, before[name])}
    assert {"lecam.mean_real", "discriminator.norm.running_mean", "discriminator.out.u"} <= changed


def test_before_the_start_the_discriminator_is_not_called() -> None:
    loss, (real, fake) = adversarial_loss(consistency=4.0), pair()
    assert loss.generator_terms(real, fake, 2, fake, {}) == {"loss_adversarial": 0}
    assert loss.discriminator.calls == 0
    idle = loss.discriminator_losses(real, fake, 2)
    active = loss.discriminator_losses(real, fake, 3)
    assert idle.keys() == active.keys()
    for name in ("loss_adversarial", "loss_lecam", "loss_consistency"):
        assert idle[name].item() == 0 < active[name].item()
    sum(idle[name] for name in idle if name.startswith("loss")).backward()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())
    quiet = adversarial_loss(lecam=0.0)
    quiet.discriminator_losses(real, fake, 2)
    assert quiet.discriminator.calls == 0 and quiet.lecam.mean_real == 0


def test_the_running_means_settle_before_the_start() -> None:
    loss, (real, fake) = adversarial_loss(), pair()
    terms = loss.discriminator_losses(real, fake, 1)
    torch.testing.assert_close(loss.lecam.mean_real, 0.001 * terms["logits_real"])
    torch.testing.assert_close(loss.lecam.mean_fake, 0.001 * terms["logits_fake"])


def test_the_discriminators_terms_and_the_parameters_they_reach() -> None:
    loss, (real, fake) = adversarial_loss(lecam=0.1), pair()
    twin = copy.deepcopy(loss)
    terms = loss.discriminator_losses(real, fake, 3)
    logits = [twin.discriminator(2 * x - 1) for x in (real, fake)]
    twin.lecam.update(*logits)
    torch.testing.assert_close(terms["loss_adversarial"], 0.4 * hinge_d_loss(*logits))
    torch.testing.assert_close(terms["loss_lecam"], 0.4 * 0.1 * twin.lecam(*logits))
    (terms["loss_adversarial"] + terms["loss_lecam"]).backward()
    assert fake.grad is None and all(p.grad is not None for p in loss.parameters())
    assert torch.equal(terms["logits_real"], logits[0].mean())


def test_augmentation_and_consistency_follow_the_generator() -> None:
    loss, (real, fake) = adversarial_loss(diff_aug=True, consistency=4.0, lecam=0.0), pair()
    twin = copy.deepcopy(loss.discriminator)
    found = loss.discriminator_losses(real, fake, 3, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    shown = [twin(augment(2 * x - 1, generator=generator)) for x in (real, fake)]
    strong = [augment(2 * x - 1, probability=1.0, cutout=0.5, generator=generator) for x in (real, fake)]
    difference = torch.cat([twin(x) for x in strong]) - torch.cat(shown)
    torch.testing.assert_close(found["loss_adversarial"], 0.4 * hinge_d_loss(*shown))
    torch.testing.assert_close(found["loss_consistency"], 4 * difference.square().mean())
    terms = [
        loss.generator_terms(real, fake, 3, fake, {}, generator=torch.Generator().manual_seed(seed))["loss_adversarial"]
        for seed in (1, 1, 2)
    ]
    assert terms[0] == terms[1] != terms[2]


def test_a_saved_discriminator_resumes_unchanged() -> None:
    loss, (real, fake) = adversarial_loss(), pair()
    loss.discriminator_losses(real, fake, 3)
    torch.manual_seed(9)
    other = AdversarialLoss(loss.config, Critic())
    other.load_state_dict(loss.state_dict())
    assert other.discriminator_losses(real, fake, 4) == loss.discriminator_losses(real, fake, 4)


def test_a_discriminator_learns_to_separate_dark_from_bright() -> None:
    torch.manual_seed(0)
    loss = AdversarialLoss(AdversarialConfig(weight=1.0, start=0), PatchDiscriminator(1, width=4, layers=1))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for step in range(30):
        terms = loss(torch.rand(8, 1, 8, 8), 0.5 * torch.rand(8, 1, 8, 8), step)
        optimizer.zero_grad()
        (terms["loss_adversarial"] + terms["loss_lecam"]).backward()
        optimizer.step()
    assert terms["loss_adversarial"] < 0.2 and terms["logits_real"] > terms["logits_fake"] + 1
    dark = (0.5 * torch.rand(8, 1, 8, 8)).requires_grad_()
    loss.generator_terms(dark, dark, 30, dark, {"loss": dark.mean()})["loss_adversarial"].backward()
    assert dark.grad is not None and dark.grad.mean() < 0, "a step down that gradient makes them brighter"


def test_configuration() -> None:
    config = build_config(AdversarialConfig, {"weight": 0.2, "discriminator": {"name": "patch", "layers": 2}})
    assert config.discriminator == PatchConfig(layers=2) and config.start == 30000
    with pytest.raises(ConfigError, match=r"discriminator\.name.*blur_patch"):
        build_config(AdversarialConfig, {"discriminator": {"name": "blur"}})
    with pytest.raises(ConfigError, match="expected a multiple of 32, got 40"):
        build_config(AdversarialConfig, {"discriminator": {"name": "blur_patch", "width": 40}})
