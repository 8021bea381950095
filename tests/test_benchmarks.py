"""The benchmark runs, its slow variants give the library's numbers, and its records are kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tok1d.errors import DataError
from tok1d.generators.head import HeadConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.token_dit import DecoderConfig

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import semanticist
from speed import records, slow
from speed.measure import Arm, Row, measure
from speed.models import Bench, Sizes
from speed.rows import RELEASED_HEAD, ROWS

TOY = replace(
    Sizes(),
    name="toy",
    image_size=16,
    encoder=EncoderConfig(patch=8, dim=16, depth=2, heads=2),
    num_tokens=3,
    token_dim=4,
    decoder=DecoderConfig(patch=2, dim=16, depth=2, heads=2),
    latent=(4, 4),
    ar_dim=16,
    ar_depth=2,
    ar_heads=2,
    ar_tokens=3,
    head=HeadConfig(width=16, depth=2),
    released_steps=6,
    measured_steps=3,
    train_batch=2,
    encode_batch=2,
    batch=3,
    few_tokens=2,
    gemm=16,
    min_seconds=0.0,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(TOY, CPU, decoder_steps=3, head_steps=(4,))


@pytest.mark.parametrize("name", ROWS)
def test_row(bench: Bench, name: str) -> None:
    for row in ROWS[name](bench):
        record = measure(row, 1, 0.0, CPU, limit=1.0)
        assert record["fast"]["seconds"] > 0
        if row.same:
            assert record["difference"] < 1e-4
        json.dumps(record)


@pytest.mark.parametrize(
    "name",
    ["encode", "train-mask", "attention", "call-time", "call-guided", "head-calls", "head-condition", "head-time"],
)
def test_the_other_way_is_more_arithmetic(bench: Bench, name: str) -> None:
    for row in ROWS[name](bench):
        record = measure(row, 1, 0.0, CPU, limit=1.0)
        assert record["slow"]["gflop"] > record["fast"]["gflop"] > 0


def test_the_released_sde_calls_the_network_twice_a_step(bench: Bench) -> None:
    record = measure(next(ROWS["head-calls"](bench)), 1, 0.0, CPU, limit=1.0)
    # What is computed once a token: the embedding of both conditions and their halves of three linears.
    once = 2 * 2 * (16 * 16 + 2 * 16 * 16 + 16 * 4) / 1e9
    calls = record["fast"]["gflop"] - once
    assert record["slow"]["gflop"] == pytest.approx(once + 2 * calls)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("on", [slow.HeadSwitches(), RELEASED_HEAD, slow.HeadSwitches(one_batch=False)])
def test_slow_sampling_equals_the_library(bench: Bench, on: slow.HeadSwitches, cache: bool) -> None:
    labels = torch.tensor([1, 5])
    fast = bench.generator.sample(labels, guidance=3.0, steps=5, sampler="sde", randn=bench.randn())
    other = slow.sample_tokens(bench.generator, labels, bench.randn(), length=3, scale=3.0, steps=5, on=on, cache=cache)
    torch.testing.assert_close(other, fast, rtol=1e-4, atol=1e-4)


def test_times_are_scaled_to_units_and_pairs_alternate() -> None:
    order: list[str] = []

    def note(name: str) -> None:
        order.append(name)

    row = Row("r", "image", 4, Arm("a", lambda: note("a"), scale=25.0), Arm("b", lambda: note("b")))
    record = measure(row, 2, 0.0, CPU, limit=1.0)
    assert "".join(order) == "aabb" + "ab" + "ba"
    assert record["fast"]["scaled_by"] == 25 and record["fast"]["gflop"] == 0
    assert record["ratio"]["min"] <= record["ratio"]["median"] <= record["ratio"]["max"]


def test_rows_are_kept_and_not_measured_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "speed.json"
    args = ["--only", "encode", "call", "--repeats", "1", "--out", str(out), "--threads", str(torch.get_num_threads())]
    assert semanticist.main(args, TOY) == 0
    first = records.load(out)
    assert [record["row"] for record in first] == ["encode", "call"]
    expected = {"commit", "torch", "device", "threads", "date", "command", "matmul_gflops", "precision", "sizes"}
    assert expected <= first[0].keys()
    assert semanticist.main(args, TOY) == 0 and records.load(out) == first
    assert semanticist.main([*args[:2], "--again", *args[3:]], TOY) == 0
    again = records.load(out)
    assert len(again) == 2 and again[0] != first[0] and again[1] == first[1]
    assert list(out.parent.iterdir()) == [out]
    assert all(len(line) <= 100 for line in capsys.readouterr().out.splitlines())


def test_markdown_has_the_rates_and_the_release_apart() -> None:
    arm = {"what": "ours", "seconds": 0.5, "gflop": 1.0, "share": 0.25}
    record = {
        **{"row": "encode", "unit": "image", "release": 0.05, "fast": arm, "slow": {**arm, "seconds": 1.0}},
        **{"ratio": {"median": 2.0, "min": 1.9, "max": 2.1}, "device": "a CPU", "threads": 2, "precision": "fp32"},
        **{"sizes": "small", "torch": "2", "commit": "c", "date": "2026-01-02T", "matmul_gflops": 130.0},
    }
    last = records.markdown([record]).splitlines()[-1]
    assert last == (
        "| `encode` | ours | 2 images/s | 25 % | ours | 1 images/s | 25 % | 2.00 (1.90-2.10) | 20 images/s |"
    )


def test_the_release_is_known_at_its_own_sizes_only(bench: Bench) -> None:
    assert bench.release("image") is None
    known = Bench(Sizes(), CPU)
    assert known.release("image") == pytest.approx(250 * known.release("call"))


@pytest.mark.parametrize(
    "args, found",
    [(["--precision", "bf16"], "bf16"), (["--head-steps", "1"], "received 1")]
    + ([] if torch.cuda.is_available() else [(["--device", "cuda"], "no GPU")]),
)
def test_mistakes_are_one_line(args: list[str], found: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert semanticist.main([*args, "--out", str(tmp_path / "speed.json")], TOY) == 2
    message = capsys.readouterr().err
    assert found in message and message.count("\n") == 1


def test_a_broken_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    path.write_text('[{"row": 1}]')
    with pytest.raises(DataError, match="JSON list of benchmark records"):
        records.load(path)
