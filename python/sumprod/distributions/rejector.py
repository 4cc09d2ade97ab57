"""`Rejector`: a distribution that is drawn by rejection sampling, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.torch_distribution import TorchDistribution

__all__ = ["Rejector"]


class Rejector(TorchDistribution):
    """The law of a proposal's draws that survive a random acceptance test.

    A proposal x is accepted with probability exp(log_prob_accept(x)); `log_scale` is the log of the overall
    acceptance probability. The density is therefore propose(x) exp(log_prob_accept(x) - log_scale).

    Draws carry the gradient of the proposal's reparameterisation; what acceptance adds is left to
    `score_parts` (Naesseth et al. 2017, "Reparameterization gradients through acceptance-rejection sampling
    algorithms").

    Args:
        propose: the proposal distribution.
        log_prob_accept: maps a value of shape sample_shape + batch_shape + event_shape to the log acceptance
            probability of each, at most 0.
        log_scale: log of the overall acceptance probability, broadcastable to the batch shape.
        batch_shape, event_shape: those of the proposal when omitted.

    Example:
        >>> import torch
        >>> from sumprod.distributions import Rejector, Uniform
        >>> half = torch.tensor(0.5).log()
        >>> triangle = Rejector(Uniform(0.0, 1.0), torch.log, half)
        >>> triangle.log_prob(torch.tensor(0.5)).exp().item()
        1.0
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        propose: Any,
        log_prob_accept: Callable[[Tensor], Tensor],
        log_scale: Tensor | float,
        *,
        batch_shape: Sequence[int] | None = None,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        self.propose = propose
        self.log_prob_accept = log_prob_accept
        self.log_scale = log_scale
        batch_shape = propose.batch_shape if batch_shape is None else torch.Size(batch_shape)
        event_shape = propose.event_shape if event_shape is None else torch.Size(event_shape)
        super().__init__(batch_shape, event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the proposal."""
        support: constraints.Constraint = self.propose.support
        return support

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of shape sample_shape + batch_shape + event_shape.

        Proposals are made for all elements until each has accepted one.
        """
        sample_shape = torch.Size(sample_shape)
        value: Tensor = self.propose(sample_shape)
        pending = ~self._accepted(value)
        while bool(pending.any()):
            proposed = self.propose(sample_shape)
            replace = pending & self._accepted(proposed)
            shaped = replace.reshape(*replace.shape, *(1 for _ in self.event_shape))
            value = torch.where(shaped, proposed, value)
            pending = pending & ~replace
        return value

    def _accepted(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            probs = self.log_prob_accept(value.detach()).exp().clamp(max=1.0)
            if bool(probs.isnan().any()):
                raise ValueError("Rejector: log_prob_accept is NaN for a proposed value")
            return torch.bernoulli(probs).bool()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of accepted values."""
        result: Tensor = self.propose.log_prob(value) + (self.log_prob_accept(value) - self.log_scale)
        return result

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The density, and the score function of the acceptance step alone."""
        score: Tensor = self.log_prob_accept(value) - self.log_scale
        log_prob: Tensor = self.propose.log_prob(value) + score
        return ScoreParts(log_prob, score, log_prob)
