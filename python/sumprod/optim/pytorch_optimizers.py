"""Every optimiser and scheduler of torch under its own name, ready for parameters that appear over time.

Adam({"lr": 0.01})
Adam(lambda name: {"lr": 0.1 if name == "scale" else 0.01}, {"clip_norm": 10.0})
StepLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "step_size": 50})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler as _ChainedScheduler
from torch.optim.lr_scheduler import LRScheduler

from sumprod.optim._kernels import Constructor, refuse_joint_optimizers
from sumprod.optim.lr_scheduler import PyroLRScheduler
from sumprod.optim.optim import Arguments, PyroOptim


class OptimizerFactory(Protocol):
    """Makes a `PyroOptim` from the options of a torch optimiser."""

    def __call__(self, optim_args: Arguments, clip_args: Arguments | None = None) -> PyroOptim: ...


class SchedulerFactory(Protocol):
    """Makes a `PyroLRScheduler` from an optimiser, its options, and the arguments of a torch scheduler."""

    def __call__(
        self, optim_args: Mapping[str, Any], clip_args: Arguments | None = None
    ) -> PyroLRScheduler: ...


def _named(function: Any, name: str, doc: str) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def _optimizer(name: str) -> OptimizerFactory:
    constructor: Constructor = getattr(torch.optim, name)

    def make(optim_args: Arguments, clip_args: Arguments | None = None) -> PyroOptim:
        return PyroOptim(constructor, optim_args, clip_args)

    made: OptimizerFactory = _named(
        make, name, f"A `PyroOptim` with `torch.optim.{name}`, whose options it takes."
    )
    return made


def _scheduler(name: str) -> SchedulerFactory:
    constructor = getattr(torch.optim.lr_scheduler, name)

    def make(optim_args: Mapping[str, Any], clip_args: Arguments | None = None) -> PyroLRScheduler:
        return PyroLRScheduler(constructor, optim_args, clip_args)

    doc = f"A `PyroLRScheduler` with `torch.optim.lr_scheduler.{name}`, whose arguments it takes."
    made: SchedulerFactory = _named(make, name, doc)
    return made


def LBFGS(optim_args: Arguments, clip_args: Arguments | None = None) -> PyroOptim:
    """Always raises NotImplementedError, with what to do instead."""
    refuse_joint_optimizers(torch.optim.LBFGS)
    raise AssertionError("unreachable")


ASGD = _optimizer("ASGD")
Adadelta = _optimizer("Adadelta")
Adafactor = _optimizer("Adafactor")
Adagrad = _optimizer("Adagrad")
Adam = _optimizer("Adam")
AdamW = _optimizer("AdamW")
Adamax = _optimizer("Adamax")
Muon = _optimizer("Muon")
NAdam = _optimizer("NAdam")
RAdam = _optimizer("RAdam")
RMSprop = _optimizer("RMSprop")
Rprop = _optimizer("Rprop")
SGD = _optimizer("SGD")
SparseAdam = _optimizer("SparseAdam")

ChainedScheduler = _scheduler("ChainedScheduler")
ConstantLR = _scheduler("ConstantLR")
CosineAnnealingLR = _scheduler("CosineAnnealingLR")
CosineAnnealingWarmRestarts = _scheduler("CosineAnnealingWarmRestarts")
CyclicLR = _scheduler("CyclicLR")
ExponentialLR = _scheduler("ExponentialLR")
LambdaLR = _scheduler("LambdaLR")
LinearLR = _scheduler("LinearLR")
MultiStepLR = _scheduler("MultiStepLR")
MultiplicativeLR = _scheduler("MultiplicativeLR")
OneCycleLR = _scheduler("OneCycleLR")
PolynomialLR = _scheduler("PolynomialLR")
ReduceLROnPlateau = _scheduler("ReduceLROnPlateau")
SequentialLR = _scheduler("SequentialLR")
StepLR = _scheduler("StepLR")


def _others() -> list[str]:
    """Adds what a newer torch has and the lists above have not; returns those names."""
    added = []
    for module, base, make in (
        (torch.optim, Optimizer, _optimizer),
        (torch.optim.lr_scheduler, (LRScheduler, _ChainedScheduler), _scheduler),
    ):
        for name, value in vars(module).items():
            public = isinstance(value, type) and issubclass(value, base) and not name.startswith("_")
            if public and value not in (Optimizer, LRScheduler) and name not in globals():
                globals()[name] = make(name)
                added.append(name)
    return added


NEWER: list[str] = _others()

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "Muon",
    "NAdam",
    "OneCycleLR",
    "PolynomialLR",
    "RAdam",
    "RMSprop",
    "ReduceLROnPlateau",
    "Rprop",
    "SequentialLR",
    "SparseAdam",
    "StepLR",
]
__all__ += NEWER
