"""Generators of whole sequences: statistics, classes, guidance, samplers, guidance-free training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance, combine
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.generators.lightningdit import LightningDiT, LightningDiTConfig
from tok1d.generators.sequence import FlowModel, SequenceModel
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig
from tok1d.generators.usit import USiT, USiTConfig
from tok1d.zoo.transfer import transfer

KINDS: dict[str, tuple[Any, Any]] = {
    "sit": (SiT, SiTConfig),
    "dit": (DiT, DiTConfig),
    "lightningdit": (LightningDiT, LightningDiTConfig),
    "usit": (USiT, USiTConfig),
}
FLOWS = ["sit", "lightningdit", "usit"]
K, D, CLASSES = 4, 3, 5
LABELS = torch.tensor([0, 3, 4])


def build(kind: str, seed: int = 0, **options: Any) -> Any:
    """A small model with random weights everywhere, also where the initialisation is zero."""
    cls, config = KINDS[kind]
    sizes = {"num_tokens": K, "token_dim": D, "num_classes": CLASSES, "dim": 16, "depth": 3, "heads": 2, "steps": 4}
    config = config(**{**sizes, **options})
    config.check()
    model = cls(config)
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return model.eval()


def tokens(num: int = 3) -> Tensor:
    return torch.randn(num, K, D, generator=torch.Generator().manual_seed(7)) * torch.tensor([0.5, 1, 2]) + 1


class Calls:
    """The rows of every call of a network."""

    def __init__(self, model: SequenceModel) -> None:
        self.rows: list[int] = []
        model.net.register_forward_hook(lambda module, inputs, output: self.rows.append(len(inputs[0])))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_samples_and_rows_of_their_own(kind: str) -> None:
    model = build(kind)
    one = model.sample(LABELS, generator=torch.Generator().manual_seed(1))
    assert one.shape == (3, K, D) and torch.isfinite(one).all()
    assert torch.equal(one, model.sample(LABELS, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(one, model.sample(LABELS, generator=torch.Generator().manual_seed(2)))
    rows = model.sample(LABELS, guidance=2.0, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = model.sample(LABELS[1:2], guidance=2.0, generator=[torch.Generator().manual_seed(1)])
    torch.testing.assert_close(rows[1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_class_ids_the_null_class_is_used(kind: str) -> None:
    model = build(kind)
    free = model.sample(num=3)
    if kind in FLOWS:  # of a DiT the variance stays conditional
        torch.testing.assert_close(free, model.sample(LABELS, guidance=0.0), atol=1e-5, rtol=1e-5)
    null = torch.full((3,), model.label_embed.null)
    starts = iter([torch.randn(3, K, D, generator=torch.Generator().manual_seed(0))])

    def noise(x: Tensor) -> Tensor:
        return next(starts, torch.zeros_like(x))

    with torch.no_grad():
        sampled = model.make_tokens(null, K, Guidance(), SampleSettings(steps=4, temperature=0.0), noise)
    same_start = model.sample(num=3, temperature=0.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampled, same_start)
    unconditional = build(kind, num_classes=0)
    assert unconditional.sample(num=2).shape == (2, K, D)
    assert unconditional.losses((tokens(), LABELS), 0.0)  # labels of the data are not read
    with pytest.raises(InputError, match="unconditional"):
        unconditional.sample(LABELS)
    with pytest.raises(InputError, match="no classes or no null class"):
        unconditional.sample(num=2, guidance=2.0)
    with pytest.raises(InputError, match="finite number >= 0, got nan"):
        unconditional.sample(num=2, temperature=float("nan"))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_costs_a_second_row_only_inside_its_interval(kind: str) -> None:
    model = build(kind)
    calls = Calls(model)
    plain = model.sample(LABELS, steps=4)
    assert calls.rows == [3] * 4
    calls.rows.clear()
    outside = model.sample(LABELS, steps=4, guidance=Guidance(3.0, interval=(2.0, 3.0)))
    assert torch.equal(outside, plain) and calls.rows == [3] * 4
    calls.rows.clear()
    late = model.sample(LABELS, steps=4, guidance=Guidance(3.0, interval=(0.5, 1.0)))
    assert calls.rows == [3, 3, 6, 6] and not torch.equal(late, plain)
    calls.rows.clear()
    model.sample(LABELS, steps=4, guidance=3.0)
    assert calls.rows == [6] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_autoguidance(kind: str) -> None:
    model, weak = build(kind), build(kind, seed=1, dim=8, depth=1)
    plain = model.sample(LABELS)
    assert torch.equal(plain, model.sample(LABELS, guidance=Guidance(2.5, weak_model=model))), "with itself: no effect"
    guided = model.sample(LABELS, guidance=Guidance(2.5, weak_model=weak))
    assert not torch.allclose(guided, plain)
    x, t = tokens(), torch.tensor([0.4])
    if kind == "dit":
        t = torch.tensor([600])
    field = model.field(LABELS, Guidance(2.5, weak_model=weak))
    expected = combine(model.net(x, t, LABELS), weak.net(x, t, LABELS), 2.5)
    torch.testing.assert_close(field(x, t)[..., :D], expected[..., :D])
    assert build(kind, class_dropout=0.0).sample(LABELS, guidance=Guidance(2.5, weak_model=weak)).shape == (3, K, D)


def test_a_weak_model_must_fit() -> None:
    model, other = build("sit"), build("sit")
    with pytest.raises(InputError, match="path=linear, got cosine"):
        model.sample(LABELS, guidance=Guidance(2.0, weak_model=build("sit", path="cosine")))
    with pytest.raises(InputError, match="name=sit, got lightningdit"):
        model.sample(LABELS, guidance=Guidance(2.0, weak_model=build("lightningdit")))
    other.fit_statistics([tokens()])
    with pytest.raises(InputError, match="token_mean differs"):
        model.sample(LABELS, guidance=Guidance(2.0, weak_model=other))


@pytest.mark.parametrize(("kind", "statistics"), [("sit", "scalar"), ("lightningdit", "channel"), ("dit", "none")])
def test_statistics_are_those_of_all_batches_and_round_trip(kind: str, statistics: str) -> None:
    model, data = build(kind, statistics=statistics), tokens(64) + 1000  # far from zero: sums of squares would cancel
    model.fit_statistics(iter(data.split(10)))
    axes = {"scalar": (0, 1, 2), "channel": (0, 1)}
    if statistics in axes:
        torch.testing.assert_close(model.token_mean, data.mean(axes[statistics]).reshape(-1))
        std = data.double().std(axes[statistics], unbiased=False).float().reshape(-1)
        torch.testing.assert_close(model.token_std, std, rtol=1e-4, atol=0)
        assert model.normalise(data).mean(axes[statistics]).abs().max() < 1e-3
    else:
        assert torch.equal(model.normalise(data), data)
    torch.testing.assert_close(model.denormalise(model.normalise(data)), data)
    again = build(kind, statistics=statistics)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.token_std, model.token_std), "kept with the weights"


SCALES = torch.tensor([0.01, 1.0, 30.0, 500.0])[:, None]  # of the tokens at the K positions
SHIFTS = torch.tensor([5.0, -2.0, 100.0, 0.0])[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_positions_give_every_position_unit_variance(kind: str) -> None:
    model = build(kind, statistics="position")
    plain = torch.randn(400, K, D, generator=torch.Generator().manual_seed(2))
    data = SHIFTS + SCALES * plain
    model.fit_statistics(iter(data.split(30)))
    assert model.token_mean.shape == model.token_std.shape == (1, K, 1)
    normalised = model.normalise(data)
    torch.testing.assert_close(normalised.std((0, 2), unbiased=False), torch.ones(K), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.mean((0, 2)), torch.zeros(K), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.token_std[0, :, 0], SCALES[:, 0], rtol=0.1, atol=0)
    torch.testing.assert_close(model.normalise(data[:, :2]), normalised[:, :2])
    torch.testing.assert_close(model.denormalise(normalised), data)
    unmeasured = build(kind, statistics="position")
    raw, own = model.sample(LABELS), unmeasured.sample(LABELS)
    torch.testing.assert_close(raw, own * model.token_std + model.token_mean)
    again = build(kind, statistics="position")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.sample(LABELS), raw), "kept with the weights"
    with pytest.raises(DataError, match="expected 4 tokens of every image, got 3"):
        model.fit_statistics([data[:, :3]])
    with pytest.raises(DataError, match="vary at every position"):
        model.fit_statistics([data * torch.tensor([1.0, 0, 1, 1])[:, None]])


def test_statistics_of_positions_follow_a_change_of_length() -> None:
    source, model = build("sit", statistics="position"), build("sit", statistics="position", num_tokens=2)
    source.token_std.copy_(torch.arange(1.0, 5)[None, :, None])
    transfer(source, model)
    assert model.token_std.flatten().tolist() == [1, 2]


def test_statistics_of_nothing_are_refused() -> None:
    model = build("lightningdit")
    for batches in ([], [torch.ones(2, K, D)], [torch.full((2, K, D), torch.nan)]):
        with pytest.raises(DataError, match="token statistics"):
            model.fit_statistics(batches)
    assert torch.equal(model.token_std, torch.ones(D)), "nothing half-measured stays"


class Oracle(nn.Module):
    """The exact velocity of independent normal(mean, std^2) numbers on the linear path."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.label_embed = build("sit").label_embed

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1)
        marginal = (t * self.std) ** 2 + (1 - t) ** 2
        data = self.mean + t * self.std**2 / marginal * (x - t * self.mean)
        return data - (1 - t) / marginal * (x - t * self.mean)


