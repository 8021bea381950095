"""The schema of a recipe: its sections as typed dataclasses; it knows models only through the registry."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tok1d.config import fields as config_fields
from tok1d.config.condition import text_condition
from tok1d.config.fields import option
from tok1d.config.options import adding, fields_from
from tok1d.config.registry import _KIND_OF_PACKAGE, MODEL_CONFIGS, _build_model
from tok1d.config.sampling import Decoding, Sampling
from tok1d.errors import ConfigError

T = TypeVar("T")


# Sections that stand beside the model, imported with it.
LOSS_CONFIGS = {
    "perceptual": ("tok1d.losses.perceptual", "PerceptualConfig"),
    "adversarial": ("tok1d.losses.adversarial", "AdversarialConfig"),
}
# Tokenizers whose reconstructions the loss sections can judge: one pass makes them.
JUDGED = ("maetok", "smap", "titok", "titok_legacy")
ANY_SIZE = ("maetok", "smap", "titok")  # models that train on images of several sizes
NO_CACHE = "none"  # for `cache`: tokens are encoded as training needs them


@dataclass
class CardConfig:
    """What `tok1d recipes` says of a recipe."""

    about: str = option("", "one line: what it trains, on what")
    reproduces: str = option("", "the paper's experiment it follows, if any")
    paper: str = option("", "the paper's number, with its protocol")
    ours: str = option("", "our measured number, with its protocol")
    cost: str = option("", "time and machine")


@dataclass
class DataConfig:
    """Which images, and how they become squares."""

    name: Literal["fashion_mnist", "folder", "webdataset", "huggingface"] = option(
        "fashion_mnist", "data set; webdataset: tar shards, huggingface: a folder that datasets' save_to_disk wrote"
    )
    root: str | None = option(
        None,
        "folder of the data; for fashion_mnist null looks in the usual places, for webdataset also a pattern such as "
        "DIR/{000..010}.tar",
    )
    image_size: int = option(28, "side of the square images, in pixels", ge=1)
    image_sizes: list[int] = option(
        [], "MAETok and kin: sides of training images, a batch has one of them, evenly drawn; empty is image_size", ge=1
    )
    channels: Literal[1, 3] = option(1, "1 for grey, 3 for colour")
    crop: Literal["center", "random", "random_scale"] = option(
        "center", "where training images are cut square; random_scale shows 0.8 to 1 of the short side"
    )
    flip: bool = option(False, "mirror training images left to right at random")
    pad: int = option(0, "black border on each side, in pixels, inside image_size: 28 and 2 make 32", ge=0)
    on_broken: Literal["stop", "skip"] = option(
        "skip", "what an unreadable image does; skipped ones are named, counted"
    )
    workers: int | None = option(None, "threads that read and decode images; null is one a core, at most 16", ge=1)
    limit: int | None = option(None, "training images used; null is all", ge=1)
    limit_test: int | None = option(None, "test images used; null is all", ge=1)
    num_images: int | None = option(None, "training images there are, for forecasts made without the data", ge=1)
    image_key: str | None = option(
        None, "webdataset: member that is the image (jpg;jpeg;png;webp); huggingface: column (image)"
    )
    label_key: str | None = option(None, "webdataset: member that is the class (cls); huggingface: column (label)")
    captions: str | None = option(
        None,
        "of fashion_mnist: labels; of a folder: files (NAME.txt beside NAME.png) or a JSON-lines file in root; of "
        "webdataset a member such as txt; of huggingface a column",
    )

    def check(self) -> None:
        """Raise ConfigError on a folder data set without its folder, captions of the other data set, or a border that
        leaves no image."""
        needs = {
            "folder": "the folder that holds one folder a class",
            "webdataset": "a folder or pattern of tar shards",
            "huggingface": "a folder that datasets' save_to_disk wrote",
        }
        if self.name in needs and not self.root:
            raise ConfigError(f"root: name={self.name} needs {needs[self.name]}, got null")
        for key in ("image_key", "label_key"):
            if getattr(self, key) is not None and self.name not in ("webdataset", "huggingface"):
                raise ConfigError(f"{key}: read with webdataset and huggingface alone, got {getattr(self, key)}")
        if self.captions is not None and (self.captions == "labels") != (self.name == "fashion_mnist"):
            words = {"fashion_mnist": "labels", "folder": "files or a file of JSON lines"}
            expected = words.get(self.name, "a member's or column's name")
            raise ConfigError(f"captions: name={self.name} takes {expected}, got {self.captions}")
        smallest = min([self.image_size, *self.image_sizes])
        if 2 * self.pad >= smallest:
            raise ConfigError(f"pad: expected less than half of image_size={smallest}, got {self.pad}")


@dataclass
class OptimConfig:
    """AdamW, its schedule and the averaging of weights; steps are optimizer steps."""

    steps: int = option(help="optimizer steps of the run", ge=1)
    batch_size: int = option(help="images of one forward pass, over all processes", ge=1)
    accumulate: int = option(1, "forward passes whose gradients make one step", ge=1)
    lr: float = option(help="highest learning rate", gt=0)
    schedule: Literal["cosine", "constant", "linear"] = option("cosine", "learning rate after the warm-up")
    warmup: int = option(0, "steps of linear warm-up from 0", ge=0)
    warmup_init: float | None = option(None, "learning rate of the very first step; null is one step above 0", ge=0)
    lr_min: float = option(0.0, "learning rate at the end of cosine and linear", ge=0)
    decay_steps: int | None = option(None, "steps from the warm-up's end to lr_min; null ends with the run", ge=1)
    beta1: float = option(0.9, "AdamW decay of the mean gradient", ge=0, lt=1)
    beta2: float = option(0.95, "AdamW decay of the mean squared gradient", ge=0, lt=1)
    weight_decay: float = option(0.0, "AdamW weight decay of the parameters that `decay` names", ge=0)
    decay: Literal["weights", "tables_too"] = option(
        "weights", "weights of linear and convolution layers, or also positions, queries and embeddings (the releases)"
    )
    clip: float = option(1.0, "largest global gradient norm; 0 is off", ge=0)
    ema: float = option(0.999, "decay of the averaged weights per step; 0 is off", ge=0, lt=1)

    def check(self) -> None:
        """Raise ConfigError on a warm-up longer than the run or a last learning rate above the highest."""
        if self.warmup > self.steps:
            raise ConfigError(f"warmup: expected at most steps={self.steps}, got {self.warmup}")
        for key in ("lr_min", "warmup_init"):
            if (getattr(self, key) or 0.0) > self.lr:
                raise ConfigError(f"{key}: expected at most lr={self.lr}, got {getattr(self, key)}")
        if self.decay_steps is not None and self.schedule == "constant":
            raise ConfigError(f"decay_steps: schedule=constant does not decay, expected null, got {self.decay_steps}")


@dataclass
class TrainConfig(OptimConfig):
    """One training run: the optimizer's settings and what happens every so many steps."""

    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "arithmetic of the forward pass; bf16 and fp16 (with a loss scale) are for GPUs"
    )
    shard: Literal["none", "optimizer"] = option(
        "none", "optimizer: each process holds AdamW's moments of its share of the weights; the weights stay the same"
    )
    log_every: int = option(50, "steps between lines of the log", ge=1)
    checkpoint_activations: bool = option(False, "compute blocks again in the backward pass: less memory, more time")
    compile: bool = option(False, "torch.compile of the transformer blocks: faster steps after a slow first one")
    save_every: int = option(0, "steps between checkpoints; 0 is only at the end", ge=0)
    keep_last: int = option(2, "newest checkpoints that stay; older ones stand in for a damaged newest", ge=1)
    keep_every: int = option(0, "steps between checkpoints that stay for good; 0 is none", ge=0)
    preview_every: int = option(0, "steps between preview pictures; 0 is only at the end", ge=0)
    evaluate_every: int = option(
        0, "steps between evaluations, of averaged and raw weights, into the log; 0 is only at the end", ge=0
    )
    proxies_every: int = option(
        0, "tokenizers: steps between cheap proxies of how well their tokens can be generated; 0 is none", ge=0
    )
    peak_tflops: float | None = option(
        None, "dense peak of one device in TFLOP/s, for mfu in the log; null: as known of NVIDIA's GPUs", gt=0
    )
    tracker: Literal["none", "tensorboard", "wandb"] = option(
        "none", "where the log's numbers go too: RUN/tensorboard, or Weights & Biases (packages of their own)"
    )


