"""Estimates from importance weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sumprod.ops.normalize_weights import NormalizedWeights, normalize_weights
from sumprod.ops.stats import SmoothedWeights, psis

__all__ = ["LogWeightsMixin"]


class LogWeightsMixin:
    """Estimates from `self.log_weights`: a tensor of shape (n,), or a list of n numbers or scalar tensors.

    Sums are in float64; results have the dtype and the device of the weights.
    """

    log_weights: Any

    def _weight_vector(self) -> Tensor | None:
        """The log-weights, or None when there are none."""
        weights = self.log_weights
        if not isinstance(weights, Tensor):
            if not weights:
                return None
            weights = torch.stack([torch.as_tensor(weight) for weight in weights])
        return weights.reshape(-1) if weights.numel() else None

    def _weights_or_warning(self, consequence: str) -> Tensor | None:
        """The log-weights; or None, and a warning in the name of the method that asks."""
        weights = self._weight_vector()
        if weights is None:
            warnings.warn(
                f"{type(self).__name__} has no log-weights, so {consequence}: call run() first", stacklevel=3
            )
        return weights

    def _culprits(self, kind: str) -> str:
        """Which sites made a weight "impossible", "infinite" or "nan"; for the text of an error."""
        return ""

    def _normalized(self, weights: Tensor) -> NormalizedWeights:
        highest = weights.detach().max()
        if bool(highest.isnan()):
            raise ValueError(f"{type(self).__name__}: a log-weight is NaN{self._culprits('nan')}")
        if bool(highest == torch.inf):
            count = int((weights == torch.inf).sum())
            raise ValueError(
                f"{type(self).__name__}: {count} of {len(weights)} log-weights are +inf"
                f"{self._culprits('infinite')}: the model's density must be finite, and the guide's not 0, at"
                " what the guide draws"
            )
        results = normalize_weights(weights.to(device="cpu", dtype=torch.float64))
        return NormalizedWeights(*(result.to(weights) for result in results))

    def get_log_normalizer(self) -> Tensor | None:
        """Estimate of the log-evidence: the log of the mean weight, a scalar.

        The mean weight is unbiased for the evidence. -inf when no sample is possible. Without samples, a
        warning and None.

        Raises:
            ValueError: a log-weight is +inf or NaN.
        """
        weights = self._weights_or_warning("no estimate of the normalizer")
        if weights is None:
            return None
        return self._normalized(weights).log_evidence

    def get_normalized_weights(self, log_scale: bool = False) -> Tensor | None:
        """The weights divided by their sum, shape (n,); or their logs. Without samples, a warning and None.

        Raises:
            ValueError: no sample is possible under the model (all log-weights are -inf); a log-weight is +inf
                or NaN. The text names the sites to blame.
        """
        weights = self._weights_or_warning("there is nothing to normalize")
        if weights is None:
            return None
        normalized = self._normalized(weights)
        self._require_possible(weights)
        return normalized.log_weights if log_scale else normalized.log_weights.exp()

    def _require_possible(self, weights: Tensor) -> None:
        if bool((weights == -torch.inf).all()):
            raise ValueError(
                f"{type(self).__name__}: all {len(weights)} log-weights are -inf"
                f"{self._culprits('impossible')}: the data are impossible under the model at"
                " all that the guide draws"
            )

    def get_ESS(self) -> Tensor | int:
        """Effective sample size of Kong (1992): 1 / sum of squared normalised weights, between 1 and n.

        0 when no sample is possible. Without samples, a warning and 0.

        Raises:
            ValueError: a log-weight is +inf or NaN.
        """
        weights = self._weights_or_warning("the effective sample size is zero")
        if weights is None:
            return 0
        return self._normalized(weights).ess

    def psis(self) -> SmoothedWeights:
        """Pareto-smoothed normalised log-weights, shape (n,), and the shape k of their tail.

        k above 0.7 says that the guide misses too much of the posterior for the estimates to be trusted
        (Vehtari et al. 2024). See `sumprod.ops.stats.psis` for the edge cases of k.

        Raises:
            ValueError: there are no samples; no sample is possible; a log-weight is +inf or NaN.
        """
        weights = self._weight_vector()
        if weights is None:
            raise ValueError(f"{type(self).__name__} has no log-weights: call run() first")
        self._normalized(weights)
        self._require_possible(weights)
        return psis(weights)
