"""Fixtures of the tests that run one thing under both libraries."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import pytest

import sumprod

LIBRARIES: dict[str, ModuleType] = {"sumprod": sumprod}
if importlib.util.find_spec("pyro") is not None:
    # The peer; it comes with the test extra.
    LIBRARIES["pyro"] = importlib.import_module("pyro")


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param
