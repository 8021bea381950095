"""`tok1d recipes`, `tok1d config` and `tok1d train`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tok1d.cli.cost import print_cost
from tok1d.cli.options import Overrides, Overwrite, RecipeName, print_records


def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...", help="only recipes with all these words in their name, or else in their description"
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="also the results of the paper and ours, and the cost; of one recipe always")
    ] = False,
) -> None:
    """List the recipes with the model and data of each, or with --full also its results and cost."""
    from textwrap import fill

    from tok1d.config.load import load_card, recipe_names
    from tok1d.errors import InputError

    wanted = [word.lower() for word in words or ()]
    cards = {name: load_card(name) for name in recipe_names()}
    found = [name for name in cards if [name] == wanted]
    found = found or [name for name in cards if all(word in name for word in wanted)]
    found = found or [name for name, card in cards.items() if all(word in card.about.lower() for word in wanted)]
    if not found:
        raise InputError(f"no recipe has {' and '.join(wanted)} in its name or description; tok1d recipes lists all")
    width = max(map(len, found))
    for name in found:
        card = cards[name]
        if not full and len(found) > 1:
            print(fill(card.about, 120, initial_indent=f"{name:{width}s}  ", subsequent_indent=" " * (width + 2)))
            continue
        print(name)
        for label in ("about", "reproduces", "paper", "ours", "cost"):
            if text := getattr(card, label):
                print(fill(text, 100, initial_indent=f"  {label:11s}", subsequent_indent=" " * 13))
    print(f"\n{len(found)} recipes" if len(found) > 1 else "")
    if not full and len(found) > 1:
        print("tok1d recipes WORD lists those with a word, as emoji or sit; --full adds results and cost")
    print("tok1d config RECIPE prints a recipe; tok1d train RECIPE [key=value ...] trains it")


def config(
    recipe: RecipeName,
    overrides: Overrides = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="list all fields with value, type, default and help")
    ] = False,
) -> None:
    """Print a recipe with all its values, after key=value overrides."""
    from tok1d.config.load import field_rows, load_recipe, to_yaml

    resolved = load_recipe(recipe, overrides or ())
    if not fields:
        print(to_yaml(resolved), end="")
        return
    for row in field_rows(resolved):
        print(f"{row.key}={row.value}\n    {row.help} ({row.type}; default {row.default})")


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    more: Annotated[
        int | None, typer.Option(min=1, help="train the run in the folder, finished or not, so many steps longer")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="save and stop after this number of minutes; the same command resumes")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print the cost: parameters, steps, memory and FLOPs")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="with --dry-run: time steps on this machine and print the expected time of the training"
        ),
    ] = False,
    measure_steps: Annotated[
        int | None, typer.Option(min=1, help="number of steps that --measure times; default: 10")
    ] = None,
) -> None:
    """Train a tokenizer, a generator or a classifier. After an interruption the same command resumes.

    RECIPE may be the folder of a run: tok1d train runs/mine resumes it, tok1d train runs/mine --more 1000 trains it
    1,000 steps beyond those that it has made.

    --dry-run reads no data and no weights; with --measure it reads the data if they exist. It writes no files.
    """
    from tok1d.config.load import load_recipe
    from tok1d.errors import InputError

    if measure and not dry_run:
        raise InputError("--measure: expected with --dry-run; pass both")
    if more is not None and dry_run:
        raise InputError("--more: a forecast is of a whole training, expected without --dry-run")
    if measure_steps is not None and not measure:
        raise InputError("--measure-steps: expected with --dry-run --measure; pass all three")
    resolved = load_recipe(recipe, overrides or ())  # before the imports of torch and models
    if dry_run:
        print_cost(resolved, (measure_steps or 10) if measure else None)
        return
    from tok1d.train import folder, run
    from tok1d.zoo.record import read_records

    seconds = None if minutes is None else minutes * 60
    out = run.train(resolved, overwrite=overwrite, name=recipe, seconds=seconds, more=more)
    if int(os.environ.get("RANK", "0")):
        return  # the first process prints
    if folder.is_finished(out):
        print_records(read_records(out / "report.json"))
        print(f"model: {out / 'model'}\nreport: {out / 'report.json'}")
    else:
        again = "the same command" if more is None else f"tok1d train {out}"
        print(f"stopped; {again} resumes from the checkpoint in {out / 'checkpoints'}")
