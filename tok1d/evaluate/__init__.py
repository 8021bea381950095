"""Evaluation. `tok1d.evaluate(model, data, ...)` measures, see `tok1d.api.evaluation.evaluate`."""

from tok1d.config.calls import make_callable

make_callable(__name__, "tok1d.api.evaluation:evaluate")
