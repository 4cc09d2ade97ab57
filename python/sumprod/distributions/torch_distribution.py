"""Shape operations of programs for torch's distributions, and the wrappers that they make.

Shapes: a draw has shape sample_shape + batch_shape + event_shape and a log-density has the same without
event_shape. Batch dims are counted from the right.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions._masking import filled, zero_log_prob
from sumprod.distributions._shapes import expand_draws, shapes_of_arguments, stretched_dims
from sumprod.distributions._switch import ValidateArgs
from sumprod.distributions.distribution import Distribution
from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.util import broadcast_shape, is_identically_zero, scale_and_mask, sum_rightmost

__all__ = [
    "ExpandedDistribution",
    "Independent",
    "MaskedDistribution",
    "TorchDistribution",
    "TorchDistributionMixin",
]

_NO_DIMS = torch.Size()


class TorchDistributionMixin(Distribution):
    """Sampling by call and shape operations, for classes that are also torch distributions.

    Example:
        >>> from sumprod.distributions import Normal
        >>> d = Normal(torch.zeros(3, 2), 1.0)
        >>> d.to_event(1).expand_by([5]).shape()
        torch.Size([5, 3, 2])
        >>> d.to_event(1).batch_shape, d.to_event(1).event_shape
        (torch.Size([3]), torch.Size([2]))
    """

    batch_shape: Any
    event_shape: Any

    def __call__(self, sample_shape: Any = _NO_DIMS) -> Any:
        """A draw of shape sample_shape + batch_shape + event_shape, reparameterised where possible."""
        if self.has_rsample:
            return self.rsample(sample_shape)
        return self.sample(sample_shape)

    @property
    def event_dim(self) -> int:
        """Number of dims of one value."""
        return len(self.event_shape)

    def shape(self, sample_shape: Any = _NO_DIMS) -> torch.Size:
        """The shape of a draw: sample_shape + batch_shape + event_shape."""
        shape: torch.Size = self.batch_shape + self.event_shape
        return torch.Size((*sample_shape, *shape)) if sample_shape else shape

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[torch.Size, torch.Size]:
        """`(batch_shape, event_shape)` from the shapes of the arguments, without any tensor.
        Raises NotImplementedError when the family's constraints do not tell.

        Example:
            >>> from sumprod.distributions import Dirichlet
            >>> Dirichlet.infer_shapes(concentration=(5, 3))
            (torch.Size([5]), torch.Size([3]))
        """
        return shapes_of_arguments(cls, arg_shapes)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied.

        This is for families without an `expand` of their own.
        """
        return ExpandedDistribution(self, batch_shape)

    def expand_by(self, sample_shape: Any) -> Any:
        """The distribution with `sample_shape` put to the left of its batch shape."""
        return self.expand(torch.Size((*sample_shape, *self.batch_shape)))

    def reshape(self, sample_shape: Any = None, extra_event_dims: Any = None) -> Any:
        """Removed. Use `expand_by` and `to_event`."""
        raise NotImplementedError(
            ".reshape(sample_shape=s, extra_event_dims=n) was renamed and split into "
            ".expand_by(sample_shape=s).to_event(reinterpreted_batch_ndims=n)"
        )

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """The distribution whose rightmost batch dims count as event dims.

        Args:
            reinterpreted_batch_ndims: how many dims; None means all; negative turns so many back.

        Raises:
            ValueError: there are fewer batch dims than that, or fewer dims to turn back.
        """
        count = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        base: Any = self
        while isinstance(base, Independent):
            count += base.reinterpreted_batch_ndims
            base = base.base_dist
        if count == 0:
            return base
        if count < 0:
            raise ValueError(
                f"Cannot remove event dimensions from {type(self)}: .to_event({reinterpreted_batch_ndims}) "
                f"asks for {-count} more than an earlier .to_event() has added"
            )
        return Independent(base, count)

    def independent(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Deprecated name of `to_event`."""
        warnings.warn("independent is deprecated; use to_event instead", DeprecationWarning, stacklevel=2)
        return self.to_event(reinterpreted_batch_ndims)

    def mask(self, mask: Any) -> Any:
        """The distribution whose log-density is 0 where `mask` is False.

        Args:
            mask: a bool, or a bool tensor that broadcasts with the batch shape.
        """
        return MaskedDistribution(self, mask)


class TorchDistribution(torch.distributions.Distribution, TorchDistributionMixin):
    """Base class of distributions with batch shape and event shape, written for this library."""

    _validate_args: Any = ValidateArgs()

    # torch's own raises NotImplementedError.
    expand = TorchDistributionMixin.expand


class _DrawsOfBase:
    """Whether draws are reparameterised is up to the base distribution."""

    base_dist: Any

    @property
    def has_rsample(self) -> Any:
        """That of the base distribution; setting it sets that one."""
        return self.base_dist.has_rsample

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        self.base_dist.has_rsample_(value)


class _Wrapper(_DrawsOfBase, TorchDistribution):
    """A distribution that takes support and more from another one."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    @property
    def has_enumerate_support(self) -> Any:  # type: ignore[override]
        """That of the base distribution."""
        return self.base_dist.has_enumerate_support

    @constraints.dependent_property
    def support(self) -> Any:
        """That of the base distribution."""
        return self.base_dist.support


class Independent(_DrawsOfBase, torch.distributions.Independent, TorchDistributionMixin):  # type: ignore[type-arg]
    """A distribution some of whose rightmost batch dims count as event dims.

    Args:
        base_distribution: the distribution.
        reinterpreted_batch_ndims: how many dims.

    Raises ValueError when there are fewer batch dims than that.
    """

    _validate_args: Any = ValidateArgs()

    def __init__(
        self, base_distribution: Any, reinterpreted_batch_ndims: int, validate_args: bool | None = None
    ) -> None:
        batch_shape = base_distribution.batch_shape
        kept = len(batch_shape) - reinterpreted_batch_ndims
        if kept < 0:
            raise ValueError(
                "Expected reinterpreted_batch_ndims <= len(base_distribution.batch_shape), "
                f"actual {reinterpreted_batch_ndims} vs {len(batch_shape)} ({base_distribution!r} has batch "
                f"shape {tuple(batch_shape)})"
            )
        self.base_dist = base_distribution
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims
        self._batch_shape = batch_shape[:kept]
        self._event_shape = batch_shape[kept:] + base_distribution.event_shape
        if validate_args is not None:
            self._validate_args = validate_args

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        new: Any = self._get_checked_instance(Independent, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        count = self.reinterpreted_batch_ndims
        new.base_dist = self.base_dist.expand(batch_shape + self._event_shape[:count])
        new.reinterpreted_batch_ndims = count
        new._batch_shape = batch_shape
        new._event_shape = self._event_shape
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Any) -> Any:
        """The base distribution's log-density, summed over the reinterpreted dims."""
        return sum_rightmost(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)

    def conjugate_update(self, other: Any) -> Any:
        """Update dim by dim; the log normaliser is summed over the reinterpreted dims."""
        count = self.reinterpreted_batch_ndims
        if not isinstance(other, torch.distributions.Independent) or other.reinterpreted_batch_ndims != count:
            return super().conjugate_update(other)
        updated, log_normalizer = self.base_dist.conjugate_update(other.base_dist)
        return updated.to_event(count), sum_rightmost(log_normalizer, count)


class MaskedDistribution(_Wrapper):
    """A distribution whose log-density is 0 where a mask is False; draws are those of the base.

    Where the mask is a tensor, values under False are not looked at: they may be NaN (missing data) or
    outside the support, and neither the density nor a gradient sees them.

    Args:
        base_dist: the distribution.
        mask: a bool, or a bool tensor that broadcasts with the batch shape of `base_dist`.

    Raises:
        ValueError: `mask` is neither, or does not broadcast.

    Example:
        >>> from sumprod.distributions import Normal
        >>> seen = torch.tensor([True, False])
        >>> Normal(0.0, 1.0).mask(seen).log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-0.9189,  0.0000])
    """

    def __init__(self, base_dist: Any, mask: Any) -> None:
        if isinstance(mask, Tensor) and mask.dtype in (torch.bool, torch.uint8):
            batch_shape = base_dist.batch_shape
            if mask.shape != batch_shape:
                batch_shape = torch.Size(broadcast_shape(mask.shape, batch_shape))
                mask = mask.expand(batch_shape)
                if base_dist.batch_shape != batch_shape:
                    base_dist = base_dist.expand(batch_shape)
            mask = mask.bool()
        elif not isinstance(mask, bool):
            kind = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else repr(mask)
            raise ValueError(f"Expected mask to be True, False or a tensor of torch.bool, got {kind}")
        self._mask = mask
        self.base_dist = base_dist
        self._batch_shape = base_dist.batch_shape
        self._event_shape = base_dist.event_shape

    def __repr__(self) -> str:
        mask = tuple(self._mask.shape) if isinstance(self._mask, Tensor) else self._mask
        return f"MaskedDistribution({self.base_dist!r}, mask: {mask})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Expand base and mask."""
        new: Any = self._get_checked_instance(MaskedDistribution, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new._mask = self._mask if isinstance(self._mask, bool) else self._mask.expand(batch_shape)
        new.base_dist = self.base_dist.expand(batch_shape)
        new._batch_shape = batch_shape
        new._event_shape = self._event_shape
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = _NO_DIMS) -> Any:
        """A draw of the base distribution."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = _NO_DIMS) -> Any:
        """A draw of the base distribution that carries gradients."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Any) -> Any:
        """The base distribution's log-density where the mask is True, 0 elsewhere."""
        if self._mask is True:
            return self.base_dist.log_prob(value)
        if self._mask is False:
            return self._nothing(value)
        return scale_and_mask(self.base_dist.log_prob(self._filled(value)), mask=self._mask)

    def score_parts(self, value: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """The base distribution's parts, masked; parts that are Python zeros stay so."""
        if self._mask is False:
            log_prob = self._nothing(value)
            return ScoreParts(log_prob, 0, log_prob if self.has_rsample else 0)
        if self._mask is True:
            parts: ScoreParts = self.base_dist.score_parts(value)
            return parts
        # A draw counts for the score function also where the mask is False, so it stays as it is.
        if isinstance(value, Tensor) and value.is_floating_point():
            value = self._filled(value, ~value.isnan())
        masked: ScoreParts = self.base_dist.score_parts(value).scale_and_mask(mask=self._mask)
        return masked

    def _filled(self, value: Any, present: Any = None) -> Any:
        return filled(value, self._mask, self.support, self._event_shape, present)

    def _nothing(self, value: Tensor) -> Tensor:
        return zero_log_prob(value, self._batch_shape, self._event_shape)

    def enumerate_support(self, expand: bool = True) -> Any:
        """That of the base distribution."""
        return self.base_dist.enumerate_support(expand=expand)

    @property
    def mean(self) -> Any:
        """That of the base distribution."""
        return self.base_dist.mean

    @property
    def variance(self) -> Any:
        """That of the base distribution."""
        return self.base_dist.variance

    def conjugate_update(self, other: Any) -> Any:
        """Update where the mask is True; elsewhere `other` has no influence."""
        updated, log_normalizer = self.base_dist.conjugate_update(other)
        return updated.mask(self._mask), scale_and_mask(log_normalizer, mask=self._mask)


class ExpandedDistribution(_Wrapper):
    """A distribution repeated along batch dims, for families without an `expand` of their own.

    Args:
        base_dist: the distribution.
        batch_shape: the new batch shape; dims of size 1 of the old one may grow.

    Raises ValueError when the old batch shape does not broadcast to the new one.
    """

    def __init__(self, base_dist: Any, batch_shape: Any = _NO_DIMS) -> None:
        if isinstance(base_dist, ExpandedDistribution):
            stretched_dims(base_dist.batch_shape, batch_shape)
            base_dist = base_dist.base_dist
        self._stretched = stretched_dims(base_dist.batch_shape, batch_shape)
        self.base_dist = base_dist
        self._batch_shape = torch.Size(batch_shape)
        self._event_shape = base_dist.event_shape

    def __repr__(self) -> str:
        return f"ExpandedDistribution({self.base_dist!r}, batch_shape: {tuple(self._batch_shape)})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat further; the result refers to the same base distribution."""
        return ExpandedDistribution(self, batch_shape)

    def sample(self, sample_shape: Any = _NO_DIMS) -> Any:
        """A draw, independent in every repetition."""
        base = self.base_dist
        return expand_draws(base.sample, sample_shape, base, self._batch_shape, self._stretched)

    def rsample(self, sample_shape: Any = _NO_DIMS) -> Any:
        """A draw that carries gradients, independent in every repetition."""
        base = self.base_dist
        return expand_draws(base.rsample, sample_shape, base, self._batch_shape, self._stretched)

    def _repeated(self, term: Any) -> Any:
        number = not isinstance(term, Tensor)
        return term if number else term.expand(broadcast_shape(self._batch_shape, term.shape))

    def log_prob(self, value: Any) -> Any:
        """The base distribution's log-density, of the larger batch shape."""
        return self._repeated(self.base_dist.log_prob(value))

    def score_parts(self, value: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """The base distribution's parts, of the larger batch shape."""
        parts = self.base_dist.score_parts(value)
        if parts.entropy_term is parts.log_prob and is_identically_zero(parts.score_function):
            log_prob = self._repeated(parts.log_prob)
            return ScoreParts(log_prob, parts.score_function, log_prob)
        return ScoreParts(*map(self._repeated, parts))

    def enumerate_support(self, expand: bool = True) -> Any:
        """That of the base distribution, with dims of size 1 in place of the new ones unless expanded."""
        values = self.base_dist.enumerate_support(expand=False)
        ones = (1,) * len(self._batch_shape)
        values = values.reshape(values.shape[:1] + ones + self._event_shape)
        return values.expand(values.shape[:1] + self._batch_shape + self._event_shape) if expand else values

    @property
    def mean(self) -> Any:
        """That of the base distribution, repeated."""
        return self.base_dist.mean.expand(self._batch_shape + self._event_shape)

    @property
    def variance(self) -> Any:
        """That of the base distribution, repeated."""
        return self.base_dist.variance.expand(self._batch_shape + self._event_shape)

    def conjugate_update(self, other: Any) -> Any:
        """Update the base; results have the larger batch shape."""
        updated, log_normalizer = self.base_dist.conjugate_update(other)
        shape = broadcast_shape(self._batch_shape, updated.batch_shape)
        return updated.expand(shape), log_normalizer.expand(broadcast_shape(shape, log_normalizer.shape))
