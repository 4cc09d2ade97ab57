"""Distributions: torch's with `to_event`, `mask` and `expand_by`, and our own."""

from torch.distributions import biject_to, constraint_registry, constraints, kl_divergence, register_kl
from torch.distributions import transform_to, transforms

from sumprod.distributions import torch as _torch
from sumprod.distributions.conjugate import BetaBinomial, DirichletMultinomial, GammaPoisson
from sumprod.distributions.delta import Delta
from sumprod.distributions.diag_normal_mixture import (
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
)
from sumprod.distributions.distribution import Distribution
from sumprod.distributions.finite_support import FiniteSupport
from sumprod.distributions.hmm import DiscreteHMM
from sumprod.distributions.mixture import MaskedMixture
from sumprod.distributions.nan_masked import NanMaskedMultivariateNormal, NanMaskedNormal
from sumprod.distributions.rejector import Rejector
from sumprod.distributions.relaxed_straight_through import (
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.torch import *  # noqa: F403
from sumprod.distributions.torch_distribution import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TorchDistribution,
    TorchDistributionMixin,
)
from sumprod.distributions.unit import Unit
from sumprod.distributions.util import enable_validation, is_validation_enabled, validation_enabled
from sumprod.distributions.zero_inflated import (
    ZeroInflatedDistribution,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
