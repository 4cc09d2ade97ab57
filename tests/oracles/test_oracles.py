"""The oracles against published numbers, hand computations, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.oracles import enumeration, recursion, reduce
from tests.oracles.model import Floats, Model, from_tensors

# Two float64 routes to the same small sum differ by a few units in the last place of numbers below 100.
ROUNDING = 1e-12


def as_model(
    initial: Floats, transition: Floats, emission: Floats, lengths: list[int] | None = None
) -> Model:
    return from_tensors(
        torch.tensor(initial),
        torch.tensor(transition),
        torch.tensor(emission),
        None if lengths is None else torch.tensor(lengths),
    )


def healthy_fever() -> Model:
    """The doctor's example: states healthy, fever; observed normal, cold, dizzy."""
    emission = np.array([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]])
    return as_model(np.log([0.6, 0.4]), np.log([[0.7, 0.3], [0.4, 0.6]]), np.log(emission)[None])


def umbrella() -> Model:
    """Russell and Norvig's umbrella world, two days with an umbrella; states rain, no rain."""
    emission = np.array([[0.9, 0.2], [0.9, 0.2]])
    return as_model(np.log([0.5, 0.5]), np.log([[0.7, 0.3], [0.3, 0.7]]), np.log(emission)[None])


def random_model(seed: int, zeros: float) -> Model:
    """A ragged batch of 6 sequences, S = 3, T = 4, each with its own time-varying transition."""
    draw = np.random.default_rng(seed)
    initial, transition = draw.normal(size=(6, 3)), draw.normal(size=(6, 3, 3, 3)) * 3
    emission = draw.normal(size=(6, 4, 3)) * 10
    for part in (initial, transition, emission):
        part[draw.random(part.shape) < zeros] = -np.inf
    return as_model(initial, transition, emission, [4, 0, 1, 2, 3, 4])


def test_healthy_fever_matches_the_hand_computation() -> None:
    # forward by hand: (.30, .04), (.0904, .0342), (.007696, .028584); best path healthy, healthy, fever.
    model = healthy_fever()
    run = recursion.forward(model)
    assert math.exp(run.log_normalizer[0]) == pytest.approx(0.03628, abs=1e-15)
    by_hand = np.array([[0.30, 0.04], [0.0904, 0.0342], [0.007696, 0.028584]])
    np.testing.assert_allclose(
        np.exp(run.filtered[0]), by_hand / by_hand.sum(1, keepdims=True), rtol=ROUNDING
    )
    path, score = recursion.viterbi(model)
    assert path.tolist() == [[0, 0, 1]]
    assert math.exp(score[0]) == pytest.approx(0.01512, abs=1e-15)
    assert enumeration.best_paths(model)[1] == {(0, 0, 1)}
    assert math.exp(enumeration.log_normalizer(model)) == pytest.approx(0.03628, abs=1e-15)


def test_umbrella_world_matches_the_published_numbers() -> None:
    model = umbrella()
    for filtered, smoothed in (
        (recursion.forward(model).filtered[0], recursion.marginals(model)[0]),
        (enumeration.filtered(model), enumeration.marginals(model)),
    ):
        assert np.exp(filtered[:, 0]) == pytest.approx([0.818, 0.883], abs=5e-4)  # printed to three digits
        assert np.exp(smoothed[:, 0]) == pytest.approx([0.883, 0.883], abs=5e-4)


def test_paths_are_all_different_and_complete() -> None:
    paths = enumeration.all_paths(3, 4)
    assert len(paths) == len({tuple(path) for path in paths.tolist()}) == 3**4
    assert enumeration.all_paths(3, 0).shape == (1, 0)


