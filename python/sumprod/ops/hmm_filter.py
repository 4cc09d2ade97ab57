"""`hmm_filter`. Filtering in a hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sumprod.ops import _hmm_composite as composite
from sumprod.ops._hmm_arguments import register_rules
from sumprod.ops._hmm_autograd import posterior

__all__ = ["hmm_filter"]


def hmm_filter(
    initial: Tensor, transition: Tensor, emission: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Filtering: log p(z_t | x_0, ..., x_t), normalised at every step.

    The forward(-backward) recursion of Rabiner 1989, section III.A. A state that is possible gets a finite
    value however small, an impossible one exactly -inf.

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted.

    Returns:
        [*B, T, S], in the promoted dtype of the inputs (half types are computed in float32).
        After the support of a sequence has become empty its rows are -inf; from a NaN (or +inf) on they
        are NaN. Rows at and past a sequence's length are -inf.

    Differentiable; the backward is a loop over time in log space.

    On a GPU, `lengths` given as a list or as a tensor of the CPU are checked without waiting for the device.
    Lengths on the device are checked, and waited for, while the setting `validate_infer` is on
    (`sumprod.enable_validation(False)` turns it off) and no CUDA graph is captured.

    Raises:
        TypeError: an argument is not a floating-point tensor, or lengths are not integers.
        ValueError: shapes, devices or lengths do not fit together.

    Example:
        >>> import torch, sumprod
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> filtered = sumprod.ops.hmm_filter(initial, transition, emission)
        >>> [round(p, 4) for p in filtered.exp()[:, 0].tolist()]
        [0.8824, 0.7255, 0.2121]
    """
    return posterior("hmm_filter", composite.filtered, initial, transition, emission, lengths)


def _fake(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    return emission.new_empty(emission.shape)


register_rules("hmm_filter", _fake)
