"""The diffusion head: shared work equals the plain network, losses by hand, samplers, guidance."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tok1d.diffusion.ddpm import Chain
from tok1d.diffusion.solver import euler, heun, randn_from, time_grid
from tok1d.errors import InputError
from tok1d.generators.head import DiffusionHead, HeadConfig, HeadNetwork

ROWS, DIM, COND, WIDTH = 5, 3, 6, 8


def head(
    condition: Any = "concat", objective: Any = "interpolant", *, moved: bool = True, **changes: Any
) -> DiffusionHead:
    torch.manual_seed(0)
    config = HeadConfig(width=WIDTH, depth=2, condition=condition, objective=objective, batch_mul=3, steps=4)
    model = DiffusionHead(replace(config, **changes), DIM, COND).eval()
    if moved:  # away from the zeros of adaLN-Zero
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["concat", "adaln"])
def condition(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["interpolant", "ddpm"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Noisy tokens, times and conditions."""
    source = torch.Generator().manual_seed(1)
    x, cond = torch.randn(ROWS, DIM, generator=source), torch.randn(ROWS, COND, generator=source)
    return x, torch.rand(ROWS, generator=source), cond


def naive(model: DiffusionHead, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """The network as the paper draws it: the condition concatenated (or added to the time) at every use."""
    net = model.net
    concat = model.config.condition == "concat"
    context = net.cond_embed(cond)
    c = net.time_embed(t) if concat else net.time_embed(t) + context

    def with_context(h: Tensor) -> Tensor:
        return torch.cat([h, context], dim=-1) if concat else h

    def norm(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    x = net.input(x)
    for block in net.blocks:
        shift, scale, gate = block.modulation.linear(c * c.sigmoid()).split(WIDTH, dim=-1)
        h = (norm(x) * block.norm.weight + block.norm.bias) * (1 + scale) + shift
        h = block.fc1(with_context(h))
        x = x + gate * block.fc2(h * h.sigmoid())
    shift, scale = net.modulation.linear(c * c.sigmoid()).split(WIDTH, dim=-1)
    return net.out(with_context(norm(x) * (1 + scale) + shift))


def test_shared_work_equals_the_plain_network(condition: str, objective: str, rows: tuple[Tensor, ...]) -> None:
    model = head(condition, objective)
    x, t, cond = rows
    expected = naive(model, x, t, cond)
    assert expected.shape == (ROWS, DIM * (2 if objective == "ddpm" else 1))
    torch.testing.assert_close(model.net(x, t, cond), expected, atol=1e-5, rtol=1e-4)
    prepared = model.net.prepare(cond)
    for time in (0.0, 0.4):  # prepared once, used at many times
        out = model.net.evaluate(x, model.net.time_features(torch.tensor([time])), prepared)
        torch.testing.assert_close(out, naive(model, x, torch.full((ROWS,), time), cond), atol=1e-5, rtol=1e-5)


def test_starts_as_zero(condition: str, rows: tuple[Tensor, ...]) -> None:
    assert not head(condition, moved=False).net(*rows).any()


@pytest.mark.parametrize("copies", [1, 4])
def test_loss_equals_manual_repetition(condition: str, objective: str, rows: tuple[Tensor, ...], copies: int) -> None:
    model = head(condition, objective)
    target, _, cond = rows
    source = torch.Generator().manual_seed(2)
    noise = torch.randn(ROWS * copies, DIM, generator=source)
    if objective == "ddpm":
        t = torch.randint(1000, (ROWS * copies,), generator=source)
    else:
        t = torch.rand(ROWS * copies, generator=source)
    loss = model.loss_rows(target, cond, t=t, noise=noise)
    assert loss.shape == (ROWS * copies,)
    for i in range(ROWS * copies):
        row, one = i % ROWS, slice(i, i + 1)  # copy-major
        data, c = target[row : row + 1], cond[row : row + 1]
        if objective == "ddpm":
            terms = Chain.named("cosine").losses(lambda x, s, c=c: naive(model, x, s, c), data, noise[one], t[one])
            expected = terms["mse"] + terms["vb"]
        else:
            x_t = t[i] * data + (1 - t[i]) * noise[one]
            expected = (naive(model, x_t, t[one], c) - (data - noise[one])).square().mean()[None]
        torch.testing.assert_close(loss[one], expected, atol=1e-4, rtol=1e-4)


def test_batch_mul_samples_its_own_times_and_noise(objective: str, rows: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    loss = head(objective=objective).loss_rows(rows[0], rows[2])
    assert loss.shape == (3 * ROWS,) and loss.isfinite().all()
    assert len(loss.unique()) == 3 * ROWS


def test_loss_reaches_every_parameter_and_the_condition(
    condition: str, objective: str, rows: tuple[Tensor, ...]
) -> None:
    model, cond = head(condition, objective), rows[2].clone().requires_grad_()
    torch.manual_seed(0)
    model.loss_rows(rows[0], cond).mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, still
    assert cond.grad is not None and (cond.grad != 0).all()


def sample(model: DiffusionHead, x: Tensor, cond: Tensor, seed: int = 3, **options: Any) -> Tensor:
    return model.sample(cond, x, randn_from(torch.Generator().manual_seed(seed)), **options)


def test_samplers_follow_the_network(rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(), rows

    def field(y: Tensor, t: Tensor) -> Tensor:
        return naive(model, y, t.expand(ROWS), cond)

    with torch.no_grad():
        for name, solver in (("euler", euler), ("heun", heun)):
            expected = solver(field, x, time_grid(4))
            torch.testing.assert_close(sample(model, x, cond, sampler=name), expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(sample(head(sampler=name), x, cond), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("step", "options"), [(0.32, {}), (0.3, {"last_step": 0.1})])
def test_the_sde_ends_in_a_step_without_noise(rows: tuple[Tensor, ...], step: float, options: dict[str, float]) -> None:
    model, (x, _, cond) = head(**options), rows

    def drift(y: Tensor, t: Tensor) -> Tensor:
        return (1 + t) * naive(model, y, t.expand(ROWS), cond) - y

    source, y, t = torch.Generator().manual_seed(3), x, torch.zeros(1)
    with torch.no_grad():
        for _ in range(3):
            noise = torch.randn(ROWS, DIM, generator=source)
            y = y + step * drift(y, t) + (2 * (1 - t) * step).sqrt() * noise
            t = t + step
        y = y + (1 - t) * drift(y, t)
    torch.testing.assert_close(sample(model, x, cond), y, atol=1e-5, rtol=1e-4)


def test_rows_do_not_mix(condition: str, objective: str, rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(condition, objective), rows
    everything = sample(model, x, cond, temperature=0.0)
    alone = sample(model, x[2:3], cond[2:3], temperature=0.0)
    torch.testing.assert_close(alone, everything[2:3], atol=1e-4, rtol=1e-4)


def test_temperature_zero_leaves_the_start_alone_to_decide(objective: str, rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(objective=objective), rows
    cold = [sample(model, x, cond, seed, temperature=0.0) for seed in (3, 4)]
    warm = [sample(model, x, cond, seed) for seed in (3, 4)]
    assert torch.equal(*cold) and not torch.equal(*warm)


def test_guidance_scales(condition: str, objective: str, rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(condition, objective), rows
    uncond = cond.flip(0)
    plain = sample(model, x, cond)
    assert torch.equal(sample(model, x, cond, uncond=uncond, scale=1.0), plain)
    guided = sample(model, x, cond, uncond=uncond, scale=2.0)
    assert not torch.allclose(guided, plain, atol=1e-3)
    quiet = {"temperature": 0.0}  # DDPM: the variance stays conditional
    zero = sample(model, x, cond, uncond=uncond, scale=0.0, **quiet)
    torch.testing.assert_close(zero, sample(model, x, uncond, **quiet), atol=1e-4, rtol=1e-4)


def test_guidance_leaves_the_learned_variance_alone(condition: str, rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(condition, "ddpm"), rows
    uncond, t = cond.flip(0), torch.full((ROWS,), 500)
    yes, no = naive(model, x, t, cond), naive(model, x, t, uncond)
    out = model.field(cond, uncond, 3.0)(x, t)
    torch.testing.assert_close(out[:, :DIM], no[:, :DIM] + 3 * (yes - no)[:, :DIM], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:, DIM:], yes[:, DIM:], atol=1e-5, rtol=1e-5)


def test_the_condition_is_embedded_once_a_token(rows: tuple[Tensor, ...]) -> None:
    model, (x, _, cond) = head(), rows
    embedded, timed = [], []
    model.net.cond_embed.register_forward_hook(lambda module, inputs, output: embedded.append(len(output)))
    model.net.time_embed.register_forward_hook(lambda module, inputs, output: timed.append(len(output)))
    sample(model, x, cond, uncond=cond, scale=2.0, steps=6)
    assert embedded == [2 * ROWS], "both streams together"
    assert timed == [6], "every time once, for all rows"


def test_a_ddpm_head_takes_the_release_s_step_specifications(rows: tuple[Tensor, ...]) -> None:
    """ "10" and 10 are one chain, "ddim10" another: from step 0 at a stride of 100."""
    x, _, cond = rows
    ddpm, flow = head(objective="ddpm"), head()
    assert torch.equal(sample(ddpm, x, cond, steps=10), sample(ddpm, x, cond, steps="10"))
    for model in (ddpm, flow):
        assert torch.equal(sample(model, x, cond, steps=10), sample(model, x, cond, steps=np.int64(10)))
    assert not torch.equal(sample(ddpm, x, cond, steps=10), sample(ddpm, x, cond, steps="ddim10"))
    assert ddpm.chain.respace("ddim10").step_map == list(range(0, 1000, 100))


def test_bad_input_is_reported_in_one_line(rows: tuple[Tensor, ...]) -> None:
    x, _, cond = rows
    for objective, options, message in (
        ("interpolant", {"sampler": "ancestral"}, "got 'ancestral'"),
        ("interpolant", {"steps": 1}, "at least 2 steps, got 1"),
        ("interpolant", {"steps": 0, "sampler": "euler"}, "at least 1 step, got 0"),
        ("ddpm", {"sampler": "heun"}, "got 'heun'"),
        ("ddpm", {"steps": 0}, "at least 2 steps, got 0"),
        ("ddpm", {"steps": np.int64(1)}, "at least 2 steps, got 1"),
        ("ddpm", {"steps": "ddim1"}, "at least 2 steps, got ddim1"),
        ("ddpm", {"steps": 1001}, "cannot take 1001 steps"),
        ("interpolant", {"steps": "ddim10"}, "steps: expected a number for sampler=sde, got 'ddim10'"),
    ):
        with pytest.raises(InputError) as caught:
            sample(head(objective=objective), x, cond, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value)


class Untabled:
    """Replaces a table; stores nothing."""

    halves = None

    def __init__(self, net: HeadNetwork, times: Tensor, intervals: Any = None) -> None:
        self.net = net

    def __call__(self, t: Tensor) -> list[Tensor]:
        return self.net.time_features(t)


SAMPLERS = [("interpolant", "sde"), ("interpolant", "euler"), ("interpolant", "heun"), ("ddpm", "ancestral")]


@pytest.mark.parametrize(("objective", "sampler"), SAMPLERS)
def test_times_of_a_grid_are_computed_once_for_all_tokens(
    condition: str, objective: str, sampler: str, rows: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A precomputed table of times changes no value, and sampling then embeds no time."""
    model, (x, _, cond) = head(condition, objective), rows
    how: dict[str, Any] = {"uncond": -cond, "scale": 2.0, "steps": 5, "sampler": sampler}

    def sample(**table: Any) -> Tensor:
        return model.sample(cond, x, randn_from(torch.Generator().manual_seed(3)), **how, **table)

    table = model.table(5, sampler)
    with monkeypatch.context() as patch:
        patch.setattr("tok1d.generators.head.SamplingTable", Untabled)
        expected = sample()  # every time is embedded when the sampler needs it
    embedded: list[int] = []
    model.net.time_embed.register_forward_pre_hook(lambda module, inputs: embedded.append(len(inputs[0])))
    torch.testing.assert_close(sample(table=table), expected, atol=1e-5, rtol=1e-4)
    assert embedded == []
    torch.testing.assert_close(sample(), expected, atol=1e-5, rtol=1e-4)
    assert embedded == [5]


def test_the_class_token_is_joined_to_the_input(condition: str, objective: str, rows: tuple[Tensor, ...]) -> None:
    model, (x, t, cond) = head(condition, objective, class_token=True), rows
    net, classes = model.net, torch.randn(ROWS, COND, generator=torch.Generator().manual_seed(3))
    plain = head(condition, objective)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    assert net.class_embed is not None and net.join is not None
    joined = net.join(torch.cat([net.input(x), net.class_embed(classes)], dim=1))
    plain.net.input.register_forward_hook(lambda *_: joined)  # the network without the token, from that state on
    both = torch.cat([cond, classes], dim=1)
    torch.testing.assert_close(net(x, t, both), plain.net(x, t, cond))
    assert not torch.allclose(net(x, t, both), net(x, t, torch.cat([cond, classes.roll(1, 0)], dim=1)))
    if objective == "interpolant":  # with what is shared between tokens: the same field
        field = model.field(both, both.roll(1, 0), 2.0, model.table(3, "euler"))
        found = field(x, torch.tensor([1 / 3]))
        torch.testing.assert_close(found, model.field(both, both.roll(1, 0), 2.0)(x, torch.tensor([1 / 3])))
    model.loss_rows(x, both).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
