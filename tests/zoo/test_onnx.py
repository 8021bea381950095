"""Export to ONNX: graphs equal PyTorch, prefixes and conditions are inputs, and nothing is half written."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.errors import InputError
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.onnx import export as module
from tok1d.zoo.onnx.describe import described
from tok1d.zoo.onnx.parts import part_of

onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"
BUNDLED = ("fashion-mnist-semanticist", "fashion-mnist-maetok", "fashion-mnist-smap", "emoji-maetok", "emoji-smap")
LIMIT = 1e-4
Exports = Callable[[str], "Export"]


class Export:
    """A model and its exported graphs."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.about = json.loads((folder / "tok1d-onnx.json").read_text(encoding="utf-8"))
        options = {"providers": ["CPUExecutionProvider"]}
        self.sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", **options) for name in self.parts}

    @property
    def parts(self) -> Any:
        return self.about["parts"]

    def __call__(self, part: str, **given: Tensor | None) -> Tensor:
        """The output of a graph; those of the tensors that it does not read are left out."""
        names = [each["name"] for each in self.parts[part]["inputs"]]
        inputs = {name: x.numpy() for name, x in given.items() if x is not None and name in names}
        assert list(inputs) == [name for name in given if name in names]
        return torch.from_numpy(self.sessions[part].run(None, inputs)[0])

    def images(self, batch: int, seed: int = 3) -> Tensor:
        config = self.model.config
        source = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, config.channels, 4, 4, generator=source)
        return torch.nn.functional.interpolate(coarse, size=config.image_size, mode="bilinear")

    def condition(self, batch: int) -> Tensor | None:
        """Conditions that are not null."""
        entry, source = self.about["condition"], torch.Generator().manual_seed(batch)
        if entry is None:
            return None
        if entry["kind"] == "class":
            return torch.randint(entry["count"], (batch,), generator=source)
        return torch.randint(1, len(entry["vocabulary"]) + 1, (batch, entry["length"]), generator=source)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """exports(name): a bundled tokenizer, exported once."""

    @cache
    def made(name: str) -> Export:
        folder = tmp_path_factory.mktemp("onnx") / name
        assert cli.run(["export-onnx", name, "--out", str(folder)]) == 0
        return Export(store.load(name), folder)

    return made


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loop(export: Export, tokens: Tensor, keep: Tensor, noise: Tensor) -> Tensor:
    """The loop around a flow decoder, as the description states it."""
    sampler = export.about["sampler"]
    x = sampler["temperature"] * noise
    for each in sampler["steps"]:
        t = torch.full((len(x),), each["t"])
        p = export("decoder", x=x, t=t, tokens=tokens, keep=keep)
        x = x + each["step"] * (each["of_prediction"] * p + each["of_x"] * x)
    return ((x + 1) / 2).clamp(0, 1)


