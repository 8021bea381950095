"""`tok1d reference`: computes and stores reference statistics of a set of images for a feature network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tok1d.cli.options import Device, Overwrite, expanded, hold_output
from tok1d.config.fields import option
from tok1d.evaluate.request import NETWORK_HELP

if TYPE_CHECKING:
    from tok1d.data.images import ImageSet
    from tok1d.evaluate.features import FrozenNetwork
    from tok1d.evaluate.reference import Reference
    from tok1d.images.framing import Framing


@dataclass(frozen=True, kw_only=True)
class ReferenceRequest:
    """The images and the feature network of a reference."""

    data: str = option(
        help="fashion_mnist, emoji, a folder of images, or an .npz file of ADM (samples or statistics)",
        argument=True,
        path="path",
    )
    out: Path | None = option(None, "also write this .npz file, with the keys of ADM; default: only the cache")
    network: str = option("", f"feature network: {NETWORK_HELP}", path="prefixed")
    split: Literal["train", "test", "all"] = option(
        "train", "split of the data: train, test (also for a folder val/), or all (all images of a folder)"
    )
    of: Literal["train", "validation", "test", "own"] | None = option(
        None,
        "kind of the images: train (for gFID), validation or test (for rFID), or own (for both); default: the split, "
        "or own for --split all",
    )
    model: str = option("", "use size, channels and border of this model's images", path="path")
    size: int | None = option(None, "side of the cropped images in pixels; default: that of the network, or 256", ge=1)
    channels: int | None = option(
        None, "channels of the images, 1 (grey) or 3; default: that of the network", ge=1, le=3
    )
    num: int | None = option(None, "number of images, spread evenly over the set; default: all", ge=2)
    features: int = option(
        0, "also store the features of this number of images, for KID, precision, recall, density and coverage", ge=0
    )
    eight_bit: bool | None = option(
        None,
        "round images to 8 bits before the feature network, as image files do; default: yes, except for the bundled "
        "classifier",
        flags="--eight-bit/--float",
    )
    batch_size: int = option(100, "number of images in a forward pass", ge=1)
    data_root: str | None = option(
        None, "folder with the files of Fashion-MNIST; default: searched for, else downloaded", path="path"
    )
    on_broken: Literal["stop", "skip"] = option(
        "stop", "at an unreadable image: stop, or skip it (skipped images are reported)"
    )


@expanded
def reference(request: ReferenceRequest, device: Device = None, overwrite: Overwrite = False) -> None:
    """Compute the statistics of the features of a set of images, for use as a reference.

    The statistics are cached, and with --out also written to an .npz file with the keys of ADM.
    """
    from tok1d import devices
    from tok1d.data.broken import report_broken
    from tok1d.evaluate.feature_networks import open_network
    from tok1d.evaluate.features import default_network
    from tok1d.evaluate.reference import cache_path
    from tok1d.images.framing import framing_of

    _check_out(request.out, overwrite)
    place, data = devices.pick_device(device), request.data
    if data.endswith(".npz") and _holds_statistics(Path(data)):
        _write(_of_statistics(request, place), request.out, overwrite, f"read from {data}")
        return
    framing, shape = _like(request.model) if request.model else (framing_of(None), (None, None))
    opened = open_network(
        request.network or default_network(data), device=place, pad=framing["pad"], eight_bit=request.eight_bit
    )
    grey = data == "fashion_mnist"
    size = request.size or shape[0] or opened.image_size or (28 if grey else 256)
    images = _open(request, size, request.channels or shape[1] or opened.channels or (1 if grey else 3), framing)
    found, cached = _computed(request, images, opened)
    report_broken(images)
    where = cache_path(found.fingerprint)
    how = f"computed, cached as {where}" if where.is_file() else "computed"
    _write(found, request.out, overwrite, f"read from the cache, {where}" if cached else how)


def _computed(request: ReferenceRequest, images: ImageSet, network: FrozenNetwork) -> tuple[Reference, bool]:
    """The statistics of the images, and whether they were read from the cache."""
    from tok1d.evaluate.reference import cached_reference
    from tok1d.progress import Bar

    own = request.split == "all" or request.data.endswith(".npz")
    total = min(request.num or len(images), len(images))
    with Bar(total, unit="image", name="reference") as bar:
        return cached_reference(
            images,
            network,
            of=request.of or ("own" if own else request.split),
            num=request.num,
            num_features=request.features,
            about=request.data if request.split == "all" else f"{request.data}, {request.split}",
            batch_size=request.batch_size,
            progress=bar.update,
        )


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Raise ConfigError for an output that is not an .npz file, or for another file that would be replaced."""
    from tok1d.errors import ConfigError, DataError
    from tok1d.evaluate.reference import load_reference

    if out is not None and (out.suffix != ".npz" or out.is_dir()):
        raise ConfigError(f"--out: expected the name of an .npz file, got {out}")
    if out is not None and out.exists() and not overwrite:
        try:
            load_reference(out)
        except DataError:
            raise ConfigError(
                f"{out}: is not a reference; pass --overwrite to replace it, or choose another --out"
            ) from None


