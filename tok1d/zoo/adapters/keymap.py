"""Published weight files: reading them, cleaning the names of their weights, and renaming by a declarative map."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from tok1d.errors import WeightsError, reason_of
from tok1d.zoo.adapters.averages import Choice, State, choose_file, choose_state, clean
from tok1d.zoo.weights import load_state, read_weights

Options = dict[str, Any]  # of a config.json

# The placeholders of a pattern: block numbers, and the two parameters of a linear layer or a norm.
_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias"}
# Classes of pathlib in the options that trainers save.
_PATHS = ("PosixPath", "PurePosixPath")


class KeyMap:
    """Names of weights in two layouts, as pairs of patterns such as ("blocks.{i}.fc.{p}", "layers.{i}.out.{p}").

    `{i}` and `{j}` are numbers, `{p}` is weight or bias; both patterns of a pair have the same placeholders.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = list(pairs)
        self._there = [(_compile(published), ours) for published, ours in self.pairs]
        self._back = [(_compile(ours), published) for published, ours in self.pairs]

    def ours(self, name: str) -> str | None:
        """Our name of a published weight; None if the map does not have it."""
        return _rename(name, self._there)

    def published(self, name: str) -> str | None:
        """The published name of one of our weights; None if the map does not have it."""
        return _rename(name, self._back)


def below(pairs: Iterable[tuple[str, str]], published: str, ours: str) -> list[tuple[str, str]]:
    """The pairs of a part of a model, with the prefixes that it has in the two layouts."""
    return [(published + there, ours + here) for there, here in pairs]


