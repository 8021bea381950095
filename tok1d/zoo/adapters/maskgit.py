"""The published MaskGIT generators of TiTok: a plain state dict, or a folder with its nested config.json.

The published embedding table has rows for ids, mask, classes and null class; here `token_embed` has the first two and
`label_embed` the others. BERT's token type is always 0, so its vector is added to every position. BERT's separate
query, key and value matrices are one matrix here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from torch import Size, Tensor

from tok1d.config.sampling import Schedule
from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
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
    mlp_ratio,
    option_number,
    published_options,
    read_published,
    same,
    shape_of,
)
from tok1d.zoo.adapters.settings import Setting
from tok1d.zoo.compat.guidance import maskgit_guidance

VIT = KeyMap(
    [
        ("model.embeddings.word_embeddings.weight", "words"),
        ("model.embeddings.position_embeddings.weight", "places"),
        ("model.embeddings.token_type_embeddings.weight", "types"),
        ("model.embeddings.LayerNorm.{p}", "net.embed_norm.{p}"),
        ("model.lm_head.{p}", "net.out.{p}"),
        *below(
            [
                ("attention.self.qkv.{p}", "attn.qkv.{p}"),
                ("attention.output.dense.{p}", "attn.proj.{p}"),
                ("attention.output.LayerNorm.{p}", "norm1.{p}"),
                ("intermediate.dense.{p}", "mlp.fc1.{p}"),
                ("output.dense.{p}", "mlp.fc2.{p}"),
                ("output.LayerNorm.{p}", "norm2.{p}"),
            ],
            "model.encoder.layer.{i}.",
            "net.blocks.{i}.",
        ),
    ]
)
# For blocks with consecutive numbers, see `_numbered`.
UVIT = KeyMap(
    [
        ("embeddings.weight", "words"),
        ("pos_embed", "places"),
        ("norm.{p}", "net.norm.{p}"),
        ("lm_head.{p}", "net.out.{p}"),
        *below(same("norm{j}.{p}", "attn.qkv.{p}", "attn.proj.{p}", "mlp.fc{j}.{p}"), "blocks.{i}.", "net.blocks.{i}."),
        ("out_blocks.{i}.skip_linear.{p}", "net.skips.{i}.{p}"),
    ]
)
BUFFERS = ("model.embeddings.position_ids", "model.embeddings.token_type_ids")  # in files of older libraries
APART = ("query", "key", "value")
HEADS = {768: 16, 1024: 16}  # width -> attention heads, which weights do not determine


def is_uvit(state: Mapping[str, Tensor]) -> bool:
    """Whether published weights (cleaned names) are those of a U-ViT."""
    return "pos_embed" in state


def from_published(state: Mapping[str, Tensor], source: str = "published weights") -> State:
    """Published names (cleaned) -> ours; other names stay as they are.

    Raises:
        WeightsError: the tables are missing.
    """
    state = {name: value for name, value in state.items() if name not in BUFFERS}
    uvit = is_uvit(state)
    keys = UVIT if uvit else VIT
    state = _numbered(state) if uvit else _joined(state)
    renamed = {keys.ours(name) or name: value for name, value in state.items()}
    for name in ("words", "places", "net.out.bias", *(() if uvit else ("types",))):
        if name not in renamed:
            raise WeightsError(f"{source}: {keys.published(name)} is missing; is this the right file and format?")
    words, places = renamed.pop("words"), renamed.pop("places")
    if not uvit:
        places = (places + renamed.pop("types")[0])[None]
    cut = len(renamed["net.out.bias"]) + 1  # the ids and the mask
    tables = {
        "net.token_embed.weight": words[:cut],
        "net.label_embed.table.weight": words[cut:],
        "net.positions": places,
    }
    return {**renamed, **tables}


def to_published(state: Mapping[str, Tensor]) -> State:
    """Our names -> published ones; token types are zero, because our positions contain the vector of type 0."""
    uvit = "net.norm.weight" in state
    keys, rest = (UVIT if uvit else VIT), dict(state)
    words = torch.cat([rest.pop("net.token_embed.weight"), rest.pop("net.label_embed.table.weight")])
    places = rest.pop("net.positions")
    rest |= {"words": words, "places": places} if uvit else {"words": words, "places": places[0]}
    if not uvit:
        rest["types"] = torch.zeros_like(places[0, :2])
    renamed: State = {}
    for name, value in rest.items():
        published = keys.published(name)
        assert published is not None, f"no published name for {name}"
        renamed[published] = value
    return _unnumbered(renamed) if uvit else _apart(renamed)


def _joined(state: State) -> State:
    """Join queries, keys and values of each block into "qkv" if all three are present."""
    joined = dict(state)
    for name in [name for name in state if f".self.{APART[0]}." in name]:
        parts = [name.replace(APART[0], part) for part in APART]
        if all(part in state for part in parts):
            joined[name.replace(APART[0], "qkv")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _apart(state: State) -> State:
    """The inverse of `_joined`."""
    parts: State = {}
    for name, value in state.items():
        if ".self.qkv." in name:
            parts |= {name.replace("qkv", part): each for part, each in zip(APART, value.chunk(3))}
        else:
            parts[name] = value
    return parts


def _numbered(state: State) -> State:
    """Number the blocks of both halves and the middle one consecutively; the skip layers keep their numbers."""
    half = len({name.split(".")[1] for name in state if name.startswith("in_blocks.")})
    numbered: State = {}
    for name, value in state.items():
        if name.startswith("in_blocks."):
            name = name.replace("in_blocks", "blocks", 1)
        elif name.startswith("mid_block."):
            name = name.replace("mid_block", f"blocks.{half}", 1)
        elif (match := re.match(r"out_blocks\.(\d+)\.(?!skip_linear)", name)) is not None:
            name = f"blocks.{half + 1 + int(match[1])}.{name[match.end() :]}"
        numbered[name] = value
    return numbered


def _unnumbered(state: State) -> State:
    """The inverse of `_numbered`."""
    half = len({name.split(".")[1] for name in state if name.startswith("out_blocks.")})
    renamed: State = {}
    for name, value in state.items():
        if (match := re.match(r"blocks\.(\d+)\.", name)) is not None:
            i, rest = int(match[1]), name[match.end() :]
            place = f"in_blocks.{i}" if i < half else "mid_block" if i == half else f"out_blocks.{i - half - 1}"
            name = f"{place}.{rest}"
        renamed[name] = value
    return renamed


Heads = Annotated[
    int | None,
    Setting("attention heads", "heads", "of the published model of this width", "num_attention_heads", ge=1),
]
ClassDropout = Annotated[
    float | None,
    Setting("share of null classes in training", "class_dropout", "0.1", "class_label_dropout", ge=0, le=1),
]
NormEps = Annotated[float | None, Setting("epsilon of the norms", "norm_eps", "1e-12, of a U-ViT 1e-5", gt=0)]
Steps = Annotated[int | None, Setting("default sampling steps", "steps", "8", "num_steps", ge=1)]
Noise = Annotated[
    float | None, Setting("Gumbel noise at the first step", "noise", "9.5", "randomize_temperature", ge=0)
]
Annealing = Annotated[bool, Setting("temperature falls from 1.3 to 0.5 over the steps", "annealing")]
GuidanceSchedule = Annotated[
    Schedule | None, Setting("schedule of guidance", "guidance_schedule", "linear", "guidance_decay")
]
GuidancePower = Annotated[
    float | None, Setting("power of power_cosine", "guidance_power", "3", "guidance_scale_pow", gt=0)
]


def convert_maskgit(
    file: str | Path,
    *,
    heads: Heads = None,
    class_dropout: ClassDropout = None,
    norm_eps: NormEps = None,
    steps: Steps = None,
    noise: Noise = None,
    annealing: Annealing = True,
    guidance_schedule: GuidanceSchedule = None,
    guidance_power: GuidancePower = None,
    weights: Choice | None = None,
) -> MaskGIT:
    """A published MaskGIT (file, or folder with its config.json) as our model in eval mode.

    Args:
        heads, class_dropout: as in training; default: as in config.json, else those of the published widths and 0.1.
        norm_eps, steps, noise, annealing, guidance_schedule, guidance_power: norms, defaults for sampling; None:
            as in config.json, else those of `MaskGITConfig`.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    state = from_published(read_published(file, weights), str(file))
    given = _generator_options(file)
    codes, dim = _shape(state, "net.out.weight", file)
    heads = heads_of(heads or given.get("num_attention_heads"), dim, HEADS, "heads=", file)
    hidden = _shape(state, "net.blocks.0.mlp.fc1.weight", file)[0]
    if class_dropout is None:
        class_dropout = option_number(given, "class_label_dropout", 0.1, file)
    sampling = {"steps": steps, "noise": noise, "guidance_schedule": guidance_schedule}
    config = MaskGITConfig(
        num_tokens=state["net.positions"].shape[1] - 1,
        vocab_size=codes,
        num_classes=len(state["net.label_embed.table.weight"]) - 1,
        trunk="uvit" if "net.norm.weight" in state else "vit",
        dim=dim,
        depth=depth_of(state, "net.", file),
        heads=int(heads),
        mlp_ratio=mlp_ratio(hidden, dim),
        class_dropout=class_dropout,
        annealing=annealing,
        norm_eps=norm_eps,
        **_sampling(given, file, {**sampling, "guidance_power": guidance_power}),
    )
    compare_options(given, {"image_seq_len": config.num_tokens, "condition_num_classes": config.num_classes}, file)
    try:
        config.check()
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
    if config.class_dropout == 0:
        raise WeightsError(
            f"{file}: has a null class, expected class_dropout above 0; give class_dropout= (used in training only)"
        )
    model = MaskGIT(config)
    keys = UVIT if config.trunk == "uvit" else VIT
    names = {name: keys.published(name) or name for name in model.state_dict()}
    fill_model(model, state, names, str(file))
    return model.eval()