def _like(model: str) -> tuple[Framing, tuple[int, int]]:
    """The framing of a model's images, and their size and channels."""
    from tok1d.errors import InputError
    from tok1d.images.framing import framing_of
    from tok1d.zoo import store

    loaded = store.load(model)
    if not hasattr(loaded.config, "image_size"):
        raise InputError(f"--model: expected a model of images, {model} is a {loaded.config.name}; pass its tokenizer")
    return framing_of(loaded), (loaded.config.image_size, loaded.config.channels)


def _open(request: ReferenceRequest, size: int, channels: int, framing: Framing) -> ImageSet:
    from tok1d.data.folder import FolderImages
    from tok1d.data.images import open_images
    from tok1d.data.listing import list_folder
    from tok1d.data.source import BY_NAME, ImageSource
    from tok1d.data.transforms import Transform
    from tok1d.errors import InputError
    from tok1d.evaluate.sample_batch import SampleImages

    data, split = request.data, request.split
    if data.endswith(".npz"):
        return SampleImages(data)
    if split == "all":
        if data in BY_NAME:
            raise InputError(f"--split: of {data} expected train or test, got all")
        # Statistics do not depend on classes: all files are listed as one class.
        transform, listing = Transform(size, channels, **framing), list_folder(data)
        found = FolderImages(data, transform, request.on_broken, files=listing.files, class_names=[Path(data).name])
        found.how, found.left_out, found.notes = "all images", listing.left_out, listing.notes
        return found
    source = ImageSource(
        data if data in BY_NAME else "folder",  # type: ignore[arg-type]
        root=request.data_root if data in BY_NAME else data,
        image_size=size,
        channels=channels,
        **framing,
        on_broken=request.on_broken,
    )
    return open_images(source, split)


def _holds_statistics(path: Path) -> bool:
    """Whether a path is a readable .npz file with statistics."""
    from tok1d.errors import DataError
    from tok1d.evaluate.npz import open_npz

    try:
        with open_npz(path, "an .npz file") as content:
            return "mu" in content.files
    except DataError:
        return False


def _of_statistics(request: ReferenceRequest, device: str) -> Reference:
    """The reference in a file of statistics, with the features of all images in the file if --features is given."""
    from tok1d.evaluate.feature_networks import open_network
    from tok1d.evaluate.features import INCEPTION
    from tok1d.evaluate.reference import load_reference, with_features

    path = Path(request.data)
    known = load_reference(path, of=request.of)
    if not request.features:
        return known
    opened = open_network(request.network or INCEPTION, device=device, eight_bit=request.eight_bit)
    return with_features(known, path, opened, batch_size=request.batch_size)


def _write(reference: Reference, out: Path | None, overwrite: bool, how: str) -> None:
    """Print the facts of a reference, and write it unless the file exists and has another one.

    Raises:
        ConfigError: the file has another content and `overwrite` is false.
    """
    from tok1d.errors import ConfigError
    from tok1d.evaluate.reference import load_reference

    def num_features(reference: Reference) -> int:
        return 0 if reference.features is None else len(reference.features)

    print(f"reference: {reference}{f' ({reference.images})' if reference.images else ''}")
    kept = f", features of {num_features(reference)} images" if num_features(reference) else ""
    print(f"network: {reference.network}{kept}")
    if reference.crop:
        print(f"crop: {reference.crop}")
    if reference.note:
        print(f"note: {reference.note}")
    print(how)
    if out is None:
        return
    hold_output(out)
    if out.exists() and not overwrite:
        there = load_reference(out)
        if str(there) != str(reference):
            raise ConfigError(f"{out}: holds {there}; pass --overwrite to replace it, or choose another --out")
        if num_features(there) >= num_features(reference):
            print(f"file: {out}, unchanged")
            return
    print(f"file: {reference.save(out)}")
