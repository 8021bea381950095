"""Builds a study: originals, their reconstructions, distractors and a mask, as PNG files with study.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tok1d.config.options import check_counts
from tok1d.data.images import ArrayImages, ImageSet
from tok1d.data.lazy import LazyImages
from tok1d.data.order import seed_from
from tok1d.data.splits import spread
from tok1d.data.subset import subset
from tok1d.errors import ConfigError, DataError, InputError, reason_of
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.images import open_own
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, noise_of
from tok1d.pictures import save_png, to_pil
from tok1d.study.folder import FORMAT, IMAGES, Item, Study, write_study, writing
from tok1d.study.redraw import Redrawing
from tok1d.study.request import CLASS, LONGEST_MS, REDRAWN, Design
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.record import versions
from tok1d.zoo.weights import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

CATCH_MS = 1000
MASK_TILES = 16  # at most, along a side
BATCH = 16
MAX_CONSENT = 20_000  # characters
CONSENT = (
    "This is a study of how people see pictures. You will see a picture for a short time, and then say which of two "
    "other pictures is more like it. There are no right answers, and it takes a few minutes.\n\n"
    "Your answers and the times of your answers are stored under a random code. No name, address or other personal "
    "data is stored. Taking part is voluntary: you can stop at any time by closing the page. Pictures are shown "
    "briefly, one after the other; do not take part if flickering pictures are a risk for you."
)


@dataclass(frozen=True)
class Sources:
    """What a study is built from: the tokenizer, the images, and their names without folders."""

    tokenizer: Tokenizer
    images: ArrayImages | LazyImages
    model: str
    data: str


@dataclass(frozen=True)
class Chosen:
    """The images of a study: their places in the data, pixels (N, C, H, W), distractors and captions."""

    places: list[int]
    pixels: Tensor
    distractors: Tensor
    captions: list[str]


def short_name(name: str) -> str:
    """A name without the folders that lead to it: RUN/model of a run's model, else the last part."""
    parts = [part for part in Path(name).parts if part not in ("/", "..")]
    return "/".join(parts[-2:] if parts and parts[-1] == "model" else parts[-1:])


@torch.no_grad()
def build_study(sources: Sources, design: Design, out: Path) -> Study:
    """Write a study folder, completely or not at all, and return the study.

    Raises:
        InputError: settings that the tokenizer does not have, or too few images for them.
        ConfigError, DataError: see `tok1d.study.folder.writing`.
        ConfigError, WeightsError: models that redraw which cannot be loaded.
    """
    tokenizer, images = sources.tokenizer, sources.images
    keep = sorted(token_counts(tokenizer.spec, check_counts(list(design.keep), "--keep", 0, tokenizer.spec.length)))
    if max(design.reveal) > LONGEST_MS:
        raise InputError(f"--reveal: expected at most {LONGEST_MS} milliseconds, got {max(design.reveal)}")
    consent = _consent(design.consent)
    total = design.num + design.practice + design.catch
    if len(images) < total:
        raise InputError(
            f"--num: expected at most {max(0, len(images) - design.practice - design.catch)}, as there are "
            f"{len(images)} images for {design.num} trials, {design.practice} practice and {design.catch} catch trials"
        )
    conditioned = ConditionedImages(tokenizer, images, design.label)
    conditioned.conditioning.say()
    places = _places(images, total, design.seed)
    decoded = _reconstructed(conditioned, places[: design.num + design.practice], keep, design)
    chosen = _with_distractors(sources, places, design)
    with writing(out) as folder:
        items = [
            _written(folder / IMAGES, i, chosen, decoded[i] if i < len(decoded) else {}, sources) for i in range(total)
        ]
        save_png(to_pil(mask_of(chosen.pixels, design.seed)), folder / IMAGES / "mask.png")
        study = Study(
            format=FORMAT,
            model=sources.model,
            weights=fingerprint(tokenizer),
            num_tokens=tokenizer.spec.length,
            data=sources.data,
            fingerprint=images.fingerprint(),
            count=len(images),
            label=conditioned.conditioning.label,
            decoding=None if tokenizer.spec.deterministic else design.decoding,
            distractor=design.distractor if design.distractor in (CLASS, REDRAWN) else "folder",
            keep=tuple(keep),
            reveal_ms=tuple(sorted(set(design.reveal))),
            mask_ms=design.mask,
            catch_ms=CATCH_MS,
            seed=design.seed,
            consent=consent,
            items=tuple(items[: design.num]),
            practice=tuple(items[design.num : design.num + design.practice]),
            catch=tuple(items[design.num + design.practice :]),
            mask="mask.png",
            versions=versions(),
        )
        write_study(study, folder)
    return study


def _consent(path: Path | None) -> str:
    if path is None:
        return CONSENT
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        why = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--consent: cannot read {path} ({why})") from None
    if not 0 < len(text) <= MAX_CONSENT:
        raise ConfigError(f"--consent: expected 1 to {MAX_CONSENT:,} characters, got {len(text):,}")
    return text


def _places(images: ImageSet, total: int, seed: int) -> list[int]:
    """Images as `subset` chooses them, shuffled: main trials, practice and catch trials have the same classes."""
    whole = subset(images, total)
    places = torch.tensor(getattr(whole, "indices", range(total)))
    order = torch.randperm(total, generator=noise_of(seed, "places"))
    return places[order].tolist()


