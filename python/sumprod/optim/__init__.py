"""Optimisers: every torch optimiser and scheduler by name, `ClippedAdam`, `AdagradRMSProp`, `PyroOptim`."""

from sumprod.optim import adagrad_rmsprop, clipped_adam, lr_scheduler, optim, pytorch_optimizers
from sumprod.optim.lr_scheduler import PyroLRScheduler
from sumprod.optim.optim import AdagradRMSProp, ClippedAdam, PyroOptim
from sumprod.optim.pytorch_optimizers import *  # noqa: F403

__all__ = [
    "AdagradRMSProp",
    "ClippedAdam",
    "PyroLRScheduler",
    "PyroOptim",
    "adagrad_rmsprop",
    "clipped_adam",
    "lr_scheduler",
    "optim",
    "pytorch_optimizers",
]
__all__ += pytorch_optimizers.__all__
