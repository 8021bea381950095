"""What users type: values as they stand, `~`, names of any bytes in a locale without UTF-8, and progress in logs."""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import typer
from PIL import Image

from tok1d import progress
from tok1d.cli import app as cli
from tok1d.cli.options import PATH
from tok1d.config.load import field_rows, load_recipe, stored_tree, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.config.registry import MODELS
from tok1d.errors import ConfigError
from tok1d.files import as_path
from tok1d.progress import Bar

RECIPE = "fashion_mnist/smap"
FOLDER = ["data.name=folder"]
NAMES = [
    *("ph #2", "a: b", "&x", "*x", "!x", "!!str x", "-", "- a", "@a", "%a", "'a'", '"a"', "a ", " a", "010", "1e3"),
    *(
        "0x10",
        "12:30",
        "2024-01-01",
        "yes",
        "None",
        "true",
        "[a]",
        "{a}",
        "{000..003}.tar",
        "{a: 1}",
        "[a",
        "{a",
        "${x}",
    ),
    *("\\${x}", "a=b", "caf\u00e9", "cafe\u0301", "\U0001f600", "a\\b", "???", "|", ">", "?", ", a", "#", "\udcff"),
]


def on_disk(name: str) -> str:
    """A name in UTF-8 as Python shows it, also in a C locale."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_stands_and_stored(name: str) -> None:
    recipe = load_recipe(RECIPE, [*FOLDER, f"data.root={name}", f"out={name}"])
    assert (recipe.data.root, recipe.out) == (on_disk(name), on_disk(name))
    rows = {row.key: row.value for row in field_rows(recipe)}
    assert load_recipe(RECIPE, [*FOLDER, f"data.root={rows['data.root']}", f"out={rows['out']}"]) == recipe
    data: Any = stored_tree(to_yaml(recipe))["data"]
    assert data["root"] == name


def test_a_finished_run_beside_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "config.yaml").write_text("kept", encoding="utf-8")
    none = ["data.name=folder", f"data.root={tmp_path / 'none #2'}"]
    assert cli.run(["train", RECIPE, *none, f"out={tmp_path / 'exp #2'}", "--overwrite"]) == 2
    assert "none #2" in capsys.readouterr().err
    assert (tmp_path / "exp" / "config.yaml").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("--metrics", ["evaluate", "reconstruction", "fashion-mnist-maetok", "--metrics", ""]),
        ("--label", ["reconstruct", "fashion-mnist-smap", "--label=", "--out", "x"]),
        ("--classes", ["generate", "fashion-mnist-sit", "--out", "x", "--classes", ""]),
        ("--weights", ["convert", "llamagen", "x.pt", "--out", "x", "--weights", ""]),
        ("reconstruction", ["evaluate", "reconstruction", "", "images"]),
        ("tok1d", [""]),
    ],
)
def test_an_empty_argument_is_not_the_default(
    before: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a shell variable without a value."""
    assert cli.run(words) == 2
    assert capsys.readouterr().err == f"error: {before}: expected a value, got ''\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        (" 7 ", 7),
        ("1_000", 1000),
        ("+3", 3),
        ("0x10", None),
        ("1e3", None),
        ("0o10", None),
        ("1:30", None),
    ],
)
def test_whole_numbers_are_decimal_or_refused_in_files_too(tmp_path: Path, text: str, value: int | None) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"base: {RECIPE}\nseed: {text}\n", encoding="utf-8")
    for arguments in ((RECIPE, [f"seed={text}"]), (str(path), [])):
        if value is None:
            with pytest.raises(ConfigError, match="seed: expected int"):
                load_recipe(*arguments)
        else:
            assert load_recipe(*arguments).seed == value


