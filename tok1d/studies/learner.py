"""Training of a small generator on tokens in memory, with the loop of all recipes, and its held-out loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

import torch
from torch import Tensor

from tok1d.analyze.plots import ranges
from tok1d.config.classes import Classes, set_class_names
from tok1d.config.optim import MuonConfig
from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes
from tok1d.data.order import batch_indices
from tok1d.devices import process_device
from tok1d.errors import InputError
from tok1d.generators.base import Generator
from tok1d.generators.card import CARDConfig
from tok1d.generators.head import HeadConfig
from tok1d.generators.llamagen import LlamaGenConfig
from tok1d.generators.sit import SiTConfig
from tok1d.generators.statistics import NormalisedTokens
from tok1d.inference.cache import encode_batch
from tok1d.inference.conditions import ConditionedImages
from tok1d.losses.total import total_loss
from tok1d.progress import Bar
from tok1d.studies.request import SmallTraining
from tok1d.tokenizers.base import Tokenizer, TokenSpec
from tok1d.train.log import LogEntry
from tok1d.train.loop import fit
from tok1d.train.task import Measure, Task
from tok1d.zoo.store import build_model

POINTS = 10  # held-out losses in a training
DRAWS = 5  # noises of a held-out loss
BATCH = 250  # sequences of a forward pass of the held-out loss
HEAD_WIDTH = 32  # channels of an attention head
SAMPLING_STEPS = 25

GeneratorName = Literal["sit", "card", "llamagen"]
GeneratorConfig = SiTConfig | CARDConfig | LlamaGenConfig


@dataclass(frozen=True)
class TokenSet:
    """The tokens of a data set in memory.

    Args:
        train, test: tokens (N, K, D) float32 or ids (N, K) int64, on the CPU.
        train_labels, test_labels: class ids (N,).
        classes: of the labels; 0 classes for tokens without them.
        label: the condition of the tokenizer's encoder, as records state it.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    classes: Classes = Classes(0)
    label: str | None = None

    def ordered(self, order: Tensor) -> TokenSet:
        """The tokens in another order (K,)."""
        return replace(self, train=self.train[:, order], test=self.test[:, order])


@dataclass(frozen=True)
class LossPoint:
    """The held-out loss after a number of training steps."""

    step: int
    loss: float


def token_set(tokenizer: Tokenizer, train: ImageSet, test: ImageSet, batch_size: int, *, name: str = "") -> TokenSet:
    """Encode images as generators are trained on them: the encoder of a conditional tokenizer receives the condition.

    Memory: all tokens in float32; 10,000 images of 256 tokens of 32 numbers take 330 MB.

    Raises:
        InputError: tokens that are not finite.
    """
    found: list[Tensor] = []
    label = None
    with Bar(len(train) + len(test), unit="image", name=name) as bar:
        for images in (train, test):
            conditioned, tokens, classes = ConditionedImages(tokenizer, images), list[Tensor](), list[Tensor]()
            label = conditioned.conditioning.label
            for numbers in ranges(len(images), batch_size):
                x, labels, cond = conditioned.batch(numbers)
                tokens.append(encode_batch(tokenizer, x, cond, tokenizer.spec.length).cpu())
                classes.append(labels)
                bar.update(len(x))
            found += [torch.cat(tokens), torch.cat(classes)]
    if not all(torch.isfinite(each).all() for each in found):
        raise InputError("expected finite tokens, got NaN or inf; check the tokenizer")
    return TokenSet(found[0], found[2], found[1], found[3], image_classes(train), label)


