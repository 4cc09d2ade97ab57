"""Each sequence's result is bit-identical alone, in any batch, with any padding, on any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sumprod import ops
from tests.ops.checks import HMM_OPERATORS, assert_same, call, gradients, padded, uniforms_for
from tests.ops.hmm_cases import Case, Spec, build, indices, many_states, near_underflow, specs

PADDING = {"path": -1, "draws": -1, "emission gradient": 0}


def emission_gradient(function: Callable[[Case], Tensor]) -> Callable[[Case, Tensor], dict[str, Tensor]]:
    return lambda case, uniforms: {"emission gradient": gradients(function, case)[2]}


def operator(name: str) -> Callable[[Case, Tensor], dict[str, Tensor]]:
    return lambda case, uniforms: call(name, case, uniforms)


RUNS: dict[str, Callable[[Case, Tensor], dict[str, Tensor]]] = {
    name: operator(name) for name in HMM_OPERATORS
}
RUNS["hmm_log_normalizer gradient"] = emission_gradient(
    lambda case: ops.hmm_log_normalizer(*case.args, lengths=case.lengths)
)
RUNS["hmm_viterbi gradient"] = emission_gradient(
    lambda case: ops.hmm_viterbi(*case.args, lengths=case.lengths).score
)
EVERY_RUN = pytest.mark.parametrize("name", sorted(RUNS))


def assert_starts(part: Tensor, whole: Tensor, key: str) -> None:
    """`whole` starts with the rows of `part` and continues with padding (no rows: a score)."""
    if key in ("score", "hmm_log_normalizer"):
        assert_same(part, whole, key)
        return
    rows = part.shape[0]
    assert_same(part, whole[:rows], key)
    assert (whole[rows:] == PADDING.get(key, -math.inf)).all()


def check_alone(name: str, case: Case, uniforms: Tensor, chosen: list[tuple[int, ...]]) -> None:
    """The chosen sequences alone (cut to their length, no batch dims) have the bits of the batch."""
    whole = RUNS[name](case, uniforms)
    for index in chosen:
        alone = case.sequence(index)
        steps = alone.emission.shape[0]
        if steps == 0:
            continue
        own = uniforms[(slice(None), *index)][:, :steps]
        for key, values in RUNS[name](alone, own).items():
            assert_starts(values, whole[key][index], key)


HARD = ("left_right", "peaked_100", "peaked_500", "sparse", "mask_min")


@pytest.mark.parametrize(("size", "states"), [(2, 5), (19, 5), (40, 16), (9, 17)])
@pytest.mark.parametrize("kind", ["dense", "left_right", "peaked_100"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY_RUN
def test_alone_equals_in_a_batch(
    name: str, dtype: torch.dtype, kind: str, size: int, states: int, generator: torch.Generator
) -> None:
    spec = Spec(kind, (size,), 23, states, 3.0, "BS", "SS", "random", dtype=dtype, seed=1)
    case = build(spec).alive()
    assert case.lengths is not None
    assert (case.lengths > 1).sum() >= size // 3
    check_alone(name, case, uniforms_for(case, generator), [(0,), (size // 2,), (size - 1,)])


@EVERY_RUN
def test_many_states_alone_equal_in_a_batch(name: str, generator: torch.Generator) -> None:
    for case in many_states():
        check_alone(name, case, uniforms_for(case, generator), [(0,), (case.batch[0] - 1,)])


@EVERY_RUN
def test_near_the_underflow_boundary_alone_equals_in_a_batch(name: str, generator: torch.Generator) -> None:
    for case in near_underflow()[::7]:
        alive = case.alive()
        check_alone(name, alive, uniforms_for(alive, generator), [(0,), (150,), (299,)])


@given(
    specs(
        batch=st.sampled_from([(1,), (3,), (2, 3), (8,), (20,)]),
        steps=st.integers(1, 20),
        layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    ),
    st.data(),
)
@EVERY_RUN
def test_any_structure_alone_equals_in_a_batch(name: str, spec: Spec, data: st.DataObject) -> None:
    case = build(spec).alive()
    uniforms = uniforms_for(case, torch.Generator().manual_seed(spec.seed))
    chosen = data.draw(st.sampled_from(indices(case.batch)))
    check_alone(name, case, uniforms, [chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY_RUN
def test_easy_sequences_do_not_notice_hard_neighbours(
    name: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    # A lane group that needs a careful second pass must not change the lanes that did not need it.
    easy = build(Spec("dense", (24,), 17, 8, 1.0, "BS", "BTSS", dtype=dtype, seed=2))
    parts = [part.clone() for part in easy.args]
    for n, kind in enumerate(HARD):
        hard = build(Spec(kind, (1,), 17, 8, 1e3, "BS", "BTSS", dtype=dtype, seed=3))
        for mine, theirs in zip(parts, hard.args, strict=True):
            mine[4 * n + 1] = theirs[0]
    mixed = Case(parts[0], parts[1], parts[2], torch.full((24,), 17)).alive()
    uniforms = uniforms_for(easy, generator)
    before, after = RUNS[name](easy, uniforms), RUNS[name](mixed, uniforms)
    same = [n for n in range(24) if n % 4 != 1 or n >= 4 * len(HARD)]
    for key, values in before.items():
        assert torch.equal(values[same], after[key][same])
    check_alone(name, mixed, uniforms, [(n,) for n in range(0, 22, 3)])


@pytest.mark.parametrize("kind", ["peaked_100", "left_right"])
@EVERY_RUN
def test_easy_emissions_do_not_notice_hard_ones_under_one_transition(
    name: str, kind: str, generator: torch.Generator
) -> None:
    easy = build(Spec(kind, (24,), 17, 8, 0.5, seed=4))
    emission = easy.emission.clone()
    emission[1::4] *= 3e4
    mixed = replace(easy, emission=emission, lengths=torch.full((24,), 17)).alive()
    uniforms = uniforms_for(easy, generator)
    before, after = RUNS[name](easy, uniforms), RUNS[name](mixed, uniforms)
    for key, values in before.items():
        for n in set(range(24)) - set(range(1, 24, 4)):
            assert torch.equal(values[n], after[key][n])


@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transition_form", ["SS", "BTSS"])
@pytest.mark.parametrize("states", [3, 16])
@EVERY_RUN
def test_more_padding_changes_nothing(
    name: str, states: int, transition_form: str, filler: float, generator: torch.Generator
) -> None:
    spec = Spec("dense", (18,), 11, states, 1.0, "S", transition_form, "random", seed=5)
    case = build(spec)
    longer = padded(case, 9, filler)
    uniforms = uniforms_for(longer, generator)
    before, after = RUNS[name](case, uniforms[..., :11]), RUNS[name](longer, uniforms)
    for key, values in before.items():
        for mine, theirs in zip(values, after[key], strict=True):
            assert_starts(mine, theirs, key)


@EVERY_RUN
def test_full_lengths_equal_no_lengths(name: str, generator: torch.Generator) -> None:
    case = build(Spec("dense", (18,), 11, 7, seed=6))
    uniforms = uniforms_for(case, generator)
    explicit = RUNS[name](replace(case, lengths=torch.full((18,), 11)), uniforms)
    for key, values in RUNS[name](case, uniforms).items():
        assert torch.equal(values, explicit[key])


@EVERY_RUN
def test_order_and_shape_of_the_batch_change_nothing(name: str, generator: torch.Generator) -> None:
    case = build(Spec("sparse", (24,), 13, 6, 1.0, "BS", "BTSS", "random", seed=7)).alive()
    assert case.lengths is not None
    uniforms = uniforms_for(case, generator)
    whole = RUNS[name](case, uniforms)
    order = torch.randperm(24, generator=generator)
    shuffled = Case(*(part[order] for part in case.args), case.lengths[order])
    folded = Case(*(part.reshape(2, 3, 4, *part.shape[1:]) for part in case.args), case.lengths.view(2, 3, 4))
    by_order = RUNS[name](shuffled, uniforms[:, order])
    by_shape = RUNS[name](folded, uniforms.reshape(-1, 2, 3, 4, 13))
    for key, values in whole.items():
        assert torch.equal(values[order], by_order[key])
        assert torch.equal(values.reshape(2, 3, 4, *values.shape[1:]), by_shape[key])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("batch", "steps", "states"), [((70,), 50, 17), ((2,), 700, 40), ((1,), 5000, 3)])
@EVERY_RUN
def test_threads_change_nothing(
    name: str, batch: tuple[int, ...], steps: int, states: int, generator: torch.Generator
) -> None:
    case = build(Spec("dense", batch, steps, states, lengths_form="random", seed=8))
    uniforms = uniforms_for(case, generator)
    torch.set_num_threads(1)
    single = RUNS[name](case, uniforms)
    for count in (2, 3):
        torch.set_num_threads(count)
        for key, values in RUNS[name](case, uniforms).items():
            assert torch.equal(values, single[key])


@pytest.mark.usefixtures("threads")
def test_gradients_of_shared_parameters_do_not_depend_on_threads() -> None:
    case = build(Spec("dense", (70,), 30, 17, lengths_form="random", seed=9))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(gradients(lambda c: ops.hmm_log_normalizer(*c.args, lengths=c.lengths), case))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


@EVERY_RUN
def test_memory_layout_changes_nothing(name: str, generator: torch.Generator) -> None:
    plain = build(Spec("dense", (19,), 11, 6, 1.0, "BS", "BTSS", seed=10))
    uniforms = uniforms_for(plain, generator)
    before = RUNS[name](plain, uniforms)
    for layout in ("transposed", "sliced"):
        other = build(Spec("dense", (19,), 11, 6, 1.0, "BS", "BTSS", layout=layout, seed=10))
        assert torch.equal(other.emission, plain.emission)
        assert not other.emission.is_contiguous()
        for key, values in RUNS[name](other, uniforms).items():
            assert torch.equal(values, before[key])


def leave_nan_in_freed_memory() -> None:
    """Fill the allocator's free blocks of many sizes, so that a read of fresh memory shows."""
    blocks = [torch.full((1 << power,), math.nan) for power in range(4, 22) for _ in range(2)]
    del blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "left_right", "single", "peaked_100"])
@pytest.mark.parametrize(("batch", "steps", "states"), [((33,), 20, 16), ((3,), 4, 5)])
@EVERY_RUN
def test_repeated_calls_agree_whatever_lies_in_fresh_memory(
    name: str,
    batch: tuple[int, ...],
    steps: int,
    states: int,
    kind: str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    case = build(Spec(kind, batch, steps, states, 1e4, lengths_form="random", dtype=dtype, seed=11)).alive()
    uniforms = uniforms_for(case, generator)
    first = RUNS[name](case, uniforms)
    for key, values in first.items():
        assert not values.isnan().any(), key
    for _ in range(3):
        leave_nan_in_freed_memory()
        for key, values in RUNS[name](case, uniforms).items():
            assert torch.equal(values, first[key]), key