def _reconstructed(
    conditioned: ConditionedImages, places: Sequence[int], keep: Sequence[int], design: Design
) -> list[dict[int, Tensor]]:
    """The reconstructions (C, H, W) of each image by number of tokens."""
    tokenizer = conditioned.tokenizer
    options = decoder_options(tokenizer, design.decoding, "--")
    device = next(tokenizer.parameters()).device
    found: list[dict[int, Tensor]] = []
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        x, _, cond = conditioned.batch(some)
        tokens = tokenizer.encode(x.to(device), cond)
        rows = {}
        for k in keep:
            noise = [noise_of(design.seed, DECODER_NOISE, place) for place in some]
            rows[k] = tokenizer.decode(tokens, cond, keep=k, generator=noise, **options).cpu()
        found += [{k: rows[k][i] for k in keep} for i in range(len(some))]
    return found


def _with_distractors(sources: Sources, places: list[int], design: Design) -> Chosen:
    pixels = _pixels(sources.images, places)
    captions = [""] * len(places)
    models = {"--captioner": design.captioner, "--painter": design.painter}
    if design.distractor == REDRAWN:
        if missing := [flag for flag, name in models.items() if not name]:
            raise InputError(f"{missing[0]}: required with --distractor {REDRAWN}; expected a folder or a hub name")
        device = next(sources.tokenizer.parameters()).device
        redrawing = Redrawing(design.captioner, design.painter, device)
        captions, drawn = redrawing.redraw([to_pil(each) for each in pixels], design.seed)
        return Chosen(places, pixels, _fitted(sources, drawn), captions)
    if given := [flag for flag, name in models.items() if name]:
        raise InputError(f"{given[0]}: only with --distractor {REDRAWN}, got --distractor {design.distractor}")
    if design.distractor == CLASS:
        others = class_distractors(sources.images.labels.tolist(), places, design.seed, sources.images.class_names)
        return Chosen(places, pixels, _pixels(sources.images, others), captions)
    return Chosen(places, pixels, _from_folder(sources, places, Path(design.distractor)), captions)


def _pixels(images: ImageSet, places: Sequence[int]) -> Tensor:
    return torch.cat([images.batch(places[i : i + BATCH])[0] for i in range(0, len(places), BATCH)])


def class_distractors(
    labels: Sequence[int], places: Sequence[int], seed: int, class_names: Sequence[str] = ()
) -> list[int]:
    """For each place, another image of its class: one that is no original and no other's distractor, if there is one.

    Raises:
        InputError: a class with one image.
    """
    used, found = set(places), []
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    for place in places:
        others = [index for index in members[labels[place]] if index != place]
        if not others:
            name = class_names[labels[place]] if class_names else labels[place]
            raise InputError(f"--distractor: class {name} has one image only; give a folder of distractors")
        candidates = [index for index in others if index not in used] or others
        found.append(candidates[seed_from(f"{seed} distractor {place}") % len(candidates)])
        used.add(found[-1])
    return found


def _from_folder(sources: Sources, places: Sequence[int], folder: Path) -> Tensor:
    """Images of a folder: those with the names of the originals, or if none has such a name, spread over the folder."""
    own = open_own(str(folder), sources.tokenizer, split="all", on_broken="stop")
    by_name = {Path(own.name(i)).stem: i for i in range(len(own))} if isinstance(own, LazyImages) else {}
    data = sources.images
    wanted = [Path(data.name(place)).stem for place in places] if isinstance(data, LazyImages) else []
    if any(name in by_name for name in wanted):
        if missing := [name for name in wanted if name not in by_name]:
            raise DataError(f"--distractor: {folder}: expected an image for each original, got none for {missing[0]}")
        return _pixels(own, [by_name[name] for name in wanted])
    if len(own) < len(places):
        raise DataError(f"--distractor: {folder}: expected at least {len(places)} images, got {len(own)}")
    return _pixels(own, spread(range(len(own)), len(places)))


def _fitted(sources: Sources, drawn: Sequence[Image]) -> Tensor:
    """Redrawn pictures as the tokenizer's images are."""
    transform = sources.images.transform
    size, mode = (transform.inner, transform.inner), "L" if transform.channels == 1 else "RGB"
    rows = np.stack([np.asarray(picture.convert(mode).resize(size)) for picture in drawn])
    channels_first = torch.from_numpy(rows).reshape(len(rows), *size, transform.channels).permute(0, 3, 1, 2)
    return transform.border(channels_first).float() / 255


def mask_of(pixels: Tensor, seed: int) -> Tensor:
    """A pattern mask (C, H, W): each of its tiles is a tile of one of the images (N, C, H, W), from any place."""
    num, channels, height, width = pixels.shape
    tiles = max(n for n in range(1, MASK_TILES + 1) if height % n == 0 and width % n == 0)
    h, w = height // tiles, width // tiles
    parts = pixels.reshape(num, channels, tiles, h, tiles, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)
    picked = torch.randint(len(parts), (tiles * tiles,), generator=noise_of(seed, "mask"))
    mosaic = parts[picked].reshape(tiles, tiles, channels, h, w).permute(2, 0, 3, 1, 4)
    return mosaic.reshape(channels, height, width)


def _written(folder: Path, number: int, chosen: Chosen, decoded: dict[int, Tensor], sources: Sources) -> Item:
    """Write the pictures of an image."""
    rows = {"original": chosen.pixels[number], "distractor": chosen.distractors[number]}
    rows |= {f"keep{k:04d}": picture for k, picture in decoded.items()}
    for name, picture in rows.items():
        save_png(to_pil(picture), folder / f"{number:04d}_{name}.png")
    original, distractor, *reconstructions = (f"{number:04d}_{name}.png" for name in rows)
    place, caption = chosen.places[number], chosen.captions[number]
    label = sources.images.class_names[sources.images.labels[place]]
    return Item(place, label, original, distractor, tuple(reconstructions), caption)
