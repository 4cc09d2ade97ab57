"""Distributions: torch's with `to_event`, `mask` and `expand_by`, and our own."""

from torch.distributions import constraint_registry

from sumprod.distributions import constraints, transforms
from sumprod.distributions.conjugate import BetaBinomial, DirichletMultinomial, GammaPoisson
from sumprod.distributions.delta import Delta
from sumprod.distributions.diag_normal_mixture import (
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
)
from sumprod.distributions.distribution import Distribution
from sumprod.distributions.empirical import Empirical
from sumprod.distributions.extended import ExtendedBetaBinomial, ExtendedBinomial
from sumprod.distributions.finite_support import FiniteSupport
from sumprod.distributions.hmm import DiscreteHMM
from sumprod.distributions.improper_uniform import ImproperUniform
from sumprod.distributions.inverse_gamma import InverseGamma
from sumprod.distributions.kl import kl_divergence, register_kl
from sumprod.distributions.lkj import LKJ, LKJCorrCholesky
from sumprod.distributions.mixture import MaskedMixture
from sumprod.distributions.nan_masked import NanMaskedMultivariateNormal, NanMaskedNormal
from sumprod.distributions.ordered_logistic import OrderedLogistic
from sumprod.distributions.rejector import Rejector
from sumprod.distributions.relaxed_straight_through import (
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.torch import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Dirichlet,
    Exponential,
    ExponentialFamily,
    FisherSnedecor,
    Gamma,
    GeneralizedPareto,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Kumaraswamy,
    Laplace,
    LKJCholesky,
    LogisticNormal,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Pareto,
    Poisson,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    StudentT,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
)
from sumprod.distributions.torch_distribution import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TorchDistribution,
    TorchDistributionMixin,
)
from sumprod.distributions.transforms import biject_to, transform_to
from sumprod.distributions.unit import Unit
from sumprod.distributions.util import enable_validation, is_validation_enabled, validation_enabled
from sumprod.distributions.zero_inflated import (
    ZeroInflatedDistribution,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

__all__ = [
    "LKJ",
    "Bernoulli",
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "ContinuousBernoulli",
    "Delta",
    "Dirichlet",
    "DirichletMultinomial",
    "DiscreteHMM",
    "Distribution",
    "Empirical",
    "ExpandedDistribution",
    "Exponential",
    "ExponentialFamily",
    "ExtendedBetaBinomial",
    "ExtendedBinomial",
    "FiniteSupport",
    "FisherSnedecor",
    "Gamma",
    "GammaPoisson",
    "GeneralizedPareto",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "ImproperUniform",
    "Independent",
    "InverseGamma",
    "Kumaraswamy",
    "LKJCholesky",
    "LKJCorrCholesky",
    "Laplace",
    "LogNormal",
    "LogisticNormal",
    "LowRankMultivariateNormal",
    "MaskedDistribution",
    "MaskedMixture",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "NanMaskedMultivariateNormal",
    "NanMaskedNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "OrderedLogistic",
    "Pareto",
    "Poisson",
    "Rejector",
    "RelaxedBernoulli",
    "RelaxedBernoulliStraightThrough",
    "RelaxedOneHotCategorical",
    "RelaxedOneHotCategoricalStraightThrough",
    "ScoreParts",
    "StudentT",
    "TorchDistribution",
    "TorchDistributionMixin",
    "TransformedDistribution",
    "Uniform",
    "Unit",
    "VonMises",
    "Weibull",
    "Wishart",
    "ZeroInflatedDistribution",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "biject_to",
    "constraint_registry",
    "constraints",
    "enable_validation",
    "is_validation_enabled",
    "kl_divergence",
    "register_kl",
    "transform_to",
    "transforms",
    "validation_enabled",
]
