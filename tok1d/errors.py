"""Errors that a user can cause, each one line, and the words of other libraries' errors."""


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


def reason_of(error: BaseException, limit: int = 160) -> str:
    """Why something failed, as one line of at most `limit` characters: the system's words, the first line of the
    message, or the error's type where it has none."""
    said = getattr(error, "strerror", None) or next((line for line in str(error).splitlines() if line.strip()), "")
    return " ".join(str(said).split())[:limit] or type(error).__name__
