"""Mixtures of diagonal normals: densities, draws, and pathwise gradients that are right on average."""

from __future__ import annotations

import pyro.distributions as peer
import pytest
import torch
from scipy import stats
from torch import Tensor

from sumprod.distributions import MixtureOfDiagNormals, MixtureOfDiagNormalsSharedCovariance, Normal
from tests.distributions.family_checks import assert_draws_follow, check_contract, monte_carlo

F64 = torch.float64
LOCS = torch.tensor([[0.0, 1.0, -0.5], [1.0, -0.5, 0.3]], dtype=F64)
SCALES = torch.tensor([[1.0, 0.7, 0.9], [0.8, 1.2, 0.6]], dtype=F64)
LOGITS = torch.tensor([0.3, -0.4], dtype=F64)


def test_log_prob_and_moments() -> None:
    mixture = MixtureOfDiagNormals(LOCS, SCALES, LOGITS)
    x = torch.randn(5, 3, dtype=F64)
    each = Normal(LOCS, SCALES).log_prob(x.unsqueeze(-2)).sum(-1)
    weights = LOGITS.softmax(0)
    torch.testing.assert_close(mixture.log_prob(x), (each.exp() * weights).sum(-1).log())
    mean = weights @ LOCS
    torch.testing.assert_close(mixture.mean, mean)
    torch.testing.assert_close(mixture.variance, weights @ (SCALES**2 + LOCS**2) - mean**2)


def test_draws_have_the_marginals() -> None:
    draws = MixtureOfDiagNormals(LOCS, SCALES, LOGITS).sample((20_000,))
    weights = LOGITS.softmax(0).numpy()
    for d in range(3):

        def cdf(x: object, d: int = d) -> object:
            return sum(weights[k] * stats.norm.cdf(x, LOCS[k, d], SCALES[k, d]) for k in range(2))

        assert_draws_follow(draws[:, d], cdf)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_pathwise_gradients_are_unbiased(shared: bool) -> None:
    """Against exact gradients of polynomial moments; five standard errors."""
    n = 100_000

    def exact(locs: Tensor, scales: Tensor, logits: Tensor) -> Tensor:
        """E[z_0 z_1 + z_2^2 + z_0^3] of the mixture, in closed form."""
        m, v = locs, scales.expand(2, 3) ** 2
        per_component = m[:, 0] * m[:, 1] + m[:, 2] ** 2 + v[:, 2] + m[:, 0] ** 3 + 3 * m[:, 0] * v[:, 0]
        return logits.softmax(-1) @ per_component

    scales = SCALES[:1] if shared else SCALES
    leaves = [p.clone().requires_grad_() for p in (LOCS, scales, LOGITS)]
    wanted = torch.autograd.grad(exact(*leaves), leaves)
    copies = [p.expand(n, *p.shape).clone().requires_grad_() for p in (LOCS, scales, LOGITS)]
    if shared:
        mixture = MixtureOfDiagNormalsSharedCovariance(copies[0], copies[1].squeeze(-2), copies[2])
    else:
        mixture = MixtureOfDiagNormals(*copies)
    z = mixture.rsample()
    value = z[:, 0] * z[:, 1] + z[:, 2] ** 2 + z[:, 0] ** 3
    got = torch.autograd.grad(value.sum(), copies)
    for estimate, expected in zip(got, wanted, strict=True):
        monte_carlo(estimate, expected)


def test_one_component_is_a_normal() -> None:
    locs, scales = (
        torch.zeros(1, 2, dtype=F64, requires_grad=True),
        torch.ones(1, 2, dtype=F64, requires_grad=True),
    )
    logits = torch.zeros(1, dtype=F64, requires_grad=True)
    z = MixtureOfDiagNormals(locs, scales, logits).rsample((7,))
    grads = torch.autograd.grad(z.sum(), [locs, scales, logits])
    torch.testing.assert_close(grads[0], torch.full((1, 2), 7.0, dtype=F64))
    torch.testing.assert_close(grads[1], z.sum(0, keepdim=True))
    assert grads[2].abs().max() < 1e-12


def test_contracts() -> None:
    check_contract(MixtureOfDiagNormals, {"locs": LOCS, "coord_scale": SCALES, "component_logits": LOGITS})
    check_contract(
        MixtureOfDiagNormals,
        {
            "locs": LOCS.expand(4, 2, 3).clone(),
            "coord_scale": SCALES,
            "component_logits": LOGITS.expand(5, 1, 2),
        },
    )
    check_contract(
        MixtureOfDiagNormalsSharedCovariance,
        {"locs": LOCS.expand(4, 2, 3).clone(), "coord_scale": SCALES[0], "component_logits": LOGITS},
    )
    detached = MixtureOfDiagNormals(LOCS.clone().requires_grad_(), SCALES, LOGITS).has_rsample_(False)
    assert not detached.expand((2,))().requires_grad


@pytest.mark.parametrize("name", ["MixtureOfDiagNormals", "MixtureOfDiagNormalsSharedCovariance"])
def test_streams_and_numbers_of_pyro(name: str) -> None:
    scales = SCALES if name == "MixtureOfDiagNormals" else SCALES[0]
    results = []
    for family in (globals()[name], getattr(peer, name)):
        torch.manual_seed(3)
        mixture = family(LOCS, scales, LOGITS)
        draws = mixture.rsample((20,))
        results.append((draws, mixture.log_prob(draws)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"locs must have shape \[\*B, K, D\].*got \[3\], \[2, 3\] and \[2\]"
    ):
        MixtureOfDiagNormals(LOCS[0], SCALES, LOGITS)
    with pytest.raises(ValueError, match=r"got \[2, 3\], \[2, 3\] and \[3\]"):
        MixtureOfDiagNormals(LOCS, SCALES, torch.zeros(3))
    with pytest.raises(ValueError, match="Expected parameter coord_scale"):
        MixtureOfDiagNormals(LOCS, -SCALES, LOGITS)
    with pytest.raises(ValueError, match="Expected parameter coord_scale"):
        MixtureOfDiagNormalsSharedCovariance(LOCS, -SCALES[0], LOGITS)
