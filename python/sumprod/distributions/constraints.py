"""Constraints: all of torch's, and those that Pyro adds to them.

Ours are instances without state, except that a class is public where programs subclass it. How to reach
each from unconstrained numbers is in `sumprod.distributions.transforms`; `transform_to` and `biject_to` of
`torch.distributions` know it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import (
    Constraint,
    MixtureSameFamilyConstraint,
    boolean,
    cat,
    corr_cholesky,
    dependent,
    dependent_property,
    greater_than,
    greater_than_eq,
    half_open_interval,
    independent,
    integer_interval,
    interval,
    is_dependent,
    less_than,
    lower_cholesky,
    lower_triangular,
    multinomial,
    nonnegative,
    nonnegative_integer,
    one_hot,
    positive,
    positive_definite,
    positive_integer,
    positive_semidefinite,
    real,
    real_vector,
    simplex,
    square,
    stack,
    symmetric,
    unit_interval,
)

__all__ = [
    "Constraint",
    "MixtureSameFamilyConstraint",
    "boolean",
    "cat",
    "corr_cholesky",
    "corr_cholesky_constraint",
    "corr_matrix",
    "dependent",
    "dependent_property",
    "greater_than",
    "greater_than_eq",
    "half_open_interval",
    "independent",
    "integer",
    "integer_interval",
    "interval",
    "is_dependent",
    "less_than",
    "lower_cholesky",
    "lower_triangular",
    "multinomial",
    "nonnegative",
    "nonnegative_integer",
    "one_hot",
    "ordered_vector",
    "positive",
    "positive_definite",
    "positive_integer",
    "positive_ordered_vector",
    "positive_semidefinite",
    "real",
    "real_vector",
    "simplex",
    "softplus_lower_cholesky",
    "softplus_positive",
    "sphere",
    "square",
    "stack",
    "symmetric",
    "unit_interval",
    "unit_lower_cholesky",
]


class _Integer(Constraint):
    """Whole numbers of either sign."""

    is_discrete = True

    def check(self, value: Tensor) -> Any:
        return value % 1 == 0


class _OrderedVector(Constraint):
    """Vectors whose entries increase strictly."""

    event_dim = 1

    def check(self, value: Tensor) -> Any:
        if value.dim() == 0:
            raise ValueError("ordered_vector expected at least one dim, got a tensor of shape ()")
        return (value[..., 1:] > value[..., :-1]).all(-1)


class _PositiveOrderedVector(_OrderedVector):
    """Vectors of positive entries that increase strictly."""

    def check(self, value: Tensor) -> Any:
        return super().check(value) & (value > 0).all(-1)


class _SoftplusPositive(type(positive)):  # type: ignore[misc]
    """Positive numbers, reached from the real line by softplus instead of exp."""

    def __init__(self) -> None:
        super().__init__(0.0)


class _SoftplusLowerCholesky(type(lower_cholesky)):  # type: ignore[misc]
    """Lower triangular matrices with positive diagonal, which is reached by softplus instead of exp."""


class _UnitLowerCholesky(Constraint):
    """Lower triangular matrices with ones on the diagonal."""

    event_dim = 2

    def check(self, value: Tensor) -> Any:
        triangular = (value.tril() == value).flatten(-2).all(-1)
        return triangular & (value.diagonal(dim1=-2, dim2=-1) == 1).all(-1)


class _CorrMatrix(Constraint):
    """Symmetric positive definite matrices with ones on the diagonal, to 1e-6."""

    event_dim = 2

    def check(self, value: Tensor) -> Any:
        unit = ((value.diagonal(dim1=-2, dim2=-1) - 1).abs() < 1e-6).all(-1)
        # torch's positive_definite forgets definiteness where another matrix of the batch is not symmetric.
        definite = torch.linalg.cholesky_ex(value).info == 0
        return symmetric.check(value) & definite & unit


class _Sphere(Constraint):
    """Vectors of Euclidean norm 1, to a tolerance that grows with the root of their length."""

    event_dim = 1

    def check(self, value: Tensor) -> Any:
        tolerance: float = torch.finfo(value.dtype).eps * 10 * value.shape[-1] ** 0.5
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() < tolerance


integer: Any = _Integer()
ordered_vector: Any = _OrderedVector()
positive_ordered_vector: Any = _PositiveOrderedVector()
softplus_positive: Any = _SoftplusPositive()
softplus_lower_cholesky: Any = _SoftplusLowerCholesky()
unit_lower_cholesky: Any = _UnitLowerCholesky()
corr_matrix: Any = _CorrMatrix()
sphere: Any = _Sphere()
corr_cholesky_constraint = corr_cholesky  # the name it had in torch 1.7
