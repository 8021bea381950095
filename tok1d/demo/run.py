"""The demo: train a small tokenizer and a generator on real images, and write a report of the results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tok1d import files
from tok1d.analyze.prefix import explained_curve, plot_curve
from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.demo import colour
from tok1d.demo.measure import SEED, checks, commands, probes, quick_look, results, times
from tok1d.demo.page import Gallery, Page, render
from tok1d.errors import ConfigError, DataError, reason_of
from tok1d.pictures import data_uri
from tok1d.train.folder import has_checkpoint, is_finished, lock, remove, starting
from tok1d.train.images import open_split
from tok1d.train.run import train
from tok1d.zoo import store
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer

if TYPE_CHECKING:
    from tok1d.analyze.prefix import CurvePoint
    from tok1d.data.images import ImageSet

BUNDLED = "fashion-mnist-semanticist"
TOKENIZER, GENERATOR = "fashion_mnist/demo_tokenizer", "fashion_mnist/demo_generator"
CURVE_IMAGES, CURVE_TIMES = 200, 10  # test images, and noise levels of the denoising loss


def run(
    out: Path = Path("runs/demo"),
    *,
    overwrite: bool = False,
    data_root: str | None = None,
    tokenizer_overrides: Sequence[str] = (),
    generator_overrides: Sequence[str] = (),
) -> Path:
    """Show the bundled models, train small ones from scratch, and write OUT/report.html; returns its path.

    Without `overwrite`, finished parts are skipped and an interrupted training is resumed.

    Args:
        out: folder of the demo.
        overwrite: repeat everything.
        data_root: folder of Fashion-MNIST's files; None searches the default folders.
        tokenizer_overrides, generator_overrides: recipe overrides (key=value), for tests.

    Raises:
        ConfigError: the folder holds an unfinished run of another recipe, or a generator without its tokenizer.
    """
    started = time.perf_counter()
    out = Path(out)
    page = out / "report.html"
    recipes = _recipes(out, data_root, tokenizer_overrides, generator_overrides)
    if _open_folders(recipes, page, overwrite=overwrite):
        print(f"The demo in {out} is finished: open {page} (--overwrite repeats it)", flush=True)
        return page

    test = open_split(recipes[TOKENIZER], "test")
    shown = _show_bundled(out / "bundled", test)
    fresh = [_stage(f"{number}/4", name, recipe) for number, (name, recipe) in enumerate(recipes.items(), 2)]
    _headline("4/4", "measuring and writing the report (under a minute)")
    _report(page, recipes, test, started, shown, whole=all(fresh))
    print(f"Report: {page}\nTime: {time.perf_counter() - started:.0f} s", flush=True)
    print("Next: tok1d serve opens the bundled models in a browser (pip install 'tok1d[web]')", flush=True)
    return page


def _recipes(
    out: Path, data_root: str | None, tokenizer_overrides: Sequence[str], generator_overrides: Sequence[str]
) -> dict[str, Recipe]:
    """The two recipes, with paths inside the demo's folder, in the order of training."""
    tokenizer = load_recipe(TOKENIZER, tokenizer_overrides)
    generator = load_recipe(GENERATOR, generator_overrides)
    if data_root is not None:
        tokenizer.data = replace(tokenizer.data, root=data_root)
        generator.data = replace(generator.data, root=data_root)
    tokenizer = replace(tokenizer, out=str(out / "tokenizer"))
    generator = replace(
        generator,
        out=str(out / "generator"),
        tokenizer=str((out / "tokenizer" / "model").resolve()),
        cache=str((out / "generator" / "cache").resolve()),
    )
    return {TOKENIZER: tokenizer, GENERATOR: generator}


