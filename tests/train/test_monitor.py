"""Warnings during a run: each is given once, when its condition holds, and not otherwise."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tok1d.train.ema import EMA
from tok1d.train.monitor import Monitor


def checked(entries: list[dict[str, Any]], capsys: Any) -> list[str]:
    monitor, warnings = Monitor(), []
    for entry in entries:
        warnings += monitor.check(entry)
    printed = capsys.readouterr().err
    assert printed == "".join(f"warning: {text}\n" for text in warnings)
    return warnings


def test_a_jump_of_the_loss_is_reported_once(capsys: Any) -> None:
    calm = [{"step": step, "loss_a": 0.5, "loss_b": 0.5, "psnr": 40.0} for step in range(10)]
    assert checked(calm, capsys) == []
    jumps = [{"step": 10, "loss_a": 3.4, "loss_b": 0.5}, {"step": 11, "loss_a": 99.0, "loss_b": 0.5}]
    (warnings,) = checked([*calm, *jumps], capsys)
    assert warnings.startswith("step 10: the loss jumped to 3.9, 3.9 times its median 1;")
    assert checked(jumps, capsys) == []  # nothing to compare them with


def test_a_jump_where_the_loss_changes_its_kind_is_no_jump(capsys: Any) -> None:
    entries = [{"step": step, "loss": 0.5 if step <= 10 else 5.0} for step in range(0, 22, 2)]
    monitor = Monitor([10.0])
    assert [text for entry in entries for text in monitor.check(entry)] == [] and monitor.loss_rise() == ""
    (warning,) = monitor.check({"step": 22, "loss": 50.0})
    assert warning.startswith("step 22: the loss jumped to 50, 10.0 times its median 5")
    late = Monitor([100.0])
    assert [text[:8] for entry in entries for text in late.check(entry)] == ["step 12:"]


def test_a_falling_loss_is_no_jump(capsys: Any) -> None:
    assert checked([{"step": step, "loss": 10 * 0.8**step} for step in range(40)], capsys) == []


@pytest.mark.parametrize(
    ("entry", "start"),
    [
        ({"codes_used": 0.01}, "step 7: a batch uses 1.0% of the codebook"),
        ({"codes_used": 0.4}, ""),
        ({"adaptive_weight": 0.0}, "step 7: the adaptive weight of the adversarial loss has been 0"),
        ({"adaptive_weight": 0.2}, ""),
        ({"d_logits_real": 3.0, "d_logits_fake": -2.5}, "step 7: the discriminator is too strong"),
        ({"d_logits_real": 0.4, "d_logits_fake": -0.5}, ""),
        ({"d_logits_real": -3.0, "d_logits_fake": 3.0}, ""),
    ],
)
def test_collapse_is_reported_once(entry: dict[str, float], start: str, capsys: Any) -> None:
    warnings = checked([{"step": step, "loss": 1.0, **entry} for step in (7, 8)], capsys)
    assert [text.startswith(start) for text in warnings] == [True] * bool(start)


def test_the_share_of_the_start_is_what_the_averages_hold() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema = EMA(model, 0.9)
        model.weight.fill_(0.0)
    for step in range(30):
        ema.update(step)
        assert ema.share_of_initial(step + 1) == pytest.approx(float(ema.averages["weight"]), rel=1e-4, abs=1e-6)
    assert EMA(model, 0.999, ramp=False).share_of_initial(1000) == pytest.approx(math.exp(-1), rel=1e-2)


def test_early_previews_report_that_the_averages_are_young(capsys: Any) -> None:
    monitor, slow = Monitor(), EMA(nn.Linear(1, 1), 0.999, ramp=False)
    monitor.check_preview(slow, 100)
    monitor.check_preview(slow, 200)
    assert capsys.readouterr().err.startswith("warning: step 100: the averaged weights (EMA) still contain 90% of")
    monitor = Monitor()
    monitor.check_preview(slow, 4000)
    assert capsys.readouterr().err == ""
