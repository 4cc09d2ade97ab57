"""Einsum with one output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from sumprod.ops.contract import einsum

__all__ = ["Expression", "contract", "contract_expression"]


def contract(
    equation: str,
    *operands: Tensor,
    backend: str = "torch",
    optimize: Any = None,
    cache_path: bool = True,
) -> Tensor:
    """Multiply tensors and sum out dims: einsum with one output and no plates.

    Args:
        equation: inputs and output as "ab,bc->ac", one character per dim. Without "->" the output has the
            dims that occur once, sorted.
        operands: tensors with the dims named.
        backend: as for `sumprod.ops.contract.einsum`.
        optimize: has no effect: the planner compares elimination orders itself.
        cache_path: has no effect: plans are remembered by structure.

    Returns:
        A new packed tensor, differentiable.

    Raises:
        ValueError: sizes, symbols and operands do not fit; more than one output.
        NotImplementedError: an ellipsis; an unknown backend.

    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> contract("ab,bc->ac", x, x)
    tensor([[ 7., 10.],
            [15., 22.]])
    """
    (result,) = einsum(_with_output(equation), *operands, backend=backend, modulo_total=True)
    return result


@lru_cache(maxsize=1024)
def contract_expression(
    equation: str, *shapes: tuple[int, ...], optimize: Any = None, cache_path: bool = True
) -> Expression:
    """An equation to contract operands of these shapes with, any number of times, in any ring.

    Args:
        equation: as for `contract`.
        shapes: of the operands.
        optimize: as for `contract`.
        cache_path: as for `contract`.

    Returns:
        The same `Expression` for the same arguments.

    >>> import torch
    >>> product = contract_expression("ab,bc->ac", (2, 3), (3, 4))
    >>> product(torch.ones(2, 3), torch.ones(3, 4)).shape
    torch.Size([2, 4])
    """
    return Expression(equation, shapes)


class Expression:
    """An einsum equation with one output, and the shapes of its operands.

    Attributes:
        equation: with its output.
        shapes: one per operand.
    """

    def __init__(self, equation: str, shapes: Sequence[tuple[int, ...]]) -> None:
        self.equation = _with_output(equation)
        self.shapes = tuple(map(tuple, shapes))

    def __call__(self, *operands: Tensor, backend: str = "torch") -> Tensor:
        """The contraction of operands of the shapes stated, as `contract`.

        Raises:
            ValueError: operands of other shapes.
        """
        shapes = tuple(tuple(operand.shape) for operand in operands)
        if shapes != self.shapes:
            raise ValueError(f"Expected operands of shapes {list(self.shapes)}, got {list(shapes)}")
        return contract(self.equation, *operands, backend=backend)

    def __repr__(self) -> str:
        return f"Expression({self.equation!r}, {list(self.shapes)})"


def _with_output(equation: str) -> str:
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        counts = Counter(inputs.replace(",", ""))
        output = "".join(sorted(symbol for symbol, count in counts.items() if count == 1))
    elif "," in output:
        raise ValueError(
            f"Expected one output, got {equation!r}: see sumprod.ops.contract.einsum for several"
        )
    return f"{inputs}->{output}"
