"""The trials of participants: balanced exactly, and a pure function of the study and the participant's number."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tok1d.study.plan import conditions, trials

from .made import make_study

DESIGNS = [
    {"keep": (2,), "reveal": (100,), "num": 6},
    {"keep": (1, 4), "reveal": (100, 500), "num": 16},
    {"keep": (1, 2, 4), "reveal": (50,), "num": 12},
]


@pytest.mark.parametrize("design", DESIGNS)
def test_every_item_is_seen_in_every_condition_on_both_sides_by_a_round_of_participants(design: dict) -> None:
    study = make_study(**design)
    cells = conditions(study)
    seen = Counter(
        (trial.item, trial.keep, trial.reveal_ms, trial.target)
        for participant in range(2 * len(cells))
        for trial in trials(study, participant)
        if trial.kind == "main"
    )
    assert set(seen.values()) == {1}
    assert len(seen) == len(study.items) * len(cells) * 2


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("participant", [0, 1, 7])
def test_the_trials_of_one_participant_are_balanced(design: dict, participant: int) -> None:
    study = make_study(**design)
    main = [trial for trial in trials(study, participant) if trial.kind == "main"]
    assert sorted(trial.item for trial in main) == list(range(len(study.items)))
    cells = Counter((trial.keep, trial.reveal_ms, trial.target) for trial in main)
    assert set(cells.values()) == {len(study.items) // (2 * len(conditions(study)))}


@settings(max_examples=30, deadline=None)
@given(
    num=st.integers(1, 20),
    practice=st.integers(0, 3),
    catch=st.integers(0, 4),
    keep=st.sets(st.integers(0, 16), min_size=1, max_size=3),
    participant=st.integers(0, 10_000),
)
def test_trials_of_any_design(num: int, practice: int, catch: int, keep: set[int], participant: int) -> None:
    study = make_study(keep=tuple(sorted(keep)), num=num, practice=practice, catch=catch)
    found = trials(study, participant)
    assert found == trials(study, participant)
    assert [trial.position for trial in found] == list(range(num + practice + catch))
    assert Counter(trial.kind for trial in found) == Counter({"practice": practice, "main": num, "catch": catch})
    assert all(trial.kind == "practice" for trial in found[:practice])
    for trial in found:
        items = {"practice": study.practice, "main": study.items, "catch": study.catch}[trial.kind]
        item, pictures = items[trial.item], {"left": trial.left, "right": trial.right}
        target = pictures.pop(trial.target)
        expected = item.original if trial.keep is None else item.reconstructions[study.keep.index(trial.keep)]
        assert (trial.original, target, *pictures.values()) == (item.original, expected, item.distractor)
        assert (trial.keep is None) == (trial.kind == "catch")


def test_participants_have_their_own_order_and_seeds_too() -> None:
    study = make_study()
    orders = {tuple((t.kind, t.item) for t in trials(study, participant)) for participant in range(20)}
    assert len(orders) == 20
    assert max(Counter(trials(study, n)[2].item for n in range(40)).values()) < 20
