import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tok1d.errors import DataError, WeightsError
from tok1d.train import checkpoint
from tok1d.train.log import JsonLog, read_log

CPU = torch.device("cpu:0")  # as accelerate names it in runs of several processes
STATE = {"model": {"w": torch.arange(5.0)}, "optimizer": {}, "ema": {}, "seconds": 1.5}


def test_the_newest_comes_back_and_only_the_last_two_stay(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "none", CPU) is None
    for step in (1, 3, 20, 100):
        checkpoint.save(tmp_path, step, {**STATE, "seconds": float(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020.pt", "step-00000100.pt"]
    state = checkpoint.load_latest(tmp_path, CPU)
    assert state is not None and (state["step"], state["seconds"]) == (100, 100.0)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(content: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    full_disk()


def half_written_as_torch_says(content: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0\nframe #0: ...")


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("torch.save", half_written),
        ("torch.save", half_written_as_torch_says),
        ("os.fsync", full_disk),
        ("os.replace", full_disk),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, where, failure) -> None:
    checkpoint.save(tmp_path, 1, STATE)
    monkeypatch.setattr(where, failure)
    with pytest.raises(WeightsError, match=r"step-00000002\.pt") as caught:
        checkpoint.save(tmp_path, 2, STATE)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["step-00000001.pt"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="Not a directory"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, STATE)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def one_bit(path: Path) -> None:
    """Damage that the file's own format does not notice: inside the numbers of a weight."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(5.0).numpy().tobytes()) + 6] ^= 1
    path.write_bytes(content)


def of_zeros(path: Path) -> None:
    """What a file system may leave of a file that never reached the disk."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, emptied, one_bit, of_zeros])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    tmp_path: Path, capsys: Any, damage: Any
) -> None:
    checkpoint.save(tmp_path, 1, STATE)
    path = checkpoint.save(tmp_path, 2, STATE)
    damage(path)
    state = checkpoint.load_latest(tmp_path, CPU)
    assert state is not None and state["step"] == 1
    reported = capsys.readouterr().err
    assert reported.count("\n") == 1 and re.search(
        r"^warning: .*step-00000002\.pt .*the one before, step-00000001\.pt$", reported
    )
    damage(tmp_path / "step-00000001.pt")
    with pytest.raises(WeightsError, match=r"step-00000002\.pt.*step-00000001\.pt.*start over") as caught:
        checkpoint.load_latest(tmp_path, CPU)
    assert "\n" not in str(caught.value)


def test_one_bit_is_noticed_by_the_checksum_alone(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, STATE)
    assert checkpoint.intact(path)
    one_bit(path)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], STATE["model"]["w"])
    assert not checkpoint.intact(path)


def test_files_without_a_checksum_load_as_before(tmp_path: Path) -> None:
    torch.save({**STATE, "step": 3}, tmp_path / "step-00000003.pt")
    state = checkpoint.load_latest(tmp_path, CPU)
    assert state is not None and state["step"] == 3


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_a_sealed_file_as_any_other(tmp_path: Path, mmap: bool) -> None:
    state = torch.load(checkpoint.save(tmp_path, 1, STATE), weights_only=True, mmap=mmap)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])


def test_what_stays(tmp_path: Path) -> None:
    for step in range(1, 10):
        checkpoint.save(tmp_path, step, STATE, keep_last=3, keep_every=4)
    assert [checkpoint.step_of(path) for path in sorted(tmp_path.iterdir())] == [4, 7, 8, 9]
    (tmp_path / ".step-00000009.pt.tmp").write_bytes(b"of a process that was killed")
    checkpoint.save(tmp_path, 8, STATE)  # a run that fell back behind a damaged ninth
    assert [checkpoint.step_of(path) for path in sorted(tmp_path.iterdir())] == [7, 8]


@pytest.mark.parametrize("content", [{"step": 3}, [1, 2], {"model": {}}])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "step-00000003.pt")
    with pytest.raises(WeightsError, match=r"step-00000003\.pt"):
        checkpoint.load_latest(tmp_path, CPU)


def test_a_resumed_log_forgets_what_comes_again_and_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path, 0)
    for step in (2, 4, 6):
        log.write({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    JsonLog(path, 4).write({"step": 5})
    assert read_log(path) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 5}]
    JsonLog(path, 0)
    assert read_log(path) == [] and os.listdir(tmp_path) == ["log.jsonl"]


def test_a_log_line_that_half_fits_on_the_disk_leaves_no_partial_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, opened = JsonLog(tmp_path / "log.jsonl", 0), Path.open
    log.write({"step": 1})

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:4])
            self.file.flush()
            full_disk()

    monkeypatch.setattr(Path, "open", lambda self, mode, **how: Full(opened(self, mode, **how)))
    with pytest.raises(DataError, match=r"log\.jsonl: No space left"):
        log.write({"step": 2})
    monkeypatch.undo()
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JsonLog(tmp_path / "log.jsonl", 0)
    log.write({"step": 1})
    monkeypatch.setattr(json, "dumps", full_disk)
    with pytest.raises(DataError, match=r"log\.jsonl: No space left"):
        log.write({"step": 2})
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DataError, match=r"log\.jsonl: No space left"):
        JsonLog(tmp_path / "log.jsonl", 0)
    assert os.listdir(tmp_path) == ["log.jsonl"] and read_log(tmp_path / "log.jsonl") == [{"step": 1}]
