"""Many traces of one program in little memory: stacked values instead of one tensor per site and run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.trace_struct import Trace
from sumprod.infer._flatten import PLAIN, Flat, Recipe, compile_sites, flatten
from sumprod.infer._trace_sequence import TraceSequence

__all__ = ["TraceStore"]

_CHUNK = 64  # traces that wait to be stacked
_SMALL = 1024  # tensors of so few elements are compared all at once
_CHUNK_BYTES = 1 << 26


class TraceStore(TraceSequence):
    """A read-only sequence of traces; each access puts the trace together anew.

    Of every site it keeps all keys of the message except densities, which are computed again when
    asked for. Tensors, those inside distributions included, are cut from the autograd graph (unless
    `detach=False`) and stacked over the traces; a tensor that is the same in all traces (data, a
    constant) is kept once, and a broadcast one without its broadcast dims. Parameters are copied:
    training on does not change the traces. Other objects (nn.Modules, user classes) are kept by
    reference.

    Args:
        detach: cut tensors from the autograd graph.
    """

    def __init__(self, detach: bool = True) -> None:
        self.detach = detach
        self._groups: list[_Group] = []
        self._where: list[tuple[int, int]] = []  # group and row of each trace
        self._snapshots: dict[int, tuple[Tensor, Tensor]] = {}  # parameter and its copy, by id

    def append(self, trace: Trace) -> None:
        """Add a trace."""
        # Tensors are cut now: the graph can go, and parameters may change before the next trace.
        flat = flatten(trace, self._cut if self.detach else None)
        number = self._group_of(flat)
        self._where.append((number, self._groups[number].append(flat.leaves)))

    def _cut(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            base = tensor._base
            return tensor.clone() if base is not None and base.requires_grad else tensor
        if tensor._is_view():
            return tensor.detach().clone()
        if not tensor.is_leaf:
            return tensor.detach()
        known = self._snapshots.get(id(tensor))
        if known is None or not torch.equal(known[1], tensor):
            # The parameter is kept, too, so that its id is not used again.
            known = self._snapshots[id(tensor)] = (tensor, tensor.detach().clone())
        return known[1]

    def _group_of(self, flat: Flat) -> int:
        for number in range(len(self._groups) - 1, -1, -1):
            if self._groups[number].tokens == flat.tokens:
                return number
        self._groups.append(_Group(flat))
        return len(self._groups) - 1

    def finish(self) -> None:
        """Stack what waits; to be called after the last trace."""
        for group in self._groups:
            group.finish()
        self._snapshots.clear()

    def __len__(self) -> int:
        return len(self._where)

    def _trace(self, number: int) -> Trace:
        group, row = self._where[number]
        return self._groups[group].trace(row)

    def __iter__(self) -> Iterator[Trace]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Equal to itself; to another sequence only when both are empty."""
        if self is other:
            return True
        return isinstance(other, Sequence) and len(self) == 0 == len(other)

    __hash__ = None  # type: ignore[assignment]

    def _missing(self, name: str, index: int) -> KeyError:
        sites = list(self._groups[self._where[index][0]].sites)
        return KeyError(f"no site '{name}' in trace {index}: its sites are {sites}")

    def site(self, index: int, name: str) -> dict[str, Any]:
        """One site of trace `index`, put together anew: cheaper than the whole trace.

        Raises:
            KeyError: the trace has no such site.
        """
        number, row = self._where[index]
        group = self._groups[number]
        if name not in group.sites:
            raise self._missing(name, index)
        return group.site(row, name)

    def groups(self) -> list[list[int]]:
        """The numbers of the traces, those of equal structure (equal sites and shapes) together."""
        numbers: list[list[int]] = [[] for _ in self._groups]
        for index, (group, _) in enumerate(self._where):
            numbers[group].append(index)
        return numbers

    def representatives(self) -> list[Trace]:
        """One trace of each group."""
        return [self[numbers[0]] for numbers in self.groups()]

    def stack_group(self, index: int, name: str) -> Tensor:
        """The values of a site in the traces of the group that trace `index` belongs to."""
        return self._groups[self._where[index][0]].stack(name)

    def __repr__(self) -> str:
        return f"<{len(self)} traces>"

    def stack(self, name: str) -> Tensor:
        """The values of a site in all traces, shape (number of traces,) + value shape.

        Raises:
            KeyError: a trace has no such site.
            TypeError: the values are not tensors.
            ValueError: their shapes, dtypes or devices differ between traces.
        """
        stacks = []
        for number, group in enumerate(self._groups):
            if name not in group.sites:
                raise self._missing(name, next(i for i, (n, _) in enumerate(self._where) if n == number))
            stacks.append(group.stack(name))
        if len(stacks) == 1:
            return stacks[0]
        kinds = [(tuple(s.shape[1:]), s.dtype, s.device) for s in stacks]
        if any(kind != kinds[0] for kind in kinds):
            different = next(kind for kind in kinds if kind != kinds[0])
            raise ValueError(
                f"site '{name}' has values of different kinds in different traces, {kinds[0]} and"
                f" {different}: they cannot be stacked"
            )
        starts = list(itertools.accumulate((len(s) for s in stacks), initial=0))
        order = torch.tensor([starts[number] + row for number, row in self._where], device=stacks[0].device)
        return torch.cat(stacks).index_select(0, order)


