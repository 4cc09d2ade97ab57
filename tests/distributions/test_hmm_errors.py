"""DiscreteHMM: what it refuses, and in which words."""

from __future__ import annotations

import math

import pytest
import torch

import sumprod.distributions as dist
from sumprod.distributions import DiscreteHMM

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
