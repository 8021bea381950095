"""Runs the experiments of docs/smap.md on Fashion-MNIST: one JSON record per row; only missing rows are run.

    python benchmarks/smap_table.py                # the missing rows, in order; resumes when interrupted
    python benchmarks/smap_table.py --only kl16-0 card-shared-0
    python benchmarks/smap_table.py --list
    python benchmarks/smap_table.py --write        # write the tables into docs/smap.md

Rows are named KIND-SEED: tokenizers trained with 16 or 4 tokens (the number in the name), and generators on their
tokens. Trainings are written to RUNS/NAME and resume from their checkpoints, token caches to RUNS/tokens, records to
benchmarks/results/smap_table/.

Estimated time (not measured): counted FLOPs (tok1d train RECIPE --dry-run) at 40 GFLOP/s, about the speed of one core
of the machine of docs/semanticist.md in trainings of this size (9.9 TFLOP in 239 s). The count includes all tokens;
steps with dropped tails cost less.

    12 tokenizers of 16 tokens   1,500 steps of 9.0 GFLOP: 5.6 min each                                     68 min
    6 of 4 tokens                1,500 steps of 5.6 GFLOP: 3.5 min each                                     21 min
    7 CARD                       800 steps of 25.9 GFLOP: 8.6 min each                                      60 min
    LlamaGen, MaskGIT            800 steps of 13.5 and of 10.9 GFLOP: 4.5 and 3.6 min                        8 min
    5 caches                     60,000 images of 23 MFLOP: 35 s each                                        3 min
    7 times 2 x 2,000 samples    of CARD, 16 tokens of 25 calls: 0.7 and 1.4 TFLOP, 52 s each                6 min
    reconstructions, swaps       24 passes over 2,000 images of 47 MFLOP at most: 56 s each                 17 min

183 minutes in total, which is less than two thirds of 5 CPU-hours; no training is longer than 9 minutes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from table import PAD, RowFunction, classifier, images, train, trained, values
from table import main as run_table

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

RESULTS = Path(__file__).parent / "results" / "smap_table"
STEPS, GENERATOR_STEPS = 1500, 800
NUM_IMAGES, LOSS_DRAWS = 2000, 10
GUIDANCE = 2.0  # the only guided setting, for all generators; not tuned
SEEDS = (0, 1, 2)
KEEP = (0, 1, 2, 4, 8, 16)  # prefixes of a sweep, up to the number of tokens

KL, VQ = "fashion_mnist/smap", "fashion_mnist/smap_vq"
# Recipe and overrides of each tokenizer. TiTok has the size of SMAP's codebook.
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "kl": (KL, []),
    "vq": (VQ, []),
    "titok-kl": ("fashion_mnist/titok_kl", []),
    "titok-vq": ("fashion_mnist/titok_vq", ["model.token_dim=16", "model.bottleneck.size=256"]),
}
WITHOUT_TRUNCATION = ["model.tail_drop.enabled=false"]
TOKENIZERS: dict[str, tuple[str, list[str]]] = {
    **{
        f"{name}{n}": (recipe, [*own, f"model.num_tokens={n}"])
        for n in (16, 4)
        for name, (recipe, own) in FAMILIES.items()
    },
    **{
        f"{name}{n}-full": (recipe, [*WITHOUT_TRUNCATION, f"model.num_tokens={n}"])
        for n in (16, 4)
        for name, recipe in (("kl", KL), ("vq", VQ))
    },
    "kl16-dropout": (KL, ["model.label_dropout=0.1"]),  # its null row is trained
    "kl16-unconditioned": ("fashion_mnist/smap_no_condition", []),
}
# Recipe, tokenizer and overrides of each generator.
CARD, OWN_TABLE = "fashion_mnist/card", ["model.class_source=independent"]
GENERATORS: dict[str, tuple[str, str, list[str]]] = {
    "card-unconditioned": (CARD, "kl16-unconditioned", OWN_TABLE),
    "card-independent": (CARD, "kl16", OWN_TABLE),
    "card-shared": (CARD, "kl16", []),
    "llamagen": ("fashion_mnist/llamagen", "vq16", []),
    "maskgit": ("fashion_mnist/maskgit", "vq16", []),
}
HEADLINES = ("kl16", "kl16-full", "card-shared", "card-independent")


def train_tokenizer(kind: str, seed: int, runs: Path) -> Any:
    """The tokenizer of a row, which is trained first if its run is not finished."""
    recipe, overrides = TOKENIZERS[kind]
    shared = [f"seed={seed}", f"train.steps={STEPS}", "train.save_every=250"]
    return train(recipe, [*overrides, *shared], runs / f"{kind}-{seed}")


def train_generator(kind: str, seed: int, runs: Path) -> tuple[Any, Any]:
    """The generator of a row and its tokenizer of the same seed; generators of one tokenizer share a cache."""
    recipe, tokens, overrides = GENERATORS[kind]
    tokenizer, name = train_tokenizer(tokens, seed, runs), f"{tokens}-{seed}"
    shared = [
        f"tokenizer={runs / name / 'model'}",
        f"cache={runs / 'tokens' / name}",
        f"seed={seed}",
        f"train.steps={GENERATOR_STEPS}",
        "train.save_every=200",
        "evaluate.num_samples=100",
    ]
    return train(recipe, [*overrides, *shared], runs / f"{kind}-{seed}"), tokenizer


def sweep(tokenizer: Any, label: str | None) -> dict[str, dict[str, float]]:
    """Metrics of reconstructions by number of tokens kept (a string); all tokens only, if they are not ordered."""
    from tok1d.evaluate.measures import Measuring, by_classifier
    from tok1d.evaluate.reconstruction import evaluate_reconstruction
    from tok1d.evaluate.request import Reconstructions

    spec = tokenizer.spec
    keep = [k for k in KEEP if k <= spec.length and (k or spec.needs_label)] if spec.ordered else []
    how = Reconstructions(keep=tuple(keep), label=label)
    measuring = Measuring(by_classifier(classifier(), "reconstruction", PAD))
    found = evaluate_reconstruction(tokenizer, images("test", NUM_IMAGES), how, measuring)
    counts = sorted({record.keep for record in found if record.keep is not None})
    return {str(k): values([record for record in found if record.keep == k]) for k in counts}


def swaps(tokenizer: Any) -> dict[str, dict[str, float | None]]:
    """The classifier's class of images decoded with a swapped label, or from a label alone, by variant."""
    from tok1d.analyze.swap import swap

    found = swap(tokenizer, images("test", NUM_IMAGES), classifier(), num_images=NUM_IMAGES, batch_size=250, pad=PAD)
    return {
        each.variant: {"num": each.num, "condition": each.condition, "tokens": each.tokens, "error": each.error}
        for each in found.variants
    }


