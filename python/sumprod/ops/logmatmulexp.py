"""`logmatmulexp`: the matrix product in the log semiring."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sumprod._native import ops as native
from sumprod.ops._matrix_arguments import canonical, merge_mapped, product_shape

__all__ = ["logmatmulexp"]


def logmatmulexp(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product with sums as log-sum-exp and products as sums: out_ik = log sum_j exp(x_ij + y_jk).

    One step of every forward recursion, and the block of associative scans over hidden Markov
    models (Sarkka and Garcia-Fernandez 2021). Rows and columns are shifted by their maxima and
    multiplied as floats; whatever could have underflowed is redone term by term, so that the result
    is that of log space at about the cost of a float matrix product.

    Args:
        x: [*, I, J].
        y: [*, J, K]; batch dims broadcast, without being copied.

    Returns:
        [*, I, K], in the promoted dtype (half types are computed in float32). -inf where no term is
        possible, and over an empty J; +inf and NaN as in the sum of the terms.

    Differentiable any number of times. -inf has zero gradient. First gradients are native; higher
    ones, and those taken inside `torch.func` transforms, need memory for all [*, I, J, K] terms.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, sumprod
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log()
        >>> y = torch.tensor([[5.0, 6.0], [7.0, 8.0]]).log()
        >>> sumprod.ops.logmatmulexp(x, y).exp().round().tolist()
        [[19.0, 22.0], [43.0, 50.0]]
    """
    x, y, dtype = canonical("logmatmulexp", x, y)
    result = _dispatch(x, y)
    return result if result.dtype == dtype else result.to(dtype)


def _dispatch(x: Tensor, y: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    ):
        return _TransformedLogMatmulExp.apply(x, y)  # type: ignore[no-any-return, no-untyped-call]
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _LogMatmulExp.apply(x, y)  # type: ignore[no-any-return, no-untyped-call]
    return native.logmatmulexp(x, y)  # type: ignore[no-any-return]


def _weights(x: Tensor, y: Tensor, result: Tensor) -> Tensor:
    """Each term's share of its sum, [*, I, J, K], as torch operations, exact at infinities."""
    terms = x[..., :, :, None] + y[..., None, :, :]
    total = result[..., :, None, :]
    infinite = total.detach().isinf()
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    chosen = (terms == torch.inf).to(x.dtype)
    share = chosen / chosen.sum(-2, keepdim=True).clamp(min=1)
    finite = (torch.where(infinite, zero, terms) - torch.where(infinite, zero, total)).exp()
    return torch.where(infinite, share, finite)


def _formula(grad: Tensor, x: Tensor, y: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    terms = grad[..., :, None, :] * _weights(x, y, result)
    return terms.sum(-1).sum_to_size(x.shape), terms.sum(-3).sum_to_size(y.shape)


class _LogMatmulExp(torch.autograd.Function):
    """The everyday case: cheap to call; a backward that must be differentiable uses the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = native.logmatmulexp(x, y)
        ctx.save_for_backward(x, y, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, result = ctx.saved_tensors
        if not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        ):
            return _formula(grad, x, y, result)
        grad_x, grad_y = native.logmatmulexp_backward(grad, x, y, result)
        return grad_x.sum_to_size(x.shape), grad_y.sum_to_size(y.shape)


class _TransformedLogMatmulExp(torch.autograd.Function):
    """The same inside torch.func transforms and forward mode."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = native.logmatmulexp(x, y)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _formula(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, y_tangent: Tensor) -> Tensor:
        weights = _weights(*ctx.saved_tensors)
        return (weights * (x_tangent[..., :, :, None] + y_tangent[..., None, :, :])).sum(-2)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor) -> tuple[Tensor, int]:
        return _TransformedLogMatmulExp.apply(*merge_mapped(in_dims, x, y)), 0  # type: ignore[no-untyped-call]


@torch.library.register_fake("sumprod::logmatmulexp")
def _fake(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(product_shape(x, y))


@torch.library.register_fake("sumprod::logmatmulexp_backward")
def _fake_backward(grad: Tensor, x: Tensor, y: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return x.new_empty([*batch, *x.shape[-2:]]), y.new_empty([*batch, *y.shape[-2:]])
