"""torch's distributions with the shape operations of programs, and what wraps them."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch.distributions.kl import kl_divergence, register_kl

from sumprod.distributions.distribution import Distribution
from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.util import broadcast_shape, scale_and_mask


class TorchDistributionMixin(Distribution):
    """Sampling by call and shape operations, for classes that are also torch distributions."""

    batch_shape: torch.Size
    event_shape: torch.Size

    def __call__(self, sample_shape: Any = torch.Size()) -> Any:
        """A draw of shape sample_shape + batch_shape + event_shape, reparameterised if possible."""
        if self.has_rsample:
            return self.rsample(sample_shape)
        return self.sample(sample_shape)

    @property
    def event_dim(self) -> int:
        """Number of rightmost dims of one value."""
        return len(self.event_shape)

    def shape(self, sample_shape: Any = torch.Size()) -> torch.Size:
        """The shape of a draw."""
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape

    def expand_by(self, sample_shape: Any) -> Any:
        """The distribution with `sample_shape` put before its batch shape."""
        return self.expand(torch.Size(sample_shape) + self.batch_shape)

    def reshape(self, sample_shape: Any = None, extra_event_dims: Any = None) -> Any:
        """Removed: use `expand_by` and `to_event`."""
        raise NotImplementedError(
            ".reshape(sample_shape=..., extra_event_dims=n) was renamed: use .expand_by(...).to_event(n)"
        )

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Make the rightmost batch dims part of the event.

        Args:
            reinterpreted_batch_ndims: how many; None: all; negative: turn so many back.

        Raises:
            ValueError: more than there are.
        """
        if reinterpreted_batch_ndims is None:
            reinterpreted_batch_ndims = len(self.batch_shape)
        base: Any = self
        while isinstance(base, Independent):
            reinterpreted_batch_ndims += base.reinterpreted_batch_ndims
            base = base.base_dist
        if reinterpreted_batch_ndims == 0:
            return base
        if reinterpreted_batch_ndims < 0:
            raise ValueError(
                f"Cannot remove {-reinterpreted_batch_ndims} more event dims than .to_event() has added to"
                f" {type(base).__name__}"
            )
        return Independent(base, reinterpreted_batch_ndims)

    def independent(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Deprecated name of `to_event`."""
        warnings.warn("independent is deprecated; use to_event instead", DeprecationWarning, stacklevel=2)
        return self.to_event(reinterpreted_batch_ndims)

    def mask(self, mask: Any) -> Any:
        """The distribution whose density counts only where the mask holds."""
        return MaskedDistribution(self, mask)


class TorchDistribution(torch.distributions.Distribution, TorchDistributionMixin):
    """Base class of our own distributions with batch and event shapes."""


class Independent(torch.distributions.Independent, TorchDistributionMixin):
    """A distribution some of whose batch dims count as event dims."""

    def score_parts(self, x: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """The base distribution's parts, summed over the event dims."""
        return Distribution.score_parts(self, x, *args, **kwargs)

    def conjugate_update(self, other: Any) -> Any:
        """Update the base distributions."""
        if not isinstance(other, Independent):
            raise NotImplementedError("Independent is updated by Independent only")
        n = self.reinterpreted_batch_ndims
        updated, log_normalizer = self.base_dist.conjugate_update(other.to_event(-n))
        return updated.to_event(n), log_normalizer.to_event(n)


class ExpandedDistribution(TorchDistribution):
    """A distribution repeated along batch dims, for families that cannot expand themselves."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, batch_shape: Any = torch.Size()) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)
        self.expand(batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Expand further, in place."""
        broadcast_shape(self._batch_shape, batch_shape)
        self._batch_shape = torch.Size(batch_shape)
        return self


class MaskedDistribution(TorchDistribution):
    """A distribution whose density is 0 where a mask is False."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, mask: Any) -> None:
        if isinstance(mask, bool):
            self._mask: Any = mask
        elif isinstance(mask, torch.Tensor) and mask.dtype in (torch.bool, torch.uint8):
            mask = mask.bool()
            batch_shape = broadcast_shape(mask.shape, base_dist.batch_shape)
            if mask.shape != batch_shape:
                mask = mask.expand(batch_shape)
            if base_dist.batch_shape != batch_shape:
                base_dist = base_dist.expand(batch_shape)
            self._mask = mask
        else:
            raise ValueError(f"Expected mask to be a bool or a BoolTensor, got {mask!r}")
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """As the base distribution."""
        return bool(self.base_dist.has_rsample)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """As the base distribution."""
        return bool(self.base_dist.has_enumerate_support)

    @property
    def support(self) -> Any:
        """As the base distribution."""
        return self.base_dist.support

    @property
    def mean(self) -> torch.Tensor:
        """As the base distribution."""
        return self.base_dist.mean  # type: ignore[no-any-return]

    @property
    def variance(self) -> torch.Tensor:
        """As the base distribution."""
        return self.base_dist.variance  # type: ignore[no-any-return]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Expand base and mask."""
        mask = self._mask if isinstance(self._mask, bool) else self._mask.expand(torch.Size(batch_shape))
        return MaskedDistribution(self.base_dist.expand(batch_shape), mask)

    def sample(self, sample_shape: Any = torch.Size()) -> Any:
        """A draw of the base distribution."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Any:
        """A reparameterised draw of the base distribution."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The masked log-density."""
        if self._mask is False:
            shape = broadcast_shape(self.base_dist.batch_shape, value.shape[: value.dim() - self.event_dim])
            return torch.zeros((), device=value.device).expand(shape)
        log_prob = self.base_dist.log_prob(value, *args, **kwargs)
        return log_prob if self._mask is True else scale_and_mask(log_prob, mask=self._mask)

    def score_parts(self, x: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """The base distribution's parts, masked."""
        if self._mask is False:
            return Distribution.score_parts(self, x, *args, **kwargs)
        parts: ScoreParts = self.base_dist.score_parts(x, *args, **kwargs)
        return parts if self._mask is True else parts.scale_and_mask(mask=self._mask)

    def enumerate_support(self, expand: bool = True) -> Any:
        """As the base distribution."""
        return self.base_dist.enumerate_support(expand=expand)


@register_kl(MaskedDistribution, MaskedDistribution)
def _kl_masked_masked(p: Any, q: Any) -> Any:
    if p._mask is False or q._mask is False:
        return 0.0
    kl = kl_divergence(p.base_dist, q.base_dist)
    mask = p._mask if q._mask is True else q._mask if p._mask is True else p._mask & q._mask
    return kl if mask is True else scale_and_mask(kl, mask=mask)


