"""logsumexp: values, shapes, memory and reproducibility. One test per row of the interface table."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import sumprod
from tests.ops.checks import assert_same, signature_of
from tests.oracles import reduce

INF = math.inf
# A few units in the last place of the result, and of the log of a sum of positive terms.
RTOL = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def check(values: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    actual = sumprod.logsumexp(values, dim, keepdim)
    expected = reduce.logsumexp(values.double().numpy(), dim, keepdim)
    assert actual.dtype == values.dtype
    assert actual.shape == expected.shape
    tolerance = RTOL[values.dtype]
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    return actual


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def test_is_exported_twice_with_the_specified_signature() -> None:
    assert sumprod.logsumexp is sumprod.ops.logsumexp
    assert signature_of(sumprod.logsumexp) == "(input, dim, keepdim=False, out=None)"


SIZES = st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65])


@given(
    shape=st.lists(SIZES, min_size=1, max_size=3),
    data=st.data(),
    keepdim=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    zeros=st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle(
    shape: list[int],
    data: st.DataObject,
    keepdim: bool,
    dtype: torch.dtype,
    scale: float,
    zeros: float,
    seed: int,
) -> None:
    shape = shape if math.prod(shape) <= 20_000 else shape[:2]
    every = range(-len(shape), len(shape))
    dims = data.draw(st.lists(st.sampled_from(every), min_size=1, unique_by=lambda d: d % len(shape)))
    values = randn(*shape, seed=seed, dtype=dtype, scale=scale)
    values[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < zeros] = -INF
    check(values, tuple(dims), keepdim)


@pytest.mark.parametrize("length", [1, 5, 1000, 100_000])
@pytest.mark.parametrize("dim", [0, 1])
def test_long_rows_keep_their_precision(length: int, dim: int) -> None:
    values = randn(3, length, scale=1.0)
    values = values if dim == 1 else values.T.contiguous()
    actual = sumprod.logsumexp(values, dim)
    reference = torch.logsumexp(values.double(), dim)
    # 3 float32 units in the last place, at 1e5 terms too (the sum must not be one running float32 number).
    assert ((actual.double() - reference).abs() <= 3 * 1.2e-7 * reference.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dim", [0, 1, -1, -3, (0,), (0, 2), (-1, 0), (2, 1, 0)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_row_dims_int_tuple_negative(dim: int | tuple[int, ...], keepdim: bool) -> None:
    check(randn(3, 4, 5), dim, keepdim)


def test_row_dims_as_a_list() -> None:
    values = randn(3, 4, 5)
    assert torch.equal(sumprod.logsumexp(values, [0, -1]), sumprod.logsumexp(values, (0, 2)))


def test_row_dim_missing() -> None:
    with pytest.raises(TypeError, match="dim"):
        sumprod.logsumexp(torch.zeros(3))  # type: ignore[call-arg]


@pytest.mark.parametrize("dim", [2, -3, (0, 2)])
def test_row_dim_out_of_range(dim: int | tuple[int, ...]) -> None:
    with pytest.raises(IndexError, match=r"(?i)dim.*out of range.*-2, 1"):
        sumprod.logsumexp(torch.zeros(3, 4), dim)


@pytest.mark.parametrize("dim", [(0, 0), (1, -1)])
def test_row_dim_repeated(dim: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="multiple times"):
        sumprod.logsumexp(torch.zeros(3, 4), dim)


@pytest.mark.parametrize("dim", [(), []])
def test_row_no_dims_on_a_non_scalar(dim: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="dim"):
        sumprod.logsumexp(torch.zeros(3), dim)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("value", [2.5, -INF, INF])
def test_row_scalar_input(dim: int, keepdim: bool, value: float) -> None:
    actual = sumprod.logsumexp(torch.tensor(value), dim, keepdim)
    assert actual.shape == ()
    assert actual.item() == value
    assert sumprod.logsumexp(torch.tensor(math.nan), dim, keepdim).isnan()


def test_row_scalar_input_out_of_range() -> None:
    with pytest.raises(IndexError, match=r"(?i)dim.*out of range"):
        sumprod.logsumexp(torch.tensor(1.0), 1)


def test_row_empty_reduction() -> None:
    assert torch.equal(sumprod.logsumexp(torch.empty(3, 0), 1), torch.full((3,), -INF))
    assert torch.equal(sumprod.logsumexp(torch.empty(0, 3), 0, True), torch.full((1, 3), -INF))
    assert sumprod.logsumexp(torch.empty(0, 3), 1).shape == (0,)
    assert sumprod.logsumexp(torch.empty(0, 3, 4), (1, 2), keepdim=True).shape == (0, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_row_all_minus_infinity(width: int, dtype: torch.dtype) -> None:
    values = randn(3, width, dtype=dtype)
    values[1] = -INF
    values.requires_grad_()
    actual = sumprod.logsumexp(values, 1)
    assert actual[1].item() == -INF
    actual.sum().backward()
    assert values.grad is not None
    assert (values.grad[1] == 0).all()
    assert torch.allclose(values.grad[[0, 2]], values.detach()[[0, 2]].softmax(-1))


def test_row_plus_infinity() -> None:
    values = torch.tensor([[INF, 0.0, INF, -INF, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]], requires_grad=True)
    actual = sumprod.logsumexp(values, 1)
    assert actual[0].item() == INF
    actual.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert torch.allclose(values.grad[1], values.detach()[1].softmax(-1))


@pytest.mark.parametrize("others", [0.0, -INF, INF])
@pytest.mark.parametrize("width", [1, 3, 40])
def test_row_nan(others: float, width: int) -> None:
    for place in (0, width - 1):
        values = torch.full((3, width), others)
        values[1, place] = math.nan
        actual = sumprod.logsumexp(values, 1)
        assert actual.isnan().tolist() == [False, True, False]
        assert sumprod.logsumexp(values.T, 0).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_row_integers_are_promoted(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 3], [1, 1, 1]]).to(dtype)
    actual = sumprod.logsumexp(values, 1)
    assert actual.dtype == torch.get_default_dtype()
    assert torch.allclose(actual, values.float().logsumexp(1))


def test_row_integers_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert sumprod.logsumexp(torch.tensor([1, 2]), 0).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [0, 1])
def test_row_half_and_double(dtype: torch.dtype, dim: int) -> None:
    check(randn(50, 60, dtype=dtype), dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1])
def test_row_half_accumulates_in_float32(dtype: torch.dtype, dim: int) -> None:
    values = randn(3000, 3000, dtype=dtype)[:, :40] if dim == 0 else randn(40, 3000, dtype=dtype)
    wide = sumprod.logsumexp(values.float(), dim)
    assert torch.equal(sumprod.logsumexp(values, dim), wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_row_complex_is_torchs(dtype: torch.dtype) -> None:
    values = torch.randn(3, 4, dtype=dtype)
    for dim, keepdim in ((0, False), ((0, 1), True)):
        actual = sumprod.logsumexp(values, dim, keepdim)
        assert torch.equal(actual, torch.logsumexp(values, dim, keepdim))


def test_row_out() -> None:
    values = randn(3, 4)
    out = torch.zeros(3)
    assert sumprod.logsumexp(values, 1, out=out) is out
    assert torch.equal(out, sumprod.logsumexp(values, 1))
    keep = torch.zeros(3, 1)
    assert sumprod.logsumexp(values, 1, keepdim=True, out=keep) is keep
    assert torch.equal(keep, out[:, None])


def test_row_out_positional() -> None:
    values, out = randn(3, 4), torch.zeros(3)
    assert sumprod.logsumexp(values, 1, False, out) is out
    assert torch.equal(out, sumprod.logsumexp(values, 1))


@pytest.mark.transforms
def test_row_out_of_another_shape_is_resized_with_a_warning() -> None:
    values, out = randn(3, 4), torch.zeros(5)
    with pytest.warns(UserWarning, match="resized"):
        sumprod.logsumexp(values, 1, out=out)
    assert torch.equal(out, sumprod.logsumexp(values, 1))
    empty = torch.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an empty tensor is resized in silence, as torch does
        sumprod.logsumexp(values, 1, out=empty)
    assert torch.equal(empty, out)


def test_row_out_strided_and_of_another_float_dtype() -> None:
    values = randn(3, 4)
    wide = torch.zeros(3, dtype=torch.float64)
    sumprod.logsumexp(values, 1, out=wide)
    assert torch.allclose(wide, values.double().logsumexp(1), rtol=1e-6)
    backing = torch.full((6,), 7.0)
    sumprod.logsumexp(values, 1, out=backing[::2])
    assert torch.equal(backing[::2], sumprod.logsumexp(values, 1))
    assert (backing[1::2] == 7).all()


def test_row_out_that_requires_grad() -> None:
    with pytest.raises(RuntimeError, match="out="):
        sumprod.logsumexp(torch.zeros(3, 4), 1, out=torch.zeros(3, requires_grad=True))
    with pytest.raises(RuntimeError, match="out="):
        sumprod.logsumexp(torch.zeros(3, 4, requires_grad=True), 1, out=torch.zeros(3))


def test_row_out_of_an_integer_dtype() -> None:
    with pytest.raises(RuntimeError, match=r"(?i)(cast|dtype|float)"):
        sumprod.logsumexp(torch.zeros(3, 4), 1, out=torch.zeros(3, dtype=torch.int64))


def layouts(values: Tensor) -> dict[str, Tensor]:
    """The same values in five memory layouts."""
    wide = torch.full((*values.shape[:-1], 3 * values.shape[-1]), math.nan, dtype=values.dtype)
    wide[..., 1::3] = values
    backwards = values.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    middle = values.transpose(1, 2).contiguous().transpose(1, 2)
    return {"sliced": wide[..., 1::3], "reversed": backwards, "middle": middle}


@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (0, 1), (1, 2)])
def test_row_non_contiguous(dim: int | tuple[int, ...]) -> None:
    values = randn(5, 18, 7)
    plain = check(values, dim)
    for name, view in layouts(values).items():
        assert not view.is_contiguous(), name
        # The order of the additions may follow memory: 4 float32 units in the last place.
        assert torch.allclose(sumprod.logsumexp(view, dim), plain, rtol=5e-7, atol=5e-7), name
    expanded = values[:, :1].expand(5, 18, 7)
    check(expanded, dim)


def test_row_zero_size_batch() -> None:
    assert sumprod.logsumexp(torch.empty(4, 0, 3), 2).shape == (4, 0)
    assert sumprod.logsumexp(torch.empty(4, 0, 3), 0).shape == (0, 3)


def allocated(values: Tensor, dim: int) -> int:
    """Bytes that torch allocates on the CPU during one call."""
    sumprod.logsumexp(values, dim)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        sumprod.logsumexp(values, dim)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events, "the profiler saw no allocation, not even the output"
    return sum(max(0, event.nbytes()) for event in events)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "plain", "bfloat16"])
def test_row_no_copy_of_the_input(layout: str, dim: int) -> None:
    values = torch.zeros(1024, 1024)
    values = {
        "transposed": values.T,
        "sliced": torch.zeros(1024, 2048)[:, ::2],
        "expanded": torch.zeros(1, 1).expand(1024, 1024),
        "plain": values,
        "bfloat16": values.bfloat16(),
    }[layout]
    # The input would be 2 or 4 MB; output and a workspace per thread may take 256 KB.
    assert allocated(values, dim) < 256 * 1024


@pytest.mark.parametrize("width", [3, 16, 33, 700, 70_000])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.usefixtures("threads")
def test_slices_do_not_depend_on_their_neighbours_or_on_threads(width: int, dim: int) -> None:
    rows = 37 if width < 1000 else 5
    values = randn(rows, width)
    values = values if dim == 1 else values.T.contiguous()
    torch.set_num_threads(1)
    whole = sumprod.logsumexp(values, dim)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert torch.equal(sumprod.logsumexp(values, dim), whole)
    for row in (0, 1, rows // 2, rows - 1):
        part = values.narrow(1 - dim, row, 1).clone(memory_format=torch.contiguous_format)
        assert_same(sumprod.logsumexp(part, dim).squeeze(), whole[row])
    half = values.narrow(1 - dim, 0, rows // 2)
    assert_same(sumprod.logsumexp(half, dim), whole[: rows // 2])


@pytest.mark.parametrize("value", [None, [1.0], np.zeros(3)])
def test_non_tensors_are_type_errors(value: object) -> None:
    with pytest.raises(TypeError, match="input"):
        sumprod.logsumexp(value, 0)  # type: ignore[arg-type]


def test_the_input_is_not_written() -> None:
    values = randn(30, 40)
    before = values.clone()
    sumprod.logsumexp(values, 0)
    sumprod.logsumexp(values, 1)
    assert torch.equal(values, before)


def test_documentation_example() -> None:
    values = randn(3, 3)
    actual = sumprod.logsumexp(values, 1)
    assert actual.shape == (3,)
    assert torch.allclose(actual, torch.log(torch.sum(torch.exp(values), 1)))
