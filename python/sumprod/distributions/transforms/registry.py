"""How torch's `transform_to` and `biject_to` reach our constraints."""

from __future__ import annotations

from typing import Any

from torch.distributions import biject_to, transform_to
from torch.distributions.transforms import (
    ComposeTransform,
    CorrCholeskyTransform,
    ExpTransform,
    SoftplusTransform,
)

from sumprod.distributions import constraints
from sumprod.distributions.transforms.cholesky import (
    CorrMatrixCholeskyTransform,
    SoftplusLowerCholeskyTransform,
    UnitLowerCholeskyTransform,
)
from sumprod.distributions.transforms.ordered import OrderedTransform
from sumprod.distributions.transforms.vector import Normalize

__all__: list[str] = []


@biject_to.register(constraints.ordered_vector)
@transform_to.register(constraints.ordered_vector)
def _to_ordered_vector(constraint: Any) -> Any:
    return OrderedTransform()


@biject_to.register(constraints.positive_ordered_vector)
@transform_to.register(constraints.positive_ordered_vector)
def _to_positive_ordered_vector(constraint: Any) -> Any:
    return ComposeTransform([OrderedTransform(), ExpTransform()])


@biject_to.register(constraints.softplus_positive)
@transform_to.register(constraints.softplus_positive)
def _to_softplus_positive(constraint: Any) -> Any:
    return SoftplusTransform()


@transform_to.register(constraints.softplus_lower_cholesky)
def _to_softplus_lower_cholesky(constraint: Any) -> Any:
    return SoftplusLowerCholeskyTransform()


@transform_to.register(constraints.unit_lower_cholesky)
def _to_unit_lower_cholesky(constraint: Any) -> Any:
    return UnitLowerCholeskyTransform()


@biject_to.register(constraints.corr_matrix)
@transform_to.register(constraints.corr_matrix)
def _to_corr_matrix(constraint: Any) -> Any:
    return ComposeTransform([CorrCholeskyTransform(), CorrMatrixCholeskyTransform().inv])


@transform_to.register(constraints.sphere)
def _to_sphere(constraint: Any) -> Any:
    return Normalize()
