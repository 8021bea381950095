"""Pictures from finished models: any size, sampler and guidance; samples depend on their own random numbers alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, to_yaml
from tok1d.config.options import parse_counts, parse_interval
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.inference import images as sources
from tok1d.inference import pictures
from tok1d.inference.request import SamplePictures
from tok1d.inference.sampling import noise_of
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def pair(tiny: Tiny) -> tuple[Any, Any]:
    return random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))


@pytest.fixture
def folders(pair: tuple[Any, Any], tmp_path: Path) -> Path:
    generator, tokenizer = pair
    store.save_model(tokenizer, tmp_path / "tokenizer", Card())
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    store.save_model(generator, tmp_path / "generator", card)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def run(capsys: Any, *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out if code == 0 else err


@pytest.mark.parametrize(("text", "expected"), [("", (0, 1)), ("0.2,0.8", (0.2, 0.8)), ("0, 1", (0, 1))])
def test_intervals(text: str, expected: tuple[float, float]) -> None:
    assert parse_interval(text, "--x") == expected


@pytest.mark.parametrize("text", ["0.5", "a,b", "0.8,0.2", "0.5,0.5", "-0.1,1", "0,1.5", "0,0.5,1", "nan,1", ","])
def test_other_intervals_are_refused(text: str) -> None:
    expected = r"(two numbers|LOW,HIGH with 0 <= LOW < HIGH <= 1,) such as 0\.2,0\.8"
    with pytest.raises(InputError, match=rf"^--x: expected {expected}, got '") as caught:
        parse_interval(text, "--x")
    assert "\n" not in str(caught.value)


def test_noise_belongs_to_its_key() -> None:
    noises = {key: torch.randn(2, generator=noise_of(*key)) for key in ((0, 1), (0, 2), (1, 1), (2**33, 1))}
    assert all(torch.equal(torch.randn(2, generator=noise_of(*key)), noises[key]) for key in noises)
    assert len({tuple(noise.tolist()) for noise in noises.values()}) == 4


def test_a_picture_depends_neither_on_the_others_nor_on_the_batch(pair: tuple[Any, Any], tmp_path: Path) -> None:
    def run_generate(name: str, **options: Any) -> Path:
        return pictures.generate(*pair, tmp_path / name, SamplePictures(guidance=2.0, **options))[0].parent

    everything = run_generate("all", classes=(3, 7), num=3)
    for name, options in (
        ("one", {"classes": (7,), "num": 1}),
        ("small batches", {"classes": (3, 7), "num": 3, "batch_size": 2}),
        ("more", {"classes": (7, 1, 3), "num": 4, "batch_size": 5}),
    ):
        shared = {path.name for path in run_generate(name, **options).glob("class*.png")}
        shared &= {path.name for path in everything.glob("class*.png")}
        assert shared
        for picture in shared:
            difference = np.abs(pixels(tmp_path / name / picture) - pixels(everything / picture))
            assert difference.max() <= 1, (name, picture)
    assert (run_generate("other", classes=(7,), num=1, seed=1) / "class007_000.png").read_bytes() != (
        everything / "class007_000.png"
    ).read_bytes()
    assert len({path.read_bytes() for path in everything.glob("class*.png")}) == 6


def test_progressive_rows_are_prefixes_of_the_same_samples(pair: tuple[Any, Any], tmp_path: Path) -> None:
    generator, tokenizer = pair
    how = SamplePictures(classes=(2, 5), num=2, decode_keep="0,1,3", batch_size=3, guidance=1.0)
    pictures.generate(generator, tokenizer, tmp_path, how)
    sheet = pixels(tmp_path / "progressive.png")
    zoom, side = 3, 28
    wide = zoom * (4 * (side + 2) - 2)  # and the labels of the rows
    assert sheet.shape[0] == zoom * (3 * (side + 2) - 2) and wide < sheet.shape[1] < wide + 200
    overview = pixels(tmp_path / "overview.png")
    cell = zoom * (side + 2)

    def at(picture: np.ndarray, row: int, column: int) -> np.ndarray:
        return picture[row * cell : row * cell + zoom * side, column * cell : column * cell + zoom * side]

    for i in range(4):  # the last row has all tokens; the overview has a row a class
        assert np.array_equal(at(sheet, 2, i), at(overview, i // 2, i % 2))
    assert not np.array_equal(at(sheet, 0, 0), at(sheet, 2, 0)) and not np.array_equal(at(sheet, 1, 0), at(sheet, 2, 0))


def test_a_smaller_scale_of_guidance_is_served_too(pair: tuple[Any, Any], tmp_path: Path) -> None:
    found = set()
    for i, guidance in enumerate((0.0, 0.5, 1.0, 2.0, Guidance(2.0), Guidance(0.5))):
        out = tmp_path / str(i)
        own, how = isinstance(guidance, Guidance), SamplePictures(classes=(1,), num=1)
        how = how if own else replace(how, guidance=guidance)
        (path,) = pictures.generate(*pair, out, how, guidance=guidance if own else None)
        found.add(path.read_bytes())
    assert len(found) == 6


def test_reconstruct_at_another_size(folders: Path, capsys: Any) -> None:
    command = ["reconstruct", folders / "tokenizer", folders / "photo.png", "--keep", "4"]
    code, out = run(capsys, *command, "--out", folders / "large", "--size", 56)
    assert code == 0 and "keep    4 of 4" in out
    assert Image.open(folders / "large" / "image000_keep004.png").size == (56, 56)
    assert Image.open(folders / "large" / "image000_original.png").size == (56, 56)
    run(capsys, *command, "--out", folders / "own")
    run(capsys, *command, "--out", folders / "named", "--size", 28)
    own, named = (pixels(folders / name / "image000_keep004.png") for name in ("own", "named"))
    assert np.array_equal(own, named)
    code, err = run(capsys, *command, "--out", folders / "odd", "--size", 30)
    assert code == 2 and err.startswith("error: image size: expected") and err.count("\n") == 1 and "got 30x30" in err
    assert not (folders / "odd").exists()


def test_overwriting_leaves_no_picture_of_the_run_before(folders: Path, capsys: Any) -> None:
    (folders / "few").mkdir()
    for number in range(3):
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(folders / "few" / f"{number}.png")
    command = ["reconstruct", folders / "tokenizer", folders / "few", "--out", folders / "out", "--steps", 1]
    assert run(capsys, *command, "--keep", "1,4")[0] == 0
    (folders / "out" / "notes.txt").touch()
    assert run(capsys, *command, "--keep", "4", "--num", 2, "--overwrite")[0] == 0
    kept = {f"image00{i}_{what}.png" for i in range(2) for what in ("keep004", "original")}
    assert {path.name for path in (folders / "out").iterdir()} == kept | {"overview.png", "notes.txt"}
    command = ["generate", folders / "generator", "--out", folders / "generated", "--guidance", 1, "--decoder-steps", 1]
    assert run(capsys, *command, "--classes", "3,4", "--num", 2)[0] == 0
    assert run(capsys, *command, "--classes", "4", "--num", 1, "--overwrite")[0] == 0
    assert {path.name for path in (folders / "generated").iterdir()} == {"class004_000.png", "overview.png"}


def test_images_that_cannot_be_decoded_are_not_shown(
    folders: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They pass the check of the file header and fail later; the next readable image would replace them."""
    for number in range(4):
        path = folders / "set" / ("train" if number < 2 else "test") / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), 60 * number, np.uint8)).save(path)
    monkeypatch.setattr("tok1d.data.folder.broken_reason", lambda path: None)
    command = ["reconstruct", folders / "tokenizer", folders / "set", "--keep", "4", "--steps", 1]
    assert "(mean of 2 images)" in run(capsys, *command, "--out", folders / "both")[1]  # the test images of the folder
    assert pixels(folders / "both" / "image001_original.png")[0, 0] == 180
    (folders / "set" / "test" / "a" / "2.png").write_bytes(b"broken")
    code, out = run(capsys, *command, "--out", folders / "one")
    assert code == 0 and "mean of" not in out
    assert not (folders / "one" / "image001_original.png").exists()
    assert pixels(folders / "one" / "image000_original.png")[0, 0] == 180
    code, out = run(capsys, "encode", folders / "tokenizer", folders / "set", "--split", "test", "--out", folders / "c")
    assert code == 0 and "2 rows of 4 tokens" in out and out.endswith("1 unreadable image replaced by another\n")
    code, err = run(capsys, *command, "--num", 1, "--out", folders / "none")
    assert code == 2 and "2.png: not a readable image" in err and not (folders / "none").exists()


