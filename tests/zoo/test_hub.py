"""from_pretrained(save_pretrained(x)) is x, on disk and on a hub; a changed encoder is noticed on loading."""

import json
import shutil
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

import tok1d
from tok1d.config.load import load_recipe, to_yaml
from tok1d.config.registry import MODELS, build_model_config
from tok1d.errors import InputError, WeightsError
from tok1d.images.framing import framing_of
from tok1d.zoo import selfcheck, store
from tok1d.zoo.card import HUB_DATA, Card
from tok1d.zoo.hub import save_pretrained
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
TOKENIZERS = ("tokenizer", "maetok", "smap", "titok")
# Small configurations of every generator, and of the classifier.
SIZES = {"num_tokens": 4, "num_classes": 3, "dim": 16, "depth": 3, "heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "epsilon_llamagen": {**SIZES, "token_dim": 4, "head": {"width": 16, "depth": 1, "steps": 2}},
    "card": {**SIZES, "token_dim": 4, "head": {"width": 16, "depth": 1, "steps": 2}},
    **{name: {**SIZES, "token_dim": 4, "steps": 2} for name in ("sit", "dit", "lightningdit", "usit")},
    "llamagen": {**SIZES, "vocab_size": 8},
    "maskgit": {**SIZES, "vocab_size": 8, "steps": 2},
    "cnn": {},
    "budget_head": {"num_tokens": 4, "token_dim": 4, "width": 8},
}


