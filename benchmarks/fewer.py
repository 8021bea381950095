"""Quality against network calls: the bundled models, and models that were trained to need few calls.

    python benchmarks/fewer.py                            # the missing rows of all systems; hours on one core
    python benchmarks/fewer.py --only decoder --ways velocity distilled --seeds 1
    python benchmarks/fewer.py --steps 400 --num 1000     # shorter trainings and fewer images; rows of their own
    python benchmarks/fewer.py --write                    # the tables of docs/fewer.md from the rows

`velocity` is the bundled model as it is. `distilled` trains the recipe SYSTEM_few from it, with its velocity as target.
`meanflow` and `shortcut` start from the same weights and learn the velocity of the data, `scratch` starts from random
weights (the decoder's with its encoder); each for so many steps that the FLOPs of the training equal those of
`distilled`. Trainings resume, and a row that exists is not measured again. A row of benchmarks/results/fewer.jsonl is
one system, way, seed and number of calls.

Decoders: reconstructions of the first `--num` test images from 16, 4 and 1 tokens. Generators: `--num` samples, all
tokens. The calls of a head are for one token, those of SiT for a sequence. A guided step of `velocity` counts twice.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import FD, add_line, fill, is_there, markdown, read_lines, spread, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "fewer.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "fewer.md"
WAYS = ("velocity", "distilled", "meanflow", "shortcut", "scratch")
Row = dict[str, Any]


@dataclass(frozen=True)
class System:
    """A bundled model, the recipe that distils it, and the numbers of calls at which both are measured.

    Args:
        section: the key of the section few_step in the recipe.
        calls: of the trained models.
        keep: numbers of tokens.
        full: numbers of steps of the bundled model besides `calls`; the last is its default.
        guidance: of the bundled model; the trained ones include it.
    """

    bundled: str
    recipe: str
    section: str
    title: str
    calls: tuple[int, ...]
    full: tuple[int, ...]
    guidance: float = 1.0
    keep: tuple[int, ...] = (16,)


SYSTEMS = {
    "decoder": System(
        "fashion-mnist-semanticist",
        "fashion_mnist/semanticist_few",
        "model.flow.few_step",
        "decoder of Semanticist",
        (1, 2, 4),
        (8, 4),
        keep=(16, 4, 1),
    ),
    "head": System(
        "fashion-mnist-epsilon-llamagen",
        "fashion_mnist/epsilon_llamagen_few",
        "model.head.few_step",
        "head of epsilon-LlamaGen, calls a token",
        (1, 2, 4),
        (8, 25),
        guidance=3.5,
    ),
    "sit": System(
        "fashion-mnist-sit", "fashion_mnist/sit_few", "model.few_step", "SiT", (1, 2, 4), (8, 50), guidance=1.5
    ),
}


def overrides(system: System, way: str, seed: int, steps: int | None) -> list[str]:
    """The overrides of the recipe for one way of training, at the FLOPs of `distilled`."""
    from tok1d.config.load import load_recipe
    from tok1d.cost.flops import step_flops

    own = [f"seed={seed}", *([f"train.steps={steps}"] if steps else [])]
    if way == "distilled":
        return own
    other = [f'{system.section}.teacher=""']
    other += [f"{system.section}.objective={'shortcut' if way == 'shortcut' else 'meanflow'}"]
    if way == "scratch":
        other += ["init_from=null", *(["model.stage=train"] if "flow" in system.section else [])]
    goal, each = (step_flops(load_recipe(system.recipe, [*own, *more])).after for more in ([], other))
    count = load_recipe(system.recipe, own).train.steps
    return [f"seed={seed}", *other, f"train.steps={round(count * goal / each)}"]


def measured(system: System, model: Any, steps: int, keep: int, num: int, *, bundled: bool) -> dict[str, float]:
    """Metrics by name with so many steps, of the first `keep` tokens."""
    import tok1d

    if "flow" in system.section:
        found = tok1d.evaluate(model, "fashion_mnist", num=num, keep=[keep], steps=steps, batch_size=250)
        return {name: float(found.value(name, keep=keep)) for name in ("psnr", FD, "judge_accuracy")}
    guidance = system.guidance if bundled else 1.0
    found = tok1d.evaluate(
        model,
        "fashion_mnist",
        num_samples=num,
        keep=[16],
        steps=steps,
        sampler="euler",
        guidance=guidance,
        batch_size=250,
    )
    return {name: float(found.value(name)) for name in (FD, "label_agreement")}


def measure(name: str, way: str, seed: int, given: argparse.Namespace) -> None:
    """Train where the model is missing, and append the rows that are missing."""
    import tok1d

    system, rows = SYSTEMS[name], read_lines(given.result)
    bundled = way == "velocity"
    key = {"system": name, "way": way, "seed": seed, "num": given.num, "asked": None if bundled else given.steps}
    steps = sorted({*system.calls, *(system.full if bundled else ())})
    wanted = [{**key, "keep": keep, "steps": each} for keep in given.keep or system.keep for each in steps]
    missing = [each for each in wanted if not is_there(rows, each)]
    if not missing:
        return
    generates = "flow" not in system.section
    about: Row = {}
    if bundled:
        model = tok1d.load_pair(system.bundled)[0] if generates else tok1d.load(system.bundled)
    else:
        out = given.runs / f"{name}-{way}-{seed}{'' if given.steps is None else f'-{given.steps}'}"
        model = train(system.recipe, [*overrides(system, way, seed, given.steps), *given.set], out)
        about = {"train_steps": model.card.trained["steps"]}
        model = tok1d.load_pair(str(out / "model"))[0] if generates else model
    for each in missing:
        guided = bundled and system.guidance != 1
        begin = time.process_time()
        values = measured(system, model, each["steps"], each["keep"], given.num, bundled=bundled)
        row = {**each, "calls": each["steps"] * (1 + guided), **about, **values}
        row["cpu"] = round(time.process_time() - begin, 1)
        add_line(given.result, row)


def table(rows: Sequence[Row], name: str) -> str:
    """One line for each number of tokens, way and number of calls: mean and range over the seeds."""
    metrics = {"decoder": ("psnr", FD, "judge_accuracy")}.get(name, (FD, "label_agreement"))
    own = [row for row in rows if row["system"] == name]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    own.sort(
        key=lambda row: (-row["keep"], WAYS.index(row["way"]), row.get("train_steps", 0), row["num"], row["steps"])
    )
    for row in own:
        key = (row["keep"], row["way"], row.get("train_steps", ""), row["num"], row["calls"])
        groups.setdefault(key, []).append(row)
    body = [
        [str(keep), str(way), str(trained), f"{num:,}", str(calls), str(len(found))]
        + [spread([row[metric] for row in found], 3 if metric != "psnr" else 2) for metric in metrics]
        for (keep, way, trained, num, calls), found in groups.items()
    ]
    return markdown(["tokens", "way", "training steps", "images", "calls", "seeds", *metrics], body)


TABLES = {f"fewer-{name}": lambda rows, name=name: table(rows, name) for name in SYSTEMS}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS), help="systems")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; the bundled models have one")
    parser.add_argument("--steps", type=int, help="training steps of `distilled`; default: the recipe's")
    parser.add_argument("--num", type=int, default=10_000, help="images or samples of a row")
    parser.add_argument("--keep", type=int, nargs="*", help="numbers of tokens; default: all of the system")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides of the trainings")
    parser.add_argument("--runs", type=Path, default=Path("runs/fewer"), help="folder of the trainings")
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the rows")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/fewer.md")
    given = parser.parse_args(args)
    if given.write:
        fill(PAGE, TABLES, read_lines(given.result))
        return 0
    for name in given.only:
        for way in given.ways:
            for seed in range(1 if way == "velocity" else given.seeds):
                measure(name, way, seed, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
