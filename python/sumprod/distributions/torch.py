"""Every distribution of torch, with the shape operations of programs.

The classes are subclasses of torch's, with the same arguments. Families that programs use most are in
`_real_line`, `_positive` and `_discrete`.
"""

from __future__ import annotations

import torch.distributions as td

from sumprod.distributions._discrete import Bernoulli, Categorical, Poisson
from sumprod.distributions._family import Family
from sumprod.distributions._positive import Beta, Dirichlet, Exponential, Gamma, Uniform
from sumprod.distributions._real_line import Cauchy, HalfCauchy, HalfNormal, Laplace, LogNormal, Normal
from sumprod.distributions.torch_distribution import Independent, TorchDistributionMixin

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "ContinuousBernoulli",
    "Dirichlet",
    "Exponential",
    "ExponentialFamily",
    "FisherSnedecor",
    "Gamma",
    "GeneralizedPareto",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "Independent",
    "Kumaraswamy",
    "LKJCholesky",
    "Laplace",
    "LogNormal",
    "LogisticNormal",
    "LowRankMultivariateNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "Pareto",
    "Poisson",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "StudentT",
    "TransformedDistribution",
    "Uniform",
    "VonMises",
    "Weibull",
    "Wishart",
]


class Binomial(Family, td.Binomial, TorchDistributionMixin):
    """Number of successes in `total_count` independent trials."""


class Chi2(Family, td.Chi2, TorchDistributionMixin):
    """Chi-squared distribution with `df` degrees of freedom."""


class ContinuousBernoulli(Family, td.ContinuousBernoulli, TorchDistributionMixin):
    """Distribution on [0, 1] with density proportional to probs^x (1 - probs)^(1 - x)."""


class ExponentialFamily(Family, td.ExponentialFamily, TorchDistributionMixin):
    """Base class of torch's exponential families."""


class FisherSnedecor(Family, td.FisherSnedecor, TorchDistributionMixin):
    """F distribution with `df1` and `df2` degrees of freedom."""


class GeneralizedPareto(Family, td.GeneralizedPareto, TorchDistributionMixin):
    """Excesses over the threshold `loc`, with shape `concentration`."""


class Geometric(Family, td.Geometric, TorchDistributionMixin):
    """Number of failures before the first success."""


class Gumbel(Family, td.Gumbel, TorchDistributionMixin):
    """Distribution of the largest of many draws, around `loc`."""


class Kumaraswamy(Family, td.Kumaraswamy, TorchDistributionMixin):
    """Distribution on (0, 1) with CDF 1 - (1 - x^concentration1)^concentration0."""


class LKJCholesky(Family, td.LKJCholesky, TorchDistributionMixin):
    """Cholesky factors of correlation matrices with density proportional to det^(concentration - 1)."""


class LogisticNormal(Family, td.LogisticNormal, TorchDistributionMixin):
    """Distribution on the simplex: a normal vector under the stick-breaking transform."""


class LowRankMultivariateNormal(Family, td.LowRankMultivariateNormal, TorchDistributionMixin):
    """Multivariate normal with covariance cov_factor @ cov_factor.T + diag(cov_diag)."""


class MixtureSameFamily(Family, td.MixtureSameFamily, TorchDistributionMixin):
    """Mixture along the rightmost batch dim of a distribution."""


class Multinomial(Family, td.Multinomial, TorchDistributionMixin):
    """How often each category occurs in `total_count` trials."""


class MultivariateNormal(Family, td.MultivariateNormal, TorchDistributionMixin):
    """Multivariate normal, by covariance, precision or Cholesky factor."""


class NegativeBinomial(Family, td.NegativeBinomial, TorchDistributionMixin):
    """Number of successes before `total_count` failures."""


class OneHotCategorical(Family, td.OneHotCategorical, TorchDistributionMixin):
    """Categorical distribution of one-hot vectors."""


class OneHotCategoricalStraightThrough(Family, td.OneHotCategoricalStraightThrough, TorchDistributionMixin):
    """OneHotCategorical whose draws have the gradient of the probabilities."""


class Pareto(Family, td.Pareto, TorchDistributionMixin):
    """Power law with exponent `alpha` above `scale`."""


class RelaxedBernoulli(Family, td.RelaxedBernoulli, TorchDistributionMixin):
    """Continuous relaxation of a Bernoulli at a temperature."""


class RelaxedOneHotCategorical(Family, td.RelaxedOneHotCategorical, TorchDistributionMixin):
    """Continuous relaxation of a one-hot variable at a temperature."""


class StudentT(Family, td.StudentT, TorchDistributionMixin):
    """Student's t distribution with `df` degrees of freedom."""


class TransformedDistribution(Family, td.TransformedDistribution, TorchDistributionMixin):
    """Distribution of a transformed draw of another distribution."""


class VonMises(Family, td.VonMises, TorchDistributionMixin):
    """Distribution of angles around `loc`."""


class Weibull(Family, td.Weibull, TorchDistributionMixin):
    """Weibull distribution with `scale` and shape `concentration`."""


class Wishart(Family, td.Wishart, TorchDistributionMixin):
    """Distribution of positive definite matrices with mean df * covariance."""
