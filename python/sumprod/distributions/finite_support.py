"""`FiniteSupport`: any distribution over finitely many values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, constraints

from sumprod import ops
from sumprod.distributions._hmm_parameters import broadcast, normalized
from sumprod.distributions.torch_distribution import TorchDistribution

__all__ = ["FiniteSupport"]


class _OneOf(constraints.Constraint):
    """The value equals one of finitely many."""

    is_discrete = True

    def __init__(self, values: Tensor, event_dim: int) -> None:
        self.values = values
        self.event_dim = event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return _matches(value, self.values, self.event_dim).any(-1)

    def __repr__(self) -> str:
        return f"OneOf({list(self.values.shape)} values)"


def _matches(value: Tensor, values: Tensor, event_dim: int) -> Tensor:
    """[*, n]: which of the values [*, n, *event] a value [*, *event] is."""
    equal = value.unsqueeze(-1 - event_dim) == values
    return equal.flatten(equal.dim() - event_dim).all(-1) if event_dim else equal


class FiniteSupport(TorchDistribution):
    """Values with weights: `values[i]` has probability softmax(logits)[i].

    A posterior over the support of a family need not be a member of the family: that of a Binomial variable
    is no Binomial. This class holds any such posterior.

    Args:
        values: [n, *event], shared by the batch, or [*B, n, *event]; of any dtype. Equal values add their
            weights.
        logits: [*B, n] log weights; normalised here. -inf is weight zero.
        event_dim: number of event dims of one value.
        validate_args: whether to check parameters and values.

    Raises:
        TypeError: values or logits are not tensors of a fitting dtype.
        ValueError: shapes do not fit together; names them.

    Example:
        >>> import torch
        >>> from sumprod.distributions import FiniteSupport
        >>> dice = FiniteSupport(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 0.25, 0.25]).log())
        >>> dice.mean.item(), dice.log_prob(torch.tensor(6.0)).exp().item()
        (2.5, 0.25)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real}
    has_enumerate_support = True

    def __init__(
        self, values: Tensor, logits: Tensor, event_dim: int = 0, validate_args: bool | None = None
    ) -> None:
        if not isinstance(values, Tensor):
            raise TypeError(f"FiniteSupport: values must be a torch.Tensor, got {type(values).__name__}")
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"FiniteSupport: logits must be a floating-point tensor, got {got}")
        own = values.dim() - 1 - event_dim  # batch dims of the values
        fits = own >= 0 and logits.dim() >= 1 and 0 < logits.shape[-1] == values.shape[own]
        batch_shape = broadcast(logits.shape[:-1], values.shape[:own]) if fits else None
        if batch_shape is None:
            raise ValueError(
                f"FiniteSupport: values must have shape [n, *event] or [*B, n, *event] and logits [*B, n], "
                f"with {event_dim} event dims (event_dim) and n >= 1; got values {list(values.shape)}, "
                f"logits {list(logits.shape)}"
            )
        self.values = values
        self.logits = normalized(logits.expand(*batch_shape, logits.shape[-1]))
        super().__init__(batch_shape, values.shape[own + 1 :], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """The values."""
        return _OneOf(self.values, len(self.event_shape))

    @property
    def probs(self) -> Tensor:
        """Probabilities [*B, n]."""
        return self.logits.exp()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FiniteSupport:
        """The same parameters, not copied, under a larger batch shape."""
        new: FiniteSupport = self._get_checked_instance(FiniteSupport, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.values = self.values
        new.logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        super(FiniteSupport, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _full_values(self) -> Tensor:
        """[*B, n, *event]."""
        return self.values.expand(self.logits.shape + self.event_shape)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of shape sample_shape + batch_shape + event_shape."""
        sample_shape = torch.Size(sample_shape)
        with torch.no_grad():
            index = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            if self.values.dim() == 1 + len(self.event_shape):
                return self.values[index]
            dim = index.dim()
            index = index.reshape(*index.shape, 1, *(1 for _ in self.event_shape))
            index = index.expand(*index.shape[: dim + 1], *self.event_shape)
            values = self._full_values().expand(sample_shape + self.logits.shape + self.event_shape)
            return values.gather(dim, index).squeeze(dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the total probability of the entries that equal a value; -inf where none does."""
        if self._validate_args:
            self._validate_sample(value)
        matches = _matches(value, self.values, len(self.event_shape))
        matches, logits = torch.broadcast_tensors(matches, self.logits)
        return ops.logsumexp(logits.masked_fill(~matches, -torch.inf), -1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The values on a new leftmost dim, of size 1 on batch dims unless `expand` or they differ."""
        own = self.values.dim() - 1 - len(self.event_shape)
        moved = self.values.movedim(own, 0)
        missing = len(self.batch_shape) - own
        moved = moved.reshape(moved.shape[:1] + (1,) * missing + moved.shape[1:])
        return moved.expand(moved.shape[:1] + self.batch_shape + self.event_shape) if expand else moved

    def entropy(self) -> Tensor:
        """Entropy [*B] of the law of the value."""
        log_prob = self.log_prob(self.enumerate_support(expand=False)).movedim(0, -1)
        return -torch.where(self.logits == -torch.inf, 0.0, self.probs * log_prob).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The entry of largest weight, the first of equals."""
        index = self.logits.argmax(-1).reshape(*self.batch_shape, 1, *(1 for _ in self.event_shape))
        dim = len(self.batch_shape)
        return (
            self._full_values()
            .gather(dim, index.expand(*self.batch_shape, 1, *self.event_shape))
            .squeeze(dim)
        )

    def _expectation(self, values: Tensor) -> Tensor:
        weights = self.probs.reshape(*self.logits.shape, *(1 for _ in self.event_shape))
        return (weights * values).sum(len(self.batch_shape))

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the values."""
        return self._expectation(self._full_values().to(self.logits.dtype))

    @property
    def variance(self) -> Tensor:
        """Weighted variance of the values, about their mean."""
        distance = self._full_values().to(self.logits.dtype) - self.mean.unsqueeze(len(self.batch_shape))
        return self._expectation(distance.pow(2))
