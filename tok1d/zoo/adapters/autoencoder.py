"""KL autoencoders from weights alone: MAR's KL-16 under its original names, or diffusers' names without a config.

The weights determine the configuration of an AutoencoderKL, except for the groups of its norms and the scale of its
latents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from tok1d.errors import WeightsError, reason_of
from tok1d.zoo.adapters.averages import Choice
from tok1d.zoo.adapters.keymap import KeyMap, Options, State, below, fill_model, read_published, same
from tok1d.zoo.adapters.settings import Setting

# Scale of MAR's KL-16 latents (arXiv 2406.11838); weight files do not contain it.
MAR_SCALE = 0.2325

_RESNET = [
    *same("norm1.{p}", "conv1.{p}", "norm2.{p}", "conv2.{p}"),
    ("nin_shortcut.{p}", "conv_shortcut.{p}"),
]
_ATTENTION = [
    ("norm.{p}", "group_norm.{p}"),
    ("q.{p}", "to_q.{p}"),
    ("k.{p}", "to_k.{p}"),
    ("v.{p}", "to_v.{p}"),
    ("proj_out.{p}", "to_out.0.{p}"),
]
_HALF = [
    *same("conv_in.{p}", "conv_out.{p}"),
    ("norm_out.{p}", "conv_norm_out.{p}"),
    *below(_RESNET, "mid.block_1.", "mid_block.resnets.0."),
    *below(_RESNET, "mid.block_2.", "mid_block.resnets.1."),
    *below(_ATTENTION, "mid.attn_1.", "mid_block.attentions.0."),
]
# Parts that differ between encoder and decoder. MAR and diffusers count the decoder's levels {i} from opposite ends
# (`_flip`).
_ENCODER = [
    *_HALF,
    *below(_RESNET, "down.{i}.block.{j}.", "down_blocks.{i}.resnets.{j}."),
    *below(_ATTENTION, "down.{i}.attn.{j}.", "down_blocks.{i}.attentions.{j}."),
    ("down.{i}.downsample.conv.{p}", "down_blocks.{i}.downsamplers.0.conv.{p}"),
]
_DECODER = [
    *_HALF,
    *below(_RESNET, "up.{i}.block.{j}.", "up_blocks.{i}.resnets.{j}."),
    *below(_ATTENTION, "up.{i}.attn.{j}.", "up_blocks.{i}.attentions.{j}."),
    ("up.{i}.upsample.conv.{p}", "up_blocks.{i}.upsamplers.0.conv.{p}"),
]
KEYS = KeyMap(
    [
        *same("quant_conv.{p}", "post_quant_conv.{p}"),
        *below(_ENCODER, "encoder.", "encoder."),
        *below(_DECODER, "decoder.", "decoder."),
    ]
)
# Projections of attention: 1x1 convolutions in MAR's files, matrices in diffusers.
_MAPS = re.compile(r".*\.(attn_1|attn\.\d+)\.(q|k|v|proj_out)\.weight")
_UP = re.compile(r"decoder\.up(?:_blocks)?\.(\d+)\.")
_DOWN = re.compile(r"encoder\.down_blocks\.(\d+)\.")
_FIRST_RESNETS = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
# Discriminator and perceptual loss.
_TRAINING_ONLY = "loss."


def from_mar(state: Mapping[str, Tensor], source: str = "published weights") -> State:
    """MAR's names (cleaned) -> those of diffusers' AutoencoderKL, without the weights of the training loss.

    Raises:
        WeightsError: names that such an autoencoder does not have.
    """
    renamed, unexpected = {}, []
    levels = _levels(state)
    for name, value in state.items():
        ours = KEYS.ours(_flip(name, levels))
        if ours is not None:
            renamed[ours] = value[:, :, 0, 0] if _MAPS.fullmatch(name) and value.dim() == 4 else value
        elif not name.startswith(_TRAINING_ONLY):
            unexpected.append(name)
    if unexpected or not renamed:
        shown = f"{len(unexpected)} names such as {min(unexpected)}" if unexpected else "no weights"
        raise WeightsError(
            f"{source}: expected a KL autoencoder in MAR's layout, got {shown}; give a diffusers folder or kl16.ckpt"
        )
    return renamed


def to_mar(state: Mapping[str, Tensor]) -> State:
    """Diffusers' names -> MAR's."""
    renamed, levels = {}, _levels(state)
    for name, value in state.items():
        published = KEYS.published(_flip(name, levels))
        assert published is not None, f"no published name for {name}"
        renamed[published] = value[:, :, None, None] if _MAPS.fullmatch(published) else value
    return renamed


def _levels(names: Iterable[str], pattern: re.Pattern[str] = _UP) -> int:
    return 1 + max((int(match[1]) for match in map(pattern.match, names) if match), default=0)


def _flip(name: str, levels: int) -> str:
    """The name with the decoder's level counted from the other end: MAR counts them as the encoder does."""
    match = _UP.match(name)
    return name if match is None else f"{name[: match.start(1)]}{levels - 1 - int(match[1])}{name[match.end(1) :]}"


