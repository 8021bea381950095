"""The schema of a recipe: its sections as typed dataclasses; models are looked up in the registry."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tok1d.config import fields, registry
from tok1d.config.budget import Budgeting, check_stop
from tok1d.config.colour import WHITE, rgb_of
from tok1d.config.condition import text_condition
from tok1d.config.fields import option
from tok1d.config.optim import OptimConfig
from tok1d.config.options import adding, fields_from
from tok1d.config.registry import Kind
from tok1d.config.sampling import Decoding, Sampling
from tok1d.config.text import join, show
from tok1d.errors import ConfigError

NO_CACHE = "none"  # value of `cache`: tokens are encoded batch by batch


@dataclass
class CardConfig:
    """The description of a recipe that `tok1d recipes` prints."""

    about: str = option("", "one line: the model and the data")
    reproduces: str = option("", "the published experiment that it follows, if any")
    paper: str = option("", "the paper's number, with its protocol")
    ours: str = option("", "the number measured here, with its protocol")
    cost: str = option("", "time and machine")


@dataclass
class DataConfig:
    """The images, and how they are cropped to squares."""

    name: Literal["fashion_mnist", "emoji", "folder", "webdataset", "huggingface"] = option(
        "fashion_mnist",
        "data set; emoji: drawn from the font Noto Color Emoji; webdataset: tar shards; huggingface: a folder written "
        "by datasets' save_to_disk",
    )
    root: str | None = option(
        None,
        "folder of the data; null for fashion_mnist: a default one, or a download; for emoji the font, null: the "
        "system's, or a download; or a pattern DIR/{000..010}.tar",
        path="path",
    )
    image_size: int = option(28, "side of the square images, in pixels", ge=1)
    image_sizes: list[int] = option(
        [],
        "tokenizers that train on several image sizes: the sides, one of them for each batch, uniformly at random; "
        "empty is image_size",
        ge=1,
    )
    channels: Literal[1, 3] = option(1, "1 for grey, 3 for colour")
    crop: Literal["center", "random", "random_scale", "fit"] = option(
        "center",
        "square crop of a training image; random_scale takes 0.8 to 1 of the shorter side; fit pads the whole image to "
        "a square, also where images are measured, encoded or reconstructed",
    )
    background: str = option(
        WHITE, "colour behind transparent images and in the padding of crop=fit: white, black or #rrggbb"
    )
    flip: bool = option(False, "flip training images horizontally at random")
    pad: int = option(0, "black border on each side, in pixels, inside image_size: 28 and 2 make 32", ge=0)
    on_broken: Literal["stop", "skip"] = option(
        "skip", "at an unreadable image: stop with an error, or skip it, counted and listed", free=True
    )
    workers: int | None = option(
        None, "threads that read and decode images; null is one for each core, at most 16", ge=1, free=True
    )
    limit: int | None = option(None, "number of training images to use; null is all", ge=1)
    limit_test: int | None = option(None, "number of test images to use; null is all", ge=1)
    num_images: int | None = option(
        None, "number of training images, for a cost forecast where the data are not present", ge=1
    )
    class_order: Literal["sorted", "natural"] = option(
        "sorted", "order of the names of class folders, which gives their numbers: sorted (10 before 2), or natural"
    )
    classes: Literal["groups", "subgroups"] | None = option(
        None, "emoji: what the classes are, 9 groups or 99 subgroups; null: groups"
    )
    image_key: str | None = option(
        None, "webdataset: member that is the image (any image); huggingface: column (image)"
    )
    label_key: str | None = option(None, "webdataset: member that is the class (cls); huggingface: column (label)")
    captions: str | None = option(
        None,
        "fashion_mnist: labels; emoji: names; folder: files (NAME.txt next to NAME.png) or a JSON-lines file in root; "
        "webdataset: a member such as txt; huggingface: a column",
    )

    def check(self) -> None:
        """Raise ConfigError on a missing folder, keys of another data set, or a border that leaves no image."""
        needs = {
            "folder": "the folder with one subfolder for each class",
            "webdataset": "a folder or pattern of tar shards",
            "huggingface": "a folder that datasets' save_to_disk wrote",
        }
        if self.name in needs and not self.root:
            raise ConfigError(f"root: name={self.name} needs {needs[self.name]}, got null")
        for key in ("image_key", "label_key"):
            got = getattr(self, key)
            if got is not None and self.name not in ("webdataset", "huggingface"):
                raise ConfigError(f"{key}: only webdataset and huggingface read it, expected null, got {got}")
        if rgb_of(self.background) != rgb_of(WHITE) and self.name not in needs:
            raise ConfigError(
                f"background: {self.name} has no transparent images, expected {WHITE}, got {self.background}"
            )
        if self.classes is not None and self.name != "emoji":
            raise ConfigError(f"classes: only emoji reads it, expected null, got {self.classes}")
        values = {"fashion_mnist": "labels", "emoji": "names", "folder": "files or a JSON Lines file"}
        own = values.get(self.name) if self.name != "folder" else None
        if self.captions is not None and (self.captions != own if own else self.captions == "labels"):
            expected = values.get(self.name, "a member's or column's name")
            raise ConfigError(f"captions: name={self.name} takes {expected}, got {self.captions}")
        smallest = min([self.image_size, *self.image_sizes])
        if 2 * self.pad >= smallest:
            raise ConfigError(f"pad: expected less than half of image_size={smallest}, got {self.pad}")


@dataclass
class TrainConfig(OptimConfig):
    """Settings of the training: optimizer, precision, and how often to log, save and evaluate."""

    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "arithmetic of the forward pass; bf16 and fp16 (with loss scaling) are for GPUs"
    )
    shard: Literal["none", "optimizer"] = option(
        "none",
        "optimizer: each process holds the optimizer's moments for its share of the weights; same results",
        free=True,
    )
    log_every: int = option(50, "steps between lines of the log", ge=1, free=True)
    checkpoint_activations: bool = option(
        False, "activation checkpointing: recompute blocks in the backward pass, for less memory and more time"
    )
    compile: bool = option(False, "torch.compile of the transformer blocks: faster steps after a slow first one")
    save_every: int = option(0, "steps between checkpoints; 0 is only at the end", ge=0, free=True)
    keep_last: int = option(
        2, "newest checkpoints that are kept; older ones replace a damaged newest one", ge=1, free=True
    )
    keep_every: int = option(0, "steps between checkpoints that are kept permanently; 0 is none", ge=0, free=True)
    preview_every: int = option(1000, "steps between preview pictures; 0 is only at the end", ge=0, free=True)
    evaluate_every: int = option(
        0,
        "steps between evaluations of averaged and raw weights, written to the log; 0 is only at the end",
        ge=0,
        free=True,
    )
    proxies_every: int = option(
        0,
        "tokenizers: steps between cheap estimates of how easily their tokens are generated; 0 is none",
        ge=0,
        only="tokenizer",
        free=True,
    )
    peak_tflops: float | None = option(
        None,
        "dense peak of one device in TFLOP/s, for mfu in the log; null: the known value of an NVIDIA GPU",
        gt=0,
        free=True,
    )
    tracker: Literal["none", "tensorboard", "wandb"] = option(
        "none", "also write the log to TensorBoard (RUN/tensorboard) or Weights & Biases (optional packages)", free=True
    )


@dataclass(frozen=True)
@adding(Decoding, "decoder_", without=("steps",))
class EvaluateConfig(Sampling):
    """Settings of the evaluation of a run. Generators use the fields of `Sampling`, and `decoder_*` for the decoder of
    their tokenizer. Tokenizers use sampler, guidance and guidance_interval for their decoder."""

    num_images: int = option(1000, "tokenizers: test images that are reconstructed", ge=1)
    num_samples: int = option(1000, "generators: samples", ge=1)
    keep: list[int] = option(
        [],
        "numbers of leading tokens to decode; empty is 1, 2, 4, ... all. All tokens are always decoded, and numbers "
        "above the model's tokens are left out",
        ge=0,
    )
    steps: int = option(25, "steps of a diffusion decoder, also of a generator's tokenizer", ge=1)
    sampling_steps: int | None = option(None, "generators: sampling steps; null is the model's own", ge=1)
    guidance: float = option(1.0, "guidance scale; 1 is off", ge=0)
    batch_size: int = option(100, "images of one forward pass", ge=1)
    network: str = option(
        "",
        "feature network: inception[:FILE], efficientnet-lite0, timm:NAME[:SIZE][:FILE] or model:FOLDER; default: the "
        "classifier bundled for the data; for data other than fashion_mnist inception if its weights are here",
        path="prefixed",
    )
    reference: str | None = option(
        None,
        "generators: file of reference statistics, from tok1d reference or ADM; null: computed from the training "
        "images, or from the test images for the bundled classifier",
        path="path",
    )
    unguided: bool | None = option(
        None, "generators: also measure samples without guidance; null: yes, unless the bundled classifier measures"
    )

    @property
    def sampling(self) -> Sampling:
        """How a generator samples."""
        return dataclasses.replace(fields_from(Sampling, self), steps=self.sampling_steps)

    def decoding(self, *, generator: bool) -> Decoding:
        """How the decoder of a tokenizer, or of a generator's tokenizer, samples."""
        return dataclasses.replace(fields_from(Decoding, self, "decoder_" if generator else ""), steps=self.steps)

    def check(self) -> None:
        """Raise ConfigError on an interval [low, high] without 0 <= low < high <= 1."""
        for key in ("guidance_interval", "decoder_guidance_interval"):
            low, high = getattr(self, key)
            if not 0 <= low < high <= 1:
                raise ConfigError(f"{key}: expected [low, high] with 0 <= low < high <= 1, got [{low}, {high}]")


