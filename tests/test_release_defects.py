"""Defects of Semanticist's published code that no other test file covers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.errors import WeightsError
from tok1d.evaluate.networks import CNNConfig
from tok1d.train.loop import fit
from tok1d.train.task import Task
from tok1d.zoo import store

DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3, 1)

    def losses(self, batch: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        return {"loss": (self.layer(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()}


def averages(folder: Path, size: int, accumulate: int, **train: Any) -> Tensor:
    """The averaged weights that end a run of eight images a step."""
    folder.mkdir()

    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        return (DATA[torch.arange(micro_step * size, (micro_step + 1) * size) % len(DATA)],)

    model, settings = Line(), {"steps": 6, "batch_size": size, "accumulate": accumulate, "lr": 0.1, **train}
    fit(Recipe(kind="classifier", model=CNNConfig(), train=TrainConfig(**settings)), Task(model, batch), folder)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_average_and_schedule_move_once_an_optimizer_step(tmp_path: Path) -> None:
    """Not once a forward pass, when several of them make a step."""
    whole = averages(tmp_path / "whole", 8, 1, ema=0.7, schedule="linear", warmup=2)
    for size, accumulate in ((4, 2), (2, 4)):
        parts = averages(tmp_path / str(size), size, accumulate, ema=0.7, schedule="linear", warmup=2)
        torch.testing.assert_close(parts, whole)
    assert not torch.allclose(averages(tmp_path / "raw", 8, 1, ema=0.0, schedule="linear", warmup=2), whole, atol=1e-3)


@pytest.mark.parametrize("name", ["None", "", "runs/none/model", "models/step250000.safetensors"])
def test_a_missing_model_is_never_replaced_by_random_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as caught:
        store.load(name)
    assert "\n" not in str(caught.value)
