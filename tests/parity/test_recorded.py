"""What has to be compared for a case.json that only describes its tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .recorded import Case, find_cases


def test_what_is_not_read_has_to_be_compared(tmp_path: Path) -> None:
    tensors = {name: torch.arange(3.0) + i for i, name in enumerate(("x", "y", "z"))}
    save_file(tensors, tmp_path / "io.safetensors")
    meanings = {name: {"shape": [3], "meaning": name} for name in tensors}
    content = {"case": "some", "tolerance": {"atol": 1e-6, "rtol": 0.0}, "tensors": meanings}
    (tmp_path / "case.json").write_text(json.dumps(content))
    case = Case(tmp_path, {})
    assert case.unchecked == {"x", "y", "z"}
    case.check("y", case.io["x"] + 1)
    assert case.unchecked == {"z"} and list(case.io) == ["x", "y", "z"]
    with pytest.raises(AssertionError, match="z: Tensor-likes are not close"):
        case.check("z", case.io["x"])


def test_a_case_is_of_its_kinds_family_in_any_folder(tmp_path: Path) -> None:
    for folder, content in {
        "kept/one": {"case": "some"},
        "kept/two": {"case": "other"},
        "kept/three": {"case": "some", "system": "third"},
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "case.json").write_text(json.dumps({**content, "tolerance": {"atol": 0.0, "rtol": 0.0}}))
    assert [case.name for case in find_cases([tmp_path], {"some": "first"})] == ["first/one", "kept/two", "third/three"]
