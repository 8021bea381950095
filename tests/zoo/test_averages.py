"""Files with raw and averaged weights: averages by default, both choices said, each choice available."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.zoo import store
from tok1d.zoo.adapters import llamagen
from tok1d.zoo.adapters.averages import Choice, is_average
from tok1d.zoo.adapters.keymap import read_published

State = dict[str, Tensor]
CONFIG = LlamaGenConfig(num_tokens=4, vocab_size=5, num_classes=3, dim=8, depth=1, heads=2)


def published(value: float) -> State:
    """A LlamaGen under its published names, with all weights equal."""
    state = llamagen.to_published(LlamaGen(CONFIG).state_dict())
    return {name: torch.full_like(weight, value) for name, weight in state.items()}


RAW, EMA = published(1.0), published(2.0)
Layout = Callable[[State, State], dict[str, Any]]
LAYOUTS: dict[str, Layout] = {
    "model_ema": lambda raw, ema: {"model": raw, "model_ema": ema, "epoch": 3},
    "ema": lambda raw, ema: {"ema": ema, "model": raw, "opt": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "ema_model": lambda raw, ema: {"module": raw, "ema_model": ema},
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_state_dict": ema},
    "params_ema": lambda raw, ema: {"params": raw, "params_ema": ema},
    "modelEMA": lambda raw, ema: {"model": raw, "modelEMA": ema},
    "numbered": lambda raw, ema: {"model": raw, "ema2": ema},
    "list": lambda raw, ema: {"model": raw, "ema": [ema]},
    "decays": lambda raw, ema: {"model": raw, "ema": {"0.9999": ema}},
    "averaged": lambda raw, ema: {"averaged_model": {**ema, "n_averaged": torch.tensor(7)}, "model": raw},
    "nested shadow": lambda raw, ema: {"model": raw, "ema": {"decay": 0.99, "num_updates": 5, "shadow": ema}},
    "nested module": lambda raw, ema: {"state_dict": {"ema": {"module": ema}, "model": raw}},
    "wrapped": lambda raw, ema: {"model": prefixed(raw, "module._orig_mod."), "model_ema": prefixed(ema, "module.")},
    "fsdp": lambda raw, ema: {
        "model": prefixed(raw, "_fsdp_wrapped_module."),
        "ema": prefixed(ema, "_fsdp_wrapped_module."),
    },
    "ema-pytorch": lambda raw, ema: {
        **prefixed(raw, "online_model."),
        **prefixed(ema, "ema_model."),
        "initted": torch.tensor(True),
        "step": torch.tensor(5),
    },
    "first part": lambda raw, ema: {"model": {**raw, **prefixed(ema, "module.ema.")}},
    "without dots": lambda raw, ema: {
        "state_dict": {
            **prefixed(raw, "model."),
            **{f"model_ema.{name.replace('.', '')}": value for name, value in ema.items()},
            "model_ema.decay": torch.tensor(0.99),
            "model_ema.num_updates": torch.tensor(3),
        }
    },
}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def convert(path: Path, out: Path, *more: str) -> int:
    command = ["convert", "llamagen", str(path), "heads=2", "num_tokens=4", "--out", str(out), "--overwrite"]
    return cli.run([*command, *more])


def value_of(folder: Path) -> float:
    values = {float(weight) for each in store.load(folder).state_dict().values() for weight in each.flatten()}
    assert len(values) == 1
    return values.pop()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_averages_are_converted_unless_raw_weights_are_asked_for(layout: str, tmp_path: Path, capsys: Any) -> None:
    torch.save(LAYOUTS[layout](RAW, EMA), tmp_path / "checkpoint.pt")
    for more, value, which in (
        ([], 2.0, "ema"),
        (["--weights", "raw"], 1.0, "raw"),
        (["--weights", "ema"], 2.0, "ema"),
    ):
        assert convert(tmp_path / "checkpoint.pt", tmp_path / "out", *more) == 0, capsys.readouterr().err
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"--weights {'raw' if which == 'ema' else 'ema'}" in said
        assert value_of(tmp_path / "out") == value
        card = json.loads((tmp_path / "out" / "config.json").read_text())["card"]
        assert card["weights"] == which


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_with_one_kind_is_converted_and_the_other_refused(layout: str, tmp_path: Path, capsys: Any) -> None:
    """The same files with an empty half: {"model": ..., "model_ema": {}} as trainers without averages save it."""
    for empty, value in (("raw", 2.0), ("ema", 1.0)):
        if layout == "without dots" or (layout, empty) == ("ema-pytorch", "ema"):
            continue  # libraries that always save both
        content = LAYOUTS[layout](*(({}, EMA) if empty == "raw" else (RAW, {})))
        torch.save(content, tmp_path / "checkpoint.pt")
        assert convert(tmp_path / "checkpoint.pt", tmp_path / "out") == 0, (layout, empty, capsys.readouterr().err)
        assert value_of(tmp_path / "out") == value
        capsys.readouterr()
        assert convert(tmp_path / "checkpoint.pt", tmp_path / "never", "--weights", empty) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"--weights {empty}: expected" in error
        assert not (tmp_path / "never").exists()


def test_other_sets_of_the_same_weights_are_said(tmp_path: Path, capsys: Any) -> None:
    """Of names that say neither averaged nor raw; beside averages they are the raw ones."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": RAW, "teacher": EMA, "opt": {"state": {}}}, path)
    assert convert(path, tmp_path / "out") == 0
    assert "raw, from model; also there: teacher (to convert it instead, save it alone)" in capsys.readouterr().err
    assert value_of(tmp_path / "out") == 1.0
    torch.save({"generator": RAW, "generator_ema": EMA}, path)
    for more, value in (([], 2.0), (["--weights", "raw"], 1.0)):
        assert convert(path, tmp_path / "out", *more) == 0
        assert capsys.readouterr().err.count("also there: generator") == 1
        assert value_of(tmp_path / "out") == value


