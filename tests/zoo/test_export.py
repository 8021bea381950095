"""Weights to give away: a MAETok leaves behind what only its training reads."""

from collections.abc import Callable
from pathlib import Path

import torch

from tok1d.config.load import load_recipe
from tok1d.train import run
from tok1d.train.export import export
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint


def test_auxiliary_decoders_stay_behind(tiny: Callable[..., str], tmp_path: Path, fashion: None) -> None:
    run.train(load_recipe(tiny("maetok"), [f"out={tmp_path / 'run'}", "train.steps=2"]), quiet=True)
    records = export(tmp_path / "run", tmp_path / "given", dtype="float32")
    trained, given = store.load(tmp_path / "run" / "model"), store.load(tmp_path / "given")
    assert trained.config.auxiliary and not given.config.auxiliary
    left = trained.state_dict().keys() - given.state_dict().keys()
    assert left and all(name.startswith("auxiliary.") for name in left)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(given.encode(images), trained.encode(images))
        assert torch.equal(given.decode(given.encode(images)), trained.decode(trained.encode(images)))
    assert given.card.fingerprint == fingerprint(given) != fingerprint(trained)
    before = {r.name: r.value for r in trained.card.records if not r.name.startswith("baseline:")}
    assert {record.name: record.value for record in given.card.records} == before and len(records) > 1
