"""How deep a program's plates are nested."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sumprod._random import preserve_rng_state
from sumprod.handlers import block, replay, trace
from sumprod.handlers.util import prune_subsample_sites
from sumprod.handlers.vectorized_markov import TrialOfChains
from sumprod.infer._checks import check_site_shape
from sumprod.settings import state

__all__ = ["deepest_plate", "try_nesting"]

logger = logging.getLogger("sumprod.infer")


def deepest_plate(traces: Iterable[Any], ignore: str | None = None) -> int:
    """The largest -dim of any vectorised plate around a sample site; 0 without plates.

    Plates named `ignore` do not count.
    """
    return max(
        (
            -frame.dim
            for one in traces
            for site in one.nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.dim is not None and frame.name != ignore
        ),
        default=0,
    )


def try_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Run guide and model once, hidden from outer handlers, and return how deep plates are nested.

    The random generators are afterwards as they were. Parameters that do not exist yet are created.
    """
    with preserve_rng_state(), block():
        guide_trace = trace(guide).get_trace(*args, **kwargs)
        replayed = replay(TrialOfChains()(model), trace=guide_trace)
        model_trace = trace(replayed).get_trace(*args, **kwargs)
    traces = [prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)]
    if state.validate_infer:
        for one in traces:
            one.compute_log_prob()
            for site in one.nodes.values():
                if site["type"] == "sample":
                    check_site_shape(site, math.inf)
    depth = deepest_plate(traces)
    logger.info("Guessed max_plate_nesting = %d", depth)
    return depth
