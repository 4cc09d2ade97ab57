"""Posteriors in files, and as ArviZ data."""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions.distribution import Distribution
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample
from sumprod.infer._information_criteria import complete_data_sites
from sumprod.infer._posterior_summary import by_chain, equally_weighted, latent_sites

__all__ = ["UnsavedDistribution", "load_posterior", "save_posterior", "to_arviz"]

_FORMAT = "sumprod.posterior"
_VERSION = 1


class UnsavedDistribution(Distribution):
    """Stands at a site read from a file, which holds values but not distributions."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "this site was read from a file, which holds values but not distributions: replay the model on"
            " the trace to compute densities"
        )

    sample = rsample = log_prob = score_parts = _refuse


def save_posterior(posterior: Any, file: Any) -> None:
    """See `TracePosterior.save`."""
    store = posterior.exec_traces
    names = complete_data_sites(store)
    record = {
        "format": _FORMAT,
        "version": _VERSION,
        "num_chains": posterior.num_chains,
        "chain_ids": list(posterior.chain_ids),
        "log_weights": posterior._log_weights().detach(),
        "groups": [_group_record(store, numbers) for numbers in store.groups()],
        "log_likelihoods": {name: _compact(x) for name, x in posterior._log_likelihoods(names).items()},
    }
    torch.save(record, file)


def _group_record(store: Any, numbers: list[int]) -> dict[str, Any]:
    first = store[numbers[0]]
    sites = {}
    for name, site in first.nodes.items():
        if not isinstance(site.get("value"), Tensor):
            continue
        fn = site.get("fn")
        sites[name] = {
            "type": site["type"],
            "is_observed": bool(site.get("is_observed", False)),
            "deterministic": bool(site.get("infer", {}).get("_deterministic", False)),
            "plates": [tuple(frame) for frame in site.get("cond_indep_stack", ())],
            "subsample": (fn.size, fn.subsample_size) if site_is_subsample(site) else None,
            "value": _compact(store.stack_group(numbers[0], name)),
        }
    return {"numbers": numbers, "sites": sites}


def _compact(stacked: Tensor) -> Tensor:
    """Detached, of size 1 where all rows are the same tensor, and without unused storage."""
    stacked = stacked.detach()
    if len(stacked) > 1 and stacked.stride(0) == 0:
        stacked = stacked[:1]
    return stacked.clone(memory_format=torch.contiguous_format)


def load_posterior(posterior: Any, file: Any, map_location: Any) -> None:
    """See `TracePosterior.load`."""
    record = torch.load(file, map_location=map_location, weights_only=True)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError("not a file written by TracePosterior.save")
    if record["version"] != _VERSION:
        raise ValueError(
            f"the file has version {record['version']} of the posterior format, this library reads {_VERSION}"
        )
    posterior._reset()
    posterior.num_chains = record["num_chains"]
    rows = {
        number: (group["sites"], row)
        for group in record["groups"]
        for row, number in enumerate(group["numbers"])
    }
    weights = record["log_weights"].unbind()
    for number, chain in enumerate(record["chain_ids"]):
        sites, row = rows[number]
        posterior._collect(_rebuild(sites, row), weights[number], chain)
    posterior.exec_traces.finish()
    count = len(record["chain_ids"])
    posterior._saved_log_likelihoods = OrderedDict(
        (name, x.expand(count, *x.shape[1:])) for name, x in record["log_likelihoods"].items()
    )


def _rebuild(sites: dict[str, Any], row: int) -> Trace:
    trace = Trace()
    for name, site in sites.items():
        value = site["value"]
        node = {"name": name, "type": site["type"], "value": value[row if len(value) > 1 else 0]}
        if site["type"] != "return":
            fn = UnsavedDistribution() if site["subsample"] is None else SubsampleIndices(*site["subsample"])
            node.update(
                fn=fn,
                is_observed=site["is_observed"],
                args=(),
                kwargs={},
                infer={"_deterministic": True} if site["deterministic"] else {},
                scale=1.0,
                mask=None,
                cond_indep_stack=tuple(CondIndepStackFrame(*frame) for frame in site["plates"]),
                done=True,
                stop=False,
                continuation=None,
            )
        trace.nodes[name] = node
    return trace


def to_arviz(posterior: Any) -> Any:
    """See `TracePosterior.to_arviz`."""
    try:
        arviz = importlib.import_module("arviz")
    except ImportError as error:
        raise ImportError(
            "to_arviz needs ArviZ, which is not installed: pip install arviz (or use summary() and stack())"
        ) from error
    store = posterior.exec_traces
    weights = posterior._log_weights().detach()
    if equally_weighted(weights):
        order = by_chain(posterior)
    else:
        posterior._draw()  # raises when nothing can be drawn
        order = torch.multinomial(weights.double().softmax(0), len(weights), replacement=True).unsqueeze(0)
    names = complete_data_sites(store)
    groups = {
        "posterior": {name: _numbers(posterior.stack(name), order) for name in latent_sites(store)},
        "log_likelihood": {name: _numbers(x, order) for name, x in posterior._log_likelihoods(names).items()},
        "observed_data": {name: store.site(0, name)["value"].detach().cpu().numpy() for name in names},
    }
    groups = {group: entries for group, entries in groups.items() if entries}
    if "posterior" in inspect.signature(arviz.from_dict).parameters:  # before ArviZ 1.0
        return arviz.from_dict(**groups)
    return arviz.from_dict(groups)


def _numbers(stacked: Tensor, order: Tensor) -> Any:
    """A NumPy array of shape (chains, draws, ...)."""
    return stacked.detach()[order.to(stacked.device)].cpu().numpy()
