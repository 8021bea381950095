"""`tok1d.analyze`: the analyses of the tokens of one or several tokenizers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tok1d.analyze import request
from tok1d.api import token_analyses, trained_analyses
from tok1d.api.settings import settings_of
from tok1d.api.subjects import Analysis, Say, open_subjects
from tok1d.errors import InputError
from tok1d.studies.request import Learning, ModeSettings, Ordering

Models = str | Path | nn.Module | Sequence[str | Path | nn.Module]


def analyze(
    name: str,
    models: Models = (),
    data: str | Path = "",
    *,
    split: str | None = None,
    data_root: str | None = None,
    device: str | None = None,
    **settings: Any,
) -> Analysis:
    """Analyze the tokens of one or several tokenizers; as `tok1d analyze` of these names.

        >>> import tok1d
        >>> found = tok1d.analyze("probe", "fashion-mnist-maetok", "fashion_mnist", num=64, num_train=256)
        >>> found.name, len(found.records)
        ('probe', 1)

    Args:
        name: one of `ANALYSES`, such as "prefix" or "probe".
        models: names or folders, or loaded tokenizers; none for "modes".
        data: fashion_mnist, emoji, or a folder of images, shards or a saved data set.
        split: train, test or all; default: see `tok1d.inference.images.measured_split`. Analyses that fit something to
            the training images are measured on the test images.
        device: default: a GPU if there is one.
        settings: the options of the command.

    Raises:
        Tok1dError: an analysis, models, data or settings that are missing or do not fit together.
    """
    if name not in ANALYSES:
        raise InputError(f"analyze: expected {', '.join(ANALYSES)}, got {name!r}")
    how: object = settings_of(ANALYSES[name].settings, settings, f"analyze {name}")
    return run(name, models, str(data), how, split=split, data_root=data_root, device=device)


def run(
    name: str,
    models: Models,
    data: str,
    how: object,
    *,
    split: str | None = None,
    data_root: str | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Analysis:
    """As `analyze`, with the settings as one object.

    Args:
        how: of the type `ANALYSES[name].settings`.
        say: receives each line as soon as it is known.
    """
    kind = ANALYSES[name]
    given = [models] if isinstance(models, str | Path | nn.Module) else list(models)
    if not kind.models:
        if given or data:
            raise InputError(f"analyze {name}: expected no models and no data, it makes its own")
        return kind.function([], how, say)
    if kind.heldout:
        if split not in (None, "test"):
            raise InputError(f"analyze {name}: expected split test, as the training images are fitted, got {split}")
        split = "test"
    return kind.function(open_subjects(given, data, split, data_root, device), how, say)


@dataclass(frozen=True)
class Kind:
    """An analysis.

    Args:
        settings: the type of its settings.
        function: (subjects, settings, say) -> Analysis.
        heldout: it is measured on test images, as it fits something to the training images.
        models: it is of tokenizers.
    """

    settings: type
    function: Callable[..., Analysis]
    heldout: bool = False
    models: bool = True


ANALYSES: Mapping[str, Kind] = {
    "prefix": Kind(request.PrefixCurves, token_analyses.prefixes),
    "increments": Kind(request.IncrementProducts, token_analyses.increment_products),
    "spectrum": Kind(request.Spectra, token_analyses.spectra),
    "probe": Kind(request.Probes, token_analyses.probes, heldout=True),
    "semantics": Kind(request.JudgedReconstructions, token_analyses.judged_classes),
    "mixture": Kind(request.MixtureFits, token_analyses.mixtures, heldout=True),
    "map": Kind(request.Maps, token_analyses.maps),
    "swap": Kind(request.Swaps, token_analyses.swaps),
    "idle": Kind(request.TokenUses, token_analyses.uses),
    "budget": Kind(request.Budgets, token_analyses.budget_curves),
    "learnability": Kind(Learning, trained_analyses.learnabilities, heldout=True),
    "order": Kind(Ordering, trained_analyses.orders, heldout=True),
    "modes": Kind(ModeSettings, trained_analyses.modes, models=False),
}
