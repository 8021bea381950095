"""`export_onnx`: graphs of a tokenizer, checked with onnxruntime, and the file that describes them."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.errors import InputError, Tok1dError, reason_of
from tok1d.files import as_path, clear, new_folder, replacing, write_text
from tok1d.tokenizers.model import TokenizerModel
from tok1d.zoo.checkpoints import load_model
from tok1d.zoo.onnx.describe import described
from tok1d.zoo.onnx.parts import NAMES, Inputs, Part, part_of
from tok1d.zoo.record import versions
from tok1d.zoo.weights import fingerprint

DESCRIPTION = "tok1d-onnx.json"
OWN_FILES = r"(encoder|decoder)\.onnx(\.data)?|tok1d-onnx\.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4  # largest difference between onnxruntime and PyTorch, in the unit of the output
OTHER_IDS = 0.01  # largest share of ids that differ: rounding may choose another of two near entries


@dataclass(frozen=True)
class Check:
    """How a graph compares with PyTorch at `batch_sizes`.

    Args:
        difference: the largest absolute difference, in the unit of the output; for ids the share of other ids.
        limit: the largest that is accepted.
        deviation: standard deviation of the output; None for ids.
    """

    difference: float
    limit: float
    deviation: float | None
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    def __str__(self) -> str:
        sizes = f"at batch sizes {', '.join(map(str, self.batch_sizes))}"
        if self.deviation is None:
            return f"{self.difference:.2%} of the ids are other ones than in PyTorch {sizes} (limit {self.limit:.0%})"
        spread = f"their standard deviation is {self.deviation:.2g}"
        return f"values differ from PyTorch by at most {self.difference:.1e} {sizes} (limit {self.limit:g}; {spread})"


@dataclass(frozen=True, repr=False)
class Exported:
    """An export: its folder, the content of tok1d-onnx.json, and the check of each part."""

    folder: Path
    description: dict[str, Any]
    checks: dict[str, Check]

    def __repr__(self) -> str:
        return "\n".join(f"{self.folder / name}.onnx: {check}" for name, check in self.checks.items())


def export_onnx(
    model: str | Path | nn.Module, out: str | Path, *, part: str = "all", overwrite: bool = False
) -> Exported:
    """Export the encoder, the decoder, or both, of a tokenizer to ONNX.

        >>> import tempfile, tok1d
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = tok1d.export_onnx("fashion-mnist-maetok", folder, part="encoder")
        >>> exported.description["tokens"]["count"]
        16

    Writes encoder.onnx, decoder.onnx (of a flow decoder: its denoising network) and tok1d-onnx.json, which describes
    inputs, outputs, preprocessing, condition and sampler; weights above 1.5 GB are in a file NAME.onnx.data. Weights
    are float32, the batch is of any size, images have the model's size. onnxruntime compares each graph with PyTorch: a
    difference above 1e-4, absolute in the unit of the output (pixels in [0, 1], tokens, predictions of pixels in
    [-1, 1]), or more than 1 % of other ids, is an error. Nothing is written after an error.

    Args:
        model: a tokenizer, its name, its folder, or a run.
        part: "encoder", "decoder" or "all".
        overwrite: write into a folder that is not empty, in place of an earlier export.

    Raises:
        InputError: another model or part, packages of the extra "onnx" that are missing, or a difference.
        WeightsError: no such model.
        ConfigError: `out` is a file, or a folder that is not empty.
    """
    if part not in (*NAMES, "all"):
        raise InputError(f"part: expected encoder, decoder or all, got {part!r}")
    runtime()
    folder = new_folder(Path(as_path(str(out))), overwrite=overwrite)
    loaded = _loaded(model)
    parts = [part_of(loaded, name) for name in NAMES if part in (name, "all")]
    assert isinstance(loaded, TokenizerModel)
    content = described(loaded, parts) | {
        "weights": fingerprint(loaded),
        "versions": versions() | {name: metadata.version(name) for name in PACKAGES},
    }
    with TemporaryDirectory() as place:
        checks: dict[str, Check] = {each.name: _exported(each, Path(place) / f"{each.name}.onnx") for each in parts}
        content["checks"] = {name: asdict(check) for name, check in checks.items()}
        clear(folder, OWN_FILES)
        for path in sorted(Path(place).iterdir()):
            with replacing(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    # Last: without it a folder is not a whole export.
    write_text(folder / DESCRIPTION, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Exported(folder, content, checks)


def runtime() -> ModuleType:
    """The module onnxruntime, if all packages of the extra "onnx" are there.

    Raises:
        InputError: one is missing.
    """
    try:
        return [import_module(name) for name in PACKAGES][-1]
    except ImportError as error:
        raise InputError(
            f"ONNX export: expected the packages {', '.join(PACKAGES)}, got no {error.name}; pip install 'tok1d[onnx]'"
        ) from None


def _loaded(model: str | Path | nn.Module) -> nn.Module:
    """The model in float32 on the CPU, in eval mode; of a given one a copy."""
    if not isinstance(model, nn.Module):
        return load_model(model).eval()
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def _exported(part: Part, path: Path) -> Check:
    """Write a graph and compare it with PyTorch.

    Raises:
        InputError: it cannot be exported, or differs.
    """
    part.module.eval()
    batch = torch.export.Dim("batch", min=1)
    inputs = part.sample(max(BATCH_SIZES))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                part.module,
                (),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=[part.output.name],
                dynamic_shapes={name: {0: batch} for name in inputs},
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except (Tok1dError, OSError, MemoryError):
        raise
    except Exception as error:  # of torch.export and onnxscript, for operations of a user's model
        raise InputError(f"ONNX export: the {part.name} cannot be exported: {reason_of(error)}") from None
    return compared(part, path)


def compared(part: Part, path: Path) -> Check:
    """Compare a graph with PyTorch at `BATCH_SIZES`.

    Raises:
        InputError: they differ, or onnxruntime cannot read the graph.
    """
    try:
        session = runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime, which may be older than the graph's operators
        raise InputError(f"ONNX export: onnxruntime cannot read the {part.name}: {reason_of(error)}") from None
    found, expected = [], []
    for batch in BATCH_SIZES:
        inputs = part.sample(batch)
        found.append(torch.from_numpy(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]))
        expected.append(_by_torch(part, inputs))
    return _checked(part, found, expected)


def _by_torch(part: Part, inputs: Inputs) -> Tensor:
    given: Mapping[str, Tensor | None] = inputs
    if "condition" in inputs and len(inputs["condition"]) == 1:
        given = {**inputs, "condition": None}
    with torch.no_grad():
        return part.module(**given)


def _checked(part: Part, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Check:
    shapes = [[tuple(x.shape) for x in each] for each in (expected, found)]
    if shapes[0] != shapes[1]:
        raise InputError(f"ONNX export: {part.name}: expected the shapes of PyTorch {shapes[0]}, got {shapes[1]}")
    a, b = (torch.cat([x.flatten() for x in each]) for each in (found, expected))
    if b.is_floating_point():
        check = Check(float((a - b).abs().max()), TOLERANCE, float(b.std()))
    else:
        check = Check(float((a != b).double().mean()), OTHER_IDS, None)
    if not check.difference <= check.limit:  # NaN is no difference that is accepted
        raise InputError(f"ONNX export: {part.name}: {check}; nothing was written")
    return check


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
