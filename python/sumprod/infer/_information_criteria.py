"""WAIC and leave-one-out cross-validation from the log-likelihoods of posterior traces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.ops.stats import psis, waic

__all__ = [
    "complete_data_sites",
    "data_batch_shape",
    "information_criterion",
    "log_likelihoods",
    "observed_sites",
    "pointwise_of_particles",
]


def _data_names(trace: Any) -> list[str]:
    return [name for name in trace.observation_nodes if not trace.nodes[name]["infer"].get("_deterministic")]


def observed_sites(traces: Any) -> list[str]:
    """Names of the data of a model: observed sample sites that are not `deterministic`.

    Raises:
        ValueError: they differ between traces.
    """
    groups = [_data_names(one) for one in traces.representatives()]
    for names in groups:
        if sorted(names) != sorted(groups[0]):
            raise ValueError(
                f"Observation node has been changed: one trace observes {groups[0]}, another {names};"
                " a criterion needs the same data in all traces"
            )
    return groups[0] if groups else []


def complete_data_sites(traces: Any) -> list[str]:
    """Observed sites that all traces have, outside subsampled plates."""
    representatives = traces.representatives()
    groups = [_data_names(one) for one in representatives]
    return [
        name
        for name in (groups[0] if groups else [])
        if all(name in names for names in groups)
        and not any(_subsampled(one.nodes[name]) for one in representatives)
    ]


def _subsampled(site: Any) -> CondIndepStackFrame | None:
    """A subsampled plate around the site."""
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            return frame  # type: ignore[no-any-return]
    return None


def log_likelihoods(traces: Any, names: Sequence[str]) -> OrderedDict[str, Tensor]:
    """For each site, its log-densities in all traces, (number of traces,) + batch shape.

    Masked entries are 0; scales are left out.

    Raises:
        KeyError: a trace lacks a site.
        ValueError: a site is latent, or in a subsampled plate, or its batch shape changes.
    """
    return OrderedDict((name, _log_likelihood(traces, name)) for name in names)


def _log_likelihood(traces: Any, name: str) -> Tensor:
    rows: list[Tensor] = []
    for number in range(len(traces)):
        site = traces.site(number, name)
        _check_data(site, number)
        rows.append(_pointwise(site))
        if rows[-1].shape != rows[0].shape:
            raise ValueError(
                f"Observation node has been changed: site '{name}' has batch shape {tuple(rows[-1].shape)} in"
                f" trace {number}, {tuple(rows[0].shape)} in trace 0"
            )
    return torch.stack(rows)


def _pointwise(site: Any) -> Tensor:
    """Log-densities of the data at a site: not scaled, 0 where masked."""
    density = site.get("unscaled_log_prob")
    if density is None:
        density = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    mask = site["mask"]
    if mask is None or mask is True:
        return density  # type: ignore[no-any-return]
    return torch.where(torch.as_tensor(mask, device=density.device), density, torch.zeros_like(density))


def pointwise_of_particles(site: Any, count: int, max_plate_nesting: int, detach: bool) -> Tensor:
    """`_pointwise` of a site in a run with a plate of particles, shape (count,) + batch dims."""
    density = _pointwise(site)
    density = density.detach() if detach else density
    axis = density.dim() - 1 - max_plate_nesting
    if axis < 0:
        return density.expand(count, *density.shape)
    density = density.movedim(axis, 0)
    return density.expand(count, *density.shape[1:])


def data_batch_shape(site: Any) -> torch.Size:
    """The batch shape of an observed site that may take part in a criterion."""
    _check_data(site, 0)
    return site["fn"].batch_shape  # type: ignore[no-any-return]


def _check_data(site: Any, number: int) -> None:
    if site["type"] != "sample" or not site["is_observed"]:
        raise ValueError(
            f"Observation node has been changed: site '{site['name']}' is not observed in trace {number}"
        )
    _refuse_subsample(site)


def _refuse_subsample(site: Any) -> None:
    frame = _subsampled(site)
    if frame is not None:
        raise ValueError(
            f"site '{site['name']}' is in plate '{frame.name}', which uses {frame.size} of {frame.full_size}"
            " data points: an information criterion needs all data points in every trace; run the posterior"
            " with subsample_size=None"
        )


def information_criterion(
    densities: OrderedDict[str, Tensor], log_weights: Tensor, pointwise: bool, kind: str
) -> OrderedDict[str, Tensor]:
    """The criterion of `TracePosterior.information_criterion`, from log-likelihoods of several sites."""
    if kind not in ("waic", "loo"):
        raise ValueError(f"information_criterion: kind must be 'waic' or 'loo', got {kind!r}")
    if not densities:
        raise ValueError("information_criterion: sites is empty; name at least one observed site")
    parts = list(densities.values())
    joined = (
        parts[0] if len(parts) == 1 else torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
    )
    if joined.shape[0] < 2:
        raise ValueError("information_criterion: needs at least 2 traces, got 1")
    log_weights = log_weights.to(joined.device)
    if kind == "waic":
        value, penalty = waic(joined, log_weights, pointwise)
        return OrderedDict(waic=value, p_waic=penalty)
    return _leave_one_out(joined, log_weights, pointwise)


def _leave_one_out(densities: Tensor, log_weights: Tensor, pointwise: bool) -> OrderedDict[str, Tensor]:
    """PSIS-LOO: equation 10 of Vehtari, Gelman and Gabry (2017), for weighted draws."""
    dtype = densities.dtype
    density = densities.double()
    own = log_weights.double().log_softmax(0)
    possible = own > -torch.inf
    density, own = density[possible], own[possible].reshape(-1, *[1] * (density.dim() - 1))
    # A point that some trace makes impossible has no finite predictive density without itself.
    impossible = (density == -torch.inf).any(0)
    lpd = (density + own).logsumexp(0)
    density = density.masked_fill(impossible, 0.0)
    ratios = psis(own - density)
    elpd = (density + ratios.log_weights).logsumexp(0).masked_fill(impossible, -torch.inf)
    loo, penalty = -2 * elpd, lpd - elpd
    k = ratios.pareto_k.masked_fill(impossible, torch.inf)
    if not pointwise:
        loo, penalty, k = loo.sum(), penalty.sum(), k.max() if k.numel() else k.sum()
    return OrderedDict(loo=loo.to(dtype), p_loo=penalty.to(dtype), pareto_k=k.to(dtype))
