"""LlamaGen's published class-conditional models: one file each, with or without a trainer's wrapper around it.

Weights determine neither the attention heads nor the number of tokens. The model computes its rotary table; a table in
a file only gives the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from torch import Size, Tensor

from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.nn.block import swiglu_hidden
from tok1d.zoo.adapters.averages import Choice
from tok1d.zoo.adapters.keymap import KeyMap, State, depth_of, fill_model, heads_of, read_published, shape_of
from tok1d.zoo.adapters.semanticist import GPT_HEADS
from tok1d.zoo.adapters.semanticist_names import AUTOREGRESSIVE
from tok1d.zoo.adapters.settings import ClassDropout, Heads, NormEps, Setting

KEYS = KeyMap(
    [
        ("cls_embedding.embedding_table.weight", "label_embed.table.weight"),
        ("tok_embeddings.weight", "token_embed.weight"),
        ("output.weight", "out.weight"),
        ("norm.weight", "norm.weight"),
        ("pos_embed_learned", "positions"),  # of the paper's ablation without rotary positions
        *[pair for pair in AUTOREGRESSIVE if pair[0].startswith("layers.")],
    ]
)
COMPUTED = "freqs_cis"
CACHED = ".kv_cache."  # in files of models that were saved after sampling


def from_published(state: Mapping[str, Tensor]) -> State:
    """Published names (cleaned) -> ours; other names stay as they are."""
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
    num_tokens: Annotated[
        int | None,
        Setting("256 for images of 256 pixels, 576 for 384", "num_tokens", "of the file's table, else 256", ge=1),
    ] = None,
    heads: Heads = None,
    class_dropout: ClassDropout = 0.1,
    rope: Annotated[Literal["1d", "2d", "none"], Setting("rotary positions", "rope")] = "2d",
    rope_base: Annotated[float, Setting("base of the rotary frequencies", "rope_base", gt=0)] = 10000.0,
    norm_eps: NormEps = 1e-5,
    weights: Choice | None = None,
) -> LlamaGen:
    """A published LlamaGen as our model in eval mode.

    Args:
        num_tokens: 256 for models of 256 pixels, 576 for those of 384; default: as in the file's rotary table, else
            256.
        heads: attention heads; default: those of the published widths.
        class_dropout: as in training; above 0 the last row of the class table is the null class.
        rope, rope_base: rotary positions; all releases have those of a square grid.
        norm_eps: epsilon of the norms; 1e-5 in all releases.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file, or options that do not fit it.
    """
    published = read_published(file, weights)
    state = from_published(published)
    num_tokens = _num_tokens(published.get(COMPUTED), num_tokens, file)
    rows, dim = _shape(state, "label_embed.table.weight", file)
    heads = heads_of(heads, dim, GPT_HEADS, "heads=", file)
    hidden = _shape(state, "blocks.0.mlp.gate.weight", file)[0]
    qkv = _shape(state, "blocks.0.attn.qkv.weight", file)[0]
    kv_heads = (qkv - dim) * heads // (2 * dim)
    config = LlamaGenConfig(
        num_tokens=num_tokens,
        vocab_size=_shape(state, "token_embed.weight", file)[0],
        num_classes=rows - int(class_dropout > 0),
        dim=dim,
        depth=depth_of(state, source=file),
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        hidden=None if hidden == swiglu_hidden(dim) else hidden,
        rope=rope,
        rope_base=rope_base,
        norm_eps=norm_eps,
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
    """`given`, else that of the rotary table, which has one more row for the class, else 256."""
    found = None if table is None else len(table) - 1
    if given is None:
        return 256 if found is None else found
    if found not in (None, given):
        raise WeightsError(f"{file}: {COMPUTED} has {found} tokens, expected num_tokens={found}, got {given}")
    return given


def _shape(state: State, name: str, file: str | Path) -> Size:
    return shape_of(state, name, KEYS, file)
