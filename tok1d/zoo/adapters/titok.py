"""Published TiTok and TA-TiTok tokenizers: a weight file, or a hub folder with weights and a nested config.json.

Files whose decoder predicts codes are two-stage models (`LegacyTiTok`), the others have one stage (`TiTok`). The
weights determine almost all of the configuration; config.json adds the rest. A file may contain the weights of the
model and those of `UNUSED`, which are left out and listed on stderr.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from torch import Size, Tensor, nn

from tok1d.errors import ConfigError, WeightsError
from tok1d.tokenizers.bottlenecks import KLConfig, VQConfig
from tok1d.tokenizers.titok import TiTok, TiTokConfig, TiTokViTConfig
from tok1d.zoo.adapters.averages import Choice
from tok1d.zoo.adapters.keymap import (
    KeyMap,
    Options,
    State,
    below,
    compare_options,
    depth_of,
    fill_model,
    heads_of,
    listing,
    mlp_ratio,
    option_number,
    published_options,
    read_published,
    without_prefix,
)
from tok1d.zoo.adapters.settings import DecoderHeads, DecoderNormEps, EncoderHeads, EncoderNormEps, Setting
from tok1d.zoo.compat.titok import LegacyTiTok, LegacyTiTokConfig, PixelsConfig

Config = TypeVar("Config", TiTokConfig, LegacyTiTokConfig)

VIT = [
    ("class_embedding", "vit.cls_token"),
    ("positional_embedding", "vit.positions"),
    ("ln_pre.{p}", "vit.norm_in.{p}"),
    ("ln_post.{p}", "vit.norm.{p}"),
    *below(
        [
            ("ln_{j}.{p}", "norm{j}.{p}"),
            ("attn.in_proj_{p}", "attn.qkv.{p}"),
            ("attn.out_proj.{p}", "attn.proj.{p}"),
            ("mlp.c_fc.{p}", "mlp.fc1.{p}"),
            ("mlp.c_proj.{p}", "mlp.fc2.{p}"),
        ],
        "transformer.{i}.",
        "vit.blocks.{i}.",
    ),
]
COMMON = [
    ("latent_tokens", "encoder.queries"),
    ("encoder.patch_embed.{p}", "encoder.patch_embed.proj.{p}"),
    ("encoder.latent_token_positional_embedding", "encoder.query_positions"),
    ("encoder.conv_out.{p}", "bottleneck.proj.{p}"),
    ("quantize.embedding.weight", "bottleneck.codebook"),
    ("decoder.decoder_embed.{p}", "decoder.token_embed.{p}"),
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.latent_token_positional_embedding", "decoder.token_positions"),
    *below(VIT, "encoder.", "encoder."),
    *below(VIT, "decoder.", "decoder."),
]
KEYS = KeyMap(
    [
        *COMMON,
        ("quantize.embed_prob", "bottleneck.usage"),
        ("decoder.ffn.0.{p}", "decoder.proj.{p}"),
        ("decoder.conv_out.{p}", "decoder.conv.{p}"),
        ("decoder.text_guidance_proj.{p}", "decoder.text_embed.{p}"),
        ("decoder.text_guidance_positional_embedding", "decoder.text_positions"),
    ]
)
PIXEL_BLOCK = [("norm{j}.{p}", "norm{j}.{p}"), ("conv{j}.weight", "conv{j}.weight")]
PIXEL_LEVEL = [
    *[
        pair
        for k in (1, 2)
        for pair in (
            (f"block.{{j}}.norm{k}.{{p}}", f"blocks.{{j}}.norm{k}.{{p}}"),
            (f"block.{{j}}.conv{k}.weight", f"blocks.{{j}}.conv{k}.weight"),
        )
    ],
    ("block.{j}.nin_shortcut.weight", "blocks.{j}.shortcut.weight"),
    ("upsample_conv.{p}", "upsample.{p}"),
]
LEGACY_KEYS = KeyMap(
    [
        *COMMON,
        ("decoder.ffn.0.{p}", "decoder.fc1.{p}"),
        ("decoder.ffn.2.{p}", "decoder.fc2.{p}"),
        ("pixel_quantize.embedding.weight", "decoder.codebook"),
        ("pixel_decoder.conv_in.{p}", "decoder.painter.conv_in.{p}"),
        ("pixel_decoder.norm_out.{p}", "decoder.painter.norm_out.{p}"),
        ("pixel_decoder.conv_out.{p}", "decoder.painter.conv_out.{p}"),
        *below(PIXEL_BLOCK, "pixel_decoder.mid.{i}.", "decoder.painter.mid.{i}."),
        *below(PIXEL_LEVEL, "pixel_decoder.up.{i}.", "decoder.painter.levels.{i}."),
    ]
)

# Read in training alone: the usage of the codes (kept for one-stage models, which revive unused codes), and the
# networks of the loss.
UNUSED = ("quantize.embed_prob", "discriminator.", "perceptual_loss.", "lpips.", "loss_module.")
PREFIXES = ("model.",)  # of all names in some files
# Stored without a batch axis, and as 1x1 convolutions.
TABLES = ("cls_token", "positions", "queries", "query_positions", "token_positions", "text_positions")
POINTWISE = ("bottleneck.proj.weight", "decoder.proj.weight", "decoder.fc1.weight", "decoder.fc2.weight")

HEADS = {size["dim"]: size["heads"] for size in TiTokViTConfig.SIZES.values()}


def is_legacy(state: Mapping[str, Tensor]) -> bool:
    """Whether published weights are those of a two-stage model, which predicts codes."""
    return "decoder.ffn.2.weight" in state


def from_published(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Published names (cleaned) -> ours, and the names of weights that only training reads.

    Raises:
        WeightsError: names that no TiTok has.
    """
    keys = LEGACY_KEYS if is_legacy(state) else KEYS
    renamed: State = {}
    ignored: list[str] = []
    strange: list[str] = []
    for name, value in state.items():
        ours = keys.ours(name)
        if ours is not None:
            pointwise = ours in POINTWISE and value.shape[2:] == (1, 1)
            renamed[ours] = value[..., 0, 0] if pointwise else value[None] if _is_table(ours, value) else value
        else:
            (ignored if name.startswith(UNUSED) else strange).append(name)
    if strange:
        raise WeightsError(f"published weights: {listing(strange)} are not part of a TiTok; is this the right format?")
    return renamed, ignored