class _Group:
    """Traces of equal structure, as columns of leaves."""

    def __init__(self, flat: Flat) -> None:
        self.tokens = flat.tokens
        self.values = flat.values
        self.sites = compile_sites(flat.tokens)
        self.columns: list[_Column] = [_column(leaf) for leaf in flat.leaves]
        self._pending: list[list[Any]] = []
        self._constant: dict[str, tuple[dict[str, Any], list[tuple[str, Recipe]]]] = {}
        self._count = 0
        size = sum(leaf.nbytes for leaf in flat.leaves if isinstance(leaf, Tensor))
        self._chunk = max(1, min(_CHUNK, _CHUNK_BYTES // max(1, size)))

    def append(self, leaves: list[Any]) -> int:
        """The row of the new trace."""
        self._pending.append(leaves)
        self._count += 1
        if len(self._pending) >= self._chunk:
            self._flush()
        return self._count - 1

    def _flush(self) -> None:
        if self._pending:
            for column, entries in zip(self.columns, zip(*self._pending, strict=True), strict=True):
                column.extend(entries)
            self._pending = []
            self._constant = {}

    def finish(self) -> None:
        self._flush()
        for column in self.columns:
            column.finish()

    def trace(self, row: int) -> Trace:
        self._flush()
        graph_type, edges = self.tokens[0]
        trace = Trace(graph_type)
        for name in self.sites:
            trace.nodes[name] = self._site(row, name)
        for before, after in edges:
            trace.add_edge(before, after)
        return trace

    def site(self, row: int, name: str) -> dict[str, Any]:
        self._flush()
        return self._site(row, name)

    def _site(self, row: int, name: str) -> dict[str, Any]:
        known = self._constant.get(name)
        if known is None:
            known = self._constant[name] = self._divide(name)
        constant, varying = known
        site = dict(constant)
        columns = self.columns

        def leaf(number: int) -> Any:
            return columns[number].get(row)

        for key, recipe in varying:
            site[key] = recipe.make(leaf)
        return site

    def _divide(self, name: str) -> tuple[dict[str, Any], list[tuple[str, Recipe]]]:
        """The entries of a site that all traces share, with places for the others, and the others."""
        site: dict[str, Any] = {}
        varying = []
        for key, recipe in self.sites[name]:
            site[key] = None
            if recipe.kind == "leaf" and self.columns[recipe.leaf].entries is None:
                site[key] = self.columns[recipe.leaf].first
            else:
                varying.append((key, recipe))
        if site["type"] in ("sample", "param"):
            site["continuation"] = None
        return site, varying

    def stack(self, name: str) -> Tensor:
        """The values of a site, (count, ...)."""
        self.finish()
        if name not in self.values:
            kind = type(self.site(0, name).get("value")).__name__
            raise TypeError(
                f"the value of site '{name}' is not a tensor but {kind}: only tensors have an empirical"
                " distribution"
            )
        leaf, shape = self.values[name]
        stacked = self.columns[leaf].stacked(self._count)
        return stacked if shape is None else stacked.expand(self._count, *shape)


class _Column:
    """One leaf over the traces of a group: a single object while all are the same, then a list."""

    def __init__(self, first: Any) -> None:
        self.first = first
        self.count = 0
        self.entries: list[Any] | None = None  # None: all are `first`

    def same(self, entry: Any) -> bool:
        first = self.first
        return entry is first or (
            type(entry) is type(first) and type(first) in PLAIN and bool(entry == first)
        )

    def extend(self, entries: tuple[Any, ...]) -> None:
        if self.entries is None and not all(map(self.same, entries)):
            self.entries = [self.first] * self.count
        if self.entries is not None:
            self.entries.extend(entries)
        self.count += len(entries)

    def finish(self) -> None:
        pass

    def get(self, row: int) -> Any:
        return self.first if self.entries is None else self.entries[row]

    def stacked(self, count: int) -> Tensor:
        raise TypeError("a column of objects cannot be stacked")


class _TensorColumn(_Column):
    """One tensor leaf: stacked in pieces of some traces each, at last in one piece."""

    first: Tensor
    pieces: list[Tensor] | None = None

    def extend(self, entries: tuple[Any, ...]) -> None:
        if self.pieces is None and not all(entry is self.first for entry in entries):
            self._extend_unlike(entries)
        elif self.pieces is not None:
            self.pieces.append(torch.stack(entries))
        self.count += len(entries)

    def _extend_unlike(self, entries: tuple[Tensor, ...]) -> None:
        """Add the first entries that are not the object `first`. Equal contents count as the same."""
        first = self.first
        stack = torch.stack(entries) if first.numel() <= _SMALL else None
        # Gradients tell tensors of equal contents apart.
        if not first.requires_grad and not any(entry.requires_grad for entry in entries):
            if stack is not None:
                same = bool((stack == first).all())
            else:
                same = all(entry is first or torch.equal(entry, first) for entry in entries)
            if same:
                return
        self.pieces = [first.expand(self.count, *first.shape)] if self.count else []
        self.pieces.append(torch.stack(entries) if stack is None else stack)

    def finish(self) -> None:
        if self.pieces is not None and len(self.pieces) > 1:
            self.pieces = [torch.cat(self.pieces)]

    def get(self, row: int) -> Tensor:
        if self.pieces is None:
            return self.first
        self.finish()
        return self.pieces[0][row]

    def stacked(self, count: int) -> Tensor:
        if self.pieces is None:
            return self.first.expand(count, *self.first.shape)
        return self.pieces[0]


def _column(leaf: Any) -> _Column:
    return _TensorColumn(leaf) if isinstance(leaf, Tensor) else _Column(leaf)


class TraceSelection(TraceSequence):
    """Some traces of a sequence, by number; a trace may occur several times.

    Args:
        traces: a `TraceStore` or another sequence with its methods.
        numbers: which of them.
    """

    def __init__(self, traces: Any, numbers: Sequence[int]) -> None:
        self._traces = traces
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _trace(self, number: int) -> Trace:
        return self._traces[self._numbers[number]]  # type: ignore[no-any-return]

    def site(self, index: int, name: str) -> dict[str, Any]:
        """One site of trace `index`."""
        return self._traces.site(self._numbers[index], name)  # type: ignore[no-any-return]

    def stack(self, name: str) -> Tensor:
        """The values of a site in all traces."""
        stacked: Tensor = self._traces.stack(name)
        return stacked[torch.tensor(self._numbers, device=stacked.device)]

    def groups(self) -> list[list[int]]:
        """The numbers of the traces, those of equal structure together."""
        group_of = {number: i for i, numbers in enumerate(self._traces.groups()) for number in numbers}
        groups: dict[int, list[int]] = {}
        for index, number in enumerate(self._numbers):
            groups.setdefault(group_of[number], []).append(index)
        return list(groups.values())

    def representatives(self) -> list[Trace]:
        """One trace of each group."""
        return [self[numbers[0]] for numbers in self.groups()]

    def stack_group(self, index: int, name: str) -> Tensor:
        """The values of a site in the traces of the group that trace `index` belongs to."""
        number = self._numbers[index]
        members = next(numbers for numbers in self._traces.groups() if number in numbers)
        row_of = {member: row for row, member in enumerate(members)}
        rows = [row_of[number] for number in self._numbers if number in row_of]
        stacked: Tensor = self._traces.stack_group(number, name)
        return stacked[torch.tensor(rows, device=stacked.device)]
