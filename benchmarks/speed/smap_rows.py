"""The rows of the SMAP benchmark; each builder makes one or more rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from speed.common import Rows, without_grad
from speed.measure import Arm, Row
from speed.smap_models import (
    SMAPBench,
    TruncationTrainer,
    card_without_cache,
    llamagen_without_cache,
    transformers_greedy,
    transformers_twin,
)
from torch import Tensor

SMAP_ROWS = Rows()
builder = SMAP_ROWS.builder


@builder
def train(bench: SMAPBench) -> Iterator[Row]:
    """Steps with the same cut for all images, against a mask per image, and against no dropping."""
    one_cut = TruncationTrainer(bench, "iteration")
    units = bench.sizes.train_batch * len(one_cut.keeps)
    ours = Arm("one cut a step", one_cut.step)
    yield Row("train-cut", "image", units, ours, Arm("a mask an image", TruncationTrainer(bench, "sample").step))
    yield Row("train-dropping", "image", units, ours, Arm("nothing dropped", TruncationTrainer(bench, "all").step))


def sampling_row(bench: SMAPBench, name: str, model: Any, **how: Any) -> Row:
    """A batch of samples without and with guidance."""
    labels = bench.labels(bench.sizes.batch)

    def arm(what: str, scale: float) -> Arm:
        def run() -> Tensor:
            return model.sample(labels, guidance=scale, **how).float()

        return Arm(what, without_grad(bench, run))

    return Row(name, "sample", len(labels), arm("not guided", 1.0), arm("guided", bench.scale))


@builder
def card(bench: SMAPBench) -> Iterator[Row]:
    yield sampling_row(bench, f"card-{bench.sizes.head_steps}", bench.card)


@builder
def llamagen(bench: SMAPBench) -> Iterator[Row]:
    yield sampling_row(bench, "llamagen", bench.llamagen)


@builder
def maskgit(bench: SMAPBench) -> Iterator[Row]:
    yield sampling_row(bench, f"maskgit-{bench.sizes.maskgit_steps}", bench.maskgit)


@builder
def card_cache(bench: SMAPBench) -> Iterator[Row]:
    """Guided samples with cached keys and values, and with the whole sequence computed again for every token."""
    model, labels, scale = bench.card, bench.labels(bench.sizes.batch), bench.scale

    def cached() -> Tensor:
        return model.sample(labels, guidance=scale, noise=bench.randn())

    def recomputed() -> Tensor:
        return card_without_cache(model, labels, bench.randn(), scale)

    yield cache_row("card-cache", len(labels), without_grad(bench, cached), without_grad(bench, recomputed))


@builder
def llamagen_cache(bench: SMAPBench) -> Iterator[Row]:
    """Guided greedy samples with cached keys and values, and with the whole sequence computed again for every id."""
    model, labels, scale = bench.llamagen, bench.labels(bench.sizes.batch), bench.scale

    def cached() -> Tensor:
        return model.sample(labels, guidance=scale, greedy=True)

    def recomputed() -> Tensor:
        return llamagen_without_cache(model, labels, scale)

    yield cache_row("llamagen-cache", len(labels), without_grad(bench, cached), without_grad(bench, recomputed))


def cache_row(name: str, batch: int, cached: Any, recomputed: Any) -> Row:
    ours, other = Arm("cached keys and values", cached), Arm("all recomputed", recomputed)
    return Row(name, "sample", batch, ours, other, same=True, max_repeats=5)


@builder
def llamagen_generate(bench: SMAPBench) -> Iterator[Row]:
    """Unguided greedy samples, and those of `generate` in transformers with the same weights."""
    model, labels = bench.llamagen, bench.labels(bench.sizes.batch)
    twin = transformers_twin(model)
    ours = Arm("ours, greedy", without_grad(bench, lambda: model.sample(labels, greedy=True)))
    other = Arm("transformers generate", without_grad(bench, lambda: transformers_greedy(twin, model, labels)))
    yield Row("llamagen-generate", "sample", len(labels), ours, other, same=True)
