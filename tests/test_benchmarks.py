"""The benchmarks run, their slow variants give the library's numbers, and their records are kept."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tok1d.config.load import load_recipe
from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.baselines import components, projected
from tok1d.evaluate.measures import Measures, Measuring
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions
from tok1d.generators.head import HeadConfig
from tok1d.losses.discriminator import DinoConfig, PatchConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.smap import plain_vit
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.tokenizers.vit import ViTConfig
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.teachers import load_teacher

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import baselines
import bundled
import maetok
import maetok_pages
import maetok_table
import semanticist
import semanticist_pages
import semanticist_table
import smap
import smap_pages
import smap_table
import soak
import table
from speed import records, slow
from speed.maetok_models import MAETokBench, MAETokSizes
from speed.maetok_rows import MAETOK_ROWS
from speed.measure import Arm, Row, measure
from speed.models import Bench, Sizes
from speed.rows import ROWS, SLOW_HEAD
from speed.smap_models import SMAPBench, SMAPSizes, TruncationTrainer, transformers_twin
from speed.smap_rows import SMAP_ROWS

from tok1d.zoo.weights import fingerprint

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
    published_steps=6,
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
    [
        "encode",
        "train-mask",
        "attention",
        "call-time",
        "call-guided",
        "head-calls",
        "head-condition",
        "head-time",
        "head-table",
    ],
)
def test_the_other_way_is_more_arithmetic(bench: Bench, name: str) -> None:
    for row in ROWS[name](bench):
        record = measure(row, 1, 0.0, CPU, limit=1.0)
        assert record["slow"]["gflop"] > record["fast"]["gflop"] > 0


def test_the_slow_sde_calls_the_network_twice_a_step(bench: Bench) -> None:
    record = measure(next(ROWS["head-calls"](bench)), 1, 0.0, CPU, limit=1.0)
    # What is computed once a token: the embedding of both conditions and their halves of three linears.
    once = 2 * 2 * (16 * 16 + 2 * 16 * 16 + 16 * 4) / 1e9
    calls = record["fast"]["gflop"] - once
    assert record["slow"]["gflop"] == pytest.approx(once + 2 * calls)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("on", [slow.HeadSwitches(), SLOW_HEAD, slow.HeadSwitches(one_batch=False)])
def test_slow_sampling_equals_the_library(bench: Bench, on: slow.HeadSwitches, cache: bool) -> None:
    labels = torch.tensor([1, 5])
    fast = bench.generator.sample(labels, guidance=3.0, steps=5, sampler="sde", noise=bench.randn())
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
    [(["--precision", "bf16"], "bf16"), (["--head-steps", "1"], "got 1")]
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


TOY_MAETOK = replace(
    MAETokSizes(),
    name="toy",
    image_size=16,
    resolutions=(16, 32),
    encoder=ViTConfig(patch=8, dim=16, depth=2, heads=2),
    decoder=ViTConfig(patch=8, dim=16, depth=2, heads=2, absolute=False),
    num_tokens=3,
    token_dim=4,
    aux_depth=1,
    cell=4,
    patch_discriminator=PatchConfig(width=8, layers=1),
    dino_discriminator=DinoConfig(weights="random", image_size=32),
    sit_dim=16,
    sit_depth=2,
    sit_heads=2,
    published_steps=6,
    measured_steps=4,
    encode_batch=2,
    gemm=16,
    min_seconds=0.0,
)


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """The record of every MAETok row at toy sizes."""
    bench = MAETokBench(TOY_MAETOK, CPU, steps=4)
    rows = [row for build in MAETOK_ROWS.values() for row in build(bench)]
    return {row.name: measure(row, 1, 0.0, CPU, limit=1.0) for row in rows}


def work(record: dict[str, Any]) -> float:
    """FLOPs of the alternative divided by those of the first."""
    return record["slow"]["gflop"] / record["fast"]["gflop"]


def test_maetok_rows(measured: dict[str, dict[str, Any]]) -> None:
    for record in measured.values():
        assert record["fast"]["seconds"] > 0 and record["fast"]["gflop"] > 0
    streams = [record for name, record in measured.items() if name.startswith("streams-")]
    assert len(streams) == 2 and all(record["difference"] < 1e-4 for record in streams)
    json.dumps(measured)


def test_an_auxiliary_target_or_a_discriminator_is_more_arithmetic(measured: dict[str, dict[str, Any]]) -> None:
    plain = measured["train"]["fast"]["gflop"]
    for name in ("pixels", "hog", "teacher", "all", "gan-patch", "gan-dino"):
        record = measured[f"train-{name}"]
        assert record["fast"]["gflop"] == plain < record["slow"]["gflop"]
    extra = {name: measured[f"train-{name}"]["slow"]["gflop"] - plain for name in ("pixels", "hog", "teacher", "all")}
    assert extra["all"] == pytest.approx(extra["pixels"] + extra["hog"] + extra["teacher"])


def test_resolution_costs_the_tokenizer_and_not_the_generator(measured: dict[str, dict[str, Any]]) -> None:
    assert work(measured["sit-32-call"]) == work(measured["sit-32-train"]) == 1
    assert work(measured["encode-32"]) > 2 and work(measured["decode-32"]) > 2
    # 16 patches of 32 pixels against 3 tokens: the blocks' linear layers cost 16 / 3 times as much, attention its
    # square, the modulation by time and class as much as before.
    assert work(measured["sit-16-call"]) > 4 and work(measured["sit-16-train"]) > 4


def test_guidance_doubles_the_calls_inside_its_interval(measured: dict[str, dict[str, Any]]) -> None:
    # Time modulates in one row for all images and streams, so a call of twice the rows is less than twice the work.
    single, double = (measured["guided"][arm]["gflop"] for arm in ("fast", "slow"))
    assert 1.5 * single < double <= 2 * single
    # Of the four steps, at 0, 1/4, 1/2 and 3/4, the first is outside.
    inside = measured["interval-0.25-1"]["fast"]["gflop"]
    assert inside == pytest.approx((single + 3 * double) / 4)
    assert work(measured["sample-4"]) == pytest.approx(TOY_MAETOK.published_steps / 4)


def test_the_maetok_command_keeps_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--out", str(tmp_path / "speed.json"), "--threads", str(torch.get_num_threads())]
    assert maetok.main(["--only", "resolution-generator", "--repeats", "1", *args], TOY_MAETOK) == 0
    assert [record["row"] for record in records.load(tmp_path / "speed.json")] == ["sit-32-call", "sit-32-train"]
    shown = capsys.readouterr().out
    assert "GFLOP" in shown and "release" not in shown and all(len(line) <= 100 for line in shown.splitlines())
    assert maetok.main([*args, "--markdown"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    assert maetok.main([*args, "--interval", "0.8", "0.2"], TOY_MAETOK) == 2
    assert "got 0.8 0.2" in capsys.readouterr().err


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The experiments of MAETok with trainings of 3 steps; the folder of their records."""
    few = ["train.warmup=0", "train.log_every=1", "train.batch_size=8", "evaluate.num_images=16"]

    def train(recipe: str, overrides: list[str], out: Path) -> Any:
        sit = ["evaluate.num_samples=10", "model.steps=2", "model.depth=1"]
        small = sit if recipe.endswith("sit") else ["model.encoder.depth=1", "model.decoder.depth=1"]
        return table.train(recipe, [*overrides, *few, *small], out)

    monkeypatch.setattr("tok1d.train.run.code_version", lambda: "commit")  # otherwise git runs 10 times
    monkeypatch.setattr(maetok_table, "train", train)
    for name in ("STEPS", "FINETUNE_STEPS", "SIT_STEPS"):
        monkeypatch.setattr(maetok_table, name, 3)
    monkeypatch.setattr(maetok_table, "SAMPLER_STEPS", 2)
    monkeypatch.setattr(maetok_table, "NUM_IMAGES", 20)
    monkeypatch.setattr(maetok_table, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_rows_of_maetok_are_run_once_and_put_into_the_page(
    short: Path, fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--runs", str(tmp_path / "runs")]
    chosen = ["ae-mask-0", "ae-mask-finetune-0", "hog-teacher-0", "sit-ae-mask-finetune-0", "sit-hog-teacher-0"]
    maetok_table.main([*args, "--only", *chosen])
    found = table.read(short)
    assert sorted(found) == sorted(chosen)
    for name, record in found.items():
        assert record["row"] == name and record["command"] == f"python benchmarks/maetok_table.py --only {name}"
    first, second = found["ae-mask-0"], found["ae-mask-finetune-0"]
    assert first["probe_accuracy"] == second["probe_accuracy"], "fine-tuning leaves the tokens as they are"
    assert first["psnr"] != second["psnr"] and second["steps"] == 3
    assert found["sit-hog-teacher-0"]["test_loss"] > 0 and "parameters" not in found["sit-ae-mask-finetune-0"]

    capsys.readouterr()
    maetok_table.main([*args, "--list"])
    listed = capsys.readouterr().out.split("\n")
    assert [line.split()[1] for line in listed if line.startswith("done")] == [
        name for name in maetok_table.rows() if name in chosen
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table results -->\n<!-- end -->\nafter\n")
    maetok_pages.write(short, page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and len(lines) == 2 + 2 + 2 + 3
    assert f"{first['psnr']:.2f}" in lines[4]


def test_relations_are_over_the_rows_that_have_a_sit() -> None:
    fd, figure = table.FD, maetok_pages.CONDITIONAL
    found: table.Records = {}
    for i, (rebuilt, probe) in enumerate([(1.0, 0.9), (2.0, 0.7), (3.0, 0.8)]):
        found[f"ae-{i}"] = {fd: rebuilt, "probe_accuracy": probe}
        found[f"sit-ae-{i}"] = {figure: 2 * rebuilt, maetok_pages.UNCONDITIONAL: 2 * rebuilt + 5, "test_loss": -rebuilt}
    lines = maetok_pages.relations(found | {"hog-0": {fd: 9.0}}).splitlines()[2:]
    assert [line.split(" | ")[1:] for line in lines] == [["+1.00", "3 |"], ["-0.50", "3 |"], ["-1.00", "3 |"]]
    assert "| 50 (50 to 50) | 5.00 (5.00 to 5.00) |" in maetok_pages.decoders(found)


def test_projections_are_those_of_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 0.05, 0.02, 0.0])
    images = (0.5 + spread * torch.randn(200, 4, generator=generator)).clamp(0, 1).view(200, 1, 2, 2)
    mean, vectors = components(images)
    torch.testing.assert_close(projected(images, mean, vectors, 4), images, atol=1e-6, rtol=0)
    errors = [float((projected(images, mean, vectors, n) - images).square().sum()) for n in range(5)]
    values = torch.linalg.svdvals(images.flatten(1) - images.flatten(1).mean(0)).square()
    assert errors == pytest.approx([float(values[n:].sum()) for n in range(5)], rel=1e-4, abs=1e-6)


def test_the_baselines_in_the_pages_match_their_record() -> None:
    for name, make in baselines.PAGES.items():
        page = (baselines.DOCS / f"{name}.md").read_text(encoding="utf-8")
        expected = f"<!-- table baselines -->\n{make(baselines.read())}\n<!-- end -->"
        assert expected in page, "python benchmarks/baselines.py --write"


def test_the_teacher_of_the_table_is_an_encoder_of_patches(tmp_path: Path) -> None:
    config = {"name": "maetok", "image_size": 16, "channels": 1, "token_dim": 4}
    size = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
    for num_tokens in (0, 3):
        full = {**config, "num_tokens": num_tokens, "encoder": size, "decoder": size}
        store.save_model(store.build_model(build_model_config(full)), tmp_path / str(num_tokens), Card())
    teacher, tokenizer = load_teacher(str(tmp_path / "0"), image_size=16), store.load(tmp_path / "0")
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    features = teacher(images)
    assert features.shape == (2, 4, 16) and not features.requires_grad
    torch.testing.assert_close(tokenizer.bottleneck.encode(features), tokenizer.encode(images))
    with pytest.raises(ConfigError, match="got a tokenizer or generator without features of patches"):
        load_teacher(str(tmp_path / "3"), image_size=16)


@pytest.fixture
def short_smap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The experiments of SMAP with trainings of 3 steps; the folder of their records."""
    few = ["train.warmup=0", "train.log_every=1", "train.batch_size=8", "evaluate.num_images=16"]
    generators = {
        "card": ["model.head.steps=2", "model.head.depth=1", "model.depth=1"],
        "llamagen": ["model.depth=1"],
        "maskgit": ["model.depth=1", "model.steps=2"],
    }

    def train(recipe: str, overrides: list[str], out: Path) -> Any:
        own = generators.get(recipe.split("/")[-1])
        small = ["evaluate.num_samples=10", *own] if own else ["model.encoder.depth=1", "model.decoder.depth=1"]
        return table.train(recipe, [*overrides, *few, *small], out)

    monkeypatch.setattr("tok1d.train.run.code_version", lambda: "commit")
    monkeypatch.setattr(smap_table, "train", train)
    for name in ("STEPS", "GENERATOR_STEPS"):
        monkeypatch.setattr(smap_table, name, 3)
    monkeypatch.setattr(smap_table, "NUM_IMAGES", 20)
    monkeypatch.setattr(smap_table, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_every_row_of_smap_resolves_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolved: dict[str, Any] = {}

    def train(recipe: str, overrides: list[str], out: Path) -> Any:
        resolved[out.name] = load_recipe(recipe, [*overrides, f"out={out}"])

    monkeypatch.setattr(smap_table, "train", train)
    for name in smap_table.rows():
        kind, seed = name.rsplit("-", 1)
        make = smap_table.train_generator if kind in smap_table.GENERATORS else smap_table.train_tokenizer
        make(kind, int(seed), tmp_path)
        assert resolved[name].seed == int(seed)
    assert resolved.keys() == smap_table.rows().keys(), "a generator's tokenizer is a row too"
    for name, recipe in resolved.items():
        model = recipe.model
        if recipe.kind == "tokenizer":
            assert model.num_tokens == (4 if "4" in name else 16) and model.token_dim == 16
            if model.name == "smap":
                assert model.tail_drop.enabled == ("full" not in name)
                assert model.condition_on == ("none" if "unconditioned" in name else "both")
        else:
            tokenizer = resolved[Path(recipe.tokenizer).parent.name].model
            assert (
                Path(recipe.cache).parent.name == "tokens"
                and Path(recipe.cache).name == Path(recipe.tokenizer).parent.name
            )
            assert model.num_tokens == tokenizer.num_tokens
            assert getattr(model, "vocab_size", None) == getattr(tokenizer.bottleneck, "size", None)
    # With as many tokens of as many numbers, out of as many ids, only the tokenizer differs.
    smap, titok = resolved["vq16-0"].model, resolved["titok-vq16-0"].model
    assert smap.bottleneck.size == titok.bottleneck.size
    assert {resolved[f"{kind}-0"].train.steps for kind in smap_table.GENERATORS} == {smap_table.GENERATOR_STEPS}


def test_rows_of_smap_are_run_once_and_put_into_the_page(
    short_smap: Path, fashion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--runs", str(tmp_path / "runs")]
    chosen = ["kl4-0", "titok-vq4-0", "card-shared-0", "card-independent-0", "card-unconditioned-0"]
    chosen += ["llamagen-0", "maskgit-0"]
    smap_table.main([*args, "--only", *chosen])
    found = table.read(short_smap)
    assert sorted(found) == sorted(chosen)
    row = found["kl4-0"]
    assert list(row["labelled"]) == list(row["unlabelled"]) == ["0", "1", "2", "4"] and not row["null_row_trained"]
    assert list(found["titok-vq4-0"]["unlabelled"]) == ["4"] and "labelled" not in found["titok-vq4-0"]
    alone = row["swap"]["condition only"]
    assert alone["tokens"] is None and 0 <= alone["condition"] <= 1
    for kind, label in (
        ("card-shared", "true"),
        ("card-unconditioned", None),
        ("llamagen", "true"),
        ("maskgit", "true"),
    ):
        record = found[f"{kind}-0"]
        assert record["test_loss"] > 0 and record["steps"] == 3
        assert record["unguided"]["label"] == label and record["unguided"]["guidance"] == 1
        assert "label_agreement" in record["guided"] and record["guided"]["guidance"] != 1
    caches = tmp_path / "runs" / "tokens"
    assert sorted(folder.name for folder in caches.iterdir()) == ["kl16-0", "kl16-unconditioned-0", "vq16-0"]

    capsys.readouterr()
    smap_table.main([*args, "--list"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed if line.startswith("done")] == [
        name for name in smap_table.rows() if name in chosen
    ]
    page = tmp_path / "page.md"
    shutil.copy(smap_pages.PAGE, page)
    smap_pages.write(short_smap, page)
    text = page.read_text()
    assert text.count("<!-- end -->") == len(smap_pages.TABLES) + 2, "and those of baselines.py and claims_pages.py"
    fd = row["labelled"]["0"][table.FD]
    assert f"| SMAP KL, 4 tokens | true | `{table.FD}` | {fd:.2f} |" in text
    fd = row["unlabelled"]["0"][table.FD]
    assert f"| SMAP KL, 4 tokens | null, never trained | `{table.FD}` | {fd:.2f} |" in text
    assert "| SMAP KL | 4 | null, never trained |" in text and "| TiTok VQ | 4 | none |" in text


def test_the_tables_of_smap_are_of_all_rows() -> None:
    kinds = {name.rsplit("-", 1)[0] for name in smap_table.rows()}
    assert kinds == smap_pages.TOKENIZERS.keys() | smap_pages.GENERATORS.keys()


TOY_SMAP = replace(
    SMAPSizes(),
    name="toy",
    image_size=16,
    vit=plain_vit(patch=8, dim=16, depth=2, heads=2),
    num_tokens=4,
    token_dim=4,
    vocab_size=32,
    dim=16,
    depth=2,
    heads=2,
    head_width=16,
    head_depth=1,
    head_steps=3,
    maskgit_steps=3,
    train_batch=5,
    batch=2,
    gemm=16,
    min_seconds=0.0,
)


@pytest.fixture(scope="module")
def smap_bench() -> SMAPBench:
    return SMAPBench(TOY_SMAP, CPU)


@pytest.fixture(scope="module")
def smap_measured(smap_bench: SMAPBench) -> dict[str, dict[str, Any]]:
    """The record of every row of SMAP and its generators at toy sizes."""
    rows = [row for build in SMAP_ROWS.values() for row in build(smap_bench)]
    return {row.name: measure(row, 1, 0.0, CPU, limit=1.0) for row in rows}


def test_smap_rows(smap_measured: dict[str, dict[str, Any]]) -> None:
    for record in smap_measured.values():
        assert record["fast"]["seconds"] > 0 and record["fast"]["gflop"] > 0
    assert smap_measured["card-cache"]["difference"] < 1e-4
    # Ids: exactly the same with the slow variants and with another library.
    assert smap_measured["llamagen-cache"]["difference"] == smap_measured["llamagen-generate"]["difference"] == 0
    json.dumps(smap_measured)


def test_a_cut_saves_arithmetic_and_a_mask_does_not(smap_measured: dict[str, dict[str, Any]]) -> None:
    masked, full = smap_measured["train-cut"], smap_measured["train-dropping"]
    assert masked["fast"]["gflop"] == full["fast"]["gflop"] < masked["slow"]["gflop"]
    # But for attention under a mask, whose kernel differs, all tokens pass through the decoder either way.
    assert masked["slow"]["gflop"] == pytest.approx(full["slow"]["gflop"], rel=0.1)


def test_truncation_uses_every_number_equally_often(smap_bench: SMAPBench) -> None:
    cuts = TruncationTrainer(smap_bench, "iteration").keeps
    masks = torch.cat(TruncationTrainer(smap_bench, "sample").keeps)  # type: ignore[arg-type]
    assert cuts == [0, 1, 2, 3, 4]
    assert masks.bincount().tolist() == [TOY_SMAP.train_batch] * 5


def test_caches_and_steps_are_counted(smap_measured: dict[str, dict[str, Any]]) -> None:
    assert work(smap_measured["card-cache"]) > 1 and work(smap_measured["llamagen-cache"]) > 1
    for name in ("card-3", "llamagen"):  # guidance doubles the rows of every call
        assert work(smap_measured[name]) == pytest.approx(2, rel=0.2)
    # MaskGIT's guidance grows from 1, where it is off, so the first of the three steps has no second stream.
    assert work(smap_measured["maskgit-3"]) == pytest.approx(5 / 3)
    # Ours and transformers' network: the same products.
    assert work(smap_measured["llamagen-generate"]) == pytest.approx(1, rel=0.2)


def test_twins_of_transformers_have_the_same_logits(smap_bench: SMAPBench) -> None:
    model = smap_bench.llamagen
    labels, ids = torch.tensor([1, 5]), torch.tensor([[3, 1, 2, 0], [9, 9, 4, 31]])
    inputs = torch.cat([model.label_embed(labels)[:, None], model.token_embed(ids)], dim=1)
    theirs = transformers_twin(model)(inputs_embeds=inputs).logits
    torch.testing.assert_close(theirs, model(ids, labels), rtol=1e-4, atol=1e-5)


def test_without_transformers_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    args = ["--repeats", "1", "--out", str(out), "--threads", str(torch.get_num_threads())]
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert smap.main(["--only", "llamagen", "llamagen-generate", *args], TOY_SMAP) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "pip install 'tok1d[text]'" in shown.err
    assert [record["row"] for record in records.load(out)] == ["llamagen"], "what was measured before is kept"
    assert all(len(line) <= 100 for line in shown.out.splitlines())
    assert list(SMAP_ROWS)[-1] == "llamagen-generate", "the row that may fail is the last"
    assert smap.main([*args, "--markdown"]) == 0 and "samples/s" in capsys.readouterr().out


def test_rows_of_semanticist_are_measured_by_the_evaluator(
    fashion: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = ["train.steps=2", "train.warmup=0", "train.log_every=1", "train.batch_size=8", "evaluate.num_images=8"]

    def train(recipe: str, overrides: list[str], out: Path) -> Any:
        generation = ["evaluate.num_samples=10"] if recipe.endswith("generator") else []
        return table.train(recipe, [*overrides, *few, *generation], out)

    monkeypatch.setattr("tok1d.train.run.code_version", lambda: "commit")
    monkeypatch.setattr(semanticist_table, "train", train)
    monkeypatch.setattr(semanticist_table, "NUM_IMAGES", 20)
    monkeypatch.setattr(semanticist_table, "RESULTS", tmp_path / "results")
    chosen = ["sampler-flow-euler-2", "guidance-2", "generator-2"]
    semanticist_table.main(["--runs", str(tmp_path / "runs"), "--only", *chosen])
    found = table.read(tmp_path / "results")
    plain, guided, generation = (found[name] for name in chosen)
    assert plain["calls_per_image"] == 2 and guided["prefixes"][0]["calls_per_image"] == 20
    assert [prefix["keep"] for prefix in guided["prefixes"]] == [1, 2, 4, 8]
    tokenizer = table.train("", [], tmp_path / "runs" / "nested-0")
    again = evaluate_reconstruction(
        tokenizer,
        semanticist_table.test_images(20),
        Reconstructions(keep=(8,), steps=2, batch_size=7),
        Measuring(Measures()),
    )
    assert plain["psnr"] == pytest.approx(again[0].value, rel=1e-5)
    assert [sample["guidance"] for sample in generation["samples"]] == [1, 2]
    assert "euler, 10 evaluations" in generation["samples"][0]["drawing"]
    assert "| 20 |" in semanticist_pages.samplers(found) and "| 2 |" in semanticist_pages.generators(found)


def test_growth_is_reported_twice() -> None:
    """Memory that swings by 300 MB and leaks 2 MB in ten minutes, and files that do not grow."""
    readings = [
        {
            "minute": n / 12,
            "rss_mb": 500 + 0.2 * n / 12 + 300 * (n % 7 > 3),
            "anonymous_mb": 400,
            "files": 20 + n % 2,
            "threads": 5,
        }
        for n in range(12 * 60)
    ]
    found = soak.summary(readings, warm_up=10, stretch=5)
    assert found["rss_mb"]["in_ten_minutes"] == pytest.approx(2, abs=0.5)
    assert found["rss_mb"]["lows_in_ten_minutes"] == pytest.approx(2, abs=0.05)
    assert found["anonymous_mb"]["in_ten_minutes"] == 0
    assert (found["files"]["lows_in_ten_minutes"], found["files"]["lows"]) == (0, [20] * 9)
    assert found["highest_rss_mb"] > 800
    with pytest.raises(ValueError, match="two stretches"):
        soak.growth(readings[:100], "rss_mb", warm_up=10, stretch=5)


def test_a_growth_has_its_standard_error() -> None:
    """Of a leak without noise none; of means that alternate by 2 around it, about 2 / sqrt(10) / 14.4 a minute."""

    def made(swing: float) -> soak.Readings:
        return [{"minute": n / 12, "x": 0.3 * n / 12 + swing * (n // 60 % 2)} for n in range(12 * 60 + 1)]

    assert soak.standard_error(made(0), "x", warm_up=10, stretch=5) == pytest.approx(0, abs=1e-9)
    found = soak.standard_error(made(4), "x", warm_up=10, stretch=5)
    assert found == pytest.approx(10 * 2 / math.sqrt(10) / 14.36, rel=0.15)


def test_the_page_of_the_soak_matches_its_records() -> None:
    text = soak.PAGE.read_text()
    assert soak.page(json.loads(soak.RESULT.read_text()), text) == text, "python benchmarks/soak.py --write"


def test_a_process_is_monitored_and_asked_to_end(tmp_path: Path) -> None:
    waits = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
    readings = soak.watch([sys.executable, "-c", waits], 0.01, 0.05, tmp_path / "log.jsonl")
    # A reading right after the start is of a process that has mapped no file yet, so both sizes may be equal.
    assert readings and all(e["rss_mb"] >= e["anonymous_mb"] > 0 and e["threads"] >= 1 for e in readings)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == readings
    with pytest.raises(RuntimeError, match="ended with code 3"):
        soak.watch([sys.executable, "-c", "raise SystemExit(3)"], 1, 0.01, tmp_path / "log.jsonl")


def test_the_results_tables_of_bundled_models_match_their_records() -> None:
    found = bundled.read()
    assert found.keys() == bundled.commands().keys(), "python benchmarks/bundled.py measures the missing ones"
    for group in bundled.GROUPS:
        page = group.page.read_text()
        for name, make in bundled.tables(group).items():
            assert f"<!-- table {name} -->\n{make(found)}\n<!-- end -->" in page, "python benchmarks/bundled.py --write"
    for name, measured in found.items():
        hashes = {record["weights_hash"] for record in measured if not record["name"].startswith("baseline:")}
        assert hashes == {fingerprint(store.load(name))}


@pytest.mark.parametrize("name", ["semanticist", "maetok", "smap"])
def test_the_tables_of_experiments_match_their_records(name: str) -> None:
    pages = {"semanticist": semanticist_pages, "maetok": maetok_pages, "smap": smap_pages}[name]
    results = {"semanticist": semanticist_table, "maetok": maetok_table, "smap": smap_table}[name].RESULTS
    found, page = table.read(results), pages.PAGE.read_text()
    for title, make in pages.TABLES.items():
        expected = f"<!-- table {title} -->\n{make(found)}\n<!-- end -->"
        assert expected in page, f"python benchmarks/{name}_table.py --write"


def test_a_row_of_bundled_models_is_the_command_s_own_record(
    fashion: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundled, "RESULTS", tmp_path)
    short = ["evaluate", "reconstruction", "fashion-mnist-maetok", "fashion_mnist", "--num", "80", "--metrics", "all"]
    monkeypatch.setattr(bundled, "commands", lambda: {"fashion-mnist-maetok": short})
    assert bundled.main([]) == 0
    found = bundled.read()
    records = found["fashion-mnist-maetok"]
    semantic = {f"{name}@fashion-mnist-cnn" for name in ("semantic_agreement", "semantic_agreement_top5")}
    names = {record["name"] for record in records if not record["name"].startswith("baseline:")}
    expected = {name.replace("@", "@fashion-mnist-cnn") for name in bundled.METRICS}
    assert names == (expected - set(bundled.OF_SAMPLES)) | semantic
    table = bundled.reconstructions(found)
    psnr = next(record["value"] for record in records if record["name"] == "psnr")
    assert f"| PSNR, dB | {psnr:.2f} |" in table and "| LPIPS | none |" in table
    assert "- LPIPS: " in bundled.unavailable(found)
    capsys.readouterr()
    assert bundled.main([]) == 0 and "already measured; --again" in capsys.readouterr().out
    (tmp_path / "fashion-mnist-maetok.json").rename(tmp_path / "kept")
    capsys.readouterr()
    bundled.main(["--list"])
    assert capsys.readouterr().out.startswith("missing tok1d evaluate reconstruction fashion-mnist-maetok")


def test_the_masked_rows_of_maetok_sample_as_the_recorded_ones() -> None:
    """Uniform masking shares, one per sample; the library's default is that of the released code."""
    for kind in ("ae-mask", "vae-mask", "hog"):
        base, overrides = maetok_table.TOKENIZERS[kind]
        mask = load_recipe(base, overrides).model.mask
        assert (mask.low, mask.high, mask.distribution, mask.per) == (0.4, 0.6, "uniform", "sample"), kind
