"""Recipes: values are read with their types, and every mistake is reported in one line with its full key."""

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tok1d.config import load as config_module
from tok1d.config.fields import build_config, option, to_mapping
from tok1d.config.load import field_rows, load_card, load_recipe, recipe_from_text, recipe_names, to_yaml
from tok1d.config.nearest import nearest
from tok1d.config.recipe import CardConfig, DataConfig, EvaluateConfig, Recipe, TrainConfig
from tok1d.config.registry import MODELS, Entry, build_model_config, has_capability, models_with, register
from tok1d.config.written import plain_values, read_yaml, write_yaml
from tok1d.errors import ConfigError
from tok1d.files import as_path


@dataclass
class Encoder:
    depth: int = option(2, "blocks", ge=1, was="layers")
    width: int = option(64, "width", ge=1)
    heads: int = option(4, "heads", ge=1)
    dropout: float = option(0.0, "dropout", ge=0, lt=1)

    def check(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}")


@dataclass
class Sized:
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "S": {"dim": 8, "depth": 2, "heads": 2},
        "L": {"dim": 32, "depth": 4, "heads": 8},
    }
    dim: int = option(16, "width", ge=1)
    depth: int = option(3, "blocks", ge=1)
    heads: int = option(4, "heads", ge=1)
    patch: int = option(2, "patch", ge=1)


@dataclass
class Plain:
    name: str = option("plain")


@dataclass
class Quantised:
    name: str = option("vq")
    codes: int = option(512, ge=2)


@dataclass
class Model:
    name: str = option("toy")
    encoder: Encoder = option(Encoder(depth=5))
    decoder: Encoder | None = option(None)
    bottleneck: Plain | Quantised = option(Plain())
    range: tuple[float, float] = option((-1.0, 1.0))
    rates: dict[str, float] = option({})
    mode: Literal["fast", "exact", 3] = option("fast")
    patch: int | list[int] = option(4, ge=1)
    sizes: list[int] | None = option(None)
    vit: Sized = option(Sized())


@dataclass
class ToyGenerator:
    name: str = option("toy_generator")


@dataclass
class Other:
    name: str = option("other")
    size: int = option(3, help="a required neighbour's neighbour")


MINIMAL = """
kind: tokenizer
model: {name: toy}
train: {steps: 100, batch_size: 8, lr: 1e-3}
"""


