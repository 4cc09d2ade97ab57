"""The parts of a log-density that gradient estimators treat differently."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sumprod.distributions.util import is_identically_zero, scale_and_mask


class ScoreParts(NamedTuple):
    """A log-density, its score-function part, and its entropy part.

    Zeros are the Python number 0, so that no tensor work is done for them.
    """

    log_prob: Any
    score_function: Any
    entropy_term: Any

    def scale_and_mask(self, scale: float | torch.Tensor = 1.0, mask: Any = None) -> ScoreParts:
        """Scale and mask the log-density and the entropy part; the score function stays as it is."""
        log_prob = scale_and_mask(self.log_prob, scale, mask)
        if self.entropy_term is self.log_prob:
            entropy_term = log_prob
        elif is_identically_zero(self.entropy_term):
            entropy_term = self.entropy_term
        else:
            entropy_term = scale_and_mask(self.entropy_term, scale, mask)
        return ScoreParts(log_prob, self.score_function, entropy_term)
