"""What a person does with finished models: reconstruct and generate into a folder of pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tok1d.data.images import ImageSet, open_images
from tok1d.diffusion.guidance import Guidance, Schedule
from tok1d.errors import ConfigError, InputError
from tok1d.evaluate.labels import label_used, labels_given
from tok1d.evaluate.metrics import psnr_per_image
from tok1d.evaluate.reconstruction import token_counts
from tok1d.evaluate.sampling import decoder_options, draws_whole, generator_guidance, sampling_options
from tok1d.pictures import grid, save_png, to_pil
from tok1d.train.tasks import padding_of
from tok1d.zoo import store


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
    name: str,
    model: Any,
    *,
    split: str = "test",
    data_root: str | None = None,
    on_broken: str = "stop",
    size: int | None = None,
) -> ImageSet:
    """ "fashion_mnist", or a folder of images, at a model's channels and size (or another), within the border that its
    training images had; nothing is augmented."""
    config = model.config
    return open_images(
        "fashion_mnist" if name == "fashion_mnist" else "folder",
        split,  # type: ignore[arg-type]
        root=data_root if name == "fashion_mnist" else name,
        image_size=size or config.image_size,
        channels=config.channels,
        pad=padding_of(model),
        on_broken=on_broken,  # type: ignore[arg-type]
    )


def open_own(
    path: str, model: Any, *, data_root: str | None = None, on_broken: str = "stop", size: int | None = None
) -> ImageSet:
    """The images to reconstruct: "fashion_mnist" (its test split), every image of a folder, or one image file."""
    from tok1d.data.folder import FolderImages
    from tok1d.data.transforms import Transform

    if path == "fashion_mnist":
        return open_data(path, model, data_root=data_root, size=size)
    transform = Transform(size or model.config.image_size, model.config.channels, pad=padding_of(model))
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
    """Write a text file, whole or not at all, in a folder that is made if need be."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def parse_interval(text: str, what: str) -> tuple[float, float]:
    """ "0.2,0.8" as two times, or shares, 0 <= low < high <= 1; "" is the whole range; else a one-line error."""
    if not text:
        return 0.0, 1.0
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{what}: expected two times such as 0.2,0.8, received {text!r}") from None
    if not 0 <= low < high <= 1:
        raise InputError(f"{what}: expected two growing times in 0..1, such as 0.2,0.8, received {text!r}")
    return low, high


