"""What a module's attribute can be assigned to become a parameter or a random variable of the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

if TYPE_CHECKING:
    from sumprod.nn.module import PyroModule


@dataclass(frozen=True, eq=False)
class PyroParam:
    """A learnable, constrained attribute of a `PyroModule`.

    Assign it, `self.scale = PyroParam(torch.ones(3), constraints.positive)`, or decorate a method that
    makes the initial value:

        @PyroParam(constraint=constraints.positive)
        def scale(self):
            return torch.ones(3)

    Args:
        init_value: within the constraint: a tensor, a number, or a function without arguments.
        constraint: of the value.
        event_dim: inside a subsampled plate, the number of rightmost dims that are not plates; None: the
            value does not depend on plates.
    """

    init_value: torch.Tensor | float | Callable[..., torch.Tensor] | None = None
    constraint: Constraint = constraints.real
    event_dim: int | None = None
    _name: list[str] = field(default_factory=list, init=False, repr=False)  # as a class attribute

    def __call__(self, init_value: Callable[..., torch.Tensor]) -> PyroParam:
        """The decorator form: the same parameter with an initial value.

        Raises:
            TypeError: there is an initial value already.
        """
        if self.init_value is not None:
            raise TypeError("PyroParam(...) with an initial value is not a decorator: leave the value out")
        return PyroParam(init_value, self.constraint, self.event_dim)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name[:] = [name]

    def __get__(self, module: PyroModule | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        (name,) = self._name
        if name not in module._pyro_params:
            init = self.init_value
            value = init(module) if callable(init) and not isinstance(init, torch.Tensor) else init
            setattr(module, name, PyroParam(value, self.constraint, self.event_dim))
        return module.__getattr__(name)


@dataclass(frozen=True, eq=False)
class PyroSample:
    """A random attribute of a `PyroModule`: drawn once per call of the root module, as a sample site.

    Assign it, `self.weight = PyroSample(Normal(0., 1.).expand([3]).to_event(1))`, or decorate a method
    that makes the distribution:

        @PyroSample
        def x(self):
            return Normal(self.loc, self.scale)

    Args:
        prior: a distribution, or a function of the module that returns one. A function may also return
            a tensor, which is recorded as a deterministic site.
    """

    prior: Any
    _name: list[str] = field(default_factory=list, init=False, repr=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name[:] = [name]

    def __get__(self, module: PyroModule | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        (name,) = self._name
        if name not in module._pyro_samples:
            setattr(module, name, PyroSample(self.prior))
        return module.__getattr__(name)