@pytest.mark.parametrize("names", [("train",), ("train", "val"), ("",)])
def test_own_folders_have_the_classes_of_their_training(tmp_path: Path, tiny: Tiny, names: tuple[str, ...]) -> None:
    for name in names:
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / name / label / "1.png")
    found = sources.open_own(str(tmp_path), random_model(tiny("tokenizer")))
    assert found.class_names == ["a", "b"] and len(found) == 2 and found.batch([0, 1])[1].tolist() == [0, 1]


def test_sampler_and_interval_reach_the_decoder(folders: Path, capsys: Any) -> None:
    command = ["reconstruct", folders / "tokenizer", folders / "photo.png", "--keep", "4", "--steps", 4]

    def reconstructed(name: str, *options: object) -> bytes:
        code, _ = run(capsys, *command, "--out", folders / name, *options)
        assert code == 0
        return (folders / name / "image000_keep004.png").read_bytes()

    plain, heun = reconstructed("plain"), reconstructed("heun", "--sampler", "heun")
    guided = reconstructed("guided", "--guidance", 3)
    part = reconstructed("part", "--guidance", 3, "--guidance-interval", "0.4,0.6")
    never = reconstructed("never", "--guidance", 3, "--guidance-interval", "0.9,0.95")
    assert len({plain, heun, guided, part}) == 4 and never == plain
    for options, message in (
        (("--sampler", "ddim"), "sampler: expected 'euler' or 'heun' for a flow decoder, got 'ddim'"),
        (("--guidance-interval", "0.8,0.2"), "--guidance-interval: expected LOW,HIGH with 0"),
    ):
        code, err = run(capsys, *command, "--out", folders / "wrong", *options)
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (folders / "wrong").exists()


