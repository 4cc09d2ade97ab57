"""`Distribution`, `ScoreParts` and the shape operations of the mixin."""

from __future__ import annotations

import math

import pyro.distributions as pyro_dist
import pytest
import torch
import torch.distributions as td

import sumprod.distributions as dist
from sumprod.distributions.distribution import Distribution
from sumprod.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin


class Coin(Distribution):
    """A distribution that knows nothing of torch's."""

    def sample(self):
        return torch.tensor(1.0)

    def log_prob(self, value):
        return torch.tensor(math.log(0.5))


class TestDistribution:
    def test_call_draws(self):
        coin = Coin()
        assert coin() == 1.0
        assert not coin.has_rsample
        assert not coin.has_enumerate_support

    def test_call_prefers_rsample(self):
        loc = torch.tensor(1.0, requires_grad=True)
        d = dist.Normal(loc, 1.0)
        assert d().requires_grad
        assert d((3,)).shape == d.to_event(0)((3,)).shape == (3,)
        assert not d.has_rsample_(False)().requires_grad

    def test_score_parts_of_the_three_kinds(self):
        parts = Coin().score_parts(torch.tensor(1.0))
        assert parts.score_function is parts.log_prob
        assert parts.entropy_term == 0
        assert isinstance(parts.entropy_term, int)
        parts = dist.Normal(0.0, 1.0).score_parts(torch.tensor(1.0))
        assert parts.entropy_term is parts.log_prob
        assert parts.score_function == 0
        assert isinstance(parts.score_function, int)

    @pytest.mark.parametrize(
        "method", ["sample", "rsample", "log_prob", "enumerate_support", "conjugate_update"]
    )
    def test_what_is_missing_is_named(self, method):
        class Nothing(Distribution):
            pass

        arguments = {"log_prob": (0,), "conjugate_update": (Coin(),)}.get(method, ())
        with pytest.raises(NotImplementedError, match=f"Nothing does not .*{method}"):
            getattr(Nothing(), method)(*arguments)

    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_has_rsample_must_be_a_bool(self, value):
        with pytest.raises(ValueError, match=r"Expected value in \[False,True\], actual"):
            dist.Normal(0.0, 1.0).has_rsample_(value)

    def test_has_rsample_reaches_the_wrapped_distribution(self):
        base = dist.Normal(torch.zeros(3, requires_grad=True), 1.0)
        for wrapped in (
            base.to_event(1),
            base.mask(torch.tensor([True, False, True])),
            dist.ExpandedDistribution(base, (2, 3)),
        ):
            base.has_rsample_(True)
            assert wrapped.has_rsample_(False) is wrapped
            assert not wrapped.has_rsample
            assert not base.has_rsample
            assert not wrapped().requires_grad

    @pytest.mark.parametrize(
        "d",
        [
            dist.Normal(torch.zeros(2), 1.0),
            dist.Gamma(torch.ones(2), 1.0),
            dist.Beta(torch.ones(2), 1.0),
            dist.Dirichlet(torch.ones(2, 3)),
            dist.LogNormal(torch.zeros(2), 1.0),
            dist.StudentT(torch.ones(2)),
            dist.Delta(torch.zeros(2)),
            dist.RelaxedBernoulli(torch.tensor(1.0), torch.full((2,), 0.5)),
        ],
        ids=lambda d: type(d).__name__,
    )
    def test_expand_keeps_has_rsample(self, d):
        if isinstance(type(d).has_rsample, property):
            pytest.skip("the base decides")
        assert d.expand((3, 2)).has_rsample is True
        assert d.has_rsample_(False).expand((3, 2)).has_rsample is False
        assert d.to_event(1).expand((3,)).has_rsample is False


