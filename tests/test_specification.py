"""The public surface: every name, its arguments, their order and their defaults."""

from __future__ import annotations

import inspect
import math
from importlib import import_module
from typing import Any

import pytest

import sumprod

EMPTY = inspect.Parameter.empty

# Positional arguments in order, as "name" or ("name", default). Keyword-only ones and **kwargs are
# listed under KEYWORDS where they are part of the surface.
ELBO_ARGUMENTS = [
    ("num_particles", 1),
    ("max_plate_nesting", math.inf),
    ("max_iarange_nesting", None),
    ("vectorize_particles", False),
    ("strict_enumeration_warning", True),
    ("ignore_jit_warnings", False),
    ("retain_graph", None),
    ("jit_options", None),
    ("tail_adaptive_beta", -1.0),
]

SIGNATURES: dict[str, list[Any]] = {
    # losses and SVI
    "infer.SVI": [
        "model",
        "guide",
        "optim",
        "loss",
        ("loss_and_grads", None),
        ("num_samples", 10),
        ("num_steps", 0),
    ],
    "infer.ELBO": ELBO_ARGUMENTS,
    "infer.Trace_ELBO": ELBO_ARGUMENTS,
    "infer.TraceMeanField_ELBO": ELBO_ARGUMENTS,
    "infer.TraceEnum_ELBO": ELBO_ARGUMENTS,
    "infer.TraceEnumSample_ELBO": ELBO_ARGUMENTS,
    "infer.traceenum_elbo.BackwardSampleMessenger": ["enum_trace", "guide_trace"],
    "infer.infer_discrete": [("fn", None), ("first_available_dim", None), ("temperature", 1)],
    "infer.autoguide.AutoDiscreteParallel": ["model"],
    "infer.RenyiELBO": [
        ("alpha", 0),
        ("num_particles", 2),
        ("max_plate_nesting", math.inf),
        ("max_iarange_nesting", None),
        ("vectorize_particles", False),
        ("strict_enumeration_warning", True),
    ],
    # posterior containers
    "infer.TracePosterior": [("num_chains", 1)],
    "infer.TracePosterior.information_criterion": ["self", ("pointwise", False)],
    "infer.TracePosterior.marginal": ["self", ("sites", None)],
    "infer.EmpiricalMarginal": ["trace_posterior", ("sites", None), ("validate_args", None)],
    "infer.Marginals": ["trace_posterior", ("sites", None), ("validate_args", None)],
    "infer.Marginals.support": ["self", ("flatten", False)],
    "infer.TracePredictive": ["model", "posterior", "num_samples", ("keep_sites", None)],
    "infer.Importance": ["model", ("guide", None), ("num_samples", None)],
    "infer.Importance.get_log_normalizer": ["self"],
    "infer.Importance.get_normalized_weights": ["self", ("log_scale", False)],
    "infer.Importance.get_ESS": ["self"],
    "infer.Predictive": [
        "model",
        ("posterior_samples", None),
        ("guide", None),
        ("num_samples", None),
        ("return_sites", ()),
        ("parallel", False),
    ],
    "infer.importance.psis_diagnostic": ["model", "guide"],
    "infer.importance.vectorized_importance_weights": ["model", "guide"],
    "logsumexp": ["input", "dim", ("keepdim", False), ("out", None)],
    # primitives
    "sample": ["name", "fn"],
    "param": ["name", ("init_tensor", None), "constraint", ("event_dim", None)],
    "plate": [
        "name",
        ("size", None),
        ("subsample_size", None),
        ("subsample", None),
        ("dim", None),
        ("use_cuda", None),
        ("device", None),
    ],
    "markov": [("fn", None), ("history", 1), ("keep", False), ("dim", None), ("name", None)],
    "plate_stack": ["prefix", "sizes", ("rightmost_dim", -1)],
    "factor": ["name", "log_factor"],
    "deterministic": ["name", "value", ("event_dim", None)],
    "subsample": ["data", "event_dim"],
    "barrier": ["data"],
    "module": ["name", "nn_module", ("update_module_params", False)],
    "random_module": ["name", "nn_module", "prior"],
    "condition": [("fn", None), ("data", None)],
    "do": [("fn", None), ("data", None)],
    "get_param_store": [],
    "clear_param_store": [],
    "set_rng_seed": ["rng_seed"],
    "enable_validation": [("is_validate", True)],
    "validation_enabled": [("is_validate", True)],
    # handlers: the classes show the arguments; the functions take `fn` before them
    "handlers.TraceMessenger": [("graph_type", None), ("param_only", None)],
    "handlers.ReplayMessenger": [("trace", None), ("params", None)],
    "handlers.BlockMessenger": [
        ("hide_fn", None),
        ("expose_fn", None),
        ("hide_all", True),
        ("expose_all", False),
        ("hide", None),
        ("expose", None),
        ("hide_types", None),
        ("expose_types", None),
    ],
    "handlers.ScaleMessenger": ["scale"],
    "handlers.MaskMessenger": ["mask"],
    "handlers.LiftMessenger": ["prior"],
    "handlers.InferConfigMessenger": ["config_fn"],
    "handlers.EscapeMessenger": ["escape_fn"],
    "handlers.queue": [
        ("fn", None),
        ("queue", None),
        ("max_tries", None),
        ("extend_fn", None),
        ("escape_fn", None),
        ("num_samples", None),
    ],
    "handlers.seed": [("fn", None), ("rng_seed", None)],
    "handlers.substitute": [("fn", None), ("data", None)],
    "handlers.Trace": [("graph_type", "flat")],
    "handlers.Trace.format_shapes": ["self", ("title", "Trace Shapes:"), ("last_site", None)],
    # parameters and optimisers
    "params.ParamStoreDict.get_param": [
        "self",
        "name",
        ("init_tensor", None),
        "constraint",
        ("event_dim", None),
    ],
    "params.ParamStoreDict.setdefault": ["self", "name", "init_constrained_value", "constraint"],
    "params.ParamStoreDict.load": ["self", "filename", ("map_location", None)],
    "params.ParamStoreDict.save": ["self", "filename"],
    "params.ParamStoreDict.scope": ["self", ("state", None)],
    "optim.PyroOptim": ["optim_constructor", "optim_args", ("clip_args", None)],
    "optim.PyroLRScheduler": ["scheduler_constructor", "optim_args", ("clip_args", None)],
    "optim.ClippedAdam": ["optim_args", ("clip_args", None)],
    # distributions
    "distributions.Empirical": ["samples", "log_weights", ("validate_args", None)],
    "distributions.Delta": ["v", ("log_density", 0.0), ("event_dim", 0), ("validate_args", None)],
    "distributions.MaskedDistribution": ["base_dist", "mask"],
    "distributions.DiscreteHMM": [
        "initial_logits",
        "transition_logits",
        "observation_dist",
        ("validate_args", None),
        ("duration", None),
    ],
    # automatic guides
    "infer.autoguide.AutoDelta": ["model"],
    "infer.autoguide.AutoNormal": ["model"],
    "infer.autoguide.AutoDiagonalNormal": ["model"],
    "infer.autoguide.AutoMultivariateNormal": ["model"],
    "infer.autoguide.AutoLowRankMultivariateNormal": ["model"],
    "infer.autoguide.AutoLaplaceApproximation": ["model"],
    "infer.autoguide.AutoGuideList": ["model"],
    "infer.autoguide.AutoCallable": ["model", "guide"],
}

