"""`tok1d train RECIPE --dry-run [--measure]`: what a training will cost, before it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tok1d.config.recipe import Recipe

HINT = "hours: not known from a recipe alone; --measure times ten of its steps on this machine"


def print_cost(recipe: Recipe, measure_steps: int | None) -> None:
    """Print the forecast of a recipe, and with `measure_steps` what so many of its steps take here.

    Of several processes (torchrun) the first one prints.
    """
    from rich.console import Console

    from tok1d.cost.forecast import forecast, table

    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    console.print(table(forecast(recipe)))
    if measure_steps is None:
        console.print(HINT, style="dim")
        return
    from tok1d.train import profile

    console.print(profile.table(profile.profile_steps(recipe, measure_steps)))
