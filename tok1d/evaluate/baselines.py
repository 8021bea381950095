"""Baselines beside measured numbers: reconstructions that need no tokenizer, and the distance of real images.

The baselines of reconstructions are the mean training image, the mean colour of each image, a thumbnail of each image,
and principal components of the training images, as many as a tokenizer has numbers and half as many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tok1d.config.classes import stated
from tok1d.data.base import ImageSet
from tok1d.data.broken import replaced_images
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.images import prefetch
from tok1d.data.labels import image_classes
from tok1d.data.scan_cache import read_scan, write_scan
from tok1d.data.subset import subset
from tok1d.data.transforms import without_border
from tok1d.errors import Tok1dError
from tok1d.evaluate.features import FrozenNetwork
from tok1d.evaluate.metric_names import Number, record_name
from tok1d.evaluate.metrics import frechet_distance
from tok1d.evaluate.reference import cached_reference, describe_images, split_of
from tok1d.losses.pixel import mse_per_image, psnr_per_image
from tok1d.progress import Bar
from tok1d.tokenizers.base import TokenSpec
from tok1d.zoo.record import BASELINE, Record, ReferenceSet

SIDE = 8  # pixels of a thumbnail
THUMBNAIL = f"thumbnail-{SIDE}"
MAX_IMAGES = 10_000  # training images of the principal components, and test images of the distance of real images
MAX_NUMBERS = 2**25  # pixels and channels of all these images together: 128 MiB
EXACT = 2048  # numbers of an image up to which principal components are computed from the whole covariance
VERSION = 1  # of the cached results
BATCH = 250
Open = Callable[[], ImageSet]


@dataclass(frozen=True)
class Baseline:
    """Mean squared error and mean PSNR in dB of a baseline, both as for reconstructions."""

    name: str
    mse: float
    psnr: float
    note: str


def numbers_of(spec: TokenSpec) -> int:
    """The numbers in all tokens of an image: tokens times channels; an id counts as one number."""
    return spec.length * (spec.dim if spec.vocab_size is None and spec.dim is not None else 1)


def components(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (F,) and all principal components (F, F), in columns by decreasing variance, of images (N, ...)."""
    x = images.flatten(1).double()
    mean = x.mean(0)
    centred = x - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return mean, vectors.flip(1)