@pytest.mark.parametrize("zeros", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_recursion_equals_enumeration(seed: int, zeros: float) -> None:
    model = random_model(seed, zeros)
    run = recursion.forward(model)
    smoothed, pairs = recursion.marginals(model), recursion.pairwise(model)
    path, score = recursion.viterbi(model)
    for n, length in enumerate(model.lengths):
        alone = model.one(n)
        np.testing.assert_allclose(run.log_normalizer[n], enumeration.log_normalizer(alone), rtol=ROUNDING)
        assert run.first_dead[n] == enumeration.first_dead_step(alone)
        moves = max(length - 1, 0)
        for ours, brute, real in (
            (run.filtered[n], enumeration.filtered(alone).reshape(length, 3), length),
            (smoothed[n], enumeration.marginals(alone), length),
            (pairs[n], enumeration.pairwise(alone), moves),
        ):
            np.testing.assert_allclose(ours[:real], brute, rtol=ROUNDING, atol=ROUNDING)
            assert np.isneginf(ours[real:]).all()
        if run.first_dead[n] < 0:
            assert tuple(path[n, :length]) == enumeration.lowest_best_path(alone)
            np.testing.assert_allclose(score[n], enumeration.best_paths(alone)[0], rtol=ROUNDING)
        else:
            assert score[n] == -np.inf
            assert (path[n] == -1).all()
        assert (path[n, length:] == -1).all()


def test_the_random_models_are_possible_and_impossible() -> None:
    # Without both kinds the comparison above would prove little.
    dead = [recursion.forward(random_model(seed, 0.5)).first_dead >= 0 for seed in range(4)]
    assert np.any(dead)
    assert not np.all(dead)


def test_lowest_states_win_ties_from_the_last_step_back() -> None:
    draw = np.random.default_rng(0)
    tied = 0
    for _ in range(30):
        emission = draw.integers(0, 2, (1, 4, 3)).astype(float)
        model = as_model(np.zeros(3), draw.integers(0, 2, (3, 3)).astype(float), emission)
        path, _ = recursion.viterbi(model)
        assert tuple(path[0]) == enumeration.lowest_best_path(model)
        tied += len(enumeration.best_paths(model)[1]) > 1
    assert tied > 10


def test_path_score_and_distribution_agree_with_enumeration() -> None:
    model = random_model(5, 0.0).one(0)
    paths, probabilities = enumeration.path_distribution(model)
    assert probabilities.sum() == pytest.approx(1, abs=ROUNDING)
    repeated = as_model(model.initial, model.transition, np.repeat(model.emission, len(paths), 0))
    scores = recursion.path_score(repeated, paths)
    np.testing.assert_allclose(scores, enumeration.path_scores(model, paths), rtol=ROUNDING)
    log_z = recursion.forward(model).log_normalizer[0]
    np.testing.assert_allclose(np.exp(scores - log_z), probabilities, rtol=1e-10)


def test_expected_counts_are_the_gradient_of_the_log_normalizer() -> None:
    model = random_model(7, 0.0)
    counts = recursion.expected_counts(model)
    step = 1e-6  # central differences: truncation 1e-12, rounding about 1e-9
    for name, gradient in zip(("initial", "transition", "emission"), counts, strict=True):
        for index in [(0, *([0] * (gradient.ndim - 1))), (3, *([0] * (gradient.ndim - 2)), 2)]:
            values = []
            for sign in (1, -1):
                parts = {k: getattr(model, k).copy() for k in ("initial", "transition", "emission")}
                parts[name][index] += sign * step
                moved = Model(**parts, lengths=model.lengths, batch=model.batch)
                values.append(recursion.forward(moved).log_normalizer[index[0]])
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[index], abs=1e-7)


def test_nan_and_plus_infinity_spoil_only_their_own_sequence_and_only_when_used() -> None:
    clean = random_model(1, 0.0)
    emission = clean.emission.copy()
    emission[0, 2, 1], emission[3, 3, 0] = np.nan, np.inf  # sequence 3 has two real steps: not used
    spoilt = Model(clean.initial, clean.transition, emission, clean.lengths, clean.batch)
    assert spoilt.bad().tolist() == [True, False, False, False, False, False]
    for function in (lambda m: recursion.forward(m).filtered, recursion.marginals, recursion.pairwise):
        before, after = function(clean), function(spoilt)
        np.testing.assert_array_equal(after[1:], before[1:])
        assert np.isnan(after[0]).all()
    assert np.isnan(recursion.viterbi(spoilt)[1]).tolist() == spoilt.bad().tolist()
    assert np.isnan(recursion.forward(spoilt).log_normalizer).tolist() == spoilt.bad().tolist()


