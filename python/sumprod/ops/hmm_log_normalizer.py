"""`hmm_log_normalizer`: the log-likelihood of a hidden Markov model, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.ops import _hmm_composite as composite
from sumprod.ops._hmm_arguments import canonical, in_transform, register_rules, spread_arguments
from sumprod.ops._hmm_autograd import composite_gradient

__all__ = ["hmm_log_normalizer"]


def hmm_log_normalizer(
    initial: Tensor, transition: Tensor, emission: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Log of the total weight of all state paths of a hidden Markov model.

    With `initial` = log p(z_0), `transition` = log p(z_t+1 | z_t) and `emission` = log p(x_t | z_t)
    this is the log-likelihood of the observations; the potentials need not be normalised, though.
    The sum over all S**T paths is the forward recursion (Rabiner 1989, section III.A), in scaled
    linear space with an exact fallback, so that the result equals the log-space one however peaked
    the potentials are.

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted. Values
            past a sequence's end are not read.

    Returns:
        [*B], in the promoted dtype of the inputs (half types are computed in float32). -inf, with
        zero gradients, where no path is possible; 0 where the length is 0; NaN where an input of
        that sequence is NaN or +inf.

    Differentiable twice and more with respect to all three potentials. The first gradients are the
    posterior marginals, computed natively; higher ones take a loop over time.

    On a GPU, `lengths` given as a list or as a tensor of the CPU are checked without waiting for the device.
    Lengths on the device are checked, and waited for, while the setting `validate_infer` is on
    (`sumprod.enable_validation(False)` turns it off) and no CUDA graph is captured.

    Raises:
        TypeError: an argument is not a floating-point tensor, or lengths are not integers.
        ValueError: shapes, devices or lengths do not fit together.

    Example:
        >>> import torch, sumprod
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> print(f"{sumprod.ops.hmm_log_normalizer(initial, transition, emission).exp():.5f}")
        0.03628
    """
    arguments = canonical("hmm_log_normalizer", initial, transition, emission, lengths)
    if in_transform():
        result = _TransformedLogNormalizer.apply(*arguments.potentials)  # type: ignore[no-untyped-call]
    elif arguments.wants_grad:
        result = _LogNormalizer.apply(*arguments.potentials)  # type: ignore[no-untyped-call]
    else:
        result = native.hmm_log_normalizer(*arguments.potentials)
    return arguments.restore(result)


class _LogNormalizer(torch.autograd.Function):
    """The everyday case: cheap to call, and differentiable again through the composite formula."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(initial, transition, emission, lengths)
        result: Tensor = native.hmm_log_normalizer(initial, transition, emission, lengths)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, emission, lengths = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            inputs = (initial, transition, emission)
            return *composite_gradient(composite.log_normalizer, grad, inputs, lengths, True), None
        return *native.hmm_log_normalizer_backward(grad, initial, transition, emission, lengths), None


class _TransformedLogNormalizer(torch.autograd.Function):
    """The same inside torch.func transforms, which need setup_context and rules for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
        result: Tensor = native.hmm_log_normalizer(initial, transition, emission, lengths)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, emission, lengths = ctx.saved_tensors
        return *_TransformedGradient.apply(grad, initial, transition, emission, lengths), None  # type: ignore[no-untyped-call]


class _TransformedGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = native.hmm_log_normalizer_backward(
            grad, initial, transition, emission, lengths
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, initial, transition, emission, lengths = ctx.saved_tensors

        def gradient(
            grad: Tensor, initial: Tensor, transition: Tensor, emission: Tensor
        ) -> tuple[Tensor, ...]:
            def value(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
                return composite.log_normalizer(initial, transition, emission, lengths)

            pull = torch.func.vjp(value, initial, transition, emission)[1]
            result: tuple[Tensor, ...] = pull(grad)
            return result

        pull = torch.func.vjp(gradient, grad, initial, transition, emission)[1]
        return *pull(grads), None


def _fake(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None) -> Tensor:
    return emission.new_empty(emission.shape[0])


register_rules("hmm_log_normalizer", _fake)


@torch.library.register_fake("sumprod::hmm_log_normalizer_backward")
def _fake_backward(
    grad: Tensor, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(initial, memory_format=torch.contiguous_format),
        torch.empty_like(transition, memory_format=torch.contiguous_format),
        torch.empty_like(emission, memory_format=torch.contiguous_format),
    )


@torch.library.register_vmap("sumprod::hmm_log_normalizer_backward")
def _vmap_backward(info: Any, in_dims: Any, grad: Tensor, *arguments: Tensor | None) -> tuple[Any, Any]:
    # Each slice needs a gradient of its own, so nothing may stay shared between slices.
    size = info.batch_size
    spread_all = [
        x if x is None or dim is not None else x.expand(size, *x.shape)
        for x, dim in zip(arguments, in_dims[1:], strict=True)
    ]
    dims = [
        None if x is None else (0 if dim is None else dim)
        for x, dim in zip(arguments, in_dims[1:], strict=True)
    ]
    batch, merged = spread_arguments(size, dims, spread_all)
    grad = grad.movedim(in_dims[0], 0) if in_dims[0] is not None else grad.expand(size, *grad.shape)
    results = native.hmm_log_normalizer_backward(grad.reshape(-1).contiguous(), *merged)
    outputs = []
    for result, like, dim in zip(results, arguments, in_dims[1:], strict=False):
        assert like is not None
        own = like.shape[0 if dim is None else (1 if dim == 0 else 0)]
        result = result.reshape(size, batch, *result.shape[1:])
        outputs.append(result if own == batch else result.sum(1, keepdim=True))
    return tuple(outputs), (0, 0, 0)
