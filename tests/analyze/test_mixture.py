"""Mixtures of rows whose mixture is known."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.analyze.components import Components
from tok1d.analyze.mixture import common_dims, fit_mixtures, fit_space, plot_mixtures
from tok1d.cli import app as cli
from tok1d.errors import InputError

CENTRES = torch.tensor([[8.0, 0.0, 1.0], [-8.0, 2.0, 0.0], [0.0, -9.0, -1.0]], dtype=torch.float64)


@pytest.fixture
def rows() -> Tensor:
    """(900, 3) of three modes with deviation 1."""
    noise = torch.randn(900, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CENTRES.repeat(300, 1) + noise


def in_batches(rows: Tensor, size: int = 70) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(rows.split(size))


def true_nll(rows: Tensor) -> float:
    """Negative log-likelihood of rows under the true mixture, in the standardised coordinates of the fit."""
    squares = torch.cdist(rows, CENTRES).square()
    density = torch.logsumexp(-squares / 2, dim=1) - math.log(3) - 1.5 * math.log(2 * math.pi)
    volume = torch.linalg.slogdet(torch.cov(rows.T, correction=0)).logabsdet / 2
    return float(-density.mean() - volume)


def test_a_known_mixture_recovers_its_likelihood(rows: Tensor) -> None:
    found = fit_mixtures(rows, [1, 2, 3], variance=1.0, covariance="full", seeds=range(4))
    one, two, three = (min(point.nll for point in found.points if point.components == k) for k in (1, 2, 3))
    # 27 fitted numbers gain about 27 / 2 nats over all rows.
    assert three == pytest.approx(true_nll(rows), abs=0.03)
    assert one > two + 0.1 > three + 0.2
    assert found.dims == 3 and found.variance == pytest.approx(1) and found.num == 900


def test_one_component_is_a_standard_normal(rows: Tensor) -> None:
    point = fit_mixtures(rows.unflatten(1, (3, 1)), [1], dims=2).points[0]
    assert point.nll == pytest.approx(1 + math.log(2 * math.pi), abs=1e-4)
    assert point.mean_norm == pytest.approx(0, abs=1e-6)


def test_more_modes_need_more_components(rows: Tensor) -> None:
    single = torch.randn(900, 3, generator=torch.Generator().manual_seed(1))
    gains = []
    for data in (single, rows):
        one, three = fit_mixtures(data, [1, 3], dims=2, seeds=[1]).points
        gains.append(one.nll - three.nll)
    assert gains[1] > 0.5 > 0.05 > gains[0]


def test_as_few_dimensions_as_hold_the_variance() -> None:
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([10.0, 5.0, 0.1, 0.1])
    found = fit_mixtures(rows, [1], variance=0.95, seeds=[0, 1])
    assert found.dims == 2 and found.variance > 0.95 and [point.seed for point in found.points] == [0, 1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"components": [0]}, "components"),
        ({"components": [901]}, "900"),
        ({"dims": 4}, "dims"),
        ({"variance": 0.0}, "variance"),
        ({"covariance": "round"}, "diag or full"),
    ],
)
def test_mistakes(rows: Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_mixtures(rows, **{"components": [1], **options})


def test_tokens_that_do_not_vary() -> None:
    with pytest.raises(InputError, match="vary"):
        fit_mixtures(torch.ones(5, 2), [1])


def test_held_out_rows_have_the_true_likelihood_and_too_many_modes_are_worse(rows: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    others = CENTRES.repeat(200, 1) + torch.randn(600, 3, generator=generator, dtype=torch.float64)
    space = Components.of(in_batches(rows), "mixtures")
    found = fit_space(
        space, in_batches(rows), [1, 3, 200], dims=3, covariance="full", seeds=range(4), heldout=in_batches(others)
    )
    one, three, many = found.best
    # The held-out rows in the coordinates of the fitted ones.
    density = torch.logsumexp(-torch.cdist(others, CENTRES).square() / 2, 1) - math.log(3) - 1.5 * math.log(2 * math.pi)
    volume = torch.linalg.slogdet(torch.cov(rows.T, correction=0)).logabsdet / 2
    assert three.heldout == pytest.approx(float(-density.mean() - volume), abs=0.05)
    assert one.heldout == pytest.approx(found.heldout_one, abs=1e-3) and found.num_heldout == 600
    assert many.nll < three.nll and many.heldout > three.heldout + 0.2
    # 200 modes of 9 numbers each for 900 images.
    assert found.too_many == [200] and "3 modes have the lowest held-out NLL" in found.said()
    assert any(line.startswith("warning: 900 images are too few for 200 components") for line in found.describe())
    assert plot_mixtures({"a": found, "b": found}).mode == "RGB"


def test_the_principal_components_in_batches_are_those_of_all_rows(rows: Tensor) -> None:
    space = Components.of(in_batches(rows, 1), "mixtures")
    projected = space.standardised(in_batches(rows, 64), 3)
    torch.testing.assert_close(torch.cov(projected.T, correction=0), torch.eye(3, dtype=torch.float64))
    values = np.linalg.svd((rows - rows.mean(0)).numpy(), compute_uv=False) ** 2 / len(rows)
    assert space.variances.numpy() == pytest.approx(values) and space.share(2) == pytest.approx(
        values[:2].sum() / values.sum()
    )


def test_the_common_dimension_keeps_the_variance_of_every_space() -> None:
    generator = torch.Generator().manual_seed(0)
    stretched = torch.randn(500, 8, generator=generator) * torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1])
    narrow = Components.of(in_batches(stretched), "mixtures")
    wide = Components.of(in_batches(torch.randn(500, 8, generator=generator)), "mixtures")
    assert (narrow.dims_for(0.9), wide.dims_for(0.9)) == (1, 8)  # 81 of 88 of the variance
    assert common_dims({"narrow": narrow, "wide": wide}, 0.9) == 8
    flat = Components.of(in_batches(torch.randn(500, 3, generator=generator)), "mixtures")
    with pytest.raises(InputError, match=r"wide needs 8 principal components .* but flat varies in 3 dimensions only"):
        common_dims({"wide": wide, "flat": flat}, 0.9)


def test_the_command_compares_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-semanticist", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "mixture", *models, "fashion_mnist", "--num", "24", "--num-train", "40"]
    assert cli.run([*command, "--components", "1,3", "--seeds", "0,1", "--out", str(out)]) == 0
    record = json.loads((out / "mixture.json").read_text())
    one, other = record["models"]
    assert [one["model"], other["model"]] == models and one["dims"] == other["dims"]
    assert min(one["variance"], other["variance"]) > 0.9 and (one["num"], one["num_heldout"]) == (40, 24)
    assert [(point["components"], point["seed"]) for point in one["points"]] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert one["points"][0]["nll"] == pytest.approx(one["dims"] / 2 * (1 + math.log(2 * math.pi)), abs=1e-3)
    assert one["too_many"] == [1, 3] and one["seeds"] == [0, 1] and "40 of" in one["training"]
    said = capsys.readouterr().out
    assert "warning: 40 images are too few for 1, 3 components" in said and "1 nat less means" in said
    assert Image.open(out / "mixture.png").width > 100
    assert cli.run([*command, "--covariance", "round", "--out", str(tmp_path / "no")]) == 2
    assert "--covariance" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_command_reads_a_folder_of_pictures(pictures: Path, tmp_path: Path) -> None:
    command = ["analyze", "mixture", "fashion-mnist-smap", str(pictures), "--components", "1,2", "--dims", "2"]
    assert cli.run([*command, "--out", str(tmp_path / "out")]) == 0
    (entry,) = json.loads((tmp_path / "out" / "mixture.json").read_text())["models"]
    assert entry["num"] + entry["num_heldout"] == 24 and entry["dims"] == 2 and entry["label"] == "null"