def tokenizer_row(kind: str, seed: int) -> RowFunction:
    """A tokenizer: prefixes of the tokens of the first test images, with and without labels, and swapped labels.

    "labelled": encoder and decoder receive the true label. "unlabelled": the null class, or a tokenizer without labels.
    """

    def row(runs: Path) -> dict[str, Any]:
        tokenizer = train_tokenizer(kind, seed, runs)
        conditioned = tokenizer.spec.needs_label
        named = {"labelled": sweep(tokenizer, "true"), "swap": swaps(tokenizer)} if conditioned else {}
        return {
            **trained(runs / f"{kind}-{seed}"),
            "num_images": NUM_IMAGES,
            "num_tokens": tokenizer.spec.length,
            "null_row_trained": bool(getattr(tokenizer.config, "label_dropout", 0)),
            "unlabelled": sweep(tokenizer, "null" if conditioned else None),
            **named,
        }

    return row


def tokens_of(tokenizer: Any) -> tuple[Any, Any]:
    """Tokens or ids of the first test images, encoded with their labels if the tokenizer needs them; and the labels."""
    import torch

    source, parts = images("test", NUM_IMAGES), []
    with torch.no_grad():
        for start in range(0, len(source), 500):
            x, y = source.batch(range(start, min(start + 500, len(source))))
            parts.append((tokenizer.encode(x, y if tokenizer.spec.needs_label else None), y))
    tokens, labels = zip(*parts)
    return torch.cat(tokens), torch.cat(labels)


