"""Models on disk: saved models are restored exactly, and anything else is rejected."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import tok1d
from tok1d.config.load import load_recipe
from tok1d.errors import InputError, WeightsError
from tok1d.zoo import store
from tok1d.zoo.adapters.settings import Setting
from tok1d.zoo.card import Card
from tok1d.zoo.convert import convert, parse_options
from tok1d.zoo.record import Record
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
KINDS = {"tokenizer": "semanticist", "generator": "epsilon_llamagen", "classifier": "cnn"}


@pytest.fixture
def build(tiny: Tiny) -> Callable[..., nn.Module]:
    def build(kind: str = "classifier", seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = store.build_model(load_recipe(tiny(kind, **({"tokenizer": "x"} if kind == "generator" else {}))).model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)  # no zeros: all weights differ
        return model

    return build


@pytest.fixture
def folder(build, tmp_path: Path) -> Path:
    store.save_model(build(), tmp_path / "model", Card(licence="mine"))
    return tmp_path / "model"


def refused(match: str, name: object, call: Callable[..., object] = store.load) -> str:
    with pytest.raises(WeightsError, match=match) as caught:
        call(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, **(tolerance or {"atol": 0, "rtol": 0}))


def copies(path: Path) -> dict[str, torch.Tensor]:
    """Copies of a file's tensors, since the file is about to change."""
    return {name: value.clone() for name, value in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_comes_back(build, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = build(kind).train()
    store.save_model(model, tmp_path / "a" / "model", Card(seed=4), dtype=dtype)
    back = tok1d.load(tmp_path / "a" / "model")
    assert type(back) is type(model) and back.config == model.config and back.config.name == KINDS[kind]
    assert not back.training and all(p.dtype == torch.float32 for p in back.parameters())
    assert back.card == Card(seed=4) and back.folder == (tmp_path / "a" / "model").resolve()
    assert_equal(model, back, **({} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 2**-11}))
    stored = load_file(tmp_path / "a" / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    assert sorted(os.listdir(tmp_path / "a" / "model")) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(tmp_path / "a") == ["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_depends_on_every_weight(build, kind: str) -> None:
    model = build(kind)
    whole = fingerprint(model)
    assert len(whole) == 12 and int(whole, 16) >= 0
    assert fingerprint(build(kind)) == whole == fingerprint(model.eval())
    fingerprints = {whole}
    for value in model.state_dict().values():
        kept = value.flatten()[-1].clone()
        value.view(-1)[-1] = torch.nextafter(kept, torch.tensor(torch.inf))
        fingerprints.add(fingerprint(model))
        value.view(-1)[-1] = kept
    assert len(fingerprints) == 1 + len(model.state_dict()) and fingerprint(model) == whole


def test_the_fingerprint_is_a_known_value() -> None:
    # Caches and generators on disk name their tokenizer by it: it must not change with the code.
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.5]]))
        model.bias.fill_(0.125)
    assert fingerprint(model) == "d591b926d820"


def test_the_fingerprint_outlives_storage_as_float16(build, tmp_path: Path) -> None:
    model = build()
    store.save_model(model, tmp_path / "rounded", Card(), dtype=torch.float16)
    assert fingerprint(store.load(tmp_path / "rounded")) != fingerprint(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    store.save_model(model, tmp_path / "exact", Card(), dtype=torch.float16)
    assert fingerprint(store.load(tmp_path / "exact")) == fingerprint(model)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(r"model\.safetensors: no such file", folder)
    (folder / "config.json").unlink()
    refused(r"expected a model folder with config\.json", folder)
    refused("no model .*expected a model folder", tmp_path / "none")
    refused("go through 'tok1d convert'", tmp_path / "release.pt")


def test_an_unknown_bundled_name_lists_the_known_ones(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "BUNDLED", tmp_path)
    assert "one of model" in refused("no model 'modle'", "modle")
    assert store.load("model").card.licence == "mine"
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "empty")
    assert "none bundled" in refused("no model 'modle'", "modle")


