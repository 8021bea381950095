"""MAETok's and SoftVQ-VAE's published tokenizers: a flat config.json and weights, with any of the four bottlenecks.

The weights determine almost all of the configuration; config.json adds temperatures and weights of losses. All weights
of the model must be in the file; other weights in it are left out and listed on stderr.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from torch import Size, Tensor

from tok1d.errors import ConfigError, WeightsError
from tok1d.tokenizers.bottlenecks import BottleneckConfig, KLConfig, PlainConfig, SoftVQConfig, VQConfig
from tok1d.tokenizers.maetok import MAETok, MAETokConfig
from tok1d.tokenizers.masking import MaskConfig
from tok1d.tokenizers.vit import ViTConfig
from tok1d.zoo.adapters.averages import Choice
from tok1d.zoo.adapters.keymap import (
    KeyMap,
    Options,
    State,
    below,
    depth_of,
    fill_model,
    heads_of,
    listing,
    mlp_ratio,
    option_number,
    published_options,
    read_published,
    same,
    shape_of,
)
from tok1d.zoo.adapters.semanticist import VIT_HEADS
from tok1d.zoo.adapters.settings import DecoderHeads, DecoderNormEps, EncoderHeads, EncoderNormEps, Setting

VIT = [
    ("freqs", "freqs"),
    ("model.cls_token", "cls_token"),
    ("model.reg_token", "registers"),
    ("model.pos_embed", "positions"),
    ("model.norm.{p}", "norm.{p}"),
    ("model.blocks.{i}.ls{j}.gamma", "blocks.{i}.ls{j}.gamma"),
    *below(same("norm{j}.{p}", "attn.qkv.{p}", "attn.proj.{p}", "mlp.fc{j}.{p}"), "model.blocks.{i}.", "blocks.{i}."),
]
ENCODER = [
    ("model.patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    ("latent_tokens", "queries"),
    ("latent_pos_embed", "query_positions"),
    ("mask_token", "mask_token"),
    *below(VIT, "", "vit."),
]
DECODER = [
    ("latent_pos_embed", "token_positions"),
    ("mask_token", "mask_token"),
    ("to_pixel.model.{p}", "head.proj.{p}"),
    # The published list also counts the ReLU and the upsampling between two convolutions.
    *[(f"to_pixel.model.{1 + 3 * k}.{{p}}", f"head.convs.{k}.{{p}}") for k in range(5)],
    *below(VIT, "", "vit."),
]
KEYS = KeyMap(
    [
        *below(ENCODER, "encoder.", "encoder."),
        *below(DECODER, "decoder.", "decoder."),
        ("quant_conv.{p}", "bottleneck.proj.{p}"),
        ("post_quant_conv.{p}", "decoder.token_embed.{p}"),
        ("quantize.embedding", "bottleneck.codebook"),
        ("quantize.embedding.weight", "bottleneck.codebook"),
    ]
)

# In every file, but not used by any forward pass: computed coordinates, recent ids, the decoder's patch embedding.
UNUSED = (
    "encoder.freqs_t_x",
    "encoder.freqs_t_y",
    "decoder.freqs_t_x",
    "decoder.freqs_t_y",
    "quantize.codebook_used",
    "decoder.model.patch_embed.proj.weight",
    "decoder.model.patch_embed.proj.bias",
)
DECODER_TABLE = "decoder.vit.positions"  # in the file, but not used with rotary positions


def from_published(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Published names (cleaned) -> ours, and the names that our tokenizers do not have (alignment, other heads)."""
    renamed, ignored = {}, []
    for name, value in state.items():
        ours = KEYS.ours(name)
        if ours is not None:
            renamed[ours] = value
        elif name not in UNUSED:
            ignored.append(name)
    if "decoder.vit.freqs" in renamed:
        renamed.pop(DECODER_TABLE, None)
    return renamed, ignored


def to_published(state: Mapping[str, Tensor]) -> State:
    """Our names -> published ones, without `UNUSED`."""
    renamed = {}
    for name, value in state.items():
        published = KEYS.published(name)
        assert published is not None, f"no published name for {name}"
        if name == "bottleneck.codebook" and value.dim() == 2:
            published = "quantize.embedding.weight"
        renamed[published] = value
    return renamed


