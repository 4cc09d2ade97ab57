"""Every operator test runs on the device that `--device` names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import devices


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    target = devices.device()
    if target.type == "cpu":
        yield
        return
    with devices.OnDevice(target):
        yield
