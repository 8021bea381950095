"""Invalid user input: exit code 2, one line that names the mistake, no partial files.

A seeded generator makes the mistakes, kind by kind; every case runs through the command's entry point, ten of them
as real processes. Nothing is patched: recipes, images, caches, checkpoints and models are real, tiny and damaged.
"""

import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tok1d.cli import app as cli
from tok1d.config.load import field_rows, load_recipe
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint, read_weights

Tiny = Callable[..., str]
KINDS = ["tokenizer", "generator", "maetok", "smap", "titok", "sit", "classifier"]


@dataclass
class Case:
    """A command line (without `tok1d`) and what its one-line error must name."""

    arguments: list[str]
    culprit: str


def case(culprit: object, *arguments: object) -> Case:
    return Case([str(argument) for argument in arguments], str(culprit))


@dataclass
class Bench:
    """A folder with images, recipes and tiny models that are all valid; each case damages a copy of one of them."""

    root: Path
    tiny: Tiny
    rng: random.Random
    copies: Iterator[int]

    @property
    def photos(self) -> Path:
        return self.root / "photos"

    @property
    def data(self) -> list[str]:
        return ["data.name=folder", f"data.root={self.photos}"]

    def copy(self, name: str) -> Path:
        """A copy of a folder of the bench, to be damaged."""
        return Path(shutil.copytree(self.root / name, self.root / "spoilt" / str(next(self.copies)) / Path(name).name))

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.root / "spoilt" / str(next(self.copies)) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def recipe(self, kind: str) -> str:
        return self.tiny(kind, **({"tokenizer": self.root / "tokenizer"} if kind in ("generator", "sit") else {}))

    def new(self) -> Path:
        return self.root / "out" / str(next(self.copies))


def save_images(folder: Path, num: int, rng: np.random.Generator, size: int = 28) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(folder / f"{i}.png")


def save_model(recipe: str, folder: Path, overrides: list[str], card: Card | None = None) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model)
    store.save_model(model, folder, card or Card())
    return model


@pytest.fixture
def bench(tiny: Tiny, tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "bench", tiny, random.Random(0), itertools.count())
    for split, name in itertools.product(("train", "test"), "ab"):
        save_images(made.photos / split / name, 6, np.random.default_rng(len(split)))
    tokenizer = save_model(tiny("tokenizer"), made.root / "tokenizer", [])
    (made.root / "tokenizer" / "notes.txt").write_text("mine")
    card = Card(tokenizer=str(made.root / "tokenizer"), tokenizer_fingerprint=fingerprint(tokenizer))
    save_model(made.recipe("generator"), made.root / "generator", ["model.num_classes=2"], card)
    save_model(tiny("classifier"), made.root / "cnn", [])
    save_model(tiny("smap"), made.root / "smap", [])
    return made


