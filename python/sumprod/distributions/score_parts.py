"""`ScoreParts`: a log-density together with what a gradient estimator needs."""

from __future__ import annotations

from typing import Any, NamedTuple

from sumprod.distributions.util import scale_and_mask

__all__ = ["ScoreParts"]


class ScoreParts(NamedTuple):
    """The terms that one site gives to a Monte Carlo estimate of a gradient.

    A Python zero stands for a term that is absent; it is never turned into a tensor.
    """

    log_prob: Any
    """log-density of the value, shape sample_shape + batch_shape"""
    score_function: Any
    """what multiplies the downstream cost: log_prob for a score-function estimator, 0 when reparameterised"""
    entropy_term: Any
    """what is differentiated for the entropy: log_prob when reparameterised, else 0"""

    def scale_and_mask(self, scale: Any = 1.0, mask: Any = None) -> ScoreParts:
        """The parts of a site under `scale` and `mask`.

        `score_function` is neither scaled nor masked: it multiplies a cost that is, and a value that is
        sampled under a mask can still matter elsewhere.

        Args:
            scale: a number or a tensor that broadcasts with the parts.
            mask: None, a bool, or a bool tensor that broadcasts with the parts.
        """
        log_prob = scale_and_mask(self.log_prob, scale, mask)
        if self.entropy_term is self.log_prob:
            return ScoreParts(log_prob, self.score_function, log_prob)
        return ScoreParts(log_prob, self.score_function, scale_and_mask(self.entropy_term, scale, mask))
