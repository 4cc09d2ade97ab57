"""What a guide's sites contribute: their costs, and the factors that weight all costs."""

from __future__ import annotations

import math
from typing import Any

import torch

from sumprod.distributions.util import is_identically_zero, scale_and_mask
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._dice import Factor
from sumprod.infer._enum_elimination import scaled
from sumprod.infer._enum_sites import Term, align, site_density, site_term, unmasked, variable_of
from sumprod.infer.util import has_default_score_parts

__all__ = ["guide_terms", "masked_term"]


def guide_terms(trace: Trace, max_plate_nesting: float) -> tuple[list[Term], list[Factor]]:
    """Terms of -log q, scaled and masked; and the factors, which are neither."""
    costs, factors = [], []
    for site in trace.nodes.values():
        if site["type"] != "sample":
            continue
        term = site_term(site, site_density(trace, site, max_plate_nesting))
        if site["mask"] is not False:
            cost = scaled(site, masked_term(trace, site, term))
            costs.append(cost._replace(tensor=-cost.tensor))
        factor = guide_factor(trace, site, term)
        if factor is not None:
            factors.append(factor)
    return costs, factors


def masked_term(trace: Trace, site: Any, term: Term) -> Term:
    """The density where masks hold, given that of `site_density`, which leaves enumerated sites unmasked."""
    masked = site["mask"] is not None or unmasked(site["fn"]) is not site["fn"]
    if not masked or site["infer"].get("_enumerate_dim") is None:
        return term
    return site_term(site, scale_and_mask(trace._site_log_prob(site, "log_prob"), mask=site["mask"]))


def _without_mask(trace: Trace, site: Any, term: Term) -> Term:
    fn = unmasked(site["fn"])
    plain = fn is site["fn"] and (site["mask"] is None or site["mask"] is True)
    if plain or site["infer"].get("_enumerate_dim") is not None:
        return term
    return site_term(site, trace._site_log_prob({**site, "fn": fn, "mask": None}, "log_prob"))


def guide_factor(trace: Trace, site: Any, term: Term) -> Factor | None:
    """How a guide site weights costs; None: not at all."""
    infer, fn = site["infer"], site["fn"]
    variable = variable_of(site)
    count = infer.get("num_samples")
    if infer.get("_enum_total") is not None:
        whole = _without_mask(trace, site, term)
        return Factor(term.ordinal, whole.dims, whole.tensor, math.log(infer["_enum_total"]))
    if variable is not None and count is None:
        return Factor(term.ordinal, term.dims, term.tensor, normalized=variable)
    if has_default_score_parts(fn):
        score = None if fn.has_rsample else _without_mask(trace, site, term)
    else:
        found = fn.score_parts(site["value"], *site["args"], **site["kwargs"]).score_function
        score = None if is_identically_zero(found) else site_term(site, found)
    if variable is not None:
        weight = torch.full((count,), -math.log(count), dtype=term.tensor.dtype, device=term.tensor.device)
        if score is None:
            return Factor(term.ordinal, (variable,), weight, normalized=variable)
        difference = score.tensor - score.tensor.detach()
        return Factor(term.ordinal, score.dims, difference + align(weight, (variable,), score.dims))
    if score is None:
        return None
    return Factor(term.ordinal, score.dims, score.tensor - score.tensor.detach())
