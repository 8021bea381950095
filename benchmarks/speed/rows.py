"""The rows of the Semanticist benchmark; each builder makes one or more rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from speed import slow
from speed.common import OPTIM, Rows, Stepper, without_grad
from speed.measure import Arm, Row
from speed.models import Bench
from speed.slow import HeadSwitches
from torch import Tensor

from tok1d.diffusion.guidance import Guidance
from tok1d.generators.causal import CachedDecoder
from tok1d.nn.attention import masked, prefix_causal, prefix_causal_mask
from tok1d.train.ema import EMA
from tok1d.train.optim import Optimizers

SLOW_HEAD = HeadSwitches(one_call=False, prepared=False, shared_time=False, tabled=False)

ROWS = Rows()
builder = ROWS.builder


class Trainer:
    """Complete training steps on one batch as in `tok1d.train.loop`, on a copy of the model.

    Args:
        dense: the encoder uses one dense mask.
        fused: fused AdamW and foreach averaging; else PyTorch's default AdamW and a loop.
    """

    def __init__(self, bench: Bench, *, dense: bool, fused: bool) -> None:
        self.bench, self.dense = bench, dense
        self.model = copy.deepcopy(bench.ddpm).train()
        self.stepper = Stepper(self.model, fused=fused)
        self.images = bench.images(bench.sizes.train_batch)
        self.latents = bench.latents(bench.sizes.train_batch)

    def loss(self) -> Tensor:
        """The denoising loss with nested dropping, on given latents."""
        torch.manual_seed(0)
        tokens = self.model.encode(self.images)
        mask = self.model.training_mask(len(tokens), 1.0, tokens.device)
        return torch.stack(list(self.model.denoising(self.latents, tokens, mask).values())).sum()

    def step(self) -> Tensor:
        """One optimizer step; returns the loss before it."""
        with self.bench.autocast():
            if self.dense:
                with slow.dense_mask(), slow.separate_modulation():
                    loss = self.loss()
            else:
                loss = self.loss()
        loss.backward()
        self.stepper.step()
        return loss.detach()


@builder
def train(bench: Bench) -> Iterator[Row]:
    ours = Arm("ours", Trainer(bench, dense=False, fused=True).step)
    other = Arm("dense mask, loops", Trainer(bench, dense=True, fused=False).step)
    yield Row("train", "image", bench.sizes.train_batch, ours, other, same=True, release=bench.release("train"))


@builder
def train_mask(bench: Bench) -> Iterator[Row]:
    ours = Arm("patches without a mask", Trainer(bench, dense=False, fused=True).step)
    dense = Arm("one dense mask", Trainer(bench, dense=True, fused=True).step)
    yield Row("train-mask", "image", bench.sizes.train_batch, ours, dense, same=True)


@builder
def encode(bench: Bench) -> Iterator[Row]:
    images, model = bench.images(bench.sizes.encode_batch), bench.ddpm

    def dense() -> Tensor:
        with slow.dense_mask():
            return model.encode(images)

    ours = Arm("patches without a mask", without_grad(bench, lambda: model.encode(images)))
    other = Arm("one dense mask", without_grad(bench, dense))
    yield Row("encode", "image", len(images), ours, other, same=True, release=bench.release("encode"))


@builder
def attention(bench: Bench) -> Iterator[Row]:
    """Attention only, at the size of the benchmark and of the paper (256 patches and 256 tokens, 12 heads)."""
    sizes = bench.sizes
    patches = (sizes.image_size // sizes.encoder.patch) ** 2
    shapes = [(patches, sizes.num_tokens, sizes.encoder.heads), (256, 256, 12)]
    for num_patches, num_tokens, heads in shapes[: 1 if sizes.name == "toy" else 2]:
        prefix = 1 + num_patches
        qkv = bench.noise(3, 2, heads, prefix + num_tokens, sizes.encoder.dim // sizes.encoder.heads).unbind()
        split = prefix_causal(prefix)
        dense = masked(prefix_causal_mask(prefix, num_tokens, bench.device))
        ours = Arm("patches without a mask", without_grad(bench, partial(split, *qkv)))
        other = Arm("one dense mask", without_grad(bench, partial(dense, *qkv)))
        yield Row(f"attention-{num_patches}+{num_tokens}", "image", 2, ours, other, same=True)


@builder
def call(bench: Bench) -> Iterator[Row]:
    """One decoder call on one latent, with the DDPM decoder."""
    x, tokens, model = bench.latents(1), bench.tokens(1), bench.ddpm
    t = torch.full((1,), 500, device=bench.device)

    def plain() -> Tensor:
        with slow.separate_modulation():
            return model.decoder(x, t, tokens)

    ours = Arm("ours", without_grad(bench, lambda: model.decoder(x, t, tokens)))
    other = Arm("all rows, modulation apart", without_grad(bench, plain))
    yield Row("call", "call", 1, ours, other, same=True, release=bench.release("call"))


@builder
def call_time(bench: Bench) -> Iterator[Row]:
    batch = bench.sizes.batch
    x, tokens, t = bench.latents(batch), bench.tokens(batch), torch.full((1,), 0.5, device=bench.device)
    field = bench.flow.field(tokens, None, Guidance())
    ours = Arm("time once for all rows", without_grad(bench, lambda: field(x, t)))
    other = Arm("time for every row", without_grad(bench, lambda: field(x, t.expand(batch))))
    yield Row("call-time", "image", batch, ours, other, same=True)


@builder
def call_guided(bench: Bench) -> Iterator[Row]:
    x, tokens, t = bench.latents(1), bench.tokens(1), torch.full((1,), 0.5, device=bench.device)
    together = bench.flow.field(tokens, None, Guidance(bench.scale))
    apart = slow.two_pass_velocity(bench.flow, tokens, bench.scale)
    ours = Arm("both streams in a batch", without_grad(bench, lambda: together(x, t)))
    other = Arm("two passes", without_grad(bench, lambda: apart(x, t)))
    yield Row("call-guided", "image", 1, ours, other, same=True)


@builder
def image(bench: Bench) -> Iterator[Row]:
    """One decoded latent, unguided; the ancestral sampler is timed over a few steps and extrapolated to all."""
    start, tokens, sizes = bench.latents(1), bench.tokens(1), bench.sizes

    def flow() -> Tensor:
        return bench.flow.decode_latents(tokens, start, bench.randn(), steps=bench.decoder_steps)

    def ancestral() -> Tensor:
        return bench.ddpm.decode_latents(tokens, start, bench.randn(), steps=sizes.measured_steps)

    all_steps = sizes.published_steps
    ours = Arm(f"flow, {bench.decoder_steps} Euler steps", without_grad(bench, flow))
    other = Arm(f"{all_steps} ancestral steps", without_grad(bench, ancestral), all_steps / sizes.measured_steps)
    yield Row(f"image-{bench.decoder_steps}", "image", 1, ours, other, release=bench.release("image"))


@builder
def interval(bench: Bench) -> Iterator[Row]:
    """One guided decoded latent."""
    start, tokens, (low, high) = bench.latents(1), bench.tokens(1), bench.interval
    steps = min(bench.decoder_steps, bench.sizes.measured_steps)

    def decode(guidance: Guidance) -> Tensor:
        return bench.flow.decode_latents(tokens, start, bench.randn(), steps=steps, guidance=guidance)

    some, always = Guidance(bench.scale, interval=bench.interval), Guidance(bench.scale)
    ours = Arm(f"guided in {low:g}..{high:g}", without_grad(bench, lambda: decode(some)), bench.decoder_steps / steps)
    other = Arm("guided always", without_grad(bench, lambda: decode(always)), bench.decoder_steps / steps)
    yield Row(f"interval-{low:g}-{high:g}", "image", 1, ours, other)


def head_row(
    bench: Bench, name: str, rows: int, fast: str, other: str, off: HeadSwitches, on: HeadSwitches | None = None
) -> Row:
    """One guided token for each of `rows` images from the head: `on` (default: as in the library) against `off`.

    The table of times is computed once for all tokens of a sample, so its computation is not timed.
    """
    head, steps = bench.generator.head, bench.head_steps[0]
    cond, uncond = bench.noise(2, rows, bench.sizes.ar_dim).unbind()
    start, table = bench.noise(rows, bench.sizes.token_dim), head.table(steps, "sde")
    how: dict[str, Any] = {"scale": bench.scale, "steps": steps}

    def ours() -> Tensor:
        return head.sample(cond, start, bench.randn(), uncond=uncond, sampler="sde", table=table, **how)

    def switched(switches: HeadSwitches) -> Tensor:
        known = table if switches.tabled else None
        return slow.sample_head(head, cond, uncond, start, bench.randn(), on=switches, table=known, **how)

    first = ours if on is None else partial(switched, on)
    arms = (Arm(fast, without_grad(bench, first)), Arm(other, without_grad(bench, partial(switched, off))))
    return Row(f"{name}-x{rows}", "token", rows, *arms, same=True)


@builder
def head_calls(bench: Bench) -> Iterator[Row]:
    yield head_row(bench, "head-calls", 1, "one call a step", "drift, score apart", HeadSwitches(one_call=False))


@builder
def head_condition(bench: Bench) -> Iterator[Row]:
    for rows in (1, bench.sizes.batch):
        off = HeadSwitches(prepared=False)
        yield head_row(bench, "head-cond", rows, "condition once a token", "condition every call", off)


@builder
def head_time(bench: Bench) -> Iterator[Row]:
    for rows in (1, bench.sizes.batch):
        on, off = (HeadSwitches(tabled=False, shared_time=shared) for shared in (True, False))
        yield head_row(bench, "head-time", rows, "time once for all rows", "time for every row", off, on)


@builder
def head_table(bench: Bench) -> Iterator[Row]:
    for rows in (1, bench.sizes.batch):
        off = HeadSwitches(tabled=False)
        yield head_row(bench, "head-table", rows, "times once a sample", "times once a step of a token", off)


@builder
def head_streams(bench: Bench) -> Iterator[Row]:
    off = HeadSwitches(one_batch=False)
    yield head_row(bench, "head-streams", 1, "both streams in a batch", "two passes", off)


@builder
def head_steps(bench: Bench) -> Iterator[Row]:
    """One guided token: the numbers of steps of `bench.head_steps` against the 250 of the release."""
    head, published = bench.generator.head, bench.sizes.published_steps
    cond, uncond = bench.noise(2, 1, bench.sizes.ar_dim).unbind()
    start = bench.noise(1, bench.sizes.token_dim)

    def arm(steps: int) -> Arm:
        def run() -> Tensor:
            return head.sample(cond, start, bench.randn(), uncond=uncond, scale=bench.scale, steps=steps, sampler="sde")

        return Arm(f"{steps} SDE steps", without_grad(bench, run))

    for steps in bench.head_steps:
        yield Row(f"head-steps-{steps}", "token", 1, arm(steps), arm(published))


@builder
def ar_cache(bench: Bench) -> Iterator[Row]:
    """Only the transformer: the conditions of all tokens of guided sequences, token by token."""
    model, batch, length = bench.generator, min(bench.sizes.batch, 4), bench.sizes.ar_tokens
    tokens, labels = bench.noise(batch, length, bench.sizes.token_dim), bench.labels(batch)

    def states(cache: bool) -> Tensor:
        conditions = slow.trunk(model, labels, length, cache=cache, one_batch=True)
        return torch.stack([torch.cat(conditions(tokens, i)) for i in range(length)])

    ours = Arm("cached keys and values", without_grad(bench, lambda: states(True)))
    other = Arm("all recomputed", without_grad(bench, lambda: states(False)))
    yield Row("ar-cache", "token", batch * length, ours, other, same=True)


@builder
def ar_streams(bench: Bench) -> Iterator[Row]:
    """Only the transformer, guided, one image."""
    model, length, labels = bench.generator, bench.sizes.ar_tokens, bench.labels(1)
    tokens = bench.noise(1, length, bench.sizes.token_dim)

    def together() -> Tensor:
        decoder = CachedDecoder(model, labels, length, with_null=True)
        pairs = [decoder.step(tokens[:, i - 1] if i else None) for i in range(length)]
        return torch.stack([torch.cat([cond, null]) for cond, null in pairs if null is not None])

    def apart() -> Tensor:
        conditions = slow.trunk(model, labels, length, cache=True, one_batch=False)
        return torch.stack([torch.cat(conditions(tokens, i)) for i in range(length)])

    ours = Arm("both streams in a batch", without_grad(bench, together))
    yield Row("ar-streams", "token", length, ours, Arm("two passes", without_grad(bench, apart)), same=True)


@builder
def ar_batch(bench: Bench) -> Iterator[Row]:
    """A few guided tokens of several images: the head sampled for the whole batch, or for one image after the other."""
    model, sizes, batch = bench.generator, bench.sizes, bench.sizes.batch

    def sample(labels: Tensor) -> Tensor:
        options = {"guidance": bench.scale, "steps": bench.head_steps[0], "sampler": "sde"}
        return model.sample(labels, length=sizes.few_tokens, noise=bench.randn(), **options)

    def one_by_one() -> Tensor:
        return torch.cat([sample(label[None]) for label in bench.labels(batch)])

    ours = Arm(f"{batch} images at once", without_grad(bench, lambda: sample(bench.labels(batch))))
    other = Arm("one after another", without_grad(bench, one_by_one))
    yield Row(f"ar-batch-{batch}", "token", batch * sizes.few_tokens, ours, other)


@builder
def ar(bench: Bench) -> Iterator[Row]:
    """One guided sequence with the given numbers of head steps, against 250 steps of our own slow path.

    The slow path takes two network calls per step and computes nothing once per sample. It is written here, and is not
    the released code, which is faster. A token takes about the same time as any other, so few are timed.
    """
    model, sizes = bench.generator, bench.sizes
    labels, few, many = bench.labels(1), sizes.few_tokens, sizes.published_steps

    def slowly() -> Tensor:
        return slow.sample_tokens(model, labels, bench.randn(), length=few, scale=bench.scale, steps=many, on=SLOW_HEAD)

    def ours(steps: int, sampler: str) -> Tensor:
        return model.sample(labels, guidance=bench.scale, steps=steps, sampler=sampler, noise=bench.randn())

    other = Arm(f"our slow path, {many} steps", without_grad(bench, slowly), sizes.ar_tokens / few)
    grids = [(steps, "sde") for steps in bench.head_steps] + [(steps, "euler") for steps in bench.euler_steps]
    for steps, sampler in grids:
        arm = Arm(f"ours, {steps} {sampler} head steps", without_grad(bench, partial(ours, steps, sampler)))
        name = f"ar-{steps}" if sampler == "sde" else f"ar-euler-{steps}"
        yield Row(name, "image", 1, arm, other, release=bench.release("ar"), max_repeats=5)


def optimizer_row(bench: Bench, name: str, other: str, foreach: bool) -> Row:
    """One AdamW step on the weights of the tokenizer, with constant gradients."""

    def arm(what: str, fused: bool) -> Arm:
        model = copy.deepcopy(bench.ddpm)
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = next(iter(Optimizers(model, OPTIM))) if fused else slow.unfused_adamw(model, OPTIM, foreach)
        watched = model.encoder.queries
        before = watched.detach().clone()

        def run() -> Tensor:
            optimizer.step()
            return watched.detach() - before

        return Arm(what, run)

    return Row(name, "step", 1, arm("fused AdamW", True), arm(other, False), same=True)


@builder
def adamw(bench: Bench) -> Iterator[Row]:
    yield optimizer_row(bench, "adamw-foreach", "foreach AdamW", True)
    yield optimizer_row(bench, "adamw-loop", "AdamW in a loop", False)


@builder
def ema(bench: Bench) -> Iterator[Row]:
    """One update of the averages of the weights of the tokenizer."""

    def arm(what: str, loop: bool) -> Arm:
        model = copy.deepcopy(bench.ddpm)
        average = EMA(model, 0.9, ramp=False)
        watched = average.averages["encoder.queries"]
        before = watched.clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)  # else the averages would not change

        def run() -> Tensor:
            slow.loop_ema(average) if loop else average.update(0)
            return watched - before

        return Arm(what, run)

    yield Row("ema", "step", 1, arm("foreach averaging", False), arm("averaging in a loop", True), same=True)
