"""`logsumexp`: log of a sum of exponentials, exact at infinities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sumprod._native import ops as native
from sumprod.ops._devices import require_kernels

__all__ = ["logsumexp"]

_NATIVE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HALF = (torch.float16, torch.bfloat16)


def logsumexp(
    input: Tensor, dim: int | Sequence[int], keepdim: bool = False, out: Tensor | None = None
) -> Tensor:
    """Log of the sum of exponentials of `input` over `dim`; a drop-in for `torch.logsumexp`.

    It differs from torch's at infinities, where its gradients are exact: a slice of -inf has
    gradient 0 (torch: NaN), and the +inf entries of a slice share the gradient equally. It reads the
    input once, whatever its strides, and never copies it. A slice's result has the same bits in
    whatever batch, memory layout or number of threads it is computed.

    Args:
        input: any shape. float32, float64, float16, bfloat16; half types are summed in float32.
            Integers and bools are converted to the default dtype; complex goes to torch.
        dim: the dim or dims to reduce. Over an empty dim the result is -inf.
        keepdim: whether reduced dims stay, with size 1.
        out: where to write the result; resized when it has another shape, with torch's warning.

    Returns:
        The shape of `input` without `dim`, in its dtype. NaN where a slice holds NaN.

    Differentiable any number of times, in reverse and forward mode, and inside `torch.func`
    transforms.

    Raises:
        TypeError: `input` is not a tensor, or `dim` holds something else than integers.
        IndexError: a dim is out of range.
        RuntimeError: no dim, a repeated dim, or an `out` that requires grad or cannot hold floats.
        ValueError: `input` is on a device without a kernel.

    Example:
        >>> import torch, sumprod
        >>> x = torch.arange(9.0).reshape(3, 3).log()
        >>> sumprod.logsumexp(x, 1).shape
        torch.Size([3])
        >>> torch.allclose(sumprod.logsumexp(x, 1), torch.log(torch.sum(torch.exp(x), 1)))
        True
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"logsumexp: input must be a torch.Tensor, got {type(input).__name__}")
    if input.dtype not in _NATIVE:
        if input.is_floating_point() or input.is_complex():
            return torch.logsumexp(input, dim if isinstance(dim, int) else list(dim), keepdim, out=out)
        input = input.to(torch.get_default_dtype())
    dims = _checked_dims(input, dim)
    if not input.is_cpu:
        require_kernels("logsumexp", input.device)
    if input.dim() == 0:
        input, dims, keepdim = input.reshape(1), [0], False
    if out is not None:
        return _into(out, input, dims, keepdim)
    return _dispatch(input, dims, keepdim)


def _checked_dims(input: Tensor, dim: int | Sequence[int]) -> list[int]:
    rank = max(input.dim(), 1)
    if isinstance(dim, int):
        if not -rank <= dim < rank:
            _raise_range(rank, dim)
        return [dim]
    if not isinstance(dim, Sequence) or not all(isinstance(d, int) for d in dim):
        raise TypeError(f"logsumexp: dim must be an int or a sequence of ints, got {dim!r}")
    if len(dim) == 0 and input.dim() > 0:
        raise RuntimeError(
            f"logsumexp: dim must name at least one of the {input.dim()} dims of the input, got {dim!r}"
        )
    seen = set()
    for d in dim:
        if not -rank <= d < rank:
            _raise_range(rank, d)
        if d % rank in seen:
            raise RuntimeError(
                f"logsumexp: dim {d % rank} appears multiple times in the list of dims {list(dim)}"
            )
        seen.add(d % rank)
    return list(dim)


def _raise_range(rank: int, dim: int) -> None:
    raise IndexError(
        f"logsumexp: Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {dim})"
    )


