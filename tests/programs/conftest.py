"""Fixtures of the tests that run one thing under both libraries."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import sumprod

LIBRARIES: dict[str, ModuleType] = {"sumprod": sumprod}
if importlib.util.find_spec("pyro") is not None:
    # The peer; it comes with the test extra.
    LIBRARIES["pyro"] = importlib.import_module("pyro")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Empty parameter stores before and after; a test that leaves a handler behind fails."""
    for library in LIBRARIES.values():
        library.clear_param_store()
    yield
    assert not sumprod.poutine.runtime.am_i_wrapped()
    for library in LIBRARIES.values():
        library.clear_param_store()


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def double() -> Iterator[None]:
    """New tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
