"""Increments of decoders whose increments are known, and of a small model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.increments import increments, plot_correlations, plot_increments
from tok1d.analyze.prefix import explained_curve, prefix
from tok1d.analyze.request import PrefixCurves
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.latent_space import Pixels
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import FlowConfig, Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig


class Sum(nn.Module):
    """Predicts the sum of vectors, one per kept token: a row of `directions` times a gain.

    `odd` multiplies the vectors in every second image, and the target is the sum of all vectors and `rest`.
    """

    def __init__(self, directions: Tensor, gain: list[float], odd: list[float] | None = None) -> None:
        super().__init__()
        self.spec = TokenSpec(len(gain), 2, ordered=True)
        self.latent_space, self.config = Pixels(1), None
        self.vectors = nn.Parameter(directions * torch.tensor(gain)[:, None])
        self.odd = torch.tensor(odd or [1.0] * len(gain))
        self.rest = torch.zeros(4)

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        odd = (images.flatten(1).amax(1) > 0.5)[:, None]
        return torch.where(odd, self.odd, torch.ones(()))[..., None].expand(-1, -1, 2)

    def uniform_times(self, num: int) -> Tensor:
        return (torch.arange(num) + 0.5) / num

    def predictions(self, latents: Tensor, tokens: Tensor, mask: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        return (noise.flatten(1) + (mask * tokens[..., 0]) @ self.vectors).view_as(latents)

    def prediction_target(self, latents: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        odd = (latents.flatten(1).amax(1) > 0)[:, None]
        scale = torch.where(odd, self.odd, torch.ones(()))
        return (noise.flatten(1) + scale @ self.vectors + self.rest).view_as(latents)


@pytest.fixture
def images() -> ArrayImages:
    """Six images of 2x2 pixels, black and white in turn."""
    pixels = np.zeros((6, 2, 2), dtype=np.uint8)
    pixels[1::2] = 255
    return ArrayImages(pixels, np.zeros(6, dtype=int), ["a"], Transform(2, 1))


def test_orthogonal_increments_of_falling_energy(images: ArrayImages) -> None:
    directions = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0][:3]
    found = increments(Sum(directions, [2.0, 1.0, 0.5]), images, num_times=4, batch_size=4)
    torch.testing.assert_close(found.correlation, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    # Squared norms 4, 1, 1/4 spread over four pixels.
    torch.testing.assert_close(found.energy, torch.tensor([1, 0.25, 0.0625], dtype=torch.float64), atol=1e-5, rtol=0)
    assert found.mean_correlation < 1e-5 and found.weighted_correlation < 1e-5 and found.falling == 1.0
    assert found.energy_ratio == pytest.approx(1, abs=1e-5)


def test_correlations_that_cancel_over_images_are_zero(images: ArrayImages) -> None:
    """In every image the two increments are parallel; over the images their inner product vanishes."""
    directions = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    found = increments(Sum(directions, [1.0, 2.0], odd=[1.0, -1.0]), images, num_times=2, batch_size=4)
    assert found.mean_correlation == pytest.approx(0, abs=1e-6)
    assert found.energy_ratio == pytest.approx(1, abs=1e-6)


def test_images_count_by_their_energy(images: ArrayImages) -> None:
    """Three images with products (1, 2), three with (-3, 2) * the same direction: E<a, b> = -2, E|a|^2 = 5."""
    directions = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    found = increments(Sum(directions, [1.0, 2.0], odd=[-3.0, 1.0]), images, num_times=1)
    assert float(found.correlation[0, 1]) == pytest.approx(-2 / math.sqrt(5 * 4), abs=1e-6)
    # The mean of cosines image by image would be 0, that of their absolute values 1.
    assert found.falling == 1.0


def test_known_angles_and_their_summaries(images: ArrayImages) -> None:
    half = 0.5**0.5
    directions = torch.tensor([[1.0, 0, 0, 0], [half, half, 0, 0], [-1.0, 0, 0, 0]])
    found = increments(Sum(directions, [1.0, 2.0, 3.0]), images, num_times=2)
    torch.testing.assert_close(found.correlation[0], torch.tensor([1.0, half, -1.0], dtype=torch.float64))
    assert found.mean_correlation == pytest.approx((2 * half + 1) / 3)
    # The weights of the pairs 12, 13, 23 are 1 * 2, 1 * 3, 2 * 3.
    assert found.weighted_correlation == pytest.approx((2 * half + 3 * 1 + 6 * half) / 11)
    assert found.largest_correlation == pytest.approx(1) and found.falling == 0.0


def test_the_residual_is_what_all_tokens_leave(images: ArrayImages) -> None:
    model = Sum(torch.eye(4)[:2], [1.0, 1.0])
    model.rest = torch.tensor([0.0, 3.0, 4.0, 0.0])
    found = increments(model, images, num_times=1)
    torch.testing.assert_close(
        found.residual_correlation, torch.tensor([0, 0.6], dtype=torch.float64), atol=1e-6, rtol=1e-6
    )
    # Squared norms of what is left after 0, 1, 2 tokens: 1 + 16 + 16, 16 + 16, 9 + 16, over four pixels.
    torch.testing.assert_close(found.losses, torch.tensor([33, 32, 25], dtype=torch.float64) / 4)
    assert found.energy_ratio == pytest.approx(2 / 8)


def test_a_token_without_effect_has_no_correlation(images: ArrayImages) -> None:
    found = increments(Sum(torch.eye(4)[:2], [1.0, 0.0]), images, num_times=1)
    assert found.correlation[1].tolist() == [0.0, 0.0] and found.weighted_correlation == 0.0


def test_lengths_are_groups_of_tokens(images: ArrayImages) -> None:
    found = increments(Sum(torch.eye(4)[:3], [1.0, 2.0, 2.0]), images, keep=[1], num_times=1)
    assert found.keep == (1, 3)
    torch.testing.assert_close(found.energy, torch.tensor([0.25, 2.0], dtype=torch.float64))
    assert plot_correlations(found.keep, found.correlation, found.residual_correlation).mode == "RGB"


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_losses_are_those_of_the_curve(objective: str, images: ArrayImages) -> None:
    """Of a model with random weights: the sums over the products equal the loss that the curve measures."""
    config = SemanticistConfig(
        image_size=2,
        channels=1,
        num_tokens=3,
        token_dim=4,
        encoder=EncoderConfig(patch=1, dim=8, depth=1, heads=2),
        decoder=DecoderConfig(patch=1, dim=8, depth=1, heads=2),
        objective=objective,
        flow=FlowConfig(),
    )
    torch.manual_seed(0)
    model = Semanticist(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    shared = {"num_times": 3, "batch_size": 4, "seed": 1}
    found = increments(model, images, **shared)
    curve = explained_curve(model, images, **{**shared, "batch_size": 5})
    assert found.losses.tolist() == pytest.approx([point.loss for point in curve], rel=1e-4)
    assert found.energy.min() > 0


def test_refuses_what_has_no_increments(images: ArrayImages) -> None:
    unordered = Linear(torch.eye(4))
    unordered.spec = TokenSpec(4, 1, deterministic=True)
    with pytest.raises(InputError, match="its tokens have no order"):
        increments(unordered, images)
    with pytest.raises(InputError, match="increments need at least 2 tokens, it has 1"):
        increments(Sum(torch.eye(4)[:1], [1.0]), images)
    with pytest.raises(InputError, match="at least 2 numbers of tokens, got 1"):
        increments(Sum(torch.eye(4)[:2], [1.0, 1.0]), images, keep=[0])
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        increments(Sum(torch.eye(4)[:2], [1.0, 1.0]), images, batch_size=0)
    with pytest.raises(InputError, match=r"keep: expected numbers in 0..2"):
        increments(Sum(torch.eye(4)[:2], [1.0, 1.0]), images, keep=[3])


class Linear(nn.Module):
    """A one-pass linear model: token k is <column k of the basis, image - mean>, decoded as their combination."""

    def __init__(self, basis: Tensor, mean: float = 0.5) -> None:
        super().__init__()
        self.spec = TokenSpec(basis.shape[1], 1, ordered=True, deterministic=True)
        self.config, self.basis, self.mean = None, nn.Parameter(basis.float()), mean

    @property
    def decoder(self) -> nn.Module:
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return ((images.flatten(1) - self.mean) @ self.basis)[..., None]

    def decode(self, tokens: Tensor, cond: Tensor | None = None, *, keep: int, generator: object = None) -> Tensor:
        return (self.mean + tokens[:, :keep, 0] @ self.basis[:, :keep].T).unflatten(1, (1, 2, 2))


def noise_images(num: int = 50) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(100, 156, (num, 2, 2)).astype(np.uint8)
    return ArrayImages(pixels, np.zeros(num, dtype=int), ["a"], Transform(2, 1))


def test_increments_of_a_linear_one_pass_model_are_its_second_moments() -> None:
    """With an orthonormal basis, d_k = c_k v_k: different increments are orthogonal, the energies are E c_k^2 / 4."""
    images = noise_images()
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    found = increments(Linear(basis[:, :3]), images, batch_size=7)
    codes = (images.batch(range(50))[0].flatten(1).double() - 0.5) @ basis
    torch.testing.assert_close(found.energy, codes[:, :3].square().mean(0) / 4, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.correlation, torch.eye(3, dtype=torch.float64), atol=1e-4, rtol=0)
    assert float(found.residual_correlation.abs().max()) < 1e-4
    assert float(found.losses[-1]) == pytest.approx(float(codes[:, 3].square().mean()) / 4, rel=1e-4)
    assert (found.measure, found.times, found.num) == ("squared error", None, 50)
    assert found.energy_ratio == pytest.approx(1, abs=1e-4)
    curve = prefix(Linear(basis[:, :3]), images, PrefixCurves(batch_size=11))
    assert found.losses.tolist() == pytest.approx([point.loss for point in curve.points], rel=1e-5)


def test_tokens_along_one_direction_have_energies_above_the_fall() -> None:
    """Two halves of one projection are parallel: energies (1/4 + 1/4) E c^2 against a fall of E c^2."""
    direction = torch.tensor([[1.0], [1], [1], [1]]) / 2
    found = increments(Linear(direction.repeat(1, 2) / 2**0.5), noise_images())
    assert float(found.correlation[0, 1]) == pytest.approx(1, abs=1e-5) and found.largest_correlation <= 1 + 1e-9
    assert found.energy_ratio == pytest.approx(0.5, abs=1e-4)
    assert "add up to 0.50 of the fall of the squared error" in found.said()


def test_the_plot_has_a_panel_for_each_model() -> None:
    eye = increments(Linear(torch.eye(4)), noise_images())
    one, two = plot_increments({"a": eye}), plot_increments({"a": eye, "$b": eye})
    assert one.mode == "RGB" and two.width > one.width


def test_the_command_measures_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-semanticist", "fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "increments", *models, "fashion_mnist", "--num", "4", "--keep", "1,4"]
    assert cli.run([*command, "--times", "2", "--out", str(out)]) == 0
    record = json.loads((out / "increments.json").read_text())
    semanticist, smap = record["models"]
    assert [semanticist["model"], smap["model"]] == models[:2] and "have no order" in record["left_out"][models[2]]
    assert (semanticist["measure"], semanticist["times"]) == ("denoising loss", 2)
    assert (smap["measure"], smap["times"], smap["label"]) == ("squared error", None, "true")
    assert smap["keep"] == semanticist["keep"] == [1, 4, 16] and smap["num"] == 4 and smap["seed"] == 0
    said = capsys.readouterr().out
    assert f"{models[2]}: left out, its tokens have no order" in said and " of 2 steps." in said
    assert Image.open(out / "increments.png").width > 100


def test_the_command_fits_no_model(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", "increments", "fashion-mnist-maetok", str(pictures), "--out", str(tmp_path / "no")]
    assert cli.run(command) == 2
    assert "fashion-mnist-maetok: its tokens have no order" in capsys.readouterr().err
    command = ["analyze", "increments", "fashion-mnist-smap", str(pictures), "--num", "4", "--out", str(tmp_path / "o")]
    assert cli.run(command) == 0
    (entry,) = json.loads((tmp_path / "o" / "increments.json").read_text())["models"]
    assert entry["num"] == 4 and len(entry["keep"]) == 16
    assert cli.run([*command, "--times", "3", "--overwrite"]) == 2
    assert "--times: only a diffusion decoder" in capsys.readouterr().err
