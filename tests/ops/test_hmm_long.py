"""Paths of few long sequences, against the oracle: kernels may cut these into pieces and join them again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ops import test_hmm_sample, test_hmm_viterbi
from tests.ops.checks import uniforms_for
from tests.ops.hmm_cases import Case, Spec, build

STEPS = 2500


def long_case(kind: str, form: str, batch: int, states: int, dtype: torch.dtype) -> Case:
    """Sequences of full length, of one step, of none, and of lengths between."""
    case = build(Spec(kind, (batch,), STEPS, states, transition_form=form, dtype=dtype, seed=states))
    return replace(case, lengths=torch.tensor([STEPS, 1, 700, 0, STEPS - 1][:batch])).alive()


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_size = pytest.mark.parametrize(
    ("kind", "form", "batch", "states"),
    [
        ("dense", "SS", 5, 3),
        ("sparse", "SS", 2, 8),
        ("peaked_50", "B1SS", 3, 8),
        ("dense", "B1SS", 3, 13),
        ("left_right", "SS", 1, 16),
        ("sparse", "B1SS", 3, 20),
        ("dense", "SS", 1, 40),
        ("dense", "B1SS", 2, 60),
        ("dense", "B1SS", 2, 100),
    ],
)


@every_size
@every_dtype
def test_viterbi(kind: str, form: str, batch: int, states: int, dtype: torch.dtype) -> None:
    test_hmm_viterbi.check(long_case(kind, form, batch, states, dtype))


@every_size
@every_dtype
def test_ties_take_the_lowest_state_from_the_end(
    kind: str, form: str, batch: int, states: int, dtype: torch.dtype
) -> None:
    spec = Spec(
        kind, (batch,), STEPS, states, transition_form=form, lengths_form="random", dtype=dtype, seed=3
    )
    test_hmm_viterbi.check_exact(test_hmm_viterbi.whole_numbers(spec, 2))


@every_size
@every_dtype
def test_samples(
    kind: str, form: str, batch: int, states: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = long_case(kind, form, batch, states, dtype)
    test_hmm_sample.check_inverted(case, uniforms_for(case, generator, 2))
