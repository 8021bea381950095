"""From captions to pictures: tokenizers and generators of captions, trained, saved, loaded, queried and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.cost.forecast import forecast, meta_batch
from tok1d.data.fashion_mnist import TEMPLATES
from tok1d.data.subset import subset
from tok1d.data.tokens import TokenCache
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Measuring, by_classifier
from tok1d.evaluate.request import Samples
from tok1d.inference.conditions import ConditionedImages
from tok1d.train import run
from tok1d.train.images import open_split
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.text import CaptionEmbeddings
from tok1d.zoo.weights import read_weights

Tiny = Callable[..., str]
CAPTIONED = "data.captions=labels"
SIZES = "num_tokens: 4, num_classes: 0, dim: 16, depth: 1, heads: 2"
HEAD = "head: {width: 16, depth: 1, steps: 2}"
CLASSES = "model.condition={kind: class, encoder: ''}"
GENERATORS = {
    "card": f"{{name: card, token_dim: 4, {SIZES}, {HEAD}, condition: %s}}",
    "llamagen": f"{{name: llamagen, vocab_size: 16, {SIZES}, condition: %s}}",
    "free": f"{{name: sit, token_dim: 4, {SIZES}, steps: 2}}",
}


@pytest.fixture
def condition(text_folder: str) -> str:
    """The condition of a model, as written in a recipe."""
    return f"{{kind: text, encoder: '{text_folder}', dim: 16, length: 12}}"


@pytest.fixture
def recipe(tiny: Tiny, condition: str, fashion: None) -> Callable[..., Recipe]:
    """recipe(*overrides): a SMAP of captions."""
    keys = [CAPTIONED, f"model.condition={condition}", "model.label_dropout=0.2", "train.steps=2"]
    return lambda *overrides: load_recipe(tiny("smap"), [*keys, *overrides])


def saved(recipe: Recipe, folder: Path) -> Any:
    """A random tokenizer of a recipe in a folder."""
    torch.manual_seed(0)
    model: Any = store.build_model(recipe.model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    store.save_model(model, folder, Card(recipe=to_yaml(recipe)))
    return model


@pytest.fixture
def pair(tiny: Tiny, condition: str, recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Any]:
    """pair(generator, *overrides, of=...): a saved tokenizer of captions, the recipe of a generator on its tokens."""

    def make(generator: str, *overrides: str, of: tuple[str, ...] = ()) -> tuple[Any, Recipe]:
        ids = ("model.bottleneck={name: vq, size: 16}",) if generator == "llamagen" else ()
        tokenizer = saved(recipe(*ids, *of), tmp_path / "tokenizer")
        model = GENERATORS[generator]
        keys = [f"model={model % condition if '%' in model else model}", f"tokenizer={tmp_path / 'tokenizer'}"]
        settings = [CAPTIONED, f"out={tmp_path / 'run'}", "train.steps=2"]
        return tokenizer, load_recipe(tiny("sit"), [*keys, *settings, *overrides])

    return make


def test_from_captions_to_pictures(
    tiny: Tiny,
    recipe: Callable[..., Recipe],
    condition: str,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tokenizer and a generator of captions: trained, saved, loaded, and sampled on the command line."""
    monkeypatch.chdir(tmp_path)
    run.train(recipe("out=smap"), quiet=True)
    assert (tmp_path / "smap" / "samples" / "step-00000002.png").exists()
    settings = [
        CAPTIONED,
        f"model={GENERATORS['card'] % condition}",
        "tokenizer=smap/model",
        "train.steps=2",
        "out=card",
    ]
    run.train(load_recipe(tiny("sit"), settings), quiet=True)
    assert (tmp_path / "card" / "samples" / "step-00000002.png").exists()
    for name in ("smap", "card"):
        config = json.loads((tmp_path / name / "model" / "config.json").read_text())
        assert config["model"]["condition"]["encoder"] in condition
        weights = read_weights(tmp_path / name / "model" / "model.safetensors")
        assert not any("text_model" in key for key in weights), "the text encoder is no part of the weights"
    (tmp_path / "two.txt").write_text("a photo of a boot\n\na dress\n")

    def pictures(out: str, *options: str) -> dict[str, bytes]:
        assert cli.run(["generate", "card/model", "--num", "2", "--out", out, *options]) == 0, capsys.readouterr().err
        return {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}

    asked = pictures("asked", "--captions", "a photo of a boot", "--captions", "a dress", "--decode-keep", "0,2")
    singles = ["image000_000.png", "image000_001.png", "image001_000.png", "image001_001.png"]
    assert sorted(asked) == [*singles, "overview.png", "progressive.png"]
    assert pictures("file", "--captions", "two.txt") == {name: asked[name] for name in [*singles, "overview.png"]}
    other = pictures("other", "--captions", "a dress", "--captions", "a bag")
    assert other["image000_001.png"] == asked["image001_001.png"], "noise belongs to the caption"
    assert sorted(pictures("free", "--unconditional")) == ["image000.png", "image001.png", "overview.png"]
    capsys.readouterr()
    for options, message in (
        ([], "--captions: this generator is conditioned on captions, expected at least one, or --unconditional"),
        (["--classes", "3"], "--classes: this generator is conditioned on captions, use --captions"),
        (["--captions", "a", "--unconditional"], "--captions: --unconditional samples without captions; leave it out"),
        (["--captions", "none.txt"], "--captions: cannot read none.txt, No such file"),
        (["--captions", "  "], "--captions: expected at least one caption with words, got none"),
    ):
        assert cli.run(["generate", "card/model", "--out", "wrong", *options]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "wrong").exists()
    assert cli.run(["reconstruct", "smap/model", "fashion_mnist", "--num", "3", "--out", "r"]) == 0
    assert "condition of the tokenizer: true" in capsys.readouterr().out
    assert cli.run(["encode", "smap/model", "fashion_mnist", "--out", "cache"]) == 0
    assert TokenCache(tmp_path / "cache").meta["captions"] == TokenCache(tmp_path / "card" / "cache").meta["captions"]
    assert cli.run(["analyze", "swap", "smap/model", "fashion_mnist", "--out", "s"]) == 2
    assert (
        "swap needs a tokenizer that is conditioned on the class, got one conditioned on captions"
        in capsys.readouterr().err
    )