def small_generator(kind: GeneratorName, spec: TokenSpec, classes: int, how: SmallTraining) -> GeneratorConfig:
    """The configuration of a small generator of all tokens of a tokenizer.

    Args:
        classes: number of classes; 0: unconditional.

    Raises:
        InputError: a width that heads of 32 channels do not divide, or a kind that does not model these tokens.
    """
    if how.dim % HEAD_WIDTH:
        raise InputError(f"--dim: expected a multiple of {HEAD_WIDTH}, got {how.dim}")
    dim, depth, heads = how.dim, how.depth, how.dim // HEAD_WIDTH
    if (spec.vocab_size is None) == (kind == "llamagen"):
        made = "ids of a codebook" if spec.vocab_size is not None else "continuous tokens"
        raise InputError(f"{kind} does not model {made}")
    if spec.vocab_size is not None:
        return LlamaGenConfig(
            num_tokens=spec.length,
            vocab_size=spec.vocab_size,
            num_classes=classes,
            dim=dim,
            depth=depth,
            heads=heads,
            token_dropout=0.0,
            dropout=0.0,
        )
    assert spec.dim is not None, "continuous tokens"
    if kind == "sit":
        return SiTConfig(
            num_tokens=spec.length,
            token_dim=spec.dim,
            num_classes=classes,
            dim=dim,
            depth=depth,
            heads=heads,
            statistics=how.statistics,
            sampler="euler",
            steps=SAMPLING_STEPS,
        )
    head = HeadConfig(
        width=dim, depth=3, condition="adaln", time_scale=1000.0, sampler="euler", steps=SAMPLING_STEPS, batch_mul=4
    )
    return CARDConfig(
        num_tokens=spec.length,
        token_dim=spec.dim,
        num_classes=classes,
        class_source="independent",
        class_dim=dim,
        dim=dim,
        depth=depth,
        heads=heads,
        dropout=0.0,
        statistics=how.statistics,
        head=head,
    )


def train_config(steps: int, batch_size: int) -> TrainConfig:
    """The optimizer of the small recipes: Muon for matrices, a linear fall of the learning rate, averaged weights."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        muon=MuonConfig(lr=5e-3),
        lr=2e-3,
        schedule="linear",
        warmup=min(50, steps),
        beta2=0.99,
        ema=0.998,
        log_every=steps,
    )


def train_generator(
    config: GeneratorConfig, tokens: TokenSet, train: TrainConfig, *, seed: int, curve: bool = True
) -> tuple[Generator, list[LossPoint]]:
    """Train a generator with the loop of all recipes, in a temporary folder; returns it in eval mode with its curve.

    It holds its averaged weights. The global random numbers are left as they were.

    Args:
        train: see `train_config`.
        curve: measure the held-out loss during the training, else only at its end.

    Raises:
        DataError: tokens that do not vary.
        KeyboardInterrupt: after Ctrl-C.
    """
    recipe = Recipe(kind="generator", seed=seed, tokenizer="tokens in memory", model=config, train=train)
    found: list[LossPoint] = []

    def batch(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        size = train.batch_size // world
        rows = torch.from_numpy(batch_indices(len(tokens.train), size, seed=seed, step=step, rank=rank, world=world)[0])
        return tokens.train[rows], tokens.train_labels[rows]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cast(Generator, build_model(config)).to(process_device())
        set_class_names(model, tokens.classes.names)
        if isinstance(model, NormalisedTokens):
            model.fit_statistics([tokens.train])
        every = max(train.steps // POINTS, 1)
        if curve:
            found.append(LossPoint(0, held_out_loss(model.eval(), tokens.test, tokens.test_labels)))
            model.train()
        task = Task(model, batch)
        if curve:
            task.measures.append(Measure(every, lambda trained: _point(found, len(found) * every, trained, tokens)))
        with TemporaryDirectory() as folder:
            fit(recipe, task, Path(folder))
    if not curve or found[-1].step < train.steps:
        found.append(LossPoint(train.steps, held_out_loss(model, tokens.test, tokens.test_labels)))
    return model, found


def _point(found: list[LossPoint], step: int, model: object, tokens: TokenSet) -> LogEntry:
    """Add the held-out loss at a step to the curve, and return it for the log."""
    point = LossPoint(step, held_out_loss(cast(Generator, model), tokens.test, tokens.test_labels))
    found.append(point)
    return {"held_out": round(point.loss, 6)}


@torch.no_grad()
def held_out_loss(generator: Generator, tokens: Tensor, labels: Tensor, *, seed: int = 0) -> float:
    """The training loss of a generator in eval mode on tokens (N, K, D) or ids (N, K), and labels (N,).

    The random numbers are the same for every generator of a kind on tokens of the same shape. SiT and CARD: squared
    error of the velocity of normalised tokens; LlamaGen: nats per id. The tokens may be on another device.
    """
    total, device = 0.0, generator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(DRAWS):
            for part in torch.arange(len(tokens)).split(BATCH):
                batch = tokens[part].to(device), labels[part].to(device)
                total += len(part) * float(total_loss(generator.losses(batch, 1.0)))
    return total / (DRAWS * len(tokens))


def num_parameters(model: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)