def test_the_exact_velocity_of_one_point_has_no_loss() -> None:
    model = build("sit")
    model.net = Oracle(0.7, 0.0)
    rows = model.loss_rows(torch.full((6, K, D), 0.7), torch.zeros(6, dtype=torch.int64), t=torch.linspace(0, 0.9, 6))
    torch.testing.assert_close(rows["loss"], torch.zeros(6), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("sampler", "tolerance"), [("euler", 0.02), ("heun", 5e-4)])
def test_a_flow_with_the_exact_velocity_transports_noise_exactly(sampler: str, tolerance: float) -> None:
    # The flow between two normals is affine: noise z ends at mean + std z, in raw tokens behind their statistics.
    model = build("sit", time_shift=1.5)
    model.net = Oracle(0.5, 0.3)
    model.token_mean.fill_(10.0)
    model.token_std.fill_(4.0)
    z = torch.randn(2, K, D, generator=torch.Generator().manual_seed(0))
    sampled = model.sample(num=2, steps=200, sampler=sampler, noise=lambda x: z)
    torch.testing.assert_close(sampled, 10 + 4 * (0.5 + 0.3 * z), atol=4 * tolerance, rtol=0)


def test_the_sde_with_the_exact_velocity_has_the_moments_of_the_target() -> None:
    model = build("sit", num_tokens=64)
    model.net = Oracle(0.5, 0.3)
    sampled = model.sample(num=64, steps=100, sampler="sde")
    assert abs(sampled.mean().item() - 0.5) < 0.02 and abs(sampled.std().item() - 0.3) < 0.02