def _dispatch(input: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    if not torch.compiler.is_compiling():
        # Not part of forward_ad's public face; without it every call would pay for forward mode.
        forward_mode = forward_ad._current_level >= 0
        if forward_mode or torch._C._are_functorch_transforms_active():
            dims = [d % input.dim() for d in dims]
            return _TransformedLogSumExp.apply(input, tuple(dims), keepdim)  # type: ignore[no-any-return, no-untyped-call]
    if input.requires_grad and torch.is_grad_enabled():
        return _LogSumExp.apply(input, dims, keepdim)  # type: ignore[no-any-return, no-untyped-call]
    return native.logsumexp(input, dims, keepdim)  # type: ignore[no-any-return]


def _into(out: Tensor, input: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    if torch.is_grad_enabled() and (input.requires_grad or out.requires_grad):
        raise RuntimeError(
            "logsumexp(): functions with out=... arguments don't support automatic differentiation, "
            "but one of the arguments requires grad."
        )
    # Multiplying by one changes no bit, and torch resizes, warns and converts as for any out=.
    return torch.mul(native.logsumexp(input, dims, keepdim), 1, out=out)


def _weights(input: Tensor, result: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """The gradient exp(input - result) as torch operations, exact at infinities."""
    if not keepdim:
        for d in sorted(d % input.dim() for d in dims):
            result = result.unsqueeze(d)
    infinite = result.detach().isinf()
    zero = torch.zeros((), dtype=input.dtype, device=input.device)
    chosen = (input == torch.inf).to(input.dtype)
    share = chosen / chosen.sum(tuple(dims), keepdim=True).clamp(min=1)
    # Both sides are masked before the subtraction: inf - inf would leave NaN in the derivative.
    finite = (torch.where(infinite, zero, input) - torch.where(infinite, zero, result)).exp()
    return torch.where(infinite, share, finite)


def _expanded(grad: Tensor, rank: int, dims: Sequence[int], keepdim: bool) -> Tensor:
    if not keepdim:
        for d in sorted(d % rank for d in dims):
            grad = grad.unsqueeze(d)
    return grad


class _LogSumExp(torch.autograd.Function):
    """The everyday case: cheap to call; a backward that must be differentiable uses the formula."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dims: list[int], keepdim: bool) -> Tensor:
        result: Tensor = native.logsumexp(input, dims, keepdim)
        ctx.save_for_backward(input, result)
        ctx.dims, ctx.keepdim = dims, keepdim
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        input, result = ctx.saved_tensors
        dims: list[int] = ctx.dims
        if not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        ):
            weights = _weights(input, result, dims, ctx.keepdim)
            return _expanded(grad, input.dim(), dims, ctx.keepdim) * weights, None, None
        if input.dtype in _HALF:
            wide = native.logsumexp_backward(grad.float(), input.float(), result.float(), dims)
            return wide.to(input.dtype), None, None
        return native.logsumexp_backward(grad, input, result, dims), None, None


class _TransformedLogSumExp(torch.autograd.Function):
    """The same inside torch.func transforms and forward mode."""

    @staticmethod
    def forward(input: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        result: Tensor = native.logsumexp(input, dims, keepdim)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, ctx.dims, ctx.keepdim = inputs
        ctx.save_for_backward(input, output)
        ctx.save_for_forward(input, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        input, result = ctx.saved_tensors
        weights = _weights(input, result, ctx.dims, ctx.keepdim)
        return _expanded(grad, input.dim(), ctx.dims, ctx.keepdim) * weights, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        input, result = ctx.saved_tensors
        return (_weights(input, result, ctx.dims, ctx.keepdim) * tangent).sum(ctx.dims, keepdim=ctx.keepdim)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, dims: tuple[int, ...], keepdim: bool
    ) -> tuple[Tensor, int]:
        mapped = in_dims[0]
        assert mapped is not None
        moved = tuple(d + 1 for d in dims)
        return _TransformedLogSumExp.apply(input.movedim(mapped, 0), moved, keepdim), 0  # type: ignore[no-untyped-call]


@torch.library.register_fake("sumprod::logsumexp")
def _fake(input: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    rank = input.dim()
    reduced = {d % rank for d in dim} if rank else set()
    kept = [1 if d in reduced else size for d, size in enumerate(input.shape) if keepdim or d not in reduced]
    return input.new_empty(kept)


@torch.library.register_fake("sumprod::logsumexp_backward")
def _fake_backward(grad: Tensor, input: Tensor, output: Tensor, dim: Sequence[int]) -> Tensor:
    return torch.empty_like(input)
