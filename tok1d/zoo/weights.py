"""Weights as tensors: fingerprint, safetensors files, strict loading."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from tok1d.errors import WeightsError, reason_of


class HasWeights(Protocol):
    """Anything with a state dictionary, such as a module, a `Tokenizer` or a `Generator`."""

    def state_dict(self) -> dict[str, Tensor]: ...


def fingerprint(model: HasWeights) -> str:
    """12 hex digits of SHA-256 over all weights and buffers as float32; identifies a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: no such file, or another format (a pickle is not opened), or a truncated file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"{path}: no such file; a model folder holds config.json and model.safetensors")
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(2)
        # torch.save writes a zip; a plain pickle starts with opcode 0x80 and the protocol's number.
        is_pickle = head == b"PK" or (head[:1] == b"\x80" and head[1:] <= b"\x05")
        what = "a pickle, not safetensors" if is_pickle else "truncated or corrupt"
        raise WeightsError(f"{path}: {what} ({reason_of(error)}); download it again or use 'tok1d convert'") from None


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict strictly.

    Args:
        source: name of the weights in error messages, such as their path.

    Raises:
        WeightsError: weights missing, unexpected or of another shape; the message names the first three.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes))):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise WeightsError(f"{source}: {len(keys)} weights {kind} for this model: {shown}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