@pytest.mark.parametrize("kind", FLOWS)
def test_guidance_free_training_at_beta_one_is_the_ordinary_loss(kind: str) -> None:
    model = build(kind, guidance_free=True)
    data, t, noise = tokens(), torch.tensor([0.2, 0.5, 0.8]), torch.randn(3, K, D)
    x_t = model.objective.path.interpolate(data, noise, t)
    target = model.objective.target(data, noise, t)
    ordinary = (model.net(x_t, t, LABELS) - target).square().flatten(1).mean(1)
    at_one = model.loss_rows(data, LABELS, t=t, noise=noise, beta=torch.ones(3))["loss"]
    torch.testing.assert_close(at_one, ordinary)
    at_half = model.loss_rows(data, LABELS, t=t, noise=noise, beta=torch.full((3,), 0.5))["loss"]
    assert not torch.allclose(at_half, ordinary)
    # Where the class was dropped beta is 1, whatever value was sampled.
    null = torch.full((3,), CLASSES)
    dropped = [model.loss_rows(data, null, t=t, noise=noise, beta=torch.full((3,), b))["loss"] for b in (0.3, 1.0)]
    torch.testing.assert_close(*dropped)


def test_guidance_free_training_gives_the_null_class_no_gradient() -> None:
    model = build("sit", guidance_free=True)
    model.loss_rows(tokens(), LABELS, beta=torch.full((3,), 0.5))["loss"].sum().backward()
    gradient = model.label_embed.table.weight.grad
    assert (gradient[CLASSES] == 0).all() and (gradient[LABELS] != 0).any(1).all()


