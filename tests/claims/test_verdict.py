"""Verdicts and conditions from planted numbers."""

import math

import pytest
from scipy import stats

from tok1d.claims import regime
from tok1d.claims.verdict import Spread, interval, verdict


@pytest.mark.parametrize(
    ("differences", "state"),
    [
        ([-2.0, -2.1, -1.9], "shown"),
        ([2.0, 2.1, 1.9], "opposite"),
        ([0.1, -0.1, 0.05], "bounded"),
        ([-0.4, -0.41, -0.39], "bounded"),  # below 0 for sure, but by less than counts
        ([-4.0, 0.5, -2.0], "not established"),
        ([3.0, -0.5, 1.0], "not established"),
    ],
)
def test_planted_differences_have_their_verdict(differences: list[float], state: str) -> None:
    """Expected lower, by at least 1."""
    assert verdict(differences, expected="lower", margin=1).state == state


def test_the_expected_side_decides() -> None:
    assert verdict([2.0, 2.1, 1.9], expected="higher", margin=1).state == "shown"
    assert verdict([-2.0, -2.1, -1.9], expected="higher", margin=1).state == "opposite"


def test_a_mean_below_the_margin_is_not_shown() -> None:
    found = verdict([0.5, 0.9, 0.7], expected="higher", margin=1)
    assert found.low is not None and found.low > 0 and found.high is not None and found.high > 1
    assert found.state == "not established"


def test_the_interval_is_that_of_student() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    mean, deviation = sum(values) / 4, float(stats.tstd(values))
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=deviation / math.sqrt(4))
    assert interval(values) == pytest.approx((low, high))


def test_one_seed_is_never_shown_without_a_stated_spread() -> None:
    found = verdict([-50.0], expected="lower", margin=1)
    assert found.state == "not established" and "one seed has no interval" in found.reason and found.low is None
    found = verdict([-50.0], expected="lower", margin=1, spread=Spread(2.0))
    assert found.state == "shown" and "spread of other seeds" in found.reason
    assert (found.low, found.high) == pytest.approx((-53.92, -46.08), abs=0.01)


def test_a_spread_from_few_seeds_is_wider() -> None:
    """Two degrees of freedom: Student's factor 4.303 instead of 1.960."""
    found = interval([5.0], Spread(1.0, freedom=2))
    assert found == pytest.approx((5 - stats.t.ppf(0.975, 2), 5 + stats.t.ppf(0.975, 2)))
    assert verdict([5.0], expected="higher", margin=1, spread=Spread(1.0, 2)).state == "shown"
    assert verdict([4.0], expected="higher", margin=1, spread=Spread(1.0, 2)).state == "not established"


def test_the_interval_of_a_correlation_is_that_of_fisher() -> None:
    low, high = math.tanh(math.atanh(-0.9) - 1.959964 / 2), math.tanh(math.atanh(-0.9) + 1.959964 / 2)
    assert interval([-0.9], Spread(arms=7)) == pytest.approx((low, high))
    assert interval([-0.9], Spread(arms=3)) is None
    found = verdict([-0.9], expected="lower", margin=0.5, spread=Spread(arms=7), what="correlation")
    assert found.state == "shown" and "correlation -0.9" in found.reason and "7 arms" in found.reason
    assert verdict([1.0], expected="lower", margin=0.5, spread=Spread(arms=7)).state == "opposite"


def test_a_condition_that_fails_precedes_every_difference() -> None:
    found = verdict([-2.0, -2.1, -1.9], expected="lower", margin=1, failed=["loss_flat fails for a: loss 2 to 1"])
    assert found.state == "out of regime" and found.reason.startswith("loss_flat fails for a: loss 2 to 1")
    assert "-2" in found.reason


def test_a_flat_loss() -> None:
    falling, flat = [100 - i for i in range(100)], [2.0] * 50 + [1.0] * 50
    assert not regime.loss_flat(falling, 0.01).holds and regime.loss_flat(flat, 0.01).holds
    assert "loss 15.5 to 5.5" in regime.loss_flat(falling, 0.01).figures
    assert regime.loss_flat(falling, 0.7).holds and not regime.loss_flat([1.0], 0.5).holds
    noisy = [1.0, 3.0] * 9 + [0.5, 2.5]  # the means of the last tenths, of two entries, are 2 and 1.5
    found = regime.loss_flat(noisy, 0.01)
    assert found.holds and found.value == 0 and "-25.0%, standard error 71 %" in found.figures, found


def test_a_stored_outcome_is_judged_by_the_limit_of_today() -> None:
    stored = regime.loss_flat([1.0] * 9 + [0.96], 0.02)
    assert not stored.holds and stored.value == pytest.approx(0.04)
    for tolerance, holds in ((0.05, True), (0.03, False)):
        found = regime.judged(stored, [regime.ErrorBelowPca(), regime.LossFlat(tolerance=tolerance)])
        assert found.holds == holds
        allowed = f"allowed {100 * tolerance:.0f} %"
        assert found.figures == f"loss 1 to 0.96 in the last fifth, -4.0%, standard error 0 %, {allowed}"
    bare = regime.error_below_pca(0.01, 0.02, 64)
    assert regime.judged(bare, [regime.ErrorBelowPca()]) is bare and regime.judged(stored, []) is stored


def test_the_other_conditions() -> None:
    assert regime.error_below_pca(0.01, 0.02, 64).holds and not regime.error_below_pca(0.02, 0.02, 64).holds
    assert regime.decoder_floor(1.0, 3.0, 1 / 3).holds and not regime.decoder_floor(7.94, 10.17, 1 / 3).holds
    assert regime.teacher_not_judge("", "cnn").holds and not regime.teacher_not_judge("it did", "cnn").holds
