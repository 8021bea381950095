"""Runs the experiments of docs/maetok.md on Fashion-MNIST: one JSON record per row; only missing rows are run.

    python benchmarks/maetok_table.py                # the missing rows, in order; resumes when interrupted
    python benchmarks/maetok_table.py --only ae-0 sit-ae-0
    python benchmarks/maetok_table.py --list
    python benchmarks/maetok_table.py --write        # write the tables into docs/maetok.md

Row KIND-SEED trains a tokenizer, row sit-KIND-SEED a SiT on its tokens. Trainings are written to RUNS/NAME and resume
from their checkpoints; records are written to benchmarks/results/maetok_table/.

Estimated time (not measured): counted FLOPs (tok1d train RECIPE --dry-run) at 40 GFLOP/s, about the speed of one core
of the machine of docs/semanticist.md in trainings of this size (9.9 TFLOP in 239 s):

    tokenizers, 1,500 steps      8 of 9.0 GFLOP per step (5.6 min each), with HOG 10.5 (6.6), with a teacher about 11.2
                                 (7.0), with both 12.7 (7.9), the teacher itself less than 9.0 (5.6)       72 min
    fine-tuning, 750 steps       of 6.0 GFLOP                                                               2 min
    11 SiT of 1,100 steps        of 10.3 GFLOP (4.7 min each), and 35 s to encode 60,000 images            58 min
    12 times 2 x 2,000 samples   in 50 calls of 27 MFLOP per sequence: 68 s each                             27 min
    reconstructions and probes   15 s each                                                                  4 min

163 minutes in total, which is two thirds of 4 CPU-hours; no training is longer than 8 minutes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from table import FD, PAD, SIZE, RowFunction, classifier, images, train, trained, values
from table import main as run_table

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULTS = Path(__file__).parent / "results" / "maetok_table"
STEPS, FINETUNE_STEPS, SIT_STEPS = 1500, 750, 1100
NUM_IMAGES, NUM_PROBED, SAMPLER_STEPS, LOSS_DRAWS = 2000, 10_000, 50, 10
SEEDS = (0, 1, 2)
HEADLINE = ("ae", "ae-mask")
TEACHER_DIM = 96  # width of the teacher's encoder

# Recipe and overrides of each tokenizer; targets other than pixels are added by `auxiliary`.
AE, VAE, MASKED = "fashion_mnist/maetok_ae", "fashion_mnist/maetok_vae", ["model.mask.low=0.4", "model.mask.high=0.6"]
TOKENIZERS: dict[str, tuple[str, list[str]]] = {
    "ae": (AE, []),
    "ae-mask": (AE, MASKED),
    "vae": (VAE, []),
    "vae-mask": (VAE, MASKED),
    "patches": (AE, [*MASKED, "model.num_tokens=0"]),
    "hog": (AE, MASKED),
    "teacher": (AE, MASKED),
    "hog-teacher": (AE, MASKED),
}
FINETUNED = {"ae-mask-finetune": "ae-mask"}


def auxiliary(kind: str, runs: Path) -> list[str]:
    """The override with the auxiliary decoders of a kind, trained with the teacher `patches-0`."""
    teacher = f"{{target: 'teacher:{runs / 'patches-0' / 'model'}', dim: {TEACHER_DIM}, image_size: {SIZE}, depth: 1}}"
    targets = {"hog": "{target: hog, cell: 7, depth: 1}", "teacher": teacher}
    named = [targets[name] for name in kind.split("-") if name in targets]
    return [f"model.auxiliary=[{', '.join(named)}]"] if named else []


def train_tokenizer(kind: str, seed: int, runs: Path) -> Any:
    """The tokenizer of a row; trains it, and first the models it depends on, if its run is not finished."""
    shared = [f"seed={seed}", "train.save_every=250"]
    if kind in FINETUNED:
        train_tokenizer(FINETUNED[kind], seed, runs)
        start = f"start={runs / f'{FINETUNED[kind]}-{seed}' / 'model'}"
        overrides = [*shared, start, f"train.steps={FINETUNE_STEPS}"]
        return train("fashion_mnist/maetok_finetune", overrides, runs / f"{kind}-{seed}")
    if "teacher" in kind:
        train_tokenizer("patches", 0, runs)
    recipe, overrides = TOKENIZERS[kind]
    overrides = [*overrides, *auxiliary(kind, runs), *shared, f"train.steps={STEPS}"]
    return train(recipe, overrides, runs / f"{kind}-{seed}")


def train_sit(kind: str, seed: int, runs: Path) -> Any:
    """The SiT on the tokens of a tokenizer; fine-tuning does not change the tokens, so their SiT is the same."""
    kind = FINETUNED.get(kind, kind)
    train_tokenizer(kind, seed, runs)
    overrides = [
        f"tokenizer={runs / f'{kind}-{seed}' / 'model'}",
        f"seed={seed}",
        f"train.steps={SIT_STEPS}",
        "train.save_every=250",
        "evaluate.num_samples=100",
    ]
    return train("fashion_mnist/sit", overrides, runs / f"sit-{kind}-{seed}")


def tokens_of(tokenizer: Any, split: str, num: int) -> tuple[Any, Any]:
    """Tokens (num, K, D) of the first images of a split, and their labels."""
    import torch

    source, parts = images(split, num), []
    with torch.no_grad():
        for start in range(0, len(source), 500):
            x, y = source.batch(range(start, min(start + 500, len(source))))
            parts.append((tokenizer.encode(x), y))
    tokens, labels = zip(*parts)
    return torch.cat(tokens), torch.cat(labels)


def probe(tokenizer: Any) -> float:
    """Test accuracy of a logistic regression on the concatenated tokens of an image."""
    from tok1d.evaluate.probe import linear_probe

    train_x, train_y = tokens_of(tokenizer, "train", NUM_PROBED)
    test_x, test_y = tokens_of(tokenizer, "test", NUM_IMAGES)
    return linear_probe(train_x.flatten(1), train_y, test_x.flatten(1), test_y, seed=0)


def tokenizer_row(kind: str, seed: int) -> RowFunction:
    """A tokenizer: reconstruction of the first test images, and a probe on its tokens."""

    def row(runs: Path) -> dict[str, Any]:
        from tok1d.evaluate.measures import Measuring, by_classifier
        from tok1d.evaluate.reconstruction import evaluate_reconstruction
        from tok1d.evaluate.request import Reconstructions

        tokenizer = train_tokenizer(kind, seed, runs)
        measuring = Measuring(by_classifier(classifier(), "reconstruction", PAD))
        found = evaluate_reconstruction(tokenizer, images("test", NUM_IMAGES), Reconstructions(), measuring)
        return {
            **trained(runs / f"{kind}-{seed}"),
            "num_images": NUM_IMAGES,
            **values(found),
            "probe_images": NUM_PROBED,
            "probe_accuracy": probe(tokenizer),
        }

    return row


def held_out_loss(generator: Any, tokenizer: Any) -> float:
    """Squared error of the velocity on normalised test tokens with their classes; the same noise for every generator.

    Mean over `LOSS_DRAWS` times of the training distribution per image.
    """
    import torch

    tokens, labels = tokens_of(tokenizer, "test", NUM_IMAGES)
    tokens, source, total = generator.normalise(tokens), torch.Generator().manual_seed(0), 0.0
    with torch.no_grad():
        for _ in range(LOSS_DRAWS):
            t = generator.times.sample(len(tokens), generator=source)
            noise = torch.randn(tokens.shape, generator=source)
            for part in torch.arange(len(tokens)).split(500):
                terms = generator.loss_rows(tokens[part], labels[part], t=t[part], noise=noise[part])
                total += float(terms["loss"].sum())
    return total / (LOSS_DRAWS * len(tokens))


def sit_row(kind: str, seed: int) -> RowFunction:
    """A SiT: its loss, and unguided samples with and without classes, against the 10,000 test images."""

    def row(runs: Path) -> dict[str, Any]:
        from tok1d.evaluate.generation import evaluate_generation
        from tok1d.evaluate.measures import Measuring, by_classifier
        from tok1d.evaluate.request import Samples

        generator, tokenizer = train_sit(kind, seed, runs), train_tokenizer(kind, seed, runs)
        reference, measuring = images("test", 10_000), Measuring(by_classifier(classifier(), "generation", PAD))
        how = Samples(steps=SAMPLER_STEPS, num_samples=NUM_IMAGES, seed=seed, guidance=1.0)
        conditional, unconditional = (
            evaluate_generation(generator, tokenizer, reference, replace(how, unconditional=without), measuring)
            for without in (False, True)
        )
        return {
            **({} if kind in FINETUNED else trained(runs / f"sit-{kind}-{seed}")),
            "test_loss": held_out_loss(generator, tokenizer),
            "num_images": NUM_IMAGES,
            "sampler": conditional[0].sampler_text,
            "label_agreement": values(conditional)["label_agreement"],
            f"conditional_{FD}": values(conditional)[FD],
            f"unconditional_{FD}": values(unconditional)[FD],
        }

    return row


def rows() -> dict[str, RowFunction]:
    """All rows by name, in the order they are run: the pair with three seeds first, then the rows compared with it."""
    kinds = [(kind, 0) for kind in (*HEADLINE, *FINETUNED, "patches", "hog", "teacher", "hog-teacher", "vae")]
    kinds += [("vae-mask", 0), *((kind, seed) for seed in SEEDS[1:] for kind in HEADLINE)]
    table: dict[str, RowFunction] = {}
    for kind, seed in kinds:
        table[f"{kind}-{seed}"] = tokenizer_row(kind, seed)
        if kind != "patches":  # the teacher
            table[f"sit-{kind}-{seed}"] = sit_row(kind, seed)
    return table


def main(args: list[str] | None = None) -> None:
    import maetok_pages

    run_table("maetok_table.py", __doc__, rows(), RESULTS, maetok_pages.write, args)


if __name__ == "__main__":
    main()
