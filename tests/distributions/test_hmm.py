"""DiscreteHMM against enumeration of all paths, and its promises about shapes and infinities."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pyro.distributions as peer
import pytest
import torch
from hypothesis import given
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import DiscreteHMM
from tests.distributions.hmm_problems import Problem, build, problems
from tests.goodness_of_fit import FAILURE_RATE, chi_square
from tests.ops.hmm_cases import indices
from tests.oracles import enumeration
from tests.oracles.model import Floats, Model

INF = math.inf


def tolerance(problem: Problem) -> float:
    return 1e-4 if problem.initial.dtype == torch.float32 else 1e-10


def assert_close(actual: Tensor, expected: Floats, tol: float) -> None:
    values = actual.detach().double().numpy()
    assert values.shape == expected.shape
    assert not np.isnan(values).any()
    assert (np.isneginf(values) == np.isneginf(expected)).all()
    finite = np.isfinite(expected)
    assert np.allclose(values[finite], expected[finite], rtol=tol, atol=tol)


# ---- against enumeration -------------------------------------------------------------------------


@given(problems())
def test_log_prob_is_the_sum_over_all_paths(problem: Problem) -> None:
    actual = problem.dist().log_prob(problem.value)
    assert actual.shape == problem.batch
    assert actual.dtype == problem.initial.dtype
    for index in indices(problem.batch):
        expected = enumeration.log_normalizer(problem.model(index))
        assert_close(actual[index], np.array(expected), tolerance(problem))


@given(problems())
def test_filter_and_marginals_are_sums_over_paths(problem: Problem) -> None:
    hmm = problem.dist()
    last, every, smooth = (
        hmm.filter(problem.value),
        hmm.filter(problem.value, all=True),
        hmm.marginals(problem.value),
    )
    assert last.batch_shape == problem.batch
    assert every.batch_shape == smooth.batch_shape == (*problem.batch, problem.steps)
    silent = 0 if problem.first_emits else 1
    for index in indices(problem.batch):
        model, length = problem.model(index), problem.length(index)

        def held(rows: Floats, length: int = length, model: Model = model) -> Floats:
            """The last row repeated over the padding, the initial distribution where there is no row."""
            final = rows[-1] if length else model.initial[0]
            return np.array([*rows, *[final] * (problem.steps - length), final])

        filtered = held(enumeration.filtered(model)[silent:])
        smoothed = held(enumeration.marginals(model)[silent:])
        assert_close(last.logits[index], filtered[-1], tolerance(problem))
        assert_close(every.logits[index], filtered[:-1], tolerance(problem))
        assert_close(smooth.logits[index], smoothed[:-1], tolerance(problem))


@given(problems())
def test_viterbi_finds_a_best_path(problem: Problem) -> None:
    path, score = problem.dist().viterbi(problem.value)
    assert path.shape == (*problem.batch, problem.steps)
    assert score.shape == problem.batch
    for index in indices(problem.batch):
        length = problem.length(index)
        paths, weights = problem.path_weights(index)
        assert_close(score[index], np.array(weights.max()), tolerance(problem))
        chosen = (paths == path[index][:length].numpy()).all(-1)
        assert weights[chosen] == pytest.approx(weights.max(), rel=tolerance(problem), abs=tolerance(problem))
        assert (path[index][length:] == -1).all()


@pytest.mark.parametrize("first_emits", [False, True])
def test_posterior_paths_have_the_exact_distribution(first_emits: bool) -> None:
    problem = build(
        states=3, steps=3, batches=((), (), (), (2,)), first_emits=first_emits, lengths=(2,), seed=3
    )
    problem = replace(problem, lengths=torch.tensor([3, 2]))
    draws = problem.dist().sample_posterior(problem.value, (100, 100))
    assert draws.shape == (100, 100, 2, 3)
    assert (draws[..., 1, 2] == -1).all()
    for index in indices(problem.batch):
        length = problem.length(index)
        paths, weights = problem.path_weights(index)
        codes = (
            draws.reshape(-1, *problem.batch, 3)[:, index[0], :length].numpy() @ 3 ** np.arange(length)[::-1]
        )
        assert (paths @ 3 ** np.arange(length)[::-1] == np.arange(len(paths))).all()
        probabilities = np.exp(weights - enumeration.log_sum(weights))
        counts = np.bincount(codes, minlength=len(paths)).astype(float)
        assert chi_square(counts, probabilities) > FAILURE_RATE


@pytest.mark.parametrize("first_emits", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_sequences_have_the_exact_distribution(first_emits: bool, per_step: bool) -> None:
    steps, symbols = 3, 3
    shape = (steps - first_emits, 2, 2) if per_step else (2, 2)
    transition = torch.randn(shape, dtype=torch.float64)
    observation = dist.Categorical(logits=torch.randn(2, symbols, dtype=torch.float64))
    hmm = DiscreteHMM(
        torch.randn(2, dtype=torch.float64), transition, observation, duration=steps, first_emits=first_emits
    )
    draws = hmm.sample((20_000,))
    assert draws.shape == (20_000, steps)
    everything = torch.tensor(list(itertools.product(range(symbols), repeat=steps)))
    probabilities = hmm.log_prob(everything).exp().numpy()
    assert probabilities.sum() == pytest.approx(1)
    counts = np.bincount(draws.numpy() @ symbols ** np.arange(steps)[::-1], minlength=len(everything))
    assert chi_square(counts.astype(float), probabilities) > FAILURE_RATE


# ---- against Pyro --------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [((), (), (), ()), ((4,), (), (), ()), ((2, 1), (3,), (), (5, 2, 3))])
@pytest.mark.parametrize("times", [(None, None), (1, 1), (0, 1), (1, 0), (0, 0)])
def test_numbers_and_shapes_of_pyro(
    batches: tuple[tuple[int, ...], ...], times: tuple[int | None, int | None]
) -> None:
    problem = build(steps=5, batches=batches, times=times, seed=7)  # type: ignore[arg-type]
    theirs = peer.DiscreteHMM(problem.initial, problem.transition, peer.Normal(problem.loc, 1.0))
    ours = problem.dist()
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    torch.testing.assert_close(ours.log_prob(problem.value), theirs.log_prob(problem.value))
    expected = theirs.filter(problem.value).logits
    torch.testing.assert_close(ours.filter(problem.value).logits, expected)
    wider = (6, *theirs.batch_shape)
    if not batches[3]:
        expanded = theirs.expand(wider).log_prob(problem.value)
        torch.testing.assert_close(ours.expand(wider).log_prob(problem.value), expanded)


def test_trap_50_the_first_state_precedes_the_first_observation() -> None:
    initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
    seen = dist.Delta(torch.tensor([0.0, 1.0]))  # the observation shows the state
    value = torch.tensor([1.0, 0.0, 1.0])
    assert DiscreteHMM(initial, transition, seen).log_prob(value) == 0
    assert DiscreteHMM(initial, transition, seen, first_emits=True).log_prob(value) == -INF
    assert DiscreteHMM(initial, transition, seen, first_emits=True).log_prob(1 - value) == 0
    problem = build(steps=4, times=(0, 0), seed=1)
    silent = torch.cat([torch.full((1, 3), 0.0, dtype=torch.float64), problem.loc])
    theirs = peer.DiscreteHMM(problem.initial, problem.transition, peer.Normal(problem.loc, 1.0))
    # Pyro's model is that of the other libraries with a first step whose observation tells nothing.
    mask = torch.tensor([False, True, True, True, True])[:, None]
    other = DiscreteHMM(
        problem.initial, problem.transition, dist.Normal(silent, 1.0).mask(mask), first_emits=True
    )
    padded = torch.cat([torch.zeros(1, dtype=torch.float64), problem.value])
    torch.testing.assert_close(other.log_prob(padded), theirs.log_prob(problem.value))


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first_emits", [False, True])
@pytest.mark.parametrize("times", [(None, None), (0, 0)])
def test_log_prob_is_differentiable_twice(first_emits: bool, times: tuple[int | None, int | None]) -> None:
    problem = build(states=2, steps=3, batches=((), (), (), (2,)), times=times, first_emits=first_emits)
    lengths = torch.tensor([3, 2])

    def log_prob(initial: Tensor, transition: Tensor, loc: Tensor, scale: Tensor, value: Tensor) -> Tensor:
        hmm = DiscreteHMM(
            initial, transition, dist.Normal(loc, scale), first_emits=first_emits, lengths=lengths
        )
        return hmm.log_prob(value)

    scale = torch.tensor([1.0, 0.7], dtype=torch.float64)
    leaves = [problem.initial, problem.transition, problem.loc, scale, problem.value]
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_posteriors_are_differentiable() -> None:
    problem = build(states=2, steps=3)

    def posteriors(initial: Tensor, transition: Tensor, loc: Tensor) -> tuple[Tensor, ...]:
        hmm = DiscreteHMM(initial, transition, dist.Normal(loc, 1.0))
        value = problem.value
        return hmm.filter(value).probs, hmm.marginals(value).probs, hmm.viterbi(value).score

    inputs = [leaf.clone().requires_grad_() for leaf in (problem.initial, problem.transition, problem.loc)]
    assert torch.autograd.gradcheck(posteriors, inputs)


def test_gradients_reach_logits_as_the_normalised_ones() -> None:
    problem = build(steps=4)
    shifted = replace(problem, initial=problem.initial + 3.0, transition=problem.transition - 5.0)
    grads = []
    for case in (problem, shifted):
        case.initial.requires_grad_(), case.transition.requires_grad_()
        log_prob = case.dist().log_prob(case.value)
        grads.append(torch.autograd.grad(log_prob, [case.initial, case.transition]))
        assert grads[-1][1].sum(-1).abs().max() < 1e-12  # a constant per row changes nothing
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other)
