"""Stopping a run at a step that is not finite, with its likely causes in one line."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import torch

from tok1d.config.recipe import Recipe
from tok1d.errors import WeightsError
from tok1d.train.nonfinite import Evidence, NonFiniteError, recompute_step, write_dump
from tok1d.train.precision import precision_of
from tok1d.train.step import Stepper

LARGE_WEIGHT = 100.0  # root mean square of a part's weights that normal trainings do not reach
LARGE_LOSS = 100.0  # times the median of the batch


def check_finite(run: Stepper, out: Path, loss_rise: str) -> None:
    """Raise NonFiniteError if a step since the last call was not finite; before that, write a dump of the step.

    Reading the result waits for the device. Every process has to call this.

    Args:
        loss_rise: how the loss grew before, as text for the message; "" where it did not.
    """
    step = int(run.first_bad)
    if step < 0:
        return
    # Report the first such player: outputs that are not finite also affect the players after it.
    player = run.players[run.bad_players.tolist().index(True)].player
    whose = f"{player.name}: " if len(run.players) > 1 else ""
    scale, skipped = float(run.bad_scale), int(run.bad_in_a_row)
    gave_up = f" in {skipped} steps in a row, now with loss scale {scale:g}" if skipped else ""
    evidence, fp32 = _recompute(run, step, scale)
    causes = likely_causes(run.recipe, evidence, loss_rise=loss_rise, fp32=fp32)
    advice = f"likely causes: {'; '.join(causes)}" if causes else "no likely cause: try a lower train.lr or train.clip"
    raise NonFiniteError(
        f"step {step}: {whose}loss or gradient is not finite{gave_up}; the run stopped before using it; {advice}; "
        + _dump(run, out, step, evidence, scale)
    )


def _recompute(run: Stepper, step: int, scale: float) -> tuple[list[Evidence], Evidence | None]:
    """Recompute the step.

    Returns the evidence of all processes, and with half precision this process's evidence in fp32, else None.
    """
    from accelerate.utils import gather_object

    accelerator, found = run.accelerator, []
    rank, world = accelerator.process_index, accelerator.num_processes
    for name in dict.fromkeys([run.recipe.train.precision, "fp32"]):
        precision = precision_of(name, accelerator.device)
        evidence = recompute_step(
            run.recipe, run.task, step, rank=rank, world=world, scale=scale, precision=precision, one_by_one=world == 1
        )
        found.append(evidence)
        for state in run.players:
            state.optimizers.zero_grad()
            state.buffers.settle(torch.ones((), dtype=torch.bool, device=accelerator.device))
    return gather_object([found[0]]), found[1] if len(found) > 1 else None


def _dump(run: Stepper, out: Path, step: int, evidence: list[Evidence], scale: float) -> str:
    """Write the dump in the main process; returns how to use it, or why it could not be written."""
    path, main = out / f"nonfinite-step-{step:08d}.pt", run.accelerator.is_main_process
    players = {state.player.name: state.state(main=main) for state in run.players}
    if main:
        try:
            write_dump(path, run.recipe, step, run.accelerator.num_processes, players, evidence, scale=scale)
        except WeightsError as error:
            return str(error)
    return f"tok1d replay {path} reproduces it"


def likely_causes(
    recipe: Recipe, evidence: list[Evidence], *, loss_rise: str = "", fp32: Evidence | None = None
) -> list[str]:
    """Likely causes of a step that is not finite, the most likely first; empty if nothing is unusual.

    Args:
        evidence: of all processes.
        loss_rise: how the loss grew before, as text.
        fp32: the step computed without autocast.
    """
    found: list[str] = []
    for each in evidence:
        found += [f"{name} has pixels or tokens that are not finite" for name in each.bad_samples[:3]]
    clean = not found
    for each in evidence if clean else ():
        found += _large_samples(each)
    if fp32 is not None and fp32.finite:
        found.append(f"train.precision={recipe.train.precision}: the same step is finite in fp32")
    large = {name: rms for each in evidence for name, rms in each.weights.items() if not rms < LARGE_WEIGHT}
    if large:
        name = max(large, key=lambda part: large[part])
        found.append(f"train.lr={recipe.train.lr:g}: the weights of {name} have grown to {large[name]:.3g} (rms)")
    elif loss_rise and clean:
        found.append(f"train.lr={recipe.train.lr:g}: {loss_rise}")
    if clean and not large:
        found += _discriminator(evidence)
    return found


def _large_samples(evidence: Evidence) -> list[str]:
    """Name up to three samples whose own loss is not finite, or one with a loss far above the batch's median."""
    losses = evidence.sample_losses
    bad = [i for i, loss in enumerate(losses) if not torch.isfinite(torch.tensor(loss))]
    if 0 < len(bad) <= max(1, len(losses) // 4):
        return [f"the loss of {evidence.samples[i]} alone is not finite" for i in bad[:3]]
    middle = median(losses) if losses else 0.0
    if bad or middle <= 0 or max(losses) < LARGE_LOSS * middle:
        return []
    worst = max(range(len(losses)), key=lambda i: losses[i])
    return [f"the loss of {evidence.samples[worst]} is {losses[worst] / middle:.3g} times the batch's median"]


def _discriminator(evidence: list[Evidence]) -> list[str]:
    """Name the discriminator as the cause if no losses except its own are infinite or NaN."""
    # value - value is 0 unless the value is infinite or NaN
    names = sorted({name for each in evidence for name, value in each.losses.items() if value - value != 0})
    if names and all(name.startswith("d_") or "advers" in name or "adaptive" in name for name in names):
        return [f"the discriminator: {', '.join(names[:3])} not finite, all other losses finite"]
    return []
