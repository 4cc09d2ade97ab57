"""`PyroOptim`: torch optimisers for parameters that appear while a program runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from sumprod.optim._clipping import checked_clip_args, clip_gradients
from sumprod.optim._family import Family, Slot, frozen, place
from sumprod.optim._kernels import Constructor, implementation, is_separable, refuse_joint_optimizers
from sumprod.optim.adagrad_rmsprop import AdagradRMSProp as _AdagradRMSProp
from sumprod.optim.clipped_adam import ClippedAdam as _ClippedAdam
from sumprod.params._entry import Identity, identity_of
from sumprod.params._files import File, MapLocation, load_file
from sumprod.params.param_store import (
    PARAM_STORE,
    module_from_param_with_module_name,
    normalize_param_name,
    user_param_name,
)

__all__ = ["AdagradRMSProp", "ClippedAdam", "PyroOptim"]

Arguments = Mapping[str, Any] | Callable[..., Mapping[str, Any]]


class PyroOptim:
    """Steps the parameters that it is given, making optimiser state when it first sees one.

    `optim_constructor` is a class of torch optimisers (or a function that makes one). `optim_args` holds its
    options: a dict, or a function of a parameter's dotted name, or of its module's and its own name, that
    returns one; such a function is called once per parameter. `clip_args`, a dict or function likewise, may
    have `clip_norm` (per parameter, or over all with `clip_global=True`) and `clip_value` (elementwise).

    Parameters with equal options share one torch optimiser, which uses its fused or foreach implementation;
    the numbers are those of one such optimiser per parameter. Only the given parameters change in a call, and
    of these only those with a gradient. State belongs to the parameter's name: it survives
    `store[name] = value`, and `get_state`, `save` and `load` are keyed by it.

    Raises AssertionError for `optim_args` of another type; NotImplementedError for LBFGS.

    >>> import torch
    >>> from sumprod.optim import Adam
    >>> weight = torch.ones(2, requires_grad=True)
    >>> weight.grad = torch.tensor([1.0, -1.0])
    >>> Adam({"lr": 0.5})([weight])
    >>> weight
    tensor([0.5000, 1.5000], requires_grad=True)
    """

    def __init__(
        self, optim_constructor: Constructor, optim_args: Arguments, clip_args: Arguments | None = None
    ) -> None:
        refuse_joint_optimizers(optim_constructor)
        for name, value in (("optim_args", optim_args), ("clip_args", clip_args)):
            if value is not None and not isinstance(value, Mapping) and not callable(value):
                raise AssertionError(
                    f"{name} must be function that returns defaults or a defaults dictionary, got {value!r}"
                )
        if optim_args is None:
            raise AssertionError("optim_args must be function that returns defaults or a defaults dictionary")
        self.pt_optim_constructor = optim_constructor
        self.pt_optim_args = optim_args if callable(optim_args) else dict(optim_args)
        if clip_args is None or not callable(clip_args):
            clip_args = checked_clip_args({} if clip_args is None else clip_args, "clip_args")
        self.pt_clip_args = clip_args
        self._forget()

    def _forget(self) -> None:
        self._slots: WeakKeyDictionary[Identity, Slot] = WeakKeyDictionary()
        # Leaves that never were in a store (PyroModule with local parameters) get an identity here.
        self._outside: Any = WeakTensorKeyDictionary()
        self._seen_outside = 0
        self._families: dict[Any, Family] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._active: list[torch.Tensor] = []
        self._stepping: list[Family] = []
        self._clips: list[tuple[list[torch.Tensor], dict[str, Any]]] = []

    # Steps.

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """One step for the unconstrained leaves `params`; other arguments go to the torch optimiser's `step`.

        Gradients must be in place; they may be clipped, and are not set to zero afterwards.
        """
        leaves = params if isinstance(params, list) else list(params)
        active = self._active
        if len(leaves) != len(active) or not all(map(is_, leaves, active)) or self._moved():
            self._activate(leaves)
        for clipped, arguments in self._clips:
            clip_gradients(clipped, arguments)
        for family in self._stepping:
            family.step(*args, **kwargs)

    def _moved(self) -> bool:
        """Whether a leaf went to another device, as `module.to(device)` does in place."""
        return torch.cuda.is_initialized() and any(
            slot.place[2] != leaf.device
            for family in self._stepping
            for leaf, slot in zip(family.leaves, family.slots, strict=True)
        )

    def _activate(self, leaves: list[torch.Tensor]) -> None:
        """Prepares for steps of exactly these leaves."""
        self._deactivate()
        once = list({id(leaf): leaf for leaf in leaves}.values())
        slots = [self._slot(leaf) for leaf in once]
        self._place_new(once, slots)
        stepping: dict[int, Family] = {}
        clips: dict[Any, tuple[list[torch.Tensor], dict[str, Any]]] = {}
        for leaf, slot in zip(once, slots, strict=True):
            assert slot.family is not None
            slot.family.take(leaf, slot)
            stepping[id(slot.family)] = slot.family
            if slot.clip:
                clips.setdefault(frozen(slot.clip), ([], slot.clip))[0].append(leaf)
        for family in stepping.values():
            family.apply()
        self._stepping, self._clips, self._active = (
            list(stepping.values()),
            list(clips.values()),
            list(leaves),
        )

    def _deactivate(self) -> None:
        for family in self._stepping:
            family.release()
        self._stepping, self._clips, self._active = [], [], []

    # What is known about a parameter.

    def _slot(self, leaf: torch.Tensor) -> Slot:
        identity = identity_of(leaf) or self._outside.get(leaf)
        if identity is None:
            identity = self._outside[leaf] = Identity()
        name = PARAM_STORE.param_name(leaf)
        slot = self._slots.get(identity)
        if slot is None:
            slot = self._slots[identity] = self._new_slot(leaf, name)
        elif slot.leaf() is not leaf or slot.place != place(leaf):
            self._resettle(slot, leaf)
        if name is not None:
            slot.name = name
        return slot

    def _new_slot(self, leaf: torch.Tensor, name: str | None) -> Slot:
        options = self.pt_optim_args
        if callable(options):
            options = _ask(options, name, leaf, "optim_args")
            if not isinstance(options, Mapping):
                raise AssertionError(
                    f"per-param optim arg must return defaults dictionary, got {options!r} for {name!r}"
                )
        clip = self.pt_clip_args
        if callable(clip):
            clip = checked_clip_args(_ask(clip, name, leaf, "clip_args"), f"clip_args for {name!r}")
        if name is None:
            name = f"unnamed.{self._seen_outside}"
            self._seen_outside += 1
        return Slot(leaf, name, dict(options), dict(clip))

    def _resettle(self, slot: Slot, leaf: torch.Tensor) -> None:
        """The parameter has a new leaf, or its leaf lives elsewhere now."""
        shape, dtype, device = slot.place
        family = slot.family
        if family is not None and (not family.separable or (dtype, device) != (leaf.dtype, leaf.device)):
            family.collect()
            saved = slot.saved()
            slot.family = None
            if shape == leaf.shape:
                slot.settle(leaf)
                self._restore(slot, leaf, saved)
        elif shape != leaf.shape:
            slot.family = None  # momentum of another shape means nothing
        slot.settle(leaf)

    def _place_new(self, leaves: list[torch.Tensor], slots: list[Slot]) -> None:
        """Finds a family for each slot that has none, and gives out state that waits for its name."""
        joining: dict[int, tuple[Family, list[tuple[torch.Tensor, Slot]]]] = {}
        for leaf, slot in zip(leaves, slots, strict=True):
            if slot.name in self._waiting:
                self._restore(slot, leaf, self._waiting.pop(slot.name))
            if slot.family is not None:
                continue
            extra = implementation(self.pt_optim_constructor, slot.options, leaf)
            key = (frozen(slot.options), frozen(extra))
            family = self._families.get(key)
            if family is None or not family.is_open:
                family = self._found(leaf, slot.options, extra)
                if family.separable:
                    self._families[key] = family
                slot.state = family.optimizer.state.get(leaf, {})
            else:
                joining.setdefault(id(family), (family, []))[1].append((leaf, slot))
            slot.family = family
        for family, members in joining.values():
            # Some optimisers (Adagrad) make the state in their constructor.
            options = {**members[0][1].options, **family.extra}
            made = self._construct([leaf for leaf, _ in members], options)
            for leaf, slot in members:
                slot.state = made.state.get(leaf, {})

    def _construct(self, leaves: list[torch.Tensor], options: dict[str, Any]) -> Optimizer:
        optimizer = self.pt_optim_constructor(leaves, **options)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optim_constructor must make a torch.optim.Optimizer, but {self.pt_optim_constructor!r} "
                f"made {type(optimizer).__name__}"
            )
        refuse_joint_optimizers(optimizer)
        return optimizer

    def _schedule(self, optimizer: Optimizer) -> Any | None:
        """The scheduler of a new torch optimiser; none here."""
        return None

    def _found(
        self,
        leaf: torch.Tensor,
        options: dict[str, Any],
        extra: dict[str, bool],
        saved: tuple[dict[str, Any], Any] | None = None,
    ) -> Family:
        """A new family for `leaf`, in the state `saved` of optimiser and scheduler when that is given."""
        optimizer = self._construct([leaf], {**options, **extra})
        scheduler = self._schedule(optimizer)
        if saved is not None:
            optimizer.load_state_dict(saved[0])
            if scheduler is not None:
                scheduler.load_state_dict(saved[1])
        return Family(optimizer, scheduler, is_separable(optimizer), extra)

    # State.

    def _restore(self, slot: Slot, leaf: torch.Tensor, saved: dict[str, Any]) -> None:
        """Gives `slot` the state and the options in `saved`, which is left as it is."""
        content, schedule = self._unpacked(slot.name, saved)
        extra = implementation(self.pt_optim_constructor, slot.options, leaf)
        group = {**content["param_groups"][0], **extra}
        content = {**content, "param_groups": [group]}
        family = self._found(leaf, slot.options, extra, copy.deepcopy((content, schedule)))
        slot.state = family.optimizer.state.get(leaf, {})
        if family.separable:
            _check_shapes(slot, leaf)
            options = {key: value for key, value in group.items() if key != "params"}
            key = ("restored", frozen(options), frozen(schedule), frozen(extra))
            known = self._families.get(key)
            if known is not None and known.is_open:
                family = known
            self._families[key] = family
        slot.family = family

    def _unpacked(self, name: str, saved: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The optimiser's and the scheduler's part of `saved`."""
        if not isinstance(saved, Mapping) or "param_groups" not in saved:
            raise ValueError(
                f"the saved state of parameter {name!r} is not that of an optimiser without scheduler: "
                f"expected the keys 'state' and 'param_groups', got {described(saved)}"
            )
        return dict(saved), None

    def get_state(self) -> dict[str, Any]:
        """A copy of all state, by parameter name, as `state_dict` of a torch optimiser for each parameter.

        State that `set_state` got for parameters which have not appeared since is part of it.
        """
        for family in self._stepping:
            family.collect()
        slots = [slot for slot in self._slots.values() if slot.family is not None]
        # Of two leaves with one name (scopes), the one that is in the store now counts.
        return {
            **{slot.name: slot.saved() for slot in slots if not _is_current(slot)},
            **copy.deepcopy(self._waiting),
            **{slot.name: slot.saved() for slot in slots if _is_current(slot)},
        }

    def set_state(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned: state and options (such as a learning rate that has changed).

        The state of a parameter that has not appeared yet (or whose leaf was replaced) is kept until it is
        stepped. Raises ValueError when the
        state belongs to another kind of optimiser or to a parameter of another shape.
        """
        self._deactivate()
        waiting = dict(state_dict)
        for slot in self._slots.values():
            leaf = slot.leaf()
            if leaf is not None and slot.name in waiting and _is_current(slot):
                self._restore(slot, leaf, waiting.pop(slot.name))
        self._waiting.update(copy.deepcopy(waiting))

    def save(self, filename: File) -> None:
        """Writes `get_state()` to a path or binary file."""
        torch.save(self.get_state(), filename)

    def load(self, filename: File, map_location: MapLocation = None, *, allow_pickle: bool = False) -> None:
        """Reads what `save` wrote, and gives it to `set_state`.

        State goes to the device of its parameter in any case. `allow_pickle=True` reads files with other
        objects in them than tensors, numbers and containers, and can run any code: only for trusted files.
        """
        self.set_state(load_file(filename, map_location, allow_pickle))

    @property
    def optim_objs(self) -> dict[torch.Tensor, Any]:
        """The torch optimiser (or scheduler) of each leaf that has been stepped. Leaves share them."""
        return {
            leaf: slot.family.scheduler or slot.family.optimizer
            for slot in self._slots.values()
            if slot.family is not None and (leaf := slot.leaf()) is not None
        }

    def __getstate__(self) -> dict[str, Any]:
        configuration = {key: value for key, value in vars(self).items() if key.startswith("pt_")}
        return {"configuration": configuration, "state": self.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["configuration"])
        self._forget()
        self._waiting = state["state"]


def _ask(function: Callable[..., Any], name: str | None, leaf: torch.Tensor, what: str) -> Any:
    """Calls a function of one (dotted) or two (module, parameter) names."""
    if name is None:
        raise ValueError(
            f"{what} is a function of a parameter's name, but a tensor of shape {tuple(leaf.shape)} is not "
            "in the parameter store; give a dict"
        )
    parameters = inspect.signature(function).parameters.values()
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        required = 2
    else:
        positional = [
            item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        ]
        required = sum(item.default is item.empty for item in positional) or len(positional)
    if required == 1:
        return function(normalize_param_name(name))
    return function(module_from_param_with_module_name(name), user_param_name(name))


def _is_current(slot: Slot) -> bool:
    leaf = slot.leaf()
    if leaf is None:
        return False
    name = PARAM_STORE.param_name(leaf)
    return name == slot.name or (name is None and slot.name not in PARAM_STORE)


def _check_shapes(slot: Slot, leaf: torch.Tensor) -> None:
    for key, value in slot.state.items():
        # Adafactor keeps row and column sums under names of their own.
        if not isinstance(value, torch.Tensor) or not value.ndim or "row" in key or "col" in key:
            continue
        if value.shape != leaf.shape:
            raise ValueError(
                f"the saved optimiser state {key!r} of parameter {slot.name!r} has shape "
                f"{tuple(value.shape)}, but the parameter has shape {tuple(leaf.shape)}"
            )


def described(saved: Any) -> str:
    return str(sorted(map(str, saved))) if isinstance(saved, Mapping) else type(saved).__name__


def AdagradRMSProp(optim_args: Arguments, clip_args: Arguments | None = None) -> PyroOptim:
    """A `PyroOptim` with `sumprod.optim.adagrad_rmsprop.AdagradRMSProp`: options `eta`, `delta`, `t`."""
    return PyroOptim(_AdagradRMSProp, optim_args, clip_args)


def ClippedAdam(optim_args: Arguments, clip_args: Arguments | None = None) -> PyroOptim:
    """A `PyroOptim` with `sumprod.optim.clipped_adam.ClippedAdam`: Adam's options, `clip_norm` and `lrd`."""
    return PyroOptim(_ClippedAdam, optim_args, clip_args)
