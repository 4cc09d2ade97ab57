"""hmm_viterbi: a best path and its score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sumprod
from sumprod import ops
from tests.ops.checks import check_compiled, check_derivatives, gradients
from tests.ops.hmm_cases import (
    INF,
    KINDS,
    Case,
    Spec,
    assert_log_close,
    build,
    forced_path,
    impossible_at,
    indices,
    many_states,
    near_underflow,
    rounding,
    specs,
)
from tests.oracles import enumeration, recursion


def score(case: Case) -> Tensor:
    return ops.hmm_viterbi(*case.args, lengths=case.lengths).score


def check(case: Case) -> None:
    """The score is the best one, the path reaches it, and its padding is -1."""
    path, actual = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    assert path.dtype == torch.int64
    assert path.shape == case.emission.shape[:-1]
    assert actual.dtype == case.emission.dtype
    assert actual.shape == case.batch
    model, allowed = case.model, rounding(case)
    states = path.reshape(model.sequences, model.steps).numpy()
    real = np.arange(model.steps)[None, :] < model.lengths[:, None]
    assert (states[~real] == -1).all()
    assert ((states[real] >= 0) & (states[real] < model.states)).all()
    best = recursion.viterbi(model)[1]
    reached = recursion.path_score(model, np.where(real, states, 0))
    assert_log_close(actual.reshape(-1), best, allowed)
    own = 16 * torch.finfo(actual.dtype).eps * np.abs(best)
    assert (best - reached <= allowed + own).all(), "the path is worse than the best one"
    assert (reached - best <= 1e-9 * (1 + np.abs(best))).all()


@given(specs())
def test_score_and_path_are_optimal(spec: Spec) -> None:
    check(build(spec).alive())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_structure_over_two_lane_groups(kind: str, scale: float, dtype: torch.dtype) -> None:
    case = build(Spec(kind, (19,), 60, 17, scale, lengths_form="random", dtype=dtype, seed=3)).alive()
    assert case.lengths is not None
    assert (case.lengths > 5).any()
    check(case)


def test_many_states() -> None:
    for case in many_states():
        check(case)


def test_thousands_of_sequences_near_the_underflow_boundary() -> None:
    for case in near_underflow():
        check(case.alive())


def test_hand_computed_healthy_fever() -> None:
    initial, transition = torch.tensor([0.6, 0.4]).log(), torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
    result = ops.hmm_viterbi(initial, transition, emission)
    assert result.path.tolist() == [0, 0, 1]
    assert result.score.item() == pytest.approx(math.log(0.01512), abs=1e-6)  # float32, three steps


def whole_numbers(spec: Spec, top: int) -> Case:
    """A case of small whole numbers, whose sums float32 does not round: ties are exact."""
    case = build(spec)
    generator = torch.Generator().manual_seed(spec.seed)
    parts = [torch.randint(0, top, part.shape, generator=generator).to(spec.dtype) for part in case.args]
    parts = [part.masked_fill(old == -INF, -INF) for part, old in zip(parts, case.args, strict=True)]
    return Case(*parts, case.lengths).alive()


def check_exact(case: Case) -> None:
    """Path and score are the oracle's, which among equals takes the lowest state, from the end."""
    path, actual = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    expected_path, expected = recursion.viterbi(case.model)
    assert path.reshape(expected_path.shape).numpy().tolist() == expected_path.tolist()
    assert actual.reshape(-1).tolist() == expected.tolist()


@given(
    specs(kind=st.sampled_from(["dense", "sparse", "left_right", "single"]), layout="contiguous", scale=1.0),
    st.integers(1, 3),
)
def test_ties_take_the_lowest_state_from_the_end(spec: Spec, top: int) -> None:
    check_exact(whole_numbers(spec, top))


def test_ties_against_enumeration() -> None:
    tied = 0
    for seed in range(20):
        case = whole_numbers(Spec(batch=(), steps=5, states=3, seed=seed), 2)
        expected = enumeration.lowest_best_path(case.model)
        tied += len(enumeration.best_paths(case.model)[1]) > 1
        assert tuple(ops.hmm_viterbi(*case.args).path.tolist()) == expected
    assert tied > 10


