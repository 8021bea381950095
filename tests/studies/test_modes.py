"""The exact score of a Gaussian mixture, and the error of trained SiTs."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.studies.modes import PATH, Mixture, ModeErrors, ModePoint, mode_errors, score_error
from tok1d.studies.request import ModeSettings

TINY = {"tokens": 2, "token_dim": 2, "dim": 32, "depth": 1, "train_batch": 32, "num": 400}


@pytest.fixture
def mixture() -> Mixture:
    return Mixture.random(3, (2, 3), 4.0, seed=0)


def test_the_score_is_the_gradient_of_the_log_density(mixture: Mixture) -> None:
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    x = torch.randn(40, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, t).sum(), x)
    assert torch.allclose(mixture.score(x.detach(), t), gradient, atol=1e-10)


def test_the_density_is_that_of_a_normal_at_noise_and_integrates_to_1() -> None:
    one = Mixture.random(2, (1, 1), 3.0, seed=0)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None]
    for time in (0.0, 0.4, 1.0):
        density = one.log_density(grid, torch.full((len(grid),), time, dtype=torch.float64)).exp()
        assert float(torch.trapezoid(density, grid.flatten())) == pytest.approx(1, abs=1e-6)
    start = one.log_density(grid, torch.zeros(len(grid), dtype=torch.float64))
    assert torch.allclose(start, -0.5 * grid.flatten().square() - 0.5 * math.log(2 * math.pi))


def test_the_exact_score_has_no_error_and_no_noise_about_1(mixture: Mixture) -> None:
    assert score_error(mixture, mixture.velocity, 2000, 0) < 1e-20

    def none(x: Tensor, t: Tensor) -> Tensor:
        """The velocity of a predicted noise of 0."""
        return PATH.to_velocity(torch.zeros_like(x), "noise", x, t)

    # E[noise | x_t] of a mixture of far modes is nearly the noise minus its projection on the mode's own spread.
    assert 0.3 < score_error(mixture, none, 2000, 0) < 1


def test_a_known_error_of_the_noise_is_found(mixture: Mixture) -> None:
    def shifted(x: Tensor, t: Tensor) -> Tensor:
        noise = PATH.to_noise(mixture.velocity(x, t), "velocity", x, t)
        return PATH.to_velocity(noise + 0.25, "noise", x, t)

    assert score_error(mixture, shifted, 1000, 0) == pytest.approx(0.25**2)


def test_numbers_have_the_mean_square_1_and_means_the_bound() -> None:
    for modes in (1, 8):
        made = Mixture.random(modes, (4, 4), 6.0, seed=1)
        assert torch.allclose(made.means.flatten(1).norm(dim=1), torch.tensor(6.0 * made.std).double())
        assert float(made.sample(20_000, torch.Generator().manual_seed(0)).square().mean()) == pytest.approx(
            1, rel=0.02
        )


def test_more_modes_and_fewer_samples_are_harder() -> None:
    how = ModeSettings(modes=(1, 8), samples=(16, 2048), steps=250, **TINY)  # type: ignore[arg-type]
    found = {(each.modes, each.samples): each.error for each in mode_errors(how).points}
    assert found[8, 2048] > found[1, 2048]
    assert found[1, 16] > 1.3 * found[1, 2048]


def test_the_command_writes_record_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sizes = ["--tokens", "2", "--token-dim", "2", "--dim", "32", "--depth", "1", "--num", "50"]
    command = ["analyze", "modes", "--modes", "1,2", "--samples", "8,16", "--steps", "3", *sizes]
    assert cli.run([*command, "--out", str(out)]) == 0
    record = json.loads((out / "modes.json").read_text())
    assert record["analysis"] == "modes" and record["said"] in capsys.readouterr().out
    assert [(each["modes"], each["samples"]) for each in record["points"]] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert record["settings"]["steps"] == 3 and record["settings"]["seed"] == 0
    assert Image.open(out / "modes.png").width > 100
    assert cli.run([*command, "--dim", "48", "--out", str(tmp_path / "no")]) == 2
    assert "--dim: expected a multiple of 32, got 48" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_one_number_of_each_is_said() -> None:
    assert ModeErrors([ModePoint(2, 8, 0.5, [0.5])]).said() == (
        "the error of the score is, for 2 modes: 0.5 with 8 samples"
    )
