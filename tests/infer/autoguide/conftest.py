"""Empty parameter stores, of the library and of its peer, for every test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import sumprod


@pytest.fixture(autouse=True)
def empty_stores() -> Iterator[None]:
    def clear() -> None:
        sumprod.clear_param_store()
        if "pyro" in sys.modules:
            sys.modules["pyro"].clear_param_store()

    clear()
    yield
    clear()
