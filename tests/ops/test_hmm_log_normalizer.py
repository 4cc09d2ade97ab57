"""hmm_log_normalizer: values against the float64 oracle. Derivatives: test_hmm_log_normalizer_grad.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sumprod import ops
from tests.ops.hmm_cases import (
    INF,
    KINDS,
    Case,
    Spec,
    assert_log_close,
    build,
    forced_path,
    impossible_at,
    many_states,
    near_underflow,
    rounding,
    specs,
)
from tests.oracles import recursion


def log_normalizer(case: Case) -> Tensor:
    return ops.hmm_log_normalizer(*case.args, lengths=case.lengths)


def check(case: Case) -> None:
    actual = log_normalizer(case)
    assert actual.dtype == case.emission.dtype
    assert actual.shape == case.batch
    expected = recursion.forward(case.model).log_normalizer
    assert_log_close(actual.reshape(-1), expected, rounding(case))
    # The contract's own words; where large terms cancel, only the rounding bound above can hold.
    relative = 1e-5 if actual.dtype == torch.float32 else 1e-12
    values = actual.double().reshape(-1).numpy()
    settled = np.isfinite(expected) & (np.abs(expected) > 0.1 * recursion.magnitude(case.model))
    error = np.abs(values[settled] - expected[settled])
    assert (error <= relative * np.abs(expected[settled])).all()


@given(specs())
def test_equals_the_oracle(spec: Spec) -> None:
    check(build(spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_structure_over_two_lane_groups(kind: str, scale: float, dtype: torch.dtype) -> None:
    check(
        build(
            Spec(
                kind,
                batch=(19,),
                steps=60,
                states=17,
                scale=scale,
                lengths_form="random",
                dtype=dtype,
                seed=3,
            )
        )
    )


def test_many_states() -> None:
    for case in many_states():
        check(case)


def test_thousands_of_sequences_near_the_underflow_boundary() -> None:
    for case in near_underflow():
        check(case)


def test_hand_computed_healthy_fever() -> None:
    initial, transition = torch.tensor([0.6, 0.4]).log(), torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
    actual = ops.hmm_log_normalizer(initial, transition, emission)
    assert actual.shape == ()
    assert actual.item() == pytest.approx(math.log(0.03628), abs=1e-6)  # float32, three steps


def test_lengths_zero_and_one() -> None:
    case = replace(build(Spec(batch=(3,), seed=1)), lengths=torch.tensor([0, 1, 7]))
    actual = log_normalizer(case)
    assert actual[0].item() == 0.0
    first = (case.initial + case.emission[1, 0]).double().logsumexp(0)
    assert actual[1].item() == pytest.approx(first.item(), abs=1e-6)  # one float32 logsumexp
    check(case)


def test_length_zero_is_zero_even_for_an_impossible_model() -> None:
    initial, transition = torch.full((3,), -INF), torch.full((3, 3), -INF)
    emission = torch.full((2, 4, 3), -INF)
    actual = ops.hmm_log_normalizer(initial, transition, emission, lengths=torch.tensor([0, 4]))
    assert actual.tolist() == [0.0, -INF]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_impossible_step_gives_minus_infinity_for_its_sequence_only(step: int, dtype: torch.dtype) -> None:
    case = impossible_at(step, dtype=dtype)
    actual = log_normalizer(case)
    assert actual[1].item() == -INF
    check(case)
    without = log_normalizer(Case(case.initial, case.transition, case.emission[[0, 2]]))
    assert torch.equal(actual[[0, 2]], without)


@pytest.mark.parametrize("part", ["initial", "transition"])
def test_impossible_start_or_move(part: str) -> None:
    case = build(Spec(batch=(2,), lengths_form="none"))
    case = replace(case, **{part: torch.full_like(getattr(case, part), -INF)})
    assert log_normalizer(case).tolist() == [-INF, -INF]
    only_first = replace(case, lengths=torch.tensor([1, 0]))
    actual = log_normalizer(only_first)
    assert actual[1].item() == 0.0
    assert (actual[0].item() == -INF) == (part == "initial")


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("part", ["initial", "transition", "emission"])
@pytest.mark.parametrize("size", [3, 20])
def test_nan_and_plus_infinity_stay_in_their_sequence(part: str, value: float, size: int) -> None:
    case = build(Spec(batch=(size,), initial_form="BS", transition_form="BTSS", states=5, seed=2))
    clean = log_normalizer(case)
    spoilt = getattr(case, part).clone()
    spoilt[1, ..., 2] = value
    actual = log_normalizer(replace(case, **{part: spoilt}))
    assert actual[1].isnan()
    others = torch.arange(size) != 1
    assert torch.equal(actual[others], clean[others])
    assert clean.isfinite().all()


@pytest.mark.parametrize("gap", [1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forced_path_through_large_gaps(gap: float, dtype: torch.dtype) -> None:
    actual = log_normalizer(forced_path(gap, dtype))
    assert actual.tolist() == pytest.approx([-5 * gap - 12, -12.0], rel=1e-6)


@pytest.mark.parametrize("mask", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_step_is_only_very_unlikely(mask: float, dtype: torch.dtype) -> None:
    # A finite mask is a number like any other: the only way leads through it, and the sum says so.
    transition = torch.full((2, 2), mask, dtype=dtype).fill_diagonal_(0.0)
    emission = torch.tensor([[[0.0, -INF], [-INF, 0.0], [-INF, 0.0]]], dtype=dtype)
    actual = ops.hmm_log_normalizer(torch.zeros(2, dtype=dtype), transition, emission)
    assert actual.item() == pytest.approx(mask, rel=1e-6)


def test_masks_equal_minus_infinity_when_another_path_exists() -> None:
    hard = build(Spec("left_right", batch=(4,), seed=5))
    for kind in ("mask_1e9", "mask_min"):
        soft = build(Spec(kind, batch=(4,), seed=5))
        assert torch.equal(soft.emission, hard.emission)
        assert torch.allclose(log_normalizer(soft), log_normalizer(hard), rtol=1e-6, atol=0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype) -> None:
    case = build(Spec(batch=(5,), states=9, lengths_form="random", seed=4)).to(half)
    actual = log_normalizer(case)
    assert actual.dtype == half
    assert torch.equal(actual, log_normalizer(case.to(torch.float32)).to(half))


def test_mixed_dtypes_are_promoted() -> None:
    case = build(Spec(seed=6))
    wide = case.to(torch.float64)
    for mixed in (
        Case(wide.initial, case.transition, case.emission),
        Case(case.initial, wide.transition, case.emission),
        Case(case.initial, case.transition, wide.emission),
    ):
        actual = log_normalizer(mixed)
        assert actual.dtype == torch.float64
        assert torch.equal(actual, log_normalizer(wide))


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
@pytest.mark.parametrize("form", ["SS", "BTSS"])
def test_empty_batches(batch: tuple[int, ...], form: str) -> None:
    case = build(Spec(batch=batch, transition_form=form, lengths_form="full"))
    assert log_normalizer(case).shape == batch


def test_one_state_adds_up() -> None:
    case = build(Spec(batch=(4,), states=1, transition_form="BTSS", initial_form="BS", dtype=torch.float64))
    total = case.initial.sum(-1) + case.emission.sum((-2, -1)) + case.transition.sum((-3, -2, -1))
    assert torch.allclose(log_normalizer(case), total, rtol=1e-12, atol=1e-12)


def long_case(steps: int, kind: str = "dense", scale: float = 1.0) -> Case:
    return build(Spec(kind, batch=(2,), steps=steps, states=8, scale=scale, seed=8))


@pytest.mark.parametrize("kind", ["dense", "peaked_100", "left_right"])
def test_long_sequences_do_not_drift(kind: str) -> None:
    case = long_case(5_000, kind)
    expected = recursion.forward(case.model).log_normalizer
    # 3e-7 relative: a few float32 units of the result; a float32 accumulator would lose 1e-5 or more.
    assert log_normalizer(case).double().numpy() == pytest.approx(expected, rel=3e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("peaked_100", 1.0), ("left_right", 1e4)])
def test_a_million_steps(kind: str, scale: float) -> None:
    case = long_case(1_000_000, kind, scale)
    expected = recursion.forward(case.model).log_normalizer
    assert log_normalizer(case).double().numpy() == pytest.approx(expected, rel=1e-6)
