"""hmm_marginals: log smoothing marginals, equal to the gradient of the log normaliser."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from sumprod import ops
from tests.ops.checks import gradients
from tests.ops.hmm_cases import INF, Case, Spec, build, forced_path, impossible_at, specs
from tests.ops.posterior_contract import PosteriorContract
from tests.oracles import recursion
from tests.oracles.model import Floats, Model


class TestHmmMarginals(PosteriorContract):
    name = "hmm_marginals"

    @staticmethod
    def oracle(model: Model) -> Floats:
        return recursion.marginals(model)


@given(specs())
def test_equals_the_oracle(spec: Spec) -> None:
    TestHmmMarginals().check(build(spec))


def test_published_umbrella_world() -> None:
    # Russell and Norvig: P(rain on day 1 | umbrella on days 1 and 2) = 0.883, printed to three digits.
    initial, transition = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
    emission = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
    actual = ops.hmm_marginals(initial, transition, emission).exp()
    assert actual[:, 0].tolist() == pytest.approx([0.883, 0.883], abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_the_gradient_of_the_log_normalizer(dtype: torch.dtype) -> None:
    case = build(Spec(batch=(5,), steps=9, states=6, lengths_form="random", dtype=dtype, seed=1))
    gradient = gradients(lambda inputs: ops.hmm_log_normalizer(*inputs.args, lengths=inputs.lengths), case)[2]
    actual = ops.hmm_marginals(*case.args, lengths=case.lengths).exp()
    assert torch.allclose(actual, gradient, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_an_impossible_sequence_has_no_marginals_at_any_step(step: int) -> None:
    assert (ops.hmm_marginals(*impossible_at(step).args)[1] == -INF).all()


def test_the_future_rules_states_out() -> None:
    # State 0 cannot be left, and the last step cannot be state 0: no step can.
    transition = torch.tensor([[0.0, -INF], [-1.0, -1.0]])
    emission = torch.zeros(1, 4, 2)
    emission[0, 3, 0] = -INF
    actual = ops.hmm_marginals(torch.zeros(2), transition, emission)
    assert torch.equal(actual[0], torch.tensor([-INF, 0.0]).expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unlikely_states_keep_their_log_probability(dtype: torch.dtype) -> None:
    # Two chains that never meet; the second loses by 1e4 at each of 50 steps, 5e5 in all.
    transition = torch.tensor([[0.0, -INF], [-INF, 0.0]], dtype=dtype)
    emission = torch.tensor([0.0, -1e4], dtype=dtype).expand(1, 50, 2)
    actual = ops.hmm_marginals(torch.zeros(2, dtype=dtype), transition, emission)
    assert torch.allclose(actual[0, :, 1], torch.full((50,), -5e5, dtype=dtype), rtol=1e-6)
    assert torch.equal(actual[0, :, 0], torch.zeros(50, dtype=dtype))


def test_forced_path_has_probability_one_whatever_the_gaps() -> None:
    actual = ops.hmm_marginals(*forced_path(1e4).args)
    assert torch.equal(actual, torch.full((5, 5), -INF).fill_diagonal_(0.0).expand(2, 5, 5))


def test_nan_spoils_every_real_step_but_not_the_padding() -> None:
    case = build(Spec(batch=(2,), steps=6, seed=4))
    emission = case.emission.clone()
    emission[0, 2, 1] = math.nan
    actual = ops.hmm_marginals(case.initial, case.transition, emission, lengths=torch.tensor([4, 6]))
    assert actual[0, :4].isnan().all()
    assert (actual[0, 4:] == -INF).all()
    assert actual[1].isfinite().all()


def test_consistent_with_pairwise() -> None:
    case = build(Spec("sparse", batch=(4,), steps=7, states=5, dtype=torch.float64, seed=5)).alive()
    single = ops.hmm_marginals(*case.args, lengths=case.lengths).exp()
    pairs = ops.hmm_pairwise(*case.args, lengths=case.lengths).exp()
    assert case.lengths is not None
    assert (case.lengths > 1).any()
    for n, length in enumerate(case.lengths.tolist()):
        assert torch.allclose(pairs[n, : max(length - 1, 0)].sum(-1), single[n, : max(length - 1, 0)])
        assert torch.allclose(pairs[n, : max(length - 1, 0)].sum(-2), single[n, 1 : max(length, 1)])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("peaked_100", 1.0), ("left_right", 1e4)])
def test_a_million_steps(kind: str, scale: float) -> None:
    case = build(Spec(kind, batch=(1,), steps=1_000_000, states=4, scale=scale, seed=3))
    actual = ops.hmm_marginals(*case.args)[0].double().exp().numpy()
    expected = recursion.marginals(case.model)[0]
    assert abs(actual - math.e**expected).max() < 1e-4  # the contract's absolute tolerance


def test_long_sequences_do_not_drift() -> None:
    case: Case = build(Spec("peaked_50", batch=(2,), steps=5_000, states=4, scale=30.0, seed=6))
    actual = ops.hmm_marginals(*case.args).double().exp().numpy()
    assert abs(actual - math.e ** recursion.marginals(case.model)).max() < 1e-4  # the contract
