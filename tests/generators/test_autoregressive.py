"""epsilon-LlamaGen: causality, cache equals full, guidance, seeds, bad input and the published sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import randn_from
from tok1d.errors import ConfigError, InputError
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.head import HeadConfig

K, D, CLASSES = 5, 3, 4


def config(**changes: Any) -> EpsilonLlamaGenConfig:
    small = EpsilonLlamaGenConfig(
        num_tokens=K,
        token_dim=D,
        num_classes=CLASSES,
        dim=16,
        depth=2,
        heads=2,
        head=HeadConfig(width=8, depth=1, batch_mul=2, steps=3),
    )
    return replace(small, **changes)


def generator(**changes: Any) -> EpsilonLlamaGen:
    torch.manual_seed(0)
    model = EpsilonLlamaGen(config(**changes)).eval()
    for parameter in model.parameters():  # away from the zeros of adaLN-Zero
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=[1, 3], ids=["one class token", "three class tokens"])
def model(request: pytest.FixtureRequest) -> EpsilonLlamaGen:
    return generator(class_tokens=request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, K, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([2, 0, 3])


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", range(K))
def test_a_token_reaches_only_the_conditions_after_it(
    model: EpsilonLlamaGen, tokens: Tensor, labels: Tensor, changed: int
) -> None:
    before = model.hidden(tokens, labels)
    tokens = tokens.clone()
    tokens[:, changed] += torch.randn(D, generator=seeded())
    moved = (model.hidden(tokens, labels) - before).abs().amax((0, 2)) > 1e-5
    assert before.shape == (3, K, 16)
    assert moved.tolist() == [i > changed for i in range(K)]


def test_the_class_reaches_every_condition(model: EpsilonLlamaGen, tokens: Tensor, labels: Tensor) -> None:
    other = model.hidden(tokens, (labels + 1) % CLASSES)
    assert ((model.hidden(tokens, labels) - other).abs().amax(2) > 1e-4).all()


def test_conditions_of_a_prefix_are_a_prefix_of_the_conditions(
    model: EpsilonLlamaGen, tokens: Tensor, labels: Tensor
) -> None:
    everything = model.hidden(tokens, labels)
    for length in range(1, K + 1):
        close(model.hidden(tokens[:, :length], labels), everything[:, :length])


@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence(model: EpsilonLlamaGen, tokens: Tensor, labels: Tensor) -> None:
    plain, both = (CachedDecoder(model, labels, K, with_null=with_null) for with_null in (False, True))
    null = torch.full_like(labels, CLASSES)
    hidden, null_hidden = model.hidden(tokens, labels), model.hidden(tokens, null)
    for i in range(K):
        token = tokens[:, i - 1] if i else None
        alone, nothing = plain.step(token)
        conditional, unconditional = both.step(token)
        assert nothing is None and unconditional is not None
        for ours, expected in ((alone, hidden), (conditional, hidden), (unconditional, null_hidden)):
            close(ours, expected[:, i])


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_sampling_written_out(model: EpsilonLlamaGen, labels: Tensor, guidance: float) -> None:
    """Every token sampled from the head, given the states of the sequence so far for the class and the null class."""
    scales = [1 + (guidance - 1) * (i + 1) / K for i in range(K)]
    randn, null = randn_from(seeded()), torch.full_like(labels, CLASSES)
    tokens = torch.zeros(3, 0, D)
    with torch.no_grad():
        for i in range(K):
            padded = torch.cat([tokens, torch.zeros(3, 1, D)], dim=1)
            start = randn(padded[:, -1])
            hidden, null_hidden = (model.hidden(padded, ids)[:, i] for ids in (labels, null))
            token = model.head.sample(hidden, start, randn, uncond=null_hidden, scale=scales[i])
            tokens = torch.cat([tokens, token[:, None]], dim=1)
    close(model.sample(labels, guidance=guidance, generator=seeded()), tokens)


def test_one_sample_equals_its_row_of_a_batch(labels: Tensor) -> None:
    model = generator()
    noises: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        noises.append(torch.randn(x.shape, generator=source))
        return noises[-1]

    source = seeded()
    batch = model.sample(labels, guidance=2.0, noise=record)
    for row in range(3):
        replay = iter(noises)
        alone = model.sample(labels[row : row + 1], guidance=2.0, noise=lambda x, r=row, it=replay: next(it)[r : r + 1])
        close(alone, batch[row : row + 1])
        assert next(replay, None) is None


@pytest.mark.parametrize("guidance", [1.0, 0.5, 2.0])
def test_with_its_own_generator_a_sample_does_not_depend_on_its_batch(labels: Tensor, guidance: float) -> None:
    model = generator()

    def sample(rows: list[int]) -> Tensor:
        return model.sample(labels[rows], guidance=guidance, generator=[seeded(row) for row in rows])

    together = sample([0, 1, 2])
    for row in range(3):
        close(sample([row])[0], together[row])
    close(sample([2, 0]), together[[2, 0]])
    with pytest.raises(InputError, match="one for each of 3 rows, got 2"):
        model.sample(labels, generator=[seeded(), seeded()])


@pytest.mark.parametrize("guidance", [1.0, 0.5, 2.0])
def test_a_step_of_the_head_is_one_evaluation(labels: Tensor, guidance: float) -> None:
    """The released code makes two calls per step; guidance adds the null class's rows to the same call."""
    model, rows = generator(), []
    model.head.net.input.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model.sample(labels, guidance=guidance, steps=4)
    assert rows == [3 if guidance == 1 else 6] * (4 * K)


