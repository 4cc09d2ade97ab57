"""Our transforms: inverses, Jacobians against automatic differentiation, shapes, and Pyro's numbers."""

from __future__ import annotations

import pickle

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
import torch.distributions as td

import sumprod.distributions as dist
from sumprod.distributions import transforms

STRICT = [(i, j) for i in range(3) for j in range(i)]
LOWER = [(i, j) for i in range(3) for j in range(i + 1)]


def covariance():
    root = torch.randn(3, 3, dtype=torch.float64)
    return root @ root.mT + torch.eye(3, dtype=torch.float64)


def correlation():
    matrix = covariance()
    scale = matrix.diagonal().sqrt()
    return matrix / scale / scale.unsqueeze(-1)


def vector():
    return torch.randn(3, dtype=torch.float64)


BIJECTIVE = {
    "OrderedTransform": ({}, vector),
    "CholeskyTransform": ({}, covariance),
    "CorrMatrixCholeskyTransform": ({}, correlation),
    "LowerCholeskyAffine": (
        {"loc": torch.ones(3, dtype=torch.float64), "scale_tril": 2 * torch.eye(3, dtype=torch.float64)},
        vector,
    ),
    "ELUTransform": ({}, vector),
    "LeakyReLUTransform": ({}, vector),
    "Permute": ({"permutation": torch.tensor([2, 0, 1])}, vector),
    "SimplexToOrderedTransform": (
        {},
        lambda: vector().softmax(-1),
    ),
}


def free_entries(matrix, index):
    return torch.stack([matrix[i, j] for i, j in index])


def from_entries(entries, index, symmetric, unit):
    matrix = torch.eye(3, dtype=entries.dtype) if unit else torch.zeros(3, 3, dtype=entries.dtype)
    for (i, j), entry in zip(index, entries, strict=True):
        at = torch.zeros(3, 3, dtype=entries.dtype)
        at[i, j] = 1
        if symmetric and i != j:
            at[j, i] = 1
        matrix = matrix + at * entry
    return matrix


@pytest.mark.parametrize("name", BIJECTIVE)
def test_inverse_jacobian_and_pyro(name):
    arguments, make = BIJECTIVE[name]
    ours, theirs = getattr(transforms, name)(**arguments), getattr(pyro_transforms, name)(**arguments)
    x = make()
    y = ours(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(ours.inv(y), x)
    log_det = ours.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, y).expand(log_det.shape))
    assert ours.codomain.check(y).all()
    assert ours.forward_shape(x.shape) == y.shape
    assert ours.inverse_shape(y.shape) == x.shape
    wide = x.expand(4, 2, *x.shape)
    assert ours.log_abs_det_jacobian(wide, ours(wide)).shape == (4, 2, *log_det.shape)
    torch.testing.assert_close(ours.inv(ours(wide)), wide)


def jacobian_of(function, x):
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(function, x)).logabsdet


def test_jacobians_against_automatic_differentiation():
    x = vector()
    for transform in (
        transforms.OrderedTransform(),
        transforms.LowerCholeskyAffine(x, torch.linalg.cholesky(covariance())),
        transforms.Permute(torch.tensor([2, 0, 1])),
    ):
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), jacobian_of(transform, x))
    for transform in (transforms.ELUTransform(), transforms.LeakyReLUTransform()):
        torch.testing.assert_close(
            transform.log_abs_det_jacobian(x, transform(x)).sum(), jacobian_of(transform, x)
        )
    simplex = x.softmax(-1)
    ordered = transforms.SimplexToOrderedTransform(0.3)
    torch.testing.assert_close(
        ordered.log_abs_det_jacobian(simplex, ordered(simplex)),
        jacobian_of(lambda free: ordered(torch.cat((free, 1 - free.sum(-1, keepdim=True)))), simplex[:-1]),
    )
    # Pyro's Jacobian changes with the anchor, although a shift has none.
    torch.testing.assert_close(
        ordered.log_abs_det_jacobian(simplex, ordered(simplex)),
        transforms.SimplexToOrderedTransform().log_abs_det_jacobian(simplex, ordered(simplex)),
    )
    torch.testing.assert_close(
        ordered(simplex), pyro_transforms.SimplexToOrderedTransform(torch.tensor(0.3))(simplex)
    )
    for transform, matrix, index, unit in (
        (transforms.CholeskyTransform(), covariance(), LOWER, False),
        (transforms.CorrMatrixCholeskyTransform(), correlation(), STRICT, True),
    ):

        def free(entries, transform=transform, index=index, unit=unit):
            return free_entries(transform(from_entries(entries, index, True, unit)), index)

        torch.testing.assert_close(
            transform.log_abs_det_jacobian(matrix, transform(matrix)),
            jacobian_of(free, free_entries(matrix, index)),
        )


