"""Semanticist's published names of weights: those of the tokenizer, the autoregressive model, and parts of either.

One map serves whole files and parts: a file with the decoder alone is read with `prefix="dit."`, the prefix of the
decoder in a whole file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.nn.position import sincos_2d
from tok1d.zoo.adapters.keymap import KeyMap, State, below, fill_model, listing, same, table_tolerance

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

# Prefixes of a part in a whole file: published and ours.
PARTS = {"": "", "encoder.": "encoder.", "dit.": "decoder.", "diffloss.": "head.", "diffloss.net.": "head.net."}

# Left out: frozen networks, which are fetched on their own, and computed buffers.
IGNORED_PREFIXES = ("vae.", "repa_encoder.")
IGNORED_NAMES = ("nested_sampler.arange",)
POSITION_TABLE = "dit.pos_embed"


def from_published(state: Mapping[str, Tensor], prefix: str = "", source: str = "published weights") -> State:
    """Published names (cleaned) -> ours, without computed buffers and frozen networks.

    Args:
        prefix: for the file of a part alone, its prefix in a whole file, a key of `PARTS`; the result has our names
            within the part.

    Raises:
        WeightsError: names of other models, or a position table that is not the computed one.
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

    The position table and other computed buffers are left out: the released code computes them as well.
    """
    renamed = {}
    for name, value in state.items():
        published = KEYS.published(PARTS[prefix] + name)
        assert published is not None, f"no published name for {name}"
        renamed[published.removeprefix(prefix)] = value
    return renamed


def load_part(model: nn.Module, state: State, prefix: str = "", source: str = "published weights") -> None:
    """Load renamed weights into a model or the part at `prefix`; messages have published names."""
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
