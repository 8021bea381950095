"""Options of the tests (pytest reads them only from a conftest it meets at the start)."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "recorded cases of released systems (tests/parity)")
    group.addoption(
        "--parity-root",
        action="append",
        metavar="DIR",
        help="folder with recorded cases, searched whole (repeatable; default: tests/parity/cases and, where it "
        "exists, shared/parity beside the repository)",
    )
    group.addoption(
        "--parity-family",
        action="append",
        metavar="NAME",
        default=[],
        help="family whose cases fail, instead of being skipped, where no adapter exists yet (repeatable)",
    )
