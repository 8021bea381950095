"""What a person does with finished models: reconstruct and generate into a folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tok1d.condition import text_condition
from tok1d.data.captions import BESIDE, LABELS, captions_of
from tok1d.data.decoded import replaced_among, tell_broken, whole_set
from tok1d.data.images import ImageSet, kind_of, open_images, without_train
from tok1d.data.splits import split_folders
from tok1d.data.subset import subset
from tok1d.diffusion.guidance import Guidance, Schedule
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.evaluate.labels import Told, label_used, labels_given
from tok1d.evaluate.metrics import psnr_per_image
from tok1d.evaluate.reconstruction import token_counts
from tok1d.evaluate.sampling import (
    PAINTING,
    decoder_options,
    draws_whole,
    generator_guidance,
    noise_of,
    sampling_options,
)
from tok1d.pictures import grid, save_png, to_pil
from tok1d.text import CaptionEmbeddings
from tok1d.train.tasks import padding_of, trained_with
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
    on_broken: str = "skip",
    size: int | None = None,
    generator: Any = None,
) -> ImageSet:
    """ "fashion_mnist", a folder of images, shards or a saved data set (see `kind_of`), at a tokenizer's channels and
    size (or another), within the border that its training images had; nothing is augmented. With captions where the
    tokenizer, or a generator, is told those. Names on stderr what cannot be read."""
    config, kind = model.config, kind_of(name)
    same = trained_with(model, "name", None) == kind  # then the keys are those of the training
    images = open_images(
        kind,
        split,  # type: ignore[arg-type]
        root=data_root if name == "fashion_mnist" else name,
        image_size=size or config.image_size,
        channels=config.channels,
        pad=padding_of(model),
        on_broken=on_broken,  # type: ignore[arg-type]
        captions=captions_for(name, model, *([] if generator is None else [generator])),
        image_key=trained_with(model, "image_key", None) if same else None,
        label_key=trained_with(model, "label_key", None) if same else None,
    )
    tell_broken(images)
    return images


def captions_for(data: str, *models: Any) -> str | None:
    """Which captions of "fashion_mnist" or of a folder `open_images` is asked for; None where no model is told any.

    Of a folder the file that the model's training read, as its card tells, if it is there; else text files beside the
    images.
    """
    told = next((model for model in models if text_condition(model.config) is not None), None)
    if told is None:
        return None
    if data == "fashion_mnist":
        return LABELS
    known = trained_with(told, "captions", BESIDE)
    if (kind := kind_of(data)) != "folder":
        own = trained_with(told, "name", None) == kind
        return known if own else {"webdataset": "txt"}.get(kind, "caption")
    return known if known not in (None, LABELS) and (Path(data) / known).is_file() else BESIDE


def open_own(
    path: str, model: Any, *, data_root: str | None = None, on_broken: str = "skip", size: int | None = None
) -> ImageSet:
    """The images to reconstruct: the test split of "fashion_mnist", of shards, of a saved data set or of a folder with
    train/ and test/, every image of any other folder, or one image file.

    For a tokenizer of captions, text files beside the images hold theirs.
    """
    from tok1d.data.folder import FolderImages, list_images
    from tok1d.data.transforms import Transform

    if kind_of(path) != "folder":
        return open_data(path, model, data_root=data_root, on_broken=on_broken, size=size)
    transform = Transform(size or model.config.image_size, model.config.channels, pad=padding_of(model))
    where = Path(path)
    if where.is_dir() and split_folders(place.name for place in where.iterdir()) is not None:
        return open_data(path, model, data_root=data_root, on_broken=on_broken, size=size)
    if where.is_file():
        root, files, on_broken = where.parent, [where.name], "stop"
    else:
        root, files = without_train(where, list_images(where))
    found = captions_of(root, "", files, BESIDE) if text_condition(model.config) is not None else {}
    return FolderImages(root, transform, on_broken, files=files, captions=found or None)  # type: ignore[arg-type]


def new_folder(out: Path, *, overwrite: bool) -> Path:
    """A folder to write pictures into; one that already holds files is refused unless `overwrite`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write into, found a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out}: not empty; pass --overwrite to write into it, or choose another --out")
    return out


