"""Options, markers, fixtures and Hypothesis profiles of the whole test suite."""

from __future__ import annotations

import gc
import random
import sys
import zlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import sumprod
from sumprod import runtime
from tests import devices

# `ci` draws the same examples in every run, so that a red run can be repeated; `thorough` (give
# --hypothesis-profile=thorough) looks for new ones. No deadline: the machine may be shared.
settings.register_profile("ci", derandomize=True, max_examples=120, deadline=None, database=None)
settings.register_profile(
    "thorough", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--device",
        choices=devices.DEVICES,
        default="cpu",
        help="where operator tests run; 'pretend' is as strict as a GPU and needs none",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes many seconds or much memory; needs --run-slow")
    config.addinivalue_line(
        "markers", "host(reason): is about the CPU or a compiler; runs with --device cpu only"
    )
    config.addinivalue_line(
        "markers", "transforms: needs tensors that torch can transform, compile or resize"
    )
    try:
        devices.choose(config.getoption("--device"))
    except RuntimeError as error:  # never a skip: who asks for a GPU wants it tested
        raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="slow: give --run-slow")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(slow)
        host = item.get_closest_marker("host")
        if host is not None and devices.device().type != "cpu":
            item.add_marker(pytest.mark.skip(reason=f"on the CPU only: {host.args[0]}"))
        whole_torch = item.get_closest_marker("transforms") or "fresh_compiler" in getattr(
            item, "fixturenames", ()
        )
        if devices.device().type == "pretend" and whole_torch:
            item.add_marker(
                pytest.mark.skip(reason="torch does not do this to tensors of a device written in Python")
            )


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A number fixed by the test's name; every global generator starts from it."""
    number = zlib.crc32(request.node.nodeid.encode())
    random.seed(number)
    torch.manual_seed(number)
    return number


def empty_stores() -> None:
    sumprod.clear_param_store()
    if "pyro" in sys.modules:
        sys.modules["pyro"].clear_param_store()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Empty parameter stores, the peer's too, before and after; a handler left behind is a failure."""
    empty_stores()
    yield
    empty_stores()
    assert runtime.handler_stack() == []
    assert runtime.dim_allocator()._names == []


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A torch generator fixed by the test's name."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def new_objects_only() -> Iterator[None]:
    """The garbage collector looks at what the test makes, not at all that other tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def double() -> Iterator[None]:
    """New tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled graph from another test, and none left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
