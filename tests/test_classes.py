"""Classes by name: their choice, and labels that are true only where the names of the classes agree."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tok1d.analyze.swap import swap
from tok1d.cli import app as cli
from tok1d.config.classes import Classes, agreement, chosen, class_names, places_of, stated
from tok1d.config.condition import text_condition
from tok1d.config.load import load_recipe, to_yaml
from tok1d.data import emoji_table
from tok1d.data.fashion_mnist import CLASS_NAMES
from tok1d.data.images import ArrayImages, ImageSource, open_images
from tok1d.data.labels import image_classes
from tok1d.data.tokens import TokenCache
from tok1d.data.transforms import Transform
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.evaluate.classification import evaluate_classifier
from tok1d.evaluate.generation import evaluate_generation
from tok1d.evaluate.measures import Measures, Measuring, by_classifier
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.inference import pictures
from tok1d.inference.cache import encode_images
from tok1d.inference.request import SamplePictures
from tok1d.inference.sampling import guidance_of
from tok1d.train.generator_task import open_cache
from tok1d.train.images import open_split
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.checkpoints import load_checkpoint
from tok1d.zoo.pairs import shared_classes
from tok1d.zoo.record import Record
from tok1d.zoo.transfer import init_from, transfer
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
NAMES = ["ant", "bee", "cat"]
CLOTHES = Classes(4, ("T-shirt/top", "car", "a, b", "Car"))
FOLDERS = Classes(4, ("0", "1", "10", "2"))  # as sorted by their text
SMAP = ["model.num_classes=3"]
SHORT = ["train.steps=2", "train.warmup=1"]
SIZE = ["model.image_size=32", "data.image_size=32"]


def random_model(recipe: str, *overrides: str, names: Sequence[str] = ()) -> Any:
    torch.manual_seed(0)
    model: Any = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if hasattr(model, "condition"):  # so that the class shows in every image
        nn.init.normal_(model.condition.label_embed.table.weight, std=20.0)
    model.class_names = list(names)
    return model


def folder_of(root: Path, names: Sequence[str] = NAMES, count: int = 3) -> Path:
    """A folder with the same images of each class, whatever the classes are called; image i of class c has a key."""
    for split in ("train", "test"):
        for label, name in enumerate(names):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([label, i]).integers(0, 256, (28, 28), np.uint8)
                Image.fromarray(pixels).save(place / f"{label}{i}.png")
    return root


def saved(folder: Path, model: Any, recipe: str, **card: Any) -> str:
    card = {"recipe": to_yaml(load_recipe(recipe)), "classes": list(class_names(model)), **card}
    store.save_model(model, folder, Card(**card))
    return str(folder)


def rolled(model: Any, names: Sequence[str]) -> Any:
    """The same model with its classes in another order: names and rows."""
    table = model.condition.label_embed.table.weight
    with torch.no_grad():
        table[: len(names)] = table[[class_names(model).index(name) for name in names]]
    model.class_names = list(names)
    return model


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


# The choice of classes.


@pytest.mark.parametrize(
    ("wanted", "classes", "expected"),
    [
        ("car", CLOTHES, [1]),
        ("T-shirt/top", CLOTHES, [0]),
        (["a, b", "0"], CLOTHES, [2, 0]),
        ('"a, b",Car,0', CLOTHES, [2, 3, 0]),
        (" car , T-SHIRT/TOP ", CLOTHES, [1, 0]),
        ("0-1,3", CLOTHES, [0, 1, 3]),
        (3, CLOTHES, [3]),
        ((2, "car"), CLOTHES, [2, 1]),
        ("10", FOLDERS, [2]),
        ("2", FOLDERS, [3]),
        ("002", FOLDERS, [3]),
        ("1-2", FOLDERS, [1, 3]),
        ("0-10", FOLDERS, [0, 1, 3, 2]),
        ("7", Classes(8), [7]),
        ("0,2,5-7", Classes(8), [0, 2, 5, 6, 7]),
        ("1-3", Classes(2, ("1-3", "x")), [0]),
        (unicodedata.normalize("NFD", "é"), Classes(1, (unicodedata.normalize("NFC", "é"),)), [0]),
        ("7", Classes(2, ("7", "car")), [0]),  # a name before a position
        ("1", Classes(2, ("7", "car")), [1]),
        ([" a", "a"], Classes(2, ("a", " a")), [1, 0]),
    ],
)
def test_classes_are_named(wanted: Any, classes: Classes, expected: list[int]) -> None:
    assert chosen(wanted, classes) == expected


@pytest.mark.parametrize(
    ("wanted", "classes", "message"),
    [
        ("", CLOTHES, "expected names, numbers or ranges"),
        (",", CLOTHES, "expected names, numbers or ranges"),
        ([], CLOTHES, "got nothing"),
        ("car,,0", CLOTHES, "got nothing between commas"),
        ('"car', CLOTHES, "expected names, numbers or ranges"),
        ("3-1", CLOTHES, "expected a range LOW-HIGH such as 1-3, got '3-1'"),
        ("2-4", CLOTHES, r"numbers in 0\.\.3, got 4"),
        ("4", CLOTHES, r"numbers in 0\.\.3, got 4"),
        ("-1", CLOTHES, "got '-1'"),
        ("1-", CLOTHES, "got '1-'"),
        ("0-99999999999999999999", CLOTHES, "got '0-9"),
        ("cra", CLOTHES, "got 'cra'; did you mean car or Car?"),
        ("CAR", CLOTHES, "'CAR' may be car or Car"),
        ("car,1", CLOTHES, r"each class once, got car \(index 1\) twice"),
        ("3", FOLDERS, "got 3"),
        ("2-1", FOLDERS, "LOW-HIGH"),
        ("0-5", FOLDERS, "got 5"),
        ("8", Classes(8), r"expected numbers in 0\.\.7, got 8"),
        ("car", Classes(8), r"expected numbers in 0\.\.7, got 'car'"),
        (True, Classes(8), "got 'True'"),
        (["a\nb", "0"], Classes(2, ("a\nb", "c")), r"got a\\nb \(index 0\) twice"),
    ],
)
def test_other_classes_are_refused(wanted: Any, classes: Classes, message: str) -> None:
    with pytest.raises(InputError, match=f"^--classes: .*{message}") as caught:
        chosen(wanted, classes, "--classes")
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1, max_size=8), st.data())
def test_every_name_is_its_class_and_a_permutation_is_mapped_back(names: list[str], data: Any) -> None:
    names = list({unicodedata.normalize("NFC", name): name for name in names}.values())
    for index, name in enumerate(names):
        if name.strip(" ,"):
            assert chosen([name], Classes(len(names), tuple(names))) == [index]
    other = data.draw(st.permutations(names))
    places = places_of(other, names)
    assert places is not None and [names[place] for place in places] == other
    found = agreement(Classes(len(names), tuple(other)), Classes(len(names), tuple(names)))
    assert found.agrees and (found.places is None or [names[place] for place in found.places] == other)
    assert "\n" not in found.said and stated(names) == ", ".join(names)


def test_what_agrees() -> None:
    model = Classes(3, ("a", "b", "c"))
    assert agreement(Classes(3, ("c", "a", "b")), model).places == (2, 0, 1)
    assert agreement(Classes(1, ("b",)), model).places == (1,)
    slashed = Classes(3, ("a/b", "a_b", "c"))
    assert agreement(Classes(2, ("c", "d_e")), Classes(2, ("d/e", "c"))).places == (1, 0), "no folder is called d/e"
    assert agreement(Classes(2, ("c", "a_b")), slashed).places == (2, 1)
    assert not agreement(Classes(2, ("c", "a_b")), Classes(3, ("a/b", "A_b", "x"))).agrees
    for names in (("a", "b", "x"), ("a", "b", "C"), ("x",), ("a", "b", "c", "d")):
        assert not agreement(Classes(len(names), names), model).agrees, names
    assert agreement(Classes(1, ("photos",)), Classes(1, ("others",))).agrees, "one class tells nothing"
    unknown = agreement(Classes(3), model)
    assert unknown.agrees and "names" in unknown.said and not agreement(Classes(4), model).agrees
    assert stated([str(i) for i in range(1000)]) != stated([str(i) for i in range(999, -1, -1)])


# Labels of images.


def test_labels_are_true_where_the_names_agree(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    recipe, data = tiny("smap"), folder_of(tmp_path / "data")
    known = saved(tmp_path / "known", random_model(recipe, *SMAP, names=NAMES), recipe)
    turned = rolled(random_model(recipe, *SMAP, names=NAMES), ["cat", "ant", "bee"])
    turned = saved(tmp_path / "turned", turned, recipe)
    other = saved(tmp_path / "other", random_model(recipe, *SMAP, names=["x", "y", "z"]), recipe)
    old = saved(tmp_path / "old", random_model(recipe, *SMAP), recipe)

    def psnr(model: str, *options: str, of: Path = data) -> tuple[list[str], str]:
        code, out, err = run(
            capsys, "reconstruct", model, of, "--num", 9, "--out", tmp_path / "out", "--overwrite", *options
        )
        assert code == 0, err
        return [line for line in out.splitlines() if "PSNR" in line or "condition" in line], out

    right, null = psnr(known)[0], psnr(known, "--label", "null")[0]
    assert right[0].endswith("true") and right[1:] != null[1:]
    lines, said = psnr(turned)
    assert lines == right and "by name" in said
    lines, said = psnr(other)
    assert lines == null
    assert "classes: ant, bee, cat are not among the tokenizer's classes (3: x, y, z)" in said and "null class" in said
    lines, said = psnr(other, "--label", "true")
    assert lines == right and "taken by position" in said
    lines, said = psnr(old)
    assert lines == right and "names of the tokenizer's 3 classes are unknown and were not compared" in said
    two = folder_of(tmp_path / "two", ["bee", "cat"])
    assert psnr(known, of=two)[0][0].endswith("true"), "some of the model's classes"
    more = folder_of(tmp_path / "more", ["ant", "bee", "cat", "dog"])
    assert psnr(known, of=more)[0][0].endswith("null")
    assert psnr(old, of=two)[0][0].endswith("null")


def test_a_null_class_that_was_not_trained_is_named(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    recipe, data = tiny("smap"), folder_of(tmp_path / "data")
    model = saved(tmp_path / "m", random_model(recipe, *SMAP, "model.label_dropout=0", names=list("xyz")), recipe)
    code, out, _ = run(capsys, "reconstruct", model, data, "--out", tmp_path / "out")
    assert code == 0 and "label_dropout=0" in out


def test_evaluations_and_caches_map_labels_by_name(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    recipe, data = tiny("smap"), folder_of(tmp_path / "data")
    right = saved(tmp_path / "right", random_model(recipe, *SMAP, names=NAMES), recipe)
    turned = saved(tmp_path / "turned", rolled(random_model(recipe, *SMAP, names=NAMES), ["cat", "ant", "bee"]), recipe)
    other = saved(tmp_path / "other", random_model(recipe, *SMAP, names=list("xyz")), recipe)
    images = open_images(ImageSource("folder", root=data, image_size=32, channels=1, pad=2), "test")
    values, tokens = {}, {}
    for name, model in (("right", right), ("turned", turned), ("other", other)):
        measuring = Measuring(Measures(("psnr",)))
        (record,) = evaluate_reconstruction(store.load(model), images, Reconstructions(keep=(4,)), measuring)
        values[name] = (record.value, record.label)
        assert record.class_names == "ant, bee, cat" and Record.from_json(record.to_json()) == record
        for label in ("", "true") if name == "other" else ("",):
            cache = tmp_path / f"cache{name}{label}"
            code, out, _ = run(capsys, "encode", model, data, "--out", cache, *(["--label", label] if label else []))
            assert code == 0 and "3 classes: ant, bee, cat" in out
            tokens[name + label] = TokenCache(cache)
    assert values["right"] == values["turned"] and values["right"][1] == "true" and values["other"][1] == "null"
    rows = {name: cache.batch(range(9)) for name, cache in tokens.items()}
    for name in ("turned", "othertrue"):
        assert torch.equal(rows[name][0], rows["right"][0]) and tokens[name].meta["label"] == "true"
    assert not torch.equal(rows["other"][0], rows["right"][0]) and tokens["other"].meta["label"] == "null"
    assert all(torch.equal(labels, rows["right"][1]) for _, labels in rows.values()), "labels stay the images'"
    assert all(cache.class_names == NAMES for cache in tokens.values())


def test_a_cache_of_another_class_order_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    images = open_images(
        ImageSource("folder", root=folder_of(tmp_path / "d"), image_size=32, channels=1, pad=2), "train"
    )
    encode_images(random_model(tiny("smap"), *SMAP, names=NAMES), images, tmp_path / "c", quiet=True)
    cache = TokenCache(tmp_path / "c")
    cache.check(classes=NAMES)
    with pytest.raises(DataError, match=r"of another order or other names \('ant' at 0\): run tok1d encode again"):
        cache.check(classes=["bee", "ant", "cat"])
    with pytest.raises(DataError, match="3 and 4"):
        cache.check(classes=[*NAMES, "dog"])
    index = json.loads((tmp_path / "c" / "index.json").read_text())
    del index["about"]["classes"]  # as older versions wrote it
    (tmp_path / "c" / "index.json").write_text(json.dumps(index))
    old = TokenCache(tmp_path / "c")
    old.check(classes=["bee", "ant", "cat"])
    assert old.class_names == []


def test_numbered_shards_have_no_names(tmp_path: Path) -> None:
    import io
    import tarfile

    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image, "png")
    for part in ("train", "test"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as archive:
            for i in range(3):
                for suffix, content in (("png", image.getvalue()), ("cls", str(i).encode())):
                    member = tarfile.TarInfo(f"{part}{i}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    shards = open_images(ImageSource("webdataset", root=tmp_path, image_size=8, channels=1), "train")
    assert image_classes(shards) == Classes(3, (), "the images")


# Names travel.


def test_names_travel_from_a_folder_to_everything(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    data, run_folder = folder_of(tmp_path / "data"), tmp_path / "run"
    of_data = ["data.name=folder", f"data.root={data}", "train.save_every=1", *SHORT]
    code, out, _ = run(capsys, "train", tiny("smap"), *of_data, *SMAP, f"out={run_folder}")
    assert code == 0 and "3 classes: ant, bee, cat" in out
    assert json.loads((run_folder / "model/config.json").read_text())["card"]["classes"] == NAMES
    assert "| classes (3) | ant, bee, cat |" in (run_folder / "model/README.md").read_text()
    assert {each["class_names"] for each in json.loads((run_folder / "report.json").read_text())} == {"ant, bee, cat"}
    (checkpoint, *_) = sorted((run_folder / "checkpoints").glob("*.pt"))
    assert class_names(load_checkpoint(str(checkpoint))) == tuple(NAMES)
    assert run(capsys, "export", run_folder, "--out", tmp_path / "exported")[0] == 0
    assert class_names(store.load(tmp_path / "exported")) == tuple(NAMES)
    sit = [*of_data, *SMAP, f"tokenizer={run_folder / 'model'}", f"out={tmp_path / 'sit'}"]
    assert run(capsys, "train", tiny("sit"), *sit)[0] == 0
    assert TokenCache(tmp_path / "sit" / "cache").class_names == NAMES
    generate = ["generate", tmp_path / "sit/model", "--num", 1, "--out", tmp_path / "out", "--overwrite"]
    code, out, _ = run(capsys, *generate, "--classes", "cat,0")
    assert code == 0 and "classes: cat (index 2), ant (index 0)" in out
    code, out, _ = run(capsys, *generate)
    assert code == 0 and "classes: ant (index 0), bee (index 1), cat (index 2)" in out
    for wrong in ("", ",", "cats", "3", "2-1", "1,bee"):
        code, out, err = run(capsys, *generate, "--classes", wrong)
        assert code == 2 and err.startswith("error: --classes: ") and err.count("\n") == 1, wrong
        assert "classes" not in out


def test_another_number_of_classes_is_refused_by_name(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    data = ["data.name=folder", f"data.root={folder_of(tmp_path / 'data')}", "model.num_classes=10"]
    for kind, extra in (("smap", []), ("classifier", ["data.image_size=28"])):
        code, _, err = run(capsys, "train", tiny(kind), *data, *extra, f"out={tmp_path / kind}")
        assert code == 2 and "model.num_classes: expected 3, the classes of the data (ant, bee, cat), got 10" in err, (
            err
        )


def test_a_class_without_training_images_is_named(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    data = folder_of(tmp_path / "data")
    for path in (data / "train" / "bee").iterdir():
        path.unlink()
    of_data = ["data.name=folder", f"data.root={data}"]
    code, _out, err = run(capsys, "train", tiny("smap"), *of_data, *SMAP, f"out={tmp_path / 'run'}", *SHORT)
    assert code == 0 and "1 of 3 classes have no training images that can be read: bee" in err, err


def test_the_bundled_models_know_their_classes() -> None:
    for name in store.bundled_names():
        config, card = store.read_config(store.resolve(name))
        reads_words = text_condition(config) is not None
        conditional = getattr(config, "num_classes", 0) > 0 and not reads_words
        groups = list(dict.fromkeys(each.group for each in emoji_table.table()))
        known = groups if name.startswith("emoji") else list(CLASS_NAMES)
        assert card.classes == (known if conditional else []), name
    with pytest.raises(TypeError, match=r"card\.classes"):
        Card.from_json({"classes": [1, 2]})


# What combines two models, or a model and data.


def generator_of(tiny: Tiny, names: Sequence[str] = NAMES) -> Any:
    return random_model(tiny("sit", tokenizer="x"), *SMAP, names=names)


def images_of(names: Sequence[str] = NAMES, count: int = 12, size: int = 28) -> ArrayImages:
    pixels = np.random.default_rng(1).integers(0, 256, (count, size, size), np.uint8)
    return ArrayImages(pixels, np.arange(count) % len(names), list(names), Transform(size, 1))


def test_a_generator_s_classes_reach_its_tokenizer_by_name(tiny: Tiny, tmp_path: Path) -> None:
    generator, right = generator_of(tiny), random_model(tiny("smap"), *SMAP, names=NAMES)
    turned = rolled(random_model(tiny("smap"), *SMAP, names=NAMES), ["cat", "ant", "bee"])
    how, written = SamplePictures(num=2), []
    for name, tokenizer in (("right", right), ("turned", turned)):
        pictures.generate(generator, tokenizer, tmp_path / name, how)
        written.append([path.read_bytes() for path in sorted((tmp_path / name).glob("class*.png"))])
    assert len(written[0]) == 6 and written[0] == written[1]


def test_label_agreement_compares_classes_by_name(tiny: Tiny) -> None:
    """The classifier's classes in another order give the same agreement; other classes give none, with the reason."""
    tokenizer, images = random_model(tiny("maetok")), images_of(size=32)

    def measured(names: Sequence[str], order: Sequence[int], kind: str) -> Record:
        judge = random_model(tiny("classifier"), "model.num_classes=3")
        with torch.no_grad():
            for part in (judge.head.weight, judge.head.bias):
                part.copy_(part[list(order)])
        judge.class_names = list(names)
        measuring = Measuring(by_classifier(judge, kind, 2))  # type: ignore[arg-type]
        if kind == "generation":
            how: Any = Samples(num_samples=12, guidance=1.0)
            records = evaluate_generation(generator_of(tiny), tokenizer, images, how, measuring)
            return next(record for record in records if record.name == "label_agreement")
        records = evaluate_reconstruction(tokenizer, images, Reconstructions(keep=(4,)), measuring)
        return next(record for record in records if record.name == "judge_accuracy")

    for kind in ("reconstruction", "generation"):
        right = measured(NAMES, [0, 1, 2], kind)
        assert right.value is not None and right.class_names == "ant, bee, cat"
        assert measured(["cat", "ant", "bee"], [2, 0, 1], kind).value == right.value
        other = measured(list("xyz"), [0, 1, 2], kind)
        assert other.value is None and "ant, bee, cat are not among the classifier cnn" in other.note.replace(
            "fashion-mnist-", ""
        )


