"""Held-out losses of a causal generator on tokens in several orders."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.errors import InputError
from tok1d.studies.learner import TokenSet
from tok1d.studies.order import check_order, order_places, orders_of
from tok1d.studies.request import Ordering
from tok1d.tokenizers.base import TokenSpec

TINY = {"dim": 32, "depth": 1, "train_batch": 32}


def token_set(tokens: Tensor) -> TokenSet:
    labels, part = torch.zeros(len(tokens), dtype=torch.int64), len(tokens) * 3 // 4
    return TokenSet(tokens[:part], tokens[part:], labels[:part], labels[part:])


@pytest.fixture
def one_way() -> TokenSet:
    """The second token is the magnitude of the first: known from it, while the reverse leaves the signs open."""
    first = torch.randn(800, 1, 2, generator=torch.Generator().manual_seed(0))
    return token_set(torch.cat([first, first.abs()], 1))


def test_the_direction_in_which_tokens_follow_from_each_other_is_easier(one_way: TokenSet) -> None:
    how = Ordering(steps=80, statistics="position", **TINY)  # type: ignore[arg-type]
    forward, backward, _ = orders_of(one_way, TokenSpec(2, 2), how).points
    assert forward.loss < backward.loss - 0.1
    assert [each.step for each in forward.curve] == [*range(0, 81, 8)] and forward.curve[-1].loss == forward.loss


def test_tokens_that_are_equal_are_equally_easy_in_every_order() -> None:
    tokens = torch.randn(80, 1, 2, generator=torch.Generator().manual_seed(0)).expand(-1, 4, -1)
    found = orders_of(token_set(tokens), TokenSpec(4, 2), Ordering(steps=3, **TINY))  # type: ignore[arg-type]
    assert len({each.loss for each in found.points}) == 1


def test_reversed_is_in_order_on_tokens_that_are_reversed_before(one_way: TokenSet) -> None:
    how, spec = Ordering(steps=5, repeats=2, **TINY), TokenSpec(2, 2)  # type: ignore[arg-type]
    found, turned = (orders_of(each, spec, how).points for each in (one_way, one_way.ordered(torch.tensor([1, 0]))))
    assert (found[0].losses, found[1].losses) == (turned[1].losses, turned[0].losses)
    assert len(found[0].losses) == 2 and found[0].losses[0] != found[0].losses[1]


def test_ids_have_a_loss_in_nats() -> None:
    ids = torch.randint(0, 4, (80, 3), generator=torch.Generator().manual_seed(0))
    found = orders_of(token_set(ids), TokenSpec(3, None, 4), Ordering(steps=2, **TINY))  # type: ignore[arg-type]
    assert found.unit == "nats per id" and found.generator["name"] == "llamagen"
    assert 0 < found.points[0].curve[0].loss < 3


def test_the_orders_are_permutations_and_the_random_one_is_fixed() -> None:
    found = order_places(6, 3)
    assert [each.tolist() for each in found.values()][:2] == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    assert sorted(found["shuffled"].tolist()) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(found["shuffled"], order_places(6, 3)["shuffled"])


def test_a_single_token_has_no_order() -> None:
    class One:
        spec = TokenSpec(1, 4)

    with pytest.raises(InputError, match="one: order needs at least two tokens, this makes 1"):
        check_order(One(), "one", Ordering(), 0)  # type: ignore[arg-type]


def test_the_command_compares_orders_of_several_models(
    fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    command = ["analyze", "order", *models, "fashion_mnist", "--dim", "32", "--depth", "1", "--num", "8"]
    assert cli.run([*command, "--num-train", "16", "--steps", "2", "--train-batch", "4", "--out", str(out)]) == 0
    record = json.loads((out / "order.json").read_text())
    smap, maetok = record["models"]
    assert [each["model"] for each in record["models"]] == models
    assert (smap["ordered"], maetok["ordered"]) == (True, False) and (smap["num"], smap["num_train"]) == (8, 16)
    assert [each["order"] for each in smap["points"]] == ["in order", "reversed", "shuffled"]
    assert smap["seed"] == 0 and "8 of" in smap["reference"] and "16 of" in smap["training"]
    assert record["said"] in capsys.readouterr().out and Image.open(out / "order.png").width > 100
