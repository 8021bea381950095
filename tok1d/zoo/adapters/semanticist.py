"""Semanticist's published weights: the tokenizer, the autoregressive model, and parts of either.

One map of names serves whole files and parts: a file that holds, say, the decoder alone is read with
`prefix="dit."`, the place the decoder has in a whole file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Size, Tensor, nn

from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.head import HeadConfig
from tok1d.nn.position import sincos_2d
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, LatentConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.zoo.adapters.autoencoder import build_network
from tok1d.zoo.adapters.keymap import (
    KeyMap,
    State,
    below,
    clean,
    fill_model,
    listing,
    mlp_ratio,
    read_published,
    same,
    table_tolerance,
)
from tok1d.zoo.pretrained.autoencoder import DEFAULTS, connect_autoencoder, latents_of
from tok1d.zoo.weights import read_weights

ENCODER = [
    ("slot_embed", "queries"),
    ("pos_embed", "positions"),
    *same("cls_token", "patch_embed.proj.{p}", "norm.{p}"),
    *same("blocks.{i}.norm{j}.{p}", "blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.proj.{p}", "blocks.{i}.mlp.fc{j}.{p}"),
]

DECODER = [
    ("null_cond", "null_tokens"),
    ("x_embedder.proj.{p}", "patch_embed.proj.{p}"),
    ("t_embedder.mlp.0.{p}", "time_embed.fc1.{p}"),
    ("t_embedder.mlp.2.{p}", "time_embed.fc2.{p}"),
    ("autoenc_cond_embedder.{p}", "token_embed.{p}"),
    *same("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.proj.{p}", "blocks.{i}.mlp.fc{j}.{p}", "projector.{i}.{p}"),
    ("blocks.{i}.adaLN_modulation.1.{p}", "blocks.{i}.modulation.linear.{p}"),
    ("final_layer.adaLN_modulation.1.{p}", "modulation.linear.{p}"),
    ("final_layer.linear.{p}", "out.{p}"),
]

HEAD = [
    ("time_embed.mlp.0.{p}", "time_embed.fc1.{p}"),
    ("time_embed.mlp.2.{p}", "time_embed.fc2.{p}"),
    ("cond_embed.{p}", "cond_embed.{p}"),
    ("input_proj.{p}", "input.{p}"),
    ("res_blocks.{i}.in_ln.{p}", "blocks.{i}.norm.{p}"),
    ("res_blocks.{i}.adaLN_modulation.1.{p}", "blocks.{i}.modulation.linear.{p}"),
    ("res_blocks.{i}.mlp.0.{p}", "blocks.{i}.fc1.{p}"),
    ("res_blocks.{i}.mlp.2.{p}", "blocks.{i}.fc2.{p}"),
    ("final_layer.adaLN_modulation.1.{p}", "modulation.linear.{p}"),
    ("final_layer.linear.{p}", "out.{p}"),
]

AUTOREGRESSIVE = [
    ("cls_embedding.embedding_table.weight", "label_embed.table.weight"),
    ("z_proj.{p}", "token_embed.{p}"),
    ("z_proj_ln.weight", "embed_norm.weight"),
    ("norm.weight", "norm.weight"),
    ("pos_embed_learned", "positions"),
    ("diffusion_pos_embed_learned", "head_positions"),
    ("layers.{i}.attention.wqkv.weight", "blocks.{i}.attn.qkv.weight"),
    ("layers.{i}.attention.wo.weight", "blocks.{i}.attn.proj.weight"),
    ("layers.{i}.feed_forward.w1.weight", "blocks.{i}.mlp.gate.weight"),
    ("layers.{i}.feed_forward.w3.weight", "blocks.{i}.mlp.up.weight"),
    ("layers.{i}.feed_forward.w2.weight", "blocks.{i}.mlp.down.weight"),
    ("layers.{i}.attention_norm.weight", "blocks.{i}.norm1.weight"),
    ("layers.{i}.ffn_norm.weight", "blocks.{i}.norm2.weight"),
]

KEYS = KeyMap(
    [
        *below(ENCODER, "encoder.", "encoder."),
        ("encoder2slot.{p}", "bottleneck.proj.{p}"),
        *below(DECODER, "dit.", "decoder."),
        *AUTOREGRESSIVE,
        *below(HEAD, "diffloss.net.", "head.net."),
    ]
)

# Where a part sits in a whole file: the published prefix and ours.
PARTS = {"": "", "encoder.": "encoder.", "dit.": "decoder.", "diffloss.": "head.", "diffloss.net.": "head.net."}

# Frozen networks that are fetched on their own, and buffers that are computed.
IGNORED_PREFIXES = ("vae.", "repa_encoder.")
IGNORED_NAMES = ("nested_sampler.arange",)
POSITION_TABLE = "dit.pos_embed"

# Width -> attention heads, which no file tells; of the ViT encoders, the DiT decoders and the language models.
VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DIT_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
GPT_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}


def from_published(state: Mapping[str, Tensor], prefix: str = "", source: str = "published weights") -> State:
    """Published names (cleaned) -> ours; what a model computes or fetches elsewhere is left out.

    Args:
        prefix: where a part alone sits in a whole file, a key of `PARTS`; the result is our part alone.

    Raises:
        WeightsError: names that do not belong here, or a position table that is not the computed one.
    """
    renamed, unexpected = {}, []
    for name, value in state.items():
        full = prefix + name
        if full == POSITION_TABLE:
            check_positions(value, source)
        elif not _ignored(full):
            ours = KEYS.ours(full)
            if ours is None:
                unexpected.append(name)
            else:
                renamed[ours.removeprefix(PARTS[prefix])] = value
    if unexpected:
        raise WeightsError(
            f"{source}: names that no Semanticist model has: {listing(unexpected)}; is this the right file and format?"
        )
    return renamed


def to_published(state: Mapping[str, Tensor], prefix: str = "") -> State:
    """Our names -> published ones, for a whole model or the part at `prefix`.

    The position table and other computed entries are not made: the released code computes them too.
    """
    renamed = {}
    for name, value in state.items():
        published = KEYS.published(PARTS[prefix] + name)
        assert published is not None, f"no published name for {name}"
        renamed[published.removeprefix(prefix)] = value
    return renamed


def load_part(model: nn.Module, state: State, prefix: str = "", source: str = "published weights") -> None:
    """Load renamed weights into a model or the part at `prefix`; missing ones are told by their published names."""
    names = {name: next(iter(to_published({name: value}, prefix))) for name, value in model.state_dict().items()}
    fill_model(model, state, names, source)


def part(state: State, name: str) -> State:
    """The entries below `name` ("encoder."), without it."""
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


def check_positions(table: Tensor, source: str) -> None:
    """Compare a stored position table (1, T, H) with the computed one.

    Raises:
        WeightsError: a difference above 1e-4, or the rounding of a file in half precision.
    """
    side = math.isqrt(table.shape[-2])
    if side**2 == table.shape[-2] and table.shape[-1] % 4 == 0:
        difference = float((table.detach().float().cpu() - sincos_2d(table.shape[-1], side, side)).abs().max())
        if difference <= table_tolerance(table):
            return
    else:
        difference = math.inf
    raise WeightsError(
        f"{source}: {POSITION_TABLE} {tuple(table.shape)} is not the sine-cosine table of a square grid (differs by "
        f"{difference:.2g}); weights trained with other positions cannot be converted"
    )


def _ignored(name: str) -> bool:
    return name.startswith(IGNORED_PREFIXES) or name in IGNORED_NAMES or ".kv_cache." in name


def _shape(state: State, name: str) -> Size:
    if name not in state:
        published = KEYS.published(name) or name
        raise WeightsError(f"published weights: {published} is missing; is this the right file and format?")
    return state[name].shape


def _depth(state: State, prefix: str = "") -> int:
    """Number of blocks, from the highest index below `prefix`."""
    indices = [int(name.removeprefix(prefix).split(".")[1]) for name in state if name.startswith(f"{prefix}blocks.")]
    if not indices:
        raise WeightsError(f"published weights: no {prefix}blocks found; is this the right file and format?")
    return 1 + max(indices)


def _heads(given: int | None, width: int, known: Mapping[int, int], option: str) -> int:
    heads = known.get(width) if given is None else given
    if heads is None:
        raise WeightsError(f"published weights do not tell the attention heads of width {width}: give {option}")
    return heads


def encoder_config(
    state: State, *, heads: int | None = None, causal: bool = True, prefix: str = ""
) -> tuple[EncoderConfig, dict[str, int]]:
    """An encoder from its renamed weights: its configuration, and image_size, channels, num_tokens."""
    dim, channels, patch, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    num_tokens = _shape(state, f"{prefix}queries")[1]
    num_patches = _shape(state, f"{prefix}positions")[1] - 1 - num_tokens
    config = EncoderConfig(
        patch=patch,
        dim=dim,
        depth=_depth(state, prefix),
        heads=_heads(heads, dim, VIT_HEADS, "encoder_heads"),
        mlp_ratio=mlp_ratio(_shape(state, f"{prefix}blocks.0.mlp.fc1.weight")[0], dim),
        causal=causal,
    )
    return config, {"image_size": math.isqrt(num_patches) * patch, "channels": channels, "num_tokens": num_tokens}


def decoder_config(
    state: State, *, heads: int | None = None, align_depth: int = 8, prefix: str = ""
) -> tuple[DecoderConfig, dict[str, int]]:
    """A decoder from its renamed weights: its configuration, and channels, num_tokens, token_dim, out_channels.

    Args:
        align_depth: the block that is aligned with a teacher, where the file holds a projector.
    """
    dim, channels, patch, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    _, num_tokens, token_dim = _shape(state, f"{prefix}null_tokens")
    config = DecoderConfig(
        patch=patch,
        dim=dim,
        depth=_depth(state, prefix),
        heads=_heads(heads, dim, DIT_HEADS, "decoder_heads"),
        mlp_ratio=mlp_ratio(_shape(state, f"{prefix}blocks.0.mlp.fc1.weight")[0], dim),
    )
    if f"{prefix}projector.0.weight" in state:
        config.align_depth = align_depth
        config.align_hidden = _shape(state, f"{prefix}projector.0.weight")[0]
        config.align_dim = _shape(state, f"{prefix}projector.4.weight")[0]
    out_channels = _shape(state, f"{prefix}out.weight")[0] // patch**2
    sizes = {"channels": channels, "num_tokens": num_tokens, "token_dim": token_dim, "out_channels": out_channels}
    return config, sizes


def head_config(state: State, *, prefix: str = "") -> tuple[HeadConfig, dict[str, int]]:
    """A diffusion head from the renamed weights of its network: its configuration, and token_dim, cond_dim."""
    width, cond_dim = _shape(state, f"{prefix}cond_embed.weight")
    token_dim = _shape(state, f"{prefix}input.weight")[1]
    out, inner = _shape(state, f"{prefix}out.weight")
    condition: Literal["concat", "adaln"] = "concat" if inner == 2 * width else "adaln"
    objective: Literal["interpolant", "ddpm"] = "ddpm" if out == 2 * token_dim else "interpolant"
    config = HeadConfig(width=width, depth=_depth(state, prefix), condition=condition, objective=objective)
    return config, {"token_dim": token_dim, "cond_dim": cond_dim}


def tokenizer_config(
    state: State,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    causal: bool = True,
    normalise: bool = True,
    align_depth: int = 8,
    latents: LatentConfig | None = None,
) -> SemanticistConfig:
    """The configuration of a whole tokenizer from its renamed weights.

    Args:
        encoder_heads, decoder_heads: attention heads; default: those of the published widths.
        causal, normalise, align_depth: what the release's configuration says and its weights do not.
        latents: the space the decoder denoises in; default: pixels.

    Raises:
        WeightsError: missing weights, unknown heads, or a decoder that does not denoise in that space.
    """
    latents = latents or LatentConfig()
    encoder, image = encoder_config(state, heads=encoder_heads, causal=causal, prefix="encoder.")
    decoder, latent = decoder_config(state, heads=decoder_heads, align_depth=align_depth, prefix="decoder.")
    channels = latents.channels or image["channels"]
    if latent["channels"] != channels:
        raise WeightsError(
            f"this decoder denoises latents of {latent['channels']} channels, but {latents.path or 'images'} has "
            f"{channels}; give autoencoder=, the diffusers folder or hub name of the one it was trained with"
        )
    if latent["out_channels"] != 2 * latent["channels"]:
        raise WeightsError(
            f"expected a decoder with learned variance ({2 * latent['channels']} output channels), "
            f"got {latent['out_channels']}"
        )
    config = SemanticistConfig(
        image_size=image["image_size"],
        channels=image["channels"],
        num_tokens=image["num_tokens"],
        token_dim=latent["token_dim"],
        normalise=normalise,
        encoder=encoder,
        decoder=decoder,
        latents=latents,
    )
    try:
        config.check()
    except ConfigError as error:
        options = {"encoder.heads": "encoder_heads=", "decoder.heads": "decoder_heads=", "align_depth": "align_depth="}
        told = next((f"; give {option}" for key, option in options.items() if key in str(error)), "")
        fits = "" if told else f" that do not fit {latents.path or 'pixels'}"
        raise WeightsError(f"published weights{fits}: {error}{told}") from None
    return config


def ar_config(state: State, *, heads: int | None = None, class_dropout: float = 0.1) -> EpsilonLlamaGenConfig:
    """The configuration of an autoregressive model from its renamed weights.

    Args:
        heads: attention heads; default: those of the published widths.
        class_dropout: as trained; above 0 the last row of the class table is the null class.

    Raises:
        WeightsError: missing weights or unknown heads.
    """
    rows, dim = _shape(state, "label_embed.table.weight")
    num_tokens = _shape(state, "head_positions")[1]
    head, sizes = head_config(state, prefix="head.net.")
    config = EpsilonLlamaGenConfig(
        num_tokens=num_tokens,
        token_dim=sizes["token_dim"],
        num_classes=rows - int(class_dropout > 0),
        dim=dim,
        depth=_depth(state),
        heads=_heads(heads, dim, GPT_HEADS, "heads"),
        class_tokens=_shape(state, "positions")[1] - num_tokens,
        class_dropout=class_dropout,
        head=head,
    )
    config.check()
    return config


def convert_tokenizer(
    path: str | Path,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    causal: bool = True,
    normalise: bool = True,
    align_depth: int = 8,
    autoencoder: str | None = None,
    autoencoder_groups: int = 32,
    autoencoder_scale: float | None = None,
) -> Semanticist:
    """A published tokenizer file, or step directory, as our model in eval mode; see `tokenizer_config`.

    Args:
        autoencoder: path or hub name of the one whose latents are denoised, or "autoencoder", the one inside the file
            or step directory. Default: pixels where the decoder has as many channels as the image, else the one
            inside, else the published KL-16.
        autoencoder_groups, autoencoder_scale: of the one inside; see `autoencoder.network_config`.

    Raises:
        WeightsError: a damaged or wrong file, or an autoencoder that does not fit it.
    """
    published = read_published(path)
    state = from_published(published, source=str(path))
    image_channels = _shape(state, "encoder.patch_embed.proj.weight")[1]
    channels = _shape(state, "decoder.patch_embed.proj.weight")[1]
    network = None
    if autoencoder == EMBEDDED or (autoencoder is None and channels != image_channels):
        inside = _autoencoder_inside(published, Path(path))
        if inside:
            network = build_network(
                inside, groups=autoencoder_groups, scaling_factor=autoencoder_scale, source=f"{path}: vae"
            )
        elif autoencoder is not None:
            raise WeightsError(f"{path}: no vae.* weights inside; give the path or hub name of the autoencoder")
        autoencoder = EMBEDDED if inside else DEFAULTS.get(channels)
    config = tokenizer_config(
        state,
        encoder_heads=encoder_heads,
        decoder_heads=decoder_heads,
        causal=causal,
        normalise=normalise,
        align_depth=align_depth,
        latents=latents_of(autoencoder, channels, network),
    )
    _check_grid(published, config, str(path))
    model = Semanticist(config)
    connect_autoencoder(model)
    load_part(model, state, source=str(path))
    if network is not None:
        assert isinstance(model.latent_space, Autoencoder)
        model.latent_space.use(network)
    return model.eval()


def _autoencoder_inside(published: State, path: Path) -> State:
    """The autoencoder that the release stores with the raw weights; of a step directory the averages are read."""
    if path.is_dir() and not any(name.startswith("vae.") for name in published):
        raw = path / "model.safetensors"
        published = clean(read_weights(raw), str(raw)) if raw.is_file() else {}
    return part(published, "vae.")


def _check_grid(published: State, config: SemanticistConfig, source: str) -> None:
    """Compare the grid that the image and the latent space make with the length of the file's position table."""
    if POSITION_TABLE not in published:
        return
    side = config.image_size // (config.latents.factor or 1) // config.decoder.patch
    found = published[POSITION_TABLE].shape[-2]
    if found != side**2:
        raise WeightsError(
            f"{source}: {POSITION_TABLE} has {found} positions, but images of {config.image_size} px in "
            f"{config.latents.path or 'pixels'} make {side**2}; give autoencoder=, the one it was trained with"
        )


def convert_ar(path: str | Path, *, heads: int | None = None, class_dropout: float = 0.1) -> EpsilonLlamaGen:
    """A published autoregressive model's file, or step directory, as our model in eval mode; see `ar_config`.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    state = from_published(read_published(path), source=str(path))
    model = EpsilonLlamaGen(ar_config(state, heads=heads, class_dropout=class_dropout))
    load_part(model, state, source=str(path))
    return model.eval()
