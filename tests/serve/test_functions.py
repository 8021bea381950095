"""The functions under the page, without a browser and without a server."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import tok1d
from tok1d.errors import DataError, InputError
from tok1d.html.parts import Strip, note, saves, strips, views
from tok1d.losses.pixel import psnr_per_image
from tok1d.pictures import to_uint8
from tok1d.serve import chart, drawing, prefixes, saved, shown, uploads
from tok1d.serve.examples import Examples, drawn
from tok1d.serve.models import Models, known_condition
from tok1d.serve.request import Look, Wish
from tok1d.serve.shelf import EMPTY, bundled_shelf

SEMANTICIST, SMAP, CARD = "fashion-mnist-semanticist", "fashion-mnist-smap", "fashion-mnist-card"


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(bundled_shelf(), "cpu")


@pytest.fixture(scope="module")
def examples() -> Iterator[Examples]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tok1d.data.fashion_mnist.here", lambda: None)
        patch.setattr("tok1d.data.emoji_font.here", lambda: None)
        yield Examples()


def last(steps: Iterator[Any]) -> Any:
    return list(steps)[-1]


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_shelf_has_the_bundled_models_without_torch() -> None:
    shelf = bundled_shelf()
    kinds = {each.name: each.kind for each in tok1d.models()}
    assert sorted(shelf.tokenizers) == [name for name, kind in kinds.items() if kind == "tokenizer"]
    assert sorted(shelf.generators) == [name for name, kind in kinds.items() if kind == "generator"]
    code = (
        "import sys; from tok1d.serve.shelf import bundled_shelf; from tok1d.serve.controls import Work; "
        "from tok1d.serve import page; page.build(Work(bundled_shelf())); sys.exit('torch' in sys.modules)"
    )
    root = str(Path(tok1d.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize("name", [SEMANTICIST, SMAP, "emoji-maetok"])
def test_prefixes_are_those_of_the_library(models: Models, name: str) -> None:
    """Every picture is decode(keep=k) with the same noise; the PSNR is that of what is shown."""
    tokenizer, picture = tok1d.load(name), drawn()[1]
    found = last(prefixes.reconstruct(models, picture, Look(model=name, seed=5)))
    assert found.counts == ([16] if "maetok" in name else list(range(int(name == SEMANTICIST), 17)))
    x = tokenizer.preprocess(picture)
    tokens = tokenizer.encode(x)
    assert torch.equal(found.tokens, tokens)
    for i in {0, len(found.counts) // 2, len(found.counts) - 1}:
        options = {} if tokenizer.spec.deterministic else {"generator": [prefixes.noise_of(5, "pixels", 0)]}
        y = tokenizer.decode(tokens, keep=found.counts[i] if tokenizer.spec.ordered else None, **options)
        assert (found.pictures[i].int() - to_uint8(y)[0].int()).abs().max() <= 1
        assert found.psnr[i] == pytest.approx(float(psnr_per_image(found.picture(i)[None], x)), abs=1e-4)


def test_the_noise_of_all_prefixes_is_the_seed(models: Models) -> None:
    look = Look(model=SEMANTICIST, seed=1, steps=3, guidance=1.5)
    one, two = (last(prefixes.reconstruct(models, drawn()[0], look)) for _ in range(2))
    other = last(prefixes.reconstruct(models, drawn()[0], replace(look, seed=2)))
    assert torch.equal(one.pictures, two.pictures) and not torch.equal(one.pictures, other.pictures)


def test_the_condition_of_a_class_is_read(models: Models) -> None:
    name, tokenizer = "Sneaker", tok1d.load(SMAP)
    found = last(prefixes.reconstruct(models, drawn()[0], Look(model=SMAP, condition="sneaker")))
    label = torch.tensor([tokenizer.class_names.index(name)])
    x = tokenizer.preprocess(drawn()[0])
    y = tokenizer.decode(tokenizer.encode(x, label), label, keep=0)
    assert (found.pictures[0].int() - to_uint8(y)[0].int()).abs().max() <= 1
    assert known_condition(models.tokenizer(SMAP), "Sneaker") == "Sneaker"
    assert (
        known_condition(models.tokenizer(SMAP), "giraffe") == known_condition(models.tokenizer(SEMANTICIST), "x") == ""
    )
    with pytest.raises(InputError, match="did you mean"):
        last(prefixes.reconstruct(models, drawn()[0], Look(model=SMAP, condition="Sneeker")))


def test_explained_variance_and_spectrum_of_planted_pictures() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    mean = x.mean().expand(1, 1, 8, 8)
    pictures = torch.cat([to_uint8(mean), to_uint8(x)])
    found = prefixes.Prefixes(Look(), [1, 2], x, pictures, [0.0, 0.0], torch.zeros(1, 2, 1), 0)
    assert found.explained() == pytest.approx([0.0, 1.0], abs=1e-3)
    own, spectra = found.spectra()
    assert spectra[1] == pytest.approx(own) and max(spectra[0]) < min(own)


@pytest.mark.parametrize("name", [SEMANTICIST, SMAP])
def test_mixtures_end_at_the_two_pictures(models: Models, name: str) -> None:
    a, b = drawn()[0], drawn()[5]
    texts = ("Sneaker", "Bag") if name == SMAP else ("", "")
    found = last(prefixes.mix(models, (a, b), texts, Look(model=name)))
    whole = [
        last(prefixes.reconstruct(models, each, Look(model=name, condition=text))).pictures[-1]
        for each, text in zip((a, b), texts)
    ]
    under = ("A", "B") if name == SMAP else ("", "")
    assert list(found.pictures) == list(dict.fromkeys(under)) and found.counts == list(range(17))
    for picture, (name_of, i) in zip(whole, zip(under, (-1, 0))):
        assert (found.pictures[name_of][i].int() - picture.int()).abs().max() <= 1
    if name == SMAP:
        assert not torch.equal(found.pictures["A"][0], found.pictures["B"][0])


def test_unordered_tokens_are_not_mixed(models: Models) -> None:
    with pytest.raises(InputError, match="no order"):
        last(prefixes.mix(models, (drawn()[0], drawn()[1]), ("", ""), Look(model="emoji-maetok")))


def test_leaving_out_a_token_replaces_it_by_its_mean(models: Models, examples: Examples) -> None:
    found = last(prefixes.reconstruct(models, drawn()[2], Look(model=SEMANTICIST)))
    tokenizer = models.tokenizer(SEMANTICIST)
    mean = examples.mean_tokens(tokenizer)
    expected = tokenizer.encode([each.picture for each in examples.of(tokenizer)]).mean(0)
    assert mean is not None and torch.allclose(mean, expected, atol=1e-5)
    left = last(prefixes.leave_out(models, examples, found))
    assert len(left.pictures) == 16 and torch.equal(left.whole, found.pictures[-1])
    planted = replace(found, tokens=found.tokens.clone())
    planted.tokens[0, 3] = mean[3]  # nothing is lost without a token that is its mean
    assert last(prefixes.leave_out(models, examples, planted)).change[3] == 0
    assert min(left.change) > 0


def test_a_drawing_grows_to_what_the_library_generates(models: Models) -> None:
    wish = drawing.wish_of({"model": CARD, "classes": ["Bag", "dress"], "num": 2, "seed": 3, "guidance": 1.5})
    steps = list(drawing.draw(models, wish))
    generator, _ = tok1d.load_pair(CARD)
    expected = generator.generate(["Bag", "Dress"], num=2, seed=3, guidance=1.5).images
    assert [step.done for step in steps] == list(range(1, 17)) and steps[-1].finished and not steps[0].finished
    assert steps[-1].labels == ["Bag", "Bag", "Dress", "Dress"]
    assert torch.allclose(steps[-1].images, expected.clamp(0, 1), atol=1e-4)


def test_pictures_made_at_once_come_in_parts(models: Models) -> None:
    wish = drawing.wish_of({"model": "fashion-mnist-sit", "classes": ["Bag"], "num": 6, "steps": 2})
    steps = list(drawing.draw(models, wish))
    assert [(step.done, step.total, step.unit) for step in steps] == [(4, 6, "pictures"), (6, 6, "pictures")]
    assert torch.equal(steps[0].images[:4], steps[1].images[:4]) and (steps[0].images[4:] == 0.5).all()


def test_settings_come_back_from_the_saved_png(tmp_path: Path) -> None:
    wish = Wish(model=CARD, classes=("T-shirt/top",), num=3, seed=9, guidance=3.5, steps=7)
    uri = saved.sheet(torch.rand(3, 1, 8, 8), 3, drawing.to_json(wish))
    path = tmp_path / "saved.png"
    path.write_bytes(base64.b64decode(uri.partition(",")[2]))
    assert drawing.from_json(uploads.read_settings(path)) == wish
    assert drawing.from_json("{}") == Wish()
    for text in ("[]", "x", '{"nearest": "/etc"}', '{"num": 17}', '{"num": "x"}'):
        with pytest.raises(InputError, match="settings"):
            drawing.from_json(text)


def test_the_nearest_training_image_of_a_copy_is_itself(models: Models, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for i, each in enumerate(pixels):
        (tmp_path / "train" / "bag").mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / "bag").mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(tmp_path / "train" / "bag" / f"{i}.png")
        Image.fromarray(each).save(tmp_path / "test" / "bag" / f"{i}.png")
    images = torch.from_numpy(pixels[[4, 1]]).float()[:, None] / 255
    found = drawing.Drawn(Wish(model=CARD), images, ["", ""], 16, 16, "tokens")
    near, distances = drawing.nearest(models, Examples(str(tmp_path)), found)
    assert torch.allclose(near, images) and distances == pytest.approx([0, 0], abs=1e-6)


def test_without_the_data_the_nearest_is_a_sentence(models: Models, examples: Examples) -> None:
    found = drawing.Drawn(Wish(model=CARD), torch.rand(1, 1, 28, 28), [""], 16, 16, "tokens")
    with pytest.raises(InputError, match=r"fashion_mnist.* not on this machine"):
        drawing.nearest(models, examples, found)
    assert len(examples.of(models.tokenizer(SMAP))) == 12


def test_examples_of_a_data_set_have_their_class(
    models: Models, fashion: None, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("tok1d.data.fashion_mnist.here", lambda: tmp_path)
    names = tok1d.load(SMAP).class_names
    found = Examples().of(models.tokenizer(SMAP))
    assert [each.condition for each in found] == [names[i % 10] for i in range(12)]
    pixels = np.random.default_rng(4).integers(0, 256, (64, 28, 28), np.uint8)
    assert np.array_equal(np.asarray(found[3].picture), pixels[3])
    assert {each.condition for each in Examples().of(models.tokenizer(SEMANTICIST))} == {""}


def test_models_given_by_name_bring_their_partners() -> None:
    models = Models(EMPTY, "cpu")
    assert models.add([SEMANTICIST]).generators == ("fashion-mnist-epsilon-llamagen",)
    assert models.add([CARD]).tokenizers == (SEMANTICIST, SMAP)
    with pytest.raises(InputError, match="cnn"):
        models.add(["fashion-mnist-cnn"])
    for wrong in ("emoji-smap", "/etc", ""):
        with pytest.raises(InputError, match="expected one of"):
            models.tokenizer(wrong)


def test_saved_files_are_what_they_say() -> None:
    images = torch.stack([torch.full((1, 4, 6), value) for value in (0.0, 0.5, 1.0)])
    animation: Any = opened(saved.animation(images))
    assert animation.format == "WEBP" and animation.n_frames == 3 and min(animation.size) >= 128
    assert opened(saved.strip(images)).format == "PNG"
    sheet = opened(saved.sheet(images, 2, "settings"))
    assert sheet.info["tok1d"] == "settings"
    error = np.asarray(saved.error_map(images[0], images[1]))
    assert (error == 255).all() and (np.asarray(saved.error_map(images[1], images[1])) == 0).all()


def test_an_animated_file_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert uploads.frames_of(path) == 2
    assert ImageChops.difference(uploads.read_picture(path), frames[0]).getbbox() is None
    path.write_bytes(bytes(uploads.MOST_BYTES + 1))
    with pytest.raises(DataError, match="20 MB"):
        uploads.read_picture(path)


def test_text_in_pictures_is_escaped() -> None:
    uri = "data:image/png;base64,x"
    for text in (
        strips([Strip("<b>", uri)], ["<i>"]),
        views([(uri, "<script>")]),
        saves([("<b>", "<a>.png", uri)]),
        note("<u>"),
        chart.bars([1.0, 2.0], "<x>", "<y>", "<z>", 0),
        chart.lines([("<n>", [0.0, 1.0], [1.0, 1.0])], "<x>", "<y>", "<z>"),
    ):
        assert not any(raw in text for raw in ("<b>Z", "<script", "<i>", "<u>", "<x>", "<y>", "<z>", "<n>", '"<b>"'))
    drawn_text = shown.drawn(drawing.Drawn(Wish(), torch.rand(1, 1, 4, 4), ["<img onerror=x>"], 1, 1, "tokens"))
    assert "<img onerror" not in drawn_text


def test_bars_have_heights_in_proportion() -> None:
    import re

    heights = [float(h) for h in re.findall(r'<rect[^>]*height="([\d.]+)"', chart.bars([1, 2, 4], "", "", "", 0))]
    assert heights == pytest.approx([heights[2] / 4, heights[2] / 2, heights[2]], abs=0.2)
    assert json.dumps(heights)


def test_examples_offer_captions_with_known_words_only(models: Models, tmp_path: Path) -> None:
    for name, caption in (("a", "red apple"), ("b", "zzzz")):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    found = Examples(str(tmp_path)).of(models.tokenizer("emoji-smap"))
    assert {each.condition for each in found} <= {"red apple", ""}
