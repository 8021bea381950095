"""Mixtures of rows whose mixture is known."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tok1d.analyze.mixture import fit_mixtures
from tok1d.cli import app as cli
from tok1d.errors import InputError

CENTRES = torch.tensor([[8.0, 0.0, 1.0], [-8.0, 2.0, 0.0], [0.0, -9.0, -1.0]], dtype=torch.float64)


@pytest.fixture
def rows() -> Tensor:
    """(900, 3) of three modes with deviation 1."""
    noise = torch.randn(900, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CENTRES.repeat(300, 1) + noise


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


def test_the_command_writes_its_record(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", "mixture", "fashion-mnist-semanticist", "fashion_mnist", "--num", "24", "--dims", "2"]
    assert cli.run([*command, "--components", "1,3", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert [point["components"] for point in record["points"]] == [1, 3] and record["num"] == 24
    assert record["points"][0]["nll"] == pytest.approx(1 + math.log(2 * math.pi), abs=1e-4)
    capsys.readouterr()
    assert cli.run([*command, "--covariance", "round", "--out", str(tmp_path / "no")]) == 2
    assert "--covariance" in capsys.readouterr().err and not (tmp_path / "no").exists()