@dataclass(frozen=True)
@adding(Decoding, "decoder_", without=("steps",))
class EvaluateConfig(Sampling):
    """What the evaluation of a run measures, and how: generators read `Sampling`, their tokenizer's decoder
    `decoder_*`; tokenizers read sampler, guidance and guidance_interval as those of their decoder."""

    num_images: int = option(1000, "tokenizers: test images that are reconstructed", ge=1)
    num_samples: int = option(1000, "generators: samples", ge=1)
    keep: list[int] = option([], "numbers of leading tokens to decode; empty is 1, 2, 4, ... all", ge=0)
    steps: int = option(25, "steps of a diffusion decoder, also of a generator's tokenizer", ge=1)
    sampling_steps: int | None = option(None, "generators: sampling steps; null is the model's own", ge=1)
    guidance: float = option(1.0, "guidance scale; 1 is off", ge=0)
    batch_size: int = option(100, "images of one forward pass", ge=1)

    @property
    def sampling(self) -> Sampling:
        """How a generator samples."""
        return dataclasses.replace(fields_from(Sampling, self), steps=self.sampling_steps)

    def decoding(self, *, generator: bool) -> Decoding:
        """How the decoder of a tokenizer, or of a generator's tokenizer, samples."""
        return dataclasses.replace(fields_from(Decoding, self, "decoder_" if generator else ""), steps=self.steps)

    def check(self) -> None:  # type: ignore[override]
        """Raise ConfigError on an interval whose ends do not grow within 0..1."""
        for key in ("guidance_interval", "decoder_guidance_interval"):
            low, high = getattr(self, key)
            if not 0 <= low < high <= 1:
                raise ConfigError(f"{key}: expected two growing times in 0..1, got [{low}, {high}]")


