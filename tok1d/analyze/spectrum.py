"""Power spectra of reconstructions by number of tokens (Semanticist, arXiv 2503.08685, figures 1a, 5 and 10).

A tokenizer couples semantics and spectrum if fewer tokens remove high frequencies along with the content. With a
diffusion decoder that is sampled with enough steps, and with initial noise of its full scale, the spectrum should
hardly depend on the number of tokens. Few steps or a low temperature remove high frequencies at every number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tok1d.analyze.cuts import cut_of
from tok1d.analyze.judged import flow_settings
from tok1d.analyze.plots import keep_axis, ranges
from tok1d.analyze.request import Spectra
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.data.transforms import without_border
from tok1d.evaluate.measures import Measures
from tok1d.evaluate.reconstruction import Reconstructor
from tok1d.inference.sampling import DECODER_NOISE, counted, decoding_record, noise_of
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

ORIGINALS = -1  # key of the originals where others are numbers of tokens


@dataclass(frozen=True)
class SpectrumPoint:
    """The spectrum of the images decoded from the first `keep` tokens, or components of the tokens.

    Args:
        log_power: log10 of the mean power at 1, 2, ... periods per image side.
        error: mean over frequencies of |log10 (power / power of the originals)|, at least 0.
        high: mean over the upper half of the frequencies of log10 (power / power of the originals); below 0 where
            high frequencies are missing.
        semantic: by network, the share of the images, in [0, 1], whose most likely class is that of their original.
    """

    keep: int
    log_power: list[float]
    error: float
    high: float
    semantic: dict[str, float]


@dataclass(frozen=True)
class Spectrum:
    """The spectra of a tokenizer.

    Args:
        num: number of images.
        original: log10 of the originals' mean power, as `SpectrumPoint.log_power`.
        partial: whether tokens after the first `keep` were replaced by their means over the images.
        label: the tokenizer's condition: "true" (the class or caption), "null", or None without a condition.
        decoding: settings of a diffusion decoder, with temperature and shift of a flow; None for a deterministic one.
        unit: what `keep` counts: "tokens", or principal "components" of the tokens.
        explained: for each point, the share of the tokens' variance in the components, in [0, 1]; None for tokens.
        num_fit: images on which the components were fitted; None for tokens.
    """

    num: int
    original: list[float]
    points: list[SpectrumPoint]
    partial: bool
    label: str | None
    decoding: dict[str, object] | None
    unit: str = "tokens"
    explained: list[float] | None = None
    num_fit: int | None = None

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return one line for each number of tokens."""
        return [
            f"keep {each.keep:4d}: mean |log10 power ratio| {each.error:.3f}, upper half {each.high:+.3f}"
            + "".join(f", semantic agreement {value:6.1%}" for value in each.semantic.values())
            for each in self.points
        ]

    def said(self) -> str:
        """What was found, as a clause; of several networks the first."""
        first, last = self.points[0], self.points[-1]
        shares = [f"{next(iter(each.semantic.values())):.0%}" for each in (first, last) if each.semantic]
        if first is last:
            agreement = f", at a semantic agreement of {shares[0]}" if shares else ""
            return (
                f"with {last.keep} {self.unit} the log10 power differs from the originals by {last.error:.2f} in the "
                f"mean (upper half of the frequencies {last.high:+.2f}){agreement}"
            )
        agreement = f", while semantic agreement goes from {shares[0]} to {shares[1]}" if shares else ""
        return (
            f"from {first.keep} to {last.keep} {self.unit} the log10 power differs from the originals by "
            f"{first.error:.2f} to {last.error:.2f} in the mean (upper half of the frequencies {first.high:+.2f} to "
            f"{last.high:+.2f}){agreement}"
        )