def built(recipe: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe).model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_comes_back_bit_for_bit(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    model = built(tiny(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no self-check fails
        back = tok1d.Tokenizer.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert type(back) is type(model) and back.config == model.config and same(model, back)
    x = torch.rand(2, model.config.channels, model.config.image_size, model.config.image_size)
    assert torch.equal(back.encode(x), model.encode(x))
    assert torch.equal(back.decode(back.encode(x)), model.decode(model.encode(x)))
    assert torch.equal(type(model).from_pretrained(tmp_path / "m").encode(x), model.encode(x))
    assert stat.S_IMODE((tmp_path / "m" / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "m" / "config.json").stat().st_mode
    )


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model: Any = store.build_model(build_model_config({"name": name, **OTHERS[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_pretrained(model, tmp_path / "m")
    back = store.load(tmp_path / "m")
    assert type(back) is type(model) and back.config == model.config and same(model, back)
    if hasattr(model, "sample"):
        assert torch.equal(back.sample(num=2), model.sample(num=2))
        assert same(tok1d.Generator.from_pretrained(tmp_path / "m"), model)


def test_every_registered_model_is_tried() -> None:
    tried = {"semanticist", "maetok", "smap", "titok", "titok_legacy", *OTHERS}  # legacy: tests/zoo/test_adapter_titok
    assert tried >= {name for name, entry in MODELS.items() if str(entry.model).startswith("tok1d.")}


@pytest.mark.parametrize("name", [each.name for each in tok1d.models() if each.kind in ("tokenizer", "generator")])
def test_bundled_models_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = tok1d.load(name)
    model.save_pretrained(tmp_path / "m")
    back = (tok1d.Generator if hasattr(model, "sample") else tok1d.Tokenizer).from_pretrained(tmp_path / "m")
    assert same(model, back) and back.card == model.card and framing_of(back) == framing_of(model)


def test_another_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a tokenizer, got a EpsilonLlamaGen"):
        tok1d.Tokenizer.from_pretrained("fashion-mnist-epsilon-llamagen")
    with pytest.raises(InputError, match="expected a Generator, got a MAETok"):
        tok1d.Generator.from_pretrained("fashion-mnist-maetok")


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> Path:
    """Folders a/tokenizer and a/generator, whose card names the other by a relative path."""
    tokenizer, generator = built(tiny("tokenizer")), built(tiny("generator", tokenizer="x"))
    store.save_model(tokenizer, tmp_path / "a" / "tokenizer", Card())
    card = Card(tokenizer="../tokenizer", tokenizer_fingerprint=fingerprint(tokenizer))
    store.save_model(generator, tmp_path / "a" / "generator", card)
    return tmp_path / "a"


def test_a_generator_takes_its_tokenizer_along(pair: Path, tmp_path: Path) -> None:
    generator, _ = tok1d.load_pair(pair / "generator")
    expected = generator.generate(3, num=2).images
    generator.save_pretrained(tmp_path / "given")
    shutil.rmtree(pair)
    shutil.move(tmp_path / "given", tmp_path / "moved")
    moved, _ = tok1d.load_pair(tmp_path / "moved")
    assert moved.card.tokenizer == "tokenizer" and torch.equal(moved.generate(3, num=2).images, expected)
    alone = tok1d.Generator.from_pretrained(tmp_path / "moved")
    assert torch.equal(alone.generate(3, num=2).images, expected)
    alone.save_pretrained(tmp_path / "again")  # and once more, from there
    assert torch.equal(tok1d.load_pair(tmp_path / "again")[0].generate(3, num=2).images, expected)


def test_a_lost_tokenizer_can_be_named(pair: Path, tmp_path: Path) -> None:
    shutil.move(pair / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=r"pass its tokenizer with --tokenizer MODEL \(in Python tokenizer=\)"):
        tok1d.load_pair(pair / "generator")
    generator, _ = tok1d.load_pair(pair / "generator", tokenizer=tmp_path / "elsewhere")
    assert generator.generate(3, num=1).images.shape[0] == 1
    with pytest.raises(WeightsError, match="trained on a tokenizer with fingerprint"):
        tok1d.load_pair(pair / "generator", tokenizer="fashion-mnist-semanticist")
    with pytest.warns(UserWarning, match="names no tokenizer"):
        tok1d.load(pair / "generator").save_pretrained(tmp_path / "poor")
    with pytest.raises(WeightsError, match="names no tokenizer for its tokens; pass it with --tokenizer"):
        tok1d.load_pair(tmp_path / "poor")


class FakeHub:
    """The parts of huggingface_hub that are used, on a folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.online = place, True

    def HfApi(self, token: str | None = None) -> "FakeHub":
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, revision: str | None) -> str:
        if not self.online:
            raise ConnectionError("no network")
        shutil.copytree(folder_path, self.place / repo_id / (revision or "main"), dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(
        self, name: str, *, allow_patterns: list[str], revision: str | None, cache_dir: Any, local_files_only: bool
    ) -> str:
        cached = Path(cache_dir or self.place / "cache") / name.replace("/", "--") / (revision or "main")
        if not cached.exists():
            if local_files_only or not self.online:
                raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
            shutil.copytree(self.place / name / (revision or "main"), cached)
        return str(cached)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake.HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_hub_repository_goes_round(hub: FakeHub, pair: Path, tmp_path: Path) -> None:
    generator, tokenizer = tok1d.load_pair(pair / "generator")
    assert tokenizer.push_to_hub("me/tokens") == "https://huggingface.co/me/tokens/commit/1"
    generator.push_to_hub("me/gen", revision="v1", licence="cc-by-4.0")
    shutil.rmtree(pair)
    expected = generator.generate(3, num=1).images
    back = tok1d.Tokenizer.from_pretrained("me/tokens", cache_dir=tmp_path / "cache")
    assert same(back, tokenizer) and (tmp_path / "cache").is_dir()
    found = tok1d.Generator.from_pretrained("me/gen", revision="v1")
    assert torch.equal(found.generate(3, num=1).images, expected) and found.card.licence == "cc-by-4.0"
    # Offline, what was downloaded is found, and nothing else.
    hub.online = False
    assert same(tok1d.Generator.from_pretrained("me/gen", revision="v1", local_files_only=True), generator)
    with pytest.raises(WeightsError, match=r"none from the hub \(not in the cache\)"):
        tok1d.Tokenizer.from_pretrained("me/other", local_files_only=True)
    with pytest.raises(WeightsError, match="cannot upload to the hub: no network"):
        tokenizer.push_to_hub("me/tokens")


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    tok1d.load("fashion-mnist-maetok").save_pretrained(tmp_path / "m")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.library_name == "tok1d" and card.data.license == "apache-2.0"
    assert card.data.tags == ["tok1d", "image-tokenizer", "maetok"]
    assert card.data.datasets == [HUB_DATA["fashion_mnist"]]
    assert "psnr" in card.data.metrics
    found = {(r.metric_type, r.metric_args.get("keep")): r.metric_value for r in card.data.eval_results or []}
    records = tok1d.load("fashion-mnist-maetok").card.records
    assert found == {(r.name, r.keep): r.value for r in records if r.value is not None and ":" not in r.name}
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in card.data.eval_results or []} == {
        ("image-feature-extraction", "fashion_mnist", "test")
    }
    text = card.text
    assert "tok1d.load(" in text and "28x28 pixels, 1 channel in [0, 1], centre crop, white behind transparency" in text


def test_weights_of_own_images_state_no_licence(tiny: Tiny, tmp_path: Path) -> None:
    model = built(tiny("maetok"))
    recipe = to_yaml(load_recipe(tiny("maetok")))
    model.card = Card(recipe=recipe, data="folder")
    model.save_pretrained(tmp_path / "m")
    assert ModelCard.load(tmp_path / "m" / "README.md").data.license is None
    model.save_pretrained(tmp_path / "n", licence="My own terms")
    card = ModelCard.load(tmp_path / "n" / "README.md")
    assert card.data.license == "other" and card.data.license_name == "My own terms"


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", ["tokenizer", "titok"])
def test_a_changed_encoder_is_noticed(tiny: Tiny, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tiny(kind))
    folder = model.save_pretrained(tmp_path / "m")
    changed(folder, lambda content: content["check"]["versions"].update(torch="1.0"))
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match=r"self-check: .*torch 1\.0 \(here "):
        encode = type(model).encode_images
        patch.setattr(type(model), "encode_images", lambda self, x, cond: encode(self, x.flip(-1), cond))
        store.load(folder)
    changed(folder, lambda content: content.pop("check"))  # a folder of an earlier version
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.load(folder)
    changed(folder, lambda content: content.update(check={"tokens": "x"}))
    with pytest.raises(WeightsError, match=r"config\.json: check: expected what a saved model has there"):
        store.load(folder)


def test_the_fixed_image_is_fixed() -> None:
    image = selfcheck.fixed_image(4, 3)
    assert image.shape == (1, 3, 4, 4) and image.min() >= 0 and image.max() <= 1
    assert (image[0, 0] * 510).round().int().tolist() == [
        [0, 13, 26, 39],
        [262, 20, 33, 47],
        [269, 282, 41, 55],
        [276, 290, 304, 63],
    ]


def test_a_device_that_is_not_there() -> None:
    assert next(tok1d.load("fashion-mnist-maetok", device="auto").parameters()).device.type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="device 'nowhere' is not usable here"):
        tok1d.load("fashion-mnist-maetok", device="nowhere")
