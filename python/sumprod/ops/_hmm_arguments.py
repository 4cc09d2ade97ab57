"""What all HMM operators share: argument checks, canonical shapes, rules for torch transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.errors import SupportError
from sumprod.ops._devices import check_values, one_device, require_kernels

_HALF = (torch.float16, torch.bfloat16)
_NATIVE = (torch.float32, torch.float64)
_FEW = 100


class HMMArguments(NamedTuple):
    """Arguments in the shapes that the native operators take."""

    initial: Tensor  # [B or 1, S]
    transition: Tensor  # [B or 1, T-1 or 1, S, S]
    emission: Tensor  # [B, T, S]
    lengths: Tensor | None  # [B], int64
    batch_shape: torch.Size
    dtype: torch.dtype  # of the results; half types are computed in float32

    @property
    def potentials(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The four arguments of a native operator."""
        return self.initial, self.transition, self.emission, self.lengths

    @property
    def constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same, cut off from autograd."""
        if not self.wants_grad:
            return self.potentials
        return self.initial.detach(), self.transition.detach(), self.emission.detach(), self.lengths

    @property
    def wants_grad(self) -> bool:
        """Whether autograd has to know about this call."""
        return torch.is_grad_enabled() and (
            self.initial.requires_grad or self.transition.requires_grad or self.emission.requires_grad
        )

    def restore(self, result: Tensor) -> Tensor:
        """A result [B, ...] in the caller's batch shape and dtype."""
        if len(self.batch_shape) != 1:
            result = result.reshape(self.batch_shape + result.shape[1:])
        if result.is_floating_point() and result.dtype != self.dtype:
            result = result.to(self.dtype)
        return result


def _check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(
            f"{op}: {name} must hold floating-point log potentials, got {value.dtype}; "
            "convert it with .float()"
        )
    if value.dtype not in (torch.float32, torch.float64, *_HALF):
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {value.dtype}")


def _check_devices(op: str, tensors: dict[str, Tensor]) -> None:
    device = tensors["emission"].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(
                f"{op}: all tensors must be on one device; emission is on {device}, {name} on {tensor.device}"
            )
    require_kernels(op, device)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    if len(shape) > len(to):
        return False
    return all(have in (1, want) for have, want in zip(reversed(shape), reversed(to), strict=False))


def _flatten(tensor: Tensor, batch_shape: torch.Size, kept: int) -> Tensor:
    """Batch dims of `tensor` as one: of size 1 where all are shared, else expanded and flattened."""
    leading, rest = tensor.shape[: tensor.dim() - kept], tensor.shape[tensor.dim() - kept :]
    if all(size == 1 for size in leading):
        return tensor.reshape((1, *rest)) if len(leading) != 1 else tensor
    if len(batch_shape) == 1:
        return tensor
    return tensor.expand(batch_shape + rest).reshape((batch_shape.numel(), *rest))


def _canonical_initial(op: str, initial: Tensor, batch_shape: torch.Size, states: int) -> Tensor:
    if initial.dim() < 1 or initial.shape[-1] != states or not _broadcasts(initial.shape[:-1], batch_shape):
        raise ValueError(
            f"{op}: initial must have shape [{states}] or one that broadcasts to "
            f"{[*batch_shape, states]} ([*B, S] of the emission), got {list(initial.shape)}"
        )
    return _flatten(initial, batch_shape, 1)


def _canonical_transition(
    op: str, transition: Tensor, batch_shape: torch.Size, steps: int, states: int
) -> Tensor:
    shape = transition.shape
    pairs = max(steps - 1, 0)
    fits = len(shape) >= 2 and shape[-1] == states and shape[-2] == states
    if fits and len(shape) > 2:
        fits = shape[-3] in (1, pairs) and _broadcasts(shape[:-3], batch_shape)
    if not fits:
        raise ValueError(
            f"{op}: transition must have shape {[states, states]} (from, to) or "
            f"[*B or 1, {pairs} (T-1) or 1, {states}, {states}] with *B = {list(batch_shape)}, "
            f"got {list(shape)}"
        )
    if len(shape) == 2:
        return transition[None, None]
    return _flatten(transition, batch_shape, 3)


