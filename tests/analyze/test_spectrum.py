"""Spectra of images with a known power law, and of a tokenizer whose first token holds the low frequencies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.cuts import fit_components, vectors_of
from tok1d.analyze.request import Spectra
from tok1d.analyze.spectrum import log_power, radial_power, spectrum
from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.bottlenecks import VQConfig
from tok1d.tokenizers.titok import TiTok, TiTokConfig, TiTokViTConfig

SIDE = 16


def distances() -> Tensor:
    each = torch.fft.fftfreq(SIDE, dtype=torch.float64) * SIDE
    return torch.hypot(each[:, None], each[None]).round()


class Bands(nn.Module):
    """The first token is an image with at most `cutoff` periods per side, the second one the rest."""

    def __init__(self, cutoff: int, *, ordered: bool = True, ids: bool = False) -> None:
        super().__init__()
        self.spec = TokenSpec(2, SIDE**2, 8 if ids else None, ordered=ordered, deterministic=True)
        self.config = None
        self.low = nn.Parameter((distances() <= cutoff).double())

    @property
    def decoder(self) -> nn.Module:
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        low = torch.fft.ifft2(torch.fft.fft2(images.double()) * self.low).real.flatten(1)
        return torch.stack([low, images.double().flatten(1) - low], 1)

    def decode(self, tokens: Tensor, cond: Tensor | None = None, *, keep: int, generator: object = None) -> Tensor:
        return tokens[:, :keep].sum(1).unflatten(1, (1, SIDE, SIDE))


@pytest.fixture
def images() -> ArrayImages:
    """Noise around grey that a low-pass filter does not take out of [0, 1]."""
    pixels = np.random.default_rng(0).integers(96, 160, (40, SIDE, SIDE)).astype(np.uint8)
    return ArrayImages(pixels, np.zeros(40, int), ["a"], Transform(SIDE, 1))


def test_a_cosine_has_its_power_at_its_frequency() -> None:
    x = torch.cos(2 * math.pi * 3 * torch.arange(SIDE, dtype=torch.float64) / SIDE)
    power = radial_power((0.5 + 0.2 * x).expand(2, 3, SIDE, SIDE))
    ring = int((distances() == 3).sum())
    assert power.shape == (2, SIDE // 2)
    assert power[0, 2] * ring == pytest.approx(2 * 0.2**2 / 4)
    assert power[:, [0, 1, 3, 4, 5, 6, 7]].abs().max() < 1e-20


@pytest.mark.parametrize("exponent", [0.0, 2.0, 3.0])
def test_a_power_law_has_its_slope(exponent: float) -> None:
    noise = torch.fft.fft2(torch.randn(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double())
    amplitude = distances().clamp_min(1) ** (-exponent / 2)
    x = torch.fft.ifft2(noise / noise.abs() * amplitude).real
    logs = radial_power(x).mean(0).log10()
    periods = torch.arange(1, SIDE // 2 + 1).double().log10()
    centred = periods - periods.mean()
    assert float((centred * logs).sum() / centred.square().sum()) == pytest.approx(-exponent, abs=1e-9)


def test_powers_below_the_rounding_of_images_count_as_it() -> None:
    levels = torch.randint(0, 2, (400, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) / 255
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(1)) / 255  # variance 1 / (12 255^2)
    assert log_power(torch.zeros(1), SIDE**2).item() == pytest.approx(
        float(radial_power(noise).mean().log10()), abs=0.01
    )
    assert log_power(radial_power(levels).mean(0), SIDE**2).min() > log_power(torch.zeros(1), SIDE**2).item()


@pytest.mark.parametrize("cutoff", [2, 5])
def test_a_token_of_low_frequencies_lacks_the_high_ones(images: ArrayImages, cutoff: int) -> None:
    found = spectrum(Bands(cutoff), images, Spectra(batch_size=16))  # type: ignore[arg-type]
    one, two = found.points
    assert (one.keep, two.keep, found.num) == (1, 2, 40)
    ratio = np.subtract(one.log_power, found.original)
    floor = log_power(torch.zeros(1), SIDE**2).item()
    assert ratio[:cutoff] == pytest.approx(np.zeros(cutoff), abs=1e-6)
    assert one.log_power[cutoff:] == pytest.approx([floor] * (SIDE // 2 - cutoff))
    lost = np.subtract(found.original, floor)
    assert one.error == pytest.approx(lost[cutoff:].sum() / (SIDE // 2), abs=1e-6)
    assert one.high == pytest.approx(-lost[max(cutoff, 4) :].sum() / 4, abs=1e-6)
    assert two.error == pytest.approx(0, abs=1e-6) and two.high == pytest.approx(0, abs=1e-6)
    assert found.said().startswith("from 1 to 2 tokens") and one.semantic == {}


def test_the_result_does_not_depend_on_the_batch_size(images: ArrayImages) -> None:
    a, b = (spectrum(Bands(3), images, Spectra(batch_size=size)) for size in (7, 40))  # type: ignore[arg-type]
    assert a.points[0].log_power == pytest.approx(b.points[0].log_power, abs=1e-9)


def test_unordered_tokens_are_decoded_whole_or_with_means(images: ArrayImages) -> None:
    model = Bands(3, ordered=False)
    assert [each.keep for each in spectrum(model, images, Spectra()).points] == [2]  # type: ignore[arg-type]
    found = spectrum(model, images, Spectra(partial=True))  # type: ignore[arg-type]
    assert found.partial and [each.keep for each in found.points] == [1, 2]
    assert found.points[1].error == pytest.approx(0, abs=1e-6)


def test_components_that_were_planted_are_found_in_falling_order() -> None:
    """Tokens of three directions with the variances 9, 4 and 1, in batches of any size."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0][:3]
    rows = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(rows.T.cov(correction=0))).T  # exactly white
    tokens = (rows * torch.tensor([3.0, 2.0, 1.0])) @ directions + 100
    model, pixels = Rows(tokens.view(-1, 2, 4)), np.zeros((4000, SIDE, SIDE), np.uint8)
    chosen = ArrayImages(pixels, np.arange(4000) % 7, list("abcdefg"), Transform(SIDE, 1))
    for size in (4000, 333):
        model.at = 0
        found, shape = fit_components(model, chosen, batch_size=size)  # type: ignore[arg-type]
        assert found.variances.tolist() == pytest.approx([9, 4, 1]) and found.num == 4000
        assert (found.axes.T @ directions.T).abs().allclose(torch.eye(3, dtype=torch.float64), atol=1e-6)
        assert shape == (2, 4) and torch.allclose(found.mean, torch.full((8,), 100, dtype=torch.float64))
        assert [found.share(k) for k in (0, 1, 2, 3)] == pytest.approx([0, 9 / 14, 13 / 14, 1])
        assert torch.allclose(found.project(model.tokens[:5], 3), model.tokens[:5])
        one = (model.tokens[:5].flatten(1) - 100) @ directions[:1].T @ directions[:1] + 100
        assert torch.allclose(found.project(model.tokens[:5], 1).flatten(1), one, atol=1e-6)