def test_a_failed_generation_leaves_nothing_behind(tokens: Tensor, labels: Tensor) -> None:
    model = generator()
    before, attributes = model.state_dict(), {name: dict(vars(part)) for name, part in model.named_modules()}
    expected, calls = model.sample(labels, generator=seeded()), 0

    def fails(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("out of memory")
        return torch.zeros_like(x)

    with pytest.raises(RuntimeError, match="out of memory"):
        model.sample(labels, guidance=2.0, noise=fails)
    assert model.state_dict().keys() == before.keys() and not list(model.buffers())[1:]
    assert {name: dict(vars(part)) for name, part in model.named_modules()}.keys() == attributes.keys()
    assert all(vars(part).keys() == attributes[name].keys() for name, part in model.named_modules())
    assert model.train().losses((tokens, labels), progress=0.0)["loss"].isfinite()
    assert torch.equal(model.eval().sample(labels, generator=seeded()), expected)


def test_guidance_of_one_is_none(model: EpsilonLlamaGen, labels: Tensor) -> None:
    plain = model.sample(labels, generator=seeded())
    for guidance in (1, Guidance(1.0), Guidance(1.0, schedule="linear")):
        assert torch.equal(model.sample(labels, guidance=guidance, generator=seeded()), plain)
    assert not torch.allclose(model.sample(labels, guidance=4.0, generator=seeded()), plain, atol=1e-3)


def test_guidance_of_zero_is_the_null_class(model: EpsilonLlamaGen, labels: Tensor) -> None:
    zero = model.sample(labels, guidance=Guidance(0.0), generator=seeded())
    close(zero, model.sample(num=3, generator=seeded()))
    assert not torch.allclose(zero, model.sample(labels, generator=seeded()), atol=1e-3)


def test_a_number_means_the_linear_schedule(labels: Tensor) -> None:
    model = generator()
    number, linear, constant = (
        model.sample(labels, guidance=guidance, generator=seeded())
        for guidance in (3.0, Guidance(3.0, schedule="linear"), Guidance(3.0))
    )
    assert torch.equal(number, linear) and not torch.equal(number, constant)


def test_seeds(model: EpsilonLlamaGen, labels: Tensor) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (model.sample(labels, generator=seeded()) for _ in range(2))
    other = model.sample(labels, generator=seeded(8))
    by_default = [model.sample(labels) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and torch.equal(*by_default) and not torch.equal(first, other)
    assert first.shape == (3, K, D) and first.isfinite().all()


@pytest.mark.parametrize("length", range(1, K + 1))
def test_short_samples_are_prefixes_of_long_ones(labels: Tensor, length: int) -> None:
    """Noise is drawn token by token; the linear schedule would depend on the length."""
    model, guidance = generator(), Guidance(2.0)
    short = model.sample(labels, length=length, guidance=guidance, generator=seeded())
    close(short, model.sample(labels, guidance=guidance, generator=seeded())[:, :length])


def test_temperature_zero_is_decided_by_the_starts(labels: Tensor) -> None:
    model = generator()

    def same_starts(seed: int) -> Callable[[Tensor], Tensor]:
        source, calls = seeded(seed), 0

        def randn(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            first_of_token = calls % 3 == 1  # a start, then two noisy steps of three
            return torch.full_like(x, 0.1 * calls) if first_of_token else torch.randn(x.shape, generator=source)

        return randn

    cold = [model.sample(labels, temperature=0.0, noise=same_starts(seed)) for seed in (1, 2)]
    warm = [model.sample(labels, noise=same_starts(seed)) for seed in (1, 2)]
    assert torch.equal(*cold) and not torch.allclose(*warm, atol=1e-3)


def test_loss_is_the_head_on_every_token(model: EpsilonLlamaGen, tokens: Tensor, labels: Tensor) -> None:
    torch.manual_seed(3)
    rate = model.config.class_dropout
    dropped = torch.where(torch.rand(3) < rate, CLASSES, labels)
    conditions = model.hidden(tokens, dropped)
    expected = model.head.loss_rows(tokens.reshape(-1, D), conditions.reshape(-1, 16)).mean()
    torch.manual_seed(3)
    losses = model.losses((tokens, labels), progress=0.5)
    assert set(losses) == {"loss"}
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("length", range(1, K + 1))
def test_the_first_tokens_are_trained_as_in_the_whole_sequence(tokens: Tensor, labels: Tensor, length: int) -> None:
    """With fixed random numbers, the rows of the first tokens have the same losses as within the whole sequence."""
    model = generator(class_dropout=0.0)
    t, noise = torch.rand(3, K, generator=seeded()), torch.randn(3, K, D, generator=seeded())

    def rows(k: int) -> Tensor:
        first, hidden = tokens[:, :k].reshape(-1, D), model.hidden(tokens[:, :k], labels).reshape(-1, 16)
        losses = model.head.loss_rows(first, hidden, t=t[:, :k].flatten(), noise=noise[:, :k].reshape(-1, D))
        return losses.view(3, k)

    close(rows(length), rows(K)[:, :length])
    assert model.losses((tokens[:, :length], labels), progress=0.0)["loss"].isfinite()


@pytest.mark.parametrize("condition", ["concat", "adaln"])
@pytest.mark.parametrize("objective", ["interpolant", "ddpm"])
def test_every_head_trains_and_samples(labels: Tensor, condition: Any, objective: Any) -> None:
    """One constant sequence per class; the loss with fixed noise falls, and the trained model can be sampled."""
    torch.manual_seed(0)
    head = HeadConfig(width=16, depth=1, objective=objective, condition=condition, batch_mul=4, steps=3)
    model = EpsilonLlamaGen(config(head=head, dropout=0.0, depth=1))
    target, classes = torch.randn(CLASSES, K, D).sign(), torch.arange(CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model.losses((target, classes), progress=0.0)["loss"]

    first = loss().item()
    for _ in range(25):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * first
    model.eval()
    for guidance in (0.5, 1.0, 2.0, Guidance(2.0, schedule="constant")):
        assert model.sample(labels, guidance=guidance, temperature=0.9, generator=seeded()).isfinite().all()


@pytest.mark.parametrize("condition", ["concat", "adaln"])
@pytest.mark.parametrize("objective", ["interpolant", "ddpm"])
def test_loss_reaches_every_parameter(tokens: Tensor, labels: Tensor, objective: Any, condition: Any) -> None:
    head = HeadConfig(width=8, depth=1, objective=objective, condition=condition, steps=3)
    model = generator(head=head, class_dropout=0.5).train()
    torch.manual_seed(0)
    loss = model.losses((tokens, labels), progress=0.0)["loss"]
    assert loss.isfinite()
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, still
    assert model.eval().sample(labels, generator=seeded()).isfinite().all()


def test_dropout_acts_in_training_only(tokens: Tensor, labels: Tensor) -> None:
    model = generator(dropout=0.5)
    assert torch.equal(model.hidden(tokens, labels), model.hidden(tokens, labels))
    model.train()
    assert not torch.equal(model.hidden(tokens, labels), model.hidden(tokens, labels))


def test_unconditional_models(tokens: Tensor) -> None:
    model = generator(num_classes=0)
    assert model.losses((tokens, None), progress=0.0)["loss"].isfinite()
    assert model.sample(num=2, generator=seeded()).shape == (2, K, D)
    with pytest.raises(InputError, match="unconditional"):
        model.sample(torch.tensor([0]))


def test_without_class_dropout_there_is_no_null_class(labels: Tensor) -> None:
    model = generator(class_dropout=0.0)
    assert model.label_embed.table.num_embeddings == CLASSES
    assert model.sample(labels, generator=seeded()).shape == (3, K, D)
    for call in (lambda: model.sample(num=2), lambda: model.sample(labels, guidance=2.0)):
        with pytest.raises(InputError, match="without class dropout"):
            call()


Call = Callable[[EpsilonLlamaGen], Any]

BAD_CALLS: list[tuple[str, Call, str]] = [
    ("class too high", lambda m: m.sample(torch.tensor([1, 7])), "0..3, got 1..7"),
    ("the null class by number", lambda m: m.sample(torch.tensor([CLASSES])), "0..3, got 4..4"),
    ("class below", lambda m: m.sample(torch.tensor([-1])), "0..3, got -1..-1"),
    ("table of classes", lambda m: m.sample(torch.zeros(2, 2).long()), "got torch.int64 of shape (2, 2)"),
    ("fractional classes", lambda m: m.sample(torch.ones(2)), "got torch.float32 of shape (2,)"),
    ("in training", lambda m: m.losses((torch.zeros(1, K, D), torch.tensor([9])), 0.0), "0..3, got 9..9"),
    ("nothing", lambda m: m.sample(), "or num"),
    ("no sequences", lambda m: m.sample(num=0), "got num 0"),
    ("too long", lambda m: m.sample(num=1, length=K + 1), "1..5, got 6"),
    ("too short", lambda m: m.sample(num=1, length=0), "1..5, got 0"),
    ("sampler", lambda m: m.sample(num=1, sampler="dopri5"), "got 'dopri5'"),
    ("steps", lambda m: m.sample(num=1, steps=1), "at least 2 steps, got 1"),
    ("temperature", lambda m: m.sample(num=1, temperature=-1.0), "finite number >= 0, got -1"),
    ("no number", lambda m: m.sample(num=1, temperature=float("nan")), "finite number >= 0, got nan"),
    ("guidance", lambda m: m.sample(num=1, guidance=float("inf")), "expected a finite scale"),
    ("interval", lambda m: m.sample(num=1, guidance=Guidance(2.0, interval=(0.2, 0.8))), "no interval"),
    ("weak model", lambda m: m.sample(num=1, guidance=Guidance(2.0, weak_model=m)), "no weak_model"),
]


@pytest.mark.parametrize(("call", "message"), [c[1:] for c in BAD_CALLS], ids=[c[0] for c in BAD_CALLS])
def test_bad_input_is_reported_in_one_line(call: Call, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(generator())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"^heads: "):
        config(heads=3).check()


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "total", "head"),
    [
        (768, 12, 12, 264_518_416, 178_732_048),
        (1024, 24, 16, 488_566_800, 179_125_264),
        (1280, 36, 20, 912_381_200, 179_518_480),
        (1536, 48, 24, 1_540_680_208, 179_911_696),
    ],
    ids=["B", "L", "XL", "XXL"],
)
def test_published_sizes(dim: int, depth: int, heads: int, total: int, head: int) -> None:
    with torch.device("meta"):
        model = EpsilonLlamaGen(EpsilonLlamaGenConfig(dim=dim, depth=depth, heads=heads))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.head.parameters()) == head


@pytest.mark.parametrize("condition", ["concat", "adaln"])
def test_the_class_token_at_the_input_of_the_head(tokens: Tensor, labels: Tensor, condition: Any) -> None:
    head = HeadConfig(width=8, depth=1, batch_mul=2, steps=3, class_token=True, condition=condition)
    model = generator(head=head)
    found = model.hidden(tokens, labels)
    assert torch.equal(found[..., 16:], model.label_embed(labels)[:, None].expand(-1, K, -1))
    null = model.hidden(tokens, torch.full((3,), CLASSES))
    assert torch.equal(null[..., 16:], model.label_embed(torch.full((3,), CLASSES))[:, None].expand(-1, K, -1))
    decoder = CachedDecoder(model, labels, K, with_null=True)
    for i in range(K):
        given, unconditional = decoder.step(tokens[:, i - 1] if i else None)
        assert unconditional is not None
        close(given, found[:, i])
        close(unconditional, null[:, i])
    with torch.no_grad():  # a stack that does not read the class: only the joined token makes a difference
        model.head.net.cond_embed.weight.zero_()
    samples = [model.sample(cond, generator=seeded()) for cond in (labels, (labels + 1) % CLASSES)]
    assert not torch.allclose(*samples)
    with torch.no_grad():
        assert model.head.net.join is not None
        model.head.net.join.weight[:, 8:].zero_()
    silent = [model.sample(cond, generator=seeded()) for cond in (labels, (labels + 1) % CLASSES)]
    assert torch.equal(*silent)


def test_a_class_token_needs_classes() -> None:
    with pytest.raises(ConfigError, match=r"^head\.class_token: num_classes=0 has no class token"):
        config(num_classes=0, head=HeadConfig(class_token=True)).check()