def example_error(export: Export, keep: int, folder: Path) -> float:
    """Largest difference, in 0..255, between the picture of the example and that of tok1d from the same noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 4), np.uint8)
    photo, out = folder / "photo.png", folder / "decoded.png"
    Image.fromarray(pixels).resize((101, 70), Image.Resampling.BICUBIC).save(photo)  # transparent in parts
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'tok1d'))); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [EXAMPLE, export.folder, photo, keep, out]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
    model = export.model
    tokens = model.encode(photo)
    if model.spec.deterministic:
        expected = model.decode(tokens, keep=keep)
    else:
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 28, 28))).float()
        start = noise * model.config.flow.temperature
        with torch.no_grad():
            latents = model.decode_latents(tokens, start, torch.randn_like, keep=keep)
        expected = model.latent_space.decode(latents).clamp(0, 1)
    found = np.asarray(Image.open(out), np.float32).reshape(*expected.shape[2:], -1).transpose(2, 0, 1)
    return float(np.abs(found - (expected[0] * 255).numpy()).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_each_part_equals_pytorch_at_three_batch_sizes(exports: Exports, name: str) -> None:
    export = exports(name)
    model, length = export.model, export.model.spec.length
    for batch in (1, 2, 5):
        images, condition = export.images(batch), export.condition(batch)
        tokens = model.encode(images, condition)
        assert (export("encoder", images=images, condition=condition) - tokens).abs().max() <= LIMIT
        keep = torch.randint(length + 1, (batch,)) if model.spec.ordered else torch.full((batch,), length)
        if model.spec.deterministic:
            expected = model.decode(tokens, condition, keep=keep)
            found = export("decoder", tokens=tokens, condition=condition, keep=keep)
        else:
            x, t = torch.randn_like(images), torch.rand(batch)
            mask = torch.arange(length) < keep[:, None]
            with torch.no_grad():
                expected = model.decoder(x, t, model.decoder.fill(tokens, mask))
            found = export("decoder", x=x, t=t, tokens=tokens, keep=keep)
        assert found.shape == expected.shape and (found - expected).abs().max() <= LIMIT
    for check in export.about["checks"].values():
        assert check["difference"] <= check["limit"] == LIMIT and check["batch_sizes"] == [1, 2, 5]


@pytest.mark.slow
def test_a_flow_decoder_draws_the_pictures_of_the_same_seeds(exports: Exports) -> None:
    export = exports("fashion-mnist-semanticist")
    images, keep = export.images(3), torch.tensor([0, 4, 16])
    noise = torch.stack([torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    found = loop(export, export("encoder", images=images), keep, noise)
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = export.model.decode(export.model.encode(images), keep=keep, generator=seeds)
    assert (found - expected).abs().max() <= 1 / 255 and not torch.allclose(found[0], found[2], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist-smap", "emoji-smap"])
def test_prefixes_and_the_null_condition_are_inputs_of_a_decoder(exports: Exports, name: str) -> None:
    export = exports(name)
    model, images, entry = export.model, export.images(2), export.about["condition"]
    shape = (2,) if entry["kind"] == "class" else (2, entry["length"])
    null = torch.full(shape, entry["null"])
    tokens = export("encoder", images=images, condition=null)
    assert (tokens - model.encode(images)).abs().max() <= LIMIT
    for keep in (0, 1, 3, model.spec.length):
        others = tokens.clone()
        others[:, keep:] = 7.0  # masked
        found = export("decoder", tokens=others, condition=null, keep=torch.full((2,), keep))
        assert (found - model.decode(tokens[:, :keep], keep=keep)).abs().max() <= LIMIT
    with_condition = export("decoder", tokens=tokens, condition=export.condition(2), keep=torch.tensor([1, 1]))
    assert (with_condition - model.decode(tokens, keep=1)).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist-semanticist", "fashion-mnist-smap", "emoji-smap"])
def test_the_example_without_torch_draws_the_picture_of_tok1d(exports: Exports, name: str, tmp_path: Path) -> None:
    assert example_error(exports(name), 3, tmp_path) <= 1


def test_the_example_is_short() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    code = [line for line in lines[10:] if line.strip() and not line.strip().startswith(('"""', "import", "from"))]
    assert len(code) <= 36


def test_the_description_states_preparation_condition_and_tokens() -> None:
    def about(name: str) -> Any:
        model = store.load(name)
        return json.loads(json.dumps(described(model, [part_of(model, "encoder"), part_of(model, "decoder")])))

    smap = about("fashion-mnist-smap")
    assert smap["pictures"] | {"steps": 0} == {
        **{"size": 28, "inner_size": 28, "pad": 0, "channels": 1, "background": [255, 255, 255], "crop": "center"},
        **{"steps": 0, "normalisation": "none: it is part of the graphs"},
    }
    condition = smap["condition"]
    assert (condition["kind"], condition["count"], condition["null"]) == ("class", 10, 10)
    assert condition["names"][3] == "Dress" and smap["tokens"]["ordered"]
    inputs = smap["parts"]["decoder"]["inputs"]
    assert [each["name"] for each in inputs] == ["tokens", "condition", "keep"]
    assert inputs[2]["range"] == [0, smap["tokens"]["count"]] and inputs[2]["shape"] == ["batch"]
    words = about("emoji-smap")["condition"]
    assert words["kind"] == "words" and words["null"] == 0 and "apple" in words["vocabulary"]
    maetok = about("fashion-mnist-maetok")
    assert maetok["condition"] is None and not maetok["tokens"]["ordered"] and "sampler" not in maetok
    assert [each["name"] for each in maetok["parts"]["decoder"]["inputs"]] == ["tokens"]
    sampler = about("fashion-mnist-semanticist")["sampler"]
    config = store.load("fashion-mnist-semanticist").config
    assert (sampler["prediction"], sampler["shift"]) == (config.flow.prediction, config.flow.shift)
    assert len(sampler["steps"]) == config.steps and sum(each["step"] for each in sampler["steps"]) == pytest.approx(1)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["data", "noise", "velocity"])
