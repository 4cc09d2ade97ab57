"""Bernoulli, Categorical and Poisson."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs, lazy_property, logits_to_probs

from sumprod.distributions._checks import eager, is_nonnegative, is_positive, is_real, is_within
from sumprod.distributions._family import NO_DIMS, PUBLIC, Family, LeanFamily, alone, expanded
from sumprod.distributions._shapes import stretched_dims
from sumprod.distributions._support import is_whole_support, mark_as_support
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from sumprod.settings import state

__all__ = ["Bernoulli", "Categorical", "Poisson"]

_NO_REDUCTION = 0


def _one_of(probs: Any, logits: Any) -> bool:
    """Whether `probs` was given; exactly one must be."""
    if (probs is None) == (logits is None):
        raise ValueError("Either `probs` or `logits` must be specified, but not both.")
    return probs is not None


class Bernoulli(LeanFamily, torch.distributions.Bernoulli, TorchDistributionMixin):
    """Distribution on {0, 1} with P(1) = probs, or log odds `logits`."""

    __module__ = PUBLIC

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        if _one_of(probs, logits):
            self.probs = self._param = parameter = alone(probs)
            if self._start(parameter.shape, validate_args) and not (eager() and is_within(parameter, 0, 1)):
                self._check_closely()
        else:
            self.logits = self._param = parameter = alone(logits)
            if self._start(parameter.shape, validate_args) and not (eager() and is_real(parameter)):
                self._check_closely()

    @lazy_property
    def logits(self) -> Tensor:
        """Log odds, finite also where a probability is 0 or 1."""
        # logit's own eps would make second derivatives NaN at 0 and 1.
        return clamp_probs(self.probs).logit()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        new: Any = self._blank(Bernoulli, _instance)
        members = self.__dict__
        for name in ("probs", "logits"):
            if name in members:
                new.__dict__[name] = parameter = expanded(members[name], batch_shape)
                if members[name] is self._param:
                    new._param = parameter
        return _set_state(self, new, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """Draws 0.0 and 1.0 of the parameter's dtype."""
        probs = self.probs.detach()
        return torch.bernoulli(probs.expand(self._draw_shape(sample_shape)) if sample_shape else probs)

    def log_prob(self, value: Any) -> Any:
        """Log-probability, differentiable in the parameter and in `value`."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        if not isinstance(value, Tensor):
            return super().log_prob(value)  # type: ignore[no-untyped-call]
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        return torch.binary_cross_entropy_with_logits(logits, value, None, None, _NO_REDUCTION).neg()


class Categorical(Family, torch.distributions.Categorical, TorchDistributionMixin):
    """Distribution on {0, ..., K-1}, by `probs` or `logits` of shape batch_shape + (K,), normalised here.

    With `probs`, torch clamps probabilities away from 0 and 1, so that an impossible value gets a finite
    log-probability (-15.9 in float32). Under the setting `exact_zeros` it gets -inf, with zero gradient.

    Example:
        >>> from sumprod import settings
        >>> with settings.context(exact_zeros=True):
        ...     Categorical(torch.tensor([0.0, 1.0])).log_prob(torch.tensor(0))
        tensor(-inf)
    """

    __module__ = PUBLIC
    _exact_zeros = False
    _weights: Tensor  # of any batch shape that expands to that of the distribution

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        given = probs if _one_of(probs, logits) else logits
        if given.dim() < 1:
            name = "logits" if probs is None else "probs"
            raise ValueError(f"`{name}` parameter must be at least one-dimensional.")
        self._num_events = given.shape[-1]
        self._batch_shape, self._event_shape = given.shape[:-1], NO_DIMS
        if validate_args is not None:
            self._validate_args = validate_args
        check = self._validate_args
        if probs is None:
            given = given if given.is_floating_point() else given.to(torch.get_default_dtype())
            self.logits = torch.log_softmax(given, -1)
            check = check and not (eager() and is_real(self.logits))
        else:
            # Normalised when first used: enumeration does so for many sites at once.
            self._weights = given
            if state.exact_zeros:
                self._exact_zeros = True
            check = check and not (eager() and _are_weights(given))
        if check:
            if probs is not None:
                self.probs  # noqa: B018, torch checks what has been computed
            torch.distributions.Distribution.__init__(
                self, self._batch_shape, NO_DIMS, validate_args=validate_args
            )

    @property
    def _param(self) -> Tensor:  # type: ignore[override]
        """Normalised probabilities or logits, whichever were given."""
        return self.probs if "_weights" in self.__dict__ else self.logits

    @lazy_property
    def probs(self) -> Tensor:
        """Normalised probabilities."""
        if "_weights" in self.__dict__:
            return self._full(self._quotients())
        probs: Tensor = logits_to_probs(self.logits)
        return probs

    def __repr__(self) -> str:
        self._param  # noqa: B018, torch shows what has been computed
        return super().__repr__()

    @lazy_property
    def logits(self) -> Tensor:
        """Normalised log-probabilities."""
        probs = self._quotients()
        if not self._exact_zeros:
            return self._full(clamp_probs(probs).log())
        possible = probs > 0
        # The inner choice keeps the infinite slope of log at 0 out of the gradient.
        return self._full(torch.where(possible, torch.where(possible, probs, 1.0).log(), -torch.inf))

    def _quotients(self) -> Tensor:
        """Probabilities, before expansion."""
        return self._weights / self._weights.sum(-1, keepdim=True)

    def _full(self, parameter: Tensor) -> Tensor:
        """A parameter under the whole batch shape."""
        shape = (*self._batch_shape, self._num_events)
        return parameter if parameter.shape == shape else parameter.expand(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        new: Any = self._blank(Categorical, _instance)
        new._num_events = self._num_events
        if self._exact_zeros:
            new._exact_zeros = True
        batch_shape = torch.Size(batch_shape)
        if "_weights" in self.__dict__:
            stretched_dims(self._batch_shape, batch_shape)  # checks
            new._weights = self._weights
        else:
            new.logits = self.logits.expand((*batch_shape, self._num_events))
        return _set_state(self, new, batch_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0, ..., K-1 along a new leftmost dim.

        Unexpanded, the result is marked, and `log_prob` of the marked tensor only moves a dim of the logits.
        """
        values = self._support_along(-1 - len(self._batch_shape))
        return values.expand((-1, *self._batch_shape)) if expand else values

    def _support_along(self, dim: int) -> Tensor:
        """0, ..., K-1 along the negative dim, which is the leftmost; marked."""
        members = self.__dict__
        given: Tensor = members["_weights"] if "_weights" in members else members["logits"]
        values = torch.arange(self._num_events, device=given.device)
        return mark_as_support(values.view(-1, *(1,) * (-dim - 1)) if dim < -1 else values)

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """Draws of dtype int64."""
        shape = torch.Size(sample_shape)
        probs = self.probs.detach()
        if probs.dim() > 2:
            probs = probs.flatten(0, -2)
        elif probs.dim() == 1 and not shape:
            return torch.multinomial(probs, 1, True).squeeze(0)
        draws = torch.multinomial(probs, shape.numel(), True)
        return (draws.T if probs.dim() == 2 else draws).reshape(shape + self._batch_shape)

    def log_prob(self, value: Any) -> Any:
        """Log-probability of `value`, which holds whole numbers of any dtype."""
        if is_whole_support(value, self._num_events):
            logits = self.logits.movedim(-1, 0)
            missing = value.dim() - logits.dim()
            if missing == 0:
                return logits
            if missing > 0:
                return logits.reshape(logits.shape[:1] + (1,) * missing + logits.shape[1:])
            if self._batch_shape[-value.dim()] == 1:  # the values' dim is among the batch dims
                return self.logits.transpose(-1, -1 - value.dim()).squeeze(-1)
        elif self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        index = value.long().unsqueeze(-1)
        if value.shape != self._batch_shape:
            index, logits = torch.broadcast_tensors(index, logits)
            index = index[..., :1]
        return logits.gather(-1, index).squeeze(-1)


