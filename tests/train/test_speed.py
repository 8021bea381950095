"""Throughput in the log: counted FLOPs equal those of real steps, and rates are FLOPs divided by time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.cost import flops as counting
from tok1d.cost.flops import StepFlops, step_flops, step_flops_or_none
from tok1d.cost.peaks import PEAKS, known_peak, peak_of
from tok1d.tokenizers.tail_drop import TailDropConfig, mean_kept, sample_tail
from tok1d.train import run
from tok1d.train.log import read_log
from tok1d.train.loop import begin
from tok1d.train.profile_task import profile_task
from tok1d.train.speed import Meter, utilisation
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
CPU = torch.device("cpu")


class Clock:
    """Goes on by `tick` seconds each time it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_rates_are_counts_over_seconds() -> None:
    clock = Clock(0.5)
    meter = Meter(24, StepFlops(3 * 10**12, 3 * 10**12), 16.0, clock=clock)
    steps = meter.timed(iter(range(5)))
    for _ in range(4):
        next(steps)
    entry = meter.entry()
    seconds = 0.5 * (2 * 4 + 1)  # two readings for each step, one at the end
    assert entry["images_per_second"] == round(4 * 24 / seconds, 2)
    assert entry["tflops"] * seconds == pytest.approx(4 * 3, rel=1e-3)
    assert entry["mfu"] == pytest.approx(4 * 3 / seconds / 16, abs=1e-4)
    assert entry["loader_wait"] == pytest.approx(4 * 0.5 / seconds, abs=1e-4)
    next(steps)
    assert meter.entry()["tflops"] == pytest.approx(3 / 1.5), "since the line before"


def test_a_log_line_across_the_start_of_the_discriminator_weighs_both_counts() -> None:
    flops = StepFlops(before=10, after=70, start=4)
    assert [flops.at(step) for step in (1, 3, 4, 9)] == [10, 10, 70, 70]
    for first in range(1, 8):
        for last in range(first, 9):
            assert flops.total(first, last) == sum(flops.at(step) for step in range(first, last + 1))
    meter = Meter(1, flops, None, step=2, clock=Clock(1.0))
    steps = meter.timed(iter(range(2)))
    next(steps), next(steps)
    assert meter.entry()["tflops"] == pytest.approx((10 + 70) / 5 / 1e12)


def test_no_peak_no_utilisation_and_no_count_no_rate() -> None:
    assert utilisation(2e12, 2.0, None) == {"tflops": 1.0}
    meter = Meter(1, clock=Clock(1.0))
    next(meter.timed(iter([0])))
    assert set(meter.entry()) == {"images_per_second", "loader_wait"}


ADVERSARIAL = (
    *("adversarial.weight=0.4", "adversarial.start=3", "adversarial.discriminator={name: patch, width: 8, layers: 2}"),
    *("perceptual.weight=1.0", "train.accumulate=2"),
)
WIDE = ["model.encoder.dim=64", "model.decoder.dim=64", "model.encoder.depth=3", "model.decoder.depth=3"]
CASES = [
    ("tokenizer", []),
    ("generator", ["cache=none", "model.head.batch_mul=4"]),
    ("maetok", []),
    ("maetok", [*WIDE, *ADVERSARIAL]),
    (
        "maetok",
        [*WIDE, *ADVERSARIAL, "adversarial.adaptive=false", "adversarial.lecam=0", "adversarial.consistency=4.0"],
    ),
    ("titok", []),
    ("smap", ["model.tail_drop.enabled=false"]),
    ("sit", ["cache=none"]),
    ("classifier", []),
]


def recipe_of(tiny: Tiny, kind: str, overrides: list[str]) -> Recipe:
    keys: dict[str, Any] = {"tokenizer": "nowhere"} if kind in ("generator", "sit") else {}
    return load_recipe(tiny(kind, **keys), overrides)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "overrides"), CASES)
