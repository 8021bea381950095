"""Probes of tokens in which the classes are planted, and ridge regression against scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.codes import Codes, small
from tok1d.analyze.probe import Sums, fitted, probe, ridge
from tok1d.analyze.request import Probes
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec

SIDE = 4  # pixels a side, and classes


class Rows(nn.Module):
    """Token k is row k of an image of 4 x 4 pixels; or, with a codebook, ids of which each has a value as entry."""

    def __init__(self, *, ids: bool = False, codebook: bool = True) -> None:
        super().__init__()
        self.spec = TokenSpec(SIDE, 1 if ids else SIDE, 4 if ids else None, ordered=True, deterministic=True)
        self.config = None
        self.table = nn.Parameter(torch.tensor([[3.0], [1.0], [2.0], [0.0]]))
        self.ids = ids
        if codebook:
            self.entries = lambda ids: self.table[ids]

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return (images[:, 0, :, 0] * 3).round().long() if self.ids else images[:, 0]


def planted(num: int, seed: int) -> ArrayImages:
    """Row 0 is noise; row 1 is a constant minus it, brighter at the pixel of the class; rows 2 and 3 are noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num, SIDE, SIDE))
    labels = np.arange(num) % SIDE
    pixels[:, 0] = rng.integers(0, 101, (num, SIDE))
    pixels[:, 1] = 120 - pixels[:, 0] + 100 * np.eye(SIDE, dtype=int)[labels]
    return ArrayImages(pixels.astype(np.uint8), labels, list("abcd"), Transform(SIDE, 1))


def test_the_planted_token_is_found_and_noise_is_chance() -> None:
    found = probe(Rows(), planted(2000, 0), planted(800, 1), Probes(keep=(1, 2, 4), batch_size=300))  # type: ignore[arg-type]
    one, two, four = found.points
    assert one.concatenated == pytest.approx(0.25, abs=0.06) and one.averaged == pytest.approx(0.25, abs=0.06)
    assert two.concatenated == two.averaged == four.concatenated == found.pixels == 1.0
    assert 0.3 < four.averaged < 0.95  # the noise of rows 2 and 3 is added to it
    assert one.pca < 0.4 and four.pca == 1.0  # the first components are the strong noise, all of them are the pixels
    assert (found.num_train, found.num, found.num_classes, found.frequent) == (2000, 800, 4, 0.25)
    assert [point.numbers for point in found.points] == [4, 8, 16]
    assert "2 tokens concatenated (100.0%)" in found.said()


def test_random_labels_are_chance() -> None:
    images, test = planted(2000, 0), planted(2000, 1)
    for seed, each in enumerate((images, test)):
        each.labels = np.random.default_rng(2 + seed).permutation(each.labels)
    found = probe(Rows(), images, test, Probes())  # type: ignore[arg-type]
    assert all(abs(value - 0.25) < 0.06 for point in found.points for value in (point.concatenated, point.averaged))


def test_ridge_regression_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) * torch.arange(6) + 3  # the first is constant
    y = torch.eye(3, dtype=torch.float64)[torch.randint(0, 3, (200,), generator=generator)]
    sums = Sums.of(x[:50], y[:50]) + Sums.of(x[50:], y[50:])
    found = ridge(sums, 0.1)
    rows = (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-9)
    known = Ridge(alpha=0.1 * 200).fit(rows.numpy(), y.numpy())
    scores = x @ found.weight + found.bias
    assert scores.numpy() == pytest.approx(known.predict(rows.numpy()), abs=1e-9)
    assert found.error(sums) == pytest.approx(float((scores - y).square().sum(1).mean()), abs=1e-9)
    assert found.weight[0].abs().max() == 0
    basis = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(ridge(sums.projected(basis), 0.1).weight, ridge(Sums.of(x @ basis, y), 0.1).weight)
    assert torch.allclose(ridge(sums.first(4), 0.1).weight, ridge(Sums.of(x[:, :4], y), 0.1).weight)


def test_the_strength_that_predicts_held_out_images_is_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.eye(2, dtype=torch.float64)[torch.randint(0, 2, (80,), generator=generator)]
    noise = torch.randn(80, 30, generator=generator, dtype=torch.float64)
    parts = Sums.of(noise[:40], y[:40]), Sums.of(noise[40:], y[40:])
    assert torch.equal(fitted(parts).weight, ridge(parts[0] + parts[1], 1.0).weight)
    clear = torch.cat([y[:, :1] + 1e-3 * noise[:, :1], noise[:, :1]], 1)
    parts = Sums.of(clear[:40], y[:40]), Sums.of(clear[40:], y[40:])
    assert torch.equal(fitted(parts).weight, ridge(parts[0] + parts[1], 1e-4).weight)


def test_ids_are_entries_of_the_codebook() -> None:
    images, model = planted(20, 0), Rows(ids=True)
    [(numbers, tokens, pixels, labels)] = Codes(model, images).batches(50)  # type: ignore[arg-type]
    assert numbers == range(20) and labels.tolist() == images.labels.tolist() and pixels.shape == (20, 16)
    ids = model.encode(images.batch(range(20))[0])
    assert torch.equal(tokens[..., 0], model.table[ids][..., 0].double())
    with pytest.raises(InputError, match="Rows has ids without a codebook"):
        Codes(Rows(ids=True, codebook=False), images)  # type: ignore[arg-type]


def test_large_images_are_reduced_and_borders_cut() -> None:
    x = torch.rand(2, 3, 68, 68)
    assert small(x, 2).shape == (2, 3 * 32 * 32)
    assert torch.allclose(small(x, 2)[0, 0], x[0, 0, 2:4, 2:4].mean())
    assert torch.equal(small(x[..., :12, :12], 2), x[..., 2:10, 2:10].flatten(1))


def test_images_that_cannot_be_probed_are_refused() -> None:
    images = planted(40, 0)
    one = ArrayImages(images.images, images.labels * 0, ["a"], Transform(SIDE, 1))
    with pytest.raises(InputError, match="at least two classes, these have 1"):
        probe(Rows(), one, one, Probes())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 10 training images, got 8"):
        probe(Rows(), planted(8, 0), images, Probes())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--keep: expected numbers in 1\.\.4, got 5"):
        probe(Rows(), images, images, Probes(keep=(5,)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="finite tokens"):
        model = Rows(ids=True)
        model.table.data[0] = torch.nan
        probe(model, images, images, Probes())  # type: ignore[arg-type]


def test_the_command_probes_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "probe", *models, "fashion_mnist", "--num-train", "40", "--num", "20"]
    assert cli.run([*command, "--keep", "1,16", "--out", str(out)]) == 0
    record = json.loads((out / "probe.json").read_text())
    smap, maetok = record["models"]
    assert (smap["label"], maetok["label"]) == ("null", None)
    assert smap["num_train"] == 40 and smap["num"] == 20 and "40 of" in smap["training"]
    assert [each["keep"] for each in maetok["points"]] == [1, 16] and smap["pixels"] == maetok["pixels"]
    assert record["said"] in capsys.readouterr().out and Image.open(out / "probe.png").width > 100
    assert cli.run([*command, "--keep", "17", "--out", str(tmp_path / "no")]) == 2
    assert "--keep: expected numbers in 1..16, got 17" in capsys.readouterr().err
    assert cli.run(["analyze", "probe", "no-model", "fashion_mnist", "--out", str(tmp_path / "no")]) == 2
