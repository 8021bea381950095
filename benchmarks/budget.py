"""As many tokens as an image needs: error beside the same number for all, by search and by the head; and generation.

    python benchmarks/budget.py                     # the missing rows; see the times in docs/budgets.md
    python benchmarks/budget.py --only smap
    python benchmarks/budget.py --write             # the tables of docs/budgets.md from the rows

A row `choice` of benchmarks/results/budget.jsonl is `tok1d analyze budget` of a bundled tokenizer with a head that is
trained here (one row for each seed of the head): the mean number of tokens and the error of the budgets by search and
by head at three qualities, and the error of the same mean number for all images. A row `stop` is the bundled CARD of
the bundled SMAP after further steps in which it learns to stop by itself; a row `fixed` is the bundled CARD after as
many steps without ends. Both have the mean number of tokens and the distance of the samples (fd, without guidance),
`fixed` from several numbers of tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from table import FD, add_line, fill, is_there, markdown, read_lines, spread, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "budget.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "budgets.md"
Row = dict[str, Any]
EMOJI = ("data.name=emoji", "data.image_size=64", "data.channels=3", "data.captions=names")
# The bundled tokenizers, the data, and overrides of the head's recipe.
TOKENIZERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "smap": ("fashion-mnist-smap", "fashion_mnist", ()),
    "semanticist": ("fashion-mnist-semanticist", "fashion_mnist", ()),
    "emoji-smap": ("emoji-smap", "emoji", EMOJI),
}
QUALITY = 20.0  # dB, of the generator that stops
STOP_STEPS, IMAGES = 1500, 20_000  # further steps of the generators, and the training images whose budgets are searched
KEPT = (3, 4, 5, 6, 7, 8, 16)  # numbers of tokens of the generator without ends


def choice(name: str, seed: int, steps: int, num: int, runs: Path) -> Row:
    """The budgets of a tokenizer by search and by a head of this seed."""
    import tok1d

    tokenizer, data, overrides = TOKENIZERS[name]
    settings = [f"init_from={tokenizer}", f"seed={seed}", f"train.steps={steps}", *overrides]
    out = runs / f"head-{name}-{seed}-{steps}"
    (head,) = train("fashion_mnist/budget", settings, out).budget_heads
    (record,) = tok1d.analyze("budget", out / "model", data, num=num, device="cpu").records
    kept = ("num", "metric", "errors", "choices")
    return {
        "steps": steps,
        "seconds": head.card.trained["seconds"],
        "quality_error": next(each.value for each in head.card.records if each.name == "quality_error"),
        **{key: record[key] for key in kept},
    }


def stop(stops: bool, seed: int, steps: int, num: int, runs: Path) -> Row:
    """The bundled CARD after further steps with or without ends: mean number of tokens, and distance of its samples."""
    import tok1d

    overrides = [f"seed={seed}", f"train.steps={steps}", "init_from=fashion-mnist-card", f"data.limit={IMAGES}"]
    overrides += ["train.ema=0.998", "train.muon.lr=2e-3", "train.lr=1e-3"]
    overrides += ["evaluate.guidance=1", f"evaluate.num_samples={num}"]
    overrides += ["evaluate.keep=[16]"] if stops else [f"evaluate.keep=[{','.join(map(str, KEPT))}]"]
    overrides += ["model.stop=true", f"budget.quality={QUALITY}"] if stops else []
    out = runs / f"card-{'stop' if stops else 'fixed'}-{seed}-{steps}"
    train("fashion_mnist/card", overrides, out)
    generator = tok1d.load_pair(out / "model")[0]
    distances = {each.keep: each.value for each in generator.card.records if each.name == FD and each.keep}
    samples = generator.generate(num=100, guidance=1.0)
    tokens = 16.0 if samples.lengths is None else float(samples.lengths.double().mean())
    return {"steps": steps, "tokens": tokens, "fd": distances}


def tasks(names: Sequence[str], given: argparse.Namespace) -> Iterator[tuple[Row, Any]]:
    """The key of each row, and the function that measures it."""
    runs, num = given.runs, given.num
    for seed in range(given.seeds):
        for name in (each for each in names if each in TOKENIZERS):
            key = {"kind": "choice", "name": name, "seed": seed, "steps": given.steps, "num": num}
            yield key, lambda name=name, seed=seed: choice(name, seed, given.steps, num, runs)
        for stops in (False, True) if "stop" in names else ():
            key = {"kind": "stop", "name": "stop" if stops else "fixed", "seed": seed}
            yield key, lambda stops=stops, seed=seed: stop(stops, seed, STOP_STEPS, 10_000, runs)


def choices_table(rows: Sequence[Row]) -> str:
    """A line for each tokenizer, quality and way to choose, of the first seed; heads of all seeds."""
    body = []
    for row in (each for each in rows if each["kind"] == "choice"):
        for each in row["choices"]:
            if each["by"] == "search" and row["seed"]:
                continue  # the same for every seed of the head
            near = "" if each["within_one"] is None else f"{each['within_one']:.0%}"
            numbers = [f"{each['quality']:.2f}", f"{each['tokens']:.2f}", f"{each['error']:.5f}"]
            numbers += [f"{each['fixed_error']:.5f}", f"{-each['gain']:+.1%}", near]
            seed = "" if each["by"] == "search" else str(row["seed"])
            body.append([f"`{TOKENIZERS[row['name']][0]}`", each["by"], seed, *numbers])
    head = ["tokenizer", "chosen by", "seed of the head", "quality, dB", "mean tokens", "error", "error, fixed number"]
    return markdown([*head, "difference", "within one token of the search"], body)


def stops_table(rows: Sequence[Row]) -> str:
    """A line for each way and number of tokens: mean and range over the seeds."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in (each for each in rows if each["kind"] == "stop"):
        for keep, distance in sorted(row["fd"].items(), key=lambda item: int(item[0])):
            tokens = row["tokens"] if row["name"] == "stop" else float(keep)
            found.setdefault((row["name"], "" if row["name"] == "stop" else keep), []).append((tokens, distance))
    body = [
        [name, str(len(values)), *(spread(list(each), 2) for each in zip(*values, strict=True))]
        for (name, _), values in sorted(found.items(), key=lambda item: (item[0][0] == "fixed", item[1]))
    ]
    return markdown(["CARD", "seeds", "mean tokens", "fd@fashion-mnist-cnn"], body)


TABLES = {"choices": choices_table, "stops": stops_table}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*TOKENIZERS, "stop"], default=[*TOKENIZERS, "stop"])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=3000, help="steps of a head")
    parser.add_argument("--num", type=int, default=1000, help="test images")
    parser.add_argument("--runs", type=Path, default=Path("runs/budget"), help="folder of the trainings")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/budgets.md")
    given = parser.parse_args(args)
    given.runs = given.runs.resolve()
    if given.write:
        fill(PAGE, TABLES, read_lines(RESULT))
        return 0
    for key, measure in tasks(given.only, given):
        if not is_there(read_lines(RESULT), key):
            add_line(RESULT, {**key, **measure()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
