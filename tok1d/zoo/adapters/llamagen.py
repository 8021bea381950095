"""LlamaGen's published class-conditional models: one file each, with or without a trainer's wrapper around it.

Neither the attention heads nor the number of tokens is in a file; a file's rotary table, where it has one, is computed
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Size, Tensor

from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.nn.block import swiglu_hidden
from tok1d.zoo.adapters.keymap import KeyMap, State, fill_model, read_published
from tok1d.zoo.adapters.semanticist import AUTOREGRESSIVE, GPT_HEADS

KEYS = KeyMap(
    [
        ("cls_embedding.embedding_table.weight", "label_embed.table.weight"),
        ("tok_embeddings.weight", "token_embed.weight"),
        ("output.weight", "out.weight"),
        ("norm.weight", "norm.weight"),
        ("pos_embed_learned", "positions"),  # of the ablation without rotary positions; no release has it
        *[pair for pair in AUTOREGRESSIVE if pair[0].startswith("layers.")],
    ]
)
COMPUTED = "freqs_cis"
CACHED = ".kv_cache."  # of a model that was saved after it had sampled


def from_published(state: Mapping[str, Tensor]) -> State:
    """Published names (cleaned) -> ours; names that are no weight of a LlamaGen stay as they are."""
    kept = {name: value for name, value in state.items() if name != COMPUTED and CACHED not in name}
    return {KEYS.ours(name) or name: value for name, value in kept.items()}


def to_published(state: Mapping[str, Tensor]) -> State:
    """Our names -> published ones."""
    renamed: State = {}
    for name, value in state.items():
        published = KEYS.published(name)
        assert published is not None, f"no published name for {name}"
        renamed[published] = value
    return renamed


def convert_llamagen(
    file: str | Path,
    *,
    num_tokens: int | None = None,
    heads: int | None = None,
    class_dropout: float = 0.1,
    rope: Literal["1d", "2d", "none"] = "2d",
    rope_base: float = 10000.0,
) -> LlamaGen:
    """A published LlamaGen as our model in eval mode.

    Args:
        num_tokens: 256 for the models of 256 pixels, 576 for those of 384; default: as many as a rotary table in the
            file has, else 256.
        heads: attention heads; default: those of the published widths.
        class_dropout: as trained; above 0 the last row of the class table is the null class.
        rope, rope_base: rotary positions; every release's are those of a square grid.

    Raises:
        WeightsError: a damaged or wrong file, or options that do not fit it.
    """
    published = read_published(file)
    state = from_published(published)
    num_tokens = _num_tokens(published.get(COMPUTED), num_tokens, file)
    rows, dim = _shape(state, "label_embed.table.weight", file)
    heads = heads or GPT_HEADS.get(dim)
    if heads is None:
        raise WeightsError(f"{file}: its weights do not tell the attention heads of width {dim}: give heads=")
    hidden = _shape(state, "blocks.0.mlp.gate.weight", file)[0]
    qkv = _shape(state, "blocks.0.attn.qkv.weight", file)[0]
    kv_heads = (qkv - dim) * heads // (2 * dim)
    config = LlamaGenConfig(
        num_tokens=num_tokens,
        vocab_size=_shape(state, "token_embed.weight", file)[0],
        num_classes=rows - int(class_dropout > 0),
        dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        hidden=None if hidden == swiglu_hidden(dim) else hidden,
        rope=rope,
        rope_base=rope_base,
        class_dropout=class_dropout,
    )
    try:
        config.check()
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
    model = LlamaGen(config)
    fill_model(model, state, {name: KEYS.published(name) or name for name in model.state_dict()}, str(file))
    return model.eval()


def _num_tokens(table: Tensor | None, given: int | None, file: str | Path) -> int:
    """The number of tokens as given, or as the rotary table tells, which has a row for the class before them."""
    told = None if table is None else len(table) - 1
    if given is None:
        return 256 if told is None else told
    if told not in (None, given):
        raise WeightsError(f"{file}: {COMPUTED} is of {told} tokens, expected num_tokens={told}, got {given}")
    return given


def _shape(state: State, name: str, file: str | Path) -> Size:
    if name not in state:
        raise WeightsError(f"{file}: {KEYS.published(name)} is missing; is this the right file and format?")
    return state[name].shape
