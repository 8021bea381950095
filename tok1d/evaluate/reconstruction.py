"""How well a tokenizer gives images back, from all of its tokens and from prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tok1d.data.images import ImageSet
from tok1d.data.transforms import without_border
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.labels import Told
from tok1d.evaluate.metrics import Moments, accuracy, frechet_distance, mse_per_image, psnr_per_image
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.report import Record
from tok1d.evaluate.sampling import PAINTING, counted, decoder_options, guidance_text, noise_of
from tok1d.tokenizers.base import TokenSpec


def prefix_lengths(length: int) -> list[int]:
    """1, 2, 4, ... and the whole length."""
    lengths = [2**i for i in range(length.bit_length()) if 2**i < length]
    return [*lengths, length]


def token_counts(spec: TokenSpec, keep: Sequence[int] = ()) -> list[int]:
    """Numbers of leading tokens to decode: `keep`, or 1, 2, 4, ..., all; of tokens without an order only all.

    Where the decoder is told the class, 0 tokens come first: the image that the class alone gives.

    Raises:
        InputError: fewer tokens of a tokenizer that needs all.
    """
    if spec.ordered:
        return list(keep) or [*([0] if spec.needs_label else []), *prefix_lengths(spec.length)]
    if few := [k for k in keep if k != spec.length]:
        raise InputError(f"keep: these tokens have no order, all {spec.length} are needed; received {few[0]}")
    return [spec.length]


class Judged:
    """Features of a judge network, gathered over batches: Fréchet moments and label agreement.

    Args:
        pad: width of the images' border, in pixels, that the judge does not see.
    """

    def __init__(self, judge: CNN, pad: int = 0) -> None:
        self.judge, self.pad = judge, pad
        self.moments: Moments | None = None
        self.right = 0.0
        self.count = 0

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Images (B, C, H, W) in [0, 1]; labels (B,) the classes they should show."""
        images = without_border(images, self.pad)
        features = self.judge.features(images)
        if self.moments is None:
            self.moments = Moments(features.shape[1])
        self.moments.update(features)
        if labels is not None:
            self.right += float(accuracy(self.judge(images), labels)) * images.shape[0]
        self.count += images.shape[0]

    @property
    def agreement(self) -> float:
        """Share of images that the judge puts into their class."""
        return self.right / max(self.count, 1)

    def distance(self, other: Judged) -> float:
        """Fréchet distance between two sets of images in the judge's features."""
        assert self.moments is not None and other.moments is not None
        return frechet_distance(self.moments, other.moments)


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Any,
    images: ImageSet,
    *,
    keep: Sequence[int] = (),
    steps: int | None = None,
    guidance: float | Guidance = 1.0,
    solver: str | None = None,
    batch_size: int = 100,
    seed: int = 0,
    judge: CNN | None = None,
    pad: int = 0,
    label: str | None = None,
    protocol: dict[str, Any] | None = None,
) -> list[Record]:
    """PSNR and squared error per prefix length, and, with a judge, its accuracy and the Fréchet distance.

    PSNR is the mean over images of the per-image value in dB, output clamped to [0, 1]. All prefix lengths of
    an image start from the same noise, which belongs to (seed, number of the image). The sampler is recorded with the
    number of network evaluations an image took.

    Args:
        keep: prefix lengths (default: those of `token_counts`).
        solver: of a diffusion decoder (default: its own).
        pad: width of the images' border, in pixels, that nothing of this measures.
        label: of a tokenizer that wants one, "true" or "null"; default: see `label_used`.
        protocol: what every record states besides (network, reference, weights, weights_hash, ...).

    Raises:
        InputError: prefixes, steps, guidance, a solver or labels that the tokenizer does not have.
    """
    device = next(tokenizer.parameters()).device
    lengths = token_counts(tokenizer.spec, keep)
    options = decoder_options(tokenizer, steps=steps, guidance=guidance, solver=solver)
    told = Told(tokenizer, images, label)
    psnr, mse = dict.fromkeys(lengths, 0.0), dict.fromkeys(lengths, 0.0)
    judged = {k: Judged(judge, pad) for k in lengths} if judge is not None else {}
    real = Judged(judge, pad) if judge is not None else None
    for start in range(0, len(images), batch_size):
        x, labels, cond = told.batch(range(start, min(start + batch_size, len(images))))
        x, labels = x.to(device), labels.to(device)
        tokens = tokenizer.encode(x, cond)
        if real is not None:
            real.update(x, labels)
        for k in lengths:
            sources = [noise_of(seed, PAINTING, i) for i in range(start, start + len(x))]
            with counted(tokenizer.decoder) as evaluations:
                y = tokenizer.decode(tokens, cond, keep=k, generator=sources, **options)
            seen = (without_border(y, pad), without_border(x, pad))
            psnr[k] += float(psnr_per_image(*seen).sum())
            mse[k] += float(mse_per_image(*seen).sum())
            if judge is not None:
                judged[k].update(y, labels)
    count = len(images)
    common = dict(
        num_images=count,
        reference=images.fingerprint(),
        sampler=f"{options['solver']}, {evaluations.per(len(tokens))} evaluations an image" if options else None,
        steps=(steps or getattr(tokenizer.config, "steps", None)) if options else None,
        guidance=guidance_text(guidance) if options else None,
        label=told.used,
        seed=seed,
        **(protocol or {}),
    )
    records = []
    for k in lengths:
        records.append(Record(name="psnr", value=psnr[k] / count, unit="dB", keep=k, **common))
        records.append(Record(name="mse", value=mse[k] / count, keep=k, **common))
        if real is not None:
            records.append(Record(name="judge_accuracy", value=judged[k].agreement, keep=k, **_judge(common, judge)))
            distance = judged[k].distance(real)
            records.append(Record(name=_fd(judge), value=distance, keep=k, **_judge(common, judge)))
    if real is not None:
        record = Record(
            name="judge_accuracy", value=real.agreement, note="the test images themselves", **_judge(common, judge)
        )
        records.append(record)
    return records


def judge_name(judge: Any) -> str:
    """name@hash of a judge network, for records."""
    from tok1d.zoo.store import fingerprint

    return f"{getattr(judge, 'label', 'fashion-mnist-cnn')}@{fingerprint(judge)}"


def _fd(judge: Any) -> str:
    return f"fd@{judge_name(judge).split('@')[0]}"


def _judge(common: dict[str, Any], judge: Any) -> dict[str, Any]:
    return {**common, "network": judge_name(judge)}
