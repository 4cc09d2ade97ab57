"""Kullback-Leibler divergences between our wrappers and points, registered with torch's `kl_divergence`.

Families of torch need nothing here: their rules hold for subclasses. Results have the broadcast batch
shape of both arguments; where both masks of masked distributions leave nothing, the result is the float 0.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import MultivariateNormal, kl_divergence, register_kl
from torch.distributions import Normal as TorchNormal
from torch.nn.functional import softplus

from sumprod.distributions.delta import Delta
from sumprod.distributions.torch import Bernoulli
from sumprod.distributions.torch_distribution import ExpandedDistribution, Independent, MaskedDistribution
from sumprod.distributions.util import broadcast_shape, scale_and_mask, sum_rightmost

__all__ = ["kl_divergence", "register_kl"]


@register_kl(Delta, torch.distributions.Distribution)
def _point_to_any(p: Any, q: Any) -> Any:
    """E_p[log p - log q] = log_density - log q(v)."""
    kl = -q.log_prob(p.v)
    return kl if p.has_zero_log_density else kl + p.log_density


@register_kl(Bernoulli, Bernoulli)
def _bernoulli_to_bernoulli(p: Any, q: Any) -> Tensor:
    """torch's rule, for parameters that broadcast."""
    p_probs, q_probs, p_logits, q_logits = torch.broadcast_tensors(p.probs, q.probs, p.logits, q.logits)
    ones = p_probs * (softplus(-q_logits) - softplus(-p_logits))
    ones = torch.where(p_probs == 0, 0.0, torch.where(q_probs == 0, torch.inf, ones))
    zeros = (1 - p_probs) * (softplus(q_logits) - softplus(p_logits))
    zeros = torch.where(p_probs == 1, 0.0, torch.where(q_probs == 1, torch.inf, zeros))
    return ones + zeros


def _independent_to_independent(p: Any, q: Any) -> Any:
    """The sum over the event dims that both have added."""
    shared = min(p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims)
    return sum_rightmost(kl_divergence(_less_event(p, shared), _less_event(q, shared)), shared)


def _less_event(d: Any, count: int) -> Any:
    left = d.reinterpreted_batch_ndims - count
    return Independent(d.base_dist, left) if left else d.base_dist


# The mixed pairs appear where torch wraps a base distribution itself, as in TransformedDistribution.
register_kl(Independent, Independent)(_independent_to_independent)
register_kl(Independent, TorchIndependent)(_independent_to_independent)
register_kl(TorchIndependent, Independent)(_independent_to_independent)


@register_kl(Independent, MultivariateNormal)
def _diagonal_to_multivariate_normal(p: Any, q: Any) -> Tensor:
    if not isinstance(p.base_dist, TorchNormal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"No KL(p || q) is implemented for p = {p!r} and a MultivariateNormal; p must be a Normal "
            "with one batch dim turned into an event dim: Normal(...).to_event(1)"
        )
    loc, scale = p.base_dist.loc, p.base_dist.scale
    shape = broadcast_shape(p.batch_shape, q.batch_shape)
    factor = q._unbroadcasted_scale_tril
    # With covariance F F^T of q: [tr + m^2 - n] / 2 + log det F - sum(log scale), all through F^-1.
    spread = torch.linalg.solve_triangular(factor, scale.diag_embed(), upper=False)
    shift = torch.linalg.solve_triangular(factor, (loc - q.loc).unsqueeze(-1), upper=False)
    quadratic = spread.square().sum((-2, -1)) + shift.square().sum((-2, -1))
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - scale.log().sum(-1)
    kl: Tensor = (quadratic - loc.shape[-1]) / 2 + log_volume
    return kl.expand(shape)


@register_kl(MaskedDistribution, MaskedDistribution)
def _masked_to_masked(p: Any, q: Any) -> Any:
    if p._mask is False or q._mask is False:
        return 0.0
    mask = q._mask if p._mask is True else p._mask if q._mask is True else p._mask & q._mask
    kl = kl_divergence(p.base_dist, q.base_dist)
    return kl if mask is True else scale_and_mask(kl, mask=mask)


def _expanded(p: Any, q: Any) -> Any:
    """The same in every repetition."""
    shape = broadcast_shape(p.batch_shape, q.batch_shape)
    if isinstance(p, ExpandedDistribution):
        p = p.base_dist
    if isinstance(q, ExpandedDistribution):
        q = q.base_dist
    kl = kl_divergence(p, q)
    return kl.expand(shape) if isinstance(kl, Tensor) else kl


register_kl(ExpandedDistribution, ExpandedDistribution)(_expanded)
register_kl(ExpandedDistribution, torch.distributions.Distribution)(_expanded)
register_kl(torch.distributions.Distribution, ExpandedDistribution)(_expanded)
register_kl(Delta, ExpandedDistribution)(_expanded)
