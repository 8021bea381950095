"""A grid of evaluations: its cells equal single evaluations, also when interrupted, shared out or repeated."""

import csv
import itertools
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.options import options_of
from tok1d.errors import InputError
from tok1d.evaluate import grid, setup
from tok1d.evaluate.explain import explain
from tok1d.evaluate.features import FrozenNetwork
from tok1d.evaluate.measures import Measures, names_of
from tok1d.evaluate.metric_names import METRICS, Number, lower_is_better, record_name
from tok1d.evaluate.prepare import Opened, prepare
from tok1d.evaluate.request import Generation, Reconstruction
from tok1d.zoo import store
from tok1d.zoo.checkpoints import load_checkpoint
from tok1d.zoo.record import Record, ReferenceSet, write_records
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOK1D_CACHE", str(tmp_path / "cache"))


def test_lists_of_values() -> None:
    options = {each.name: each for each in options_of(Generation)}
    for name, text, expected in (
        ("steps", "10,25", [10, 25]),
        ("guidance_interval", "0:1,0.2:0.8", [(0.0, 1.0), (0.2, 0.8)]),
        ("guidance", "1, 1.5,1.50", [1.0, 1.5]),
        ("sampler", "sde,euler", ["sde", "euler"]),
        ("guidance_schedule", "linear,constant", ["linear", "constant"]),
    ):
        assert options[name].values(text) == expected
    for name, text in (
        ("steps", "0"),
        ("steps", "10,2.5"),
        ("guidance", "1,,2"),
        ("guidance", "1,nan"),
        ("temperature", "inf"),
        ("guidance", "-1"),
        ("top_p", "0.5,1.5"),
        ("top_k", "few"),
        ("guidance_interval", "0,1"),
        ("guidance_schedule", "linear,steep"),
    ):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: expected"):
            options[name].values(text)


def test_cells_are_the_product_of_the_axes() -> None:
    axes = {"model": ["a", "b"], "guidance": [1.0, 1.5, 2.0], "steps": [10, 25]}
    found = grid.cells_of(Generation(model="a", seed=3), axes)
    expected = [
        Generation(model=model, seed=3, guidance=guidance, steps=steps)
        for model in "ab"
        for guidance in (1.0, 1.5, 2.0)
        for steps in (10, 25)
    ]
    assert found == expected and len(set(found)) == 12
    assert grid.varying({**axes, "top_k": [5]}) == list(axes)


def test_a_cell_is_named_after_what_its_numbers_depend_on() -> None:
    request, identity = Generation(model="m"), {"weights": "ab"}
    name = grid.cell_name(request, identity)
    changes: list[dict[str, Any]] = [
        {"guidance": 2.0},
        {"keep": (1, 2)},
        {"num_samples": 5},
        {"seed": 1},
        {"metrics": ("fd",)},
    ]
    others = {grid.cell_name(replace(request, **change), identity) for change in changes}
    others |= {grid.cell_name(request, {"weights": "cd"}), grid.cell_name(Reconstruction(model="m"), identity)}
    assert len(others) == len(changes) + 2 and name not in others
    assert grid.cell_name(replace(request, device="cpu", data_root="/elsewhere"), identity) == name


def test_every_metric_has_a_better_end() -> None:
    low = {"mse", "lpips", "fd", "sfd", "kid", "memorised"}
    for metric, kind, network in itertools.product(METRICS, ("reconstruction", "generation"), ("inception", "cnn@ab")):
        assert lower_is_better(record_name(Number(metric, 1.0, network), kind)) == (metric in low)


def cell(name: str, guidance: float, **values: float | None) -> grid.Cell:
    def record(metric: str, value: float | None, keep: int | None) -> Record:
        title, network = ("fd@cnn", "cnn@ab") if metric == "fd" else (metric, None)
        reference = None if network is None else ReferenceSet("77d4", count=64)
        note = "" if value is not None else "not measured"
        return Record(name=title, value=value, num_images=5, keep=keep, network=network, reference=reference, note=note)

    records = [record(metric, value, 4) for metric, value in values.items()]
    return grid.Cell(Generation(model="m", guidance=guidance), name, [*records, record("psnr", 99.0, None)])


CELLS = [
    cell("a", 1.0, fd=3.0, psnr=20.0, recall=None),
    cell("b", 1.5, fd=2.0, psnr=math.inf, recall=None),
    cell("c", 2.0, fd=math.nan, psnr=math.inf, recall=None),
    cell("d", 4.0, fd=None, psnr=10.0, recall=None),
]