@pytest.mark.parametrize("states", [1, 2, 16, 17, 33])
@pytest.mark.parametrize("batch", [(1,), (33,)])
def test_all_equal_chooses_state_zero(states: int, batch: tuple[int, ...]) -> None:
    path, actual = ops.hmm_viterbi(
        torch.zeros(states), torch.zeros(states, states), torch.zeros(*batch, 9, states)
    )
    assert (path == 0).all()
    assert (actual == 0).all()


def test_lengths_zero_and_one() -> None:
    case = replace(build(Spec(batch=(3,), seed=1)), lengths=torch.tensor([0, 1, 7]))
    path, actual = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    assert actual[0].item() == 0.0
    assert (path[0] == -1).all()
    first = case.initial + case.emission[1, 0]
    assert path[1].tolist() == [int(first.argmax()), *[-1] * 6]
    check(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_impossible_sequence_raises_with_index_and_step(step: int, dtype: torch.dtype) -> None:
    case = impossible_at(step, dtype=dtype)
    with pytest.raises(sumprod.SupportError, match=rf"\b1\b.*\b{step}\b") as caught:
        score(case)
    assert (caught.value.batch_index, caught.value.time) == (1, step)
    assert isinstance(caught.value, ValueError)
    # Stopped before the impossible step, the sequence is fine.
    check(replace(case, lengths=torch.tensor([6, step, 6])))


def test_support_error_names_the_first_sequence_in_a_larger_batch() -> None:
    case = build(Spec(batch=(2, 40), steps=9, seed=5))
    emission = case.emission.clone()
    emission[1, 30, 2] = emission[1, 3, 7] = emission[1, 33, 0] = -INF
    with pytest.raises(sumprod.SupportError) as caught:
        score(replace(case, emission=emission))
    assert (caught.value.batch_index, caught.value.time) == ((1, 3), 7)


def test_support_error_through_structure_alone() -> None:
    # 0 -> 1 -> 2 -> nowhere: the support is empty at step 3, although every emission is possible.
    transition = torch.full((3, 3), -INF)
    transition[0, 1] = transition[1, 2] = 0.0
    with pytest.raises(sumprod.SupportError) as caught:
        ops.hmm_viterbi(torch.tensor([0.0, -INF, -INF]), transition, torch.zeros(2, 6, 3))
    assert (caught.value.batch_index, caught.value.time) == (0, 3)


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("part", ["initial", "transition", "emission"])
@pytest.mark.parametrize("size", [3, 20])
def test_nan_and_plus_infinity_stay_in_their_sequence(part: str, value: float, size: int) -> None:
    case = build(Spec(batch=(size,), initial_form="BS", transition_form="BTSS", states=5, seed=2))
    clean = ops.hmm_viterbi(*case.args)
    spoilt = getattr(case, part).clone()
    spoilt[1, ..., 2] = value
    actual = ops.hmm_viterbi(*replace(case, **{part: spoilt}).args)
    assert actual.score[1].isnan()
    assert (actual.path[1] == -1).all()
    others = torch.arange(size) != 1
    assert torch.equal(actual.score[others], clean.score[others])
    assert torch.equal(actual.path[others], clean.path[others])
    assert (clean.path >= 0).all()


def test_padding_is_never_read() -> None:
    case = replace(build(Spec(batch=(3,), seed=7)), lengths=torch.tensor([0, 1, 5]))
    real = torch.arange(7) < case.lengths[:, None]  # type: ignore[index]
    clean = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    for filler in (math.nan, INF, -INF):
        emission = case.emission.masked_fill(~real[..., None], filler)
        actual = ops.hmm_viterbi(case.initial, case.transition, emission, lengths=case.lengths)
        assert torch.equal(actual.path, clean.path)
        assert torch.equal(actual.score, clean.score)


def test_forced_path_through_large_gaps() -> None:
    path, actual = ops.hmm_viterbi(*forced_path(1e4).args)
    assert path.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert actual.tolist() == pytest.approx([-50_012, -12], rel=1e-6)


def one_hot_counts(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """How often the best paths use each entry of initial [S], transition [S, S] and emission."""
    path = ops.hmm_viterbi(*case.args, lengths=case.lengths).path
    counts = tuple(torch.zeros_like(part) for part in case.args)
    for index in indices(case.batch):
        states = [s for s in path[index].tolist() if s >= 0]
        for t, state in enumerate(states):
            counts[2][(*index, t, state)] += 1
            if t:
                counts[1][states[t - 1], state] += 1
            else:
                counts[0][state] += 1
    return counts  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "left_right", "sparse", "peaked_100"])
