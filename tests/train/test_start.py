"""Initialisation from a checkpoint: which weights are copied, and what happens where the two models differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tok1d.config.load import load_recipe
from tok1d.errors import ConfigError, WeightsError
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.transfer import init_from
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> Callable[..., tuple[Any, Any, list[str]]]:
    """pair(kind, *overrides): a model of random weights, another initialised from it, and the messages."""

    def make(kind: str, *overrides: str, base: tuple[str, ...] = ()) -> tuple[Any, Any, list[str]]:
        torch.manual_seed(1)
        recipe = tiny(kind, **({"tokenizer": "x"} if kind in ("generator", "sit") else {}))
        first = store.build_model(load_recipe(recipe, base).model)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        store.save_model(first, tmp_path / "first", Card())
        torch.manual_seed(2)
        model = store.build_model(load_recipe(recipe, [*base, *overrides]).model)
        return first.eval(), model.eval(), init_from(model, str(tmp_path / "first"))

    return make


def changed(first: Any, second: Any) -> set[str]:
    mine = first.state_dict()
    return {name for name, value in second.state_dict().items() if not torch.equal(value, mine[name][: len(value)])}


@pytest.mark.parametrize("kind", ["tokenizer", "maetok", "smap", "titok", "generator", "sit", "classifier"])
def test_equal_models_take_over_everything_and_report_nothing(pair: Any, kind: str, capsys: Any) -> None:
    first, second, messages = pair(kind)
    assert fingerprint(first) == fingerprint(second) and messages == [] and not capsys.readouterr().err


@pytest.mark.parametrize("kind", ["generator", "sit", "smap"])
def test_another_number_of_classes_initialises_their_rows_again(pair: Any, kind: str, capsys: Any) -> None:
    first, second, _ = pair(kind, "model.num_classes=4")
    mine = {name: value for name, value in first.state_dict().items() if not name.endswith("label_embed.table.weight")}
    theirs = second.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    (table,) = theirs.keys() - mine.keys()
    assert len(theirs[table]) == 5 and torch.equal(theirs[table][-1], first.state_dict()[table][-1])  # the null row
    assert not any((row == first.state_dict()[table]).all(1).any() for row in theirs[table][:-1])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["maetok", "smap", "titok"])
def test_at_another_image_size_it_is_initialised_as_the_first_model_resampled(pair: Any, kind: str) -> None:
    first, second, messages = pair(kind, "data.image_size=64", "model.image_size=64")
    assert messages == ["64 px instead of 32, learned positions are resampled"]
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    cond = torch.tensor([1, 2]) if kind == "smap" else None
    with torch.no_grad():
        torch.testing.assert_close(second.encode(images, cond), first.encode(images, cond))


@pytest.mark.parametrize("kind", ["tokenizer", "maetok", "smap", "titok"])
def test_with_other_channels_it_encodes_and_decodes_grey_images_as_the_first(pair: Any, kind: str) -> None:
    first, second, messages = pair(kind, "data.channels=3", "model.channels=3")
    assert any(text.startswith("3 channels instead of 1") for text in messages)
    size = first.config.image_size
    images = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(3))
    cond = torch.tensor([1, 2]) if kind == "smap" else None
    with torch.no_grad():
        tokens = first.encode(images, cond)
        torch.testing.assert_close(second.encode(images.expand(-1, 3, -1, -1), cond), tokens)
        if first.spec.deterministic:
            decoded = first.decode(tokens, cond).expand(-1, 3, -1, -1)
            torch.testing.assert_close(second.decode(tokens, cond), decoded)


def test_from_colour_to_grey_grey_images_are_encoded_and_decoded_alike(pair: Any) -> None:
    first, second, _ = pair(
        "titok", "data.channels=1", "model.channels=1", base=("data.channels=3", "model.channels=3")
    )
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(second.encode(images), first.encode(images.expand(-1, 3, -1, -1)))


def test_causal_tokens_stay_what_they_were_where_more_come_after(pair: Any) -> None:
    first, second, messages = pair("tokenizer", "model.num_tokens=6")
    assert messages == ["6 tokens instead of 4, the tables' first rows are kept"]
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(second.encode(images)[:, :4], first.encode(images))


def test_auxiliary_parts_may_be_missing(pair: Any, tmp_path: Path, tiny: Tiny, capsys: Any) -> None:
    assert pair("maetok", base=("model.auxiliary=[]",))[2] == []
    model = store.build_model(load_recipe(tiny("maetok")).model)
    assert init_from(model, str(tmp_path / "first")) == ["auxiliary parts keep their random initialisation"]
    assert "auxiliary parts keep their random initialisation" in capsys.readouterr().err
    assert any(name.startswith("auxiliary") for name in model.state_dict())


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("tokenizer", "model.token_dim=5"),
        ("tokenizer", "model.encoder.depth=2"),
        ("maetok", "model.encoder.dim=32"),
        ("sit", "model.dim=32"),
        ("generator", "model.head.width=32"),
    ],
)
def test_other_sizes_are_refused_in_one_line(pair: Any, kind: str, change: str) -> None:
    with pytest.raises(WeightsError, match=r"^init_from=.*first: \d+ weights .* for this model: [^\n]*$"):
        pair(kind, change)


def test_other_kinds_and_no_model_are_refused(pair: Any, tiny: Tiny, tmp_path: Path) -> None:
    pair("tokenizer")
    model = store.build_model(load_recipe(tiny("maetok")).model)
    with pytest.raises(ConfigError, match=r"^init_from: expected a maetok, .*first is a semanticist$"):
        init_from(model, str(tmp_path / "first"))
    with pytest.raises(WeightsError, match=r"^init_from: no model"):
        init_from(model, str(tmp_path / "nowhere" / "x"))
