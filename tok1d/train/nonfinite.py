"""A step whose loss or gradient is not finite: the dump that repeats it, what it shows, and who is to blame."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.load import to_yaml
from tok1d.config.recipe import Recipe
from tok1d.errors import Tok1dError, WeightsError
from tok1d.losses.total import Tensors, total_loss
from tok1d.train import checkpoint
from tok1d.train.players import Moment, Player, compute_losses
from tok1d.train.precision import Precision
from tok1d.train.rng import copies_of, seed_of, seeded
from tok1d.train.task import Task
from tok1d.zoo.weights import load_state

LARGE_WEIGHT = 100.0  # root mean square of a part's weights that no healthy training reaches
LARGE_LOSS = 100.0  # times the median of the batch
MOST_SAMPLES = 256  # looked at one by one


class NonFiniteError(Tok1dError):
    """A loss or gradient was not finite; the weights are those before the step."""


@dataclass
class Evidence:
    """What one process saw when it repeated a step.

    Args:
        samples: names of the rows it trained on. bad_samples: those with numbers that are not finite.
        sample_losses: the model's loss of each sample alone, where they were looked at one by one.
        losses: mean of every logged term over the accumulated batches.
        weights, gradients: root mean square weight and norm of the gradient of every part of every player.
        seeds: of the random numbers, a micro-step and player each.
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
        """Whether the step was finite after all."""
        values = [*self.losses.values(), *self.gradients.values()]
        return all(bool(torch.isfinite(torch.tensor(value))) for value in values)


def repeat(
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
    """Compute the losses and gradients of a step again, from the weights as they are; the gradients stay on them.

    Args:
        scale: of the losses in the backward pass (fp16); the gradients are divided by it.
    """
    accumulate, seen_all = recipe.train.accumulate, Evidence(rank)
    moment, device = Moment(step, recipe.train.steps), next(task.model.parameters()).device
    for player in task.players:
        player.module.train().zero_grad()
    for micro_step in range(step * accumulate, (step + 1) * accumulate):
        batch, seen = tuple(part.to(device) for part in task.batch(micro_step, rank, world)), Tensors()
        names = task.samples(micro_step, rank, world) if task.samples else [f"row {i}" for i in range(len(batch[0]))]
        if accumulate > 1 and not task.samples:
            names = [f"{name} of batch {micro_step - step * accumulate}" for name in names]
        seen_all.samples += names
        seen_all.bad_samples += [name for name, bad in zip(names, _bad_rows(batch)) if bad]
        if one_by_one:
            seen_all.sample_losses += _sample_losses(task.players[0], batch, moment, precision)
        for player in task.players:
            seen_all.seeds.append(seed_of(recipe.seed, micro_step, 0, player.prefix))
            copies = copies_of(player.module)
            with seeded(recipe.seed, micro_step, rank, world, player.prefix, batch, copies=copies):
                terms, made = compute_losses(player, batch, moment, seen, precision)
            (total_loss(terms) / accumulate * scale).backward()
            seen |= {name: value.detach() for name, value in made.items()}
            for name, value in terms.items():
                key = player.prefix + name
                seen_all.losses[key] = seen_all.losses.get(key, 0.0) + float(value.detach()) / accumulate
    for player in task.players:
        for parameter in player.module.parameters() if scale != 1 else ():
            if parameter.grad is not None:
                parameter.grad /= scale
        _weigh(player, seen_all)
    return seen_all


def _bad_rows(batch: tuple[Tensor, ...]) -> list[bool]:
    bad = torch.zeros(len(batch[0]), dtype=torch.bool)
    for part in batch:
        if part.is_floating_point() and len(part) == len(bad):
            bad |= ~torch.isfinite(part).flatten(1).all(1).cpu() if part.dim() > 1 else ~torch.isfinite(part).cpu()
    return bad.tolist()


def _sample_losses(player: Player, batch: tuple[Tensor, ...], moment: Moment, precision: Precision) -> list[float]:
    """The loss of each sample alone; none where the player cannot do that (statistics over a batch)."""
    losses = []
    state = {name: value.clone() for name, value in player.module.state_dict().items()}
    try:
        with torch.no_grad():
            for i in range(min(len(batch[0]), MOST_SAMPLES)):
                torch.manual_seed(0)
                terms, _ = compute_losses(player, tuple(part[i : i + 1] for part in batch), moment, {}, precision)
                losses.append(float(total_loss(terms)))
    except Exception:
        losses = []
    player.module.load_state_dict(state)
    return losses


def _weigh(player: Player, evidence: Evidence) -> None:
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


def suspects(recipe: Recipe, evidence: list[Evidence], *, rose: str = "", fp32: Evidence | None = None) -> list[str]:
    """What may have made a step not finite, the likeliest first; empty where nothing stands out.

    Args:
        rose: how the loss grew before, in words. fp32: what the step shows without autocast.
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
    elif rose and clean:
        found.append(f"train.lr={recipe.train.lr:g}: {rose}")
    if clean and not large:
        found += _discriminator(evidence)
    return found


def _large_samples(evidence: Evidence) -> list[str]:
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
    names = sorted({name for each in evidence for name, value in each.losses.items() if value - value != 0})
    if names and all(name.startswith("d_") or "advers" in name or "adaptive" in name for name in names):
        return [f"the discriminator: {', '.join(names[:3])} not finite, all else finite"]
    return []


def write_dump(
    path: Path,
    recipe: Recipe,
    step: int,
    world: int,
    players: dict[str, dict[str, Any]],
    evidence: list[Evidence],
    *,
    scale: float = 1.0,
) -> None:
    """Write what `replay` needs, and what the processes saw.

    Args:
        players: name -> weights and optimizer state before the step, the model first.
        scale: of the losses in the backward pass (fp16).

    Raises:
        WeightsError: no room.
    """
    (first, *others), told = list(players.items()), [asdict(each) for each in evidence]
    content = {"step": step, "recipe": to_yaml(recipe), "seed": recipe.seed, "world": world, "evidence": told}
    content["scale"] = scale
    checkpoint.write(path, {**content, **first[1], "players": dict(others)})


def read_dump(path: Path) -> dict[str, Any]:
    """A dump's content; raises WeightsError where it is missing, damaged or something else."""
    try:
        if not checkpoint.intact(path):
            raise WeightsError(f"{path}: damaged, its checksum does not fit its content")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"step", "model", "recipe"} - state.keys()
    except WeightsError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise WeightsError(f"{path}: expected a dump, nonfinite-step-*.pt of a run's folder ({reason})") from None
    if missing:
        raise WeightsError(
            f"{path}: expected a dump, nonfinite-step-*.pt of a run's folder, this has no {min(missing)}"
        )
    return state


def load_dump(task: Task, state: dict[str, Any], source: str) -> None:
    """Give a task's players the weights of a dump (or a checkpoint)."""
    for player, own in zip(task.players, checkpoint.by_player(state, [p.name for p in task.players], source)):
        load_state(player.module, own["model"], source)


def replay(recipe: Recipe, task: Task, dump: Path, *, rank: int = 0, world: int = 1) -> dict[str, float]:
    """The losses of a step that was not finite, from its dump: same weights, batch and random numbers (on its device).

    The modules of `task.players` are left with the dump's weights and the step's gradients, to look into.
    """
    state = torch.load(dump, map_location="cpu", weights_only=True)
    load_dump(task, state, str(dump))
    return repeat(recipe, task, state["step"], rank=rank, world=world, one_by_one=False).losses
