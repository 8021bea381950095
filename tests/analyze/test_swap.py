"""Swapped labels, with tokenizers whose dependence on the label and on the tokens is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.swap import MEAN, VARIANTS, class_means, partners, swap
from tok1d.analyze.swap_plots import swap_picture
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, to_yaml
from tok1d.data.fashion_mnist import CLASS_NAMES
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.zoo import store
from tok1d.zoo.card import Card

CLASSES = 4


class Two(nn.Module):
    """Images whose first pixel is their class; tokens are it and the rest.

    `follows`: what determines the class of a decoded image. The null class is 0.
    """

    def __init__(self, follows: str) -> None:
        super().__init__()
        self.spec = TokenSpec(4, 1, ordered=True, needs_label=True, num_classes=CLASSES)
        self.scale, self.follows = nn.Parameter(torch.ones(())), follows

    def encode(self, images: Tensor, cond: Tensor | None) -> Tensor:
        tokens = images.flatten(1)[..., None].clone()
        if self.follows == "encoder":
            tokens[:, 0, 0] = 0 if cond is None else cond / 255
        return tokens

    def decode(self, tokens: Tensor, cond: Tensor | None, *, keep: int | None = None) -> Tensor:
        pixels = tokens[..., 0] * (torch.arange(tokens.shape[1]) < (tokens.shape[1] if keep is None else keep))
        if self.follows == "decoder" or keep == 0:
            pixels[:, 0] = 0 if cond is None else cond / 255
        return pixels.view(-1, 1, 2, 2)


class Reader(nn.Module):
    """A classifier that reads the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(classes, CLASSES).float()


@pytest.fixture
def images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 2, 2), dtype=np.uint8)
    labels = np.arange(21) % CLASSES
    pixels[:, 0, 0] = labels
    return ArrayImages(pixels, labels, list("abcd"), Transform(2, 1))


def test_partners_are_mutual_and_of_other_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 0, 2])
    partner = partners(labels)
    others = partner != torch.arange(8)
    assert torch.equal(partner[partner], torch.arange(8)) and others.sum() == 8
    assert (labels[partner] != labels)[others].all()
    assert partners(torch.zeros(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("follows", "condition", "tokens"),
    [
        # matched, swapped, re-encoded, encoded under the other label, encoder only, decoder only; condition only
        ("decoder", (1, 1, 1, 1, None, 1, 1), (1, 0, 0, 1, 0.25, 1)),
        ("tokens", (1, 0, 0, 1, None, 1, 1), (1, 1, 1, 1, 1, 1)),
        ("encoder", (1, 0, 1, 0, None, 0.25, 1), (1, 1, 0, 0, 1, 0.25)),
    ],
)
def test_the_classifier_shows_what_determines_the_class(
    images: ArrayImages, follows: str, condition: tuple[float | None, ...], tokens: tuple[float, ...]
) -> None:
    found = swap(Two(follows), images, Reader(), batch_size=10)  # type: ignore[arg-type]
    each = found.variants
    assert [one.variant for one in each] == list(VARIANTS) and {one.num for one in each} == {found.num} == {20}
    assert [one.condition for one in each] == list(condition)
    assert [one.tokens for one in each] == [*tokens, None]
    assert each[0].error == 0 and each[-1].error > 0.1  # all pixels against one
    # Class 0 is the null class; of each of the four classes all images or none follow.
    expected = [None if share is None else {1: 4, 0: 0, 0.25: 1}[share] for share in condition]
    assert [one.followed for one in each] == expected and {one.classes for one in each} == {4}
    swapped = found.of("swapped")
    assert swapped is not None and f"most images for {swapped.followed} of 4 classes" in found.said()


def test_without_a_classifier_only_the_error_is_measured(images: ArrayImages) -> None:
    found = swap(Two("decoder"), images, batch_size=10)
    assert all(each.condition is None and each.tokens is None and each.followed is None for each in found.variants)
    assert found.judge is None and found.said().startswith(
        "with the class of another image the squared error is 0.0000"
    )


def test_numbers_of_tokens_are_decoded_one_after_the_other(images: ArrayImages) -> None:
    model = Two("tokens")
    found = swap(model, images, Reader(), keep=[4, 1], batch_size=10)  # type: ignore[arg-type]
    assert [(one.variant, one.keep) for one in found.variants[:2]] == [("matched", 1), ("matched", 4)]
    assert found.variants[1].error == 0 and found.variants[-1].keep == 0
    flat = torch.cat([images.batch(range(21))[0].flatten(1)])
    # One pair is incomplete: 20 of the 21 images are measured.
    assert found.variants[0].error == pytest.approx(float(flat[:, 1:].square().sum()) / 4 / 21, rel=0.1)
    with pytest.raises(InputError, match=r"--keep: expected numbers in 1..4, got 5"):
        swap(model, images, keep=[5])  # type: ignore[arg-type]


def test_the_class_mean_is_the_baseline_of_the_class_alone(images: ArrayImages) -> None:
    means = class_means(images, 21, batch_size=8)
    x, labels = images.batch(range(21))
    for label in range(CLASSES):
        torch.testing.assert_close(means[label], x[labels == label].mean(0))
    found = swap(Two("decoder"), images, Reader(), means=means, batch_size=10)  # type: ignore[arg-type]
    alone, mean = found.of("condition only"), found.of(MEAN)
    assert alone is not None and mean is not None and mean.condition == 1 and mean.followed == 4
    errors = (x - means[labels]).square().flatten(1).mean(1)
    assert mean.error == pytest.approx(float(errors.mean()), rel=0.1)
    # From the class alone the decoder has black pixels, matched it has the image.
    assert alone.better == 0 and mean.better == 0 and found.variants[0].better == 4
    assert f"against {mean.error:.4f} of the mean image of the class (lower for 0 of 4 classes)" in found.said()
    few = ArrayImages(
        images.images[labels.numpy() < 2], labels.numpy()[labels.numpy() < 2], list("abcd"), Transform(2, 1)
    )
    torch.testing.assert_close(class_means(few, 100)[3], few.batch(range(len(few)))[0].mean(0))


def test_the_picture_has_a_row_a_variant(images: ArrayImages) -> None:
    picture = swap_picture(Two("decoder"), images, columns=6, zoom=1)
    assert picture.size == (6 * 4 - 2, (1 + len(VARIANTS)) * 4 - 2)
    pixels = np.asarray(picture)
    assert swap_picture(Two("decoder"), images, columns=6, zoom=1, means=class_means(images, 21)).height == 9 * 4 - 2
    first = pixels[::4, ::4]  # the class pixel of every image: originals, matched, swapped, ...
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[0], first[4])
    assert np.array_equal(first[2], first[0].reshape(-1, 2)[:, ::-1].flatten()) and (first[2] != first[0]).all()


