"""Counting what a training step computes and keeps, on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tok1d.losses.total import Batch, total_loss

# What torch.autocast runs in half precision, and what in float32; it has no effect on the meta device itself.
_HALF = {F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
_FULL = {F.layer_norm, F.group_norm, F.softmax, F.cosine_similarity, F.mse_loss, F.cross_entropy}

# Geometry (channels, pixels per latent position) -> diffusers' AutoencoderKL: MAR's KL-16, Stable Diffusion's VAE.
AUTOENCODERS: dict[tuple[int, int], dict[str, Any]] = {
    (16, 16): {
        "block_out_channels": [128, 128, 256, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"] * 5,
    },
    (4, 8): {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
}


@dataclass(frozen=True)
class Measured:
    """A training step's matrix-product FLOPs an image, and the bytes its forward pass keeps for the backward one."""

    flops_per_image: int
    bytes_per_image: int
    bytes_of_any_batch: int  # half-precision copies of weights, masks

    def activations(self, num: int) -> int:
        """Bytes kept for a batch of `num` images."""
        return self.bytes_of_any_batch + num * self.bytes_per_image


def measure(model: nn.Module, batch: Callable[[int], Batch], *, half: bool) -> Measured:
    """Run two training steps of a meta model, on 2 and on 4 images: both costs are straight lines in their number.

    Products of attention count in full, masked or not, and nothing counts twice for being computed again.
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        two = _kept_bytes(model, batch(2), half=half, backward=True)
    four = _kept_bytes(model, batch(4), half=half)
    per_image = (four - two) // 2
    return Measured(counter.get_total_flops() // 2, per_image, two - 2 * per_image)


def count_flops(model: nn.Module, batch: Callable[[int], Batch]) -> int:
    """FLOPs an image of a training step, as `measure` counts them, in half its time."""
    model.train()
    kept = _Kept(model)
    with FlopCounterMode(display=False) as counter, _AsOnGPU(kept, half=False):
        total_loss(model.losses(batch(2), 0.5)).backward()  # type: ignore[operator]
    model.zero_grad()
    return counter.get_total_flops() // 2


def _kept_bytes(model: nn.Module, batch: Batch, *, half: bool, backward: bool = False) -> int:
    kept = _Kept(model)
    with saved_tensors_hooks(kept.add, lambda tensor: tensor), _AsOnGPU(kept, half=half):
        loss = total_loss(model.losses(batch, 0.5))  # type: ignore[operator]
    if backward:
        loss.backward()
        model.zero_grad()
    return kept.bytes


class _Kept:
    """Distinct storages that autograd saved, those of the model's own tensors aside."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.storages: dict[int, torch.UntypedStorage] = {}  # holding them keeps their identity from being reused
        self.extra = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.storages[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return self.extra + sum(storage.nbytes() for storage in self.storages.values())


class _AsOnGPU(TorchFunctionMode):
    """Operations as a GPU runs them: attention and dropout fused, and with `half` those of torch.autocast.

    On the meta device attention would keep its matrix of scores, which no fused kernel does.
    """

    def __init__(self, kept: _Kept, *, half: bool) -> None:
        super().__init__()
        self.kept, self.half = kept, half
        self.copies: dict[int, Tensor] = {}  # autocast casts a weight once a step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*(self._half(arg) for arg in args), **kwargs)
        if func is F.dropout and kwargs.get("training", True) and kwargs.get("p", 0.5) > 0:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if self.half and func in _HALF:
            args = tuple(self._half(arg) for arg in args)
        elif self.half and func in _FULL:
            args = tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
        return func(*args, **kwargs)

    def _half(self, arg: Any) -> Any:
        if not self.half or not isinstance(arg, Tensor) or arg.dtype != torch.float32:
            return arg
        if not arg.is_leaf or not arg.requires_grad:
            return arg.bfloat16()
        if id(arg) not in self.copies:
            self.copies[id(arg)] = arg.bfloat16()
        return self.copies[id(arg)]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):  # the inner hooks count nothing
            out = F.scaled_dot_product_attention(q, k, v, **kwargs)
        for tensor in (q, k, v, out, kwargs.get("attn_mask")):
            if tensor is not None:
                self.kept.add(tensor)
        self.kept.extra += 4 * math.prod(q.shape[:-1])  # the logarithms of the normalisers, float32
        return out


def use_stand_ins(model: Any, *, average: bool = False) -> None:
    """Prepare a tokenizer on the meta device for counting; see `tok1d.tokenizers.base.Tokenizer`."""
    if hasattr(model, "use_stand_ins"):
        model.use_stand_ins(average=average)


@lru_cache
def autoencoder_cost(channels: int, factor: int, image_size: int) -> tuple[int, int] | None:
    """Parameters of a known autoencoder and FLOPs of encoding one image; None without diffusers."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        return None
    with torch.device("meta"):
        network: Any = AutoencoderKL(
            latent_channels=channels, layers_per_block=2, norm_num_groups=32, **AUTOENCODERS[channels, factor]
        )
        images = torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.encode(images)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()
