"""Held-out losses of small generators and the parts of their samples' distance, with planted answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.data.images import ArrayImages
from tok1d.data.transforms import Transform
from tok1d.errors import InputError
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.measures import Measures
from tok1d.generators.base import Generator
from tok1d.studies.learnability import Distances, Learnability, learnability, measured
from tok1d.studies.learner import LossPoint, TokenSet, held_out_loss, small_generator, token_set, train_config
from tok1d.studies.learner import train_generator as trained
from tok1d.studies.request import Learning, SmallTraining
from tok1d.tokenizers.base import TokenSpec

SIDE = 4
TINY = {"dim": 32, "depth": 1, "train_batch": 16}


class Halved(nn.Module):
    """The tokens are the rows of an image; decoded images have half of its contrast, or `scale` of it."""

    def __init__(self, scale: float = 0.5, *, ids: bool = False) -> None:
        super().__init__()
        self.spec = TokenSpec(SIDE, SIDE, 8 if ids else None, deterministic=True)
        self.config = None
        self.scale = nn.Parameter(torch.tensor(scale))

    @property
    def decoder(self) -> nn.Module:
        return self

    def encode(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        return images[:, 0]

    def decode(self, tokens: Tensor, cond: Tensor | None = None, *, keep: int, generator: object = None) -> Tensor:
        return 0.5 + self.scale * (tokens[:, None] - 0.5)


class Pixels(FrozenNetwork):
    """The features are the pixels."""

    def __init__(self) -> None:
        super().__init__("pixels", "0" * 12, device="cpu", dim=SIDE**2, eight_bit=False)

    def measure(self, images: Tensor) -> Features:
        return Features(images.flatten(1))


class Copies(Generator):
    """ "Samples" are the tokens of the training images themselves."""

    kind, parallel, guidance_interval_of = "diffusion", True, "time"

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.config = small_generator("sit", TokenSpec(SIDE, SIDE), 0, SmallTraining())
        self.tokens = nn.Parameter(tokens)
        self.next = 0

    def sample(self, cond: Tensor | None = None, *, num: int = 0, **options: object) -> Tensor:  # type: ignore[override]
        self.next += num
        return self.tokens[self.next - num : self.next]

    def losses(self, *args: object) -> dict[str, Tensor]: ...  # type: ignore[empty-body]

    def make_tokens(self, *args: object, **own: object) -> Tensor: ...  # type: ignore[empty-body]

    def evaluated_networks(self, guidance: object) -> list[nn.Module]:
        return [self]

    def resolved_settings(self, settings: object) -> dict[str, object]:
        return {}


@pytest.fixture
def images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (60, SIDE, SIDE)).astype(np.uint8)
    return ArrayImages(pixels, np.zeros(60, int), ["a"], Transform(SIDE, 1))


def test_samples_that_equal_the_training_tokens_have_only_the_decoders_distance(images: ArrayImages) -> None:
    """Distance of images of mean m and covariance S to half of their contrast: |m - 0.5|^2 / 4 + tr(S) / 4."""
    tokens = images.batch(range(60))[0][:, 0]
    how = Learning(num=60, batch_size=25)
    [found] = measured(Copies(tokens), Halved(), images, how, Measures(("fd",), [Pixels()]))  # type: ignore[arg-type]
    rows = tokens.flatten(1).double()
    expected = (rows.mean(0) - 0.5).square().sum() / 4 + rows.T.cov().trace() / 4
    assert found.latent == pytest.approx(0, abs=1e-6) and found.num == 60
    assert found.floor == pytest.approx(float(expected), rel=1e-4) == found.both
    assert "fewer" in found.note


def test_tokens_that_repeat_the_first_are_easier_than_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 3, 2, generator=generator)
    labels, losses = torch.zeros(400, dtype=torch.int64), []
    for tokens in (noise, noise[:, :1].expand(-1, 3, -1).contiguous()):
        known = TokenSet(tokens[:300], tokens[300:], labels[:300], labels[300:])
        config = small_generator("card", TokenSpec(3, 2), 0, SmallTraining(**TINY))  # type: ignore[arg-type]
        model, curve = trained(config, known, train_config(60, 32), seed=0)
        losses.append(curve[-1].loss)
        assert curve[0].loss == pytest.approx(2, abs=0.3)  # a velocity of 0: tokens and noise have the variance 1
        assert held_out_loss(model, known.test, known.test_labels) == curve[-1].loss
        assert not model.training
    assert losses[1] < losses[0] - 0.1


def test_a_training_is_repeatable_and_leaves_the_random_numbers(images: ArrayImages) -> None:
    tokens = token_set(Halved(), images, images, 25)  # type: ignore[arg-type]
    config = small_generator("card", TokenSpec(SIDE, SIDE), 0, SmallTraining(**TINY))  # type: ignore[arg-type]
    before = torch.get_rng_state()
    curves = [trained(config, tokens, train_config(4, 8), seed=1)[1] for _ in range(2)]
    assert curves[0] == curves[1] and torch.equal(torch.get_rng_state(), before)
    assert [each.step for each in curves[0]] == [0, 1, 2, 3, 4]
    assert trained(config, tokens, train_config(4, 8), seed=1, curve=False)[1] == curves[0][-1:]


def test_without_a_network_only_the_loss_is_reported(images: ArrayImages) -> None:
    how = Learning(steps=2, num_train=40, num=20, **TINY)  # type: ignore[arg-type]
    found = learnability(Halved(), images, images, how, Measures(()))  # type: ignore[arg-type]
    assert found.distances == [] and (found.num, found.num_train) == (20, 40)
    assert found.said() == f"held-out loss {found.losses[-1].loss:.3f} after 2 steps"


def test_what_cannot_be_learned_is_refused(images: ArrayImages) -> None:
    with pytest.raises(InputError, match="this makes ids of a codebook; leave it out"):
        learnability(Halved(ids=True), images, images, Learning(), Measures(()), name="vq")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--dim: expected a multiple of 32, got 40"):
        learnability(Halved(), images, images, Learning(dim=40), Measures(()))  # type: ignore[arg-type]


def test_the_sentence_names_the_three_distances() -> None:
    losses, of = [LossPoint(0, 2.0), LossPoint(9, 1.25)], [Distances("net@1", 50, 1.0, 2.0, 2.5)]
    assert Learnability(5, 9, None, {}, 3, losses, of).said() == (
        "held-out loss 1.250 after 9 steps, fd of samples 1.00 to reconstructions of training images and 2.50 to the "
        "images, with a floor of 2.00"
    )


def test_the_command_compares_models(fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "learnability", *models, "fashion_mnist", "--dim", "32", "--depth", "1", "--steps", "2"]
    command += ["--num", "8", "--num-train", "16", "--train-batch", "4"]
    assert cli.run([*command, "--generator", "card", "--out", str(out)]) == 0
    record = json.loads((out / "learnability.json").read_text())
    smap, maetok = record["models"]
    assert [smap["model"], maetok["model"]] == models and smap["weights_hash"] != maetok["weights_hash"]
    assert (smap["label"], maetok["label"], smap["num"], smap["num_train"]) == ("true", None, 8, 16)
    assert smap["generator"]["name"] == "card" and [each["step"] for each in smap["losses"]] == [0, 1, 2]
    [of] = smap["distances"]
    assert of["num"] == 8 and min(of["latent"], of["floor"], of["both"]) > 0
    assert record["said"] in capsys.readouterr().out and Image.open(out / "learnability.png").width > 100
    assert cli.run([*command, "--dim", "33", "--out", str(tmp_path / "no")]) == 2
    assert "--dim: expected a multiple of 32, got 33" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["learnability", "order"])
def test_a_folder_of_pictures_is_learned(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        for kind in ("a", "b"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 256, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / kind / f"{i}.png")
    command = ["analyze", name, "emoji-maetok", str(tmp_path / "photos"), "--dim", "32", "--depth", "1"]
    out = tmp_path / "out"
    assert cli.run([*command, "--steps", "2", "--train-batch", "4", "--num", "4", "--out", str(out)]) == 0
    [record] = json.loads((out / f"{name}.json").read_text())["models"]
    assert (record["num"], record["num_train"], record["generator"]["num_classes"]) == (4, 8, 2)
