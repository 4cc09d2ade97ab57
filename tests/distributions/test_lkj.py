"""LKJ: densities with their closed constant, marginals, and the older name of the Cholesky form."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pyro.distributions as peer
import pytest
import torch
from scipy import stats
from torch import Tensor

from sumprod.distributions import LKJ, LKJCorrCholesky
from sumprod.distributions.lkj import LKJCholesky
from tests.distributions.family_checks import assert_draws_follow

F64 = torch.float64


def log_constant(dim: int, eta: float) -> float:
    """log of the integral of det(R)^(eta - 1) over correlation matrices (Lewandowski et al. 2009)."""
    terms = [
        0.5 * k * math.log(math.pi) + math.lgamma(eta + (dim - 1 - k) / 2) - math.lgamma(eta + (dim - 1) / 2)
        for k in range(1, dim)
    ]
    return math.fsum(terms)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_density(dim: int) -> None:
    eta = torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    law = LKJ(dim, eta)
    draws = law.sample((4,))
    assert draws.shape == (4, 3, dim, dim)
    assert law.support.check(draws).all()
    constants = torch.tensor([log_constant(dim, e) for e in eta.tolist()], dtype=F64)
    expected = (eta - 1) * torch.logdet(draws) - constants
    torch.testing.assert_close(law.log_prob(draws), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.7, 4.0])
def test_every_correlation_has_a_beta_law(eta: float) -> None:
    draws = LKJ(4, torch.tensor(eta, dtype=F64)).sample((4000,))
    for i, j in ((1, 0), (2, 0), (2, 1), (3, 0), (3, 2)):
        shape = eta + 1  # eta + dim / 2 - 1
        assert_draws_follow(draws[:, i, j], lambda r, a=shape: np.asarray(stats.beta.cdf((r + 1) / 2, a, a)))  # type: ignore[misc]


def test_derivatives() -> None:
    matrix = torch.tensor([[1.0, 0.3, -0.2], [0.3, 1.0, 0.4], [-0.2, 0.4, 1.0]], dtype=F64)

    def log_prob(eta: Tensor, off: Tensor) -> Tensor:
        value = matrix + off * (1 - torch.eye(3, dtype=F64))
        return LKJ(3, eta).log_prob(value)

    inputs = [
        torch.tensor(2.0, dtype=F64, requires_grad=True),
        torch.tensor(0.01, dtype=F64, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(log_prob, inputs)


def test_shapes() -> None:
    law = LKJ(3, torch.tensor([1.0, 2.0]), validate_args=False)
    wide = law.expand((4, 2))
    assert type(wide) is LKJ
    assert (wide.batch_shape, wide.event_shape, wide.dim) == ((4, 2), (3, 3), 3)
    assert wide.concentration.shape == (4, 2)
    assert not wide._validate_args
    assert wide.log_prob(wide.sample((5,))).shape == (5, 4, 2)
    assert torch.equal(wide.mean, torch.eye(3).expand(4, 2, 3, 3))
    assert law.to_event(1).log_prob(law.sample()).shape == ()
    for other in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        assert other.sample().shape == (2, 3, 3)
    assert LKJ(3).concentration == 1


def test_values_and_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match=r"parameter concentration"):
        LKJ(3, torch.tensor(-1.0))
    with pytest.raises(ValueError, match=r"Expected dim to be an integer greater than or equal to 2"):
        LKJ(1, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"within the support"):
        LKJ(2, torch.tensor(1.0)).log_prob(torch.tensor([[1.0, 0.2], [0.3, 1.0]]))
    with pytest.raises(ValueError, match=r"within the support"):
        LKJ(2, torch.tensor(1.0)).log_prob(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_the_older_name() -> None:
    eta = torch.tensor([0.5, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an old name, but not a deprecated one
        old = LKJCorrCholesky(3, eta)
    torch.manual_seed(0)
    draws = old.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(draws, LKJCholesky(3, eta).sample((5,)))
    assert torch.equal(old.log_prob(draws), LKJCholesky(3, eta).log_prob(draws))
    assert old.expand((4, 2)).sample().shape == (4, 2, 3, 3)
    assert isinstance(old, LKJCholesky)
    assert LKJCorrCholesky(d=2, eta=1.5).concentration == 1.5


def test_numbers_of_pyro_and_its_stream_in_two_dimensions() -> None:
    """From three rows on Pyro's draws, which are torch's, do not follow their own density."""
    eta = torch.tensor([0.5, 2.0], dtype=F64)
    torch.manual_seed(8)
    draws = LKJ(2, eta).sample((6,))
    torch.manual_seed(8)
    torch.testing.assert_close(draws, peer.LKJ(2, eta).sample((6,)))
    draws = LKJ(4, eta).sample((6,))
    torch.testing.assert_close(LKJ(4, eta).log_prob(draws), peer.LKJ(4, eta).log_prob(draws))
    torch.testing.assert_close(LKJ(4, eta).mean, peer.LKJ(4, eta).mean.to(F64))
