"""Constraints beyond torch's: membership, and the way to them from unconstrained numbers."""

from __future__ import annotations

import pickle

import pyro.distributions.constraints as pyro_constraints
import pytest
import torch
from torch.distributions import biject_to, transform_to

from sumprod.distributions import constraints

INSIDE = {
    "integer": torch.tensor([-3.0, 0.0, 2.0]),
    "ordered_vector": torch.tensor([[-1.0, 0.0, 2.0], [0.0, 0.5, 0.6]]),
    "positive_ordered_vector": torch.tensor([[0.1, 0.2, 2.0]]),
    "softplus_positive": torch.tensor([0.1, 2.0]),
    "softplus_lower_cholesky": torch.tensor([[0.5, 0.0], [-1.0, 2.0]]),
    "unit_lower_cholesky": torch.tensor([[1.0, 0.0], [-1.0, 1.0]]),
    "corr_matrix": torch.tensor([[1.0, 0.3], [0.3, 1.0]]),
    "sphere": torch.tensor([[0.6, 0.8], [-1.0, 0.0]]),
}
OUTSIDE = {
    "integer": torch.tensor([0.5, torch.nan]),
    "ordered_vector": torch.tensor([[1.0, 1.0, 2.0], [0.0, -0.5, 0.6]]),
    "positive_ordered_vector": torch.tensor([[0.0, 0.2, 2.0], [0.3, 0.2, 2.0]]),
    "softplus_positive": torch.tensor([0.0, -2.0]),
    "softplus_lower_cholesky": torch.tensor([[[0.5, 1.0], [-1.0, 2.0]], [[-0.5, 0.0], [-1.0, 2.0]]]),
    "unit_lower_cholesky": torch.tensor([[[1.0, 1.0], [-1.0, 1.0]], [[1.0, 0.0], [-1.0, 2.0]]]),
    "corr_matrix": torch.tensor(
        [[[2.0, 0.3], [0.3, 1.0]], [[1.0, 1.3], [1.3, 1.0]], [[1.0, 0.3], [0.2, 1.0]]]
    ),
    "sphere": torch.tensor([[0.6, 0.7], [0.0, 0.0]]),
}


def test_everything_of_pyro_is_there():
    names = {
        n
        for n in dir(pyro_constraints)
        if not n.startswith("_") and n != "torch" and n in vars(pyro_constraints)
    }
    assert names <= set(dir(constraints))
    assert set(INSIDE) | {"corr_cholesky_constraint"} == set(constraints.__all__) - set(
        torch.distributions.constraints.__all__
    )


@pytest.mark.parametrize("name", INSIDE)
def test_membership(name):
    constraint = getattr(constraints, name)
    assert constraint.check(INSIDE[name]).all()
    assert not constraint.check(OUTSIDE[name]).any()
    value = INSIDE[name]
    assert constraint.check(value).shape == value.shape[: value.dim() - constraint.event_dim]
    wide = value.expand(2, 3, *value.shape)
    assert constraint.check(wide).shape == wide.shape[: wide.dim() - constraint.event_dim]
    assert constraint.is_discrete == (name == "integer")
    assert type(pickle.loads(pickle.dumps(constraint))) is type(constraint)


@pytest.mark.parametrize("name", [n for n in INSIDE if n != "integer"])
def test_reached_as_in_pyro(name):
    ours, theirs = getattr(constraints, name), getattr(pyro_constraints, name)
    transform, expected = transform_to(ours), transform_to(theirs)
    shape = transform.inverse_shape(INSIDE[name].shape)
    x = torch.randn(shape, dtype=torch.float64)
    y = transform(x)
    torch.testing.assert_close(y, expected(x))
    assert ours.check(y).all()
    assert ours.check(transform(torch.randn((5, *shape)))).all()
    if name not in ("softplus_lower_cholesky", "unit_lower_cholesky", "sphere"):
        bijection = biject_to(ours)
        torch.testing.assert_close(bijection.inv(bijection(x)), x)
        torch.testing.assert_close(
            bijection.log_abs_det_jacobian(x, y), biject_to(theirs).log_abs_det_jacobian(x, y)
        )
    else:
        torch.testing.assert_close(transform(transform.inv(y)), y)


def test_scalar_is_no_vector():
    with pytest.raises(ValueError, match="at least one dim"):
        constraints.ordered_vector.check(torch.tensor(1.0))
