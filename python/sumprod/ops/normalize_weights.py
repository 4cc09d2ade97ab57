"""`normalize_weights`: importance weights, normalised in log space, with their two summaries."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sumprod._native import ops as native
from sumprod.ops._devices import require_kernels
from sumprod.ops.logsumexp import logsumexp

__all__ = ["NormalizedWeights", "normalize_weights"]

_HALF = (torch.float16, torch.bfloat16)


class NormalizedWeights(NamedTuple):
    """What `normalize_weights` returns; n is the size of the normalised dim."""

    log_weights: Tensor
    """The shape of the input: w - logsumexp(w)."""
    log_evidence: Tensor
    """Without the dim: logsumexp(w) - log n, the log of the mean raw weight."""
    ess: Tensor
    """Without the dim: 1 / sum of squared normalised weights, between 1 and n."""


def normalize_weights(log_weights: Tensor, dim: int = -1) -> NormalizedWeights:
    """Normalises importance weights given by their logs, and sums them up.

    One pass over the weights finds their maximum, sum and sum of squares; a second writes them. The
    effective sample size is that of Kong (1992). Sums are kept in double over long dims.

    Args:
        log_weights: any shape; float32, float64, float16 or bfloat16.
        dim: the dim to normalise over.

    Returns:
        `NormalizedWeights(log_weights, log_evidence, ess)` in the dtype of the input. When no weight
        is possible (all -inf, or an empty dim): -inf, -inf and 0. +inf entries share the weight
        equally: log_evidence is +inf and ess their number. NaN makes all three NaN.

    Every output is differentiable any number of times; without any possible weight the gradient is 0.

    Raises:
        TypeError: `log_weights` is not a floating-point tensor, or `dim` is not an int.
        IndexError: `dim` is out of range.
        ValueError: `log_weights` is on a device without a kernel.

    Example:
        >>> import torch, sumprod
        >>> result = sumprod.ops.normalize_weights(torch.tensor([1.0, 1.0, 2.0]).log())
        >>> [round(w, 4) for w in result.log_weights.exp().tolist()]
        [0.25, 0.25, 0.5]
        >>> f"{result.log_evidence.exp():.4f} {result.ess:.4f}"
        '1.3333 2.6667'
    """
    dim = _checked(log_weights, dim)
    dtype = log_weights.dtype
    wide = log_weights.float() if dtype in _HALF else log_weights
    results = _scalar(wide) if wide.dim() == 0 else _dispatch(wide, dim)
    return NormalizedWeights(*(r if r.dtype == dtype else r.to(dtype) for r in results))


def _checked(log_weights: Tensor, dim: int) -> int:
    if not isinstance(log_weights, Tensor):
        raise TypeError(
            f"normalize_weights: log_weights must be a torch.Tensor, got {type(log_weights).__name__}"
        )
    if log_weights.dtype not in (torch.float32, torch.float64, *_HALF):
        raise TypeError(
            "normalize_weights: log_weights must be float32, float64, float16 or bfloat16, "
            f"got {log_weights.dtype}"
        )
    if not isinstance(dim, int):
        raise TypeError(f"normalize_weights: dim must be an int, got {type(dim).__name__}")
    rank = max(log_weights.dim(), 1)
    if not -rank <= dim < rank:
        raise IndexError(
            f"normalize_weights: Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], "
            f"but got {dim})"
        )
    if not log_weights.is_cpu:
        require_kernels("normalize_weights", log_weights.device)
    return dim % rank


def _scalar(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights, evidence, ess = _dispatch(log_weights.reshape(1), 0)
    return weights.reshape(()), evidence, ess


def _dispatch(log_weights: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    ):
        return _composite(log_weights, dim)
    if log_weights.requires_grad and torch.is_grad_enabled():
        return _NormalizeWeights.apply(log_weights, dim)  # type: ignore[no-any-return, no-untyped-call]
    return native.normalize_weights(log_weights, dim)  # type: ignore[no-any-return]


class _NormalizeWeights(torch.autograd.Function):
    """Saves only its outputs; the backward is a formula in them, differentiable itself."""

    @staticmethod
    def forward(ctx: Any, log_weights: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        weights, evidence, ess = native.normalize_weights(log_weights, dim)
        ctx.save_for_backward(weights, evidence, ess)
        ctx.dim = dim
        return weights, evidence, ess

    @staticmethod
    def backward(ctx: Any, for_weights: Tensor, for_evidence: Tensor, for_ess: Tensor) -> tuple[Tensor, None]:
        log_weights, evidence, ess = ctx.saved_tensors
        dim: int = ctx.dim
        weights, size = log_weights.exp(), ess.unsqueeze(dim)
        total = for_evidence.unsqueeze(dim) - for_weights.sum(dim, keepdim=True)
        spread = 2 * for_ess.unsqueeze(dim) * size * (1 - size * weights)
        grad = for_weights + weights * (total + spread)
        nothing = evidence.detach().unsqueeze(dim) == -torch.inf
        return torch.where(nothing, torch.zeros_like(grad), grad), None


def _composite(log_weights: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same as torch operations around `logsumexp`, for transforms and forward mode."""
    total = logsumexp(log_weights, dim, keepdim=True)
    known = total.detach()
    infinite, nothing = known.isinf(), known == -torch.inf
    zero = torch.zeros((), dtype=log_weights.dtype, device=log_weights.device)
    chosen = log_weights == torch.inf
    share = -chosen.sum(dim, keepdim=True).to(zero.dtype).log()
    shared = torch.where(chosen, share, -torch.inf)
    finite = torch.where(infinite, zero, log_weights) - torch.where(infinite, zero, total)
    weights = torch.where(infinite, shared, finite)
    concentration = torch.where(nothing, zero, logsumexp(2 * weights, dim, keepdim=True))
    ess = torch.where(nothing, zero, (-concentration).exp())
    count = log_weights.shape[dim]
    evidence = total - math.log(count) if count > 0 else total
    return weights, evidence.squeeze(dim), ess.squeeze(dim)


@torch.library.register_fake("sumprod::normalize_weights")
def _fake(log_weights: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    kept = list(log_weights.shape)
    if kept:
        del kept[dim % len(kept)]
    return torch.empty_like(log_weights), log_weights.new_empty(kept), log_weights.new_empty(kept)
