"""Semanticist's published weights: the tokenizer and the autoregressive model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from torch import Size

from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.head import HeadConfig
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, LatentConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.zoo.adapters.autoencoder import build_network
from tok1d.zoo.adapters.averages import Choice, clean
from tok1d.zoo.adapters.keymap import State, depth_of, heads_of, mlp_ratio, read_published, shape_of
from tok1d.zoo.adapters.semanticist_names import KEYS, POSITION_TABLE, from_published, load_part, part
from tok1d.zoo.adapters.settings import (
    ClassDropout,
    DecoderHeads,
    DecoderNormEps,
    EncoderHeads,
    EncoderNormEps,
    Heads,
    NormEps,
    Setting,
)
from tok1d.zoo.pretrained.autoencoder import DEFAULTS, connect_autoencoder, latents_of
from tok1d.zoo.weights import read_weights

# Width -> attention heads, which weights do not determine: of ViT encoders, DiT decoders and language models.
VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DIT_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
GPT_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}


def _shape(state: State, name: str) -> Size:
    return shape_of(state, name, KEYS)


def encoder_config(
    state: State, *, heads: int | None = None, causal: bool = True, prefix: str = ""
) -> tuple[EncoderConfig, dict[str, int]]:
    """The configuration of an encoder from its renamed weights, and its image_size, channels and num_tokens."""
    dim, channels, patch, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    num_tokens = _shape(state, f"{prefix}queries")[1]
    num_patches = _shape(state, f"{prefix}positions")[1] - 1 - num_tokens
    config = EncoderConfig(
        patch=patch,
        dim=dim,
        depth=depth_of(state, prefix),
        heads=heads_of(heads, dim, VIT_HEADS, "encoder_heads"),
        mlp_ratio=mlp_ratio(_shape(state, f"{prefix}blocks.0.mlp.fc1.weight")[0], dim),
        causal=causal,
    )
    return config, {"image_size": math.isqrt(num_patches) * patch, "channels": channels, "num_tokens": num_tokens}


def decoder_config(
    state: State, *, heads: int | None = None, align_depth: int = 8, prefix: str = ""
) -> tuple[DecoderConfig, dict[str, int]]:
    """The configuration of a decoder from its renamed weights, and channels, num_tokens, token_dim and out_channels.

    Args:
        align_depth: the block whose states were aligned with a teacher, for files with a projector.
    """
    dim, channels, patch, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    _, num_tokens, token_dim = _shape(state, f"{prefix}null_tokens")
    config = DecoderConfig(
        patch=patch,
        dim=dim,
        depth=depth_of(state, prefix),
        heads=heads_of(heads, dim, DIT_HEADS, "decoder_heads"),
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
    """The configuration of a diffusion head from the renamed weights of its network, and token_dim and cond_dim."""
    width, cond_dim = _shape(state, f"{prefix}cond_embed.weight")
    token_dim = _shape(state, f"{prefix}input.weight")[1]
    out, inner = _shape(state, f"{prefix}out.weight")
    condition: Literal["concat", "adaln"] = "concat" if inner == 2 * width else "adaln"
    objective: Literal["interpolant", "ddpm"] = "ddpm" if out == 2 * token_dim else "interpolant"
    config = HeadConfig(width=width, depth=depth_of(state, prefix), condition=condition, objective=objective)
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
        causal, normalise, align_depth: settings of the released configuration that the weights do not determine.
        latents: the space of the decoder's diffusion; default: pixels.

    Raises:
        WeightsError: missing weights, unknown heads, or a decoder for another space.
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
        hint = next((f"; give {option}" for key, option in options.items() if key in str(error)), "")
        fits = "" if hint else f" that do not fit {latents.path or 'pixels'}"
        raise WeightsError(f"published weights{fits}: {error}{hint}") from None
    return config


def ar_config(state: State, *, heads: int | None = None, class_dropout: float = 0.1) -> EpsilonLlamaGenConfig:
    """The configuration of an autoregressive model from its renamed weights.

    Args:
        heads: attention heads; default: those of the published widths.
        class_dropout: as in training; above 0 the last row of the class table is the null class.

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
        depth=depth_of(state),
        heads=heads_of(heads, dim, GPT_HEADS, "heads"),
        class_tokens=_shape(state, "positions")[1] - num_tokens,
        class_dropout=class_dropout,
        head=head,
    )
    config.check()
    return config


Causal = Annotated[bool, Setting("queries attend to earlier queries only", "encoder.causal")]
Normalise = Annotated[bool, Setting("tokens are standardised over their channels", "normalise")]
NormaliseEps = Annotated[float, Setting("added to the standard deviation", "normalise_eps", ge=0)]
AlignDepth = Annotated[
    int, Setting("block that was aligned with a teacher, of a file with a projector", "decoder.align_depth", ge=1)
]
Steps = Annotated[int, Setting("default decoding steps", "steps", ge=1)]
LatentsOf = Annotated[
    str | None,
    Setting(
        "the latents' autoencoder: a path, a hub name, or autoencoder for that in the file",
        "latents.path",
        "none for pixels, else that in the file, else KL-16",
    ),
]
AutoencoderGroups = Annotated[int, Setting("groups of the norms of the autoencoder in the file", ge=1)]
AutoencoderScale = Annotated[
    float | None, Setting("scale of its latents", published="0.2325 of KL-16, else 0.18215", gt=0)
]


