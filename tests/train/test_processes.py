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

from tok1d.config.load import load_recipe
from tok1d.train import folder, rng, run
from tok1d.train.log import read_log
from tok1d.train.rng import seeded
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]
KINDS = ["tokenizer", "generator", "smap", "smap-batch", "maetok", "maskgit", "sit"]
# A tokenizer with noise, times, dropped tokens and stochastic depth; generators with dropout, dropped classes and a
# head that samples four times for each token.
CHANGES = {
    "tokenizer": ["model.encoder.drop_path=0.3", "train.clip=0.05"],
    "generator": ["model.head.batch_mul=4", "model.dropout=0.2", "model.class_dropout=0.5"],
    "smap": ["model.tail_drop.keep_per=sample"],
    "smap-batch": ["model.tail_drop.keep_per=iteration"],  # one count for the whole batch
    "maetok": ["model.mask={low: 0.1, high: 0.9}"],  # as many masked patches as it happens, which the loss counts
    "maskgit": ["model.class_dropout=0.5", "model.attention_dropout=0"],  # inside its kernel a process's own
    "sit": ["model.class_dropout=0.5"],
    "game": [
        *("adversarial.weight=0.4", "adversarial.start=2", "model.token_dim=8", "train.clip=0.1"),
        "adversarial.discriminator={name: patch, width: 4, layers: 1}",
    ],
}
RECIPES = {"smap-batch": "smap", "game": "maetok"}
MASKGIT = """
kind: generator
data: {image_size: 32, pad: 2}
model: {name: maskgit, num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, depth: 1, heads: 2, steps: 2}
train: {steps: 6, batch_size: 8, lr: 1e-3, warmup: 2, ema: 0.9, log_every: 2}
"""
SHARD, FP16 = ["train.shard=optimizer"], ["train.precision=fp16"]
MUON = ["train.optimizer=muon", "train.muon.decay=0.1"]
WORKER = """
import json, os, sys
from pathlib import Path
from tok1d.config.load import load_recipe
from tok1d.data.images import ArrayImages
from tok1d.errors import Tok1dError
from tok1d.train import folder, optim, players, precision, run
from tok1d.train.tasks import build_task

precision.ON_CPU, precision.FIRST_SCALE = True, 2.0**12
made = []


def recorded(*args, **keys):
    made.append(optim.Optimizers(*args, **keys))
    return made[-1]


players.Optimizers = recorded
read = ArrayImages.captioned_batch
for case in json.loads(Path(sys.argv[1]).read_text()):
    recipe = load_recipe(case["recipe"], case["overrides"])
    if case["bad"] >= 0:
        def spoiled(self, indices, **when):
            pixels, *rest = read(self, indices, **when)
            pixels[[i for i, index in enumerate(indices) if index == case["bad"]]] = float("nan")
            return pixels, *rest

        ArrayImages.captioned_batch = spoiled
    try:
        out, task = run.in_turn(lambda first: (folder.prepare(recipe, first=first), build_task(recipe)))
        made.clear()
        run.fit(recipe, task, out, quiet=True, seconds=case["seconds"])
        held = [
            [v.numel() for o in each for s in getattr(o, "optim", o).state.values() for v in s.values()]
            for each in made
        ]
        Path(f"{recipe.out}-rank{os.environ['RANK']}.json").write_text(json.dumps([sum(each) for each in held]))
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
    """A folder in which two processes have trained every kind: KIND, KIND-short (two of four steps), nan.

    And with a sharded optimizer state: tokenizer-shard, -cut (stopped and resumed), -short, nan-shard; adversarial
    training and fp16 with and without sharding.
    """
    root = tmp_path_factory.mktemp("processes")
    write_images(root / "data")
    write_recipes(root, tiny)
    cases = []
    for kind in KINDS:
        for name, seconds in ((kind, None), (f"{kind}-short", 0.0)):
            if kind in ("tokenizer", "generator") or seconds is None:
                cases.append({**case(root, kind, name), "seconds": seconds, "bad": -1})
    for kind, name, seconds, more in (
        ("tokenizer", "tokenizer-shard", None, SHARD),
        ("tokenizer", "tokenizer-shard-cut", 0.0, SHARD),
        ("tokenizer", "tokenizer-shard-cut", None, SHARD),
        ("tokenizer", "tokenizer-shard-short", 0.0, SHARD),
        ("game", "game", None, []),
        ("game", "game-shard", None, SHARD),
        ("tokenizer", "muon", None, MUON),
        ("tokenizer", "muon-shard", None, MUON + SHARD),
        ("tokenizer", "muon-shard-cut", 0.0, MUON + SHARD),
        ("tokenizer", "muon-shard-cut", None, MUON + SHARD),
        ("tokenizer", "fp16", None, FP16),
        ("tokenizer", "fp16-shard", None, FP16 + SHARD),
    ):
        cases.append({**case(root, kind, name, *more), "seconds": seconds, "bad": -1})
    for name, more in (("nan", []), ("nan-shard", SHARD)):
        cases.append({**case(root, "tokenizer", name, *more), "seconds": None, "bad": 0})
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
    for kind in CHANGES:
        keys, made = {}, {"generator": "tokenizer", "sit": "maetok", "maskgit": "titok"}.get(kind)
        if made:
            torch.manual_seed(0)
            ids = ["model.bottleneck={name: vq, size: 16}"] if kind == "maskgit" else []
            store.save_model(store.build_model(load_recipe(tiny(made), ids).model), root / "models" / made, Card())
            keys["tokenizer"] = root / "models" / made
        lines = "".join(f"{key}: {value}\n" for key, value in keys.items())
        text = (
            MASKGIT + lines
            if kind == "maskgit"
            else Path(tiny(RECIPES.get(kind, kind), **keys)).read_text(encoding="utf-8")
        )
        (root / f"{kind}.yaml").write_text(text)


def case(root: Path, kind: str, name: str, *changes: str) -> dict[str, Any]:
    """A recipe of four steps as file and overrides, in folder `name`."""
    more = [f"data.root={root / 'data'}", "train.steps=4", "train.log_every=1", f"out={root / name}"]
    return {"recipe": str(root / f"{kind}.yaml"), "overrides": [*CHANGES[kind], *more, *changes]}


def alone(root: Path, kind: str, name: str, *changes: str) -> Path:
    """The same training by this one process."""
    given = case(root, kind, name, *changes)
    recipe = load_recipe(given["recipe"], given["overrides"])
    out = folder.prepare(recipe)
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
def test_one_process_resumes_where_two_stopped_and_reports_it(both: Path, kind: str, capsys: Any) -> None:
    assert newest(both / f"{kind}-short")["step"] == 1
    capsys.readouterr()
    out = alone(both, kind, f"{kind}-short")
    reported = capsys.readouterr().err
    assert reported.startswith("step 1: written by 2 processes, resuming with 1;")
    assert "only up to rounding" in reported
    assert_close(both / kind, out)


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two))
    return one == two


def assert_same(one: Path, two: Path) -> None:
    """Checkpoints of step 4 that differ in nothing but the seconds: weights, averages, optimizers, loss scale."""
    a, b = newest(one), newest(two)
    assert a["step"] == 4 and a.keys() == b.keys()
    for key in a.keys() - {"seconds", "recipe"}:  # the recipes have other folders and sharding
        assert same(a[key], b[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "game", "fp16", "muon"])
def test_a_shared_out_optimizer_makes_the_same_bits(both: Path, kind: str) -> None:
    assert_same(both / kind, both / f"{kind}-shard")
    norms = [entry["grad_norm"] for entry in read_log(both / kind / "log.jsonl")]
    assert max(norms) > 0.06  # more than the clip of the tokenizer: it was clipped


@pytest.mark.slow
def test_each_process_holds_half_of_the_moments(both: Path) -> None:
    for kind, allowed in (("tokenizer", 0.05), ("game", 0.25)):  # one tensor is most of this small discriminator
        whole = [json.loads((both / f"{kind}-rank{rank}.json").read_text()) for rank in range(2)]
        parts = [json.loads((both / f"{kind}-shard-rank{rank}.json").read_text()) for rank in range(2)]
        assert whole[0] == whole[1] and [a + b for a, b in zip(*parts)] == whole[0]
        assert len(whole[0]) == (2 if kind == "game" else 1)
        for part in parts:
            assert [share / all for share, all in zip(part, whole[0])] == pytest.approx([0.5] * len(part), abs=allowed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "muon"])
def test_a_shared_out_run_that_was_stopped_ends_with_the_same_bits(both: Path, kind: str) -> None:
    assert_same(both / kind, both / f"{kind}-shard-cut")


@pytest.mark.slow
def test_two_processes_make_muons_steps_of_one(both: Path) -> None:
    out = alone(both, "tokenizer", "muon-alone", *MUON)
    assert_close(out, both / "muon")
    states = [newest(both / name)["optimizer"] for name in ("muon", "muon-shard")]
    assert all(state.keys() == {"muon", "adamw"} and state["muon"]["state"] for state in states)


@pytest.mark.slow
def test_one_process_goes_on_from_a_shared_out_optimizer(both: Path, capsys: Any) -> None:
    assert newest(both / "tokenizer-shard-short")["step"] == 1
    assert_close(both / "tokenizer", alone(both, "tokenizer", "tokenizer-shard-short"))
    capsys.readouterr()
    alone(both, "tokenizer", "tokenizer-alone-shard", *SHARD)
    assert capsys.readouterr().err == "train.shard=optimizer: no effect with a single process\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nan", "nan-shard"])
def test_both_processes_stop_when_one_of_them_fails(both: Path, name: str) -> None:
    lines = [(both / f"{name}-rank{rank}.txt").read_text() for rank in range(2)]
    assert lines[0] == lines[1] and "image 0 has pixels or tokens that are not finite" in lines[0]
    (dump,) = (both / name).glob("nonfinite-step-*.pt")
    state = torch.load(dump, weights_only=True)
    assert state["world"] == 2 and [len(each["samples"]) for each in state["evidence"]] == [4, 4]
    assert sum(each["bad_samples"] == ["image 0"] for each in state["evidence"]) == 1
    plain = torch.load(both / "nan" / dump.name, weights_only=True)
    assert same(state["model"], plain["model"]) and same(state["optimizer"], plain["optimizer"])


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
def test_rows_of_all_processes_are_those_of_one(make: Callable[[int], torch.Tensor]) -> None:
    (whole,) = shares(lambda: make(12), 12, 1)
    parts = shares(lambda: make(4), 4, 3)
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(parts[0], parts[1])


def test_copies_keep_their_order() -> None:
    (whole,) = shares(lambda: torch.randn(4 * 12 * 2, 3), 12, 1, copies=4)
    parts = shares(lambda: torch.randn(4 * 6 * 2, 3), 6, 2, copies=4)
    assert torch.equal(torch.cat([part.view(4, 12, 3) for part in parts], 1).view(-1, 3), whole)


def test_what_is_no_batch_is_the_same_everywhere() -> None:
    (whole,) = shares(lambda: torch.cat([torch.rand(7), torch.rand(1)]), 8, 1)
    a, b = shares(lambda: torch.cat([torch.rand(7), torch.rand(1)]), 4, 2)
    assert torch.equal(a, whole) and torch.equal(b, whole)


def test_random_numbers_too_many_to_share_are_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "SHARED_NUMBERS", 10)
    a, b = shares(lambda: torch.randn(4, 5), 4, 2)
    assert not torch.equal(a, b) and torch.equal(shares(lambda: torch.randn(4, 5), 4, 2)[1], b)
    a, b = shares(lambda: F.dropout(torch.ones(4, 50), 0.5), 4, 2)
    assert not torch.equal(a, b) and set(a.unique().tolist()) == {0.0, 2.0}
