"""Maps and separation of planted clusters."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze import token_map as token_map_module
from tok1d.analyze.request import Maps
from tok1d.analyze.token_map import neighbour_accuracy, separation, token_map
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec

SIDE, CLASSES = 4, 3


class Rows(nn.Module):
    """Token k is row k of an image of 4 x 4 pixels, times `scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.spec, self.config = TokenSpec(SIDE, SIDE, ordered=True, deterministic=True), None
        self.scale = nn.Parameter(torch.tensor(scale))

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return images[:, 0] * self.scale


@pytest.fixture
def images() -> ArrayImages:
    """Row 0 is noise around a place of the class, the other rows are strong noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % CLASSES
    pixels = rng.integers(0, 256, (90, SIDE, SIDE))
    pixels[:, 0] = 100 * np.eye(CLASSES, SIDE, dtype=int)[labels] + rng.integers(0, 6, (90, SIDE))
    return ArrayImages(pixels.astype(np.uint8), labels, list("abc"), Transform(SIDE, 1))


def test_planted_clusters_are_found_and_noise_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 4
    noise = torch.randn(1200, 5, generator=generator, dtype=torch.float64)
    clusters = noise + 40 * torch.eye(4, 5, dtype=torch.float64)[labels]
    found, none = separation(clusters, labels), separation(noise, labels)
    assert found.neighbours == 1.0 and none.neighbours == pytest.approx(0.25, abs=0.05)
    # Within a class the mean distance is about that of normal numbers in 5 dimensions, between two classes 40 sqrt(2).
    assert found.silhouette == pytest.approx(1 - float(torch.pdist(noise).mean()) / (40 * 2**0.5), abs=0.01)
    assert abs(none.silhouette) < 0.02


def test_no_image_is_its_own_neighbour() -> None:
    """Pairs of different classes: the nearest other row always has the other label."""
    rows = torch.arange(20).repeat_interleave(2).double()[:, None] * 100
    rows[1::2] += 1
    labels = torch.arange(40) % 2
    assert neighbour_accuracy(rows, labels, k=1) == 0.0


def test_the_nearest_row_decides_between_equal_votes() -> None:
    rows, labels = torch.tensor([[0.0], [1.0], [3.0], [100.0]]).double(), torch.tensor([0, 0, 1, 1])
    # Of 2 neighbours, the rows 0 and 1 have one of each label, the nearer one of their own; 2 has two of the other;
    # 3 has one of each, the nearer one of its own.
    assert neighbour_accuracy(rows, labels, k=2) == 0.75


def test_a_map_separates_the_token_that_holds_the_class(images: ArrayImages) -> None:
    found = token_map(Rows(), images, Maps(keep=1))  # type: ignore[arg-type]
    assert found.tokens.neighbours == 1.0 and found.tokens.silhouette > 0.9
    assert found.pixels.neighbours < 0.95 and found.pixels.silhouette < 0.2
    assert (found.num, found.keep, found.label, found.frequent) == (90, 1, None, pytest.approx(1 / 3))
    assert neighbour_accuracy(torch.tensor(found.points), torch.tensor(found.labels)) == 1.0
    again = token_map(Rows(), images, Maps(keep=1))  # type: ignore[arg-type]
    assert again == found


def test_what_cannot_be_mapped_is_refused(images: ArrayImages) -> None:
    one = ArrayImages(images.images, images.labels * 0, ["a"], Transform(SIDE, 1))
    with pytest.raises(InputError, match="at least two classes and several images of one, got 1 of 90"):
        token_map(Rows(), one, Maps())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="more than 10 images, got 9"):
        token_map(Rows(), images, Maps(num=9))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--keep: expected 1\.\.4"):
        token_map(Rows(), images, Maps(keep=5))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens that vary"):
        token_map(Rows(0.0), images, Maps())  # type: ignore[arg-type]


def test_umap_is_asked_for_by_its_package(images: ArrayImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_map_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--method: umap needs the package umap-learn: pip install 'tok1d\[umap\]'"):
        token_map(Rows(), images, Maps(method="umap"))  # type: ignore[arg-type]


def test_umap_receives_the_tokens_and_the_seed(images: ArrayImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: the places are the first two numbers of the first token."""

    class UMAP:
        def __init__(self, random_state: int) -> None:
            assert random_state == 5

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr(token_map_module, "find_spec", lambda name: object())
    found = token_map(Rows(), images, Maps(method="umap", seed=5))  # type: ignore[arg-type]
    rows = Rows().encode(images.batch(range(90))[0])[:, 0, :2]
    assert found.method == "umap" and torch.allclose(torch.tensor(found.points), rows, atol=1e-3)


@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_separates_planted_clusters(images: ArrayImages) -> None:
    found = token_map(Rows(), images, Maps(keep=1, method="umap"))  # type: ignore[arg-type]
    assert neighbour_accuracy(torch.tensor(found.points), torch.tensor(found.labels)) == 1.0


def test_the_command_maps_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "map", *models, "fashion_mnist", "--num", "24"]
    assert cli.run([*command, "--out", str(out)]) == 0
    record = json.loads((out / "map.json").read_text())
    smap, maetok = record["models"]
    assert (smap["label"], maetok["label"]) == ("null", None) and smap["pixels"] == maetok["pixels"]
    assert len(smap["points"]) == len(smap["labels"]) == smap["num"] == 24 and smap["class_names"][0] == "T-shirt/top"
    assert record["said"] in capsys.readouterr().out and Image.open(out / "map.png").width > 100
    assert cli.run([*command, "--method", "pca", "--out", str(tmp_path / "no")]) == 2
    assert "--method: expected tsne or umap, got 'pca'" in capsys.readouterr().err
