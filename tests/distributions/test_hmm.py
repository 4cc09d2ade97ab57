"""DiscreteHMM against enumeration of all paths, and its promises about shapes and infinities."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pyro.distributions as peer
import pytest
import torch
from hypothesis import given
from scipy import stats
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.distributions import DiscreteHMM
from tests.distributions.hmm_problems import Problem, build, problems
from tests.ops.checks import Recorder
from tests.ops.hmm_cases import indices
from tests.oracles import enumeration
from tests.oracles.model import Floats, Model

INF = math.inf
# Every seed is fixed, so a test passes always or never; a correct sampler would be rejected by a newly
# chosen seed with this probability per test of a distribution.
FAILURE_RATE = 1e-4


def tolerance(problem: Problem) -> float:
    return 1e-4 if problem.initial.dtype == torch.float32 else 1e-10


def assert_close(actual: Tensor, expected: Floats, tol: float) -> None:
    values = actual.detach().double().numpy()
    assert values.shape == expected.shape
    assert not np.isnan(values).any()
    assert (np.isneginf(values) == np.isneginf(expected)).all()
    finite = np.isfinite(expected)
    assert np.allclose(values[finite], expected[finite], rtol=tol, atol=tol)


def chi_square(observed: Floats, probabilities: Floats) -> float:
    """p-value of counts; cells that expect fewer than 5 are merged, impossible ones must be empty."""
    assert (observed[probabilities == 0] == 0).all()
    expected = probabilities * observed.sum()
    rare = expected < 5
    counts, wanted = (
        np.append(observed[~rare], observed[rare].sum()),
        np.append(expected[~rare], expected[rare].sum()),
    )
    keep = wanted > 0
    assert keep.sum() > 1
    return float(stats.chisquare(counts[keep], wanted[keep] * counts.sum() / wanted[keep].sum()).pvalue)


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


# ---- infinities ----------------------------------------------------------------------------------


def left_right(states: int) -> Tensor:
    keep = torch.ones(states, states).triu().tril(1).bool()
    return torch.randn(states, states, dtype=torch.float64).masked_fill(~keep, -INF)


def test_impossible_moves_have_weight_and_gradient_zero() -> None:
    transition = left_right(3).requires_grad_()
    initial = torch.tensor([0.0, -INF, -INF], dtype=torch.float64, requires_grad=True)
    hmm = DiscreteHMM(initial, transition, dist.Normal(torch.arange(3.0, dtype=torch.float64), 1.0))
    value = torch.randn(6, dtype=torch.float64)
    log_prob = hmm.log_prob(value)
    first = torch.autograd.grad(log_prob, [initial, transition], create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), [initial, transition])
    for grad in (*first, *second):
        assert grad.isfinite().all()
    for grad in (first[1], second[1]):
        assert (grad[transition == -INF] == 0).all()
        assert (grad[transition != -INF] != 0).any()
    assert (first[0][1:] == 0).all()
    path = hmm.viterbi(value).path
    assert (path.diff() >= 0).all()
    assert (hmm.sample_posterior(value, (50,)).diff() >= 0).all()


def test_an_impossible_sequence_is_minus_infinity_with_zero_gradient() -> None:
    initial = torch.zeros(2, requires_grad=True)
    transition = torch.tensor([[0.0, -INF], [-INF, 0.0]], requires_grad=True)
    probs = torch.tensor([[0.0, -INF], [-INF, 0.0]], requires_grad=True)
    hmm = DiscreteHMM(initial, transition, dist.Categorical(logits=probs))
    value = torch.tensor([[0, 0, 1], [1, 1, 1]])
    log_prob = hmm.log_prob(value)
    assert log_prob.tolist() == [-INF, pytest.approx(math.log(0.5))]
    log_prob[0].backward()
    assert initial.grad.tolist() == [0, 0]
    assert (transition.grad == 0).all()
    assert (probs.grad == 0).all()


def test_a_dead_state_is_a_row_of_zeros() -> None:
    transition = torch.tensor([[0.0, 0.0], [-INF, -INF]], requires_grad=True)
    hmm = DiscreteHMM(torch.zeros(2), transition, dist.Normal(torch.zeros(2), 1.0), duration=2)
    log_prob = hmm.log_prob(torch.zeros(2))
    # Start in state 0 (1/2), stay (1/2), move anywhere (1): the other half of the mass dies.
    assert log_prob.item() == pytest.approx(math.log(0.25) - math.log(2 * math.pi), rel=1e-6)
    log_prob.backward()
    assert transition.grad.isfinite().all()
    assert (transition.grad[1] == 0).all()
    assert hmm.sample((10,)).isfinite().all()


@pytest.mark.parametrize("method", ["filter", "marginals", "viterbi", "sample_posterior"])
def test_posteriors_of_an_impossible_sequence_name_it(method: str) -> None:
    eye = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    hmm = DiscreteHMM(torch.zeros(2), eye, dist.Categorical(logits=eye))
    value = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="batch element 1 has no possible path: at time step 2") as error:
        getattr(hmm, method)(value)
    assert (error.value.batch_index, error.value.time) == (1, 2)  # type: ignore[attr-defined]
    lengths = torch.tensor([3, 2, 2])
    getattr(hmm, method)(value, lengths=lengths)  # the impossible steps are padding


# ---- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_constructor", [False, True])
def test_padding_is_not_read(in_constructor: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(4, 5, generator=generator) + 0.1
    lengths = torch.tensor([5, 2, 0, 3])
    padding = torch.arange(5) >= lengths[:, None]
    answers = []
    for filler in (math.nan, -3.0, INF, 0.0):
        concentration = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        data = value.masked_fill(padding, filler).requires_grad_()
        given = {"lengths": lengths} if in_constructor else {}
        hmm = DiscreteHMM(torch.zeros(3), torch.eye(3), dist.Gamma(concentration, 1.0), **given)  # type: ignore[arg-type]
        given = {} if in_constructor else {"lengths": lengths}
        result = hmm.log_prob(data, **given)
        result.sum().backward()
        assert (data.grad[padding] == 0).all()
        assert (data.grad[~padding] != 0).all()
        answers.append((result.detach(), concentration.grad, hmm.marginals(data.detach(), **given).logits))
        assert hmm.viterbi(data.detach(), **given).path[padding].eq(-1).all()
    for answer in answers[1:]:
        for ours, first in zip(answer, answers[0], strict=True):
            assert torch.equal(ours, first)
    alone = DiscreteHMM(torch.zeros(3), torch.eye(3), dist.Gamma(torch.tensor([1.0, 2.0, 3.0]), 1.0))
    for row, length in enumerate(lengths):
        assert torch.equal(answers[0][0][row], alone.log_prob(value[row, :length]))


def test_padding_may_lie_outside_a_support_that_changes_with_time() -> None:
    effort = torch.tensor([3.0, 5.0, 0.0, 0.0])
    counts = torch.tensor([[2.0, 5.0, 0.0, 0.0], [1.0, 9.0, 9.0, 9.0]])
    observation = dist.Binomial(effort[:, None], torch.tensor([0.2, 0.8]))
    hmm = DiscreteHMM(torch.zeros(2), torch.eye(2), observation, lengths=torch.tensor([4, 1]))
    result = hmm.log_prob(counts)
    alone = DiscreteHMM(torch.zeros(2), torch.eye(2), dist.Binomial(3.0, torch.tensor([0.2, 0.8])))
    torch.testing.assert_close(result[1], alone.log_prob(counts[1, :1]))


def test_lengths_give_the_batch_shape_and_broadcast() -> None:
    problem = build(steps=4)
    hmm = problem.dist(lengths=[4, 2, 0])
    assert hmm.batch_shape == (3,)
    assert hmm.expand((2, 3)).log_prob(problem.value).shape == (2, 3)
    assert hmm.log_prob(problem.value)[2] == 0
    shorter = problem.dist().log_prob(problem.value[:2])
    torch.testing.assert_close(hmm.log_prob(problem.value)[1], shorter)
    assert torch.equal(hmm.log_prob(problem.value, lengths=[2, 2, 2]), shorter.expand(3))
    ragged = hmm.expand((2, 3)).log_prob(problem.value)
    assert torch.equal(ragged[0], ragged[1])


@pytest.mark.parametrize("first_emits", [False, True])
def test_an_empty_sequence(first_emits: bool) -> None:
    hmm = DiscreteHMM(
        torch.tensor([0.0, 1.0]),
        torch.eye(2),
        dist.Normal(torch.zeros(2), 1.0),
        first_emits=first_emits,
        duration=0,
    )
    assert hmm.event_shape == (0,)
    value = torch.zeros(3, 0)
    assert hmm.log_prob(value).tolist() == [0, 0, 0]
    torch.testing.assert_close(hmm.filter(value).logits, hmm.initial_logits.expand(3, 2))
    assert hmm.viterbi(value).path.shape == (3, 0)
    assert hmm.sample((4,)).shape == (4, 0)
    assert hmm.marginals(value).batch_shape == (3, 0)


# ---- what the class promises ---------------------------------------------------------------------


def test_filtering_lets_one_go_on() -> None:
    problem = build(steps=6)
    hmm = problem.dist()
    head, tail = problem.value[:4], problem.value[4:]
    rest = DiscreteHMM(hmm.filter(head).logits, problem.transition, hmm.observation_dist)
    torch.testing.assert_close(hmm.log_prob(head) + rest.log_prob(tail), hmm.log_prob(problem.value))
    torch.testing.assert_close(rest.filter(tail).logits, hmm.filter(problem.value).logits)


def test_masked_observations_are_missing() -> None:
    problem = build(steps=4, batches=((), (), (), (2,)))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]]).unsqueeze(-1)
    ours = DiscreteHMM(problem.initial, problem.transition, dist.Normal(problem.loc, 1.0).mask(mask))
    theirs = peer.DiscreteHMM(problem.initial, problem.transition, peer.Normal(problem.loc, 1.0).mask(mask))
    torch.testing.assert_close(ours.log_prob(problem.value), theirs.log_prob(problem.value))
    assert not torch.allclose(ours.log_prob(problem.value), problem.dist().log_prob(problem.value))
    nothing = DiscreteHMM(problem.initial, problem.transition, dist.Normal(problem.loc, 1.0).mask(False))
    torch.testing.assert_close(nothing.log_prob(problem.value), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("per_state", [False, True])
def test_masked_observations_may_be_nan(per_state: bool) -> None:
    mask = torch.tensor([True, False, True, False])
    value = torch.tensor([1.0, math.nan, 2.0, -5.0])
    concentration = torch.tensor([1.0, 3.0], requires_grad=True)
    observed = dist.Gamma(concentration, 1.0).mask(mask[:, None].expand(4, 2) if per_state else mask[:, None])
    hmm = DiscreteHMM(torch.zeros(2), torch.eye(2), observed)
    log_prob = hmm.log_prob(value)
    log_prob.backward()
    assert concentration.grad is not None
    assert concentration.grad.isfinite().all()
    clean = torch.tensor([1.0, 0.7, 2.0, 0.7])
    assert log_prob == hmm.log_prob(clean)
    assert hmm.log_prob(value, lengths=3).item() == pytest.approx(log_prob.item())  # the last step is masked
    # A step that one state sees counts.
    half = torch.tensor([[True, False], [True, True]])
    hmm = DiscreteHMM(torch.zeros(2), torch.eye(2), dist.Gamma(torch.tensor([1.0, 3.0]), 1.0).mask(half))
    theirs = peer.DiscreteHMM(
        torch.zeros(2), torch.eye(2), peer.Gamma(torch.tensor([1.0, 3.0]), 1.0).mask(half)
    )
    torch.testing.assert_close(hmm.log_prob(clean[:2]), theirs.log_prob(clean[:2]))


@pytest.mark.parametrize(
    ("observation", "event"),
    [
        (dist.MultivariateNormal(torch.randn(3, 2), torch.eye(2)), (2,)),
        (dist.Normal(torch.randn(3, 2, 4), 1.0).to_event(2), (2, 4)),
        (dist.Dirichlet(torch.rand(5, 3, 4) + 1), (4,)),
        (dist.Categorical(logits=torch.randn(3, 7)), ()),
        (dist.Normal(torch.randn(1), torch.rand(1) + 1), ()),
    ],
    ids=["vector", "matrix", "per step", "integer", "shared by the states"],
)
def test_any_observation_distribution(observation: dist.Distribution, event: tuple[int, ...]) -> None:
    hmm = DiscreteHMM(torch.randn(3), torch.randn(3, 3), observation, duration=5)
    assert hmm.event_shape == (5, *event)
    value = hmm.sample((4, 2))
    assert value.shape == (4, 2, 5, *event)
    assert hmm.support.check(value).all()
    expected = peer.DiscreteHMM(hmm.initial_logits, hmm.transition_logits, observation).log_prob(value)
    torch.testing.assert_close(hmm.log_prob(value), expected)
    assert hmm.viterbi(value).path.shape == (4, 2, 5)
    assert hmm.sample_posterior(value, (6,)).shape == (6, 4, 2, 5)


def test_a_shared_transition_is_never_copied() -> None:
    problem = build(states=3, steps=6, batches=((4,), (), (), ()))
    for transition, shape in (
        (problem.transition, [1, 1, 3, 3]),
        (problem.transition.expand(4, 1, 3, 3), [4, 1, 3, 3]),
    ):
        hmm = replace(problem, transition=transition).dist()
        for method in ("log_prob", "filter", "marginals", "viterbi", "sample_posterior"):
            with Recorder() as recorder:
                getattr(hmm, method)(problem.value)
            seen = [list(args[1].shape) for func, args, _ in recorder.calls if "hmm" in func.name()]  # type: ignore[attr-defined]
            assert seen == [shape], method


def test_expand_shares_and_computes_once() -> None:
    problem = build(steps=5, times=(0, 0))
    hmm = problem.dist(validate_args=False)
    wide = hmm.expand((100,))
    assert wide.batch_shape == (100,)
    assert wide.event_shape == hmm.event_shape == (5,)
    assert wide.transition_logits.data_ptr() == hmm.transition_logits.data_ptr()
    assert not wide._validate_args
    with Recorder() as recorder:
        result = wide.log_prob(problem.value)
    emissions = [args[2].shape[0] for func, args, _ in recorder.calls if "hmm" in func.name()]  # type: ignore[attr-defined]
    assert emissions == [1]
    assert torch.equal(result, hmm.log_prob(problem.value).expand(100))
    draws = wide.sample_posterior(problem.value)
    assert draws.shape == (100, 5)
    assert len(draws.unique(dim=0)) > 1
    assert wide.sample().shape == (100, 5)
    assert wide.to_event(1).log_prob(problem.value).shape == ()
    with pytest.raises(ValueError, match=r"batch shape \[100\] does not expand to \[3\]"):
        wide.expand((3,))


def test_logits_are_normalised_at_construction() -> None:
    hmm = DiscreteHMM(torch.tensor([1.0, 3.0]), torch.randn(4, 2, 2), dist.Normal(torch.zeros(2), 1.0))
    assert hmm.initial_logits.exp().sum().item() == pytest.approx(1)
    torch.testing.assert_close(hmm.transition_logits.exp().sum(-1), torch.ones(4, 2))


def test_copies_and_pickles() -> None:
    problem = build(steps=4, lengths=(2,))
    hmm = problem.dist(duration=4)
    for other in (copy.deepcopy(hmm), pickle.loads(pickle.dumps(hmm))):
        assert torch.equal(other.log_prob(problem.value), hmm.log_prob(problem.value))
        assert other.batch_shape == hmm.batch_shape


def test_a_nan_stays_in_its_sequence() -> None:
    problem = build(steps=3, batches=((), (), (), (2,)))
    value = problem.value.clone()
    value[1, 1] = math.nan
    hmm = DiscreteHMM(
        problem.initial,
        problem.transition,
        dist.Normal(problem.loc, 1.0, validate_args=False),
        validate_args=False,
    )
    result = hmm.log_prob(value)
    assert result[1].isnan()
    torch.testing.assert_close(result[0], problem.dist().log_prob(problem.value)[0])


def test_in_a_program() -> None:
    problem = build(steps=4, batches=((), (), (), (3,)), dtype=torch.float32)
    lengths = torch.tensor([4, 0, 2])
    hmm = problem.dist(lengths=lengths, duration=4)

    def model(value: Tensor | None) -> Tensor:
        with sumprod.plate("sequences", 3), handlers.scale(scale=2.0):
            result: Tensor = sumprod.sample("x", problem.dist(lengths=lengths, duration=4), obs=value)
        return result

    trace = handlers.trace(model).get_trace(problem.value)
    trace.compute_log_prob()
    site = trace.nodes["x"]
    torch.testing.assert_close(site["unscaled_log_prob"], hmm.log_prob(problem.value))
    torch.testing.assert_close(site["log_prob_sum"], 2 * hmm.log_prob(problem.value).sum())
    assert model(None).shape == (3, 4)


@pytest.mark.parametrize("first_emits", [False, True])
def test_inside_transforms_and_compiled(
    first_emits: bool, fresh_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's compiler switches the checks of all distributions off, for good, when it is first used.
    family = torch.distributions.Distribution
    monkeypatch.setattr(family, "_validate_args", family._validate_args)
    problem = build(steps=5, batches=((), (), (), (4,)), first_emits=first_emits)

    def log_prob(transition: Tensor, value: Tensor) -> Tensor:
        normal = dist.Normal(problem.loc, 1.0, validate_args=False)
        return DiscreteHMM(problem.initial, transition, normal, False, first_emits=first_emits).log_prob(
            value
        )

    transition = problem.transition.clone().requires_grad_()
    expected = log_prob(transition, problem.value)
    (gradient,) = torch.autograd.grad(expected.sum(), transition)
    mapped = torch.func.vmap(log_prob, (None, 0))(problem.transition, problem.value)
    torch.testing.assert_close(mapped, expected.detach())
    per_sequence = torch.func.vmap(torch.func.grad(log_prob), (None, 0))(problem.transition, problem.value)
    torch.testing.assert_close(per_sequence.sum(0), gradient)
    with warnings.catch_warnings():
        # torch's compiler breaks this rule of torch's own when it traces autograd.Function.
        warnings.filterwarnings("ignore", ".*should not be instantiated.*", DeprecationWarning)
        compiled = torch.compile(log_prob, fullgraph=True, backend="aot_eager")(transition, problem.value)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), transition)[0], gradient)


# ---- errors --------------------------------------------------------------------------------------

NORMAL = dist.Normal(torch.zeros(3), 1.0)
INITIAL, SQUARE = torch.zeros(3), torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor(0.0), SQUARE, NORMAL), "expected initial_logits to have at least one dim"),
        ((INITIAL, torch.zeros(3), NORMAL), "expected transition_logits to have at least two dims"),
        (
            (INITIAL, SQUARE, dist.Normal(0.0, 1.0)),
            "expected observation_dist to have at least one batch dim",
        ),
        ((torch.zeros(2), SQUARE, NORMAL), r"number of states differs: initial_logits \[2\]"),
        ((INITIAL, torch.zeros(2, 3), NORMAL), r"number of states differs.*transition_logits \[2, 3\]"),
        ((INITIAL, SQUARE, dist.Normal(torch.zeros(2), 1.0)), r"batch shape of observation_dist \[2\]"),
        ((torch.zeros(2, 3), torch.zeros(4, 1, 3, 3), NORMAL), r"shape mismatch.*\[2, 3\].*\[4, 1, 3, 3\]"),
        (
            (INITIAL, torch.zeros(6, 3, 3), dist.Normal(torch.zeros(5, 3), 1.0)),
            r"shape mismatch.*\[6, 3, 3\] has 6 transitions.*\[5, 3\], 5 steps",
        ),
        ((INITIAL, torch.zeros(6, 3, 3), NORMAL, None, 4), "duration, event_shape mismatch: 4 vs 6"),
        ((INITIAL, SQUARE, NORMAL, None, -1), "duration must be a non-negative int, got -1"),
        ((INITIAL, SQUARE, NORMAL, None, 1.5), "duration must be a non-negative int, got 1.5"),
        ((INITIAL * math.nan, SQUARE, NORMAL), "initial_logits"),
        ((INITIAL, SQUARE * math.nan, NORMAL), "transition_logits"),
    ],
)
def test_constructor_errors(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteHMM(*arguments)  # type: ignore[arg-type]


def test_types_of_arguments() -> None:
    with pytest.raises(TypeError, match=r"initial_logits must be a floating-point tensor, got torch.int64"):
        DiscreteHMM(torch.zeros(3, dtype=torch.int64), SQUARE, NORMAL)
    with pytest.raises(TypeError, match="transition_logits must be a floating-point tensor, got list"):
        DiscreteHMM(INITIAL, [[0.0]], NORMAL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lengths must be integers, got torch.float32"):
        DiscreteHMM(INITIAL, SQUARE, NORMAL, lengths=torch.ones(2))
    with pytest.raises(TypeError, match="lengths must be integers, got str"):
        DiscreteHMM(INITIAL, SQUARE, NORMAL, lengths="2")
    with pytest.raises(TypeError, match=r"value must be a torch.Tensor, got list"):
        DiscreteHMM(INITIAL, SQUARE, NORMAL).log_prob([0.0])  # type: ignore[arg-type]


def test_errors_of_first_emits_count_transitions() -> None:
    observed = dist.Normal(torch.zeros(5, 3), 1.0)
    assert DiscreteHMM(INITIAL, torch.zeros(4, 3, 3), observed, first_emits=True).event_shape == (5,)
    with pytest.raises(ValueError, match=r"T-1 transitions \(first_emits=True\)"):
        DiscreteHMM(INITIAL, torch.zeros(5, 3, 3), observed, first_emits=True)


def test_value_errors() -> None:
    heterogeneous = DiscreteHMM(torch.zeros(2, 3), torch.zeros(6, 3, 3), NORMAL)
    with pytest.raises(
        ValueError, match=r"right-most size of value must match event_shape.*\[\*, 6\].*\[5\]"
    ):
        heterogeneous.log_prob(torch.zeros(5))
    with pytest.raises(ValueError, match=r"right-most size of value must match event_shape.*\[\]"):
        heterogeneous.filter(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"value \[4, 6\] do not broadcast with batch shape \[2\]"):
        heterogeneous.viterbi(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"value \[6\] and lengths \[5\] do not broadcast"):
        heterogeneous.log_prob(torch.zeros(6), lengths=[1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 6\]"):
        heterogeneous.log_prob(torch.zeros(6), lengths=[7, 1])
    vector = DiscreteHMM(INITIAL, SQUARE, dist.Normal(torch.zeros(3, 2), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"must have shape \[\*, T, 2\].*got \[4, 3\]"):
        vector.log_prob(torch.zeros(4, 3))


@pytest.mark.parametrize("in_observation", [False, True])
def test_values_outside_the_support_are_refused(in_observation: bool) -> None:
    rates = dist.Poisson(torch.ones(3), validate_args=in_observation)
    hmm = DiscreteHMM(INITIAL, SQUARE, rates, validate_args=not in_observation)
    with pytest.raises(ValueError, match="within the support"):
        hmm.log_prob(torch.tensor([1.0, -2.0]))
    unchecked = DiscreteHMM(
        INITIAL, SQUARE, dist.Poisson(torch.ones(3), validate_args=False), validate_args=False
    )
    assert unchecked.log_prob(torch.tensor([1.0, 2.5])).isfinite()


def test_sampling_needs_a_length() -> None:
    hmm = DiscreteHMM(INITIAL, SQUARE, NORMAL)
    with pytest.raises(ValueError, match=r"the length is open.*duration=T"):
        hmm.sample()
    assert DiscreteHMM(INITIAL, torch.zeros(6, 3, 3), NORMAL).sample((2,)).shape == (2, 6)
    assert DiscreteHMM(torch.zeros(4, 3), SQUARE, NORMAL, duration=2).sample((5,)).shape == (5, 4, 2)
