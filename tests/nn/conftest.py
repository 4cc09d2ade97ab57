"""An empty parameter store for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sumprod


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()
