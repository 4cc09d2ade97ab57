"""DiscreteHMM: what it does with masks, shapes, copies, programs and compilers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import replace

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.distributions import DiscreteHMM
from tests.distributions.hmm_problems import build
from tests.ops.checks import Recorder


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
