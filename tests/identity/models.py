"""The tiny models, the bundled ones and the models of packaged recipes: what they compute, as named values."""

from collections.abc import Iterator
from typing import Any

import cases
import names
import torch
from torch import Tensor

Values = Iterator[tuple[str, Any]]
BATCH = 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(cond_kind: str) -> Tensor | None:
    """Classes, or captions of different lengths, for a batch."""
    if cond_kind == "class":
        return torch.tensor([2, 0, 9, 3])
    if cond_kind != "text":
        return None
    captions = torch.randn(BATCH, 6, 5, generator=seeded(3))
    for row, length in zip(captions, (6, 2, 4, 1), strict=True):
        row[length:] = 0
    return captions


def noise(options: dict[str, Any], rows: int) -> Any:
    """A generator, or one a row where the options say so; the word is taken out of them."""
    return [seeded(50 + i) for i in range(rows)] if options.pop("rows", False) else seeded(11)


def label(options: dict[str, Any]) -> str:
    """Options as a part of a key."""
    shown = (f"{name}={'-'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in options.items())
    return ",".join(shown) or "default"


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def initial(model: Any) -> Values:
    """Names and values of fresh weights."""
    weights = state(model)
    yield "init/keys", "\n".join(sorted(weights))
    yield "init/weights", weights
    yield "init/trained", "\n".join(sorted(name for name, value in model.named_parameters() if value.requires_grad))


def moved(model: Any) -> Any:
    """The model away from its initialisation, so that nothing is computed from zeros; in eval mode."""
    source = seeded(1)
    with torch.no_grad():
        for _, value in sorted(names.parameters(model).items()):
            value.add_(torch.randn(value.shape, generator=source) * 0.15)
    return model.eval()


def training(model: Any, batch: tuple[Any, ...]) -> Values:
    """Losses and gradients along the training, each from the same weights, and what a step leaves in the buffers."""
    before = state(model)
    for progress in (0.0, 0.5, 1.0):
        model.load_state_dict(before)
        model.train().zero_grad(set_to_none=True)
        torch.manual_seed(7)
        terms = names.losses(model, batch, progress)
        sum(value for name, value in terms.items() if name.startswith("loss")).backward()
        for name, value in terms.items():
            yield f"losses/{progress}/{name}", value
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        yield f"gradient/{progress}", gradients
        yield f"after/{progress}", state(model)
    model.load_state_dict(before)
    model.eval()


def third_entry(kind: str, cond: Tensor | None) -> tuple[Any, ...]:
    if kind == "words":
        return (torch.tensor([[1, 5, 2], [0, 11, -1], [4, -1, -1], [3, 3, 7]]),)
    if kind == "codes":
        return (torch.randint(11, (BATCH, 16), generator=seeded(6)),)
    return (cond,) if kind == "text" else ()


def images_for(model: Any) -> Tensor:
    channels, side = names.image_shape(model)
    return torch.rand(BATCH, channels, side, side, generator=seeded(2))


@torch.no_grad()
def tokenizer_values(model: Any, images: Tensor, cond: Tensor | None, requested: list[dict[str, Any]]) -> Values:
    """Tokens, a KL bottleneck's normals, and images of those tokens."""
    tokens = names.encode(model, images, cond)
    yield "encode", tokens
    if cond is not None and cond.dtype == torch.int64:
        yield "encode/null", names.encode(model, images, None)
    if names.is_variational(model):
        yield "posterior", names.posterior(model, images, cond)
    length, _, vocab = names.token_shape(model)
    if vocab is not None:  # ids of fresh weights are hardly different
        tokens = torch.randint(vocab, (BATCH, length), generator=seeded(4))
    for options in requested:
        given = dict(options)
        generator = noise(given, BATCH)
        yield f"decode/{label(options)}", names.decode(model, tokens, cond, generator=generator, **given)


@torch.no_grad()
def sample_values(model: Any, cond: Tensor | None, requested: list[dict[str, Any]], weak: Any = None) -> Values:
    """Samples with each set of options; "null" asks for the null condition, "weak" for a weak model's guidance."""
    for options in requested:
        given = dict(options)
        null = given.pop("null", False)
        if null:
            given["num"] = 3
        if given.pop("weak", False):
            given["weak_model"] = weak
        generator = noise(given, BATCH)
        tokens = names.sample(model, None if null else cond, generator=generator, **given)
        yield f"sample/{label(options)}", tokens


def tokenizer(name: str) -> Values:
    """A tiny tokenizer."""
    mapping, cond_kind, requested, third = cases.TOKENIZERS[name]
    torch.manual_seed(0)
    model = names.build(mapping)
    yield from initial(model)
    moved(model)
    images, cond = images_for(model), inputs(cond_kind)
    yield from tokenizer_values(model, images, cond, requested)
    classes = torch.tensor([2, 0, 9, 3])
    batch = (images, cond if cond_kind else classes, *third_entry(third, cond))
    yield from training(model, batch)


def generator(name: str) -> Values:
    """A tiny generator."""
    mapping, cond_kind, requested = cases.GENERATORS[name]
    torch.manual_seed(0)
    model = names.build(mapping)
    yield from initial(model)
    moved(model)
    torch.manual_seed(5)
    weak = names.build(mapping).eval() if any(options.get("weak") for options in requested) else None
    cond = inputs(cond_kind)
    yield from sample_values(model, cond, requested, weak)
    length, dim, vocab = names.sample_shape(model)
    if vocab is None:
        tokens = torch.randn(BATCH, length, dim, generator=seeded(4))
    else:
        tokens = torch.randint(vocab, (BATCH, length), generator=seeded(4))
    yield from training(model, (tokens, cond))


@torch.no_grad()
def classifier_values(model: Any) -> Values:
    images = images_for(model)
    yield "features", names.features(model, images)
    yield "logits", names.logits(model, images)


def classifier(name: str) -> Values:
    """A tiny classifier."""
    torch.manual_seed(0)
    model = names.build(cases.CLASSIFIERS[name])
    yield from initial(model)
    moved(model)
    yield from classifier_values(model)
    yield from training(model, (images_for(model), torch.tensor([2, 0, 9, 3])))


def bundled(name: str) -> Values:
    """A bundled model: its weights and what it does."""
    model, requested, cond = names.load(name), cases.BUNDLED[name], inputs("class")
    yield "weights", state(model)
    role = names.role(model)
    if role == "tokenizer":
        used = cond if name.endswith("smap") else None
        yield from tokenizer_values(model, images_for(model), used, requested)
        yield from training(model, (images_for(model), cond))
    elif role == "generator":
        yield from sample_values(model, cond, requested, weak=names.load(name))
        length, dim, _ = names.sample_shape(model)
        yield from training(model, (torch.randn(BATCH, length, dim, generator=seeded(4)), cond))
    else:
        yield from classifier_values(model)
        yield from training(model, (images_for(model), cond))


def recipe(name: str) -> Values:
    """The fresh weights of a packaged recipe's model."""
    torch.manual_seed(0)
    yield from initial(names.build_of_recipe(name))
