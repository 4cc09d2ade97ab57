"""Validation is on in every test of this folder, torch's too, which any compiled function turns off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sumprod.distributions import validation_enabled


@pytest.fixture(autouse=True)
def validated() -> Iterator[None]:
    with validation_enabled():
        yield
