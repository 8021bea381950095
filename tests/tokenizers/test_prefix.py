"""Counts of kept tokens and their masks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tok1d.errors import InputError
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep, sample_keep

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 12), keep=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_mask_is_a_prefix_of_the_count(length: int, keep: list[int]) -> None:
    mask = prefix_mask(torch.tensor(keep), length)
    assert mask.tolist() == [[position < k for position in range(length)] for k in keep]


@pytest.mark.parametrize("lowest", [0, 1])
def test_sampled_counts_are_uniform_and_include_both_ends(lowest: int) -> None:
    samples = sample_keep(20000, 4, lowest=lowest, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(samples, minlength=5).double() / 20000
    expected = torch.tensor([float(k >= lowest) for k in range(5)], dtype=torch.float64) / (5 - lowest)
    torch.testing.assert_close(counts, expected, atol=0.02, rtol=0)


def test_ways_to_say_how_many() -> None:
    assert resolve_keep(None, 3, 8, CPU).tolist() == [8, 8, 8]
    for two in (2, np.int64(2), torch.tensor(2)):
        assert resolve_keep(two, 3, 8, CPU).tolist() == [2, 2, 2]
    counts = resolve_keep(torch.tensor([0, 8, 3], dtype=torch.int32), 3, 8, CPU)
    assert counts.tolist() == [0, 8, 3] and counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (9, "keep: expected 0..8, the number of tokens, got 9"),
        (-1, "keep: expected 0..8, the number of tokens, got -1"),
        (torch.tensor([1, 12, 3]), "got 12"),
        (torch.tensor([1, 2]), "a tensor of ints of shape (3,), got shape (2,)"),
        (torch.tensor([1.9, 2.0, 3.0]), "ints of shape (3,), got shape (3,) of torch.float32"),
        (torch.tensor([True, False, True]), "got shape (3,) of torch.bool"),
        ([1, 2, 3], "got [1, 2, 3]"),
        (4.0, "got 4.0"),
        (True, "got True"),
    ],
)
def test_bad_counts_are_reported_in_one_line(keep: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_keep(keep, 3, 8, CPU)
    assert message in str(caught.value) and "\n" not in str(caught.value)