def test_a_hub_name_that_leads_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(r"no model folder 'nobody/nothing', .*\(no route to host\)", "nobody/nothing")


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_are_named(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(r"model\.safetensors: truncated or corrupt", folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip", "legacy"])
def test_a_pickle_is_never_opened(folder: Path, protocol: int | str) -> None:
    path = folder / "model.safetensors"
    state = copies(path)
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({name: value.tolist() for name, value in state.items()}, protocol))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=protocol == "zip")
    refused(r"model\.safetensors: a pickle, not safetensors.*tok1d convert", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"1 weights missing for this model: head\.bias"),
        (lambda s: [s.pop(name) for name in sorted(s)[:5]], "5 weights missing for this model: .* and 2 more"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 weights unexpected for this model: extra"),
        (lambda s: s.update({"head.bias": torch.zeros(11)}), r"1 weights of another shape for this model: head\.bias"),
    ],
)
def test_weights_of_another_model_are_named(folder: Path, change: Callable[[dict], object], message: str) -> None:
    state = copies(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    assert str(folder) in refused(message, folder)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '"text"', '{"architectures": ["ViT"]}', '{"format": 1}', '{"format": 1, "model": {}}',
        '{"format": 1, "model": 3, "card": {}}', '{"format": 1, "model": {"name": "vit"}, "card": {}}',
        '{"format": 1, "model": {"name": "cnn", "width": 6}, "card": {}}',
        '{"format": 1, "model": {"name": "cnn", "wdth": 8}, "card": {}}',
        '{"format": 1, "model": {"name": "cnn"}, "card": null}', '{"format": 1, "model": {"name": "cnn"}, "card": []}',
        '{"format": 1, "model": {"name": "cnn"}, "card": {"colour": 1}}',
        '{"format": 1, "model": {"name": "cnn"}, "card": {"records": ["x"]}}',
        '{"format": 1, "model": {"name": "cnn"}, "card": {"records": [{"name": "psnr"}]}}', "\x00\xff",
    ],
)  # fmt: skip
def test_a_foreign_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert str(folder / "config.json") in refused(r"config\.json: ", folder)


def test_a_config_of_a_later_format_is_reported(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "format": 2}))
    refused("written in format 2, this tok1d reads format 1", folder)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_safetensors(state: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("safetensors.torch.save_file", full_for_safetensors),
        ("pathlib.Path.write_text", full_disk),
        ("pathlib.Path.mkdir", full_disk),
        ("os.replace", full_disk),
    ],
)
def test_a_failed_save_keeps_what_was_there(build, tmp_path: Path, monkeypatch, there, where, failure) -> None:
    first, second = build(seed=1), build(seed=2)
    if there:
        store.save_model(first, tmp_path / "model", Card())
    with monkeypatch.context() as patch:
        patch.setattr(where, failure)
        refused(
            "cannot write the model folder .*No space left",
            tmp_path / "model",
            lambda f: store.save_model(second, f, Card()),
        )
    assert os.listdir(tmp_path) == (["model"] if there else [])
    if there:
        assert_equal(first, store.load(tmp_path / "model"))
    store.save_model(second, tmp_path / "model", Card())
    assert_equal(second, store.load(tmp_path / "model"))
    assert os.listdir(tmp_path) == ["model"]


def test_the_old_model_comes_back_if_the_new_one_cannot_take_its_name(build, tmp_path: Path, monkeypatch) -> None:
    first, replace_file, calls = build(seed=1), os.replace, []
    store.save_model(first, tmp_path / "model", Card())

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            full_disk()
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    refused("cannot write", tmp_path / "model", lambda f: store.save_model(build(seed=2), f, Card()))
    assert len(calls) == 3 and os.listdir(tmp_path) == ["model"]
    assert_equal(first, store.load(tmp_path / "model"))


