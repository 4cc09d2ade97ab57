"""InverseGamma: the reciprocal of a gamma variable, also at values near zero."""

from __future__ import annotations

import math

import pyro.distributions as peer
import pytest
import torch
from scipy import stats
from torch import Tensor

from sumprod.distributions import Gamma, InverseGamma
from tests.distributions.family_checks import assert_draws_follow, check_contract

F64 = torch.float64


def test_density() -> None:
    for a, b, x in ((3.0, 2.0, 0.5), (0.5, 7.0, 20.0), (1e-3, 1e-3, 1.0)):
        expected = a * math.log(b) - math.lgamma(a) - (a + 1) * math.log(x) - b / x
        law = InverseGamma(torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64))
        assert law.log_prob(torch.tensor(x, dtype=F64)).item() == pytest.approx(expected)
    x = torch.rand(5, dtype=F64) + 0.1
    by_transform = Gamma(3.0, 2.0).log_prob(1 / x) - 2 * x.log()
    torch.testing.assert_close(InverseGamma(3.0, 2.0).log_prob(x), by_transform)


def test_tiny_values_are_nearly_impossible() -> None:
    value = torch.tensor([1e-30, 1e-38])
    log_prob = InverseGamma(torch.tensor(3.0), torch.tensor(2.0)).log_prob(value)
    assert log_prob[0].item() == pytest.approx(-2e30, rel=1e-5)
    assert log_prob[1].item() == pytest.approx(-2e38, rel=1e-5)


def test_contract_moments_and_samples() -> None:
    a, b = torch.tensor([3.0, 8.0], dtype=F64), torch.tensor([2.0, 5.0], dtype=F64)
    check_contract(InverseGamma, {"concentration": a, "rate": b})
    law = InverseGamma(a, b)
    torch.testing.assert_close(law.mean, b / (a - 1))
    torch.testing.assert_close(law.variance, b**2 / ((a - 1) ** 2 * (a - 2)))
    assert InverseGamma(torch.tensor(1.0), torch.tensor(1.0)).mean == math.inf
    draws = law.sample((5000,))
    for i in range(2):
        assert_draws_follow(draws[:, i], stats.invgamma(a[i].item(), scale=b[i].item()).cdf)


def test_draws_are_reparameterised() -> None:
    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    b = torch.tensor(2.0, dtype=F64, requires_grad=True)
    law = InverseGamma(a, b)
    assert law.has_rsample
    draw = law.rsample()
    grads = torch.autograd.grad(draw, [a, b])
    assert grads[1].item() == pytest.approx(draw.item() / 2.0)  # a scale
    assert grads[0] < 0
    assert not law.has_rsample_(False).expand((2,))().requires_grad

    def log_prob(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return InverseGamma(a, b).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, [a, b, torch.tensor(0.7, dtype=F64, requires_grad=True)])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"parameter concentration"):
        InverseGamma(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"parameter rate"):
        InverseGamma(1.0, -1.0)
    with pytest.raises(ValueError, match=r"within the support .*InverseGamma"):
        InverseGamma(1.0, 1.0).log_prob(torch.tensor(-0.5))


def test_streams_and_numbers_of_pyro() -> None:
    results = []
    for family in (InverseGamma, peer.InverseGamma):
        torch.manual_seed(8)
        law = family(torch.tensor([0.5, 4.0]), torch.tensor(2.0))
        draws = law.rsample((20,))
        results.append((draws, law.log_prob(draws), law.mean, law.variance))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
