"""Gain of a search against network calls, by its verifier and by a judge that it did not see.

    python benchmarks/search.py                # the missing rows; see the time below
    python benchmarks/search.py --only emoji-card
    python benchmarks/search.py --write        # the table of docs/search.md from the rows

For each bundled generator: samples without guidance, best-of-N and beam search of W sequences with C candidates each,
W C = N, at N = 1, 2, 4, 8, 16. Both sample N tokens for each token of a sample, so the calls of the generator are
equal; beam search decodes and scores every prefix, best-of-N the whole samples only. N = 1 is plain sampling.

The verifier is the log-probability of the sample's class by one classifier, the judge another classifier, of another
seed and width, trained here. Emoji are generated from their names, and their classes are Unicode's groups. A row of
benchmarks/results/search.jsonl is one search with one seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import add_line, fill, is_there, markdown, read_lines, spread, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULT = Path(__file__).parent / "results" / "search.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "search.md"
CALLS = (1, 2, 4, 8, 16)
Row = dict[str, Any]
EMOJI = ("data.name=emoji", "data.image_size=64", "data.channels=3", "data.flip=true", "model.num_classes=9")
EMOJI += ("model.image_size=64", "model.channels=3", "train.batch_size=64", "train.steps=600")


@dataclass(frozen=True)
class Subject:
    """A bundled generator.

    Args:
        verifier, judge: overrides of the recipe fashion_mnist/judge; () is the bundled classifier.
        num: samples of each class, or of each caption.
    """

    verifier: tuple[str, ...]
    judge: tuple[str, ...]
    num: int


FASHION_JUDGE = ("model.width=24", "seed=7", "train.steps=1000")
SUBJECTS = {
    "fashion-mnist-card": Subject((), FASHION_JUDGE, 10),
    "fashion-mnist-epsilon-llamagen": Subject((), FASHION_JUDGE, 5),
    "emoji-card": Subject((*EMOJI, "seed=1"), (*EMOJI, "seed=7", "model.width=24"), 2),
}


def settings(kind: str, calls: int) -> dict[str, object]:
    """The settings of `generate` for a search with so many candidates."""
    if kind == "best-of":
        return {"search": f"best-of={calls}"}
    width = 2 ** ((calls.bit_length() - 1) // 2)
    return {"search": f"beam={width}", "search_candidates": calls // width}


def classifier(overrides: Sequence[str], folder: Path) -> Any:
    """The bundled classifier, or one trained with these overrides."""
    from tok1d.zoo import store

    if not overrides:
        return store.load("fashion-mnist-cnn")
    return train("fashion_mnist/judge", list(overrides), folder / "-".join(each.split("=")[1] for each in overrides))


def conditions(name: str) -> tuple[list[str] | None, dict[str, str]]:
    """What is generated, all classes or 30 names of emoji, and the class of each label where it is another one."""
    if not name.startswith("emoji"):
        return None, {}
    from tok1d.data.emoji_table import table

    found = {each.name: each.group for each in table()}
    names = list(found)
    return [names[i * len(names) // 30] for i in range(30)], found


def scores_of(model: Any, classes: dict[str, str]) -> Callable[..., Any]:
    """(images, labels) -> log-probabilities (N, classes) and the places of the labels."""
    import torch

    known = {name: i for i, name in enumerate(model.class_names)}

    def scores(images: Any, labels: Sequence[str]) -> Any:
        places = torch.tensor([known[classes.get(label, label)] for label in labels])
        with torch.no_grad():
            return model(images).log_softmax(1), places

    return scores


def measure(name: str, kind: str, calls: int, seed: int, runs: Path) -> Row:
    """One search: mean scores and shares of samples of their class, by verifier and judge, and calls a sample."""
    import torch

    import tok1d

    subject, (wanted, classes) = SUBJECTS[name], conditions(name)
    verifier, judge = (scores_of(classifier(each, runs), classes) for each in (subject.verifier, subject.judge))

    def verify(images: Any, labels: Sequence[str]) -> Any:
        found, places = verifier(images, labels)
        return found[torch.arange(len(images)), places]

    generator, start = tok1d.load_pair(name)[0], time.process_time()
    how = settings(kind, calls)
    found = generator.generate(wanted, num=subject.num, seed=seed, guidance=1.0, verifier=verify, **how)
    row: Row = {"cpu": round(time.process_time() - start, 1), "num": len(found), "calls": found.calls}
    for key, scores in (("verifier", verifier), ("judge", judge)):
        logs, places = scores(found.images, found.labels)
        own = logs[torch.arange(len(logs)), places]
        row[key] = {"score": float(own.mean()), "right": float((logs.argmax(1) == places).float().mean())}
    return row


def tasks(names: Sequence[str], seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """All searches, the cheap ones first; N = 1 is the same for both kinds and measured once."""
    for seed in range(seeds):
        for calls in CALLS:
            for name in names:
                for kind in ("best-of", "beam")[: 2 if calls > 1 else 1]:
                    yield name, kind, calls, seed


def table(rows: Sequence[Row]) -> str:
    """A line for each generator, number of candidates and kind of search: means over seeds."""
    body = []
    for name in SUBJECTS:
        for calls in CALLS:
            for kind in ("best-of", "beam"):
                own = [row for row in rows if (row["name"], row["n"], row["kind"]) == (name, calls, kind)]
                if own:
                    how = settings(kind, calls)
                    title = f"{how['search']}" + (f", {how['search_candidates']} candidates" if kind == "beam" else "")
                    counts = own[0]["calls"]
                    body.append(
                        [
                            f"`{name}`",
                            title if calls > 1 else "no search",
                            *(f"{counts[network]:.0f}" for network in ("generator", "decoder", "verifier")),
                            *(spread([r[by]["score"] for r in own], 2) for by in ("verifier", "judge")),
                            *(spread([100 * r[by]["right"] for r in own], 0) for by in ("verifier", "judge")),
                        ]
                    )
    head = ["generator", "search", "calls a sample: generator", "decoder", "verifier"]
    head += ["log-probability: verifier", "judge", "right class, %: verifier", "judge"]
    return markdown(head, body)


TABLES = {"search": table}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder of the classifiers' trainings")
    parser.add_argument("--write", action="store_true", help="write the table of docs/search.md")
    given = parser.parse_args(args)
    if given.write:
        fill(PAGE, TABLES, read_lines(RESULT))
        return 0
    for name, kind, calls, seed in tasks(given.only, given.seeds):
        key = {"name": name, "kind": kind, "n": calls, "seed": seed}
        if not is_there(read_lines(RESULT), key):
            add_line(RESULT, {**key, **measure(name, kind, calls, seed, given.runs)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