def test_averages_that_do_not_fit_name_the_other_choice(tmp_path: Path, capsys: Any) -> None:
    torch.save({"model": RAW, "ema": {**EMA, "strange.weight": torch.ones(2)}}, tmp_path / "checkpoint.pt")
    assert convert(tmp_path / "checkpoint.pt", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "strange.weight" in error and "(--weights raw)" in error and error.count("\n") == 1
    assert convert(tmp_path / "checkpoint.pt", tmp_path / "out", "--weights", "raw") == 0


def test_a_plain_file_is_not_called_averaged_unless_its_name_is(tmp_path: Path, capsys: Any) -> None:
    save_file(RAW, tmp_path / "model.safetensors")
    assert convert(tmp_path / "model.safetensors", tmp_path / "out") == 0 and capsys.readouterr().err == ""
    assert convert(tmp_path / "model.safetensors", tmp_path / "out", "--weights", "ema") == 2
    assert "one set that is not called averaged" in capsys.readouterr().err
    assert convert(tmp_path / "model.safetensors", tmp_path / "out", "--weights", "raw") == 0
    save_file(EMA, tmp_path / "ema-0.9999.safetensors")
    assert convert(tmp_path / "ema-0.9999.safetensors", tmp_path / "out", "--weights", "ema") == 0
    capsys.readouterr()
    assert convert(tmp_path / "ema-0.9999.safetensors", tmp_path / "out", "--weights", "raw") == 2
    assert "only averaged ones" in capsys.readouterr().err
    assert convert(tmp_path / "model.safetensors", tmp_path / "out", "--weights", "best") == 2
    assert "--weights: expected ema or raw, got 'best'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["custom_checkpoint_1.pkl", "ema.pt", "model_ema.safetensors", "ema/model.safetensors"]
)
def test_averages_beside_the_raw_weights_of_a_folder(name: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "step1000"
    (folder / name).parent.mkdir(parents=True)
    save_file(RAW, folder / "model.safetensors")
    (save_file if name.endswith("safetensors") else torch.save)(EMA, folder / name)
    for more, value in (([], 2.0), (["--weights", "raw"], 1.0), (["--weights", "ema"], 2.0)):
        assert convert(folder, tmp_path / "out", *more) == 0
        assert value_of(tmp_path / "out") == value and capsys.readouterr().err.count("\n") == 1
    assert convert(folder / "model.safetensors", tmp_path / "out") == 0  # the file that was named, with a line
    said = capsys.readouterr().err
    assert (
        value_of(tmp_path / "out") == 1.0 and "averaged weights are beside this file" in said and said.count("\n") == 1
    )


def test_weights_without_an_average_are_the_raw_ones_and_said(tmp_path: Path, capsys: Any) -> None:
    """A table that is not trained is not averaged; weights of a frozen part are not added."""
    part = {name: value for name, value in EMA.items() if name != "norm.weight"}
    torch.save({"model": {**RAW, "frozen.net.weight": torch.zeros(2)}, "ema": part}, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "1 without average are raw, such as norm.weight" in said and said.count("\n") == 1
    found = store.load(tmp_path / "out").state_dict()
    assert {name: float(value.flatten()[0]) for name, value in found.items() if float(value.flatten()[0]) != 2} == {
        "norm.weight": 1.0
    }


@pytest.mark.parametrize("content", [{"shadow_params": [torch.ones(2)]}, {"ema": {"shadow_params": [torch.ones(2)]}}])
def test_averages_without_names_are_refused_unless_raw_weights_are_wanted(
    content: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    torch.save({"model": RAW, **content}, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "have no names" in error and "--weights raw" in error and error.count("\n") == 1
    assert convert(tmp_path / "a.pt", tmp_path / "out", "--weights", "raw") == 0 and value_of(tmp_path / "out") == 1.0


def test_a_module_that_is_called_so_is_part_of_the_model(tmp_path: Path) -> None:
    state = {"encoder.weight": torch.ones(2), "ema.weight": torch.zeros(2), "quantize.ema_w": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    assert read_published(tmp_path / "a.pt").keys() == state.keys()
    choice = Choice()
    read_published(tmp_path / "a.pt", choice)
    assert choice.taken == ""


def test_words_of_averages() -> None:
    assert all(
        map(is_average, ("ema", "model_ema", "EMA", "modelEma", "ema-0.9999", "params_ema", "swa_model", "shadow"))
    )
    assert not any(map(is_average, ("schema", "model", "teacher", "remap", "lemma")))


def test_what_needs_no_conversion_is_said(tiny: Callable[..., str], fashion: None, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert cli.run(["train", tiny("tokenizer"), f"out={run}", "train.steps=2"]) == 0
    checkpoint = next((run / "checkpoints").glob("*.pt"))
    capsys.readouterr()
    for path, words in (
        (checkpoint, "checkpoint of a tok1d run"),
        (run, "a run of tok1d"),
        (run / "model", "model folder"),
    ):
        assert convert(path, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["empty.pt", "empty.safetensors", "cut.pt", "cut.safetensors", "text.pt", "greeting.pt", "list.pt"]
)
def test_odd_files_are_one_line(name: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / name
    whole = tmp_path / f"whole{path.suffix}"
    (save_file if path.suffix == ".safetensors" else torch.save)(RAW, whole)
    contents = {"empty": b"", "cut": whole.read_bytes()[:300], "text": b"not weights\n" * 9, "greeting": b"hello"}
    if path.stem == "list":
        torch.save([torch.ones(2)], path)
    else:
        path.write_bytes(contents[path.stem])
    assert convert(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and "other shapes" not in error