def test_the_count_is_that_of_a_real_step(tiny: Tiny, fashion: None, kind: str, overrides: list[str]) -> None:
    recipe = recipe_of(tiny, kind, overrides)
    expected = step_flops(recipe)
    going = begin(recipe, profile_task(recipe).task, Path("nowhere"))
    going.prepare()
    for step in {1, max(expected.start, 1)}:
        going.step = step - 1
        (batches,) = going.batches([step - 1])
        # Fused attention computes its scores again in the backward pass, which is not counted as FLOPs of the model.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            going.train_step(batches)
        assert expected.at(step) == pytest.approx(counter.get_total_flops(), rel=0.01), f"step {step}"
    assert (expected.after > expected.before) == (recipe.adversarial.weight > 0)


def test_a_dropped_tail_counts_with_its_mean(tiny: Tiny) -> None:
    config = TailDropConfig(min_keep=2, group=2, full_prob=0.2, zero_prob=0.1)
    torch.manual_seed(0)
    sampled = sample_tail(config, 8, 20_000).double().mean().item()
    assert mean_kept(config, 8) == pytest.approx(sampled, abs=0.05)
    dropped, whole = (
        step_flops(load_recipe(tiny("smap"), [f"model.tail_drop.enabled={on}"])) for on in ("true", "false")
    )
    assert dropped.before < whole.before
    masked = step_flops(load_recipe(tiny("smap"), ["model.tail_drop.keep_per=sample"]))
    assert masked == whole, "masked tokens are computed"


def test_counting_uses_no_random_numbers(tiny: Tiny) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    step_flops(load_recipe(tiny("tokenizer")))
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_counted_is_left_out(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(counting, "count_flops", broken)
    assert step_flops_or_none(load_recipe(tiny("tokenizer"))) is None


def test_peaks_are_of_whole_devices() -> None:
    assert known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989.4
    assert known_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5
    assert known_peak("NVIDIA A100-SXM4-80GB", "fp32", tf32=True) == 156.0
    assert known_peak("Tesla T4", "fp32", tf32=True) == 8.1, "it has no TF32"
    assert known_peak("Tesla V100-SXM2-16GB", "bf16") is None
    assert known_peak("Tesla V100-SXM2-16GB", "fp16") == 125.0 and known_peak("NVIDIA Tesla T4", "fp16") == 65.0
    assert known_peak("NVIDIA H100 80GB HBM3", "fp16") == 989.4
    for other in ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G"):
        assert known_peak(other, "bf16") is None, other
    for bf16, tf32, fp32 in PEAKS.values():
        assert fp32 > 0 and (bf16 is None) == (tf32 is None)
        assert bf16 is None or tf32 is None or (bf16 == pytest.approx(2 * tf32, rel=0.02) and tf32 >= 0.99 * fp32)


def test_a_cpu_has_the_configured_peak() -> None:
    assert peak_of(CPU, "fp32") is None and peak_of(CPU, "fp32", 0.25) == 0.25


@pytest.fixture
def train(tiny: Tiny, fashion: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    def trained(name: str, *overrides: str) -> Path:
        recipe = replace(load_recipe(tiny("classifier"), list(overrides)), out=str(tmp_path / name))
        return run.train(recipe, quiet=True)

    yield trained


def test_a_run_logs_its_utilisation_where_the_peak_is_known(train: Callable[..., Path], tiny: Tiny) -> None:
    plain, with_peak = train("plain"), train("with_peak", "train.peak_tflops=0.5")
    for entry in read_log(plain / "log.jsonl"):
        assert "tflops" in entry and "mfu" not in entry
    flops = step_flops(load_recipe(tiny("classifier"))).before
    for entry in read_log(with_peak / "log.jsonl"):
        assert entry["mfu"] == pytest.approx(entry["tflops"] / 0.5, abs=1e-4)
        assert entry["tflops"] == pytest.approx(flops * entry["images_per_second"] / 8 / 1e12, rel=2e-3)
    same = [fingerprint(store.load(str(out / "model"))) for out in (plain, with_peak)]
    assert same[0] == same[1], "what is logged changes no weights"
