"""The rows of the MAETok and SiT benchmark; each builder makes one or more rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from speed.common import Rows, without_grad
from speed.maetok_models import TEACHER, GeneratorTrainer, MAETokBench, TokenizerTrainer, two_pass_velocity
from speed.measure import Arm, Row
from torch import Tensor

from tok1d.diffusion.guidance import Guidance

MAETOK_ROWS = Rows()
builder = MAETOK_ROWS.builder


def training_row(bench: MAETokBench, name: str, other: Arm, plain: str = "pixel decoder alone") -> Row:
    """A step of stage one without auxiliary decoders or a discriminator, called `plain`, against another."""
    return Row(name, "image", bench.sizes.train_batch, Arm(plain, TokenizerTrainer(bench).step), other)


@builder
def train(bench: MAETokBench) -> Iterator[Row]:
    loops = Arm("AdamW, averages in loops", TokenizerTrainer(bench, fused=False).step)
    yield training_row(bench, "train", loops, "ours")


AUXILIARY = {
    "pixels": ("and masked pixels", ("pixels",)),
    "hog": ("and HOG", ("hog",)),
    "teacher": ("and a frozen ViT's states", (TEACHER,)),
    "all": ("and all three", ("pixels", "hog", TEACHER)),
}


@builder
def train_aux(bench: MAETokBench) -> Iterator[Row]:
    """A step with an auxiliary decoder for each target, and for all of them."""
    for name, (what, targets) in AUXILIARY.items():
        yield training_row(bench, f"train-{name}", Arm(what, TokenizerTrainer(bench, targets=targets).step))


@builder
def train_gan(bench: MAETokBench) -> Iterator[Row]:
    """A step of tokenizer and discriminator, with adaptive weight and LeCAM."""
    for config in (bench.sizes.patch_discriminator, bench.sizes.dino_discriminator):
        trainer = TokenizerTrainer(bench, discriminator=config)
        yield training_row(bench, f"train-gan-{config.name}", Arm(f"and {config.name} discriminator", trainer.step))


@builder
def encode(bench: MAETokBench) -> Iterator[Row]:
    images, model = bench.images(bench.sizes.encode_batch), bench.tokenizer
    ours = Arm(f"{bench.sizes.image_size} px", without_grad(bench, lambda: model.encode(images)))
    yield Row("encode", "image", len(images), ours)


@builder
def decode(bench: MAETokBench) -> Iterator[Row]:
    model = bench.tokenizer
    tokens = bench.noise(bench.sizes.encode_batch, bench.sizes.num_tokens, bench.sizes.token_dim)
    ours = Arm(f"{bench.sizes.image_size} px", without_grad(bench, lambda: model.decode(tokens)))
    yield Row("decode", "image", len(tokens), ours)


@builder
def resolution_tokenizer(bench: MAETokBench) -> Iterator[Row]:
    """Encoding and decoding one image at two resolutions: more patches, the same number of tokens."""
    model, (low, high) = bench.tokenizer, bench.sizes.resolutions
    tokens = bench.noise(1, bench.sizes.num_tokens, bench.sizes.token_dim)

    def encoding(size: int) -> Arm:
        images = bench.images(1, size)
        return Arm(f"{size} px", without_grad(bench, lambda: model.encode(images)))

    def decoding(size: int) -> Arm:
        return Arm(f"{size} px", without_grad(bench, lambda: model.decode(tokens, size=size)))

    yield Row(f"encode-{high}", "image", 1, encoding(low), encoding(high))
    yield Row(f"decode-{high}", "image", 1, decoding(low), decoding(high))


def encoded(bench: MAETokBench, size: int, *, patches: bool = False) -> Tensor:
    """Tokens of images of this size, as used to train a generator."""
    model = bench.build(patches=True).requires_grad_(False) if patches else bench.tokenizer
    return without_grad(bench, lambda: model.encode(bench.images(bench.sizes.batch, size)))().float()


def guided_call(bench: MAETokBench, tokens: Tensor, what: str) -> Arm:
    """One guided call of a generator of sequences such as these tokens."""
    model, x = bench.generator(tokens), bench.noise(*tokens.shape)
    field = model.field(bench.labels(len(x)), Guidance(bench.scale))
    return Arm(what, without_grad(bench, lambda: field(x, x.new_full((1,), 0.5))))


def generator_rows(bench: MAETokBench, name: str, arms: dict[str, Tensor]) -> Iterator[Row]:
    """A guided call and a training step of the generators for two kinds of tokens."""
    calls = [guided_call(bench, tokens, what) for what, tokens in arms.items()]
    steps = [Arm(what, GeneratorTrainer(bench, tokens).step) for what, tokens in arms.items()]
    yield Row(f"{name}-call", "call", 1, *calls)
    yield Row(f"{name}-train", "image", bench.sizes.batch, *steps)


@builder
def resolution_generator(bench: MAETokBench) -> Iterator[Row]:
    """The generators for tokens encoded from images of two resolutions."""
    low, high = bench.sizes.resolutions
    yield from generator_rows(bench, f"sit-{high}", {f"{size} px": encoded(bench, size) for size in (low, high)})


@builder
def positions(bench: MAETokBench) -> Iterator[Row]:
    """At the higher resolution: the tokens against a 2D latent with one position per patch."""
    high = bench.sizes.resolutions[1]
    kinds = (encoded(bench, high), encoded(bench, high, patches=True))
    names = [f"{tokens.shape[1]} {what}" for tokens, what in zip(kinds, ("tokens", "positions"))]
    yield from generator_rows(bench, f"sit-{kinds[1].shape[1]}", dict(zip(names, kinds)))


def sampling(bench: MAETokBench, what: str, guidance: float | Guidance, *, steps: int, sampler: str = "euler") -> Arm:
    """Sampling a batch in `steps` steps, extrapolated from a few of them."""
    model, labels, few = bench.sit, bench.labels(bench.sizes.batch), min(steps, bench.sizes.measured_steps)

    def run() -> Tensor:
        return model.sample(labels, guidance=guidance, steps=few, sampler=sampler, noise=bench.randn())

    return Arm(what, without_grad(bench, run), steps / few)


@builder
def sample(bench: MAETokBench) -> Iterator[Row]:
    """Guided tokens of an image in `bench.steps` Euler steps, against the published number of SDE steps."""
    published = bench.sizes.published_steps
    ours = sampling(bench, f"{bench.steps} Euler steps", bench.scale, steps=bench.steps)
    other = sampling(bench, f"{published} SDE steps", bench.scale, steps=published, sampler="sde")
    yield Row(f"sample-{bench.steps}", "image", bench.sizes.batch, ours, other)


@builder
def guidance(bench: MAETokBench) -> Iterator[Row]:
    """The cost of guidance, at every step and within an interval."""
    (low, high), row = bench.interval, partial(Row, unit="image", units=bench.sizes.batch)
    always = sampling(bench, "guided always", bench.scale, steps=bench.steps)
    some = Guidance(bench.scale, interval=bench.interval)
    yield row("guided", fast=sampling(bench, "not guided", 1.0, steps=bench.steps), slow=always)
    inside = sampling(bench, f"guided in {low:g}..{high:g}", some, steps=bench.steps)
    yield row(f"interval-{low:g}-{high:g}", fast=inside, slow=always)


@builder
def streams(bench: MAETokBench) -> Iterator[Row]:
    """A guided call for one image and for a batch."""
    for batch in dict.fromkeys((1, bench.sizes.batch)):
        labels = bench.labels(batch)
        x, t = bench.noise(batch, bench.sizes.num_tokens, bench.sizes.token_dim), torch.full((1,), 0.5)
        t = t.to(bench.device)
        together = bench.sit.field(labels, Guidance(bench.scale))
        apart = two_pass_velocity(bench.sit, labels, bench.scale)
        ours = Arm(f"one batch of {2 * batch}", without_grad(bench, partial(together, x, t)))
        other = Arm(f"two passes of {batch}", without_grad(bench, partial(apart, x, t)))
        yield Row(f"streams-x{batch}", "call", 1, ours, other, same=True)
