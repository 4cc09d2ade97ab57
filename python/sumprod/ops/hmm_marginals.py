"""`hmm_marginals`. Smoothing in a hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sumprod.ops import _hmm_composite as composite
from sumprod.ops._hmm_arguments import register_rules
from sumprod.ops._hmm_autograd import posterior

__all__ = ["hmm_marginals"]


def hmm_marginals(
    initial: Tensor, transition: Tensor, emission: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Smoothing: log marginals log p(z_t | x) given the whole sequence.

    The forward-backward recursion of Rabiner 1989, section III.B, equation 27. A state that is
    possible gets a finite value however small, an impossible one exactly -inf.

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted.

    Returns:
        [*B, T, S], in the promoted dtype of the inputs (half types are computed in float32).
        An impossible sequence is -inf everywhere; one with NaN (or +inf) is NaN everywhere.
        Rows at and past a sequence's length are -inf.

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
        >>> marginals = sumprod.ops.hmm_marginals(initial, transition, emission)
        >>> [round(p, 4) for p in marginals.exp()[:, 0].tolist()]
        [0.8765, 0.6229, 0.2121]
    """
    return posterior("hmm_marginals", composite.marginals, initial, transition, emission, lengths)


def _fake(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    return emission.new_empty(emission.shape)


register_rules("hmm_marginals", _fake)
