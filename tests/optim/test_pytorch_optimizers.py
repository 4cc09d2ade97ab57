"""Every optimiser and scheduler of torch is there by name."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.optim import lr_scheduler

import sumprod.optim
from sumprod.optim import PyroLRScheduler, PyroOptim, pytorch_optimizers

OPTIMIZERS = [
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS")
]
SCHEDULERS = [name for name in lr_scheduler.__all__ if name != "LRScheduler"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    make = getattr(sumprod.optim, name)
    made = make({"lr": 0.1}, {"clip_norm": 1.0})
    assert type(made) is PyroOptim
    assert made.pt_optim_constructor is getattr(torch.optim, name)
    assert (made.pt_optim_args, made.pt_clip_args) == ({"lr": 0.1}, {"clip_norm": 1.0})
    assert make.__name__ == name
    assert list(inspect.signature(make).parameters) == ["optim_args", "clip_args"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    made = getattr(sumprod.optim, name)({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "x": 1})
    assert type(made) is PyroLRScheduler
    assert made.pt_scheduler_constructor is getattr(lr_scheduler, name)
    assert made.pt_scheduler_args == {"x": 1}
    assert made.pt_optim_constructor is torch.optim.Adam


def test_exports() -> None:
    assert (
        {*OPTIMIZERS, *SCHEDULERS, "LBFGS"} <= set(pytorch_optimizers.__all__) <= set(sumprod.optim.__all__)
    )
    for name in sumprod.optim.__all__:
        assert hasattr(sumprod.optim, name)


def test_names_of_a_newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newest(torch.optim.SGD):
        pass

    monkeypatch.setattr(torch.optim, "Newest", Newest, raising=False)
    assert pytorch_optimizers._others() == ["Newest"]
    made = pytorch_optimizers.Newest  # type: ignore[attr-defined]
    assert made({"lr": 0.1}).pt_optim_constructor is Newest
    monkeypatch.delattr(pytorch_optimizers, "Newest")
