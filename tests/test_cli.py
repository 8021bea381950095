"""The command line, called in-process: exit codes, one-line mistakes, and the whole chain on tiny models."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.train import loop
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
COMMANDS = [
    *("demo", "recipes", "models", "config", "train", "encode", "reconstruct", "generate", "convert", "export"),
    *("reference", "export-onnx", "compare", "launch", "replay", "reproduce"),
    *("evaluate reconstruction", "evaluate generation", "evaluate grid"),
    *("analyze prefix", "analyze increments", "analyze mixture", "analyze swap", "analyze idle"),
    "analyze budget",
    *("analyze spectrum", "analyze probe", "analyze map", "analyze semantics"),
    *("analyze learnability", "analyze order", "analyze modes"),
    *("study build", "study serve", "study score", "serve"),
]
HEAVY = ["torch", "numpy", "yaml", "PIL", "accelerate", "matplotlib", "tqdm", "tok1d.config.recipe"]


@pytest.fixture
def ok(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """ok(*arguments): what a command that ends well prints."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """fails(*arguments): the one line of a mistake, exit code 2."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert cli.run([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err[len("error: ") : -1]

    return call


def random_model(recipe: str, overrides: Sequence[str] = ()) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # no output starts at zero
    return model


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path) -> Path:
    """A folder with a tokenizer, a generator for it and a classifier, all of random weights."""
    tokenizer = random_model(tiny("tokenizer"))
    store.save_model(tokenizer, tmp_path / "models" / "tokenizer", Card())
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    generator = random_model(tiny("generator", tokenizer="x"))
    store.save_model(generator, tmp_path / "models" / "generator", card)
    store.save_model(random_model(tiny("classifier")), tmp_path / "models" / "cnn", Card())
    return tmp_path / "models"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A user's folder: three pictures of different sizes and one broken file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(40, 30), (28, 28), (31, 64)]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    return folder