def test_nulls_booleans_lists_and_mappings() -> None:
    limit = "data.limit="
    assert [load_recipe(RECIPE, [limit + text]).data.limit for text in ("null", "", "5")] == [None, None, 5]
    assert [load_recipe(RECIPE, [f"data.flip={text}"]).data.flip for text in ("yes", "Off", "TRUE")] == [1, 0, 1]
    assert load_recipe(RECIPE, ["evaluate.keep=[1, 010]"]).evaluate.keep == [1, 10]
    assert load_recipe(RECIPE, ["data={limit: 3, root: 'a #b'}", "data.name=folder"]).data.root == "a #b"
    assert load_recipe(RECIPE, ["train.lr=1e-4", "train.lr=2E-4"]).train.lr == 2e-4
    for wrong in ("train.lr=.inf", "train.lr=nan", "evaluate.keep=[1] #2", "evaluate.keep=[&x 1]", "evaluate.keep=1,2"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            load_recipe(RECIPE, [wrong])


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(RECIPE, [*FOLDER, "data.root=~/x"]).data.root == str(tmp_path / "x")
    assert load_recipe(RECIPE, [*FOLDER, "data.root=./~"]).data.root == "./~"
    assert (as_path("~"), as_path("a~"), as_path("~nobody-of-this-name/x")) == (
        str(tmp_path),
        "a~",
        "~nobody-of-this-name/x",
    )
    (tmp_path / "r.yaml").write_text(f"base: {RECIPE}\nseed: 9\n", encoding="utf-8")
    assert load_recipe("~/r.yaml").seed == 9


# Text of options and fields that is never a path. All other text must be declared as one, see `option(path=...)`.
OPTIONS = """keep guidance_interval decoder_guidance_interval
device shard on_broken decode_keep label sampler decoder_sampler best metrics weights classes captions
components covariance seeds dtype format metric time partition cluster slurm command overrides options guidance_schedule
views split part of checkpoints scale claims method generator search verifier judge quality quality_metric quality_by
 statistics modes samples licence words host reveal"""
FIELDS = """name image_key label_key captions about reproduces paper ours cost backbone classifier sampler
decoder_sampler vocabulary background"""


def texts_of(hint: object) -> bool:
    return hint is str or any(texts_of(each) for each in get_args(hint) if not isinstance(each, str))


def test_every_text_of_a_command_is_a_path_or_known_to_be_none() -> None:
    pending: list[Any] = [typer.main.get_command(cli.app)]
    marked, unknown = 0, set()
    while pending:
        command = pending.pop()
        inside = list(getattr(command, "commands", {}).values())
        pending += inside
        if inside:
            continue
        # The grid's axes are lists of numbers and words; their paths are those of `evaluate generation`.
        axes = {"--model"} <= {flag for each in command.params for flag in each.opts}
        for name, parameter in inspect.signature(command.callback.__wrapped__).parameters.items():
            hint, *marks = get_args(parameter.annotation) or (parameter.annotation,)
            marked += PATH in marks
            if not axes and texts_of(hint) and PATH not in marks and name not in OPTIONS.split():
                unknown.add(name)
    assert not unknown and marked > 30


def text_fields(cls: Any, key: str = "") -> set[str]:
    """The dotted text fields of a dataclass, and of those inside, that are not declared as paths."""
    found: set[str] = set()
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        for inner in (hint, *get_args(hint), *(a for b in get_args(hint) for a in get_args(b))):
            if dataclasses.is_dataclass(inner):
                found |= text_fields(inner, f"{key}{field.name}.")
        if texts_of(hint) and not field.metadata.get("path") and field.name not in FIELDS.split():
            found.add(f"{key}{field.name}")
    return found


def test_every_text_of_a_recipe_is_a_path_or_known_to_be_none() -> None:
    sections = [Recipe, *(entry.config_class() for entry in MODELS.values())]
    sections += [type(load_recipe(RECIPE).perceptual), type(load_recipe(RECIPE).adversarial)]
    assert set().union(*map(text_fields, sections)) == set()


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
TINY = """
kind: tokenizer
card: {about: caf\u00e9 \u65e5\u672c}
model:
  {name: maetok, image_size: 28, channels: 1, num_tokens: 2, token_dim: 4,
   encoder: {patch: 7, dim: 16, depth: 1, heads: 2}, decoder: {patch: 7, dim: 16, depth: 1, heads: 2}}
train: {steps: 1, batch_size: 2, lr: 1e-3}
evaluate: {num_images: 2}
data: {name: folder}
"""


def test_names_of_any_bytes_in_a_c_locale(tmp_path: Path) -> None:
    """Folder and class names in both normal forms and in no encoding at all; a name that does not exist is one line."""
    both = ["caf\u00e9 \U0001f600".encode(), "cafe\u0301".encode(), b"la\xff"]
    for number, name in enumerate(both * 2):
        path = os.fsencode(tmp_path) + b"/d\xc3\xa4ta/" + (b"train/" if number < 3 else b"test/") + name
        os.makedirs(path)
        for i in range(2):
            Image.fromarray(np.full((28, 28), 40 * i + number, np.uint8)).save(
                os.fsdecode(path + b"/\xc3\xa9%d.png" % i)
            )
    (tmp_path / on_disk("r\u00e9.yaml")).write_text(TINY, encoding="utf-8")
    lines = [
        ["train", "r\u00e9.yaml", "data.root=d\u00e4ta", "out=ex\u0301p #2"],
        ["reconstruct", "ex\u0301p #2/model", "d\u00e4ta", "--out=r\u00e9c", "--num", "2"],
        ["analyze", "mixture", "n\u00f6", "d\u00e4ta", "--out", "m\u00efx"],
    ]
    # One process for all commands: most of the time is the import of torch.
    code = "import sys; from tok1d.cli.app import run\n"
    code += "print([run(line.split('|')) for line in sys.argv[1:]])"
    command = [sys.executable, "-c", code, *("|".join(line).encode() for line in lines)]
    environment = {**os.environ, **C_LOCALE, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert "[0, 0, 2]" in out and "model: ex\u0301p #2/model" in out, err
    assert "error: no model 'n\u00f6'" in err and "Traceback" not in err and "\r" not in err
    stored = load_recipe(str(tmp_path / on_disk("ex\u0301p #2") / "config.yaml"))
    assert stored.data.root == on_disk("d\u00e4ta") and stored.card.about == "caf\u00e9 \u65e5\u672c"
    assert {path.name for path in tmp_path.iterdir()} == {
        on_disk(name) for name in ("d\u00e4ta", "ex\u0301p #2", "r\u00e9.yaml", "r\u00e9c")
    }


@pytest.mark.parametrize(
    ("seconds", "steps"),  # of each of 1000 steps; the steps after which a line is printed
    [
        (1 / 4, [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),  # 25 s for a tenth
        (1 / 32, [320, 640, 960]),  # 3 s for a tenth: as soon as 10 s are over
        (1 / 64, [640]),
        (1 / 128, []),  # 8 s for all
    ],
)
def test_without_a_terminal_progress_is_a_line_for_each_tenth_and_at_most_one_in_ten_seconds(
    seconds: float, steps: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [0]
    monkeypatch.setattr(progress, "now", lambda: ticks[0] * seconds)
    with Bar(1000, unit="step", name="work") as bar:
        for _ in range(1000):
            ticks[0] += 1
            bar.update()
            bar.note("loss 1")
    err = capsys.readouterr().err
    shown = [f"work: step {step}/1000, {1 / seconds:.3g} steps/s" for step in steps]
    assert "\r" not in err and [line.removesuffix(", loss 1") for line in err.splitlines()] == shown
    with Bar(3, unit="step", quiet=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
