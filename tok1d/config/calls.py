"""Packages that can be called: `tok1d.train(...)` is a function and `tok1d.train.run` a module of the package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from tok1d.config.registry import attribute


def make_callable(name: str, path: str) -> None:
    """Make the package `name` callable as the function at "module:name", which is imported when it is called."""

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return attribute(path)(*args, **options)

    sys.modules[name].__class__ = CallablePackage