KEYWORDS = {
    "infer.SVI": {"progress": False, "callbacks": (), "early_stop": None, "checkpoint": None, "record": True},
    "infer.Importance": {"vectorized": False},
    "sample": {"obs": None, "obs_mask": None, "infer": None},
    "factor": {"has_rsample": None},
    "infer.infer_discrete": {"strict_enumeration_warning": True},
    "infer.autoguide.AutoDiscreteParallel": {"create_plates": None},
    "infer.Predictive": {"infer_discrete": False},
    "infer.importance.vectorized_importance_weights": {"num_samples": 1, "normalized": False},
    "distributions.DiscreteHMM": {"first_emits": False, "lengths": None},
}

METHODS = {
    "infer.SVI": ["step", "evaluate_loss", "run", "fit"],
    "infer.Trace_ELBO": ["loss", "differentiable_loss", "loss_and_grads", "__call__"],
    "infer.TraceMeanField_ELBO": ["loss", "differentiable_loss", "loss_and_grads", "__call__"],
    "infer.RenyiELBO": ["loss", "differentiable_loss", "loss_and_grads", "__call__"],
    "infer.TraceEnum_ELBO": [
        *(
            "loss",
            "differentiable_loss",
            "loss_and_grads",
            "__call__",
            "compute_marginals",
            "sample_posterior",
        )
    ],
    "infer.TraceEnumSample_ELBO": ["sample_saved", "clear_saved"],
    "infer.TracePosterior": ["run", "__call__", "marginal", "information_criterion"],
    "infer.EmpiricalMarginal": ["sample", "log_prob", "enumerate_support"],
    "infer.Importance": [
        "run",
        "get_ESS",
        "get_log_normalizer",
        "get_normalized_weights",
        "resample",
        "psis",
    ],
    "handlers.Trace": [
        "add_node",
        "add_edge",
        "remove_node",
        "predecessors",
        "successors",
        "copy",
        "topological_sort",
        "log_prob_sum",
        "compute_log_prob",
        "compute_score_parts",
        "detach_",
        "iter_stochastic_nodes",
        "symbolize_dims",
        "pack_tensors",
        "format_shapes",
    ],
    "params.ParamStoreDict": [
        "items",
        "keys",
        "values",
        "setdefault",
        "get_param",
        "named_parameters",
        "match",
        "param_name",
        "get_state",
        "set_state",
        "save",
        "load",
        "clear",
        "scope",
        "freeze",
        "get_all_param_names",
        "replace_param",
    ],
    "optim.PyroOptim": ["__call__", "get_state", "set_state", "save", "load"],
    "optim.PyroLRScheduler": ["step"],
    "distributions.DiscreteHMM": [
        "log_prob",
        "filter",
        "sample",
        "expand",
        "viterbi",
        "sample_posterior",
        "marginals",
    ],
    "infer.autoguide.AutoNormal": ["median", "quantiles"],
    "infer.autoguide.AutoDiagonalNormal": ["median", "quantiles", "sample_latent", "get_posterior"],
    "infer.autoguide.AutoLaplaceApproximation": ["laplace_approximation"],
    "infer.autoguide.AutoGuideList": ["append", "add"],
}

