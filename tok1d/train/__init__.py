"""Training. `tok1d.train(recipe, ...)` trains, see `tok1d.api.training.train`."""

from tok1d.config.calls import make_callable

make_callable(__name__, "tok1d.api.training:train")