def test_the_best_of_each_metric() -> None:
    rows = grid.rows_of(CELLS)
    assert [row.keep for row in rows] == [4] * 4 and grid.metrics_of(rows) == ["fd@cnn", "psnr", "recall"]

    def names(found: list[grid.Row]) -> str:
        return "".join(row.cell.name for row in found)

    assert names(grid.best_of(rows, "fd@cnn")) == "b" and names(grid.best_of(rows, "psnr")) == "bc"
    assert grid.best_of(rows, "recall") == []
    assert names(grid.sorted_by(rows, "fd@cnn")) == "bacd" and names(grid.sorted_by(rows, "psnr")) == "bcad"
    assert grid.find_metric("fd", grid.metrics_of(rows)) == "fd@cnn"
    for text in ("fid", "fd@", "precision"):
        with pytest.raises(InputError, match="--best: expected one of fd@cnn, psnr, recall"):
            grid.find_metric(text, grid.metrics_of(rows))
    with pytest.raises(InputError, match="--best"):
        grid.find_metric("fd", ["fd@cnn", "fd@inception-like"])


def test_what_is_written_and_shown() -> None:
    rows, axes = grid.rows_of(CELLS), {"model": ["m"], "guidance": [1.0, 1.5, 2.0, 4.0]}
    found = list(csv.DictReader(grid.csv_text(rows, list(axes)).splitlines()))
    assert [row["guidance"] for row in found] == ["1.0", "1.5", "2.0", "4.0"]
    assert [row["fd@cnn"] for row in found] == ["3.0", "2.0", "nan", ""] and {row["recall"] for row in found} == {""}
    written = json.loads(json.dumps(grid.to_json(CELLS, axes), allow_nan=False))
    assert written["axes"] == axes and set(written["best"]) == {"fd@cnn", "psnr"}
    assert written["best"]["fd@cnn"] == {"cell": "b", "keep": 4, "value": 2.0}
    assert written["cells"][1]["settings"]["guidance"] == 1.5 and len(written["cells"][1]["records"]) == 4
    assert Record.from_json(written["cells"][0]["records"][0]) == CELLS[0].records[0]
    console = Console(width=200, record=True)
    console.print(grid.table(rows, ["guidance"]))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    assert [[each.strip() for each in line] for line in lines] == [
        ["1", "4", "3", "20", "unavailable"],
        ["1.5", "4", "2 *", "inf *", "unavailable"],
        ["2", "4", "nan", "inf *", "unavailable"],
        ["4", "4", "unavailable", "10", "unavailable"],
    ]
    assert grid.legend(rows) == "* is the lowest fd@cnn, highest psnr"
    other = replace(CELLS[0], records=[replace(CELLS[0].records[0], reference="others")])
    assert grid.legend(grid.rows_of([*CELLS, other])).endswith("differ between rows: fd@cnn")


def two_classifiers(first: str, second: str) -> list[Record]:
    """Records of one cell of samples with two networks; the first has two records."""
    return [
        Record(name=name, value=value, num_images=5, keep=4, network=network, reference=ReferenceSet("77d4", count=64))
        for network, values in ((first, (0.5, 3.0)), (second, (0.25, 1.5)))
        for name, value in zip(("label_agreement", f"fd@{network.partition('@')[0]}"), values)
    ]


def test_no_network_s_number_is_lost_beside_another_s(tmp_path: Path) -> None:
    for networks, columns in (
        (("cnn@ab", "mlp@cd"), ("label_agreement@cnn", "fd@cnn", "label_agreement@mlp", "fd@mlp")),
        (
            ("cnn@ab", "cnn@cd"),
            ("label_agreement@cnn@ab", "fd@cnn@ab", "label_agreement@cnn@cd", "fd@cnn@cd"),
        ),
    ):
        cells = [grid.Cell(Generation(model="m"), "a", two_classifiers(*networks))]
        rows = grid.rows_of(cells)
        (written,) = csv.DictReader(grid.csv_text(rows, []).splitlines())
        assert [float(written[name]) for name in columns] == [0.5, 3.0, 0.25, 1.5]
        assert {name: each["value"] for name, each in grid.to_json(cells, {})["best"].items()} == dict(
            zip(columns, (0.5, 3.0, 0.25, 1.5))
        )
        path = tmp_path / "records.json"
        write_records(path, cells[0].records)
        for name, value in zip(columns, (0.5, 3.0, 0.25, 1.5)):
            assert explain(str(path), "maetok", metric=name).a.value == value
        with pytest.raises(InputError, match=", ".join(f"{name} keep 4" for name in columns)):
            explain(str(path), "maetok", metric="psnr")
        with pytest.raises(InputError, match="--best: expected one of label_agreement@cnn"):
            grid.find_metric("label_agreement", grid.metrics_of(rows))
        measures = Measures(
            ("labels", "fd"), [FrozenNetwork(*each.split("@"), device="cpu", dim=1) for each in networks]
        )
        assert names_of(measures, "generation") == list(columns)


