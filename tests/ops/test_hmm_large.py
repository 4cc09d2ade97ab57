"""HMM operators with more states than one thread block or one register tile holds, against the oracle.

One transition matrix for all sequences and steps: that is what kernels for many states are made for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import sumprod
from sumprod import ops
from tests.ops import (
    test_hmm_log_normalizer,
    test_hmm_log_normalizer_grad,
    test_hmm_marginals,
    test_hmm_sample,
    test_hmm_viterbi,
)
from tests.ops.checks import uniforms_for
from tests.ops.hmm_cases import INF, Spec, build

STATES = [129, 200, 300]
DTYPES = [torch.float32, torch.float64]
KINDS = ["dense", "sparse", "left_right", "peaked_50", "peaked_500"]

every_case = pytest.mark.parametrize(
    "spec",
    [
        Spec(kind, (batch,), 6, states, scale, "BS", "SS", lengths, dtype=dtype, seed=states)
        for states in STATES
        for kind, scale, batch, lengths in [
            *((kind, 1.0, 5, "random") for kind in KINDS),
            ("dense", 100.0, 1, "none"),
        ]
        for dtype in DTYPES
    ],
    ids=lambda spec: f"{spec.states}-{spec.kind}-{spec.scale:g}-{str(spec.dtype)[6:]}",
)


@every_case
def test_log_normalizer(spec: Spec) -> None:
    test_hmm_log_normalizer.check(build(spec))


@every_case
def test_gradients(spec: Spec) -> None:
    test_hmm_log_normalizer_grad.check_gradients(build(spec))


@every_case
def test_marginals(spec: Spec) -> None:
    test_hmm_marginals.TestHmmMarginals().check(build(spec))


@every_case
def test_viterbi(spec: Spec) -> None:
    test_hmm_viterbi.check(build(spec).alive())


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("states", [*STATES, 600])
@pytest.mark.parametrize("dtype", DTYPES)
def test_viterbi_ties_take_the_lowest_state_from_the_end(
    dtype: torch.dtype, states: int, kind: str, layout: str
) -> None:
    spec = Spec(kind, (4,), 5, states, lengths_form="random", layout=layout, dtype=dtype, seed=states)
    test_hmm_viterbi.check_exact(test_hmm_viterbi.whole_numbers(spec, 2))


@every_case
def test_samples_invert_the_cumulative_weights(spec: Spec, generator: torch.Generator) -> None:
    case = build(spec).alive()
    uniforms = uniforms_for(case, generator, 3)
    uniforms[0] = 0.0
    uniforms[1] = 1 - torch.finfo(spec.dtype).eps / 2  # the largest number below 1
    test_hmm_sample.check_inverted(case, uniforms)


@pytest.mark.parametrize("states", STATES)
def test_transitions_that_do_not_lie_in_rows(states: int, generator: torch.Generator) -> None:
    for layout in ("transposed", "sliced"):
        case = build(Spec("dense", (3,), 4, states, 3.0, layout=layout, lengths_form="random", seed=1))
        test_hmm_viterbi.check(case)
        test_hmm_sample.check_inverted(case, uniforms_for(case, generator, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", STATES)
def test_what_is_impossible_or_not_a_number_stays_in_its_sequence(states: int, dtype: torch.dtype) -> None:
    case = build(Spec("dense", (3,), 5, states, dtype=dtype, seed=2))
    emission = case.emission.clone()
    emission[1, 3] = -INF
    impossible = replace(case, emission=emission)
    with pytest.raises(sumprod.SupportError, match=r"\b1\b.*\b3\b"):
        ops.hmm_viterbi(*impossible.args)
    with pytest.raises(sumprod.SupportError, match=r"\b1\b.*\b3\b"):
        ops.hmm_sample(*impossible.args)
    emission[1, 3, 7] = math.nan
    path, score = ops.hmm_viterbi(case.initial, case.transition, emission)
    expected_path, expected = ops.hmm_viterbi(*case.args)
    assert score[1].isnan()
    assert torch.equal(score[[0, 2]], expected[[0, 2]])
    assert torch.equal(path[[0, 2]], expected_path[[0, 2]])


@pytest.mark.parametrize("states", STATES)
def test_no_and_single_steps(states: int) -> None:
    case = replace(build(Spec(batch=(3,), steps=1, states=states, seed=1)), lengths=torch.tensor([0, 1, 1]))
    path, score = ops.hmm_viterbi(*case.args, lengths=case.lengths)
    assert score[0].item() == 0.0
    assert path.flatten().tolist() == [-1, *(case.initial + case.emission[1:, 0]).argmax(-1).tolist()]
    test_hmm_viterbi.check(case)
