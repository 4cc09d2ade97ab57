"""Log-space float64 recursions for long sequences and many states, vectorised over the batch.

Messages are normalised at every step, so that a million steps lose no accuracy; -inf is the semiring zero
and stays exact (log space cannot underflow). A sequence that uses NaN or +inf gets NaN on its real steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.oracles.model import Floats, Ints, Model


def log_sum(values: Floats, axis: int) -> Floats:
    """Log sum exp along `axis`, -inf where all are -inf; no NaN or +inf expected."""
    top = values.max(axis, keepdims=True)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore", under="ignore"):
        return np.asarray(np.log(np.exp(values - shift).sum(axis)) + shift.squeeze(axis))


def normalised(values: Floats, axis: int = -1) -> tuple[Floats, Floats]:
    """(values - log_sum, log_sum) along the last axis; all -inf stays all -inf."""
    total = log_sum(values, axis)
    return values - np.expand_dims(np.where(np.isneginf(total), 0.0, total), axis), total


@dataclass(frozen=True)
class Pass:
    """One run of the forward recursion.

    filtered: [N, T, S] log p(z_t | x_<=t), -inf in padding; log_normalizer: [N];
    first_dead: [N], the first step whose support is empty, -1 when there is none; bad: [N], NaN answers.
    """

    filtered: Floats
    log_normalizer: Floats
    first_dead: Ints
    bad: NDArray[np.bool_]


def cleaned(model: Model) -> Model:
    """Zeros in place of NaN and +inf, so that other sequences compute without floating-point warnings."""

    def clean(values: Floats) -> Floats:
        spoilt = np.isnan(values) | np.isposinf(values)
        return np.where(spoilt, 0.0, values) if spoilt.any() else values

    return Model(
        clean(model.initial), clean(model.transition), clean(model.emission), model.lengths, model.batch
    )


def forward(model: Model) -> Pass:
    """The forward recursion with the causal filter as its message."""
    bad, model = model.bad(), cleaned(model)
    count, steps, states = model.emission.shape
    out = np.full((count, steps, states), -np.inf)
    gains = np.zeros((count, steps))
    dead = np.full(count, -1)
    message = model.initial
    for t in range(steps):
        live = t < model.lengths
        if t:
            message = log_sum(message[:, :, None] + model.transition[:, t - 1], 1)
        message, gain = normalised(message + model.emission[:, t])
        out[live, t] = message[live]
        gains[live, t] = gain[live]
        dead = np.where(live & np.isneginf(gain) & (dead < 0), t, dead)
    total = np.where(dead >= 0, -np.inf, np.where(np.isneginf(gains), 0.0, gains).sum(1))
    real = np.arange(steps)[None, :] < model.lengths[:, None]
    out[bad[:, None] & real] = np.nan
    total[bad] = np.nan
    return Pass(out, total, np.where(bad, -1, dead), bad)


def backward_messages(model: Model) -> Floats:
    """[N, T, S]: log p(x_>t | z_t) up to a constant per step; 0 at each sequence's last step."""
    model = cleaned(model)
    count, steps, states = model.emission.shape
    out = np.zeros((count, steps, states))
    for t in range(steps - 2, -1, -1):
        ahead = out[:, t + 1] + model.emission[:, t + 1]
        step, _ = normalised(log_sum(model.transition[:, t] + ahead[:, None, :], 2))
        out[:, t] = np.where((t + 1 < model.lengths)[:, None], step, 0.0)
    return out


def marginals(model: Model) -> Floats:
    """[N, T, S]: log p(z_t | x); -inf in padding and for impossible sequences."""
    run = forward(model)
    out = run.filtered + backward_messages(model)
    out[run.first_dead >= 0] = -np.inf
    out[run.bad] = np.where(np.isneginf(run.filtered[run.bad]), -np.inf, 0.0)
    out, _ = normalised(out)
    real = np.arange(model.steps)[None, :] < model.lengths[:, None]
    out[run.bad[:, None] & real] = np.nan
    return out


