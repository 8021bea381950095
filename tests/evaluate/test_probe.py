"""The linear probe finds linearly separable labels and nothing else."""

import numpy as np
import pytest
import torch

from tok1d.errors import DataError
from tok1d.evaluate.probe import linear_probe


def blobs(num: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four unit Gaussians at `distance` from the origin, along four of eight axes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num)
    return rng.normal(size=(num, 8)) + distance * np.eye(8)[labels], labels


def test_separable_features_are_read_whatever_their_scale() -> None:
    (x, y), (x_test, y_test) = blobs(400, 8, 0), blobs(400, 8, 1)
    scale = 10.0 ** np.arange(-4, 4)
    assert linear_probe(x, y, x_test, y_test, seed=0) > 0.99
    assert linear_probe(x * scale + 5, y, x_test * scale + 5, y_test, seed=0) > 0.99


def test_tensors_are_read_like_arrays() -> None:
    (x, y), (x_test, y_test) = blobs(200, 1.5, 0), blobs(200, 1.5, 1)
    tensors = (torch.from_numpy(array) for array in (x, y, x_test, y_test))
    accuracy = linear_probe(x, y, x_test, y_test, seed=0)
    assert 0.5 < accuracy < 0.95
    assert linear_probe(*tensors, seed=0) == pytest.approx(accuracy, abs=0.01)


def test_labels_that_do_not_depend_on_the_features_are_guessed() -> None:
    (x, y), (x_test, y_test) = blobs(2000, 0, 0), blobs(2000, 0, 1)
    assert linear_probe(x, y, x_test, y_test, seed=0) == pytest.approx(0.25, abs=0.05)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    (x, y), (x_test, y_test) = blobs(200, 8, 0), blobs(200, 8, 1)
    x[:, 7], x_test[:, 7] = 3.0, 3.0
    assert linear_probe(x, y, x_test, y_test, seed=0) > 0.98


def test_what_does_not_fit_is_refused() -> None:
    x, y = blobs(40, 8, 0)
    with pytest.raises(DataError, match="of length 8"):
        linear_probe(x, y, x[:, :5], y, seed=0)
    with pytest.raises(DataError, match="training features"):
        linear_probe(x, y[:-1], x, y, seed=0)
    with pytest.raises(DataError, match="two classes"):
        linear_probe(x, np.zeros(40, dtype=int), x, y, seed=0)
    with pytest.raises(DataError, match="finite test"):
        linear_probe(x, y, np.full_like(x, np.nan), y, seed=0)
