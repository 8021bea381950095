"""Reference statistics: statistics of the features of a set of images, in a file with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
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
from tok1d.data.lazy import LazyImages
from tok1d.data.splits import kinds_of_files, role_of, spread
from tok1d.data.subset import Subset, underlying
from tok1d.errors import DataError, InputError, reason_of
from tok1d.evaluate.enough import few_images
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.metrics import Moments
from tok1d.evaluate.npz import open_npz
from tok1d.evaluate.request import Kind
from tok1d.evaluate.sample_batch import SampleImages
from tok1d.files import replacing
from tok1d.zoo.record import ReferenceSet

# The kinds of images of a reference; "own": a set that is not a split.
OF = ("train", "validation", "test", "own")
# The kinds with which reconstructions and samples are compared.
FITTING: dict[str, tuple[str, ...]] = {"reconstruction": ("validation", "test", "own"), "generation": ("train", "own")}
INCEPTION_DIM = 2048
ADM_NOTE = "a file in ADM's form does not state its images; those of the released files are training images"
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Reference:
    """Statistics of the features of a set of images; `pooled`, `spatial` and `features` as in a `Tally`.

    Args:
        network: name@hash of the feature network; only the name for files of ADM, which do not state the hash.
        fingerprint: hash of images, crop, size, number of images and network.
        num_images: None if the file does not state it.
        of: the kind of the images, one of `OF`.
        images: a description of the images. crop: crop and size of the images.
        features: (N, dim) float32 of all images, or of images spread evenly over the set.
        rounding: rounding of the images, see `FrozenNetwork.rounding`; "" if the file does not state it.
        replaced: number of images that could not be read and were replaced by others.
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

    @property
    def stated(self) -> ReferenceSet:
        """These statistics as a record states them."""
        return ReferenceSet(self.fingerprint, self.of, self.num_images)

    def __str__(self) -> str:
        return str(self.stated)

    def check_network(self, network: FrozenNetwork) -> None:
        """Check that a network is the one of these statistics.

        Raises:
            DataError: it is another network, or rounds images differently.
        """
        name = network.label if "@" in self.network else network.name
        if name != self.network or network.dim != self.pooled.dim:
            raise DataError(
                f"reference {self.fingerprint}: its statistics are of {self.network}, this evaluation measures with "
                f"{network.label}; compute a reference with tok1d reference, or choose the network with --network"
            )
        if self.rounding not in ("", network.rounding):
            raise DataError(
                f"reference {self.fingerprint}: its statistics are of images {self.rounding}, this evaluation's "
                f"images are {network.rounding}; pass {'--eight-bit' if not network.eight_bit else '--float'}"
            )

    def save(self, path: str | Path) -> Path:
        """Write an .npz file atomically, with ADM's keys mu, sigma, mu_s, sigma_s and the fields of this class.

        Raises:
            DataError: the file cannot be written.
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
    """Read a file of `Reference.save`, or of ADM's statistics (mu, sigma and, for sFID, mu_s and sigma_s).

    ADM's files state neither network nor images: the published Inception and training images are assumed.

    Args:
        of: the kind of the images, one of `OF`; default: what the file states.

    Raises:
        DataError: no such file, or a file without statistics.
        InputError: another `of`.
    """
    path = Path(path)
    if of is not None and of not in OF:
        raise InputError(f"reference of: expected one of {', '.join(OF)}, got {of!r}")
    with open_npz(path, "reference statistics in an .npz file") as content:
        found = {key: content[key] for key in content.files if key != "arr_0"}
        holds_images = "arr_0" in content.files
    if "mu" not in found or "sigma" not in found:
        what = (
            "a sample batch; measure it with tok1d reference" if holds_images else f"the keys {', '.join(found) or '-'}"
        )
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
            f"{path}: expected ADM's statistics of Inception's {INCEPTION_DIM} features, got {found['mu'].shape}"
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
    """Check the kind of a reference: validation or test images for reconstructions, training images for samples.

    Args:
        allow_other: accept all kinds.

    Raises:
        InputError: a reference of another kind.
    """
    if allow_other or reference.of in FITTING[kind]:
        return
    wanted = "validation or test images (rFID)" if kind == "reconstruction" else "the training images (gFID)"
    raise InputError(
        f"reference {reference.fingerprint} is of {reference.of} images, {kind} is compared with {wanted}; choose such "
        "a reference, or pass --allow-other-reference"
    )


def reference_fingerprint(images: ImageSet, network: FrozenNetwork, num: int | None = None) -> str:
    """16 hex digits: a hash of images, crop, size, number of images, network and the border that it cuts off."""
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
    """Compute the statistics of a set of images. Note and fingerprint state whether images could not be read.

    Args:
        of: the kind of the images, one of `OF`.
        num: number of images, spread evenly over the set; None: all.
        num_features: number of these images whose features are stored, spread evenly; None: all.
        about: a description of the images.
        progress: called with the number of images of each finished batch.

    Raises:
        DataError: fewer than two images, or images that the network does not accept.
        InputError: another `of`.
    """
    if of not in OF:
        raise InputError(f"reference of: expected one of {', '.join(OF)}, got {of!r}")
    chosen = spread(range(len(images)), num)  # spread evenly: a set may be sorted by class
    kept = set(spread(range(len(chosen)), num_features))
    pooled, features = Moments(network.dim), []
    spatial = Moments(network.spatial_dim) if network.spatial_dim else None
    done = 0
    for x in _batches(images, chosen, batch_size):
        found = network(x)
        pooled.update(found.pooled)
        if spatial is not None and found.spatial is not None:
            spatial.update(found.spatial)
        rows = [i for i in range(len(x)) if done + i in kept]
        features += [found.pooled[rows].to("cpu", torch.float32)] if rows else []
        done += len(x)
        if progress is not None:
            progress(len(x))
    if done < 2:
        raise DataError(f"reference: expected at least two images, got {done}")
    transform = getattr(images, "transform", None)
    replaced = replaced_indices(images, chosen)
    return Reference(
        pooled,
        network.label,
        _without(reference_fingerprint(images, network, num), replaced),
        done,
        of,
        images=about,
        crop=transform.fingerprint() if transform is not None else "as stored",
        spatial=spatial,
        features=torch.cat(features) if features else None,
        note="; ".join(filter(None, (replaced_text(len(replaced)), few_images("fd", done, network.dim)))),
        rounding=network.rounding,
        replaced=len(replaced),
    )


def _without(fingerprint: str, replaced: Sequence[int]) -> str:
    """The fingerprint of statistics in which some images are missing, because they could not be read."""
    return hashlib.sha256(f"{fingerprint} without {replaced}".encode()).hexdigest()[:16] if replaced else fingerprint


def _batches(images: ImageSet, indices: list[int], batch_size: int) -> Iterator[Tensor]:
    parts = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    for part, (x, _) in prefetch((part, images.batch(part)) for part in parts):
        assert len(x) == len(part), "expected one view of each image"
        yield x


def split_of(images: ImageSet) -> str:
    """The kind, one of `OF`, of the images of a test split, from the name of its folder or shards.

    It is "own" if the folder is not a split, so that a part of it was set aside for testing.
    """
    images = underlying(images)
    if isinstance(images, ArrayImages):
        return "test"  # Fashion-MNIST
    if isinstance(images, FolderImages):
        role = role_of(images.root.name)
        kinds = {role.kind if role is not None and len(role.rest) < 2 else None}  # as test2017 and seg_test
    else:
        kinds = set(kinds_of_files(list(getattr(images, "shards", []))))
    return "validation" if kinds == {"val"} else "test" if kinds == {"test"} else "own"


def describe_images(images: ImageSet, of: str = "") -> ReferenceSet:
    """A set of images as the reference of a record; `of` is its kind, "" if that is not known."""
    whole = underlying(images)
    chosen = images.how if isinstance(images, Subset) else ""
    split = whole.how if isinstance(whole, LazyImages) else ""
    return ReferenceSet(whole.fingerprint() if chosen else images.fingerprint(), of, len(images), chosen, split)


def cache_path(fingerprint: str) -> Path:
    """The cache file of the statistics with this fingerprint."""
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
    """As `measure_reference`, but read from the cache if it has these statistics and enough features.

    Statistics are measured again if the cache file is damaged. They are not cached if the cache cannot be written, or
    if some images could not be read, which may be possible the next time.

    Returns:
        The reference, and whether it was in the cache.
    """
    path = cache_path(reference_fingerprint(images, network, num))
    with suppress(DataError):
        found = load_reference(path, of=of)
        total = found.num_images or 0
        wanted = total if num_features is None else min(num_features, total)
        features = _features(found.features, wanted, total)
        if found.fingerprint == path.stem and (not wanted or features is not None):
            few = found.note or few_images("fd", total, network.dim)  # older versions did not say it
            return replace(found, images=about or found.images, features=features, note=few), True
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
    """`wanted` of the stored features, the same that `measure_reference` would store; None if they are not stored."""
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
    """The reference with features of the images in arr_0 of its file; ADM's released files hold 10,000 images.

    Raises:
        DataError: a file without images, or statistics of another network.
    """
    reference.check_network(network)
    images, features = SampleImages(path), []
    for x in _batches(images, list(range(len(images))), batch_size):
        features.append(network(x).pooled.to("cpu", torch.float32))
        if progress is not None:
            progress(len(x))
    return replace(reference, features=torch.cat(features))
