"""Linear probe: how much of the label a linear classifier reads from frozen features."""

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
    """Test accuracy in [0, 1] of a logistic regression on features `(N, F)` with integer labels `(N,)`.

    Features are standardised with the training set's mean and deviation; features that never vary become 0. Both
    the optimiser and its steps are fixed (L-BFGS, at most `max_iterations`, unit L2 penalty), so that probes of
    different models compare. Raises DataError on shapes that do not fit, NaN or inf, or a single training class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _checked("training", train_x, train_y)
    x_test, y_test = _checked("test", test_x, test_y)
    if x.shape[1] != x_test.shape[1]:
        raise DataError(
            f"test features of length {x.shape[1]} are expected, got {x_test.shape[1]}; encode both sets with "
            "the same model"
        )
    if len(np.unique(y)) < 2:
        raise DataError("at least two classes are expected in the training labels, got one; add images")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations, random_state=seed))
    with warnings.catch_warnings():
        # The bound on the iterations is part of the protocol, not a fault to report.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return float((model.predict(x_test) == y_test).mean())


def _checked(name: str, x: Array, y: Array) -> tuple[np.ndarray, np.ndarray]:
    features, labels = _array(x).astype(np.float64), _array(y)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise DataError(
            f"{name} features (N, F) with labels (N,) are expected, got {features.shape} and {labels.shape}; "
            "flatten the tokens of each image to one row"
        )
    if not np.isfinite(features).all():
        raise DataError(f"finite {name} features are expected, got NaN or inf; check the encoder's output")
    return features, labels


def _array(x: Array) -> np.ndarray:
    return x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