def listing(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def complaint(each: Case, code: int, out: str, err: str) -> str:
    """What is wrong with the outcome of a case; "" if nothing."""
    if code != 2:
        return f"exit code {code}, said {(out + err)[-200:]!r}"
    err = re.sub(r"[^\n]*\r[^\n]*\n", "", err)  # progress bars
    if not (err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")):
        return f"expected one line on stderr, got {err[-600:]!r}"
    if "Traceback" in err or len(err) > 600:
        return f"a traceback or a very long line: {err[-600:]!r}"
    return "" if each.culprit in err else f"{each.culprit!r} is not named: {err!r}"


def left_behind(before: dict[str, int], after: dict[str, int], root: Path) -> str:
    """Files with temporary names, or new files whose content does not match their names."""
    for name in sorted(after.keys() - before.keys()):
        if re.search(r"(^|/)\.|\.(tmp|old|part)(/|$)", name):
            return f"left the temporary file {name}"
        if name.endswith(".json"):
            json.loads((root / name).read_text())
        elif name.endswith("config.yaml"):
            load_recipe(str(root / name))
        elif not name.endswith((".png", ".txt", ".log", ".jsonl")):
            return f"left {name}"
    return ""


def check(cases: list[Case], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run all cases, then fail with a list of all wrong outcomes."""
    wrong = []
    for each in cases:
        before = listing(root)
        capsys.readouterr()
        try:
            code: int | str = cli.run(list(each.arguments))
        except BaseException as error:
            code = f"raised {type(error).__name__}: {str(error)[:300]}"
        out, err = capsys.readouterr()
        why = complaint(each, code, out, err) if isinstance(code, int) else code  # type: ignore[arg-type]
        if why := why or left_behind(before, listing(root), root):
            wrong.append(f"tok1d {' '.join(each.arguments)}\n    {why}")
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong), pytrace=False)


# --- recipes and overrides ---------------------------------------------------------------------------------------


def wrong_values(kind: str) -> list[str]:
    """Right sides of overrides that a field of this type (as listed by `--fields`) must refuse."""
    bad = ["[[1]]"] if kind.startswith("mapping") or "any value" in kind else ["{a: 1}", "[[1]]"]
    number = "int" in kind or "float" in kind
    if number and not kind.startswith("list") and "[" not in kind:
        bad += ["word", ".nan", ".inf", "true", "2020-01-01", "''"]
        bad += ["1.5"] if "int" in kind and "float" not in kind else []
    if kind.startswith("list"):
        bad += ["word", "7", "[x]", "[true]"]
    if kind.startswith("["):
        bad += ["[0.1]", "[0.1, 0.2, 0.3]", "0.5", "[a, b]"]
    if "true or false" in kind:
        bad += ["2", "maybe", "[]"]
    if not (number or kind.startswith(("str", "true", "list", "[", "mapping"))):
        bad += ["no-such-choice", "12345", "''"]
    if "null" not in kind:
        bad += ["null"]
    for sign, limit in re.findall(r"(>=|<=|>|<) (-?[\d.e+]+)", kind):
        value = {">=": float(limit) - 1, "<=": float(limit) + 1}.get(sign, float(limit))
        text = f"{value:g}" if "float" in kind else f"{value:.0f}"
        bad.append(f"[{text}]" if kind.startswith("list") else text)
    return bad


def field_cases(bench: Bench) -> Iterator[Case]:
    """Every field of every kind of recipe, with values of the wrong type or out of range."""
    done_types: set[tuple[str, str]] = set()
    for kind in KINDS:
        recipe = bench.recipe(kind)
        for row in field_rows(load_recipe(recipe)):
            if row.key == "model.name" or (row.key, row.type) in done_types or "any value" in row.type:
                continue
            if row.type.startswith("str"):  # any text is a text
                continue
            done_types.add((row.key, row.type))
            yield case(row.key, "config", recipe, f"{row.key}={bench.rng.choice(wrong_values(row.type))}")


def key_cases(bench: Bench) -> Iterator[Case]:
    """Keys that do not exist: misspelt keys, and valid keys in the wrong section."""
    for kind in KINDS:
        recipe = bench.recipe(kind)
        keys = [row.key for row in field_rows(load_recipe(recipe))]
        for key in bench.rng.sample(keys, 3):
            at = bench.rng.randrange(len(key.split(".")[-1]))
            head, last = key[: len(key) - len(key.split(".")[-1])], key.split(".")[-1]
            wrong = head + last[:at] + bench.rng.choice("qzx7") + last[at:]
            yield case(wrong, "config", recipe, f"{wrong}=1")
            yield case(key, "config", recipe, f"{key}.inside.deep=1")
        for key in ("lr", "image_size", "train.model", "data.lr", "Model", "adversarial.generator"):
            yield case(key, "config", recipe, f"{key}=1")


def syntax_cases(bench: Bench) -> Iterator[Case]:
    recipe = bench.recipe("tokenizer")
    text = Path(recipe).read_text(encoding="utf-8")
    for override in (
        *("train.lr", "=3", "train..lr=1", ".=1", "train.=2", "train.lr=[1", "a b", "-", "\0=1"),
        *("evaluate.keep[0]=1", "seed=${nothing.here}", "seed=${", "train.lr=${train.lr}"),
    ):
        yield case(override.split("=")[0][:8].replace("\0", "\\x00") or "override", "config", recipe, override)
    broken = {
        "cut": text[: text.index("encoder: {") + 12],
        "tab": text + "\ttrain: 1\n",
        "twice": text + "kind: tokenizer\n",
        "list": "- a\n- b\n",
        "number": "12\n",
        "empty": "",
        "word": "hello\n",
        "colon": "a: b: c\n",
        "anchor": "a: *nowhere\n",
        "tag": "kind: !!python/object/apply:os.system ['true']\n",
        "control": "kind: \x01\n",
        "latin": "kind: caf\xe9\n".encode("latin-1"),
        "binary": bytes(range(256)),
        "nul": b"\0" * 64,
        "keys": text + "1: 2\n",
        "quote": text + 'out: "unclosed\n',
    }
    for name, content in broken.items():
        path = bench.file(f"{name}.yaml", content)
        yield case({"empty": "required", "keys": "1", "word": "hello"}.get(name, path), "config", path)
    for base in ("nowhere", "../nowhere.yaml", "[a]", "7", "{a: 1}", "fashion_mnist", "''"):
        culprit = "base" if base[0] in "[{" else base.strip("'") or "recipe"
        yield case(culprit, "config", bench.file("b.yaml", f"base: {base}\n"))
    loop = bench.file("loop.yaml", "base: loop.yaml\n")
    yield case("loop.yaml", "config", loop)
    yield case(bench.photos, "config", bench.photos)
    for name in ("", "nowhere", "fashion_mnist/judg", "nowhere.yaml", "a" * 5000, "fashion_mnist"):
        yield case(name[:40], "config", name)
    for _ in range(8):  # a recipe truncated or with a byte changed: either still valid, or a one-line error
        cut = text[: bench.rng.randrange(10, len(text) - 40)]
        yield case("", "config", bench.file("cut.yaml", cut + "\n  }oops: ["))


def contradiction_cases(bench: Bench) -> Iterator[Case]:
    """Sections that are each valid but contradict each other."""
    for kind, key, overrides in (
        ("tokenizer", "model.encoder.patch", "data.image_size=32"),  # given once, for data and model
        ("tokenizer", "model.name", "model.name=cnn"),
        ("tokenizer", "model.name", "model.name=nothing"),
        ("tokenizer", "model.name", "kind=generator"),
        ("tokenizer", "tokenizer", "tokenizer=x"),
        ("tokenizer", "cache", "cache=x"),
        ("tokenizer", "num_tokens", "num_tokens=2"),
        ("tokenizer", "cache_views", "cache_views=tencrop"),
        ("tokenizer", "row_order", "row_order=released"),
        ("tokenizer", "perceptual.weight", "perceptual.weight=1"),
        ("tokenizer", "adversarial.weight", "adversarial.weight=1"),
        ("tokenizer", "data.image_sizes", "data.image_sizes=[28]"),
        ("maetok", "data.image_sizes", "data.image_sizes=[30]"),
        ("maetok", "data.pad", "data.pad=16"),
        ("maetok", "init_from", "model.stage=finetune"),
        ("tokenizer", "data.root", "data.name=folder"),
        ("tokenizer", "data.captions", "data.captions=files"),
        ("tokenizer", "data.root", "data.name=webdataset"),
        ("tokenizer", "data.root", "data.name=huggingface"),
        ("tokenizer", "data.image_key", "data.image_key=png"),
        ("tokenizer", "data.label_key", "data.name=folder data.root=x data.label_key=cls"),
        ("tokenizer", "data.captions", "data.name=folder data.root=x data.captions=labels"),
        ("tokenizer", "train.warmup", "train.warmup=99"),
        ("tokenizer", "train.lr_min", "train.lr_min=1"),
        ("tokenizer", "train.warmup_init", "train.warmup_init=1"),
        ("tokenizer", "train.decay_steps", "train.decay_steps=3 train.schedule=constant"),
        ("tokenizer", "evaluate.guidance_interval", "evaluate.guidance_interval=[0.7,0.2]"),
        ("tokenizer", "evaluate.unconditional", "evaluate.unconditional=true"),
        ("tokenizer", "model.encoder", "model.encoder.dim=15"),
        ("tokenizer", "model.encoder", "model.encoder.patch=9"),
        ("tokenizer", "model.decoder", "model.decoder.heads=3"),
        ("smap", "model", "model.encoder.heads=5"),
        ("classifier", "num_tokens", "num_tokens=1"),
    ):  # fmt: skip
        yield case(key, "config", bench.recipe(kind), *overrides.split())
    out = bench.new()
    train = ["train", bench.recipe("generator"), *bench.data, f"out={out}", "model.num_classes=2"]
    for key, overrides in (
        ("num_tokens", "num_tokens=5"),
        ("model.num_tokens", "num_tokens=2"),
        ("model.token_dim", "model.token_dim=5"),
        ("model.num_classes", "model.num_classes=3"),
        ("data.pad", "data.pad=2"),
        ("evaluate.top_k", "evaluate.top_k=3"),
        ("evaluate.guidance_interval", "evaluate.guidance_interval=[0.1,0.5]"),
        ("tokenizer", f"tokenizer={bench.root / 'cnn'}"),
        ("tokenizer", f"tokenizer={bench.root / 'generator'}"),
        ("nowhere", "tokenizer=nowhere"),
        ("init_from", "init_from=nowhere"),
        ("init_from", f"init_from={bench.root / 'cnn'}"),
    ):
        # No card states how this tokenizer was trained, so its border is not checked.
        if key != "data.pad":
            yield case(key, *train, "cache=none", *overrides.split())
    yield case("train.precision", "train", bench.recipe("tokenizer"), *bench.data, f"out={out}", "train.precision=bf16")
    yield case("model.num_classes", "train", bench.recipe("smap"), *bench.data, f"out={out}", "model.num_classes=1")


# --- images and captions -----------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of a few bytes whose header states 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def bad_images(good: bytes) -> dict[str, bytes]:
    return {
        "zero.png": b"",
        "cut.png": good[: len(good) // 2],
        "head.png": good[:20],
        "text.png": b"not an image at all\n",
        "bomb.png": bomb(),
        "garbage.jpg": random.Random(1).randbytes(500),
        "mixed.jpg": b"\xff\xd8\xff" + random.Random(2).randbytes(200),
        "flipped.png": good[:40] + bytes([good[40] ^ 255]) + good[41:],
        "webp.webp": b"RIFF\x10\0\0\0WEBP",
    }


def image_cases(bench: Bench) -> Iterator[Case]:
    """Missing folders, folders without images or with only broken ones, or with both classes and loose files."""
    good = (bench.photos / "train" / "a" / "0.png").read_bytes()
    tokenizer, recipe = bench.root / "tokenizer", bench.recipe("tokenizer")

    def commands(folder: object, culprit: object, *more: str) -> Iterator[Case]:
        yield case(culprit, "train", recipe, "data.name=folder", f"data.root={folder}", f"out={bench.new()}", *more)
        stop = ["--on-broken", "stop"] if "data.on_broken=stop" in more else []
        yield case(culprit, "encode", tokenizer, folder, "--out", bench.new(), *stop)
        yield case(culprit, "reconstruct", tokenizer, folder, "--out", bench.new(), *stop)

    for name, content in bad_images(good).items():
        folder = bench.copy("photos")
        for split in ("train", "test"):
            (folder / split / "a" / name).write_bytes(content)
        yield from commands(folder, name, "data.on_broken=stop")
        yield case(name, "reconstruct", tokenizer, folder / "train" / "a" / name, "--out", bench.new())
        only = bench.file(f"only/train/a/{name}", content).parent.parent.parent
        shutil.copytree(only / "train", only / "test")
        yield from commands(only, only, "data.on_broken=skip")
    nowhere, empty, file = bench.root / "nowhere", bench.root / "empty", bench.file("a-file.txt", "x")
    empty.mkdir()
    notes = bench.file("notes/a/readme.txt", "x").parent.parent
    for folder in (nowhere, empty, notes):
        yield from commands(folder, folder)
    yield from list(commands(file, file))[:2]
    loose = bench.copy("photos")
    (loose / "train" / "loose.png").write_bytes(good)
    smap = bench.recipe("smap")  # needs classes
    yield case("loose.png", "train", smap, "data.name=folder", f"data.root={loose}", f"out={bench.new()}")
    flat = bench.copy("photos")
    for path in sorted((flat / "test").rglob("*.png")):
        path.rename(flat / "test" / f"{path.parent.name}-{path.name}")
    for letter in "ab":
        (flat / "test" / letter).rmdir()
    yield case("test/", "encode", tokenizer, flat, "--out", bench.new())
    few = bench.file("few/a/0.png", good).parent.parent
    yield case(few, "encode", tokenizer, few, "--split", "test", "--out", bench.new())
    below = few / "a" / "0.png" / "run"
    yield case(few, "train", recipe, "data.name=folder", f"data.root={few}", f"out={below}")
    long = bench.file("strip/train/a/0.png", good).parent.parent.parent
    Image.new("L", (3_000_000, 1)).save(long / "train" / "a" / "0.png")
    shutil.copytree(long / "train", long / "test")
    yield from commands(long, "0.png")
    shard = bench.file("shards/train-000.tar", b"garbage" * 200)
    for name, place, culprit in (
        ("webdataset", bench.photos, bench.photos),
        ("webdataset", f"{bench.root}/{{000..002}}.tar", "000.tar"),
        ("webdataset", shard.parent, shard),
        ("huggingface", bench.photos, bench.photos),
        ("huggingface", nowhere, nowhere),
    ):
        yield case(culprit, "train", recipe, f"data.name={name}", f"data.root={place}", f"out={bench.new()}")
    yield case(shard, "encode", tokenizer, shard.parent, "--out", bench.new())
    root = bench.root / "no-fashion"
    root.mkdir()
    for name in (f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")):
        (root / name).write_bytes(b"\0\0\x08\x03\0\0\0\x05garbage")
    yield case(root, "train", recipe, f"data.root={root}", f"out={bench.new()}")
    yield case("empty", "train", recipe, f"data.root={empty}", f"out={bench.new()}")


def caption_cases(bench: Bench) -> Iterator[Case]:
    base = ["train", bench.recipe("smap"), *bench.data, "model.condition.kind=text",
            "model.condition.encoder=nowhere", "model.condition.dim=8"]  # fmt: skip
    good = '{"file": "train/a/0.png", "caption": "x"}\n'
    for name, content in {
        "cut": good + '{"file": "tra',
        "list": "[1, 2]\n",
        "other": '{"image": "x", "text": "y"}\n',
        "number": '{"file": 3, "caption": "x"}\n',
        "null": '{"file": "train/a/0.png", "caption": null}\n',
        "twice": good * 2,
        "deep": "[" * 100_000 + "\n",
        "nowhere": '{"file": "not/there.png", "caption": "x"}\n',
        "binary": bytes(range(128, 256)),
    }.items():
        path = bench.file(f"{name}.jsonl", content)
        yield case(path, *base, f"data.captions={path}", f"out={bench.new()}")
    yield case("missing.jsonl", *base, "data.captions=missing.jsonl", f"out={bench.new()}")
    yield case(bench.photos, *base, f"data.captions={bench.photos}", f"out={bench.new()}")
    beside = bench.copy("photos")
    (beside / "train" / "a" / "0.txt").write_bytes(b"\xff\xfe\xff")
    spoilt = [part.replace(str(bench.photos), str(beside)) for part in base]
    yield case("0.txt", *spoilt, "data.captions=files", f"out={bench.new()}")


# --- caches, checkpoints, models, records ------------------------------------------------------------------------


def spoilt_json(content: Any, rng: random.Random, num: int) -> Iterator[Any]:
    """The content with one key missing, or of a wrong type or value, at random places."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield (*path, key)
                yield from places(item, (*path, key))

    found = sorted(places(content), key=str)
    for path in rng.sample(found, min(num, len(found))):
        copy = json.loads(json.dumps(content))
        inner = copy
        for key in path[:-1]:
            inner = inner[key]
        old = inner[path[-1]]
        wrong = [[], {}, None, "word", -1, 1e9, True, [None]]
        inner[path[-1]] = rng.choice(
            [each for each in wrong if type(each) is not type(old) and (old, each) != (None, -1)]
        )
        yield path, copy


def damaged(good: bytes, rng: random.Random) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": good[: len(good) * 2 // 3],
        "head": good[:5],
        "garbage": rng.randbytes(300),
        "huge header": struct.pack("<Q", 2**60) + good[8:],
        "text": b"{}",
        "zip": b"PK\x03\x04" + rng.randbytes(50),
        "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0cos\nsystem\n.",
    }


_READ_OF_META = ("tokenizer_fingerprint", "data_fingerprint", "transform", "meta", "views", "num_classes")


def cache_cases(bench: Bench) -> Iterator[Case]:
    """Token caches that are unfinished, damaged, of another tokenizer or of other images."""
    assert (
        cli.run(["encode", str(bench.root / "tokenizer"), str(bench.photos), "--out", str(bench.root / "cache")]) == 0
    )
    train = ["train", bench.recipe("generator"), *bench.data, "model.num_classes=2"]

    def use(folder: Path, culprit: object, *more: str) -> Case:
        return case(culprit, *train, f"cache={folder}", f"out={bench.new()}", *more)

    shard, index = "shard-00000.safetensors", json.loads((bench.root / "cache" / "index.json").read_text())
    for content in damaged((bench.root / "cache" / shard).read_bytes(), bench.rng).values():
        folder = bench.copy("cache")
        (folder / shard).write_bytes(content)
        yield use(folder, folder / shard)
    for content in damaged((bench.root / "cache" / "index.json").read_bytes(), bench.rng).values():
        folder = bench.copy("cache")
        (folder / "index.json").write_bytes(content)
        yield use(folder, folder)
    for path, content in spoilt_json(index, bench.rng, 40):
        if path[0] == "about" or (path[0] == "meta" and path[-1] not in _READ_OF_META):
            continue  # shown to people, not read; `about` is below
        folder = bench.copy("cache")
        (folder / "index.json").write_text(json.dumps(content))
        yield use(folder, "num_classes" if path[-1] == "num_classes" else folder)
    settings = [{"tokenizer_settings": each} for each in (True, 3, [1], {"encoder.heads": 77})]
    for about in (True, 7, "x", [1], *settings):
        folder = bench.copy("cache")
        (folder / "index.json").write_text(json.dumps({**index, "about": about}))
        yield use(folder, folder)
    for change in ("missing", "folder", "shapes", "labels"):
        folder = bench.copy("cache")
        (folder / shard).unlink()
        if change == "folder":
            (folder / shard).mkdir()
        if change in ("shapes", "labels"):
            tokens = torch.zeros(12, 3, 4) if change == "shapes" else torch.zeros(12, 4, 4)
            labels = torch.zeros(11 if change == "labels" else 12, dtype=torch.int64)
            save_file({"tokens": tokens, "labels": labels}, folder / shard)
        yield use(folder, shard)
    other = bench.copy("photos")
    (other / "train" / "a" / "0.png").unlink()
    yield use(bench.root / "cache", bench.root / "cache", f"data.root={other}")
    yield use(bench.root / "cache", bench.root / "cache", "cache_views=tencrop")
    save_model(bench.recipe("tokenizer"), bench.root / "second", ["seed=1"])
    with torch.no_grad():
        second = store.load(bench.root / "second")
        next(second.parameters()).add_(1)
    store.save_model(second, bench.root / "second", Card())
    yield use(bench.root / "cache", bench.root / "cache", f"tokenizer={bench.root / 'second'}")
    file = bench.file("cache", "x")
    yield use(file, file)
    yield case(bench.root / "cache", "encode", bench.root / "tokenizer", bench.photos, "--out", bench.root / "cache")
    yield case(bench.photos, "encode", bench.root / "tokenizer", bench.photos, "--out", bench.photos)


def checkpoint_cases(bench: Bench) -> Iterator[Case]:
    """Run folders whose only checkpoint is damaged or of another training, or folders that are no run folders."""
    train = ["train", bench.recipe("tokenizer"), *bench.data]
    run = bench.root / "run"
    assert cli.run([str(part) for part in [*train, f"out={run}", "--minutes", "0"]]) == 0
    (step,) = sorted((run / "checkpoints").glob("step-*.pt"))
    name = f"checkpoints/{step.name}"
    state = torch.load(step, weights_only=True)
    for content in damaged(step.read_bytes(), bench.rng).values():
        folder = bench.copy("run")
        (folder / name).write_bytes(content)
        yield case(folder, *train, f"out={folder}")
    for change in ("step", "model", "optimizer", "shape", "list", "folder"):
        folder = bench.copy("run")
        if change == "shape":
            model = {k: v[..., None] for k, v in state["model"].items()}
            torch.save({**state, "model": model}, folder / name)
        elif change == "folder":
            (folder / name).unlink()
            (folder / name).mkdir()
        elif change == "list":
            torch.save([1, 2], folder / name)
        else:
            torch.save({k: v for k, v in state.items() if k != change}, folder / name)
        yield case(folder, *train, f"out={folder}")
    for key in ("train.lr=0.5", "seed=3", "model.num_tokens=2", "train.batch_size=4"):
        yield case(key.split("=")[0], *train, f"out={run}", key)
    other = bench.copy("run")
    yield case(other, "train", bench.recipe("classifier"), *bench.data, "model.num_classes=2", f"out={other}")
    for content in ("kind: [", "", "a: 1\n", "\0"):
        folder = bench.copy("run")
        (folder / "config.yaml").write_text(content)
        yield case(folder, *train, f"out={folder}")
    yield case(bench.photos, *train, f"out={bench.photos}")
    yield case("notes.txt", *train, f"out={bench.root / 'tokenizer' / 'notes.txt'}")
    yield case("notes.txt", *train, f"out={bench.root / 'tokenizer' / 'notes.txt' / 'deeper'}")
    yield case(run, "export", run, "--out", bench.new())


def model_cases(bench: Bench) -> Iterator[Case]:
    """Model folders with damaged configurations, weights and cards; models of another kind than the command needs."""
    photos = bench.photos

    def use(folder: object, culprit: object) -> list[Case]:
        ways = [
            case(culprit, "reconstruct", folder, photos, "--out", bench.new()),
            case(culprit, "evaluate", "reconstruction", folder, photos),
            case(culprit, "encode", folder, photos, "--out", bench.new()),
            case(culprit, "train", bench.recipe("generator"), *bench.data, f"tokenizer={folder}", f"out={bench.new()}"),
        ]
        return bench.rng.sample(ways, 2)

    weights, config = "model.safetensors", json.loads((bench.root / "tokenizer" / "config.json").read_text())
    for content in damaged((bench.root / "tokenizer" / weights).read_bytes(), bench.rng).values():
        folder = bench.copy("tokenizer")
        (folder / weights).write_bytes(content)
        yield from use(folder, folder)
    for content in damaged((bench.root / "tokenizer" / "config.json").read_bytes(), bench.rng).values():
        folder = bench.copy("tokenizer")
        (folder / "config.json").write_bytes(content)
        yield from use(folder, folder)
    for _, content in spoilt_json(config, bench.rng, 30):
        folder = bench.copy("tokenizer")
        (folder / "config.json").write_text(json.dumps(content))
        yield from use(folder, folder)
    for change in ("missing weights", "missing config", "another's weights", "one weight less"):
        folder = bench.copy("tokenizer")
        if change == "missing weights":
            (folder / weights).unlink()
        elif change == "missing config":
            (folder / "config.json").unlink()
        elif change == "another's weights":
            shutil.copy(bench.root / "cnn" / weights, folder / weights)
        else:
            state = read_weights(folder / weights)
            state.pop(sorted(state)[0])
            save_file(state, folder / weights)
        yield from use(folder, folder)
    for name in ("cnn", "generator"):
        yield from use(bench.root / name, bench.root / name)
    yield from use(bench.root / "nowhere", bench.root / "nowhere")
    yield from use(bench.photos, bench.photos)
    yield from use("no-such-name", "no-such-name")
    for change in ({"tokenizer": "nowhere"}, {"tokenizer": ""}, {"tokenizer_fingerprint": "0" * 12}, {"tokenizer": 5}):
        folder = bench.copy("generator")
        content = json.loads((folder / "config.json").read_text())
        content["card"] |= change
        (folder / "config.json").write_text(json.dumps(content))
        culprit = "nowhere" if change.get("tokenizer") == "nowhere" else folder
        yield case(culprit, "generate", folder, "--out", bench.new())
    yield case(bench.root / "smap", "generate", bench.root / "smap", "--out", bench.new())


def record_cases(bench: Bench) -> Iterator[Case]:
    """Records, and other files beside a finished run, that hold something else."""
    train = ["train", bench.recipe("classifier"), *bench.data, "model.num_classes=2", f"out={bench.root / 'done'}"]
    assert cli.run([*train, "train.steps=1", "train.warmup=0"]) == 0
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        for content in ("", "[", '{"a": 1}', "\0\0\0", "[[[[", "null"):
            folder = bench.copy("done")
            (folder / name).write_text(content)
            blank = name == "config.yaml" and content in ("", "null")
            other = name == "config.yaml" and content == '{"a": 1}'
            culprit = "required" if blank else "a" if other else folder
            yield case(culprit, "export", folder, "--out", bench.new())
    yield case(bench.root / "done", "export", bench.root / "done", "--out", bench.root / "done")
    yield case(bench.photos, "export", bench.root / "done", "--out", bench.photos)
    yield case(bench.root / "done", *train)
    metric = json.loads((bench.root / "done" / "report.json").read_text())[0]
    for change in (
        *({"value": "high"}, {"value": [1]}, {"extra": 1}, {"name": 3}),
        *({"num_images": "many"}, {"num_images": -1}, {"weights": "other"}, {"versions": 3}),
    ):
        folder = bench.copy("cnn")
        content = json.loads((folder / "config.json").read_text())
        content["card"]["records"] = [metric | change]
        (folder / "config.json").write_text(json.dumps(content))
        yield case(folder, "reconstruct", folder, bench.photos, "--out", bench.new())


# --- command lines and published weights -------------------------------------------------------------------------


def option_cases(bench: Bench) -> Iterator[Case]:
    tokenizer, generator, photos = bench.root / "tokenizer", bench.root / "generator", bench.photos
    lines: dict[str, list[object]] = {
        "reconstruct": ["reconstruct", tokenizer, photos],
        "generate": ["generate", generator],
        "encode": ["encode", tokenizer, photos],
        "evaluate": ["evaluate", "reconstruction", tokenizer, photos],
    }
    for name, option, values in (
        ("reconstruct", "--keep", ["x", "5", "-1", "1;2", ",", "1.5", "99999999999999999999"]),
        ("reconstruct", "--label", ["yes", "null"]),
        ("reconstruct", "--num", ["0", "-1", "x", "1.5"]),
        ("reconstruct", "--steps", ["0", "x"]),
        ("reconstruct", "--sampler", ["rk4", "ancestral"]),
        ("reconstruct", "--guidance", ["-1", "x"]),
        ("reconstruct", "--guidance-interval", ["0.5", "x,y", "0.9,0.1", "-1,2", "0,0.5,1"]),
        ("reconstruct", "--size", ["0", "x", "27"]),
        ("reconstruct", "--seed", ["-1", "x"]),
        ("reconstruct", "--on-broken", ["maybe"]),
        ("reconstruct", "--device", ["abacus", "cuda:99", "meta", "0x"]),
        ("generate", "--classes", ["2", "-1", "a", "1-2", ",,"]),
        ("generate", "--captions", ["a dress"]),
        ("generate", "--num", ["0", "x"]),
        ("generate", "--keep", ["0", "4", "x"]),
        ("generate", "--decode-keep", ["9", "x", "all"]),
        ("generate", "--guidance-schedule", ["cubic"]),
        ("generate", "--guidance-interval", ["1,0", "x"]),
        ("generate", "--weak-model", ["nowhere"]),
        ("generate", "--temperature", ["-1", "hot", "nan"]),
        ("generate", "--sampler", ["magic"]),
        ("generate", "--steps", ["0", "x"]),
        ("generate", "--top-k", ["3", "-1"]),
        ("generate", "--top-p", ["0.5", "2"]),
        ("generate", "--decoder-guidance", ["-3"]),
        ("generate", "--decoder-sampler", ["rk4"]),
        ("encode", "--split", ["val"]),
        ("encode", "--views", ["seven"]),
        ("encode", "--num-tokens", ["0", "5", "x"]),
        ("encode", "--dtype", ["int8"]),
        ("encode", "--shard", ["1", "2/2", "a/b", "-1/2", "1/0"]),
        ("encode", "--rows-per-shard", ["0"]),
        ("encode", "--seed", ["-1"]),
        ("evaluate", "--keep", ["9", "x"]),
        ("evaluate", "--num", ["0"]),
        ("evaluate", "--batch-size", ["0", "x"]),
        ("evaluate", "--label", ["maybe", "true"]),
    ):  # fmt: skip
        for value in values:
            out = [] if name == "evaluate" else ["--out", bench.new()]
            culprit = value if option in ("--device", "--weak-model") else option
            if (option, value) == ("--size", "27"):
                culprit = "27"
            if option in ("--sampler", "--decoder-sampler"):
                culprit = option.removeprefix("--").removeprefix("decoder-")
            if (option, value) in (("--label", "null"), ("--label", "true")):
                culprit = "label"
            yield case(culprit.replace("--num-tokens", "num"), *lines[name], *out, option, value)
    for words, culprit in (
        ("fly", "fly"), ("train", "recipe"), ("config", "recipe"), ("encode x", "data"), ("encode x y", "--out"),
        ("reconstruct x", "images"), ("generate", "model"), ("generate x", "--out"), ("generate x --out", "--out"),
        ("convert", "format"), ("convert titok", "path"), ("convert titok x", "--out"), ("export", "run"),
        ("evaluate fly", "fly"), ("analyze fly", "fly"), ("recipes extra", "extra"), ("demo extra", "extra"),
        ("train fashion_mnist/judge --minutes x", "--minutes"), ("train fashion_mnist/judge --minutes -1", "--minutes"),
        ("train fashion_mnist/judge --fast", "--fast"), ("generate x --out y --colour red", "--colour"),
    ):  # fmt: skip
        yield case(culprit, *words.split())


def output_cases(bench: Bench) -> Iterator[Case]:
    """Places that cannot be written, or that hold something already."""
    tokenizer, generator, photos = bench.root / "tokenizer", bench.root / "generator", bench.photos
    file = bench.file("a-file.txt", "x")
    full = bench.file("full/thesis.txt", "mine").parent
    for out in (file, file / "below", full, "/proc/nowhere/x"):
        for words in (
            ["reconstruct", tokenizer, photos],
            ["generate", generator, "--num", "1", "--classes", "0"],
            ["encode", tokenizer, photos],
            ["analyze", "prefix", tokenizer, photos, "--num", "2"],
            ["analyze", "increments", tokenizer, photos, "--num", "2"],
            ["convert", "titok", file],
        ):
            read = words[0] == "convert" and out not in (file, "/proc/nowhere/x")
            culprit = file if read else str(out).removesuffix("/x")
            culprit = full if out == full else culprit
            yield case(culprit, *words, "--out", out)
        yield case(out, "train", bench.recipe("tokenizer"), *bench.data, f"out={out}")
    for out in (file / "below", "/proc/nowhere/x"):
        yield case(out, "evaluate", "reconstruction", tokenizer, photos, "--num", "2", "--out", out)
    yield case(full, "evaluate", "reconstruction", tokenizer, photos, "--num", "2", "--out", full)


def convert_cases(bench: Bench) -> Iterator[Case]:
    from tok1d.zoo.convert import FORMATS

    good = (bench.root / "cnn" / "model.safetensors").read_bytes()
    torch.save({"a": torch.zeros(2)}, foreign := bench.file("foreign.pt", ""))
    torch.save([torch.zeros(2)], listed := bench.file("list.pt", ""))
    save_file({"conv.weight": torch.zeros(2)}, other := bench.file("other.safetensors", ""))
    files = [bench.root / "nowhere.pt", bench.photos, foreign, listed, other]
    spoilt = [
        bench.file(f"{kind.replace(' ', '-')}.{ending}", content)
        for kind, content in damaged(good, bench.rng).items()
        for ending in ("pt", "safetensors", "pkl")
    ]
    for format in FORMATS:
        for path in [*files, *bench.rng.sample(spoilt, 4)]:
            yield case(path, "convert", format, path, "--out", bench.new())
        yield case("nothing", "convert", format, other, "nothing=1", "--out", bench.new())
    yield case("mystery", "convert", "mystery", other, "--out", bench.new())
    yield case("heads", "convert", "llamagen", other, "heads", "--out", bench.new())


MAKERS = {
    maker.__name__.removesuffix("_cases"): maker
    for maker in (
        *(field_cases, key_cases, syntax_cases, contradiction_cases, image_cases, caption_cases, cache_cases),
        *(checkpoint_cases, model_cases, record_cases, option_cases, output_cases, convert_cases),
    )
}


@pytest.mark.slow
def test_real_processes_end_in_the_same_way(bench: Bench) -> None:
    """Ten of the mistakes as real processes; in-process there are hundreds."""
    every = {kind: list(maker(bench)) for kind, maker in MAKERS.items()}
    assert sum(map(len, every.values())) >= 600 and all(len(cases) >= 10 for cases in every.values())
    chosen = [*(bench.rng.choice(every[kind]) for kind in ("image", "model", "checkpoint")), *every["option"][-7:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    for each in chosen:
        before = listing(bench.root)
        command = [sys.executable, "-m", "tok1d.cli.app", *each.arguments]
        done = subprocess.run(command, cwd=bench.root, env=environment, capture_output=True, text=True)
        assert not complaint(each, done.returncode, done.stdout, done.stderr), each
        assert not left_behind(before, listing(bench.root), bench.root), each


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_mistake_is_one_line_and_leaves_nothing(
    bench: Bench, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    check(list(MAKERS[kind](bench)), bench.root, capsys)
    assert os.listdir() == []
