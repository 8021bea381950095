"""The optimizer's section of a recipe."""

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.config.written import plain_values
from tok1d.errors import ConfigError


@dataclass
class MuonConfig:
    """Muon; the learning rate has the schedule of AdamW's, scaled."""

    lr: float = option(5e-3, "highest learning rate; an update's root mean square is about 0.2 of it, as AdamW's", gt=0)
    momentum: float = option(0.95, "decay of the mean gradient", ge=0, lt=1)
    decay: float = option(0.0, "weight decay", ge=0)


@dataclass
class OptimConfig:
    """The optimizer, its learning rate schedule and the averaging of weights; steps are optimizer steps."""

    steps: int = option(help="optimizer steps of the run", ge=1)
    batch_size: int = option(help="images of one forward pass, over all processes", ge=1)
    accumulate: int = option(1, "forward passes whose gradients are summed into one step", ge=1)
    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "muon: Muon for the weight matrices of blocks, AdamW for all other parameters (PyTorch 2.9 or newer)"
    )
    lr: float = option(help="highest learning rate of AdamW", gt=0)
    muon: MuonConfig = option(MuonConfig)
    schedule: Literal["cosine", "constant", "linear"] = option("cosine", "learning rate after the warm-up")
    warmup: int = option(0, "steps of linear warm-up from 0", ge=0)
    warmup_init: float | None = option(
        None, "learning rate of the very first step; null is one increment above 0", ge=0
    )
    lr_min: float = option(0.0, "learning rate at the end of cosine and linear", ge=0)
    decay_steps: int | None = option(
        None, "steps from the end of the warm-up to lr_min; null lasts until the end of the run", ge=1
    )
    beta1: float = option(0.9, "AdamW decay of the mean gradient", ge=0, lt=1)
    beta2: float = option(0.95, "AdamW decay of the mean squared gradient", ge=0, lt=1)
    weight_decay: float = option(0.0, "AdamW weight decay of the parameters that `decay` selects", ge=0)
    decay: Literal["weights", "tables_too"] = option(
        "weights",
        "weights of linear and convolution layers; tables_too adds positions, queries and embeddings (as in the "
        "released code)",
    )
    clip: float = option(1.0, "largest global gradient norm; 0 is off", ge=0)
    ema: float = option(0.999, "decay of the averaged weights per step; 0 is off", ge=0, lt=1)
    ema_ramp: bool = option(
        True, "limit the decay after step n to (1 + n) / (10 + n), so that the initial weights lose their influence"
    )

    def check(self) -> None:
        """Raise ConfigError on a warm-up longer than the run or a last learning rate above the highest."""
        if self.warmup > self.steps:
            raise ConfigError(f"warmup: expected at most steps={self.steps}, got {self.warmup}")
        for key in ("lr_min", "warmup_init"):
            if (getattr(self, key) or 0.0) > self.lr:
                raise ConfigError(f"{key}: expected at most lr={self.lr}, got {getattr(self, key)}")
        if self.decay_steps is not None and self.schedule == "constant":
            raise ConfigError(f"decay_steps: schedule=constant does not decay, expected null, got {self.decay_steps}")


def with_short_warmup(tree: dict[str, object], given: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """The keys of a recipe with a tenth of the steps as warm-up, if an override sets fewer steps than the warm-up has.

    A warm-up in an override is left as it is.

    Args:
        tree: the recipe with its overrides.
        given: the overrides alone.

    Returns:
        The keys, and a line for people if the warm-up changed.
    """
    train, ours = tree.get("train"), given.get("train")
    if not isinstance(train, dict) or not isinstance(ours, dict) or "steps" not in ours or "warmup" in ours:
        return tree, []
    steps, warmup = plain_values(train["steps"]), plain_values(train.get("warmup"))
    if not isinstance(steps, int) or not isinstance(warmup, int) or not 1 <= steps < warmup:
        return tree, []
    said = f"train.steps={steps}: the warm-up of {warmup} steps is shortened, train.warmup={steps // 10}"
    return {**tree, "train": {**train, "warmup": steps // 10}}, [said]
