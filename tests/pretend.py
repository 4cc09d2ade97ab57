"""A GPU that is not there: tensors that say they are on the device "pretend", and live in the CPU's memory.

It is as strict as CUDA, which the CPU is not: an operation over tensors of two devices is an error (except
with a number without dims), as is `numpy()`; and `synchronisations` collects what would make the host wait
for a GPU. Raw operators run on the CPU's kernels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
# Their results' shapes or types depend on values, so that the host has to wait.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_MOVING = {"aten::_to_copy", "aten::copy_"}
# Takes indices from the host, as CUDA does.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Torch makes these by resizing an empty tensor.
_FACTORIES = ("arange", "eye", "linspace", "logspace", "randperm", "tril_indices", "triu_indices")

_noted: list[str] = []


class PretendTensor(Tensor):
    """A tensor around the one that has the values."""

    __slots__ = ("inner",)
    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        """Torch refuses this for subclasses."""
        _noted.append("tolist")
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **_: object) -> str:
        return f"pretend {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = tree_leaves((args, kwargs))
        _check_devices(name, given)
        if name in _WAITING or (name in _INDEXING and _masks(given)):
            _noted.append(name)
        results = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        target = kwargs.get("device")
        if target is not None and torch.device(target).type != NAME:
            _noted.append(name)
            return results
        if name == "aten::copy_" and not isinstance(args[0], PretendTensor):
            _noted.append(name)
            return args[0]
        for x in given:
            if isinstance(x, PretendTensor) and x.inner.shape != x.shape:
                raise NotImplementedError(
                    f"{name} resizes a tensor of the device {NAME}: add it to _FACTORIES"
                )
        known = {id(_real(x)): x for x in given if isinstance(x, Tensor)}
        return tree_map(lambda x: known.get(id(x), _wrapped(x)) if isinstance(x, Tensor) else x, results)


class PretendGenerator(torch.Generator):
    """A generator of the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


def _real(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, PretendTensor) else PretendTensor(tensor)


def _masks(given: list[Any]) -> bool:
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in given[1:])


def _check_devices(name: str, given: list[Any]) -> None:
    for x in given:
        if not isinstance(x, Tensor) or isinstance(x, PretendTensor) or name in _MOVING:
            continue
        if name.startswith("sumprod::") or (x.dim() > 0 and name not in _INDEXING):
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {x.device} (shape {tuple(x.shape)})"
            )


@functools.cache
def set_up() -> list[torch.library.Library]:
    """Make torch know the device; for the whole process."""
    _setup_privateuseone_for_python_backend(NAME)  # type: ignore[no-untyped-call]
    aten = torch.library.Library("aten", "IMPL")

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        layout = memory_format or torch.contiguous_format
        return PretendTensor(torch.empty(size, dtype=dtype, memory_format=layout, device="cpu"))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return PretendTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        _real(target).copy_(_real(source))
        return target

    def factory(operator: Any) -> Any:
        def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            return PretendTensor(operator(*args, device="cpu", **kwargs))

        return make

    for name in _FACTORIES:
        packet = getattr(torch.ops.aten, name)
        for overload in (getattr(packet, kind) for kind in packet.overloads()):
            if "device" in {argument.name for argument in overload._schema.arguments}:
                aten.impl(overload, factory(overload), "PrivateUse1")
    aten.impl("empty.memory_format", empty, "PrivateUse1")
    aten.impl("empty_strided", empty_strided, "PrivateUse1")
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(  # type: ignore[no-untyped-call]
        lambda op, *args, **kwargs: PretendTensor.__torch_dispatch__(op, (), args, kwargs), "PrivateUse1"
    )
    return [aten, rest]  # they unregister when they are collected


@contextlib.contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Collects what would have made the host wait for the device."""
    before = len(_noted)
    found: list[str] = []
    yield found
    found.extend(_noted[before:])