@pytest.fixture
def bundled_classifier(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one bundled model: the tiny classifier in place of the Fashion-MNIST classifier."""
    (models / "bundled").mkdir()
    (models / "cnn").rename(models / "bundled" / "fashion-mnist-cnn")
    monkeypatch.setattr(store, "BUNDLED", models / "bundled")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def temporary_files(folder: Path) -> list[str]:
    return [name for name in files(folder) if name.endswith((".tmp", ".old")) or "/." in f"/{name}"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tok1d.cli import app as cli; c = cli.run(['--help']); "
        f"print(c, sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []" and "Start with tok1d demo" in done.stdout and not done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_usage(ok: Callable[..., str], command: str) -> None:
    text = ok(*command.split(), "--help")
    assert f"Usage: tok1d {command} " in text
    found: Any = typer.main.get_command(cli.app)
    for word in command.split():
        found = found.commands[word]
    assert found.help and all(each.help for each in found.params if each.name != "help")


def test_the_help_lists_every_command(ok: Callable[..., str]) -> None:
    listed = set(re.findall(r"^  ([\w-]+) ", ok("--help").partition("Commands:")[2], re.MULTILINE))
    assert listed == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("arguments", [[], ["evaluate"], ["analyze"]])
def test_a_command_that_lacks_its_second_word_shows_the_help(arguments: list[str], capsys: Any) -> None:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("Usage: tok1d") and "\nCommands:\n" in err and not out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fly", "No such command 'fly'; see tok1d --help"),
        ("train", "Missing argument 'recipe'; see tok1d train --help"),
        ("generate x", "Missing option '--out'; see tok1d generate --help"),
        ("generate x --out y --num 0", "--num.*greater than or equal to 1; see tok1d generate --help"),
        ("generate x --out y --num some", "--num.*see tok1d generate --help"),
        ("generate x --out y --colour red", "No such option: --colour.*see tok1d generate --help"),
        ("encode x y --out z --split val", "--split: expected train or test or all, got 'val'"),
        ("encode x y --out z --dtype int8", "--dtype: expected float32 or float16 or bfloat16, got 'int8'"),
        ("encode x y --out z --on-broken ignore", "--on-broken: expected stop or skip, got 'ignore'"),
        ("reconstruct x y --out z --on-broken ignore", "--on-broken: expected stop or skip, got 'ignore'"),
        ("export x --out z --dtype bf16", "--dtype: expected float16 or float32, got 'bf16'"),
        ("config fashion_mnist/judg", "unknown name.*did you mean fashion_mnist/judge?"),
        ("train fashion_mnist/judg", "unknown name.*did you mean fashion_mnist/judge?"),
        ("train nowhere.yaml", "no such file"),
        ("train fashion_mnist/judge train.lrr=1", r"^train\.lrr: unknown key; did you mean train\.lr\?"),
        ("train fashion_mnist/judge train.lr=fast", r"^train\.lr: expected float > 0, got 'fast'|^train\.lr: "),
        ("train fashion_mnist/judge lr", "expected key=value"),
        ("reconstruct runs/fashion_mnist/smap/model x --out y", r"yet: train it .*tok1d train fashion_mnist/smap\)"),
        ("convert mystery x --out y", "format 'mystery': expected one of semanticist-tokenizer"),
        ("export nowhere --out y", "expected a finished run"),
    ],
)
def test_wrong_words_are_one_line(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, fails(*arguments.split()))
    assert os.listdir(tmp_path) == []


def test_wrong_models_and_devices_are_one_line(fails: Callable[..., str], models: Path, photos: Path) -> None:
    out = ["--out", models / "out"]
    tokenizer, generator = models / "tokenizer", models / "generator"
    assert "no model" in fails("reconstruct", models / "none" / "model", photos, *out)
    assert "expected a model folder with config.json" in fails("generate", photos, *out)
    assert "tok1d convert" in fails("generate", models / "weights.pkl", *out)
    assert "expected a tokenizer, this is the model epsilon_llamagen" in fails("reconstruct", generator, photos, *out)
    assert "expected the model folder of a generator" in fails("generate", tokenizer, *out)
    assert "device 'abacus' is not usable here" in fails("generate", generator, *out, "--device", "abacus")
    for device in ("meta", "hpu", "cuda:99"):
        assert f"device {device!r} is not usable" in fails("reconstruct", tokenizer, photos, *out, "--device", device)
    (tokenizer / "model.safetensors").write_bytes(pickle.dumps({"w": 1}))
    assert "a pickle, not safetensors" in fails("reconstruct", tokenizer, photos, *out)
    (tokenizer / "model.safetensors").unlink()
    assert "no such file" in fails("generate", generator, *out)
    assert not (models / "out").exists()


def test_networks_that_are_not_available_are_reported(
    fails: Callable[..., str], models: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    line = fails("evaluate", "generation", models / "generator", photos, "--network", "inception")
    assert "--network: none of the networks asked for is available: inception" in line and "no classifier" not in line


def test_wrong_numbers_and_folders_are_one_line(fails: Callable[..., str], models: Path, photos: Path) -> None:
    out, full, empty = ["--out", models / "out"], models / "full", models / "empty"
    reconstruct, generate = ["reconstruct", models / "tokenizer"], ["generate", models / "generator"]
    assert "--keep: expected numbers in 0..4, got 5" in fails(*reconstruct, photos, *out, "--keep", "1,5")
    assert "such as 1,4, got 'all'" in fails(*reconstruct, photos, *out, "--keep", "all")
    assert "at least one number" in fails(*reconstruct, photos, *out, "--keep", ",")
    assert "--classes: expected numbers in 0..9, got 10" in fails(*generate, *out, "--classes", "3,10")
    assert "--keep: expected 1..3, got 4" in fails(*generate, *out, "--keep", "4")
    encode = ["encode", models / "tokenizer"]
    assert "num_tokens: expected 1..4" in fails(*encode, photos, *out, "--num-tokens", "5", "--on-broken", "skip")
    empty.mkdir()
    assert "no images found" in fails(*encode, empty, *out)
    assert "no such folder" in fails(*encode, models / "nowhere", *out)
    assert "no such folder" in fails(*reconstruct, models / "nowhere.png", *out)
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for command in ([*reconstruct, photos], generate):
        assert "not empty; pass --overwrite" in fails(*command, "--out", full)
        assert "expected a folder to write into" in fails(*command, "--out", full / "thesis.txt")
    assert "no classifier is bundled" in fails("evaluate", "generation", models / "generator", photos)
    assert files(full) == ["thesis.txt"] and not (models / "out").exists()


def test_a_generator_without_classes_or_guidance_reports_it(
    ok: Callable[..., str], fails: Callable[..., str], models: Path, tiny: Tiny
) -> None:
    card = store.load(models / "generator").card
    for name, change in (("blind", ["model.num_classes=0"]), ("strict", ["model.class_dropout=0"])):
        model = random_model(tiny("generator", tokenizer="x"), change)
        store.save_model(model, models / name, card)
    out = ["--out", models / "out"]
    assert "this generator has no classes" in fails("generate", models / "blind", *out, "--classes", "3")
    assert "pass 1" in fails("generate", models / "strict", *out)
    ok("generate", models / "blind", *out, "--num", 2)
    assert files(models / "out") == ["image000.png", "image001.png", "overview.png"]
    ok("generate", models / "strict", *out, "--num", 1, "--classes", "4", "--guidance", 1, "--overwrite")
    assert "class004_000.png" in files(models / "out")


def test_recipes_and_their_fields_are_listed(ok: Callable[..., str], tiny: Tiny) -> None:
    assert "fashion_mnist/judge\n  about " in ok("recipes", "--full")
    assert re.search("^emoji-smap +tokenizer ", ok("models"), re.M)
    some = ok("recipes", "fashion_mnist")
    assert "fashion_mnist/judge  " in some and "captioned256" not in some
    resolved = ok("config", tiny("tokenizer"), "train.lr=0.25")
    assert "lr: 0.25" in resolved and "num_tokens: 4" in resolved
    fields = ok("config", tiny("tokenizer"), "--fields")
    assert "train.lr=0.001\n    highest learning rate of AdamW (float > 0; default required)" in fields


def test_pictures_of_ones_own(
    ok: Callable[..., str], fails: Callable[..., str], models: Path, photos: Path, capsys
) -> None:
    command = ["reconstruct", models / "tokenizer", photos, "--out", models / "out", "--keep", "0,4", "--num", 9]
    assert re.search(r"broken\.png: broken image: .*on_broken=skip", fails(*command, "--on-broken", "stop"))
    assert not (models / "out").exists()
    assert cli.run([str(part) for part in command]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "skipped 1 broken images of 4" and "broken.png: " in err
    assert re.search(r"keep    4 of 4: PSNR \d+\.\d\d dB \(mean of 3 images\)", out)
    pictures = [f"image{i:03d}_{kind}.png" for i in range(3) for kind in ("keep000", "keep004", "original")]
    assert files(models / "out") == [*pictures, "overview.png"]
    assert Image.open(models / "out" / "image002_keep004.png").size == (28, 28)
    width, height = Image.open(models / "out" / "overview.png").size
    assert height == 3 * (3 * 28 + 2 * 2) and width > 3 * (3 * 28 + 2 * 2)  # with the labels of the rows
    ok("reconstruct", models / "tokenizer", photos / "1.png", "--out", models / "one", "--keep", 4)
    assert files(models / "one") == ["image000_keep004.png", "image000_original.png", "overview.png"]
    kept = np.asarray(Image.open(models / "one" / "image000_original.png"))
    gray = np.asarray(Image.open(photos / "1.png").convert("L"))
    assert np.abs(kept.astype(int) - gray).max() <= 1


def test_the_same_seed_generates_the_same_pictures(ok: Callable[..., str], models: Path) -> None:
    def generated(name: str, seed: int) -> bytes:
        ok("generate", models / "generator", "--out", models / name, "--seed", seed, "--num", 2, "--classes", "1,2")
        return (models / name / "overview.png").read_bytes()

    assert generated("a", 0) == generated("b", 0) != generated("c", 1)


def test_the_whole_chain(
    ok: Callable[..., str], fails: Callable[..., str], tiny: Tiny, tmp_path, fashion, bundled_classifier
) -> None:
    tokenizer_run, generator_run, cache = tmp_path / "tokenizer", tmp_path / "generator", tmp_path / "cache"
    train = ["train", tiny("tokenizer", out=tokenizer_run)]
    said = ok(*train, "--minutes", 0)
    assert f"stopped; the same command resumes from the checkpoint in {tokenizer_run / 'checkpoints'}" in said
    assert f"model: {tokenizer_run / 'model'}" in ok(*train)
    assert files(tokenizer_run) == [
        "checkpoints/step-00000001.pt", "checkpoints/step-00000006.pt", "config.yaml", "log.jsonl", "model/README.md",
        "model/config.json", "model/model.safetensors", "report.json", "samples/step-00000006.png",
    ]  # fmt: skip
    card = store.load(tokenizer_run / "model").card
    assert (card.trained["steps"], card.data, card.weights, card.seed) == (6, "fashion_mnist", "ema", 0)
    assert card.fingerprint == fingerprint(store.load(tokenizer_run / "model")) and card.commit
    names = {(record.name, record.keep) for record in card.records}
    assert {("psnr", 1), ("psnr", 4), ("judge_accuracy", 2), ("fd@fashion-mnist-cnn", 4)} <= names
    assert "finished run; pass --more N" in fails(*train)

    assert "64 rows of 4 tokens" in ok("encode", tokenizer_run / "model", "fashion_mnist", "--out", cache)
    assert files(cache) == ["index.json", "shard-00000.safetensors"]
    assert "already holds a finished token cache" in fails(
        "encode", tokenizer_run / "model", "fashion_mnist", "--out", cache
    )
    ok("train", tiny("generator", tokenizer=tokenizer_run / "model", cache=cache, out=generator_run))
    assert {"model/config.json", "samples/step-00000006.png", "report.json"} <= set(files(generator_run))
    assert {entry["name"] for entry in json.loads((generator_run / "report.json").read_text())} == {
        "label_agreement",
        "fd@fashion-mnist-cnn",
        "baseline:training-images:fd@fashion-mnist-cnn",
    }

    ok("reconstruct", tokenizer_run / "model", "fashion_mnist", "--out", tmp_path / "r", "--num", 2)
    assert "image001_keep002.png" in files(tmp_path / "r") and "image002_original.png" not in files(tmp_path / "r")
    said = ok("generate", generator_run / "model", "--classes", "3,7", "--num", 2, "--out", tmp_path / "g")
    assert str(tmp_path / "g" / "overview.png") in said
    pictures = [f"class{label:03d}_{i:03d}.png" for label in (3, 7) for i in range(2)]
    assert files(tmp_path / "g") == [*pictures, "overview.png"]
    for what, model, num in (
        ("reconstruction", tokenizer_run, "--num"),
        ("generation", generator_run, "--num-samples"),
    ):
        record = tmp_path / f"{what}.json"
        said = ok("evaluate", what, model / "model", "fashion_mnist", num, 20, "--out", record, "--keep", "1,2")
        assert f"records: {record}" in said and {entry["keep"] for entry in json.loads(record.read_text())} >= {1, 2}
    about = {"model": str(tokenizer_run / "model"), "data": "fashion_mnist", "num": 8, "seed": 3, "times": 2}
    asked = ("fashion_mnist", "--num", 8, "--seed", 3, "--times", 2, "--batch-size", 5)
    for name, keep in (("prefix", "0,1"), ("increments", "all")):
        ok("analyze", name, tokenizer_run / "model", *asked, "--keep", keep, "--out", tmp_path / name)
        assert files(tmp_path / name) == [f"{name}.json", f"{name}.png"]
        (record,) = json.loads((tmp_path / name / f"{name}.json").read_text(encoding="utf-8"))["models"]
        assert {key: record[key] for key in about} == about and "first 8 of" in record["reference"]
        assert record["weights_hash"] == fingerprint(store.load(tokenizer_run / "model"))
    length = store.load(tokenizer_run / "model").spec.length
    assert record["keep"] == list(range(1, length + 1)) and len(record["losses"]) == length + 1
    (record,) = json.loads((tmp_path / "prefix" / "prefix.json").read_text(encoding="utf-8"))["models"]
    assert len(record["points"]) == 3
    ok("export", tokenizer_run, "--out", tmp_path / "given")
    given = store.load(tmp_path / "given")
    assert given.card.weights == "ema, stored as float16" and given.card.fingerprint == fingerprint(given)
    assert temporary_files(tmp_path) == []

    ok("train", tiny("tokenizer", out=tokenizer_run, seed=5), "--overwrite")
    assert store.load(tokenizer_run / "model").card.seed == 5
    assert "trained on a tokenizer" in fails("generate", generator_run / "model", "--out", tmp_path / "x")


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(
    ok: Callable[..., str], tiny: Tiny, tmp_path: Path, fashion: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = loop.Run.train_step

    def pressed(self: loop.Run, batches: list[Any]) -> Any:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return train_step(self, batches)

    command = ["train", tiny("classifier", out=tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "train_step", pressed)
        assert cli.run(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; the same command resumes"
    assert files(tmp_path / "run") == ["checkpoints/step-00000003.pt", "config.yaml", "log.jsonl"]
    ok(*command)
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [2, 4, 6]


def test_ctrl_c_elsewhere_promises_nothing(models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "load_pair", pressed)
    assert cli.run(["generate", str(models / "generator"), "--out", str(models / "out")]) == 130
    assert capsys.readouterr().err == "error: interrupted; run the command again with --overwrite\n"
    for words, again in (
        ([], "run the command again"),
        (["--out", str(models / "e.json")], "the same command resumes"),
    ):
        assert cli.run(["evaluate", "generation", str(models / "generator"), *words]) == 130
        assert capsys.readouterr().err == f"error: interrupted; {again}\n"


@pytest.mark.parametrize(
    ("override", "failure", "message"),
    [
        ("train.lr=1e38", None, "loss or gradient is not finite"),
        ("train.save_every=2", OSError(28, "No space left on device"), r"step-00000002\.pt: No space left on device"),
    ],
)
def test_a_run_that_fails_ends_in_one_line_of_its_own(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, override, failure, message
) -> None:
    def full(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    if failure is not None:
        monkeypatch.setattr(torch, "save", full)
    assert cli.run(["train", tiny("tokenizer", out=tmp_path / "run"), override, "train.warmup=0", "train.clip=0"]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and re.search(message, err.splitlines()[-1])
    assert err.splitlines()[-1].startswith("error: ")  # below the progress bar, not at its end
    assert "Traceback" not in err and temporary_files(tmp_path) == []