def _bounds(lengths: Tensor) -> tuple[int, int]:
    if lengths.numel() <= _FEW:
        values = lengths.tolist()  # two calls into torch cost more
        return min(values), max(values)
    low, high = torch.stack(torch.aminmax(lengths)).tolist()  # a GPU is waited for once
    return low, high


def _canonical_lengths(
    op: str, lengths: object, batch_shape: torch.Size, steps: int, device: torch.device
) -> Tensor:
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device="meta" if device.type == "meta" else "cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{op}: lengths must be an integer tensor of shape {list(batch_shape)}, "
                f"got {type(lengths).__name__}"
            ) from error
    if lengths.dtype != torch.int64 and (
        lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool
    ):
        raise TypeError(f"{op}: lengths must be integers, got {lengths.dtype}")
    if lengths.shape != batch_shape:
        raise ValueError(
            f"{op}: lengths must have the batch shape {list(batch_shape)} of the emission, "
            f"got {list(lengths.shape)}"
        )
    on_host = lengths.is_cpu and device.type != "meta"
    if lengths.device != device and not on_host:
        raise ValueError(
            f"{op}: all tensors must be on one device; emission is on {device}, lengths on {lengths.device}"
        )
    if lengths.dtype != torch.int64 or lengths.dim() != 1:
        lengths = lengths.to(torch.int64).reshape(-1)
    # Inside a compiled graph or a transform the values are not known; there the kernel checks.
    known = not (torch.compiler.is_compiling() or in_transform()) and check_values(lengths)
    if known and lengths.numel() > 0:
        low, high = _bounds(lengths)
        if low < 0 or high > steps:
            bad = low if low < 0 else high
            where = int((lengths == bad).nonzero()[0, 0])
            raise ValueError(
                f"{op}: lengths must lie in [0, {steps}] (T of the emission), got {bad} at sequence {where}"
            )
    # Checked here, they reach a GPU without anybody waiting for it.
    return lengths if lengths.device == device else lengths.to(device, non_blocking=True)


def _is_plain(initial: object, transition: object, emission: object) -> bool:
    """Whether these are [S], [S, S] and [B, T, S], of one native dtype, on one device.

    That is the everyday case, and nothing else has to be checked in it: small problems take about as long
    as all the checks.
    """
    if not (isinstance(initial, Tensor) and isinstance(transition, Tensor) and isinstance(emission, Tensor)):
        return False
    dtype, shape = emission.dtype, emission.shape
    return (
        len(shape) == 3
        and shape[2] > 0
        and dtype in _NATIVE
        and initial.dtype == dtype
        and transition.dtype == dtype
        and initial.shape == shape[2:]
        and transition.shape == (shape[2], shape[2])
        and one_device(emission, initial, transition)
    )


def canonical(
    op: str, initial: Tensor, transition: Tensor, emission: Tensor, lengths: object
) -> HMMArguments:
    """Checks the arguments of `op` and brings them into canonical shape, as views where possible.

    Raises:
        TypeError: something is not a floating-point tensor, or lengths are not integers.
        ValueError: shapes, lengths or devices do not fit together.
    """
    if _is_plain(initial, transition, emission):
        batch_shape, steps, states = emission.shape[:1], *emission.shape[1:]
        if lengths is not None:
            lengths = _canonical_lengths(op, lengths, batch_shape, steps, emission.device)
        return HMMArguments(
            initial.view(1, states),
            transition.view(1, 1, states, states),
            emission,
            lengths,
            batch_shape,
            emission.dtype,
        )
    tensors = {"initial": initial, "transition": transition, "emission": emission}
    for name, tensor in tensors.items():
        _check_tensor(op, name, tensor)
    _check_devices(op, tensors)
    if emission.dim() < 2 or emission.shape[-1] == 0:
        raise ValueError(
            f"{op}: emission must have shape [*B, T, S] with at least one state, got {list(emission.shape)}"
        )
    batch_shape, steps, states = emission.shape[:-2], emission.shape[-2], emission.shape[-1]
    dtype = emission.dtype
    if initial.dtype != dtype or transition.dtype != dtype:
        dtype = torch.promote_types(torch.promote_types(initial.dtype, transition.dtype), dtype)
    compute = torch.float32 if dtype in _HALF else dtype
    initial = _canonical_initial(op, initial, batch_shape, states)
    transition = _canonical_transition(op, transition, batch_shape, steps, states)
    if len(batch_shape) != 1:
        emission = emission.reshape(batch_shape.numel(), steps, states)
    if lengths is not None:
        lengths = _canonical_lengths(op, lengths, batch_shape, steps, emission.device)
    return HMMArguments(
        initial if initial.dtype == compute else initial.to(compute),
        transition if transition.dtype == compute else transition.to(compute),
        emission if emission.dtype == compute else emission.to(compute),
        lengths,
        batch_shape,
        dtype,
    )


