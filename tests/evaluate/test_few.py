"""Metrics of few images: refused below two, said in the record and on stderr below the customary numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tok1d.cli import app as cli
from tok1d.evaluate.enough import few_images, too_few
from tok1d.evaluate.reference import load_reference

WIDTH = 128  # of the bundled classifier's features


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))


def photos(root: Path, num: int) -> Path:
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        for i in range(num):
            pixels = np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(root / split / "a" / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("metric", "num", "reference", "few"),
    [
        ("fd", 10 * WIDTH - 1, None, f"{10 * WIDTH - 1}, fewer than 10 for each of the 128"),
        ("fd", 10 * WIDTH, 10 * WIDTH, ""),
        ("fd", 50_000, 5, "5, fewer"),
        ("sfd", 5, 50_000, "5, fewer"),
        ("kid", 50_000, 999, "subsets of 999 instead of 1000"),
        ("kid", 1000, 1000, ""),
        ("score", 4999, 5, "4999, fewer than a chunk of 5000"),
        ("score", 5000, 5, ""),
        ("precision", 20, 20, ""),
    ],
)
def test_the_numbers_below_which_it_is_said(metric: str, num: int, reference: int | None, few: str) -> None:
    found = few_images(metric, num, WIDTH, reference)
    assert found.startswith(f"few images: {few}") if few else found == ""


def test_the_least_numbers() -> None:
    for metric, least in (("fd", 2), ("sfd", 2), ("kid", 2), ("precision", 6), ("coverage", 6)):
        assert too_few(metric, least, least) == too_few(metric, least, None) == ""
        for pair in ((least - 1, least), (least, least - 1), (least - 1, None)):
            assert too_few(metric, *pair) == f"expected at least {least} images in each set, got {least - 1}"


def reconstruct(data: Path, out: Path, *more: str) -> int:
    return cli.run(["evaluate", "reconstruction", "fashion-mnist-maetok", str(data), "--out", str(out), *more])


def test_reconstructions_of_few_images(tmp_path: Path, capsys: Any) -> None:
    data, network = photos(tmp_path / "four", 4), ("--network", "fashion-mnist-cnn")
    assert reconstruct(data, tmp_path / "four.json", *network, "--metrics", "psnr,fd,kid,precision") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "few images" in line]
    assert [line.split(":")[0] for line in said] == ["fd@fashion-mnist-cnn", "kd@fashion-mnist-cnn"]
    records = {each["name"]: each for each in json.loads((tmp_path / "four.json").read_text())}
    assert "few images: 4, fewer than 10 for each of the 128" in records["fd@fashion-mnist-cnn"]["note"]
    assert records["precision@fashion-mnist-cnn"]["value"] is None and records["psnr"]["note"] == ""
    one = photos(tmp_path / "one", 1)
    assert reconstruct(one, tmp_path / "one.json", *network, "--metrics", "psnr,fd") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "fd: expected at least 2 images, got 1" in error
    assert not (tmp_path / "one.json").exists()
    assert reconstruct(one, tmp_path / "one.json", "--metrics", "psnr") == 0


def test_samples_and_references_of_few_images(tmp_path: Path, capsys: Any) -> None:
    data = photos(tmp_path / "four", 4)
    command = ["evaluate", "generation", "fashion-mnist-sit", str(data), "--network", "fashion-mnist-cnn"]
    assert cli.run([*command, "--num-samples", "1", "--metrics", "fd"]) == 2
    assert "fd: expected at least 2 samples, got 1" in capsys.readouterr().err
    assert (
        cli.run([*command[:3], str(photos(tmp_path / "one", 1)), *command[4:], "--num-samples", "4", "--metrics", "fd"])
        == 2
    )
    assert "fd: expected at least 2 reference images, got 1" in capsys.readouterr().err
    assert cli.run([*command, "--num-samples", "2", "--metrics", "fd", "--steps", "2"]) == 0
    assert "fd@fashion-mnist-cnn: few images: 2, fewer" in capsys.readouterr().err
    for _ in range(2):  # measured, and read from the cache
        reference = ["reference", str(data), "--network", "fashion-mnist-cnn", "--out", str(tmp_path / "r.npz")]
        assert cli.run([*reference, "--split", "all", "--overwrite"]) == 0
        assert "note: few images: 8, fewer than 10" in capsys.readouterr().out
        assert "few images: 8" in load_reference(tmp_path / "r.npz").note
