"""Einsum without plates, in a choice of rings, and what flows back to its operands."""

from sumprod.ops.einsum import adjoint
from sumprod.ops.einsum.expression import Expression, contract, contract_expression

__all__ = ["Expression", "adjoint", "contract", "contract_expression"]
