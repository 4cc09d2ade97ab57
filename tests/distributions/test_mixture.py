"""MaskedMixture: each element under its own component."""

from __future__ import annotations

import math

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import MaskedMixture
from tests.distributions.family_checks import check_contract

F64 = torch.float64
MASK = torch.tensor([True, False, True])


def make(loc: Tensor, rate: Tensor, validate_args: bool | None = None) -> MaskedMixture:
    return MaskedMixture(MASK, dist.Normal(loc, 1.0), dist.Exponential(rate), validate_args=validate_args)


def test_contract() -> None:
    loc, rate = torch.tensor([-4.0, -5.0, -6.0], dtype=F64), torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    check_contract(make, {"loc": loc, "rate": rate})
    mixed = make(loc, rate)
    torch.testing.assert_close(mixed.mean, torch.tensor([2.0, -5.0, 0.5], dtype=F64))
    torch.testing.assert_close(mixed.variance, torch.tensor([4.0, 1.0, 0.25], dtype=F64))
    value = torch.tensor([0.7, -5.5, 3.0], dtype=F64)
    expected = torch.where(MASK, rate.log() - rate * value, dist.Normal(loc, 1.0).log_prob(value))
    torch.testing.assert_close(mixed.log_prob(value), expected)


def test_each_component_sees_its_own_values_only() -> None:
    concentration = torch.tensor([2.0, 3.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    mixed = MaskedMixture(
        torch.tensor([True, False]), dist.Normal(0.0, scale), dist.Gamma(concentration, 1.0)
    )
    log_prob = mixed.log_prob(torch.tensor([1.5, -2.0]))
    log_prob.sum().backward()
    for leaf in (concentration, scale):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert concentration.grad is not None
    assert concentration.grad[1] == 0
    with pytest.raises(ValueError, match="within the support"):
        mixed.log_prob(torch.tensor([-1.5, -2.0]))


def test_discrete_components_with_different_supports() -> None:
    mixed = MaskedMixture(
        torch.tensor([False, True, True]),
        dist.Bernoulli(torch.tensor(0.25)),
        dist.Binomial(torch.tensor([3.0, 3.0, 9.0]), torch.tensor(0.5)),
    )
    value = torch.tensor([1.0, 2.0, 9.0])
    expected = [math.log(0.25), math.log(3 / 8), -9 * math.log(2)]
    assert mixed.log_prob(value).tolist() == pytest.approx(expected, rel=1e-5)
    assert mixed.support.is_discrete
    for bad in ([2.0, 2.0, 9.0], [1.0, 4.0, 9.0], [0.5, 0.0, 0.0]):
        with pytest.raises(ValueError, match="within the support"):
            mixed.log_prob(torch.tensor(bad))


def test_events_broadcast_over_the_mask() -> None:
    mask = torch.tensor([[True], [False]])
    first = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    second = dist.Dirichlet(torch.ones(2))
    mixed = MaskedMixture(mask, first, second)
    assert mixed.batch_shape == (2, 3)
    assert mixed.event_shape == (2,)
    draws = mixed.sample((4,))
    assert (draws[:, 0].sum(-1) - 1).abs().max() < 1e-6
    assert (draws[:, 1].sum(-1) - 1).abs().min() > 1e-6
    log_prob = mixed.log_prob(draws)
    assert log_prob.shape == (4, 2, 3)
    torch.testing.assert_close(log_prob[:, 1], first.log_prob(draws[:, 1]))
    torch.testing.assert_close(log_prob[:, 0], second.log_prob(draws[:, 0]))
    assert mixed.expand((5, 2, 3)).mean.shape == (5, 2, 3, 2)


def test_rsample_needs_both() -> None:
    loc = torch.zeros(2, requires_grad=True)
    which = torch.tensor([True, False])
    both = MaskedMixture(which, dist.Normal(loc, 1.0), dist.Laplace(loc, 1.0))
    assert both.has_rsample
    both().sum().backward()
    assert loc.grad is not None
    assert loc.grad.tolist() == [1, 1]
    assert not both.has_rsample_(False)().requires_grad
    assert not both.expand((3, 2)).has_rsample
    assert not MaskedMixture(which, dist.Normal(0.0, 1.0), dist.Poisson(1.0)).has_rsample


def test_errors() -> None:
    normal = dist.Normal(0.0, 1.0)
    for mask in (torch.tensor([1, 0]), [True, False]):
        with pytest.raises(ValueError, match="Expected mask to be a BoolTensor but got"):
            MaskedMixture(mask, normal, normal)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"components event_shape disagree: torch.Size\(\[\]\) vs torch.Size\(\[3\]\)"
    ):
        MaskedMixture(torch.tensor([True]), normal, normal.expand((3,)).to_event(1))
    with pytest.raises(ValueError, match="shape mismatch: objects cannot be broadcast to a single shape"):
        MaskedMixture(torch.tensor([True, False]), normal, normal.expand((3,)))


def test_streams_and_numbers_of_pyro() -> None:
    results = []
    for module, family in ((dist, MaskedMixture), (peer, peer.MaskedMixture)):
        torch.manual_seed(2)
        mixed = family(MASK, module.Normal(torch.tensor([1.0, 2.0, 3.0]), 1.0), module.Gamma(2.0, 1.0))
        draws = mixed.rsample((10,))
        results.append((draws, mixed.sample((10,)), mixed.log_prob(draws), mixed.mean, mixed.variance))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