# Modules that programs import by name, and some of what they import from them.
MODULES = {
    "distributions.constraints": ["positive", "simplex", "unit_interval"],
    "distributions.transforms": ["AffineTransform", "ExpTransform"],
    "distributions.util": ["broadcast_shape", "logsumexp", "sum_rightmost", "scale_and_mask"],
    "distributions.torch_distribution": ["TorchDistribution", "TorchDistributionMixin", "MaskedDistribution"],
    "infer.svi": ["SVI"],
    "infer.elbo": ["ELBO", "ELBOModule"],
    "infer.trace_elbo": ["Trace_ELBO"],
    "infer.trace_mean_field_elbo": ["TraceMeanField_ELBO"],
    "infer.renyi_elbo": ["RenyiELBO"],
    "infer.abstract_infer": ["TracePosterior", "EmpiricalMarginal", "Marginals", "TracePredictive"],
    "infer.importance": ["Importance", "psis_diagnostic", "vectorized_importance_weights"],
    "infer.predictive": ["Predictive"],
    "infer.enum": ["get_importance_trace"],
    "infer.traceenum_elbo": ["TraceEnum_ELBO", "BackwardSampleMessenger"],
    "infer.discrete": ["infer_discrete", "TraceEnumSample_ELBO"],
    "infer.util": ["torch_item", "torch_backward", "zero_grads", "MultiFrameTensor"],
    "infer.autoguide": ["AutoNormal", "init_to_median", "init_to_value"],
    "infer.autoguide.initialization": ["init_to_feasible", "init_to_uniform", "InitMessenger"],
    "contrib.autoguide": ["AutoDelta", "AutoDiagonalNormal"],
    "optim": ["Adam", "SGD", "ClippedAdam", "AdagradRMSProp", "ExponentialLR", "StepLR"],
    "params": ["param_with_module_name", "user_param_name", "module_from_param_with_module_name"],
    "params.param_store": ["ParamStoreDict", "normalize_param_name"],
    "poutine": ["trace", "replay", "block", "condition", "lift", "scale", "mask", "queue", "Trace"],
    "poutine.runtime": ["apply_stack", "effectful", "am_i_wrapped", "NonlocalExit"],
    "poutine.trace_struct": ["Trace"],
    "poutine.messenger": ["Messenger"],
    "poutine.util": ["prune_subsample_sites", "site_is_subsample", "enum_extend", "discrete_escape"],
    "poutine.indep_messenger": ["CondIndepStackFrame", "IndepMessenger"],
    "poutine.subsample_messenger": ["SubsampleMessenger"],
    "ops.stats": ["hpdi", "waic", "resample", "quantile", "effective_sample_size", "gelman_rubin"],
    "ops.packed": ["pack", "unpack", "broadcast_all"],
    "nn": ["PyroModule", "PyroParam", "PyroSample", "pyro_method"],
    "primitives": ["sample", "param", "plate"],
    "settings": ["get", "set", "context", "register"],
    "util": [
        *("set_rng_seed", "warn_if_nan", "check_model_guide_match", "check_site_shape"),
        *("check_if_enumerated", "check_traceenum_requirements"),
    ],
    "generic": ["pyro_backend"],
}


