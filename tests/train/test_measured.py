"""What a run measures when it ends: FID of reconstructions and samples, guided and not, or a line before it starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, recipe_names
from tok1d.errors import ConfigError, DataError, WeightsError
from tok1d.evaluate import feature_networks, of_recipe
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.evaluate.reference import load_reference
from tok1d.train import run
from tok1d.train.log import read_log
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import Record, read_records

Tiny = Callable[..., str]


class StandIn(FrozenNetwork):
    """A network in place of Inception, of its interface: four pooled numbers and three logits."""

    def __init__(self, device: Any, pad: int) -> None:
        super().__init__("inception", "00", device=device, dim=4, num_classes=3, pad=pad, eight_bit=True)

    def measure(self, images: Tensor) -> Features:
        x = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return Features(x, logits=x[:, :3] * 10)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of 40 training and 24 test images of ten classes in a folder."""
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 40), ("val", 24)):
        for i in range(count):
            path = tmp_path / "data" / split / f"class{i % 10}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)).save(path)
    return f"data={{name: folder, root: {tmp_path / 'data'}}}"


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, where weights of Inception would be."""
    monkeypatch.setattr(feature_networks, "open_inception", lambda file, *, device, pad, **_: StandIn(device, pad))
    monkeypatch.setattr(of_recipe, "inception_missing", lambda: "")


def trained(tiny: Tiny, kind: str, out: Path, *changes: str, **keys: Any) -> list[Record]:
    run.train(load_recipe(tiny(kind, **keys), [f"out={out}", *changes]), quiet=True)
    return read_records(out / "report.json")


def value(records: list[Record], name: str, **fields: Any) -> Record:
    (found,) = (r for r in records if r.name == name and all(getattr(r, k) == v for k, v in fields.items()))
    return found


def test_a_tokenizer_ends_with_rfid_of_the_test_images(
    tiny: Tiny, tmp_path: Path, data: str, inception: None, capsys: pytest.CaptureFixture[str]
) -> None:
    records = trained(tiny, "tokenizer", tmp_path / "run", data, "evaluate.num_images=24", "evaluate.keep=[2]")
    assert all("few images: 24" in line for line in capsys.readouterr().err.splitlines())
    for keep in (2, 4):
        rfid = value(records, "rfid", keep=keep)
        assert rfid.value is not None and rfid.value > 0 and rfid.num_images == 24 and rfid.network == "inception@00"
        assert rfid.reference is not None and rfid.reference.count == 24
        assert value(records, "inception_score", keep=keep).value is not None
        assert value(records, "psnr", keep=keep).value is not None
    again = tmp_path / "again.json"
    words = ["reconstruction", tmp_path / "run" / "model", tmp_path / "data", "--network", "inception", "--steps", 2]
    assert cli.run(["evaluate", *map(str, words), "--keep", "4", "--metrics", "fd", "--out", str(again)]) == 0
    (measured,) = (record for record in read_records(again) if record.name == "rfid")
    assert measured.value == pytest.approx(value(records, "rfid", keep=4).value, rel=1e-4), "as by tok1d evaluate"


@pytest.fixture
def tokenizer(tiny: Tiny, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(tiny("tokenizer")).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # its images depend on the tokens
    store.save_model(model, tmp_path / "tokenizer", Card())
    return tmp_path / "tokenizer"


def test_a_generator_ends_with_gfid_and_score_with_guidance_and_without(
    tiny: Tiny, tmp_path: Path, data: str, inception: None, tokenizer: Path
) -> None:
    guided = [data, "evaluate.guidance=3", "evaluate.num_samples=16", "model.class_dropout=0.1", "train.lr=0.03"]
    out = tmp_path / "both"
    records = trained(tiny, "generator", out, *guided, "train.evaluate_every=6", tokenizer=tokenizer)
    found = {}
    for scale in (3.0, 1.0):
        for name in ("gfid", "inception_score"):
            (record,) = (r for r in records if r.name == name and (r.sampling or {}).get("guidance") == scale)
            assert record.value is not None and record.num_images == 16
            found[name, scale] = record
        reference = found["gfid", scale].reference
        assert reference is not None and (reference.of, reference.count) == ("train", 40), "the training images"
    assert found["gfid", 3.0].value != found["gfid", 1.0].value
    last = read_log(out / "log.jsonl")[-2]
    assert last["ema_gfid@3"] == found["gfid", 3.0].value and last["ema_gfid@3_unguided"] == found["gfid", 1.0].value
    only = trained(tiny, "generator", tmp_path / "guided", *guided, "evaluate.unguided=false", tokenizer=tokenizer)
    assert [r.value for r in only if r.name == "gfid"] == [found["gfid", 3.0].value]
    plain = trained(tiny, "generator", tmp_path / "plain", *guided, "evaluate.guidance=1", tokenizer=tokenizer)
    assert [r.value for r in plain if r.name == "gfid"] == [found["gfid", 1.0].value]


def test_a_reference_file_replaces_the_training_images(
    tiny: Tiny, tmp_path: Path, data: str, inception: None, tokenizer: Path
) -> None:
    file = tmp_path / "reference.npz"
    words = ["reference", tmp_path / "data", "--split", "train", "--size", 28, "--channels", 1, "--out", file]
    assert cli.run([str(word) for word in words]) == 0
    changes = [data, "evaluate.num_samples=16", "evaluate.unguided=false"]
    (own,) = (r for r in trained(tiny, "generator", tmp_path / "a", *changes, tokenizer=tokenizer) if r.name == "gfid")
    records = trained(tiny, "generator", tmp_path / "b", *changes, f"evaluate.reference={file}", tokenizer=tokenizer)
    assert (
        value(records, "gfid").value == pytest.approx(own.value, rel=1e-6) and load_reference(file).stated.count == 40
    )
    missing = load_recipe(
        tiny("generator", tokenizer=tokenizer), [data, f"out={tmp_path / 'c'}", "evaluate.reference=none.npz"]
    )
    with pytest.raises((DataError, WeightsError, ConfigError), match=r"none\.npz"):
        run.train(missing, quiet=True)
    assert not (tmp_path / "c").exists()


def test_another_network_is_named_in_the_recipe(tiny: Tiny, tmp_path: Path, data: str) -> None:
    store.save_model(store.build_model(load_recipe(tiny("classifier")).model), tmp_path / "cnn", Card())
    records = trained(tiny, "tokenizer", tmp_path / "run", data, f"evaluate.network=model:{tmp_path / 'cnn'}")
    assert {"psnr", "fd@cnn", "score@cnn"} <= {record.name for record in records if record.value is not None}
    changes = [data, f"out={tmp_path / 'x'}", f"evaluate.network=model:{tmp_path / 'no'}"]
    with pytest.raises(ConfigError, match=r"^evaluate\.network: "):
        run.train(load_recipe(tiny("tokenizer"), changes), quiet=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("kind", "what"), [("tokenizer", "rFID"), ("generator", "gFID and Inception Score")])
def test_one_line_before_the_training_names_what_is_not_measured(
    tiny: Tiny,
    tmp_path: Path,
    data: str,
    tokenizer: Path,
    kind: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    keys = {"tokenizer": tokenizer} if kind == "generator" else {}
    words = ["train", tiny(kind, **keys), data, f"out={tmp_path / 'run'}"]
    expected = f"evaluation at the end: {what} will not be measured (inception: "
    assert cli.run([*words, "--dry-run"]) == 0
    assert [expected in line for line in capsys.readouterr().out.splitlines()].count(True) == 1
    assert cli.run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "will not be measured" in line)
    assert line.startswith(expected) and line.endswith("else set evaluate.network=inception:FILE")
    name = "rfid" if kind == "tokenizer" else "gfid"
    unmeasured = [record for record in read_records(tmp_path / "run" / "report.json") if record.name == name]
    assert unmeasured and all(record.value is None and record.note.startswith("inception: ") for record in unmeasured)


def test_every_imagenet_recipe_would_measure_its_fid(inception: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance, generators measure both; none has a classifier of Fashion-MNIST."""
    names = [name for name in recipe_names() if name.startswith(("imagenet", "captioned"))]
    assert len(names) > 90
    for name in names:
        recipe = load_recipe(name, ["data.root=data"])
        (network,) = of_recipe._measures(recipe, "cpu").networks
        assert network.name == "inception" and not of_recipe.uses_bundled(recipe), name
        assert recipe.evaluate.unguided is None, name