def convert_tokenizer(
    path: str | Path,
    *,
    encoder_heads: EncoderHeads = None,
    decoder_heads: DecoderHeads = None,
    causal: Causal = True,
    normalise: Normalise = True,
    encoder_norm_eps: EncoderNormEps = 1e-6,
    decoder_norm_eps: DecoderNormEps = 1e-6,
    normalise_eps: NormaliseEps = 0.0,
    align_depth: AlignDepth = 8,
    steps: Steps = 250,
    autoencoder: LatentsOf = None,
    autoencoder_groups: AutoencoderGroups = 32,
    autoencoder_scale: AutoencoderScale = None,
    weights: Choice | None = None,
) -> Semanticist:
    """A published tokenizer file, or step directory, as our model in eval mode; see `tokenizer_config`.

    Args:
        autoencoder: path or hub name of the autoencoder of the decoder's latents, or "autoencoder" for the one in the
            file or step directory. Default: none (pixels) if the decoder has as many channels as the image, else the
            autoencoder in the file, else the published KL-16.
        autoencoder_groups, autoencoder_scale: of the autoencoder in the file; see `autoencoder.network_config`.
        encoder_norm_eps, decoder_norm_eps: epsilon of the norms; files do not state it.
        normalise_eps, steps: added to a token's standard deviation; default number of decoding steps.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file, or an autoencoder that does not fit it.
    """
    published = read_published(path, weights)
    state = from_published(published, source=str(path))
    image_channels, channels = (_shape(state, f"{side}.patch_embed.proj.weight")[1] for side in ("encoder", "decoder"))
    network, inside = None, State()
    if autoencoder == EMBEDDED or (autoencoder is None and channels != image_channels):
        inside = _autoencoder_inside(published, Path(path), required=autoencoder is not None)
        autoencoder = EMBEDDED if inside else DEFAULTS.get(channels)
    if inside:
        groups, scale = autoencoder_groups, autoencoder_scale
        network = build_network(inside, groups=groups, scaling_factor=scale, source=f"{path}: vae")
    config = tokenizer_config(
        state,
        encoder_heads=encoder_heads,
        decoder_heads=decoder_heads,
        causal=causal,
        normalise=normalise,
        align_depth=align_depth,
        latents=latents_of(autoencoder, channels, network),
    )
    config.steps, config.normalise_eps = steps, normalise_eps
    config.encoder.norm_eps, config.decoder.norm_eps = encoder_norm_eps, decoder_norm_eps
    _check_grid(published, config, str(path))
    model = Semanticist(config)
    connect_autoencoder(model)
    load_part(model, state, source=str(path))
    if network is not None:
        assert isinstance(model.latent_space, Autoencoder)
        model.latent_space.use(network)
    return model.eval()


def _autoencoder_inside(published: State, path: Path, *, required: bool) -> State:
    """The weights of the autoencoder; in a step directory they are in the file of the raw weights alone.

    Raises:
        WeightsError: there are none, and they are required.
    """
    if path.is_dir() and not any(name.startswith("vae.") for name in published):
        raw = path / "model.safetensors"
        published = clean(read_weights(raw), str(raw)) if raw.is_file() else {}
    found = part(published, "vae.")
    if required and not found:
        raise WeightsError(f"{path}: no vae.* weights inside; give the path or hub name of the autoencoder")
    return found


def _check_grid(published: State, config: SemanticistConfig, source: str) -> None:
    """Raise WeightsError if image size and latent space give another number of patches than the position table."""
    if POSITION_TABLE not in published:
        return
    side = config.image_size // (config.latents.factor or 1) // config.decoder.patch
    found = published[POSITION_TABLE].shape[-2]
    if found != side**2:
        raise WeightsError(
            f"{source}: {POSITION_TABLE} has {found} positions, but images of {config.image_size} px in "
            f"{config.latents.path or 'pixels'} make {side**2}; give autoencoder=, the one it was trained with"
        )


def convert_ar(
    path: str | Path,
    *,
    heads: Heads = None,
    class_dropout: ClassDropout = 0.1,
    norm_eps: NormEps = 1e-5,
    steps: Annotated[int, Setting("default network evaluations per token", "head.steps", ge=2)] = 250,
    time_scale: Annotated[
        float, Setting("interpolant: factor of the times in the time embedding", "head.time_scale", gt=0)
    ] = 1.0,
    sampler: Annotated[Literal["sde", "euler", "heun"], Setting("interpolant: sampler", "head.sampler")] = "sde",
    last_step: Annotated[
        float, Setting("interpolant: length in time of the SDE sampler's last step", "head.last_step", gt=0, lt=1)
    ] = 0.04,
    weights: Choice | None = None,
) -> EpsilonLlamaGen:
    """A published autoregressive model's file, or step directory, as our model in eval mode; see `ar_config`.

    Args:
        norm_eps: epsilon of the norms.
        steps, time_scale, sampler, last_step: of the diffusion head; the last three only for an interpolant.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    state = from_published(read_published(path, weights), source=str(path))
    config = ar_config(state, heads=heads, class_dropout=class_dropout)
    config.norm_eps, config.head.steps, config.head.time_scale = norm_eps, steps, time_scale
    config.head.sampler, config.head.last_step = sampler, last_step
    model = EpsilonLlamaGen(config)
    load_part(model, state, source=str(path))
    return model.eval()
