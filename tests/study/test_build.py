"""Study folders from a tokenizer and images: their pictures, their distractors, and that nothing is half-written."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.errors import InputError
from tok1d.study.build import class_distractors, mask_of, short_name
from tok1d.study.folder import IMAGES, RESULTS, read_study
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint

OPTIONS = ["--num", "4", "--practice", "1", "--catch", "1", "--keep", "1,3", "--reveal", "100,50"]


@pytest.fixture
def model(tiny: Callable[..., str], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = store.build_model(load_recipe(tiny("tokenizer")).model).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    store.save_model(made, tmp_path / "run" / "model", Card())
    return tmp_path / "run" / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight pictures of 28 pixels; all pictures differ."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / name / f"{name}{number}.png")
    return folder


@pytest.fixture
def build(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """build(out, *options): exit code and output of `tok1d study build`."""

    def run(out: Path, *options: object) -> tuple[int, str]:
        capsys.readouterr()
        arguments = ["study", "build", model, photos, "--out", out, "--split", "all", *OPTIONS, *options]
        code = cli.run([str(each) for each in arguments])
        out_text, err = capsys.readouterr()
        return code, out_text if code == 0 else err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_study_is_self_contained_and_depends_on_the_seed_alone(
    build: Callable[..., tuple[int, str]], model: Path, photos: Path, tmp_path: Path
) -> None:
    code, said = build(tmp_path / "a")
    assert code == 0, said
    assert "4 trials in 4 conditions, 1 practice and 1 catch trials; counterbalanced over every 8" in said
    study = read_study(tmp_path / "a")
    assert (study.keep, study.reveal_ms, study.model, study.data) == ((1, 3), (50, 100), "run/model", "photos")
    assert study.weights == fingerprint(store.load(str(model))) and study.count == 16
    assert str(tmp_path) not in (tmp_path / "a" / "study.json").read_text()
    assert {path.name for path in (tmp_path / "a" / IMAGES).iterdir()} == set(study.files())
    places = [item.index for item in (*study.items, *study.practice, *study.catch)]
    assert len(set(places)) == 6
    files = sorted(photos.rglob("*.png"))
    folder = tmp_path / "a" / IMAGES
    for item in (*study.items, *study.practice, *study.catch):
        assert (pixels(folder / item.original) == pixels(files[item.index])).all()
        assert item.label == files[item.index].parent.name
        source = next(file for file in files if (pixels(folder / item.distractor) == pixels(file)).all())
        assert source.parent.name == item.label and source != files[item.index]
    assert [len(item.reconstructions) for item in (*study.items, *study.practice, *study.catch)] == [2] * 5 + [0]
    assert build(tmp_path / "b")[0] == 0 and contents(tmp_path / "b") == contents(tmp_path / "a")
    assert build(tmp_path / "c", "--seed", 1)[0] == 0 and contents(tmp_path / "c") != contents(tmp_path / "a")


def test_reconstructions_are_those_of_the_first_tokens(
    build: Callable[..., tuple[int, str]], model: Path, tmp_path: Path
) -> None:
    assert build(tmp_path / "a", "--steps", 3, "--guidance", 1.5)[0] == 0
    study = read_study(tmp_path / "a")
    assert study.decoding is not None and (study.decoding.steps, study.decoding.guidance) == (3, 1.5)
    one, three = (pixels(tmp_path / "a" / IMAGES / name) for name in study.items[0].reconstructions)
    assert (one != three).any()


def test_nothing_is_written_after_a_mistake_and_answers_are_never_deleted(
    build: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("")
    for options, culprit in (
        (["--keep", 9], "--keep"),
        (["--reveal", 5], "--reveal"),
        (["--reveal", 20_000], "--reveal"),
        (["--num", 40], "--num"),
        (["--num", 0], "--num"),
        (["--mask", 9999], "--mask"),
        (["--consent", tmp_path / "none.txt"], "--consent"),
        (["--consent", tmp_path / "words.txt"], "--consent"),
        (["--distractor", tmp_path / "nowhere"], "nowhere"),
        (["--distractor", "redrawn"], "--captioner"),
        (["--captioner", "x"], "--captioner"),
        (["--label", "true"], "label"),
    ):
        code, err = build(tmp_path / "out", *options)
        assert code == 2 and culprit in err and err.count("\n") == 1, err
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert build(tmp_path / "out")[0] == 0
    before = contents(tmp_path / "out")
    assert build(tmp_path / "out")[0] == 2
    assert build(tmp_path / "out", "--overwrite", "--num", 40)[0] == 2
    assert contents(tmp_path / "out") == before
    assert build(tmp_path / "out", "--overwrite", "--seed", 2)[0] == 0 and contents(tmp_path / "out") != before
    (tmp_path / "out" / RESULTS).write_text("answers")
    code, err = build(tmp_path / "out", "--overwrite")
    assert code == 2 and "not deleted" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    assert build(tmp_path / "other", "--overwrite")[0] == 2 and (tmp_path / "other" / "thesis.txt").exists()


def test_distractors_of_a_folder_go_by_name_or_in_order(
    build: Callable[..., tuple[int, str]], photos: Path, tmp_path: Path
) -> None:
    files, own = sorted(photos.rglob("*.png")), tmp_path / "own"
    own.mkdir()
    for number, file in enumerate(files):
        Image.new("L", (28, 28), number * 10).save(own / file.name)
    assert build(tmp_path / "a", "--distractor", own)[0] == 0
    study = read_study(tmp_path / "a")
    assert study.distractor == "folder"
    for item in (*study.items, *study.practice, *study.catch):
        assert (pixels(tmp_path / "a" / IMAGES / item.distractor) == item.index * 10).all()
    missing = own / files[study.items[0].index].name
    missing.unlink()
    code, err = build(tmp_path / "b", "--distractor", own)
    assert code == 2 and f"none for {missing.stem}" in err
    for number, file in enumerate(sorted(own.iterdir())):
        file.rename(own / f"x{number:02d}.png")
    assert build(tmp_path / "c", "--distractor", own)[0] == 0
    for file in sorted(own.iterdir())[3:]:
        file.unlink()
    code, err = build(tmp_path / "d", "--distractor", own)
    assert code == 2 and "expected at least 6 images, got 3" in err


def test_the_consent_text_may_be_ones_own(build: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Naïve consent.\n", encoding="utf-8")
    assert build(tmp_path / "a", "--consent", tmp_path / "words.txt", "--mask", 0)[0] == 0
    study = read_study(tmp_path / "a")
    assert (study.consent, study.mask_ms) == ("Naïve consent.", 0)


def test_class_distractors_are_others_of_the_class_and_distinct_while_there_are_enough() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    found = class_distractors(labels, [0, 1, 4, 5], 0)
    assert [labels[i] for i in found] == [0, 0, 1, 1] and len(set(found) | {0, 1, 4, 5}) == 8
    assert class_distractors([0, 0], [0, 1], 0) == [1, 0]
    with pytest.raises(InputError, match="class owl has one image only"):
        class_distractors([0, 0, 1], [2], 0, ["cat", "owl"])


def test_the_mask_consists_of_tiles_of_the_images() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 28, 28)
    found = mask_of(images, 0)
    assert found.shape == (2, 28, 28) and torch.equal(found, mask_of(images, 0))
    tiles = found.reshape(2, 14, 2, 14, 2)
    assert bool((tiles == tiles[:1, :, :1, :, :1]).all())
    assert set(Counter(found.flatten().tolist())) == {0.0, 1.0, 2.0}


def test_names_hold_no_folders_of_the_user() -> None:
    names = {"/home/me/run/model": "run/model", "fashion_mnist": "fashion_mnist", "../x": "x", "a/b": "b", "/": ""}
    assert {name: short_name(name) for name in names} == names


def test_redrawn_distractors_come_from_a_captioner_and_a_painter(
    build: Callable[..., tuple[int, str]], text_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random models of the real classes, tiny, written and read as published ones are."""
    captioner, painter = tiny_blip(tmp_path / "captioner"), tiny_painter(tmp_path / "painter", text_folder)
    options = ["--distractor", "redrawn", "--captioner", captioner, "--painter", painter]
    code, said = build(tmp_path / "a", *options)
    assert code == 0, said
    study = read_study(tmp_path / "a")
    assert study.distractor == "redrawn" and str(tmp_path) not in (tmp_path / "a" / "study.json").read_text()
    pictures = {(tmp_path / "a" / IMAGES / item.distractor).read_bytes() for item in study.items}
    assert len(pictures) == 4 and pixels(tmp_path / "a" / IMAGES / study.items[0].distractor).shape == (28, 28)
    assert build(tmp_path / "b", *options)[0] == 0 and contents(tmp_path / "b") == contents(tmp_path / "a")
    for broken in ("--captioner", "--painter"):
        code, err = build(tmp_path / "c", *options, broken, tmp_path / "run")
        assert code == 2 and broken in err and err.count("\n") == 1 and not (tmp_path / "c").exists(), err


def tiny_blip(folder: Path) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"word{i}" for i in range(19))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": 32,
        "encoder_hidden_size": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    text |= {"sep_token_id": 3, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


def tiny_painter(folder: Path, text_folder: str) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=32)
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    tokenizer.model_max_length = 20
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(text_folder),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
