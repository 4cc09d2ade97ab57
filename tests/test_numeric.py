"""NaN and infinity: detection, warnings, gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch

from sumprod._numeric import torch_isinf, torch_isnan, warn_if_inf, warn_if_nan


@pytest.mark.parametrize(
    ("value", "nan", "inf"), [(1.5, 0, 0), (3, 0, 0), (math.nan, 1, 0), (-math.inf, 0, 1)]
)
def test_detection(value: float, nan: bool, inf: bool) -> None:
    assert torch_isnan(value) is bool(nan)
    assert torch_isinf(value) is bool(inf)
    tensor = torch.tensor([0.0, value])
    found = torch_isnan(tensor), torch_isinf(tensor)
    assert [bool(item) for item in found] == [nan, inf]
    assert all(isinstance(item, torch.Tensor) and item.shape == () for item in found)


def test_integers_are_never_nan() -> None:
    assert not torch_isnan(torch.tensor([1, 2]))
    assert not torch_isinf(torch.tensor([1, 2]))


@pytest.mark.parametrize("make", [float, torch.tensor, lambda value: torch.tensor([0.0, value])])
def test_warn_if_nan_returns_its_argument(make: Callable[[float], torch.Tensor | float]) -> None:
    value = make(math.nan)
    with pytest.warns(UserWarning, match=r"^Encountered NaN: loss$") as caught:
        assert warn_if_nan(value, "loss") is value
    assert caught[0].filename == __file__
    fine = make(1.0)
    assert warn_if_nan(fine, "loss") is fine


def test_no_message() -> None:
    with pytest.warns(UserWarning, match=r"^Encountered NaN$"):
        warn_if_nan(math.nan)


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (math.inf, {}, "+inf"),
        (-math.inf, {}, "-inf"),
        (math.inf, {"allow_posinf": True}, None),
        (-math.inf, {"allow_posinf": True}, "-inf"),
        (-math.inf, {"allow_neginf": True}, None),
        (math.inf, {"allow_neginf": True}, "+inf"),
        (math.nan, {}, None),
    ],
)
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_warn_if_inf(
    make: Callable[[float], torch.Tensor | float], value: float, options: dict[str, bool], said: str | None
) -> None:
    made = make(value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert warn_if_inf(made, "x", **options) is made
    assert [str(item.message) for item in caught] == ([f"Encountered {said}: x"] if said else [])


def test_gradients_are_checked_too() -> None:
    x = torch.tensor(0.0, requires_grad=True)
    with pytest.warns(UserWarning, match=r"^Encountered NaN: backward y$") as caught:
        (warn_if_nan(x * 1.0, "y").sqrt() * 0).backward()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^Encountered \+inf: backward y$"):
        warn_if_inf(x * 1.0, "y").sqrt().backward()
    x.grad = None
    warn_if_inf(x * 1.0, "y", allow_posinf=True).sqrt().backward()
    assert x.grad is not None
    assert math.isinf(x.grad.item())
