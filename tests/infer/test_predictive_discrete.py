"""Predictive samples with discrete sites drawn from their posterior."""

import pytest
import scipy.stats
import torch

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.infer import Predictive

PARALLEL = {"enumerate": "parallel"}
DATA = torch.tensor([0.4, -0.7, 1.9])


def model(data=None):
    loc = sumprod.sample("loc", Normal(0.0, 1.0))
    with sumprod.plate("data", 3):
        z = sumprod.sample("z", Categorical(torch.tensor([0.3, 0.7])), infer=PARALLEL)
        return sumprod.sample("x", Normal(loc * (2 * z - 1), 1.0), obs=data)


def guide(data=None):
    sumprod.sample("loc", Normal(1.0, 0.5))


def posterior(loc):
    """p(z = 1 | loc, data), of shape (samples, 3)."""
    weights = [
        p * Normal(s * loc.reshape(-1, 1), 1.0).log_prob(DATA).exp() for p, s in ((0.3, -1.0), (0.7, 1.0))
    ]
    return weights[1] / (weights[0] + weights[1])


@pytest.mark.parametrize("wanted", [True, 1])
@pytest.mark.parametrize("chunk", [None, 3000])
def test_draws_for_each_sample(wanted, chunk):
    """Chi-square of how often z is 1, per row and loc; fails once in 10,000 for another generator."""
    loc = torch.tensor([-1.0, 0.2, 1.5]).repeat(4000)
    sumprod.set_rng_seed(0)
    samples = Predictive(model, {"loc": loc}, parallel=True, infer_discrete=wanted, chunk=chunk)(DATA)
    assert samples["z"].shape == (12_000, 3)
    counts = samples["z"].reshape(4000, 3, 3).sum(0).double()
    p = posterior(loc[:3]).double()
    statistic = ((counts - 4000 * p) ** 2 / (4000 * p * (1 - p))).sum()
    assert scipy.stats.chi2(9).sf(statistic.item()) > 1e-4


@pytest.mark.parametrize("parallel", [False, True])
def test_most_probable_values(parallel):
    loc = torch.tensor([-1.0, 0.2, 1.5])
    samples = Predictive(model, {"loc": loc}, parallel=parallel, infer_discrete=0)(DATA)
    assert torch.equal(samples["z"], (posterior(loc) > 0.5).long())
    assert torch.equal(samples["x"], DATA.expand(3, 3))


@pytest.mark.parametrize("parallel", [False, True])
def test_given_the_draws_of_a_guide(parallel):
    predictive = Predictive(model, guide=guide, num_samples=5, parallel=parallel, infer_discrete=0)
    samples = predictive(DATA)
    assert samples["loc"].shape == (5, 1)
    assert torch.equal(samples["z"], (posterior(samples["loc"]) > 0.5).long())


def test_off_means_prior_draws():
    """The sites of 300 samples follow their prior; 6 standard errors."""
    samples = Predictive(model, {"loc": torch.full((300,), 5.0)}, parallel=True)(torch.full((3,), 5.0))
    assert abs(samples["z"].double().mean() - 0.7) < 6 * (0.21 / 900) ** 0.5
    inferred = Predictive(model, {"loc": torch.full((300,), 5.0)}, parallel=True, infer_discrete=True)
    assert inferred(torch.full((3,), 5.0))["z"].all()


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="infer_discrete must be False"):
        Predictive(model, num_samples=2, infer_discrete=2)


def test_warning_without_marks():
    def unmarked():
        sumprod.sample("x", Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="infer_discrete found no sample sites"):
        Predictive(unmarked, num_samples=1, infer_discrete=True)()
