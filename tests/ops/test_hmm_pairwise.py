"""hmm_pairwise: log p(z_t = i, z_t+1 = j | x), axes (step, from, to)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from sumprod import ops
from tests.ops.checks import gradients
from tests.ops.hmm_cases import INF, Spec, build, impossible_at, specs
from tests.ops.posterior_contract import PosteriorContract
from tests.oracles import recursion
from tests.oracles.model import Floats, Model


class TestHmmPairwise(PosteriorContract):
    name = "hmm_pairwise"
    state_dims = 2

    @staticmethod
    def oracle(model: Model) -> Floats:
        return recursion.pairwise(model)


@given(specs())
def test_equals_the_oracle(spec: Spec) -> None:
    TestHmmPairwise().check(build(spec))


def test_hand_computed_two_steps() -> None:
    initial, transition = torch.tensor([0.6, 0.4]).log(), torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    emission = torch.tensor([[0.5, 0.1], [0.4, 0.3]]).log()
    joint = torch.tensor([[0.30 * 0.7 * 0.4, 0.30 * 0.3 * 0.3], [0.04 * 0.4 * 0.4, 0.04 * 0.6 * 0.3]])
    actual = ops.hmm_pairwise(initial, transition, emission).exp()
    assert torch.allclose(actual, (joint / joint.sum())[None], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_the_gradient_of_the_log_normalizer(dtype: torch.dtype) -> None:
    case = build(
        Spec(
            batch=(5,),
            steps=7,
            states=6,
            transition_form="BTSS",
            lengths_form="random",
            dtype=dtype,
            seed=1,
        )
    )
    gradient = gradients(lambda inputs: ops.hmm_log_normalizer(*inputs.args, lengths=inputs.lengths), case)[1]
    actual = ops.hmm_pairwise(*case.args, lengths=case.lengths).exp()
    assert torch.allclose(actual, gradient, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_an_impossible_sequence_has_no_pairs_at_any_step(step: int) -> None:
    assert (ops.hmm_pairwise(*impossible_at(step).args)[1] == -INF).all()


def test_the_axes_are_from_and_to() -> None:
    # The only path is 0 -> 1 -> 2.
    transition = torch.full((3, 3), -INF)
    transition[0, 1] = transition[1, 2] = 0.0
    actual = ops.hmm_pairwise(torch.tensor([0.0, -INF, -INF]), transition, torch.zeros(1, 3, 3))
    expected = torch.full((2, 3, 3), -INF)
    expected[0, 0, 1] = expected[1, 1, 2] = 0.0
    assert torch.equal(actual[0], expected)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_one_step_has_no_pairs(batch: tuple[int, ...]) -> None:
    for form in ("SS", "BTSS"):
        case = build(Spec(batch=batch, steps=1, states=4, transition_form=form))
        assert ops.hmm_pairwise(*case.args).shape == (*batch, 0, 4, 4)


def test_nan_spoils_every_real_pair_but_not_the_padding() -> None:
    case = build(Spec(batch=(2,), steps=6, seed=4))
    emission = case.emission.clone()
    emission[0, 2, 1] = math.nan
    actual = ops.hmm_pairwise(case.initial, case.transition, emission, lengths=torch.tensor([4, 6]))
    assert actual[0, :3].isnan().all()
    assert (actual[0, 3:] == -INF).all()
    assert actual[1].isfinite().all()


def test_unlikely_pairs_keep_their_log_probability() -> None:
    # To be in state 1 costs 1e4 per step, to enter it 100: a single visit at step t costs 1e4 + 100.
    transition = torch.tensor([[0.0, -100.0], [0.0, -INF]])
    emission = torch.tensor([0.0, -1e4]).expand(1, 20, 2)
    actual = ops.hmm_pairwise(torch.tensor([0.0, -INF]), transition, emission)
    visits = torch.full((19,), -1e4 - 100)
    assert torch.allclose(actual[0, :, 0, 1], visits, rtol=1e-6)
    assert torch.allclose(actual[0, 1:, 1, 0], visits[1:], rtol=1e-6)
    assert (actual[0, :, 1, 1] == -INF).all()
    assert torch.equal(actual[0, :, 0, 0], torch.zeros(19))