def test_score_gradient_is_the_one_hot_path(kind: str, dtype: torch.dtype) -> None:
    case = build(
        Spec(kind, batch=(2, 3), steps=6, states=4, lengths_form="random", dtype=dtype, seed=8)
    ).alive()
    for grad, expected in zip(gradients(score, case), one_hot_counts(case), strict=True):
        assert torch.equal(grad, expected)


def test_gradient_reaches_every_broadcast_form() -> None:
    for initial_form, transition_form in (("1S", "1TSS"), ("BS", "BTSS"), ("mixedS", "mixedTSS")):
        spec = Spec("dense", (2, 3), 5, 3, 1.0, initial_form, transition_form, "random", dtype=torch.float64)
        case = build(spec)
        assert case.lengths is not None
        first, moved, emitted = gradients(score, case)
        assert first.sum() == (case.lengths > 0).sum()
        assert moved.sum() == (case.lengths - 1).clamp(min=0).sum()
        assert torch.equal(emitted.sum((-2, -1)).long(), case.lengths)
        check_derivatives("hmm_viterbi", case, second=False)


@pytest.mark.parametrize("lengths", [None, [0, 1, 4]])
def test_gradcheck_and_gradgradcheck(lengths: list[int] | None) -> None:
    case = build(Spec(batch=(3,), steps=4, states=3, seed=9))
    case = replace(case, lengths=None if lengths is None else torch.tensor(lengths))
    check_derivatives("hmm_viterbi", case, second=True)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype) -> None:
    case = build(Spec(batch=(5,), states=9, lengths_form="random", seed=4)).to(half)
    actual, wide = (ops.hmm_viterbi(*c.args, lengths=c.lengths) for c in (case, case.to(torch.float32)))
    assert actual.score.dtype == half
    assert torch.equal(actual.score, wide.score.to(half))
    assert torch.equal(actual.path, wide.path)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_empty_batches(batch: tuple[int, ...]) -> None:
    case = build(Spec(batch=batch, transition_form="BTSS", lengths_form="full"))
    path, actual = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    assert path.shape == (*batch, 7)
    assert actual.shape == batch


@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("peaked_100", 1.0), ("left_right", 1e4)])
def test_long_sequences_do_not_drift(kind: str, scale: float) -> None:
    check_long(build(Spec(kind, batch=(2,), steps=5_000, states=8, scale=scale, seed=6)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("left_right", 1e4)])
def test_a_million_steps(kind: str, scale: float) -> None:
    check_long(build(Spec(kind, batch=(1,), steps=1_000_000, states=8, scale=scale, seed=6)))


def check_long(case: Case) -> None:
    path, actual = ops.hmm_viterbi(*case.args)
    best = recursion.viterbi(case.model)[1]
    # 1e-6 relative: messages that are not rescaled lose 1e-4 and more over such lengths.
    assert actual.double().numpy() == pytest.approx(best, rel=1e-6)
    assert recursion.path_score(case.model, path.numpy()) == pytest.approx(best, rel=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["hmm_viterbi", "hmm_sample"])
def test_compiled_graphs_raise_for_impossible_sequences(name: str) -> None:
    case = impossible_at(3)
    function = torch.compile(getattr(ops, name), fullgraph=True, backend="aot_eager")
    possible = Case(case.initial, case.transition, case.emission[[0, 2, 0]])
    function(*possible.args)
    with pytest.raises(sumprod.SupportError) as caught:
        function(*case.args)
    assert (caught.value.batch_index, caught.value.time) == (1, 3)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes() -> None:
    sets = []
    for batch, steps in ((3, 7), (5, 9)):
        case = build(Spec(batch=(batch,), steps=steps, lengths_form="random"))
        assert case.lengths is not None
        sets.append((*case.args, case.lengths))
    check_compiled(lambda i, t, e, n: ops.hmm_viterbi(i, t, e, lengths=n), *sets)
