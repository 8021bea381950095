"""Analyses. `tok1d.analyze(name, models, data, ...)` analyzes, see `tok1d.api.analyses.analyze`."""

from tok1d.config.calls import make_callable

make_callable(__name__, "tok1d.api.analyses:analyze")
