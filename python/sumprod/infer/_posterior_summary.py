"""Summaries of a posterior, site by site."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.util import site_is_subsample
from sumprod.ops.stats import effective_sample_size, split_gelman_rubin, weighed_quantile

__all__ = ["PosteriorSummary", "by_chain", "equally_weighted", "latent_sites", "summarize"]

_ROWS = 50  # per site in the printed table


def latent_sites(traces: Any) -> list[str]:
    """Latent and deterministic sites that all traces have, with tensor values of one shape."""
    shapes: dict[str, list[Any]] = {}
    representatives = traces.representatives()
    for one in representatives:
        for name, site in one.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site) or not isinstance(site["value"], Tensor):
                continue
            if not site["is_observed"] or site["infer"].get("_deterministic"):
                shapes.setdefault(name, []).append(site["value"].shape)
    return [name for name, found in shapes.items() if found == [found[0]] * len(representatives)]


def equally_weighted(log_weights: Tensor) -> bool:
    """Whether all traces have the same weight."""
    return bool((log_weights == log_weights[0]).all())


def by_chain(posterior: Any) -> Tensor:
    """Numbers of the traces, shape (chains, traces per chain).

    Raises:
        ValueError: the chains differ in length.
    """
    rows: list[list[int]] = [[] for _ in range(posterior.num_chains)]
    for number, chain in enumerate(posterior.chain_ids):
        rows[chain].append(number)
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{type(posterior).__name__}: chains must have equally many traces to be a batch dim, got"
            f" {lengths}"
        )
    return torch.tensor(rows)


class PosteriorSummary(OrderedDict[str, "OrderedDict[str, Tensor]"]):
    """Site -> statistic -> tensor of the site's shape; printing it gives a table.

    Statistics: mean; std; median; the ends of the central interval, named like "5.0%" and "95.0%";
    n_eff, the effective sample size (of chains, from autocorrelations; of unequal weights, Kish's
    1 / sum of squares); r_hat, split Gelman-Rubin, NaN for unequal weights or fewer than four traces
    per chain.
    """

    def __str__(self) -> str:
        header = list(next(iter(self.values()))) if self else []
        rows = [(label, cells) for site, stats in self.items() for label, cells in _rows(site, stats)]
        width = max([len(label) for label, _ in rows], default=0)
        lines = [" ".join([" " * width, *(f"{name:>9}" for name in header)])]
        lines += [
            " ".join([label.rjust(width), *(f"{cell:9.3g}" for cell in cells)]) for label, cells in rows
        ]
        return "\n".join(lines)


def _rows(site: str, stats: OrderedDict[str, Tensor]) -> list[tuple[str, list[float]]]:
    shape = next(iter(stats.values())).shape
    places = list(itertools.islice(itertools.product(*map(range, shape)), _ROWS))
    rows = [
        (
            f"{site}[{','.join(map(str, place))}]" if place else site,
            [stat[place].item() for stat in stats.values()],
        )
        for place in places
    ]
    hidden = shape.numel() - len(rows)
    return [*rows, (f"{site}: {hidden} more", [])] if hidden > 0 else rows


def summarize(posterior: Any, prob: float, sites: Sequence[str] | None) -> PosteriorSummary:
    """The summary of `TracePosterior.summary`."""
    if not 0 < prob < 1:
        raise ValueError(f"summary: prob must be between 0 and 1, got {prob}")
    names = latent_sites(posterior.exec_traces) if sites is None else sites
    weights = posterior._log_weights().detach()
    largest = weights.max()
    if not bool(largest.isfinite()):
        raise ValueError(f"summary: the largest log-weight is {largest.item()}: no trace can be weighed")
    chains = by_chain(posterior) if equally_weighted(weights) else None
    return PosteriorSummary(
        (name, _statistics(posterior.stack(name), weights, chains, prob)) for name in names
    )


def _statistics(
    values: Tensor, log_weights: Tensor, chains: Tensor | None, prob: float
) -> OrderedDict[str, Tensor]:
    values = values.detach()
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    exact = values.double()
    log_weights = log_weights.to(exact.device)
    share = log_weights.double().softmax(0)
    concentration = share.square().sum()
    share = share.reshape(-1, *[1] * (values.dim() - 1))
    mean = (share * exact).sum(0)
    variance = (share * (exact - mean).square()).sum(0) / (1 - concentration)
    tails = [(1 - prob) / 2, 0.5, (1 + prob) / 2]
    low, median, high = weighed_quantile(exact, tails, log_weights)
    n_eff, r_hat = _chain_statistics(exact, chains, concentration)
    entries = {
        "mean": mean,
        "std": variance.sqrt(),
        "median": median,
        f"{100 * tails[0]:.1f}%": low,
        f"{100 * tails[2]:.1f}%": high,
        "n_eff": n_eff,
        "r_hat": r_hat,
    }
    return OrderedDict((name, entry.to(dtype)) for name, entry in entries.items())


def _chain_statistics(values: Tensor, chains: Tensor | None, concentration: Tensor) -> tuple[Tensor, Tensor]:
    unknown = torch.full_like(values[0], torch.nan)
    if chains is None:
        return (1 / concentration).expand_as(unknown), unknown
    ordered = values[chains.to(values.device)]
    length = ordered.shape[1]
    n_eff = effective_sample_size(ordered) if length >= 2 else unknown
    return n_eff, split_gelman_rubin(ordered) if length >= 4 else unknown
