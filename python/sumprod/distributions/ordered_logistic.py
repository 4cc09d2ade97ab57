"""`OrderedLogistic`: ordered categories cut out of a logistic latent variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sumprod.distributions import constraints
from sumprod.distributions.torch import Categorical
from sumprod.distributions.util import broadcast_shape

__all__ = ["OrderedLogistic"]


class OrderedLogistic(Categorical):
    """Categories 0 .. K of a logistic variable with location `predictor`, cut at K ordered points.

    The proportional-odds model (McCullagh 1980): P(y <= k) = sigmoid(cutpoints[k] - predictor).

    Args:
        predictor: [*B].
        cutpoints: [*B, K], strictly increasing along its last dim; broadcasts with the predictor.
        validate_args: whether to check parameters and values.

    Log-probabilities are computed without differences of probabilities, so that categories far in a tail
    keep a finite logarithm and gradient.

    Raises:
        ValueError: cutpoints are not increasing, or the predictor is not real; names the parameter.

    Example:
        >>> import torch
        >>> from sumprod.distributions import OrderedLogistic
        >>> rating = OrderedLogistic(torch.tensor(0.0), torch.tensor([-1.0, 1.0]))
        >>> [round(p, 3) for p in rating.probs.tolist()]
        [0.269, 0.462, 0.269]
    """

    arg_constraints: dict[str, Any] = {  # noqa: RUF012
        "predictor": constraints.real,
        "cutpoints": constraints.ordered_vector,
    }

    def __init__(self, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None) -> None:
        if not isinstance(cutpoints, Tensor) or cutpoints.dim() < 1 or cutpoints.shape[-1] == 0:
            got = list(cutpoints.shape) if isinstance(cutpoints, Tensor) else type(cutpoints).__name__
            raise ValueError(f"OrderedLogistic: cutpoints must have shape [*B, K], K >= 1, got {got}")
        predictor = torch.as_tensor(predictor, device=cutpoints.device)
        shape = torch.Size(broadcast_shape(predictor.shape, cutpoints.shape[:-1]))
        self.predictor = predictor.expand(shape)
        self.cutpoints = cutpoints.expand(*shape, cutpoints.shape[-1])
        logits = _log_probabilities(self.predictor.unsqueeze(-1), self.cutpoints)
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> OrderedLogistic:
        """The same parameters, not copied, under a larger batch shape."""
        new: OrderedLogistic = self._get_checked_instance(OrderedLogistic, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.predictor = self.predictor.expand(batch_shape)
        new.cutpoints = self.cutpoints.expand(*batch_shape, self.cutpoints.shape[-1])
        super().expand(batch_shape, _instance=new)
        return new


def _log_probabilities(predictor: Tensor, cutpoints: Tensor) -> Tensor:
    """log P(y = k), [*B, K + 1].

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)).
    """
    below = logsigmoid(cutpoints - predictor)
    above = logsigmoid(predictor - cutpoints)
    gap = torch.log(-torch.expm1(cutpoints[..., :-1] - cutpoints[..., 1:]))
    inner = below[..., 1:] + above[..., :-1] + gap
    return torch.cat([below[..., :1], inner, above[..., -1:]], -1)