def test_generate_with_every_option(folders: Path, capsys: Any) -> None:
    command = ["generate", folders / "generator", "--classes", "3", "--num", 2, "--seed", 4]
    code, out = run(
        capsys,
        *command,
        *("--out", folders / "g", "--decode-keep", "every", "--guidance", 0.5, "--guidance-schedule", "constant"),
        *("--sampler", "sde", "--steps", 3, "--temperature", 0.8, "--decoder-sampler", "heun"),
        *("--decoder-guidance", 1.5, "--decoder-steps", 2, "--keep", 2),
    )
    assert code == 0 and "progressive.png" in out
    names = sorted(path.name for path in (folders / "g").iterdir())
    assert names == ["class003_000.png", "class003_001.png", "overview.png", "progressive.png"]
    width, height = Image.open(folders / "g" / "progressive.png").size
    assert height == 3 * 58 < width  # two samples, prefixes 1 and 2; labels
    for options, message in (
        (("--decode-keep", "1,4"), "--decode-keep: expected numbers in 0..3, got 4"),
        (
            ("--guidance-schedule", "cosine"),
            "--guidance-schedule: expected constant or linear or power_cosine, got 'cosine'",
        ),
        (
            ("--sampler", "ancestral"),
            "sampler: expected 'sde', 'euler' or 'heun', got 'ancestral'",
        ),
        (("--decoder-solver", "ddim"), "sampler: expected 'euler' or 'heun' for a flow decoder"),
        (("--guidance-interval", "0.2,0.8"), "no interval and no weak_model"),
        (("--unconditional",), "--classes: --unconditional samples without classes"),
    ):
        code, err = run(capsys, *command, "--out", folders / "wrong", *options)
        renamed = "--decoder-solver" in options
        assert code == 2 and message in err and err.count("\n") == 1 + renamed
        assert ("warning: --decoder-solver is now called --decoder-sampler" in err) == renamed
    assert not (folders / "wrong").exists()