class TestScoreParts:
    def test_scale_and_mask(self):
        lp = torch.tensor([-1.0, -torch.inf, -3.0])
        mask = torch.tensor([True, False, True])
        parts = dist.ScoreParts(lp, lp * 2, 0).scale_and_mask(2.0, mask)
        assert parts.log_prob.tolist() == [-2.0, 0.0, -6.0]
        # It multiplies a cost that is scaled and masked already.
        assert parts.score_function.tolist() == [-2.0, -torch.inf, -6.0]
        assert parts.entropy_term == 0
        assert isinstance(parts.entropy_term, int)

    def test_equals_pyro(self):
        lp, score, entropy = torch.randn(3, 4).unbind()
        mask = torch.tensor([True, False, True, True])
        for scale in (1.0, 0.5, torch.tensor([1.0, 2.0, 3.0, 4.0])):
            for m in (None, mask):
                ours = dist.ScoreParts(lp, score, entropy).scale_and_mask(scale, m)
                theirs = pyro_dist.score_parts.ScoreParts(lp, score, entropy).scale_and_mask(scale, m)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b)

    def test_no_work_when_there_is_nothing_to_do(self):
        lp = torch.randn(3)
        parts = dist.ScoreParts(lp, 0, lp).scale_and_mask()
        assert parts.log_prob is lp
        assert parts.entropy_term is lp
        scaled = dist.ScoreParts(lp, 0, lp).scale_and_mask(2.0)
        assert scaled.entropy_term is scaled.log_prob


class TestShapes:
    def test_event_dim_and_shape(self):
        d = dist.Dirichlet(torch.ones(4, 3))
        assert d.event_dim == 1
        assert d.shape() == (4, 3)
        assert d.shape((2, 5)) == (2, 5, 4, 3)
        assert isinstance(d.shape([2]), torch.Size)
        assert dist.Normal(0.0, 1.0).event_dim == 0

    def test_to_event_undone_and_too_far(self):
        d = dist.Normal(torch.zeros(3, 2), 1.0)
        assert d.to_event(0) is d
        assert d.to_event(1).to_event(-1) is d
        assert d.to_event(2).to_event(-1).event_shape == (2,)
        assert d.to_event(1).to_event(1).reinterpreted_batch_ndims == 2
        assert isinstance(d.to_event(1).to_event(1).base_dist, dist.Normal)
        assert d.to_event().batch_shape == ()
        for count in (-2, -3):
            with pytest.raises(ValueError, match="Cannot remove event dimensions from"):
                d.to_event(1).to_event(count)
        with pytest.raises(ValueError, match=r"Expected reinterpreted_batch_ndims <= .* actual 3 vs 2"):
            d.to_event(3)

    def test_renamed_methods(self):
        d = dist.Normal(torch.zeros(3, 2), 1.0)
        with pytest.raises(NotImplementedError, match="renamed and split into"):
            d.reshape(sample_shape=(2,))
        with pytest.warns(DeprecationWarning, match="independent is deprecated"):
            assert d.independent(1).event_shape == (2,)

    @pytest.mark.parametrize(
        ("name", "shapes"),
        [
            ("Normal", {"loc": (3, 1), "scale": (4,)}),
            ("Categorical", {"probs": (5, 3)}),
            ("Dirichlet", {"concentration": (5, 3)}),
            ("MultivariateNormal", {"loc": (5, 3), "scale_tril": (3, 3)}),
            ("Multinomial", {"total_count": (), "probs": (5, 3)}),
            ("OneHotCategorical", {"logits": (5, 3)}),
            ("HalfNormal", {"scale": (5,)}),
            ("Unit", {"log_factor": (5,)}),
            ("Gamma", {"concentration": (), "rate": (2, 1)}),
        ],
        ids=str,
    )
    def test_infer_shapes_equals_pyro(self, name, shapes):
        ours = getattr(dist, name).infer_shapes(**shapes)
        assert ours == getattr(pyro_dist, name).infer_shapes(**shapes)
        assert all(isinstance(shape, torch.Size) for shape in ours)

    def test_infer_shapes_that_cannot_be_known(self):
        with pytest.raises(NotImplementedError):
            dist.Delta.infer_shapes(v=(3,))
        with pytest.raises(NotImplementedError, match=r"LKJCholesky\.infer_shapes cannot tell"):
            dist.LKJCholesky.infer_shapes(dim=(), concentration=(5,))
        with pytest.raises(ValueError, match="shape mismatch"):
            dist.Normal.infer_shapes(loc=(2,), scale=(3,))
        assert dist.Uniform.infer_shapes(low=(), high=(3,)) == ((3,), ())

    def test_independent_is_torchs_too(self):
        d = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        assert isinstance(d, td.Independent)
        assert isinstance(d, TorchDistributionMixin)
        theirs = td.Independent(td.Normal(torch.zeros(3, 2), 1.0), 1)
        assert d.support == theirs.support or repr(d.support) == repr(theirs.support)
        torch.testing.assert_close(d.entropy(), theirs.entropy())
        torch.testing.assert_close(d.mean, theirs.mean)
        assert repr(d) == repr(theirs)
        wide = d.expand((4, 3))
        assert type(wide) is dist.Independent
        assert (wide.batch_shape, wide.event_shape) == ((4, 3), (2,))
        assert not d.has_enumerate_support
        with pytest.raises(NotImplementedError, match="cartesian product"):
            dist.Bernoulli(torch.zeros(2)).to_event(1).enumerate_support()
        assert dist.Independent(dist.Normal(0.0, 1.0), 0, validate_args=False)._validate_args is False