@torch.no_grad()
def reconstruct(
    tokenizer: Any,
    images: ImageSet,
    out: Path,
    *,
    keep: Sequence[int],
    num: int = 8,
    steps: int | None = None,
    guidance: float | Guidance = 1.0,
    solver: str | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Write overview.png (originals above their reconstructions, one row a prefix) and a PNG each; PSNR per keep.

    Images of another size than the training's are painted at their own.

    Args:
        keep: numbers of leading tokens; of tokens without an order only all.
        label: of a tokenizer that wants one, "true" or "null"; default: see `label_used`.

    Raises:
        InputError: prefixes, steps, guidance, a solver or labels that the tokenizer does not have.
    """
    keep = token_counts(tokenizer.spec, keep)
    options = decoder_options(tokenizer, steps=steps, guidance=guidance, solver=solver)
    device = next(tokenizer.parameters()).device
    x, labels = images.batch(range(min(num, len(images))))
    x = x.to(device)
    cond = labels_given(label_used(tokenizer, images.num_classes, label), labels, device)
    tokens = tokenizer.encode(x, cond)
    if x.shape[-2:] != (tokenizer.config.image_size,) * 2:
        options["size"] = (x.shape[-2], x.shape[-1])
    rows: list[Tensor] = [x]
    psnr = {}
    for k in keep:
        generator = torch.Generator(device).manual_seed(seed)
        y = tokenizer.decode(tokens, cond, keep=k, generator=generator, **options)
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


def noise_of(device: torch.device, *key: int) -> torch.Generator:
    """A source of noise that belongs to a key: a seed, a class and the number of an image in it, say."""
    # Hashed, because torch's CPU generator takes only the low 32 bits of a seed.
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


def guidance_for(
    generator: Any,
    scale: float | None,
    *,
    schedule: str = "",
    interval: str = "",
    weak_model: str = "",
    conditional: bool = True,
) -> Guidance:
    """The guidance of a generator's samples as the options of the command line tell it.

    Args:
        scale: None is 2 where there is something to guide by, a class or a weak model, else 1.
        schedule: "" is the generator's own, see `generator_guidance`.

    Raises:
        InputError: a schedule or an interval that is none, or a scale without something to guide by.
    """
    if schedule not in ("", *get_args(Schedule)):
        known = ", ".join(get_args(Schedule))
        raise InputError(f"--guidance-schedule: expected one of {known}, received {schedule!r}")
    weak = store.load(weak_model, device=next(generator.parameters()).device) if weak_model else None
    guidable = conditional or weak is not None
    if scale is None:
        scale = 2.0 if guidable else 1.0
    if scale != 1 and not guidable:
        raise InputError(f"--guidance: without classes it needs a --weak-model, else pass 1; received {scale:g}")
    own = generator_guidance(generator, scale)
    found = replace(own, interval=parse_interval(interval, "--guidance-interval"), weak_model=weak)
    return replace(found, schedule=schedule) if schedule else found  # type: ignore[arg-type]


@torch.no_grad()
def generate(
    generator: Any,
    tokenizer: Any,
    out: Path,
    *,
    classes: Sequence[int] | None,
    num: int = 16,
    keep: int | None = None,
    unconditional: bool = False,
    guidance: float | Guidance = 1.0,
    temperature: float = 1.0,
    steps: int | None = None,
    sampler: str | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    decoder_steps: int | None = None,
    decoder_solver: str | None = None,
    decoder_guidance: float = 1.0,
    prefixes: Sequence[int] = (),
    batch_size: int = 100,
    seed: int = 0,
) -> Path:
    """Draw `num` images of every class (or `num` images of an unconditional model); a PNG each and overview.png.

    Noise belongs to (seed, class, number of the image): neither the other images nor `batch_size` change a picture.

    Args:
        keep: only the first tokens; a causal generator makes no more, of a whole sequence the others are not decoded.
            prefixes: also paint the same samples from that many of their tokens, into progressive.png, a row a number.
        unconditional: draw the null class of a class-conditional model.
        guidance, temperature, steps, sampler, top_k, top_p: of the generator, those it has; a plain guidance scale
            follows `generator_guidance`. decoder_steps, decoder_solver, decoder_guidance: of the tokenizer's decoder.

    Raises:
        InputError: whatever the generator or the tokenizer cannot do.
    """
    device = next(generator.parameters()).device
    guidance = generator_guidance(generator, guidance)
    if guidance.scale != 1 and guidance.weak_model is None and not generator.label_embed.has_null:
        raise InputError("--guidance: this generator was trained without class dropout and cannot be guided; pass 1")
    num_classes = 0 if unconditional else generator.config.num_classes
    if classes is not None and not num_classes:
        raise InputError("--classes: samples of an unconditional model have none, leave them away")
    wanted = (range(num_classes) if classes is None else classes) if num_classes else [0]
    keys = [(label, copy) for label in wanted for copy in range(num)]
    length = keep or generator.config.num_tokens
    token_counts(tokenizer.spec, [length, *prefixes])
    whole, used = draws_whole(generator), label_used(tokenizer, num_classes)
    how = sampling_options(
        generator, "--", temperature=temperature, steps=steps, sampler=sampler, top_k=top_k, top_p=top_p
    )
    options = decoder_options(
        tokenizer, steps=decoder_steps, guidance=decoder_guidance, solver=decoder_solver, prefix="--decoder-"
    )
    images: list[Tensor] = []
    progress: dict[int, list[Tensor]] = {k: [] for k in prefixes}
    for start in range(0, len(keys), batch_size):
        part = keys[start : start + batch_size]
        labels = torch.tensor([label for label, _ in part], device=device) if num_classes else None
        told = labels_given(used, labels, device)
        tokens = generator.sample(
            labels,
            num=len(part),
            length=None if whole else keep,
            generator=[noise_of(device, seed, 0, *key) for key in part],
            guidance=guidance,
            **how,
        )
        for k, painted in ((length, images), *progress.items()):
            sources = [noise_of(device, seed, 1, *key) for key in part]
            painted.append(tokenizer.decode(tokens, told, keep=k, generator=sources, **options).cpu())
    drawn = torch.cat(images)
    for (label, copy), image in zip(keys, drawn):
        name = f"class{label:03d}_{copy:03d}.png" if num_classes else f"image{copy:03d}.png"
        save_png(to_pil(image), out / name)
    if progress:
        rows = torch.cat([image for painted in progress.values() for image in painted])
        save_png(grid(rows, len(keys), zoom=zoom_for(rows)), out / "progressive.png")
    return save_png(grid(drawn, num, zoom=zoom_for(drawn)), out / "overview.png")
