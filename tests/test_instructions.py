"""What recipes and pages tell the reader to type: every override and command is accepted, also by the run's check."""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer

from tok1d.cli import app as cli
from tok1d.config.load import RECIPES, load_recipe, recipe_names
from tok1d.cost.forecast import forecast
from tok1d.evaluate.of_recipe import forecast_notes
from tok1d.zoo import store
from tok1d.zoo.convert import FORMATS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VALUE = r'(?:"[^"]*"|\[[^\]]*\]|[^\s;,)"\[\]]*[^\s;,.:)"\[\]])'
# KEY=VALUE KEY=VALUE, together; the last may be a list of values in words: 32, 64 or 96.
SIZE = re.compile(r"num_tokens|data\.image_size|model\.(num_tokens|size|decoder|encoder|alignment)")  # change the cost
KEY = r"[a-z_]+(?:\.[a-z_]+)*"
OVERRIDES = re.compile(rf"(?<![\w.-])((?:{KEY}={VALUE} )*)({KEY})=({VALUE})((?:, [\w.]+)*(?: or [\w.]+)?)")


def paragraphs(name: str) -> list[str]:
    """The comments of a recipe's file: its text, and each indented line on its own."""
    lines = re.findall(r"^# ?(.*)$", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), re.M)
    blocks = [(indented, [*group]) for indented, group in groupby(lines, lambda line: line.startswith("  "))]
    return [text for indented, group in blocks for text in (map(str.strip, group) if indented else [" ".join(group)])]


def without_commands(text: str) -> str:
    return "" if text.startswith("tok1d ") else text


def overrides_of(name: str) -> Iterator[tuple[str, ...]]:
    """The overrides that a recipe's comments name, those that belong together as one."""
    for text in map(without_commands, paragraphs(name)):
        for before, key, first, more in OVERRIDES.findall(text):
            for value in [first, *re.findall(r"[\w.]*\w", re.sub(r"\bor\b", "", more))]:
                yield (*before.split(), f"{key}={value}")


NAMED = [(name, overrides) for name in recipe_names() for overrides in dict.fromkeys(overrides_of(name))]


def typed(page: Path) -> Iterator[tuple[str, ...]]:
    """The recipes that a page trains, with overrides: (name, KEY=VALUE, ...)."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"tok1d train ((?:fashion_mnist|own|imagenet\d+|captioned\d+)/[^`|\n]*)", text):
        words = shlex.split(command.split("  #")[0].split(" && ")[0], comments=True)
        yield (words[0], *(word for word in words[1:] if "=" in word and not word.startswith("-")))


TYPED = sorted({command for page in PAGES for command in typed(page)})


@pytest.fixture(autouse=True)
def _models_of_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model folder runs/RECIPE/model has the configuration of its recipe, without a run."""
    resolve, read_config = store.resolve, store.read_config

    def made_by(folder: object) -> str:
        name = str(folder).removeprefix("runs/").removesuffix("/model")
        return name if name in recipe_names() else ""

    def read(folder: Any) -> Any:
        name = made_by(folder)
        return (load_recipe(name).model, None) if name else read_config(folder)

    monkeypatch.setattr(store, "resolve", lambda name, *rest: Path(name) if made_by(name) else resolve(name, *rest))
    monkeypatch.setattr(store, "read_config", read)


def check(name: str, *overrides: str) -> None:
    """The dry run, which makes the checks of the run, with one block in every stack."""
    recipe = load_recipe(name, overrides)
    for part in ("encoder", "decoder") if recipe.kind == "tokenizer" else ("", "head"):
        stack = getattr(recipe.model, part, None) if part else recipe.model
        if hasattr(stack, "depth"):
            stack.depth = 1
        if getattr(stack, "align_depth", 0):
            stack.align_depth = 1
    forecast_notes(recipe)
    if any(SIZE.match(each) for each in overrides):
        assert forecast(recipe).run_flops > 0


@pytest.mark.parametrize(("name", "overrides"), NAMED, ids=[f"{name} {' '.join(each)}" for name, each in NAMED])
def test_an_override_that_a_recipe_names_is_accepted(name: str, overrides: tuple[str, ...]) -> None:
    check(name, *overrides)


@pytest.mark.parametrize("command", TYPED, ids=map(" ".join, TYPED))
def test_a_training_that_a_page_names_is_accepted(command: tuple[str, ...]) -> None:
    recipe, *overrides = command
    check(recipe, *(each.replace("=NUMBER", "=10") for each in overrides))  # NUMBER stands for the reader's own


def test_the_instructions_are_found() -> None:
    found = {name: [" ".join(each) for each in overrides_of(name)] for name in recipe_names()}
    lengths = [f"model.num_tokens={n}" for n in (32, 64, 96, 192, 256)]
    assert found["imagenet256/smap_b_kl_128"] == lengths
    assert found["imagenet256/llamagen_3b"][1:] == [
        "train.batch_size=256 train.accumulate=8",
        *(f"model.size={size}" for size in ("XXXL", "1B", "7B")),
    ]
    assert 'model.alignment.teacher="" model.decoder.align_depth=0' in found["imagenet256/semanticist_l"]
    assert len(NAMED) > 40 and len(TYPED) > 20


@pytest.mark.parametrize("name", [name for name in recipe_names() if "tok1d " in " ".join(paragraphs(name))])
def test_a_command_that_a_recipe_names_exists(name: str) -> None:
    group: Any = typer.main.get_command(cli.app)
    for text in paragraphs(name):
        for words in re.findall(r"\btok1d ((?:[^`()])+)", text):
            command, (first, *arguments) = group, words.split()
            command = command.commands[first.rstrip(".,")]
            if hasattr(command, "commands"):
                command = command.commands[arguments.pop(0)]
            if first == "convert":
                assert arguments[0].rstrip(".") in FORMATS
            known = {flag for parameter in command.params for flag in parameter.opts}
            assert {word for word in arguments if word.startswith("--")} <= known
            if text.startswith("tok1d "):
                command.make_context(first, arguments)
