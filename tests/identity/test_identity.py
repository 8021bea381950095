"""The tiny models compute what they computed when hashes.json was recorded."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cases
import names
import record

TINY = "tiny/"


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return record.compute(TINY)


def test_tiny_models_compute_what_is_recorded(found: dict[str, str]) -> None:
    machine, values = record.read(record.RECORD)
    wanted = {key: line for key, line in values.items() if key.startswith(TINY)}
    texts = record.differences(found, wanted, exact=not record.unlike(machine))
    assert wanted and not texts, "\n".join(texts)


def test_every_kind_and_every_bundled_model_is_recorded() -> None:
    mappings = [row[0] for row in (*cases.TOKENIZERS.values(), *cases.GENERATORS.values())]
    assert {mapping["name"] for mapping in (*mappings, *cases.CLASSIFIERS.values())} == set(names.kinds())
    assert sorted(cases.BUNDLED) == names.bundled()


def test_a_changed_value_is_reported(found: dict[str, str]) -> None:
    key = "tiny/sit/losses/0.5/loss"
    kind, shape, digest, bar, *numbers = found[key].split()
    last_bits = " ".join([kind, shape, "0" * len(digest), bar, *numbers])
    larger = " ".join([kind, shape, digest, bar, *(str(float(number) + 0.01) for number in numbers)])
    for changed, exact, reported in ((last_bits, True, 1), (last_bits, False, 0), (larger, False, 1)):
        assert len(record.differences({**found, key: changed}, found, exact=exact)) == reported
    assert len(record.differences({key: found[key]}, found, exact=False)) == len(found) - 1


def test_the_mean_of_large_entries_has_their_rounding() -> None:
    line = "float32 4x4 0 | -223.119 236.754 -292.976 "
    assert record.same_numbers(f"{line}0.993659", f"{line}0.99381")
    assert not record.same_numbers(f"{line}1.093659", f"{line}0.99381")
    apart = "tensors 4 0 | 223.119 236.754 292.976 "
    assert not record.same_numbers(f"{apart}0.993659", f"{apart}0.99381")