@pytest.mark.parametrize("kind", FLOWS)
def test_guidance_free_sampling_takes_one_call_a_step(kind: str) -> None:
    model = build(kind, guidance_free=True)
    calls = Calls(model)
    guided = model.sample(LABELS, steps=4, guidance=2.0)
    assert calls.rows == [3] * 4
    x, t = tokens(), torch.tensor([0.5])
    field = model.field(LABELS, Guidance(2.0, interval=(0.4, 1.0)))
    torch.testing.assert_close(field(x, t), model.net(x, t, LABELS, torch.tensor([0.5])))
    early = torch.tensor([0.3])
    torch.testing.assert_close(field(x, early), model.net(x, early, LABELS))
    assert not torch.allclose(guided, model.sample(LABELS, steps=4))
    with pytest.raises(InputError, match="scales of 1 and above"):
        model.sample(LABELS, guidance=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_takes_part_in_training(kind: str) -> None:
    model = build(kind, guidance_free=True) if kind in FLOWS else build(kind)
    losses = model.train().losses((tokens(), LABELS), 0.0)
    assert all(name.startswith("loss") for name in losses)
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["sit", "lightningdit"])
def test_training_starts_from_a_zero_velocity(kind: str) -> None:
    cls, config = KINDS[kind]
    model = cls(config(num_tokens=K, token_dim=D, num_classes=CLASSES, dim=16, depth=2, heads=2, guidance_free=True))
    x, t = tokens(), torch.tensor([0.1, 0.5, 0.9])
    assert (model.net(x, t, LABELS) == 0).all()
    betas = [model.net.beta_embed(torch.tensor([b])) for b in (0.2, 1.0)]
    assert torch.equal(*betas), "beta has no effect before training"


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_lognormal_times_make_the_ratio_of_tokens_to_noise_lognormal(path: str) -> None:
    model: FlowModel = build("sit", path=path)
    torch.manual_seed(0)
    alpha, sigma, _, _ = model.objective.path.coefficients(model.times.sample(20000).double())
    logs = (alpha / sigma).log()
    assert abs(logs.mean().item()) < 0.03 and abs(logs.std().item() - 1) < 0.03


def test_bad_requests_are_reported_in_one_line() -> None:
    model = build("sit")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cond": torch.tensor([5])}, "class ids: expected 0..4, got 5..5"),
        ({"cond": torch.tensor([0.5])}, "class ids"),
        ({}, "a condition, or num"),
        ({"num": 1, "length": 2}, "all tokens at once, got 2"),
        ({"num": 1, "sampler": "ddim"}, "'sde', 'euler' or 'heun'"),
        ({"num": 1, "steps": 0}, "steps: expected a finite number >= 1"),
        ({"num": 1, "guidance": Guidance(2.0, schedule="linear")}, "no schedule"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            model.sample(**arguments)
    with pytest.raises(InputError, match="expected class ids"):
        build("sit", class_dropout=0.0).sample(num=1)
    with pytest.raises(ConfigError, match="guidance_free"):
        build("sit", guidance_free=True, num_classes=0)
    with pytest.raises(ConfigError, match="heads: 3"):
        build("sit", heads=3)
