"""hmm_filter: log p(z_t | x_<=t), normalised at every step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from sumprod import ops
from tests.ops.hmm_cases import INF, Case, Spec, build, impossible_at, specs
from tests.ops.posterior_contract import PosteriorContract
from tests.oracles import recursion
from tests.oracles.model import Floats, Model


class TestHmmFilter(PosteriorContract):
    name = "hmm_filter"

    @staticmethod
    def oracle(model: Model) -> Floats:
        return recursion.forward(model).filtered


@given(specs())
def test_equals_the_oracle(spec: Spec) -> None:
    TestHmmFilter().check(build(spec))


def test_hand_computed_healthy_fever() -> None:
    initial, transition = torch.tensor([0.6, 0.4]).log(), torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
    actual = ops.hmm_filter(initial, transition, emission).exp()
    joint = torch.tensor([[0.30, 0.04], [0.0904, 0.0342], [0.007696, 0.028584]])
    assert torch.allclose(actual, joint / joint.sum(-1, keepdim=True), rtol=1e-5)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_support_stays_empty_from_the_first_dead_step(step: int) -> None:
    actual = ops.hmm_filter(*impossible_at(step).args)
    assert (actual[1, step:] == -INF).all()
    assert actual[1, :step].isfinite().all()


def test_the_future_does_not_matter() -> None:
    case = build(Spec(batch=(3,), steps=9, seed=1))
    emission = case.emission.clone()
    emission[:, 6:] += torch.arange(12.0).reshape(1, 3, 4)
    changed = ops.hmm_filter(case.initial, case.transition, emission)
    before = ops.hmm_filter(*case.args)
    assert torch.equal(changed[:, :6], before[:, :6])
    assert not torch.equal(changed[:, 6:], before[:, 6:])


def test_unlikely_states_keep_their_log_probability() -> None:
    # State 1 falls behind by 300 at every step; in linear float32 it would vanish at the first.
    steps = 50
    transition = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    emission = torch.tensor([0.0, -300.0]).expand(1, steps, 2)
    actual = ops.hmm_filter(torch.zeros(2), transition, emission)
    expected = -300.0 * torch.arange(1, steps + 1)
    assert torch.allclose(actual[0, :, 1], expected, rtol=1e-6)
    assert torch.equal(actual[0, :, 0], torch.zeros(steps))


def test_last_row_is_the_last_marginal() -> None:
    case = build(Spec(batch=(4,), steps=12, states=6, dtype=torch.float64, seed=2))
    filtered = ops.hmm_filter(*case.args)[:, -1]
    assert torch.allclose(filtered, ops.hmm_marginals(*case.args)[:, -1], rtol=1e-12, atol=1e-13)


def test_one_state_has_probability_one() -> None:
    case = build(Spec(batch=(2,), steps=4, states=1))
    assert torch.equal(ops.hmm_filter(*case.args), torch.zeros(2, 4, 1))


@pytest.mark.slow
def test_a_million_steps() -> None:
    case = build(Spec("peaked_100", batch=(1,), steps=1_000_000, states=4, seed=3))
    actual = ops.hmm_filter(*case.args)[0].double().exp().numpy()
    expected = recursion.forward(case.model).filtered[0]
    assert abs(actual - math.e**expected).max() < 1e-4  # the contract's absolute tolerance


def test_nan_does_not_reach_back_or_the_padding() -> None:
    case = build(Spec(batch=(2,), steps=6, lengths_form="full", seed=4))
    emission = case.emission.clone()
    emission[0, 2, 1] = math.nan
    lengths = torch.tensor([4, 6])
    actual = ops.hmm_filter(*Case(case.initial, case.transition, emission).args, lengths=lengths)
    assert actual[0, 2:4].isnan().all()
    assert (actual[0, 4:] == -INF).all()