@pytest.fixture
def whole(tiny: Tiny, tmp_path: Path) -> Path:
    """Folders of a SiT on the unordered tokens of a deterministic tokenizer, and of a smaller SiT."""
    tokenizer = random_model(tiny("maetok"))
    recipe = to_yaml(load_recipe(tiny("maetok")))
    store.save_model(tokenizer, tmp_path / "tokenizer", Card(recipe=recipe))
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    for name, change in (("sit", []), ("weak", ["model.dim=8"]), ("blind", ["model.num_classes=0"])):
        store.save_model(random_model(tiny("sit", tokenizer="x"), *change), tmp_path / name, card)
    return tmp_path


def test_whole_sequences_are_sampled_with_their_own_options(whole: Path, capsys: Any) -> None:
    command = ["generate", whole / "sit", "--classes", "3", "--num", 2, "--sampler", "euler", "--steps", 4]

    def generated(name: str, *options: object) -> bytes:
        code, out = run(capsys, *command, "--out", whole / name, *options)
        assert code == 0, out
        return (whole / name / "overview.png").read_bytes()

    plain, guided = generated("plain", "--guidance", 1), generated("guided")
    assert guided == generated("two", "--guidance", 2, "--guidance-schedule", "constant", "--keep", 4)
    part = generated("part", "--guidance-interval", "0.25,0.5")
    weak = generated("weak guided", "--weak-model", whole / "weak")
    assert len({plain, guided, part, weak}) == 4
    assert generated("never", "--guidance-interval", "0.9,0.95") == plain  # after the last step's time
    assert generated("itself", "--weak-model", whole / "sit") == plain
    for options, message in (
        (("--keep", 2), "keep: these tokens have no order, expected all 4, got 2"),
        (("--decode-keep", "every"), "keep: these tokens have no order"),
        (("--guidance-schedule", "linear"), "no schedule over the tokens"),
        (("--decoder-steps", 3), "--decoder-steps: this tokenizer's decoder is deterministic, leave it out; got 3"),
        (("--decoder-guidance", 2), "--decoder-guidance: this tokenizer's decoder is deterministic"),
        (("--decoder-sampler", "heun"), "--decoder-sampler: this tokenizer's decoder is deterministic"),
        (("--sampler", "ddim"), "sampler: expected 'sde', 'euler' or 'heun', got 'ddim'"),
        (("--weak-model", whole / "tokenizer"), "weak model: expected an earlier or smaller model with name=sit"),
    ):
        code, err = run(capsys, *command, "--out", whole / "wrong", *options)
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (whole / "wrong").exists()


@pytest.fixture
def of_ids(tiny: Tiny, tmp_path: Path) -> Path:
    """Folders of a LlamaGen and a MaskGIT on the ids of a tokenizer."""
    sizes = "num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, depth: 1, heads: 2"
    overrides = ["model.bottleneck={name: vq, size: 16}"]
    tokenizer = random_model(tiny("maetok"), *overrides)
    store.save_model(tokenizer, tmp_path / "tokenizer", Card(recipe=to_yaml(load_recipe(tiny("maetok"), overrides))))
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    for name in ("llamagen", "maskgit"):
        model = random_model(tiny("sit", tokenizer="x"), f"model={{name: {name}, {sizes}}}")
        store.save_model(model, tmp_path / name, card)
    return tmp_path


