"""Autograd around HMM operators that have a native forward and a composite backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.ops._hmm_arguments import canonical

Formula = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def composite_gradient(
    formula: Formula, grad: Tensor, inputs: tuple[Tensor, ...], lengths: Tensor | None, create_graph: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of `formula` at `inputs`; differentiable themselves when `create_graph`."""
    with torch.enable_grad():
        if not create_graph:
            inputs = tuple(x.detach().requires_grad_(x.requires_grad) for x in inputs)
        wanted = [x for x in inputs if x.requires_grad]
        initial, transition, emission = inputs
        value = formula(initial, transition, emission, lengths)
        grads = iter(
            torch.autograd.grad(value, wanted, grad, create_graph=create_graph, materialize_grads=True)
        )
    return tuple(next(grads) if x.requires_grad else None for x in inputs)


class CompositeBackward(torch.autograd.Function):
    """Native forward; the backward differentiates the composite formula (a loop over time)."""

    @staticmethod
    def forward(
        ctx: Any,
        op: Any,
        formula: Formula,
        initial: Tensor,
        transition: Tensor,
        emission: Tensor,
        lengths: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(initial, transition, emission, lengths)
        ctx.formula = formula
        result: Tensor = op(initial, transition, emission, lengths)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *inputs, lengths = ctx.saved_tensors
        grads = composite_gradient(ctx.formula, grad, tuple(inputs), lengths, torch.is_grad_enabled())
        return None, None, *grads, None


def posterior(
    op: str, formula: Formula, initial: Tensor, transition: Tensor, emission: Tensor, lengths: object
) -> Tensor:
    """Calls the native operator `op`, differentiable through its composite `formula`."""
    arguments = canonical(op, initial, transition, emission, lengths)
    kernel = getattr(native, op)
    if not arguments.wants_grad:
        result = kernel(*arguments.potentials)
    elif torch.compiler.is_compiling():
        result = formula(*arguments.potentials)  # its graph is differentiable as it is
    else:
        result = CompositeBackward.apply(kernel, formula, *arguments.potentials)  # type: ignore[no-untyped-call]
    return arguments.restore(result)