@pytest.fixture
def generator(tiny: Tiny, fashion: None, tmp_path: Path) -> Path:
    """The run of a generator that keeps three checkpoints."""
    assert cli.run(["train", tiny("tokenizer", out=tmp_path / "tokenizer")]) == 0
    made = tiny("generator", tokenizer=tmp_path / "tokenizer" / "model", out=tmp_path / "generator")
    assert cli.run(["train", made, "train.save_every=2", "train.keep_last=3"]) == 0
    return tmp_path / "generator"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that the feature networks received; the trial images of cells are not counted."""
    batch_sizes: list[int] = []
    features = Measures.features

    def counting(self: Measures, x: Tensor) -> dict[str, Tensor]:
        if self.networks:
            batch_sizes.append(len(x))
        return features(self, x)

    monkeypatch.setattr(Measures, "features", counting)
    return batch_sizes


def evaluate(*arguments: object) -> int:
    return cli.run(["evaluate", *map(str, arguments), "--quiet"])


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "grid.json").read_text())


def without_baselines(path: Path) -> list[dict[str, Any]]:
    """The records of a file without baselines, which a grid does not compute."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [record for record in records if not record["name"].startswith("baseline:")]


def test_a_cell_is_the_single_command(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--num-samples", 70, "--batch-size", 32, "--keep", "1,3", "--metrics", "labels,fd,recall"]
    lists = ["--guidance", "1,2", "--steps", "2,3", "--sampler", "euler,sde", "--best", "fd"]
    assert evaluate("grid", generator / "model", "--out", tmp_path / "grid", *common, *lists) == 0
    shown = capsys.readouterr().out
    found = content(tmp_path / "grid")
    cells_seen = [
        (each["settings"]["steps"], each["settings"]["sampler"], each["settings"]["guidance"])
        for each in found["cells"]
    ]
    assert cells_seen == list(itertools.product([2, 3], ["euler", "sde"], [1.0, 2.0]))
    assert sorted(path.name for path in (tmp_path / "grid" / "cells").iterdir()) == sorted(
        f"{each['name']}.json" for each in found["cells"]
    )
    for each in (found["cells"][1], found["cells"][6]):
        settings = [f"--{key}={each['settings'][key]}" for key in ("sampler", "steps", "guidance")]
        alone = tmp_path / f"{each['name']}.json"
        assert evaluate("generation", generator / "model", "--out", alone, *common, *settings) == 0
        assert json.loads((tmp_path / "grid" / "cells" / alone.name).read_text()) == without_baselines(alone)
        assert without_baselines(alone) == each["records"]
    rows = list(csv.DictReader((tmp_path / "grid" / "grid.csv").read_text().splitlines()))
    assert len(rows) == 16 and {row["keep"] for row in rows} == {"1", "3"}
    distances = [float(row["fd@fashion-mnist-cnn"]) for row in rows]
    best = found["best"]["fd@fashion-mnist-cnn"]
    first = rows[distances.index(min(distances))]
    assert (best["cell"], str(best["keep"]), best["value"]) == (first["cell"], first["keep"], min(distances))
    shown_rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    column = [float(line[5].replace("*", "")) for line in shown_rows]
    assert len(column) == 16 and column == sorted(column) and "*" in shown_rows[0][5]
    assert "lowest fd@fashion-mnist-cnn" in shown and "num_images" not in shown and "images 70" in shown


def test_an_interrupted_grid_goes_on_where_it_was(
    generator: Path, tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = [
        "grid",
        generator / "model",
        "--num-samples",
        130,
        "--batch-size",
        64,
        "--metrics",
        "fd",
        "--guidance",
        "1,2,3",
    ]
    whole, broken, shared = (tmp_path / name for name in ("whole", "broken", "shared"))
    read: list[Any] = []
    cached = setup.cached_reference
    monkeypatch.setattr(setup, "cached_reference", lambda *a, **k: read.append(a) or cached(*a, **k))
    assert evaluate(*command, "--out", whole) == 0
    assert sum(measured) == 3 * 130 and len(read) == 1  # the training images are the reference of all cells
    features = Measures.features

    def pressed(self: Measures, x: Tensor) -> dict[str, Tensor]:
        if self.networks and sum(measured) == 130 + 64:
            raise KeyboardInterrupt  # in the middle of the second cell
        return features(self, x)

    measured.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Measures, "features", pressed)
        assert evaluate(*command, "--out", broken) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; the same command resumes"
    assert len(list((broken / "cells").glob("*.json"))) == 1 and not (broken / "grid.json").exists()
    measured.clear()
    assert evaluate(*command, "--out", broken) == 0
    assert sum(measured) == 2 * 130 - 64
    for name in ("grid.json", "grid.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(tmp_path.rglob("*.parts")) and not list(tmp_path.rglob(".*tmp"))

    finished = next((broken / "cells").glob("*.json"))  # as a kill after its record leaves it
    finished.with_name(f"{finished.name}.parts").mkdir()
    finished.with_name(f".{finished.name}.1.tmp").touch()
    measured.clear()
    assert evaluate(*command, "--out", broken) == 0 and not measured
    assert not list(tmp_path.rglob("*.parts")) and not list(tmp_path.rglob(".*tmp"))
    assert evaluate(*command[:-1], "1,4", "--out", broken) == 0 and sum(measured) == 130
    assert [each["settings"]["guidance"] for each in content(broken)["cells"]] == [1.0, 4.0]

    measured.clear()
    assert evaluate(*command, "--out", shared, "--shard", "1/2") == 0 and sum(measured) == 3 * 64
    assert not (shared / "grid.json").exists() and "part 1/2 is done" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0"), patch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
        assert evaluate(*command, "--out", shared) == 0 and sum(measured) == 3 * 130
    assert (shared / "grid.json").read_bytes() == (whole / "grid.json").read_bytes()


def test_a_model_is_freed_before_the_next_is_read() -> None:
    opened = Opened()
    gone = weakref.ref(opened.once("model", 1, lambda: nn.Linear(1, 1)))
    found = [gone() is None, opened.once("model", 2, lambda: gone() is None)]
    assert found == [False, True]


def test_a_cell_depends_on_the_weights_of_its_guidance_model(generator: Path) -> None:
    request = Generation(model=str(generator / "model"), data="fashion_mnist", guidance=2.0)
    weak = replace(request, weak_model=str(generator / "model"))
    found = [prepare(each, Opened()).identity["weak"] for each in (request, weak)]
    assert found == [None, store.model_identity(store.load(generator / "model"))]
    earlier = str(generator / "checkpoints" / "step-00000002.pt")
    found = [
        prepare(replace(request, weak_model=name), Opened()).identity["weak"] for name in (earlier, f"{earlier}:raw")
    ]
    assert found == [store.model_identity(load_checkpoint(name)) for name in (f"{earlier}:ema", f"{earlier}:raw")]


def test_checkpoints_are_an_axis(generator: Path, tmp_path: Path) -> None:
    common = ["--num-samples", 8, "--metrics", "labels", "--out", tmp_path / "grid"]
    assert (
        evaluate("grid", generator, "--checkpoints", "--weights", "ema,raw", "--model", generator / "model", *common)
        == 0
    )
    files = [generator / "checkpoints" / f"step-{step:08d}.pt" for step in (2, 4, 6)]
    names = [f"{file}:{weights}" for file in files for weights in ("ema", "raw")]
    found = content(tmp_path / "grid")
    assert found["axes"]["model"][:6] == names and str(generator / "model") in found["axes"]["model"]
    said = {each["settings"]["model"]: each["records"][0] for each in found["cells"]}
    assert [said[name]["weights"] for name in names] == ["ema", "raw"] * 3
    hashes = [said[name]["weights_hash"] for name in names]
    assert len(set(hashes)) == 6 and hashes[4] == fingerprint(store.load(generator / "model"))
    assert evaluate("grid", f"{files[0]}:raw,{files[2]}", *common) == 0
    assert content(tmp_path / "grid")["axes"]["model"] == [f"{files[0]}:raw", str(files[2])]


def test_reconstructions(generator: Path, tmp_path: Path) -> None:
    tokenizer = generator.parent / "tokenizer" / "model"
    common = ["fashion_mnist", "--num", 20, "--keep", "1,4", "--metrics", "psnr,labels"]
    assert evaluate("grid", tokenizer, *common, "--steps", "1,2", "--guidance", "1,3", "--out", tmp_path / "grid") == 0
    found = content(tmp_path / "grid")["cells"]
    alone = tmp_path / "alone.json"
    assert evaluate("reconstruction", tokenizer, *common, "--steps", 2, "--guidance", 3, "--out", alone) == 0
    assert without_baselines(alone) == found[3]["records"]
    rows = list(csv.DictReader((tmp_path / "grid" / "grid.csv").read_text().splitlines()))
    assert [(row["steps"], row["guidance"], row["keep"]) for row in rows] == [
        (steps, guidance, keep) for steps in "12" for guidance in ("1.0", "3.0") for keep in "14"
    ]


def test_a_mistake_in_any_cell_stops_before_the_first(
    generator: Path, tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, out = generator / "model", generator.parent / "tokenizer" / "model", tmp_path / "grid"
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((model, "--steps", "2,3", "--top-k", "5"), "top_k: epsilon_llamagen does not use it"),
        ((model, "--sampler", "euler,flight"), "'flight' (in the cell sampler flight)"),
        ((model, "--steps", "2,1", "--sampler", "sde"), "at least 2 steps, got 1 (in the cell steps 1)"),
        ((model, "--guidance", "1,2", "--guidance-interval", "0:1,0.2:0.8"), "no interval"),
        ((model, "--guidance", "1,2", "--guidance-schedule", "linear,steep"), "--guidance-schedule: expected"),
        ((model, "--keep", "9"), "--keep: expected numbers in 1..3"),
        ((model, "--guidance", "1,2,x"), "--guidance: expected float >= 0, got x"),
        ((model, "--best", "fid"), "--best: expected one of label_agreement"),
        ((model, "--label", "true"), "--label:"),
        ((model, "--weights", "ema"), "--weights: expected checkpoints"),
        ((model, "--weights", "mean", "--checkpoints"), "--weights: expected ema or raw"),
        ((tmp_path / "cache", "--checkpoints"), "--checkpoints: expected the folder of a run"),
        ((f"{model},{tokenizer}", "fashion_mnist"), "only generators or only tokenizers"),
        ((tokenizer, "fashion_mnist", "--temperature", "0.5,1"), "is a tokenizer without this option; leave it out"),
        ((tokenizer, "fashion_mnist", "--decoder-steps", "1,2"), "use --steps"),
        ((tokenizer, "fashion_mnist", "--steps", "1,2", "--label", "true"), "reads no label"),
        ((tokenizer,), "expected DATA"),
        (("fashion-mnist-cnn", "fashion_mnist"), "expected a tokenizer or a generator"),
        ((model, "--shard", "2/2"), "--shard: expected I/N"),
    ):
        assert evaluate("grid", *arguments, "--out", out) == 2, arguments
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert evaluate("grid", model, "--out", tmp_path / "file") == 2
    assert not measured and not out.exists()


def test_one_sampler_is_the_generator_s_or_the_decoder_s(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--sampler follows the kind of the model; the old name --solver still works, with a warning."""
    tokenizer = generator.parent / "tokenizer" / "model"
    found = []
    for number, (flag, model) in enumerate(
        (("--sampler", tokenizer), ("--solver", tokenizer), ("--sampler", generator / "model"))
    ):
        out = tmp_path / str(number)
        data = ["fashion_mnist"] if model == tokenizer else []
        metrics = "psnr" if data else "labels"
        values, num = "euler,heun", "--num" if data else "--num-samples"
        assert evaluate("grid", model, *data, num, 4, "--metrics", metrics, flag, values, "--out", out) == 0
        assert ("--solver is now called --sampler" in capsys.readouterr().err) == (flag == "--solver")
        part = "decoding" if data else "sampling"
        found.append([each["records"][0][part]["sampler"] for each in content(out)["cells"]])
    assert found == 3 * [["euler", "heun"]]


def test_every_setting_is_an_option_of_all_commands() -> None:
    """Options, axes, recipe keys and records come from one declaration."""
    from dataclasses import fields

    import typer

    from tok1d.config.recipe import EvaluateConfig
    from tok1d.config.sampling import SampleSettings

    group: Any = typer.main.get_command(cli.app)
    evaluations = group.commands["evaluate"].commands
    for field in fields(SampleSettings):
        for command in (group.commands["generate"], evaluations["generation"], evaluations["grid"]):
            assert f"--{field.name.replace('_', '-')}" in {name for each in command.params for name in each.opts}
        assert field.name in {each.name for each in fields(EvaluateConfig)}