def test_accuracy_compares_classes_by_name(tiny: Tiny) -> None:
    judge = random_model(tiny("classifier"), "model.num_classes=3", names=NAMES)
    (right,) = evaluate_classifier(judge, images_of())
    with torch.no_grad():
        for part in (judge.head.weight, judge.head.bias):
            part.copy_(part[[2, 0, 1]])
    judge.class_names = ["cat", "ant", "bee"]
    assert evaluate_classifier(judge, images_of())[0].value == right.value
    judge.class_names = list("xyz")
    with pytest.raises(InputError, match="ant, bee, cat are not among"):
        evaluate_classifier(judge, images_of())


def test_class_frequencies_are_those_of_equal_names(tiny: Tiny) -> None:
    """All reference images are bees, so all samples are of the generator's class "bee"."""
    generator, tokenizer = generator_of(tiny, ["cat", "ant", "bee"]), random_model(tiny("maetok"))
    received: list[int] = []
    sample = generator.sample
    generator.sample = lambda cond, **options: (received.extend(cond.tolist()), sample(cond, **options))[1]
    bees = ArrayImages(images_of().images, np.full(12, 1), NAMES, Transform(28, 1))
    measuring = Measuring(by_classifier(None, "generation"), references=())
    evaluate_generation(generator, tokenizer, bees, Samples(num_samples=5, classes="train"), measuring)
    assert received == [2] * 5
    others = ArrayImages(images_of().images, np.full(12, 1), list("xyz"), Transform(28, 1))
    with pytest.raises(InputError, match="x, y, z are not among the generator's classes"):
        evaluate_generation(generator, tokenizer, others, Samples(num_samples=5, classes="train"), measuring)


