"""Gaussian mixtures fitted to tokens, to count their modes (MAETok, arXiv 2502.03444, figures 2a and 8, B.3).

Tokens are flattened, projected to principal components and standardised. Spaces are compared at one number of
components, at which each of them keeps most of its variance, as likelihoods of other dimensions do not compare.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from tok1d.analyze.components import Batches, Components
from tok1d.analyze.plots import ranges
from tok1d.data.images import ImageSet
from tok1d.errors import InputError
from tok1d.inference.cache import encode_batch, tokens_kept
from tok1d.inference.conditions import ConditionedImages
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

Covariance = Literal["diag", "full"]
COMPONENTS = (5, 10, 20)
NATS = "nats are units of negative log-likelihood (NLL): 1 nat less means that an image is e = 2.7 times as likely"


@dataclass(frozen=True)
class MixturePoint:
    """One fitted mixture.

    Args:
        components: number of Gaussians.
        seed: of the initialisation.
        nll: mean negative log-likelihood of the fitted rows, in nats per row.
        mean_norm: the largest norm of a component's mean, which bounds the modes in theorem 2.1 of MAETok.
        heldout: mean negative log-likelihood of other rows, in nats per row; None without any.
    """

    components: int
    seed: int
    nll: float
    mean_norm: float
    heldout: float | None = None


@dataclass(frozen=True)
class Mixtures:
    """Mixtures fitted to the same rows.

    Args:
        num: number of fitted rows, one per image.
        dims: number of principal components; likelihoods are comparable only if it is equal.
        variance: share of the variance that they explain.
        covariance: "diag" or "full".
        num_heldout: number of rows on which `heldout` is measured.
        heldout_one: `heldout` of one Gaussian with independent components; None without other rows.
    """

    num: int
    dims: int
    variance: float
    covariance: str
    points: list[MixturePoint]
    num_heldout: int = 0
    heldout_one: float | None = None

    @property
    def one(self) -> float:
        """`nll` of one Gaussian: dims / 2 (1 + log 2 pi), as the fitted rows are standardised and uncorrelated."""
        return self.dims / 2 * (1 + math.log(2 * math.pi))

    @property
    def best(self) -> list[MixturePoint]:
        """For each number of components, ascending, the fit with the lowest `nll`."""
        found: dict[int, MixturePoint] = {}
        for each in sorted(self.points, key=lambda point: (point.components, point.nll)):
            found.setdefault(each.components, each)
        return list(found.values())

    @property
    def too_many(self) -> list[int]:
        """Numbers of components for which a component has fewer images than fitted numbers."""
        numbers = 2 * self.dims if self.covariance == "diag" else self.dims * (self.dims + 3) // 2
        return [each.components for each in self.best if self.num < numbers * each.components]

    def to_json(self) -> dict[str, object]:
        """Return the fields, the likelihood of one Gaussian, and for which numbers of components images are few."""
        return {**asdict(self), "one": self.one, "too_many": self.too_many}

    def describe(self) -> list[str]:
        """Return one line for each mixture, the meaning of the unit, and a warning if images are few."""
        lines = [f"{self.num} images, {self.dims} principal components with {self.variance:.1%} of the variance"]
        for each in self.points:
            other = "" if each.heldout is None else f", held-out {each.heldout:9.3f}"
            lines.append(
                f"{each.components:4d} components, seed {each.seed}: NLL {each.nll:9.3f} nats{other}, "
                f"largest norm of a mean {each.mean_norm:.3f}"
            )
        if self.too_many:
            lines.append(
                f"warning: {self.num} images are too few for {', '.join(map(str, self.too_many))} components, which "
                f"have more fitted numbers than images; the NLL of the fitted images is then too low: use more images "
                f"(--num-train) or fewer --components, and compare the held-out NLL"
            )
        return lines

    def said(self) -> str:
        """What was found, as a clause."""
        held = [each for each in self.best if each.heldout is not None]
        low = min(held or self.best, key=lambda each: each.nll if each.heldout is None else each.heldout)
        value, one, what = (
            (low.nll, self.one, "NLL")
            if low.heldout is None or self.heldout_one is None
            else (low.heldout, self.heldout_one, f"held-out NLL (fitted images {low.nll:.2f})")
        )
        norm = max(each.mean_norm for each in self.best)
        few = f"; too few images for {', '.join(map(str, self.too_many))} modes" if self.too_many else ""
        return (
            f"in {self.dims} principal components ({self.variance:.0%} of the variance), {low.components} modes have "
            f"the lowest {what}, {value:.2f} nats against {one:.2f} of one Gaussian; the largest norm of a mean is "
            f"{norm:.2f}{few}"
        )


def common_dims(spaces: Mapping[str, Components], variance: float) -> int:
    """The fewest components at which each of several spaces keeps a share of its variance.

    Raises:
        InputError: a share out of range, or a space that does not vary in so many dimensions.
    """
    if not 0 < variance <= 1:
        raise InputError(f"variance: expected a share above 0 and at most 1, got {variance:g}")
    needed = {name: space.dims_for(variance) for name, space in spaces.items()}
    widest = max(needed, key=lambda name: needed[name])
    for name, space in spaces.items():
        if len(space.variances) < needed[widest]:
            raise InputError(
                f"--variance: {widest} needs {needed[widest]} principal components for {variance:.0%} of its variance, "
                f"but {name} varies in {len(space.variances)} dimensions only; use a lower share, more images, or "
                "analyze them apart"
            )
    return needed[widest]


def check_mixture(tokenizer: Tokenizer) -> None:
    """Raise InputError if the tokens of a tokenizer are ids."""
    if tokenizer.spec.dim is None:
        raise InputError("mixtures are fitted to continuous tokens, this tokenizer has discrete ones")


def token_batches(
    tokenizer: Tokenizer, images: ImageSet, *, label: str | None = None, batch_size: int = 250, name: str | None = None
) -> tuple[Batches, str | None]:
    """A function that encodes an image set to rows (B, K * D) in batches, and the tokenizer's condition.

    The condition is that of a token cache, on which generators are trained.

    Args:
        label: see `conditioning_of`.
        name: for the progress bar; None: without one.

    Raises:
        InputError: ids, see `check_mixture`.
    """
    check_mixture(tokenizer)
    conditioned, length = ConditionedImages(tokenizer, images, label), tokens_kept(tokenizer.spec, None)

    @torch.no_grad()
    def rows() -> Iterator[Tensor]:
        with Bar(len(images), unit="image", name=name or "", quiet=name is None) as bar:
            for numbers in ranges(len(images), batch_size):
                x, _, cond = conditioned.batch(numbers)
                yield encode_batch(tokenizer, x, cond, length).cpu().flatten(1).double()
                bar.update(len(x))

    return rows, conditioned.conditioning.label


def fit_mixtures(
    tokens: Tensor,
    components: Sequence[int],
    *,
    dims: int | None = None,
    variance: float = 0.9,
    covariance: Covariance = "diag",
    seeds: Sequence[int] = (0,),
) -> Mixtures:
    """Fit Gaussian mixtures to tokens (N, ...) in memory, flattened to one row per image; see `fit_space`.

    Args:
        dims: number of principal components, to compare tokenizers; default: as few as explain `variance`.
        variance: share of the variance, in (0, 1].

    Raises:
        InputError: a value out of range, or tokens that are not finite or do not vary.
    """
    flat = tokens.flatten(1).double().cpu()

    def rows() -> Iterator[Tensor]:
        return iter([flat])

    space = Components.of(rows, "mixtures")
    dims = common_dims({"": space}, variance) if dims is None else dims
    return fit_space(space, rows, components, dims=dims, covariance=covariance, seeds=seeds)


def fit_space(
    space: Components,
    fitted: Batches,
    components: Sequence[int],
    *,
    dims: int,
    covariance: Covariance = "diag",
    seeds: Sequence[int] = (0,),
    heldout: Batches | None = None,
    name: str | None = None,
) -> Mixtures:
    """Fit Gaussian mixtures to the standardised principal components of a space.

    A mixture is fitted by expectation maximisation from a k-means initialisation, for every number of components and
    every seed. A fit may end in a local optimum, so compare the lowest `nll` of several seeds. A latent space is
    simpler if it needs fewer components for the same likelihood.

    Memory: N (dims + K) numbers of 8 bytes for N rows and K components, a few times.

    Args:
        fitted: the rows of the space's images.
        components: numbers of Gaussians to fit.
        covariance: of a component, "diag" or "full".
        seeds: of the initialisations.
        heldout: rows of other images, on which the likelihood is measured too.
        name: for the progress bar; None: without one.

    Raises:
        InputError: a value out of range.
    """
    if not components or min(components) < 1 or max(components) > space.num:
        raise InputError(f"components: expected counts in 1..{space.num} (the images), got {list(components)}")
    if not 1 <= dims <= len(space.variances):
        raise InputError(f"dims: expected 1..{len(space.variances)}, as these tokens vary in so many, got {dims}")
    if covariance not in get_args(Covariance):
        raise InputError(f"covariance: expected diag or full, got {covariance!r}")
    rows = space.standardised(fitted, dims)
    others = None if heldout is None else space.standardised(heldout, dims)
    points = []
    with Bar(len(components) * len(seeds), unit="fit", name=name or "", quiet=name is None) as bar:
        for k in components:
            for seed in seeds:
                points.append(_fit(rows, others, k, seed, covariance))
                bar.update()
    found = (len(rows), dims, space.share(dims), covariance, points)
    if others is None:
        return Mixtures(*found)
    one = float(others.square().sum(1).mean() + dims * math.log(2 * math.pi)) / 2
    return Mixtures(*found, len(others), one)


def _fit(rows: Tensor, others: Tensor | None, components: int, seed: int, covariance: Covariance) -> MixturePoint:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(components, covariance_type=covariance, random_state=seed)
    with warnings.catch_warnings():
        # The limit on iterations (100, the default) is part of the protocol, so no warning is printed if it is reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows.numpy())
    norm = float(torch.as_tensor(model.means_).norm(dim=1).max())
    held = None if others is None else -float(model.score(others.numpy()))
    return MixturePoint(components, seed, -float(model.score(rows.numpy())), norm, held)


def plot_mixtures(found: Mapping[str, Mixtures]) -> Image:
    """Plot the likelihoods of fitted and held-out images and the largest norm of a mean by number of modes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, each) in enumerate(found.items()):
        modes = [point.components for point in each.best]
        title = f"{name} ({each.variance:.0%} of the variance)"
        left.plot(modes, [point.nll for point in each.best], marker="o", color=f"C{i}", label=plot_label(title))
        held = [(point.components, point.heldout) for point in each.best if point.heldout is not None]
        if held:
            left.plot(*zip(*held, strict=True), "--", marker="o", markerfacecolor="white", color=f"C{i}")
        norms = [point.mean_norm for point in each.best]
        right.plot(modes, norms, marker="o", color=f"C{i}")
    first = next(iter(found.values()))
    left.plot([], [], color="grey", label="fitted images")
    left.plot([], [], "--", color="grey", label="held-out images")
    left.axhline(first.one, color="grey", linewidth=1, linestyle=":", label="one Gaussian, fitted images")
    left.set_ylabel(f"NLL in {first.dims} dimensions, nats")
    right.set_ylabel("largest norm of a mean")
    ticks = sorted({point.components for each in found.values() for point in each.points})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("modes (components of the mixture)")
        axes.grid(alpha=0.3)
        axes.margins(y=0.1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure_image(figure)
