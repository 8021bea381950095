"""Two processes (gloo) make the steps of one at equal global batch: noise, dropout, losses, weights; and a resume may
change their number."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tok1d.config import load_recipe
from tok1d.train import draws, run
from tok1d.train.draws import seeded
from tok1d.train.log import read_log
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]
KINDS = ["tokenizer", "generator", "smap", "sit"]
# A tokenizer with noise, times, dropped tokens and stochastic depth; generators with dropout, dropped classes and a
# head that draws four times for each token.
CHANGES = {
    "tokenizer": ["model.encoder.drop_path=0.3"],
    "generator": ["model.head.batch_mul=4", "model.dropout=0.2", "model.class_dropout=0.5"],
    "smap": ["model.tail_drop.keep_per=sample"],
    "sit": ["model.class_dropout=0.5"],
}
WORKER = """
import json, os, sys
from pathlib import Path
from tok1d.config import load_recipe
from tok1d.data.images import ArrayImages
from tok1d.errors import Tok1dError
from tok1d.train import run, stop
from tok1d.train.tasks import build_task

stop.AGREE_EVERY = 2
for case in json.loads(Path(sys.argv[1]).read_text()):
    recipe = load_recipe(case["recipe"], case["overrides"])
    if case["bad"] >= 0:
        read = ArrayImages.captioned_batch

        def spoiled(self, indices, **when):
            pixels, *rest = read(self, indices, **when)
            pixels[[i for i, index in enumerate(indices) if index == case["bad"]]] = float("nan")
            return pixels, *rest

        ArrayImages.captioned_batch = spoiled
    try:
        with run._first_process_first():
            out = run.prepare(recipe)
            task = build_task(recipe)
        run.fit(recipe, task, out, quiet=True, seconds=case["seconds"])
    except Tok1dError as error:
        Path(f"{recipe.out}-rank{os.environ['RANK']}.txt").write_text(str(error))
