"""Captions in place of class ids: padding, missing captions, dropout, and checks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tok1d.errors import InputError
from tok1d.nn.caption import Captions
from tok1d.nn.embed import LabelEmbed, checked_cond, training_cond

E, T = 3, 5
CPU = torch.device("cpu")


def captions() -> Tensor:
    """Four of 3, 1, 0 and all places, the rest padding."""
    rows = torch.randn(4, T, E, generator=torch.Generator().manual_seed(0))
    for row, count in zip(rows, (3, 1, 0, T)):
        row[count:] = 0
    return rows


def test_places_of_zeros_are_padding_and_a_caption_of_padding_is_the_null_vector() -> None:
    table = Captions(E, T, 0.1)
    filled, mask = table.filled(captions())
    assert mask.sum(1).tolist() == [3, 1, 1, 5] and mask[:, 0].all()
    assert torch.equal(filled[2, 0], table.null_vector[0]) and not filled[2, 1:].any()
    for i in (0, 1, 3):
        assert torch.equal(filled[i], captions()[i])
    single_zeros = captions()
    single_zeros[0, 0, 0] = single_zeros[0, 1, 2] = 0  # a number that happens to be zero is no padding
    assert torch.equal(table.filled(single_zeros)[1], mask)
    assert torch.equal(checked_cond(table, None, 2, CPU), torch.zeros(2, T, E))
    filled.sum().backward()
    assert table.null_vector.grad is not None and torch.equal(table.null_vector.grad, torch.ones(1, E))


def test_shorter_captions_are_filled_up_in_the_precision_of_the_weights() -> None:
    table = Captions(E, T, 0.1).double()
    short = checked_cond(table, captions()[:2, :3], 2, CPU)
    assert short.shape == (2, T, E) and short.dtype == torch.float64
    assert torch.equal(short, captions()[:2].double())


def test_dropped_captions_are_null() -> None:
    table, uniforms = Captions(E, T, 0.25), torch.tensor([0.0, 0.2499, 0.25, 0.9])
    dropped = table.drop(captions(), uniforms)
    assert torch.equal(dropped[2:], captions()[2:]) and not dropped[:2].any()
    torch.manual_seed(0)
    ones = training_cond(table, torch.ones(20000, 1, E), 20000, CPU)
    assert abs((~ones.flatten(1).any(1)).double().mean().item() - 0.25) < 0.02
    whole = Captions(E, T, 0.0)
    assert torch.equal(whole.drop(captions(), torch.zeros(4)), captions())


def test_none_needs_a_null_condition() -> None:
    with pytest.raises(InputError, match="expected captions, because"):
        checked_cond(Captions(E, T, 0.0), None, 2, CPU)
    assert checked_cond(Captions(E, T, 0.0, null_row=True), None, 2, CPU).shape == (2, T, E)
    # An empty caption among others is replaced by the null vector.
    assert Captions(E, T, 0.0).filled(captions())[1].any(1).all()


@pytest.mark.parametrize(
    "cond",
    [
        torch.tensor([1, 2]),
        torch.zeros(2, E),
        torch.zeros(2, T, E, dtype=torch.int64),
        torch.zeros(2, T, E + 1),
        torch.zeros(2, T + 1, E),
    ],
)
def test_other_conditions_are_refused_in_one_line(cond: Tensor) -> None:
    for call in (checked_cond, training_cond):
        with pytest.raises(InputError) as caught:
            call(Captions(E, T, 0.1), cond, 2, CPU)
        shape = f"(B, at most {T}, {E})"
        expected = f"this model is conditioned on captions, expected embeddings {shape}, got {cond.dtype} of shape"
        assert str(caught.value) == f"{expected} {tuple(cond.shape)}"


def test_a_model_of_classes_refuses_captions_in_one_line() -> None:
    for call in (checked_cond, training_cond):
        with pytest.raises(
            InputError, match=r"^expected class ids \(B,\) of integers, got torch.float32 of shape \(4, "
        ):
            call(LabelEmbed(10, 4, 0.1), captions(), 4, CPU)


def words(**keys: Any) -> Captions:
    torch.manual_seed(0)
    return Captions(E, T, 0.25, words=4, **keys)


IDS = torch.tensor([[1, 4, 2, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 2, 1, 4, 3]])


def test_words_are_rows_of_a_table_and_padding_is_masked() -> None:
    table = words()
    filled, mask = table.filled(IDS)
    embedded = F.pad(table.table, (0, 0, 1, 0))[IDS]  # a row of zeros for padding
    expected, expected_mask = Captions.filled(Captions(E, T, 0.1), embedded)
    assert torch.equal(mask, expected_mask) and mask.sum(1).tolist() == [3, 1, 1, 5]
    assert torch.equal(filled[[0, 1, 3]], expected[[0, 1, 3]]) and torch.equal(filled[2, 0], table.null_vector[0])
    filled.sum().backward()
    assert table.table.grad is not None
    assert table.table.grad[:, 0].tolist() == [2, 3, 2, 2], "each place of a word counts once"


def test_words_are_checked_filled_up_and_dropped() -> None:
    table = words()
    assert torch.equal(checked_cond(table, IDS[:2, :3], 2, CPU), IDS[:2])
    assert torch.equal(checked_cond(table, None, 2, CPU), torch.zeros(2, T, dtype=torch.int64))
    dropped = table.drop(IDS, torch.tensor([0.0, 0.2499, 0.25, 0.9]))
    assert torch.equal(dropped[2:], IDS[2:]) and not dropped[:2].any()
    for wrong, message in (
        (captions(), r"expected ids \(B, at most 5\) of words, int64, got torch.float32"),
        (torch.ones(2, T + 1, dtype=torch.int64), "at most 5"),
        (IDS + 1, r"ids of words: expected 0\.\.4, got 1\.\.5"),
        (IDS - 1, r"got -1\.\.3"),
    ):
        with pytest.raises(InputError, match=message):
            checked_cond(table, wrong, 4, CPU)
