"""Inference: stochastic variational inference, its losses, and posterior containers."""

from sumprod.infer._planned import (
    CSIS,
    SVGD,
    EnergyDistance,
    ReweightedWakeSleep,
    SMCFilter,
    Trace_MMD,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from sumprod.infer._training import EarlyStopping
from sumprod.infer.abstract_infer import TracePosterior
from sumprod.infer.elbo import ELBO, ELBOModule
from sumprod.infer.enum import get_importance_trace
from sumprod.infer.renyi_elbo import RenyiELBO
from sumprod.infer.svi import SVI
from sumprod.infer.svi_checkpoint import Checkpoint
from sumprod.infer.trace_elbo import Trace_ELBO
from sumprod.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from sumprod.infer.util import enable_validation, is_validation_enabled, validation_enabled

__all__ = [
    "CSIS",
    "ELBO",
    "SVGD",
    "SVI",
    "Checkpoint",
    "ELBOModule",
    "EarlyStopping",
    "EnergyDistance",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "SMCFilter",
    "TraceMeanField_ELBO",
    "TracePosterior",
    "TraceTMC_ELBO",
    "TraceTailAdaptive_ELBO",
    "Trace_ELBO",
    "Trace_MMD",
    "enable_validation",
    "get_importance_trace",
    "is_validation_enabled",
    "validation_enabled",
]
