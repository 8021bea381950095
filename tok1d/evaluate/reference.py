"""Reference statistics: features of a set of images under a network, in a file with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from tok1d.data.broken import replaced_indices, replaced_text
from tok1d.data.fashion_mnist import cache_home
from tok1d.data.folder import FolderImages
from tok1d.data.images import ArrayImages, ImageSet, prefetch
from tok1d.data.splits import spread
from tok1d.data.subset import underlying
from tok1d.errors import DataError, InputError, reason_of
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.metrics import Moments
from tok1d.evaluate.npz import open_npz
from tok1d.evaluate.request import Kind
from tok1d.evaluate.sample_batch import SampleImages
from tok1d.files import replacing

OF = ("train", "validation", "test", "own")  # which images a reference is of; "own": a set that is no split
FITTING: dict[str, tuple[str, ...]] = {"reconstruction": ("validation", "test", "own"), "generation": ("train", "own")}
INCEPTION_DIM = 2048
ADM_NOTE = "statistics in ADM's form, which do not say of what; the released ones are of the training images"
_WORDS = {"validation": {"val", "validation", "valid"}, "test": {"test"}}  # in the name of a folder or shard
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Reference:
    """Statistics of a set of images under a network; `pooled`, `spatial` and `features` as in a `Tally`.

    Args:
        network: name@hash; without hash if the file does not state it (ADM's).
        fingerprint: of images, crop, size, count and network.
        num_images: None if the file does not state it.
        of: one of `OF`.
        images: what the images are, in words. crop: how they were cropped and to which size.
        features: (N, dim) float32 of all images, or of some spread evenly over the set.
        rounding: of the images before the network, see `FrozenNetwork.rounding`; "" if the file does not state it.
        replaced: how many of the images could not be read, so that others stood in for them.
    """

    pooled: Moments
    network: str
    fingerprint: str
    num_images: int | None
    of: str
    images: str = ""
    crop: str = ""
    spatial: Moments | None = None
    features: Tensor | None = None
    note: str = ""
    rounding: str = ""
    replaced: int = 0

    def __str__(self) -> str:
        """What a record states: split, count and fingerprint."""
        count = "" if self.num_images is None else f"{self.num_images} "
        return f"{count}{self.of} images {self.fingerprint}"

    def check_network(self, network: FrozenNetwork) -> None:
        """Refuse another network than that of these statistics.

        Raises:
            DataError: it is another one.
        """
        name = network.label if "@" in self.network else network.name
        if name != self.network or network.dim != self.pooled.dim:
            raise DataError(
                f"reference {self.fingerprint}: its statistics are of {self.network}, this evaluation measures with "
                f"{network.label}; make one with tok1d reference, or choose the network with --network"
            )
        if self.rounding not in ("", network.rounding):
            raise DataError(
                f"reference {self.fingerprint}: of images {self.rounding}, this evaluation's are {network.rounding}; "
                f"pass {'--eight-bit' if not network.eight_bit else '--float'}"
            )

    def save(self, path: str | Path) -> Path:
        """Write an .npz file, whole or not at all: ADM's mu, sigma, mu_s, sigma_s, and the fields of this class.

        Raises:
            DataError: it cannot be written.
        """
        arrays = {"mu": self.pooled.mean.numpy(), "sigma": self.pooled.covariance.numpy()}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean.numpy(), "sigma_s": self.spatial.covariance.numpy()}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        stated = ("network", "fingerprint", "num_images", "of", "images", "crop", "note", "rounding", "replaced")
        arrays["tok1d"] = np.array(json.dumps({key: getattr(self, key) for key in stated}))
        path = Path(path)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise DataError(f"{path}: cannot write the reference: {reason_of(error)}") from error
        return path


class _Stated(TypedDict, total=False):
    """What the file of a reference states besides its arrays; see `Reference`."""

    network: str
    fingerprint: str
    num_images: int | None
    of: str
    images: str
    crop: str
    note: str
    rounding: str
    replaced: int


def load_reference(path: str | Path, *, of: str | None = None) -> Reference:
    """A reference from a file of `Reference.save`, or of ADM's statistics (mu, sigma and, for sFID, mu_s, sigma_s).

    ADM's files state nothing: statistics of the published Inception and of training images are assumed.

    Args:
        of: which images it is of; default: as the file states.

    Raises:
        DataError: no such file, or one that holds no statistics.
    """
    path = Path(path)
    if of is not None and of not in OF:
        raise InputError(f"reference of: expected one of {', '.join(OF)}, got {of!r}")
    with open_npz(path, "reference statistics in an .npz file") as content:
        found = {key: content[key] for key in content.files if key != "arr_0"}
        holds_images = "arr_0" in content.files
    if "mu" not in found or "sigma" not in found:
        what = "a sample batch; tok1d reference measures one" if holds_images else f"the keys {', '.join(found) or '-'}"
        raise DataError(f"{path}: expected reference statistics with mu and sigma, got {what}")
    try:
        stated: _Stated = json.loads(found["tok1d"].item()) if "tok1d" in found else _adm(found, path)
        reference = Reference(
            _moments(found, "mu", "sigma", stated),
            spatial=_moments(found, "mu_s", "sigma_s", stated) if "mu_s" in found else None,
            features=torch.from_numpy(found["features"]) if "features" in found else None,
            **stated,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged reference statistics ({reason_of(error, 120)})") from None
    return reference if of is None else replace(reference, of=of)


def _moments(found: dict[str, np.ndarray], mean: str, covariance: str, stated: _Stated) -> Moments:
    mu, sigma = (torch.from_numpy(np.asarray(found[key], dtype=np.float64)) for key in (mean, covariance))
    return Moments.from_statistics(mu, sigma, stated["num_images"] or 2)


def _adm(found: dict[str, np.ndarray], path: Path) -> _Stated:
    if found["mu"].shape != (INCEPTION_DIM,):
        raise DataError(
            f"{path}: expected ADM's statistics of Inception's {INCEPTION_DIM} numbers, got {found['mu'].shape}"
        )
    digest = hashlib.sha256()
    for key in ("mu", "sigma", "mu_s", "sigma_s"):
        if key in found:
            digest.update(np.ascontiguousarray(found[key]).data)
    fingerprint = digest.hexdigest()[:16]
    return {
        "network": INCEPTION,
        "fingerprint": fingerprint,
        "num_images": None,
        "of": "train",
        "images": path.name,
        "note": ADM_NOTE,
    }


def check_reference(kind: Kind, reference: Reference, *, allow_other: bool = False) -> None:
    """Refuse the other measurement's reference: rFID is against validation or test images, gFID against the training's.

    Args:
        allow_other: let it pass.

    Raises:
        InputError: naming the option that allows it.
    """
    if allow_other or reference.of in FITTING[kind]:
        return
    wanted = "validation or test images (rFID)" if kind == "reconstruction" else "the training images (gFID)"
    raise InputError(
        f"reference {reference.fingerprint} is of {reference.of} images, {kind} is compared with {wanted}; give such a "
        "reference, or pass --allow-other-reference"
    )


def reference_fingerprint(images: ImageSet, network: FrozenNetwork, num: int | None = None) -> str:
    """16 hex digits of images, crop and size, how many of them, and the network with the border it does not see."""
    parts = [images.fingerprint(), str(num or len(images)), network.label, f"pad{network.pad}"]
    return hashlib.sha256(" ".join([*parts, "8bit" if network.eight_bit else "float"]).encode()).hexdigest()[:16]


def measure_reference(
    images: ImageSet,
    network: FrozenNetwork,
    *,
    of: str,
    num: int | None = None,
    num_features: int | None = 0,
    about: str = "",
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Reference:
    """Statistics of a set of images, in a single pass. If some could not be read, note and fingerprint state it.

    Args:
        num: so many images, spread evenly; None: all.
        num_features: keep the features of so many of those, spread evenly; None: of all.
        about: what the images are, in words.
        progress: called with the number of images of every batch that is done.

    Raises:
        DataError: fewer than two images, or such that the network does not take.
    """
    if of not in OF:
        raise InputError(f"reference of: expected one of {', '.join(OF)}, got {of!r}")
    chosen = spread(range(len(images)), num)  # a set sorted by class gives all classes
    kept = set(spread(range(len(chosen)), num_features))
    pooled, features = Moments(network.dim), []
    spatial = Moments(network.spatial_dim) if network.spatial_dim else None
    done = 0
    for x in _batches(images, chosen, batch_size):
        found = network(x)
        pooled.update(found.pooled)
        if spatial is not None and found.spatial is not None:
            spatial.update(found.spatial)
        if rows := [i for i in range(len(x)) if done + i in kept]:
            features.append(found.pooled[rows].to("cpu", torch.float32))
        done += len(x)
        if progress is not None:
            progress(len(x))
    if done < 2:
        raise DataError(f"reference: expected at least two images, got {done}")
    transform = getattr(images, "transform", None)
    fingerprint, replaced = reference_fingerprint(images, network, num), replaced_indices(images, chosen)
    if replaced:  # other statistics than those of the same images when all can be read
        fingerprint = hashlib.sha256(f"{fingerprint} without {replaced}".encode()).hexdigest()[:16]
    return Reference(
        pooled,
        network.label,
        fingerprint,
        done,
        of,
        images=about,
        crop=transform.fingerprint() if transform is not None else "as stored",
        spatial=spatial,
        features=torch.cat(features) if features else None,
        note=replaced_text(len(replaced)),
        rounding=network.rounding,
        replaced=len(replaced),
    )


def _batches(images: ImageSet, indices: list[int], batch_size: int) -> Iterator[Tensor]:
    parts = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    for part, (x, _) in prefetch((part, images.batch(part)) for part in parts):
        assert len(x) == len(part), "references are of one view an image"
        yield x


def split_of(images: ImageSet) -> str:
    """Which images a set opened for its test split holds, one of `OF`: what its folder or shards are named after.

    Of a folder that is no split, part of which was set aside for testing, it is "own".
    """
    images = underlying(images)
    if isinstance(images, ArrayImages):
        return "test"  # of Fashion-MNIST
    if isinstance(images, FolderImages):
        names = [{images.root.name}]
    else:
        names = [set(re.split(r"[^a-z]+", "/".join(Path(shard).parts[-2:]))) for shard in getattr(images, "shards", [])]
    found = [of for of, words in _WORDS.items() if names and all(words & each for each in names)]
    return found[0] if found else "own"


def describe_images(images: ImageSet, of: str) -> str:
    """What a record states of images that are compared with themselves: count, split and fingerprint."""
    some, _, fingerprint = images.fingerprint().rpartition(" of ")  # "first 100"
    return f"{some or len(images)} {of} images {fingerprint}"


def cache_path(fingerprint: str) -> Path:
    """Where the statistics of that fingerprint are cached."""
    return cache_home() / "references" / f"{fingerprint}.npz"


def cached_reference(
    images: ImageSet,
    network: FrozenNetwork,
    *,
    of: str,
    num: int | None = None,
    num_features: int | None = 0,
    about: str = "",
    batch_size: int = 100,
    progress: Progress | None = None,
) -> tuple[Reference, bool]:
    """As `measure_reference`, read from the cache where the fingerprint fits and enough features are kept there.

    A cache file that is damaged is measured anew; a cache that cannot be written is left out. Statistics of a set of
    which some images could not be read are not cached: the next time they may be.

    Returns:
        The reference, and whether it was read.
    """
    path = cache_path(reference_fingerprint(images, network, num))
    with suppress(DataError):
        found = load_reference(path, of=of)
        total = found.num_images or 0
        wanted = total if num_features is None else min(num_features, total)
        features = _features(found.features, wanted, total)
        if found.fingerprint == path.stem and (not wanted or features is not None):
            return replace(found, images=about or found.images, features=features), True
    measured = measure_reference(
        images,
        network,
        of=of,
        num=num,
        num_features=num_features,
        about=about,
        batch_size=batch_size,
        progress=progress,
    )
    if not measured.replaced:
        with suppress(DataError):
            measured.save(path)
    return measured, False


def _features(features: Tensor | None, wanted: int, total: int) -> Tensor | None:
    """`wanted` of the kept features, those that a pass would have kept; None where they are not there."""
    if features is None or len(features) not in (wanted, total) or not wanted:
        return None
    return features if len(features) == wanted else features[spread(range(total), wanted)]


def with_features(
    reference: Reference,
    path: str | Path,
    network: FrozenNetwork,
    *,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Reference:
    """The reference with the features of the images in arr_0 of its file, as ADM's released ones hold 10,000.

    Raises:
        DataError: no images there, or statistics of another network.
    """
    reference.check_network(network)
    images, features = SampleImages(path), []
    for x in _batches(images, list(range(len(images))), batch_size):
        features.append(network(x).pooled.to("cpu", torch.float32))
        if progress is not None:
            progress(len(x))
    return replace(reference, features=torch.cat(features))
