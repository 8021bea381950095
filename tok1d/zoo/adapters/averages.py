"""Raw and averaged (EMA) weights in one published file or folder: how they are told apart, and which are read.

Averages are known by the customary names: a key of the file (`ema`, `model_ema`, `state_dict_ema`, `params_ema`,
`shadow`, ...), the first part of the weights' names (`ema_model.`, `model_ema.`), or the name of a file in a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from tok1d.errors import InputError, WeightsError

Which = Literal["raw", "ema"]
State = dict[str, Tensor]

# Words in a key or file name that stand for averages; keys are split at capitals and at all but letters and digits.
_WORDS = {
    "ema",
    "emas",
    "averaged",
    "average",
    "averages",
    "avg",
    "shadow",
    "swa",
    "polyak",
    "modelema",
    "emamodel",
    "netema",
}
_AVERAGED_FILE = "custom_checkpoint_1.pkl"  # accelerate's name of the second saved object, in Semanticist's releases
_RAW_FILES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_SUFFIXES = (".safetensors", ".pkl", ".pt", ".pth", ".bin", ".ckpt")
# Keys under which trainers store raw weights, in the order in which they are tried.
_RAW_KEYS = (
    *("state_dict", "model", "module", "model_state_dict", "model_state", "model_weights"),
    *("params", "net", "network", "weights", "raw", "online", "online_model"),
)
# First parts of the names of raw weights that are next to averages.
_RAW_PREFIXES = ("online_model.", "model.", "net.", "network.", "")
_COUNTERS = {"decay", "num_updates", "n_averaged", "initted", "step", "updates", "optimization_step", "num_averaged"}
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


@dataclass
class Choice:
    """Which weights to read, and after reading what was read.

    Args:
        wanted: None for averaged weights where there are some.
        taken: "" if the file has one set of weights and does not state which.
    """

    wanted: Which | None = None
    taken: Which | Literal[""] = ""


class _Found(NamedTuple):
    label: str
    state: Mapping[str, object]
    averaged: bool


def is_average(name: str) -> bool:
    """Whether a key or the stem of a file name is that of averaged weights."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return not _WORDS.isdisjoint(re.split(r"[^a-z]+", spaced.lower()))


def clean(state: Mapping[str, Tensor], source: str = "state") -> State:
    """Names without the components that torch.compile and data parallelism (DDP, FSDP) add, anywhere in them.

    Raises:
        WeightsError: two entries then have the same name.
    """
    cleaned = {".".join(part for part in name.split(".") if part not in _WRAPPERS): v for name, v in state.items()}
    if len(cleaned) != len(state):
        raise WeightsError(
            f"{source}: {len(state) - len(cleaned)} weights appear twice, with and without a wrapper's prefix; "
            "keep one copy of each"
        )
    return cleaned


def choose_file(path: Path, choice: Choice) -> tuple[Path, bool, str]:
    """The weight file of a path, whether its name says averaged, and a line about other files of the model, or "".

    Of a folder the averaged weights are taken unless raw ones are wanted. A file that is named is taken.

    Raises:
        WeightsError: a folder without weight files, or without those that are wanted.
    """
    if not path.is_dir():
        beside = [each.name for each in _averaged_files(path.parent) if each != path]
        if not beside or is_averaged_file(path) or choice.wanted == "raw" or path.name not in _RAW_FILES:
            return path, is_averaged_file(path), ""
        return path, False, f"averaged weights are beside this file, in {beside[0]}: to read them, give the folder"
    averaged, raw = _averaged_files(path), [path / name for name in _RAW_FILES if (path / name).is_file()]
    if not averaged and not raw:
        raise WeightsError(
            f"{path}: expected a weight file or a folder with {_AVERAGED_FILE} or {' or '.join(_RAW_FILES)}"
        )
    if choice.wanted == "ema" and not averaged:
        return raw[0], False, ""  # the file itself may have both
    if (choice.wanted == "raw" and raw) or not averaged:
        return raw[0], False, _said("raw", raw[0].name, [each.name for each in averaged])
    return averaged[0], True, _said("ema", averaged[0].name, [each.name for each in [*raw, *averaged[1:]]])


