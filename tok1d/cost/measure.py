"""Counting the FLOPs and the activation memory of a training step, on PyTorch's meta device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tok1d.losses.total import Batch, Tensors, total_loss

# What torch.autocast runs in half precision, and what in float32. It has no effect on the meta device itself.
_HALF = {F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
_FULL = {F.layer_norm, F.group_norm, F.softmax, F.cosine_similarity, F.mse_loss, F.cross_entropy}

# (latent channels, pixels per latent position) -> arguments of diffusers' AutoencoderKL: MAR's KL-16, Stable
# Diffusion's VAE.
AUTOENCODERS: dict[tuple[int, int], dict[str, list[int] | list[str]]] = {
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
class StepCost:
    """Cost of a training step.

    Args:
        flops_per_image: FLOPs of matrix products and convolutions, forward and backward.
        bytes_per_image: activations that the forward pass keeps for the backward pass.
        bytes_of_any_batch: kept bytes that do not depend on the batch size: half-precision copies of weights, masks.
    """

    flops_per_image: int
    bytes_per_image: int
    bytes_of_any_batch: int

    def activations(self, num: int) -> int:
        """Bytes kept for a batch of `num` images."""
        return self.bytes_of_any_batch + num * self.bytes_per_image


def measure(model: nn.Module, batch: Callable[[int], Batch], *, half: bool) -> StepCost:
    """Measure the cost of a training step with two steps of a meta model, on 2 and on 4 images: the cost is linear.

    Attention counts with its full matrix products, masked or not; recomputation (activation checkpointing) does not
    count.

    Args:
        model: on the meta device, with `losses(batch, progress)`.
        batch: number of images -> batch on the meta device.
        half: count the bytes of half precision (autocast).
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        two = _kept_bytes(model, batch(2), half=half, backward=True)
    four = _kept_bytes(model, batch(4), half=half)
    per_image = (four - two) // 2
    return StepCost(counter.get_total_flops() // 2, per_image, two - 2 * per_image)


def count_flops(model: nn.Module, batch: Callable[[int], Batch]) -> int:
    """FLOPs per image of a training step, as `measure` counts them, in half the time."""
    model.train()
    kept = _SavedTensors(model)
    with FlopCounterMode(display=False) as counter, _AsOnGPU(kept, half=False):
        _loss(model, batch(2)).backward()
    model.zero_grad()
    return counter.get_total_flops() // 2


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss in the middle of the run."""
    losses = cast(Callable[[Batch, float], Tensors], model.losses)
    return total_loss(losses(batch, 0.5))


def _kept_bytes(model: nn.Module, batch: Batch, *, half: bool, backward: bool = False) -> int:
    kept = _SavedTensors(model)
    with saved_tensors_hooks(kept.add, lambda tensor: tensor), _AsOnGPU(kept, half=half):
        loss = _loss(model, batch)
    if backward:
        loss.backward()
        model.zero_grad()
    return kept.bytes


class _SavedTensors:
    """The storages that autograd saved, each once, without those of the model's parameters and buffers."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        # References keep the storages alive: the address of a freed one could be used again.
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.extra = 0  # bytes without a storage of their own

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.storages[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return self.extra + sum(storage.nbytes() for storage in self.storages.values())


class _AsOnGPU(TorchFunctionMode):
    """Counts operations as a GPU runs them: fused attention and dropout, and with `half` the types of torch.autocast.

    On the meta device attention would keep its matrix of scores, which fused kernels do not.
    """

    def __init__(self, kept: _SavedTensors, *, half: bool) -> None:
        super().__init__()
        self.kept, self.half = kept, half
        self.copies: dict[int, Tensor] = {}  # half-precision weights: autocast casts each once per step

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and torch.is_grad_enabled():  # else nothing is kept
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
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):  # the hooks outside count nothing here
            out = F.scaled_dot_product_attention(q, k, v, **kwargs)
        for tensor in (q, k, v, out, kwargs.get("attn_mask")):
            if tensor is not None:
                self.kept.add(tensor)
        self.kept.extra += 4 * math.prod(q.shape[:-1])  # logsumexp of every row of scores, float32
        return out


def use_stand_ins(model: nn.Module, *, average: bool = False) -> None:
    """Prepare a model on the meta device for a training step without its frozen networks.

    A model with frozen networks or random branches declares a method `use_stand_ins(average=...)`, which replaces the
    networks by functions that return tensors of the right shape. Other models are left as they are.

    Args:
        average: where the cost of a step is random (tokens that are dropped), take its mean instead of its maximum.
    """
    declared = getattr(model, "use_stand_ins", None)
    if declared is not None:
        declared(average=average)


@lru_cache
def autoencoder_cost(channels: int, factor: int, image_size: int) -> tuple[int, int] | None:
    """Parameters of an autoencoder of AUTOENCODERS, and FLOPs of encoding one image; None without diffusers."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        return None
    with torch.device("meta"):
        shape = AUTOENCODERS[channels, factor]
        network: Any = AutoencoderKL(latent_channels=channels, layers_per_block=2, norm_num_groups=32, **shape)
        images = torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.encode(images)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()
