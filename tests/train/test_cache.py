"""Caches made from images: the view and image of each row, one or several writers, and what training reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages
from tok1d.data.order import uniforms
from tok1d.data.tokens import Layout, TokenCache
from tok1d.data.transforms import NUM_VIEWS, Transform, centercrop_views, tencrop_views, to_tensor
from tok1d.errors import ConfigError, DataError
from tok1d.inference.cache import encode_batch, encode_images, forecast, parse_part, with_views
from tok1d.inference.request import CacheFormat
from tok1d.train.images import open_split
from tok1d.train.rows import every_image, released
from tok1d.train.task import Task
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
SIZE, LENGTH, DIM = 40, 3, 5


class Pixels(nn.Module):
    """A tokenizer whose tokens are pixels of the image, and its label in the first number."""

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)  # changes the tokens if the tokenizer is not in eval mode
        defaults = {"length": LENGTH, "dim": DIM, "vocab_size": None, "needs_label": True}
        self.spec = SimpleNamespace(**{**defaults, **spec})
        self.config = None

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        # From all over the image: of two views that differ anywhere some token differs.
        tokens = images.flatten(1)[:, :: images[0].numel() // (LENGTH * DIM)][:, : LENGTH * DIM].clone()
        if cond is not None:
            tokens[:, 0] = cond.float()
        tokens = self.drop(tokens @ torch.eye(LENGTH * DIM)).unflatten(1, (LENGTH, DIM))
        return tokens if self.spec.vocab_size is None else (tokens[..., 0] * 255).long()


def photos(num: int = 7) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, 50, 46, 3), np.uint8)


def array_set(views: Any = "center", num: int = 7) -> ArrayImages:
    images = ArrayImages(photos(num), np.arange(num) % 3, ["x", "y", "z"], Transform(SIZE, 3))
    return with_views(images, views)  # type: ignore[return-value]


def folder_set(root: Path, views: Any) -> FolderImages:
    for i, pixels in enumerate(photos()):
        path = root / "xyz"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return with_views(FolderImages(root, Transform(SIZE, 3)), views)  # type: ignore[return-value]


def encode(images: Any, folder: Path, **options: Any) -> TokenCache | None:
    held = {key: options.pop(key) for key in list(options) if key in CacheFormat.__dataclass_fields__}
    return encode_images(Pixels(), images, folder, quiet=True, format=CacheFormat(**held), **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


VIEWS_OF = {
    "center": lambda image: centercrop_views(image, SIZE)[:1],
    "center+flip": lambda image: centercrop_views(image, SIZE),
    "tencrop": lambda image: tencrop_views(image, SIZE),
}


@pytest.mark.parametrize("views", VIEWS_OF)
@pytest.mark.parametrize("source", ["array", "folder"])
def test_row_i_times_views_plus_v_is_view_v_of_image_i(tmp_path: Path, views: Any, source: str) -> None:
    images: Any = array_set(views) if source == "array" else folder_set(tmp_path / "images", views)
    cache = encode(images, tmp_path / "cache", batch_size=3, rows_per_shard=13)
    assert cache is not None and cache.views == NUM_VIEWS[views] == len(cache) / 7
    pixels = photos() if source == "array" else [photos()[i] for i in (0, 3, 6, 1, 4, 2, 5)]  # sorted by class
    tokens, labels = cache.batch(range(len(cache)))
    for i, photo in enumerate(pixels):
        expected = torch.stack([to_tensor(view) for view in VIEWS_OF[views](Image.fromarray(photo))])
        rows = slice(i * cache.views, (i + 1) * cache.views)
        assert len(expected) == cache.views and labels[rows].unique().tolist() == [images.labels[i]]
        assert torch.equal(tokens[rows], Pixels().eval().encode(expected, labels[rows]))
    assert len(tokens.flatten(1).unique(dim=0)) == len(tokens), "the views are to differ"


def test_random_views_are_a_pure_function_of_the_seed(tmp_path: Path) -> None:
    def tokens(name: str, seed: int) -> Tensor:
        cache = encode(array_set("random"), tmp_path / name, seed=seed)
        assert cache is not None and cache.views == 1 and cache.meta["seed"] == seed
        return cache.batch(range(7))[0]

    assert torch.equal(tokens("a", 1), tokens("b", 1)) and not torch.equal(tokens("a2", 1), tokens("c", 2))
    images, labels = ArrayImages(photos(), np.arange(7) % 3, ["x", "y", "z"], Transform(SIZE, 3, "random", True)).batch(
        range(7), seed=1
    )
    assert torch.equal(tokens("d", 1), Pixels().eval().encode(images, labels))


@pytest.mark.parametrize("num", [1, 5, 12, 13])
@pytest.mark.parametrize(("rows_per_shard", "parts"), [(1, 3), (10, 2), (65536, 4)])
def test_every_row_is_there_once_whatever_the_numbers(
    tmp_path: Path, num: int, rows_per_shard: int, parts: int
) -> None:
    images = array_set("center+flip", num)
    made = [
        encode(images, tmp_path / "parts", rows_per_shard=rows_per_shard, part=(i, parts), batch_size=3)
        for i in range(parts)
    ]
    whole = encode(images, tmp_path / "whole", rows_per_shard=rows_per_shard)
    assert made[-1] is not None and whole is not None and len(whole) == 2 * num
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert whole.batch(range(len(whole)))[1].tolist() == [i % 3 for i in range(num) for _ in range(2)]


def test_first_tokens_in_every_type_and_ids(tmp_path: Path) -> None:
    whole = encode(array_set(), tmp_path / "whole")
    assert whole is not None
    tokens = whole.batch(range(7))[0]
    for dtype in ("float32", "float16", "bfloat16"):
        cache = encode(array_set(), tmp_path / dtype, num_tokens=2, dtype=dtype)
        assert cache is not None
        assert torch.equal(cache.batch(range(7))[0], tokens[:, :2].to(getattr(torch, dtype)).float())
    half = CacheFormat(dtype="float16")
    ids = encode_images(Pixels(vocab_size=256, dim=None), array_set(), tmp_path / "ids", format=half, quiet=True)
    assert ids is not None and ids.layout.dtype == "int64" and ids.batch([3])[0].dtype == torch.int64
    with pytest.raises(ConfigError, match=r"num_tokens: expected 1\.\.3"):
        encode(array_set(), tmp_path / "no", num_tokens=4)
    assert not (tmp_path / "no").exists()


def test_tokens_are_encoded_in_float32_whatever_autocast_is_on() -> None:
    x, labels = array_set().batch(range(2))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encode_batch(Pixels().eval(), x, labels, LENGTH)
    assert tokens.dtype == torch.float32 and not tokens.requires_grad
    assert torch.equal(tokens, Pixels().eval().encode(x, labels))


def test_a_part_is_named_by_two_numbers() -> None:
    assert parse_part("0/1") == (0, 1) and parse_part("3/16") == (3, 16)
    for text in ("", "4", "4/4", "-1/4", "1/0", "a/b", "1/2/3"):
        with pytest.raises(ConfigError, match=r"^--shard: expected I/N with I in 0\.\.N-1, such as 0/4, got"):
            parse_part(text)


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 40), views=st.integers(1, 5), batch=st.integers(1, 9), world=st.integers(1, 3))
def test_an_epoch_is_every_image_once(images: int, views: int, batch: int, world: int) -> None:
    steps = -(-2 * images // (batch * world))
    parts = [
        every_image(images * views, views, batch, seed=3, step=step, rank=rank, world=world)
        for step in range(steps)
        for rank in range(world)
    ]
    rows = np.concatenate(parts)
    assert all(len(part) == batch for part in parts) and 0 <= rows.min() <= rows.max() < images * views
    for epoch in range(2):
        assert sorted(rows[epoch * images : (epoch + 1) * images] // views) == list(range(images))


def test_views_are_sampled_uniformly_and_independently_of_the_crops() -> None:
    rows = np.concatenate([every_image(20_000, 20, 100, seed=0, step=step) for step in range(100)])  # ten epochs
    counts = np.bincount(rows % 20, minlength=20)  # 500 each expected, standard deviation 22
    assert abs(counts - 500).max() < 110
    first = np.concatenate([every_image(20_000, 20, 100, seed=0, step=step) for step in range(10)])
    crops = uniforms(1, seed=0, epoch=0, indices=first // 20)[:, 0]
    assert abs(np.corrcoef(first % 20, crops)[0, 1]) < 0.15


@pytest.mark.parametrize("world", [1, 2])
def test_released_epochs_come_from_one_rng_with_a_short_last_batch(world: int) -> None:
    def parts(step: int) -> list[np.ndarray]:
        return [released(44, 4, 4 // world, seed=5, step=step, rank=rank, world=world) for rank in range(world)]

    for epoch in range(2):
        row_batches = [np.concatenate(parts(step)) for step in range(3 * epoch, 3 * epoch + 3)]
        num = 11 // world * world
        assert [len(part) for part in row_batches] == [4, 4, num - 8]
        generator = torch.Generator().manual_seed(5 + epoch)
        assert np.concatenate(row_batches).tolist() == torch.randint(44, (num,), generator=generator).tolist()
    assert all(len({len(part) for part in parts(step)}) == 1 for step in range(6))


@pytest.fixture
def generator(tiny: Tiny, tmp_path: Path, fashion: None) -> Callable[..., Recipe]:
    """generator(*overrides): a recipe of a generator on a tokenizer with random weights."""
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("tokenizer")).model), tmp_path / "model", Card())
    path = tiny("generator", tokenizer=tmp_path / "model")
    return lambda *overrides: load_recipe(path, [f"out={tmp_path / 'run'}", *overrides])


def test_a_generator_learns_the_same_from_a_cache_and_from_images(generator: Any, tmp_path: Path) -> None:
    def losses(task: Task) -> list[float]:
        values, parameters = [], list(task.model.parameters())
        for step in range(12):  # into the second epoch
            torch.manual_seed(step)
            loss = task.model.train().losses(task.batch(step, 0, 1), step / 12)["loss"]  # type: ignore[operator]
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data.sub_(gradient, alpha=0.05)
            values.append(float(loss.detach()))
        return values

    cached = losses(build_task(generator()))
    assert (tmp_path / "run" / "cache" / "index.json").exists()
    assert cached == pytest.approx(losses(build_task(generator("cache=none"))), rel=1e-4)
    assert len(set(cached)) == 12


def test_images_are_augmented_as_the_recipe_says_and_the_same_step_is_the_same_batch(generator: Any) -> None:
    recipe = generator("cache=none", "data.flip=true")
    task = build_task(recipe)
    images = open_split(recipe, "train", augment=True)
    tokenizer = store.load(recipe.tokenizer)
    for step in (1, 9):  # in the first epoch and in the second
        tokens, labels = task.batch(step, 1, 2)
        rows = every_image(64, 1, 4, seed=0, step=step, rank=1, world=2)
        x, expected = images.batch(rows, seed=0, epoch=step * 8 // 64)
        assert torch.equal(labels, expected) and torch.equal(tokens, encode_batch(tokenizer, x, labels, 3))
        assert torch.equal(tokens, build_task(recipe).batch(step, 1, 2)[0])


def test_a_recipe_chooses_views_type_and_row_order(generator: Any, tmp_path: Path) -> None:
    recipe = generator("cache_views=center+flip", "cache_dtype=bfloat16", "row_order=released")
    task = build_task(recipe)
    cache = TokenCache(tmp_path / "run" / "cache")
    assert (len(cache), cache.views, cache.layout.dtype, cache.num_tokens) == (128, 2, "bfloat16", 3)
    flipped = with_views(open_split(recipe, "train"), "center+flip").batch([5])[0]
    assert torch.equal(flipped[1], flipped[0].flip(-1))
    tokens, labels = task.batch(4, 0, 1)
    expected = cache.batch(released(128, 2, 8, seed=0, step=4))
    assert torch.equal(tokens, expected[0]) and torch.equal(labels, expected[1])
    again = dataclasses.replace(recipe, row_order="every_image")
    assert torch.equal(build_task(again).batch(3, 0, 1)[1], cache.batch(every_image(128, 2, 8, seed=0, step=3))[1])
    with pytest.raises(DataError, match=r"got adm-center\+flip.*set cache_views as it was encoded"):
        build_task(generator())


@pytest.mark.parametrize("change", ["cache_views=tencrop", "cache_dtype=float16", "row_order=released"])
def test_settings_of_a_cache_need_a_cache(generator: Any, tiny: Tiny, change: str) -> None:
    generator(change)
    key = change.split("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: only generators that train from a cache"):
        generator("cache=none", change)
    with pytest.raises(ConfigError, match=rf"^{key}: only generators"):
        load_recipe(tiny("tokenizer"), [change])


def test_more_tokens_than_there_are_are_refused_without_a_cache_too(generator: Any) -> None:
    with pytest.raises(ConfigError, match=r"^num_tokens: expected 1\.\.4"):
        build_task(generator("cache=none", "num_tokens=5", "model.num_tokens=5"))


def test_the_size_is_known_without_encoding(tmp_path: Path, capsys: Any, monkeypatch: Any, generator: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=7_250_000_000))
    model, out = generator().tokenizer, tmp_path / "out"
    words = ["encode", model, "fashion_mnist", "--out", str(out), "--views", "tencrop", "--dtype", "bfloat16"]
    assert cli.run([*words, "--num-tokens", "2", "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "64 images x 20 views = 1280 rows of 2 x 4 bfloat16 numbers"
    assert second == f"needs 30.7 kB in 1 shard files; {out} has 7.2 GB free" and not out.exists()
    assert forecast(Layout(8, 0, "int64", 100), 150, 1, out).startswith("150 images x 1 views = 150 rows of 8 ids")


def test_two_commands_share_the_work(tmp_path: Path, capsys: Any, generator: Any) -> None:
    words = ["encode", generator().tokenizer, "fashion_mnist", "--out", str(tmp_path / "c"), "--rows-per-shard", "20"]
    assert cli.run([*words, "--shard", "1/2"]) == 0
    assert "shard 1/2 is written" in capsys.readouterr().out and not (tmp_path / "c" / "index.json").exists()
    assert cli.run([*words, "--shard", "0/2"]) == 0
    assert "64 rows of 4 tokens" in capsys.readouterr().out
    assert cli.run([*words, "--shard", "1/2"]) == 0  # run again, as schedulers do
    assert cli.run([*words, "--shard", "2/2"]) == 2 and "--shard: expected I/N" in capsys.readouterr().err


def test_processes_of_torchrun_take_their_parts(tmp_path: Path, monkeypatch: Any, capsys: Any, generator: Any) -> None:
    words = ["encode", generator().tokenizer, "fashion_mnist", "--out", str(tmp_path / "c"), "--rows-per-shard", "20"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert cli.run(words) == 0
    assert "64 rows of 4 tokens" in capsys.readouterr().out and len(TokenCache(tmp_path / "c")) == 64


def test_a_tokenizer_of_other_heads_has_other_tokens(tmp_path: Path, fashion: None, tiny: Tiny) -> None:
    """Weights alone do not tell them apart, as those of a file that was converted with a wrong option."""
    torch.manual_seed(0)
    recipe = load_recipe(tiny("tokenizer"))
    for heads in (2, 4):
        recipe.model.encoder.heads = heads
        torch.manual_seed(0)
        store.save_model(store.build_model(recipe.model), tmp_path / f"heads{heads}", Card())
    two, four = (store.load(tmp_path / f"heads{heads}") for heads in (2, 4))
    assert fingerprint(two) == fingerprint(four)
    assert store.model_identity(two) != store.model_identity(four)
    path = tiny("generator", tokenizer=tmp_path / "heads2")
    build_task(load_recipe(path, [f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}"]))
    again = [f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'other'}", f"tokenizer={tmp_path / 'heads4'}"]
    with pytest.raises(DataError, match=r"made by a tokenizer with encoder\.heads=2, this one has 4: run tok1d encode"):
        build_task(load_recipe(path, again))