def tokenizer_config(
    state: State,
    published: Options | None = None,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
) -> MAETokConfig:
    """The configuration of a tokenizer from its renamed weights and the published options.

    Args:
        published: the options of config.json; used where the weights do not determine a value.
        encoder_heads, decoder_heads: attention heads; default: those of the published widths.

    Raises:
        WeightsError: missing weights, unknown heads, or a configuration that our models do not support.
    """
    options = dict(published or {})
    if "encoder.patch_embed.proj.weight" not in state:
        raise WeightsError(
            "published weights: encoder.model.patch_embed.proj.weight is missing; expected a MAETok or SoftVQ "
            "tokenizer with vision transformers (convolutional ones are not supported)"
        )
    encoder, side = _vit_config(state, "encoder.", options, encoder_heads)
    _, channels, encoder.patch, _ = _shape(state, "encoder.patch_embed.proj.weight")
    decoder, decoder_side = _vit_config(state, "decoder.", options, decoder_heads)
    head: Literal["linear", "conv"] = "conv" if "decoder.head.convs.0.weight" in state else "linear"
    if head == "linear":
        decoder.patch = math.isqrt(_shape(state, "decoder.head.proj.weight")[0] // channels)
    else:
        decoder.patch = 2 ** sum(f"decoder.head.convs.{k}.weight" in state for k in range(1, 5))
    image_size = int(_number(options, "base_image_size", 0) or _number(options, "image_size", 0)) or None
    for network, grid in ((encoder, side), (decoder, decoder_side)):
        image_size = grid * network.patch if grid else image_size
    if image_size is None:
        raise WeightsError(
            "published weights without a position table do not determine the image size; give config.json"
        )
    _, token_dim = _shape(state, "decoder.token_embed.weight")
    config = MAETokConfig(
        image_size=image_size,
        channels=channels,
        num_tokens=state["encoder.queries"].shape[1] if "encoder.queries" in state else 0,
        token_dim=token_dim,
        bottleneck=_bottleneck_config(state, token_dim, options),
        encoder=encoder,
        decoder=decoder,
        head=head,
        mask=_mask_config(state, options),
    )
    try:
        config.check()
        encoder.check()
        decoder.check()
    except ConfigError as error:
        raise WeightsError(f"published weights of an unsupported tokenizer: {error}") from None
    return config


def _vit_config(state: State, part: str, options: Options, heads: int | None) -> tuple[ViTConfig, int]:
    """The configuration of one ViT, without its patch size, and the side of its position table (0 without one)."""
    vit = f"{part}vit."
    dim, hidden = _shape(state, f"{vit}norm.weight")[0], _shape(state, f"{vit}blocks.0.mlp.fc1.weight")[0]
    heads = heads_of(heads, dim, VIT_HEADS, f"{part.removesuffix('.')}_heads")
    registers = state[f"{vit}registers"].shape[1] if f"{vit}registers" in state else 0
    class_token = f"{vit}cls_token" in state
    table = state.get(f"{vit}positions")
    side = math.isqrt(table.shape[1] - int(class_token and not registers)) if table is not None else 0
    gamma = f"{vit}blocks.0.ls1.gamma"
    config = ViTConfig(
        dim=dim,
        depth=depth_of(state, vit),
        heads=heads,
        mlp_ratio=mlp_ratio(hidden, dim),
        layer_scale=1e-5 if gamma in state else 0.0,
        class_token=class_token,
        registers=registers,
        absolute=table is not None,
        rotary="mixed" if f"{vit}freqs" in state else "none",
        rope_theta=_number(options, "rope_theta", 10.0),
    )
    return config, side


def _bottleneck_config(state: State, token_dim: int, options: Options) -> BottleneckConfig:
    l2 = options.get("codebook_l2_norm") is not False
    entropy = _number(options, "entropy_loss_ratio", 0.0)
    codebook = state.get("bottleneck.codebook")
    if codebook is None:
        double = _shape(state, "bottleneck.proj.weight")[0] == 2 * token_dim
        return KLConfig(weight=_number(options, "kl_loss_weight", 1e-6)) if double else PlainConfig()
    if codebook.dim() == 2:
        beta = _number(options, "commit_loss_beta", 0.25)
        return VQConfig(size=codebook.shape[0], l2=l2, beta=beta, entropy=entropy)
    num, size, _ = codebook.shape
    return SoftVQConfig(size=size, num_codebooks=num, tau=_number(options, "tau", 0.1), l2=l2, entropy=entropy)


def _number(options: Options, key: str, default: float) -> float:
    return float(option_number(options, key, default, "published weights"))


def _mask_config(state: State, options: Options) -> MaskConfig:
    """The masking in training; no masking for files without a mask token."""
    if "encoder.mask_token" not in state:
        return MaskConfig(low=0.0, high=0.0)
    high = _number(options, "enc_token_drop_max", 0.6) or 0.6  # 0 in fine-tuned files, whose mask token is not used
    low = min(_number(options, "enc_token_drop", 0.4), high)
    return MaskConfig(low=low, high=high, distribution="truncnorm", per="batch")


def _shape(state: State, name: str) -> Size:
    return shape_of(state, name, KEYS)


Tau = Annotated[float | None, Setting("temperature of a SoftVQ bottleneck", "bottleneck.tau", "0.1", "tau", gt=0)]
L2 = Annotated[
    bool | None,
    Setting("codes are compared on the unit sphere", "bottleneck.l2", "true", "codebook_l2_norm"),
]
ImageSize = Annotated[
    int | None,
    Setting("side of the images, where there is no position table", "image_size", "-", "base_image_size", ge=1),
]


def convert_tokenizer(
    path: str | Path,
    *,
    encoder_heads: EncoderHeads = None,
    decoder_heads: DecoderHeads = None,
    encoder_norm_eps: EncoderNormEps = 1e-6,
    decoder_norm_eps: DecoderNormEps = 1e-6,
    tau: Tau = None,
    l2: L2 = None,
    image_size: ImageSize = None,
    weights: Choice | None = None,
) -> MAETok:
    """A published tokenizer, a folder (config.json, model.safetensors) or a weight file, as our model in eval mode.

    Weights that are not part of the tokenizer are listed on stderr, and so are mean and standard deviation of the
    tokens: here they belong to the generator.

    Args:
        encoder_heads, decoder_heads: attention heads; default: those of the published widths.
        encoder_norm_eps, decoder_norm_eps: epsilon of the norms; files do not state it.
        tau: temperature of a SoftVQ bottleneck; default: as in config.json, else the release's default 0.1, with a
            message on stderr.
        l2: whether codes are compared on the unit sphere; default: as in config.json, else true.
        image_size: side of the images in pixels, for weights without a position table; default: as in config.json.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    path = Path(path)
    options = published_options(path)
    given = {"tau": tau, "codebook_l2_norm": l2, "base_image_size": image_size}
    options |= {key: value for key, value in given.items() if value is not None}
    state, ignored = from_published(read_published(path, weights))
    if "encoder.queries" not in state:
        state.pop("decoder.mask_token", None)  # in the file, but not used without queries
    if ignored:
        print(f"{path}: not part of the tokenizer, left out: {listing(ignored)}", file=sys.stderr)
    mean, std = _number(options, "vq_mean", 0.0), _number(options, "vq_std", 1.0)
    if (mean, std) != (0.0, 1.0):
        print(f"{path}: published generators expect (tokens - {mean}) / {std}", file=sys.stderr)
    if options.get("to_pixel") in ("siren", "identity"):
        raise WeightsError(
            f"{path}: to_pixel: expected linear or conv, got {options['to_pixel']}, which is not supported"
        )
    config = tokenizer_config(state, options, encoder_heads=encoder_heads, decoder_heads=decoder_heads)
    config.encoder.norm_eps, config.decoder.norm_eps = encoder_norm_eps, decoder_norm_eps
    if isinstance(config.bottleneck, SoftVQConfig):
        if options.get("tau") is None:
            taken = config.bottleneck.tau
            print(f"{path}: no config.json with SoftVQ's temperature, using {taken:g}; give tau=", file=sys.stderr)
    elif tau is not None:
        raise WeightsError(
            f"{path}: tau: expected none, because the bottleneck is {config.bottleneck.name} and not softvq"
        )
    model = MAETok(config)
    names = {name: next(iter(to_published({name: value}))) for name, value in model.state_dict().items()}
    fill_model(model, state, names, str(path))
    return model.eval()