def test_a_batch_holds_the_embeddings_of_its_images(recipe: Callable[..., Recipe]) -> None:
    wanted = recipe()
    batch, images = build_task(wanted).batch, open_split(wanted, "train")
    embed = CaptionEmbeddings(wanted.model.condition, images.captions)
    pixels, _, captions = images.captioned_batch(range(64))

    def key(image: torch.Tensor) -> tuple[float, ...]:
        return tuple(image.flatten()[:400].tolist())

    expected = dict(zip(map(key, pixels), embed(captions)))
    for step in range(4):
        x, cond = batch(step, 0, 1)
        assert cond.shape == (8, 12, 16)
        for image, row in zip(x, cond):
            assert torch.equal(row, expected[key(image)])
    parts = [batch(3, rank, 2) for rank in range(2)]
    for whole, halves in zip(batch(3, 0, 1), zip(*parts)):
        assert torch.equal(torch.cat(halves), whole), "the same rows on one process and on two"


def test_resumed_equals_unbroken(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def settings(name: str) -> Recipe:
        (tmp_path / name).mkdir(exist_ok=True)
        return recipe(f"out={tmp_path / name}", "train.steps=3")

    unbroken = build_task(settings("one"))
    assert fit(settings("one"), unbroken, tmp_path / "one", quiet=True).finished
    while True:  # a step a sitting
        task = build_task(settings("two"))
        if fit(settings("two"), task, tmp_path / "two", seconds=0.0, quiet=True).finished:
            break
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[name]), name


