"""Ragged batches whose lanes take several sequences one after the other: nothing passes between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sumprod import ops
from tests.ops.checks import gradients, uniforms_for
from tests.ops.hmm_cases import Case, Spec, build
from tests.ops.test_hmm_identity import EVERY_RUN, check_alone

# Enough sequences, of lengths so different, that sorting them into groups would leave lanes idle.
BATCH, STEPS = 70, 61


def ragged(kind: str, states: int, scale: float, dtype: torch.dtype = torch.float32) -> Case:
    case = build(Spec(kind, (BATCH,), STEPS, states, scale, "BS", dtype=dtype, seed=states))
    lengths = torch.randint(1, STEPS + 1, (BATCH,), generator=torch.Generator().manual_seed(states))
    lengths[:4] = torch.tensor([STEPS, 0, 1, 2])
    return replace(case, lengths=lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("peaked_100", 3.0), ("sparse", 30.0)])
@pytest.mark.parametrize("states", [3, 16, 33])
@EVERY_RUN
def test_same_bits_as_alone(
    name: str, states: int, kind: str, scale: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = ragged(kind, states, scale, dtype).alive()
    check_alone(name, case, uniforms_for(case, generator), [(n,) for n in range(0, BATCH, 3)])


@EVERY_RUN
def test_same_bits_whatever_the_strides(name: str, generator: torch.Generator) -> None:
    case = ragged("dense", 7, 1.0)
    strided = replace(case, emission=case.emission.transpose(1, 2).contiguous().transpose(1, 2))
    check_alone(name, strided, uniforms_for(case, generator), [(n,) for n in range(0, BATCH, 5)])


def with_exceptions(case: Case) -> tuple[Case, list[int], list[int]]:
    """Every seventh sequence impossible from some step on, every eleventh with a NaN."""
    emission, lengths = case.emission.clone(), case.lengths
    assert lengths is not None
    dead = list(range(4, BATCH, 7))
    nan = [n for n in range(5, BATCH, 11) if n not in dead]
    for n in dead:
        emission[n, int(lengths[n]) // 2] = -math.inf
    for n in nan:
        emission[n, int(lengths[n]) // 3, 0] = math.nan
    return replace(case, emission=emission), dead, nan


@pytest.mark.parametrize("kind", ["dense", "peaked_100"])
def test_exceptional_sequences_do_not_touch_their_neighbours(kind: str) -> None:
    plain = ragged(kind, 6, 3.0)
    mixed, dead, nan = with_exceptions(plain)
    same = [n for n in range(BATCH) if n not in dead + nan]
    assert plain.lengths is not None
    for operator in (ops.hmm_log_normalizer, ops.hmm_filter, ops.hmm_marginals):
        before, after = (operator(*case.args, lengths=case.lengths) for case in (plain, mixed))
        assert torch.equal(before[same], after[same])
    after = ops.hmm_log_normalizer(*mixed.args, lengths=mixed.lengths)
    assert (after[dead] == -math.inf).all()
    assert after[nan].isnan().all()
    marginals = ops.hmm_marginals(*mixed.args, lengths=mixed.lengths)
    for n in nan:
        assert marginals[n, : plain.lengths[n]].isnan().all()


@pytest.mark.parametrize(("kind", "scale"), [("dense", 1.0), ("left_right", 30.0), ("sparse", 100.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_gradient_is_the_sum_over_sequences(dtype: torch.dtype, kind: str, scale: float) -> None:
    # Sequences that need another tier, and dead ones, are left out of a lane's counts and no others.
    case = with_exceptions(ragged(kind, 6, scale, dtype).alive())[0]
    case = replace(case, emission=case.emission.masked_fill(case.emission.isnan(), 0.0))
    weight = torch.linspace(-1.0, 2.0, BATCH, dtype=dtype)

    def weighted(part: Case, weights: Tensor) -> Tensor:
        return weights * ops.hmm_log_normalizer(*part.args, lengths=part.lengths)

    whole = gradients(lambda part: weighted(part, weight), case)[1].double()
    expected = torch.zeros_like(whole)
    assert case.lengths is not None
    for n in range(BATCH):
        if case.lengths[n] > 0:
            alone = case.sequence((n,))
            expected += gradients(lambda part, w=weight[n]: weighted(part, w), alone)[1].double()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert torch.allclose(whole, expected, rtol=tolerance, atol=tolerance * BATCH)


def test_viterbi_of_very_long_sequences_beside_long_ones() -> None:
    # The longest are recomputed from checkpoints; for the others all messages would just fit, which takes
    # more room.
    states, steps = 33, 20_000
    generator = torch.Generator().manual_seed(1)
    emission = torch.randn(1, steps, states, generator=generator).expand(32, -1, -1)
    transition = torch.randn(states, states, generator=generator).log_softmax(-1)
    lengths = torch.full((32,), 3 * steps // 4)
    lengths[:16] = steps
    case = Case(torch.zeros(states), transition, emission, lengths)
    path, score = ops.hmm_viterbi(*case.args, lengths=lengths)
    for n in (0, 31):
        alone = ops.hmm_viterbi(*case.sequence((n,)).args)
        assert torch.equal(alone.path, path[n, : lengths[n]])
        assert torch.equal(alone.score, score[n])
