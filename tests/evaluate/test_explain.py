"""The comparison of two numbers names exactly the settings that differ, and covers the published protocols."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe, recipe_names
from tok1d.errors import DataError, InputError
from tok1d.evaluate.explain import compare, explain, table
from tok1d.evaluate.facts import BUNDLED, measured
from tok1d.evaluate.published import Facts, protocol_names, published
from tok1d.evaluate.settings import SETTINGS, rank
from tok1d.zoo.record import Record, write_records

SYSTEMS = ("llamagen", "maetok", "mar", "semanticist", "sit", "smap", "titok")

# A record of samples in the format of older versions, and changes: setting -> fields of a record that differs only
# in this setting.
SAMPLES: dict[str, Any] = {
    "name": "fd@cnn",
    "value": 8.1,
    "num_images": 1000,
    "network": "cnn@ab12",
    "reference": "10000 images 77d4",
    "crop": "center 28",
    "label": "true",
    "keep": 16,
    "sampler": "sde 50 steps, 100 evaluations a token; euler, 4 evaluations an image",
    "steps": 4,
    "guidance": "2 linear in 0.25..1, decoder 3",
    "weights": "ema",
    "precision": "fp32",
    "seed": 0,
    "weights_hash": "f903",
    "rounding": "rounded to 8 bits",
    "classes": "balanced",
    "tokenizer": "a4dc",
    "versions": {"tok1d": "0.1", "torch": "2.15"},
}
CHANGES: dict[str, dict[str, Any]] = {
    "num_images": {"num_images": 50000},
    "reference": {"reference": "10000 images fb1a"},
    "crop": {"crop": "resize 28"},
    "label": {"label": "null"},
    "keep": {"keep": 8},
    "weights": {"weights": "raw"},
    "precision": {"precision": "bf16"},
    "seed": {"seed": 1},
    "weights_hash": {"weights_hash": "72ac"},
    "version of torch": {"versions": {"tok1d": "0.1", "torch": "2.14"}},
    "decoder_steps": {"steps": 25},
    "note": {"note": "unconditional"},
    "rounding": {"rounding": "not rounded"},
    "classes": {"classes": "uniformly random"},
    "tokenizer": {"tokenizer": "72ad"},
}
# Parts of the fields that hold several settings.
SAMPLER = {"sampler": ("sde", "heun"), "steps": ("50 steps", "250 steps"), "decoder_sampler": ("euler", "ancestral")}
GUIDANCE = {
    "guidance": ("2 ", "2.5 "),
    "guidance_schedule": ("linear", "constant"),
    "guidance_interval": ("0.25..1", "0..0.5"),
    "decoder_guidance": ("decoder 3", "decoder 1.5"),
}


def record_of(fields: dict[str, Any]) -> Record:
    return Record.from_json(fields)


def changed(settings: set[str]) -> Record:
    """The record of samples, with these settings changed."""
    fields = dict(SAMPLES)
    for key in settings & CHANGES.keys():
        fields |= CHANGES[key]
    for field, parts in (("sampler", SAMPLER), ("guidance", GUIDANCE)):
        for key in settings & parts.keys():
            old, new = parts[key]
            assert old in fields[field]
            fields[field] = fields[field].replace(old, new, 1)
    if "temperature" in settings:
        fields["sampler"] = fields["sampler"].replace("a token", "a token, temperature 0.9")
    return record_of(fields)


EVERY = sorted({*CHANGES, *SAMPLER, *GUIDANCE, "temperature"})


@given(st.sets(st.sampled_from(EVERY)))
def test_exactly_the_settings_that_differ_are_named(settings: set[str]) -> None:
    a, b = measured(changed(set()), "a"), measured(changed(settings), "b")
    for one, other in ((a, b), (b, a)):
        found = compare(one, other)
        named = [line.key for line in found.differences]
        assert set(named) == settings
        assert [rank(key) for key in named] == sorted(rank(key) for key in named)
        assert found.comparable == (
            "no" if settings & {"reference", "crop"} else "after matching" if settings else "yes"
        )


def test_references_that_may_differ_in_their_crop_alone() -> None:
    """Other fingerprints of as many images are no proof of other images where the crop differs too."""
    for settings, may_be_same in (({"reference", "crop"}, True), ({"reference"}, False)):
        found = compare(measured(changed(set()), "a"), measured(changed(settings), "b"))
        reasons = {line.key: line.reason_for("psnr") for line in found.differences}
        assert ("may be the same" in reasons["reference"]) == may_be_same
    fewer = measured(record_of(SAMPLES | CHANGES["crop"] | {"reference": "500 images fb1a"}), "b")
    (line,) = [each for each in compare(measured(changed(set()), "a"), fewer).differences if each.key == "reference"]
    assert line.reason_for("psnr") == SETTINGS["reference"].of_pairs


SIX = {"num_images", "steps", "guidance", "weights", "seed", "keep"}


def test_six_settings_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, settings in (("a.json", set()), ("b.json", SIX)):
        other = Record(name="psnr", value=19.0, num_images=1, keep=99)
        write_records(tmp_path / name, [other, changed(settings)])
    command = ["evaluate", "explain", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert cli.run([*command, "--metric", "fd@cnn", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["differ"]) == SIX
    assert cli.run([*command, "--metric", "fd@cnn"]) == 0
    printed = capsys.readouterr().out
    listed = re.findall(r"^ +\d+\. ([^:]+): (.+) against (.+) \(", printed, re.M)
    assert [title for title, _, _ in listed] == [SETTINGS[key].title for key in sorted(SIX, key=rank)]
    assert ("number of images", "1000", "50000") in listed
    assert "can be compared once" in printed


def test_a_spread_is_no_setting() -> None:
    def noted(note: str) -> Facts:
        return measured(record_of(SAMPLES | {"note": note}), "a")

    for form in ("100 subsets of 1000, spread {}", "unconditional; mean of 10 chunks, spread {}; 2 images"):
        assert compare(noted(form.format(0.0012)), noted(form.format("1.3e-05"))).comparable == "yes"
    different = compare(noted("100 subsets of 1000, spread 0.1"), noted("100 subsets of 500, spread 0.1"))
    assert [(line.a, line.b) for line in different.differences] == [("100 subsets of 1000", "100 subsets of 500")]


def test_no_guidance_is_one_difference() -> None:
    plain = record_of(SAMPLES | {"guidance": 1.0})
    found = compare(measured(plain, "a"), measured(changed(set()), "b"))
    assert {line.key for line in found.differences} == {"guidance", "decoder_guidance"}


def test_what_an_older_file_does_not_state_is_not_a_difference() -> None:
    record = record_of(SAMPLES | {"label": None})
    stated = {key: value for key, value in record.to_json().items() if key != "label"}
    older, newer = measured(record, "a", stated=stated), measured(changed(set()), "b")
    found = compare(older, newer)
    assert not found.differences
    assert [line.key for line in found.lines if line.status == "not stated"] == ["label"]
    assert [line.key for line in compare(measured(record, "a"), newer).differences] == ["label"]


def test_words_of_another_form_stay_whole() -> None:
    record = record_of(SAMPLES | {"sampler": "something (new)", "guidance": "cosine from 3"})
    settings = measured(record, "a").settings
    assert (settings["sampler"], settings["guidance"]) == ("something (new)", "cosine from 3")


def test_other_metrics_networks_and_missing_values_are_not_compared() -> None:
    a = measured(changed(set()), "a")
    for change in (
        {"name": "fd@other", "network": "other@ab12"},
        {"network": "cnn@cd34"},
        {"value": None, "note": "x"},
    ):
        found = compare(a, measured(record_of(SAMPLES | change), "b"))
        assert found.comparable == "no" and "cannot be compared" in found.verdict
    unknown = compare(a, Facts("b", 1.0, {**a.settings, "reference": None}))
    assert unknown.comparable == "not known" and "reference set" in unknown.verdict


@pytest.mark.parametrize("name", protocol_names())
def test_protocols_are_complete(name: str) -> None:
    facts, settings = published(name), published(name).settings
    generation = {"sampler", "steps", "guidance", "guidance_schedule", "guidance_interval", "temperature"}
    expected = SETTINGS.keys() - {"note", "network_hash", "weights_hash", "tokenizer"}
    assert settings.keys() == (expected - generation if "/rfid" in name else expected)
    assert settings["metric"] == name.split("/")[1].split("_")[0]
    assert not facts.recipe or facts.recipe in recipe_names()


@pytest.mark.parametrize("name", protocol_names())
def test_every_setting_that_a_protocol_states_has_its_source(name: str) -> None:
    facts = published(name)
    stated = {key for key, value in facts.settings.items() if value is not None}
    assert stated == facts.sources.keys() and all(source.strip() for source in facts.sources.values())


def test_the_protocols_of_smap_and_maetok_as_the_papers_have_them() -> None:
    rfid, gfid = published("smap/rfid"), published("smap/gfid")
    assert (rfid.settings["reference"], rfid.settings["num_images"]) == ("ImageNet validation images", "50000")
    assert "4.1" in rfid.sources["num_images"] and gfid.sources["num_images"].startswith("follows: ")
    found = {name: published(f"maetok/{name}") for name in ("gfid_512", "gfid_lightningdit", "gfid_unguided", "recall")}
    values = {name: (facts.value, facts.settings["guidance"]) for name, facts in found.items()}
    assert values == {
        "gfid_512": (1.69, "1.5"),
        "gfid_lightningdit": (1.73, "1.8"),
        "gfid_unguided": (2.31, "1"),
        "recall": (0.63, "1.9"),
    }
    coco = published("maetok/rfid_coco").settings
    assert (coco["data"], coco["num_images"]) == ("MS-COCO 256x256", None)
    lines = {line.key: line.status for line in compare(published("maetok/rfid"), published("maetok/rfid_coco")).lines}
    assert (lines["data"], lines["reference"]) == ("differs", "differs")


def test_every_system_has_its_protocols() -> None:
    names = protocol_names()
    assert {name.split("/")[0] for name in names} == set(SYSTEMS)
    assert {name.split("/")[0] for name in names if name.endswith("/rfid")} == {*SYSTEMS} - {"sit"}
    assert published("maetok") == published("maetok/gfid")


@pytest.mark.parametrize("name", [n for n in protocol_names() if "/rfid" not in n and published(n).recipe])
def test_recipes_evaluate_as_their_protocol_says(name: str) -> None:
    facts = published(name)
    recipe = load_recipe(facts.recipe)
    assert recipe.evaluate.num_samples == int(str(facts.settings["num_images"]))
    if facts.settings["guidance"] in (None, "1"):  # not stated, or the other number of a recipe that is guided
        return
    assert recipe.evaluate.guidance == float(str(facts.settings["guidance"]))
    low, high = recipe.evaluate.guidance_interval
    interval = "always" if (low, high) == (0, 1) else f"{low:g}..{high:g}"
    assert facts.settings["guidance_interval"] in (None, interval)
    steps = getattr(getattr(recipe.model, "head", recipe.model), "steps", None)
    assert facts.settings["steps"] in ("none", str(steps))


@pytest.mark.parametrize("model", sorted(path.parent.name for path in BUNDLED.glob("*/config.json")))
@pytest.mark.parametrize("system", SYSTEMS)
def test_bundled_models_against_every_protocol(model: str, system: str) -> None:
    found = explain(model, system)
    assert found.comparable == "no"
    assert {"metric", "data", "num_images"} <= {line.key for line in found.differences}
    assert table(found).row_count == len(found.lines) + 1


def test_a_faithful_record_matches_its_protocol() -> None:
    stated_settings: dict[str, Any] = {
        "name": "gfid",
        "value": 1.7,
        "num_images": 50_000,
        "network": "inception@2015",
        "reference": "train images 0123456789abcdef",
        "keep": 128,
        "sampler": "sde 250 steps, 500 evaluations a sequence",
        "guidance": "1.9 in 0.25..1",
        "classes": "uniformly random",
    }
    found = compare(measured(record_of(stated_settings), "mine"), published("maetok"))
    # The paper used the ADM suite itself; whether the reference is its file, a fingerprint cannot tell.
    assert [line.key for line in found.differences] == ["implementation"]
    assert found.comparable == "not known" and "reference set" in found.verdict
    same = {line.key for line in found.lines if line.status == "same"}
    for key in (
        "metric",
        "network",
        "num_images",
        "keep",
        "sampler",
        "steps",
        "guidance",
        "guidance_interval",
        "classes",
    ):
        assert key in same
    other = record_of(stated_settings | {"reference": "50000 validation images 0123456789abcdef"})
    assert "reference" in [line.key for line in compare(measured(other, "mine"), published("maetok")).differences]


def test_a_reconstruction_is_compared_with_its_paper_s_kind_of_reference() -> None:
    """In either order. A reference of which only the fingerprint is known is not reported as different."""
    stated_settings: dict[str, Any] = {
        "name": "rfid",
        "value": 0.6,
        "num_images": 50_000,
        "network": "inception@672682",
        "crop": "center 256",
        "keep": 256,
        "sampler": "ancestral, 500 evaluations an image",
        "steps": 250,
        "guidance": 3.0,
        "weights": "ema",
    }
    for reference, expected in (
        ("50000 validation images 77d4fd3f41a32d54", "not stated"),
        ("50000 test images 77d4fd3f41a32d54", "not stated"),
        ("5000 own images 77d4fd3f41a32d54", "not stated"),
        ("77d4fd3f41a32d54", "not stated"),
        ("50000 train images 77d4fd3f41a32d54", "differs"),
    ):
        record = record_of(stated_settings | {"reference": reference})
        for protocol in ("semanticist/rfid", "maetok/rfid"):
            mine, paper = measured(record, "mine"), published(protocol)
            for found in (compare(mine, paper), compare(paper, mine)):
                lines = {line.key: line.status for line in found.lines}
                assert lines["reference"] == expected, reference
                assert lines["crop"] == ("same" if protocol == "semanticist/rfid" else "not stated")
                assert found.comparable == ("no" if expected == "differs" else "not known")
                crop_named = ("crop and resize" in found.verdict) == (protocol == "maetok/rfid")
                assert "reference set" in found.verdict and (crop_named or expected == "differs")
    other = measured(record_of(stated_settings | {"crop": "center 512"}), "mine")
    assert "crop" in [line.key for line in compare(other, published("semanticist/rfid")).differences]


def test_a_folder_is_no_name_of_a_data_set() -> None:
    """For a recipe that reads a folder or shards, only the image size is known."""
    record = Record(name="rfid", value=0.5, num_images=50_000, network="inception@672682", keep=128)
    for name in ("folder", "webdataset", "huggingface"):
        for size, status in ((256, "not stated"), (272, "differs")):
            recipe = {"data": {"name": name, "image_size": size}}
            mine = measured(record, "mine", recipe=recipe)
            for found in (compare(mine, published("maetok/rfid")), compare(published("maetok/rfid"), mine)):
                (line,) = [line for line in found.lines if line.key == "data"]
                assert line.status == status and {line.a, line.b} == {f"{size}x{size}", "ImageNet 256x256"}
            assert not [line for line in compare(mine, mine).lines if line.key == "data" and line.status != "same"]
    recipe = {"data": {"name": "fashion_mnist", "image_size": 256}}
    found = compare(measured(record, "mine", recipe=recipe), published("maetok/rfid"))
    assert "data" in [line.key for line in found.differences]


def test_an_older_record_s_reference_is_known_by_its_fingerprint() -> None:
    def same(a: str, b: str) -> bool:
        facts = [measured(record_of(SAMPLES | {"reference": each}), each) for each in (a, b)]
        return compare(*facts).comparable == "yes"

    assert same("77d4", "10000 test images 77d4") and same("first 100 of 77d4", "first 100 test images 77d4")
    assert not same("77d4", "10000 test images fb1a") and not same("77d4", "first 100 test images 77d4")
    assert not same("100 test images 77d4", "200 test images 77d4")


def test_several_records_choose_a_distance_both_have(tmp_path: Path) -> None:
    def records(*pairs: tuple[str, int]) -> list[Record]:
        return [Record(name=name, value=1.0, num_images=9, keep=keep, network="cnn") for name, keep in pairs]

    write_records(tmp_path / "a.json", records(("psnr", 16), ("fd@cnn", 4), ("fd@cnn", 8), ("fd@cnn", 16)))
    write_records(tmp_path / "b.json", records(("psnr", 16), ("fd@cnn", 4), ("fd@cnn", 8)))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    for options, expected in (
        ({}, ("fd@cnn", "8")),
        ({"keep": 4}, ("fd@cnn", "4")),
        ({"metric": "psnr"}, ("psnr", "16")),
    ):
        found = explain(a, b, **options)
        for facts in (found.a, found.b):
            assert (facts.settings["metric"], facts.settings["keep"]) == expected
    with pytest.raises(InputError, match="no record of ssim keep 4; there are psnr keep 16"):
        explain(a, b, metric="ssim", keep=4)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("maetk", InputError, "did you mean maetok"),
        ("sit/rfid", InputError, "did you mean sit/gfid"),
        (str(tmp_path / "broken.json"), DataError, "evaluate again"),
        (str(tmp_path / "empty.json"), DataError, "expected records, got none"),
        (str(tmp_path / "folder"), DataError, "got a folder without"),
    ):
        with pytest.raises(error, match=message):
            explain(name, "maetok")
        assert cli.run(["evaluate", "explain", name, "maetok"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evaluation.md"


def test_the_page_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evaluation_pages

    text = PAGE.read_text(encoding="utf-8")
    shown = {argument.split("/")[0] for match in evaluation_pages.BLOCK.finditer(text) for argument in match[2].split()}
    assert {*SYSTEMS} <= shown
    assert evaluation_pages.filled(text) == text, "python benchmarks/evaluation_pages.py fills docs/evaluation.md anew"


def test_the_commands_of_the_page_are_ones() -> None:
    import typer

    group: Any = typer.main.get_command(cli.app)
    commands = re.findall(
        r"`tok1d (evaluate (?:generation|reconstruction) [A-Z]+ IMAGENET [^`]+)`", PAGE.read_text("utf-8")
    )
    assert len(commands) == 10
    for command in commands:
        _, name, *arguments = command.split()
        context = group.commands["evaluate"].commands[name].make_context(name, arguments)
        assert context.params["network"] == ["inception"]
