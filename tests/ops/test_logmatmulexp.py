"""logmatmulexp: out_ik = log sum_j exp(x_ij + y_jk)."""

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
from tests.ops.checks import check_compiled
from tests.ops.hmm_cases import assert_log_close, lay_out
from tests.oracles import reduce

INF = math.inf
SIZES = st.sampled_from([0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33])
BATCHES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((3,), (3,)),
    ((3,), (1,)),
    ((), (3,)),
    ((2, 1), (1, 3)),
    ((0,), (1,)),
]


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype, scale: float, zeros: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return values.masked_fill(torch.rand(shape, generator=generator) < zeros, -INF).to(dtype)


def check(x: Tensor, y: Tensor) -> None:
    actual = ops.logmatmulexp(x, y)
    expected = reduce.logmatmulexp(x.double().numpy(), y.double().numpy())
    assert actual.dtype == x.dtype
    assert actual.shape == expected.shape
    # Each sum rounds its two terms and adds up J positive numbers: 16 units of the largest term.
    largest = max((t[t.isfinite()].abs().max().item() if t.isfinite().any() else 0.0) for t in (x, y))
    tolerance = 16 * torch.finfo(x.dtype).eps * (2 * largest + 8)
    assert_log_close(actual, expected, np.array(tolerance))


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    batches=st.sampled_from(BATCHES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e3, 1e4]),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle(
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    scale: float,
    zeros: float,
    layout: str,
    seed: int,
) -> None:
    rows, inner, columns = sizes
    x = lay_out(draw((*batches[0], rows, inner), seed, dtype, scale, zeros), layout)
    y = lay_out(draw((*batches[1], inner, columns), seed + 1, dtype, scale, zeros), layout)
    check(x, y)


def test_by_hand() -> None:
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log(), torch.tensor([[5.0, 6.0], [7.0, 8.0]]).log()
    expected = torch.tensor([[19.0, 22.0], [43.0, 50.0]])
    assert torch.allclose(ops.logmatmulexp(x, y).exp(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_larger_matrices(size: int, dtype: torch.dtype) -> None:
    x, y = (draw((2, size, size), seed, dtype, 2.0, 0.1) for seed in (1, 2))
    expected = torch.logsumexp(x.double()[..., :, :, None] + y.double()[..., None, :, :], -2)
    actual = ops.logmatmulexp(x, y).double()
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    assert torch.allclose(actual, expected, rtol=rtol, atol=rtol * 10)


# Around the sides and the depths of tiles, one side at a time beyond them, and sums added up in parts.
TILES = [
    (1, 8, 7, 9),
    (1, 31, 9, 33),
    (3, 32, 33, 64),
    (1, 129, 5, 17),
    (1, 17, 257, 65),
    (1, 9, 600, 18),
    (2, 129, 260, 127),
    (1, 300, 17, 257),
]


@pytest.mark.parametrize("sizes", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hard", [False, True])
def test_tiles_and_their_gradients(sizes: tuple[int, int, int, int], dtype: torch.dtype, hard: bool) -> None:
    batch, rows, inner, columns = sizes
    x, y = draw((batch, rows, inner), 1, dtype, 2.0, 0.1), draw((batch, inner, columns), 2, dtype, 2.0, 0.1)
    if hard:  # the last row and the last column never meet their maxima
        x[:, -1, 1:], y[:, 1:, -1] = -INF, 0.0
        x[:, -1, 1], y[:, 1, -1], y[:, 0, :] = -900.0, -900.0, -INF
    parts = [part.requires_grad_() for part in (x, y)]
    terms = x.detach().double()[..., :, :, None] + y.detach().double()[..., None, :, :]
    actual = ops.logmatmulexp(*parts)
    expected = torch.logsumexp(terms, -2)
    rtol = 2e-6 if dtype == torch.float32 else 1e-13
    assert torch.allclose(actual.double(), expected, rtol=rtol, atol=10 * rtol)
    weights = torch.linspace(-1, 1, actual.numel(), dtype=torch.float64).reshape(actual.shape)
    grads = torch.autograd.grad((actual * weights.to(dtype)).sum(), parts)
    shares = (terms - expected.nan_to_num(neginf=0.0)[..., None, :]).exp() * weights[..., None, :]
    wanted = [shares.sum(-1), shares.sum(-3)]
    for ours, theirs in zip(grads, wanted, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4 if rtol > 1e-9 else 1e-10, atol=10 * rtol)


@pytest.mark.parametrize("gap", [60.0, 100.0, 800.0, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 16, 40])
def test_large_gaps_keep_their_support(gap: float, dtype: torch.dtype, size: int) -> None:
    # Row maximum and column maximum never meet: every product is `gap` or more below the two of them.
    x = torch.full((size, size), -INF, dtype=dtype)
    y = torch.full((size, size), -INF, dtype=dtype)
    x[:, 0], x[:, 1] = 0.0, -gap
    y[0, :], y[1, :] = -gap, 0.0
    y[0, 0] = -INF
    actual = ops.logmatmulexp(x, y)
    expected = torch.full((size, size), -gap + math.log(2), dtype=dtype)
    expected[:, 0] = -gap
    assert torch.allclose(actual, expected, rtol=1e-6)
    y[1, :] = -INF
    assert torch.equal(ops.logmatmulexp(x, y)[:, 0], torch.full((size,), -INF, dtype=dtype))
    assert torch.equal(ops.logmatmulexp(x, y)[:, 1:], torch.full((size, size - 1), -gap, dtype=dtype))


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 25.0), (torch.float32, 50.0), (torch.float64, 250.0)]
)
def test_many_products_near_the_underflow_boundary(dtype: torch.dtype, scale: float, zeros: float) -> None:
    # Terms about exp(-87) or exp(-708) of the largest product: linear space would lose some silently.
    for size in (2, 5, 17):
        check(
            draw((200, size, size), 1, dtype, scale, zeros), draw((200, size, size), 2, dtype, scale, zeros)
        )