class Rows(nn.Module):
    """Gives the next tokens for a batch of any images."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.spec, self.config, self.at = TokenSpec(2, 4, deterministic=True), None, 0
        self.tokens = nn.Parameter(tokens, requires_grad=False)

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        self.at += len(images)
        return self.tokens[self.at - len(images) : self.at]


def test_all_components_of_unordered_tokens_decode_the_image(images: ArrayImages) -> None:
    """The tokens hold the image twice, in two bands, so they have as many components as the images differ in."""
    found = spectrum(Bands(3, ordered=False), images, Spectra(components=True, keep=(1, 8, 39)))  # type: ignore[arg-type]
    assert (found.unit, found.num_fit, found.partial) == ("components", 40, False)
    assert [each.keep for each in found.points] == [1, 8, 39] and found.explained is not None
    assert found.explained == sorted(found.explained) and found.explained[-1] == pytest.approx(1)
    assert found.points[-1].error == pytest.approx(0, abs=1e-6)
    assert found.points[0].high < found.points[1].high < -0.01
    assert found.said().startswith("from 1 to 39 components")
    again = spectrum(Bands(3, ordered=False), images, Spectra(components=True), training=images)  # type: ignore[arg-type]
    assert [each.keep for each in again.points] == [1, 2, 4, 8, 16, 32, 39]


def test_ids_are_projected_as_entries_of_the_codebook_where_these_can_be_decoded(images: ArrayImages) -> None:
    config = TiTokConfig(
        image_size=SIDE,
        channels=1,
        num_tokens=3,
        token_dim=4,
        bottleneck=VQConfig(size=32),
        encoder=TiTokViTConfig(patch=8, dim=16, depth=1, heads=2),
        decoder=TiTokViTConfig(patch=8, dim=16, depth=1, heads=2),
    )
    torch.manual_seed(0)
    model = TiTok(config).eval()
    # An untrained encoder gives the same ids for all images.
    model.encode = lambda images, cond=None: (images[:, 0, :3, 0] * 255).long() % 32  # type: ignore[method-assign]
    read, decode = vectors_of(model)
    ids = model.encode(images.batch(range(6))[0])
    assert read(ids).shape == (6, 3, 4) and torch.equal(decode(read(ids), keep=3), model.decode(ids))
    found = spectrum(model, images, Spectra(components=True, keep=(1,)))
    assert found.unit == "components" and len(found.points) == 1


def test_what_cannot_be_decoded_is_refused(images: ArrayImages) -> None:
    with pytest.raises(InputError, match="these tokens have no order, expected all 2, got 1"):
        spectrum(Bands(3, ordered=False), images, Spectra(keep=(1,)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--partial: ids have no mean"):
        spectrum(Bands(3, ordered=False, ids=True), images, Spectra(partial=True))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected continuous tokens, or a decoder of codebook entries, Bands has ids"):
        spectrum(Bands(3, ordered=False, ids=True), images, Spectra(components=True))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--partial: expected it without --components"):
        spectrum(Bands(3), images, Spectra(components=True, partial=True))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--keep.*39"):
        spectrum(Bands(3), images, Spectra(components=True, keep=(40,)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--temperature: only a flow decoder"):
        spectrum(Bands(3), images, Spectra(temperature=1.0))  # type: ignore[arg-type]


def test_the_command_measures_several_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "spectrum", *models, "fashion_mnist", "--num", "6", "--keep", "1,16"]
    assert cli.run([*command, "--out", str(out)]) == 0
    record = json.loads((out / "spectrum.json").read_text())
    smap, maetok = record["models"]
    assert [smap["model"], maetok["model"]] == models and smap["weights_hash"] != maetok["weights_hash"]
    assert [each["keep"] for each in smap["points"]] == [1, 16]
    assert [each["keep"] for each in maetok["points"]] == [16]
    assert smap["num"] == 6 and smap["seed"] == 0 and "6 of" in smap["reference"] and smap["decoding"] is None
    assert all(len(each["semantic"]) == 1 for each in smap["points"])
    assert record["said"] in capsys.readouterr().out and Image.open(out / "spectrum.png").width > 100
    assert cli.run([*command, "--steps", "3", "--out", str(tmp_path / "no")]) == 2
    assert "steps: this tokenizer's decoder is deterministic" in capsys.readouterr().err
    assert cli.run(["analyze", "spectrum", "fashion_mnist", "--out", str(tmp_path / "no")]) == 2
    assert "expected MODEL... DATA" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_command_decodes_from_principal_components(
    fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "spectrum", *models, "fashion_mnist", "--num", "6", "--components", "--num-fit", "20"]
    assert cli.run([*command, "--keep", "1,4", "--out", str(out)]) == 0
    for each in json.loads((out / "spectrum.json").read_text())["models"]:
        assert (each["unit"], each["num_fit"], [point["keep"] for point in each["points"]]) == (
            "components",
            20,
            [1, 4],
        )
        assert 0 < each["explained"][0] < each["explained"][1] < 1
    assert cli.run([*command, "--keep", "257", "--out", str(tmp_path / "no")]) == 2
    assert "--keep" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_temperature_and_shift_are_set_while_a_flow_decodes(fashion: None, tmp_path: Path) -> None:
    command = ["analyze", "spectrum", "fashion-mnist-semanticist", "fashion_mnist", "--num", "4", "--keep", "16"]
    found = []
    for name, options in (("own", []), ("full", ["--temperature", "1", "--shift", "1"])):
        out = tmp_path / name
        assert cli.run([*command, "--steps", "2", *options, "--out", str(out)]) == 0
        found.append(json.loads((out / "spectrum.json").read_text())["models"][0])
    own, full = found
    assert (own["decoding"]["temperature"], own["decoding"]["shift"], own["decoding"]["steps"]) == (0.7, 2.0, 2)
    assert (full["decoding"]["temperature"], full["decoding"]["shift"]) == (1.0, 1.0)
    assert own["points"] != full["points"] and own["weights_hash"] == full["weights_hash"]