def network_config(
    state: State, *, groups: int = 32, scaling_factor: float | None = None, source: str = "published weights"
) -> Options:
    """The diffusers configuration of an AutoencoderKL from its weights under diffusers' names.

    Args:
        groups: groups of every norm, which weights do not determine; 32 in KL-16 and Stable Diffusion.
        scaling_factor: default: MAR's 0.2325 for an encoder with attention at its lowest level, such as KL-16; else
            the default of diffusers, 0.18215 of Stable Diffusion.

    Raises:
        WeightsError: weights of another network.
    """
    levels = range(_levels(state, _DOWN))
    try:
        config: Options = {
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_channels": state["decoder.conv_out.weight"].shape[0],
            "latent_channels": state["decoder.conv_in.weight"].shape[1],
            "block_out_channels": [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels],
        }
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{source}: not a whole KL autoencoder ({error.args[0]}); fetch it again") from None
    down = [f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in state for i in levels]
    up = [f"decoder.up_blocks.{i}.attentions.0.to_q.weight" in state for i in levels]
    if scaling_factor is None and down[-1]:
        scaling_factor = MAR_SCALE
    return {
        **config,
        "down_block_types": ["AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in down],
        "up_block_types": ["AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in up],
        "layers_per_block": _levels(state, _FIRST_RESNETS),
        "norm_num_groups": groups,
        "sample_size": 256,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in state,
        **({} if scaling_factor is None else {"scaling_factor": scaling_factor}),
    }


def build_network(
    state: State, *, groups: int = 32, scaling_factor: float | None = None, source: str = "published weights"
) -> nn.Module:
    """An AutoencoderKL in eval mode from its weights under diffusers' names; see `network_config`.

    Raises:
        WeightsError: weights missing, left over or of another shape, or widths that `groups` does not divide.
    """
    config = network_config(state, groups=groups, scaling_factor=scaling_factor, source=source)
    if any(width % groups for width in config["block_out_channels"]):
        raise WeightsError(
            f"{source}: {groups} groups of a norm do not divide the widths {config['block_out_channels']}; "
            "give the number of groups (autoencoder_groups, or groups for kl16)"
        )
    network: nn.Module = autoencoder_class()(**config)
    fill_model(network, state, {}, source)
    return network.eval()


def load_mar(
    path: str | Path,
    *,
    groups: Annotated[int, Setting("groups of every norm", "norm_num_groups", ge=1)] = 32,
    scaling_factor: Annotated[
        float | None,
        Setting("scale of the latents", "scaling_factor", "0.2325 of KL-16, else 0.18215 of Stable Diffusion", gt=0),
    ] = None,
    weights: Choice | None = None,
) -> nn.Module:
    """MAR's KL-16 from its original file (kl16.ckpt, or its names in .safetensors), as an AutoencoderKL in eval mode.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    state = from_mar(read_published(path, weights), str(path))
    return build_network(state, groups=groups, scaling_factor=scaling_factor, source=str(path))


def autoencoder_class() -> Any:
    """The class AutoencoderKL of diffusers; raises WeightsError where diffusers is not installed."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise WeightsError(
            f"an autoencoder needs diffusers ({reason_of(error)}): pip install 'tok1d[diffusers]'"
        ) from None
    return AutoencoderKL
