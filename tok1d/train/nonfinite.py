"""Steps whose loss or gradient is not finite: recomputing them, and the dump files that allow it later."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NotRequired

import torch
from torch import nn

from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import Tok1dError, WeightsError, reason_of
from tok1d.losses.total import Batch, Tensors, total_loss
from tok1d.train import checkpoint
from tok1d.train.checkpoint import WeightsAndOptimizer
from tok1d.train.players import Player, Progress, compute_losses
from tok1d.train.precision import Precision
from tok1d.train.rng import copies_of, seed_of, seeded
from tok1d.train.task import Task
from tok1d.zoo.weights import load_state

MOST_SAMPLES = 256  # samples of a batch whose losses are computed one by one


class NonFiniteError(Tok1dError):
    """A loss or gradient was not finite; the weights are those before the step."""


class Dump(WeightsAndOptimizer):
    """The content of a dump: weights and optimizer state before the step, and what identifies the step.

    world: number of processes. evidence: fields of `Evidence` for each process. scale: loss scale of fp16.
    """

    step: int
    recipe: str
    seed: int
    world: NotRequired[int]
    evidence: list[dict[str, object]]
    scale: NotRequired[float]
    players: dict[str, WeightsAndOptimizer]


@dataclass
class Evidence:
    """Numbers of a step, as one process computed it again.

    Args:
        samples: names of the rows of the batches. bad_samples: names of the rows with NaN or infinite inputs.
        sample_losses: the model's loss for each sample alone; empty if they were not computed.
        losses: mean of every logged term over the accumulated batches.
        weights: root mean square of the weights of each part (top-level submodule) of each player.
        gradients: norm of the gradient of each part.
        seeds: random seeds, one for each micro-step and player.
    """

    rank: int = 0
    samples: list[str] = field(default_factory=list)
    bad_samples: list[str] = field(default_factory=list)
    sample_losses: list[float] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Whether all losses and gradients are finite."""
        values = [*self.losses.values(), *self.gradients.values()]
        return all(bool(torch.isfinite(torch.tensor(value))) for value in values)


def recompute_step(
    recipe: Recipe,
    task: Task,
    step: int,
    *,
    rank: int = 0,
    world: int = 1,
    precision: Precision = nullcontext,
    one_by_one: bool = True,
    scale: float = 1.0,
) -> Evidence:
    """Compute the losses and gradients of a step with the current weights. The gradients stay in the parameters.

    Args:
        one_by_one: also compute the loss of each sample alone.
        scale: factor of the losses in the backward pass (fp16); the gradients are divided by it.
    """
    evidence, device = Evidence(rank), next(task.model.parameters()).device
    for player in task.players:
        player.module.train().zero_grad()
    for micro_step in range(step * recipe.train.accumulate, (step + 1) * recipe.train.accumulate):
        batch = tuple(part.to(device) for part in task.batch(micro_step, rank, world))
        names = _row_names(recipe, task, micro_step, rank, world, len(batch[0]))
        evidence.samples += names
        evidence.bad_samples += [name for name, bad in zip(names, _bad_rows(batch)) if bad]
        progress = Progress(step, recipe.train.steps)
        if one_by_one:
            evidence.sample_losses += _sample_losses(task.players[0], batch, progress, precision)
        _accumulate(recipe, task, micro_step, batch, progress, precision, scale, evidence, world)
    for player in task.players:
        for parameter in player.module.parameters() if scale != 1 else ():
            if parameter.grad is not None:
                parameter.grad /= scale
        _add_norms(player, evidence)
    return evidence


def _row_names(recipe: Recipe, task: Task, micro_step: int, rank: int, world: int, num: int) -> list[str]:
    if task.samples:
        return task.samples(micro_step, rank, world)
    accumulate = recipe.train.accumulate
    batch = f" of batch {micro_step % accumulate}" if accumulate > 1 else ""
    return [f"row {i}{batch}" for i in range(num)]


def _accumulate(
    recipe: Recipe,
    task: Task,
    micro_step: int,
    batch: Batch,
    progress: Progress,
    precision: Precision,
    scale: float,
    evidence: Evidence,
    world: int,
) -> None:
    """Forward and backward pass of all players on one batch; adds losses and seeds to `evidence`."""
    accumulate, earlier = recipe.train.accumulate, Tensors()
    for player in task.players:
        evidence.seeds.append(seed_of(recipe.seed, micro_step, 0, player.prefix))
        copies = copies_of(player.module)
        with seeded(recipe.seed, micro_step, evidence.rank, world, player.prefix, batch, copies=copies):
            terms, outputs = compute_losses(player, batch, progress, earlier, precision)
        (total_loss(terms) / accumulate * scale).backward()
        earlier |= {name: value.detach() for name, value in outputs.items()}
        for name, value in terms.items():
            key = player.prefix + name
            evidence.losses[key] = evidence.losses.get(key, 0.0) + float(value.detach()) / accumulate


