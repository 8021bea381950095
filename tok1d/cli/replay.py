"""`tok1d replay`: repeats the step that stopped a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tok1d.cli.options import Device, Overrides

if TYPE_CHECKING:
    from tok1d.train.nonfinite import Evidence


def replay(
    dump: Annotated[Path, typer.Argument(help="nonfinite-step-XXXXXXXX.pt in the folder of the run")],
    overrides: Overrides = None,
    rank: Annotated[int, typer.Option(min=0, help="rank of the process whose part of the batch is used")] = 0,
    device: Device = None,
) -> None:
    """Repeat a training step that gave NaN or infinite values, with the same weights, images and random numbers.

    Prints the losses, the norms of weights and gradients of each module, and likely causes. key=value changes the
    recipe, for example train.precision=fp32 or another seed.
    """
    import torch

    from tok1d import devices
    from tok1d.config.load import recipe_from_text
    from tok1d.errors import InputError
    from tok1d.train import diagnose, nonfinite, precision
    from tok1d.train.tasks import build_task

    state = nonfinite.read_dump(dump)
    if rank >= state.get("world", 1):
        raise InputError(f"--rank: expected 0..{state.get('world', 1) - 1}, got {rank}")
    recipe = recipe_from_text(state["recipe"], str(dump), overrides or ())
    place = torch.device(devices.pick_device(device))
    trained_in, asked = recipe.train.precision, any(each.startswith("train.precision=") for each in overrides or ())
    # Training on a CPU supports only fp32, so a step of a GPU is repeated in fp32.
    used = "fp32" if place.type == "cpu" and not asked else trained_in
    task = build_task(recipe)
    for player in task.players:
        player.module.to(place)
    nonfinite.load_dump(task, state, str(dump))
    evidence = nonfinite.recompute_step(
        recipe,
        task,
        state["step"],
        rank=rank,
        world=state.get("world", 1),
        precision=precision.precision_of(used, place),
        scale=state.get("scale", 1.0),
    )
    if used != trained_in:
        print(f"repeated in {used} on this CPU; the training used {trained_in}, in which the same step can overflow")
    if (world := state.get("world", 1)) > 1:
        print(f"only rank {rank} of {world}: losses averaged over all processes (masked patches, ids) are of this rank")
    _show(state["step"], evidence)
    for cause in diagnose.likely_causes(recipe, [evidence]):
        print(f"likely cause: {cause}")
    print(f"step {state['step']}: " + ("finite this time" if evidence.finite else "not finite, as in the training"))


def _show(step: int, evidence: Evidence) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("of step " + str(step), "value", "gradient")
    for name, value in evidence.losses.items():
        table.add_row(name, f"{value:.6g}", "")
    for name, rms in evidence.weights.items():
        table.add_row(f"weights of {name} (rms; norm)", f"{rms:.6g}", f"{evidence.gradients[name]:.6g}")
    Console(markup=False).print(table)
    losses = evidence.sample_losses or [float("nan")] * len(evidence.samples)
    rows = sorted(zip(losses, evidence.samples), key=lambda row: (row[0] == row[0], -row[0]))[:8]
    print(f"samples ({len(evidence.samples)}): " + ", ".join(f"{name} ({loss:.4g})" for loss, name in rows))
