"""Records keep their protocol through the file and the tables, and a wrong name is refused."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tok1d.errors import DataError
from tok1d.evaluate.report import html_table, table
from tok1d.zoo.record import Record, frechet_name, read_records, versions, write_records


def record(**changes: Any) -> Record:
    content: dict[str, Any] = {
        "name": "psnr",
        "value": 19.537,
        "unit": "dB",
        "num_images": 10_000,
        "crop": "28x28, none",
        "keep": 4,
        "decoding": {"sampler": "euler", "steps": 12, "guidance": 1.5, "evaluations": 24.0, "unit": "image"},
        "weights": "ema",
        "precision": "float32",
        "seed": 0,
        "weights_hash": "0123abcd",
    }
    return Record(**content | changes)


@pytest.mark.parametrize("name", ["fid", "FID", "rFID", "gfid"])
def test_fid_belongs_to_inception(name: str) -> None:
    assert record(name=name, network="inception@aa").name == name
    for network in (None, "fashion-mnist-cnn@ab", "inception-like@aa"):
        with pytest.raises(ValueError, match="inception"):
            record(name=name, network=network)


def test_a_frechet_distance_is_named_after_its_network() -> None:
    network = "fashion-mnist-cnn@ab12"
    assert frechet_name(network) == "fd@fashion-mnist-cnn"
    assert record(name=frechet_name(network), network=network).network == network
    for wrong in ("resnet@ab12", None):
        with pytest.raises(ValueError, match="another network"):
            record(name=frechet_name(network), network=wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"weights": "average"}, {"num_images": -1}, {"value": None}],
)
def test_a_record_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        record(**wrong)


def test_versions_name_what_measured() -> None:
    assert set(versions()) == {"tok1d", "torch", "numpy", "python"}
    assert record().versions == versions()


def test_writing_and_reading_give_the_same_records(tmp_path: Path) -> None:
    records = [
        record(),
        record(value=math.inf, sampling={"sampler": "sde", "steps": 9, "guidance": 4.0}, versions={"torch": "0"}),
        record(name="lpips", value=None, note="its weights are not here", keep=None),
        Record(name="accuracy", value=0.5, num_images=2),
    ]
    path = tmp_path / "report.json"
    write_records(path, records)
    assert read_records(path) == records
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_records(path, [record()])
    with pytest.raises(TypeError):
        write_records(path, [record(), record(seed={1, 2})])
    assert read_records(path) == [record()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(DataError, match="writable"):
        write_records(path / "report.json", [record()])
    write_records(tmp_path / "new" / "report.json", [record()])
    assert read_records(tmp_path / "new" / "report.json") == [record()]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_records(path, [record()])

    def full_disk(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text.encode(encoding)[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_records(path, [record(seed=1)])
    assert read_records(path) == [record()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "psnr"}]', '[{"value": "x"}]', '"\\ud800'])
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DataError, match="list of metric records") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json"):
        read_records(tmp_path / "nowhere.json")


def test_the_html_table_escapes_and_shows_the_protocol() -> None:
    text = html_table([record(note="<script>&'\""), replace(record(), name="mse", value=0.001, unit="")])
    assert "<script>" not in text and "&lt;script&gt;&amp;" in text
    for shown in (
        "19.54 dB",
        "10000",
        "euler, 24 evaluations an image",
        "ema float32 0123abcd",
        "28x28, none",
        "python",
    ):
        assert shown in text
    assert text.count("<tr>") == 3
    assert "<th>network</th>" not in text  # no record has a value there


def test_the_terminal_table_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=300)
    console.print(table([record(name="[red]x[/red]"), record(value=None, note="no weights")]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x[/red]" in shown and "unavailable" in shown and "no weights" in shown
    assert "python" not in shown


def test_no_records_make_an_empty_table() -> None:
    assert table([]).row_count == 0
    assert "<tbody>" in html_table([])
