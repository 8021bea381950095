"""Maps of tokens by class, with measures of the classes' separation (MAETok, arXiv 2502.03444, figures 4 and 9).

A map shows groups that depend on its method and seed. Silhouette and nearest-neighbour accuracy are therefore measured
between the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tok1d.analyze.codes import Codes
from tok1d.analyze.request import Maps
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.pictures import figure_image, plot_label
from tok1d.progress import Bar
from tok1d.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

NEIGHBOURS = 10
PERPLEXITY = 30.0  # of t-SNE, at most a third of the other images
ROWS = 500  # images whose distances to all others are held at once
LEGEND = 20  # most classes that the legend names


@dataclass(frozen=True)
class Separation:
    """How far the classes of vectors are apart.

    Args:
        silhouette: mean over the images of (b - a) / max(a, b), in [-1, 1], with the mean distance a to the other
            images of the class and b to those of the nearest other class.
        neighbours: share of the images, in [0, 1], whose class most of their 10 nearest other images have.
    """

    silhouette: float
    neighbours: float


@dataclass(frozen=True)
class TokenMap:
    """The map of a tokenizer.

    Args:
        num: number of images.
        keep: number of leading tokens, which are concatenated.
        label: the encoder's condition: "null", "true", or None without a condition.
        method: "tsne" or "umap".
        tokens, pixels: separation of the classes in the tokens, and in the pixels, reduced to at most 32 x 32.
        frequent: share of the images in the most frequent class.
        class_names: names of the classes.
        labels: class of each image.
        points: place (x, y) of each image on the map.
    """

    num: int
    keep: int
    label: str | None
    method: str
    tokens: Separation
    pixels: Separation
    frequent: float
    class_names: list[str]
    labels: list[int]
    points: list[tuple[float, float]]

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return the results, as one line of text."""
        parts = (
            f"{name}: silhouette {each.silhouette:+.3f}, {NEIGHBOURS} nearest neighbours {each.neighbours:.1%}"
            for name, each in (("tokens", self.tokens), ("pixels", self.pixels))
        )
        return [f"{'; '.join(parts)}; most frequent class {self.frequent:.1%}"]

    def said(self) -> str:
        """What was found, as a clause."""
        return (
            f"{NEIGHBOURS} nearest neighbours find the class of {self.tokens.neighbours:.1%} of the images from the "
            f"tokens and of {self.pixels.neighbours:.1%} from the pixels (silhouette {self.tokens.silhouette:+.2f} and "
            f"{self.pixels.silhouette:+.2f})"
        )


