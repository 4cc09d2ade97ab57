"""The HMM recursions as plain torch operations, in log space.

Slow (a Python loop over time) and differentiable any number of times: the native operators use
these formulas when a gradient is asked to be differentiable itself. -inf is exact in values and
gives zero, never NaN, in gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor


def safe_logsumexp(x: Tensor, dim: int) -> Tensor:
    """logsumexp whose gradient is zero, not NaN, where everything is -inf."""
    top = x.detach().amax(dim, keepdim=True)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    total = (x - top).exp().sum(dim)
    empty = total == 0
    logs = torch.where(empty, torch.ones_like(total), total).log() + top.squeeze(dim)
    return torch.where(empty, torch.full_like(logs, -torch.inf), logs)


def _minus(x: Tensor, total: Tensor) -> Tensor:
    """x - total with -inf - -inf = -inf."""
    return torch.where(total == -torch.inf, torch.full_like(x, -torch.inf), x - total)


def _at(transition: Tensor, t: int) -> Tensor:
    return transition[:, t if transition.shape[1] > 1 else 0]


def _inside(lengths: Tensor | None, t: int) -> Tensor | None:
    return None if lengths is None else lengths > t


def _keep(inside: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    if inside is None:
        return new
    return torch.where(inside.reshape(inside.shape + (1,) * (new.dim() - inside.dim())), new, old)


def forward(initial: Tensor, transition: Tensor, emission: Tensor) -> list[Tensor]:
    """Forward log messages of every step, each [B, S]."""
    messages = [initial + emission[:, 0]]
    for t in range(1, emission.shape[1]):
        joint = messages[-1].unsqueeze(-1) + _at(transition, t - 1)
        messages.append(safe_logsumexp(joint, -2) + emission[:, t])
    return messages


def backward(transition: Tensor, emission: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """Backward log messages of every step, each [B, S]; 0 at and past a sequence's last step."""
    zero = torch.zeros_like(emission[:, 0])
    messages = [zero]
    for t in range(emission.shape[1] - 2, -1, -1):
        following = messages[-1] + emission[:, t + 1]
        new = safe_logsumexp(_at(transition, t) + following.unsqueeze(-2), -1)
        messages.append(_keep(_inside(lengths, t + 1), new, zero))
    return messages[::-1]


def log_normalizer(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    """log Z, [B]; 0 for sequences of length 0."""
    # Nothing, but it ties every argument into the graph, so that each has a gradient at any T.
    nothing = initial.flatten()[:0].sum() + transition.flatten()[:0].sum() + emission.flatten()[:0].sum()
    zero = emission.new_zeros(emission.shape[0]) + nothing
    if emission.shape[1] == 0:
        return zero
    if lengths is None:
        return safe_logsumexp(forward(initial, transition, emission)[-1], -1) + nothing
    messages = torch.stack(forward(initial, transition, emission), 1)
    last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, messages.shape[2])
    total = safe_logsumexp(messages.gather(1, last).squeeze(1), -1)
    return torch.where(lengths > 0, total, zero)


def _pad(values: Tensor, lengths: Tensor | None, shorten: int) -> Tensor:
    if lengths is None:
        return values
    steps = torch.arange(values.shape[1], device=values.device)
    inside = steps < (lengths - shorten).unsqueeze(-1)
    inside = inside.reshape(inside.shape + (1,) * (values.dim() - 2))
    return torch.where(inside, values, torch.full_like(values, -torch.inf))


def filtered(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    """log p(z_t | x_0 .. x_t), [B, T, S]."""
    if emission.shape[1] == 0:
        return emission.clone()
    messages = torch.stack(forward(initial, transition, emission), 1)
    return _pad(_minus(messages, safe_logsumexp(messages, -1).unsqueeze(-1)), lengths, 0)


def marginals(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    """log p(z_t | x), [B, T, S]."""
    if emission.shape[1] == 0:
        return emission.clone()
    joint = torch.stack(forward(initial, transition, emission), 1)
    joint = joint + torch.stack(backward(transition, emission, lengths), 1)
    total = log_normalizer(initial, transition, emission, lengths)[:, None, None]
    return _pad(_minus(joint, total), lengths, 0)


def pairwise(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    """log p(z_t, z_t+1 | x), [B, T-1, S, S]."""
    batch, steps, states = emission.shape
    if steps < 2:
        return emission.new_empty(batch, 0, states, states)
    first = torch.stack(forward(initial, transition, emission), 1)[:, :-1, :, None]
    second = (torch.stack(backward(transition, emission, lengths), 1) + emission)[:, 1:, None, :]
    joint = first + transition + second
    total = log_normalizer(initial, transition, emission, lengths)[:, None, None, None]
    return _pad(_minus(joint, total), lengths, 1)


def path_score(path: Tensor, initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    """Score [B] of the paths [B, T], -1 marking steps past the end."""
    batch, steps, states = emission.shape
    # Nothing, but it ties every argument into the graph, so that each has a gradient at any T.
    nothing = initial.flatten()[:0].sum() + transition.flatten()[:0].sum() + emission.flatten()[:0].sum()
    if steps == 0:
        return nothing.expand(batch)
    inside, state = path >= 0, path.clamp(min=0)
    zero = emission.new_zeros(())
    score = torch.where(inside, emission.gather(2, state.unsqueeze(-1)).squeeze(-1), zero).sum(1)
    first = initial.expand(batch, states).gather(1, state[:, :1]).squeeze(1)
    score = score + torch.where(inside[:, 0], first, zero) + nothing
    if steps > 1:
        rows = torch.arange(batch, device=path.device)[:, None] if transition.shape[0] > 1 else 0
        times = torch.arange(steps - 1, device=path.device) if transition.shape[1] > 1 else 0
        moves = transition[rows, times, state[:, :-1], state[:, 1:]]
        score = score + torch.where(inside[:, 1:], moves, zero).sum(1)
    return score