def test_the_described_loop_is_the_sampler(tiny: Callable[..., str], path: str, prediction: str) -> None:
    flow = f"model.flow={{path: {path}, prediction: {prediction}, shift: 2.0, temperature: 0.5}}"
    model = random_model(tiny("tokenizer"), flow, "model.steps=5")
    part = part_of(model, "decoder")
    sampler: Any = described(model, [part])["sampler"]
    inputs = part.sample(3)
    tokens, keep, noise = inputs["tokens"], inputs["keep"], inputs["x"]
    x = sampler["temperature"] * noise
    with torch.no_grad():
        for each in sampler["steps"]:
            p = part.module(x=x, t=torch.full((3,), each["t"]), tokens=tokens, keep=keep)
            x = x + each["step"] * (each["of_prediction"] * p + each["of_x"] * x)
        expected = model.decode_latents(tokens, 0.5 * noise, torch.randn_like, keep=keep)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_codebook_gives_ids_and_a_border_is_described(tiny: Callable[..., str], tmp_path: Path) -> None:
    model = random_model(tiny("smap"), "model.bottleneck={name: vq, size: 32}", "model.condition_on=none")
    model.card = Card(recipe=Path(tiny("smap")).read_text(encoding="utf-8"))
    module.export_onnx(model, tmp_path / "out")
    export = Export(model, tmp_path / "out")
    images = export.images(4)
    ids = export("encoder", images=images)
    assert ids.dtype == torch.int64 and torch.equal(ids, model.encode(images))
    keep = torch.tensor([0, 1, 3, 4])
    assert (export("decoder", tokens=ids, keep=keep) - model.decode(ids, keep=keep)).abs().max() <= LIMIT
    pictures = export.about["pictures"]
    assert (pictures["size"], pictures["inner_size"], pictures["pad"]) == (32, 28, 2)
    assert example_error(export, 3, tmp_path) <= 1
    assert export.about["tokens"]["vocabulary"] == 32 and export.about["checks"]["encoder"]["deviation"] is None


def test_what_is_not_exported_is_one_line(
    tiny: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*words: object) -> str:
        assert cli.run(["export-onnx", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "out").exists()
        return err

    maetok = "fashion-mnist-maetok"
    assert "expected a tokenizer (Semanticist, MAETok, SMAP, TiTok), got a sit" in line("fashion-mnist-sit")
    assert "--part: expected encoder or decoder or all, got 'head'" in line(maetok, "--part", "head")
    assert "no model 'nothing'" in line("nothing")
    ddpm = random_model(tiny("tokenizer"), "model.objective=ddpm")
    with pytest.raises(InputError, match="expected a decoder of objective=flow, got ddpm; use --part encoder"):
        module.export_onnx(ddpm, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert "got no onnxscript; pip install 'tok1d[onnx]'" in line(maetok)
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        assert "the encoder cannot be exported: division by zero" in line(maetok)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    full = ["export-onnx", maetok, "--part", "decoder", "--out", str(tmp_path / "full")]
    for words, message in (([], "not empty; pass --overwrite"), (["--overwrite"], "the decoder cannot be exported")):
        assert cli.run([*full, *words]) == 2 and message in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_graph_that_differs_from_pytorch_is_an_error(
    tiny: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(tiny("maetok"))
    part, path = part_of(model, "encoder"), tmp_path / "encoder.onnx"
    exported = module.export_onnx(model, tmp_path, part="encoder")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["encoder.onnx", "tok1d-onnx.json"]
    assert "encoder.onnx: values differ from PyTorch by at most" in repr(exported) and not capsys.readouterr().out
    module.compared(part, path)
    with torch.no_grad():
        model.bottleneck.proj.bias[0] += 0.001
    with pytest.raises(InputError, match=r"encoder: values differ from PyTorch by at most 1\.0e-03 .*limit 0\.0001"):
        module.compared(part, path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(module, "TOLERANCE", -1.0)
        with pytest.raises(InputError, match="nothing was written"):
            module.export_onnx(model, tmp_path, overwrite=True)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
