"""Recorded cases of released systems: same weights, same random numbers, same outputs.

    pytest tests/parity --parity-root DIR --parity-family semanticist

One test per case folder, named family/folder. A case goes through the public classes and the adapter that
`tok1d convert` uses, configured by its case.json and the shapes of its tensors alone.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from . import (
    discrete_generators,
    discrete_heads,
    discrete_quantizers,
    discrete_titok,
    maetok_cases,
    maetok_generators,
    semanticist_cases,
)
from .recorded import Case, find_cases

RUNNERS = {
    "semanticist": semanticist_cases.RUNNERS,
    "maetok": maetok_cases.RUNNERS,
    "discrete": {
        **discrete_quantizers.RUNNERS,
        **discrete_heads.RUNNERS,
        **discrete_titok.RUNNERS,
        **discrete_generators.RUNNERS,
    },
}
FAMILIES = {kind: family for family, runners in RUNNERS.items() for kind in runners}
assert len(FAMILIES) == sum(map(len, RUNNERS.values())), "a kind of two families"
assert maetok_generators.RUNNERS is maetok_cases.RUNNERS, "they register their cases in the same place"

HERE = Path(__file__).parent
DEFAULT_ROOTS = [HERE / "cases", HERE.parents[2] / "shared" / "parity"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = metafunc.config.getoption("--parity-root")
    roots = [Path(root) for root in given] if given else [root for root in DEFAULT_ROOTS if root.is_dir()]
    cases = find_cases(roots, FAMILIES)
    wanted = set(metafunc.config.getoption("--parity-family"))
    absent = wanted - {case.family for case in cases}
    if absent:
        found = ", ".join(sorted({case.family for case in cases}))
        raise pytest.UsageError(f"--parity-family: no recorded case of {', '.join(sorted(absent))}; found: {found}")
    cases = [case for case in cases if case.family in wanted or not wanted]
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the cases were recorded; for tensors this small, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_recorded_case(case: Case) -> None:
    run = RUNNERS.get(case.family, {}).get(case.kind)
    if run is None:
        pytest.fail(f"no adapter: {case.family}/{case.kind}", pytrace=False)
    run(case)
    assert not case.unchecked, f"outputs that were not compared: {', '.join(sorted(case.unchecked))}"
