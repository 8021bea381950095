"""Records of older versions, whose settings were English, are read into today's structure and shown as before."""

import json
from pathlib import Path
from typing import Any

import pytest

from tok1d.zoo.record import Record, ReferenceSet
from tok1d.zoo.record_v0 import upgraded

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sampler", "steps", "guidance"),
    [
        ("euler, 4 evaluations an image", 4, 1.0),
        ("euler, 7 evaluations an image", 4, "2 in 0..0.6"),
        ("sde 50 steps, 100 evaluations a token, temperature 0.9; euler, 4 evaluations an image", 4, "2 linear"),
        ("sde 250 steps, 500 evaluations a sequence", None, "1.9 in 0.25..1"),
        ("sde 2 steps, 4 evaluations a sequence", None, "2 against sit@ab12"),
        ("euler 2 steps, 2 evaluations a token; euler, 2 evaluations an image", 2, "3 linear, decoder 2"),
        ("categorical, 2 evaluations a token, top-k 5, top-p 0.9, temperature 0.8", None, "2 constant in 0..0.5"),
        ("maskgit 8 steps, 15 evaluations a sequence, noise 4.5, annealed", None, "3 power_cosine 2.5"),
        ("something (new)", None, None),
        (None, None, None),
    ],
)
def test_english_becomes_structure_and_english_again(sampler: Any, steps: Any, guidance: Any) -> None:
    old = {"name": "psnr", "value": 1.0, "num_images": 2, "sampler": sampler, "steps": steps, "guidance": guidance}
    record = Record.from_json(old)
    assert record.sampler_text == (sampler or "")
    assert record.decoder_steps == steps
    assert record.guidance_text == ("" if guidance is None else str(guidance))
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record and upgraded(record.to_json()) == record.to_json()


def test_settings_are_numbers() -> None:
    text = "sde 50 steps, 100 evaluations a token, temperature 0.9; euler, 8 evaluations an image"
    old = {
        "name": "psnr",
        "value": 1.0,
        "num_images": 2,
        "sampler": text,
        "steps": 4,
        "guidance": "2 linear, decoder 3",
    }
    record = Record.from_json(old)
    assert record.sampling == {
        **{"sampler": "sde", "steps": 50, "temperature": 0.9, "evaluations": 100.0, "unit": "token"},
        **{"guidance": 2.0, "guidance_schedule": "linear"},
    }
    assert record.decoding == {
        **{"sampler": "euler", "steps": 4, "guidance": 3.0, "evaluations": 8.0, "unit": "image"},
    }


def old_records(tree: Any) -> list[dict[str, Any]]:
    """All records of the old form in a tree."""
    if isinstance(tree, dict):
        own = [tree] if {"name", "value", "num_images", "sampler"} <= tree.keys() else []
        return own + [each for value in tree.values() for each in old_records(value)]
    return [each for value in tree for each in old_records(value)] if isinstance(tree, list) else []


def test_every_committed_record_is_read() -> None:
    files = [*(ROOT / "benchmarks" / "results").rglob("*.json"), *(ROOT / "tok1d" / "zoo" / "bundled").rglob("*.json")]
    records = [each for file in files for each in old_records(json.loads(file.read_text()))]
    assert len(records) > 0
    for old in records:
        record = Record.from_json(old)
        assert record.sampler_text == (old["sampler"] or "")
        assert record.guidance_text == ("" if old["guidance"] is None else str(old["guidance"]))
        assert record.decoder_steps == old["steps"]


def test_a_reference_is_stored_as_fields_and_read_from_the_text_of_older_records() -> None:
    stored = ReferenceSet("77d4", "test", 100, "spread")
    record = Record(name="psnr", value=1.0, num_images=100, reference=stored)
    content = record.to_json()
    assert content["reference"] == {
        "fingerprint": "77d4",
        "of": "test",
        "count": 100,
        "chosen": "spread",
        "split": "",
    }
    assert Record.from_json(content) == record
    for text in ("spread 100 test images 77d4", "60000 train images 77d4", "first 100 of 77d4", "77d4"):
        read = Record.from_json(content | {"reference": text}).reference
        assert read is not None and str(read).split() == text.replace("of", "images").split()
    assert Record.from_json(content | {"reference": None}).reference is None
