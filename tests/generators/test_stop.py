"""Generators that stop by themselves: the loss, ragged samples, and that nothing changes without it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tok1d.config.load import load_recipe
from tok1d.config.registry import build_model_config
from tok1d.data.images import ImageSource, open_images
from tok1d.data.tokens import TokenCache
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.budgets import measured_qualities
from tok1d.inference.budget import budget
from tok1d.inference.sampling import counted
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]
SIZES = {"num_tokens": 4, "num_classes": 10, "dim": 16, "heads": 2, "depth": 1}
HEAD = {"width": 16, "depth": 1, "steps": 2, "sampler": "euler", "batch_mul": 1}
MODELS: dict[str, dict[str, Any]] = {
    "epsilon_llamagen": {**SIZES, "token_dim": 4, "head": HEAD},
    "class token": {**SIZES, "token_dim": 4, "head": {**HEAD, "class_token": True}},
    "card": {**SIZES, "token_dim": 4, "head": HEAD, "class_source": "independent", "class_dim": 8},
    "llamagen": {**SIZES, "vocab_size": 16},
}
COND = torch.tensor([3, 3, 7, 0, 5])


def build(name: str, *, stop: bool = True, odds: float | None = None, **changes: Any) -> Any:
    kind = "epsilon_llamagen" if name == "class token" else name
    torch.manual_seed(0)
    model = store.build_model(build_model_config({"name": kind, **MODELS[name], "stop": stop, **changes})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if odds is not None:
        nn.init.zeros_(model.stop.weight)
        nn.init.constant_(model.stop.bias, odds)
    return model


def tokens_for(model: Any, num: int = 5) -> torch.Tensor:
    if model.kind == "categorical":
        return torch.randint(16, (num, 4))
    return torch.randn(num, 4, 4)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_never_stops_is_the_model_without_ends(name: str) -> None:
    """The same weights: the tokens are equal where ends take no random numbers, else the lengths are full."""
    model = build(name, odds=-100.0)
    tokens, lengths = model.sample_ragged(COND, guidance=2.0, seed=1)
    assert lengths.tolist() == [4] * 5 and torch.equal(model.sample(COND, guidance=2.0, seed=1), tokens)
    plain = build(name, stop=False)
    assert plain.sample_ragged(COND, seed=1)[1] is None
    first = model.sample(COND, seed=1, length=1)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "stop" not in key})
    assert torch.equal(first, plain.sample(COND, seed=1, length=1))


@pytest.mark.parametrize("name", MODELS)
def test_one_that_always_stops_has_one_token(name: str) -> None:
    model = build(name, odds=100.0)
    with counted(*model.evaluated_networks(model.guidance_of(1.0))) as calls:
        tokens, lengths = model.sample_ragged(COND, seed=1)
    assert lengths.tolist() == [1] * 5 and tokens.shape[1] == 4
    later = model.normalise(tokens)[:, 1:] if name == "card" else tokens[:, 1:]
    assert not later.any(), "the rest is zero"
    # LlamaGen's outputs are computed for the step in which it ends, heads are not.
    assert calls.rows == (10 if name == "llamagen" else 5 * 2)


@pytest.mark.parametrize("name", ["card", "llamagen"])
def test_lengths_follow_the_odds(name: str) -> None:
    """With a constant probability of 1/3 the lengths are geometric, cut at all tokens."""
    model = build(name, odds=-math.log(2))
    lengths = model.sample_ragged(torch.zeros(3000, dtype=torch.int64), seed=0)[1]
    shares = torch.bincount(lengths, minlength=5)[1:] / 3000
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 2 / 9, 4 / 27, 8 / 27]), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_ragged_sample_depends_on_its_own_random_numbers(name: str) -> None:
    """Sequences that have ended leave the batch; the others are those of a batch of one."""
    model = build(name, odds=-math.log(2))

    def sample(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return model.sample_ragged(COND[rows], guidance=1.5, generator=generators)

    tokens, lengths = sample([0, 1, 2, 3, 4])
    assert len(set(lengths.tolist())) > 1
    for row in range(5):
        alone, length = sample([row])
        assert length.tolist() == [lengths[row]]
        torch.testing.assert_close(alone[0], tokens[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_over_the_tokens_of_a_sequence(name: str) -> None:
    model, lengths = build(name, class_dropout=0.0), torch.tensor([1, 2, 4, 3, 4])
    tokens = tokens_for(model)
    torch.manual_seed(1)
    losses = model.losses((tokens, COND, lengths), 0.0)
    others = tokens.clone()
    for row, length in enumerate(lengths):
        others[row, length:] = 0 if model.kind == "categorical" else 9.0
    torch.manual_seed(1)
    again = model.losses((others, COND, lengths), 0.0)
    torch.testing.assert_close(again, losses)
    states = model.states(model.normalise(tokens)[:, :-1] if name == "card" else tokens[:, :-1], COND)[0]
    terms = [
        F.binary_cross_entropy_with_logits(model.stop(states[row, i])[0], torch.tensor(float(i == length)))
        for row, length in enumerate(lengths)
        for i in range(1, min(int(length), 3) + 1)
    ]
    torch.testing.assert_close(losses["loss_stop"], torch.stack(terms).mean())
    with pytest.raises(InputError, match="stop: a model that stops by itself is trained on numbers of tokens"):
        model.losses((tokens, COND), 0.0)


@pytest.mark.parametrize("name", ["epsilon_llamagen", "llamagen"])
def test_full_lengths_give_the_loss_without_ends(name: str) -> None:
    model = build(name, class_dropout=0.0)
    plain = build(name, stop=False, class_dropout=0.0)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "stop" not in key})
    tokens, losses = tokens_for(model), []
    for each, batch in ((model, (tokens, COND, torch.full((5,), 4))), (plain, (tokens, COND))):
        torch.manual_seed(1)
        losses.append(each.losses(batch, 0.0)["loss"])
    torch.testing.assert_close(*losses)


SMALL = ["train.steps=2", "train.warmup=1", "train.batch_size=8", "train.save_every=0", "train.ema=0"]


@pytest.fixture
def trained(tiny: Tiny, fashion: None, tmp_path: Path) -> Callable[..., Any]:
    """trained(name, *overrides): a tokenizer of random weights in a folder and the recipe of a generator."""

    def make(name: str, *overrides: str) -> tuple[Any, Any]:
        """quality=MEDIAN is that of all prefixes of the training images."""
        vq = ["model.bottleneck={name: vq, size: 16}"] if name == "llamagen" else []
        recipe = load_recipe(tiny("smap"), vq)
        torch.manual_seed(0)
        tokenizer = store.build_model(recipe.model).eval()
        for parameter in tokenizer.parameters():
            nn.init.normal_(parameter, std=0.3)
        store.save_model(tokenizer, tmp_path / "tokenizer", Card())
        config = {"name": name, **MODELS[name], "stop": True}
        settings = [f"model={config}", "data={image_size: 32, pad: 2}", f"tokenizer={tmp_path / 'tokenizer'}"]
        settings += [f"out={tmp_path / 'run'}", "num_tokens=4", *SMALL]
        images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2), "train")
        found = [each[3] for each in measured_qualities(tokenizer, images, metric="psnr")]
        settings += [each.replace("MEDIAN", f"{float(torch.cat(found).median()):.6f}") for each in overrides]
        return tokenizer, load_recipe(tiny("generator", tokenizer="x"), settings)

    return make


@pytest.mark.parametrize("name", ["epsilon_llamagen", "card", "llamagen"])
def test_a_cache_holds_the_numbers_that_the_search_finds(trained: Any, tmp_path: Path, name: str) -> None:
    tokenizer, recipe = trained(name, "budget.quality=MEDIAN")
    task = build_task(recipe)
    cache = TokenCache(tmp_path / "run" / "cache")
    pixels, labels = task.images.batch(range(64))
    wanted = recipe.budget.quality
    expected = budget(tokenizer, pixels, labels, quality=wanted).keep
    assert torch.equal(cache.lengths(range(64)), expected) and len(set(expected.tolist())) > 1
    assert cache.meta["quality"] == wanted and cache.lengths([9, 2]).tolist() == expected[[9, 2]].tolist()
    batch = task.batch(0, 0, 1)
    assert len(batch) == 3 and batch[2].shape == (8,)
    assert fit(recipe, task, tmp_path / "run", quiet=True).steps == 2
    model: Any = task.model
    model.partner = (tokenizer,)
    samples = model.generate([1, 2], num=3)
    assert samples.lengths.shape == (6,)
    place = int(samples.lengths.argmin())
    alone = tokenizer.decode(
        samples.tokens[place : place + 1], torch.tensor([1 + place // 3]), keep=int(samples.lengths[place])
    )
    torch.testing.assert_close(samples.images[place : place + 1], alone, atol=1e-4, rtol=0)
    grown = list(model.stream([1, 2], num=3))
    torch.testing.assert_close(grown[-1], samples.images, atol=1e-4, rtol=0)
    for search in ("best-of=1", "beam=1", "best-of=3", "beam=2"):
        found = model.generate([1, 2], num=3, search=search, verifier=lambda images, labels: images.mean((1, 2, 3)))
        assert found.lengths.shape == (6,)
        if search.endswith("1"):
            torch.testing.assert_close(found.images, samples.images, atol=1e-4, rtol=0)
            assert torch.equal(found.lengths, samples.lengths)


def test_a_generator_learns_its_ends_from_the_weights_of_one_without(trained: Any, tmp_path: Path) -> None:
    plain = build("card", stop=False)
    store.save_model(plain, tmp_path / "plain", Card())
    model: Any = build_task(trained("card", "budget.quality=MEDIAN", f"init_from={tmp_path / 'plain'}")[1]).model
    own = model.state_dict()
    assert {key for key in own if key not in plain.state_dict()} == {"stop.weight", "stop.bias"}
    assert torch.equal(own["blocks.0.attn.qkv.weight"], plain.state_dict()["blocks.0.attn.qkv.weight"])
    assert own["stop.bias"].tolist() == pytest.approx([-math.log(4)])


def test_recipes_that_do_not_fit_are_refused(trained: Any, tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.stop: .*needs budget\.quality=Q in dB .*got budget\.quality=null"):
        trained("card")
    with pytest.raises(ConfigError, match=r"model\.stop: .*got cache=none"):
        trained("card", "budget.quality=6", "cache=none")
    with pytest.raises(ConfigError, match=r"budget\.quality: only a generator with model\.stop=true reads it, got 6"):
        trained("card", "budget.quality=6", "model.stop=false")
    with pytest.raises(ConfigError, match=r"budget\.quality: only generators read it"):
        load_recipe(tiny("smap"), ["budget.quality=6"])
    build_task(trained("card", "budget.quality=6.5")[1])
    with pytest.raises(Exception, match=r"expected numbers of tokens for .*7.* encode with --quality 7"):
        build_task(trained("card", "budget.quality=7")[1])
