"""Einsum with plates: several outputs of one product of tensors, in a choice of rings.

Symbols of an equation are variables, summed out, or plates, multiplied along. A variable of which all
operands have a plate is a variable of its own in each slice of this plate.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod.ops._adjoint import Parts, attach, parts_of
from sumprod.ops._plated import components, homes, output, require_plates
from sumprod.ops._rings import Factor, expanded, multiply
from sumprod.ops.rings import BACKEND_TO_RING, Ring, SemiringRing

__all__ = ["contract_tensor_tree", "contract_to_tensor", "einsum", "naive_ubersum", "ubersum"]

_LOG_BACKEND = "pyro.ops.einsum.torch_log"

Tree = Mapping[frozenset[str], Sequence[Tensor]]


def einsum(
    equation: str,
    *operands: Tensor,
    plates: Collection[str] = "",
    backend: str = "torch",
    cache: dict[Any, Any] | None = None,
    modulo_total: bool = False,
) -> tuple[Tensor, ...]:
    """Sums of products over variables, products along plates; one tensor per output of the equation.

    Args:
        equation: inputs and outputs separated by commas, as "ab,bc->,b"; one character per dim. A plate in
            an output is not multiplied along: the result has one slice per slice of the plate. A variable
            in plates needs these plates in the output.
        operands: tensors with the dims named. One tensor may stand in several places.
        plates: which symbols are plates.
        backend: "torch" (numbers, of any sign), "pyro.ops.einsum.torch_log" (logs of weights),
            "pyro.ops.einsum.torch_map" (logs, the largest term in place of the sum),
            "pyro.ops.einsum.torch_sample" and "pyro.ops.einsum.torch_marginal" (as torch_log); with
            "sumprod" in place of "pyro" the same. Through the last three, best values, draws and marginals
            flow back to operands that asked for it, see `sumprod.ops.einsum.adjoint.require_backward`.
        cache: has no effect: plans are remembered by structure, whoever asks.
        modulo_total: must be True when an output has dims. Where the graph falls apart along the plates of
            an output, each slice of the result has the total of its own parts only, that is, it is
            right up to a factor per slice.

    Returns:
        New packed tensors, never an operand itself. Differentiable; the logs of impossible totals are
        -inf with zero gradient.

    Raises:
        ValueError: sizes, symbols and operands do not fit; an output has a variable without its plates.
        NotImplementedError: an ellipsis; an unknown backend; outputs with dims without `modulo_total`;
            plates that are not nested like a tree.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> import torch
    >>> weights, likelihood = torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.8], [0.2, 0.3]])
    >>> einsum("z,zd->,z", weights, likelihood, plates="d", modulo_total=True)
    (tensor(0.3900), tensor([0.3600, 0.0300]))
    """
    ring = _ring(backend)
    factors, outputs, sizes = _parse(equation, operands)
    _require_modulo_total(outputs, modulo_total)
    named = frozenset[Hashable](plates)
    graph = _Graph(factors, _origins(ring, factors, named), named, sizes)
    return tuple(
        _named(ring, graph, output(ring.semiring, factors, named, dims, sizes), dims) for dims in outputs
    )


def ubersum(
    equation: str,
    *operands: Tensor,
    plates: Collection[str] | None = None,
    batch_dims: Collection[str] | None = None,
    backend: str = _LOG_BACKEND,
    cache: dict[Any, Any] | None = None,
    modulo_total: bool = False,
) -> tuple[Tensor, ...]:
    """`einsum` of logs; `batch_dims` is an old name of `plates`."""
    return einsum(
        equation,
        *operands,
        plates=_plates(plates, batch_dims),
        backend=backend,
        cache=cache,
        modulo_total=modulo_total,
    )


def naive_ubersum(
    equation: str,
    *operands: Tensor,
    plates: Collection[str] | None = None,
    batch_dims: Collection[str] | None = None,
    backend: str = _LOG_BACKEND,
    cache: dict[Any, Any] | None = None,
    modulo_total: bool = False,
) -> tuple[Tensor, ...]:
    """A slow reference for `ubersum`: unrolls all plates into copies of variables and factors.

    Every slice of a result has the total over the whole graph, so that `modulo_total` is not needed. The
    cost grows exponentially where `ubersum` refuses.
    """
    ring = _ring(backend)
    named = frozenset(_plates(plates, batch_dims))
    factors, outputs, sizes = _parse(equation, operands)
    home = homes(factors, named)
    for symbols in outputs:
        require_plates(symbols, home, sizes)

    def copy(variable: Hashable, at: Mapping[Hashable, int]) -> Hashable:
        return variable, tuple((plate, at[plate]) for plate in sizes if plate in home[variable])

    unrolled: list[Factor] = []
    for tensor, dims in factors:
        for at in _slices([dim for dim in dims if dim in named], sizes):
            piece = tensor[tuple(at.get(dim, slice(None)) for dim in dims)]
            unrolled.append((piece, tuple(copy(dim, at) for dim in dims if dim not in named)))

    results = []
    for symbols in outputs:
        own_plates = [dim for dim in symbols if dim in named]
        kept = [dim for dim in symbols if dim not in named]
        slices = []
        for at in _slices(own_plates, sizes):
            copies = {copy(dim, at): sizes[dim] for dim in kept}
            parts = ring.semiring.contract(unrolled, (), copies)
            slices.append(multiply(ring.semiring, parts, list(copies), copies)[0])
        order = [*own_plates, *kept]
        stacked = torch.stack(slices).reshape([sizes[dim] for dim in order])
        results.append(stacked.permute([order.index(dim) for dim in symbols]))
    return tuple(results)


def contract_tensor_tree(
    tensor_tree: Tree,
    sum_dims: Collection[str],
    cache: dict[Any, Any] | None = None,
    ring: Ring | str | None = None,
) -> OrderedDict[frozenset[str], list[Tensor]]:
    """Sum dims out of packed tensors that are grouped by their plates; multiply only along inner plates.

    Args:
        tensor_tree: from sets of plates to packed tensors (see `sumprod.ops.packed`). A tensor that lacks
            the dim of one of its plates is constant along it.
        sum_dims: names of the dims to sum out; others stay.
        cache: has no effect, as for `einsum`.
        ring: one of `sumprod.ops.rings` or a backend of `einsum`; None: logs.

    Returns:
        From sets of plates to packed tensors, one per part connected through `sum_dims`, in the plates that
        all tensors of the part are in.

    Raises:
        NotImplementedError: plates that are not nested like a tree.
    """
    chosen = _ring(ring)
    graph = _from_tree(tensor_tree, chosen)
    factors, _, plates, sizes = graph
    summed = frozenset(sum_dims)
    free = [dim for dim in sizes if dim not in plates and dim not in summed]
    parts: list[list[int]] = []
    if free or graph.origins:
        parts = components([dims for _, dims in factors], summed)
    if free:
        totals = [_total_of([factors[i] for i in part], graph, free, chosen) for part in parts]
    else:
        totals = chosen.semiring.contract(factors, plates, keep_common_plates=True, sizes=sizes)
    result: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for i, total in enumerate(totals):
        packed = _named(chosen, graph, *_squeezed(total), parts[i] if parts else ())
        result.setdefault(frozenset(map(str, plates.intersection(total[1]))), []).append(packed)
    return result


def _total_of(
    part: Sequence[Factor], graph: _Graph, free: Sequence[Hashable], ring: type[SemiringRing]
) -> Factor:
    """The total of connected factors, with their common plates and the free dims that they have."""
    common = graph.plates.intersection(*(dims for _, dims in part))
    own = dict.fromkeys(dim for _, dims in part for dim in dims)
    wanted = [dim for dim in own if dim in common or dim in free]
    totals = ring.semiring.contract(part, graph.plates, wanted, sizes=graph.sizes)
    return multiply(ring.semiring, totals, wanted, graph.sizes)


def contract_to_tensor(
    tensor_tree: Tree,
    sum_dims: Collection[str],
    target_ordinal: Collection[str] | None = None,
    target_dims: Collection[str] | None = None,
    cache: dict[Any, Any] | None = None,
    ring: Ring | str | None = None,
) -> Tensor:
    """One packed tensor over some plates and dims, as one output of `einsum` with `modulo_total`.

    Args:
        tensor_tree: as for `contract_tensor_tree`.
        sum_dims: names of the dims to sum out.
        target_ordinal: plates of the result; None: no plates.
        target_dims: of `sum_dims`, those to keep after all; None: none.
        cache: has no effect, as for `einsum`.
        ring: one of `sumprod.ops.rings` or a backend of `einsum`; None: logs.

    Returns:
        A packed tensor, its dims sorted by name.

    Raises:
        ValueError: a dim is kept without its plates.
        NotImplementedError: plates that are not nested like a tree.
    """
    chosen = _ring(ring)
    graph = _from_tree(tensor_tree, chosen)
    plates, sizes = graph.plates, graph.sizes
    factors = [expanded(factor, sizes) for factor in graph.factors]
    named = {*(target_dims or ()), *(target_ordinal or ())}
    free = [dim for dim in sizes if dim not in plates and dim not in sum_dims]
    # A dim of size 1 is in no packed tensor.
    dims = sorted((dim for dim in sizes if dim in named or dim in free), key=str)
    found = output(chosen.semiring, factors, plates, dims, sizes), tuple(dims)
    return _named(chosen, graph, *_squeezed(found))


# ---- equations


def _ring(chosen: Ring | str | None) -> type[SemiringRing]:
    if isinstance(chosen, Ring):
        # The engine knows these, and would pass over what a subclass does otherwise.
        for ring in BACKEND_TO_RING.values():
            if type(chosen) is ring:
                return ring
        raise TypeError(f"Expected a ring of sumprod.ops.rings itself, got a {type(chosen).__name__}")
    found = BACKEND_TO_RING.get(_LOG_BACKEND if chosen is None else chosen)
    if found is None:
        backends = ", ".join(BACKEND_TO_RING)
        raise NotImplementedError(f"Expected one of the backends {backends}, got {chosen!r}")
    return found


def _plates(plates: Collection[str] | None, batch_dims: Collection[str] | None) -> Collection[str]:
    if plates is not None and batch_dims is not None and set(plates) != set(batch_dims):
        raise ValueError(f"batch_dims is an old name of plates: got {batch_dims!r} and {plates!r}")
    return plates if plates is not None else batch_dims or ""


def _parse(
    equation: str, operands: Sequence[Tensor]
) -> tuple[list[Factor], tuple[tuple[str, ...], ...], Mapping[Hashable, int]]:
    scopes, outputs, sizes = _parsed(equation, tuple([tensor.shape for tensor in operands]))
    return list(zip(operands, scopes, strict=True)), outputs, sizes


@lru_cache(maxsize=1024)
def _parsed(
    equation: str, shapes: tuple[torch.Size, ...]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...], Mapping[Hashable, int]]:
    """Dims of the operands, dims of the outputs, and sizes of all dims."""
    equation = equation.replace(" ", "")
    if "." in equation:
        raise NotImplementedError(f"An ellipsis is not supported, name every dim; got {equation!r}")
    left, arrow, right = equation.partition("->")
    if not arrow:
        raise ValueError(f"Expected an equation with outputs after '->', got {equation!r}")
    inputs, outputs = left.split(","), right.split(",")
    if not shapes or len(inputs) != len(shapes):
        raise ValueError(f"Expected {len(inputs)} operands for {equation!r}, got {len(shapes)}")
    for symbols in (*inputs, *outputs):
        if len(set(symbols)) != len(symbols):
            raise ValueError(f"Expected distinct symbols in each term, got {symbols!r} in {equation!r}")
    sizes: dict[Hashable, int] = {}
    for symbols, shape in zip(inputs, shapes, strict=True):
        if len(shape) != len(symbols):
            raise ValueError(f"Expected dims {symbols!r} of an operand, got shape {tuple(shape)}")
        _add_sizes(sizes, symbols, shape)
    return tuple(map(tuple, inputs)), tuple(map(tuple, outputs)), MappingProxyType(sizes)


def _add_sizes(sizes: MutableMapping[Hashable, int], dims: Sequence[str], shape: torch.Size) -> None:
    for dim, size in zip(dims, shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise ValueError(f"Dimension size mismatch at dim '{dim}': {sizes[dim]} vs {size}")


def _require_modulo_total(outputs: Sequence[Sequence[str]], modulo_total: bool) -> None:
    if not modulo_total and any(outputs):
        shown = ", ".join(repr("".join(dims)) for dims in outputs if dims)
        raise NotImplementedError(
            f"Outputs {shown} have dims, and are computed up to a factor per slice of their plates. "
            "Try setting modulo_total=True if that is enough, else naive_ubersum"
        )


def _slices(plates: Sequence[Hashable], sizes: Mapping[Hashable, int]) -> list[dict[Hashable, int]]:
    positions = itertools.product(*(range(sizes[plate]) for plate in plates))
    return [dict(zip(plates, position, strict=True)) for position in positions]


# ---- graphs and trees


class _Graph(NamedTuple):
    factors: list[Factor]
    """with dims for all of their plates; a tensor of a tree may lack the first of them"""
    origins: list[Parts]
    """what each factor was made of; empty where nothing flows back"""
    plates: frozenset[Hashable]
    sizes: Mapping[Hashable, int]


def _origins(
    ring: type[SemiringRing], factors: Sequence[Factor], plates: Collection[Hashable]
) -> list[Parts]:
    if ring.adjoint is None:
        return []
    return [
        parts_of(tensor, dims, {d: n for d, n in zip(dims, tensor.shape, strict=True) if d in plates})
        for tensor, dims in factors
    ]


def _named(
    ring: type[SemiringRing],
    graph: _Graph,
    result: Tensor,
    dims: Sequence[Hashable],
    positions: Collection[int] | None = None,
) -> Tensor:
    """A result of some factors (None: all) with the attributes of a packed tensor."""
    result._pyro_dims = "".join(map(str, dims))  # type: ignore[attr-defined]
    origins = [origin for i, origin in enumerate(graph.origins) if positions is None or i in positions]
    attach(result, ring.adjoint, origins, dims, graph.plates)
    return result


def _from_tree(tree: Tree, ring: type[SemiringRing]) -> _Graph:
    tensors = [tensor for group in tree.values() for tensor in group]
    names: tuple[str, ...] = tuple([tensor._pyro_dims for tensor in tensors])  # type: ignore[attr-defined]
    groups = tuple([(frozenset(ordinal), len(group)) for ordinal, group in tree.items()])
    plates, sizes, scopes = _structure(names, tuple([tensor.shape for tensor in tensors]), groups)
    origins: list[Parts] = []
    if ring.adjoint is not None:
        ordinals = [ordinal for ordinal, count in groups for _ in range(count)]
        origins = [
            parts_of(tensor, own, {plate: sizes[plate] for plate in sorted(ordinal)})
            for tensor, own, ordinal in zip(tensors, names, ordinals, strict=True)
        ]
    return _Graph(list(zip(tensors, scopes, strict=True)), origins, plates, sizes)


@lru_cache(maxsize=1024)
def _structure(
    names: tuple[str, ...], shapes: tuple[torch.Size, ...], groups: tuple[tuple[frozenset[str], int], ...]
) -> tuple[frozenset[Hashable], Mapping[Hashable, int], tuple[tuple[Hashable, ...], ...]]:
    """All plates, the sizes of all dims, and for each tensor its dims with all plates that it is in."""
    plates: frozenset[Hashable] = frozenset().union(*(ordinal for ordinal, _ in groups))
    sizes: dict[Hashable, int] = {}
    for own, shape in zip(names, shapes, strict=True):
        _add_sizes(sizes, own, shape)
    for plate in sorted(plates, key=str):
        sizes.setdefault(plate, 1)
    ordinals = [sorted(ordinal) for ordinal, count in groups for _ in range(count)]
    scopes = [
        (*(plate for plate in ordinal if plate not in own), *own)
        for own, ordinal in zip(names, ordinals, strict=True)
    ]
    return plates, MappingProxyType(sizes), tuple(scopes)


def _squeezed(factor: Factor) -> Factor:
    """Without dims of size 1, names sorted."""
    tensor, dims = factor
    order = sorted((dim for dim, size in zip(dims, tensor.shape, strict=True) if size != 1), key=str)
    sizes = dict(zip(dims, tensor.shape, strict=True))
    squeezed = [dim for dim in dims if sizes[dim] != 1]
    packed = tensor.reshape([sizes[dim] for dim in squeezed]).permute([squeezed.index(dim) for dim in order])
    return packed, tuple(order)
