"""Merging the tallies of shards in any order equals a single pass; the Inception Score equals its definition."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tok1d.errors import DataError
from tok1d.evaluate.features import Features
from tok1d.evaluate.kernel import kernel_distance_subsets
from tok1d.evaluate.manifold import manifold
from tok1d.evaluate.metrics import frechet_distance
from tok1d.evaluate.score import ScoreSums, inception_score
from tok1d.evaluate.tally import Tally

DIM, SPATIAL, CLASSES, NUM = 6, 5, 4, 60


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed: int = 0) -> tuple[Features, torch.Tensor]:
    features = Features(noise(NUM, DIM, seed=seed) + 3, noise(NUM, SPATIAL, seed=seed + 1), noise(NUM, CLASSES, seed=9))
    return features, torch.arange(NUM) % CLASSES


def part(features: Features, rows: torch.Tensor) -> Features:
    assert features.spatial is not None and features.logits is not None
    return Features(features.pooled[rows], features.spatial[rows], features.logits[rows])


def tally(**options: Any) -> Tally:
    return Tally(DIM, spatial_dim=SPATIAL, num_classes=CLASSES, **{"keep_features": True, "chunk": 17, **options})


def numbers(found: Tally, other: Tally) -> list[float]:
    """Values of every metric that a tally gives."""
    assert found.spatial is not None and other.spatial is not None and found.agreement is not None
    distances = [frechet_distance(found.pooled, other.pooled), frechet_distance(found.spatial, other.spatial)]
    kid = kernel_distance_subsets(other.features, found.features, num_subsets=3, subset_size=20)
    shape = manifold(other.features, found.features)
    shares = [shape.precision, shape.recall, shape.density, shape.coverage]
    return [*distances, found.score.mean, found.score.std, found.agreement, kid.mean, kid.std, *shares]


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(NUM)), cuts=st.lists(st.integers(0, NUM), min_size=3, max_size=3), turn=st.booleans()
)
def test_shards_in_any_order_equal_one_pass(order: list[int], cuts: list[int], turn: bool) -> None:
    features, labels = images()
    whole = tally().update(features, range(NUM), labels)
    shards = []
    for rows in torch.tensor(order).tensor_split(sorted(cuts)):
        shard = tally()
        for batch in rows.split(7):
            shard.update(part(features, batch), batch, labels[batch])
        shards.append(Tally.from_state(shard.state_dict()))
    if turn:
        shards.reverse()
    merged = tally()
    for shard in shards:
        merged.merge(shard)
    other = tally().update(images(seed=5)[0], range(NUM))
    assert numbers(merged, other) == pytest.approx(numbers(whole, other), rel=1e-10, abs=1e-10)
    assert torch.equal(merged.features, whole.features)
    for got, expected in ((merged.pooled, whole.pooled), (merged.spatial, whole.spatial)):
        assert got is not None and expected is not None and got.count == expected.count == NUM
        assert torch.allclose(got.mean, expected.mean, rtol=1e-10, atol=0)
        assert torch.allclose(got.covariance, expected.covariance, rtol=1e-10, atol=1e-12)
    assert torch.equal(merged.image_numbers, torch.arange(NUM)) and merged.num_images == NUM


def test_merging_leaves_the_shard_and_its_state_alone() -> None:
    features, labels = images()
    first, rest = torch.arange(20), torch.arange(20, NUM)
    shard = tally().update(part(features, rest), rest, labels[rest])
    state = shard.state_dict()
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    tally().update(part(features, first), first, labels[first]).merge(shard)
    resumed = Tally.from_state(state).update(part(features, first), first, labels[first])
    assert resumed.num_images == NUM and shard.num_images == 40
    for key, value in before.items():
        assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(value)), key


def test_a_state_survives_safetensors(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    features, labels = images()
    whole = tally().update(features, range(NUM), labels)
    save_file(
        {key: torch.as_tensor(value) for key, value in whole.state_dict().items()}, tmp_path / "shard.safetensors"
    )
    read = Tally.from_state(load_file(tmp_path / "shard.safetensors"))
    other = tally().update(images(seed=5)[0], range(NUM))
    assert numbers(read, other) == numbers(whole, other) and read.layout == whole.layout


def test_an_image_is_counted_once() -> None:
    features, _ = images()
    some, all_of_them = torch.arange(5), tally().update(features, range(NUM))
    with pytest.raises(DataError, match="every image once, got 5 twice, such as 0"):
        all_of_them.update(part(features, some), some)
    with pytest.raises(DataError, match="every image once"):
        all_of_them.merge(tally().update(part(features, some), some))
    with pytest.raises(DataError, match="twice in a batch"):
        tally().update(part(features, some), [0, 1, 2, 2, 4])
    assert all_of_them.num_images == NUM


Refuse = Callable[[], object]


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (lambda: tally().merge(tally(chunk=None)), "chunks of all"),
        (lambda: tally().merge(tally(keep_features=False)), "features not kept"),
        (lambda: tally(keep_features=False).features, "keep_features"),
        (lambda: Tally(DIM).score, "expected a network with logits"),
        (lambda: Tally(DIM).update(images()[0], range(NUM)), "the network that it was created for"),
        (lambda: tally().update(images()[0], range(3)), "one number for each of 60 images, got 3"),
        (lambda: tally().score, "expected at least one image"),
    ],
)
def test_what_does_not_belong_together_is_refused(refuse: Refuse, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        refuse()
    assert "\n" not in str(caught.value)


def test_a_batch_that_is_not_finite_counts_nothing() -> None:
    features, _ = images()
    features.pooled[3, 2] = torch.nan
    started = tally()
    with pytest.raises(DataError, match="finite"):
        started.update(features, range(NUM))
    assert started.num_images == 0 and not len(started.image_numbers)


def test_agreement_is_the_share_of_labelled_images_put_right() -> None:
    logits = torch.eye(CLASSES)[[0, 1, 2, 3, 0]]
    found = Tally(2, num_classes=CLASSES).update(Features(torch.zeros(5, 2), logits=logits), range(5))
    assert found.agreement is None
    other = Features(torch.zeros(4, 2), logits=logits[:4])
    found.update(other, range(5, 9), torch.tensor([0, 1, 2, 0]))
    assert found.agreement == 0.75


def test_the_score_of_sure_and_even_guesses_is_the_number_of_classes() -> None:
    sure = 1000 * torch.eye(CLASSES).repeat(6, 1)
    assert inception_score(sure).mean == pytest.approx(CLASSES)
    assert inception_score(torch.zeros(8, CLASSES)).mean == pytest.approx(1)
    one = inception_score(1000 * torch.eye(CLASSES)[[2] * 5])  # one class only
    assert (one.mean, one.std, one.num_chunks) == (pytest.approx(1), 0, 1)


def test_the_score_is_its_definition_on_unshuffled_chunks() -> None:
    logits = 2 * noise(25, CLASSES)
    expected = []
    for chunk in logits.split(10):  # the last one of 5, as the ADM suite takes it
        p = chunk.softmax(dim=1)
        expected.append(math.exp((p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().item()))
    found = inception_score(logits, chunk=10)
    assert found.mean == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert found.std == pytest.approx(torch.tensor(expected, dtype=torch.float64).std(correction=0).item(), rel=1e-12)
    assert inception_score(logits, chunk=None).num_chunks == 1
    assert inception_score(logits, chunk=None).mean != pytest.approx(found.mean)
    with pytest.raises(DataError, match="at least one image"):
        ScoreSums(CLASSES, 0)


def test_the_score_is_torch_fidelitys() -> None:
    isc = pytest.importorskip("torch_fidelity.metric_isc", reason="pip install torch-fidelity compares with it")
    logits = 2 * noise(40, CLASSES)
    theirs = isc.isc_features_to_metric(logits, splits=4, shuffle=False)
    found = inception_score(logits, chunk=10)
    assert found.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(theirs["inception_score_std"], rel=1e-9)