def is_averaged_file(path: Path) -> bool:
    """Whether the name of a file is that of averaged weights."""
    return path.name == _AVERAGED_FILE or is_average(path.stem)


def _averaged_files(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [each for each in inside if each.suffix in _SUFFIXES and is_averaged_file(each) and each.is_file()]
    below = [each / name for each in inside if is_average(each.name) for name in _RAW_FILES if (each / name).is_file()]
    return sorted(files, key=lambda each: each.name != _AVERAGED_FILE) + below


def choose_state(
    content: Mapping[str, object], choice: Choice, path: Path, averaged: bool
) -> tuple[Mapping[str, object], str]:
    """The state dict of a file's content that is read, and a line about the other, or ""; notes `choice.taken`.

    Args:
        path: the file, for messages.
        averaged: whether its name says that all of it is averaged.

    Raises:
        WeightsError: averages without names, which cannot be assigned to weights.
        InputError: the file does not have what is wanted.
    """
    found = list(_states(content, "", averaged))
    if not found:
        found = [_Found("", content, averaged)]
    found = [part for each in found for part in _parts(each)]
    found += _alike(content, found)
    averages, raw = [each for each in found if each.averaged], [each for each in found if not each.averaged]
    if not averages and choice.wanted != "raw" and (nameless := _nameless(content)):
        raise WeightsError(
            f"{path}: the averaged weights in {nameless!r} have no names, so they cannot be assigned to the model's; "
            "pass --weights raw (weights=raw) to convert the raw ones"
        )
    if choice.wanted == "ema" and not averages:
        has = f"only raw ones in {raw[0].label!r}" if raw[0].label else "one set that is not called averaged"
        raise InputError(f"{path}: --weights ema: expected averaged weights in the file, got {has}; leave it out")
    if choice.wanted == "raw" and not raw:
        raise InputError(f"{path}: --weights raw: expected raw weights in the file, got only averaged ones")
    taken = raw[0] if choice.wanted == "raw" or not averages else averages[0]
    choice.taken = "ema" if taken.averaged else "raw" if averages or taken.label or choice.wanted else ""
    if taken.averaged and raw:
        taken, lacking = _completed(taken, raw[0])
    else:
        lacking = []
    others = [each.label for each in found if each.label != taken.label]
    line = _said("ema" if taken.averaged else "raw", taken.label, others, choosable=bool(averages and raw))
    return taken.state, line + (f"; {len(lacking)} without average are raw, such as {lacking[0]}" if lacking else "")


def _said(which: Which, label: str, others: Sequence[str], *, choosable: bool = True) -> str:
    """The line that states both choices; "" if there is no other.

    Args:
        choosable: whether the others include weights of the other kind; else one of them must be saved alone.
    """
    if not others:
        return ""
    kinds = {"ema": "averaged", "raw": "raw"}
    other: Which = "raw" if which == "ema" else "ema"
    how = f"--weights {other}" if choosable else "to convert it instead, save it alone"
    return f"weights: {kinds[which]}, from {label}; also there: {', '.join(others)} ({how})"


def _states(content: Mapping[str, object], label: str, averaged: bool) -> Iterator[_Found]:
    """Yield the state dicts below the keys of raw and averaged weights, raw ones in the order of `_RAW_KEYS`."""
    keys = sorted(
        (key for key in content if isinstance(key, str) and (key in _RAW_KEYS or is_average(key))),
        key=lambda key: _RAW_KEYS.index(key) if key in _RAW_KEYS else -1,
    )
    for key in keys:
        inner = content[key]
        if isinstance(inner, list | tuple):
            inner = {str(place): each for place, each in enumerate(inner) if isinstance(each, Mapping)}
        if isinstance(inner, Mapping) and inner:
            below = list(_states(inner, f"{label}{key}/", averaged or is_average(key)))
            if not below and is_average(key):  # averages of several decays
                below = [
                    _Found(f"{label}{key}/{name}", each, True) for name, each in inner.items() if _has_weights(each)
                ]
            if below:
                yield from below
            elif _has_weights(inner):
                yield _Found(f"{label}{key}", inner, averaged or is_average(key))


def _has_weights(state: object) -> bool:
    return isinstance(state, Mapping) and any(
        isinstance(value, Tensor) and name not in _COUNTERS for name, value in state.items()
    )


def _alike(content: Mapping[str, object], found: Sequence[_Found]) -> list[_Found]:
    """The other entries of a file with weights of the same names as those that were found; as raw weights."""
    known = {each.label.split("/")[0] for each in found}
    names = [_names(each.state) for each in found]
    others = {key: each for key, each in content.items() if isinstance(key, str) and key not in known}
    return [
        _Found(key, each, False)
        for key, each in others.items()
        if isinstance(each, Mapping) and _has_weights(each) and _names(each) in names
    ]


def _names(state: Mapping[str, object]) -> set[str]:
    names = (str(name).split(".") for name in state if name not in _COUNTERS)
    return {".".join(part for part in name if part not in _WRAPPERS) for name in names}


def _nameless(content: Mapping[str, object]) -> str:
    """The key of averages that are a list of tensors; "" without any."""
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if is_average(key) and isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
            return key
        if (is_average(key) or key in _RAW_KEYS) and isinstance(value, Mapping) and (inner := _nameless(value)):
            return f"{key}/{inner}"
    return ""


def _parts(found: _Found) -> list[_Found]:
    """Divide a state dict in which averages are told by the first part of their names; without counters."""
    state = {name: value for name, value in found.state.items() if not (found.averaged and name in _COUNTERS)}
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        return [found._replace(state=state)]
    names = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state}
    firsts = sorted({name.split(".")[0] for name in names if "." in name and is_average(name.split(".")[0])})
    rest = {name: state[full] for name, full in names.items() if name.split(".")[0] not in firsts}
    if not firsts or len(names) < len(state):
        return [found._replace(state=state)]
    parts = []
    for first in firsts:
        inside = {name[len(first) + 1 :]: state[full] for name, full in names.items() if name.startswith(f"{first}.")}
        inside = {name: value for name, value in inside.items() if name not in _COUNTERS}
        if inside:
            parts.append(_Found(_joined(found.label, f"{first}."), inside, True))
    rest = {name: value for name, value in rest.items() if name not in _COUNTERS}
    if not rest or not parts:
        return parts or [found._replace(state={name: state[names[name]] for name in rest})]
    prefix, match = _matching(parts[0].state, rest)
    if not match:  # a module of the model that is called so
        return [found._replace(state=state)]
    own = {name.removeprefix(prefix): value for name, value in rest.items() if name.startswith(prefix)}
    named = [
        each._replace(state={match.get(name, name): value for name, value in each.state.items()}) for each in parts
    ]
    return [*named, _Found(_joined(found.label, prefix), own, found.averaged)]


