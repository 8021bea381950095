"""From captions to pictures without a text encoder: condition.kind=words in trainings, files, commands and refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tok1d.cli import app as cli
from tok1d.config.condition import ConditionConfig
from tok1d.config.load import load_recipe
from tok1d.data.fashion_mnist import NOUNS, TEMPLATES
from tok1d.data.words import CaptionIds, vocabulary_of
from tok1d.errors import ConfigError, WeightsError
from tok1d.generators.card import CARD, CARDConfig
from tok1d.generators.head import HeadConfig
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.tokenizers.smap import SMAP
from tok1d.train import run
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.transfer import transfer

Tiny = Callable[..., str]
WORDS = "{kind: words, dim: 8, length: 12}"
SMAP_KEYS = ["data.captions=labels", f"model.condition={WORDS}", "model.label_dropout=0.2", "train.steps=2"]
CARD_MODEL = (
    "{name: card, num_tokens: 4, token_dim: 4, num_classes: 0, dim: 16, depth: 1, heads: 2, "
    f"head: {{width: 16, depth: 1, steps: 2}}, condition: {WORDS}}}"
)


@pytest.fixture
def pair(tiny: Tiny, fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """The arguments that train a SMAP of words, and a CARD of words on its tokens, in a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    smap = ["train", tiny("smap"), *SMAP_KEYS, "out=smap"]
    keys = ["data.captions=labels", f"model={CARD_MODEL}", "tokenizer=smap/model", "train.steps=2", "out=card"]
    return smap, ["train", tiny("sit"), *keys]


def config_of(folder: str) -> Any:
    return json.loads(Path(folder, "model", "config.json").read_text(encoding="utf-8"))["model"]["condition"]


def test_from_words_to_pictures(pair: Any, tmp_path: Path, capsys: Any) -> None:
    for arguments in pair:
        assert cli.run(arguments) == 0, capsys.readouterr().err
    sentences = [text.format(noun) for text in TEMPLATES for noun in NOUNS]
    used = config_of("smap")["vocabulary"]
    assert used == config_of("card")["vocabulary"] == sorted(used) and len(used) > 10
    assert set(used) <= set(vocabulary_of(sentences, 1000))
    known, capitals = used[0], used[-1].upper()
    capsys.readouterr()

    def pictures(out: str, *options: str) -> dict[str, bytes]:
        assert cli.run(["generate", "card/model", "--num", "2", "--out", out, *options]) == 0, capsys.readouterr().err
        return {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}

    two = pictures("two", "--captions", f"{known}", "--captions", f"{known} {capitals}", "--guidance", "2")
    assert capsys.readouterr().err == ""
    assert two["image000_000.png"] != two["image001_000.png"]
    assert sorted(pictures("free", "--unconditional")) == ["image000.png", "image001.png", "overview.png"]
    pictures("some", "--captions", f"{known} zebra")
    assert "1 of 1 have words that the model does not know, which are left out: zebra" in capsys.readouterr().err
    assert cli.run(["generate", "card/model", "--captions", "zebra", "--out", "none"]) == 2
    err = capsys.readouterr().err
    assert "--captions: expected a caption with some of the" in err and err.count("\n") == 1
    assert cli.run(["reconstruct", "smap/model", "fashion_mnist", "--num", "3", "--out", "r"]) == 0
    assert "condition of the tokenizer: true" in capsys.readouterr().out
    assert cli.run(["encode", "smap/model", "fashion_mnist", "--out", "cache"]) == 0
    measured = ["--num-samples", "8", "--metrics", "memorised", "--out", "m.json", "--quiet"]
    assert cli.run(["evaluate", "generation", "card/model", "fashion_mnist", *measured]) == 0
    [record] = json.loads(Path("m.json").read_text(encoding="utf-8"))
    assert record["name"] == "memorised" and 0 <= record["value"] <= 1


