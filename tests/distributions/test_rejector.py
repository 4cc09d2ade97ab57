"""Rejection sampling: exact draws, and gradients that are right on average."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import Rejector
from tests.distributions.family_checks import assert_draws_follow, monte_carlo

F64 = torch.float64


def half_triangle(batch: tuple[int, ...] = ()) -> Rejector:
    """Density 2x on the unit interval: accept x with probability x."""
    proposal = dist.Uniform(torch.zeros(batch, dtype=F64), 1.0)
    return Rejector(proposal, torch.log, torch.tensor(0.5, dtype=F64).log())


def test_draws_have_the_density() -> None:
    rejector = half_triangle((3,))
    draws = rejector.sample((5000,))
    assert draws.shape == (5000, 3)
    assert_draws_follow(draws, lambda x: np.clip(x, 0, 1) ** 2)
    x = torch.linspace(0.01, 0.99, 9, dtype=F64)[:, None]
    torch.testing.assert_close(rejector.log_prob(x), (2 * x).log().expand(9, 3))


def power(theta: Tensor, batch: tuple[int, ...]) -> Rejector:
    """Density proportional to x^theta on (0, theta): both the proposal and its acceptance know theta."""
    proposal = dist.Uniform(torch.zeros(batch, dtype=F64), theta)
    return Rejector(proposal, lambda x: theta * (x / theta).log(), -torch.log1p(theta))


def test_gradients_are_unbiased() -> None:
    """E[x] = theta (theta + 1) / (theta + 2); five standard errors."""
    theta = torch.tensor(1.5, dtype=F64, requires_grad=True)
    rejector = power(theta, (20_000,))
    x = rejector.rsample()
    parts = rejector.score_parts(x)
    # One gradient per draw, by way of the gradients of the draws' own copies of theta.
    copies = torch.full((20_000,), 1.5, dtype=F64, requires_grad=True)
    u = (x / theta).detach()
    each = copies * u
    score = copies * (each / copies).log() + torch.log1p(copies)
    torch.testing.assert_close(parts.score_function, score)
    (by_copy,) = torch.autograd.grad((each + each.detach() * score).sum(), copies)
    (total,) = torch.autograd.grad((x + x.detach() * parts.score_function).sum(), theta, retain_graph=True)
    assert total.item() == pytest.approx(by_copy.sum().item())
    exact = (1.5**2 + 4 * 1.5 + 2) / 3.5**2
    monte_carlo(by_copy, torch.tensor(exact, dtype=F64))
    (pathwise,) = torch.autograd.grad(x.sum(), theta)
    assert abs(pathwise.item() / 20_000 - exact) > 0.1  # the path alone is biased


def test_score_parts() -> None:
    rejector = half_triangle()
    x = torch.tensor(0.3, dtype=F64)
    parts = rejector.score_parts(x)
    assert parts.log_prob.item() == pytest.approx(math.log(0.6))
    assert parts.score_function.item() == pytest.approx(math.log(0.3) - math.log(0.5))
    assert parts.entropy_term is parts.log_prob
    proposal = peer.Uniform(torch.zeros((), dtype=F64), 1.0)
    theirs = peer.Rejector(proposal, torch.log, torch.tensor(0.5).log())
    for ours, other in zip(parts, theirs.score_parts(x), strict=True):
        torch.testing.assert_close(ours, other)


def test_streams_of_pyro() -> None:
    torch.manual_seed(1)
    ours = half_triangle((4,)).rsample((100,))
    torch.manual_seed(1)
    proposal = peer.Uniform(torch.zeros(4, dtype=F64), 1.0)
    assert torch.equal(ours, peer.Rejector(proposal, torch.log, torch.tensor(0.5).log()).rsample((100,)))


def test_nan_is_named() -> None:
    rejector = Rejector(dist.Uniform(0.0, 1.0), lambda x: x * math.nan, 0.0)
    with pytest.raises(ValueError, match="log_prob_accept is NaN"):
        rejector.sample()
