"""Command-line options of the tests (pytest reads them only from the root conftest), tiny data and a browser."""

import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # ms; a busy machine is slow


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "recorded cases of released systems (tests/parity)")
    group.addoption(
        "--parity-root",
        action="append",
        metavar="DIR",
        help="folder with recorded cases, searched whole (repeatable; default: tests/parity/cases and, where it "
        "exists, shared/parity next to the repository)",
    )
    group.addoption(
        "--parity-family",
        action="append",
        metavar="NAME",
        default=[],
        help="only the cases of this family, of which there must be some (repeatable; default: all)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, run the files that take long first, so that none of them ends alone."""
    if not hasattr(config, "workerinput"):
        return
    cost: Counter[Path] = Counter()
    for item in items:
        marked = {mark.name for mark in item.iter_markers()}
        cost[item.path] += 60 if "web" in marked else 15 if "slow" in marked else 1
    items.sort(key=lambda item: -cost[item.path])


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 noise images per split, of all ten classes, in place of Fashion-MNIST."""
    import numpy as np

    def load(split: str = "train", root: object = None) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.random.default_rng(len(split)).integers(0, 256, (64, 28, 28), np.uint8)
        return pixels, np.arange(64, dtype=np.int64) % 10

    monkeypatch.setattr("tok1d.data.fashion_mnist.load", load)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a byte-pair tokenizer of 64 ids at most, as transformers saves it; ends sentences with <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from tok1d.data.fashion_mnist import NOUNS, TEMPLATES

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=["<unk>", "<pad>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator([text.format(noun) for text in TEMPLATES for noun in NOUNS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    folder = str(tmp_path_factory.mktemp("bpe"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(bpe: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random CLIP text encoder (width 16, at most 20 sub-words) and its text tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=64, max_position_embeddings=20, bos_token_id=2, eos_token_id=2, **sizes)
    folder = str(tmp_path_factory.mktemp("text encoder"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPTextModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bpe).save_pretrained(folder)
    return folder


TINY_TOKENIZER = """
kind: tokenizer
model:
  name: semanticist
  image_size: 28
  channels: 1
  num_tokens: 4
  token_dim: 4
  objective: flow
  steps: 2
  encoder: {patch: 14, dim: 16, depth: 1, heads: 2}
  decoder: {patch: 14, dim: 16, depth: 1, heads: 2}
  nested: {after: 0.3, drop_after: 0.05}
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_images: 8, steps: 2, batch_size: 8}
"""
TINY_GENERATOR = """
kind: generator
model:
  name: epsilon_llamagen
  num_tokens: 3
  token_dim: 4
  num_classes: 10
  dim: 16
  depth: 1
  heads: 2
  head: {width: 16, depth: 1, steps: 2, sampler: euler}
num_tokens: 3
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_samples: 20, steps: 2}
"""
TINY_MAETOK = """
kind: tokenizer
data: {image_size: 32, pad: 2}
model:
  name: maetok
  image_size: 32
  channels: 1
  num_tokens: 4
  token_dim: 4
  encoder: {patch: 8, dim: 16, depth: 1, heads: 2, layer_scale: 1.0}
  decoder: {patch: 8, dim: 16, depth: 1, heads: 2, layer_scale: 1.0, absolute: false}
  auxiliary: [{target: hog, cell: 4, depth: 1}]
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_images: 8, batch_size: 8}
"""
TINY_SMAP = """
kind: tokenizer
data: {image_size: 32, pad: 2}
model:
  name: smap
  image_size: 32
  channels: 1
  num_tokens: 4
  token_dim: 4
  num_classes: 10
  bottleneck: {name: kl}
  encoder: {patch: 8, dim: 16, depth: 1, heads: 2}
  decoder: {patch: 8, dim: 16, depth: 1, heads: 2}
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_images: 8, batch_size: 8}
"""
TINY_TITOK = """
kind: tokenizer
data: {image_size: 32, pad: 2}
model:
  name: titok
  image_size: 32
  channels: 1
  num_tokens: 4
  token_dim: 4
  bottleneck: {name: kl}
  encoder: {patch: 8, dim: 16, depth: 1, heads: 2}
  decoder: {patch: 8, dim: 16, depth: 1, heads: 2}
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_images: 8, batch_size: 8}
"""
TINY_SIT = """
kind: generator
data: {image_size: 32, pad: 2}
model: {name: sit, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2, steps: 2}
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
evaluate: {num_samples: 20}
"""
TINY_CLASSIFIER = """
kind: classifier
model: {name: cnn, width: 4, features: 8, dropout: 0.0}
train: {steps: 6, batch_size: 8, lr: 1e-3, ema: 0, log_every: 2}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tiny(kind, **keys): the path of a recipe small enough to train in a second, with more top-level keys."""
    folder = tmp_path_factory.mktemp("recipes")
    texts = {
        "tokenizer": TINY_TOKENIZER,
        "generator": TINY_GENERATOR,
        "maetok": TINY_MAETOK,
        "smap": TINY_SMAP,
        "titok": TINY_TITOK,
        "sit": TINY_SIT,
        "classifier": TINY_CLASSIFIER,
    }

    def write(kind: str, **keys: object) -> str:
        path = folder / f"{kind}.yaml"
        path.write_text(texts[kind] + "".join(f"{key}: {value}\n" for key, value in keys.items()))
        return str(path)

    return write


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, with a camera that shows a test picture."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(CHROMIUM)} on the PATH")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs the package playwright (extra dev)")
    from playwright.sync_api import sync_playwright

    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *camera])
        yield found
        found.close()


class Visited:
    """A page with a session of its own, whose errors and requests are kept."""

    def __init__(self, browser: Any, address: str, device: dict[str, Any]) -> None:
        self.page = browser.new_context(**device).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.address = address
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def check_requests(self) -> None:
        """There were some, and none to another machine."""
        foreign = [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]
        assert self.requests and foreign == []


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visited]]:
    """visit(address, **device): a `Visited` page of a device, not opened yet; closed after the test."""
    opened: list[Visited] = []

    def start(address: str, **device: Any) -> Visited:
        opened.append(Visited(browser, address, device))
        return opened[-1]

    yield start
    for each in opened:
        each.page.context.close()
