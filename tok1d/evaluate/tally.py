"""Statistics of the features of a set of images for one network; those of shards can be merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from tok1d.errors import DataError
from tok1d.evaluate.features import FeatureNetwork, Features
from tok1d.evaluate.metrics import Moments
from tok1d.evaluate.score import ADM_CHUNK, Score, ScoreSums


class Tally:
    """Moments, label agreement, sums for the Inception Score and optionally the features of a set of images.

    Images are added in any order, each once. The number of an image in the set determines its chunk of the Inception
    Score and its row in the features. Merged tallies of shards equal a tally of the whole set up to rounding errors of
    float64 sums.

    Args:
        dim, spatial_dim, num_classes: of the network; 0 for features that it does not have.
        keep_features: store the pooled features as float32, for KID, precision and recall, density and coverage.
        chunk: see `ScoreSums`.
    """

    def __init__(
        self,
        dim: int,
        *,
        spatial_dim: int = 0,
        num_classes: int = 0,
        keep_features: bool = False,
        chunk: int | None = ADM_CHUNK,
    ) -> None:
        self.pooled = Moments(dim)
        self.spatial = Moments(spatial_dim) if spatial_dim else None
        self.scores = ScoreSums(num_classes, chunk) if num_classes else None
        self.keep_features = keep_features
        self.num_right = 0
        self.num_labelled = 0
        self._counted = torch.zeros(0, dtype=torch.bool)
        self._indices: list[Tensor] = []
        self._features: list[Tensor] = []

    @classmethod
    def of(cls, network: FeatureNetwork, *, keep_features: bool = False, chunk: int | None = ADM_CHUNK) -> Tally:
        """An empty tally for a network's features."""
        return cls(
            network.dim,
            spatial_dim=network.spatial_dim,
            num_classes=network.num_classes,
            keep_features=keep_features,
            chunk=chunk,
        )

    @property
    def num_images(self) -> int:
        """Number of images added so far."""
        return self.pooled.count

    @property
    def image_numbers(self) -> Tensor:
        """Numbers of the images added so far, ascending, int64."""
        return self._counted.nonzero().flatten()

    def update(self, features: Features, indices: Sequence[int] | Tensor, labels: Tensor | None = None) -> Self:
        """Add a batch.

        Args:
            indices: numbers (B,) >= 0 of the images in the set.
            labels: class ids (B,) of the images, if the network is a classifier of these classes.

        Raises:
            DataError: features of another network, NaN, or an image that was added before.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if indices.shape != (len(features),):
            raise DataError(f"tally: expected one number for each of {len(features)} images, got {len(indices)}")
        for part, wanted in ((features.spatial, self.spatial), (features.logits, self.scores)):
            if (part is None) != (wanted is None):
                raise DataError("tally: expected features of the network that it was created for, got others")
        seen = torch.zeros(int(indices.max()) + 1 if len(indices) else 0, dtype=torch.bool)
        seen[indices] = True
        if int(seen.sum()) < len(indices):
            raise DataError("tally: an image's number is twice in a batch; expected every image once")
        if not torch.isfinite(features.pooled).all():  # before anything is added
            raise DataError("expected finite features, got NaN or inf; check the images")
        self._mark(seen)
        self.pooled.update(features.pooled)
        if self.spatial is not None and features.spatial is not None:
            self.spatial.update(features.spatial)
        if self.scores is not None and features.logits is not None:
            self.scores.update(features.logits, indices)
            if labels is not None:
                self.num_right += int((features.logits.argmax(dim=1).cpu() == labels.cpu()).sum())
                self.num_labelled += len(labels)
        if self.keep_features:
            self._indices.append(indices)
            self._features.append(features.pooled.detach().to("cpu", torch.float32))
        return self

    def merge(self, other: Tally) -> Self:
        """Add the images of `other`; raises DataError if it has another layout or the same images."""
        if other.layout != self.layout:
            raise DataError(f"tally: expected one of {self.layout}, got {other.layout}; merge shards of one evaluation")
        self._mark(other._counted)
        self.pooled.merge(other.pooled)
        if self.spatial is not None and other.spatial is not None:
            self.spatial.merge(other.spatial)
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)
        self.num_right += other.num_right
        self.num_labelled += other.num_labelled
        self._indices += other._indices
        self._features += other._features
        return self

    def _mark(self, seen: Tensor) -> None:
        size = min(len(seen), len(self._counted))
        twice = (seen[:size] & self._counted[:size]).nonzero().flatten()
        if len(twice):
            raise DataError(f"tally: expected every image once, got {len(twice)} twice, such as {int(twice[0])}")
        longer, shorter = (seen, self._counted) if len(seen) > len(self._counted) else (self._counted, seen)
        longer = longer.clone()
        longer[:size] |= shorter[:size]
        self._counted = longer

    @property
    def layout(self) -> str:
        """The settings in which two tallies must agree to be merged, as text."""
        parts = [f"dim {self.pooled.dim}", f"spatial {self.spatial.dim if self.spatial else 0}"]
        if self.scores is not None:
            parts.append(f"{self.scores.num_classes} classes in chunks of {self.scores.chunk or 'all'}")
        return ", ".join([*parts, "features kept" if self.keep_features else "features not kept"])

    @property
    def agreement(self) -> float | None:
        """Share of the labelled images that the network assigns to their class; None without labelled images."""
        return self.num_right / self.num_labelled if self.num_labelled else None

    @property
    def score(self) -> Score:
        """The Inception Score; raises DataError for a network without logits."""
        if self.scores is None:
            raise DataError("Inception Score: expected a network with logits, got one without")
        return self.scores.score()

    @property
    def features(self) -> Tensor:
        """The stored features (N, dim) float32, sorted by image number; raises DataError without `keep_features`."""
        if not self.keep_features:
            raise DataError("the features were not stored; create the tally with keep_features=True")
        if not self._features:
            return torch.zeros(0, self.pooled.dim)
        return torch.cat(self._features)[torch.cat(self._indices).argsort()]

    def state_dict(self) -> dict[str, Tensor | int]:
        """The state as a flat dictionary of tensors and numbers; tensors may share memory with the tally."""
        parts: dict[str, Moments | ScoreSums | None]
        parts = {"pooled": self.pooled, "spatial": self.spatial, "scores": self.scores}
        state: dict[str, Tensor | int] = {
            f"{name}.{key}": value
            for name, part in parts.items()
            if part is not None
            for key, value in part.state_dict().items()
        }
        state |= {"num_right": self.num_right, "num_labelled": self.num_labelled, "seen": self._counted}
        if self.keep_features:
            state |= {"features": self.features, "indices": self.image_numbers}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | int]) -> Tally:
        """The tally with this state; numbers may also be tensors of one element, as safetensors stores them."""

        def part(name: str) -> dict[str, Tensor | int]:
            return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}

        tensors = {key: torch.as_tensor(value) for key, value in state.items()}
        tally = cls(len(tensors["pooled.mean"]), keep_features="features" in state)
        tally.pooled = Moments.from_state(part("pooled"))
        tally.spatial = Moments.from_state(part("spatial")) if "spatial.mean" in state else None
        tally.scores = ScoreSums.from_state(part("scores")) if "scores.sums" in state else None
        tally.num_right, tally.num_labelled = int(state["num_right"]), int(state["num_labelled"])
        tally._counted = tensors["seen"]
        if tally.keep_features:
            tally._features, tally._indices = [tensors["features"]], [tensors["indices"]]
        return tally