"""


def write_images(root: Path) -> None:
    import numpy as np

    root.mkdir()
    for prefix in ("train", "t10k"):
        pixels = np.random.default_rng(len(prefix)).integers(0, 256, (64, 28, 28), np.uint8)
        labels = (np.arange(64) % 10).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (root / f"{prefix}-{kind}").write_bytes(head + array.tobytes())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Iterator[Path]:
    """A folder in which two processes have trained every kind: KIND, KIND-short (two of four steps), nan."""
    root = tmp_path_factory.mktemp("processes")
    write_images(root / "data")
    write_recipes(root, tiny)
    cases = []
    for kind in KINDS:
        for name, seconds in ((kind, None), (f"{kind}-short", 0.0)):
            if kind in ("tokenizer", "generator") or seconds is None:
                cases.append({**case(root, kind, name), "seconds": seconds, "bad": -1})
    cases.append({**case(root, "tokenizer", "nan"), "seconds": None, "bad": 0})
    (root / "cases.json").write_text(json.dumps(cases))
    (root / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [sys.executable, str(root / "worker.py"), str(root / "cases.json")],
            env={**os.environ, **common, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=400) for process in running] == [0, 0]
    yield root


def write_recipes(root: Path, tiny: Tiny) -> None:
    """KIND.yaml for all kinds, and the tokenizers that the generators learn from."""
    for kind in KINDS:
        keys, made = {}, {"generator": "tokenizer", "sit": "maetok"}.get(kind)
        if made:
            torch.manual_seed(0)
            store.save_model(store.build_model(load_recipe(tiny(made)).model), root / "models" / made, Card())
            keys["tokenizer"] = root / "models" / made
        (root / f"{kind}.yaml").write_text(Path(tiny(kind, **keys)).read_text())


def case(root: Path, kind: str, name: str) -> dict[str, Any]:
    """A recipe of four steps as file and overrides, in folder `name`."""
    more = [f"data.root={root / 'data'}", "train.steps=4", "train.log_every=1", f"out={root / name}"]
    return {"recipe": str(root / f"{kind}.yaml"), "overrides": [*CHANGES[kind], *more]}


def alone(root: Path, kind: str, name: str) -> Path:
    """The same training by this one process."""
    given = case(root, kind, name)
    recipe = load_recipe(given["recipe"], given["overrides"])
    out = run.prepare(recipe)
    run.fit(recipe, build_task(recipe), out, quiet=True)
    return out


def newest(out: Path) -> dict[str, Any]:
    return torch.load(sorted((out / "checkpoints").iterdir())[-1], weights_only=True)


def assert_close(one: Path, two: Path) -> None:
    a, b = newest(one), newest(two)
    assert a["step"] == b["step"] == 4
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-3, atol=3e-5)
    for entry, other in zip(read_log(one / "log.jsonl"), read_log(two / "log.jsonl"), strict=True):
        names = [name for name in entry if name.startswith("loss") or name == "grad_norm"]
        assert len(names) >= 2
        assert [other[name] for name in names] == pytest.approx([entry[name] for name in names], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_steps_of_one(both: Path, kind: str) -> None:
    assert_close(alone(both, kind, f"{kind}-alone"), both / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_one_process_goes_on_where_two_stopped_and_says_so(both: Path, kind: str, capsys: Any) -> None:
    assert newest(both / f"{kind}-short")["step"] == 2
    capsys.readouterr()
    out = alone(both, kind, f"{kind}-short")
    told = capsys.readouterr().err
    assert told.startswith("step 2: written by 2 processes, going on with 1;") and "not to the last bit" in told
    assert_close(both / kind, out)


@pytest.mark.slow
def test_both_processes_stop_at_what_one_of_them_saw(both: Path) -> None:
    lines = [(both / f"nan-rank{rank}.txt").read_text() for rank in range(2)]
    assert lines[0] == lines[1] and "image 0 has pixels or tokens that are not finite" in lines[0]
    (dump,) = (both / "nan").glob("nonfinite-step-*.pt")
    state = torch.load(dump, weights_only=True)
    assert state["world"] == 2 and [len(each["samples"]) for each in state["evidence"]] == [4, 4]
    assert sum(each["bad_samples"] == ["image 0"] for each in state["evidence"]) == 1


def shares(make: Callable[[], torch.Tensor], rows: int, world: int, copies: int = 1) -> list[torch.Tensor]:
    found = []
    for rank in range(world):
        with seeded(0, 3, rank, world, "", (torch.zeros(rows),), copies=copies):
            found.append(make())
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: torch.randn(rows, 5),
        lambda rows: torch.rand((rows, 5)),
        lambda rows: torch.rand(rows, 2, device="cpu", generator=None),
        lambda rows: torch.randint(7, (rows,)),
        lambda rows: torch.randint(2, 7, size=(rows, 3)),
        lambda rows: torch.randn_like(torch.zeros(rows, 3, dtype=torch.float64)),
        lambda rows: torch.rand_like(torch.zeros(rows)),
        lambda rows: F.dropout(torch.ones(rows, 8), 0.5),
        lambda rows: torch.nn.Dropout(0.3)(torch.arange(1.0, rows + 1)[:, None].expand(-1, 20) * 0 + 1),
    ],
)
def test_rows_of_all_processes_are_what_one_draws(make: Callable[[int], torch.Tensor]) -> None:
    (whole,) = shares(lambda: make(12), 12, 1)
    parts = shares(lambda: make(4), 4, 3)
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(parts[0], parts[1])


def test_copies_keep_their_order() -> None:
    (whole,) = shares(lambda: torch.randn(4 * 12 * 2, 3), 12, 1, copies=4)
    parts = shares(lambda: torch.randn(4 * 6 * 2, 3), 6, 2, copies=4)
    assert torch.equal(torch.cat([part.view(4, 12, 3) for part in parts], 1).view(-1, 3), whole)


def test_what_is_no_batch_is_the_same_everywhere_and_single_numbers_are_not() -> None:
    a, b = shares(lambda: torch.cat([torch.rand(7), torch.rand(1)]), 4, 2)
    assert torch.equal(a[:7], b[:7]) and a[7] != b[7]


def test_draws_too_large_to_share_are_each_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "SHARED_NUMBERS", 10)
    a, b = shares(lambda: torch.randn(4, 5), 4, 2)
    assert not torch.equal(a, b) and torch.equal(shares(lambda: torch.randn(4, 5), 4, 2)[1], b)
    a, b = shares(lambda: F.dropout(torch.ones(4, 50), 0.5), 4, 2)
    assert not torch.equal(a, b) and set(a.unique().tolist()) == {0.0, 2.0}
