"""An evaluation in blocks: the same record for any number of processes and after any interruption."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.evaluate.job import Job, remove_temporary
from tok1d.evaluate.measures import Measures
from tok1d.evaluate.sample_batch import SampleImages
from tok1d.evaluate.samples import Save, saving
from tok1d.evaluate.setup import open_job

Tiny = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))


def squares(numbers: range) -> dict[str, Tensor]:
    return {"square": torch.tensor([float(i * i) for i in numbers])}


def collected(job: Job, measure: Any = squares, num: int = 300, batch_size: int = 32) -> list[float] | None:
    with job.run({"about": "squares"}, num, batch_size, measure) as batches:
        return None if batches is None else torch.cat([columns["square"] for _, columns in batches]).tolist()


EXPECTED = [float(i * i) for i in range(300)]


def test_parts_in_any_order_give_all_images_in_order(tmp_path: Path) -> None:
    assert collected(Job()) == EXPECTED
    for parts in (1, 2, 3):
        order = random.Random(parts).sample(range(parts), parts)
        found = [collected(Job(tmp_path / "parts", (i, parts))) for i in order]
        assert found == [*[None] * (parts - 1), EXPECTED] and not (tmp_path / "parts").exists()


@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path: Path, after: int) -> None:
    measured: list[range] = []

    def until(numbers: range) -> dict[str, Tensor]:
        if len(measured) == after:
            raise KeyboardInterrupt
        measured.append(numbers)
        return squares(numbers)

    with pytest.raises(KeyboardInterrupt):
        collected(Job(tmp_path / "parts"), until)
    kept = sum(len(measured[i : i + 2]) == 2 for i in range(0, len(measured), 2))
    measured_then: list[range] = []

    def onward(numbers: range) -> dict[str, Tensor]:
        measured_then.append(numbers)
        return squares(numbers)

    assert collected(Job(tmp_path / "parts"), onward) == EXPECTED
    assert len(measured_then) == 10 - 2 * kept and not (tmp_path / "parts").exists()


def test_blocks_stay_until_the_records_are_written_and_others_are_left_alone(tmp_path: Path) -> None:
    job = Job(tmp_path / "parts")
    with pytest.raises(OSError, match="full"), job.run({}, 5, 2, squares) as batches:
        assert batches is not None
        raise OSError("full")
    before = sorted(path.name for path in (tmp_path / "parts").glob("*.pt"))
    assert len(before) == 1 and collected(job) == EXPECTED
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.pt")) == before
    (tmp_path / "parts" / before[0]).write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged block"), job.run({}, 5, 2, squares) as batches:
        list(batches or ())
    with pytest.raises(InputError, match="--out FILE"):
        Job(part=(0, 2))
    with pytest.raises(ConfigError, match="got 2 of 2"):
        Job(tmp_path, (2, 2))


def test_only_the_torn_files_of_these_names_are_dropped(tmp_path: Path) -> None:
    kept, torn = ["a[1].json", ".a1.json.7.tmp", ".a[1].npz.7.tmp"], ".a[1].json.7.tmp"
    for name in (*kept, torn):
        (tmp_path / name).touch()
    remove_temporary(tmp_path / "a[1].json", tmp_path / "none.npz")
    assert all((tmp_path / name).exists() for name in kept) and not (tmp_path / torn).exists()


def test_blocks_lie_beside_a_folder_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path / "pictures")
    for name in (".", "..", "../pictures"):
        folder = open_job(None, fallback=Path(name)).folder
        assert folder is not None and folder.resolve() == Path(f"{Path(name).resolve()}.parts")
    with pytest.raises(InputError, match="expected a folder with a name, got /"):
        open_job(None, fallback=Path("/"))


def write_greys(
    folder: Path, value: float, *, num: int = 100, part: tuple[int, int] = (0, 1), until: int = 1000
) -> bool:
    """Write grey pictures of this value, interrupted at image `until`; returns whether all parts are done."""
    save = Save(folder=folder)

    def measure(numbers: range) -> dict[str, Tensor]:
        if numbers.start >= until:
            raise KeyboardInterrupt
        return squares(numbers) | save.columns(torch.full((len(numbers), 1, 4, 4), value), numbers)

    job = Job(folder.with_name(f"{folder.name}.parts"), part)
    with job.run({"value": value}, num, 32, measure, save.begin) as batches:
        if batches is None:
            return False
        with saving(save, num):
            list(batches)
    return True


def greys(folder: Path) -> set[int]:
    found = [Image.open(path).getpixel((0, 0)) for path in folder.glob("*.png")]
    assert sorted(path.name for path in folder.glob("*.png")) == [f"{i:06d}.png" for i in range(len(found))]
    return {len(found), *found}  # type: ignore[arg-type]


def test_pictures_of_two_evaluations_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    with pytest.raises(KeyboardInterrupt):
        write_greys(folder, 1.0, until=64)
    for num in (5, 200):
        with pytest.raises(ConfigError, match="has images of another evaluation"):
            write_greys(folder, 0.2, num=num)
    assert write_greys(folder, 1.0) and write_greys(folder, 1.0) and greys(folder) == {100, 255}
    with pytest.raises(ConfigError, match="has images of another evaluation"):
        write_greys(folder, 1.0, num=50)
    shared = tmp_path / "shared"
    assert [write_greys(shared, 1.0, part=(i, 2)) for i in (1, 0)] == [False, True] and greys(shared) == {100, 255}
    for path in shared.glob("*.png"):
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        write_greys(shared, 0.2, until=64)
    (shared / "000003.png").unlink()
    with pytest.raises(DataError, match=r"expected 100 images, 1 of finished blocks are missing, such as 000003\.png"):
        write_greys(shared, 0.2)
    (shared / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"without other files, got notes\.txt"):
        Save(folder=shared)
    assert evaluate("generation", "none", "--save-images", folder, "--out", folder / "r.json") == 2
    assert "--out: expected a file outside" in capsys.readouterr().err


def evaluate(*arguments: object) -> int:
    return cli.run(["evaluate", *map(str, arguments), "--quiet"])


def comparable(path: Path) -> list[dict[str, Any]]:
    """The records of a file without baselines."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [record for record in records if not record["name"].startswith("baseline:")]


