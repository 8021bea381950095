"""MaskGIT: schedule, masking and loss weights, which ids sampling keeps, guidance over the steps, published sizes."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import uniform_from
from tok1d.errors import ConfigError, InputError
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig, mask_ratio, masked_counts
from tok1d.zoo.compat.guidance import maskgit_guidance

K, V, CLASSES = 8, 6, 4


def config(**changes: Any) -> MaskGITConfig:
    small = MaskGITConfig(num_tokens=K, vocab_size=V, num_classes=CLASSES, dim=16, depth=3, heads=4, steps=5, noise=2.0)
    return replace(small, **changes)


def generator(**changes: Any) -> MaskGIT:
    torch.manual_seed(0)
    model = MaskGIT(config(**changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["vit", "uvit"])
def model(request: pytest.FixtureRequest) -> MaskGIT:
    return generator(trunk=request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(V, (3, K), generator=seeded(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([2, 0, 3])


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trace(model: MaskGIT, labels: Tensor, **changes: Any) -> list[Tensor]:
    """The ids after each step."""
    how: dict[str, Any] = {"guidance": Guidance(), "steps": 5, "noise_scale": 2.0, "annealing": True, **changes}
    return list(model.decoding_steps(labels, uniform_from(seeded()), **how))


def test_mask_ratio_is_the_arccosine() -> None:
    time = torch.tensor([0.0, 0.5, math.cos(0.3), 1.0])
    torch.testing.assert_close(mask_ratio(time), torch.tensor([1.0, 2 / 3, 0.6 / math.pi, 1e-6]))


@pytest.mark.parametrize(("length", "steps"), [(32, 8), (128, 64), (16, 12), (8, 8), (4, 9), (1, 3), (5, 1)])
def test_counts_follow_the_schedule_and_end_at_nothing(length: int, steps: int) -> None:
    counts = masked_counts(length, steps)
    assert len(counts) == steps + 1 and counts[0] == length and counts[-1] == 0
    for k, (before, after) in enumerate(pairwise(counts[:-1]), start=1):
        wanted = math.floor(length * mask_ratio(torch.tensor(k / steps, dtype=torch.float64)).item() + 1e-9)
        assert after == max(1, min(before - 1, wanted))


@pytest.mark.parametrize("time", [0.0, 0.4, 0.9, 1.0])
def test_what_is_hidden(ids: Tensor, time: float) -> None:
    model = generator()
    masked_ids, hidden = model.mask(ids, time=torch.full((3,), time))
    count = max(1, round(K * math.acos(time) * 2 / math.pi))
    assert hidden.sum(1).tolist() == [count] * 3
    assert (masked_ids[hidden] == V).all() and torch.equal(masked_ids[~hidden], ids[~hidden])


def test_every_place_is_hidden_as_often() -> None:
    model, num = generator(), 20_000
    _, hidden = model.mask(torch.zeros(num, K, dtype=torch.int64))
    share = hidden.float().mean()
    # The mean of the ratio over uniform times is 2/pi; rounding to eighths moves it by little.
    assert share.item() == pytest.approx(2 / math.pi, abs=0.02)
    assert (hidden.float().mean(0) - share).abs().max() < 0.02


def test_loss_is_the_weighted_mean_with_smoothed_targets(ids: Tensor) -> None:
    model = generator(label_smoothing=0.2, visible_weight=0.3)
    logits, (_, hidden) = torch.randn(3, K, V, generator=seeded()), model.mask(ids)
    target = torch.full((3, K, V), 0.2 / V).scatter_add_(-1, ids[..., None], torch.full((3, K, 1), 0.8))
    errors = -(target * logits.log_softmax(-1)).sum(-1)
    expected = (errors[hidden].sum() + 0.3 * errors[~hidden].sum()) / (hidden.sum() + 0.3 * (~hidden).sum())
    torch.testing.assert_close(model.loss(logits, ids, hidden), expected)


def test_hidden_ids_reach_the_loss_as_targets_alone(ids: Tensor, labels: Tensor) -> None:
    """Other ids under the masks leave all logits as they are; and without a weight visible targets count nothing."""
    model = generator(visible_weight=0.0)
    masked_ids, hidden = model.mask(ids, time=torch.full((3,), 0.5), order=torch.rand(3, K, generator=seeded()))
    others = torch.where(hidden, (ids + 1) % V, ids)
    again, _ = model.mask(others, time=torch.full((3,), 0.5), order=torch.rand(3, K, generator=seeded()))
    assert torch.equal(masked_ids, again)
    logits = model.net(masked_ids, labels)
    assert not torch.equal(model.loss(logits, ids, hidden), model.loss(logits, others, hidden))
    visible = torch.where(hidden, ids, (ids + 1) % V)
    assert torch.equal(model.loss(logits, ids, hidden), model.loss(logits, visible, hidden))


def test_every_id_and_the_class_reach_every_logit(model: MaskGIT, ids: Tensor, labels: Tensor) -> None:
    before = model.net(ids, labels)
    assert before.shape == (3, K, V)
    assert ((model.net(ids, (labels + 1) % CLASSES) - before).abs().amax(-1) > 1e-5).all()
    for i in range(K):
        changed = ids.clone()
        changed[:, i] = V
        assert ((model.net(changed, labels) - before).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_kept_ids_never_change_and_the_masks_follow_the_schedule(
    model: MaskGIT, labels: Tensor, steps: int, scale: float
) -> None:
    ids = torch.full((3, K), V)
    counts = masked_counts(K, steps)
    for k, after in enumerate(trace(model, labels, steps=steps, guidance=Guidance(scale))):
        kept = ids != V
        assert torch.equal(after[kept], ids[kept])
        assert (after == V).sum(1).tolist() == [counts[k + 1]] * 3
        ids = after
    assert 0 <= ids.min() <= ids.max() < V


def test_without_noise_the_most_confident_guesses_stay(model: MaskGIT, labels: Tensor) -> None:
    first = trace(model, labels, noise_scale=0.0)[0]
    logits, best = model.net(torch.full((3, K), V), labels).max(-1)
    kept = logits.argsort(-1, descending=True)[:, : K - masked_counts(K, 5)[1]]
    expected = torch.full((3, K), V).scatter(1, kept, best.gather(1, kept))
    assert torch.equal(first, expected)


def test_a_single_step_is_the_best_guess_everywhere(model: MaskGIT, labels: Tensor) -> None:
    best = model.net(torch.full((3, K), V), labels).argmax(-1)
    assert torch.equal(model.sample(labels, steps=1, generator=seeded()), best)


def test_samples_of_the_first_step_follow_the_softmax() -> None:
    """With Gumbel noise of scale 1 added to the logits, the argmax samples the softmax: chi-square at one position."""
    model = generator(num_tokens=2, annealing=False)
    num = 12_000
    labels = torch.zeros(num, dtype=torch.int64)
    uniforms: list[Tensor] = []

    def uniform(like: Tensor) -> Tensor:
        uniforms.append(torch.rand(like.shape, generator=source))
        return uniforms[-1]

    source = seeded()
    ids = next(
        iter(model.decoding_steps(labels, uniform, guidance=Guidance(), steps=2, noise_scale=2.0, annealing=False))
    )
    assert [numbers.shape for numbers in uniforms] == [(num, 2, V), (num, 2)]
    logits = model.net(torch.full((1, 2), V), torch.zeros(1, dtype=torch.int64))[0]
    # Half of the noise is left after the first of two steps: 2.0 / 2. The kept position is random.
    guesses = (logits - (-uniforms[0].log()).log()).argmax(-1)
    kept = ids != V
    assert (kept.sum(1) == 1).all() and torch.equal(ids[kept], guesses[kept])
    expected = num * logits.softmax(-1)
    for place in range(2):
        counts = guesses[:, place].bincount(minlength=V)
        assert ((counts - expected[place]).square() / expected[place]).sum() < 20.5


@pytest.mark.parametrize("schedule", ["constant", "linear", "power_cosine"])
def test_guidance_over_the_steps(model: MaskGIT, labels: Tensor, schedule: Any) -> None:
    """The guidance scale of each step, and its number of network calls; at scale 1 there is no second call."""
    scales: list[float] = []
    guided = model.guided
    model.guided = lambda ids, y, scale: scales.append(scale) or guided(ids, y, scale)  # type: ignore
    trace(model, labels, steps=4, guidance=Guidance(3.0, schedule=schedule, power=2.0))
    cosine = [1 - math.cos(math.pi * (k / 4) ** 2) for k in range(4)]
    expected = {"constant": [3.0] * 4, "linear": [1, 1.5, 2, 2.5], "power_cosine": [1 + c for c in cosine]}[schedule]
    assert scales == pytest.approx(expected)
    scales.clear()
    trace(model, labels, steps=4, guidance=Guidance(3.0, (0.25, 0.5)))
    assert scales == [1.0, 3.0, 3.0, 1.0]
    rows: list[int] = []
    model.net.register_forward_pre_hook(lambda net, inputs: rows.append(len(inputs[0])))
    trace(model, labels, steps=4, guidance=Guidance(3.0, (0.25, 0.5)))
    assert rows == [3, 6, 6, 3]


def test_guidance_at_its_ends(model: MaskGIT, ids: Tensor, labels: Tensor) -> None:
    yes, no = model.net(ids, labels), model.net(ids, torch.full_like(labels, CLASSES))
    for scale in (0.0, 0.5, 1.0, 4.0):
        torch.testing.assert_close(model.guided(ids, labels, scale), no + scale * (yes - no), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decay", ["constant", "linear", "power-cosine"])
def test_scales_of_the_release(decay: str) -> None:
    """conditional + g (conditional - null) is null + (1 + g)(conditional - null)."""
    released, steps = 4.5, 8
    found = [maskgit_guidance(released, decay, 2.5).scale_at(k / steps) for k in range(steps)]
    added = [{"constant": released, "linear": released * k / steps}.get(decay, 0.0) for k in range(steps)]
    if decay == "power-cosine":
        added = [(released - 1) * (1 - math.cos(math.pi * (k / steps) ** 2.5)) / 2 for k in range(steps)]
    assert found == pytest.approx([1 + g for g in added])


def test_a_plain_scale_follows_the_configured_schedule(labels: Tensor) -> None:
    model = generator(guidance_schedule="power_cosine", guidance_power=2.0)
    ours = model.sample(labels, guidance=5.0, generator=seeded())
    written = Guidance(5.0, schedule="power_cosine", power=2.0)
    assert torch.equal(ours, model.sample(labels, guidance=written, generator=seeded()))


def test_one_generator_a_row_makes_rows_independent(model: MaskGIT, labels: Tensor) -> None:
    batch = model.sample(labels, guidance=2.0, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(model.sample(labels[i : i + 1], guidance=2.0, generator=[seeded(i)])[0], batch[i])
    assert torch.equal(model.sample(labels, generator=seeded()), model.sample(labels, generator=seeded()))
    assert not torch.equal(model.sample(labels, generator=seeded()), model.sample(labels, generator=seeded(8)))
    cold = [model.sample(labels, temperature=0.0, generator=seeded(i)) for i in range(2)]
    assert torch.equal(*cold)


@pytest.mark.parametrize("trunk", ["vit", "uvit"])
def test_loss_reaches_every_parameter(ids: Tensor, labels: Tensor, trunk: str) -> None:
    model = generator(trunk=trunk, class_dropout=0.5).train()
    torch.manual_seed(0)
    losses = model.losses((ids, labels), progress=0.0)
    assert set(losses) == {"loss", "accuracy"} and 0 <= losses["accuracy"] <= 1
    losses["loss"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, still


def test_every_dropout_acts_in_training_only(ids: Tensor, labels: Tensor) -> None:
    for rates in ({"dropout": 0.5, "attention_dropout": 0.0}, {"dropout": 0.0, "attention_dropout": 0.5}):
        net = generator(**rates).net
        assert torch.equal(net(ids, labels), net(ids, labels))
        net.train()
        assert not torch.equal(net(ids, labels), net(ids, labels))
    net = generator(dropout=0.0, attention_dropout=0.0).net
    assert torch.equal(net.train()(ids, labels), net.eval()(ids, labels))


def test_the_trunks_order_their_normalisations(ids: Tensor, labels: Tensor) -> None:
    """BERT's last block ends in its normalisation: the logits do not depend on the scale of the block's sum."""
    vit, uvit = generator(), generator(trunk="uvit")
    assert len(vit.net.skips) == 0 and len(uvit.net.skips) == 1
    states: list[Tensor] = []
    for model in (vit, uvit):
        for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        model.net.blocks[-1].register_forward_hook(lambda block, inputs, out: states.append(out))
        model.net(ids, labels)
    normal = [state.var(-1, unbiased=False) for state in states]
    torch.testing.assert_close(normal[0], torch.ones(3, 1 + K), atol=1e-4, rtol=1e-4)
    assert (normal[1] - 1).abs().min() > 1e-3


def test_unconditional_models(ids: Tensor) -> None:
    model = generator(num_classes=0)
    assert model.losses((ids, None), progress=0.0)["loss"].isfinite()
    assert model.sample(num=2, generator=seeded()).shape == (2, K)


Call = Callable[[MaskGIT], Any]

BAD_CALLS: list[tuple[Call, str]] = [
    (lambda m: m.sample(torch.tensor([CLASSES])), "0..3, got 4..4"),
    (lambda m: m.sample(), "or num"),
    (lambda m: m.sample(num=1, length=3), "all tokens at once, got 3"),
    (lambda m: m.sample(num=1, steps=0), "steps: expected a finite number >= 1, got 0"),
    (lambda m: m.sample(num=1, temperature=float("nan")), "finite number >= 0, got nan"),
    (lambda m: m.sample(num=1, guidance=float("nan")), "expected a finite scale"),
    (lambda m: m.sample(num=1, guidance=Guidance(2.0, weak_model=m)), "no weak_model"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_bad_input_is_reported_in_one_line(call: Call, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(generator())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_contradictions_of_a_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^heads: 3 does not divide dim 16$"):
        config(heads=3).check()
    with pytest.raises(ConfigError, match=r"^depth: expected an odd number of blocks for trunk=uvit, got 4$"):
        config(trunk="uvit", depth=4).check()
    config(depth=4).check()


@pytest.mark.parametrize(
    ("options", "millions", "digits"),
    [
        ({"vocab_size": 4096, "num_tokens": 32}, 177.2, 1),
        ({"vocab_size": 8192, "num_tokens": 128}, 183.6, 1),
        ({"vocab_size": 4096, "num_tokens": 128, "trunk": "uvit", "dim": 1024, "depth": 21}, 295, 0),
    ],
)
def test_published_sizes(options: dict[str, Any], millions: float, digits: int) -> None:
    with torch.device("meta"):
        model = MaskGIT(MaskGITConfig(**options))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions
