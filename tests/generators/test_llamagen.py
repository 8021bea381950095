"""LlamaGen: causality, cache equals full, guidance and its interval, sampling, bad input, published sizes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.generators.categorical import filter_logits, sample_ids
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig, rotary_table
from tok1d.nn.position import rotate
from tok1d.zoo.compat.guidance import llamagen_guidance

K, V, CLASSES = 9, 7, 4


def config(**changes: Any) -> LlamaGenConfig:
    return replace(
        LlamaGenConfig(num_tokens=K, vocab_size=V, num_classes=CLASSES, dim=16, depth=2, heads=4, hidden=24), **changes
    )


def generator(**changes: Any) -> LlamaGen:
    torch.manual_seed(0)
    model = LlamaGen(config(**changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


KINDS: list[dict[str, Any]] = [{"rope": "1d"}, {"rope": "2d"}, {"rope": "none"}, {"rope": "1d", "kv_heads": 2}]


@pytest.fixture(params=KINDS, ids=str)
def model(request: pytest.FixtureRequest) -> LlamaGen:
    return generator(**request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(V, (3, K), generator=seeded(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([2, 0, 3])


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", range(K))
def test_an_id_reaches_only_the_logits_after_it(model: LlamaGen, ids: Tensor, labels: Tensor, changed: int) -> None:
    before = model(ids, labels)
    ids = ids.clone()
    ids[:, changed] = (ids[:, changed] + 1) % V
    moved = (model(ids, labels) - before).abs().amax((0, 2)) > 1e-6
    assert before.shape == (3, 1 + K, V)
    assert moved.tolist() == [i > changed for i in range(1 + K)]


def test_any_prefix_has_the_logits_it_has_in_the_whole(model: LlamaGen, ids: Tensor, labels: Tensor) -> None:
    everything = model(ids, labels)
    for length in range(K):
        close(model(ids[:, :length], labels), everything[:, : length + 1])


@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence(model: LlamaGen, ids: Tensor, labels: Tensor) -> None:
    plain, both = (CachedDecoder(model, labels, K, with_null=with_null) for with_null in (False, True))
    logits, null_logits = model(ids, labels), model(ids, torch.full_like(labels, CLASSES))
    for i in range(K):
        alone, nothing = plain.step(ids[:, i - 1] if i else None)
        conditional, unconditional = both.step(ids[:, i - 1] if i else None)
        assert nothing is None and unconditional is not None
        for ours, expected in ((alone, logits), (conditional, logits), (unconditional, null_logits)):
            close(ours, expected[:, i])


def test_groups_of_heads_share_keys_and_values(ids: Tensor, labels: Tensor) -> None:
    """A model with as many key heads as query heads, equal within each group, computes the same."""
    shared, own = generator(kv_heads=2), generator()
    state = shared.state_dict()
    for name in [name for name in state if name.endswith("qkv.weight")]:
        q, k, v = state[name].split([16, 8, 8])
        k, v = (part.view(2, 1, 4, 16).expand(2, 2, 4, 16).reshape(16, 16) for part in (k, v))
        state[name] = torch.cat([q, k, v])
    own.load_state_dict(state)
    close(own(ids, labels), shared(ids, labels))
    assert CachedDecoder(shared, labels, K, with_null=False).caches[0].k.shape == (3, 2, 16, 4)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 3 / K), (2 / K, 5 / K)])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_sampling_written_out(model: LlamaGen, labels: Tensor, scale: float, interval: tuple[float, float]) -> None:
    """Every id from the logits of the sequence so far, mixed with the null class's inside the interval."""
    null, source = torch.full_like(labels, CLASSES), seeded()
    ids = torch.zeros(3, 0, dtype=torch.int64)
    with torch.no_grad():
        for i in range(K):
            yes, no = model(ids, labels)[:, i], model(ids, null)[:, i]
            inside = round(interval[0] * K) <= i <= round(interval[1] * K)
            logits = no + scale * (yes - no) if inside else yes
            p = (logits / 0.8).softmax(-1)
            noise = torch.empty(3, V).exponential_(generator=source)
            ids = torch.cat([ids, (p / noise).argmax(-1, keepdim=True)], dim=1)
    guidance = Guidance(scale, interval)
    assert torch.equal(model.sample(labels, guidance=guidance, temperature=0.8, generator=seeded()), ids)


