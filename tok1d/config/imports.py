"""Importing user modules that register models: `tok1d --import MODULE`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from tok1d.errors import ConfigError, reason_of
from tok1d.files import as_path


def import_module(name: str) -> ModuleType:
    """Import a module by its name, also from the working directory, or by the path of a .py file.

    A file is imported once under its own name; modules next to it can be imported from it.

    Raises:
        ConfigError: there is no such module, or importing it fails; one line with the error and where it was raised.
    """
    path = Path(as_path(name))
    try:
        if path.suffix == ".py":
            return _import_file(path)
        _search(Path.cwd())
        return importlib.import_module(name)
    except ConfigError as error:
        raise ConfigError(f"--import {name}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"--import {name}: no such module in {Path.cwd()} or on Python's path") from None
        raise ConfigError(f"--import {name}: {_failure(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--import {name}: {_failure(error)}") from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("no such file; expected the path of a .py file, or the name of a module")
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise ConfigError(f"a module called {path.stem} is already loaded; rename the file")
    _search(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _search(folder: Path) -> None:
    """Append a folder to Python's module search path."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _failure(error: BaseException) -> str:
    """The error's type, its first line and the line of code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {reason_of(error)} ({frame.filename}, line {frame.lineno})"
