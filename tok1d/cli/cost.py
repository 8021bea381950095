"""`tok1d train RECIPE --dry-run [--measure]`: the cost of a training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tok1d.config.recipe import Recipe

HINT = "time: cannot be computed from the recipe; --measure times ten steps on this machine"


def print_cost(recipe: Recipe, measure_steps: int | None) -> None:
    """Print the computed cost of a recipe; with `measure_steps`, also time that number of steps on this machine.

    With several processes (torchrun) only the first one prints.
    """
    from rich.console import Console

    from tok1d.cost.forecast import forecast, table
    from tok1d.evaluate.of_recipe import forecast_notes

    console = Console(markup=False, quiet=os.environ.get("RANK", "0") != "0")
    if measure_steps is not None:
        from tok1d.train.profile_task import with_num_images

        recipe = with_num_images(recipe)
    console.print(table(forecast(recipe)))
    for line in forecast_notes(recipe):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if measure_steps is None:
        console.print(HINT, style="dim")
        return
    from tok1d.train import profile

    console.print(profile.table(profile.profile_steps(recipe, measure_steps)))
