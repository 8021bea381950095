"""All that the record of identity (`record.py`) uses of tok1d, under names of its own.

After a restructuring of the package only this file is edited: it translates the keys, the arguments and the commands
of `cases.py`, which stay as they were written, into those of the day.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, recipe_names
from tok1d.config.registry import MODELS, build_model_config
from tok1d.data.tokens import TokenCache
from tok1d.diffusion.guidance import Guidance
from tok1d.train import run
from tok1d.zoo import store
from tok1d.zoo.pretrained.teachers import give_teachers

CACHE_VARIABLE = "TOK1D_CACHE"  # of the environment: where files are kept between commands
Noise = torch.Generator | Sequence[torch.Generator] | None


def kinds() -> list[str]:
    """Names of all kinds of models but budget heads, which are younger than the record."""
    return sorted(name for name, entry in MODELS.items() if entry.kind != "budget")


def bundled() -> list[str]:
    """Names of the models inside the package that are recorded: those of Fashion-MNIST."""
    return [name for name in store.bundled_names() if name.startswith("fashion-mnist")]


def small_recipes() -> list[str]:
    """Names of the packaged recipes whose models are small enough to be built in a moment."""
    return [name for name in recipe_names() if name.startswith("fashion_mnist/")]


def build(mapping: Mapping[str, Any]) -> Any:
    """A model of a configuration, its weights drawn from the global generator."""
    model = store.build_model(build_model_config(mapping))
    give_teachers(model)
    return model


def build_of_recipe(name: str) -> Any:
    """As `build`, of a packaged recipe; its loss sections and tokenizer do not matter."""
    return store.build_model(load_recipe(name).model)


def load(name: str | Path) -> Any:
    """A bundled model, or one in a folder, in eval mode."""
    return store.load(name)


def role(model: Any) -> str:
    """Whether a model is a tokenizer, a generator or a classifier."""
    return "tokenizer" if hasattr(model, "decode") else "generator" if hasattr(model, "sample") else "classifier"


def is_variational(model: Any) -> bool:
    """Whether a tokenizer has a KL bottleneck."""
    return getattr(getattr(model.config, "bottleneck", None), "name", "") == "kl"


def token_shape(model: Any) -> tuple[int, int | None, int | None]:
    """Of a tokenizer: number of tokens, numbers of a token (None for ids), size of the vocabulary (None: no ids)."""
    return model.spec.length, model.spec.dim, model.spec.vocab_size


def image_shape(model: Any) -> tuple[int, int]:
    """Of a tokenizer or classifier: channels and side of its images."""
    return model.config.channels, model.config.image_size


def sample_shape(model: Any) -> tuple[int, int | None, int | None]:
    """Of a generator: number of tokens, numbers of a token (None for ids), size of the vocabulary (None: no ids)."""
    config = model.config
    return config.num_tokens, getattr(config, "token_dim", None), getattr(config, "vocab_size", None)


def encode(model: Any, images: Tensor, cond: Tensor | None) -> Tensor:
    """Tokens or ids of images."""
    return model.encode(images, cond)


def posterior(model: Any, images: Tensor, cond: Tensor | None) -> Tensor:
    """Means and standard deviations of a KL tokenizer, stacked."""
    found = model.posterior(images, cond)
    return torch.stack([found.mean, found.std])


def _guidance(options: dict[str, Any]) -> Any:
    """A plain scale, or a scale, an interval, a schedule, its power and a weak model."""
    value = options.pop("guidance", 1.0)
    more = {name: options.pop(name) for name in ("interval", "schedule", "power", "weak_model") if name in options}
    return Guidance(value, **more) if more else value


def decode(model: Any, tokens: Tensor, cond: Tensor | None, *, generator: Noise = None, **options: Any) -> Tensor:
    """Images of tokens; options: keep, steps, solver, size, guidance, interval."""
    guidance = _guidance(options)
    if "solver" in options:  # as the argument was called when the cases were written
        options["sampler"] = options.pop("solver")
    return model.decode(tokens, cond, generator=generator, guidance=guidance, **options)


def sample(model: Any, cond: Tensor | None, *, generator: Noise = None, **options: Any) -> Tensor:
    """Tokens or ids of a generator; options: num, length, steps, sampler, temperature, top_k, top_p, greedy,
    annealing, guidance, interval, schedule, power, weak_model."""
    guidance = _guidance(options)
    return model.sample(cond, generator=generator, guidance=guidance, **options)


def losses(model: Any, batch: tuple[Any, ...], progress: float) -> dict[str, Tensor]:
    """The scalars of a training step; what is minimised is the sum of those named "loss..."."""
    return model.losses(batch, progress)


def features(model: Any, images: Tensor) -> Tensor:
    """A classifier's features."""
    return model.features(images)