def test_a_checkpoint_of_another_recipe_is_refused(tiny: Tiny, tmp_path: Path, fashion: None, capsys: Any) -> None:
    """Where config.yaml agrees: copied from another run."""
    words = ["train", tiny("tokenizer"), "train.save_every=2"]
    for name, change in (("a", "train.lr=2e-3"), ("b", "train.log_every=3")):
        assert cli.run([*words, f"out={tmp_path / name}", change]) == 0
    (tmp_path / "b" / "report.json").unlink()
    for path in (tmp_path / "b" / "checkpoints").iterdir():
        path.unlink()
    early = tmp_path / "a" / "checkpoints" / "step-00000004.pt"
    (tmp_path / "b" / "checkpoints" / early.name).write_bytes(early.read_bytes())
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.run([*words, f"out={tmp_path / 'b'}", "train.log_every=3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train.lr=0.002, this recipe has train.lr=0.001" in error, error
    assert {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()} == before
    assert cli.run([*words, f"out={tmp_path / 'a'}", "train.lr=2e-3", "train.log_every=1"]) == 2  # finished
    (tmp_path / "a" / "report.json").unlink()
    assert cli.run([*words, f"out={tmp_path / 'a'}", "train.lr=2e-3", "train.log_every=1"]) == 0


def test_keep_every_keeps_what_a_paper_needs(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    out = tmp_path / "run"
    trained(tiny, "tokenizer", out, "train.steps=12", "train.keep_every=4", "train.keep_last=1", "train.save_every=5")
    assert [path.name[5:13] for path in sorted((out / "checkpoints").iterdir())] == ["00000004", "00000008", "00000012"]
