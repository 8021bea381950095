"""One line of a record for a tensor: type, shape, hash and some numbers; and the comparison of two lines."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4  # between machines, of numbers as they are written; pictures may differ by one grey level
SHOWN = 3  # leading numbers that a line shows, before the mean


def line(value: Any) -> str:
    """One line of a tensor, of named tensors in the order of their names, of a number, or of a text."""
    if isinstance(value, Mapping):
        return _line_of_many(value)
    if isinstance(value, str):
        return f"text {len(value)} {hashlib.sha256(value.encode()).hexdigest()} |"
    if value is None:
        return "none 0 0 |"
    if isinstance(value, bool | int | float):
        value = torch.tensor(value, dtype=torch.float64)
    array = _array(value)
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{array.dtype} {shape} {hashlib.sha256(array.tobytes()).hexdigest()} | {_numbers(array)}"


def _line_of_many(values: Mapping[str, Any]) -> str:
    digest, numbers = hashlib.sha256(), []
    for name in sorted(values):
        array = _array(values[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
        numbers.append(float(np.abs(array).mean(dtype=np.float64)) if array.size else 0.0)
    means = np.array([*numbers[:SHOWN], sum(numbers) / max(len(numbers), 1)])
    return f"tensors {len(numbers)} {digest.hexdigest()} | {' '.join(f'{each:.6g}' for each in means)}"


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        return np.ascontiguousarray(value.numpy())
    return np.ascontiguousarray(value)


def _numbers(array: np.ndarray) -> str:
    mean = array.mean(dtype=np.float64) if array.size else 0.0
    return " ".join(f"{float(each):.6g}" for each in [*array.reshape(-1)[:SHOWN], mean])


def same_numbers(ours: str, theirs: str) -> bool:
    """Whether two lines agree but for the last digits that another machine may compute; ids have to be equal.

    The entries of a tensor and their mean may differ by as much as its largest entry shown allows: the mean of large
    entries of both signs is small, its rounding is not. The means of named tensors are compared one by one.
    """
    (before, _, shown), (other, _, seen) = ours.partition(" | "), theirs.partition(" | ")
    head, wanted = before.split()[:2], other.split()[:2]
    if head != wanted or head[0] in ("text", "none"):
        return head == wanted and before == other
    tolerance = 1.01 if head[0] == "uint8" else TOLERANCE
    pairs = list(zip(shown.split(), seen.split(), strict=True))
    sizes = [max(1.0, abs(float(b))) for _, b in pairs]
    if head[0] != "tensors":
        sizes = [max(sizes)] * len(sizes)
    return all(abs(float(a) - float(b)) <= tolerance * size for (a, b), size in zip(pairs, sizes, strict=True))


def picture(path: Path) -> np.ndarray:
    """The decoded pixels of a picture, uint8."""
    from PIL import Image

    with Image.open(path) as opened:
        return np.asarray(opened)
