"""OrderedLogistic: differences of logistic distribution functions, also far in the tails."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pyro.distributions as peer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sumprod.distributions import OrderedLogistic
from tests.distributions.family_checks import assert_counts_follow, check_contract

F64 = torch.float64


def reference(predictor: float, cutpoints: list[float]) -> list[float]:
    """log P(y = k), with sums of exact rationals of the exponentials, so that nothing cancels."""
    odds = [Fraction(math.exp(c - predictor)) for c in cutpoints]
    below = [Fraction(0), *(x / (1 + x) for x in odds), Fraction(1)]
    probs = [b - a for a, b in itertools.pairwise(below)]
    return [math.log(p.numerator) - math.log(p.denominator) for p in probs]


@given(
    st.floats(-30, 30),
    st.lists(st.floats(0.125, 8), min_size=0, max_size=4),
    st.floats(-20, 20),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_log_probabilities(predictor: float, gaps: list[float], first: float, dtype: torch.dtype) -> None:
    predictor = torch.tensor(predictor, dtype=dtype).item()
    cuts = torch.tensor([first, *gaps], dtype=F64).cumsum(0).to(dtype)
    law = OrderedLogistic(torch.tensor(predictor, dtype=dtype), cuts)
    actual = law.log_prob(torch.arange(len(gaps) + 2))
    tol = 100 * torch.finfo(dtype).eps
    assert actual.tolist() == pytest.approx(reference(predictor, cuts.tolist()), rel=tol, abs=30 * tol)
    assert law.probs.sum().item() == pytest.approx(1, rel=tol)


def test_tails_keep_their_gradient() -> None:
    predictor = torch.tensor([-80.0, 80.0], requires_grad=True)
    cutpoints = torch.tensor([-1.0, 1.0], requires_grad=True)
    log_prob = OrderedLogistic(predictor, cutpoints).log_prob(torch.tensor([1, 1]))
    assert log_prob.tolist() == pytest.approx(
        [-79 + math.log(1 - math.exp(-2)), -79 + math.log(1 - math.exp(-2))]
    )
    log_prob.sum().backward()
    assert predictor.grad is not None
    assert predictor.grad.tolist() == pytest.approx([1, -1])


def test_derivatives() -> None:
    def log_prob(predictor: Tensor, cutpoints: Tensor) -> Tensor:
        return OrderedLogistic(predictor, cutpoints).log_prob(torch.tensor([[0], [1], [2]]))

    inputs = [
        torch.randn(2, dtype=F64, requires_grad=True),
        torch.tensor([-1.0, 0.5], dtype=F64, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_contract_and_samples() -> None:
    predictor = torch.tensor([[-1.0, 0.0, 2.0]], dtype=F64)
    cutpoints = torch.tensor([[-1.0, 0.5], [0.0, 1.0]], dtype=F64).reshape(2, 1, 2)
    check_contract(
        OrderedLogistic, {"predictor": predictor.expand(2, 3), "cutpoints": cutpoints.expand(2, 3, 2)}
    )
    law = OrderedLogistic(predictor, cutpoints)
    assert law.batch_shape == (2, 3)
    assert law.enumerate_support().shape == (3, 2, 3)
    draws = law.sample((10_000,))
    for row in range(2):
        for column in range(3):
            assert_counts_follow(draws[:, row, column], law.probs[row, column])


def test_streams_and_numbers_of_pyro() -> None:
    results = []
    for family in (OrderedLogistic, peer.OrderedLogistic):
        torch.manual_seed(4)
        law = family(torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0, 2.0]))
        draws = law.sample((50,))
        results.append((draws, law.log_prob(draws), law.probs, law.expand((3, 2)).predictor))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"Expected parameter cutpoints .*OrderedLogistic"):
        OrderedLogistic(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"Expected parameter predictor .*OrderedLogistic"):
        OrderedLogistic(torch.tensor(math.nan), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"cutpoints must have shape \[\*B, K\], K >= 1, got \[\]"):
        OrderedLogistic(torch.zeros(2), torch.tensor(0.0))