def to_published(state: Mapping[str, Tensor]) -> State:
    """Our names of a `TiTok` or `LegacyTiTok` -> published ones."""
    keys, renamed = LEGACY_KEYS if "decoder.fc2.weight" in state else KEYS, State()
    for name, value in state.items():
        published = keys.published(name)
        assert published is not None, f"no published name for {name}"
        table = name.rsplit(".", 1)[-1] in TABLES
        renamed[published] = value[..., None, None] if name in POINTWISE else value[0] if table else value
    return renamed


def _is_table(name: str, value: Tensor) -> bool:
    return name.rsplit(".", 1)[-1] in TABLES and value.dim() == 2


L2 = Annotated[
    bool | None,
    Setting(
        "codes are compared on the unit sphere",
        "bottleneck.l2",
        "false, of a model in two stages true",
        "use_l2_norm",
    ),
]
Beta = Annotated[
    float | None, Setting("weight of the commitment loss", "bottleneck.beta", "0.25", "commitment_cost", ge=0)
]
QuantizerWeight = Annotated[
    float | None,
    Setting(
        "of a model in two stages: weight of the bottleneck's losses",
        "quantizer_weight",
        "1",
        "quantizer_weight",
        ge=0,
    ),
]


def convert_titok(
    path: str | Path,
    *,
    encoder_heads: EncoderHeads = None,
    decoder_heads: DecoderHeads = None,
    encoder_norm_eps: EncoderNormEps = 1e-5,
    decoder_norm_eps: DecoderNormEps = 1e-5,
    l2: L2 = None,
    beta: Beta = None,
    quantizer_weight: QuantizerWeight = None,
    weights: Choice | None = None,
) -> TiTok | LegacyTiTok:
    """A published TiTok, a weight file or a folder (config.json, model.safetensors), as our model in eval mode.

    Weights that are not part of the tokenizer are listed on stderr.

    Args:
        encoder_heads, decoder_heads: attention heads; default: those of the published widths.
        encoder_norm_eps, decoder_norm_eps: epsilon of the norms; files do not state it.
        l2: whether codes are compared on the unit sphere; default: as in config.json, else true for
            two-stage models only.
        beta: weight of the commitment loss, for further training; default: as in config.json, else 0.25.
        quantizer_weight: weight of all losses of the bottleneck, for a two-stage model; default: as in config.json,
            else 1.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file, or a config.json that contradicts it.
    """
    path = Path(path)
    published = without_prefix(read_published(path, weights), PREFIXES)
    state, ignored = from_published(published)
    if ignored:
        print(f"{path}: not part of the tokenizer, left out: {listing(ignored)}", file=sys.stderr)
    options = _read_options(path)
    if beta is not None:
        options["commitment_cost"] = beta
    if quantizer_weight is not None:
        options["losses"] = {**options.get("losses", {}), "quantizer_weight": quantizer_weight}
    heads = {"encoder": encoder_heads, "decoder": decoder_heads}
    legacy = is_legacy(published)
    if options.get("is_legacy", legacy) != legacy:
        raise WeightsError(f"{path}: config.json says is_legacy={options['is_legacy']}, the weights say {legacy}")
    config = (_legacy_config if legacy else _config)(state, options, heads, l2)
    config.encoder.norm_eps, config.decoder.norm_eps = encoder_norm_eps, decoder_norm_eps
    if quantizer_weight is not None and not legacy:
        raise WeightsError(f"{path}: quantizer_weight: expected none, because this model has one stage and not two")
    _compare(config, options, str(path))
    model = LegacyTiTok(config) if isinstance(config, LegacyTiTokConfig) else TiTok(config)
    fill_model(model, state, _published_names(model), str(path))
    return model.eval()


