"""`tok1d recipes`, `tok1d config` and `tok1d train`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tok1d.cli.cost import print_cost
from tok1d.cli.options import Overrides, Overwrite, RecipeName, print_records


def recipes() -> None:
    """List the recipes: the model that each trains, the result of the paper, our result, and the cost."""
    from textwrap import fill

    from tok1d.config.load import load_card, recipe_names

    for name in recipe_names():
        card = load_card(name)
        print(name)
        for label in ("about", "reproduces", "paper", "ours", "cost"):
            if text := getattr(card, label):
                print(fill(text, 100, initial_indent=f"  {label:11s}", subsequent_indent=" " * 13))
    print("\ntok1d config RECIPE prints a recipe; tok1d train RECIPE [key=value ...] trains it")


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
    minutes: Annotated[
        float | None, typer.Option(min=0, help="save and stop after this number of minutes; the same command resumes")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print the cost: parameters, steps, memory and FLOPs")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="with --dry-run: time steps on this machine and print the hours of the training"
        ),
    ] = False,
    measure_steps: Annotated[
        int | None, typer.Option(min=1, help="number of steps that --measure times; default: 10")
    ] = None,
) -> None:
    """Train a tokenizer, a generator or a classifier. After an interruption the same command resumes.

    --dry-run reads no data and no weights; with --measure it reads the data if they exist. It writes no files.
    """
    from tok1d.config.load import load_recipe
    from tok1d.errors import InputError

    if measure and not dry_run:
        raise InputError("--measure: expected with --dry-run; pass both")
    if measure_steps is not None and not measure:
        raise InputError("--measure-steps: expected with --dry-run --measure; pass all three")
    if dry_run:
        print_cost(load_recipe(recipe, overrides or ()), (measure_steps or 10) if measure else None)
        return
    from tok1d.train import folder, run
    from tok1d.zoo.record import read_records

    out = run.train(
        load_recipe(recipe, overrides or ()),
        overwrite=overwrite,
        name=recipe,
        seconds=None if minutes is None else minutes * 60,
    )
    if int(os.environ.get("RANK", "0")):
        return  # the first process prints
    if folder.is_finished(out):
        print_records(read_records(out / "report.json"))
        print(f"model: {out / 'model'}\nreport: {out / 'report.json'}")
    else:
        print(f"stopped; the same command resumes from the checkpoint in {out / 'checkpoints'}")
