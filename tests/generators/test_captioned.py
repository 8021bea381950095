"""CARD and LlamaGen with captions: padding, causality, cache equals full, guidance, gradients, refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.condition import ConditionConfig
from tok1d.errors import ConfigError, InputError
from tok1d.generators.captions import CaptionPrefix, CaptionVectors, causal_after_padding
from tok1d.generators.card import CARD, CARDConfig
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.head import HeadConfig
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig, rotary_table

K, D, V, E, T = 4, 3, 7, 5, 6
TEXT = ConditionConfig("text", "nobody/asks", E, T)
HEAD = HeadConfig(width=8, depth=1, condition="adaln", batch_mul=2, sampler="euler", steps=3)
SIZES: dict[str, Any] = {"num_tokens": K, "num_classes": 0, "condition": TEXT, "dim": 16, "depth": 2, "heads": 4}


def llamagen(rope: Any = "1d", kv_heads: int | None = None, **keys: Any) -> LlamaGen:
    return LlamaGen(LlamaGenConfig(vocab_size=V, hidden=24, rope=rope, kv_heads=kv_heads, **{**SIZES, **keys}))


MODELS: dict[str, Callable[..., Any]] = {
    "card": lambda **keys: CARD(CARDConfig(token_dim=D, head=HEAD, **{**SIZES, **keys})),
    "card start": lambda **keys: CARD(CARDConfig(token_dim=D, head=HEAD, start="class", **{**SIZES, **keys})),
    "llamagen 1d": llamagen,
    "llamagen 2d": lambda **keys: llamagen("2d", **keys),
    "llamagen none": lambda **keys: llamagen("none", **keys),
    "llamagen groups": lambda **keys: llamagen(kv_heads=2, **keys),
}


def moved(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return moved(MODELS[request.param]())


def captions(*counts: int) -> Tensor:
    rows = torch.randn(len(counts), T, E, generator=torch.Generator().manual_seed(2))
    for row, count in zip(rows, counts):
        row[count:] = 0
    return rows


COND = captions(4, T, 2)


def tokens_for(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, LlamaGen):
        return torch.randint(V, (3, K), generator=generator)
    return torch.randn(3, K, D, generator=generator)


def states(model: Any, tokens: Tensor, cond: Tensor | None) -> Tensor:
    """The network output for each of the K tokens, (3, K, ...): logits, or the input of the head."""
    labels = model.check_cond(cond, len(tokens))
    return model(tokens[:, :-1], labels) if isinstance(model, LlamaGen) else model.hidden(tokens, labels)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_caption_reaches_every_token_and_equal_ones_alike(model: Any) -> None:
    tokens = tokens_for(model)[[0, 0, 0]]
    cond = COND[[0, 0, 0]].clone()
    cond[2, 3] += 0.5
    first, again, other = states(model, tokens, cond)
    close(first, again)
    assert ((first - other).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("changed", range(K))
def test_a_token_reaches_only_what_comes_after_it(model: Any, changed: int) -> None:
    tokens = tokens_for(model)
    before = states(model, tokens, COND)
    tokens = tokens.clone()
    tokens[:, changed] = (tokens[:, changed] + 1) % V if isinstance(model, LlamaGen) else tokens[:, changed] + 1
    moved = (states(model, tokens, COND) - before).abs().amax((0, 2)) > 1e-5
    assert moved.tolist() == [i > changed for i in range(K)]


def test_padding_does_not_count_wherever_it_is(model: Any) -> None:
    tokens = tokens_for(model)
    expected = states(model, tokens, COND)
    assert expected.isfinite().all() and expected.shape[:2] == (3, K)
    for i, count in enumerate((4, T, 2)):
        one, rest = tokens[i : i + 1], T - count
        words = COND[i : i + 1, :count]
        left = torch.cat([torch.zeros(1, rest, E), words], dim=1)
        for cond in (words, left):
            close(states(model, one, cond)[0], expected[i])


def test_no_caption_is_the_null_condition(model: Any) -> None:
    tokens, blank = tokens_for(model), captions(4, 0, 1)
    nothing = states(model, tokens, None)
    close(states(model, tokens, torch.zeros(3, 2, E)), nothing)
    close(states(model, tokens, blank)[1], nothing[1])
    assert not torch.allclose(states(model, tokens, blank)[0], nothing[0], atol=1e-3)
    with torch.no_grad():
        model.label_embed.null_vector.copy_(blank[2, :1])
    close(states(model, tokens, blank)[2], states(model, tokens, None)[2])


@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence(model: Any) -> None:
    tokens = tokens_for(model)
    labels = model.check_cond(COND, 3)
    plain, both = (CachedDecoder(model, labels, K, with_null=with_null) for with_null in (False, True))
    given, null = states(model, tokens, COND), states(model, tokens, None)
    for i in range(K):
        token = tokens[:, i - 1] if i else None
        alone, nothing = plain.step(token)
        conditional, unconditional = both.step(token)
        assert nothing is None and unconditional is not None
        for ours, expected in ((alone, given), (conditional, given), (unconditional, null)):
            close(ours, expected[:, i])


def test_guidance_of_one_is_conditional_and_of_zero_null(model: Any) -> None:
    plain = model.sample(COND, generator=seeded())
    assert torch.equal(model.sample(COND, guidance=1, generator=seeded()), plain)
    zero, null = model.sample(COND, guidance=0.0, generator=seeded()), model.sample(num=3, generator=seeded())
    torch.testing.assert_close(zero, null, atol=1e-4, rtol=1e-4)
    together = model.sample(COND, guidance=2.0, generator=[seeded(row) for row in range(3)])
    for row, count in enumerate((4, T, 2)):
        alone = model.sample(COND[[row], :count], guidance=2.0, generator=[seeded(row)])
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_weight(name: str) -> None:
    model = moved(MODELS[name](class_dropout=0.4)).train()
    rows = [0, 1, 2] * 5
    torch.manual_seed(3)
    model.losses((tokens_for(model)[rows], COND[rows]), 0.0)["loss"].backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ["card", "llamagen 1d"])
def test_a_model_without_dropout_needs_captions(name: str) -> None:
    model = moved(MODELS[name](class_dropout=0.0))
    assert model.sample(COND, length=1, generator=seeded()).shape[:2] == (3, 1)
    assert states(model, tokens_for(model), captions(4, 0, 1)).isfinite().all()
    for call in (lambda: model.sample(num=2), lambda: model.sample(COND, guidance=2.0)):
        with pytest.raises(InputError, match="expected captions, because"):
            call()


def test_class_ids_and_captions_are_not_mixed_up(model: Any) -> None:
    with pytest.raises(InputError, match=r"^this model is conditioned on captions, .* \(B, at most 6, 5\)"):
        model.sample(torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"^this model is conditioned on captions"):
        model.losses((tokens_for(model), torch.tensor([0, 1, 2])), 0.0)


@pytest.mark.parametrize("name", ["card", "llamagen 1d"])
def test_models_of_classes_refuse_captions(name: str) -> None:
    model = MODELS[name](num_classes=4, condition=ConditionConfig()).eval()
    with pytest.raises(InputError, match=r"^expected class ids \(B,\) of integers, got torch\.float32"):
        model.sample(COND)
    with pytest.raises(InputError, match=r"^expected class ids"):
        model.losses((tokens_for(model), COND), 0.0)
    with pytest.raises(ConfigError, match=r"^num_classes: condition\.kind=text .*, expected 0, got 4$"):
        replace(model.config, condition=TEXT).check()


def test_a_caption_s_vector_is_the_mean_of_its_sub_words() -> None:
    pooled = CaptionVectors(E, T, 8, 0.1)
    expected = torch.stack([row[:count].mean(0) for row, count in zip(COND, (4, T, 2))])
    close(pooled(COND), pooled.proj(expected))
    close(pooled(torch.zeros(1, T, E)), pooled.proj(pooled.null_vector))


def test_a_caption_s_prefix_ends_where_the_ids_begin() -> None:
    prefix = CaptionPrefix(E, T, 8, 0.1)
    x, allowed_keys = prefix(COND)
    assert [row.tolist() for row in allowed_keys] == [[i >= T - count for i in range(T)] for count in (4, T, 2)]
    for i, count in enumerate((4, T, 2)):
        words = nn.functional.gelu(COND[i, :count] @ prefix.fc1.weight.T, approximate="tanh") @ prefix.fc2.weight.T
        close(x[i, T - count :], words)


def test_positions_attend_to_no_padding_but_themselves() -> None:
    allowed = causal_after_padding(torch.tensor([[False, True]]), 4)[0, 0]
    assert allowed.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_ids_keep_their_places_behind_a_caption() -> None:
    for rope in ("1d", "2d"):
        keys: dict[str, Any] = {"vocab_size": V, "rope": rope, **SIZES}
        conditions = (TEXT, ConditionConfig())
        text, classes = (rotary_table(LlamaGenConfig(**{**keys, "condition": each})) for each in conditions)
        for ours, theirs in zip(text, classes):
            assert ours.shape == (T + K, 2)
            close(ours[T - 1 :], theirs)
    assert not text[0][:T].any(), "of a grid the caption has no place"