# ---- impossible sequences ------------------------------------------------------------------------


def check_support(op: str, dead: Tensor, path: Tensor, batch_shape: torch.Size) -> None:
    """Raises SupportError for the first sequence that no path can explain.

    `dead` [B] holds the first impossible time step, or -1. A GPU is asked only where `check_values` says so.
    """
    if dead.is_meta or dead.numel() == 0:
        return
    if torch.compiler.is_compiling():
        native.require_support(path, dead, op, list(batch_shape))
        return
    _raise_if_dead(op, dead, batch_shape)


def _raise_if_dead(op: str, dead: Tensor, batch_shape: Sequence[int]) -> None:
    if not check_values(dead) or int(dead.max()) < 0:
        return
    flat = int((dead >= 0).nonzero()[0, 0])
    time = int(dead[flat])
    index = []
    rest = flat
    for size in reversed(batch_shape):
        index.append(rest % size)
        rest //= size
    where: int | tuple[int, ...] = index[0] if len(index) == 1 else tuple(reversed(index))
    raise SupportError(
        f"{op}: batch element {where} has no possible path: at time step {time} every state has weight zero. "
        "Check the -inf entries of initial, transition and emission there.",
        where,
        time,
    )


# A compiled graph cannot branch on data, but it can call an operator that may raise. Declaring
# that it changes `path` keeps the compiler from dropping or moving it.
@torch.library.custom_op("sumprod::require_support", mutates_args=("path",))
def _require_support(path: Tensor, dead: Tensor, op: str, batch_shape: Sequence[int]) -> None:
    _raise_if_dead(op, dead, batch_shape)


@_require_support.register_fake
def _(path: Tensor, dead: Tensor, op: str, batch_shape: Sequence[int]) -> None:
    return None


# ---- transforms ----------------------------------------------------------------------------------


def in_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, ...) is active."""
    return bool(torch._C._are_functorch_transforms_active())


def _spread(tensor: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """[b or 1, ...] with an optional mapped dim as [size * batch, ...]."""
    tensor = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
    return tensor.expand(size, batch, *tensor.shape[2:]).reshape(size * batch, *tensor.shape[2:])


def spread_arguments(
    size: int, dims: Sequence[int | None], arguments: Sequence[Tensor | None]
) -> tuple[int, list[Tensor | None]]:
    """Merges the mapped dim into the batch: (batch size of one slice, merged arguments).

    Shared arguments that are not mapped stay shared.
    """
    emission, dim = arguments[2], dims[2]
    assert emission is not None
    batch = emission.shape[0 if dim is None else (1 if dim == 0 else 0)]
    merged: list[Tensor | None] = []
    for position, (tensor, mapped) in enumerate(zip(arguments, dims, strict=True)):
        shared = position < 2 and tensor is not None and mapped is None and tensor.shape[0] == 1
        merged.append(tensor if tensor is None or shared else _spread(tensor, mapped, size, batch))
    return batch, merged


def register_rules(name: str, fake: Callable[..., Any]) -> None:
    """Registers the fake kernel, and vmap by merging the mapped dim into the batch."""
    torch.library.register_fake(f"sumprod::{name}")(fake)

    @torch.library.register_vmap(f"sumprod::{name}")
    def rule(info: Any, in_dims: Any, *arguments: Tensor | None) -> tuple[Any, Any]:
        batch, merged = spread_arguments(info.batch_size, in_dims[:4], arguments[:4])
        result = getattr(native, name)(*merged)
        results = result if isinstance(result, tuple) else (result,)
        unmerged = tuple(r.reshape(info.batch_size, batch, *r.shape[1:]) for r in results)
        return (unmerged, (0,) * len(unmerged)) if isinstance(result, tuple) else (unmerged[0], 0)