def _published_names(model: nn.Module) -> dict[str, str]:
    return {name: _published_name(name) for name in model.state_dict()}


def _published_name(name: str) -> str:
    return LEGACY_KEYS.published(name) or KEYS.published(name) or name


def _read_options(path: Path) -> Options:
    """The tokenizer's options and "losses" in the nested config.json next to the weights; empty without one."""
    options = content = published_options(path)
    for key in ("model", "vq_model"):
        inner = options.get(key)
        options = inner if isinstance(inner, dict) else options
    losses = content.get("losses")
    return {**options, "losses": losses if isinstance(losses, dict) else {}}


def _config(state: State, options: Options, heads: dict[str, int | None], l2: bool | None) -> TiTokConfig:
    shared = _shared(state, heads)
    rows = _shape(state, "decoder.proj.weight")[0]
    shared["decoder"].patch = math.isqrt(rows // shared["channels"])
    codebook, token_dim = state.get("bottleneck.codebook"), shared["token_dim"]
    bottleneck: VQConfig | KLConfig
    if codebook is None:
        if _shape(state, "bottleneck.proj.weight")[0] != 2 * token_dim:
            raise WeightsError("published weights: quantize.embedding.weight is missing; is this the right file?")
        bottleneck = KLConfig(weight=option_number(options.get("losses", {}), "kl_weight", 1e-6, "published weights"))
    else:
        bottleneck = _vq_config(codebook, options, l2, default=False, revival="bottleneck.usage" in state)
    text: Options = {}
    if "decoder.text_embed.weight" in state:
        length = _shape(state, "decoder.text_positions")[1]
        text = {"text": True, "text_length": length, "text_dim": _shape(state, "decoder.text_embed.weight")[1]}
    return _checked(TiTokConfig(**shared, bottleneck=bottleneck, **text), state)


def _legacy_config(state: State, options: Options, heads: dict[str, int | None], l2: bool | None) -> LegacyTiTokConfig:
    shared = _shared(state, heads)
    shared["decoder"].patch = max(shared["image_size"] // _side(state, "decoder"), 1)
    bottleneck = _vq_config(_tensor(state, "bottleneck.codebook"), options, l2, default=True)
    codes = _shape(state, "decoder.fc2.weight")[0]
    weight = option_number(options.get("losses", {}), "quantizer_weight", 1.0, "published weights")
    config = LegacyTiTokConfig(
        **shared, bottleneck=bottleneck, codes=codes, stage="train", quantizer_weight=float(weight)
    )
    if any(name.startswith(("decoder.painter.", "decoder.codebook")) for name in state):
        config.stage, config.pixels = "finetune", _pixels_config(state)
    return _checked(config, state)


def _checked(config: Config, state: State) -> Config:
    """Refuse parts that do not fit each other or the decoder's position table; raises WeightsError."""
    try:
        config.check()
        config.encoder.check()
        config.decoder.check()
        if isinstance(config, LegacyTiTokConfig):
            config.pixels.check()
    except ConfigError as error:
        raise WeightsError(f"published weights with an unsupported configuration: {error}") from None
    side = config.image_size // config.decoder.patch
    if side != _side(state, "decoder"):
        raise WeightsError(
            f"published weights: decoder.positional_embedding is for {_side(state, 'decoder')} patches a side, "
            f"patches of {config.decoder.patch} in {config.image_size} pixels are {side}"
        )
    return config


def _shared(state: State, heads: dict[str, int | None]) -> Options:
    """The fields that both kinds of configuration have, without the decoder's patch size."""
    parts = {part: _vit_config(state, part, heads[part]) for part in ("encoder", "decoder")}
    _, channels, patch, _ = _shape(state, "encoder.patch_embed.proj.weight")
    parts["encoder"].patch = patch
    return {
        **parts,
        "image_size": _side(state, "encoder") * patch,
        "channels": channels,
        "num_tokens": _shape(state, "encoder.queries")[1],
        "token_dim": _shape(state, "decoder.token_embed.weight")[1],
    }


def _vit_config(state: State, part: str, heads: int | None) -> TiTokViTConfig:
    """The configuration of one ViT, without its patch size."""
    dim = _shape(state, f"{part}.vit.norm.weight")[0]
    hidden = _shape(state, f"{part}.vit.blocks.0.mlp.fc1.weight")[0]
    heads = heads_of(heads, dim, HEADS, f"{part}_heads")
    depth = depth_of(state, f"{part}.vit.")
    return TiTokViTConfig(dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio(hidden, dim))


def _vq_config(
    codebook: Tensor, options: Options, l2: bool | None, *, default: bool, revival: bool = False
) -> VQConfig:
    l2 = bool(options.get("use_l2_norm", default)) if l2 is None else l2
    beta = option_number(options, "commitment_cost", 0.25, "published weights")
    return VQConfig(size=codebook.shape[0], l2=l2, beta=beta, revival=revival)


def _pixels_config(state: State) -> PixelsConfig:
    """The convolutional decoder; the channels of a level are those of the second norm of its first block."""
    painter = "decoder.painter."
    names = [name.removeprefix(painter).split(".") for name in state if name.startswith(painter)]
    levels = 1 + max((int(name[1]) for name in names if name[0] == "levels"), default=-1)
    widths = [_shape(state, f"{painter}levels.{i}.blocks.0.norm2.weight")[0] for i in range(levels)]
    # Weights determine the products of width and `mult` only: the width is their greatest common divisor.
    width = math.gcd(*widths, _shape(state, f"{painter}norm_out.weight")[0])
    return PixelsConfig(
        code_dim=_shape(state, "decoder.codebook")[1],
        width=width,
        mult=[each // width for each in widths],
        blocks=1 + max((int(name[1]) for name in names if name[0] == "mid"), default=0),
    )


def _compare(config: TiTokConfig | LegacyTiTokConfig, options: Options, source: str) -> None:
    found: Options = {
        "num_latent_tokens": config.num_tokens,
        "token_size": config.token_dim,
        "vit_enc_patch_size": config.encoder.patch,
    }
    if isinstance(config.bottleneck, VQConfig):
        found["codebook_size"] = config.bottleneck.size
    if options.get("quantize_mode") in ("vq", "vae"):
        found["quantize_mode"] = "vq" if isinstance(config.bottleneck, VQConfig) else "vae"
    compare_options(options, found, source)


def _side(state: State, part: str) -> int:
    return math.isqrt(_shape(state, f"{part}.vit.positions")[1] - 1)


def _shape(state: State, name: str) -> Size:
    return _tensor(state, name).shape


def _tensor(state: State, name: str) -> Tensor:
    if name not in state:
        raise WeightsError(f"published weights: {_published_name(name)} is missing; is this the right file and format?")
    return state[name]
