"""Make a posterior trace fit a run of the model on other data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample

__all__ = ["adapt_to_plates"]


def adapt_to_plates(drawn: Trace, layout: Trace, shuffle: bool = False) -> Trace:
    """The latent sites of `drawn`, to be replayed in a run with the plates of `layout`.

    In a plate of another size, values are picked by random numbers of old replicates, drawn with
    replacement, once per plate name. Plate indices (subsample sites) are those of `layout`.

    Args:
        shuffle: pick at random in plates of equal size, too.

    Raises:
        KeyError: `layout` lacks sites of `drawn`; the text names all of them.
    """
    latent = [(name, site) for name, site in drawn.nodes.items() if _is_latent(site)]
    missing = [name for name, _ in latent if name not in layout]
    if missing:
        raise KeyError(
            f"the model, run on the new arguments, has no sites {missing}, which the posterior has; its sites"
            f" are {[name for name in layout.nodes if not name.startswith('_')]}. Choose sites that both have"
            " with keep_sites=[...]"
        )
    adapted = Trace(drawn.graph_type)
    picks: dict[str, Tensor] = {}
    for name, site in latent:
        target = layout.nodes[name]
        site = {**site}
        if site_is_subsample(target):
            site.update(fn=target["fn"], value=target["value"])
        elif isinstance(site["value"], Tensor):
            site["value"] = _pick(site, target, picks, shuffle)
        adapted.add_node(name, **site)
    return adapted


def _is_latent(site: Any) -> bool:
    return bool(site["type"] == "sample" and not site["is_observed"])


def _pick(site: Any, target: Any, picks: dict[str, Tensor], shuffle: bool) -> Tensor:
    """The site's value with the plate sizes of `target`."""
    value: Tensor = site["value"]
    old_frames = {frame.name: frame for frame in site["cond_indep_stack"] if frame.dim is not None}
    event_dim = len(getattr(target["fn"], "event_shape", ()))
    for frame in target["cond_indep_stack"]:
        old = old_frames.get(frame.name)
        if old is None or frame.dim is None or (old.size == frame.size and not shuffle):
            continue
        dim = old.dim - event_dim
        if value.dim() < -dim or value.shape[dim] != old.size:
            continue  # one value for all replicates
        if frame.name not in picks:
            picks[frame.name] = torch.randint(0, old.size, (frame.size,), device=value.device)
        value = value.index_select(dim, picks[frame.name].to(value.device))
    return value
