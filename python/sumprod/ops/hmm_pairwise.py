"""`hmm_pairwise`. Pairwise smoothing in a hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sumprod.ops import _hmm_composite as composite
from sumprod.ops._hmm_arguments import register_rules
from sumprod.ops._hmm_autograd import posterior

__all__ = ["hmm_pairwise"]


def hmm_pairwise(
    initial: Tensor, transition: Tensor, emission: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Pairwise smoothing: log marginals log p(z_t = i, z_t+1 = j | x) of neighbouring states.

    The forward(-backward) recursion of Rabiner 1989, equation 37. A state that is possible gets a finite
    value however small, an impossible one exactly -inf.

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted.

    Returns:
        [*B, T-1, S, S] (from, to), in the promoted dtype of the inputs (half types are computed in float32).
        An impossible sequence is -inf everywhere; one with NaN (or +inf) is NaN everywhere.
        Entries at and past a sequence's length - 1 are -inf.

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
        >>> pairwise = sumprod.ops.hmm_pairwise(initial, transition, emission)
        >>> pairwise.shape, [round(total, 4) for total in pairwise.exp().sum((1, 2)).tolist()]
        (torch.Size([2, 2, 2]), [1.0, 1.0])
    """
    return posterior("hmm_pairwise", composite.pairwise, initial, transition, emission, lengths)


def _fake(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    return emission.new_empty(
        emission.shape[0], max(emission.shape[1] - 1, 0), emission.shape[2], emission.shape[2]
    )


register_rules("hmm_pairwise", _fake)
