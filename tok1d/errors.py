"""Errors that a user can cause, each a one-line message, and a one-line summary of other libraries' errors."""


class Tok1dError(Exception):
    """A user's mistake. The message says what was expected, what was found and what to do.

    The command line prints it as one line and ends with exit code 2, without a traceback.

    Attributes:
        elsewhere: whether another process of the same command reports it.
    """

    elsewhere = False


class ConfigError(Tok1dError):
    """A recipe with an unknown key, a wrong type, a value out of range, or values that contradict each other."""


class DataError(Tok1dError):
    """Images, labels or token caches that are missing, damaged or do not belong together."""


class WeightsError(Tok1dError):
    """Weights that are missing, truncated, in an unsafe format, or made for another model."""


class InputError(Tok1dError, ValueError):
    """An argument that the given model cannot use, such as more tokens than it has or an unknown class."""


def reason_of(error: BaseException, limit: int = 160) -> str:
    """Summarise an error in one line of at most `limit` characters.

    The operating system's text if there is one, else the message with its lines joined, else the error's type.
    """
    text = getattr(error, "strerror", None) or error
    return " ".join(str(text).split())[:limit] or type(error).__name__
