"""Automatic guides: variational families that follow from the model."""

from sumprod.infer.autoguide.base import AutoGuide
from sumprod.infer.autoguide.callable import AutoCallable
from sumprod.infer.autoguide.continuous import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from sumprod.infer.autoguide.delta import AutoDelta
from sumprod.infer.autoguide.discrete import AutoDiscreteParallel
from sumprod.infer.autoguide.guide_list import AutoGuideList
from sumprod.infer.autoguide.initialization import (
    InitMessenger,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from sumprod.infer.autoguide.laplace import AutoLaplaceApproximation
from sumprod.infer.autoguide.normal import AutoNormal
from sumprod.infer.autoguide.utils import mean_field_entropy

__all__ = [
    "AutoCallable",
    "AutoContinuous",
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoDiscreteParallel",
    "AutoGuide",
    "AutoGuideList",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "InitMessenger",
    "init_to_feasible",
    "init_to_generated",
    "init_to_mean",
    "init_to_median",
    "init_to_sample",
    "init_to_uniform",
    "init_to_value",
    "mean_field_entropy",
]
