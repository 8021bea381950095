"""Recorded cases on disk: finding them, their tensors, and comparison within their own tolerance."""

import filecmp
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Read(dict[str, Tensor]):
    """Tensors by name that strikes out, from a list of names, the one that is looked up."""

    def __init__(self, tensors: dict[str, Tensor], names: set[str]) -> None:
        super().__init__(tensors)
        self.names = names

    def __getitem__(self, name: str) -> Tensor:
        self.names.discard(name)
        return super().__getitem__(name)


class Case:
    """One case folder. `kind` says what it records, `family` which system, `config` with what settings.

    A case.json lists its "outputs", or "checks" with outputs, settings and tolerances of their own (`checks`: name of
    a check -> the case's settings with its own on top), or only "tensors" with their meanings. Of these, whatever is
    not read as an input has to be compared.
    """

    def __init__(self, folder: Path, families: Mapping[str, str]) -> None:
        self.folder = folder.resolve()
        content = json.loads((folder / "case.json").read_text())
        self.kind: str = content["case"]
        self.family: str = content.get("system") or families.get(self.kind) or self.folder.parent.name
        self.name = f"{self.family}/{self.folder.name}"
        self.config: dict[str, Any] = content.get("config") or {}
        self.tolerance: dict[str, float] = content.get("tolerance", content)
        self.unchecked = set(content.get("outputs", {}))
        self.checks: dict[str, dict[str, Any]] = {}
        self._tolerances: dict[str, dict[str, float]] = {}
        for check in content.get("checks", []):
            self.checks[check["name"]] = {**self.config, **check.get("config", {})}
            self._tolerances.update({output: {**self.tolerance, **check} for output in check["outputs"]})
            self.unchecked.update(check["outputs"])
        tensors = content.get("tensors", {})
        self.unchecked.update(name for name, tensor in tensors.items() if tensor.get("role") == "expected")
        self._meanings = {name: tensor.get("meaning", "") for name, tensor in tensors.items()}
        self._io: dict[str, Tensor] | None = None
        self._has_roles = bool(self.unchecked)
        if not self._has_roles:
            self.unchecked.update(tensors)

    @property
    def io(self) -> dict[str, Tensor]:
        """Inputs, random numbers and expected outputs."""
        if self._io is None:
            tensors = load_file(self.folder / "io.safetensors")
            self._io = tensors if self._has_roles else Read(tensors, self.unchecked)
        return self._io

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def stated(self, name: str, word: str) -> float:
        """The number after `word` in the description of a tensor in case.json."""
        found = re.search(rf"{word}\D{{0,3}}([\d.]*\d)", self._meanings[name])
        assert found, f"{self.name}: expected {word!r} and a number, got {self._meanings[name]!r}"
        return float(found[1])

    def check(self, name: str, actual: Any, rows: Any = ...) -> None:
        """Compare a result with the recorded output `name`, or with its part `rows` where the rest is never used."""
        actual = torch.as_tensor(actual).detach()
        tolerance = self._tolerances.get(name, self.tolerance)
        torch.testing.assert_close(
            actual,
            self.io[name][rows],
            atol=tolerance["atol"],
            rtol=tolerance["rtol"],
            check_dtype=False,
            msg=lambda text: f"{self.name}: {name}: {text}",
        )
        self.unchecked.discard(name)

    def same_as(self, other: "Case") -> bool:
        """Whether both folders hold the same recording."""
        files = [path.name for path in self.folder.iterdir()]
        equal, _, _ = filecmp.cmpfiles(self.folder, other.folder, files, shallow=False)
        return len(equal) == len(files)


def find_cases(roots: Sequence[Path], families: Mapping[str, str]) -> list[Case]:
    """All cases below the roots, by name; a recording found twice is listed once.

    Args:
        families: kind -> family, of cases that do not tell it; else the folder's name does.

    Raises:
        pytest.UsageError: a root without any case.
    """
    cases: dict[str, list[Case]] = {}
    for root in roots:
        found = [Case(path.parent, families) for path in sorted(root.rglob("case.json"))]
        if not found:
            raise pytest.UsageError(f"--parity-root {root}: expected folders with a case.json, got none")
        for case in found:
            twins = cases.setdefault(case.name, [])
            if not any(case.same_as(twin) for twin in twins):
                twins.append(case)
    return [case for name in sorted(cases) for case in cases[name]]


def recorded_noise(*recorded: Tensor) -> Callable[[Tensor], Tensor]:
    """A noise source that replays recorded tensors in order; of a tensor with more rows than needed, the first ones."""
    remaining = iter(recorded)

    def randn(like: Tensor) -> Tensor:
        noise_row = next(remaining)[: like.shape[0]]
        assert noise_row.shape == like.shape, f"recorded noise {tuple(noise_row.shape)}, asked for {tuple(like.shape)}"
        return noise_row

    return randn


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of a module."""
    recorded_values: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: recorded_values.append(args[0].detach()))
    yield recorded_values
    handle.remove()


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The result of every call of a module."""
    recorded_values: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, result: recorded_values.append(result.detach()))
    yield recorded_values
    handle.remove()
