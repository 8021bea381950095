"""What a person does with finished models: reconstruct and generate into a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tok1d.data.images import ImageSet, open_images
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.metrics import psnr_per_image
from tok1d.pictures import grid, save_png, to_pil


def pick_device(name: str | None) -> str:
    """The asked device, or a GPU where there is one."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every backend has its own way to be missing
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"device {name!r} is not usable here ({reason}); try --device cpu") from None
    return name


def open_data(
    name: str, model: Any, *, split: str = "test", data_root: str | None = None, on_broken: str = "stop"
) -> ImageSet:
    """ "fashion_mnist", or a folder of images, at the size and channels of a model; nothing is augmented."""
    config = model.config
    return open_images(
        "fashion_mnist" if name == "fashion_mnist" else "folder",
        split,  # type: ignore[arg-type]
        root=data_root if name == "fashion_mnist" else name,
        image_size=config.image_size,
        channels=config.channels,
        on_broken=on_broken,  # type: ignore[arg-type]
    )


def open_own(path: str, model: Any, *, data_root: str | None = None, on_broken: str = "stop") -> ImageSet:
    """The images to reconstruct: "fashion_mnist" (its test split), every image of a folder, or one image file."""
    from tok1d.data.folder import FolderImages
    from tok1d.data.transforms import Transform

    if path == "fashion_mnist":
        return open_data(path, model, data_root=data_root)
    transform = Transform(model.config.image_size, model.config.channels)
    where = Path(path)
    if where.is_file():
        return FolderImages(where.parent, transform, "stop", files=[where.name])
    return FolderImages(where, transform, on_broken)  # type: ignore[arg-type]


def new_folder(out: Path, *, overwrite: bool) -> Path:
    """A folder to write pictures into; one that already holds files is refused unless `overwrite`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write into, found a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out}: not empty; pass --overwrite to write into it, or choose another --out")
    return out


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # already renamed, or never made
            temporary.unlink()


def parse_counts(text: str, what: str, low: int, high: int) -> list[int]:
    """ "1,4,8" as numbers in low..high, or a one-line error."""
    try:
        values = [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError:
        raise InputError(f"{what}: expected numbers separated by commas, such as 1,4, received {text!r}") from None
    if not values:
        raise InputError(f"{what}: expected at least one number in {low}..{high}, received {text!r}")
    for value in values:
        if not low <= value <= high:
            raise InputError(f"{what}: expected numbers in {low}..{high}, received {value}")
    return values


@torch.no_grad()
def reconstruct(
    tokenizer: Any,
    images: ImageSet,
    out: Path,
    *,
    keep: Sequence[int],
    num: int = 8,
    steps: int | None = None,
    guidance: float = 1.0,
    seed: int = 0,
) -> dict[int, float]:
    """Write overview.png (originals above their reconstructions, one row a prefix) and a PNG each; PSNR per keep."""
    device = next(tokenizer.parameters()).device
    x, labels = images.batch(range(min(num, len(images))))
    x = x.to(device)
    cond = labels.to(device) if tokenizer.spec.needs_label else None
    tokens = tokenizer.encode(x, cond)
    rows: list[Tensor] = [x]
    psnr = {}
    for k in keep:
        generator = torch.Generator(device).manual_seed(seed)
        y = tokenizer.decode(tokens, cond, keep=k, steps=steps, guidance=guidance, generator=generator)
        rows.append(y)
        psnr[k] = float(psnr_per_image(y, x).mean())
        for i, image in enumerate(y):
            save_png(to_pil(image), out / f"image{i:03d}_keep{k:03d}.png")
    for i, image in enumerate(x):
        save_png(to_pil(image), out / f"image{i:03d}_original.png")
    save_png(grid(torch.cat(rows), len(x), zoom=zoom_for(x)), out / "overview.png")
    return psnr


def zoom_for(images: Tensor) -> int:
    """A whole factor that makes small images at least some 80 pixels wide."""
    return max(1, round(84 / images.shape[-1]))


@torch.no_grad()
def generate(
    generator: Any,
    tokenizer: Any,
    out: Path,
    *,
    classes: Sequence[int] | None,
    num: int = 16,
    keep: int | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    head_steps: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw `num` images of every class (or `num` images of an unconditional model); a PNG each and overview.png."""
    device = next(generator.parameters()).device
    source = torch.Generator(device).manual_seed(seed)
    if generator.config.num_classes:
        wanted = list(classes) if classes is not None else list(range(generator.config.num_classes))
        labels = torch.tensor(wanted, device=device).repeat_interleave(num)
        names = [f"class{int(label):03d}_{i % num:03d}.png" for i, label in enumerate(labels)]
        cond: dict[str, Any] = {"cond": labels}
    else:
        if classes is not None:
            raise InputError("classes: this generator is unconditional, leave --classes away")
        names = [f"image{i:03d}.png" for i in range(num)]
        cond = {"num": num}
    if guidance != 1 and not generator.label_embed.has_null:
        raise InputError("--guidance: this generator was trained without class dropout and cannot be guided; pass 1")
    tokens = generator.sample(
        **cond, guidance=guidance, temperature=temperature, steps=head_steps, length=keep, generator=source
    )
    images = tokenizer.decode(tokens, steps=steps, generator=source)
    for name, image in zip(names, images):
        save_png(to_pil(image), out / name)
    return save_png(grid(images, num, zoom=zoom_for(images)), out / "overview.png")