def _loss_class(name: str) -> Any:
    module, attribute = LOSS_CONFIGS[name]
    return getattr(importlib.import_module(module), attribute)


def _loss_section(name: str, help: str) -> Any:
    """A field whose class needs torch, and is imported when a recipe is built, as the model's is."""

    def build(value: Any, key: str) -> Any:
        cls = _loss_class(name)
        return config_fields.build(cls, dataclasses.asdict(value) if isinstance(value, cls) else value, key)

    return dataclasses.field(default_factory=lambda: _loss_class(name)(), metadata={"help": help, "build": build})


@dataclass
class Recipe:
    """Everything that decides a run; read one with `load_recipe`."""

    kind: Literal["tokenizer", "generator", "classifier"] = option(help="what is trained")
    seed: int = option(0, "seed of all randomness", ge=0, le=2**32 - 1)
    out: str = option("", "run folder; left out, runs/RECIPE")
    card: CardConfig = option(CardConfig)
    data: DataConfig = option(DataConfig)
    init_from: str | None = option(
        None, "model folder, bundled or hub name of the same kind, whose weights the training starts from"
    )
    tokenizer: str | None = option(None, "generators: model folder or bundled name whose tokens are learnt")
    cache: str | None = option(None, "generators: token cache folder; left out, OUT/cache; none encodes every batch")
    cache_views: Literal["center", "center+flip", "random", "tencrop"] = option(
        "center", "generators: views of an image in the cache (1, 2, 1, 20)"
    )
    cache_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "generators: how a cache made by this run holds continuous tokens"
    )
    draws: Literal["every_image", "released"] = option(
        "every_image", "generators: each image once an epoch in a random view, or released: rows with replacement"
    )
    sample_latents: bool = option(
        False, "generators on a KL tokenizer: learn samples of its posterior, drawn anew every step, not its means"
    )
    num_tokens: int | None = option(None, "generators: train on the first tokens only; null is all", ge=1)
    model: Any = dataclasses.field(
        kw_only=True, metadata={"help": "the model, a section whose name picks the rest", "build": _build_model}
    )
    train: TrainConfig = option(help="the training run")
    perceptual: Any = _loss_section("perceptual", "MAETok and kin: LPIPS and a classifier on the reconstructions")
    adversarial: Any = _loss_section("adversarial", "MAETok and kin: a discriminator that the tokenizer plays against")
    evaluate: EvaluateConfig = option(EvaluateConfig)

    @property
    def learns_words(self) -> bool:
        """Whether the model is trained on the words of captions (MAETok's auxiliary target text)."""
        targets = [each.target for each in getattr(self.model, "auxiliary", [])]
        return "text" in targets and getattr(self.model, "stage", "train") == "train"

    @property
    def reads_captions(self) -> bool:
        """Whether the model is told captions (`condition.kind` text)."""

        return text_condition(self.model) is not None

    def check(self) -> None:
        """Raise ConfigError where the sections contradict each other."""
        name = getattr(self.model, "name", None)
        package = MODEL_CONFIGS[name][0].removeprefix("tok1d.").split(".")[0] if name in MODEL_CONFIGS else ""
        kind = _KIND_OF_PACKAGE.get(package, self.kind)
        if kind != self.kind:
            raise ConfigError(f"model.name: {name} is a {kind}, but the recipe's kind is {self.kind}")
        if self.kind == "generator" and not self.tokenizer:
            raise ConfigError("tokenizer: a generator needs a model folder or a bundled name, got null")
        if self.kind != "tokenizer" and self.train.proxies_every:
            raise ConfigError(f"train.proxies_every: only tokenizers read it, expected 0 for kind={self.kind}")
        if self.kind != "generator" and self.evaluate.unconditional:
            raise ConfigError(f"evaluate.unconditional: only generators read it, expected false for kind={self.kind}")
        if getattr(self.model, "stage", "train") == "finetune" and self.init_from is None:
            raise ConfigError("init_from: model.stage=finetune goes on from a finished run's model, got null")
        for key in ("tokenizer", "cache", "num_tokens"):
            if self.kind != "generator" and getattr(self, key) is not None:
                raise ConfigError(
                    f"{key}: only generators read it, expected null for kind={self.kind}, "
                    f"got {config_fields.show(getattr(self, key))}"
                )
        if self.sample_latents and self.kind != "generator":
            raise ConfigError(f"sample_latents: only generators read it, expected false for kind={self.kind}")
        for key, default in (("cache_views", "center"), ("cache_dtype", "float32"), ("draws", "every_image")):
            if (self.kind != "generator" or self.cache == NO_CACHE) and getattr(self, key) != default:
                raise ConfigError(
                    f"{key}: only generators that train from a cache read it, expected {default}, "
                    f"got {getattr(self, key)}"
                )
        for key in LOSS_CONFIGS:
            for weight in ("weight", "logits"):
                got = getattr(getattr(self, key), weight, 0.0)
                if name not in JUDGED and got > 0:
                    raise ConfigError(
                        f"{key}.{weight}: read with {', '.join(JUDGED)} alone, expected 0 for {name}, got {got:g}"
                    )
        for key in ("image_size", "channels"):
            expected = getattr(self.data, key)
            got = getattr(self.model, key, expected)
            if self.kind != "generator" and got != expected:
                raise ConfigError(f"model.{key}: expected data.{key}={expected}, got {got}")
        self._check_images(name)

    def _check_images(self, name: str | None) -> None:
        """What the model asks of its images beyond one size."""
        if self.data.captions is None and (self.learns_words or self.reads_captions):
            who = "condition.kind=text" if self.reads_captions else "the auxiliary target text"
            raise ConfigError(
                f"data.captions: {who} learns from captions; expected labels (fashion_mnist), files "
                "or a file of JSON lines (folder), got null"
            )
        if self.data.image_sizes and name not in ANY_SIZE:
            raise ConfigError(
                f"data.image_sizes: read with {', '.join(ANY_SIZE)} alone, expected [] for {name}, "
                f"got {self.data.image_sizes}"
            )
        for size in self.data.image_sizes:
            for part in ("encoder", "decoder"):
                if size % getattr(self.model, part).patch:
                    patch = getattr(self.model, part).patch
                    raise ConfigError(f"data.image_sizes: expected multiples of model.{part}.patch={patch}, got {size}")