@pytest.fixture
def generator(tiny: Tiny, fashion: None, tmp_path: Path) -> Path:
    assert cli.run(["train", tiny("tokenizer", out=tmp_path / "tokenizer")]) == 0
    made = tiny("generator", tokenizer=tmp_path / "tokenizer" / "model", out=tmp_path / "generator")
    assert cli.run(["train", made]) == 0
    return tmp_path / "generator" / "model"


def test_records_for_any_shards_after_any_kill(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file, byte for byte: from one process, in two parts, and after an interruption."""
    command = [
        "generation",
        generator,
        "--num-samples",
        130,
        "--batch-size",
        32,
        "--keep",
        "1,3",
        "--classes",
        "random",
    ]
    command += ["--save-samples", tmp_path / "samples.npz", "--save-images", tmp_path / "pictures"]
    alone, shared, resumed = (tmp_path / f"{name}.json" for name in ("alone", "shared", "resumed"))
    assert evaluate(*command, "--out", alone) == 0
    pixels = SampleImages(tmp_path / "samples.npz").fingerprint()
    assert evaluate(*command, "--out", shared, "--shard", "1/2") == 2, "samples.npz would be replaced"
    command.append("--overwrite")
    assert evaluate(*command, "--out", shared, "--shard", "1/2") == 0 and not shared.exists()
    assert evaluate(*command, "--out", shared, "--shard", "0/2") == 0
    features, calls = Measures.features, iter(range(1000))

    def interrupted(self: Measures, x: Tensor) -> dict[str, Tensor]:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return features(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Measures, "features", interrupted)
        assert evaluate(*command, "--out", resumed) != 0 and not resumed.exists()
    assert list((tmp_path / "resumed.json.parts").glob("*.pt"))
    assert evaluate(*command, "--out", resumed) == 0
    assert comparable(alone) == comparable(shared) == comparable(resumed)
    assert SampleImages(tmp_path / "samples.npz").fingerprint() == pixels
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 130
    assert evaluate(*command, "--seed", 1, "--out", tmp_path / "other.json") == 2
    assert "images of another evaluation" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*tmp"))
    names = {entry["name"].partition("@")[0] for entry in comparable(alone)}
    assert names == {"label_agreement", "fd", "kd", "score", "precision", "recall", "density", "coverage", "memorised"}
    assert {entry["classes"] for entry in comparable(alone)} == {"uniformly random"}


def test_options_and_mistakes(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = generator.parents[1] / "tokenizer" / "model"
    out = tmp_path / "r.json"
    assert evaluate("reconstruction", tokenizer, "fashion_mnist", "--metrics", "all", "--keep", 4, "--out", out) == 0
    found = {entry["name"]: entry for entry in comparable(out)}
    assert found["ssim"]["value"] is not None and found["psnr"]["unit"] == "dB"
    spatial = found["sfd@fashion-mnist-cnn"]
    assert spatial["value"] is None and "no spatial features" in spatial["note"]
    command = ("generation", generator, "--metrics", "labels", "--num-samples", 8, "--out", out, "--overwrite")
    for options in ((), ("--unconditional",)):
        capsys.readouterr()
        assert evaluate(*command, *options, "--guidance", 1) == 0
        (entry,), printed = comparable(out), capsys.readouterr().out
        assert entry["name"] == "label_agreement" and f"records: {out}" in printed and "part 0/1" not in printed
        assert entry["value"] is None if options else entry["value"] is not None
        assert entry["note"] == ("unconditional; the images have no labels" if options else "")
    checkpoint = next((generator.parent / "checkpoints").glob("*.pt"))
    assert (
        evaluate("generation", f"{checkpoint}:raw", "--num-samples", 8, "--metrics", "fd", "--out", out, "--overwrite")
        == 0
    )
    assert {(entry["name"], entry["weights"]) for entry in comparable(out)} == {("fd@fashion-mnist-cnn", "raw")}
    reference = tmp_path / "train.npz"
    assert cli.run(["reference", "fashion_mnist", "--out", str(reference)]) == 0
    for named in ((), ("--network", "fashion-mnist-cnn")):  # they round alike, see `open_network`
        assert (
            evaluate("generation", generator, "--num-samples", 8, "--metrics", "fd", "--reference", reference, *named)
            == 0
        )
    assert evaluate("generation", generator, "--num-samples", 8, "--reference", reference, "--eight-bit") == 2
    assert "pass --float" in capsys.readouterr().err
    capsys.readouterr()
    for arguments, message in (
        (("generation", generator, "--metrics", "fid"), "--metrics: expected all"),
        (("generation", generator, "--metrics", "psnr"), "have no originals"),
        (("generation", generator, "--classes", "some"), "--classes: expected"),
        (("generation", generator, "--shard", "0/2"), "--out FILE"),
        (("generation", generator, "--save-samples", "x.txt"), ".npz"),
        (("generation", f"{tmp_path}/none.pt"), "got none"),
        (("reconstruction", tokenizer, "fashion_mnist", "--reference", reference), "--allow-other-reference"),
    ):
        assert evaluate(*arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
