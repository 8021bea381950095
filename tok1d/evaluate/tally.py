"""Everything that metrics need of a set of images under a network, in a single pass, mergeable over shards."""

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
    """Moments, label agreement, score sums and, if kept, the features of images that arrive in any order.

    An image is identified by its number in the set, which decides its chunk of the Inception Score and its row in the
    features, and must come once only. Merged over shards, in any order, a tally equals that of a single pass up to
    the rounding of float64 sums.

    Args:
        dim, spatial_dim, num_classes: of the network, 0 for what it does not have.
        keep_features: keep the pooled features too, float32, for KID, precision and recall, density and coverage.
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
        self._seen = torch.zeros(0, dtype=torch.bool)
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
        """Images counted so far."""
        return self.pooled.count

    @property
    def seen(self) -> Tensor:
        """The numbers of these images, ascending, int64."""
        return self._seen.nonzero().flatten()

    def update(self, features: Features, indices: Sequence[int] | Tensor, labels: Tensor | None = None) -> Self:
        """Add a batch.

        Args:
            indices: numbers (B,) >= 0 of the images in their set.
            labels: (B,) the classes of the images, if the network is a classifier of them.

        Raises:
            DataError: features of another network, NaN, or an image that was counted before.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if indices.shape != (len(features),):
            raise DataError(f"tally: expected one number for each of {len(features)} images, got {len(indices)}")
        for part, wanted in ((features.spatial, self.spatial), (features.logits, self.scores)):
            if (part is None) != (wanted is None):
                raise DataError("tally: expected the features of the network that it was started with, got others")
        seen = torch.zeros(int(indices.max()) + 1 if len(indices) else 0, dtype=torch.bool)
        seen[indices] = True
        if int(seen.sum()) < len(indices):
            raise DataError("tally: an image's number stands twice in a batch; expected every image once")
        if not torch.isfinite(features.pooled).all():  # before anything is counted
            raise DataError("finite features are expected, got NaN or inf; check the images they come from")
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
        """Add everything that `other` has counted; raises DataError where the two do not belong together."""
        if other.layout != self.layout:
            raise DataError(f"tally: expected one of {self.layout}, got {other.layout}; merge shards of one evaluation")
        self._mark(other._seen)
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
        size = min(len(seen), len(self._seen))
        twice = (seen[:size] & self._seen[:size]).nonzero().flatten()
        if len(twice):
            raise DataError(f"tally: expected every image once, got {len(twice)} twice, such as {int(twice[0])}")
        longer, shorter = (seen, self._seen) if len(seen) > len(self._seen) else (self._seen, seen)
        longer = longer.clone()
        longer[:size] |= shorter[:size]
        self._seen = longer

    @property
    def layout(self) -> str:
        """Settings that two tallies must share to be merged."""
        parts = [f"dim {self.pooled.dim}", f"spatial {self.spatial.dim if self.spatial else 0}"]
        if self.scores is not None:
            parts.append(f"{self.scores.num_classes} classes in chunks of {self.scores.chunk or 'all'}")
        return ", ".join([*parts, "features kept" if self.keep_features else "features not kept"])

    @property
    def agreement(self) -> float | None:
        """Share of the labelled images that the network assigns to their class; None without any."""
        return self.num_right / self.num_labelled if self.num_labelled else None

    @property
    def score(self) -> Score:
        """The Inception Score; raises DataError for a network without logits."""
        if self.scores is None:
            raise DataError("an Inception Score needs a network with logits, this one has none")
        return self.scores.score()

    @property
    def features(self) -> Tensor:
        """The kept features (N, dim) float32 in the order of the images' numbers; raises DataError if none are."""
        if not self.keep_features:
            raise DataError("the features were not kept; start the tally with keep_features")
        if not self._features:
            return torch.zeros(0, self.pooled.dim)
        return torch.cat(self._features)[torch.cat(self._indices).argsort()]

    def state_dict(self) -> dict[str, Tensor | int]:
        """All of it as a flat dictionary of tensors and numbers, which may share memory with the tally."""
        parts: dict[str, Moments | ScoreSums | None]
        parts = {"pooled": self.pooled, "spatial": self.spatial, "scores": self.scores}
        state: dict[str, Tensor | int] = {
            f"{name}.{key}": value
            for name, part in parts.items()
            if part is not None
            for key, value in part.state_dict().items()
        }
        state |= {"num_right": self.num_right, "num_labelled": self.num_labelled, "seen": self._seen}
        if self.keep_features:
            state |= {"features": self.features, "indices": self.seen}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | int]) -> Tally:
        """The tally that gave this state; numbers may have become tensors of one element on the way."""

        def part(name: str) -> dict[str, Tensor | int]:
            return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}

        tensors = {key: torch.as_tensor(value) for key, value in state.items()}
        tally = cls(len(tensors["pooled.mean"]), keep_features="features" in state)
        tally.pooled = Moments.from_state(part("pooled"))
        tally.spatial = Moments.from_state(part("spatial")) if "spatial.mean" in state else None
        tally.scores = ScoreSums.from_state(part("scores")) if "scores.sums" in state else None
        tally.num_right, tally.num_labelled = int(state["num_right"]), int(state["num_labelled"])
        tally._seen = tensors["seen"]
        if tally.keep_features:
            tally._features, tally._indices = [tensors["features"]], [tensors["indices"]]
        return tally