def radial_power(images: Tensor) -> Tensor:
    """The power of images (B, C, H, W) by frequency: (B, R) float64, at 1 to R = min(H, W) // 2 periods per side.

    The squared magnitude of the discrete Fourier transform over (H W)^2, averaged over channels and over the ring of
    the frequencies that round to the same distance from 0. A cosine of amplitude a has the power a^2 / 4 at each of its
    two frequencies.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    x = images.double()
    power = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).abs().square().mean(1) / (height * width) ** 2
    vertical, horizontal = (torch.fft.fftfreq(n, device=images.device) * side for n in (height, width))
    ring = torch.hypot(vertical[:, None], horizontal[None]).round().long().flatten()
    counts = torch.bincount(ring, minlength=side // 2 + 1)
    sums = power.new_zeros(len(power), len(counts)).index_add_(1, ring, power.flatten(1))
    return (sums / counts)[:, 1 : side // 2 + 1]


def log_power(power: Tensor, pixels: int) -> Tensor:
    """log10 of powers (R,); powers below that of the rounding of images to 8 bits count as it.

    Args:
        pixels: H W of an image, over which the rounding's variance 1 / (12 255^2) spreads evenly.
    """
    return power.clamp_min(1 / (12 * 255**2 * pixels)).log10()


@torch.no_grad()
def spectrum(
    tokenizer: Tokenizer,
    images: ImageSet,
    how: Spectra,
    measures: Measures | None = None,
    *,
    training: ImageSet | None = None,
    name: str = "",
) -> Spectrum:
    """Measure the mean power spectrum of reconstructions and of the originals, and semantic agreement beside it.

    A decoder's noise is the same for all numbers of tokens. Memory: one batch of images, and for each number of tokens
    as many sums as frequencies; for components see `fit_components`.

    Args:
        how: the numbers of tokens, by default the powers of two and all (for unordered tokens all alone, unless
            `partial`), or of components, and the decoding; `num` images, see `subset`.
        measures: networks of the semantic agreement, and the border that is cut off before anything is measured.
        training: images on which principal components are fitted, `num_fit` of them; None: the measured images.
        name: for the progress bar.

    Raises:
        InputError: settings that the tokenizer does not have, or see `cut_of`.
    """
    measures, chosen = measures or Measures(()), subset(images, how.num)
    whole = (how.partial and not tokenizer.spec.ordered) or how.components
    reconstructor = Reconstructor(tokenizer, chosen, replace(how, keep=()) if whole else how)
    cut = cut_of(reconstructor, how, training, name=name)
    options = reconstructor.decoder_options
    power, agreeing = dict[int, Tensor](), dict[int, dict[str, Tensor]]()  # ORIGINALS, or number of tokens
    with flow_settings(tokenizer, how) as flow, Bar(len(chosen), unit="image", name=name) as bar:
        for numbers in ranges(len(chosen), how.batch_size):
            x, _, cond = reconstructor.conditioned.batch(numbers)
            x = x.to(reconstructor.device)
            _add(power, ORIGINALS, x, measures.pad)
            tokens, shown = cut.read(tokenizer.encode(x, cond)), measures.features(x)
            for k in cut.keep:
                code, kept = cut.part(tokens, k)
                noise = [noise_of(how.seed, DECODER_NOISE, i) for i in numbers]
                with counted(tokenizer.decoder) as calls:
                    y = cut.decode(code, cond, keep=kept, generator=noise, **options).clamp(0, 1)
                _add(power, k, y, measures.pad)
                _count(agreeing.setdefault(k, {}), measures.agreements(measures.features(y), shown))
            bar.update(len(x))
        decoding = decoding_record(tokenizer, options, calls.rows / len(x))
    side = without_border(x, measures.pad).shape[-2:].numel()
    logs = {which: log_power(total / len(chosen), side) for which, total in power.items()}
    shares = {k: _shares(measures, agreeing[k], len(chosen)) for k in cut.keep}
    found = cut.components
    return Spectrum(
        len(chosen),
        logs[ORIGINALS].tolist(),
        [spectrum_point(k, logs[k], logs[ORIGINALS], shares[k]) for k in cut.keep],
        how.partial and not tokenizer.spec.ordered,
        reconstructor.conditioned.conditioning.label,
        None if decoding is None else {**decoding, **flow},
        cut.unit,
        None if found is None else [found.share(k) for k in cut.keep],
        None if found is None else found.num,
    )


def _count(sums: dict[str, Tensor], columns: Mapping[str, Tensor]) -> None:
    """Add the sums of columns (B,) of a batch."""
    for key, value in columns.items():
        sums[key] = sums.get(key, 0) + value.double().sum().cpu()


def _shares(measures: Measures, sums: Mapping[str, Tensor], num: int) -> dict[str, float]:
    """The semantic agreement of `num` images by network, from sums over them."""
    labels = {f"{i} semantic": network.label for i, network in enumerate(measures.networks)}
    return {labels[key]: float(value) / num for key, value in sums.items() if key in labels}


def _add(power: dict[int, Tensor], which: int, images: Tensor, pad: int) -> None:
    """Add the summed power (R,) of images without their border."""
    summed = radial_power(without_border(images, pad)).sum(0).cpu()
    power[which] = power[which] + summed if which in power else summed


def spectrum_point(keep: int, logs: Tensor, original: Tensor, semantic: dict[str, float]) -> SpectrumPoint:
    """The point of log10 powers (R,) and those of the originals (R,); the upper half has R - R // 2 frequencies."""
    ratio = logs - original
    return SpectrumPoint(
        keep, logs.tolist(), float(ratio.abs().mean()), float(ratio[len(ratio) // 2 :].mean()), semantic
    )


def counted_unit(num: int, unit: str) -> str:
    """ "1 token", "2 tokens"."""
    return f"{num} {unit.removesuffix('s') if num == 1 else unit}"


def plot_spectra(found: Mapping[str, Spectrum]) -> Image:
    """Plot the spectra of each model by number of tokens, and below the differences to the originals of all models."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 3.8 * len(found)), 7.2), dpi=110, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
    panels = upper.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, each) in zip(panels, found.items(), strict=True):
        periods = range(1, len(each.original) + 1)
        for i, point in enumerate(each.points):
            colour = colormaps["viridis"](i / max(len(each.points) - 1, 1) * 0.9)
            axes.plot(periods, point.log_power, color=colour, label=counted_unit(point.keep, each.unit))
        axes.plot(periods, each.original, color="black", linestyle="--", label="originals")
        axes.set_xscale("log", base=2)
        axes.set_title(plot_label(name), fontsize=9)
        axes.set_xlabel("periods per side")
        axes.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("log10 power")
    left, right = lower.subplots(1, 2)
    for name, each in found.items():
        keep = [point.keep for point in each.points]
        left.plot(keep, [point.error for point in each.points], marker="o", label=plot_label(name))
        for label in each.points[0].semantic:
            shares = [point.semantic[label] for point in each.points]
            right.plot(keep, shares, marker="o", label=plot_label(f"{name}, {label.partition('@')[0]}"))
    left.set_ylabel("mean |log10 power ratio|")
    right.set_ylabel("semantic agreement")
    for axes in (left, right):
        keep_axis(axes, [point.keep for each in found.values() for point in each.points])
        axes.set_xlabel(next(iter(found.values())).unit)
    if right.lines:
        right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure_image(figure)
