"""The parameter store: named, constrained parameters with unconstrained leaf tensors behind them.

A parameter `x` with constraint C is stored as a leaf tensor u (float, requires_grad) with x = t(u), where t
is `torch.distributions.transform_to(C)`. Optimisers change u; programs see x, computed anew at each access,
and reach u by `x.unconstrained()`. For the constraint `real`, x is the leaf itself.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import ItemsView, Iterator, KeysView
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
import torch.distributed
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sumprod.params import constraint_codec
from sumprod.params._entry import Entry, Init, make_leaf
from sumprod.params._files import File, MapLocation, load_file
from sumprod.params._names import (
    module_from_param_with_module_name,
    normalize_param_name,
    param_with_module_name,
    user_param_name,
)

__all__ = [
    "PARAM_STORE",
    "ParamStoreDict",
    "StateDict",
    "clear_param_store",
    "get_param_store",
    "module_from_param_with_module_name",
    "normalize_param_name",
    "param_with_module_name",
    "user_param_name",
]

_FORMAT = "sumprod.params.1"


class StateDict(TypedDict):
    """What `get_state` returns: the unconstrained leaves and the constraints, both by name."""

    params: dict[str, torch.Tensor]
    constraints: dict[str, Constraint]


class ParamStoreDict:
    """A dict from names to constrained parameter values; `get_param_store()` returns the one of the process.

    Values are computed from their unconstrained leaf at each access. Assigning makes a new leaf and keeps the
    constraint. Order is that of creation. Creating a parameter is safe when several threads do it at once:
    all get the same leaf. `save` and `load` use a format without pickled code.

    >>> import torch
    >>> from torch.distributions import constraints
    >>> store = ParamStoreDict()
    >>> scale = store.get_param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    >>> scale.unconstrained()
    tensor([0.0000, 0.6931], requires_grad=True)
    >>> store["scale"] = torch.tensor([3.0, 4.0])
    >>> store["scale"].detach()
    tensor([3., 4.])
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        # Keyed by id, because hashing a tensor is slow; the entries keep the leaves alive.
        self._names: dict[int, str] = {}
        self._lock = threading.RLock()
        self._frozen = False

    # Access.

    def get_param(
        self,
        name: str,
        init_tensor: Init | None = None,
        constraint: Constraint = constraints.real,
        event_dim: int | None = None,
    ) -> torch.Tensor:
        """The value of `name`, made from `init_tensor` and `constraint` when the name is new.

        For a known name both are ignored, and so is `event_dim` always (the handlers use it). `init_tensor`
        is a tensor, a number, or a function without arguments that is called only when it is needed; it is
        copied, except an `nn.Parameter` without a constraint, which becomes the leaf itself.

        Raises KeyError for an unknown name without `init_tensor`; ValueError for an initial value on the
        boundary of its constraint or outside; RuntimeError for a dtype that has no gradient, and for a new
        name in a frozen store.
        """
        entry = self._entries.get(name) or self._create(name, init_tensor, constraint)
        return entry.leaf if entry.transform is None else entry.value()

    def setdefault(
        self, name: str, init_constrained_value: Init, constraint: Constraint = constraints.real
    ) -> torch.Tensor:
        """The value of `name`, made from the constrained initial value when the name is new."""
        return self.get_param(name, init_constrained_value, constraint)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.get_param(name)

    def __setitem__(self, name: str, new_constrained_value: Init) -> None:
        """Replaces the value, by a new leaf. The constraint stays; a new name has none."""
        with self._lock:
            old = self._entries.get(name)
            constraint = constraints.real if old is None else old.constraint
            self._put(name, Entry(make_leaf(name, new_constrained_value, constraint), constraint, old))

    def __delitem__(self, name: str) -> None:
        with self._lock:
            entry = self._entries.pop(name)
            self._forget_leaf(name, entry.leaf)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def keys(self) -> KeysView[str]:
        """The names, in order of creation."""
        return self._entries.keys()

    def values(self) -> Iterator[torch.Tensor]:
        """The constrained values."""
        for entry in self._entries.values():
            yield entry.value()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Pairs of name and constrained value."""
        for name, entry in self._entries.items():
            yield name, entry.value()

    def named_parameters(self) -> ItemsView[str, torch.Tensor]:
        """Pairs of name and unconstrained leaf."""
        return self._params.items()

    def match(self, name: str) -> dict[str, torch.Tensor]:
        """The constrained values of all names that the regular expression `name` matches from their start."""
        pattern = re.compile(name)
        return {key: value for key, value in self.items() if pattern.match(key)}

    def param_name(self, p: torch.Tensor) -> str | None:
        """The name of the unconstrained leaf `p`; None when it is no leaf of this store."""
        return self._names.get(id(p))

    def clear(self) -> None:
        """Forgets all parameters and constraints, and ends `freeze`."""
        with self._lock:
            self._entries, self._names, self._frozen = {}, {}, False

    @property
    def _params(self) -> dict[str, torch.Tensor]:
        return {name: entry.leaf for name, entry in self._entries.items()}

    @property
    def _constraints(self) -> dict[str, Constraint]:
        return {name: entry.constraint for name, entry in self._entries.items()}

    # Creation.

    def _create(self, name: str, init: Init | None, constraint: Constraint) -> Entry:
        with self._lock:
            entry = self._entries.get(name)  # another thread may have been faster
            if entry is None:
                if init is None:
                    raise KeyError(f"there is no parameter {name!r}; give an initial value at its first use")
                self._check_not_frozen(name)
                entry = Entry(make_leaf(name, init, constraint), constraint)
                self._put(name, entry)
            return entry

    def _put(self, name: str, entry: Entry) -> None:
        old = self._entries.get(name)
        if old is None:
            self._check_not_frozen(name)
        self._entries[name] = entry
        if old is not None and old.leaf is not entry.leaf:
            self._forget_leaf(name, old.leaf)
        # Of two names for one leaf (tied weights) the first one counts.
        self._names.setdefault(id(entry.leaf), name)

    def _forget_leaf(self, name: str, leaf: torch.Tensor) -> None:
        if self._names.get(id(leaf)) != name:
            return
        del self._names[id(leaf)]
        for other, entry in self._entries.items():
            if entry.leaf is leaf:
                self._names[id(leaf)] = other
                return

    def freeze(self) -> None:
        """Forbids new names until `unfreeze`; known parameters can still be read, trained and replaced.

        Freeze before `torch.compile`, which must not see a parameter come into being.
        """
        self._frozen = True

    def unfreeze(self) -> None:
        """Allows new names again."""
        self._frozen = False

    @property
    def frozen(self) -> bool:
        """Whether new names are forbidden."""
        return self._frozen

    def _check_not_frozen(self, name: str) -> None:
        if self._frozen:
            raise RuntimeError(
                f"the parameter store is frozen, so {name!r} cannot be added; create it before freeze(), or "
                "call unfreeze()"
            )

    # State.

    def get_state(self) -> StateDict:
        """`{"params": leaf by name, "constraints": constraint by name}`.

        The leaves are the live ones, which further training changes; `copy.deepcopy` makes a snapshot.
        """
        return {"params": self._params, "constraints": self._constraints}

    def set_state(self, state: StateDict) -> None:
        """Puts the parameters of `state` into the store and keeps those that it does not mention.

        Leaf tensors that require grad are used themselves, others are copied. Unpickled constraints are
        replaced by the named object that means the same. Raises AssertionError for a malformed state.
        """
        if not isinstance(state, dict) or state.keys() != {"params", "constraints"}:
            keys = list(state) if isinstance(state, dict) else type(state).__name__
            raise AssertionError(f"malformed ParamStore keys {keys}; expected 'params' and 'constraints'")
        missing = [name for name in state["params"] if name not in state["constraints"]]
        if missing:
            raise AssertionError(f"malformed ParamStore: no constraint for the parameters {missing}")
        entries = {}
        for name, leaf in state["params"].items():
            if not (leaf.is_leaf and leaf.requires_grad):
                leaf = leaf.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            constraint = constraint_codec.canonical(state["constraints"][name])
            entries[name] = Entry(leaf, constraint, self._entries.get(name))
        with self._lock:
            for name in entries.keys() - self._entries.keys():
                self._check_not_frozen(name)
            for name, entry in entries.items():
                self._put(name, entry)

    def __getstate__(self) -> StateDict:
        return self.get_state()

    def __setstate__(self, state: StateDict) -> None:
        self.__init__()  # type: ignore[misc]
        self.set_state(state)

    @contextmanager
    def scope(self, state: StateDict | None = None) -> Iterator[StateDict]:
        """Inside the block the store holds `state` (nothing by default) and nothing else.

        Yields the state. When the block ends, also by an exception, the store's content is written into it
        (so that it can be given to the next `scope`), and the former content comes back. All threads see the
        swap.

        >>> import torch
        >>> store = ParamStoreDict()
        >>> store["a"] = torch.zeros(1)
        >>> with store.scope() as state:
        ...     store["b"] = torch.ones(1)
        >>> list(store), list(state["params"])
        (['a'], ['b'])
        """
        scoped: StateDict = {"params": {}, "constraints": {}} if state is None else state
        with self._lock:
            outer = (self._entries, self._names, self._frozen)
            self._entries, self._names, self._frozen = {}, {}, False
        try:
            self.set_state(scoped)
            try:
                yield scoped
            finally:
                scoped.update(self.get_state())
        finally:
            with self._lock:
                self._entries, self._names, self._frozen = outer

    # Files.

    def save(self, filename: File, *, allow_pickle: bool = False) -> None:
        """Writes all parameters to a path or binary file; `torch.load(weights_only=True)` can read it.

        Constraints are written by name and arguments. One that has no registered name raises ValueError,
        unless `allow_pickle`: then such constraints are pickled, and so must `load` allow it.
        """
        encoded: dict[str, Any] = {}
        for name, entry in self._entries.items():
            try:
                encoded[name] = constraint_codec.encode(entry.constraint)
            except ValueError as error:
                if not allow_pickle:
                    raise ValueError(f"parameter {name!r} cannot be saved: {error}") from None
                encoded[name] = entry.constraint
        params = {name: entry.leaf.detach() for name, entry in self._entries.items()}
        torch.save({"format": _FORMAT, "params": params, "constraints": encoded}, filename)

    def load(
        self,
        filename: File,
        map_location: MapLocation = None,
        *,
        allow_pickle: bool = False,
    ) -> None:
        """Reads what `save` wrote and puts it into the store, as `set_state` does.

        `allow_pickle=True` also reads files with pickled constraints, among them those that Pyro writes.
        Unpickling can run any code: allow it only for files that you trust. Raises ValueError for a file that
        needs it, or that holds something else.
        """
        content = load_file(filename, map_location, allow_pickle)
        if isinstance(content, dict) and content.get("format") == _FORMAT:
            read = {
                name: value if isinstance(value, Constraint) else constraint_codec.decode(value)
                for name, value in content["constraints"].items()
            }
            content = {"params": content["params"], "constraints": read}
        self.set_state(content)

    # Distributed runs.

    def broadcast(self, group: torch.distributed.ProcessGroup | None = None, src: int = 0) -> None:
        """Copies the parameters of the process with global rank `src` to all of `group`, in place.

        All processes must call it. Raises RuntimeError in all of them when they do not hold the same names
        and shapes in the same order.
        """
        mine = [(name, tuple(entry.leaf.shape)) for name, entry in self._entries.items()]
        everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(everyone, mine, group=group)
        for rank, theirs in enumerate(everyone):
            if theirs != everyone[0]:
                different = sorted({name for name, _ in set(theirs).symmetric_difference(everyone[0])})
                raise RuntimeError(
                    f"the parameters of processes 0 and {rank} of the group differ in "
                    f"{different or 'their order'}; run model and guide once with the same data shapes in "
                    "every process before broadcasting"
                )
        for entry in self._entries.values():
            torch.distributed.broadcast(entry.leaf.detach(), src=src, group=group)

    # Deprecated names.

    def get_all_param_names(self) -> KeysView[str]:
        """Deprecated: use `keys`."""
        warnings.warn(
            "ParamStore.get_all_param_names() is deprecated; use .keys() instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.keys()

    def replace_param(self, param_name: str, new_param: torch.Tensor, old_param: torch.Tensor) -> None:
        """Deprecated: use `store[param_name] = new_param`."""
        warnings.warn(
            "ParamStore.replace_param() is deprecated; use .__setitem__() instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        self[param_name] = new_param


PARAM_STORE = ParamStoreDict()


def get_param_store() -> ParamStoreDict:
    """The parameter store of this process."""
    return PARAM_STORE


def clear_param_store() -> None:
    """Forgets all parameters of this process, e.g. before another model is trained."""
    PARAM_STORE.clear()
