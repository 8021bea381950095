"""The page of the bundled models, without any data set."""

from collections.abc import Iterator

import pytest

from tok1d.serve.controls import Work
from tok1d.serve.shelf import bundled_shelf

from .visit import serving


@pytest.fixture(scope="package")
def work() -> Iterator[Work]:
    """The bundled models; examples are drawn, because no data set is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tok1d.data.fashion_mnist.here", lambda: None)
        patch.setattr("tok1d.data.emoji_font.here", lambda: None)
        yield Work(bundled_shelf(), device="cpu")


@pytest.fixture(scope="package")
def address(work: Work) -> Iterator[str]:
    """The address of the page."""
    with serving(work) as found:
        yield found
