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

from tok1d.analyze.swap import VARIANTS, partners, swap, swap_picture
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, to_yaml
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

    `follows`: what determines the class of a decoded image.
    """

    def __init__(self, follows: str) -> None:
        super().__init__()
        self.spec = TokenSpec(3, 1, ordered=True, needs_label=True, num_classes=CLASSES)
        self.scale, self.follows = nn.Parameter(torch.ones(())), follows

    def encode(self, images: Tensor, cond: Tensor) -> Tensor:
        tokens = images.flatten(1)[..., None].clone()
        if self.follows == "encoder":
            tokens[:, 0, 0] = cond / 255
        return tokens

    def decode(self, tokens: Tensor, cond: Tensor, *, keep: int | None = None) -> Tensor:
        pixels = tokens[..., 0].clone()
        if keep == 0:
            pixels = torch.zeros_like(pixels)
        if self.follows == "decoder" or keep == 0:
            pixels[:, 0] = cond / 255
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
        # matched, swapped, re-encoded, encoded under the other label; condition only
        ("decoder", (1, 1, 1, 1, 1), (1, 0, 0, 1)),
        ("tokens", (1, 0, 0, 1, 1), (1, 1, 1, 1)),
        ("encoder", (1, 0, 1, 0, 1), (1, 1, 0, 0)),
    ],
)
def test_the_classifier_shows_what_determines_the_class(
    images: ArrayImages, follows: str, condition: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    found = swap(Two(follows), images, Reader(), batch_size=10)  # type: ignore[arg-type]
    assert [each.variant for each in found] == list(VARIANTS) and {each.num for each in found} == {20}
    assert [each.condition for each in found] == list(condition)
    assert [each.tokens for each in found] == [*tokens, None]
    assert found[0].error == 0 and found[-1].error > 0.1  # all pixels against one


def test_without_a_classifier_only_the_error_is_measured(images: ArrayImages) -> None:
    found = swap(Two("decoder"), images, batch_size=10)
    assert all(each.condition is None and each.tokens is None for each in found)


def test_the_picture_has_a_row_a_variant(images: ArrayImages) -> None:
    picture = swap_picture(Two("decoder"), images, columns=6, zoom=1)
    assert picture.size == (6 * 4 - 2, (1 + len(VARIANTS)) * 4 - 2)
    pixels = np.asarray(picture)
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
        assert 0.7 * num < found[0].num <= num and (found[1].condition, found[1].tokens) == (1, 0)
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


def test_the_command_writes_a_record_and_a_picture(
    tiny: Callable[..., str], fashion: None, tmp_path: Path, capsys: Any
) -> None:
    recipe = load_recipe(tiny("smap"))
    torch.manual_seed(0)
    store.save_model(store.build_model(recipe.model), tmp_path / "model", Card(recipe=to_yaml(recipe)))
    command = ["analyze", "swap", str(tmp_path / "model"), "fashion_mnist", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--num", "40"]) == 0
    content = json.loads((tmp_path / "out" / "swap.json").read_text())
    assert [each["variant"] for each in content["variants"]] == list(VARIANTS)
    assert content["variants"][1]["decoder_label"] == "other" and content["variants"][0]["num"] == 40
    assert content["judge"].startswith("fashion-mnist-cnn@") and 0 <= content["variants"][0]["condition"] <= 1
    assert Image.open(tmp_path / "out" / "swap.png").width > 100
    assert "condition only" in capsys.readouterr().out