@pytest.mark.parametrize("cache", ["null", "none"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_learn_tokens_with_their_captions(pair: Any, tmp_path: Path, generator: str, cache: str) -> None:
    tokenizer, wanted = pair(generator, f"cache={cache}", "data.flip=false")
    task = build_task(wanted)
    images = open_split(wanted, "train")
    x, labels, cond = ConditionedImages(tokenizer, images).batch(range(64))
    assert cond is not None and len({tuple(row.flatten().tolist()) for row in cond}) == len(set(images.captions)) > 10
    every, expected = tokenizer.encode(x, cond), labels if generator == "free" else cond
    for step in range(3):
        tokens, conditions = task.batch(step, 0, 1)
        for row, what in zip(tokens, conditions):
            alike = (every - row).abs().flatten(1).amax(1) < 1e-4
            assert alike.any() and any(torch.equal(what, each) for each in expected[alike])
    (tmp_path / "run").mkdir(exist_ok=True)
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert fit(wanted, task, tmp_path / "run", quiet=True).steps == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters()))
    assert task.preview is not None
    task.preview(task.model, tmp_path / "preview.png")
    assert Image.open(tmp_path / "preview.png").size[0] > 10 * 32


def test_captions_of_cached_views_are_those_of_their_images(pair: Any) -> None:
    """Two rows an image: row 2i and 2i + 1 have caption i."""
    wanted = pair("card", "cache_views=center+flip")[1]
    task, images = build_task(wanted), open_split(wanted, "train")
    embed = CaptionEmbeddings(wanted.model.condition, images.captions)
    cache = TokenCache(Path(wanted.cache))  # type: ignore[arg-type]
    every, _ = cache.batch(range(128))
    for tokens, caption in zip(*task.batch(1, 0, 1)):
        row = int((every == tokens).flatten(1).all(1).nonzero()[0])
        assert torch.equal(embed([images.captions[row // 2]])[0], caption)


def test_a_cache_of_other_captions_is_refused(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build_task(pair("card")[1])
    monkeypatch.setattr("tok1d.data.fashion_mnist.TEMPLATES", TEMPLATES[:1])
    with pytest.raises(
        DataError, match=r"cache: encoded with other captions than those of data\.captions: set cache to"
    ):
        build_task(pair("card")[1])


BAD_PAIRS: list[tuple[str, list[str], list[str], str]] = [
    ("card", ["model.condition.length=11"], [], r"^model\.condition\.length: expected 12 as the tokenizer's, .* 11$"),
    ("card", ["model.condition.encoder=other/one"], [], r"^model\.condition\.encoder: expected .* as the tokenizer's"),
    ("card", ["model.condition.encoder="], [], r"^model\.condition\.encoder: no text encoder is bundled, expected"),
    ("card", [], [CLASSES], r"^model\.condition\.kind: .*tokenizer is conditioned on classes, expected class"),
    ("free", ["model.num_classes=10"], [], r"^tokenizer: .* conditioned on captions, expected a generator .* of 10 c"),
]  # fmt: skip


@pytest.mark.parametrize(("generator", "overrides", "of", "message"), BAD_PAIRS)
def test_pairs_of_different_conditions_are_one_line(
    pair: Any, tmp_path: Path, generator: str, overrides: list[str], of: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_task(pair(generator, *overrides, of=tuple(of))[1])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists(), "reported before anything is encoded"


def test_an_unconditional_tokenizer_serves_a_generator_of_captions(pair: Any) -> None:
    nothing = (
        CLASSES,
        "model.label_dropout=0",
        "model.condition_on=none",
        "data.captions=null",
    )
    for cache in ("null", "none"):
        tokens, cond = build_task(pair("card", f"cache={cache}", of=nothing)[1]).batch(0, 0, 1)
        assert tokens.shape == (8, 4, 4) and cond.shape == (8, 12, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.captions=null"],
            r"^data\.captions: condition\.kind=text needs captions; .* null$",
        ),
        (
            ["model.num_classes=10"],
            r"^model\.num_classes: condition\.kind=text has no classes, expected 0",
        ),
    ],
)
def test_contradictions_are_one_line(pair: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pair("card", *overrides)


def test_a_tokenizer_s_encoder_is_named_before_its_training(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.condition\.encoder: no text encoder is bundled"):
        build_task(recipe("model.condition.encoder="))


def test_a_model_s_encoder_is_found_from_anywhere(
    recipe: Callable[..., Recipe], text_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(text_folder).parent)
    model: Any = build_task(recipe(f"model.condition.encoder={Path(text_folder).name}")).model
    assert model.config.condition.encoder == str(Path(text_folder).resolve())


def test_images_without_captions_have_none(
    tiny: Tiny, recipe: Callable[..., Recipe], tmp_path: Path, capsys: Any
) -> None:
    model = saved(recipe(), tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    command = ["reconstruct", str(tmp_path / "model"), str(tmp_path / "photos"), "--overwrite", "--out"]

    def decoded(out: str) -> tuple[str, list[bytes]]:
        assert cli.run([*command, str(tmp_path / out)]) == 0
        found = [(tmp_path / out / f"image00{i}_keep000.png").read_bytes() for i in range(2)]
        return capsys.readouterr().out, found

    text, (first, second) = decoded("null")
    assert "condition of the tokenizer: null" in text and first == second
    assert cli.run([*command, str(tmp_path / "no"), "--label", "true"]) == 2
    assert "label: this tokenizer reads captions, the images have none; use null" in capsys.readouterr().err
    (tmp_path / "photos" / "1.txt").write_text("a photo of a dress")
    text, (without, captioned) = decoded("true")
    assert "condition of the tokenizer: true" in text and without == first != captioned
    images = ConditionedImages(model, open_split(load_recipe(tiny("smap")), "test"))
    assert images.conditioning.label == "null" and images.batch([0])[2] is None


def test_samples_are_evaluated_by_the_classes_of_the_captioned_images(pair: Any, tiny: Tiny) -> None:
    tokenizer, wanted = pair("card")
    generator: Any = store.build_model(wanted.model).eval()
    classifier: Any = store.build_model(load_recipe(tiny("classifier")).model).eval()
    reference, given = subset(open_split(wanted, "test"), 6), []
    measuring = Measuring(by_classifier(classifier, "generation", 2))
    sample, decode = generator.sample, tokenizer.decode
    generator.sample = lambda cond, **how: given.append(cond) or sample(cond, **how)
    tokenizer.decode = lambda tokens, cond, **how: given.append(cond) or decode(tokens, cond, **how)
    records = evaluate_generation(
        generator, tokenizer, reference, Samples(num_samples=8, keep=(0, 4), batch_size=5, guidance=1.0), measuring
    )
    expected = CaptionEmbeddings(wanted.model.condition, [])([reference.captions[i % 6] for i in range(8)])  # type: ignore
    assert torch.equal(torch.cat(given[::3]), expected) and torch.equal(torch.cat(given[1::3]), expected)
    assert {(record.label, record.note.split("; few images")[0]) for record in records} == {
        ("true", "by captions of the reference images")
    }
    assert {record.name for record in records if record.keep == 0} > {"label_agreement"}
    free = evaluate_generation(generator, tokenizer, reference, Samples(num_samples=4, unconditional=True), measuring)
    assert {(record.label, record.note.split("; few images")[0]) for record in free} == {("null", "unconditional")}
    bare = subset(open_split(load_recipe(tiny("smap")), "test"), 6)
    with pytest.raises(InputError, match="captions, the reference images have none; pass --unconditional"):
        evaluate_generation(generator, tokenizer, bare, Samples(num_samples=4), measuring)


def test_a_forecast_needs_no_text_encoder(recipe: Callable[..., Recipe], pair: Any) -> None:
    missing = "model.condition.encoder=/no/such/folder"
    for wanted in (recipe(missing), pair("card", missing)[1], pair("llamagen", missing)[1]):
        assert tuple(meta_batch(wanted, 3)[1].shape) == (3, 12, 16)
        result = forecast(wanted)
        assert result.frozen == {"text encoder": None} and result.run_flops > 0
    plain = forecast(recipe(CLASSES))
    assert forecast(recipe(missing)).measured.flops_per_image > plain.measured.flops_per_image