def find(path: str) -> Any:
    found: Any = sumprod
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("path", SIGNATURES)
def test_arguments(path):
    parameters = inspect.signature(find(path)).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for wanted, actual in zip(SIGNATURES[path], positional, strict=False):
        name, default = wanted if isinstance(wanted, tuple) else (wanted, EMPTY)
        assert actual.name == name
        if default is not EMPTY:
            assert actual.default == default
    assert len(positional) >= len(SIGNATURES[path])
    # What comes after the listed ones must not be required.
    assert all(p.default is not EMPTY for p in positional[len(SIGNATURES[path]) :])


@pytest.mark.parametrize("path", KEYWORDS)
def test_keyword_arguments(path):
    parameters = inspect.signature(find(path)).parameters
    for name, default in KEYWORDS[path].items():
        assert parameters[name].default == default


@pytest.mark.parametrize("path", METHODS)
def test_methods(path):
    cls = find(path)
    assert [name for name in METHODS[path] if not callable(getattr(cls, name, None))] == []


@pytest.mark.parametrize("path", MODULES)
def test_modules(path):
    module = import_module(f"sumprod.{path}")
    assert [name for name in MODULES[path] if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sumprod.infer", "sumprod.infer.trace_elbo"),
        ("sumprod.poutine", "sumprod.handlers"),
        ("sumprod.poutine.trace_messenger", "sumprod.handlers.trace"),
        ("sumprod.distributions", "sumprod.distributions.torch_distribution"),
    ],
)
def test_classes_are_the_same_under_every_path(first, second):
    one, other = import_module(first), import_module(second)
    shared = [
        name
        for name, value in vars(other).items()
        if inspect.isclass(value) and hasattr(one, name) and value.__module__.startswith("sumprod")
    ]
    assert shared
    for name in shared:
        assert getattr(one, name) is getattr(other, name)
