"""Which torch optimisers may hold several parameters at once, and their fastest implementation for a leaf."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import optim

Constructor = Callable[..., optim.Optimizer]

# Exact classes in which no number of one parameter's update depends on another parameter. The device types
# with a fused kernel follow the keys of the first table; the classes of the second have a foreach one.
_FUSED: dict[type, tuple[str, ...]] = {
    optim.Adam: ("cpu", "cuda"),
    optim.AdamW: ("cpu", "cuda"),
    optim.SGD: ("cpu", "cuda"),
    optim.Adagrad: ("cpu",),
}
_FOREACH: frozenset[type] = frozenset(
    {optim.ASGD, optim.Adadelta, optim.Adagrad, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop}
    | {optim.Rprop, optim.SGD}
)
_SEPARABLE: frozenset[type] = (
    frozenset(_FUSED)
    | _FOREACH
    | {getattr(optim, name) for name in ("Adafactor", "Muon", "SparseAdam") if hasattr(optim, name)}
)


def refuse_joint_optimizers(constructor: Any) -> None:
    """Raises NotImplementedError for LBFGS, which must see all parameters and a closure in every step."""
    made = _unwrap(constructor)
    if isinstance(made, optim.LBFGS) or (isinstance(made, type) and issubclass(made, optim.LBFGS)):
        raise NotImplementedError(
            "LBFGS needs all parameters at once and evaluates the loss several times per step, which is "
            "impossible here (parameters appear over time, with one stochastic gradient each); use Adam or "
            "ClippedAdam, or run torch.optim.LBFGS on the parameters of the module elbo(model, guide)"
        )


def _unwrap(constructor: Any) -> Any:
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    return constructor


def is_separable(optimizer: optim.Optimizer) -> bool:
    """Whether one such optimiser for all parameters does the same as one for each.

    Classes other than torch's own say so by the attribute `separable = True`.
    """
    return type(optimizer) in _SEPARABLE or bool(getattr(type(optimizer), "separable", False))


def implementation(
    constructor: Constructor, options: Mapping[str, Any], leaf: torch.Tensor
) -> dict[str, bool]:
    """`{"fused": True}`, `{"foreach": True}` or, where the choice must stay torch's, nothing.

    The user's own choice counts. Fused and foreach round as one torch optimiser per parameter with the same
    choice does; they may differ in the last bits from torch's default on CPUs, a loop over operations.
    """
    cls = _unwrap(constructor)
    if isinstance(constructor, functools.partial):
        options = {**constructor.keywords, **options}
    if (
        "foreach" in options
        or "fused" in options
        or options.get("differentiable")
        or leaf.dtype not in (torch.float32, torch.float64)
        or (leaf.grad is not None and leaf.grad.layout != torch.strided)
        or any(isinstance(value, torch.Tensor) for value in options.values())
    ):
        return {}
    fused = leaf.device.type in _FUSED.get(cls, ())
    if fused and cls is optim.SGD and options.get("momentum") and options.get("dampening"):
        fused = False  # the first step ignores dampening; the fused kernel cannot do that for late parameters
    if fused:
        return {"fused": True}
    return {"foreach": True} if cls in _FOREACH else {}


def prime(optimizer: optim.Optimizer, state: dict[str, Any], leaf: torch.Tensor) -> None:
    """Completes the state of a parameter that joins others which were stepped before.

    The fused SGD starts all momentum buffers in one step or none. A buffer of zeros gives the same numbers.
    """
    group = optimizer.param_groups[0]
    if (
        type(optimizer) is optim.SGD
        and group["fused"]
        and group["momentum"]
        and state.get("momentum_buffer") is None
    ):
        state["momentum_buffer"] = torch.zeros_like(leaf)
