"""Semirings in which plated factor graphs are contracted: what sums out a variable, what multiplies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sumprod.ops._plan import Plan, make_plan
from sumprod.ops.contraction import contract

__all__ = ["LINEAR", "LOG", "MAX", "Factor", "Semiring", "multiply"]

Factor = tuple[Tensor, tuple[Hashable, ...]]
"""a tensor and the names of its dims"""


@dataclass(frozen=True)
class Semiring:
    """Sum-product over numbers, or over their logs, or with the maximum in place of the sum."""

    log: bool
    maximise: bool = False

    @property
    def one(self) -> float:
        """What changes nothing when multiplied."""
        return 0.0 if self.log else 1.0

    def times(self, left: Tensor, right: Tensor) -> Tensor:
        """The product, elementwise."""
        return left + right if self.log else left * right

    def inverse(self, tensor: Tensor) -> Tensor:
        """What gives one when multiplied; the largest number for zero, so that zero times it is zero."""
        largest = torch.finfo(tensor.dtype).max
        if self.log:
            return (-tensor).clamp(max=largest)
        # Numbers whose reciprocal overflows count as zero.
        small = tensor.abs() * largest < 1
        return torch.where(small, largest, 1 / torch.where(small, 1, tensor))

    def product(self, factor: Factor, plates: Iterable[Hashable]) -> Factor:
        """The product along plates."""
        tensor, dims = factor
        for plate in plates:
            at = dims.index(plate)
            tensor = tensor.sum(at) if self.log else tensor.prod(at)
            dims = dims[:at] + dims[at + 1 :]
        return tensor, dims

    def product_of_others(self, factor: Factor, plates: Sequence[Hashable]) -> Factor:
        """At each position of the plates jointly, the product over all other positions.

        From products before and after the position, not by division: zeros are exact.
        """
        tensor, dims = factor
        left = tuple(dim for dim in dims if dim not in plates)
        order = [dims.index(dim) for dim in (*left, *plates)]
        permuted = tensor.permute(order)
        flat = permuted.flatten(len(left))
        # Long sums of logs lose digits in float32.
        wide = flat.double() if self.log else flat
        edge = torch.full_like(wide[..., :1], self.one)
        before = torch.cat([edge, self._running(wide[..., :-1])], -1)
        after = torch.cat([edge, self._running(wide[..., 1:].flip(-1))], -1).flip(-1)
        return self.times(before, after).to(tensor.dtype).reshape(permuted.shape), (*left, *plates)

    def _running(self, tensor: Tensor) -> Tensor:
        return tensor.cumsum(-1) if self.log else tensor.cumprod(-1)

    def contract(
        self,
        factors: Sequence[Factor],
        plates: Iterable[Hashable],
        kept: Iterable[Hashable] = (),
        keep_common_plates: bool = False,
        sizes: Mapping[Hashable, int] | None = None,
    ) -> list[Factor]:
        """One factor per connected component; see `sumprod.ops.contraction.contract`."""
        tensors, dims = [tensor for tensor, _ in factors], [names for _, names in factors]
        native = self.log and not (
            self.maximise and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        )
        if native:
            found = contract(
                tensors,
                dims,
                plates,
                kept=kept,
                keep_common_plates=keep_common_plates,
                maximise=self.maximise,
                sizes=sizes,
            )
            return [(tensor, names) for names, tensor in found]
        if sizes is None:
            sizes = {
                name: size
                for tensor, names in factors
                for name, size in zip(names, tensor.shape, strict=True)
            }
        plan = make_plan(dims, sizes, plates, kept, keep_common_plates)
        return self._run(plan, [expanded(factor, sizes)[0] for factor in factors])

    def _run(self, plan: Plan, tensors: Sequence[Tensor]) -> list[Factor]:
        """The plan step by step in torch operations: numbers may be negative, maxima differentiable."""
        values: list[Factor] = list(zip(tensors, plan.factors, strict=True))
        for step in plan.steps:
            inputs = [values[number] for number in step.inputs]
            scope = tuple(dict.fromkeys(dim for _, dims in inputs for dim in dims))
            left = tuple(dim for dim in scope if dim not in step.variables)
            if self.log:
                joint, _ = multiply(self, inputs, scope, plan.sizes)
                variables = [scope.index(dim) for dim in step.variables]
                joint = joint.amax(variables) if variables else joint
            else:
                joint = _einsum(inputs, scope, left)
            joint, left = self.product((joint, left), step.plates)
            values.append((joint.permute([left.index(dim) for dim in step.dims]), step.dims))
        return [values[number] for number in plan.results]


def expanded(factor: Factor, sizes: Mapping[Hashable, int]) -> Factor:
    """A factor of which dims of size 1 stand for any size, in full."""
    tensor, dims = factor
    return tensor.expand([sizes[dim] for dim in dims]), dims


LINEAR, LOG, MAX = Semiring(log=False), Semiring(log=True), Semiring(log=True, maximise=True)


def _einsum(inputs: Sequence[Factor], scope: Sequence[Hashable], left: Sequence[Hashable]) -> Tensor:
    number = {dim: i for i, dim in enumerate(scope)}
    operands: list[Any] = []
    for tensor, dims in inputs:
        operands += [tensor, [number[dim] for dim in dims]]
    return torch.einsum(*operands, [number[dim] for dim in left])


def multiply(semiring: Semiring, factors: Sequence[Factor], dims: Sequence[Hashable], sizes: Any) -> Factor:
    """The product of at least one factor, as a new tensor object with exactly these dims."""
    total: Any = None
    for tensor, own in factors:
        order = [own.index(dim) for dim in dims if dim in own]
        shaped = tensor.permute(order).reshape([sizes[dim] if dim in own else 1 for dim in dims])
        total = shaped if total is None else semiring.times(total, shaped)
    total = total.expand([sizes[dim] for dim in dims])
    # A result that is the caller's own object would take its attributes along.
    return total.view_as(total), tuple(dims)