def pairwise(model: Model) -> Floats:
    """[N, T-1, S, S]: log p(z_t = i, z_t+1 = j | x); -inf in padding and for impossible sequences."""
    run, tidy = forward(model), cleaned(model)
    ahead = (backward_messages(model) + tidy.emission)[:, 1:, None, :]
    real = np.arange(1, max(model.steps, 1))[None, :] < model.lengths[:, None]
    before = np.where(run.bad[:, None, None], 0.0, run.filtered)[:, :-1, :, None]
    out = np.asarray(before + tidy.transition + ahead)
    out[~real | (run.first_dead >= 0)[:, None]] = -np.inf
    count, moves, states, _ = out.shape
    out = normalised(out.reshape(count, moves, states * states))[0].reshape(out.shape)
    out[run.bad[:, None] & real] = np.nan
    return out


def viterbi(model: Model) -> tuple[Ints, Floats]:
    """Best path [N, T] (padding -1; ties: lowest state, from the last step back) and its score [N].

    An impossible sequence has score -inf and a NaN one score NaN, both with path -1.
    """
    bad, tidy = model.bad(), cleaned(model)
    count, steps, _ = tidy.emission.shape
    messages = np.zeros(tidy.emission.shape)
    for t in range(steps):
        if t == 0:
            predicted = tidy.initial
        else:
            predicted = (messages[:, t - 1, :, None] + tidy.transition[:, t - 1]).max(1)
        messages[:, t] = predicted + tidy.emission[:, t]
    path = np.full((count, steps), -1)
    rows, score = np.arange(count), np.zeros(count)
    for t in range(steps - 1, -1, -1):
        last, inside = model.lengths == t + 1, t + 1 < model.lengths
        best = messages[:, t].argmax(1)
        score = np.where(last, messages[rows, t, best], score)
        if t + 1 < steps:
            onward = messages[:, t] + tidy.transition[rows, t, :, path[:, t + 1]]
            best = np.where(inside, onward.argmax(1), best)
        path[:, t] = np.where(last | inside, best, -1)
    path[bad | np.isneginf(score)] = -1
    return path, np.where(bad, np.nan, score)


def path_score(model: Model, paths: Ints) -> Floats:
    """[N]: the log weight of one path [N, T] per sequence; entries past the length are not read."""
    rows = np.arange(model.sequences)
    score = np.zeros(model.sequences)
    for t in range(model.steps):
        gain = model.emission[rows, t, paths[:, t]]
        if t == 0:
            gain = gain + model.initial[rows, paths[:, 0]]
        else:
            gain = gain + model.transition[rows, t - 1, paths[:, t - 1], paths[:, t]]
        score = np.where(t < model.lengths, score + gain, score)
    return score


def expected_counts(model: Model) -> tuple[Floats, Floats, Floats]:
    """Gradients of each log normaliser: for initial [N, S], transition [N, T-1, S, S], emission [N, T, S].

    They are the smoothing and pairwise marginals; zero in padding and for impossible sequences.
    """
    emitted, moved = np.exp(marginals(model)), np.exp(pairwise(model))
    first = emitted[:, 0].copy() if model.steps else np.zeros_like(model.initial)
    return first, moved, emitted


def magnitude(model: Model) -> Floats:
    """[N]: sum over real steps of the largest |potential| used, the scale of rounding errors.

    Infinities do not count, nor does anything beyond 1e8: such values stand for -inf (masks).
    """

    def largest(values: Floats, axes: tuple[int, ...]) -> Floats:
        return np.asarray(np.abs(np.where(np.abs(values) < 1e8, values, 0.0)).max(axes, initial=0.0))

    step = np.arange(model.steps)[None, :]
    used = step < model.lengths[:, None]
    emitted = (largest(model.emission, (-1,)) * used).sum(1)
    moved = (largest(model.transition, (-2, -1)) * used[:, 1:]).sum(1)
    return np.asarray(largest(model.initial, (-1,)) + emitted + moved)
