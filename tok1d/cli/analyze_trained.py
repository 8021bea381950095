"""`tok1d analyze learnability`, `order` and `modes`: analyses that train small generators."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.analyze_several import analyze_app
from tok1d.cli.options import ChosenImages, DataRoot, Device, Overwrite, expanded, output_folder, with_paths
from tok1d.cli.several import Models, open_subjects, reported, write_analysis, write_found
from tok1d.studies.request import Learning, ModeSettings, Ordering


@analyze_app.command("learnability")
@with_paths
@expanded
def analyze_learnability(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for learnability.json and learnability.png")],
    how: Learning,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """How easily a small generator learns the tokens: held-out loss over steps, and distances of its samples.

    Distances: of samples to reconstructions of training images, of these to the images, and of samples to the images.
    """
    from tok1d.analyze.judged import judges
    from tok1d.data.subset import subset
    from tok1d.studies.learnability import check_learnable, learnability, plot_learnability

    subjects = open_subjects(models, device, ChosenImages(split="test", data_root=data_root))
    trains = [each.training() for each in subjects]
    for each, train in zip(subjects, trains, strict=True):
        check_learnable(each.tokenizer, each.name, how, train.num_classes)
    measures = [judges(each.tokenizer, each.data, how.network, ("fd",)) for each in subjects]
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, train, measured in zip(subjects, trains, measures, strict=True):
        result = learnability(each.tokenizer, train, each.images, how, measured, name=each.name)
        found[each.name] = result
        trained = subset(train, result.num_train).fingerprint()
        settings = {"training": trained, "train_batch": how.train_batch, "guidance": how.guidance}
        records.append(reported(each, result, seed=how.seed, **settings))
        for reason in measured.missing.values():
            print(f"{each.name}: no distances: {reason}")
    write_analysis(folder, "learnability", records, [each.said() for each in found.values()], plot_learnability(found))


@analyze_app.command("order")
@with_paths
@expanded
def analyze_order(
    models: Models,
    out: Annotated[Path, typer.Option(help="folder for order.json and order.png")],
    how: Ordering,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Held-out loss of a small causal generator on the tokens in order, reversed, and in one fixed random order.

    CARD for continuous tokens, LlamaGen for ids. --repeats 3 shows how much of a difference is of the training's seed.
    """
    from tok1d.data.subset import subset
    from tok1d.studies.order import check_order, order, plot_orders

    subjects = open_subjects(models, device, ChosenImages(split="test", data_root=data_root))
    trains = [each.training() for each in subjects]
    for each, train in zip(subjects, trains, strict=True):
        check_order(each.tokenizer, each.name, how, train.num_classes)
    folder = output_folder(out, overwrite=overwrite)
    found, records = {}, []
    for each, train in zip(subjects, trains, strict=True):
        result = found[each.name] = order(each.tokenizer, train, each.images, how, name=each.name)
        trained = subset(train, result.num_train).fingerprint()
        records.append(reported(each, result, seed=how.seed, training=trained, train_batch=how.train_batch))
    write_analysis(folder, "order", records, [each.said() for each in found.values()], plot_orders(found))


@analyze_app.command("modes")
@with_paths
@expanded
def analyze_modes(
    out: Annotated[Path, typer.Option(help="folder for modes.json and modes.png")],
    how: ModeSettings,
    overwrite: Overwrite = False,
) -> None:
    """Error of a small SiT on synthetic tokens with a known score, by number of modes and of training samples.

    The tokens are a mixture of Gaussians, so the exact score is known at every time. Needs no model and no data.
    """
    from tok1d.studies.modes import mode_errors, plot_modes

    folder = output_folder(out, overwrite=overwrite)
    found = mode_errors(how, print)
    content = {"analysis": "modes", "said": f"{found.said()}.", "settings": asdict(how), **found.to_json()}
    write_found(folder, "modes", content, plot_modes(found))