def _joined(label: str, prefix: str) -> str:
    return "/".join(filter(None, (label, prefix))) or "the file"


def _matching(averages: Iterable[str], raw: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The prefix of raw names, and the raw name without it of each averaged name; some releases leave out its dots."""
    for prefix in _RAW_PREFIXES:
        own = [name.removeprefix(prefix) for name in raw if name.startswith(prefix)]
        known = {name: name for name in own} | {name.replace(".", ""): name for name in own if "." in name}
        found = {name: known[name] for name in averages if name in known}
        if found:
            return prefix, found
    return "", {}


def _completed(averaged: _Found, raw: _Found) -> tuple[_Found, list[str]]:
    """Averages with the raw weights that they lack, such as tables that are not trained, and the names of these.

    Weights of parts of which nothing is averaged, such as a frozen network, are not added.
    """
    if not all(isinstance(each, Tensor) for each in raw.state.values()):
        return averaged, []
    names = clean({name: value for name, value in averaged.state.items() if isinstance(value, Tensor)})
    own = clean({name: value for name, value in raw.state.items() if isinstance(value, Tensor)})
    parts = {name.split(".")[0] for name in names}
    lacking = [name for name in own if name not in names and (name.count(".") < 2 or name.split(".")[0] in parts)]
    if not lacking or names.keys().isdisjoint(own) or names.keys() - own:
        return averaged, []
    return averaged._replace(state={**names, **{name: own[name] for name in lacking}}), sorted(lacking)
