"""Log-densities of the sites of a trace, many sites of one family in one call.

Sites take part when they are unmasked, small, of a family that can be stacked (perhaps under `to_event`),
scaled by equal numbers, and when their value has exactly the shape of the distribution. Sites get the same
entries as from `Trace.compute_log_prob`, as views of the stacked result. When the stacked call raises, its
sites are evaluated one by one, so that the error names the site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sumprod._numeric import warn_if_inf, warn_if_nan
from sumprod.distributions import Independent
from sumprod.handlers.trace_struct import Trace, sum_tensors
from sumprod.infer._stacked_family import family_key, stack_family
from sumprod.settings import state

__all__ = ["FEWEST_SITES", "compute_log_probs", "log_prob_total", "warn_of_sites"]

FEWEST_SITES = 3  # below that, stacking costs more than it saves

_GROUP = "log_prob_group"


class _Group:
    """The sites evaluated together: their sum, and what each contributed to it."""

    __slots__ = ("sums", "total")

    def __init__(self, total: torch.Tensor, sums: dict[str, torch.Tensor]) -> None:
        self.total = total
        self.sums = sums


def compute_log_probs(trace: Trace, site_filter: Callable[[str, Any], bool] | None = None) -> None:
    """Fill in `log_prob`, `log_prob_sum` and `unscaled_log_prob` of the sample sites.

    As `trace.compute_log_prob()`, but stacked where possible; NaN and +inf in stacked sites are left to
    `warn_of_sites`.

    Raises:
        ValueError: a value does not suit its distribution; the text names the site.
    """
    groups: dict[Any, list[tuple[Any, Any]]] = {}
    for name, site in trace.nodes.items():
        if (
            site["type"] == "sample"
            and "log_prob" not in site
            and (site_filter is None or site_filter(name, site))
        ):
            key, fn = _group_key(site)
            if key is not None:
                groups.setdefault(key, []).append((site, fn))
    for key, members in groups.items():
        if len(members) >= FEWEST_SITES:
            _evaluate(members, *key[:2])
    trace.compute_log_prob(site_filter)


def _group_key(site: Any) -> tuple[Any, Any]:
    """What sites must share to be evaluated together, and the distribution under `to_event`."""
    scale, fn, value = site["scale"], site["fn"], site["value"]
    if site["mask"] is not None or site["args"] or site["kwargs"] or isinstance(scale, torch.Tensor):
        return None, None
    event_dims = 0
    if type(fn) is Independent:
        event_dims = fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    key = family_key(fn)
    if key is None or not isinstance(value, torch.Tensor):
        return None, None
    # A parameter on the CPU may meet a value on a GPU as a scalar, which a stack is not: same device only.
    if value.shape != fn._batch_shape or value.device != key[0]:
        return None, None
    return (scale, event_dims, value.dtype, key), fn


def _evaluate(members: list[tuple[Any, Any]], scale: float, event_dims: int) -> None:
    stacked = stack_family([fn for _, fn in members])
    try:
        log_prob = stacked.log_prob(torch.stack([site["value"] for site, _ in members]))
    except ValueError:
        return  # evaluated one by one, the site at fault raises the error that names it
    if event_dims:
        log_prob = log_prob.flatten(-event_dims).sum(-1)
    unscaled = each = log_prob.unbind()
    if scale != 1.0:
        log_prob = log_prob * scale
        each = log_prob.unbind()
    sums = each if log_prob.dim() == 1 else log_prob.flatten(1).sum(1).unbind()
    group = _Group(log_prob.sum(), {site["name"]: sums[i] for i, (site, _) in enumerate(members)})
    for i, (site, _) in enumerate(members):
        site["unscaled_log_prob"] = unscaled[i]
        site["log_prob"] = each[i]
        site["log_prob_sum"] = sums[i]
        site[_GROUP] = group


def _grouped(site: Any) -> _Group | None:
    """The group whose sum has this site's `log_prob_sum` as a term, as long as nobody has replaced it."""
    group: _Group | None = site.get(_GROUP)
    return group if group is not None and group.sums.get(site["name"]) is site["log_prob_sum"] else None


def log_prob_total(trace: Trace) -> torch.Tensor | float:
    """The sum of the `log_prob_sum`s of all sample sites: a scalar tensor; 0.0 without sites."""
    terms: list[Any] = []
    groups: dict[_Group, list[Any]] = {}
    for site in trace.nodes.values():
        if site["type"] == "sample":
            group = _grouped(site)
            if group is None:
                terms.append(site["log_prob_sum"])
            else:
                groups.setdefault(group, []).append(site["log_prob_sum"])
    for group, sums in groups.items():
        if len(sums) == len(group.sums):
            terms.append(group.total)
        else:  # somebody has taken sites out of the trace
            terms.extend(sums)
    return sum_tensors(terms)


def warn_of_sites(loss: float, traces: Iterable[Trace]) -> None:
    """After a loss that is not finite: warn of each stacked site that is NaN or +inf, by name.

    `Trace.compute_log_prob` has warned of the other sites.
    """
    if math.isfinite(loss) or not state.validate_poutine:
        return
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and _grouped(site) is not None:
                value = site["log_prob_sum"].detach()
                warn_if_nan(value, f"log_prob_sum at site '{name}'")
                warn_if_inf(value, f"log_prob_sum at site '{name}'", allow_neginf=True)
