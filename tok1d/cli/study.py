"""`tok1d study`: build, serve and score a perception test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import (
    Data,
    DataRoot,
    Device,
    Model,
    Overwrite,
    expanded,
    load_tokenizer,
    output_folder,
    with_paths,
)
from tok1d.study.request import Design, Scoring, Serving

study_app = typer.Typer(
    help="Perception test: is a reconstruction from few tokens more like the original than a distractor?",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(help="a folder that tok1d study build wrote", show_default=False)]


@study_app.command("build")
@with_paths
@expanded
def study_build(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the study")],
    how: Design,
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a study folder: originals, reconstructions, distractors, a mask, and study.json with the design.

    Participants see an original for a short time and choose which of two pictures is more like it, its reconstruction
    or the distractor (Semanticist, arXiv 2503.08685, appendix D.1).
    """
    from tok1d.data.images import ArrayImages
    from tok1d.data.lazy import LazyImages
    from tok1d.inference.images import open_data
    from tok1d.study.build import Sources, build_study, short_name
    from tok1d.study.folder import check_replaceable

    folder = output_folder(out, overwrite=overwrite)
    check_replaceable(folder)
    tokenizer = load_tokenizer(model, device)
    images = open_data(data, tokenizer, split=how.split, data_root=data_root, on_broken="stop")
    assert isinstance(images, ArrayImages | LazyImages)
    study = build_study(Sources(tokenizer, images, short_name(model), short_name(data)), how, folder)
    cells = len(study.keep) * len(study.reveal_ms)
    print(
        f"{folder}: {len(study.items)} trials in {cells} condition{'s' if cells > 1 else ''}, {len(study.practice)} "
        f"practice and {len(study.catch)} catch trials; counterbalanced over every {2 * cells} participants"
    )
    if len(study.items) % (2 * cells):
        print(f"a participant's own trials are balanced if --num is a multiple of {2 * cells}")
    print(f"next: tok1d study serve {folder}")


@study_app.command("serve")
@with_paths
@expanded
def study_serve(folder: Folder, how: Serving) -> None:
    """Serve the page of a study to participants. Answers are stored in results.sqlite of its folder; Ctrl-C ends it.

    The same command goes on with the stored answers.
    """
    from tok1d.errors import ConfigError

    try:
        from tok1d.study.server import serve
    except ImportError as error:
        raise ConfigError(f"study serve: needs the package {error.name}: pip install 'tok1d[web]'") from None

    def started(address: str) -> None:
        print(f"study {folder}: {address} (Ctrl-C ends it)", flush=True)

    serve(folder, how.host, how.port, started)


@study_app.command("score")
@with_paths
@expanded
def study_score(
    folder: Folder,
    how: Scoring,
    out: Annotated[Path | None, typer.Option(help="folder for the results; default: DIR/score")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score the answers: mean by number of tokens and reveal time, with intervals; writes CSV files and a plot."""
    from tok1d.errors import DataError
    from tok1d.study.folder import RESULTS, read_study
    from tok1d.study.report import write_score
    from tok1d.study.results import Results
    from tok1d.study.score import score

    study = read_study(folder)
    if not (folder / RESULTS).is_file():
        raise DataError(f"{folder}: no answers ({RESULTS}); serve the study first: tok1d study serve {folder}")
    target = output_folder(out or folder / "score", overwrite=overwrite)
    found, scored = score(study, Results(folder / RESULTS, study.identity).answers(), how)
    write_score(study, found, scored, target)
    print("\n".join(found.rules))
    for reason, count in found.left_out.items():
        print(f"left out: {count} answer{'s' if count > 1 else ''} ({reason})")
    for mean in found.by_condition:
        bounds = "" if mean.low is None else f" [{mean.low:.3f}, {mean.high:.3f}]"
        counts = f"{mean.answers} answers, {mean.participants} participants, {mean.images} images"
        print(f"keep {mean.keep}, {mean.reveal_ms} ms: {mean.mean:.3f}{bounds}  ({counts})")
    print(f"{found.said()}\nfiles: {target}")
