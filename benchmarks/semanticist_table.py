"""Runs the experiments of docs/semanticist.md on Fashion-MNIST: one JSON record per row; only missing rows are run.

    python benchmarks/semanticist_table.py                # the missing rows, in order; resumes when interrupted
    python benchmarks/semanticist_table.py --only nested-0 plain-0
    python benchmarks/semanticist_table.py --list
    python benchmarks/semanticist_table.py --write        # write the tables into docs/semanticist.md

Trainings are written to RUNS/NAME and resume from their checkpoints; records are written to
benchmarks/results/semanticist_table/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import main as run_table
from table import train, trained, values

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULTS = Path(__file__).parent / "results" / "semanticist_table"
STEPS, NUM_IMAGES, KEEP = 2400, 2000, (1, 2, 4, 8)
SEEDS = (0, 1, 2)

# Overrides of fashion_mnist/demo_tokenizer; nested and plain differ in one key.
COMMON = [f"train.steps={STEPS}", "train.save_every=200", "evaluate.num_images=500", "evaluate.keep=[8]"]
NESTED = ["model.nested.after=0.125", "model.nested.drop_before=0.1", "model.nested.drop_after=0.05"]
TOKENIZERS = {
    "nested": NESTED,
    "plain": [*NESTED, "model.nested.enabled=false"],
    "nested-ddpm": [*NESTED, "model.objective=ddpm", "evaluate.steps=25"],
    "nested-nonull": [*NESTED, "model.nested.drop_after=0"],
}


def train_tokenizer(kind: str, seed: int, runs: Path) -> Any:
    """The tokenizer of a row, which is trained first if its run is not finished."""
    return train("fashion_mnist/demo_tokenizer", [*COMMON, *TOKENIZERS[kind], f"seed={seed}"], runs / f"{kind}-{seed}")


def train_generator(num_tokens: int, runs: Path) -> Any:
    """epsilon-LlamaGen on the first tokens of nested-0."""
    train_tokenizer("nested", 0, runs)
    tokenizer = runs / "nested-0" / "model"
    overrides = [
        f"tokenizer={tokenizer}",
        f"num_tokens={num_tokens}",
        f"model.num_tokens={num_tokens}",
        "train.save_every=200",
        f"evaluate.keep=[{num_tokens}]",
        "evaluate.num_samples=100",
    ]
    return train("fashion_mnist/demo_generator", overrides, runs / f"generator-{num_tokens}")


def test_images(num: int) -> Any:
    """The first test images."""
    from tok1d.data.images import ImageSource, open_images

    return open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=num), "test")


def classifier() -> Any:
    from tok1d.zoo import store

    return store.load("fashion-mnist-cnn")


def reconstruct(
    tokenizer: Any, *, keep: tuple[int, ...] = KEEP, num: int | None = None, **decoding: Any
) -> list[dict[str, Any]]:
    """Error, Fréchet distance and accuracy of decoded prefixes, by `evaluate_reconstruction`."""
    from tok1d.evaluate.measures import Measuring, by_classifier
    from tok1d.evaluate.reconstruction import evaluate_reconstruction
    from tok1d.evaluate.request import Reconstructions

    num, began = num or NUM_IMAGES, time.perf_counter()
    how = {"sampler" if key == "solver" else key: value for key, value in decoding.items()}
    measuring = Measuring(by_classifier(classifier(), "reconstruction"))
    found = evaluate_reconstruction(tokenizer, test_images(num), Reconstructions(keep=tuple(keep), **how), measuring)
    seconds, (first, *_) = time.perf_counter() - began, found
    shared = {
        "num_images": num,
        **decoding,
        "sampler": first.sampler_text,
        "calls_per_image": first.decoding["evaluations"],
        "seconds": seconds,
    }
    return [{"keep": k, **shared, **{record.name: record.value for record in found if record.keep == k}} for k in keep]


def tokenizer_row(kind: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    """A tokenizer: reconstruction and the share of the loss reduction, for each prefix."""

    def row(runs: Path) -> dict[str, Any]:
        from tok1d.analyze.prefix import explained_curve

        tokenizer = train_tokenizer(kind, seed, runs)
        decoding = {"steps": 25 if kind.endswith("ddpm") else 10}
        curve = explained_curve(tokenizer, test_images(500), num_images=500, num_times=10, seed=0)
        return {
            **trained(runs / f"{kind}-{seed}"),
            "prefixes": reconstruct(tokenizer, **decoding),
            "curve": [{"keep": point.keep, "loss": point.loss, "share": point.share} for point in curve],
        }

    return row


def sampler_row(kind: str, solver: str, steps: int, num: int | None = None) -> Callable[[Path], dict[str, Any]]:
    """All tokens of seed 0, decoded with one sampler."""
    how = {"keep": (8,), "num": num, "solver": solver, "steps": steps}
    return lambda runs: reconstruct(train_tokenizer(kind, 0, runs), **how)[0]


def guidance_row(kind: str, scale: float) -> Callable[[Path], dict[str, Any]]:
    """Decoder guidance with one scale, by number of tokens kept."""

    def row(runs: Path) -> dict[str, Any]:
        tokenizer = train_tokenizer(kind, 0, runs)
        return {"prefixes": reconstruct(tokenizer, steps=10, guidance=scale)}

    return row


def generate(num_tokens: int, runs: Path, *, num: int | None = None, guidance: float = 2.0, **head: Any) -> dict:
    """Label agreement and Fréchet distance of class-balanced samples, decoded in 10 steps, by `evaluate_generation`."""
    from tok1d.evaluate.generation import evaluate_generation
    from tok1d.evaluate.measures import Measuring, by_classifier
    from tok1d.evaluate.request import Samples

    generator, tokenizer = train_generator(num_tokens, runs), train_tokenizer("nested", 0, runs)
    num, began = num or NUM_IMAGES, time.perf_counter()
    how = Samples(num_samples=num, guidance=guidance, decoder_steps=10, **head)
    measuring = Measuring(by_classifier(classifier(), "generation"))
    found = evaluate_generation(generator, tokenizer, test_images(10_000), how, measuring)
    return {
        "num_tokens": num_tokens,
        "num_images": num,
        "guidance": guidance,
        "drawing": found[0].sampler_text,
        **head,
        **values(found),
        "seconds": time.perf_counter() - began,
    }


def generator_row(num_tokens: int) -> Callable[[Path], dict[str, Any]]:
    """A generator on the first tokens only, without and with guidance."""

    def row(runs: Path) -> dict[str, Any]:
        samples = [generate(num_tokens, runs, guidance=g) for g in (1.0, 2.0)]
        return {**trained(runs / f"generator-{num_tokens}"), "samples": samples}

    return row


def head_row(sampler: str, steps: int, num: int | None = None) -> Callable[[Path], dict[str, Any]]:
    """The generator of all tokens with one sampler of its head."""
    return lambda runs: generate(8, runs, num=num, sampler=sampler, steps=steps)


def rows() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Every row by name, in the order they are run."""
    table: dict[str, Callable[[Path], dict[str, Any]]] = {}
    table["nested-0"], table["plain-0"] = tokenizer_row("nested", 0), tokenizer_row("plain", 0)
    table["nested-ddpm-0"] = tokenizer_row("nested-ddpm", 0)
    for n in (1, 2, 4, 8):
        table[f"generator-{n}"] = generator_row(n)
    for solver, steps in [("euler", 2), ("euler", 5), ("euler", 10), ("euler", 25), ("euler", 50), ("heun", 5)]:
        table[f"sampler-flow-{solver}-{steps}"] = sampler_row("nested", solver, steps)
    for solver in ("ancestral", "ddim"):
        for steps in (5, 10, 25, 50):
            table[f"sampler-ddpm-{solver}-{steps}"] = sampler_row("nested-ddpm", solver, steps)
    # A Fréchet distance depends on the number of images: rows with 500 are compared only with rows with 500.
    table["sampler-ddpm-ancestral-250-on-500"] = sampler_row("nested-ddpm", "ancestral", 250, 500)
    for steps in (5, 10, 25):
        table[f"sampler-flow-euler-{steps}-on-500"] = sampler_row("nested", "euler", steps, 500)
    for scale in (0.5, 1.0, 1.5, 2.0, 3.0):
        table[f"guidance-{scale:g}"] = guidance_row("nested", scale)
    for seed in SEEDS[1:]:
        for kind in ("nested", "plain"):
            table[f"{kind}-{seed}"] = tokenizer_row(kind, seed)
    for sampler, steps in [("sde", 10), ("sde", 25), ("sde", 50), ("euler", 5), ("euler", 10), ("euler", 25)]:
        table[f"head-{sampler}-{steps}"] = head_row(sampler, steps)
    table["head-sde-250-on-500"] = head_row("sde", 250, 500)
    for sampler, steps in [("sde", 25), ("euler", 10), ("euler", 25)]:
        table[f"head-{sampler}-{steps}-on-500"] = head_row(sampler, steps, 500)
    table["nested-nonull-0"] = tokenizer_row("nested-nonull", 0)
    for scale in (1.5, 3.0):
        table[f"guidance-nonull-{scale:g}"] = guidance_row("nested-nonull", scale)
    return table


def main(args: list[str] | None = None) -> None:
    import semanticist_pages

    run_table("semanticist_table.py", __doc__, rows(), RESULTS, semanticist_pages.write, args)


if __name__ == "__main__":
    main()
