"""Parameters that share one torch optimiser, and what is remembered about each of them."""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from sumprod.optim._fused_adam import FusedAdamPlan
from sumprod.optim._kernels import prime

Place = tuple[torch.Size, torch.dtype, torch.device]


def place(leaf: torch.Tensor) -> Place:
    """What the state of a parameter must agree with."""
    return leaf.shape, leaf.dtype, leaf.device


def frozen(value: Any) -> Hashable:
    """A hashable stand-in that is equal for equal options; tensors and other objects count by identity."""
    if isinstance(value, Mapping):
        return tuple(
            (key, frozen(item)) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        )
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else _ById(value)


class _ById:
    """Holds on to the object, so that its identity is not given to another one."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item

    def __hash__(self) -> int:
        return id(self.item)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.item is self.item


class Family:
    """One torch optimiser with one parameter group, and perhaps a scheduler.

    Between steps the group lists exactly the leaves of the last step; leaves that were not part of it are
    unknown to the optimiser, so it can neither change them nor keep them alive. An optimiser that is not
    separable belongs to one leaf for good, because nothing is known about what else it remembers.

    `extra` are options that the user did not ask for (the implementation); `rounds` counts the scheduler's
    steps.
    """

    __slots__ = (
        *("_fresh", "_may_plan", "_plan", "_stepped"),
        *("extra", "leaves", "optimizer", "rounds", "scheduler", "separable", "slots"),
    )

    def __init__(
        self, optimizer: Optimizer, scheduler: Any | None, separable: bool, extra: dict[str, bool]
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.separable = separable
        self.extra = extra
        self.rounds = 0
        self.leaves: list[torch.Tensor] = []
        self.slots: list[Slot] = []
        self._fresh = frozen(self.options)
        self._plan: FusedAdamPlan | None = None
        self._may_plan = self._stepped = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of the parameter group as they are now."""
        return {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}

    @property
    def is_open(self) -> bool:
        """Whether a parameter that comes now has the same future: nothing has changed the options yet."""
        return self.separable and self.rounds == 0 and frozen(self.options) == self._fresh

    def release(self) -> None:
        """Hands each state back to its slot and forgets the leaves."""
        if self.separable:
            self.collect()
            self.leaves, self.slots = [], []
            self.apply()

    def collect(self) -> None:
        """Brings the slots up to date."""
        states = self.optimizer.state
        for leaf, slot in zip(self.leaves, self.slots, strict=True):
            if leaf in states:
                slot.state = states[leaf]

    def take(self, leaf: torch.Tensor, slot: Slot) -> None:
        """Makes `leaf` part of the next step (after `apply`)."""
        if self.separable or not self.leaves:
            self.leaves.append(leaf)
            self.slots.append(slot)

    def apply(self) -> None:
        """Lets the optimiser see the leaves that were taken."""
        if not self.separable:
            return
        self._plan, self._stepped = None, False
        self._may_plan = FusedAdamPlan.fits(self.optimizer, self.leaves)
        states: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        for leaf, slot in zip(self.leaves, self.slots, strict=True):
            prime(self.optimizer, slot.state, leaf)
            if slot.state:
                states[leaf] = slot.state
        self.optimizer.state = states
        self.optimizer.param_groups[0]["params"] = list(self.leaves)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the leaves that were taken."""
        if self._may_plan and self._stepped and not args and not kwargs:
            if self._plan is None or not self._plan.holds:
                self._plan = FusedAdamPlan.make(self.optimizer, self.leaves)
            if self._plan is not None and self._plan.step():
                return
        self.optimizer.step(*args, **kwargs)
        self._stepped = True


class Slot:
    """One parameter: its name, its options as asked for, its family and its optimiser state."""

    __slots__ = ("clip", "family", "leaf", "name", "options", "place", "state")

    def __init__(self, leaf: torch.Tensor, name: str, options: dict[str, Any], clip: dict[str, Any]) -> None:
        self.name = name
        self.options = options
        self.clip = clip
        self.state: dict[str, Any] = {}
        self.family: Family | None = None
        self.settle(leaf)

    def settle(self, leaf: torch.Tensor) -> None:
        """Remembers the leaf (without keeping it alive) and where it lives."""
        self.leaf = weakref.ref(leaf)
        self.place = place(leaf)

    def saved(self) -> dict[str, Any]:
        """A copy of everything about this parameter, in the form of `state_dict` of a torch optimiser for it
        alone. The family must have been collected.
        """
        family = self.family
        assert family is not None
        if family.separable:
            group = {**family.options, **dict.fromkeys(family.extra), "params": [0]}
            content = {"state": {0: self.state} if self.state else {}, "param_groups": [group]}
        else:
            content = family.optimizer.state_dict()
        if family.scheduler is not None:
            content = {"scheduler": family.scheduler.state_dict(), "optimizer": content}
        return copy.deepcopy(content)