def test_a_resumed_training_of_words_equals_an_unbroken_one(tiny: Tiny, pair: Any) -> None:
    whole, parts = (load_recipe(tiny("smap"), [*SMAP_KEYS, "train.steps=4", f"out={name}"]) for name in ("w", "p"))
    run.train(whole, quiet=True)
    run.train(parts, quiet=True, seconds=0.0)
    assert not Path("p", "model").exists()
    run.train(parts, quiet=True)
    expected, found = (store.load(f"{name}/model").state_dict() for name in ("w", "p"))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_checkpoint_of_another_vocabulary_is_refused(tiny: Tiny, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny("smap"), [*SMAP_KEYS, "train.steps=4", "out=p"])
    run.train(recipe, quiet=True, seconds=0.0)
    count = len(build_task(recipe).model.config.condition.vocabulary)  # type: ignore[union-attr]
    monkeypatch.setattr("tok1d.data.fashion_mnist.NOUNS", [f"new{noun}" for noun in NOUNS])
    with pytest.raises(
        WeightsError, match=rf"written with a vocabulary of {count} words, .* another one .*--overwrite"
    ):
        run.train(recipe, quiet=True)


def test_pairs_of_other_words_are_refused(tiny: Tiny, pair: Any) -> None:
    first, second = pair
    assert cli.run(first) == 0
    for key, message in (
        (
            "model.condition.vocabulary=[red, kite]",
            r"^model\.condition\.vocabulary: expected the tokenizer's \d+ words",
        ),
        ("model.condition.length=5", r"^model\.condition\.length: expected 12 as the tokenizer's, got 5"),
        ("model.condition.kind=text", r"^model\.condition\.encoder: no text encoder is bundled"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_task(load_recipe(second[1], [*second[2:], key]))
    model: Any = build_task(load_recipe(second[1], [*second[2:], "model.condition.dim=6"])).model
    assert model.config.condition.vocabulary == config_of("smap")["vocabulary"], "the widths of the tables may differ"


def test_a_generator_on_a_tokenizer_without_captions_has_words_of_its_own(tiny: Tiny, pair: Any) -> None:
    assert cli.run(["train", tiny("maetok"), "train.steps=2", "out=plain"]) == 0
    for cache in ("null", "none"):
        recipe = load_recipe(pair[1][1], [*pair[1][2:], "tokenizer=plain/model", f"cache={cache}"])
        task = build_task(recipe)
        vocabulary = task.model.config.condition.vocabulary  # type: ignore[union-attr]
        assert set(vocabulary) <= set(vocabulary_of([text.format(n) for text in TEMPLATES for n in NOUNS], 1000))
        cond = task.batch(0, 0, 1)[1]
        assert cond.dtype == torch.int64 and bool((cond[:, 0] > 0).all()) and int(cond.max()) <= len(vocabulary)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.condition.encoder=x", r"^model\.condition\.encoder: only kind=text uses a text encoder"),
        ("model.condition.vocabulary=[a, b, a]", r"^model\.condition\.vocabulary: expected each word once, got 'a'"),
        ("data.captions=null", r"^data\.captions: condition\.kind=words needs captions"),
        ("model.condition={kind: class, vocabulary: [a]}", r"vocabulary: only kind=words uses it, .* got 1 words"),
    ],
)
def test_contradictions_are_one_line(tiny: Tiny, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(tiny("smap"), [*SMAP_KEYS, key])


# Models of words are models of captions whose embeddings are the rows of the table.

VOCABULARY = ["apple", "kite", "red", "sky"]
OF_WORDS = ConditionConfig("words", dim=5, length=6, vocabulary=VOCABULARY)
OF_TEXT = ConditionConfig("text", "nobody/asks", 5, 6)
IDS = torch.tensor([[1, 3, 0, 0, 0, 0], [4, 2, 2, 1, 3, 1], [0, 0, 0, 0, 0, 0]])
SIZES: dict[str, Any] = {"num_tokens": 4, "num_classes": 0, "dim": 16, "depth": 2, "heads": 4}
HEAD = HeadConfig(width=8, depth=1, condition="adaln", sampler="euler", steps=3)
GENERATORS: dict[str, Callable[[ConditionConfig], Any]] = {
    "card": lambda condition: CARD(CARDConfig(token_dim=3, head=HEAD, condition=condition, **SIZES)),
    "llamagen": lambda condition: LlamaGen(LlamaGenConfig(vocab_size=7, condition=condition, **SIZES)),
}


def smap(condition: ConditionConfig, tiny: Tiny) -> SMAP:
    model = store.build_model(replace(load_recipe(tiny("smap")).model, condition=condition))
    assert isinstance(model, SMAP)
    return model


def twins(make: Callable[[ConditionConfig], Any]) -> tuple[Any, Any, Tensor]:
    """A model of words, one of embeddings with the same weights, and the embeddings of `IDS`."""
    torch.manual_seed(0)
    own, other = make(OF_WORDS).eval(), make(OF_TEXT).eval()
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = own.state_dict()
    [name] = [key for key in state if key not in other.state_dict()]
    table = state.pop(name)
    other.load_state_dict(state)
    return own, other, F.pad(table, (0, 0, 1, 0))[IDS]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_words_is_one_of_their_embeddings(name: str) -> None:
    own, other, embedded = twins(GENERATORS[name])
    seed = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    found = own.sample(IDS, guidance=2.0, generator=seed())
    expected = other.sample(embedded, guidance=2.0, generator=seed())
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found[0], found[1]), "the words matter"