def test_empty_inner_dimension_is_minus_infinity() -> None:
    actual = ops.logmatmulexp(torch.empty(2, 3, 0), torch.empty(2, 0, 4))
    assert torch.equal(actual, torch.full((2, 3, 4), -INF))


def test_all_minus_infinity_has_zero_gradients() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    x[0, 1], y[1] = -INF, -INF
    x.requires_grad_(), y.requires_grad_()
    actual = ops.logmatmulexp(x, y)
    assert (actual[0, 1] == -INF).all()
    assert (actual[1] == -INF).all()
    grads = torch.autograd.grad(actual.sum(), [x, y], create_graph=True)
    for grad in grads:
        assert grad.isfinite().all()
        assert (grad[1] == 0).all()
        assert grad[0].abs().max() > 0
    assert (grads[0][0, 1] == 0).all()
    for second in torch.autograd.grad(sum((g * g).sum() for g in grads), [x, y]):
        assert second.isfinite().all()
        assert second[0].abs().max() > 0


def test_nan_and_plus_infinity_stay_in_their_batch_element() -> None:
    x, y = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    clean = ops.logmatmulexp(x, y)
    assert clean.isfinite().all()
    x[1, 2, 3] = math.nan
    actual = ops.logmatmulexp(x, y)
    assert actual[1, 2].isnan().all()
    assert torch.equal(actual[[0, 2]], clean[[0, 2]])
    x[1, 2, 3] = INF
    actual = ops.logmatmulexp(x, y)
    assert (actual[1, 2] == INF).all()
    assert torch.equal(actual[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize(("left", "right"), BATCHES[:5])
def test_gradcheck_and_gradgradcheck(left: tuple[int, ...], right: tuple[int, ...], zeros: float) -> None:
    x = draw((*left, 3, 2), 1, torch.float64, 1.0, zeros)
    y = draw((*right, 2, 3), 2, torch.float64, 1.0, zeros)
    x[..., 0], y[..., 0, :] = 0.3, -0.2  # no output is all -inf: finite differences need a finite value
    x.requires_grad_(), y.requires_grad_()
    assert gradcheck(ops.logmatmulexp, (x, y))
    assert gradgradcheck(ops.logmatmulexp, (x, y))


def test_gradients_in_float32_with_large_gaps() -> None:
    x, y = (draw((5, 17, 17), seed, torch.float32, 100.0, 0.2).requires_grad_() for seed in (1, 2))
    weights = torch.linspace(-1, 1, 5 * 17 * 17).reshape(5, 17, 17)
    results = []
    for dtype in (torch.float32, torch.float64):
        parts = [p.detach().to(dtype).requires_grad_() for p in (x, y)]
        out = ops.logmatmulexp(*parts)
        out = torch.where(out.detach().isfinite(), out, torch.zeros_like(out))
        results.append(torch.autograd.grad((out * weights.to(dtype)).sum(), parts))
    for narrow, wide in zip(*results, strict=True):
        # 17 softmax weights each good to 1e-5: their logits are of order 100, rounded at 1e-5.
        assert torch.allclose(narrow, wide.float(), atol=2e-4, rtol=1e-4)
        assert wide.abs().max() > 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype) -> None:
    x, y = draw((2, 9, 17), 1, half, 2.0, 0.1), draw((2, 17, 9), 2, half, 2.0, 0.1)
    actual = ops.logmatmulexp(x, y)
    assert actual.dtype == half
    assert torch.equal(actual, ops.logmatmulexp(x.float(), y.float()).to(half))


def test_mixed_dtypes_are_promoted() -> None:
    x, y = torch.randn(3, 4), torch.randn(4, 5).double()
    assert torch.equal(ops.logmatmulexp(x, y), ops.logmatmulexp(x.double(), y))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [3, 16, 50])
