"""Every tokenizer with every generator that can model its tokens; any other pair is refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tok1d.config.load import load_recipe, to_yaml
from tok1d.data.tokens import TokenCache
from tok1d.errors import ConfigError
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]

# Recipe of tests/conftest.py and its overrides.
TOKENIZERS = {
    "semanticist": ("tokenizer", []),
    "semanticist ddpm": ("tokenizer", ["model.objective=ddpm"]),
    "semanticist vq": ("tokenizer", ["model.quantiser={name: vq, size: 16}"]),
    "maetok": ("maetok", []),
    "patches": ("maetok", ["model.num_tokens=0", "model.encoder.patch=16", "model.decoder.patch=16"]),
    "kl": ("maetok", ["model.bottleneck={name: kl}"]),
    "softvq": ("maetok", ["model.bottleneck={name: softvq, size: 16, num_codebooks: 2}"]),
    "vq": ("maetok", ["model.bottleneck={name: vq, size: 16}"]),
    "smap kl": ("smap", []),
    "smap without condition": ("smap", ["model.use_condition=false"]),
    "smap softvq": ("smap", ["model.bottleneck={name: softvq, size: 16, num_codebooks: 2}"]),
    "smap vq": ("smap", ["model.bottleneck={name: vq, size: 16}"]),
    "smap residual vq": (
        "smap",
        ["model.num_tokens=2", "evaluate.keep=[1, 4]", "model.bottleneck={name: vq, size: 16, l2: false, levels: 2}"],
    ),
    "titok kl": ("titok", []),
    "titok vq": ("titok", ["model.bottleneck={name: vq, size: 16}"]),
}
OF_IDS = [name for name in TOKENIZERS if "vq" in name.split()]
CONTINUOUS = [name for name in TOKENIZERS if name not in OF_IDS]
SIZES = "num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, heads: 2"
GENERATORS = {
    "epsilon_llamagen": f"{{name: epsilon_llamagen, {SIZES}, depth: 1, head: {{width: 16, depth: 1, steps: 2}}}}",
    "card": (
        f"{{name: card, {SIZES}, depth: 1, class_source: independent, class_dim: 8, "
        "head: {width: 16, depth: 1, steps: 2}}"
    ),
    "sit": f"{{name: sit, {SIZES}, depth: 1, steps: 2}}",
    "dit": f"{{name: dit, {SIZES}, depth: 1, steps: 2}}",
    "lightningdit": f"{{name: lightningdit, {SIZES}, depth: 1, steps: 2}}",
    "usit": f"{{name: usit, {SIZES}, depth: 3, steps: 2}}",
}
IDS = "num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, heads: 2"
GENERATORS_OF_IDS = {
    "llamagen": f"{{name: llamagen, {IDS}, depth: 1}}",
    "llamagen 2d": f"{{name: llamagen, {IDS}, depth: 1, rope: 2d}}",
    "maskgit": f"{{name: maskgit, {IDS}, depth: 1, steps: 2}}",
    "maskgit uvit": f"{{name: maskgit, {IDS}, trunk: uvit, depth: 3, steps: 2}}",
}


@pytest.fixture
def pair(tiny: Tiny, fashion: None, tmp_path: Path) -> Callable[..., Any]:
    """pair(tokenizer, generator, *overrides): the tokenizer, saved, and the recipe of a generator on its tokens."""

    def make(tokenizer: str, generator: str, *overrides: str) -> tuple[Any, Any]:
        kind, changes = TOKENIZERS[tokenizer]
        recipe = load_recipe(tiny(kind), changes)
        torch.manual_seed(0)
        model = store.build_model(recipe.model).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        store.save_model(model, tmp_path / "tokenizer", Card(recipe=to_yaml(recipe)))
        data = f"data={{image_size: {recipe.data.image_size}, pad: {recipe.data.pad}}}"
        settings = [data, f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'run'}", "train.steps=2"]
        wanted = load_recipe(
            tiny("sit"), [f"model={(GENERATORS | GENERATORS_OF_IDS)[generator]}", *settings, *overrides]
        )
        return model, wanted

    return make


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("tokenizer", CONTINUOUS)
def test_encode_cache_train_sample_and_decode(pair: Any, tmp_path: Path, tokenizer: str, generator: str) -> None:
    decoder, recipe = pair(tokenizer, generator)
    task = build_task(recipe)
    cache = TokenCache(tmp_path / "run" / "cache")
    assert len(cache) == 64 and cache.batch([5, 9])[0].shape == (2, 4, 4)
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert fit(recipe, task, tmp_path / "run", quiet=True).steps == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters()))
    model: Any = task.model
    tokens = model.sample(torch.tensor([3, 7]))
    images = decoder.decode(tokens, torch.tensor([3, 7]))
    assert tokens.shape == (2, 4, 4) and images.shape == (2, 1, *[recipe.data.image_size] * 2)
    assert torch.isfinite(tokens).all() and 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("tokenizer", OF_IDS)
def test_ids_are_refused_by_generators_of_continuous_tokens(
    pair: Any, tmp_path: Path, tokenizer: str, generator: str
) -> None:
    recipe = pair(tokenizer, generator)[1]
    message = (
        f"tokenizer: expected one that makes continuous tokens, as {generator} models; this makes ids of a vocabulary"
    )
    with pytest.raises(ConfigError) as caught:
        build_task(recipe)
    assert str(caught.value) == message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("generator", GENERATORS_OF_IDS)
@pytest.mark.parametrize("tokenizer", OF_IDS)
def test_encode_cache_train_sample_and_decode_ids(pair: Any, tmp_path: Path, tokenizer: str, generator: str) -> None:
    decoder, recipe = pair(tokenizer, generator)
    task = build_task(recipe)
    ids, labels = task.batch(0, 0, 1)
    assert (ids.shape, ids.dtype, labels.shape) == ((8, 4), torch.int64, (8,))
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert fit(recipe, task, tmp_path / "run", quiet=True).steps == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters()))
    model: Any = task.model
    sampled = model.sample(torch.tensor([3, 7]))
    images = decoder.decode(sampled, torch.tensor([3, 7]))
    assert sampled.shape == (2, 4) and 0 <= sampled.min() <= sampled.max() < 16
    assert images.shape == (2, 1, *[recipe.data.image_size] * 2) and 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("generator", GENERATORS_OF_IDS)
@pytest.mark.parametrize("tokenizer", CONTINUOUS)
def test_continuous_tokens_are_refused_by_generators_of_ids(
    pair: Any, tmp_path: Path, tokenizer: str, generator: str
) -> None:
    recipe = pair(tokenizer, generator)[1]
    name = recipe.model.name
    message = f"tokenizer: expected one that makes ids of a vocabulary, as {name} models; this makes continuous tokens"
    with pytest.raises(ConfigError) as caught:
        build_task(recipe)
    assert str(caught.value) == message and not (tmp_path / "run").exists()


def test_another_vocabulary_or_length_is_refused(pair: Any) -> None:
    for change, message in (
        ("model.vocab_size=32", "model.vocab_size: expected 16 as the tokenizer makes them, got 32"),
        ("model.num_tokens=9", "model.num_tokens: expected 4 as the tokenizer makes them, got 9"),
    ):
        with pytest.raises(ConfigError) as caught:
            build_task(pair("vq", "llamagen", change)[1])
        assert str(caught.value) == message


def test_ids_go_through_the_cache(pair: Any, fashion: None, tmp_path: Path) -> None:
    from tok1d.inference.cache import encode_images
    from tok1d.train.images import open_split

    tokenizer, recipe = pair("vq", "sit")
    images = open_split(recipe, "train")
    cache = encode_images(tokenizer, images, tmp_path / "cache", quiet=True)
    assert cache is not None and (cache.layout.dtype, cache.dim) == ("int64", 0)
    ids, x = cache.batch(range(64))[0], images.batch(range(64))[0]
    assert ids.shape == (64, 4) and ids.dtype == torch.int64 and torch.equal(ids, tokenizer.encode(x))
    assert tokenizer.decode(ids[:2]).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("generator", ["epsilon_llamagen", "card", "sit"])
def test_some_of_the_tokens_are_enough_only_where_they_are_ordered(pair: Any, generator: str) -> None:
    part = ("num_tokens=3", "model.num_tokens=3")
    assert build_task(pair("semanticist", generator, *part)[1]).batch(0, 0, 1)[0].shape == (8, 3, 4)
    with pytest.raises(
        ConfigError, match=r"^num_tokens: these tokens have no order, so a generator models all 4, got 3;"
    ):
        build_task(pair("maetok", generator, *part)[1])


def test_the_border_of_the_tokenizer_s_images_is_kept(pair: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data\.pad: expected 2 as in the tokenizer's training, got 0$"):
        build_task(pair("maetok", "sit", "data.pad=0")[1])


def test_class_vectors_come_from_a_tokenizer_that_has_some(pair: Any, tmp_path: Path) -> None:
    shared = "model.class_source=shared"
    for tokenizer in ("maetok", "smap without condition"):
        with pytest.raises(ConfigError) as caught:
            build_task(pair(tokenizer, "card", shared)[1])
        assert str(caught.value) == (
            f"model.class_source: shared needs a tokenizer with class vectors, {tmp_path / 'tokenizer'} has none; "
            "set model.class_source=independent"
        )
        assert not (tmp_path / "run").exists(), "reported before anything is encoded"
    build_task(pair("maetok", "card", shared, "model.num_classes=0")[1])  # without classes there is nothing to share


def test_shared_class_vectors_travel_with_the_generator(pair: Any, tmp_path: Path) -> None:
    shared, width = "model.class_source=shared", "model.class_dim=16"
    with pytest.raises(ConfigError, match=r"^model\.class_dim: expected 16 as the tokenizer's class table, got 9$"):
        build_task(pair("smap kl", "card", shared, "model.class_dim=9")[1])
    tokenizer, recipe = pair("smap kl", "card", shared, width)
    task = build_task(recipe)
    tokens = torch.cat([task.batch(step, 0, 1)[0] for step in range(8)])
    model: Any = task.model
    torch.testing.assert_close(model.normalise(tokens).mean(), torch.tensor(0.0), atol=0.1, rtol=0)
    assert fit(recipe, task, tmp_path / "run", quiet=True).steps == 2
    store.save_model(model, tmp_path / "model", Card())
    loaded: Any = store.load(tmp_path / "model")  # needs no tokenizer to sample
    assert torch.equal(loaded.label_embed.table, tokenizer.class_vectors())
    assert torch.equal(loaded.sample(torch.tensor([3, 7])), model.sample(torch.tensor([3, 7])))