def test_card_shares_the_rows_of_equal_names(tiny: Tiny) -> None:
    model = "{name: card, num_tokens: 4, token_dim: 4, num_classes: 3, dim: 16, depth: 1, heads: 2, class_dim: 16, "
    recipe = load_recipe(tiny("sit", tokenizer="x"), [f"model={model} head: {{width: 16, depth: 1, steps: 2}}}}"])
    tokenizer = random_model(tiny("smap"), *SMAP, names=NAMES)
    table = shared_classes(recipe.model, tokenizer, "x", images_of(["cat", "ant", "bee"]))
    assert table is not None and torch.equal(table, tokenizer.class_vectors()[[2, 0, 1]])
    with pytest.raises(ConfigError, match=r"^model\.class_source: shared needs .*x, y, z are not among .*independent$"):
        shared_classes(recipe.model, tokenizer, "x", images_of(list("xyz")))


def test_random_class_vectors_have_the_lengths_of_the_tokenizers(tiny: Tiny) -> None:
    """Other directions, in the order of the images' classes; another seed gives other directions."""
    model = "{name: card, num_tokens: 4, token_dim: 4, num_classes: 3, dim: 16, depth: 1, heads: 2, class_dim: 16, "
    source = "class_source: random, head: {width: 16, depth: 1, steps: 2}}"
    recipe = load_recipe(tiny("sit", tokenizer="x"), [f"model={model}{source}"])
    tokenizer = random_model(tiny("smap"), *SMAP, names=NAMES)
    own = tokenizer.class_vectors()[[2, 0, 1]]

    def table(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        found = shared_classes(recipe.model, tokenizer, "x", images_of(["cat", "ant", "bee"]))
        assert found is not None
        return found

    torch.testing.assert_close(table(0).norm(dim=1), own.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(table(0), own).abs().max() < 0.9
    assert torch.equal(table(0), table(0)) and not torch.allclose(table(0), table(1))
    with pytest.raises(ConfigError, match=r"^model\.class_source: random needs .*x, y, z are not among .*independent$"):
        shared_classes(recipe.model, tokenizer, "x", images_of(list("xyz")))


def test_rows_are_transferred_by_name(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    source, model = generator_of(tiny), generator_of(tiny, ["dog", "cat", "ant"])
    nn.init.normal_(model.label_embed.table.weight)
    before = model.label_embed.table.weight.detach().clone()
    notes = transfer(source, model)
    after, theirs = model.label_embed.table.weight, source.label_embed.table.weight
    assert (
        torch.equal(after[0], before[0])
        and torch.equal(after[1:3], theirs[[2, 0]])
        and torch.equal(after[3], theirs[3])
    )
    assert notes == ["the rows of 2 of 3 classes are copied, by name, the others keep their random initialisation"]
    judge, other = (
        random_model(tiny("classifier"), "model.num_classes=3", names=each) for each in (NAMES, NAMES[::-1])
    )
    transfer(judge, other)
    assert torch.equal(other.head.weight, judge.head.weight.flip(0)) and torch.equal(
        other.head.bias, judge.head.bias.flip(0)
    )
    unnamed = saved(tmp_path / "old", generator_of(tiny, ()), tiny("sit", tokenizer="x"))
    assert init_from(model, unnamed) == [
        "rows of classes are copied by position, as the names of its classes are unknown"
    ]
    assert torch.equal(model.label_embed.table.weight, theirs)


def test_a_weak_model_has_the_same_classes(tiny: Tiny, tmp_path: Path) -> None:
    weak = saved(tmp_path / "weak", generator_of(tiny, ["cat", "ant", "bee"]), tiny("sit", tokenizer="x"))
    generator = generator_of(tiny)
    with pytest.raises(InputError, match=r"^--weak-model: expected a model of the same classes .*ant, bee, cat"):
        guidance_of(generator, SamplePictures(weak_model=weak).sampling)
    generator.class_names = ["cat", "ant", "bee"]
    assert guidance_of(generator, SamplePictures(weak_model=weak).sampling).weak_model is not None


def test_swapped_labels_are_mapped_by_name(tiny: Tiny) -> None:
    right = random_model(tiny("smap"), *SMAP, names=NAMES)
    turned = rolled(random_model(tiny("smap"), *SMAP, names=NAMES), ["bee", "cat", "ant"])
    images = images_of(size=32)
    judge = random_model(tiny("classifier"), "model.num_classes=3", *SIZE, names=NAMES)
    expected = swap(right, images, judge)
    assert swap(turned, images, judge) == expected
    other = random_model(tiny("smap"), *SMAP, names=list("xyz"))
    with pytest.raises(InputError, match=r"^swap needs images of .*--label true takes them by position$"):
        swap(other, images, judge)
    assert swap(other, images, judge, label="true") == expected
    judge.class_names = list("xyz")
    with pytest.raises(InputError, match="swap needs a classifier of the images' classes"):
        swap(right, images, judge)


def test_a_cache_of_labels_that_do_not_agree_is_said(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    recipe, data = tiny("smap"), folder_of(tmp_path / "data")
    model = saved(tmp_path / "model", random_model(recipe, *SMAP, names=list("xyz")), recipe)
    overrides = [f"tokenizer={model}", f"cache={tmp_path / 'cache'}", "data.name=folder", f"data.root={data}", *SMAP]
    wanted = load_recipe(tiny("sit"), overrides)
    assert run(capsys, "encode", model, data, "--out", tmp_path / "cache", "--label", "true")[0] == 0
    open_cache(wanted, store.load(model), open_split(wanted, "train"))
    assert "encoded with label true, now it would be null" in capsys.readouterr().out
    task = build_task(wanted)
    assert class_names(task.model) == tuple(NAMES), "a generator has the classes of its data"


# Guidance.


@pytest.mark.parametrize("kind", ["generator", "sit"])
def test_guidance_0_is_unconditional(tiny: Tiny, kind: str) -> None:
    model = random_model(tiny(kind, tokenizer="x"))
    labels = torch.arange(4)

    def sampled(cond: torch.Tensor | None, guidance: Any) -> torch.Tensor:
        return model.sample(cond, num=4, guidance=guidance, generator=torch.Generator().manual_seed(3))

    free = sampled(None, 1.0)
    by_option = guidance_of(model, SamplePictures(guidance=0.0).sampling)
    torch.testing.assert_close(sampled(labels, by_option), free)
    assert not torch.allclose(sampled(labels, 1.0), free)
    if kind == "generator":
        linear = guidance_of(model, SamplePictures(guidance=0.0, guidance_schedule="linear").sampling)
        assert linear == Guidance(0.0, schedule="linear"), "a schedule that the user gives stays"
        assert guidance_of(model, SamplePictures(guidance=3.0).sampling).schedule == "linear"


def test_the_weights_of_a_model_do_not_depend_on_its_names(tiny: Tiny) -> None:
    named, unnamed = generator_of(tiny), generator_of(tiny, ())
    assert fingerprint(named) == fingerprint(unnamed)
    assert store.model_identity(named) == store.model_identity(unnamed)


def test_an_evaluation_samples_the_named_classes(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    recipe, data = tiny("maetok"), folder_of(tmp_path / "data")
    tokenizer = saved(tmp_path / "tokenizer", random_model(recipe), recipe)
    saved(tmp_path / "sit", generator_of(tiny), tiny("sit", tokenizer="x"), tokenizer=tokenizer)
    judge = random_model(tiny("classifier"), "model.num_classes=3", names=["cat", "ant", "bee"])
    judge = saved(tmp_path / "judge", judge, tiny("classifier"))
    command = [
        "evaluate",
        "generation",
        tmp_path / "sit",
        data,
        "--network",
        f"model:{judge}",
        "--num-samples",
        4,
        "--quiet",
    ]
    command += ["--metrics", "labels,fd", "--split", "train", "--out", tmp_path / "out.json", "--guidance", 1]
    code, _, err = run(capsys, *command, "--classes", "cat,0")
    assert code == 0, err
    agreement, distance = (Record.from_json(each) for each in json.loads((tmp_path / "out.json").read_text()))
    assert agreement.classes == "balanced over cat (index 2), ant (index 0)" and agreement.value is not None
    assert distance.reference is not None and distance.reference.count == 6, "the images of two classes of three"
    for wrong, message in (("", "got ''"), ("dog", "got 'dog'"), ("2-1", "LOW-HIGH"), ("cat,cat", "twice")):
        code, _, err = run(capsys, *command, "--overwrite", "--classes", wrong)
        assert code == 2 and err.startswith("error: --classes: ") and message in err and err.count("\n") == 1, err
    code, _, err = run(capsys, *command, "--overwrite", "--classes", "cat", "--unconditional")
    assert code == 2 and "--unconditional samples without classes" in err