def test_elements_do_not_depend_on_their_batch_or_on_threads(size: int) -> None:
    x, y = (draw((21, size, size), seed, torch.float32, 2.0, 0.1) for seed in (1, 2))
    x[3] *= 300  # one hard element must not change its neighbours
    torch.set_num_threads(1)
    whole = ops.logmatmulexp(x, y)
    torch.set_num_threads(2)
    assert torch.equal(ops.logmatmulexp(x, y), whole)
    for b in (0, 2, 3, 20):
        assert torch.equal(ops.logmatmulexp(x[b], y[b]), whole[b])
        assert torch.equal(ops.logmatmulexp(x[b : b + 2], y[b : b + 2]), whole[b : b + 2])


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ([[1.0]], torch.zeros(1, 1), TypeError, "x.*list"),
        (torch.zeros(1, 1), None, TypeError, "y.*NoneType"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 2), TypeError, "x.*int64"),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.complex64), TypeError, "y.*complex64"),
        (torch.zeros(2), torch.zeros(2, 2), ValueError, r"x.*[\[(]2,?[\])]"),
        (torch.zeros(2, 2), torch.zeros(2), ValueError, r"y.*[\[(]2,?[\])]"),
        (torch.zeros(2, 3), torch.zeros(4, 5), ValueError, r"2, 3.*4, 5|4, 5.*2, 3|3.*4, 5"),
        (torch.zeros(2, 3, 3), torch.zeros(4, 3, 3), ValueError, r"2, 3, 3.*4, 3, 3"),
        (torch.zeros(2, 2), torch.zeros(2, 2, device="meta"), ValueError, "cpu.*meta|meta.*cpu"),
    ],
)
@pytest.mark.parametrize("name", ["logmatmulexp", "maxmatmul"])
def test_bad_arguments(name: str, x: object, y: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(ops, name)(x, y)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes() -> None:
    sets = [(torch.randn(2, i, j), torch.randn(2, j, k)) for i, j, k in ((3, 4, 5), (6, 7, 8), (5, 3, 9))]
    check_compiled(lambda x, y: ops.logmatmulexp(x, y), *sets)