def test_densities_integrate():
    """An ordered pair of logistic cut points from a uniform simplex has total mass one."""
    d = dist.TransformedDistribution(dist.Dirichlet(torch.ones(2)), [transforms.SimplexToOrderedTransform()])
    grid = torch.linspace(-30, 30, 20_001).unsqueeze(-1)
    assert abs(torch.trapezoid(d.log_prob(grid).exp(), grid.squeeze(-1)) - 1) < 1e-4


def test_elu_inverse_has_a_finite_gradient():
    y = torch.tensor([-0.5, 0.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(transforms.ELUTransform().inv(y).sum(), y)
    torch.testing.assert_close(gradient, torch.tensor([2.0, 1.0, 1.0]))


def test_triangular_maps_ignore_the_rest():
    x = torch.randn(2, 3, 3)
    for transform in (transforms.SoftplusLowerCholeskyTransform(), transforms.UnitLowerCholeskyTransform()):
        y = transform(x)
        assert transform.codomain.check(y).all()
        torch.testing.assert_close(transform(x + torch.ones(3, 3).triu(1)), y)
        torch.testing.assert_close(transform(transform.inv(y)), y)
    large = torch.tensor([[40.0]])
    softplus = transforms.SoftplusLowerCholeskyTransform()
    torch.testing.assert_close(softplus.inv(softplus(large)), large)


def test_permute():
    x = torch.arange(6.0).reshape(2, 3)
    assert transforms.Permute(torch.tensor([1, 0]), dim=-2)(x).tolist() == [[3, 4, 5], [0, 1, 2]]
    columns = transforms.permute(3, torch.tensor([2, 1, 0]))
    assert columns(x)[0].tolist() == [2.0, 1.0, 0.0]
    assert columns.inv(columns(x)).tolist() == x.tolist()
    assert sorted(transforms.permute(5).permutation.tolist()) == [0, 1, 2, 3, 4]
    assert columns.log_abs_det_jacobian(x, x).shape == (2,)
    with pytest.raises(ValueError, match="must be negative"):
        transforms.Permute(torch.tensor([0, 1]), dim=0)
    with pytest.raises(ValueError, match=r"arrangement of 0, \.\.\., n-1"):
        transforms.Permute(torch.tensor([0, 0]))


@pytest.mark.parametrize("p", [1, 2, 3.0])
def test_normalize(p):
    x = torch.randn(4, 3)
    torch.testing.assert_close(transforms.Normalize(p)(x), pyro_transforms.Normalize(p)(x))
    with pytest.raises(ValueError, match="p >= 0"):
        transforms.Normalize(-1)


def test_lower_cholesky_affine_makes_a_multivariate_normal():
    factor = torch.linalg.cholesky(covariance())
    loc, x = vector(), vector()
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    d = dist.TransformedDistribution(base, [transforms.LowerCholeskyAffine(loc, factor)])
    torch.testing.assert_close(d.log_prob(x), dist.MultivariateNormal(loc, scale_tril=factor).log_prob(x))
    with pytest.raises(ValueError, match=r"scale_tril of shape \(..., n, n\)"):
        transforms.LowerCholeskyAffine(torch.zeros(2), torch.eye(3))


def test_names_equality_and_copies():
    assert set(td.transforms.__all__) <= set(transforms.__all__)
    assert transforms.CorrLCholeskyTransform is td.CorrCholeskyTransform
    assert isinstance(transforms.elu(), transforms.ELUTransform)
    assert isinstance(transforms.leaky_relu(), transforms.LeakyReLUTransform)
    for name, (arguments, _) in BIJECTIVE.items():
        one, other = getattr(transforms, name)(**arguments), getattr(transforms, name)(**arguments)
        if name != "LowerCholeskyAffine":
            assert one == other, name
        assert one != td.transforms.ExpTransform()
        assert type(pickle.loads(pickle.dumps(one))) is type(one)
    assert transforms.CholeskyTransform() != transforms.CorrMatrixCholeskyTransform()
    for transform in (
        transforms.Permute(torch.tensor([1, 0])),
        transforms.Normalize(),
        transforms.LowerCholeskyAffine(torch.zeros(2), torch.eye(2)),
    ):
        assert transform.with_cache(transform._cache_size) is transform
        assert transform.with_cache(1 - transform._cache_size)._cache_size == 1 - transform._cache_size
