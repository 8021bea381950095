"""The results of the tabs as HTML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tok1d.html.parts import card, note, pair, saves, views
from tok1d.pictures import grid, to_pil
from tok1d.serve import chart, saved
from tok1d.serve.drawing import Drawn, to_json
from tok1d.serve.prefixes import LeftOut, Mixed, Prefixes

SMALL = 96  # pixels: larger pictures are shrunk in strips
COLUMNS = 8
CURVES = 5  # spectra in a chart


def tokens(count: int, total: int) -> str:
    """ "from 4 of 16 tokens"."""
    return f"from {count} of {total} token{'s' * (total != 1)}"


def floats(pictures: Tensor) -> Tensor:
    """uint8 to float in [0, 1]."""
    return pictures.float() / 255


def reconstruction(found: Sequence[Prefixes], count: int) -> str:
    """The picture, its reconstruction from `count` tokens with the PSNR, and the error; of each model."""
    cards = []
    for each in found:
        i = each.nearest(count)
        y, x = each.picture(i), each.original[0]
        size = f"{x.shape[2]} x {x.shape[1]}"
        psnr = "equal" if each.psnr[i] == float("inf") else f"PSNR {each.psnr[i]:.2f} dB"
        pictures = [
            (saved.png(to_pil(x)), f"the picture as the model reads it, {size}"),
            (saved.png(to_pil(y)), f"{tokens(each.counts[i], each.counts[-1])}, {psnr}"),
            (saved.png(saved.error_map(x, y)), "absolute error; white: half of the range or more"),
        ]
        cards.append(card(each.look.model, _settings(each), views(pictures)))
    return pair(cards)


def _settings(found: Prefixes) -> str:
    return f"condition: {found.look.condition}" if found.look.condition else ""


def prefixes(found: Sequence[Prefixes]) -> str:
    """All reconstructions of each model in small, with their numbers of tokens."""
    parts = []
    for each in found:
        pictures = [(saved.png(_small(floats(y))), str(k)) for k, y in zip(each.counts, each.pictures)]
        parts.append(f'<div class="small">{views(pictures)}</div>')
    return note("From each number of tokens:") + "\n".join(parts)


def reconstruction_files(found: Sequence[Prefixes], count: int) -> str:
    """Links that save the reconstruction."""
    files = []
    for each in found:
        i = each.nearest(count)
        name = each.look.model.replace("/", "_")
        k = each.counts[i]
        of = f" of {each.look.model}" if len(found) > 1 else ""
        files.append((f"PNG{of}, {k} tokens", f"{name}-{k}.png", saved.png(to_pil(each.picture(i)))))
    return saves(files)


def prefix_files(found: Sequence[Prefixes]) -> str:
    """Links that save all reconstructions in one row, and as an animation."""
    files = []
    for each in found:
        name, of = each.look.model.replace("/", "_"), f" of {each.look.model}" if len(found) > 1 else ""
        images = torch.cat([floats(each.pictures), each.original])
        files += [
            (f"strip{of}", f"{name}-strip.png", saved.strip(images)),
            (f"animation{of}", f"{name}.webp", saved.animation(images)),
        ]
    return saves(files)


def drawn(found: Drawn) -> str:
    """Pictures, a row for each class or caption."""
    rows: dict[str, list[Tensor]] = {}
    for label, image in zip(found.labels, found.images):
        rows.setdefault(label, []).append(image)
    parts = []
    for label, images in rows.items():
        cells = [(saved.png(to_pil(image)), f"{label} {i}".strip()) for i, image in enumerate(images, 1)]
        parts.append(views(cells))
    return "\n".join(parts)


def drawn_files(found: Drawn) -> str:
    """The link that saves all pictures with their settings."""
    columns = min(found.wish.num, COLUMNS)
    content = saved.sheet(found.images, columns, to_json(found.wish))
    return saves([("PNG with the settings", f"{found.wish.model.replace('/', '_')}.png", content)])


def neighbours(found: Drawn, images: Tensor, distances: Sequence[float]) -> str:
    """Each picture beside its nearest training image."""
    cells = []
    for image, near, distance in zip(found.images, images, distances):
        both = grid(torch.stack([image, near.expand_as(image)]), 2)
        cells.append((saved.png(both), f"root of the mean squared difference {distance:.3f}"))
    return note("Left: drawn; right: the nearest training image, by its pixels.") + views(cells)


def mixed(found: Mixed, count: int) -> str:
    """Both pictures, and the mixture of `count` tokens of A under each condition."""
    i = min(range(len(found.counts)), key=lambda j: abs(found.counts[j] - count))
    k, total = found.counts[i], found.counts[-1]
    pictures = [(saved.png(to_pil(found.originals[j])), f"picture {name}") for j, name in enumerate("AB")]
    for name, images in found.pictures.items():
        under = f", decoded with the condition of {name}" if name else ""
        pictures.append(
            (saved.png(to_pil(floats(images[i]))), f"{k} tokens of A, {total - k} of B{under}"),
        )
    return views(pictures)


def mixtures(found: Mixed) -> str:
    """All mixtures, a row for each condition."""
    parts = []
    for name, images in found.pictures.items():
        if name:
            parts.append(note(f"Decoded with the condition of {name}:"))
        cells = [(saved.png(_small(floats(y))), str(k)) for k, y in zip(found.counts, images)]
        parts.append(f'<div class="small">{views(cells)}</div>')
    return note("From each number of tokens of A:") + "\n".join(parts)


def curves(found: Prefixes) -> str:
    """The variance that the reconstructions explain by number of tokens, and their spectra."""
    counts = [float(k) for k in found.counts]
    explained = [max(value, -1.0) for value in found.explained()]
    shown = "share of the variance explained"
    own, spectra = found.spectra()
    some = sorted({round(i * (len(counts) - 1) / (CURVES - 1)) for i in range(CURVES)}) if len(counts) > 1 else [0]
    periods = [float(i) for i in range(1, len(own) + 1)]
    series = [(f"{found.counts[i]} tokens", periods, spectra[i]) for i in some]
    last = f"{explained[-1]:.1%} from all {found.counts[-1]} tokens"
    return pair(
        [
            card(
                "Variance by number of tokens",
                f"1 - squared error / variance of the picture's pixels; {last}; values below -1 are drawn at -1.",
                chart.lines([("", counts, explained)], "tokens", shown, f"{shown}: {last}"),
            ),
            card(
                "Spectrum",
                "log10 of the power by frequency, in periods per side; dashed: the picture.",
                chart.lines([*series, ("picture", periods, own)], "periods per side", "log10 power", "power spectra"),
            ),
        ]
    )


def left_out(found: LeftOut, token: int) -> str:
    """The picture from all tokens, without one, and the difference; the change by token."""
    i = min(max(token, 1), len(found.pictures)) - 1
    whole, without = floats(found.whole), floats(found.pictures[i])
    pictures = [
        (saved.png(to_pil(whole)), "from all tokens"),
        (saved.png(to_pil(without)), f"without token {i + 1}"),
        (saved.png(saved.error_map(whole, without)), "what changes; white: half of the range or more"),
    ]
    change = f"mean squared change without token {i + 1}: {found.change[i]:.5f}"
    title = "Change without each token"
    return views(pictures) + card(
        title, change, chart.bars(found.change, "token", "mean squared change", f"{title}; {change}", i)
    )


def _small(image: Tensor) -> Image.Image:
    return to_pil(_shrunk(image))


def _shrunk(image: Tensor) -> Tensor:
    if image.shape[-1] <= SMALL:
        return image
    return torch.nn.functional.interpolate(image[None], size=(SMALL, SMALL), mode="area")[0]
