"""Accuracies by number of tokens: from planted records, and those of `evaluate reconstruction`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tok1d.analyze.semantics import check_networks, gathered
from tok1d.cli import app as cli
from tok1d.errors import InputError
from tok1d.evaluate.measures import Measures
from tok1d.zoo.record import Record, read_records


def record(name: str, value: float | None, keep: int | None, network: str = "net@1", note: str = "") -> Record:
    return Record(name=name, value=value, num_images=8, network=network, keep=keep, note=note)


def test_records_become_points() -> None:
    found = gathered(
        [
            record("judge_accuracy", 0.25, 1),
            record("judge_accuracy", 0.75, 4),
            record("semantic_agreement@net", 0.5, 4),
            record("judge_accuracy", 0.875, None, note="the test images themselves"),
        ],
        {},
    )
    assert [(each.keep, each.accuracy, each.agreement) for each in found.points] == [(1, 0.25, None), (4, 0.75, 0.5)]
    assert found.num == 8 and found.originals == {"net@1": 0.875} and found.decoding is None
    assert (
        found.said()
        == "the accuracy of net goes from 25.0% with 1 to 75.0% with 4 tokens, against 87.5% on the originals"
    )
    with pytest.raises(InputError, match="semantics needs a network with classes: net has no classes"):
        gathered([record("semantic_agreement@net", None, 1, note="net has no classes")], {})


def test_the_command_reports_what_evaluate_reconstruction_does(
    fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out = ["fashion-mnist-smap", "fashion-mnist-maetok"], tmp_path / "out"
    common = ["--num", "12", "--keep"]
    assert cli.run(["analyze", "semantics", *models, "fashion_mnist", *common, "2,16", "--out", str(out)]) == 0
    content = json.loads((out / "semantics.json").read_text())
    smap, maetok = content["models"]
    assert content["said"] in capsys.readouterr().out and Image.open(out / "semantics.png").width > 100
    assert [each["keep"] for each in smap["points"]] == [2, 16] and [each["keep"] for each in maetok["points"]] == [16]
    assert (smap["num"], smap["label"], smap["decoding"]) == (12, "true", None)
    file = tmp_path / "records.json"
    asked = ["evaluate", "reconstruction", models[0], "fashion_mnist", *common, "2", "--metrics", "labels,semantic"]
    assert cli.run([*asked, "--out", str(file)]) == 0
    known = {each.name.partition("@")[0]: each.value for each in read_records(file) if each.keep == 2}
    point = smap["points"][0]
    assert (point["accuracy"], point["agreement"]) == (known["judge_accuracy"], known["semantic_agreement"])
    [original] = [each.value for each in read_records(file) if each.name == "judge_accuracy" and each.keep is None]
    assert list(smap["originals"].values()) == [original]


def test_a_network_that_does_not_exist_is_refused(
    fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", "semantics", "fashion-mnist-smap", "fashion_mnist", "--network", "fly"]
    assert cli.run([*command, "--out", str(tmp_path / "no")]) == 2
    err = capsys.readouterr().err
    with pytest.raises(InputError, match="semantics needs a network with classes: no file; choose one with --network"):
        check_networks(Measures((), missing={"inception": "no file"}))
    assert "'fly'" in err and err.count("\n") == 1 and not (tmp_path / "no").exists()