def test_a_folder_sorted_by_class_is_paired_too(tmp_path: Path) -> None:
    """120 images of each of two classes; the first hundred all have the same class."""
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number in range(120):
            Image.fromarray(np.full((2, 2), label, np.uint8)).save(tmp_path / str(label) / f"{number}.png")
    data, model = FolderImages(tmp_path, Transform(2, 1), class_names=list("0123")), Two("decoder")
    for num in (100, 240):
        found = swap(model, data, Reader(), num_images=num)  # type: ignore[arg-type]
        swapped = found.of("swapped")
        assert 0.7 * num < found.num <= num and swapped is not None and (swapped.condition, swapped.tokens) == (1, 0)
    first = np.asarray(swap_picture(model, data, columns=6, zoom=1))[0, ::4]
    assert (first.reshape(3, 2).sum(1) == 1).all()


def test_what_cannot_be_swapped_is_refused(images: ArrayImages) -> None:
    free, few = Two("tokens"), ArrayImages(images.images, images.labels * 0, ["a"], Transform(2, 1))
    free.spec = TokenSpec(3, 1, ordered=True)
    with pytest.raises(InputError, match=r"conditioned on the class and can decode no tokens \(SMAP\), got Two"):
        swap(free, images)
    with pytest.raises(InputError, match=r"^swap needs images of .*: the images have 1 class, the tokenizer has 4$"):
        swap(Two("tokens"), few)
    alike = ArrayImages(images.images, images.labels * 0, list("abcd"), Transform(2, 1))
    for function in (swap, swap_picture):
        with pytest.raises(InputError, match="images of different classes, these 21 have none"):
            function(Two("tokens"), alike)


def test_the_command_measures_several_models(
    tiny: Callable[..., str], fashion: None, tmp_path: Path, capsys: Any
) -> None:
    recipe = load_recipe(tiny("smap"))
    torch.manual_seed(0)
    store.save_model(store.build_model(recipe.model), tmp_path / "model", Card(recipe=to_yaml(recipe)))
    models = [str(tmp_path / "model"), "fashion-mnist-smap", "fashion-mnist-maetok"]
    command = ["analyze", "swap", *models, "fashion_mnist", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--num", "40", "--keep", "1,2"]) == 0
    record = json.loads((tmp_path / "out" / "swap.json").read_text())
    assert [each["model"] for each in record["models"]] == models[:2] and list(record["left_out"]) == models[2:]
    for each in record["models"]:
        assert each["num"] == 40 and each["judge"].startswith("fashion-mnist-cnn@") and each["seed"] is None
        names = [(one["variant"], one["keep"]) for one in each["variants"]]
        tokens = [(name, keep) for name in list(VARIANTS)[:-1] for keep in (1, 2)]
        assert names == [*tokens, ("condition only", 0), (MEAN, 0)]
        assert each["variants"][2]["decoder_label"] == "other" and 0 <= each["variants"][0]["condition"] <= 1
    assert Image.open(tmp_path / "out" / "swap.png").width > 100
    said = capsys.readouterr().out
    assert "condition only" in said and f"{models[2]}: left out, swap needs" in said and "of 10 classes)" in said
    alone = ["analyze", "swap", models[2], "fashion_mnist", "--out", str(tmp_path / "no")]
    assert cli.run(alone) == 2 and "swap needs a tokenizer" in capsys.readouterr().err


def test_the_command_reads_folders_of_pictures_by_class(tmp_path: Path) -> None:
    """Folders named like the model's classes; no classifier is bundled for a folder."""
    generator = np.random.default_rng(0)
    for name in CLASS_NAMES:
        folder = tmp_path / "data" / name.replace("/", "_")
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number}.png")
    command = ["analyze", "swap", "fashion-mnist-smap", str(tmp_path / "data"), "--split", "all"]
    assert cli.run([*command, "--out", str(tmp_path / "out")]) == 0
    (entry,) = json.loads((tmp_path / "out" / "swap.json").read_text())["models"]
    assert entry["num"] == 30 and entry["judge"] is None and entry["variants"][-1]["variant"] == MEAN
