"""`PyroLRScheduler`: learning-rate schedules for parameters that appear while a program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from sumprod.optim.optim import Arguments, PyroOptim, described

__all__ = ["PyroLRScheduler"]


class PyroLRScheduler(PyroOptim):
    """A `PyroOptim` whose torch optimisers have a scheduler each.

    `optim_args` is a dict with the class `optimizer` of torch optimisers, its options `optim_args` (a dict or
    function, as for `PyroOptim`), and the arguments of `scheduler_constructor`. It is not changed.

    Calling the object steps parameters, as `PyroOptim` does; `step` moves all schedules on, which `SVI.step`
    never does: call it when an epoch ends. A parameter that appears later starts at epoch 0. A scheduler that
    is made of others (`SequentialLR`, `ChainedScheduler`) takes `schedulers` as functions of the optimiser.

    Raises KeyError when `optimizer` or `optim_args` is missing.

    >>> import torch
    >>> from sumprod.optim import ExponentialLR
    >>> weight = torch.zeros(1, requires_grad=True)
    >>> weight.grad = torch.ones(1)
    >>> optim = ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.5})
    >>> for epoch in range(3):
    ...     optim([weight])
    ...     optim.step()
    >>> weight
    tensor([-1.7500], requires_grad=True)
    """

    def __init__(
        self,
        scheduler_constructor: Callable[..., Any],
        optim_args: Mapping[str, Any],
        clip_args: Arguments | None = None,
    ) -> None:
        arguments = dict(optim_args)
        for key in ("optimizer", "optim_args"):
            if key not in arguments:
                raise KeyError(
                    f"optim_args of a scheduler lacks {key!r}; expected e.g. "
                    "dict(optimizer=torch.optim.Adam, optim_args=dict(lr=0.1), gamma=0.99)"
                )
        super().__init__(arguments.pop("optimizer"), arguments.pop("optim_args"), clip_args)
        self.pt_scheduler_constructor = scheduler_constructor
        self.pt_scheduler_args = arguments

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Moves the schedules of all parameters on; arguments (such as a metric) go to each scheduler."""
        families = {id(slot.family): slot.family for slot in self._slots.values()}
        for family in families.values():
            if family is not None and family.scheduler is not None:
                family.scheduler.step(*args, **kwargs)
                family.rounds += 1

    def _schedule(self, optimizer: Optimizer) -> Any:
        arguments = dict(self.pt_scheduler_args)
        if "schedulers" not in arguments:
            return self.pt_scheduler_constructor(optimizer, **arguments)
        parts = [part(optimizer) for part in arguments.pop("schedulers")]
        if self.pt_scheduler_constructor.__name__ == "ChainedScheduler":
            return self.pt_scheduler_constructor(parts, optimizer=optimizer, **arguments)
        return self.pt_scheduler_constructor(optimizer, schedulers=parts, **arguments)

    def _unpacked(self, name: str, saved: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if not isinstance(saved, Mapping) or saved.keys() != {"scheduler", "optimizer"}:
            raise ValueError(
                f"the saved state of parameter {name!r} is not that of an optimiser with scheduler: expected "
                f"the keys 'optimizer' and 'scheduler', got {described(saved)}"
            )
        return dict(saved["optimizer"]), saved["scheduler"]
