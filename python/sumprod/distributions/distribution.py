"""`Distribution`: what an inference algorithm asks of any distribution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sumprod.distributions.score_parts import ScoreParts

__all__ = ["Distribution"]


class Distribution:
    """Base class of everything that may stand at a `sample` site.

    A subclass gives `sample`, `log_prob` and, where draws can be differentiated with respect to the
    parameters, `rsample` together with `has_rsample = True`.
    """

    has_rsample: Any = False
    has_enumerate_support: Any = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw: `rsample` where the distribution has one, else `sample`."""
        if self.has_rsample:
            return self.rsample(*args, **kwargs)
        return self.sample(*args, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw without gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not implement sample")

    def rsample(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw that carries gradients to the parameters."""
        raise NotImplementedError(f"{type(self).__name__} does not implement rsample")

    def log_prob(self, value: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Log-density or log-mass at `value`, of shape sample_shape + batch_shape."""
        raise NotImplementedError(f"{type(self).__name__} does not implement log_prob")

    def score_parts(self, value: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """`log_prob(value)` and the terms that a Monte Carlo gradient estimator needs with it.

        The default serves two cases: draws that carry gradients need no score function, other draws need
        the whole of it. A partly reparameterised distribution overrides this.

        Returns:
            `(log_prob, 0, log_prob)` when `has_rsample`, else `(log_prob, log_prob, 0)`. The zeros are
            Python numbers, so that later terms can be skipped without looking at a tensor.
        """
        log_prob = self.log_prob(value, *args, **kwargs)
        if self.has_rsample:
            return ScoreParts(log_prob, 0, log_prob)
        return ScoreParts(log_prob, log_prob, 0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values of a discrete distribution, along a new leftmost dim.

        Args:
            expand: whether batch dims keep their size (True) or have size 1 (False).

        Raises:
            NotImplementedError: the support is not finite, or its size differs within the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement enumerate_support")

    def conjugate_update(self, other: Any) -> Any:
        """Multiply by another distribution of the same family: `(updated, log_normalizer)`.

        They satisfy `self.log_prob(x) + other.log_prob(x) == updated.log_prob(x) + log_normalizer`.

        Raises:
            NotImplementedError: the pair has no closed form.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not support conjugate_update with {type(other).__name__}"
        )

    def has_rsample_(self, value: bool) -> Any:
        """Set `has_rsample` on this object, in place, and return the object.

        `has_rsample_(False)` makes draws detached; for algorithms that need a score function.

        Raises:
            ValueError: `value` is not a bool.
        """
        if not isinstance(value, bool):
            raise ValueError(f"Expected value in [False,True], actual {value!r}")
        self.has_rsample = value
        return self
