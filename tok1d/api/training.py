"""`tok1d.train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tok1d.api.evaluation import Evaluation
from tok1d.api.settings import overrides_of
from tok1d.config.load import load_recipe
from tok1d.train import folder, run
from tok1d.zoo.checkpoints import load_model
from tok1d.zoo.record import Record, read_records


@dataclass(frozen=True, repr=False)
class Training:
    """A training that `tok1d.train` made or continued.

    Args:
        folder: the run folder.
        finished: whether it is at its end; else the same call resumes it.
        records: the metrics of the evaluation at the end; empty before.
    """

    folder: Path
    finished: bool
    records: list[Record] = field(default_factory=list)

    def load(self, *, device: str = "cpu") -> Any:
        """The trained model; before the end of the training that of the newest checkpoint, which one line says.

        Raises:
            WeightsError: there is no checkpoint yet.
        """
        return load_model(self.folder, device=device)

    def __repr__(self) -> str:
        if not self.finished:
            return f"Training({self.folder}, stopped; the same call resumes)"
        return f"Training({self.folder}, finished)\n{Evaluation(self.records)!r}"

    def _repr_html_(self) -> str:
        state = "finished" if self.finished else "stopped; the same call resumes"
        return (
            f"<p>Training <code>{escape(str(self.folder))}</code>: {state}</p>{Evaluation(self.records)._repr_html_()}"
        )


def train(
    recipe: str | Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    minutes: float | None = None,
    more: int | None = None,
    **overrides: object,
) -> Training:
    """Train a recipe to its end, or resume the training in its folder; as `tok1d train`.

        tok1d.train("own/maetok", out="runs/mine", data={"root": "photos"}, train={"steps": 2000})

    Args:
        recipe: a name that `tok1d.recipes()` lists, the path of a YAML file, or the folder of a run.
        overwrite: remove an existing run in the folder first.
        quiet: no progress bar.
        minutes: stop with a checkpoint after this time; the same call resumes.
        more: train the finished or unfinished run in the folder this number of steps longer.
        overrides: keys of the recipe, with sections as dictionaries, or as **{"train.steps": 2000}.

    Raises:
        Tok1dError: the recipe, its data or its weights do not match.
    """
    resolved = load_recipe(str(recipe), list(overrides_of(overrides)))
    seconds = None if minutes is None else minutes * 60
    how = {"overwrite": overwrite, "quiet": quiet}
    return of_folder(run.train(resolved, **how, name=str(recipe), seconds=seconds, more=more))


def of_folder(out: Path) -> Training:
    """The training in a run folder."""
    finished = folder.is_finished(out)
    return Training(out, finished, read_records(out / "report.json") if finished else [])