@pytest.fixture(autouse=True)
def toy_models(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", Entry("tokenizer", nn.Module, Model))
    monkeypatch.setitem(MODELS, "other", Entry("tokenizer", nn.Module, Other))
    monkeypatch.setitem(MODELS, "toy_generator", Entry("generator", nn.Module, ToyGenerator))


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package folder of two recipes instead of the real one."""
    folder = tmp_path / "recipes"
    (folder / "digits").mkdir(parents=True)
    (folder / "digits" / "tiny.yaml").write_text(MINIMAL + "card: {about: a tiny one}\n")
    (folder / "digits" / "large.yaml").write_text("base: digits/tiny\nmodel: {encoder: {depth: 9}}\n")
    monkeypatch.setattr(config_module, "RECIPES", folder)
    return folder


@pytest.fixture
def minimal(tmp_path):
    return write(tmp_path / "minimal.yaml", MINIMAL)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def error_of(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert message and message.isprintable(), "one line"
    return message


def test_defaults_types_and_derived_out(minimal):
    recipe = load_recipe(minimal)
    assert recipe.train == TrainConfig(steps=100, batch_size=8, lr=1e-3)
    assert recipe.data == DataConfig() and recipe.evaluate == EvaluateConfig()
    assert recipe.model == Model()
    assert recipe.model.encoder.depth == 5, "the enclosing class's default, not the field's own"
    assert recipe.out == "runs/minimal" and recipe.cache is None


def test_partial_section_keeps_the_enclosing_default(minimal):
    assert load_recipe(minimal, ["model.encoder.heads=2"]).model.encoder == Encoder(depth=5, heads=2)


def test_configs_do_not_share_mutable_defaults(minimal):
    first, second = load_recipe(minimal), load_recipe(minimal)
    first.evaluate.keep.append(1)
    first.model.encoder.depth = 7
    assert second.evaluate.keep == [] and EvaluateConfig().keep == []
    assert second.model.encoder.depth == 5 and Model().encoder.depth == 5


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.lr=1", "train.lr", 1.0),
        ("evaluate.keep=[1,2,4]", "evaluate.keep", [1, 2, 4]),
        ("data.root=/some/dir", "data.root", "/some/dir"),
        ("data.root=a=b", "data.root", "a=b"),
        ("data.limit=null", "data.limit", None),
        ("data.flip=true", "data.flip", True),
        ("data.channels=3", "data.channels", 3),
        ("data.root=12", "data.root", "12"),
        ('data.root="12"', "data.root", '"12"'),
        ("model.range=[0,1]", "model.range", (0.0, 1.0)),
        ("model.rates.head=2", "model.rates", {"head": 2.0}),
        ("model.mode=3", "model.mode", 3),
        ("model.patch=[2, 4]", "model.patch", [2, 4]),
        ("model.decoder={depth: 3}", "model.decoder", Encoder(depth=3)),
        ("model.bottleneck.name=vq", "model.bottleneck", Quantised()),
        ("model.bottleneck={name: vq, codes: 8}", "model.bottleneck", Quantised(codes=8)),
        ("data.image_size=${train.batch_size}", "data.image_size", 8),
    ],
)
def test_override(minimal, override, key, value):
    found: Any = load_recipe(minimal, [override])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_later_overrides_win(minimal):
    assert load_recipe(minimal, ["seed=1", "seed=2"]).seed == 2


def test_inheritance_and_naming(package, tmp_path):
    assert recipe_names() == ["digits/large", "digits/tiny"]
    assert load_recipe("digits/large").model.encoder == Encoder(depth=9)
    assert load_recipe("digits/large").out == "runs/digits/large"
    run = write(tmp_path / "run.yaml", to_yaml(load_recipe("digits/tiny")))
    child = write(tmp_path / "child.yaml", "base: run.yaml\nseed: 4\n")
    assert load_recipe(run).out == "runs/digits/tiny"
    assert load_recipe(child).out == "runs/child", "two recipes never share a run folder by inheritance"
    assert load_recipe(child).seed == 4


def test_another_model_starts_afresh_but_other_sections_merge(minimal, tmp_path):
    child = write(tmp_path / "child.yaml", "base: minimal.yaml\nmodel: {encoder: {depth: 3}}\n")
    assert load_recipe(child, ["model.name=other", "model.size=8"]).model == Other(size=8)
    folder = load_recipe(child, ["data.image_size=9", "data.name=folder", "data.root=x"])
    assert (folder.data.name, folder.data.image_size) == ("folder", 9)
    vq = write(tmp_path / "vq.yaml", "base: child.yaml\nmodel: {bottleneck: {name: vq, codes: 9}}\n")
    assert load_recipe(vq, ["model.bottleneck.name=plain"]).model.bottleneck == Plain()


@pytest.mark.parametrize(
    ("base", "child", "overrides", "expected"),
    [
        ("{size: S}", "{}", [], Sized(8, 2, 2)),
        ("{size: S, patch: 7}", "{size: L}", [], Sized(32, 4, 8, 7)),
        ("{depth: 9, size: S}", "{}", [], Sized(8, 9, 2)),
        ("{size: S, depth: 9}", "{}", ["model.vit.size=L"], Sized(32, 4, 8)),
        ("{dim: 64, depth: 9, heads: 1, patch: 7}", "{size: S}", [], Sized(8, 2, 2, 7)),
        ("{size: S}", "{depth: 9}", [], Sized(8, 9, 2)),
        ("{size: S}", "{size: L, heads: 16}", ["model.vit.depth=1"], Sized(32, 1, 16)),
        ("{}", "{}", ["model.vit.depth=9", "model.vit.size=L"], Sized(32, 9, 8)),
        ("{}", "{}", ["model.vit={size: L, depth: 9}"], Sized(32, 9, 8)),
    ],
)
def test_a_later_size_replaces_and_numbers_beside_it_win(tmp_path, base, child, overrides, expected):
    write(tmp_path / "base.yaml", MINIMAL.replace("{name: toy}", f"{{name: toy, vit: {base}}}"))
    recipe = load_recipe(write(tmp_path / "child.yaml", f"base: base.yaml\nmodel: {{vit: {child}}}\n"), overrides)
    assert recipe.model.vit == expected
    resolved = write(tmp_path / "resolved.yaml", to_yaml(recipe))
    assert not re.search(r"(?m)^\s+size:", to_yaml(recipe)), "numbers, not the size"
    assert load_recipe(resolved).model.vit == expected
    assert load_recipe(resolved, ["model.vit.size=S"]).model.vit == Sized(8, 2, 2, expected.patch)


def test_generator_gets_a_cache_below_out(minimal):
    recipe = load_recipe(
        minimal, ["kind=generator", "model.name=toy_generator", "tokenizer=runs/t/model", "out=elsewhere"]
    )
    assert recipe.cache == "elsewhere/cache"


def test_load_card_needs_no_model(tmp_path):
    path = write(tmp_path / "card.yaml", "model: {name: not_made_yet}\ncard: {about: x, cost: 1 min}\n")
    assert load_card(path) == CardConfig(about="x", cost="1 min")


texts = st.text(st.characters(codec="utf-8"), max_size=12)
tricky = st.sampled_from(
    [
        "${x}",
        "\\${seed}",
        "a\\\\${",
        "1e-4",
        "null",
        "",
        " x ",
        "a: b",
        "#",
        "~",
        "yes",
        "12:30",
        "???",
        '"',
        '""',
        '"null"',
        "'x'",
        "ph #2",
        "&x",
        "*x",
        "!x",
        "-",
        "010",
        "\U0001f600e\u0301",
        "\udcff",
        "a\nb",
    ]
)
recipes = st.builds(
    Recipe,
    kind=st.just("tokenizer"),
    seed=st.integers(0, 2**32 - 1),
    # ~ is the home folder; the text is as the locale's file system has it
    out=(texts | tricky).filter(lambda text: text and text[0] != "~" and "\0" not in text).map(as_path),
    card=st.builds(CardConfig, about=texts | tricky),
    data=st.builds(DataConfig, limit=st.none() | st.integers(1, 9), flip=st.booleans()),
    train=st.builds(
        TrainConfig,
        steps=st.integers(100, 10**6),
        batch_size=st.just(1),
        lr=st.floats(1e-300, 1e300),
        beta1=st.floats(0, 1, exclude_max=True),
        schedule=st.sampled_from(["cosine", "linear"]),
    ),
    evaluate=st.builds(EvaluateConfig, keep=st.lists(st.integers(0, 64), max_size=3)),
    model=st.builds(
        Model,
        decoder=st.none() | st.builds(Encoder, depth=st.integers(1, 9)),
        bottleneck=st.builds(Plain) | st.builds(Quantised, codes=st.integers(2, 9)),
        range=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
        rates=st.dictionaries(st.sampled_from(["a", "b"]), st.floats(-9, 9)),
    ),
)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)


@shared_folder
@given(recipe=recipes)
def test_yaml_round_trip(tmp_path, recipe):
    path = write(tmp_path / "written.yaml", to_yaml(recipe))
    assert load_recipe(path) == recipe


@shared_folder
@given(recipe=recipes)
def test_field_rows_are_overrides(tmp_path, recipe):
    path = write(tmp_path / "minimal.yaml", MINIMAL)
    rows = field_rows(recipe)
    assert all(row.value.isprintable() for row in rows)
    assert load_recipe(path, [f"{row.key}={row.value}" for row in rows]) == recipe


@given(recipe=recipes)
@settings(max_examples=30, deadline=None)
def test_mapping_round_trip(recipe):
    assert build_config(Recipe, to_mapping(recipe)) == recipe
    assert build_model_config(to_mapping(recipe.model)) == recipe.model


def test_field_rows(minimal):
    rows = {row.key: row for row in field_rows(load_recipe(minimal, ["train.lr=0.5"]))}
    assert dataclasses.astuple(rows["train.lr"])[1:4] == ("float > 0", "required", "0.5")
    assert dataclasses.astuple(rows["data.limit"])[1:4] == ("int >= 1 or null", "null", "null")
    assert rows["data.crop"].type == "center or random or random_scale or fit"
    assert rows["evaluate.keep"].type == "list of int >= 0"
    assert rows["model.encoder.depth"].default == "5"
    assert rows["model.encoder.dropout"].type == "float >= 0 and < 1"
    leaves = [row for row in rows.values() if not row.key.startswith(("model", "card"))]
    assert all(row.help for row in leaves)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.encoder.dpeth=3", "model.encoder.dpeth: unknown key; did you mean model.encoder.depth? (tok1d config"),
        ("trian.lr=1", "trian: unknown key; did you mean train?"),
        ("lr=1", "lr: unknown key; did you mean train.lr or train.muon.lr?"),
        ("model.dropout=0", "did you mean model.encoder.dropout or model.decoder.dropout?"),
        ("model.bottleneck.codes=3", "model.bottleneck.codes: unknown key; expected one of name"),
        ("data.sharpness=1", "data.sharpness: unknown key; expected one of name, root, image_size"),
        ("train.steps=1.0", "train.steps: expected int, got 1.0"),
        ("train.steps=true", "train.steps: expected int, got true"),
        ("train.steps=", "train.steps: expected int, got null"),
        ("train.lr=fast", "train.lr: expected float, got 'fast'"),
        ("train.lr=.nan", "train.lr: expected float, got nan"),
        ("train.lr=true", "train.lr: expected float, got true"),
        ("train=3", "train: expected mapping of keys, got 3"),
        ("model=toy", "model: expected a mapping with a name, got 'toy'"),
        ("data.flip=1", "data.flip: expected true or false, got 1"),
        ("model.sizes=3", "model.sizes: expected list of int or null, got 3"),
        ("model.sizes=[x]", "model.sizes[0]: expected int, got 'x'"),
        ("data.limit=x", "data.limit: expected int or null, got 'x'"),
        (
            "data.crop=centre",
            "data.crop: expected center or random or random_scale or fit, got 'centre'; did you mean center?",
        ),
        ("data.channels=2", "data.channels: expected 1 or 3, got 2"),
        ("data.channels=true", "data.channels: expected 1 or 3, got true"),
        ("evaluate.keep=4", "evaluate.keep: expected list of int, got 4"),
        ("evaluate.keep=[1,x]", "evaluate.keep[1]: expected int, got 'x'"),
        ("evaluate.keep=[1,-1]", "evaluate.keep[1]: expected int >= 0, got -1"),
        ("model.range=[0]", "model.range: expected [float, float], got [0]"),
        ("model.rates.a=x", "model.rates.a: expected float, got 'x'"),
        ("model.patch=x", "model.patch: expected int or list of int, got 'x'"),
        ("model.patch=0", "model.patch: expected int >= 1 or list of int >= 1, got 0"),
        ("model.decoder.depth=0", "model.decoder.depth: expected int >= 1, got 0"),
        ("model.bottleneck.name=vqq", "model.bottleneck.name: expected plain or vq, got 'vqq'; did you mean vq?"),
        ("model.vit.size=M", "model.vit.size: expected L or S, got 'M'; did you mean"),
        ("model.vit.size=4", "model.vit.size: expected L or S, got 4"),
        ("model.vit.szie=L", "model.vit.szie: unknown key; did you mean model.vit.size?"),
        ("model.encoder.size=L", "model.encoder.size: unknown key; "),
        ("train.lr=-1", "train.lr: expected float > 0, got -1.0"),
        ("train.ema=1", "train.ema: expected float >= 0 and < 1, got 1.0"),
        ("data.limit=0", "data.limit: expected int >= 1 or null, got 0"),
        ("train.steps=???", "train.steps: expected int, got '???'"),
        ("model.name=toi", "got 'toi'; did you mean toy?"),
        ("model.name=null", "model.name: expected budget_head or card or cnn or"),
        ("seed=${train.step}", "seed: expected ${KEY} of a key written"),
        ("seed=${", "seed: expected ${KEY} of a key written"),
    ],
)
def test_mistake_in_override_and_in_yaml_is_reported_the_same(minimal, tmp_path, override, words):
    message = error_of(load_recipe, minimal, [override])
    assert words in message
    key, _, value = override.partition("=")
    *sections, last = key.split(".")
    lines = [f"{2 * depth * ' '}{name}:" for depth, name in enumerate(sections)]
    lines.append(f"{2 * len(sections) * ' '}{last}: {value}")
    child = write(tmp_path / "child.yaml", "\n".join(["base: minimal.yaml", *lines]))
    assert error_of(load_recipe, child) == message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.encoder.heads=5"], "model.encoder.heads: 5 does not divide width 64"),
        (["model.decoder={heads: 5}"], "model.decoder.heads: 5 does not divide"),
        (["train.warmup=101"], "train.warmup: expected at most steps=100, got 101"),
        (["train.lr_min=1"], "train.lr_min: expected at most lr=0.001, got 1.0"),
        (["train.warmup_init=1"], "train.warmup_init: expected at most lr=0.001, got 1.0"),
        (["train.schedule=constant", "train.decay_steps=9"], "train.decay_steps: schedule=constant does not decay"),
        (["kind=generator", "model.name=toy_generator"], "tokenizer: a generator needs"),
        (["tokenizer=x"], "tokenizer: only generators read it"),
        (["num_tokens=3"], "num_tokens: only generators read it"),
        (["data.name=folder"], "data.root: name=folder needs"),
        (["kind=generater"], "kind: expected tokenizer or generator or classifier"),
        (["train.lr"], "override 'train.lr': expected key=value"),
        (["=3"], "override '=3': expected key=value"),
        (["train..lr=3"], "expected key=value"),
        (["evaluate.keep[0]=3"], "expected a whole list"),
        (["data.pad=14"], "data.pad: expected less than half of image_size=28, got 14"),
        (["evaluate.keep=[1"], "evaluate.keep: the value is not valid YAML"),
        (['"a\nb"=3'], "unknown key"),
    ],
)
def test_contradictions_and_malformed_overrides(minimal, overrides, words):
    assert words in error_of(load_recipe, minimal, overrides)


def test_model_must_fit_kind_and_data(minimal, monkeypatch):
    cnn = ["model.name=cnn", "kind=classifier"]
    assert load_recipe(minimal, cnn).model.name == "cnn"
    assert "model.name: cnn is a classifier, but" in error_of(load_recipe, minimal, cnn[:1])
    message = error_of(load_recipe, minimal, [*cnn, "data.image_size=32", "model.image_size=28"])
    assert message == "model.image_size: expected data.image_size=32, got 28"
    linked = [*cnn, "data.image_size=32", "model.image_size=${data.image_size}"]
    assert load_recipe(minimal, linked).model.image_size == 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: tokenizer\ntrain: [1\n", "line 3: not valid YAML"),
        ("seed: 1\nseed: 2\n", "line 2: not valid YAML, found duplicate key seed"),
        ("seed: 1\n\x01", "line 2: not valid YAML"),
        ("a: !!python/object:os.system x", "line 1: not valid YAML"),
        ("a: !!set {x}", "not a supported"),
        ("- 1\n", "expected a mapping of keys"),
        ("3", "expected a mapping of keys"),
        ("null: 3", "null: unknown key"),
        ("base: [3]", "base: expected a recipe's name or file, got [3]"),
        ("base: 3", "recipe '3': unknown name"),
        ("base: me.yaml", "circular inheritance"),
        ("base: other.yaml", "recipe 'other.yaml': no such file"),
        ('"see\\nd": 1', "unknown key; "),
        ("", "model.name"),
        ("model: {name: toy}\nkind: tokenizer", "train.steps: required; expected int >= 1"),
    ],
)
def test_bad_files(tmp_path, text, words):
    message = error_of(load_recipe, write(tmp_path / "me.yaml", text))
    assert words in message or (not text and "kind: required" in message)


def test_undecodable_file(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"seed: \xff\n")
    assert "not UTF-8" in error_of(load_recipe, str(tmp_path / "bytes.yaml"))


def test_circle_through_two_files(tmp_path):
    a = write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    assert "a.yaml -> " in error_of(load_recipe, a)


@pytest.mark.parametrize("name", ["digits/tinny", "tiny", "tinny", "digits/tiny.yaml"])
def test_unknown_recipe_names_the_nearest(package, name):
    assert "did you mean digits/tiny?" in error_of(load_recipe, name)


@pytest.mark.parametrize("name", ["x" * 300, "nothing/like/it", "no.yaml", ""])
def test_unknown_recipe_without_a_neighbour(package, name):
    assert "tok1d recipes lists" in error_of(load_recipe, name) or not name


def test_build_config_checks_and_does_not_interpolate():
    assert build_config(Plain, {"name": "${oc.env:HOME}"}).name == "${oc.env:HOME}"
    assert build_config(Encoder, {"dropout": 0}) == Encoder(dropout=0.0)
    assert error_of(build_config, Encoder, {"widht": 3}).startswith("widht: unknown key; did you mean width?")
    assert error_of(build_config, Encoder, [3]).startswith("recipe: expected mapping of keys")
    assert "model.name: expected budget_head or card or cnn or" in error_of(build_model_config, {})


def keys_of(cls: type, prefix: str = "") -> list[str]:
    return [f"{prefix}{field.name}" for field in dataclasses.fields(cls)]


all_keys = [
    *keys_of(Recipe),
    *keys_of(DataConfig, "data."),
    *keys_of(TrainConfig, "train."),
    *keys_of(EvaluateConfig, "evaluate."),
    *keys_of(Model, "model."),
    *keys_of(Encoder, "model.encoder."),
]


@st.composite
def misspelt(draw):
    """A key with one slip in its last name, and the right key."""
    key = draw(st.sampled_from(all_keys))
    parent, _, name = key.rpartition(".")
    i = draw(st.integers(0, len(name) - 1))
    letter = draw(st.characters(codec="ascii", categories=["L", "N"]) | st.just("_"))
    slips = [name[:i] + letter + name[i:], name[:i] + letter + name[i + 1 :], name[:i] + name[i + 1 :]]
    slips += [name[:i] + name[i + 1 : i + 2] + name[i : i + 1] + name[i + 2 :], name.upper()]
    wrong = draw(st.sampled_from(slips))
    wrong_key = f"{parent}.{wrong}" if parent else wrong
    return wrong_key, key


@shared_folder
@given(slip=misspelt())
def test_any_single_slip_names_the_right_key(tmp_path, slip):
    wrong, right = slip
    if wrong in [*all_keys, "base"]:
        return
    path = write(tmp_path / "minimal.yaml", MINIMAL)
    message = error_of(load_recipe, path, [f"{wrong}=1"])
    assert message.startswith(f"{wrong}: unknown key; did you mean ")
    suggested = message.partition("did you mean ")[2].partition("?")[0].split(" or ")
    assert right in suggested


def test_nearest_is_symmetric_in_slips_and_silent_when_far():
    assert nearest("beta3", ["beta1", "beta2", "lr"]) == ["beta1", "beta2"]
    assert nearest("betas", ["clip"]) == []
    assert nearest("lr", []) == []


def test_importing_and_listing_needs_neither_torch_nor_yaml():
    code = "import sys, tok1d; tok1d.recipes(); print({'torch', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


RENAMED = [("start=x", "init_from=x"), ("model.encoder.layers=7", "model.encoder.depth=7")]


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_a_former_name_works_with_one_line_of_warning(minimal, tmp_path, capsys, old, new):
    wanted = load_recipe(minimal, [new])
    assert capsys.readouterr().err == ""
    assert load_recipe(minimal, [old]) == wanted
    old_key, new_key = (text.partition("=")[0] for text in (old, new))
    assert capsys.readouterr().err == f"warning: the recipe key {old_key} is now called {new_key}\n"
    assert old_key not in to_yaml(wanted).split()


def test_row_order_was_called_draws(minimal, capsys):
    generator = ["kind=generator", "model.name=toy_generator", "tokenizer=x"]
    assert load_recipe(minimal, [*generator, "draws=released"]).row_order == "released"
    assert capsys.readouterr().err == "warning: the recipe key draws is now called row_order\n"


def test_of_a_key_and_its_former_name_the_later_one_counts(minimal, tmp_path):
    base = write(tmp_path / "base.yaml", MINIMAL + "start: old\n")
    child = write(tmp_path / "child.yaml", "base: base.yaml\ninit_from: new\n")
    assert load_recipe(child).init_from == "new"
    assert load_recipe(base, ["init_from=newer"]).init_from == "newer"
    assert load_recipe(child, ["start=newest"]).init_from == "newest"
    assert load_recipe(child, ["model.encoder.depth=3", "model.encoder.layers=4"]).model.encoder.depth == 4


def test_former_names_in_stored_recipes_and_configurations_are_read_silently(minimal, capsys):
    text = (
        to_yaml(load_recipe(minimal, ["init_from=x"])).replace("init_from:", "start:").replace("depth: 5", "layers: 5")
    )
    assert "start: x" in text and "layers: 5" in text
    assert recipe_from_text(text, "card") == load_recipe(minimal, ["init_from=x"])
    assert build_model_config({"name": "toy", "encoder": {"layers": 8}}) == Model(encoder=Encoder(depth=8))
    assert capsys.readouterr().err == ""


class Net(nn.Module):
    any_size = True

    def encode(self): ...

    def decode(self): ...

    def losses(self): ...


@pytest.fixture
def forget(monkeypatch):
    monkeypatch.setattr("tok1d.config.registry.MODELS", dict(MODELS))


def test_register(forget):
    assert register("plain", kind="tokenizer", config=Plain)(Net) is Net
    assert build_model_config({"name": "plain"}) == Plain()
    assert has_capability("plain", "any_size") and not has_capability("plain", "adversarial")
    assert "plain" in models_with("any_size") and "semanticist" not in models_with("any_size")
    register("plain", kind="tokenizer", config=Plain)(Net)  # as a module that is imported again does


@pytest.mark.parametrize(
    ("name", "kind", "config", "words"),
    [
        ("plain", "judge", Plain, "expected kind tokenizer, generator, classifier, budget, got 'judge'"),
        ("maetok", "tokenizer", Plain, "the name belongs to tok1d.tokenizers.maetok:MAETok; choose another"),
        ("other", "tokenizer", Plain, "the name belongs to"),
        ("mine", "tokenizer", Plain, 'expected a dataclass with the field name: str = "mine" as config'),
        ("plain", "tokenizer", dict, 'expected a dataclass with the field name: str = "plain"'),
        (
            "plain",
            "generator",
            Plain,
            "evaluated_networks, resolved_settings, Net has no sample",
        ),
    ],
)
def test_what_cannot_be_registered(forget, name, kind, config, words):
    message = error_of(register(name, kind=kind, config=config), Net)
    assert message.startswith(f"register {name}: ") and words in message


@pytest.mark.parametrize("text", ["\x85", "a\x85b", " \u2028", "x: \u2029", "a\nb\x85c"])
def test_text_with_any_line_break_survives_yaml(text: str) -> None:
    assert plain_values(read_yaml(write_yaml({"about": text}))) == {"about": text}


def test_a_warm_up_beyond_the_overridden_steps_is_shortened(minimal, tmp_path, capsys):
    child = write(tmp_path / "child.yaml", "base: minimal.yaml\ntrain: {warmup: 50}\n")
    assert load_recipe(child, ["train.steps=50"]).train.warmup == 50 and not capsys.readouterr().err
    assert load_recipe(child, ["train.steps=30"]).train.warmup == 3
    said = capsys.readouterr().err
    assert said == "train.steps=30: the warm-up of 50 steps is shortened, train.warmup=3\n"
    assert load_recipe(child, ["train.steps=3"]).train.warmup == 0
    assert "expected at most steps=30, got 50" in error_of(load_recipe, child, ["train.steps=30", "train.warmup=50"])


@pytest.mark.parametrize("stored", ["run/config.yaml", "run/model/config.json"])
@pytest.mark.parametrize("name", ["run", "run/model"])
def test_a_generator_takes_the_images_of_its_tokenizer(tmp_path, capsys, stored, name):
    data = "{image_size: 96, channels: 3, crop: fit, pad: 2}"
    trained = f"kind: tokenizer\nmodel: {{name: toy}}\ndata: {data}\n"
    path = tmp_path / stored
    path.parent.mkdir(parents=True)
    write(path, trained if path.suffix == ".yaml" else json.dumps({"model": {}, "card": {"recipe": trained}}))
    text = MINIMAL.replace("tokenizer", "generator").replace("toy", "toy_generator")
    recipe = write(tmp_path / "generator.yaml", f"{text}tokenizer: {tmp_path / name}\n")
    found = load_recipe(recipe).data
    assert (found.image_size, found.channels, found.crop, found.pad) == (96, 3, "fit", 2)
    assert capsys.readouterr().err.startswith("data.image_size=96, data.channels=3, data.pad=2, data.crop=fit: as in")
    assert load_recipe(recipe, ["data.image_size=32"]).data.image_size == 32
    assert load_recipe(recipe, [f"tokenizer={tmp_path / 'none'}"]).data == DataConfig()
    path.write_text("{", encoding="utf-8")
    assert load_recipe(recipe).data == DataConfig(), "damaged: what loads the tokenizer reports it"
