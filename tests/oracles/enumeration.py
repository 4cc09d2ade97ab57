"""Brute force over all S^T state paths of one sequence: the definition of every HMM quantity, for small S, T.

Nothing here is shared with the recursion oracle, so that each can catch the other's mistakes.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from tests.oracles.model import Floats, Ints, Model


def all_paths(states: int, steps: int) -> Ints:
    """[S^T, T]: every state path; one empty path when there is no step."""
    paths = list(itertools.product(range(states), repeat=steps))
    return np.array(paths, dtype=np.int64).reshape(len(paths), steps)


def path_scores(model: Model, paths: Ints) -> Floats:
    """[P]: initial + emissions + transitions along each path of a model of one sequence."""
    scores = np.zeros(len(paths))
    for row, path in enumerate(paths):
        terms = [model.emission[0, t, state] for t, state in enumerate(path)]
        terms += [model.transition[0, t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path))]
        terms += [model.initial[0, path[0]]] if len(path) else []
        scores[row] = -math.inf if -math.inf in terms else math.fsum(terms)
    return scores


def log_sum(scores: Floats) -> float:
    """Log sum exp of a flat list, -inf when it is empty or all -inf."""
    top = max(scores, default=-math.inf)
    return top if top == -math.inf else float(top) + math.log(math.fsum(np.exp(scores - top)))


def path_distribution(model: Model) -> tuple[Ints, Floats]:
    """All paths [P, T] and their posterior probabilities [P]."""
    paths = all_paths(model.states, model.steps)
    scores = path_scores(model, paths)
    return paths, np.exp(scores - log_sum(scores))


def log_normalizer(model: Model) -> float:
    """Log of the total weight; 0 for a sequence without steps (one empty path of weight 1)."""
    return log_sum(path_scores(model, all_paths(model.states, model.steps)))


def prefix(model: Model, steps: int) -> Model:
    """The same sequence, stopped after `steps` steps."""
    lengths = np.array([steps])
    return Model(
        model.initial, model.transition[:, : max(steps - 1, 0)], model.emission[:, :steps], lengths, (1,)
    )


def filtered(model: Model) -> Floats:
    """[T, S]: log p(z_t | x_0..x_t), from the paths of each prefix; -inf once no path is possible."""
    return np.array([marginals(prefix(model, t + 1))[t] for t in range(model.steps)])


def marginals(model: Model) -> Floats:
    """[T, S]: log p(z_t | x); all -inf when no path is possible."""
    paths = all_paths(model.states, model.steps)
    scores = path_scores(model, paths)
    total = log_sum(scores)
    out = np.full((model.steps, model.states), -np.inf)
    for t, state in itertools.product(range(model.steps), range(model.states)):
        if total > -math.inf:
            out[t, state] = log_sum(scores[paths[:, t] == state]) - total
    return out


def pairwise(model: Model) -> Floats:
    """[T-1, S, S]: log p(z_t = i, z_t+1 = j | x); all -inf when no path is possible."""
    paths = all_paths(model.states, model.steps)
    scores = path_scores(model, paths)
    total = log_sum(scores)
    moves, states = max(model.steps - 1, 0), range(model.states)
    out = np.full((moves, model.states, model.states), -np.inf)
    for t, a, b in itertools.product(range(moves), states, states):
        if total > -math.inf:
            chosen = (paths[:, t] == a) & (paths[:, t + 1] == b)
            out[t, a, b] = log_sum(scores[chosen]) - total
    return out


def best_paths(model: Model) -> tuple[float, set[tuple[int, ...]]]:
    """The best score and every path that reaches it exactly (use integers, whose sums do not round)."""
    paths = all_paths(model.states, model.steps)
    scores = path_scores(model, paths)
    best = float(scores.max())
    return best, {tuple(int(s) for s in path) for path in paths[scores == best]}


def lowest_best_path(model: Model) -> tuple[int, ...]:
    """Of the best paths, the one with the lowest last state, then the lowest state before it, and so on."""
    return min(best_paths(model)[1], key=lambda path: path[::-1])


def first_dead_step(model: Model) -> int:
    """The first step after which no path is possible; -1 when the sequence is possible."""
    for t in range(model.steps):
        if log_normalizer(prefix(model, t + 1)) == -math.inf:
            return t
    return -1