class TestOwnDistributions:
    def test_subclass_without_expand_gets_a_wrapper(self):
        class Constant(TorchDistribution):
            arg_constraints = {}  # noqa: RUF012
            support = dist.constraints.real

            def sample(self, sample_shape=()):
                return torch.ones(self.shape(sample_shape))

            def log_prob(self, value):
                return torch.zeros(torch.broadcast_shapes(value.shape, self.batch_shape))

        d = Constant(torch.Size((2,)))
        wide = d.expand((3, 2))
        assert isinstance(wide, dist.ExpandedDistribution)
        assert wide().shape == (3, 2)
        assert wide.log_prob(torch.ones(2)).shape == (3, 2)
        assert d()[0] == 1

    def test_default_validation_is_the_setting(self):
        class Half(TorchDistribution):
            arg_constraints = {"x": dist.constraints.positive}  # noqa: RUF012

            def __init__(self, x, validate_args=None):
                self.x = x
                super().__init__(x.shape, validate_args=validate_args)

        bad = torch.tensor(-1.0)
        with pytest.raises(ValueError, match="Expected parameter x"):
            Half(bad)
        with dist.validation_enabled(False):
            d = Half(bad)
            assert not d._validate_args
            with pytest.raises(ValueError, match="Expected parameter x"):
                Half(bad, validate_args=True)
        assert d._validate_args  # asked when needed, as torch does


class TestConjugateUpdate:
    @pytest.mark.parametrize(
        ("prior", "factor", "values"),
        [
            (dist.Normal(0.3, 1.2), dist.Normal(-1.0, 0.7), [-1.0, 0.5]),
            (dist.Beta(2.0, 3.0), dist.Beta(1.5, 4.0), [0.2, 0.7]),
            (dist.Gamma(2.0, 3.0), dist.Gamma(1.5, 4.0), [0.2, 1.7]),
            (
                dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
                dist.Dirichlet(torch.tensor([3.0, 0.5, 1.0])),
                [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]],
            ),
        ],
        ids=lambda x: type(x).__name__ if isinstance(x, Distribution) else "",
    )
    def test_is_the_product(self, prior, factor, values):
        x = torch.tensor(values)
        updated, log_normalizer = prior.conjugate_update(factor)
        assert type(updated) is type(prior)
        torch.testing.assert_close(
            prior.log_prob(x) + factor.log_prob(x), updated.log_prob(x) + log_normalizer
        )
        with pytest.raises(NotImplementedError, match="does not support conjugate_update with Laplace"):
            prior.conjugate_update(dist.Laplace(0.0, 1.0))

    def test_of_wrappers(self):
        x = torch.tensor([0.2, 0.7])
        prior, factor = dist.Beta(2.0, 3.0).expand((2,)), dist.Beta(1.5, 4.0).expand((2,))
        updated, log_normalizer = prior.to_event(1).conjugate_update(factor.to_event(1))
        torch.testing.assert_close(
            (prior.log_prob(x) + factor.log_prob(x)).sum(), updated.log_prob(x) + log_normalizer
        )
        mask = torch.tensor([True, False])
        updated, log_normalizer = prior.mask(mask).conjugate_update(factor)
        torch.testing.assert_close(
            ((prior.log_prob(x) + factor.log_prob(x)) * mask), updated.log_prob(x) + log_normalizer
        )
        wide, log_normalizer = dist.ExpandedDistribution(dist.Beta(2.0, 3.0), (2,)).conjugate_update(
            dist.Beta(1.5, 4.0)
        )
        assert wide.batch_shape == log_normalizer.shape == (2,)
        with pytest.raises(NotImplementedError):
            prior.to_event(1).conjugate_update(factor)

    def test_a_flat_normal_factor_changes_nothing(self):
        updated, _ = dist.Normal(0.3, 1.2).conjugate_update(dist.Normal(5.0, math.inf))
        torch.testing.assert_close(updated.loc, torch.tensor(0.3))
        torch.testing.assert_close(updated.scale, torch.tensor(1.2))
