"""Pairs of traces from a guide and a model replayed against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sumprod.handlers import replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites, site_is_subsample
from sumprod.infer._calling import split_arguments
from sumprod.infer._checks import check_model_guide_match, check_site_shape
from sumprod.settings import state

__all__ = ["get_importance_trace", "run_guide_and_model"]


def run_guide_and_model(
    graph_type: str,
    max_plate_nesting: float,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    detach: bool = False,
) -> tuple[Trace, Trace]:
    """Run the guide, then the model with the guide's values: (model trace, guide trace).

    Sites of subsample indices are left out; log-densities are not computed. `detach` cuts the guide's
    values from the autograd graph before the model sees them.
    """
    guide_trace = trace(guide, graph_type=graph_type).get_trace(*args, **kwargs)
    if detach:
        guide_trace.detach_()
    model_trace = trace(replay(model, trace=guide_trace), graph_type=graph_type).get_trace(*args, **kwargs)
    if state.validate_infer:
        check_model_guide_match(model_trace, guide_trace, max_plate_nesting)
    return _pruned(model_trace), _pruned(guide_trace)


def _pruned(one: Trace) -> Trace:
    if any(site_is_subsample(site) for site in one.nodes.values()):
        return prune_subsample_sites(one)
    return one


def check_site_shapes(one: Trace, max_plate_nesting: float) -> None:
    """`check_site_shape` for every sample site of a trace whose densities are known."""
    for site in one.nodes.values():
        if site["type"] == "sample":
            check_site_shape(site, max_plate_nesting)


def get_importance_trace(
    graph_type: str,
    max_plate_nesting: float,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> tuple[Trace, Trace]:
    """Traces of a model and of its guide, the model replayed against the guide, with all densities.

    Args:
        graph_type: "flat" or "dense".
        max_plate_nesting: dims left of it belong to enumeration; infinity when nothing is enumerated.
        model: the model.
        guide: the guide.
        args: either the programs' arguments, or one tuple of positional and one dict of keyword arguments,
            and then perhaps `detach`: whether to cut the guide's values from the autograd graph.

    Returns:
        (model trace, guide trace), without sites of subsample indices. Model sites have `log_prob`,
        `log_prob_sum` and `unscaled_log_prob`; guide sites have `score_parts` too.

    Raises:
        ValueError: shapes of model and guide, or of a site and its plates, do not fit (when validating).

    >>> import math, sumprod
    >>> from sumprod.distributions import Normal
    >>> def model(): sumprod.sample("z", Normal(0., 1.))
    >>> model_trace, guide_trace = get_importance_trace("flat", math.inf, model, model, (), {})
    >>> bool(model_trace.log_prob_sum() == guide_trace.log_prob_sum())
    True
    """
    program_args, program_kwargs, detach = _unpack(args, kwargs)
    model_trace, guide_trace = run_guide_and_model(
        graph_type, max_plate_nesting, model, guide, program_args, program_kwargs, detach
    )
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    if state.validate_infer:
        check_site_shapes(model_trace, max_plate_nesting)
        check_site_shapes(guide_trace, max_plate_nesting)
    return model_trace, guide_trace


def _unpack(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any], bool]:
    if not args and {"args", "kwargs"} <= kwargs.keys() <= {"args", "kwargs", "detach"}:
        return kwargs["args"], kwargs["kwargs"], kwargs.get("detach", False)
    packed = len(args) in (2, 3) and isinstance(args[0], tuple) and isinstance(args[1], dict)
    if packed and not kwargs and len(args) == 3 and isinstance(args[2], bool):
        return args[0], args[1], args[2]
    if packed and len(args) == 2 and kwargs.keys() == {"detach"}:
        return args[0], args[1], kwargs["detach"]
    return *split_arguments(args, kwargs), False
