"""Two-operand forms of the einsum backends, as libraries that contract pair by pair call them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sumprod.ops.einsum.expression import contract
from sumprod.ops.packed import rename_equation, symbol

__all__ = ["Backend"]


class Backend:
    """The functions that one backend module offers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def einsum(self, equation: str, *operands: Tensor) -> Tensor:
        """Multiply tensors and sum out dims, as `sumprod.ops.einsum.contract`.

        Packed operands keep their own names of dims, if no two of these are for the same symbol.
        """
        return contract(_in_own_names(equation, operands), *operands, backend=self._name)

    def transpose(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        """A tensor with the dims of `a` in this order."""
        dims = [symbol(i) for i in range(a.dim())]
        return self.einsum(f"{''.join(dims)}->{''.join(dims[i] for i in axes)}", a)

    def tensordot(self, x: Tensor, y: Tensor, axes: int | Sequence[Sequence[int]] = 2) -> Tensor:
        """Sum out pairs of dims, one of each tensor; then come the other dims of `x`, then those of `y`.

        Args:
            x: a tensor.
            y: another.
            axes: dims of `x` and, in the same order, dims of `y`; or a number: the last of `x`, the first of
                `y`.
        """
        if isinstance(axes, int):
            left, right = list(range(x.dim() - axes, x.dim())), list(range(axes))
        else:
            left, right = [list(own) for own in axes]
        x_dims = [symbol(i) for i in range(x.dim())]
        y_dims = [symbol(x.dim() + i) for i in range(y.dim())]
        for i, j in zip(left, right, strict=True):
            y_dims[j] = x_dims[i]
        kept = [d for d in x_dims if d not in y_dims] + [d for d in y_dims if d not in x_dims]
        return self.einsum(f"{''.join(x_dims)},{''.join(y_dims)}->{''.join(kept)}", x, y)


def _in_own_names(equation: str, operands: Sequence[Tensor]) -> str:
    dims = [getattr(operand, "_pyro_dims", None) for operand in operands]
    terms = equation.partition("->")[0].split(",")
    if [None if own is None else len(own) for own in dims] != [len(term) for term in terms]:
        return equation
    pairs = {
        pair for term, own in zip(terms, dims, strict=True) for pair in zip(term, own or "", strict=True)
    }
    symbols, names = ({pair[i] for pair in pairs} for i in (0, 1))
    return rename_equation(equation, *operands) if len(symbols) == len(names) == len(pairs) else equation
