"""Take a trace apart into a structure and leaves, and put it together again.

The structure is a list of tokens: keys, container types, tensor shapes. Two runs of a program that
take the same path have equal structures, so their leaves line up and can be stacked. Traces are
taken apart in great numbers: tokens are plain tuples, those without data made once.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform

from sumprod.distributions.distribution import Distribution
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.trace_struct import Trace

__all__ = ["PLAIN", "Flat", "Recipe", "compile_sites", "flatten"]

# Leaves that are told apart by value. Most entries of a message are of these types.
PLAIN = frozenset(
    (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device, CondIndepStackFrame)
)
# Computed again on demand from the site's distribution and value, or meaningless after the run.
_DERIVED = frozenset(
    ("log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts", "packed", "continuation")
)
# Per-object caches of torch's transforms: they hold tensors of one call and weak references.
_TRANSFORM_STATE = {"_inv": None, "_cached_x_y": (None, None)}
_TAKEN_APART = (Distribution, torch.distributions.Distribution, Transform)
_STRIDED = torch.strided

# Tokens. A site is (name, keys of its message). Inside sites:
_LEAF = "leaf"  # an object kept as it is; takes one leaf
_TENSOR = (
    "tensor"  # ("tensor", stored shape, full shape or None, dtype, device or None for the CPU); one leaf
)
_SHARED = "shared"  # ("shared", leaf, full shape or None): the same tensor object as an earlier leaf
_OBJECT = "object"  # ("object", type, attribute names), followed by the attributes
_ITEMS = "items"  # ("items", type, keys), followed by the entries of a dict, list or tuple

_EMPTY: dict[Any, Any] = {kind: (_ITEMS, kind, ()) for kind in (dict, tuple)}

_Place = tuple[int, torch.Size | None]  # of a tensor: its leaf, and its full shape if the leaf is cut


class Flat(NamedTuple):
    """A trace, taken apart."""

    tokens: list[Any]
    leaves: list[Any]
    values: dict[str, _Place]
    """For each site with a tensor value: where it is."""


class _Flattener:
    def __init__(self, cut: Callable[[Tensor], Tensor] | None) -> None:
        self.tokens: list[Any] = []
        self.leaves: list[Any] = []
        self._cut = cut
        self._seen: dict[int, _Place] = {}

    def add_all(self, entries: Any) -> None:
        tokens, leaves = self.tokens, self.leaves
        for entry in entries:
            if type(entry) in PLAIN:
                tokens.append(_LEAF)
                leaves.append(entry)
            else:
                self.add(entry)

    def add(self, item: Any) -> None:
        kind = type(item)
        if isinstance(item, Tensor):
            self.add_tensor(item)
        elif kind is dict or kind is OrderedDict:
            self.tokens.append((_ITEMS, kind, tuple(item)))
            self.add_all(item.values())
        elif kind is list or kind is tuple or (isinstance(item, tuple) and hasattr(item, "_fields")):
            if kind in PLAIN:
                self.tokens.append(_LEAF)
                self.leaves.append(item)
                return
            self.tokens.append((_ITEMS, kind, tuple(range(len(item)))))
            self.add_all(item)
        elif isinstance(item, _TAKEN_APART) and not isinstance(item, torch.nn.Module):
            state = vars(item)
            if isinstance(item, Transform):
                state = {**state, **_TRANSFORM_STATE}
            self.tokens.append((_OBJECT, kind, tuple(state)))
            self.add_all(state.values())
        else:
            self.tokens.append(_LEAF)
            self.leaves.append(item)

    def add_tensor(self, tensor: Tensor) -> _Place:
        known = self._seen.get(id(tensor))
        if known is not None:
            self.tokens.append((_SHARED, *known))
            return known
        shape = None
        stored = tensor
        if tensor.layout is _STRIDED and 0 in tensor.stride():
            # A constant that a plate has expanded is stored once, not once per replicate.
            for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
                if stride == 0 and size > 1:
                    shape = tensor.shape
                    stored = stored.narrow(dim, 0, 1)
        place = self._seen[id(tensor)] = (len(self.leaves), shape)
        device = None if stored.is_cpu else stored.device
        self.tokens.append((_TENSOR, stored.shape, shape, stored.dtype, device))
        self.leaves.append(stored if self._cut is None else self._cut(stored))
        return place


@functools.lru_cache(maxsize=256)
def _kept_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if key not in _DERIVED)


def flatten(trace: Trace, cut: Callable[[Tensor], Tensor] | None = None) -> Flat:
    """Take a trace apart.

    Leaves are the trace's tensors, or what `cut` makes of them (without broadcast dims), and other
    objects as they are. Equal tokens are equal structures.
    """
    flattener = _Flattener(cut)
    tokens, leaves = flattener.tokens, flattener.leaves
    values: dict[str, _Place] = {}
    tokens.append((trace.graph_type, tuple(trace.edges)))
    for name, site in trace.nodes.items():
        keys = _kept_keys(tuple(site))
        tokens.append((name, keys))
        for key in keys:
            item = site[key]
            kind = type(item)
            if kind in PLAIN:
                tokens.append(_LEAF)
                leaves.append(item)
            elif kind in _EMPTY and not item:
                tokens.append(_EMPTY[kind])
            elif key == "value" and isinstance(item, Tensor):
                values[name] = flattener.add_tensor(item)
            else:
                flattener.add(item)
    return Flat(tokens, leaves, values)


class Recipe(NamedTuple):
    """How to put an entry of a site together from leaves."""

    kind: str
    leaf: int
    shape: torch.Size | None
    type: Any
    parts: list[tuple[Any, Recipe]]

    def make(self, leaf: Callable[[int], Any]) -> Any:
        """The entry, from a function that gives the leaf of a number. Containers are new objects."""
        if self.kind == _LEAF:
            return leaf(self.leaf)
        if self.kind == _TENSOR:
            value = leaf(self.leaf)
            return value if self.shape is None else value.expand(self.shape)
        if self.kind == _OBJECT:
            whole: Any = object.__new__(self.type)
            vars(whole).update({key: part.make(leaf) for key, part in self.parts})
            return whole
        if self.type is dict or self.type is OrderedDict:
            return self.type((key, part.make(leaf)) for key, part in self.parts)
        items = [part.make(leaf) for _, part in self.parts]
        return self.type(*items) if hasattr(self.type, "_fields") else self.type(items)


def compile_sites(tokens: list[Any]) -> dict[str, list[tuple[str, Recipe]]]:
    """For each site, the recipes of the keys of its message."""
    rest = iter(tokens[1:])
    count = 0

    def parse() -> Recipe:
        nonlocal count
        token = next(rest)
        if token == _LEAF or token[0] == _TENSOR:
            count += 1
            if token == _LEAF:
                return Recipe(_LEAF, count - 1, None, None, [])
            return Recipe(_TENSOR, count - 1, token[2], None, [])
        kind, first, second = token
        if kind == _SHARED:
            return Recipe(_TENSOR, first, second, None, [])
        return Recipe(kind, -1, None, first, [(key, parse()) for key in second])

    return {name: [(key, parse()) for key in keys] for name, keys in rest}
