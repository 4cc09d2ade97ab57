"""Checks and canonical forms of the parameters of `DiscreteHMM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod import ops
from sumprod.distributions.util import broadcast_shape

__all__ = ["as_lengths", "broadcast", "broadcast_batches", "check_states", "known_steps", "normalized"]


def normalized(logits: Tensor) -> Tensor:
    """log softmax over the last dim; a row of -inf stays a row of -inf."""
    total = ops.logsumexp(logits, -1, keepdim=True)
    return logits - total.clamp(min=torch.finfo(total.dtype).min)


def as_lengths(lengths: Tensor | Sequence[int], device: torch.device) -> Tensor:
    try:
        result = torch.as_tensor(lengths, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"DiscreteHMM: lengths must be integers, got {type(lengths).__name__}") from error
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise TypeError(f"DiscreteHMM: lengths must be integers, got {result.dtype}")
    return result.to(torch.int64)


def check_states(initial: Tensor, transition: Tensor, observation_dist: Any) -> None:
    for name, logits in (("initial_logits", initial), ("transition_logits", transition)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"DiscreteHMM: {name} must be a floating-point tensor, got {got}")
    if initial.dim() < 1:
        raise ValueError(
            f"expected initial_logits to have at least one dim, actual shape = {tuple(initial.shape)}; "
            "DiscreteHMM needs initial_logits of shape [*B, S]"
        )
    if transition.dim() < 2:
        raise ValueError(
            "expected transition_logits to have at least two dims, "
            f"actual shape = {tuple(transition.shape)}; DiscreteHMM needs [S, S] or [*B, T or 1, S, S]"
        )
    batch = observation_dist.batch_shape
    if len(batch) < 1:
        raise ValueError(
            "expected observation_dist to have at least one batch dim, "
            f"actual .batch_shape = {tuple(batch)}; its last batch dim must be the hidden state"
        )
    states = initial.shape[-1]
    if states == 0 or tuple(transition.shape[-2:]) != (states, states) or batch[-1] not in (1, states):
        raise ValueError(
            f"DiscreteHMM: the number of states differs: initial_logits {list(initial.shape)} (S last), "
            f"transition_logits {list(transition.shape)} (S, S last), batch shape of observation_dist "
            f"{list(batch)} (S last)"
        )


def broadcast(*shapes: Sequence[int]) -> torch.Size | None:
    """The common shape, or None."""
    result = shapes[0]
    for shape in shapes[1:]:
        if shape != result and len(shape):
            try:
                result = broadcast_shape(result, shape) if len(result) else shape
            except ValueError:
                return None
    return torch.Size(result)


def broadcast_batches(
    initial: Tensor, transition: Tensor, observation_dist: Any, lengths: Tensor | None
) -> torch.Size:
    shapes = [initial.shape[:-1], transition.shape[:-3], observation_dist.batch_shape[:-2]]
    if lengths is not None:
        shapes.append(lengths.shape)
    result = broadcast(*shapes)
    if result is None:
        given = "" if lengths is None else f", lengths {list(lengths.shape)}"
        raise ValueError(
            "shape mismatch: objects cannot be broadcast to a single shape: the batch dims *B of "
            f"initial_logits {list(initial.shape)} ([*B, S]), transition_logits {list(transition.shape)} "
            f"([*B, T or 1, S, S]), batch shape of observation_dist {list(observation_dist.batch_shape)} "
            f"([*B, T or 1, S]){given}"
        )
    return result


def known_steps(
    transition: Tensor, observation_dist: Any, duration: int | None, first_emits: bool
) -> int | None:
    """T where the parameters or `duration` say it; None where it is open."""
    if duration is not None and (isinstance(duration, bool) or not isinstance(duration, int) or duration < 0):
        raise ValueError(f"DiscreteHMM: duration must be a non-negative int, got {duration!r}")
    moves = transition.shape[-3] if transition.dim() > 2 else 1
    observed = observation_dist.batch_shape[-2] if len(observation_dist.batch_shape) > 1 else 1
    from_moves = None if moves == 1 else moves + first_emits
    steps = from_moves if observed == 1 else observed
    if None not in (from_moves, steps) and from_moves != steps:
        rule = "T-1 transitions (first_emits=True)" if first_emits else "T transitions"
        raise ValueError(
            "shape mismatch: objects cannot be broadcast to a single shape: "
            f"transition_logits {list(transition.shape)} has {moves} transitions and observation_dist, of "
            f"batch shape {list(observation_dist.batch_shape)}, {observed} steps; T steps need {rule}, or 1"
        )
    if steps is not None and duration is not None and duration != steps:
        raise ValueError(
            f"duration, event_shape mismatch: {duration} vs {steps}: the parameters of DiscreteHMM say "
            f"T = {steps} (transition_logits {list(transition.shape)}, batch shape of observation_dist "
            f"{list(observation_dist.batch_shape)})"
        )
    return duration if steps is None else steps
