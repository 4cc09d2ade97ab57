"""normalize_weights: normalised log weights, log of the mean raw weight, effective sample size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sumprod import ops
from tests.ops.checks import assert_same, check_compiled, signature_of
from tests.oracles import reduce

INF = math.inf
SIZES = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 33, 100])


def check(values: Tensor, dim: int) -> None:
    actual = ops.normalize_weights(values, dim)
    expected = reduce.normalize_weights(values.double().numpy(), dim)
    finite = values[values.isfinite()].abs().double()
    largest = finite.max().item() if finite.numel() else 0.0
    # Each result is a difference of numbers up to `largest`, each good to a few units in the last place.
    tolerance = 8 * torch.finfo(values.dtype).eps * (largest + math.log(values.shape[dim] + 1) + 1)
    for ours, wanted in zip(actual[:2], expected[:2], strict=True):
        assert ours.dtype == values.dtype
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours.double().numpy(), wanted, rtol=0, atol=tolerance)
    assert actual.ess.dtype == values.dtype
    assert actual.ess.shape == expected[2].shape
    np.testing.assert_allclose(actual.ess.double().numpy(), expected[2], rtol=min(1e-3, 4 * tolerance))


@given(
    shape=st.lists(SIZES, min_size=1, max_size=2),
    dim=st.integers(-2, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e3]),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    zeros=st.sampled_from([0.0, 0.5, 0.95]),
    infinite=st.sampled_from([0.0, 0.05]),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle(
    shape: list[int],
    dim: int,
    dtype: torch.dtype,
    scale: float,
    offset: float,
    zeros: float,
    infinite: float,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset
    values = values.masked_fill(torch.rand(shape, generator=generator) < zeros, -INF).to(dtype)
    values = values.masked_fill(torch.rand(shape, generator=generator) < infinite, INF)
    check(values.T if transposed and values.ndim == 2 else values, dim % len(shape))


def test_signature_and_fields() -> None:
    assert signature_of(ops.normalize_weights) == "(log_weights, dim=-1)"
    result = ops.normalize_weights(torch.tensor([1.0, 1.0, 2.0]).log())
    assert result._fields == ("log_weights", "log_evidence", "ess")
    assert result.log_weights.exp().tolist() == pytest.approx([0.25, 0.25, 0.5], rel=1e-6)
    assert result.log_evidence.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert result.ess.item() == pytest.approx(16 / 6, rel=1e-6)


def test_the_last_dim_is_the_default() -> None:
    values = torch.randn(3, 4)
    for ours, explicit in zip(ops.normalize_weights(values), ops.normalize_weights(values, 1), strict=True):
        assert torch.equal(ours, explicit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_no_weight_at_all(width: int, dtype: torch.dtype) -> None:
    values = torch.randn(3, width, dtype=dtype)
    values[1] = -INF
    result = ops.normalize_weights(values)
    assert (result.log_weights[1] == -INF).all()
    assert result.log_evidence[1].item() == -INF
    assert result.ess[1].item() == 0.0
    for part in result:
        assert part[[0, 2]].isfinite().all()


def test_empty_dim() -> None:
    result = ops.normalize_weights(torch.empty(3, 0))
    assert result.log_weights.shape == (3, 0)
    assert torch.equal(result.log_evidence, torch.full((3,), -INF))
    assert torch.equal(result.ess, torch.zeros(3))
    none = ops.normalize_weights(torch.empty(0, 3))
    assert (none.log_weights.shape, none.log_evidence.shape, none.ess.shape) == ((0, 3), (0,), (0,))


def test_plus_infinity_takes_all_weight_in_equal_shares() -> None:
    values = torch.tensor([[INF, 3.0, INF, -INF], [0.0, 0.0, 0.0, 0.0]])
    result = ops.normalize_weights(values)
    assert result.log_weights[0].tolist() == pytest.approx([-math.log(2), -INF, -math.log(2), -INF])
    assert result.log_evidence.tolist() == pytest.approx([INF, 0.0], abs=1e-6)  # log 4 - log 4
    assert result.ess.tolist() == pytest.approx([2.0, 4.0])


def test_nan_stays_in_its_row() -> None:
    values = torch.zeros(3, 5)
    values[1, 3] = math.nan
    result = ops.normalize_weights(values)
    assert result.log_weights[1].isnan().all()
    assert result.log_evidence.isnan().tolist() == [False, True, False]
    assert result.ess.isnan().tolist() == [False, True, False]
    assert result.log_weights[[0, 2]].isfinite().all()


@pytest.mark.parametrize("count", [1000, 300_000])
def test_many_weights_keep_their_precision(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(1))
    result = ops.normalize_weights(values)
    wide = values.double()
    total = wide.logsumexp(0)
    # A few float32 units; one running float32 sum over 300000 terms would lose 1e-4 and more.
    assert result.log_evidence.item() == pytest.approx((total - math.log(count)).item(), rel=2e-6)
    expected_ess = (-(2 * (wide - total)).logsumexp(0)).exp().item()
    assert result.ess.item() == pytest.approx(expected_ess, rel=1e-5)
    assert result.log_weights.double().exp().sum().item() == pytest.approx(1.0, rel=2e-6)


def test_equal_weights_have_full_effective_size() -> None:
    for count in (1, 2, 17, 1000):
        result = ops.normalize_weights(torch.full((count,), -700.0))
        assert result.ess.item() == pytest.approx(count, rel=1e-5)
        assert result.log_evidence.item() == pytest.approx(-700.0, rel=1e-6)


def outputs_without_infinities(values: Tensor, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    weights, evidence, ess = ops.normalize_weights(values, dim)
    return weights.exp(), evidence, ess


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((4,), 0), ((2, 3), -1), ((3, 2), 0)])
def test_gradcheck_and_gradgradcheck(shape: tuple[int, ...], dim: int, zeros: bool) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    if zeros:
        values.view(-1)[-1] = -INF
    values.requires_grad_()
    assert gradcheck(lambda v: outputs_without_infinities(v, dim), values)
    assert gradgradcheck(lambda v: outputs_without_infinities(v, dim), values)
    if not zeros:
        assert gradcheck(lambda v: ops.normalize_weights(v, dim), values)
        assert gradgradcheck(lambda v: ops.normalize_weights(v, dim), values)


@pytest.mark.parametrize("field", [0, 1, 2])
def test_each_output_alone_is_differentiable(field: int) -> None:
    values = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: ops.normalize_weights(v)[field], values)


def test_no_weight_at_all_has_zero_gradients() -> None:
    values = torch.tensor([[-INF, -INF, -INF], [0.0, 1.0, -INF]], requires_grad=True)
    total = sum(part.sum() for part in outputs_without_infinities(values))
    assert isinstance(total, Tensor)
    (grad,) = torch.autograd.grad(total, values, create_graph=True)
    assert (grad[0] == 0).all()
    assert grad.isfinite().all()
    assert grad[1, :2].abs().max() > 0
    (second,) = torch.autograd.grad((grad * grad).sum(), values)
    assert (second[0] == 0).all()
    assert second.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype) -> None:
    values = torch.randn(3, 50).to(half)
    actual, wide = ops.normalize_weights(values), ops.normalize_weights(values.float())
    for ours, reference in zip(actual, wide, strict=True):
        assert ours.dtype == half
        assert torch.equal(ours, reference.to(half))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("shape", "dim"), [((19, 40), 1), ((40, 19), 0), ((3, 70_000), 1)])
def test_rows_do_not_depend_on_their_neighbours_or_on_threads(shape: tuple[int, int], dim: int) -> None:
    values = torch.randn(shape)
    torch.set_num_threads(1)
    whole = ops.normalize_weights(values, dim)
    torch.set_num_threads(2)
    for ours, before in zip(ops.normalize_weights(values, dim), whole, strict=True):
        assert torch.equal(ours, before)
    for row in (0, 1, values.shape[1 - dim] - 1):
        alone = ops.normalize_weights(values.select(1 - dim, row).clone())
        assert_same(alone.log_weights, whole.log_weights.select(1 - dim, row))
        assert_same(alone.log_evidence, whole.log_evidence[row])
        assert_same(alone.ess, whole.ess[row])


@pytest.mark.parametrize(
    ("values", "dim", "error", "message"),
    [
        ([0.0], -1, TypeError, "log_weights.*list"),
        (torch.zeros(3).long(), -1, TypeError, "log_weights.*int64"),
        (torch.zeros(3, dtype=torch.complex64), -1, TypeError, "log_weights.*complex64"),
        (torch.zeros(2, 3), 2, IndexError, r"(?i)dim.*out of range.*-2, 1.*2"),
        (torch.zeros(2, 3), -3, IndexError, r"(?i)dim.*out of range.*-2, 1.*-3"),
    ],
)
def test_bad_arguments(values: object, dim: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.normalize_weights(values, dim)  # type: ignore[arg-type]


def test_the_input_is_not_written() -> None:
    values = torch.randn(30, 40)
    before = values.clone()
    ops.normalize_weights(values)
    assert torch.equal(values, before)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes() -> None:
    check_compiled(lambda v: ops.normalize_weights(v), *[(torch.randn(b, n),) for b, n in ((3, 4), (6, 7))])
