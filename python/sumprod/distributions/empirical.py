"""`Empirical`: a finite set of weighted samples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod import ops
from sumprod.distributions.torch_distribution import TorchDistribution

__all__ = ["Empirical"]

_ADVICE = (
    "Consider converting samples to ``torch.float32`` or ``torch.float64``. If these are samples from a "
    "`Categorical` distribution, consider converting to a `OneHotCategorical` distribution."
)


class Empirical(TorchDistribution):
    """Weighted samples as a distribution.

    Dims of `samples`: batch_shape + (number of samples,) + event_shape, where the first two parts are the
    shape of `log_weights`. Weights need not sum to one.

    Args:
        samples: the values, of any dtype.
        log_weights: logarithms of the weights; -inf takes a sample out.
        validate_args: whether to check weights, and shapes of values.

    Raises:
        ValueError: the shape of `log_weights` is not the leftmost part of that of `samples`, or is empty;
            a weight is NaN or +inf; all weights along the last dim are zero.

    Example:
        >>> two = Empirical(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.25, 0.5, 0.25]).log())
        >>> two.log_prob(torch.tensor(1.0)).exp()
        tensor(0.5000)
        >>> two.mean, two.variance
        (tensor(1.5000), tensor(0.2500))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_enumerate_support = True

    def __init__(self, samples: Tensor, log_weights: Tensor, validate_args: bool | None = None) -> None:
        rank = log_weights.dim()
        if samples.shape[:rank] != log_weights.shape:
            raise ValueError(
                f"The shape of ``log_weights`` ({log_weights.shape}) must match the leftmost shape of "
                f"``samples`` ({samples.shape}): one weight for each sample"
            )
        if rank == 0 or log_weights.shape[-1] == 0:
            raise ValueError(
                f"Empirical expected at least one sample, along the last dim of ``log_weights``; got shape "
                f"{tuple(log_weights.shape)}"
            )
        self._samples = samples
        self._log_weights = log_weights
        super().__init__(log_weights.shape[:-1], samples.shape[rank:], validate_args=validate_args)
        if self._validate_args:
            self._check_weights()

    def _check_weights(self) -> None:
        heaviest = self._log_weights.detach().amax(-1)
        if not torch._is_all_true(heaviest.isfinite()):
            rows = heaviest.isfinite().logical_not().nonzero().tolist()
            where = f" (first in batch element {tuple(rows[0])})" if heaviest.dim() else ""
            if bool((heaviest == -torch.inf).any()):
                raise ValueError(
                    f"all log_weights of Empirical are -inf{where}, so no sample has any weight; an "
                    "importance sampler returns such weights when no draw can explain the observations"
                )
            raise ValueError(f"log_weights of Empirical must not be NaN or +inf{where}")

    def __repr__(self) -> str:
        return (
            f"Empirical({self._log_weights.shape[-1]} samples, batch_shape: {tuple(self._batch_shape)}, "
            + (f"event_shape: {tuple(self._event_shape)})")
        )

    @property
    def log_weights(self) -> Tensor:
        """The log-weights as given."""
        return self._log_weights

    @property
    def sample_size(self) -> int:
        """Number of samples, over all batch elements."""
        return self._log_weights.numel()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same samples, not copied, under a larger batch shape."""
        new: Any = self._get_checked_instance(Empirical, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        count = self._log_weights.shape[-1:]
        new._samples = self._samples.expand(batch_shape + count + self._event_shape)
        new._log_weights = self._log_weights.expand(batch_shape + count)
        super(Empirical, new).__init__(batch_shape, self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples drawn by weight, with replacement; no gradient."""
        with torch.no_grad():
            count = self._log_weights.shape[-1]
            probs = torch.softmax(self._log_weights, -1).reshape(-1, count)
            sample_shape = torch.Size(sample_shape)
            rows = probs.shape[0]
            chosen = torch.multinomial(probs, sample_shape.numel(), replacement=True).T
            # One row of samples per batch element, and in it the chosen ones.
            table = self._samples.reshape((rows, count, *self._event_shape))
            drawn = table[torch.arange(rows, device=table.device), chosen]
            return drawn.reshape(sample_shape + self._batch_shape + self._event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Logarithm of the share of weight on samples equal to `value`; -inf if there are none.

        Differentiable in the weights. With validation, `value` must have shape batch_shape + event_shape;
        without, it may have sample dims and broadcast.
        """
        if self._validate_args and value.shape != self._batch_shape + self._event_shape:
            raise ValueError(
                f"``value.shape`` must be {self._batch_shape + self._event_shape} (batch_shape + event_shape "
                f"of the Empirical), got {value.shape}"
            )
        event_dim = len(self._event_shape)
        same = self._samples == value.unsqueeze(value.dim() - event_dim)
        if event_dim:
            same = same.flatten(-event_dim).all(-1)
        log_weights = self._log_weights
        matching = torch.where(same, log_weights, -torch.inf)
        return ops.logsumexp(matching, -1) - ops.logsumexp(log_weights, -1)

    def _weighted_mean(self, values: Tensor, moment: str) -> Tensor:
        if not values.is_floating_point():
            raise ValueError(f"{moment} for discrete empirical distribution undefined. {_ADVICE}")
        weights = torch.softmax(self._log_weights, -1).to(values.dtype)
        weights = weights.reshape(weights.shape + (1,) * len(self._event_shape))
        # A sample without weight may be anything, NaN too.
        values = torch.where(weights > 0, values, values.new_zeros(()))
        return (values * weights).sum(-1 - len(self._event_shape))

    @property
    def mean(self) -> Tensor:
        """The weighted mean. Raises ValueError unless samples are of a floating dtype."""
        return self._weighted_mean(self._samples, "Mean")

    @property
    def variance(self) -> Tensor:
        """The weighted (biased) variance. Raises ValueError unless samples are of a floating dtype."""
        mean = self._weighted_mean(self._samples, "Variance")
        deviation = self._samples - mean.unsqueeze(-1 - len(self._event_shape))
        return self._weighted_mean(deviation.square(), "Variance")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All samples as they were given, duplicates included; batch dims are to the left."""
        return self._samples
