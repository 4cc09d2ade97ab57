"""Inference: stochastic variational inference, its losses, and posterior containers."""

from sumprod.infer import autoguide
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
from sumprod.infer.abstract_infer import (
    EmpiricalMarginal,
    Marginals,
    SavedPosterior,
    TracePosterior,
    TracePredictive,
)
from sumprod.infer.discrete import TraceEnumSample_ELBO, infer_discrete
from sumprod.infer.elbo import ELBO, ELBOModule
from sumprod.infer.enum import config_enumerate, get_importance_trace
from sumprod.infer.explain import explain
from sumprod.infer.importance import Importance, psis_diagnostic, vectorized_importance_weights
from sumprod.infer.predictive import MHResampler, Predictive, WeighedPredictive
from sumprod.infer.renyi_elbo import RenyiELBO
from sumprod.infer.svi import SVI
from sumprod.infer.svi_checkpoint import Checkpoint
from sumprod.infer.trace_elbo import Trace_ELBO
from sumprod.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from sumprod.infer.traceenum_elbo import TraceEnum_ELBO
from sumprod.infer.util import enable_validation, is_validation_enabled, validation_enabled

__all__ = [
    "CSIS",
    "ELBO",
    "SVGD",
    "SVI",
    "Checkpoint",
    "ELBOModule",
    "EarlyStopping",
    "EmpiricalMarginal",
    "EnergyDistance",
    "Importance",
    "MHResampler",
    "Marginals",
    "Predictive",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "SMCFilter",
    "SavedPosterior",
    "TraceEnumSample_ELBO",
    "TraceEnum_ELBO",
    "TraceMeanField_ELBO",
    "TracePosterior",
    "TracePredictive",
    "TraceTMC_ELBO",
    "TraceTailAdaptive_ELBO",
    "Trace_ELBO",
    "Trace_MMD",
    "WeighedPredictive",
    "autoguide",
    "config_enumerate",
    "enable_validation",
    "explain",
    "get_importance_trace",
    "infer_discrete",
    "is_validation_enabled",
    "psis_diagnostic",
    "validation_enabled",
    "vectorized_importance_weights",
]
