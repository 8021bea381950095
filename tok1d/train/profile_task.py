"""The task that profiling runs: networks of full size with random weights, and the recipe's data if they are present.

Nothing is downloaded and nothing is written: no weights and no token cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tok1d.config.classes import model_classes
from tok1d.config.condition import text_condition
from tok1d.config.recipe import NO_CACHE, Recipe
from tok1d.cost.forecast import images_of_epoch, meta_batch
from tok1d.cost.measure import AUTOENCODERS
from tok1d.data.broken import report_broken
from tok1d.data.scan_cache import read_only_cache
from tok1d.data.tokens import INDEX, TokenCache
from tok1d.errors import ConfigError, DataError, WeightsError
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.discriminator import DinoConfig
from tok1d.losses.perceptual import LPIPS, WIDTHS, FeatureDistance, PerceptualLoss, vgg16
from tok1d.losses.total import Batch
from tok1d.tokenizers.auxiliary import TEACHER
from tok1d.train.adversarial import build_players
from tok1d.train.batches import cached_batches, image_batches
from tok1d.train.images import open_split
from tok1d.train.task import BatchFunction, Task
from tok1d.zoo import store
from tok1d.zoo.adapters.autoencoder import autoencoder_class
from tok1d.zoo.pairs import check_num_classes
from tok1d.zoo.pretrained.autoencoder import locate
from tok1d.zoo.pretrained.classifier import classifier_network
from tok1d.zoo.pretrained.lpips import load_feature_distance
from tok1d.zoo.pretrained.teachers import give_teachers


@dataclass(frozen=True)
class Batches:
    """Batches and where they come from.

    Args:
        source: where they come from, as text.
        real: whether they are read as in training, so that the time spent waiting for them is meaningful.
    """

    function: BatchFunction
    source: str
    real: bool = False


@dataclass(frozen=True)
class ProfileTask:
    """A task for profiling, and its batches."""

    task: Task
    batches: Batches


def profile_task(recipe: Recipe) -> ProfileTask:
    """The task of a recipe of any kind.

    Raises:
        ConfigError, WeightsError: the size of a network is unknown without its weights.
        DataError: the data are present, but do not match the recipe.
    """
    recipe = with_random_weights(recipe)
    torch.manual_seed(recipe.seed)
    model = store.build_model(recipe.model)
    give_teachers(model, initialised=False)
    players = build_players(recipe, model, resumed=True, perceptual=_perceptual(recipe))
    _use_autoencoder(model)
    with read_only_cache():
        if recipe.kind == "budget":
            batches = Batches(
                _random_batches(recipe), "random tokens; without the time to encode and decode every batch"
            )
        else:
            batches = _token_batches(recipe) if recipe.kind == "generator" else _image_batches(recipe, model)
    return ProfileTask(Task(model, batches.function, players=players), batches)


def with_num_images(recipe: Recipe) -> Recipe:
    """The recipe with the number of its training images in data.num_images, if the data are present."""
    if images_of_epoch(recipe) is not None:
        return recipe
    with read_only_cache(), suppress(DataError):
        images = open_split(recipe, "train")
        return replace(recipe, data=replace(recipe.data, num_images=len(images), limit=None))
    return recipe


def with_random_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with random weights for the teachers and discriminators whose weights timm would download.

    Raises:
        ConfigError: the discriminator's backbone cannot be built without its weights.
    """
    changes: dict[str, object] = {}
    alignment, auxiliary = getattr(recipe.model, "alignment", None), getattr(recipe.model, "auxiliary", [])
    if alignment is not None and _of_timm(alignment.teacher):
        changes["alignment"] = replace(alignment, weights="random")
    if auxiliary:
        changes["auxiliary"] = [
            replace(each, weights="random") if each.is_teacher and _of_timm(each.target.removeprefix(TEACHER)) else each
            for each in auxiliary
        ]
    model = replace(recipe.model, **changes) if changes else recipe.model
    adversarial, config = recipe.adversarial, recipe.adversarial.discriminator
    if adversarial.weight > 0 and isinstance(config, DinoConfig):
        if config.backbone == DinoConfig().backbone:
            adversarial = replace(adversarial, discriminator=replace(config, weights="random"))
        elif config.weights is None:
            raise ConfigError(
                f"adversarial.discriminator.weights: --measure downloads nothing; expected a file with the weights "
                f"of {config.backbone}, got null"
            )
    return replace(recipe, model=model, adversarial=adversarial)


def _of_timm(name: str) -> bool:
    """Whether a teacher is a timm model: a name that is not empty and is no bundled model or model folder."""
    return bool(name) and name not in store.bundled_names() and not (Path(name) / "config.json").is_file()


def _perceptual(recipe: Recipe) -> PerceptualLoss | None:
    """The configured perceptual losses with networks of random weights, which cost the same."""
    config = recipe.perceptual
    if not config.used:
        return None
    features: LPIPS | FeatureDistance | None = None
    if config.weight > 0 and config.is_lpips:
        features = LPIPS(vgg16(), [torch.rand(width) for width in WIDTHS])
    elif config.weight > 0:
        features = load_feature_distance(config.network, random=True)
    logits = LogitsDistance(classifier_network(config.classifier, pretrained=False)) if config.logits > 0 else None
    return PerceptualLoss(config, features, None if logits is None else logits.requires_grad_(False).eval())