def same(*patterns: str) -> list[tuple[str, str]]:
    """Pairs of names that both layouts share."""
    return [(pattern, pattern) for pattern in patterns]


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w)\}", pattern)
    text = "".join(f"(?P<{p}>{_PLACEHOLDERS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts))
    return re.compile(text)


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        match = pattern.fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None


def listing(names: Iterable[str]) -> str:
    """The number of names and the first three of them, in one line."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def read_published(path: str | Path, choice: Choice | None = None) -> State:
    """Cleaned weights of a published file (.safetensors, or a torch.save archive) or of a step directory.

    If a directory or a file has averaged and raw weights, `choice` decides, by default for averaged ones; a line on
    stderr states what was read and what else is there.

    Raises:
        WeightsError: no such file, a damaged file, or a pickle with more than tensors.
        InputError: the file lacks the weights that `choice` wants.
    """
    choice = Choice() if choice is None else choice
    path, averaged, line = choose_file(Path(path), choice)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected published weights (.safetensors, .pkl, .pt or .pth)")
    content = read_weights(path) if path.suffix == ".safetensors" else _read_archive(path)
    state, inside = choose_state(content, choice, path, averaged)
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        raise WeightsError(f"{path}: expected names and tensors, got {listing(strange)} entries of another kind")
    if said := line or inside:
        print(f"{path}: {said}", file=sys.stderr)
    return clean({name: value for name, value in state.items() if isinstance(value, Tensor)}, str(path))


def without_prefix(state: State, prefixes: Iterable[str]) -> State:
    """Remove the first of `prefixes` that all names have; training wrappers add such prefixes."""
    for prefix in prefixes:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def published_options(file: str | Path) -> Options:
    """The options in the config.json of a published folder, given the folder or a file in it; empty without one.

    Raises:
        WeightsError: a config.json that is not a JSON mapping.
    """
    file = Path(file)
    path = (file if file.is_dir() else file.parent) / "config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not JSON ({reason_of(error)}); fetch it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a mapping of options, got a {type(content).__name__}")
    return content


def _harmless_classes() -> list:
    """Classes that may be unpickled: those of the options and counters that trainers save with the weights."""
    import argparse
    import codecs
    import pathlib

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}
    plain = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, codecs.encode, np.dtype, *kinds]
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 6):  # type: ignore[operator]
        return plain  # this version of torch accepts no further names
    # The same classes under the names of other versions of numpy and Python.
    return [
        *plain,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((getattr(pathlib, name), f"{module}.{name}") for name in _PATHS for module in ("pathlib", "pathlib._local")),
    ]


def _read_archive(path: Path) -> dict:
    try:
        with torch.serialization.safe_globals(_harmless_classes()):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many types on a damaged file
        if (refused := re.search(r"Unsupported global: GLOBAL (\S+)", str(error))) is not None:
            raise WeightsError(
                f"{path}: contains a {refused[1]}; a pickle can run code, so only plain tensors, numbers and texts are "
                "read from it: save the state dict alone"
            ) from None
        reason = reason_of(error)
        raise WeightsError(f"{path}: not a torch archive of plain tensors ({reason}); fetch it again") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dictionary of weights, got a {type(content).__name__}")
    return dict(content)


def option_number(options: Mapping[str, object], key: str, default: float, source: str | Path) -> float:
    """The number `key` of published options; `default` if it is absent or null.

    Raises:
        WeightsError: not a number.
    """
    value = options.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WeightsError(f"{source}: config.json: {key}: expected a number, got {json.dumps(value)[:60]}")
    return value


def compare_options(options: Mapping[str, object], found: Mapping[str, object], source: str | Path) -> None:
    """Check that a config.json describes these weights; options that are absent or null are not compared.

    Raises:
        WeightsError: an option contradicts the weights.
    """
    for key, value in found.items():
        stated = options.get(key)
        if stated is not None and stated != value:
            raise WeightsError(f"{source}: config.json says {key}={stated!r}, but the weights have {value!r}")


def shape_of(state: State, name: str, keys: KeyMap, source: str | Path = "published weights") -> Size:
    """The shape of a weight, by our name.

    Raises:
        WeightsError: it is missing; the message states its published name.
    """
    if name not in state:
        published = keys.published(name) or name
        raise WeightsError(f"{source}: {published} is missing; is this the right file and format?")
    return state[name].shape


def depth_of(state: State, prefix: str = "", source: str | Path = "published weights") -> int:
    """The number of blocks, from the highest number below "<prefix>blocks."; raises WeightsError without any."""
    blocks = f"{prefix}blocks."
    numbers = [int(name.removeprefix(blocks).split(".")[0]) for name in state if name.startswith(blocks)]
    if not numbers:
        raise WeightsError(f"{source}: no {blocks.removesuffix('.')} found; is this the right file and format?")
    return 1 + max(numbers)


def heads_of(
    given: int | None, width: int, known: Mapping[int, int], option: str, source: str | Path = "published weights"
) -> int:
    """The number of attention heads, which weight files do not contain: `given`, else that of `known` models.

    Args:
        known: width of the model -> number of heads.
        option: the option that sets the number, for the message.

    Raises:
        WeightsError: neither is available.
    """
    heads = given or known.get(width)
    if heads is None:
        raise WeightsError(
            f"{source}: the weights do not determine the attention heads of width {width}: give {option}"
        )
    return heads


def table_tolerance(stored: Tensor) -> float:
    """The allowed difference of a stored table of sines and cosines: the rounding of its type, at least 1e-4."""
    return max(1e-4, torch.finfo(stored.dtype).eps) if stored.is_floating_point() else 1e-4


def mlp_ratio(hidden: int, width: int) -> float:
    """A ratio r with int(width * r) == hidden: hidden / width, or more where rounding would give hidden - 1."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def fill_model(model: nn.Module, state: State, names: Mapping[str, str], source: str) -> None:
    """Load weights in our layout, strictly; `names` maps our names to published ones, for messages.

    Raises:
        WeightsError: weights are missing, unexpected or of another shape.
    """
    wanted = model.state_dict().keys()
    for kind, keys in (("missing", wanted - state.keys()), ("not part of this model", state.keys() - wanted)):
        if keys:
            shown = listing(names.get(key, key) for key in keys)
            raise WeightsError(f"{source}: weights {kind}: {shown}; is this the right file and format?")
    load_state(model, state, source)
