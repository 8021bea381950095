"""Measures what needs no tokenizer on Fashion-MNIST: principal components of the pixels, and the mean image of a class.

    python benchmarks/baselines.py             # measure; about a minute on one core
    python benchmarks/baselines.py --write     # fill the tables "baselines" of docs/smap.md, maetok.md and results.md

Principal components and class means are computed from the 60,000 training images. Decoded images are clamped to [0, 1]
and measured as reconstructions are, against the originals, for the first 2,000 and for all 10,000 test images. The
record is benchmarks/results/baselines.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from table import FD, classifier, fill, markdown, write_json

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULT = Path(__file__).parent / "results" / "baselines.json"
DOCS = Path(__file__).parents[1] / "docs"
NUMBERS = (8, 16, 32, 64, 128, 256)
SIZES = (2000, 10_000)
PROBED = 10_000  # training images of the probe
Record = dict[str, Any]


def pixels(split: str) -> tuple[Any, Any]:
    """Images (N, 1, 28, 28) in [0, 1] of a split, and their labels (N,)."""
    from tok1d.data.images import ImageSource, open_images

    source = open_images(ImageSource("fashion_mnist", image_size=28, channels=1), split)  # type: ignore[arg-type]
    return source.batch(range(len(source)))


def features(network: Any, images: Any) -> tuple[Any, Any]:
    """Moments of the classifier's features of images, and its classes (N,)."""
    import torch

    from tok1d.evaluate.metrics import Moments

    moments, classes = Moments(network.dim), []
    for part in images.split(500):
        found = network(part)
        moments.update(found.pooled)
        classes.append(found.logits.argmax(1))
    return moments, torch.cat(classes)


def compared(network: Any, decoded: Any, images: Any, labels: Any) -> dict[str, float]:
    """Metrics of decoded images against their originals."""
    from tok1d.evaluate.metrics import frechet_distance

    errors = (decoded - images).flatten(1).square().mean(1)
    (ours, classes), (theirs, _) = features(network, decoded), features(network, images)
    return {
        "psnr": float((-10 * errors.log10()).mean()),
        "mse": float(errors.mean()),
        FD: float(frechet_distance(ours, theirs)),
        "judge_accuracy": float((classes == labels).float().mean()),
    }


def measure() -> Record:
    """All baselines, by number of test images and name."""
    import torch

    from tok1d.evaluate.baselines import components, projected
    from tok1d.evaluate.measures import own_networks
    from tok1d.evaluate.metrics import frechet_distance
    from tok1d.evaluate.probe import linear_probe

    [network] = own_networks(classifier())
    (train, train_labels), (test, test_labels) = pixels("train"), pixels("test")
    mean, vectors = components(train)
    means = torch.stack([train[train_labels == c].mean(0) for c in range(10)])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for size in SIZES:
        x, y = test[:size], test_labels[:size]
        rows = {f"pca-{num}": compared(network, projected(x, mean, vectors, num), x, y) for num in NUMBERS}
        rows["class-mean"] = compared(network, means[y], x, y)
        found[str(size)] = rows
    few, all_test = features(network, train[:2000])[0], features(network, test)[0]
    probe = linear_probe(
        train[:PROBED].flatten(1), train_labels[:PROBED], test[:2000].flatten(1), test_labels[:2000], seed=0
    )
    return {
        "reconstructions": found,
        "class_means_recognised": int((features(network, means)[1] == torch.arange(10)).sum()),
        "training_images_" + FD: float(frechet_distance(few, all_test)),
        "probe_accuracy": probe,
    }


def table(record: Record, size: int, numbers: Sequence[int]) -> str:
    """The baselines on the first `size` test images."""
    rows = record["reconstructions"][str(size)]
    names = {f"pca-{n}": f"PCA, {n} numbers" for n in numbers} | {"class-mean": "mean image of the true class"}
    body = [
        [
            text,
            f"{rows[name]['psnr']:.2f}",
            f"{rows[name]['mse']:.5f}",
            f"{rows[name][FD]:.2f}",
            f"{100 * rows[name]['judge_accuracy']:.1f}",
        ]
        for name, text in names.items()
    ]
    return markdown(["baseline", "PSNR, dB", "squared error", f"`{FD}`", "classifier, %"], body)


PAGES: Mapping[str, Callable[[Record], str]] = {
    "smap": partial(table, size=2000, numbers=(16, 64, 256)),
    "maetok": partial(table, size=2000, numbers=(16, 64, 256)),
    "results": partial(table, size=10_000, numbers=(16, 128, 256)),
}


def read() -> Record:
    """The stored record."""
    return json.loads(RESULT.read_text(encoding="utf-8"))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fill the tables of the pages from the record")
    if parser.parse_args(args).write:
        for name, make in PAGES.items():
            fill(DOCS / f"{name}.md", {"baselines": make}, read())
        return 0
    write_json(RESULT, {"command": "python benchmarks/baselines.py", **measure()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
