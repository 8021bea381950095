"""Linear probe: accuracy of a linear classifier on frozen features."""

import warnings

import numpy as np
from torch import Tensor

from tok1d.errors import DataError

Array = Tensor | np.ndarray


def linear_probe(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    *,
    seed: int,
    max_iterations: int = 200,
) -> float:
    """Train a logistic regression and return its test accuracy in [0, 1].

    Features are standardised with mean and standard deviation of the training set; constant features become 0. The
    protocol is fixed so that results of different models are comparable: L-BFGS, scikit-learn's default L2 penalty
    (C = 1).

    Args:
        train_x, test_x: features (N, F).
        train_y, test_y: integer labels (N,).
        max_iterations: limit of L-BFGS; reaching it is not an error.

    Raises:
        DataError: shapes that do not fit, NaN or infinite features, or training labels of one class only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _checked("training", train_x, train_y)
    x_test, y_test = _checked("test", test_x, test_y)
    if x.shape[1] != x_test.shape[1]:
        raise DataError(
            f"expected test features of length {x.shape[1]}, got {x_test.shape[1]}; encode both sets with one model"
        )
    if len(np.unique(y)) < 2:
        raise DataError("expected training labels of at least two classes, got one; add images")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations, random_state=seed))
    with warnings.catch_warnings():
        # The limit of iterations is part of the protocol.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return float((model.predict(x_test) == y_test).mean())


def _checked(name: str, x: Array, y: Array) -> tuple[np.ndarray, np.ndarray]:
    features, labels = _array(x).astype(np.float64), _array(y)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise DataError(
            f"expected {name} features (N, F) with labels (N,), got {features.shape} and {labels.shape}; flatten the "
            "tokens of each image to one row"
        )
    if not np.isfinite(features).all():
        raise DataError(f"expected finite {name} features, got NaN or inf; check the encoder's output")
    return features, labels


def _array(x: Array) -> np.ndarray:
    return x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