def test_guidance_at_its_ends(labels: Tensor) -> None:
    model = generator()
    plain = model.sample(labels, generator=seeded())
    assert torch.equal(model.sample(labels, guidance=Guidance(3.0, (0.95, 1.0)), generator=seeded()), plain), "never"
    assert torch.equal(model.sample(num=3, generator=seeded()), model.sample(labels, guidance=0.0, generator=seeded()))
    assert not torch.equal(plain, model.sample(labels, guidance=3.0, generator=seeded()))
    grown = Guidance(4.0, schedule="linear")
    assert model.token_scales(grown, 4) == pytest.approx([1.75, 2.5, 3.25, 4.0])


@pytest.mark.parametrize(("released", "guided"), [(-1, K), (0, 2), (5, 7), (K, K)])
def test_the_release_counts_its_interval_from_the_second_token(released: int, guided: int) -> None:
    scales = generator().token_scales(llamagen_guidance(2.0, released, K), K)
    assert scales == [2.0] * guided + [1.0] * (K - guided)


def test_greedy_is_the_limit_of_cold_and_of_one_candidate(labels: Tensor) -> None:
    model = generator()
    greedy = model.sample(labels, greedy=True, guidance=2.0)
    for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(model.sample(labels, guidance=2.0, generator=seeded(), **options), greedy)  # type: ignore