def _open_folders(recipes: dict[str, Recipe], page: Path, *, overwrite: bool) -> bool:
    """Check both run folders before the training; returns whether the whole demo is finished.

    With `overwrite` their runs are deleted.
    """
    tokenizer, generator = (Path(recipe.out) for recipe in recipes.values())
    if not overwrite and is_finished(generator) and not is_finished(tokenizer):
        raise ConfigError(
            f"{generator}: its tokenizer is not finished in {tokenizer}; pass --overwrite to train both, or --out"
        )
    _check_folder(page.parent, overwrite=overwrite)
    for recipe in recipes.values():
        if overwrite or not is_finished(Path(recipe.out)):
            with lock(Path(recipe.out)), starting(recipe, overwrite=overwrite):
                pass  # it only checks, because the run does not begin
    if overwrite:
        page.unlink(missing_ok=True)
        for out in (generator, tokenizer):
            with lock(out):
                remove(out)
    return page.exists() and is_finished(tokenizer) and is_finished(generator)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder with other files than those of a demo."""
    ours = ("tokenizer", "generator", "bundled")
    if overwrite or not out.is_dir() or not any(out.iterdir()) or any((out / name).is_dir() for name in ours):
        return
    raise ConfigError(f"{out}: not empty and not a demo's folder; pass --overwrite to write into it, or choose --out")


def _headline(number: str, text: str) -> None:
    print(f"\n[{number}] {text}", flush=True)


def _bundled() -> tuple[LoadedGenerator, LoadedTokenizer] | None:
    """The bundled generator and its tokenizer; None where the package has none."""
    return store.load_pair(BUNDLED) if BUNDLED in store.bundled_names() else None


def _show_bundled(folder: Path, test: ImageSet) -> list[Gallery]:
    """Write images of the bundled models; returns those of emoji."""
    pair = _bundled()
    if pair is None:
        _headline("1/4", f"no bundled models named {BUNDLED} in this package: skipped")
        return []
    _headline("1/4", "bundled models: test images above their reconstructions, and samples (a few seconds)")
    shown = colour.galleries(folder)
    for path in [folder / f"emoji-{each.name}.png" for each in shown] + quick_look(*pair, test, folder):
        print(f"      {path}", flush=True)
    return shown


def _stage(number: str, name: str, recipe: Recipe) -> bool:
    """Train a recipe unless it is finished; returns whether its whole training happened in this call."""
    out = Path(recipe.out)
    if is_finished(out):
        _headline(number, f"{name}: already trained in {out}")
        return False
    resumes = has_checkpoint(out)
    verb = "resuming" if resumes else "training"
    _headline(number, f"{verb} {name}: {recipe.card.about} ({recipe.card.cost})")
    train(recipe, name=name)
    return not resumes


def _report(
    page: Path, recipes: dict[str, Recipe], test: ImageSet, started: float, shown: list[Gallery], *, whole: bool
) -> None:
    """Make the measurements that training did not make, and write report.json and report.html."""
    begun = time.perf_counter()
    pairs: dict[str, tuple[LoadedGenerator, LoadedTokenizer]] = {
        "yours": store.load_pair(Path(recipes[GENERATOR].out) / "model")
    }
    bundled = _bundled()
    if bundled is not None:
        pairs["bundled"] = bundled
    tokenizers = {name: tokenizer for name, (_, tokenizer) in pairs.items()}
    curves = {
        name: explained_curve(tokenizer, test, num_images=CURVE_IMAGES, num_times=CURVE_TIMES, seed=SEED)
        for name, tokenizer in tokenizers.items()
    }
    models = [results(name, *pair, test) for name, pair in pairs.items()]
    probed, probe_protocol = probes(tokenizers, open_split(recipes[TOKENIZER], "train"), test)
    generator, tokenizer = pairs["yours"]
    seconds = {
        "tokenizer": tokenizer.card.trained["seconds"],
        "generator": generator.card.trained["seconds"],
        "report": round(time.perf_counter() - begun, 1),
        "this call": round(time.perf_counter() - started, 1),
    }
    content = Page(
        models=models,
        classes=test.class_names,
        curve=data_uri(plot_curve(curves)),
        curve_protocol=f"Unweighted denoising loss, mean over the first {min(CURVE_IMAGES, len(test))} test images and "
        f"{CURVE_TIMES} uniformly spaced times, with the same noise for every number of tokens; seed {SEED}.",
        checks=checks(tokenizer, generator, curves["yours"]) + times(seconds, whole),
        probes=probed,
        probe_protocol=probe_protocol,
        commands=commands(recipes[TOKENIZER], recipes[GENERATOR], tokenizer.spec.length),
        colour=shown,
    )
    data = _data(content, curves, seconds | {"whole demo in this call": whole})
    _write(page.with_name("report.json"), json.dumps(data, indent=1) + "\n")
    _write(page, render(content))  # last, because its presence means that the demo is finished


def _data(page: Page, curves: dict[str, list[CurvePoint]], seconds: Mapping[str, float | bool]) -> dict[str, object]:
    """All measurements, for report.json."""
    models = {
        model.name: {
            "about": model.about,
            "reconstruction": [record.to_json() for record in model.reconstruction_records],
            "generation": [record.to_json() for record in model.generation_records],
            "curve": [asdict(point) for point in curves[model.name]],
        }
        for model in page.models
    }
    probe = {"protocol": page.probe_protocol, "accuracies": [asdict(probe) for probe in page.probes]}
    checks = [asdict(check) for check in page.checks]
    return {
        "models": models,
        "curve_protocol": page.curve_protocol,
        "probe": probe,
        "checks": checks,
        "seconds": seconds,
    }


def _write(path: Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason_of(error)}; free space or choose --out") from None
    files.remove_left(path)
