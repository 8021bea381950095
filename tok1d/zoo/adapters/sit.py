"""Published generators of whole sequences: SiT and DiT of MAETok and SoftVQ-VAE, and LightningDiT.

The released SiT has noise at time 1 and tokens at time 0, the reverse of this package: if u(x, s) is its network, our
velocity is -u(x, 1 - t). `reverse_time` changes the weights of the first and last layer accordingly.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import torch
from torch import Size, Tensor

from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.lightningdit import LightningDiT, LightningDiTConfig, rotary_table
from tok1d.generators.sequence import SequenceConfig, SequenceModel
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig, position_table
from tok1d.nn.embed import time_rates
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
    table_tolerance,
)
from tok1d.zoo.adapters.settings import LastStep, NormEps, Sampler, Setting, Steps, TimeShift

Kind = Literal["sit", "dit", "lightningdit"]
Positions = Literal["1d", "2d"]
Config = TypeVar("Config", bound=SequenceConfig)
Model = TypeVar("Model", bound=SequenceModel)

KEYS = KeyMap(
    [
        ("x_embedder.{p}", "net.token_embed.{p}"),
        ("t_embedder.mlp.0.{p}", "net.time_embed.fc1.{p}"),
        ("t_embedder.mlp.2.{p}", "net.time_embed.fc2.{p}"),
        ("y_embedder.embedding_table.weight", "net.label_embed.table.weight"),
        *below(same("attn.qkv.{p}", "attn.proj.{p}", "mlp.fc{j}.{p}"), "blocks.{i}.", "net.blocks.{i}."),
        *below(same("attn.q_norm.{p}", "attn.k_norm.{p}", "norm{j}.weight"), "blocks.{i}.", "net.blocks.{i}."),
        ("blocks.{i}.mlp.w1.{p}", "net.blocks.{i}.mlp.gate.{p}"),
        ("blocks.{i}.mlp.w2.{p}", "net.blocks.{i}.mlp.up.{p}"),
        ("blocks.{i}.mlp.w3.{p}", "net.blocks.{i}.mlp.down.{p}"),
        ("blocks.{i}.adaLN_modulation.1.{p}", "net.blocks.{i}.modulation.linear.{p}"),
        ("final_layer.norm_final.weight", "net.norm.weight"),
        ("final_layer.adaLN_modulation.1.{p}", "net.modulation.linear.{p}"),
        ("final_layer.linear.{p}", "net.out.{p}"),
    ]
)
GRID_EMBED, EMBED = "x_embedder.proj.", "x_embedder."
GATE_UP = ".mlp.w12."  # published as one matrix: gate above up
TABLES = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")  # computed by the model
STATISTICS = ("token_mean", "token_std")  # in the published tokenizer's config.json, or in a file of their own

LIGHTNINGDIT_SHIFT = 1 / 0.3  # its timestep_shift is 0.3, in times that end at the data

SequenceHeads = Annotated[
    int | None, Setting("attention heads", "heads", "of the published model of this width", "num_heads", ge=1)
]
SequenceDropout = Annotated[
    float | None,
    Setting(
        "share of null classes in training; above 0 there is a null class",
        "class_dropout",
        "0.1",
        "class_dropout_prob",
        ge=0,
        le=1,
    ),
]
Mean = Annotated[float | None, Setting("mean of the tokens, vq_mean of the tokenizer", published="0")]
Std = Annotated[float | None, Setting("standard deviation of the tokens, vq_std", published="1", gt=0)]
StatisticsOf = Annotated[
    str | None, Setting("folder of the published tokenizer, to read mean and std from", published="none")
]

# Width -> attention heads, which weights do not determine.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}


def from_published(state: Mapping[str, Tensor], kind: Kind) -> tuple[State, list[str]]:
    """Published names (cleaned) -> ours, without computed tables, and the names that our generators do not have."""
    renamed, ignored = {}, []
    for name, value in _split(state).items():
        ours = KEYS.ours(name)
        if ours is not None:
            renamed[ours] = value
        elif name not in TABLES:
            ignored.append(name)
    return reverse_time(renamed) if kind == "sit" else renamed, ignored


def to_published(state: Mapping[str, Tensor], kind: Kind) -> State:
    """Our names -> published ones, without statistics and computed tables."""
    renamed: State = {}
    for name, value in (reverse_time(state) if kind == "sit" else state).items():
        if name in STATISTICS:
            continue
        published = KEYS.published(name)
        assert published is not None, f"no published name for {name}"
        if kind == "lightningdit" and published == f"{EMBED}weight":
            value = value[:, :, None, None]
        renamed[published.replace(EMBED, GRID_EMBED) if kind == "lightningdit" else published] = value
    gates = [name for name in renamed if ".mlp.w1." in name]
    for gate in gates:
        up = gate.replace(".w1.", ".w2.")
        renamed[gate.replace(".mlp.w1.", GATE_UP)] = torch.cat([renamed.pop(gate), renamed.pop(up)])
    return renamed


def _split(state: Mapping[str, Tensor]) -> State:
    """Published weights with the patch convolution as a linear layer, and gate and up separately ("w1", "w2")."""
    parts: State = {}
    for name, value in state.items():
        if name.startswith(GRID_EMBED):
            if value.dim() == 4 and value.shape[2:] != (1, 1):
                raise WeightsError(f"{name}: expected patches of 1, got {tuple(value.shape[2:])}")
            parts[name.replace(GRID_EMBED, EMBED)] = value.flatten(1) if value.dim() == 4 else value
        elif GATE_UP in name:
            parts[name.replace(GATE_UP, ".mlp.w1.")], parts[name.replace(GATE_UP, ".mlp.w2.")] = value.chunk(2)
        else:
            parts[name] = value
    return parts


def reverse_time(state: Mapping[str, Tensor]) -> State:
    """Weights (our names) of -u(x, 1 - t) from those of u(x, t); the function is its own inverse.

    Cosine and sine of (1 - t) f are linear in those of t f, so the change of time goes into the first layer of the time
    embedding (exactly, up to float32 rounding) and the sign into the last layer.
    """
    reversed_state = dict(state)
    for name in ("net.out.weight", "net.out.bias"):
        if name in state:
            reversed_state[name] = -state[name]
    name = "net.time_embed.fc1.weight"
    if name in state:
        weight = state[name].double()
        f = time_rates(weight.shape[1]).double().to(weight.device)
        cosines, sines, rest = weight.tensor_split([len(f), 2 * len(f)], dim=1)
        rotated = [cosines * f.cos() + sines * f.sin(), cosines * f.sin() - sines * f.cos(), rest]
        reversed_state[name] = torch.cat(rotated, dim=1).to(torch.promote_types(state[name].dtype, torch.float32))
    return reversed_state


def convert_sit(
    file: str | Path,
    *,
    heads: SequenceHeads = None,
    class_dropout: SequenceDropout = None,
    norm_eps: NormEps = 1e-6,
    path: Annotated[Literal["linear", "cosine"], Setting("interpolation of noise and tokens", "path")] = "linear",
    sampler: Sampler = "sde",
    steps: Steps = 250,
    last_step: LastStep = 0.04,
    time_shift: TimeShift = 1.0,
    mean: Mean = None,
    std: Std = None,
    tokenizer: StatisticsOf = None,
    weights: Choice | None = None,
) -> SiT:
    """A published SiT (file, or folder with its config.json) as our model in eval mode.

    Args:
        heads, class_dropout: as in training; default: as in config.json, else those of the published widths and 0.1.
        path: as in training; files do not state it reliably.
        norm_eps: epsilon of the norms; files do not state it.
        sampler, steps, last_step, time_shift: the model's defaults for sampling.
        mean, std: token statistics, vq_mean and vq_std in the tokenizer's config.json.
        tokenizer: folder of the published tokenizer, to read mean and std from.
        weights: raw or averaged ones.

    Raises:
        WeightsError: a damaged or wrong file.
    """
    published, state, options = _read(file, "sit", weights, heads=heads, class_dropout=class_dropout)
    dim, token_dim = _shape(state, "net.token_embed.weight")
    if _shape(state, "net.out.weight")[0] != token_dim:
        raise WeightsError(f"{file}: expected a velocity, got noise and variance; convert it as a DiT (maetok-dit)")
    options |= {"sampler": sampler, "steps": steps, "last_step": last_step, "time_shift": time_shift}
    options["norm_eps"] = norm_eps
    config = SiTConfig(**options, positions=_positions(published, file, dim), path=path, qk_norm=_has_qk_norm(state))
    return _filled(SiT, config, state, "sit", file, _scalar_statistics(mean, std, tokenizer))


def convert_dit(
    file: str | Path,
    *,
    heads: SequenceHeads = None,
    class_dropout: SequenceDropout = None,
    norm_eps: NormEps = 1e-6,
    schedule: Annotated[Literal["linear", "cosine"], Setting("noise schedule", "schedule")] = "linear",
    steps: Steps = 250,
    mean: Mean = None,
    std: Std = None,
    tokenizer: StatisticsOf = None,
    weights: Choice | None = None,
) -> DiT:
    """A published DiT on tokens as our model in eval mode; arguments and errors as those of `convert_sit`.

    Args:
        schedule: noise schedule, as in training.
        steps: the model's default number of sampling steps.
    """
    published, state, options = _read(file, "dit", weights, heads=heads, class_dropout=class_dropout)
    dim, token_dim = _shape(state, "net.token_embed.weight")
    if _shape(state, "net.out.weight")[0] != 2 * token_dim:
        raise WeightsError(f"{file}: expected noise and variance ({2 * token_dim} outputs); is it a SiT (maetok-sit)?")
    config = DiTConfig(
        **options,
        positions=_positions(published, file, dim),
        schedule=schedule,
        steps=steps,
        norm_eps=norm_eps,
        qk_norm=_has_qk_norm(state),
    )
    return _filled(DiT, config, state, "dit", file, _scalar_statistics(mean, std, tokenizer))


def convert_lightningdit(
    file: str | Path,
    *,
    heads: SequenceHeads = None,
    class_dropout: SequenceDropout = None,
    norm_eps: NormEps = 1e-6,
    sampler: Sampler = "euler",
    steps: Steps = 250,
    time_shift: TimeShift = LIGHTNINGDIT_SHIFT,
    statistics: Annotated[
        str | None, Setting("file with the mean and std of each channel of the latents", published="0 and 1")
    ] = None,
    weights: Choice | None = None,
) -> LightningDiT:
    """A published LightningDiT as our model in eval mode; its tokens are the positions of the grid, row by row.

    Args:
        heads, class_dropout: as in training; default: those of the published widths and 0.1.
        norm_eps: epsilon of the norms.
        sampler, steps, time_shift: the model's defaults for sampling.
        weights: raw or averaged ones.
        statistics: file with "mean" and "std" of each channel of the latents (the release's latents_stats.pt).

    Raises:
        WeightsError: a damaged or wrong file.
    """
    published, state, options = _read(file, "lightningdit", weights, heads=heads, class_dropout=class_dropout)
    dim = options["dim"]
    options |= {"sampler": sampler, "steps": steps, "time_shift": time_shift, "norm_eps": norm_eps}
    modulation = _shape(state, "net.blocks.0.modulation.linear.weight")[0] // dim
    options["mlp_ratio"] = _swiglu_ratio(dim, _shape(state, "net.blocks.0.mlp.down.weight")[1])
    config = LightningDiTConfig(**options, qk_norm=_has_qk_norm(state), shift=modulation == 6, rotary="none")
    config.positions = _positions(published, file, dim)
    if TABLES[1] in published:
        config.rotary = _rotary(published[TABLES[1]], config, str(file))
    found = None
    if statistics is not None:
        values = read_published(statistics)
        found = (_shape_checked(values, "mean", config, statistics), _shape_checked(values, "std", config, statistics))
    return _filled(LightningDiT, config, state, "lightningdit", file, found)


def _read(
    file: str | Path, kind: Kind, weights: Choice | None, *, heads: int | None, class_dropout: float | None
) -> tuple[State, State, Options]:
    """Published weights, renamed weights, and the fields that all configurations share."""
    published = read_published(file, weights)
    state, ignored = from_published(published, kind)
    if ignored:
        print(f"{file}: not part of the generator, left out: {listing(ignored)}", file=sys.stderr)
    given = published_options(Path(file))
    dim, token_dim = _shape(state, "net.token_embed.weight")
    heads = heads_of(heads or given.get("num_heads"), dim, HEADS, "heads=", file)
    dropout = given.get("class_dropout_prob", 0.1) if class_dropout is None else class_dropout
    rows = _shape(state, "net.label_embed.table.weight")[0]
    if "pos_embed" not in published:
        raise WeightsError(f"{file}: pos_embed is missing; is this the right file and format?")
    options: Options = {
        "num_tokens": published["pos_embed"].shape[-2],
        "token_dim": token_dim,
        "num_classes": rows - int(dropout > 0),
        "class_dropout": float(dropout),
        "dim": dim,
        "depth": depth_of(state, "net.", file),
        "heads": int(heads),
    }
    if "net.blocks.0.mlp.fc1.weight" in state:
        options["mlp_ratio"] = mlp_ratio(state["net.blocks.0.mlp.fc1.weight"].shape[0], dim)
    return published, state, options


def _shape(state: State, name: str) -> Size:
    return shape_of(state, name, KEYS)


def _has_qk_norm(state: State) -> bool:
    return "net.blocks.0.attn.q_norm.weight" in state


def _positions(published: State, file: str | Path, dim: int) -> Positions:
    """The kind of computed positions that equal the stored table."""
    table = published["pos_embed"].float().cpu()
    for kind in get_args(Positions):
        try:
            computed = position_table(kind, dim, table.shape[-2])
        except ConfigError:
            continue
        if float((table - computed).abs().max()) <= table_tolerance(published["pos_embed"]):
            return kind
    raise WeightsError(
        f"{file}: pos_embed {tuple(table.shape)} is neither the sine-cosine table of a sequence nor of a square grid; "
        "weights trained with other positions cannot be converted"
    )


def _rotary(stored: Tensor, config: LightningDiTConfig, source: str) -> Positions:
    """The kind of rotary positions with the stored cosines (K, head width), which are repeated for channel pairs."""
    for kind in get_args(Positions):
        config.rotary = kind
        try:
            angles = rotary_table(config)
        except ConfigError:
            continue
        assert angles is not None
        if float((stored.float().cpu()[:, ::2] - angles.cos()).abs().max()) <= table_tolerance(stored):
            return kind
    raise WeightsError(f"{source}: {TABLES[1]} are not the angles of a sequence or square grid of {config.heads} heads")


def _swiglu_ratio(dim: int, hidden: int) -> float:
    """An mlp_ratio for a SwiGLU of `hidden` channels, which are two thirds of width times ratio."""
    near = range(3 * hidden // 2 - 1, 3 * hidden // 2 + 3)
    # If several ratios fit, the one with the smallest denominator is used.
    for full in sorted(near, key=lambda full: Fraction(full, dim).denominator):
        if int(2 / 3 * full) == hidden:
            return mlp_ratio(full, dim)
    raise WeightsError(f"published weights: a SwiGLU of {hidden} hidden channels at width {dim} is not supported")


def _scalar_statistics(mean: float | None, std: float | None, tokenizer: str | None) -> tuple[Tensor, Tensor] | None:
    """The given mean and std, or those of the tokenizer's published options; None without either."""
    if tokenizer is not None:
        options = published_options(Path(tokenizer))
        if not {"vq_mean", "vq_std"} <= options.keys():
            raise WeightsError(f"tokenizer {tokenizer}: expected a config.json with vq_mean and vq_std there")
        mean = option_number(options, "vq_mean", 0.0, tokenizer) if mean is None else mean
        std = option_number(options, "vq_std", 1.0, tokenizer) if std is None else std
    if (mean is None) != (std is None):
        raise WeightsError(f"mean and std: expected both, or tokenizer=, got mean={mean}, std={std}")
    if mean is None or std is None:
        print("token statistics: none given, using 0 and 1; give mean= and std=, or tokenizer=", file=sys.stderr)
        return None
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise WeightsError(f"token statistics: expected finite numbers with std > 0, got mean={mean}, std={std}")
    return torch.tensor([float(mean)]), torch.tensor([float(std)])


def _shape_checked(values: State, name: str, config: LightningDiTConfig, source: str) -> Tensor:
    if name not in values or values[name].numel() != config.token_dim:
        raise WeightsError(f"{source}: expected {name} with {config.token_dim} numbers, one per channel")
    return values[name].float().flatten()


def _filled(
    cls: Callable[[Config], Model],
    config: Config,
    state: State,
    kind: Kind,
    file: str | Path,
    statistics: tuple[Tensor, Tensor] | None,
) -> Model:
    """The model of that configuration with these weights and token statistics, in eval mode."""
    try:
        config.check()
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
    model = cls(config)
    own = model.state_dict()
    state = {**state, **dict(zip(STATISTICS, statistics or [own[name] for name in STATISTICS]))}
    names = {name: KEYS.published(name) or name for name in own}
    fill_model(model, state, names, str(file))
    return model.eval()
