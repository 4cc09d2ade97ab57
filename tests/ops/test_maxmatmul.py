"""maxmatmul: max over j of x_ij + y_jk and the lowest j that reaches it. Bad input: test_logmatmulexp.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sumprod import ops
from tests.ops.checks import check_compiled
from tests.ops.hmm_cases import lay_out
from tests.ops.test_logmatmulexp import BATCHES, SIZES, TILES, draw
from tests.oracles import reduce

INF = math.inf


@given(
    sizes=st.tuples(SIZES, SIZES.filter(bool), SIZES),
    batches=st.sampled_from(BATCHES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    top=st.sampled_from([1, 2, 5, 1000]),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_whole_numbers_exactly_as_the_oracle(
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    top: int,
    zeros: float,
    layout: str,
    seed: int,
) -> None:
    # Whole numbers below 1000 add without rounding, so values and the ties between them are exact.
    rows, inner, columns = sizes
    x = draw((*batches[0], rows, inner), seed, dtype, top, zeros).round()
    y = draw((*batches[1], inner, columns), seed + 1, dtype, top, zeros).round()
    x, y = lay_out(x, layout), lay_out(y, layout)
    values, indices = ops.maxmatmul(x, y)
    expected, where = reduce.maxmatmul(x.double().numpy(), y.double().numpy())
    assert values.dtype == dtype
    assert indices.dtype == torch.int64
    assert torch.equal(values.double(), torch.as_tensor(expected))
    assert torch.equal(indices, torch.as_tensor(where))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_are_the_rounded_sums(scale: float, dtype: torch.dtype) -> None:
    x, y = draw((3, 20, 33), 1, dtype, scale, 0.1), draw((3, 33, 18), 2, dtype, scale, 0.1)
    values, indices = ops.maxmatmul(x, y)
    expected, where = (x[..., :, :, None] + y[..., None, :, :]).max(-2)
    assert torch.equal(values, expected)
    assert torch.equal(indices, where)


@pytest.mark.parametrize("sizes", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_with_ties(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, rows, inner, columns = sizes
    x = draw((batch, rows, inner), 1, dtype, 2.0, 0.1).round()
    y = draw((batch, inner, columns), 2, dtype, 2.0, 0.1).round()
    values, indices = ops.maxmatmul(x, y)
    expected, where = reduce.maxmatmul(x.double().numpy(), y.double().numpy())
    assert torch.equal(values.double(), torch.from_numpy(expected))
    assert torch.equal(indices, torch.from_numpy(where))


def test_by_hand_with_named_fields() -> None:
    result = ops.maxmatmul(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 5.0], [0.0, 9.0]]))
    assert result.values.tolist() == [[1.0, 10.0]]
    assert result.indices.tolist() == [[0, 1]]


@pytest.mark.parametrize("inner", [1, 2, 15, 16, 17, 33, 100])
def test_ties_take_the_lowest_index(inner: int) -> None:
    result = ops.maxmatmul(torch.zeros(5, inner), torch.zeros(inner, 19))
    assert (result.values == 0).all()
    assert (result.indices == 0).all()
    x = torch.full((5, inner), -1.0)
    x[:, inner // 2 :] = 0.0
    assert (ops.maxmatmul(x, torch.zeros(inner, 19)).indices == inner // 2).all()


def test_all_minus_infinity_is_a_tie_of_everything() -> None:
    result = ops.maxmatmul(torch.full((2, 3), -INF), torch.zeros(3, 4))
    assert (result.values == -INF).all()
    assert (result.indices == 0).all()


def test_empty_inner_dimension_is_minus_infinity() -> None:
    result = ops.maxmatmul(torch.empty(2, 3, 0), torch.empty(2, 0, 4))
    assert torch.equal(result.values, torch.full((2, 3, 4), -INF))
    assert result.indices.shape == (2, 3, 4)


def test_nan_stays_in_its_batch_element() -> None:
    x, y = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    clean = ops.maxmatmul(x, y)
    x[1, 2, 3] = math.nan
    actual = ops.maxmatmul(x, y)
    assert actual.values[1, 2].isnan().all()
    for ours, before in zip(actual, clean, strict=True):
        assert torch.equal(ours[[0, 2]], before[[0, 2]])
    assert clean.values.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype) -> None:
    x, y = draw((2, 9, 17), 1, half, 2.0, 0.1), draw((2, 17, 9), 2, half, 2.0, 0.1)
    actual, wide = ops.maxmatmul(x, y), ops.maxmatmul(x.float(), y.float())
    assert actual.values.dtype == half
    assert torch.equal(actual.values, wide.values.to(half))
    assert torch.equal(actual.indices, wide.indices)


def test_mixed_dtypes_are_promoted() -> None:
    x, y = torch.randn(3, 4), torch.randn(4, 5).double()
    assert torch.equal(ops.maxmatmul(x, y).values, ops.maxmatmul(x.double(), y).values)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [3, 16, 50])
def test_elements_do_not_depend_on_their_batch_or_on_threads(size: int) -> None:
    x, y = (draw((21, size, size), seed, torch.float32, 2.0, 0.1) for seed in (1, 2))
    torch.set_num_threads(1)
    whole = ops.maxmatmul(x, y)
    torch.set_num_threads(2)
    for ours, before in zip(ops.maxmatmul(x, y), whole, strict=True):
        assert torch.equal(ours, before)
    for b in (0, 2, 20):
        for ours, before in zip(ops.maxmatmul(x[b], y[b]), whole, strict=True):
            assert torch.equal(ours, before[b])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes() -> None:
    sets = [(torch.randn(2, i, j), torch.randn(2, j, k)) for i, j, k in ((3, 4, 5), (6, 7, 8))]
    check_compiled(lambda x, y: ops.maxmatmul(x, y), *sets)
