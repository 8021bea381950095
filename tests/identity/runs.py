"""The tiny trainings and the commands of the record of identity: what they leave, as named values."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import models
import names
import numpy as np
import run_cases
from lines import picture

NUM_TRAIN, NUM_TEST = 64, 60


def groups(place: Path) -> dict[str, Callable[[], models.Values]]:
    """Name -> what makes its values; everything is written below `place`."""
    workshop = Workshop(place)
    found = {f"train/{name}": partial(workshop.training, name) for name in run_cases.RUNS}
    return found | {f"command/{name}": partial(workshop.command, name) for name in run_cases.COMMANDS}


@contextmanager
def cache_in(place: Path) -> Iterator[None]:
    """What tok1d keeps between commands stays below `place`."""
    before = os.environ.get(names.CACHE_VARIABLE)
    os.environ[names.CACHE_VARIABLE] = str(place / "kept")
    try:
        yield
    finally:
        if before is None:
            del os.environ[names.CACHE_VARIABLE]
        else:
            os.environ[names.CACHE_VARIABLE] = before


class Workshop:
    """Makes data and runs when they are first asked for, in folders below one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.fashion = cache(lambda: write_fashion(place / "fashion"))
        self.folder = cache(lambda: write_folder(place / "folder"))
        self.text = cache(lambda: write_text_encoder(place / "text"))
        self.finished = cache(self._finished)

    def filled(self, value: Any) -> Any:
        """A tree of a recipe or a command line with @WORDS replaced by paths."""
        if isinstance(value, dict):
            return {name: self.filled(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(item) for item in value]
        known = {"@FASHION": self.fashion, "@FOLDER": self.folder, "@TEXT": self.text}
        if value in known:
            return str(known[value]())
        if isinstance(value, str) and value.startswith("@") and value[1:] in run_cases.RUNS:
            return str(names.model_folder(self.finished(value[1:])))
        return value

    def _recipe(self, name: str, steps: int) -> dict[str, Any]:
        recipe = self.filled(run_cases.RUNS[name][1])
        return {**recipe, "train": {**recipe["train"], "steps": steps}}

    def _finished(self, name: str) -> Path:
        """The folder of an unbroken run of two steps."""
        for needed in run_cases.RUNS[name][0]:
            self.finished(needed)
        out = self.place / "runs" / f"{name}-two"
        names.train(self._recipe(name, 2), out)
        return out

    def training(self, name: str) -> models.Values:
        """A run of one step, one of two steps, and one of two that is stopped after the first and goes on."""
        two, place = self.finished(name), self.place / "runs"
        names.train(self._recipe(name, 1), place / f"{name}-one")
        resumed = place / f"{name}-resumed"
        names.train(self._recipe(name, 2), resumed, stop_after_one_step=True)
        yield from checkpoint_values("stopped", resumed)
        names.train(self._recipe(name, 2), resumed)
        for label, out in (("one", place / f"{name}-one"), ("two", two), ("resumed", resumed)):
            yield from run_values(label, out)

    def command(self, name: str) -> models.Values:
        """What a command writes."""
        out = self.place / "commands" / name.replace("/", "-")
        out.mkdir(parents=True)
        words = [word.replace("@OUT", str(out)) for word in self.filled(run_cases.COMMANDS[name])]
        names.command(*words)
        yield from written(out)


def checkpoint_values(label: str, out: Path) -> models.Values:
    for part, tensors in names.checkpoint(out).items():
        yield f"{label}/checkpoint/{part}", tensors


def run_values(label: str, out: Path) -> models.Values:
    """The end of a run: its checkpoint, the model it gives away, its log, its figures, its preview."""
    yield from checkpoint_values(label, out)
    yield f"{label}/model", models.state(names.load(names.model_folder(out)))
    for line in names.log(out):
        step = line.pop("step")
        for name, value in line.items():
            yield f"{label}/log/{step}/{name}", value
    for name, value in names.run_report(out).items():
        yield f"{label}/report/{name}", value
    for path in sorted(names.run_pictures(out).glob("*.png")):
        yield f"{label}/preview", picture(path)
    if names.cache_of_run(out).exists():
        for name, value in names.cached_tokens(names.cache_of_run(out)).items():
            yield f"{label}/cache/{name}", value


PLOTS = ("prefix.png", "increments.png", "mixture.png", "swap.png")  # with words


def written(out: Path) -> models.Values:
    """Pictures, records, token caches, arrays and numbers of JSON files in a command's folder."""
    if names.is_cache(out):
        for name, value in names.cached_tokens(out).items():
            yield f"cache/{name}", value
        return
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out).as_posix()
        if path.suffix == ".png" and path.name not in PLOTS:
            yield place, picture(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                yield from (
                    (f"{place}/{name}", arrays[name]) for name in sorted(arrays) if arrays[name].dtype.kind in "fiub"
                )
        elif path.suffix == ".json":
            yield from ((f"{place}/{name}", value) for name, value in names.figures(path).items())


def shapes(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures (num, 28, 28) of slanted stripes in a diamond, by class, with noise; and their classes."""
    labels = np.arange(num) * 7 % 10
    rows, columns = np.mgrid[:28, :28]
    noise = np.random.default_rng(seed).integers(0, 40, (num, 28, 28))
    images = np.zeros((num, 28, 28), np.int64)
    for i, label in enumerate(labels):
        inside = abs(rows - 14) + abs(columns - 13 - i % 3) < 8 + label % 5 * 2
        images[i] = np.where(inside, (rows * (label + 1) + columns * (i % 4 + 1) * 3) % 200, 0) + noise[i]
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_fashion(folder: Path) -> Path:
    """Small files in the form of Fashion-MNIST's."""
    folder.mkdir(parents=True)
    for prefix, num, seed in (("train", NUM_TRAIN, 1), ("t10k", NUM_TEST, 2)):
        images, labels = shapes(num, seed)
        sizes = np.array([num, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + labels.tobytes())
    return folder


def write_folder(folder: Path) -> Path:
    """Colour pictures of several sizes, three classes, as PNG files in train/ and test/."""
    from PIL import Image

    for split, num, seed in (("train", 18, 3), ("test", 9, 4)):
        images, labels = shapes(num, seed)
        for i, (image, label) in enumerate(zip(images, labels % 3, strict=True)):
            colours = np.stack([image, image[::-1], 255 - image], axis=-1)
            whole = np.pad(colours, ((4, 4 + i % 3), (5, 7), (0, 0)), mode="edge")
            path = folder / split / f"class{label}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(whole).save(path)
    return folder


def write_text_encoder(folder: Path) -> Path:
    """A random text encoder of CLIP's kind, 16 numbers wide, and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    letters = ["<unk>", "<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyzTS-,/"]
    tokenizer = Tokenizer(kinds.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(vocab_size=64, max_position_embeddings=20, bos_token_id=2, eos_token_id=2, **sizes)
        CLIPTextModel(config).save_pretrained(folder)
    return folder
