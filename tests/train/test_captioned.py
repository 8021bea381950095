"""Training on captioned images and on images of several sizes: what a batch holds, exact resumption, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.config.registry import models_with
from tok1d.cost.forecast import forecast, meta_batch, table
from tok1d.errors import ConfigError, DataError
from tok1d.train import folder, run
from tok1d.train.images import open_split
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.pretrained.text import CaptionWords

Tiny = Callable[..., str]
TEXT = "model.auxiliary=[{target: hog, cell: 4, depth: 1}, {target: text, dim: 64, depth: 1, tokenizer: %s}]"
SIZES = "data.image_sizes=[32, 48]"


def recipe(tiny: Tiny, out: Path, *overrides: str) -> Recipe:
    return load_recipe(tiny("maetok"), [f"out={out}", *overrides])


@pytest.mark.parametrize("idf", [True, False])
def test_batches_hold_the_words_of_their_images(tiny: Tiny, tmp_path: Path, fashion: None, bpe: str, idf: bool) -> None:
    text = TEXT.replace("depth: 1, tok", f"depth: 1, idf: {str(idf).lower()}, tok") % bpe
    wanted = recipe(tiny, tmp_path, "data.captions=labels", text)
    batch, images = build_task(wanted).batch, open_split(wanted, "train")
    reference = CaptionWords(bpe, 64)
    if idf:
        reference.fit(images.captions)

    def key(image: torch.Tensor) -> tuple[float, ...]:
        return tuple(image.flatten()[:400].tolist())

    expected = dict(zip(map(key, images.batch(range(64))[0]), reference(images.captions)))
    for step in range(10):
        pixels, labels, words = batch(step, 0, 1)
        assert words.shape == (8, 64) and labels.shape == (8,)
        for image, row in zip(pixels, words):
            assert torch.equal(row, expected[key(image)])
    parts = [batch(3, rank, 2) for rank in range(2)]
    for whole, halves in zip(batch(3, 0, 1), zip(*parts)):
        assert torch.equal(torch.cat(halves), whole), "the same rows on one process and on two"


def test_unused_captions_make_no_difference(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    with_captions = build_task(recipe(tiny, tmp_path, "data.captions=labels")).batch(0, 0, 1)
    plain = build_task(recipe(tiny, tmp_path)).batch(0, 0, 1)
    assert len(with_captions) == len(plain) == 2
    assert all(torch.equal(a, b) for a, b in zip(with_captions, plain))


@pytest.mark.parametrize("kind", ["words", "sizes", "both"])
def test_resumed_equals_unbroken(tiny: Tiny, tmp_path: Path, fashion: None, bpe: str, kind: str) -> None:
    def settings(name: str) -> Recipe:
        words = ["data.captions=labels", TEXT % bpe] if kind != "sizes" else []
        return recipe(tiny, tmp_path / name, *words, *([SIZES] if kind != "words" else []))

    unbroken = build_task(settings("one"))
    (tmp_path / "one").mkdir()
    assert fit(settings("one"), unbroken, tmp_path / "one", quiet=True).finished
    (tmp_path / "two").mkdir()
    while True:  # a step a sitting
        task = build_task(settings("two"))
        if fit(settings("two"), task, tmp_path / "two", seconds=0.0, quiet=True).finished:
            break
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[name]), name
    logged = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert all(("loss_text" in entry) == (kind != "sizes") for entry in logged)


def test_a_batch_has_one_of_the_sizes_whatever_the_rank(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    batch = build_task(recipe(tiny, tmp_path, SIZES)).batch
    sides = [batch(step, 0, 1)[0].shape[-2:] for step in range(60)]
    assert set(sides) == {(32, 32), (48, 48)} and 15 < sides.count((48, 48)) < 45
    again = build_task(recipe(tiny, tmp_path, SIZES)).batch
    for step in (7, 3, 50):
        assert [again(step, rank, 4)[0].shape[-2:] for rank in range(4)] == [sides[step]] * 4
    other = build_task(recipe(tiny, tmp_path, SIZES, "seed=1")).batch
    assert [other(step, 0, 1)[0].shape[-2:] for step in range(60)] != sides
    plain = build_task(recipe(tiny, tmp_path)).batch
    for step in range(5):
        assert torch.equal(plain(step, 0, 1)[1], batch(step, 0, 1)[1]), "the order of the images stays"


def test_a_run_on_folders_with_both_ends_and_loads(tiny: Tiny, tmp_path: Path, bpe: str) -> None:
    root = tmp_path / "data"
    (root / "val").mkdir(parents=True)
    (root / "train").mkdir()
    entries = []
    for i in range(24):
        file = f"{'train' if i < 16 else 'val'}/{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 56), np.uint8)).save(root / file)
        entries.append(json.dumps({"file": file, "caption": "a dress" if i % 2 else "a photo of a bag"}))
    (root / "captions.jsonl").write_text("\n".join(entries))
    data = ["data.name=folder", f"data.root={root}", "data.captions=captions.jsonl", "data.pad=0"]
    wanted = recipe(tiny, tmp_path / "run", *data, TEXT % bpe, SIZES)
    assert run.train(wanted, quiet=True) == tmp_path / "run" and folder.is_finished(tmp_path / "run")
    model: Any = store.load(tmp_path / "run" / "model")
    assert model.encode(torch.rand(1, 1, 48, 48)).shape == (1, 4, 4)
    (root / "captions.jsonl").write_text('{"file": "val/16.png", "caption": "of the other split"}\n')
    with pytest.raises(DataError, match=r"data\.captions=captions\.jsonl: none of the training images has a caption"):
        build_task(wanted)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.auxiliary=[{target: text, dim: 9}]"], r"^data\.captions: .*text needs captions; expected"),
        (["data.captions=files"], r"^data\.captions: name=fashion_mnist takes labels, got files$"),
        (["data.name=folder", "data.root=x", "data.captions=labels"], r"^data\.captions: name=folder takes files or "),
        (["data.image_sizes=[32, 36]"], r"^data\.image_sizes: .* multiples of model\.encoder\.patch=8, got 36$"),
        (["model.decoder.patch=16", "data.image_sizes=[32, 40]"], r"multiples of model\.decoder\.patch=16, .*40$"),
        (["data.image_sizes=[0]"], r"^data\.image_sizes\[0\]: expected int >= 1, got 0$"),
        (["data.pad=5", "data.image_sizes=[8, 32]"], r"^data\.pad: expected less than half of image_size=8, got 5$"),
    ],
)
def test_contradictions_are_one_line(tiny: Tiny, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(tiny, tmp_path, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", models_with("any_size"))
def test_models_of_any_size_learn_from_all_sizes(tiny: Tiny, tmp_path: Path, fashion: None, kind: str) -> None:
    task = build_task(load_recipe(tiny(kind), [f"out={tmp_path}", SIZES]))
    model: Any = task.model.eval()
    batches = [task.batch(step, 0, 1) for step in range(8)]
    for side in (32, 48):
        images, labels = next(batch for batch in batches if batch[0].shape[-1] == side)
        reconstruction, latents, _ = model.reconstruct((images, labels), 0.0)
        assert reconstruction.shape == images.shape and latents.shape == model.encode(images, labels).shape
        decoded = model.decode(latents, labels, size=side)
        torch.testing.assert_close(decoded, reconstruction.clamp(0, 1), atol=1e-5, rtol=0)


def test_only_models_of_any_size_take_several(tiny: Tiny, tmp_path: Path) -> None:
    for kind, keys in (("tokenizer", {}), ("classifier", {}), ("sit", {"tokenizer": "x"})):
        with pytest.raises(ConfigError, match=r"^data\.image_sizes: only maetok, .* read it, expected \[\] for"):
            load_recipe(tiny(kind, **keys), ["data.image_sizes=[28, 56]"])


def test_stage_two_needs_neither_captions_nor_their_tokenizer(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    text = "model.auxiliary=[{target: text, dim: 9, tokenizer: /no/such/folder}]"
    first = recipe(tiny, tmp_path, "data.captions=labels", text)
    store.save_model(store.build_model(first.model), tmp_path / "first", run.Card())
    second = recipe(tiny, tmp_path / "run", text, "model.stage=finetune", f"init_from={tmp_path / 'first'}")
    assert len(build_task(second).batch(0, 0, 1)) == 2


def test_a_forecast_of_several_sizes_is_their_mean_and_their_largest(tiny: Tiny, tmp_path: Path) -> None:
    rotary = "model.encoder.absolute=false"  # a table of positions would be resampled, and be larger for 48 px
    small, large = (
        forecast(recipe(tiny, tmp_path, f"data.image_size={size}", f"model.image_size={size}", rotary))
        for size in (32, 48)
    )
    mixed = forecast(recipe(tiny, tmp_path, rotary, SIZES))
    assert mixed.trainable == small.trainable == large.trainable
    assert 2 * mixed.run_flops == small.run_flops + large.run_flops
    assert mixed.memory() == large.memory() > small.memory()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table(mixed))
    assert "each batch in one of 32, 48 px" in shown.get() and "activations per image of 48 px" in shown.get()


def test_a_forecast_of_words_needs_no_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    wanted = recipe(tiny, tmp_path, "data.captions=labels", TEXT % "/no/such/folder")
    assert [tuple(part.shape) for part in meta_batch(wanted, 3)] == [(3, 1, 32, 32), (3,), (3, 64)]
    without = forecast(recipe(tiny, tmp_path))
    assert forecast(wanted).measured.flops_per_image > without.measured.flops_per_image
