"""logsumexp: derivatives, function transforms, compilation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import sumprod
from tests.ops.checks import check_compiled

INF = math.inf
# torch's own forward mode loads its decompositions through torch.jit.script at the first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
DIMS: list[int | tuple[int, ...]] = [0, 1, -1, (0, 2), (0, 1, 2)]


def example(*shape: int, zeros: bool = False) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64) * 2
    if zeros:
        values.view(-1)[::5] = -INF  # no row of any dim is all -inf
    return values.requires_grad_()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", DIMS)
def test_gradcheck_and_gradgradcheck(dim: int | tuple[int, ...], keepdim: bool, zeros: bool) -> None:
    values = example(2, 4, 3, zeros=zeros)
    assert gradcheck(lambda v: sumprod.logsumexp(v, dim, keepdim), values)
    assert gradgradcheck(lambda v: sumprod.logsumexp(v, dim, keepdim), values)


def test_gradcheck_of_layouts_and_scalars() -> None:
    values = example(3, 4)
    for view in (lambda v: v.T, lambda v: v[:, ::2], lambda v: v[:1].expand(5, 4), lambda v: v[0, 0]):
        assert gradcheck(lambda v, view=view: sumprod.logsumexp(view(v), 0), values)
        assert gradgradcheck(lambda v, view=view: sumprod.logsumexp(view(v), 0), values)


def test_second_derivative_at_all_minus_infinity_is_zero() -> None:
    values = torch.tensor([[-INF, -INF], [0.0, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(sumprod.logsumexp(values, 1).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad((grad * grad).sum(), values)
    assert (second[0] == 0).all()
    assert second[1].abs().min() > 1e-3
    assert second.isfinite().all()


def test_second_derivative_is_torchs() -> None:
    values = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (sumprod.logsumexp, torch.logsumexp):
        (grad,) = torch.autograd.grad((function(values, 1) ** 2).sum(), values, create_graph=True)
        (second,) = torch.autograd.grad((grad**2).sum(), values, create_graph=True)
        (third,) = torch.autograd.grad((second**2).sum(), values)
        results.append((grad, second, third))
    for ours, torchs in zip(*results, strict=True):
        assert torch.allclose(ours, torchs, rtol=1e-10)


def test_gradient_at_nan_is_nan_in_its_row_only() -> None:
    values = torch.tensor([[0.0, math.nan], [0.0, 1.0]], requires_grad=True)
    sumprod.logsumexp(values, 1).sum().backward()
    assert values.grad is not None
    assert values.grad[0].isnan().all()
    assert values.grad[1].isfinite().all()


def test_forward_mode_is_torchs() -> None:
    values, tangent = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    for dim in (0, 1, (0, 1)):
        _, ours = torch.func.jvp(lambda v, dim=dim: sumprod.logsumexp(v, dim), (values,), (tangent,))
        _, torchs = torch.func.jvp(lambda v, dim=dim: torch.logsumexp(v, dim), (values,), (tangent,))
        assert torch.allclose(ours, torchs, rtol=1e-12)
        with forward_ad.dual_level():
            dual = sumprod.logsumexp(forward_ad.make_dual(values, tangent), dim)
            assert torch.allclose(forward_ad.unpack_dual(dual).tangent, torchs, rtol=1e-12)


@pytest.mark.transforms
def test_vmap_over_every_dim_and_nested() -> None:
    values = torch.randn(3, 4, 5, dtype=torch.float64)
    for over in range(3):
        mapped = torch.func.vmap(lambda v: sumprod.logsumexp(v, -1), in_dims=over)(values)
        torchs = torch.func.vmap(lambda v: torch.logsumexp(v, -1), in_dims=over)(values)
        assert torch.allclose(mapped, torchs, rtol=1e-14)
    both = torch.func.vmap(torch.func.vmap(lambda v: sumprod.logsumexp(v, 0, True)))(values)
    assert torch.allclose(both, values.logsumexp(-1, True), rtol=1e-14)


@pytest.mark.transforms
def test_functional_gradients() -> None:
    values = torch.randn(3, 4, dtype=torch.float64)
    grad = torch.func.vmap(torch.func.grad(lambda v: sumprod.logsumexp(v, 0)))(values)
    assert torch.allclose(grad, values.softmax(-1), rtol=1e-12)
    hessian = torch.func.vmap(torch.func.hessian(lambda v: sumprod.logsumexp(v, 0)))(values)
    weights = values.softmax(-1)
    expected = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]
    assert torch.allclose(hessian, expected, rtol=1e-10, atol=1e-14)
    jacobian = torch.func.jacrev(lambda v: sumprod.logsumexp(v, 1))(values)
    assert torch.allclose(jacobian.sum(1), weights, rtol=1e-12)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_gradients(half: torch.dtype) -> None:
    values = torch.randn(4, 9).to(half).requires_grad_()
    sumprod.logsumexp(values, 1).sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == half
    # The result is rounded to the half type before it is subtracted, so a few of its units are lost.
    wide = values.detach().float().softmax(1)
    assert torch.allclose(values.grad.float(), wide, atol=4 * torch.finfo(half).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_needs_no_gradient(dtype: torch.dtype) -> None:
    assert not sumprod.logsumexp(torch.ones(3, dtype=dtype), 0).requires_grad


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dim", [0, (0, -1)])
def test_compiles_whole_with_dynamic_shapes(dim: int | tuple[int, ...]) -> None:
    sets = [(torch.randn(3, 4, 5),), (torch.randn(6, 7, 5),), (torch.randn(2, 9, 8),)]
    check_compiled(lambda v: sumprod.logsumexp(v, dim), *sets)
