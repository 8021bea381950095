"""`tok1d reference`: statistics of a set of images, made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tok1d.cli.options import DataRoot, Device, EightBit, OnBroken, Overwrite, one_of

if TYPE_CHECKING:
    from tok1d.evaluate.reference import Reference

DATA_HELP = "fashion_mnist, a folder of images, or an .npz file in ADM's form (samples or statistics)"
NETWORK_HELP = (
    "inception[:FILE], timm:NAME[:SIZE][:FILE] (DINOv2, CLIP, ...), model:FOLDER (a classifier trained here); default: "
    "inception, of fashion_mnist its classifier"
)
SPLIT_HELP = "train, test (a folder's val/ too), or all: every image of a folder"
OF_HELP = "what the images are: train (gFID), validation or test (rFID), own (both); default: the split, of all own"
MODEL_HELP = "take size, channels and border from this model's images"
FEATURES_HELP = "also keep the features of so many images, for KID, precision, recall, density, coverage"


def reference(
    data: Annotated[str, typer.Argument(help=DATA_HELP, show_default=False)],
    out: Annotated[Path | None, typer.Option(help="write this .npz file, ADM's keys; default: only the cache")] = None,
    network: Annotated[str, typer.Option(help=NETWORK_HELP)] = "",
    split: Annotated[str, typer.Option(help=SPLIT_HELP)] = "train",
    of: Annotated[str, typer.Option(help=OF_HELP)] = "",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "",
    size: Annotated[
        int | None, typer.Option(min=1, help="crop to so many pixels; default: the network's, or 256")
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 (grey) or 3; default: the network's")] = None,
    num: Annotated[int | None, typer.Option(min=2, help="images, spread evenly over the set; default: all")] = None,
    features: Annotated[int, typer.Option(min=0, help=FEATURES_HELP)] = 0,
    eight_bit: EightBit = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 100,
    data_root: DataRoot = None,
    on_broken: OnBroken = "stop",
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Statistics of a set of images under a feature network: built once, fingerprinted, cached, in ADM's .npz form."""
    from tqdm import tqdm

    from tok1d import devices
    from tok1d.data.broken import report_broken
    from tok1d.evaluate.feature_networks import open_network
    from tok1d.evaluate.features import default_network
    from tok1d.evaluate.reference import OF, cache_path, cached_reference

    one_of("--split", split, ("train", "test", "all"))
    one_of("--on-broken", on_broken, ("stop", "skip"))
    if of:
        one_of("--of", of, OF)
    _check_out(out)
    place = devices.pick_device(device)
    if data.endswith(".npz") and _holds_statistics(Path(data)):
        known = _of_statistics(Path(data), network, place, of, features, batch_size, eight_bit)
        _write(known, out, overwrite, f"read from {data}")
        return
    border, shape = _like(model) if model else (0, (None, None))
    opened = open_network(network or default_network(data), device=place, pad=border, eight_bit=eight_bit)
    images: Any = _open(
        data,
        split,
        size or shape[0] or opened.image_size or (28 if data == "fashion_mnist" else 256),
        channels or shape[1] or opened.channels or (1 if data == "fashion_mnist" else 3),
        border,
        data_root,
        on_broken,
    )
    with tqdm(total=min(num or len(images), len(images)), unit="image", desc="reference", disable=None) as bar:
        found, cached = cached_reference(
            images,
            opened,
            of=of or ("own" if split == "all" or data.endswith(".npz") else split),
            num=num,
            num_features=features,
            about=data if split == "all" else f"{data}, {split}",
            batch_size=batch_size,
            progress=bar.update,
        )
    report_broken(images)
    where = cache_path(found.fingerprint)
    how = (
        f"read from the cache, {where}" if cached else f"measured, cached as {where}" if where.is_file() else "measured"
    )
    _write(found, out, overwrite, how)


def _check_out(out: Path | None) -> None:
    from tok1d.errors import ConfigError

    if out is not None and (out.suffix != ".npz" or out.is_dir()):
        raise ConfigError(f"--out: expected the name of an .npz file, got {out}")


def _like(model: str) -> tuple[int, tuple[int, int]]:
    """The border of a model's images, and their size and channels."""
    from tok1d.errors import InputError
    from tok1d.zoo import store
    from tok1d.zoo.card import padding_of

    loaded = store.load(model)
    if not hasattr(loaded.config, "image_size"):
        raise InputError(f"--model: expected a model of images, {model} is a {loaded.config.name}; pass its tokenizer")
    return padding_of(loaded), (loaded.config.image_size, loaded.config.channels)


def _open(data: str, split: str, size: int, channels: int, border: int, data_root: str | None, on_broken: str) -> Any:
    from tok1d.data.folder import FolderImages, list_images
    from tok1d.data.images import open_images
    from tok1d.data.source import ImageSource
    from tok1d.data.transforms import Transform
    from tok1d.errors import InputError
    from tok1d.evaluate.sample_batch import SampleImages

    if data.endswith(".npz"):
        return SampleImages(data)
    if split == "all":
        if data == "fashion_mnist":
            raise InputError("--split: of fashion_mnist expected train or test, got all")
        # Their classes do not matter here, so they are listed as of one.
        transform, files = Transform(size, channels, pad=border), list_images(data)
        return FolderImages(data, transform, on_broken, files=files, class_names=[Path(data).name])  # type: ignore[arg-type]
    source = ImageSource(
        "fashion_mnist" if data == "fashion_mnist" else "folder",
        root=data_root if data == "fashion_mnist" else data,
        image_size=size,
        channels=channels,
        pad=border,
        on_broken=on_broken,  # type: ignore[arg-type]
    )
    return open_images(source, split)  # type: ignore[arg-type]


def _holds_statistics(path: Path) -> bool:
    """Whether an .npz file holds statistics; one of images alone, or none at all, does not."""
    from tok1d.errors import DataError
    from tok1d.evaluate.npz import open_npz

    try:
        with open_npz(path, "an .npz file") as content:
            return "mu" in content.files
    except DataError:
        return False


def _of_statistics(
    path: Path, network: str, device: str, of: str, features: int, batch_size: int, eight_bit: bool | None
) -> Reference:
    """The reference in a file of statistics, with the features of all images that it holds if asked for any."""
    from tok1d.evaluate.feature_networks import open_network
    from tok1d.evaluate.features import INCEPTION
    from tok1d.evaluate.reference import load_reference, with_features

    known = load_reference(path, of=of or None)
    if not features:
        return known
    opened = open_network(network or INCEPTION, device=device, eight_bit=eight_bit)
    return with_features(known, path, opened, batch_size=batch_size)


def _write(reference: Reference, out: Path | None, overwrite: bool, how: str) -> None:
    """Tell what a reference is, and write it unless the file is there and holds another one."""
    from tok1d.errors import ConfigError, DataError
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
    if out.exists() and not overwrite:
        try:
            there = load_reference(out)
        except DataError:
            raise ConfigError(
                f"{out}: is no reference; pass --overwrite to replace it, or choose another --out"
            ) from None
        if str(there) != str(reference):
            raise ConfigError(f"{out}: holds {there}; pass --overwrite to replace it, or choose another --out")
        if num_features(there) >= num_features(reference):
            print(f"file: {out}, as it was")
            return
    print(f"file: {reference.save(out)}")
