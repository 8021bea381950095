"""The curve equals its closed form, and every prefix length uses the same noise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.prefix import CurvePoint, explained_curve, plot_curve, plot_prefixes, prefix
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

LENGTH = 4


class PixelTokens(nn.Module):
    """Tokens are the pixels of 2x2 images; the decoder returns the kept ones and 0 for the others.

    Its error is the mean square of the dropped latents, plus `noisy` times that of the noise and the time.
    """

    def __init__(self, noisy: float = 0.0, blind: bool = False) -> None:
        super().__init__()
        self.spec = TokenSpec(LENGTH, 1, ordered=True)
        self.latent_space, self.config = Pixels(1), None
        self.scale = nn.Parameter(torch.ones(()))
        self.noisy, self.blind = noisy, blind
        self.noises: dict[int, list[Tensor]] = {}

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.latent_space.encode(images).flatten(1)[..., None]

    def uniform_times(self, num: int) -> Tensor:
        return (torch.arange(num) + 0.5) / num

    def prediction_error(self, latents: Tensor, tokens: Tensor, mask: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        self.noises.setdefault(int(mask[0].sum()), []).append(noise)
        dropped = torch.zeros(()) if self.blind else latents.flatten(1) * ~mask
        return (dropped.square() + self.noisy * noise.flatten(1).square()).mean(1) + t


def image_set(num: int = 10) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 2, 2), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(num) % 2, ["a", "b"], Transform(2, 1))


def losses(points: list[CurvePoint]) -> list[float]:
    return [point.loss for point in points]


def test_the_curve_is_the_closed_form() -> None:
    images = image_set()
    points = explained_curve(PixelTokens(), images, num_times=3, batch_size=4)
    squares = (images.batch(range(10))[0] * 2 - 1).flatten(1).square().mean(0) / LENGTH
    dropped = [float(squares[k:].sum()) for k in range(LENGTH + 1)]
    assert [point.keep for point in points] == [0, 1, 2, 3, 4]
    # Midpoints of time average 1/2, as the unit interval does.
    assert losses(points) == pytest.approx([value + 0.5 for value in dropped], rel=1e-5)
    assert [point.share for point in points] == pytest.approx([1 - value / dropped[0] for value in dropped], abs=1e-5)
    assert points[0].share == 0
    assert points[-1].share == 1


def test_every_prefix_meets_the_same_noise_and_every_time_another() -> None:
    tokenizer = PixelTokens(noisy=1.0)
    explained_curve(tokenizer, image_set(), num_times=3, batch_size=4)
    for noise in tokenizer.noises.values():
        assert all(torch.equal(a, b) for a, b in zip(noise, tokenizer.noises[0], strict=True))
    noise_rows = torch.cat(tokenizer.noises[0]).flatten(1)
    assert len(noise_rows.unique(dim=0)) == 3 * 10


def test_noise_belongs_to_the_image_and_the_seed() -> None:
    def curve(batch_size: int, seed: int) -> list[float]:
        tokenizer = PixelTokens(noisy=1.0)
        points = explained_curve(tokenizer, image_set(), num_times=2, batch_size=batch_size, seed=seed)
        return losses(points)

    assert curve(10, 1) == pytest.approx(curve(3, 1), rel=1e-6)
    assert curve(10, 1) == curve(10, 1)
    assert curve(10, 1) != pytest.approx(curve(10, 2), rel=1e-3)


def test_tokens_that_change_nothing_have_no_share() -> None:
    points = explained_curve(PixelTokens(noisy=1.0, blind=True), image_set(), num_times=2)
    assert len(set(losses(points))) == 1
    assert all(point.share is None for point in points)


def test_requested_lengths_include_both_ends_and_only_the_first_images_count() -> None:
    points = explained_curve(PixelTokens(), image_set(), keep=[2], num_images=3)
    assert [point.keep for point in points] == [0, 2, 4]
    assert losses(points) == losses(explained_curve(PixelTokens(), image_set(3), keep=[2]))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.\.4"):
        explained_curve(PixelTokens(), image_set(), keep=[5])
    with pytest.raises(InputError, match="num_times"):
        explained_curve(PixelTokens(), image_set(), num_times=0)
    with pytest.raises(InputError, match="diffusion decoder"):
        explained_curve(nn.Linear(1, 1), image_set())


def semanticist(**settings: object) -> Semanticist:
    torch.manual_seed(0)
    config = SemanticistConfig(
        image_size=8, channels=1, num_tokens=3, token_dim=4,
        encoder=EncoderConfig(patch=4, dim=16, depth=1, heads=2),
        decoder=DecoderConfig(patch=4, dim=16, depth=1, heads=2),
        **settings,
    )  # fmt: skip
    model = Semanticist(config).eval()
    for parameter in model.decoder.parameters():  # the last layer starts at zero, where every error is alike
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("prediction", ["data", "noise", "velocity"])
def test_the_error_of_a_flow_decoder_is_not_weighted(prediction: str) -> None:
    weighted = semanticist(objective="flow", flow=FlowConfig(prediction=prediction, weight_power=2))
    plain = semanticist(objective="flow", flow=FlowConfig(prediction=prediction, weight_power=0))
    latents, tokens, noise = torch.randn(5, 1, 8, 8), torch.randn(5, 3, 4), torch.randn(5, 1, 8, 8)
    t = weighted.uniform_times(5)
    assert t.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    mask = torch.tensor([[True, False, False]]).expand(5, 3)
    error = weighted.prediction_error(latents, tokens, mask, t=t, noise=noise)
    expected = plain.denoising_rows(latents, tokens, mask, t=t, noise=noise)["loss_flow"]
    torch.testing.assert_close(error, expected)
    # sigma = 1 - t of the linear path
    rows = weighted.denoising_rows(latents, tokens, mask, t=t, noise=noise)["loss_flow"]
    torch.testing.assert_close(error, rows * (1 - t) ** 2)


def test_the_error_of_a_ddpm_decoder_is_that_of_the_noise() -> None:
    model = semanticist(objective="ddpm")
    latents, tokens, noise = torch.rand(4, 1, 8, 8), torch.randn(4, 3, 4), torch.randn(4, 1, 8, 8)
    t = model.uniform_times(4)
    assert t.tolist() == [125, 375, 625, 875]
    error = model.prediction_error(latents, tokens, t=t, noise=noise)
    predicted = model.decoder(model.chain.noised(latents, noise, t), t, tokens).chunk(2, dim=1)[0]
    torch.testing.assert_close(error, (predicted - noise).square().flatten(1).mean(1))


def test_a_real_decoder_gives_a_curve() -> None:
    model = semanticist(objective="flow")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    images = ArrayImages(pixels, np.zeros(6, dtype=np.int64), ["a"], Transform(8, 1))
    points = explained_curve(model, images, num_times=2, batch_size=4)
    assert [point.keep for point in points] == [0, 1, 2, 3]
    assert len(set(losses(points))) == 4


def test_the_plot_is_a_picture_that_shows_each_curve() -> None:
    rising = [CurvePoint(k, 1 - k / 4, k / 4) for k in range(5)]
    other = [CurvePoint(k, 1 - k / 8, (k / 4) ** 0.5) for k in range(5)]
    long = [CurvePoint(k, 1.0, k / 64) for k in (0, 1, 2, 4, 8, 16, 32, 64)]
    flat = [CurvePoint(k, 1.0, None) for k in range(5)]
    one = plot_curve({"yours": rising})
    assert one.mode == "RGB"
    assert one.width > one.height > 300
    both = plot_curve({"yours": rising, "bundled": other})
    assert both.tobytes() != one.tobytes()
    for points in (long, flat):
        assert plot_curve({"x": points}).size == one.size


class OnePass(nn.Module):
    """Tokens are the pixels of 2x2 images; the decoder returns the kept ones and 0 for the others."""

    def __init__(self, *, ordered: bool = True) -> None:
        super().__init__()
        self.spec, self.config = TokenSpec(LENGTH, 1, ordered=ordered, deterministic=True), None
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def decoder(self) -> nn.Module:
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return images.flatten(1)[..., None] * self.scale

    def decode(self, tokens: Tensor, cond: Tensor | None = None, *, keep: int, generator: object = None) -> Tensor:
        kept = tokens[..., 0] * (torch.arange(LENGTH) < keep)
        return kept.unflatten(1, (1, 2, 2)) * 1.0


def test_the_error_of_a_one_pass_decoder_is_the_closed_form() -> None:
    images = image_set()
    found = prefix(OnePass(), images, PrefixCurves(batch_size=3))  # type: ignore[arg-type]
    squares = images.batch(range(10))[0].flatten(1).square().mean(0) / LENGTH
    dropped = [float(squares[k:].sum()) for k in range(LENGTH + 1)]
    assert losses(found.points) == pytest.approx(dropped, rel=1e-5)
    assert [point.share for point in found.points] == pytest.approx([1 - value / dropped[0] for value in dropped])
    assert (found.num, found.measure, found.times, found.partial) == (10, "squared error", None, False)
    first = f"the first token gives {1 - dropped[1] / dropped[0]:.0%}"
    assert first in found.said() and "by all 4 tokens" in found.said()


def test_unordered_tokens_are_replaced_by_their_means_on_request() -> None:
    images, model = image_set(), OnePass(ordered=False)
    with pytest.raises(InputError, match=r"its tokens have no order, .*; --partial replaces the others"):
        prefix(model, images, PrefixCurves())  # type: ignore[arg-type]
    found = prefix(model, images, PrefixCurves(partial=True, batch_size=4), keep=[1])  # type: ignore[arg-type]
    variance = images.batch(range(10))[0].flatten(1).var(0, correction=0) / LENGTH
    assert found.partial and [point.keep for point in found.points] == [0, 1, 4]
    assert losses(found.points) == pytest.approx([float(variance[k:].sum()) for k in (0, 1, 4)], abs=1e-7)
    model.spec = TokenSpec(LENGTH, None, vocab_size=4, deterministic=True)
    with pytest.raises(InputError, match="ids without an order"):
        prefix(model, images, PrefixCurves(partial=True))  # type: ignore[arg-type]


def test_a_denoising_loss_is_measured_where_there_is_one() -> None:
    found = prefix(PixelTokens(), image_set(), PrefixCurves(times=3, batch_size=4))  # type: ignore[arg-type]
    assert losses(found.points) == losses(explained_curve(PixelTokens(), image_set(), num_times=3, batch_size=4))
    assert (found.measure, found.times) == ("denoising loss", 3)
    blind = prefix(PixelTokens(blind=True), image_set(), PrefixCurves(times=3))  # type: ignore[arg-type]
    assert blind.said() == "its tokens do not lower the denoising loss"
    assert plot_prefixes({"a": found, "b": blind}).mode == "RGB"


def test_the_command_measures_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-semanticist", "fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "prefix", *models, "fashion_mnist", "--num", "4"]
    assert cli.run([*command, "--keep", "1,4", "--times", "2", "--out", str(out)]) == 0
    record = json.loads((out / "prefix.json").read_text())
    semanticist, smap = record["models"]
    assert [semanticist["model"], smap["model"]] == models[:2] and "have no order" in record["left_out"][models[2]]
    assert (semanticist["measure"], semanticist["times"], semanticist["label"]) == ("denoising loss", 2, None)
    assert (smap["measure"], smap["times"], smap["label"]) == ("squared error", None, "true")
    assert all([point["keep"] for point in each["points"]] == [0, 1, 4, 16] for each in record["models"])
    assert smap["num"] == 4 and smap["seed"] == 0 and "4 of" in smap["reference"]
    said = capsys.readouterr().out
    assert f"{models[2]}: left out, " in said and "by all 16 tokens" in said
    assert Image.open(out / "prefix.png").width > 100
    all_of_them = [*command, "--keep", "all", "--times", "1", "--partial", "--label", "null", "--overwrite"]
    assert cli.run([*all_of_them, "--out", str(out)]) == 0
    record = json.loads((out / "prefix.json").read_text())
    assert [each["partial"] for each in record["models"]] == [False, False, True] and "left_out" not in record
    assert [each["label"] for each in record["models"]] == [None, "null", None]
    assert all(len(each["points"]) == 17 for each in record["models"])


def test_the_command_reads_a_folder_of_pictures(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", "prefix", "fashion-mnist-smap", str(pictures), "--num", "4", "--out", str(tmp_path / "out")]
    assert cli.run(command) == 0
    (entry,) = json.loads((tmp_path / "out" / "prefix.json").read_text())["models"]
    assert entry["num"] == 4 and entry["label"] == "null"
    command[2] = "fashion-mnist-maetok"
    assert cli.run([*command, "--overwrite"]) == 2
    assert "fashion-mnist-maetok: its tokens have no order" in capsys.readouterr().err