def test_only_models_and_empty_folders_are_replaced(build, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("thesis", "file"):
        refused("expected a model folder or no folder", tmp_path / name, lambda f: store.save_model(build(), f, Card()))
    assert (tmp_path / "thesis" / "chapter.tex").exists() and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    store.save_model(build(), Path("."), Card())
    assert_equal(build(), store.load(tmp_path / "empty"))


@pytest.fixture
def pair(build, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a generator and, beside it, the tokenizer it names."""
    tokenizer = build("tokenizer")
    store.save_model(tokenizer, tmp_path / "tokenizer", Card(generator="../generator"))
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    store.save_model(build("generator"), tmp_path / "generator", card)
    return tmp_path / "generator", tmp_path / "tokenizer"


def test_a_pair_is_found_from_either_side_and_after_a_move(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    for folder in (*pair, moved / "generator", moved / "tokenizer"):
        generator, tokenizer = tok1d.load_pair(folder)
        assert (generator.config.name, tokenizer.config.name) == ("epsilon_llamagen", "semanticist")
        assert tokenizer.folder.parent == folder.parent


def test_a_pair_that_does_not_fit_is_refused_by_fingerprint(pair: tuple[Path, Path], build) -> None:
    other = build("tokenizer", seed=7)
    store.save_model(other, pair[1], Card())
    message = refused("trained on a tokenizer", pair[0], store.load_pair)
    assert fingerprint(other) in message and fingerprint(build("tokenizer")) in message
    refused("expected the model folder of a generator, got a semanticist", pair[1], store.load_pair)
    shutil.rmtree(pair[1])
    refused(r"no model '\.\./tokenizer'", pair[0], store.load_pair)


def test_a_generator_without_a_named_tokenizer_is_one_line(pair: tuple[Path, Path], build) -> None:
    store.save_model(build("generator"), pair[0], Card())  # as converted weights are
    refused(r"pass it with --tokenizer MODEL", pair[0], store.load_pair)
    store.save_model(build("generator"), pair[0], Card(tokenizer="../tokenizer"))
    assert store.load_pair(pair[0])[1].config.name == "semanticist"


def test_a_card_round_trips_and_reads_well(build, tmp_path: Path) -> None:
    decoding = {"steps": 25}
    record = Record(name="psnr", value=19.5, unit="dB", num_images=10, keep=4, decoding=decoding, seed=3, weights="ema")
    missing = Record(name="fid", value=None, num_images=0, network="inception", note="no weights here")
    card = Card(
        recipe="kind: tokenizer\n", recipe_name="x/y", seed=3, commit="abc", data="fashion_mnist",
        data_fingerprint="d" * 16, trained={"steps": 5, "device": "cpu"}, weights="ema, stored as float16",
        fingerprint="f" * 12, tokenizer="../t", tokenizer_fingerprint="e" * 12, records=[record, missing],
    )  # fmt: skip
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    store.save_model(build(), tmp_path / "model", card)
    assert store.load(tmp_path / "model").card == card
    text = (tmp_path / "model" / "README.md").read_text()
    for expected in (
        "# cnn",
        "| commit | abc |",
        "| psnr | 19.5 dB | 10 | 4 |",
        "| fid | unavailable |",
        "kind: tokenizer",
    ):
        assert expected in text
    assert "| records" not in text and replace(card, records=[]).to_markdown("cnn").count("## Measured") == 0


def test_conversion_reports_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format 'mystery': expected one of semanticist-tokenizer, semanticist-ar"):
        convert("mystery", tmp_path / "x.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def function(
        path: Path,
        *,
        heads: Annotated[int, Setting("heads")] = 1,
        name: Annotated[str | None, Setting("name")] = "",
        weights: object = None,
    ) -> nn.Module:
        raise AssertionError

    assert parse_options(function, ["heads=12", "name=a=b"]) == {"heads": 12, "name": "a=b"}
    for option in ("head=3", "heads", "=3", "path=x"):
        with pytest.raises(InputError, match="expected key=value with a key of heads, name"):
            parse_options(function, [option])
