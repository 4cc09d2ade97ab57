"""KL rules: against torch's for the same distributions, against exact integrals, and shapes."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributions as td
from torch.distributions import kl_divergence

import sumprod.distributions as dist
from tests.distributions.families import CASES, make

SAME = [
    c
    for c in CASES
    if c.name not in ("RelaxedBernoulli", "RelaxedOneHotCategorical", "LKJCholesky", "Wishart")
]


@pytest.mark.parametrize("case", SAME, ids=[c.label for c in SAME])
def test_families_use_torchs_rules(case):
    p, q = (make(dist, case, batch).expand((3, 3)) for batch in ((3,), (3, 1)))
    p_torch, q_torch = (make(td, case, batch).expand((3, 3)) for batch in ((3,), (3, 1)))
    try:
        expected = kl_divergence(p_torch, q_torch)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            kl_divergence(p, q)
    else:
        torch.testing.assert_close(kl_divergence(p, q), expected)


def test_bernoulli_broadcasts_and_knows_the_edges():
    p = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    q = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    kl = kl_divergence(dist.Bernoulli(p), dist.Bernoulli(q))
    xlogy = torch.special.xlogy
    exact = xlogy(p, p) - xlogy(p, q) + xlogy(1 - p, 1 - p) - xlogy(1 - p, 1 - q)
    torch.testing.assert_close(kl, exact, atol=1e-6, rtol=1e-6)
    inside = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: kl_divergence(dist.Bernoulli(a), dist.Bernoulli(logits=b)),
        (inside, torch.randn(3, 1, dtype=torch.float64, requires_grad=True)),
    )
    edge = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_divergence(dist.Bernoulli(edge), dist.Bernoulli(0.5)).sum(), edge)
    assert not gradient.isnan().any()


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(shape, generator=generator, dtype=torch.float64)
    return dist.Normal(loc, torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5)


class TestDelta:
    @pytest.mark.parametrize("event_dim", [0, 1, 2])
    def test_is_minus_log_prob(self, event_dim):
        v = torch.randn(2, 3, dtype=torch.float64)
        q = normal(2, 3).to_event(event_dim)
        p = dist.Delta(v, event_dim=event_dim)
        torch.testing.assert_close(kl_divergence(p, q), -q.log_prob(v))

    def test_log_density_counts(self):
        density = torch.tensor([0.5, 1.5], dtype=torch.float64)
        p = dist.Delta(torch.zeros(2, dtype=torch.float64), log_density=density)
        torch.testing.assert_close(kl_divergence(p, normal(2)), density - normal(2).log_prob(p.v))

    def test_gradient_reaches_the_point(self):
        v = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        q = normal(2)
        (gradient,) = torch.autograd.grad(kl_divergence(dist.Delta(v), q).sum(), v)
        torch.testing.assert_close(gradient, -q.loc / q.scale**2)

    def test_outside_the_support(self):
        with dist.validation_enabled(False):
            assert kl_divergence(dist.Delta(torch.tensor(-1.0)), dist.HalfNormal(1.0)) == torch.inf
        with pytest.raises(ValueError, match="within the support"):
            kl_divergence(dist.Delta(torch.tensor(-1.0)), dist.HalfNormal(1.0))

    def test_against_masked_and_expanded(self):
        p = dist.Delta(torch.zeros(2, 3, dtype=torch.float64))
        mask = torch.tensor([True, False, True])
        torch.testing.assert_close(
            kl_divergence(p, normal(2, 3).mask(mask)), -normal(2, 3).log_prob(p.v) * mask
        )
        wide = dist.ExpandedDistribution(normal(3), (4, 2, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an ambiguous rule would warn
            assert kl_divergence(p, wide).shape == (4, 2, 3)


class TestIndependent:
    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_sums_over_event_dims(self, count):
        p, q = normal(4, 2, 3), normal(4, 2, 3, seed=1)
        expected = kl_divergence(p, q)
        if count:
            expected = expected.sum(tuple(range(-count, 0)))
        torch.testing.assert_close(kl_divergence(p.to_event(count), q.to_event(count)), expected)

    def test_unequal_counts_that_leave_equal_events(self):
        mvn = dist.MultivariateNormal(torch.zeros(4, 2, 3), torch.eye(3)).to_event(1)
        p = dist.Normal(torch.ones(4, 2, 3), 1.0).to_event(2)
        torch.testing.assert_close(kl_divergence(p, mvn), torch.full((4,), 3.0))

    def test_unequal_events(self):
        with pytest.raises(NotImplementedError, match=r"No KL\(p \|\| q\)"):
            kl_divergence(normal(2, 3).to_event(1), normal(2, 3).to_event(2))

    def test_with_torchs_independent(self):
        p, q = normal(2, 3), normal(2, 3, seed=1)
        theirs = td.Independent(td.Normal(q.loc, q.scale), 1)
        expected = kl_divergence(p, q).sum(-1)
        torch.testing.assert_close(kl_divergence(p.to_event(1), theirs), expected)
        torch.testing.assert_close(
            kl_divergence(td.Independent(td.Normal(p.loc, p.scale), 1), q.to_event(1)), expected
        )


class TestDiagonalToMultivariateNormal:
    @pytest.mark.parametrize(
        ("p_batch", "q_batch"), [((), ()), ((4,), ()), ((), (4,)), ((2, 1), (3,))], ids=str
    )
    def test_equals_the_full_covariance(self, p_batch, q_batch):
        p = normal(*p_batch, 3)
        root = torch.randn((*q_batch, 3, 3), dtype=torch.float64)
        q = dist.MultivariateNormal(
            torch.randn((*q_batch, 3), dtype=torch.float64), root @ root.mT + torch.eye(3)
        )
        full = dist.MultivariateNormal(p.loc, scale_tril=p.scale.diag_embed())
        kl = kl_divergence(p.to_event(1), q)
        assert kl.shape == torch.broadcast_shapes(p_batch, q_batch)
        torch.testing.assert_close(kl, kl_divergence(full.expand(kl.shape), q.expand(kl.shape)))

    def test_gradients(self):
        root = torch.randn(3, 3, dtype=torch.float64)
        covariance = root @ root.mT + torch.eye(3, dtype=torch.float64)

        def kl(loc, scale, mean):
            q = dist.MultivariateNormal(mean, covariance)
            return kl_divergence(dist.Normal(loc, scale).to_event(1), q)

        arguments = torch.randn(3, 3, dtype=torch.float64).abs().add(0.1).unbind()
        assert torch.autograd.gradcheck(kl, tuple(a.clone().requires_grad_() for a in arguments))

    def test_refuses_others(self):
        q = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
        for p in (
            dist.Laplace(torch.zeros(3), 1.0).to_event(1),
            dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
        ):
            with pytest.raises(NotImplementedError, match=r"p must be a Normal .*to_event\(1\)"):
                kl_divergence(p, q)


class TestMasked:
    MASKS = (
        True,
        False,
        torch.tensor([True, False, True]),
        torch.tensor([[True], [False]]),
    )

    @pytest.mark.parametrize("left", MASKS, ids=["true", "false", "row", "column"])
    @pytest.mark.parametrize("right", MASKS, ids=["true", "false", "row", "column"])
    def test_both_masks_count(self, left, right):
        p, q = normal(2, 3), normal(2, 3, seed=1)
        kl = kl_divergence(p.mask(left), q.mask(right))
        if left is False or right is False:
            assert kl == 0.0
            assert isinstance(kl, float)
        else:
            both = torch.as_tensor(left) & torch.as_tensor(right)
            torch.testing.assert_close(kl, kl_divergence(p, q) * both)

    def test_an_infinite_masked_part_does_not_leak(self):
        p = dist.Uniform(torch.zeros(2), torch.tensor([1.0, 5.0], requires_grad=True))
        q = dist.Uniform(torch.zeros(2), 2.0)
        mask = torch.tensor([True, False])
        kl = kl_divergence(p.mask(mask), q.mask(True))
        assert kl.isfinite().all()


class TestExpanded:
    """Trap 22: the divergence of expanded distributions has their batch shape."""

    def test_trap_22_every_pair(self):
        p, q = normal(1, 3), normal(1, 3, seed=1)
        expected = kl_divergence(p, q).expand(4, 2, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for left in (p, dist.ExpandedDistribution(p, (4, 2, 3)), p.expand((4, 2, 3))):
                for right in (q, dist.ExpandedDistribution(q, (4, 2, 3)), q.expand((4, 2, 3))):
                    if left is p and right is q:
                        continue
                    torch.testing.assert_close(kl_divergence(left, right), expected)

    def test_different_expansions_broadcast(self):
        left = dist.ExpandedDistribution(normal(3), (2, 3))
        right = dist.ExpandedDistribution(normal(1, seed=1), (4, 1, 1))
        assert kl_divergence(left, right).shape == (4, 2, 3)

    def test_expanded_masked_to_event(self):
        p, q = normal(2, 3).to_event(1), normal(2, 3, seed=1).to_event(1)
        mask = torch.tensor([True, False])
        wide = kl_divergence(p.mask(mask).expand((4, 2)), q.mask(True).expand((4, 2)))
        torch.testing.assert_close(wide, (kl_divergence(p, q) * mask).expand(4, 2))

    def test_a_float_stays_one(self):
        nothing = kl_divergence(
            dist.ExpandedDistribution(normal(3).mask(False), (2, 3)), normal(3).mask(True)
        )
        assert nothing == 0.0


def test_monte_carlo_agrees():
    """Averages of log p - log q over draws of p, within 5 standard errors (failure rate below 1e-5)."""
    torch.manual_seed(0)
    root = torch.randn(2, 2, dtype=torch.float64)
    p = normal(2).to_event(1)
    q = dist.MultivariateNormal(torch.ones(2, dtype=torch.float64), root @ root.mT + torch.eye(2))
    x = p.sample((100_000,))
    ratios = p.log_prob(x) - q.log_prob(x)
    error = (ratios.mean() - kl_divergence(p, q)).abs()
    assert error < 5 * ratios.std() / len(ratios) ** 0.5