def test_long_sequences_do_not_drift() -> None:
    # Identity-like chain with equal rows: log Z is T * log(sum_s p_s e_s), in closed form.
    steps, row = 20_000, np.log([0.2, 0.3, 0.5])
    emission = np.broadcast_to([0.5, -1.0, 2.0], (1, steps, 3)) - 7.0
    model = as_model(row, np.broadcast_to(row, (3, 3)).copy(), emission.copy())
    expected = steps * math.log(math.fsum(np.exp(row + np.array([0.5, -1.0, 2.0]) - 7.0)))
    assert recursion.forward(model).log_normalizer[0] == pytest.approx(expected, rel=1e-12)


def test_magnitude_counts_used_potentials_only() -> None:
    model = as_model(
        np.array([1.0, -3.0]), np.array([[0.0, -5.0], [-np.inf, 2.0]]), np.full((1, 3, 2), -7.0), [2]
    )
    assert recursion.magnitude(model).tolist() == [3 + 5 + 2 * 7]


def test_log_sum_exp_by_hand() -> None:
    inf = math.inf
    rows: list[tuple[list[float], float]] = [
        ([], -inf),
        ([-inf, -inf], -inf),
        ([0.0, 0.0], math.log(2)),
        ([1000.0, 1000.0], 1000 + math.log(2)),
        ([math.log(0.25), math.log(0.5)], math.log(0.75)),
        ([-inf, 3.0], 3.0),
        ([inf, -inf], inf),
    ]
    for row, expected in rows:
        assert reduce.log_sum_exp_row(np.array(row)) == pytest.approx(expected, abs=ROUNDING)
    assert math.isnan(reduce.log_sum_exp_row(np.array([inf, math.nan])))
    values = np.log(np.arange(1.0, 25).reshape(2, 3, 4))
    table = reduce.logsumexp(values, (0, -1), keepdim=True)
    assert table.shape == (1, 3, 1)
    np.testing.assert_allclose(np.exp(table).ravel(), [68, 100, 132], rtol=ROUNDING)
    assert reduce.logsumexp(np.array(2.5), 0) == 2.5


def test_matrix_products_by_hand() -> None:
    x, y = np.log([[1.0, 2.0], [3.0, 4.0]]), np.log([[5.0, 6.0], [7.0, 8.0]])
    np.testing.assert_allclose(np.exp(reduce.logmatmulexp(x, y)), [[19, 22], [43, 50]], rtol=ROUNDING)
    values, indices = reduce.maxmatmul(np.array([[0.0, 1.0]]), np.array([[1.0, 5.0], [0.0, 9.0]]))
    assert values.tolist() == [[1.0, 10.0]]
    assert indices.tolist() == [[0, 1]]  # the first column ties and takes the lowest


def test_normalize_weights_by_hand() -> None:
    weights, evidence, ess = reduce.normalize_weights(np.log([[1.0, 1.0, 2.0]]))
    np.testing.assert_allclose(np.exp(weights), [[0.25, 0.25, 0.5]], rtol=ROUNDING)
    assert evidence[0] == pytest.approx(math.log(4 / 3), abs=ROUNDING)
    assert ess[0] == pytest.approx(16 / 6, abs=ROUNDING)
    weights, evidence, ess = reduce.normalize_weights(np.full((2, 3), -np.inf), dim=0)
    assert np.isneginf(weights).all()
    assert np.isneginf(evidence).all()
    assert ess.tolist() == [0.0, 0.0, 0.0]
    weights, evidence, ess = reduce.normalize_weights(np.array([np.inf, 3.0, np.inf]))
    assert weights.tolist() == [-math.log(2), -math.inf, -math.log(2)]
    assert (float(evidence), float(ess)) == (math.inf, 2.0)
    weights, evidence, ess = reduce.normalize_weights(np.empty((0,)))
    assert (weights.shape, float(evidence), float(ess)) == ((0,), -math.inf, 0.0)