def _bad_rows(batch: Batch) -> list[bool]:
    """For each row of a batch, whether any of its numbers is not finite."""
    bad = torch.zeros(len(batch[0]), dtype=torch.bool)
    for part in batch:
        if part.is_floating_point() and len(part) == len(bad):
            bad |= ~torch.isfinite(part).flatten(1).all(1).cpu() if part.dim() > 1 else ~torch.isfinite(part).cpu()
    return bad.tolist()


def _sample_losses(player: Player, batch: Batch, progress: Progress, precision: Precision) -> list[float]:
    """The loss of each sample alone; empty where the player needs several samples (batch statistics)."""
    losses = []
    state = {name: value.clone() for name, value in player.module.state_dict().items()}
    try:
        with torch.no_grad():
            for i in range(min(len(batch[0]), MOST_SAMPLES)):
                torch.manual_seed(0)
                terms, _ = compute_losses(player, tuple(part[i : i + 1] for part in batch), progress, {}, precision)
                losses.append(float(total_loss(terms)))
    except Exception:
        losses = []
    player.module.load_state_dict(state)
    return losses


def _add_norms(player: Player, evidence: Evidence) -> None:
    """Add the sizes of a player's weights and gradients, by part, to `evidence`."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in player.module.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(player.prefix + (name.split(".")[0] if "." in name else "own"), []).append(parameter)
    for name, parameters in parts.items():
        count = sum(p.numel() for p in parameters)
        squares = torch.stack([p.detach().double().square().sum() for p in parameters]).sum()
        evidence.weights[name] = float((squares / count).sqrt())
        norms = [p.grad.double().norm() for p in parameters if p.grad is not None]
        evidence.gradients[name] = float(torch.stack(norms).norm()) if norms else 0.0


def write_dump(
    path: Path,
    recipe: Recipe,
    step: int,
    world: int,
    players: dict[str, WeightsAndOptimizer],
    evidence: list[Evidence],
    *,
    scale: float = 1.0,
) -> None:
    """Write a dump: what is needed to recompute the step.

    Args:
        players: name -> weights and optimizer state before the step, the model first.
        evidence: of all processes.
        scale: loss scale of fp16.

    Raises:
        WeightsError: the file cannot be written.
    """
    (_, first), *others = players.items()
    content: Dump = {
        "step": step,
        "recipe": to_yaml(recipe),
        "seed": recipe.seed,
        "world": world,
        "evidence": [asdict(each) for each in evidence],
        "scale": scale,
        **first,
        "players": dict(others),
    }
    checkpoint.write(path, content)


def read_dump(path: Path) -> Dump:
    """A dump's content; raises WeightsError where the file is missing, damaged or not a dump."""
    expected = f"{path}: expected a dump (nonfinite-step-*.pt in a run folder)"
    try:
        if not checkpoint.intact(path):
            raise WeightsError(f"{path}: damaged, its content does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"step", "model", "recipe"} - state.keys()
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{expected} ({reason_of(error, 120)})") from None
    if missing:
        raise WeightsError(f"{expected}, got a file without {min(missing)}")
    return state


def load_dump(task: Task, state: Dump, source: str) -> None:
    """Load the weights of a dump (or a checkpoint) into a task's players."""
    names = [player.name for player in task.players]
    for player, own in zip(task.players, checkpoint.by_player(state, state.get("players", {}), names, source)):
        load_state(player.module, own["model"], source)


def replay(recipe: Recipe, task: Task, dump: Path, *, rank: int = 0, world: int = 1) -> dict[str, float]:
    """Recompute the losses of a dumped step, with the same weights, batch and (on the same device) random numbers.

    Afterwards the modules of `task.players` hold the dump's weights and the step's gradients.
    """
    state = torch.load(dump, map_location="cpu", weights_only=True)
    load_dump(task, state, str(dump))
    return recompute_step(recipe, task, state["step"], rank=rank, world=world, one_by_one=False).losses