def _clear(out: Path, own: str) -> None:
    """Remove the pictures that an earlier run of a command left in its folder, by the pattern of their names."""
    for path in out.iterdir() if out.is_dir() else ():
        if re.fullmatch(own, path.name):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in a folder that is made if need be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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

    Images of another size than the training's are painted at their own. Those that cannot be decoded are left out.

    Args:
        keep: numbers of leading tokens; of tokens without an order only all.
        num: so many images, see `subset`.
        label: of a tokenizer that wants one, "true" or "null"; default: see `label_used`.

    Raises:
        InputError: prefixes, steps, guidance, a solver or labels that the tokenizer does not have.
    """
    keep = token_counts(tokenizer.spec, keep)
    options = decoder_options(tokenizer, steps=steps, guidance=guidance, solver=solver)
    device = next(tokenizer.parameters()).device
    images = subset(images, num)
    x, _, cond = Told(tokenizer, images, label).batch(range(len(images)))
    if stand_ins := replaced_among(images, range(len(images))):  # they could not be decoded: no originals to show
        whole = torch.tensor([i for i in range(len(x)) if i not in stand_ins])
        if not len(whole):
            name, why = whole_set(images).replaced[0]
            raise DataError(f"{name}: {why}; nor can the other images be decoded that were chosen")
        x, cond = x[whole], None if cond is None else cond[whole.to(cond.device)]
    x = x.to(device)
    tokens = tokenizer.encode(x, cond)
    if x.shape[-2:] != (tokenizer.config.image_size,) * 2:
        options["size"] = (x.shape[-2], x.shape[-1])
    rows: list[Tensor] = [x]
    psnr = {}
    for k in keep:
        sources = [noise_of(seed, PAINTING, i) for i in range(len(x))]
        y = tokenizer.decode(tokens, cond, keep=k, generator=sources, **options)
        rows.append(y)
        psnr[k] = float(psnr_per_image(y, x).mean())
    _clear(out, r"image\d+_(keep\d+|original)\.png|overview\.png")
    for k, y in zip(keep, rows[1:], strict=True):
        for i, image in enumerate(y):
            save_png(to_pil(image), out / f"image{i:03d}_keep{k:03d}.png")
    for i, image in enumerate(x):
        save_png(to_pil(image), out / f"image{i:03d}_original.png")
    save_png(grid(torch.cat(rows), len(x), zoom=zoom_for(x)), out / "overview.png")
    return psnr


def zoom_for(images: Tensor) -> int:
    """A whole factor that makes small images at least some 80 pixels wide."""
    return max(1, round(84 / images.shape[-1]))


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


def parse_captions(texts: Sequence[str]) -> list[str]:
    """Captions as the command line gives them: each a caption, or the name of a .txt file with one a line."""
    found: list[str] = []
    for text in texts:
        if not text.endswith(".txt"):
            found.append(text)
            continue
        try:
            found += [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InputError(
                f"--captions: cannot read {text}, {why}; expected captions, or files of one a line"
            ) from None
    if texts and not any(caption.strip() for caption in found):
        raise InputError("--captions: expected at least one caption that says something, received none")
    return found


def check_wanted(
    generator: Any, classes: Any = None, captions: Sequence[str] | None = None, *, unconditional: bool = False
) -> None:
    """Refuse classes or captions that a generator is not told, and captions that are missing.

    Raises:
        InputError: so it is.
    """
    told = text_condition(generator.config) is not None
    reads = "--captions" if told else "--classes" if generator.config.num_classes else ""
    for name, given in (("--classes", classes), ("--captions", captions)):
        if given and unconditional:
            raise InputError(f"{name}: --unconditional draws without {name[2:]}; leave it out")
        if given and name != reads:
            advice = f"is told {reads[2:]}, use {reads}" if reads else f"knows no {name[2:]}; leave it out"
            raise InputError(f"{name}: this generator {advice}")
    if told and not unconditional and not captions:
        raise InputError("--captions: this generator is told captions, expected one at least, or --unconditional")


@torch.no_grad()
def generate(
    generator: Any,
    tokenizer: Any,
    out: Path,
    *,
    classes: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
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
    """Draw `num` images of every class or caption (or of an unconditional model); a PNG each and overview.png.

    Noise belongs to (seed, class or caption, number of the image): neither the other images nor `batch_size` change a
    picture.

    Args:
        classes: default: all. captions: of a model that is told those.
        keep: only the first tokens; a causal generator makes no more, of a whole sequence the others are not decoded.
            prefixes: also paint the same samples from that many of their tokens, into progressive.png, a row a number.
        unconditional: draw the null condition of a conditional model.
        guidance, temperature, steps, sampler, top_k, top_p: of the generator, those it has; a plain guidance scale
            follows `generator_guidance`. decoder_steps, decoder_solver, decoder_guidance: of the tokenizer's decoder.

    Raises:
        InputError: whatever the generator or the tokenizer cannot do.
    """
    device = next(generator.parameters()).device
    guidance = generator_guidance(generator, guidance)
    if guidance.scale != 1 and guidance.weak_model is None and not generator.label_embed.has_null:
        raise InputError("--guidance: this generator was trained without class dropout and cannot be guided; pass 1")
    check_wanted(generator, classes, captions, unconditional=unconditional)
    told = None if unconditional else text_condition(generator.config)
    num_classes = 0 if unconditional else generator.config.num_classes
    wanted: Sequence[int | str] = captions or [0]
    if num_classes:
        wanted = range(num_classes) if classes is None else classes
    embed = None if told is None else CaptionEmbeddings(told, captions or [])
    keys = [(what, copy) for what in wanted for copy in range(num)]
    length = keep or generator.config.num_tokens
    token_counts(tokenizer.spec, [length, *prefixes])
    whole, used = draws_whole(generator), label_used(tokenizer, num_classes, captioned=embed is not None)
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
        cond = torch.tensor([label for label, _ in part], device=device) if num_classes else None
        if embed is not None:
            cond = embed([str(caption) for caption, _ in part], device)
        tokens = generator.sample(
            cond,
            num=len(part),
            length=None if whole else keep,
            generator=[noise_of(seed, 0, *key) for key in part],
            guidance=guidance,
            **how,
        )
        for k, painted in ((length, images), *progress.items()):
            sources = [noise_of(seed, 1, *key) for key in part]
            given = labels_given(used, cond, device)
            painted.append(tokenizer.decode(tokens, given, keep=k, generator=sources, **options).cpu())
    drawn = torch.cat(images)
    _clear(out, r"(class\d+_|image(\d+_)?)\d+\.png|(overview|progressive)\.png")
    for i, image in enumerate(drawn):
        what, copy = keys[i]
        name = f"class{what:03d}_" if num_classes else f"image{'' if embed is None else f'{i // num:03d}_'}"
        save_png(to_pil(image), out / f"{name}{copy:03d}.png")
    if progress:
        rows = torch.cat([image for painted in progress.values() for image in painted])
        save_png(grid(rows, len(keys), zoom=zoom_for(rows)), out / "progressive.png")
    return save_png(grid(drawn, num, zoom=zoom_for(drawn)), out / "overview.png")