def _generator_options(file: str | Path) -> Options:
    """The generator's options in the nested config.json of a published folder; empty without such a file."""
    options = published_options(file)
    for section in ("model", "generator"):
        options = options.get(section, {})
        if not isinstance(options, dict):
            return {}
    return options


def _sampling(given: Options, file: str | Path, chosen: Mapping[str, object]) -> Options:
    """The fields of `MaskGITConfig` for sampling that are chosen (not None), or that config.json has."""
    found: Options = {}
    if given.get("num_steps") is not None:
        found["steps"] = int(option_number(given, "num_steps", 0, file))
    if given.get("randomize_temperature") is not None:
        found["noise"] = option_number(given, "randomize_temperature", 0.0, file)
    if given.get("guidance_scale_pow") is not None:
        found["guidance_power"] = option_number(given, "guidance_scale_pow", 0.0, file)
    if given.get("guidance_decay") is not None:
        try:
            found["guidance_schedule"] = maskgit_guidance(1.0, given["guidance_decay"]).schedule
        except KeyError:
            raise WeightsError(f"{file}: config.json: unknown guidance_decay {given['guidance_decay']!r}") from None
    return {**found, **{key: value for key, value in chosen.items() if value is not None}}


def _shape(state: State, name: str, file: str | Path) -> Size:
    return shape_of(state, name, UVIT if "net.norm.weight" in state else VIT, file)
