"""`hmm_viterbi`: the most probable state path of a hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.ops import _hmm_composite as composite
from sumprod.ops._hmm_arguments import canonical, check_support, register_rules

__all__ = ["HMMViterbi", "hmm_viterbi"]


class HMMViterbi(NamedTuple):
    """Result of `hmm_viterbi`."""

    path: Tensor
    """States [*B, T], int64; -1 at and past a sequence's length."""
    score: Tensor
    """Log weight [*B] of that path: max over z of log p(z, x)."""


def hmm_viterbi(
    initial: Tensor, transition: Tensor, emission: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> HMMViterbi:
    """The most probable state path, and its log weight (Viterbi 1967).

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted.

    Returns:
        `HMMViterbi(path [*B, T] int64, score [*B])`. Ties go to the lowest state, from the last step
        backwards. Paths are -1 past a sequence's end; a sequence of length 0 scores 0. A sequence
        with NaN or +inf has score NaN and path -1.

    The score is differentiable: its gradient marks the path.

    On a GPU the search for impossible sequences, and for lengths out of range, makes the host wait for the
    device. It is left out where the setting `validate_infer` is off (`sumprod.enable_validation(False)`) and
    while a CUDA graph is captured; paths of impossible sequences then mean nothing.

    Raises:
        SupportError: a sequence has no possible path; names the batch element and the first time
            step at which no state is possible.
        TypeError: an argument is not a floating-point tensor, or lengths are not integers.
        ValueError: shapes, devices or lengths do not fit together.

    Example:
        >>> import torch, sumprod
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> path, score = sumprod.ops.hmm_viterbi(initial, transition, emission)
        >>> path.tolist(), f"{score.exp():.5f}"
        ([0, 0, 1], '0.01512')
    """
    arguments = canonical("hmm_viterbi", initial, transition, emission, lengths)
    path, score, dead = native.hmm_viterbi(*arguments.constants)
    check_support("hmm_viterbi", dead, path, arguments.batch_shape)
    if arguments.wants_grad:
        differentiable = composite.path_score(
            path, arguments.initial, arguments.transition, arguments.emission
        )
        score = torch.where(score.isnan(), score, differentiable)
    return HMMViterbi(arguments.restore(path), arguments.restore(score))


def _fake(
    initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, steps, _ = emission.shape
    path = emission.new_empty(batch, steps, dtype=torch.int64)
    return path, emission.new_empty(batch), emission.new_empty(batch, dtype=torch.int64)


register_rules("hmm_viterbi", _fake)
