import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tok1d.data.order import batch_indices, choice, permutation, uniforms

sizes = st.integers(1, 40)


def stream(num: int, batch_size: int, seed: int, steps: range, world: int = 1) -> np.ndarray:
    parts = [
        batch_indices(num, batch_size, seed=seed, step=step, rank=rank, world=world)[0]
        for step in steps
        for rank in range(world)
    ]
    return np.concatenate(parts)


@given(num=sizes, batch_size=sizes, seed=st.integers(0, 2**63), world=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_stream_is_the_permutations_of_the_epochs_one_after_another(num, batch_size, seed, world):
    steps = 3 * num // (batch_size * world) + 1
    indices = stream(num, batch_size, seed, range(steps), world)
    epochs = len(indices) // num
    expected = np.concatenate([permutation(num, seed, epoch) for epoch in range(epochs + 1)])
    np.testing.assert_array_equal(indices, expected[: len(indices)])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(indices[epoch * num : (epoch + 1) * num]), np.arange(num))


@given(num=sizes, per_rank=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_ranks_partition_the_global_batch_whatever_their_number(num, per_rank, seed):
    whole, epoch = batch_indices(num, per_rank * 4, seed=seed, step=3)
    for world in (2, 4):
        parts = [
            batch_indices(num, per_rank * 4 // world, seed=seed, step=3, rank=r, world=world) for r in range(world)
        ]
        np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), whole)
        assert {part_epoch for _, part_epoch in parts} == {epoch}


def test_ranks_of_one_epoch_share_no_image():
    first, second = (batch_indices(1000, 64, seed=0, step=4, rank=rank, world=2)[0] for rank in (0, 1))
    assert not set(first) & set(second)


def test_the_epoch_is_that_of_the_first_row():
    assert [batch_indices(10, 4, seed=0, step=step)[1] for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_epochs_and_seeds_have_different_orders_and_equal_ones_the_same():
    orders = [tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    np.testing.assert_array_equal(permutation(50, 1, 1), orders[3])


def test_every_place_is_equally_likely():
    places = np.stack([np.argsort(permutation(5, 0, epoch)) for epoch in range(4000)])
    for image in range(5):
        # 800 expected; standard deviation 25.
        assert abs(np.bincount(places[:, image], minlength=5) - 800).max() < 130


def test_uniforms_depend_on_their_own_index_only_and_are_uniform():
    together = uniforms(3, seed=1, epoch=2, indices=np.arange(20000))
    alone = uniforms(3, seed=1, epoch=2, indices=[777])
    np.testing.assert_array_equal(together[777:778], alone)
    assert together.min() >= 0 and together.max() < 1
    np.testing.assert_allclose(together.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.cov(together.T), np.eye(3) / 12, atol=0.002)
    others = [uniforms(3, seed=s, epoch=e, indices=[777], stream=k) for s, e, k in ((2, 2, 0), (1, 3, 0), (1, 2, 1))]
    assert all((other != alone).all() for other in others)


@pytest.mark.parametrize(("num", "step", "rank"), [(0, 0, 0), (5, -1, 0), (5, 0, 2)])
def test_impossible_batches_are_refused(num, step, rank):
    with pytest.raises(ValueError, match="no batch"):
        batch_indices(num, 2, seed=0, step=step, rank=rank, world=2)


def test_a_choice_of_a_step_is_uniform_and_depends_only_on_seed_and_step():
    choices = np.array([choice(3, seed=1, step=step, stream=2) for step in range(6000)])
    assert abs(np.bincount(choices, minlength=3) - 2000).max() < 150  # standard deviation 37
    assert (choices[:50] == [choice(3, seed=1, step=step, stream=2) for step in range(50)]).all()
    for other in ({"seed": 2, "stream": 2}, {"seed": 1, "stream": 0}):
        agree = np.mean(choices == [choice(3, step=step, **other) for step in range(6000)])
        assert 0.29 < agree < 0.38  # a third
    pairs = np.bincount(3 * choices[:-1] + choices[1:], minlength=9)
    assert abs(pairs - 6000 / 9).max() < 110  # one step says nothing of the next
