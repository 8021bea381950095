"""Estimated run time: the median step time multiplied by the steps, from real steps that leave no files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tok1d.cli.app import run as run_cli
from tok1d.config.load import load_recipe
from tok1d.cost.loss_networks import loss_networks
from tok1d.data import fashion_mnist, folder, scan_cache
from tok1d.errors import ConfigError, DataError
from tok1d.train import profile as profiling
from tok1d.train import run
from tok1d.train.profile import WARMUP, Phase, phases, profile_steps, rows
from tok1d.train.profile_task import profile_task, with_random_weights
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
ADVERSARIAL = (
    *("adversarial.weight=0.4", "adversarial.start=5", "adversarial.discriminator={name: patch, width: 4, layers: 1}"),
)


class Stopwatch:
    """A clock by which step i of a phase waits waits[i] and takes times[i] seconds in all."""

    def __init__(self, times: list[float], waits: list[float]) -> None:
        self.now, self.reads = 0.0, 0
        self.parts = [part for time, wait in zip(times, waits) for part in (0.0, wait, time - wait)]

    def __call__(self) -> float:
        self.now += self.parts[self.reads % len(self.parts)]
        self.reads += 1
        return self.now


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_hours_are_the_median_step_times_their_number(tiny: Tiny, fashion: None) -> None:
    recipe = load_recipe(tiny("classifier"), ["train.steps=7200", "train.peak_tflops=2"])
    times = [99.0] * WARMUP + [3.0, 1.0, 2.0, 50.0, 1.5]
    result = profile_steps(recipe, 5, Stopwatch(times, [0.5] * len(times)))
    assert result.times[0].seconds == pytest.approx([3.0, 1.0, 2.0, 50.0, 1.5])
    assert result.hours == pytest.approx(2.0 * 7200 / 3600)
    assert result.times[0].waited == pytest.approx(5 * 0.5 / 57.5)
    flops = result.times[0].flops
    assert flops is not None
    text = rows(result)
    assert ("", "4", "images per second") in text
    assert any(cells[0] == "time" and cells[1] == "4 h" for cells in text)
    assert any(cells[1] == f"{flops / 2.0 / 2e12:.1%}" and "utilisation" in cells[2] for cells in text)


def test_both_players_are_measured_and_weighted(tiny: Tiny, fashion: None) -> None:
    recipe = load_recipe(tiny("maetok"), ["train.steps=3600", *ADVERSARIAL, "adversarial.start=901"])
    assert [(each.first, each.steps) for each in phases(recipe)] == [(0, 900), (900, 2700)]
    slow = [1.0] * (WARMUP + 2) + [4.0] * (WARMUP + 2)
    result = profile_steps(recipe, 2, Stopwatch(slow, [0.0] * len(slow)))
    assert result.hours == pytest.approx((900 * 1.0 + 2700 * 4.0) / 3600)
    before, after = result.times
    assert before.flops is not None and after.flops is not None and after.flops > before.flops
    never = load_recipe(tiny("maetok"), [*ADVERSARIAL, "adversarial.start=100"])
    assert (
        len(phases(never)) == 1 and len(phases(load_recipe(tiny("maetok"), [*ADVERSARIAL, "adversarial.start=1"]))) == 1
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_measured_steps_are_in_their_phase(steps: int) -> None:
    phase = Phase("", 40, steps)
    places = [phase.at(i) for i in range(20)]
    assert min(places) >= 40 and max(places) < 40 + steps and len(set(places)) == min(20, steps)


def test_the_discriminator_trains_in_its_phase(tiny: Tiny, fashion: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_trained: list[tuple[int, bool]] = []
    step = profiling.Run.train_step

    def watched(self: profiling.Run, batches: list[Any]) -> Any:
        logged = step(self, batches)
        steps_trained.append((self.step, float(logged["d_loss_adversarial"]) > 0))
        return logged

    monkeypatch.setattr(profiling.Run, "train_step", watched)
    profile_steps(load_recipe(tiny("maetok"), [*ADVERSARIAL]), 1)
    assert all(trains == (place + 1 >= 5) for place, trains in steps_trained)
    assert {trains for _, trains in steps_trained} == {False, True}


def test_nothing_is_written_and_training_is_the_same_after_it(
    tiny: Tiny, fashion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    path = tiny("tokenizer")
    before = files(tmp_path)
    assert run_cli(["train", path, "--dry-run", "--measure", "--measure-steps", "2"]) == 0
    text = capsys.readouterr().out
    assert "time" in text and "64 images of fashion_mnist" in text and "median of 2" in text
    assert files(tmp_path) == before
    prints = []
    for name, first in (("plain", False), ("after", True)):
        recipe = replace(load_recipe(path), out=str(tmp_path / name))
        if first:
            profile_steps(recipe, 1)
        out = run.train(recipe, quiet=True)
        prints.append(fingerprint(store.load(str(out / "model"))))
    assert prints[0] == prints[1]


def test_a_run_at_work_is_not_disturbed(tiny: Tiny, fashion: None, tmp_path: Path) -> None:
    recipe = replace(load_recipe(tiny("classifier")), out=str(tmp_path / "run"))
    run.train(recipe, quiet=True, seconds=0)
    before = files(tmp_path)
    profile_steps(recipe, 1)
    assert files(tmp_path) == before


def test_without_data_batches_are_random_and_this_is_reported(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    result = profile_steps(load_recipe(tiny("classifier")), 1)
    assert result.batches.source.startswith("random images (Fashion-MNIST is not in") and not result.batches.real
    assert not any("waiting" in cells[2] for cells in rows(result))
    assert not (tmp_path / "cache").exists()
    generator = profile_steps(load_recipe(tiny("generator", tokenizer="nowhere"), [f"cache={tmp_path / 'no'}"]), 1)
    assert generator.batches.source.startswith("random tokens") and "making the token cache" in generator.omitted
    assert not list(tmp_path.iterdir())


def test_teachers_are_not_fetched(tiny: Tiny) -> None:
    overrides = [
        "model.alignment={teacher: vit_tiny_patch14_nowhere, image_size: 28}",
        "model.decoder.align_depth=1",
        "model.decoder.patch=7",
    ]
    assert with_random_weights(load_recipe(tiny("tokenizer"), overrides)).model.alignment.weights == "random"
    dino = load_recipe(tiny("maetok"), ["adversarial.weight=0.4"])
    assert with_random_weights(dino).adversarial.discriminator.weights == "random"
    other = "adversarial.discriminator.backbone=vit_base_patch16_224.dino"
    unknown = load_recipe(tiny("maetok"), ["adversarial.weight=0.4", other])
    with pytest.raises(
        ConfigError, match=r"--measure downloads nothing; expected a file with the weights of vit_base_patch16_224.dino"
    ):
        with_random_weights(unknown)
    assert loss_networks(unknown) == {"discriminator": None}


def test_lpips_is_as_large_as_the_real_one(tiny: Tiny, fashion: None) -> None:
    recipe = load_recipe(tiny("maetok"), ["perceptual.weight=1.0"])
    losses = profile_task(recipe).task.players[0].losses
    assert losses is not None
    known = loss_networks(recipe)["LPIPS"]
    assert known is not None and known.frozen == 14_714_688 + 64 + 128 + 256 + 512 + 512


def test_what_does_not_fit_is_one_line(tiny: Tiny, fashion: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(profiling.Run, "train_step", full)
    with pytest.raises(ConfigError, match=r"^train.batch_size: 8 images at a time do not fit") as error:
        profile_steps(load_recipe(tiny("classifier")), 1)
    assert "\n" not in str(error.value)


def test_measure_belongs_to_the_dry_run(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny("classifier")
    assert run_cli(["train", path, "--measure"]) == 2
    assert "--measure: expected with --dry-run" in capsys.readouterr().err
    assert run_cli(["train", path, "--dry-run"]) == 0
    assert "--measure times ten steps" in capsys.readouterr().out
    assert run_cli(["train", path, "--dry-run", "--measure", "train.precision=bf16"]) == (
        0 if torch.cuda.is_available() else 2
    )


def test_records_are_neither_kept_nor_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "broken.png"
    image.write_bytes(b"nothing")
    with scan_cache.read_only_cache():
        assert folder._cached_scan(["broken.png"], [image], 1) == {"broken.png": None}, "not looked at"
        with pytest.raises(DataError, match="is not in"):
            fashion_mnist.find()
        scan_cache.write_scan(tmp_path / "kept.json", {})
        assert not (tmp_path / "cache").exists() and not (tmp_path / "kept.json").exists()
    assert folder._cached_scan(["broken.png"], [image], 1)["broken.png"] is not None
    assert len(list((tmp_path / "cache" / "checked").iterdir())) == 1, "once looked through, it is known"