def _use_autoencoder(model: nn.Module) -> None:
    """Give a tokenizer of latents a random autoencoder of the right size where its weights are not present."""
    space = getattr(model, "latent_space", None)
    if space is None or not hasattr(space, "use"):
        return
    try:
        found = locate(space.config.path, space.base)
    except WeightsError:
        found = None
    if found is not None:
        return
    shape = AUTOENCODERS.get((space.channels, space.factor))
    if shape is None:
        raise WeightsError(f"--measure: the autoencoder {space.config.path} was not found; download it first")
    network = autoencoder_class()(latent_channels=space.channels, layers_per_block=2, norm_num_groups=32, **shape)
    space.use(network)


def _image_batches(recipe: Recipe, model: nn.Module) -> Batches:
    """Batches of the recipe's images (captions are random); random images if the data are not present."""
    try:
        images = open_split(recipe, "train", augment=True)
    except DataError as error:
        return Batches(_random_batches(recipe), f"random images ({error})")
    report_broken(images)
    check_num_classes(model_classes(model).num, images)
    captioned, words = text_condition(recipe.model) is not None, recipe.learns_words
    random_rest = _random_rest(recipe)

    def condition(labels: Tensor, captions: list[str]) -> Batch:
        if captioned:
            return random_rest(len(labels))
        return (labels, *random_rest(len(labels))[1:]) if words else (labels,)

    source = f"{len(images):,} images of {recipe.data.name}" + ", random captions" * (captioned or words)
    return Batches(image_batches(recipe, images, condition), source, real=True)


def _token_batches(recipe: Recipe) -> Batches:
    """Batches from the recipe's token cache (captions are random); random tokens if there is no matching cache."""
    if recipe.cache == NO_CACHE:
        source = "random tokens; without the time to encode every batch (cache=none)"
        return Batches(_random_batches(recipe), source)
    if not (Path(str(recipe.cache)) / INDEX).exists():
        return Batches(_random_batches(recipe), f"random tokens ({recipe.cache} does not exist yet)")
    cache, length = TokenCache(Path(str(recipe.cache))), recipe.num_tokens or recipe.model.num_tokens
    moments = bool(cache.meta.get("moments"))
    if recipe.sample_latents and not moments:
        return Batches(_random_batches(recipe), f"random tokens ({recipe.cache} contains only means)")
    if recipe.budget.quality is not None and not cache.has_lengths:
        return Batches(_random_batches(recipe), f"random tokens ({recipe.cache} has no numbers of tokens)")
    wanted, found = meta_batch(recipe, 1)[0], cache.batch([0])[0]
    found = found.chunk(2, dim=-1)[0] if moments else found
    if cache.num_tokens < length or found.shape[2:] != wanted.shape[2:] or found.dtype != wanted.dtype:
        return Batches(
            _random_batches(recipe), f"random tokens ({recipe.cache} contains tokens of another shape or type)"
        )
    captioned, random_rest = text_condition(recipe.model) is not None, _random_rest(recipe)

    def condition(rows: np.ndarray, labels: Tensor) -> Tensor:
        return random_rest(len(labels))[0] if captioned else labels

    source = f"{len(cache):,} cached rows of tokens" + ", random captions" * captioned
    return Batches(cached_batches(recipe, cache, length, condition), source, real=True)


def _random_batches(recipe: Recipe) -> BatchFunction:
    """The same random batch at every step, in each of the recipe's image sizes."""
    sizes = recipe.data.image_sizes

    @lru_cache
    def of_size(num: int, size: int | None) -> Batch:
        return _filled(recipe, meta_batch(recipe, num, size))

    def batch(micro_step: int, rank: int, world: int) -> Batch:
        return of_size(recipe.train.batch_size // world, sizes[micro_step % len(sizes)] if sizes else None)

    return batch


def _random_rest(recipe: Recipe) -> Callable[[int], Batch]:
    """Random tensors for what follows the images or tokens in a batch of a given size, always the same."""
    return lru_cache(lambda num: _filled(recipe, meta_batch(recipe, num)[1:]))


def _filled(recipe: Recipe, shapes: Batch) -> Batch:
    """Random ids and labels, and random numbers in [0, 1), in the shapes of meta tensors."""
    rng = torch.Generator().manual_seed(recipe.seed)
    vocabulary = getattr(recipe.model, "vocab_size", None)

    def fill(shape: Tensor) -> Tensor:
        if shape.dtype == torch.int64:
            most = vocabulary if shape.ndim == 2 and vocabulary else getattr(recipe.model, "num_classes", 0)
            return torch.randint(max(most or 1, 1), shape.shape, generator=rng)
        return torch.rand(shape.shape, generator=rng)

    if recipe.kind == "budget":
        return fill(shapes[0]), torch.ones(shapes[1].shape, dtype=torch.int64), fill(shapes[2])
    return tuple(fill(shape) for shape in shapes)
