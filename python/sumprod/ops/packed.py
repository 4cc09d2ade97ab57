"""Tensors whose dims have names.

A packed tensor has no dims of size 1, and each other dim has a one-character name in its attribute
`_pyro_dims`, in tensor order. Numbers and None count as packed. Any torch operation loses the names;
the functions here keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = [
    "broadcast_all",
    "exp",
    "gather",
    "mul",
    "neg",
    "pack",
    "rename_equation",
    "scale_and_mask",
    "symbol",
    "unpack",
]

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def symbol(index: int) -> str:
    """The `index`-th one-character name: a..z, A..Z, then characters from code point 192 on."""
    # Surrogates are not characters: step over them.
    code = index + 140
    return _LETTERS[index] if index < len(_LETTERS) else chr(code if code < 0xD800 else code + 0x800)


def _named(tensor: torch.Tensor, dims: str) -> Any:
    tensor._pyro_dims = dims  # type: ignore[attr-defined]
    return tensor


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    # A view: names put on the caller's own tensor object would outlive this call.
    return tensor.view_as(tensor)


def pack(value: Any, dim_to_symbol: Mapping[int, str]) -> Any:
    """Name the dims of a tensor by a map from negative dims, and squeeze dims of size 1.

    Raises:
        ValueError: a dim of size greater than 1 has no name.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "_pyro_dims"):
        raise AssertionError(f"pack() got a tensor that is packed already, with dims '{value._pyro_dims}'")
    shape = value.shape
    kept = [dim for dim in range(-len(shape), 0) if shape[dim] != 1]
    unknown = [dim for dim in kept if dim not in dim_to_symbol]
    if unknown:
        raise ValueError(
            "Invalid tensor shape.\n"
            f"  Allowed dims: {', '.join(map(str, sorted(dim_to_symbol))) or 'none'}\n"
            f"  Actual shape: {tuple(shape)}, which has size {shape[unknown[0]]} at dim {unknown[0]}\n"
            "  Try adding a plate for that dim, or .to_event() if it belongs to the event"
        )
    names = "".join(dim_to_symbol[dim] for dim in kept)
    packed = value.reshape([shape[dim] for dim in kept])
    return _named(_alias(packed) if packed is value else packed, names)


def unpack(value: Any, symbol_to_dim: Mapping[str, int]) -> Any:
    """Put named dims at the negative dims of a map; other dims get size 1. Inverse of `pack`."""
    if not isinstance(value, torch.Tensor):
        return value
    dims: str = value._pyro_dims  # type: ignore[attr-defined]
    order = sorted(range(len(dims)), key=lambda i: symbol_to_dim[dims[i]])
    rank = -symbol_to_dim[dims[order[0]]] if order else 0
    shape = [1] * rank
    for i in order:
        shape[symbol_to_dim[dims[i]]] = value.shape[i]
    return value.permute(order).reshape(shape)


def broadcast_all(*values: Any, dims: str | None = None) -> tuple[Any, ...]:
    """Expand packed tensors to the same named dims: `dims`, or all that occur, sorted.

    Raises:
        ValueError: `dims` lacks a dim that occurs, or has one that does not.
    """
    sizes: dict[str, int] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            sizes.update(zip(value._pyro_dims, value.shape, strict=True))  # type: ignore[attr-defined]
    if dims is None:
        dims = "".join(sorted(sizes))
    elif sorted(dims) != sorted(sizes):
        raise ValueError(f"Expected dims to name exactly {sorted(sizes)}, got {dims!r}")
    return tuple(_broadcast(value, dims, sizes) for value in values)


def _broadcast(value: Any, dims: str, sizes: Mapping[str, int]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    own: str = value._pyro_dims  # type: ignore[attr-defined]
    if own == dims:
        return value
    permuted = value.permute([own.index(dim) for dim in dims if dim in own])
    shaped = permuted.reshape([sizes[dim] if dim in own else 1 for dim in dims])
    return _named(shaped.expand([sizes[dim] for dim in dims]), dims)


def gather(value: Any, index: torch.Tensor, dim: str) -> Any:
    """The entries of packed `value` at the packed `index` along the named dim, which disappears.

    The other dims of the two broadcast. Without that dim, `value` is returned as a view.
    """
    dims: str = value._pyro_dims
    if dim not in dims:
        return _named(_alias(value), dims)
    # A size-1 stand-in for the index's missing dim, so that both have the same names.
    index_dims: str = index._pyro_dims  # type: ignore[attr-defined]
    other = "".join(sorted(set(dims.replace(dim, "") + index_dims)))
    sizes = dict(zip(dims + index_dims, (*value.shape, *index.shape), strict=True))
    wide = _broadcast(value, other + dim, sizes)
    where = _broadcast(index, other, sizes).unsqueeze(-1)
    return _named(wide.gather(-1, where).squeeze(-1), other)


def mul(lhs: Any, rhs: Any) -> Any:
    """The product of packed tensors or numbers."""
    if isinstance(lhs, torch.Tensor) and isinstance(rhs, torch.Tensor):
        lhs, rhs = broadcast_all(lhs, rhs)
    dims: str = getattr(lhs, "_pyro_dims", "") or getattr(rhs, "_pyro_dims", "")
    product = lhs * rhs
    return _named(product, dims) if isinstance(product, torch.Tensor) else product


def scale_and_mask(tensor: Any, scale: Any = 1.0, mask: Any = None) -> Any:
    """`tensor * scale` where the mask holds, else 0; all packed.

    The mask selects, it does not multiply: -inf and NaN outside it do not come through.
    """
    if mask is False:
        return 0.0
    if mask is not None and mask is not True:
        if isinstance(tensor, torch.Tensor):
            tensor, mask = broadcast_all(tensor, mask)
            dims = tensor._pyro_dims
            tensor = _named(torch.where(mask, tensor, tensor.new_zeros(())), dims)
        else:
            tensor = _named(torch.where(mask, float(tensor), 0.0), mask._pyro_dims)
    return tensor if isinstance(scale, int | float) and scale == 1 else mul(tensor, scale)


def _pointwise(function: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> Any:
    return _named(function(value), value._pyro_dims)  # type: ignore[attr-defined]


def neg(value: Any) -> Any:
    """Minus a packed tensor or number."""
    return _pointwise(torch.neg, value) if isinstance(value, torch.Tensor) else -value


def exp(value: Any) -> Any:
    """The exponential of a packed tensor or number."""
    if isinstance(value, torch.Tensor):
        return _pointwise(torch.exp, value)
    return torch.exp(torch.as_tensor(float(value))).item()


def rename_equation(equation: str, *operands: Any) -> str:
    """An einsum equation in terms of the operands' own dim names.

    Renames by position: the k-th letter of an input stands for the k-th dim of its operand.
    """
    inputs, _, _ = equation.partition("->")
    names: dict[str, str] = {}
    for term, operand in zip(inputs.split(","), operands, strict=True):
        for letter, name in zip(term, operand._pyro_dims, strict=True):
            names[letter] = name
    # Letters that no operand explains (commas, the arrow) stay as they are.
    return "".join(names.get(character, character) for character in equation)
