"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """An average of a model's trainable parameters: average += (1 - decay) * (parameter - average).

    Args:
        decay: in [0, 1). With `ramp` the decay of update n is at most (1 + n) / (10 + n), so that the initial random
            weights soon lose their influence (with a fixed 0.9999 that takes about 100 000 steps).
    """

    def __init__(self, model: nn.Module, decay: float, *, ramp: bool = True) -> None:
        self.decay, self.ramp = decay, ramp
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """One update after optimizer step `step` (counted from 0)."""
        decay = self.decay_of(step)
        torch._foreach_lerp_(list(self.averages.values()), [p.data for p in self.parameters.values()], 1 - decay)

    def decay_of(self, step: int) -> float:
        """The decay of the update after optimizer step `step` (counted from 0)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay

    def share_of_initial(self, steps: int) -> float:
        """The weight of the initial parameters in the averages after `steps` updates, in [0, 1]; 0 if below 1e-6."""
        share = 1.0
        for step in range(steps):
            share *= self.decay_of(step)
            if share < 1e-6:
                return 0.0
        return share

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self.averages

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raises KeyError or ValueError where names or shapes differ."""
        for name, average in self.averages.items():
            if state[name].shape != average.shape:
                raise ValueError(f"{name}: expected an average {tuple(average.shape)}, got {tuple(state[name].shape)}")
            average.copy_(state[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's parameters with the averages; a second call undoes it."""
        for name, average in self.averages.items():
            parameter = self.parameters[name].data
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
