"""Zero-shot classes of a CLIP: a planted one whose answers are known, and a random one of transformers."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.analyze.judged import judges
from tok1d.cli import app as cli
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.evaluate.clip import ClipNetwork, ClipParts, open_clip, prompt
from tok1d.zoo.store import load

COLOURS = ["red", "green", "blue_sky"]


class Colours(nn.Module):
    """The embedding of an image is its mean colour; that of a prompt is the colour that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def get_image_features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=3 * torch.eye(3)[input_ids[:, 0]])  # as newer versions return it


class Reads:
    """A prompt becomes the number of its colour."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: list[str], **options: object) -> Mapping[str, Tensor]:
        self.texts = text
        ids = torch.tensor([[i for i, name in enumerate(COLOURS) if prompt(name) == each] for each in text])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def parts(reader: Reads) -> ClipParts:
    return ClipParts(Colours(), reader, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_an_image_has_the_class_of_the_nearest_prompt() -> None:
    reader = Reads()
    network = ClipNetwork(parts(reader), "clip-colours", COLOURS, device="cpu")
    assert reader.texts == ["a photo of a red", "a photo of a green", "a photo of a blue sky"]
    images = torch.eye(3)[[2, 0, 1, 2]][:, :, None, None].expand(-1, -1, 5, 5)
    found = network(images)
    assert found.logits is not None and found.logits.argmax(1).tolist() == [2, 0, 1, 2]
    assert found.logits.max(1).values.tolist() == pytest.approx([float(torch.tensor(2.0).exp())] * 4)
    assert (network.num_classes, network.class_names, network.classifies, network.dim) == (3, tuple(COLOURS), True, 3)
    assert network.name == "clip-colours" and found.pooled.shape == (4, 3)


def test_without_names_there_are_features_alone() -> None:
    network = ClipNetwork(parts(Reads()), "clip", [], device="cpu")
    assert network(torch.rand(2, 1, 6, 6)).logits is None and network.num_classes == 0 and not network.classifies


@pytest.fixture(scope="session")
def clip_folder(bpe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random CLIP (images of 16 pixels) and its tokenizer."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 64, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=12)
    folder = str(tmp_path_factory.mktemp("clip"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bpe).save_pretrained(folder)
    return folder


def test_the_logits_are_those_of_transformers(clip_folder: str) -> None:
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    names = ["shoe", "bag"]
    network = open_clip(f"clip:{clip_folder}", names, device="cpu")
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    read = AutoTokenizer.from_pretrained(clip_folder)(
        [prompt(name) for name in names], padding=True, return_tensors="pt"
    )
    inputs = {key: read[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip_folder)(pixel_values=(images - mean) / std, **inputs).logits_per_image
    logits = network(images).logits
    assert logits is not None and torch.allclose(logits, expected, atol=1e-4)


def test_the_command_takes_a_clip_from_a_folder(fashion: None, clip_folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["analyze", "semantics", "fashion-mnist-maetok", "fashion_mnist", "--num", "6"]
    assert cli.run([*command, "--network", f"clip:{clip_folder}", "--out", str(out)]) == 0
    [record] = json.loads((out / "semantics.json").read_text())["models"]
    [point] = record["points"]
    assert point["network"].startswith("clip-") and 0 <= point["accuracy"] <= 1 and 0 <= point["agreement"] <= 1
    assert list(record["originals"]) == [point["network"]]


def test_the_classes_of_a_folder_are_prompts(clip_folder: str, tmp_path: Path) -> None:
    for kind in ("red_bag", "shoe"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    out, photos = tmp_path / "out", str(tmp_path / "photos")
    command = ["analyze", "semantics", "emoji-maetok", photos, "--network", f"clip:{clip_folder}"]
    assert cli.run([*command, "--split", "all", "--out", str(out)]) == 0
    [record] = json.loads((out / "semantics.json").read_text())["models"]
    assert record["num"] == 6 and record["points"][0]["accuracy"] is not None
    command = ["analyze", "spectrum", "emoji-maetok", photos, "--components", "--keep", "1,2", "--split", "all"]
    assert cli.run([*command, "--network", f"clip:{clip_folder}", "--out", str(tmp_path / "b")]) == 0
    [record] = json.loads((tmp_path / "b" / "spectrum.json").read_text())["models"]
    assert [each["keep"] for each in record["points"]] == [1, 2] and len(record["points"][0]["semantic"]) == 1


def test_a_clip_stands_beside_another_network(fashion: None, clip_folder: str) -> None:
    tokenizer = load("fashion-mnist-maetok")
    networks = ["fashion-mnist-cnn", f"clip:{clip_folder}"]
    found = judges(tokenizer, "fashion_mnist", networks, ("labels", "semantic"), [*"abcdefghij"])  # type: ignore[arg-type]
    assert [each.name.partition("-")[0] for each in found.networks] == ["fashion", "clip"]
    assert found.networks[1].pad == found.pad and found.networks[1].num_classes == 10


def test_what_is_no_clip_is_one_line(
    text_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="expected clip:MODEL with a hub name or a local folder, got clip:"):
        open_clip("clip:", ["a"], device="cpu")
    with pytest.raises(WeightsError, match=r"clip .*nothing: transformers cannot read it"):
        open_clip(f"clip:{tmp_path / 'nothing'}", ["a"], device="cpu")
    with pytest.raises(ConfigError, match="expected a CLIP of transformers, got clip_text_model"):
        open_clip(f"clip:{text_folder}", ["a"], device="cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"clip x/y: transformers is not installed; pip install 'tok1d\[text\]'"):
        open_clip("clip:x/y", ["a"], device="cpu")


def test_grey_images_of_any_size_are_measured() -> None:
    network = ClipNetwork(parts(Reads()), "clip-colours", COLOURS, device="cpu", pad=2)
    images = torch.from_numpy(np.full((1, 1, 12, 9), 0.5, np.float32))
    assert network(images).pooled.flatten().tolist() == pytest.approx([128 / 255] * 3)