def neighbour_accuracy(rows: Tensor, labels: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of the rows (N, F), in [0, 1], whose label (N,) most of the k nearest other rows have.

    Of labels that are equally frequent, the one of the nearest row counts. Memory: 500 x N distances.
    """
    right, places = 0, torch.arange(1, k + 1, device=rows.device)
    for start in range(0, len(rows), ROWS):
        distances = torch.cdist(rows[start : start + ROWS], rows, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(distances), device=rows.device)
        distances[own, own + start] = torch.inf
        votes = one_hot(labels[distances.topk(k, largest=False).indices], int(labels.max()) + 1).double()
        nearest = (votes / places[:, None]).amax(1)  # at most 1, so it decides between equal votes alone
        found = (votes.sum(1) + nearest / 2).argmax(1)
        right += int((found == labels[start : start + ROWS]).sum())
    return right / len(rows)


def separation(rows: Tensor, labels: Tensor) -> Separation:
    """The separation of the classes (N,) of rows (N, F)."""
    from sklearn.metrics import silhouette_score

    silhouette = silhouette_score(rows.cpu().numpy(), labels.cpu().numpy())
    return Separation(float(silhouette), neighbour_accuracy(rows, labels))


def embedded(rows: Tensor, method: Literal["tsne", "umap"], seed: int) -> Tensor:
    """The places (N, 2) of rows (N, F) on a map, with the defaults of scikit-learn's t-SNE or of umap-learn."""
    if method == "umap":
        from umap import UMAP

        return torch.as_tensor(UMAP(random_state=seed).fit_transform(rows.cpu().numpy()))
    from sklearn.manifold import TSNE

    start = "pca" if rows.shape[1] > 1 else "random"
    model = TSNE(perplexity=min(PERPLEXITY, (len(rows) - 1) / 3), init=start, random_state=seed)
    return torch.as_tensor(model.fit_transform(rows.cpu().numpy()))


def check_method(method: str) -> None:
    """Raise InputError if the package of a method is not installed."""
    if method == "umap" and find_spec("umap") is None:
        raise InputError("--method: umap needs the package umap-learn: pip install 'tok1d[umap]', or use tsne")


def token_map(tokenizer: Tokenizer, images: ImageSet, how: Maps, *, name: str = "") -> TokenMap:
    """Map the tokens of images, and measure how far their classes are apart.

    Memory: the chosen tokens and pixels (at most 3,072) of all `num` images in float64, and 500 x `num` distances.

    Args:
        how: `num` images, see `subset`.
        name: for the progress bar.

    Raises:
        InputError: too few images or classes, more tokens than the tokenizer has, a method that is not installed, or
            tokens that are not finite or do not vary.
    """
    check_method(how.method)
    codes, length = Codes(tokenizer, subset(images, how.num), how.label), tokenizer.spec.length
    if len(codes.images) <= NEIGHBOURS:
        raise InputError(f"map needs more than {NEIGHBOURS} images, got {len(codes.images)}")
    if how.keep is not None and how.keep > length:
        raise InputError(f"--keep: expected 1..{length} (this model has {length} tokens), got {how.keep}")
    rows, pixels, classes = [], [], []
    with Bar(len(codes.images), unit="image", name=name) as bar:
        for numbers, tokens, small, labels in codes.batches(how.batch_size):
            rows.append(tokens[:, : how.keep].flatten(1))
            pixels.append(small)
            classes.append(labels)
            bar.update(len(numbers))
    vectors, labels = torch.cat(rows), torch.cat(classes)
    counts = torch.bincount(labels)
    if not 2 <= (found := int((counts > 0).sum())) < len(labels):
        raise InputError(
            f"map needs at least two classes and several images of one, got {found} of {len(labels)} images"
        )
    if not bool((vectors != vectors[0]).any()):
        raise InputError("map needs tokens that vary from image to image; check the tokenizer")
    places = embedded(vectors, how.method, how.seed)
    return TokenMap(
        len(vectors),
        how.keep or length,
        codes.label,
        how.method,
        separation(vectors, labels),
        separation(torch.cat(pixels), labels),
        float(counts.max()) / len(labels),
        list(image_classes(images).names) or [str(i) for i in range(images.num_classes)],
        labels.tolist(),
        [(round(x, 3), round(y, 3)) for x, y in places.double().tolist()],
    )


def plot_maps(found: Mapping[str, TokenMap]) -> Image:
    """Plot the map of each model, coloured by class, with the measures in its title."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found) + 1.6, 4.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, each) in zip(panels, found.items(), strict=True):
        places, labels = torch.tensor(each.points), torch.tensor(each.labels)
        shown = sorted(set(each.labels))
        for i, label in enumerate(shown):
            x, y = places[labels == label].T.tolist()
            colour = colormaps["tab10" if len(shown) <= 10 else "tab20"](i % 20)
            axes.scatter(x, y, s=6, color=colour, label=plot_label(each.class_names[label]) if i < LEGEND else None)
        axes.set_title(
            f"{plot_label(name)}\nsilhouette {each.tokens.silhouette:+.2f}, neighbours {each.tokens.neighbours:.1%}",
            fontsize=9,
        )
        axes.set_xticks([])
        axes.set_yticks([])
    panels[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
    return figure_image(figure)