def test_a_tokenizer_of_words_is_one_of_their_embeddings(tiny: Tiny) -> None:
    own, other, embedded = twins(lambda condition: smap(condition, tiny))
    size = own.config.image_size
    x = torch.rand(3, own.config.channels, size, size, generator=torch.Generator().manual_seed(1))
    tokens = own.encode(x, IDS)
    torch.testing.assert_close(tokens, other.encode(x, embedded))
    torch.testing.assert_close(own.decode(tokens, IDS, keep=2), other.decode(tokens, embedded, keep=2))
    torch.testing.assert_close(own.decode(tokens, IDS)[2], own.decode(tokens, None)[2])
    assert own.spec.reads_captions and own.spec.num_classes == 0


def test_rows_of_equal_words_are_transferred(tiny: Tiny) -> None:
    torch.manual_seed(0)
    source = smap(OF_WORDS, tiny)
    other = smap(replace(OF_WORDS, vocabulary=["blue", "red", "apple"]), tiny)
    table = other.condition.captions.table  # type: ignore[union-attr]
    before, theirs = table.detach().clone(), source.condition.captions.table  # type: ignore[union-attr]
    notes = transfer(source, other)
    assert torch.equal(table[1], theirs[2]) and torch.equal(table[2], theirs[0]) and torch.equal(table[0], before[0])
    assert notes == ["the rows of 2 of 3 words are copied, by name, the others keep their random initialisation"]


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def test_a_tokenizer_learns_what_words_mean(tiny: Tiny, tmp_path: Path) -> None:
    """Without tokens it draws the colour that the caption names, in any order of words, but not without the word."""
    lines, photos = [], tmp_path / "photos"
    photos.mkdir()
    for i in range(36):
        name = list(COLOURS)[i % 3]
        Image.new("RGB", (16, 16), COLOURS[name]).save(photos / f"{i:02}.png")
        caption = f"the {name} square" if i % 2 else f"square: {name.upper()}"
        lines.append(json.dumps({"file": f"{i:02}.png", "caption": caption}))
    (photos / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = f"data={{name: folder, root: '{photos}', image_size: 16, channels: 3, pad: 0, captions: captions.jsonl}}"
    keys = [data, f"model.condition={WORDS}", "model.image_size=16", "model.channels=3", f"out={tmp_path / 'run'}"]
    keys += [
        "train={steps: 150, batch_size: 12, lr: 1e-2, warmup: 10, ema: 0, schedule: linear}",
        "model.tail_drop.zero_prob=0.5",
    ]
    run.train(load_recipe(tiny("smap"), keys), quiet=True)
    model = store.load(tmp_path / "run" / "model")
    assert model.config.condition.vocabulary == ["blue", "green", "red", "square", "the"]
    captions = [*(f"{name} the" for name in COLOURS), "the square"]
    cond = CaptionIds(model.config.condition, captions)(captions)
    drawn = model.decode(torch.zeros(4, 4, 4), cond, keep=0).mean((2, 3)) * 255
    wanted = torch.tensor(list(COLOURS.values()))
    error = (drawn[:, None] - wanted).abs().amax(-1)
    assert error.argmin(1)[:3].tolist() == [0, 1, 2] and error[:3].amin(1).max() < 40, drawn
    assert error[3].min() > 60, drawn
