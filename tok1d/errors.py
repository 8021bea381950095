"""Mistakes a person can make, told in one line."""


class Tok1dError(Exception):
    """A user's mistake: the message says what was expected, what was found and what to do.

    The command line prints it as one line and ends with exit code 2, without a traceback.
    """


class ConfigError(Tok1dError):
    """A recipe with an unknown key, a wrong type, or a value out of range or in contradiction to another."""


class DataError(Tok1dError):
    """Images, labels or token caches that are missing, broken or do not belong together."""


class WeightsError(Tok1dError):
    """Weights that are missing, truncated, in an unsafe format, or made for another model."""


class InputError(Tok1dError, ValueError):
    """An argument outside what the model at hand can do: a count above its length, a class it does not know."""