def test_one_generator_a_row_makes_rows_independent(model: LlamaGen, labels: Tensor) -> None:
    batch = model.sample(labels, guidance=2.0, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(model.sample(labels[i : i + 1], guidance=2.0, generator=[seeded(i)])[0], batch[i])
    part = model.sample(labels, length=4, guidance=2.0, generator=[seeded(i) for i in range(3)])
    assert torch.equal(part, batch[:, :4])


def filtered_directly(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """The entries that are kept, by sorting and cumulative sums."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = [i for i in order if logits[i] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = [math.exp(logits[i]) for i in order]
    stay, mass = set(), 0.0
    for i, weight in zip(order, weights):
        stay.add(i)
        mass += weight / sum(weights)
        if top_p < 1 and mass > top_p:
            break
    return stay


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 8, 50])
def test_the_filter_keeps_what_sorting_and_adding_keeps(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 10, generator=seeded(), dtype=torch.float64)
    kept = filter_logits(logits, SampleSettings(top_k=top_k, top_p=top_p))
    for row, before in zip(kept, logits):
        assert set(torch.nonzero(row.isfinite())[:, 0].tolist()) == filtered_directly(before.tolist(), top_k, top_p)
        assert torch.equal(row[row.isfinite()], before[row.isfinite()])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.3, 1.0])
def test_min_p_keeps_what_has_that_share_of_the_largest_probability(min_p: float, temperature: float) -> None:
    logits = torch.randn(20, 10, generator=seeded(), dtype=torch.float64)
    probabilities = (logits / temperature).softmax(-1)
    kept = filter_logits(logits, SampleSettings(min_p=min_p, temperature=temperature)).isfinite()
    assert torch.equal(kept, probabilities >= min_p * probabilities.amax(-1, keepdim=True) * (1 - 1e-12))
    assert kept.any(-1).all() and (kept.all() if min_p == 0 else True)


def test_min_p_reaches_the_samples(model: LlamaGen, labels: Tensor) -> None:
    """A share of 1 keeps the most likely id alone."""
    likeliest = model.sample(labels, greedy=True)
    assert torch.equal(model.sample(labels, min_p=1.0, temperature=2.0), likeliest)
    assert not torch.equal(model.sample(labels, min_p=0.0, temperature=2.0), likeliest)


def test_ties_with_the_last_candidate_stay() -> None:
    kept = filter_logits(torch.tensor([2.0, 1.0, 1.0, 0.0]), SampleSettings(top_k=2))
    assert kept.isfinite().tolist() == [True, True, True, False]
    close(filter_logits(torch.tensor([1.0, -1.0]), SampleSettings(temperature=0.5)), torch.tensor([2.0, -2.0]))


def test_sampled_ids_follow_the_probabilities() -> None:
    """Chi-square of 40,000 samples of a given distribution: 5 degrees of freedom exceed 20.5 once in a thousand."""
    p, num = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.04, 0.01]), 40_000
    sampled = sample_ids(p.expand(num, -1), torch.empty(num, 6).exponential_(generator=seeded()))
    counts = sampled.bincount(minlength=6)
    assert ((counts - num * p).square() / (num * p)).sum() < 20.5


def test_samples_of_a_hand_set_model_follow_its_softmax() -> None:
    """Without attention the logits of an id depend only on the previous id: a Markov chain."""
    model = generator(rope="1d", depth=1, dim=16)
    for name, parameter in model.named_parameters():
        if "blocks" in name:
            nn.init.zeros_(parameter)
        elif name == "norm.weight":
            nn.init.ones_(parameter)
    num = 6000
    ids = model.sample(torch.zeros(num, dtype=torch.int64), length=2, temperature=1.5, generator=seeded())
    with torch.no_grad():
        table = model(torch.arange(V)[:, None], torch.zeros(V, dtype=torch.int64))
    first, second = (table[0, 0] / 1.5).softmax(-1), (table[:, 1] / 1.5).softmax(-1)
    expected = num * first[:, None] * second
    counts = torch.zeros(V, V).index_put_((ids[:, 0], ids[:, 1]), torch.ones(num), accumulate=True)
    often = expected > 5
    chi = ((counts - expected).square() / expected)[often].sum()
    # Mean of the law: its degrees of freedom, about as many as cells; five standard deviations of it.
    cells = int(often.sum())
    assert cells > 10 and chi < cells + 5 * math.sqrt(2 * cells)


@pytest.mark.parametrize("length", range(1, K + 1))
def test_loss_is_the_cross_entropy_of_every_id(model: LlamaGen, ids: Tensor, labels: Tensor, length: int) -> None:
    log_p = model(ids, labels)[:, :length].log_softmax(-1)
    rows = -log_p.gather(-1, ids[:, :length, None])[..., 0].mean(1)
    close(model.loss_rows(ids[:, :length], labels), rows)
    torch.manual_seed(3)
    dropped = torch.where(torch.rand(3) < model.config.class_dropout, CLASSES, labels)
    torch.manual_seed(3)
    losses = model.losses((ids, labels), progress=0.5)
    assert set(losses) == {"loss"}
    close(losses["loss"], model.loss_rows(ids, dropped).mean())


def test_the_untrained_model_predicts_uniformly(ids: Tensor, labels: Tensor) -> None:
    loss = LlamaGen(config()).losses((ids, labels), progress=0.0)["loss"]
    assert loss.item() == pytest.approx(math.log(V), rel=1e-6)


def test_loss_reaches_every_parameter(ids: Tensor, labels: Tensor) -> None:
    for kind in KINDS:
        model = generator(**kind, class_dropout=0.5).train()
        model.losses((ids, labels), progress=0.0)["loss"].backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still, still


def test_every_dropout_acts_in_training_only(ids: Tensor, labels: Tensor) -> None:
    off = {"token_dropout": 0.0, "dropout": 0.0, "drop_path": 0.0}
    for name in off:
        model = generator(**{**off, name: 0.5})
        assert torch.equal(model(ids, labels), model(ids, labels))
        model.train()
        assert not torch.equal(model(ids, labels), model(ids, labels))
    model = generator(**off)
    assert torch.equal(model.train()(ids, labels), model.eval()(ids, labels))


def test_tables_of_positions() -> None:
    """Scores depend on distances alone: in the sequence, class before token 0; on the grid, by row and column."""
    model = generator(rope="1d")
    q, k = (torch.randn(4, generator=seeded(i)) for i in (0, 1))

    def scores(cos: Tensor, sin: Tensor) -> Tensor:
        a, b = (rotate(x.expand(len(cos), 4), cos, sin) for x in (q, k))
        return a @ b.T

    found = scores(model.cos, model.sin)
    assert model.cos.shape == (1 + K, 2)
    for i in range(K):
        close(found[i + 1, 1:][: K - i], found[i, :-1][: K - i])
    grid = scores(*rotary_table(config(rope="2d")))
    assert not grid[0].any() and not grid[:, 0].any(), "the class has neither query nor key"
    tokens = grid[1:, 1:].view(3, 3, 3, 3)
    close(tokens[1:, :, 1:], tokens[:-1, :, :-1])
    close(tokens[:, 1:, :, 1:], tokens[:, :-1, :, :-1])


def test_unconditional_models_and_models_without_a_null_class(ids: Tensor, labels: Tensor) -> None:
    blind = generator(num_classes=0)
    assert blind.losses((ids, None), progress=0.0)["loss"].isfinite()
    assert blind.sample(num=2, generator=seeded()).shape == (2, K)
    certain = generator(class_dropout=0.0)
    assert certain.label_embed.table.num_embeddings == CLASSES
    assert certain.sample(labels).shape == (3, K)
    with pytest.raises(InputError, match="without class dropout"):
        certain.sample(labels, guidance=2.0)


Call = Callable[[LlamaGen], Any]

BAD_CALLS: list[tuple[Call, str]] = [
    (lambda m: m.sample(torch.tensor([CLASSES])), "0..3, got 4..4"),
    (lambda m: m.sample(), "or num"),
    (lambda m: m.sample(num=0), "got num 0"),
    (lambda m: m.sample(num=1, length=K + 1), "1..9, got 10"),
    (lambda m: m.sample(num=1, length=0), "1..9, got 0"),
    (lambda m: m.sample(num=1, steps=4), "steps: llamagen does not use it, leave it out; got 4"),
    (lambda m: m.sample(num=1, top_k=-1), "top_k: expected a finite number >= 0, got -1"),
    (lambda m: m.sample(num=1, top_p=0.0), "top_p: expected a finite number > 0 and <= 1, got 0"),
    (lambda m: m.sample(num=1, top_p=1.5), "got 1.5"),
    (lambda m: m.sample(num=1, temperature=math.nan), "got nan"),
    (lambda m: m.sample(num=1, guidance=math.nan), "guidance: expected a finite scale"),
    (lambda m: m.sample(num=1, temperature=-1.0), "temperature: expected a finite number >= 0, got -1"),
    (lambda m: m.sample(num=1, guidance=Guidance(2.0, weak_model=m)), "no weak_model"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_bad_input_is_reported_in_one_line(call: Call, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(generator())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads: 3 does not divide dim 16"),
        ({"kv_heads": 3}, "kv_heads: 3 does not divide heads 4"),
        ({"num_tokens": 128, "rope": "2d"}, "rope: expected a square number of tokens for 2d, got 128; use rope=1d"),
        ({"heads": 16}, "rope: 1d needs a head width that is a multiple of 2, got 1"),
        ({"heads": 8, "rope": "2d"}, "rope: 2d needs a head width that is a multiple of 4, got 2"),
    ],
)
def test_contradictions_of_a_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes).check()
    assert str(caught.value) == message
    config(heads=16, rope="none").check()


@pytest.mark.parametrize(
    ("size", "hidden", "at_16384", "at_8192"),
    [
        ("B", 2048, 110.9, 98.3),
        ("L", 2816, 342.9, 326.1),
        ("XL", 3584, 774.7, 753.7),
        ("XXL", 4096, 1411, 1386),
        ("3B", 8704, 3097, 3044),
    ],
)
def test_published_sizes(size: str, hidden: int, at_16384: float, at_8192: float) -> None:
    for vocabulary, millions in ((16384, at_16384), (8192, at_8192)):
        with torch.device("meta"):
            model = LlamaGen(LlamaGenConfig(vocab_size=vocabulary, num_tokens=256, **LlamaGenConfig.SIZES[size]))
        digits = 0 if millions > 1000 else 1
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions
        assert model.blocks[0].mlp.up.out_features == hidden
