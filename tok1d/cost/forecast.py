"""Forecast of a training run from its recipe alone: parameters, steps, memory, FLOPs and disk space.

The model is built on PyTorch's meta device, where tensors have shapes but no values: no data and no weights are read,
nothing is computed and nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from tok1d.config.condition import text_condition
from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.cost.loss_networks import LossNetwork, loss_networks
from tok1d.cost.measure import AUTOENCODERS, StepCost, autoencoder_cost, measure, use_stand_ins
from tok1d.data.tokens import Layout
from tok1d.data.transforms import NUM_VIEWS
from tok1d.errors import ConfigError, Tok1dError, reason_of
from tok1d.losses.total import Batch
from tok1d.nn.matrices import block_matrices
from tok1d.zoo import store

if TYPE_CHECKING:
    from rich.table import Table

KNOWN_IMAGES = {"fashion_mnist": 60_000, "emoji": 3_286}
DEVICES = 8  # in a typical machine; memory is shown for one device and for this many


@dataclass(frozen=True)
class Forecast:
    """Counts of a run. Bytes are those of one process, FLOPs those of matrix products and convolutions.

    Args:
        parameters: of the model by part, including fixed position tables (as in published counts).
        tables: how many of them are fixed position tables, by part; only for parts that have one.
        num_images: images (or token sequences) of an epoch; None is unknown.
        bytes_per_parameter: bytes for each trained parameter: weight, gradient, AdamW's two moments (Muon has one),
            averaged weight.
        measured: cost of a training step.
        frozen: untrained networks that are not part of the model: name -> (parameters, FLOPs per image), None where
            they are unknown.
        cache_rows, cache_bytes: of a generator's token cache; None without a cache or if `num_images` is None.
        loss_networks: networks of the loss by name; None where their cost is unknown.
        image_sizes: sizes in pixels of a run that mixes them. FLOPs are the mean over them, bytes those of the largest.
        matrices: numbers of parameters by name of the matrices that Muon trains; empty with AdamW alone.
        without_words: a table of words is not counted, because its vocabulary is made from the captions.
    """

    parameters: dict[str, int]
    tables: dict[str, int]
    trainable: int
    batch_size: int
    images_per_step: int
    steps: int
    num_images: int | None
    bytes_per_parameter: int
    precision: str
    shard: str
    measured: StepCost
    frozen: dict[str, tuple[int, int] | None]
    cache_rows: int | None = None
    cache_bytes: int | None = None
    loss_networks: dict[str, LossNetwork | None] = field(default_factory=dict)
    image_sizes: list[int] = field(default_factory=list)
    matrices: dict[str, int] = field(default_factory=dict)
    without_words: bool = False

    @property
    def known_networks(self) -> list[LossNetwork]:
        """The networks of the loss whose cost is known."""
        return [network for network in self.loss_networks.values() if network is not None]

    @property
    def total(self) -> int:
        """All parameters of the model."""
        return sum(self.parameters.values())

    @property
    def moment_bytes(self) -> int:
        """Bytes of the model's moments: two of AdamW or one of Muon for each parameter."""
        return 8 * self.trainable - 4 * sum(self.matrices.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients, moments and averages in float32, frozen and loss networks included."""
        frozen = self.total - self.trainable + sum(cost[0] for cost in self.frozen.values() if cost)
        networks = sum(network.state_bytes for network in self.known_networks)
        return self.trainable * (self.bytes_per_parameter - 8) + self.moment_bytes + 4 * frozen + networks

    def memory(self, devices: int = 1) -> int:
        """Bytes on each of `devices` devices in a training step, without the temporary memory of kernels.

        With `train.shard` "optimizer" a device holds its share of the model's moments, and all of a discriminator's.
        """
        num = self.batch_size // devices
        networks = num * sum(network.bytes_per_image for network in self.known_networks)
        elsewhere = self.moment_bytes * (devices - 1) // devices if self.shard == "optimizer" else 0
        return self.state_bytes - elsewhere + self.measured.activations(num) + networks

    @property
    def step_flops(self) -> int:
        """FLOPs of an optimizer step, forward and backward, with the loss networks and without `frozen`."""
        networks = sum(network.flops_per_image for network in self.known_networks)
        return (self.measured.flops_per_image + networks) * self.images_per_step

    @property
    def run_flops(self) -> int:
        """FLOPs of the whole run."""
        return self.step_flops * self.steps


def forecast(recipe: Recipe) -> Forecast:
    """The forecast for a recipe of any kind; a generator's tokenizer is not read.

    Raises:
        ConfigError: the model cannot be built, or its training step cannot run on the meta device.
    """
    with torch.device("meta"):
        model = store.build_model(recipe.model)
    parameters, tables = count_parameters(model, recipe.kind)
    train, num_images = recipe.train, images_of_epoch(recipe)
    rows, size = token_cache(recipe, num_images)
    return Forecast(
        parameters=parameters,
        tables=tables,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        batch_size=train.batch_size,
        images_per_step=train.batch_size * train.accumulate,
        steps=train.steps,
        num_images=num_images,
        bytes_per_parameter=20 if train.ema > 0 else 16,
        precision=train.precision,
        shard=train.shard,
        measured=_measured(recipe, model),
        frozen=frozen_networks(recipe.model),
        cache_rows=rows,
        cache_bytes=size,
        loss_networks=loss_networks(recipe),
        image_sizes=recipe.data.image_sizes,
        matrices={name: p.numel() for name, p in block_matrices(model).items()} if train.optimizer == "muon" else {},
        without_words=_without_words(recipe.model),
    )


def _without_words(model: object) -> bool:
    text = text_condition(model)
    return text is not None and text.kind == "words" and not text.vocabulary


def _measured(recipe: Recipe, model: nn.Module) -> StepCost:
    """The cost of a step: the mean FLOPs and the largest bytes over the image sizes."""
    half = recipe.train.precision != "fp32"
    sizes: list[int | None] = [*recipe.data.image_sizes] or [None]
    try:
        use_stand_ins(model)
        each = {size: measure(model, partial(meta_batch, recipe, size=size), half=half) for size in sizes}
    except Tok1dError:
        raise
    except Exception as error:  # a model of the user's own may need values, which meta tensors do not have
        raise ConfigError(
            f"model: the cost of {recipe.model.name} is unknown, its losses cannot be computed on the meta "
            f"device ({reason_of(error)}); train it without --dry-run, or add a method use_stand_ins to the model"
        ) from error
    return StepCost(
        sum(each[size].flops_per_image for size in sizes) // len(sizes),
        max(one.bytes_per_image for one in each.values()),
        max(one.bytes_of_any_batch for one in each.values()),
    )


def count_parameters(model: nn.Module, kind: str) -> tuple[dict[str, int], dict[str, int]]:
    """Count parameters by part, fixed position tables and frozen class tables included; and the position tables alone.

    The parts of a tokenizer are its submodules and the projector of its alignment; a generator has trunk and head.
    """
    parameters: dict[str, int] = {}
    tables: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part(name, kind)
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    for name, buffer in model.named_buffers():
        if not name.endswith(("positions", "label_embed.table")):
            continue
        part = _part(name, kind)
        parameters[part] = parameters.get(part, 0) + buffer.numel()
        if name.endswith("positions"):
            tables[part] = tables.get(part, 0) + buffer.numel()
    return parameters, tables


def _part(name: str, kind: str) -> str:
    first, *rest = name.split(".")
    if kind == "generator":
        return "head" if first == "head" else "trunk"
    return "projector" if "projector" in rest else first


def meta_batch(recipe: Recipe, num: int, size: int | None = None) -> Batch:
    """A batch on the meta device: `num` images or token sequences, then labels or captions, and words to predict.

    Args:
        size: side of the images in pixels; default: the model's.
    """
    model = recipe.model
    if recipe.kind in ("generator", "budget"):
        inputs = torch.zeros(num, recipe.num_tokens or model.num_tokens, dtype=torch.int64, device="meta")
        if not getattr(model, "vocab_size", 0):
            inputs = torch.empty(*inputs.shape, model.token_dim, device="meta")
    else:
        side = size or model.image_size
        inputs = torch.empty(num, model.channels, side, side, device="meta")
    if recipe.kind == "budget":
        counts = torch.ones(num, model.prefixes, dtype=torch.int64, device="meta")
        last, found = torch.empty(num, device="meta"), torch.empty(num, model.prefixes, device="meta")
        return inputs, last, counts, found
    text = text_condition(model)
    labels = torch.zeros(num, dtype=torch.int64, device="meta")
    if text is not None and text.kind == "words":
        given = torch.zeros(num, text.length, dtype=torch.int64, device="meta")
    else:
        given = labels if text is None else torch.empty(num, text.length, text.dim, device="meta")
    if getattr(model, "stop", False):
        return inputs, given, labels  # the last are numbers of tokens
    if text is not None or not recipe.learns_words:
        return inputs, given
    dim = next(each.dim for each in model.auxiliary if each.target == "text")
    return inputs, labels, torch.empty(num, dim, device="meta")


def images_of_epoch(recipe: Recipe) -> int | None:
    """Number of training images: as the recipe states it, or known for the data set; None is unknown. Reads no data."""
    data = recipe.data
    num = data.num_images or KNOWN_IMAGES.get(data.name)
    return num if num is None or data.limit is None else min(num, data.limit)


def frozen_networks(model: object) -> dict[str, tuple[int, int] | None]:
    """The untrained networks that a training runs: name -> (parameters, FLOPs per image), None where unknown.

    Args:
        model: the model's configuration.
    """
    networks: dict[str, tuple[int, int] | None] = {}
    latents = getattr(model, "latents", None)
    if latents is not None and latents.space == "autoencoder":
        known = (latents.channels, latents.factor) in AUTOENCODERS
        size = getattr(model, "image_size", 0)
        networks["autoencoder"] = autoencoder_cost(latents.channels, latents.factor, size) if known else None
    alignment = getattr(model, "alignment", None)
    if alignment is not None and alignment.teacher:
        networks["teacher"] = None
    text = text_condition(model)
    if text is not None and text.kind == "text":
        networks["text encoder"] = None
    for each in getattr(model, "auxiliary", []) if getattr(model, "stage", "train") == "train" else []:
        if each.is_teacher:
            networks[f"teacher {each.label}"] = None
    return networks


def token_cache(recipe: Recipe, num_images: int | None) -> tuple[int | None, int | None]:
    """Rows and bytes of a generator's token cache; None where it has none or the number of images is unknown."""
    if recipe.kind != "generator" or recipe.cache == NO_CACHE or num_images is None:
        return None, None
    length = recipe.num_tokens or recipe.model.num_tokens
    rows = num_images * NUM_VIEWS[recipe.cache_views]
    if hasattr(recipe.model, "vocab_size"):
        return rows, Layout(length, 0, "int64", rows_per_shard=rows).num_bytes(rows)
    dim = (2 if recipe.sample_latents else 1) * recipe.model.token_dim
    return rows, Layout(length, dim, recipe.cache_dtype, rows_per_shard=rows).num_bytes(rows)


Row = tuple[str, str, str]  # group, number, what it is


def grid_of(rows: Iterable[Row]) -> Table:
    """Rows as a table of rich."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    for cells in rows:
        grid.add_row(*cells)
    return grid


def table(result: Forecast) -> Table:
    """The forecast as a short table."""
    return grid_of([*_parameter_rows(result), *_step_rows(result), *_memory_rows(result), *_cost_rows(result)])


def _parameter_rows(result: Forecast) -> list[Row]:
    rows: list[Row] = []
    for part, count in result.parameters.items():
        fixed = result.tables.get(part)
        note = f"{part}, including a fixed position table of {fixed:,}" if fixed else part
        rows.append(("" if rows else "parameters", f"{count:,}", note))
    rows.append(("", f"{result.total:,}", f"total, {result.trainable:,} of them trained"))
    for name, cost in result.frozen.items():
        note = "frozen, not part of the model" if cost else "frozen, not part of the model, unknown size, not counted"
        rows.append(("", f"{cost[0]:,}" if cost else "?", f"{name}, {note}"))
    if result.without_words:
        rows.append(("", "?", "table of words: the vocabulary is made from the captions, not counted"))
    rows += [_network_row(name, network) for name, network in result.loss_networks.items()]
    return rows + _optimizer_rows(result)


def _optimizer_rows(result: Forecast) -> list[Row]:
    """With Muon: which parameters of the model it trains."""
    if not result.matrices:
        return []
    count, kinds = sum(result.matrices.values()), dict.fromkeys(re.sub(r"\.\d+\.", ".*.", n) for n in result.matrices)
    return [
        ("optimizer", f"{count:,}", f"muon, {len(result.matrices)} matrices of blocks: {', '.join(kinds)}"),
        ("", f"{result.trainable - count:,}", "adamw, all other trained parameters"),
    ]


def _network_row(name: str, network: LossNetwork | None) -> Row:
    if network is None:
        return ("", "?", f"{name}, not part of the model, unknown size, not counted")
    trained = f"{network.trained:,} trained" if network.trained else "frozen"
    state, each = _binary(network.state_bytes), _binary(network.bytes_per_image)
    count = f"{network.trained + network.frozen:,}"
    return ("", count, f"{name}, not part of the model: {trained}; {state}, and {each} per image")


def _step_rows(result: Forecast) -> list[Row]:
    steps = f"of {result.images_per_step:,} images"
    if result.image_sizes:
        steps += f", each batch in one of {', '.join(map(str, result.image_sizes))} px: FLOPs are their mean"
    if result.num_images is None:
        return [
            (
                "steps",
                f"{result.steps:,}",
                f"{steps}; epochs unknown, set data.num_images or pass --measure",
            )
        ]
    epoch = result.num_images / result.images_per_step
    return [
        ("steps", f"{result.steps:,}", steps),
        ("", f"{epoch:,.1f}", f"steps per epoch of {result.num_images:,} images"),
        ("", f"{result.steps / epoch:,.1f}", "epochs"),
    ]


def _memory_rows(result: Forecast) -> list[Row]:
    measured, size = result.measured, result.batch_size
    largest = f" of {max(result.image_sizes)} px" if result.image_sizes else ""
    activations = f"activations per image{largest}, {result.precision}, without compilation and checkpointing"
    moments = "AdamW 8 or Muon 4" if result.matrices else "AdamW 8"
    state = f"weight 4, gradient 4, {moments}" + (", EMA 4" if result.bytes_per_parameter == 20 else "")
    rows = [
        ("memory", _binary(result.state_bytes), f"bytes per trained parameter: {state}; per frozen one: 4"),
        ("", _binary(measured.bytes_per_image), activations),
        ("", _binary(result.memory()), f"total on one device ({size:,} images at a time)"),
    ]
    if size % DEVICES == 0:
        sharded = ", the optimizer's moments sharded" if result.shard == "optimizer" else ""
        each = f"total on each of {DEVICES} devices ({size // DEVICES:,} images each{sharded})"
        rows.append(("", _binary(result.memory(DEVICES)), each))
    rows.append(("", "", "activations are the tensors that autograd saves; kernels need temporary memory in addition"))
    return rows


def _cost_rows(result: Forecast) -> list[Row]:
    rows = [
        ("FLOPs", decimal(result.step_flops), "per step: matrix products and convolutions, forward and backward"),
        ("", decimal(result.run_flops), "for the whole run"),
    ]
    for name, cost in result.frozen.items():
        count = decimal(cost[1] * result.images_per_step) if cost else "?"
        rows.append(("", count, f"per step in the frozen {name}" + ("" if cost else ", not counted here")))
    if result.cache_bytes is not None:
        note = f"token cache on disk, {result.cache_rows:,} rows"
        rows.append(("disk", decimal(result.cache_bytes, "B"), note))
    return rows


def _binary(num: float) -> str:
    """Format a number of bytes in GiB, or in MiB below 1 GiB."""
    return f"{num / 2**30:,.2f} GiB" if num >= 2**30 else f"{num / 2**20:,.1f} MiB"


def decimal(num: float, unit: str = "") -> str:
    """A count with three digits and a decimal prefix: 1.23 T."""
    for prefix, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if num >= size:
            return f"{num / size:.3g} {prefix}{unit}"
    return f"{num:,.0f} {unit}".rstrip()
