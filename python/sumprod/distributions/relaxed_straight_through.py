"""Relaxed discrete distributions whose draws are discrete and whose gradients are those of the relaxation.

Straight-through estimators (Bengio et al. 2013, "Estimating or propagating gradients through stochastic
neurons"; Jang et al. 2017, "Categorical reparameterization with Gumbel-softmax", section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions.torch import RelaxedBernoulli, RelaxedOneHotCategorical

__all__ = ["RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough"]


class _StraightThrough(torch.autograd.Function):
    """The discrete value forward, the gradient of the relaxed one backward."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _quantized(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard`, with the gradient of `soft`; it remembers `soft`, whose density is the one that exists."""
    result: Tensor = _StraightThrough.apply(soft, hard)  # type: ignore[no-untyped-call]
    result._sumprod_soft = soft  # type: ignore[attr-defined]
    return result


def _relaxed(value: Tensor) -> Tensor:
    soft: Tensor = getattr(value, "_sumprod_soft", value)
    return soft


class _StraightThroughDraws(torch.distributions.Distribution):
    """Draws that remember the relaxed value behind them."""

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """A draw without a gradient."""
        with torch.no_grad():
            return self.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the relaxed value behind a draw."""
        result: Tensor = super().log_prob(_relaxed(value))
        return result


class RelaxedBernoulliStraightThrough(_StraightThroughDraws, RelaxedBernoulli):
    """Zeros and ones with the gradient of a relaxed Bernoulli.

    Args:
        temperature: of the relaxation, positive.
        probs: probability of one; give exactly one of `probs` and `logits`.
        logits: log odds of one.
        validate_args: whether to check parameters and values.

    A draw is exactly 0 or 1 and remembers the relaxed value that it was rounded from. `log_prob` of that same
    tensor is the relaxed value's density; the density of any other tensor is taken as it is (0 and 1 are on
    the edge of the support, so their log-density is infinite or NaN).

    Example:
        >>> import torch
        >>> from sumprod.distributions import RelaxedBernoulliStraightThrough
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> draw = RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=logits).rsample()
        >>> bool(((draw == 0) | (draw == 1)).all()), draw.requires_grad
        (True, True)
    """

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Zeros and ones of shape sample_shape + batch_shape, with a gradient."""
        soft = super().rsample(torch.Size(sample_shape))
        return _quantized(soft, soft.detach().round())


class RelaxedOneHotCategoricalStraightThrough(_StraightThroughDraws, RelaxedOneHotCategorical):
    """One-hot vectors with the gradient of a relaxed (Gumbel-softmax) categorical.

    Args:
        temperature: of the relaxation, positive.
        probs: weights [*B, K], not negative; give exactly one of `probs` and `logits`.
        logits: log weights [*B, K].
        validate_args: whether to check parameters and values.

    A draw is exactly one-hot and remembers the relaxed vector whose largest entry it marks. `log_prob` of
    that same tensor is the relaxed vector's density; the density of any other tensor is taken as it is.

    Example:
        >>> import torch
        >>> from sumprod.distributions import RelaxedOneHotCategoricalStraightThrough
        >>> draw = RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), logits=torch.zeros(4)).rsample()
        >>> sorted(draw.tolist())
        [0.0, 0.0, 0.0, 1.0]
    """

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """One-hot vectors of shape sample_shape + batch_shape + [K], with a gradient."""
        soft = super().rsample(torch.Size(sample_shape))
        largest = soft.detach().argmax(-1, keepdim=True)
        return _quantized(soft, torch.zeros_like(soft).scatter(-1, largest, 1.0))
