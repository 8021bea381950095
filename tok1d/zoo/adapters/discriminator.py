"""Published weights of discriminators.

The vision transformers of DINO with timm's names and of DINOv2 with timm's or its own, the heads of StyleGAN-T's
projected discriminator on them, and MaskBit's and TiTok's patch network with blurred downsampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tok1d.errors import WeightsError
from tok1d.losses.discriminator import GROUPS, BlurPatchDiscriminator, DinoTrunk
from tok1d.zoo.adapters.keymap import KeyMap, State, fill_model, listing, same

TRUNK = KeyMap(
    [
        ("cls_token", "vit.cls_token"),
        ("reg_token", "vit.registers"),
        ("pos_embed", "vit.positions"),
        ("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        ("norm.{p}", "vit.norm.{p}"),
        ("blocks.{i}.ls{j}.gamma", "vit.blocks.{i}.ls{j}.gamma"),
        *[
            (f"blocks.{{i}}.{name}", f"vit.blocks.{{i}}.{name}")
            for name, _ in same("norm{j}.{p}", "attn.qkv.{p}", "attn.proj.{p}", "mlp.fc{j}.{p}")
        ],
    ]
)
HEAD_WIDTH = 64  # width of an attention head in all DINO models
MASK, REGISTERS = "mask_token", "register_tokens"  # DINOv2's own names; the first is of its training

_CONV = [("weight_orig", "weight"), ("weight_u", "u"), ("weight_v", "v"), ("bias", "bias")]
_NORM = [(name, name) for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
HEADS = KeyMap(
    [
        (f"heads.{{i}}.{published}.{there}", f"heads.{{i}}.{ours}.{here}")
        for published, ours, names in (
            ("0.0", "point.conv", _CONV),
            ("0.1", "point.norm", _NORM),
            ("1.fn.0", "wide.conv", _CONV),
            ("1.fn.1", "wide.norm", _NORM),
            ("2", "out", _CONV),
        )
        for there, here in names
    ]
)

BLUR_PATCH = KeyMap(
    [
        ("block_in.0.{p}", "conv_in.{p}"),
        ("blocks.{i}.0.{p}", "convs.{i}.{p}"),
        ("blocks.{i}.2.{p}", "norms.{i}.{p}"),
        ("to_logits.0.{p}", "point.{p}"),
        ("to_logits.2.{p}", "out.{p}"),
    ]
)
BLUR_KERNEL = ".1.kernel"  # stored in the file, computed by the model


def _as_timm(state: Mapping[str, Tensor]) -> State:
    """DINOv2's own layout as timm's: the class token's position is added to it where there are registers."""
    found = {name: value for name, value in state.items() if name != MASK and not name.startswith("head.")}
    if REGISTERS in found and {"cls_token", "pos_embed"} <= found.keys():
        table = found["pos_embed"]
        found["reg_token"] = found.pop(REGISTERS)
        found |= {"cls_token": found["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
    return found


def trunk_from_published(
    state: Mapping[str, Tensor], source: str, *, heads: int | None = None, tanh: bool = True
) -> DinoTrunk:
    """The vision transformer of DINO or DINOv2 from published weights; `source` is their name in messages.

    Args:
        heads: attention heads; default: heads of width 64.
        tanh: see `DinoTrunk`.

    Raises:
        WeightsError: not the weights of a plain vision transformer.
    """
    state = _as_timm(state)
    strange = [name for name in state if TRUNK.ours(name) is None]
    kernel, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    if strange or kernel is None or table is None or not blocks:
        what = f"got {listing(strange)} in addition" if strange else "without patches, positions or blocks"
        raise WeightsError(f"{source}: expected a plain vision transformer such as DINO's ViT-S/16, {what}")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    dim, side = table.shape[-1], math.isqrt(table.shape[1] - (not registers))
    scaled = any(name.endswith(".gamma") for name in state)
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        trunk = DinoTrunk(
            dim,
            1 + max(blocks),
            heads or max(dim // HEAD_WIDTH, 1),
            patch=kernel.shape[-1],
            side=side,
            registers=registers,
            layer_scale=1.0 if scaled else None,
            tanh=tanh,
        )
    renamed: State = {TRUNK.ours(name) or name: value for name, value in state.items()}
    fill_model(trunk, renamed, {name: TRUNK.published(name) or name for name in trunk.state_dict()}, source)
    return trunk


def heads_from_published(state: Mapping[str, Tensor]) -> State:
    """Published names of discriminator heads -> ours.

    Raises:
        WeightsError: a name that those heads do not have.
    """
    strange = [name for name in state if HEADS.ours(name) is None]
    if strange:
        raise WeightsError(f"discriminator heads: unexpected weights: {listing(strange)}")
    return {HEADS.ours(name) or name: value for name, value in state.items()}


def blur_patch_from_published(state: Mapping[str, Tensor], source: str) -> BlurPatchDiscriminator:
    """The patch discriminator with blurred downsampling from published weights; `source` is their name in messages.

    Raises:
        WeightsError: weights of another network.
    """
    state = {name: value for name, value in state.items() if not name.endswith(BLUR_KERNEL)}
    strange = [name for name in state if BLUR_PATCH.ours(name) is None]
    kernel, stages = state.get("block_in.0.weight"), sum(name.endswith(".2.bias") for name in state) - 1
    if strange or kernel is None or stages < 1 or kernel.shape[0] % GROUPS:
        what = f"got {listing(strange)} in addition" if strange else "without its first layer or its stages"
        raise WeightsError(f"{source}: expected a patch discriminator with blurred downsampling, {what}")
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        network = BlurPatchDiscriminator(kernel.shape[1], kernel.shape[0], stages)
    renamed: State = {BLUR_PATCH.ours(name) or name: value for name, value in state.items()}
    names = {name: BLUR_PATCH.published(name) or name for name in network.state_dict()}
    fill_model(network, renamed, names, source)
    return network