class Poisson(LeanFamily, torch.distributions.Poisson, TorchDistributionMixin):
    """Poisson distribution of counts with mean `rate`."""

    __module__ = PUBLIC
    _parameters = ("rate",)

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        self.rate = rate = alone(rate)
        if self._start(rate.shape, validate_args) and not (eager() and is_nonnegative(rate)):
            self._check_closely()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        return self._expand_as(Poisson, batch_shape, _instance)

    def sample(self, sample_shape: Any = NO_DIMS) -> Any:
        """Counts, of the rate's dtype."""
        rate = self.rate.detach()
        return torch.poisson(rate.expand(self._draw_shape(sample_shape)) if sample_shape else rate)

    def log_prob(self, value: Any) -> Any:
        """Log-probability, differentiable in the rate."""
        if self._validate_args:
            self._validate_sample(value)
        if not isinstance(value, Tensor):
            return super().log_prob(value)  # type: ignore[no-untyped-call]
        rate = self.rate
        if value.dtype != rate.dtype:
            # So that a rate of shape () counts as much for the dtype of the result as any other.
            rate, value = torch.broadcast_tensors(rate, value)
        return torch.xlogy(value, rate) - rate - (value + 1).lgamma()


@functools.cache
def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def _are_weights(given: Tensor) -> bool:
    """Whether these surely become probabilities when divided by their total, by a look at the extremes."""
    if given.numel() == 0:
        return False
    if given.requires_grad:
        given = given.detach()
    least, most = torch.aminmax(given)
    low, high = least.item(), most.item()
    if not (low >= 0 and high * given.shape[-1] <= _largest(given.dtype)):
        return False
    return low > 0 or is_positive(given.sum(-1))


def _set_state(old: Any, new: Any, batch_shape: torch.Size) -> Any:
    """What `expand` keeps besides the parameters."""
    members = old.__dict__
    new._batch_shape = batch_shape
    new._event_shape = NO_DIMS
    new._validate_args = old._validate_args
    if "has_rsample" in members:
        new.has_rsample = members["has_rsample"]
    return new
