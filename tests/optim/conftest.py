"""Every test of optimisers starts with an empty parameter store, and leaves none of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sumprod.params import PARAM_STORE


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    with PARAM_STORE.scope():
        yield