def test_ids_are_sampled_with_their_own_options(of_ids: Path, capsys: Any) -> None:
    def generated(model: str, name: str, *options: object) -> bytes:
        out = of_ids / f"{model} {name}"
        code, printed = run(capsys, "generate", of_ids / model, "--classes", "3", "--num", 2, "--out", out, *options)
        assert code == 0, printed
        return (out / "overview.png").read_bytes()

    plain = generated("llamagen", "plain", "--guidance", 1)
    assert plain == generated("llamagen", "all", "--guidance", 1, "--top-k", 0, "--top-p", 1)
    greedy = generated("llamagen", "greedy", "--guidance", 1, "--top-k", 1)
    assert greedy == generated("llamagen", "cold", "--guidance", 1, "--temperature", 0) != plain
    half = generated("llamagen", "half", "--guidance", 9, "--guidance-interval", "0,0.3")
    assert half != generated("llamagen", "guided", "--guidance", 9) != plain
    best = ("--temperature", 0, "--steps", 2)
    few = generated("maskgit", "plain", "--guidance", 1, *best)
    assert few != generated("maskgit", "guided", "--guidance", 50, "--guidance-schedule", "constant", *best)
    for model, options, message in (
        ("llamagen", ("--sampler", "sde"), "--sampler: llamagen does not use it, leave it out; got sde"),
        ("llamagen", ("--steps", 4), "--steps: llamagen does not use it, leave it out; got 4"),
        ("llamagen", ("--top-p", 0), "--top-p: expected float > 0 and <= 1, got 0.0"),
        ("llamagen", ("--keep", 2), "keep: these tokens have no order, expected all 4, got 2"),
        ("maskgit", ("--top-k", 3), "--top-k: maskgit does not use it, leave it out; got 3"),
        ("maskgit", ("--top-p", 0.5), "--top-p: maskgit does not use it, leave it out; got 0.5"),
        ("maskgit", ("--weak-model", of_ids / "llamagen"), "no weak_model"),
    ):
        command = ("generate", of_ids / model, "--classes", "3", "--out", of_ids / "wrong")
        code, err = run(capsys, *command, *options)
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (of_ids / "wrong").exists()


def test_sampling_without_classes(whole: Path, capsys: Any) -> None:
    names = ["image000.png", "image001.png", "overview.png"]
    for model, options in (("sit", ["--unconditional"]), ("blind", [])):
        out = whole / f"out {model}"
        assert run(capsys, "generate", whole / model, "--num", 2, "--out", out, *options)[0] == 0
        assert sorted(path.name for path in out.iterdir()) == names
        code, err = run(capsys, "generate", whole / model, "--out", whole / "wrong", "--guidance", 3, *options)
        assert code == 2 and "--guidance: without classes it needs a --weak-model, else pass 1; got 3" in err
    code, _ = run(
        capsys, "generate", whole / "sit", "--unconditional", "--num", 2, "--out", whole / "w", "--weak-model",
        whole / "weak",
    )  # fmt: skip
    assert code == 0
    assert (whole / "w" / "overview.png").read_bytes() != (whole / "out sit" / "overview.png").read_bytes()


def test_an_unordered_deterministic_tokenizer_reconstructs(whole: Path, capsys: Any) -> None:
    Image.fromarray(np.random.default_rng(0).integers(1, 256, (60, 50), np.uint8)).save(whole / "photo.png")
    command = ["reconstruct", whole / "tokenizer", whole / "photo.png"]
    code, out = run(capsys, *command, "--out", whole / "r")
    assert code == 0 and "keep    4 of 4" in out
    original = pixels(whole / "r" / "image000_original.png")
    assert original.shape == (32, 32) and (original[2:-2, 2:-2] > 0).all(), "within the border of the training"
    assert original.sum() == original[2:-2, 2:-2].sum()
    for options, message in (
        (("--keep", "1,4"), "keep: these tokens have no order, expected all 4, got 1"),
        (("--steps", 2), "steps: this tokenizer's decoder is deterministic"),
        (("--sampler", "euler"), "sampler: this tokenizer's decoder is deterministic"),
        (("--guidance", 2), "guidance: this tokenizer's decoder is deterministic"),
    ):
        code, err = run(capsys, *command, "--out", whole / "wrong", *options)
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (whole / "wrong").exists()


def test_one_number_without_a_comma_is_a_list_of_one() -> None:
    assert parse_counts("32", "--keep", 0, 64) == [32]