def _loss_section(path: str, help: str) -> Any:  # as `option`
    """Declare a field of the dataclass "module:Class". It needs torch, so it is loaded when a recipe is built."""

    def build(value: object, key: str) -> object:
        cls = registry.imported(path)
        return fields.build(cls, fields.to_mapping(value) if isinstance(value, cls) else value, key)

    return dataclasses.field(default_factory=lambda: registry.imported(path)(), metadata={"help": help, "build": build})


@dataclass
class Recipe:
    """All settings of a run; `tok1d.config.load.load_recipe` reads a recipe.

    Metadata of a field, here or in a section: `only` names the one kind of model that reads it; a field with `free` may
    change when a run is resumed, because it decides when and where something is written, not what is computed.
    """

    kind: Kind = option(help="what is trained")
    seed: int = option(0, "seed of all randomness", ge=0, le=2**32 - 1)
    out: str = option("", "run folder; default: runs/RECIPE", free=True, path="path")
    card: CardConfig = option(CardConfig, free=True)
    data: DataConfig = option(DataConfig)
    init_from: str | None = option(
        None,
        "model folder, bundled or hub name of a model of the same kind whose weights initialise this one; of a budget "
        "head the tokenizer that it belongs to",
        was="start",
        path="path",
    )
    classes_from_data: bool = option(
        False,
        "set model.num_classes to the number of classes of the training images when they are opened; the stored recipe "
        "has the number, and false here",
    )
    tokenizer: str | None = option(
        None,
        "generators: model folder or bundled name of the tokenizer whose tokens are modelled",
        only="generator",
        path="path",
    )
    cache: str | None = option(
        None,
        "generators: folder of the token cache; default: OUT/cache; none: no cache, every batch is encoded",
        only="generator",
        path="path",
    )
    cache_views: Literal["center", "center+flip", "random", "tencrop"] = option(
        "center", "generators: crops of an image in the cache (1, 2, 1 or 20 views)"
    )
    cache_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "generators: how a cache made by this run stores continuous tokens"
    )
    row_order: Literal["every_image", "released"] = option(
        "every_image",
        "generators: each image once per epoch in a random view; released: rows sampled with replacement, as in "
        "Semanticist's code",
        was="draws",
    )
    sample_latents: bool = option(
        False,
        "generators on a KL tokenizer: train on samples of its posterior, new ones at every step, not on its means",
        only="generator",
    )
    budget: Budgeting = option(Budgeting())
    num_tokens: int | None = option(
        None, "generators: train on the first tokens only; null is all", ge=1, only="generator"
    )
    model: Any = dataclasses.field(
        kw_only=True,
        metadata={"help": "the model; its name decides the other keys", "build": registry.build_model_config},
    )
    train: TrainConfig = option(help="the training run")
    perceptual: Any = _loss_section(
        "tok1d.losses.perceptual:PerceptualConfig",
        "deterministic decoders: distances of images and reconstructions in the features of LPIPS or another network",
    )
    adversarial: Any = _loss_section(
        "tok1d.losses.adversarial:AdversarialConfig",
        "deterministic decoders: the adversarial loss and the discriminator that is trained with the tokenizer",
    )
    evaluate: EvaluateConfig = option(EvaluateConfig, free=True)

    @property
    def learns_words(self) -> bool:
        """Whether the model is trained to predict the words of captions (MAETok's auxiliary target text)."""
        targets = [each.target for each in getattr(self.model, "auxiliary", [])]
        return "text" in targets and getattr(self.model, "stage", "train") == "train"

    @property
    def reads_captions(self) -> bool:
        """Whether the model is conditioned on captions (`condition.kind` text or words)."""
        return text_condition(self.model) is not None

    def check(self) -> None:
        """Raise ConfigError if sections contradict each other."""
        kind = registry.MODELS[self.model.name].kind
        if kind != self.kind:
            raise ConfigError(f"model.name: {self.model.name} is a {kind}, but the recipe's kind is {self.kind}")
        if self.kind == "generator" and not self.tokenizer:
            raise ConfigError("tokenizer: a generator needs a model folder or a bundled name, got null")
        if self.kind == "budget" and self.init_from is None:
            raise ConfigError("init_from: a budget head needs the tokenizer that it belongs to, got null")
        if getattr(self.model, "stage", "train") == "finetune" and self.init_from is None:
            raise ConfigError("init_from: model.stage=finetune continues from the model of a finished run, got null")
        if self.classes_from_data and not getattr(self.model, "num_classes", 0):
            raise ConfigError(
                f"classes_from_data: {self.model.name} has no classes (model.num_classes), expected false, got true"
            )
        self._check_kind()
        check_stop(self.model, self.budget, cached=self.cache != NO_CACHE)
        self._check_losses()
        self._check_images()

    def _check_kind(self) -> None:
        """Refuse keys that models of this kind do not read."""
        for key, only, value, default in (
            *_restricted(self),
            *_restricted(self.train, "train"),
            *_restricted(self.budget, "budget"),
        ):
            if only != self.kind and value != default:
                raise ConfigError(
                    f"{key}: only {only}s read it, expected {show(default)} for kind={self.kind}, got {show(value)}"
                )
        for key, default in (("unconditional", False), ("unguided", None), ("reference", None)):
            if self.kind != "generator" and getattr(self.evaluate, key) != default:
                raise ConfigError(
                    f"evaluate.{key}: only generators read it, expected {show(default)} for kind={self.kind}"
                )
        for key in ("cache_views", "cache_dtype", "row_order"):
            got, default = getattr(self, key), getattr(Recipe, key)
            if (self.kind != "generator" or self.cache == NO_CACHE) and got != default:
                raise ConfigError(
                    f"{key}: only generators that train from a cache read it, expected {default}, got {got}"
                )

    def _check_losses(self) -> None:
        """Refuse the loss sections for a model without a deterministic decoder."""
        name = self.model.name
        for section in ("perceptual", "adversarial"):
            for key in ("weight", "logits"):
                got = getattr(getattr(self, section), key, 0.0)
                if got > 0 and not registry.has_capability(name, "adversarial"):
                    readers = ", ".join(registry.models_with("adversarial"))
                    raise ConfigError(f"{section}.{key}: only {readers} read it, expected 0 for {name}, got {got:g}")

    def _check_images(self) -> None:
        """Refuse data that the model cannot be trained on."""
        if getattr(self.model, "text", False):
            raise ConfigError("model.text: trainings give this decoder no features of texts, expected false, got true")
        for key in ("image_size", "channels"):
            expected = getattr(self.data, key)
            got = getattr(self.model, key, expected)
            if self.kind != "generator" and got != expected:
                raise ConfigError(f"model.{key}: expected data.{key}={expected}, got {got}")
        if self.data.captions is None and (self.learns_words or self.reads_captions):
            text = text_condition(self.model)
            reader = f"condition.kind={text.kind}" if text is not None else "the auxiliary target text"
            raise ConfigError(
                f"data.captions: {reader} needs captions; expected labels (fashion_mnist), names (emoji), files or a "
                "JSON Lines file (folder), a member (webdataset) or a column (huggingface), got null"
            )
        name, sizes = self.model.name, self.data.image_sizes
        if sizes and not registry.has_capability(name, "any_size"):
            readers = ", ".join(registry.models_with("any_size"))
            raise ConfigError(f"data.image_sizes: only {readers} read it, expected [] for {name}, got {sizes}")
        for part in ("encoder", "decoder"):
            patch = getattr(getattr(self.model, part, None), "patch", 1)
            for size in sizes:
                if size % patch:
                    raise ConfigError(f"data.image_sizes: expected multiples of model.{part}.patch={patch}, got {size}")


def _restricted(section: Recipe | TrainConfig | Budgeting, key: str = "") -> Iterator[tuple[str, str, object, object]]:
    """The fields that only one kind of model reads: (dotted key, kind, value, default)."""
    for field in dataclasses.fields(section):
        only = field.metadata.get("only")
        if only is not None:
            yield join(key, field.name), only, getattr(section, field.name), field.default