def leading_components(images: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The mean (F,) and the first `num` principal components (F, num) of images (N, ...).

    Of more than `EXACT` numbers an image they are approximated by random projections (Halko et al., 2011), with a fixed
    seed.
    """
    if images[0].numel() <= EXACT:
        mean, vectors = components(images)
        return mean, vectors[:, :num]
    x = images.flatten(1)
    mean = x.mean(0)
    centred = x - mean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vectors = torch.svd_lowrank(centred, q=min(num + 10, *x.shape), niter=4)[2]
    return mean, vectors[:, :num]


def projected(images: Tensor, mean: Tensor, vectors: Tensor, num: int) -> Tensor:
    """Images (N, ...) from their first `num` principal components, clamped to [0, 1]."""
    x, basis = images.flatten(1).to(mean.dtype) - mean, vectors[:, :num]
    return (mean + x @ basis @ basis.T).clamp(0, 1).float().view_as(images)


def thumbnails(images: Tensor) -> Tensor:
    """Images (B, C, H, W) reduced to `SIDE` pixels a side by the mean over areas, enlarged bicubically, in [0, 1]."""
    small = interpolate(images, size=(SIDE, SIDE), mode="area")
    return interpolate(small, size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def reconstruction_records(
    images: ImageSet,
    train: Open | None,
    spec: TokenSpec,
    *,
    metrics: Iterable[str],
    pad: int = 0,
    crop: str | None = None,
    of: str = "",
    quiet: bool = True,
) -> list[Record]:
    """The records of the baselines of test images, for those of the metrics psnr and mse that are among `metrics`.

    The values are cached by the fingerprints of the images.

    Args:
        train: opens the training images; None, or an error of it: without the mean image and principal components; the
            notes of the other records say so.
        spec: of the tokenizer, whose number of numbers the principal components have.
        pad: width of the images' border, in pixels, that is cut off first.
        crop, of: for the records, as in those of the tokenizer; `of` is one of `reference.OF`, default: see `split_of`.
    """
    wanted = [name for name in ("psnr", "mse") if name in metrics]
    if not wanted:
        return []
    opened, reason = None, "" if train is not None else "the training images are not known"
    try:
        opened = train() if train is not None else None
    except Tok1dError as error:
        reason = str(error)
    found = _cached(images, opened, numbers_of(spec), pad, quiet)
    missing = f"no mean image and no principal components: {reason}" if reason else ""
    reference = describe_images(images, of or split_of(images))
    return [
        Record(
            name=f"{BASELINE}{each.name}:{name}",
            value=getattr(each, name),
            unit="dB" if name == "psnr" else "",
            num_images=len(images),
            reference=reference,
            crop=crop,
            class_names=stated(image_classes(images).names),
            note="; ".join(filter(None, (each.note, missing))),
        )
        for each in found
        for name in wanted
    ]


def _cached(images: ImageSet, train: ImageSet | None, numbers: int, pad: int, quiet: bool) -> list[Baseline]:
    """As `measured`, from the cache if it has them; not cached where images could not be read."""
    prints = [images.fingerprint(), "" if train is None else train.fingerprint()]
    key = hashlib.sha256(f"{VERSION} {prints} {numbers} pad{pad}".encode()).hexdigest()[:24]
    path = cache_home() / "baselines" / f"{key}.json"
    stored = read_scan(path)
    if isinstance(stored, list):
        return [Baseline(*each) for each in stored]
    found = measured(images, train, numbers, pad, quiet=quiet)
    if not replaced_images(images) and not (train is not None and replaced_images(train)):
        write_scan(path, [astuple(each) for each in found])
    return found


@torch.no_grad()
def measured(
    images: ImageSet, train: ImageSet | None, numbers: int, pad: int = 0, *, quiet: bool = True
) -> list[Baseline]:
    """The baselines of test images; without training images neither the mean image nor principal components.

    Args:
        numbers: of the tokens of an image; principal components are at most as many as images or as numbers of an
            image.
        pad: width of the images' border, in pixels, that is cut off first.
    """
    shape = without_border(images.batch([0])[0], pad).shape[1:]
    read = None if train is None else subset(train, max(1, min(MAX_IMAGES, MAX_NUMBERS // shape.numel())))
    made: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "flat-colour": (lambda x: x.mean((2, 3), keepdim=True).expand_as(x), "the mean colour of each image")
    }
    if min(shape[-2:]) > SIDE:
        made[THUMBNAIL] = (thumbnails, f"{SIDE}x{SIDE} pixels of each image, enlarged")
    with Bar(len(images) + (0 if read is None else len(read)), unit="image", name="baselines", quiet=quiet) as bar:
        if read is not None:
            made = _trained(torch.cat([*_batches(read, pad, bar)]), numbers) | made
        errors: dict[str, list[Tensor]] = {name: [] for name in made}
        for x in _batches(images, pad, bar):
            for name, (decode, _) in made.items():
                y = decode(x)
                errors[name].append(torch.stack([mse_per_image(y, x), psnr_per_image(y, x)], 1).double())
    means = {name: torch.cat(rows).mean(0) for name, rows in errors.items()}
    return [Baseline(name, float(means[name][0]), float(means[name][1]), note) for name, (_, note) in made.items()]


def _trained(train: Tensor, numbers: int) -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    """The baselines that training images (N, C, H, W) give, with their notes."""
    most = min(numbers, *train.flatten(1).shape)
    mean, vectors = leading_components(train, most)
    about = f"of {len(train):,} training images"

    def components_of(count: int) -> Callable[[Tensor], Tensor]:
        return lambda x: projected(x, mean, vectors, count)

    found = {"mean-image": (components_of(0), f"the mean {about}")}
    for count in dict.fromkeys(max(1, min(each, most)) for each in (numbers, numbers // 2)):
        fewer = "" if most == numbers else f"; the tokens have {numbers}"
        found[f"pca-{count}"] = (components_of(count), f"{count} principal components {about}{fewer}")
    return found


def _batches(images: ImageSet, pad: int, bar: Bar) -> Iterable[Tensor]:
    parts = (range(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH))
    for x, _ in prefetch(images.batch(part) for part in parts):
        yield without_border(x, pad)
        bar.update(len(x))


def distance_records(
    train: Open, test: Open, num: int, networks: Iterable[FrozenNetwork], *, crop: str | None = None
) -> list[Record]:
    """For each network the Fréchet distance of `num` real training images to the test images, beside that of samples.

    At most `MAX_IMAGES` test images. The statistics of both are cached. A record without a value states why there is
    none.
    """
    return [_distance(train, test, num, network, crop) for network in networks]


def _distance(train: Open, test: Open, num: int, network: FrozenNetwork, crop: str | None) -> Record:
    name = f"{BASELINE}training-images:{record_name(Number('fd', None, network.label), 'generation')}"
    try:
        some, others = subset(train(), num), subset(test(), MAX_IMAGES)
        ours, theirs = (
            cached_reference(each, network, of=of)[0] for each, of in ((some, "train"), (others, split_of(others)))
        )
        value: float | None = frechet_distance(ours.pooled, theirs.pooled)
        notes = [f"{len(some):,} training images against test images", ours.note, theirs.note]
        count, reference = len(some), describe_images(others, split_of(others))
    except Tok1dError as error:
        value, notes, count = None, [str(error)], 0
        reference: ReferenceSet | None = None  # type: ignore[no-redef]
    return Record(
        name=name,
        value=value,
        num_images=count,
        network=network.label,
        reference=reference,
        crop=crop,
        rounding=network.rounding,
        note="; ".join(filter(None, notes)),
    )


def learned_nothing(values: Mapping[str, float]) -> str:
    """One sentence if reconstructions from the most tokens have a larger error than thumbnails; "" if not.

    Args:
        values: by name, or "NAME keep N" for N tokens; "" is returned if no baseline is among them.
    """
    for metric, sign, what in (("mse", 1, "error"), ("psnr", -1, "PSNR")):
        ours = {
            int(keep): value
            for key, value in values.items()
            for name, _, keep in (key.partition(" keep "),)
            if name == metric and keep
        }
        bound = values.get(f"{BASELINE}{THUMBNAIL}:{metric}")
        if not ours or bound is None:
            continue
        most = max(ours)
        if sign * ours[most] <= sign * bound:
            return ""
        return _sentence(what, ours[most], most, bound)
    return ""


def _sentence(what: str, value: float, most: int, bound: float) -> str:
    side, unit = ("above", "") if what == "error" else ("below", " dB")
    tokens = f"all {most} tokens" if most > 1 else "its token"
    return (
        f"the tokenizer has learned nothing yet: its {what} with {tokens}, {value:.4g}{unit}, is {side} that of an "
        f"{SIDE}x{SIDE} thumbnail, {bound:.4g}{unit}"
    )


def verdict(records: Iterable[Record]) -> str:
    """`learned_nothing` of the records of an evaluation."""
    known = [record for record in records if record.value is not None]
    return learned_nothing(
        {r.name if r.keep is None else f"{r.name} keep {r.keep}": r.value for r in known if r.value is not None}
    )
