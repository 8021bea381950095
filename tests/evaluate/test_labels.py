"""Class-conditional tokenizers receive the class in encoder and decoder; records state which label was used."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.classes import Classes
from tok1d.config.load import load_recipe, to_yaml
from tok1d.data.images import ImageSource, open_images
from tok1d.demo.measure import quick_look
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Measures, Measuring, by_classifier
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.inference import pictures
from tok1d.inference.cache import encode_images
from tok1d.inference.conditions import Conditioning, conditioning_of
from tok1d.inference.request import SamplePictures
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.prefix import token_counts
from tok1d.train.images import open_split
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import Record

Tiny = Callable[..., str]
SIT = "{name: sit, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2, steps: 2}"
CARD = (
    "{name: card, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2, "
    "class_source: independent, class_dim: 8, head: {width: 16, depth: 1, steps: 2}}"
)


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def smap(tiny: Tiny) -> Any:
    """A tokenizer that records the labels that its encoder and decoder receive."""
    model = random_model(tiny("smap"))
    model.received = {"encode": [], "decode": []}
    for name, received in model.received.items():
        function = getattr(model, name)

        def noted(
            x: Tensor, cond: Tensor | None = None, *, call: Any = function, to: Any = received, **how: Any
        ) -> Tensor:
            to.append(None if cond is None else cond.tolist())
            return call(x, cond, **how)

        setattr(model, name, noted)
    return model


@pytest.fixture
def images(fashion: None) -> Any:
    return open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=6), "test")


def test_whose_label_is_used() -> None:
    required, optional, free = (
        SimpleNamespace(spec=TokenSpec(4, 4, **keys))  # type: ignore[arg-type]
        for keys in ({"needs_label": True}, {"needs_label": True, "num_classes": 10}, {})
    )

    def label(tokenizer: Any, num: int, wanted: str | None = None) -> str | None:
        return conditioning_of(tokenizer, Classes(num, (), "the images"), wanted).label

    required, optional, free = (SimpleNamespace(config=None, **vars(each)) for each in (required, optional, free))
    assert label(free, 10) is None
    assert label(required, 10) == label(required, 3) == label(optional, 10) == "true"
    assert label(optional, 3) == label(optional, 0) == label(required, 0) == "null"
    assert label(optional, 10, "null") == "null" and label(optional, 10, "true") == "true"
    with pytest.raises(InputError, match=r"^label: expected the images of the tokenizer's 10 classes, these have 3"):
        label(optional, 3, "true")
    with pytest.raises(InputError, match=r"^label: this tokenizer reads no label"):
        label(free, 10, "null")
    ids = torch.tensor([1, 2])
    assert Conditioning("null").of(ids, "cpu") is Conditioning(None).of(ids, "cpu") is None
    assert torch.equal(Conditioning("true").of(ids, "cpu"), ids)  # type: ignore[arg-type]
    assert Conditioning("true", (5, 4, 3)).of(ids, "cpu").tolist() == [4, 3]  # type: ignore[union-attr]


def test_sweeps_begin_with_the_class_alone() -> None:
    assert token_counts(TokenSpec(6, 2, ordered=True, needs_label=True)) == [0, 1, 2, 4, 6]
    assert token_counts(TokenSpec(6, 2, ordered=True)) == [1, 2, 4, 6]


@pytest.mark.parametrize("label", [None, "true", "null"])
def test_reconstructions_are_printed_and_recorded(smap: Any, images: Any, label: str | None) -> None:
    how = Reconstructions(label=label, batch_size=4)  # type: ignore[arg-type]
    records = evaluate_reconstruction(smap, images, how, Measuring(Measures()))
    given = [[0, 1, 2, 3], [4, 5]] if label != "null" else [None, None]
    lengths = 4  # 0, 1, 2, 4
    assert smap.received["encode"] == given
    assert smap.received["decode"] == [each for each in given for _ in range(lengths)]
    assert {record.label for record in records} == {label or "true"}
    assert [record.keep for record in records if record.name == "psnr"] == [0, 1, 2, 4]


def test_records_accept_two_labels() -> None:
    assert Record(name="mse", value=0.0, num_images=1, label="null").to_json()["label"] == "null"
    with pytest.raises(ValueError, match="label is 'true' or 'null'"):
        Record(name="mse", value=0.0, num_images=1, label="false")


@pytest.mark.parametrize("model", [SIT, CARD])
def test_samples_are_decoded_with_their_class(smap: Any, tiny: Tiny, images: Any, tmp_path: Path, model: str) -> None:
    generator = random_model(tiny("sit", tokenizer="x"), f"model={model}")
    classifier = random_model(tiny("classifier"))
    measuring = Measuring(by_classifier(classifier, "generation", 2))
    how = Samples(num_samples=12, keep=(0, 4), batch_size=8, guidance=1.0)
    records = evaluate_generation(generator, smap, images, how, measuring)
    assert smap.received["decode"] == [*2 * [[0, 1, 2, 3, 4, 5, 6, 7]], *2 * [[8, 9, 0, 1]]]
    assert {record.label for record in records} == {"true"}
    smap.received["decode"].clear()
    free = evaluate_generation(
        generator, smap, images, Samples(num_samples=4, unconditional=True, batch_size=8), measuring
    )
    assert smap.received["decode"] == [None] and {record.label for record in free} == {"null"}
    smap.received["decode"].clear()
    pictures.generate(generator, smap, tmp_path, SamplePictures(classes=(7, 2), num=2, decode_keep="0,2"))
    assert smap.received["decode"] == 3 * [[7, 7, 2, 2]]


@pytest.mark.parametrize("model", [SIT, CARD])
def test_the_demo_s_pictures_are_reported(smap: Any, tiny: Tiny, images: Any, tmp_path: Path, model: str) -> None:
    generator = random_model(tiny("sit", tokenizer="x"), f"model={model}")
    smap.card = generator.card = Card()
    quick_look(generator, smap, images, tmp_path)
    lengths = 3  # 1, 2, 4
    labels, classes = images.labels.tolist(), [label for label in range(10) for _ in range(4)]
    assert smap.received == {"encode": [labels], "decode": lengths * [labels] + lengths * [classes]}


def test_previews_and_caches_are_reported(smap: Any, tiny: Tiny, fashion: None, tmp_path: Path) -> None:
    recipe = load_recipe(tiny("smap"))
    task = build_task(recipe)
    assert task.preview is not None
    task.preview(smap, tmp_path / "preview.png")
    assert smap.received["encode"] == [list(range(10))] and smap.received["decode"] == 4 * [list(range(10))]
    smap.received["encode"].clear()
    split = open_split(recipe, "train")
    cache = encode_images(smap, split, tmp_path / "cache", quiet=True)
    assert cache is not None and cache.meta["label"] == "true"
    assert [label for part in smap.received["encode"] for label in part] == split.labels.tolist()
    tokens = cache.batch(range(64))[0]
    torch.testing.assert_close(tokens, smap.encode(*split.batch(range(64))))


def test_generators_preview_with_the_class(tiny: Tiny, fashion: None, tmp_path: Path) -> None:
    recipe = load_recipe(tiny("smap"))
    store.save_model(random_model(tiny("smap")), tmp_path / "tokenizer", Card(recipe=to_yaml(recipe)))
    overrides = [f"model={SIT}", f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'run'}"]
    for cache in ("cache=null", "cache=none"):
        wanted = load_recipe(tiny("sit"), [*overrides, cache])
        task = build_task(wanted)
        assert task.preview is not None
        task.preview(task.model.eval(), tmp_path / "preview.png")
        assert (tmp_path / "preview.png").exists()
        assert task.batch(0, 0, 1)[0].shape == (8, 4, 4)


def test_a_person_s_own_images_have_the_null_class(
    smap: Any, tiny: Tiny, fashion: None, tmp_path: Path, capsys: Any
) -> None:
    model = random_model(tiny("smap"))
    store.save_model(model, tmp_path / "model", Card())
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "own.png")
    for source, label, expected in (
        ("own.png", [], "null"),
        ("fashion_mnist", [], "true"),
        ("fashion_mnist", ["--label", "null"], "null"),
    ):
        path = source if source == "fashion_mnist" else str(tmp_path / source)
        out = str(tmp_path / f"{expected}{source}")
        assert cli.run(["reconstruct", str(tmp_path / "model"), path, "--out", out, "--overwrite", *label]) == 0
        text = capsys.readouterr().out
        assert f"condition of the tokenizer: {expected}" in text and "keep    0 of 4: PSNR" in text
    command = ["reconstruct", str(tmp_path / "model"), str(tmp_path / "own.png"), "--out", str(tmp_path / "no")]
    assert cli.run([*command, "--label", "true"]) == 2
    assert "label: expected the images of the tokenizer's 10 classes, these have 1; use null" in capsys.readouterr().err
    assert cli.run([*command, "--label", "maybe"]) == 2
    assert "--label: expected true or null, got 'maybe'" in capsys.readouterr().err


def test_a_tokenizer_learns_from_its_own_number_of_classes(tiny: Tiny, fashion: None, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^model\.num_classes: expected 10, the classes of the data \(T-shirt.*\), got 12$",
    ):
        build_task(load_recipe(tiny("smap"), ["model.num_classes=12"]))
    build_task(load_recipe(tiny("smap"), ["model.num_classes=12", "model.condition_on=none"]))
    for overrides in ([], ["model.bottleneck={name: vq, size: 16}", "model.tail_drop.keep_per=sample"]):
        recipe, out = load_recipe(tiny("smap"), overrides), tmp_path / str(len(overrides))
        out.mkdir()
        assert fit(recipe, build_task(recipe), out, quiet=True).finished