def held_out_loss(generator: Any, tokenizer: Any) -> float:
    """The training loss of a generator on test tokens with their classes; the same random numbers for all of a kind.

    CARD: squared error of the velocity, tokens normalised. LlamaGen: nats per id. MaskGIT: its weighted cross-entropy.
    """
    import torch

    tokens, labels = tokens_of(tokenizer)
    source, total = torch.Generator().manual_seed(0), 0.0
    repeats = 1 if generator.config.name == "llamagen" else LOSS_DRAWS
    with torch.no_grad():
        for _ in range(repeats):
            for part in torch.arange(len(tokens)).split(500):
                total += len(part) * loss_of(generator, tokens[part], labels[part], source)
    return total / (repeats * len(tokens))


def loss_of(generator: Any, tokens: Any, labels: Any, source: Any) -> float:
    """The mean loss of a batch of raw tokens; `source` generates times and noise, or the mask."""
    import torch

    name = generator.config.name
    if name == "llamagen":
        return float(generator.loss_rows(tokens, labels).mean())
    if name == "maskgit":
        time, order = torch.rand(len(tokens), generator=source), torch.rand(tokens.shape, generator=source)
        visible, hidden = generator.mask(tokens, time=time, order=order)
        return float(generator.loss(generator.net(visible, labels), tokens, hidden))
    tokens = generator.normalise(tokens)
    states, target = generator.hidden(tokens, labels).flatten(0, 1), tokens.flatten(0, 1)
    t, noise = torch.rand(len(target), generator=source), torch.randn(target.shape, generator=source)
    return float(generator.head.loss_rows(target, states, t=t, noise=noise).mean())


def generator_row(kind: str, seed: int) -> RowFunction:
    """A generator: its loss, and samples of all classes, unguided and guided, against the 10,000 test images."""

    def row(runs: Path) -> dict[str, Any]:
        from tok1d.evaluate.generation import evaluate_generation
        from tok1d.evaluate.measures import Measuring, by_classifier
        from tok1d.evaluate.request import Samples

        generator, tokenizer = train_generator(kind, seed, runs)
        reference, found = images("test", 10_000), {}
        for name, scale in (("unguided", 1.0), ("guided", GUIDANCE)):
            how = Samples(num_samples=NUM_IMAGES, guidance=scale, seed=seed)
            measures = by_classifier(classifier(), "generation", PAD)
            records = evaluate_generation(generator, tokenizer, reference, how, Measuring(measures))
            found[name] = {
                **values(records),
                "sampler": records[0].sampler_text,
                "guidance": records[0].guidance_text if scale != 1 else scale,
                "label": records[0].label,
            }
        return {
            **trained(runs / f"{kind}-{seed}"),
            "tokenizer": f"{GENERATORS[kind][1]}-{seed}",
            "test_loss": held_out_loss(generator, tokenizer),
            "num_images": NUM_IMAGES,
            **found,
        }

    return row


def rows() -> dict[str, RowFunction]:
    """All rows by name, in the order they are run: the pair with three seeds first, its other seeds last."""
    kinds = [(kind, 0) for kind in dict.fromkeys(("kl16", "kl16-full", *TOKENIZERS, *GENERATORS))]
    kinds += [(kind, seed) for seed in SEEDS[1:] for kind in HEADLINES]
    make = {**dict.fromkeys(TOKENIZERS, tokenizer_row), **dict.fromkeys(GENERATORS, generator_row)}
    return {f"{kind}-{seed}": make[kind](kind, seed) for kind, seed in kinds}


def main(args: list[str] | None = None) -> None:
    import smap_pages

    run_table("smap_table.py", __doc__, rows(), RESULTS, smap_pages.write, args)


if __name__ == "__main__":
    main()