def logits(model: Any, images: Tensor) -> Tensor:
    """A classifier's logits."""
    return model(images)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """What the tests move away from its initialisation: all parameters, and a class table that is a buffer."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    return found | {name: value for name, value in model.state_dict().items() if name.endswith("label_embed.table")}


def train(recipe: dict[str, Any], out: Path, *, stop_after_one_step: bool = False) -> Path:
    """Train a recipe, written as a tree of today's keys, in the folder `out`; again, it resumes. Returns the model."""
    path = out.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**recipe, "out": str(out)}))
    run.train(load_recipe(str(path)), quiet=True, name="identity", seconds=0.0 if stop_after_one_step else None)
    return out / "model"


def model_folder(out: Path) -> Path:
    """The folder of the model of a finished run."""
    return out / "model"


def checkpoint(out: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a run's newest checkpoint: "model", "ema", "optimizer", and the same of "discriminator"."""
    newest = max((out / "checkpoints").glob("step-*.pt"))
    state = torch.load(newest, map_location="cpu", weights_only=True)
    found = {part: _tensors(state[part]) for part in ("model", "ema", "optimizer")}
    for player, theirs in state["players"].items():
        found |= {f"{player}/{part}": _tensors(theirs[part]) for part in ("model", "ema", "optimizer")}
    return found


def _tensors(tree: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors inside mappings and lists, by their path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {name: value for key, item in pairs for name, value in _tensors(item, f"{path}/{key}").items()}


def log(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without what depends on the clock or the code's speed."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second", "loader_wait", "tflops", "mfu")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def report(path: Path) -> dict[str, Any]:
    """Figures of a JSON file of records, by name and number of tokens.

    Without those of Inception, which depend on whether the machine has its weights, and without baselines, which are of
    the images and not of a model.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    records = content["records"] if isinstance(content, dict) else content
    own = [each for each in records if not (each.get("network") or "").startswith("inception")]
    own = [each for each in own if not each["name"].startswith("baseline:")]
    return {f"{each['name']}@{each['keep']}": each["value"] for each in own}


def figures(path: Path) -> dict[str, Any]:
    """What a JSON file that a command wrote says: of records their figures by name, of another file all its numbers."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list) and all(isinstance(each, dict) and "weights_hash" in each for each in content):
        return report(path)
    numbers = list(_leaves(content))
    return {"numbers": torch.tensor(numbers, dtype=torch.float64)} if numbers else {}


def _leaves(tree: Any) -> Iterator[float]:
    """All numbers of a tree, keys in alphabetical order."""
    if isinstance(tree, Mapping):
        for _, value in sorted(tree.items()):
            yield from _leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def run_report(out: Path) -> dict[str, Any]:
    """The figures that end a run."""
    return report(out / "report.json")


def run_pictures(out: Path) -> Path:
    """The folder of a run's previews."""
    return out / "samples"


def cached_tokens(folder: Path) -> dict[str, Tensor]:
    """All tokens and labels of a token cache."""
    cache = TokenCache(folder)
    tokens, labels = cache.batch(range(len(cache)))
    return {"tokens": tokens, "labels": labels}


def is_cache(folder: Path) -> bool:
    """Whether a folder is a token cache."""
    return (folder / "index.json").exists()


def cache_of_run(out: Path) -> Path:
    """Where a generator's run caches its tokens."""
    return out / "cache"


def command(*arguments: object) -> str:
    """Run a command line in this process; returns what it prints. Raises RuntimeError where it fails."""
    printed = StringIO()
    with redirect_stdout(printed):
        code = cli.run([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"tok1d {' '.join(map(str, arguments))}: exit code {code}")
    return printed.getvalue()
