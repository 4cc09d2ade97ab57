"""Marks for enumeration, sequential enumeration, and pairs of traces of a guide and a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from queue import LifoQueue
from typing import Any

from sumprod.handlers import infer_config, queue, replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites, site_is_subsample
from sumprod.infer._calling import split_arguments
from sumprod.infer._checks import check_model_guide_match, check_site_shape
from sumprod.settings import state

__all__ = [
    "config_enumerate",
    "get_importance_trace",
    "iter_discrete_escape",
    "iter_discrete_extend",
    "iter_discrete_traces",
    "run_guide_and_model",
]


# ---- marks for enumeration


def config_enumerate(
    guide: Callable[..., Any] | None = None,
    default: str | None = "parallel",
    expand: bool = False,
    num_samples: int | None = None,
    tmc: str = "diagonal",
) -> Any:
    """Mark the latent sites of a program for enumeration; a function of a program, or a decorator.

    Marks every latent site whose distribution can be enumerated; with `num_samples`, every latent site.
    Options that a site has already stay: `infer={"enumerate": None}` excludes a site.

    Args:
        guide: a guide, or a model; None: return a decorator.
        default: "parallel", "sequential" or None (no enumeration).
        expand: whether enumerated values have the full batch shape, rather than size 1 along other dims.
        num_samples: draw so many independent samples at each site, along a dim of its own, instead of
            enumerating. One sample is an ordinary draw.
        tmc: "diagonal" or "mixture"; kept in the sites' options for tensor Monte Carlo losses.

    Raises:
        ValueError: an option has an invalid value, or `num_samples` is given with "sequential".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Bernoulli, Normal
    >>> @config_enumerate
    ... def model():
    ...     sumprod.sample("x", Normal(sumprod.sample("z", Bernoulli(0.5)), 1.0))
    >>> sites = sumprod.handlers.trace(model).get_trace().nodes
    >>> sites["z"]["infer"]["enumerate"], "enumerate" in sites["x"]["infer"]
    ('parallel', False)
    """
    if default not in ("sequential", "parallel", None):
        raise ValueError(
            f"Invalid default value. Expected 'parallel', 'sequential', or None, but got {default!r}"
        )
    if not isinstance(expand, bool):
        raise ValueError(f"Invalid expand value. Expected True or False, but got {expand!r}")
    if num_samples is not None:
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
            raise ValueError(f"Invalid num_samples, expected None or a positive integer, got {num_samples!r}")
        if default == "sequential":
            raise ValueError(
                'Local sampling does not support "sequential" sampling; use default="parallel" instead'
            )
    if tmc not in ("diagonal", "mixture"):
        raise ValueError(f"Invalid tmc value. Expected 'diagonal' or 'mixture', but got {tmc!r}")
    if guide is None:
        return functools.partial(
            config_enumerate, default=default, expand=expand, num_samples=num_samples, tmc=tmc
        )
    options: dict[str, Any] = {"enumerate": default, "expand": expand}
    if num_samples is not None:
        options.update(num_samples=num_samples, tmc=tmc)
    return infer_config(guide, config_fn=functools.partial(_marks, options))


def _marks(options: Mapping[str, Any], site: Any) -> dict[str, Any]:
    """The options for a site, where it has none of its own."""
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return {}
    if "num_samples" not in options and not getattr(site["fn"], "has_enumerate_support", False):
        return {}
    return {**options, **{key: site["infer"][key] for key in options if key in site["infer"]}}


# ---- sequential enumeration


def iter_discrete_escape(trace: Trace, msg: Any) -> bool:
    """Whether a site is latent, marked for sequential enumeration, and not in the trace yet."""
    return bool(
        msg["type"] == "sample"
        and not msg["is_observed"]
        and msg["infer"].get("enumerate") == "sequential"
        and msg["name"] not in trace
    )


def iter_discrete_extend(trace: Trace, site: Any, **ignored: Any) -> list[Trace]:
    """Extensions of a partial trace by each value of a site; `infer["_enum_total"]` is how many there are.

    Raises:
        NotImplementedError: the site's distribution cannot be enumerated.
    """
    if not getattr(site["fn"], "has_enumerate_support", False):
        raise NotImplementedError(
            f"site '{site['name']}' is marked for sequential enumeration, but {type(site['fn']).__name__}"
            " cannot be enumerated: it does not implement enumerate_support"
        )
    values = site["fn"].enumerate_support(expand=site["infer"].get("expand", False))
    extensions = []
    for value in values:
        extended = trace.copy()
        infer = {**site["infer"], "_enum_total": len(values)}
        extended.add_node(site["name"], **{**site, "value": value, "infer": infer})
        extensions.append(extended)
    return extensions


def iter_discrete_traces(
    graph_type: str, fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> Iterator[Trace]:
    """Traces of `fn(*args, **kwargs)` for every combination of values of its sequentially marked sites."""
    partial: LifoQueue[Trace] = LifoQueue()
    partial.put(Trace())
    program = queue(fn, queue=partial, escape_fn=iter_discrete_escape, extend_fn=iter_discrete_extend)
    while not partial.empty():
        yield trace(program, graph_type=graph_type).get_trace(*args, **kwargs)


# ---- pairs of traces


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
