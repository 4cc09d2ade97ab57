"""Take a trace apart into a structure and leaves, and put it together again.

The structure is a list of tokens: container types, keys, tensor shapes. Two runs of a program that
takes the same path have equal structures, so their leaves line up and can be stacked.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform

from sumprod.distributions.distribution import Distribution
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.trace_struct import Trace

__all__ = ["PLAIN", "Flat", "flatten", "rebuild_site", "unflatten"]

# Leaves that are told apart by value; also the fast path, since most entries of a message are of these.
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
_LEAF = "leaf"


class TensorToken(NamedTuple):
    """A tensor leaf; `shape` is the full one where the leaf has broadcast dims cut to size 1."""

    stored: torch.Size
    shape: torch.Size | None
    dtype: torch.dtype
    device: torch.device


class ObjectToken(NamedTuple):
    """A distribution or transform, taken apart into its attributes."""

    type: type
    keys: tuple[str, ...]


class ContainerToken(NamedTuple):
    """A dict, list or tuple; `keys` of a dict, otherwise as many numbers as there are entries."""

    type: type
    keys: tuple[Any, ...]


class SharedToken(NamedTuple):
    """The same tensor object as an earlier leaf of this trace."""

    leaf: int
    shape: torch.Size | None


class Flat(NamedTuple):
    """A trace, taken apart."""

    tokens: list[Any]
    leaves: list[Any]
    values: dict[str, tuple[int, torch.Size | None]]
    """For each site with a tensor value: its leaf, and its full shape if the leaf is cut."""
    places: dict[str, tuple[int, int]]
    """For each site: the numbers of its first token and of its first leaf."""


class _Flattener:
    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.leaves: list[Any] = []
        self._seen: dict[int, tuple[int, torch.Size | None]] = {}

    def add(self, item: Any) -> None:
        kind = type(item)
        if kind in PLAIN:
            self.tokens.append(_LEAF)
            self.leaves.append(item)
        elif isinstance(item, Tensor):
            self.add_tensor(item)
        elif kind in (dict, OrderedDict):
            self.tokens.append(ContainerToken(kind, tuple(item)))
            for entry in item.values():
                self.add(entry)
        elif kind in (list, tuple) or (isinstance(item, tuple) and hasattr(item, "_fields")):
            self.tokens.append(ContainerToken(kind, tuple(range(len(item)))))
            for entry in item:
                self.add(entry)
        elif isinstance(item, _TAKEN_APART) and not isinstance(item, torch.nn.Module):
            state = _state(item)
            self.tokens.append(ObjectToken(kind, tuple(state)))
            for entry in state.values():
                self.add(entry)
        else:
            self.tokens.append(_LEAF)
            self.leaves.append(item)

    def add_tensor(self, tensor: Tensor) -> tuple[int, torch.Size | None]:
        known = self._seen.get(id(tensor))
        if known is not None:
            self.tokens.append(SharedToken(*known))
            return known
        # A constant that a plate has expanded is stored once, not once per replicate.
        shape = None
        stored = tensor
        if tensor.layout is torch.strided and 0 in tensor.stride():
            for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
                if stride == 0 and size > 1:
                    shape = tensor.shape
                    stored = stored.narrow(dim, 0, 1)
        place = self._seen[id(tensor)] = (len(self.leaves), shape)
        self.tokens.append(TensorToken(stored.shape, shape, stored.dtype, stored.device))
        self.leaves.append(stored)
        return place


def _state(item: Any) -> dict[str, Any]:
    state = vars(item)
    return {**state, **_TRANSFORM_STATE} if isinstance(item, Transform) else state


def flatten(trace: Trace) -> Flat:
    """Take a trace apart. Leaves are the trace's own tensors (or views of them) and other objects."""
    flattener = _Flattener()
    tokens, leaves = flattener.tokens, flattener.leaves
    values: dict[str, tuple[int, torch.Size | None]] = {}
    places: dict[str, tuple[int, int]] = {}
    tokens.append((trace.graph_type, tuple(trace.edges)))
    for name, site in trace.nodes.items():
        places[name] = (len(tokens), len(leaves))
        kept = {key: item for key, item in site.items() if key not in _DERIVED}
        tokens.append((name, tuple(kept)))
        for key, item in kept.items():
            if key == "value" and isinstance(item, Tensor):
                values[name] = flattener.add_tensor(item)
            else:
                flattener.add(item)
    return Flat(tokens, leaves, values, places)


def unflatten(tokens: list[Any], leaves: Sequence[Any]) -> Trace:
    """The trace with the given structure and leaves; containers and sites are new objects."""
    rest = iter(tokens)
    graph_type, edges = next(rest)
    trace = Trace(graph_type)
    builder = _Builder(rest, leaves)
    for name, keys in rest:
        trace.nodes[name] = builder.site(keys)
    for before, after in edges:
        trace.add_edge(before, after)
    return trace


def rebuild_site(tokens: list[Any], leaves: Sequence[Any], place: tuple[int, int]) -> dict[str, Any]:
    """One site of the trace with the given structure and leaves."""
    first, leaf = place
    _, keys = tokens[first]
    return _Builder(itertools.islice(tokens, first + 1, None), leaves, leaf).site(keys)


class _Builder:
    def __init__(self, tokens: Iterator[Any], leaves: Sequence[Any], position: int = 0) -> None:
        self.tokens = tokens
        self.leaves = leaves
        self.position = position  # of the next leaf
        self.tensors: dict[tuple[int, Any], Tensor] = {}

    def site(self, keys: tuple[str, ...]) -> dict[str, Any]:
        site = {key: self.build() for key in keys}
        if site["type"] in ("sample", "param"):
            site["continuation"] = None
        return site

    def build(self) -> Any:
        token = next(self.tokens)
        if token is _LEAF:
            self.position += 1
            return self.leaves[self.position - 1]
        if isinstance(token, TensorToken):
            self.position += 1
            return self._tensor(self.position - 1, token.shape)
        if isinstance(token, SharedToken):
            return self._tensor(token.leaf, token.shape)
        items = [self.build() for _ in token.keys]
        if isinstance(token, ObjectToken):
            whole: Any = object.__new__(token.type)
            vars(whole).update(zip(token.keys, items, strict=True))
            return whole
        if token.type in (dict, OrderedDict):
            return token.type(zip(token.keys, items, strict=True))
        return token.type(*items) if hasattr(token.type, "_fields") else token.type(items)

    def _tensor(self, leaf: int, shape: torch.Size | None) -> Any:
        if shape is None:
            return self.leaves[leaf]
        key = (leaf, shape)
        if key not in self.tensors:
            self.tensors[key] = self.leaves[leaf].expand(shape)
        return self.tensors[key]
