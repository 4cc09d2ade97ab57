"""Param statements that a module's parameters make while the module is running."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sumprod.nn._context import Call
from sumprod.params._entry import Entry, make_leaf
from sumprod.params.param_store import PARAM_STORE, param_with_module_name
from sumprod.primitives import module, param
from sumprod.runtime import apply_stack, handler_stack, new_message

Parameters = dict[str, nn.Parameter | None]  # `nn.Module._parameters`


def trainable(name: str, init: Any, constraint: Constraint) -> nn.Parameter:
    """The unconstrained nn.Parameter for a constrained initial value.

    Raises:
        TypeError: there is no initial value.
        ValueError: it is on the boundary of the constraint or outside.
    """
    if init is None:
        raise TypeError(f"PyroParam '{name}' needs an initial value to be assigned: PyroParam(init_value)")
    leaf = make_leaf(name, init, constraint)
    return leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach())


def param_site(
    parameters: Parameters,
    fullname: str,
    key: str,
    constraint: Constraint,
    event_dim: int | None,
    call: Call,
) -> Any:
    """A param statement for the leaf `parameters[key]`, whose site is called `fullname`.

    Raises:
        ValueError: the store holds a parameter of that name and another shape.
    """
    leaf: Any = parameters[key]
    if call.local is not None:
        return _local_param(fullname, leaf, constraint, event_dim)
    if PARAM_STORE.param_name(leaf) != fullname:
        _connect(parameters, fullname, key, constraint)
    return param(fullname, constraint=constraint, event_dim=event_dim)


def _connect(parameters: Parameters, fullname: str, key: str, constraint: Constraint) -> None:
    """Make module and store share a leaf: the store's if it has one of this name, else the module's."""
    leaf: Any = parameters[key]
    if fullname in PARAM_STORE:
        stored: Any = PARAM_STORE[fullname].unconstrained()  # type: ignore[attr-defined]
        if stored is leaf:  # tied: it goes by another name, too
            return
        if stored.shape != leaf.shape:
            raise ValueError(
                f"the parameter store holds '{fullname}' with unconstrained shape {tuple(stored.shape)}, but"
                f" the module's has {tuple(leaf.shape)}: clear_param_store() if it is left over, or give one"
                " of the two modules another name"
            )
        leaf = stored if isinstance(stored, nn.Parameter) else nn.Parameter(stored.detach())
        parameters[key] = leaf
        if leaf is stored:
            return
        constraint = PARAM_STORE.get_state()["constraints"][fullname]
    PARAM_STORE.set_state({"params": {fullname: leaf}, "constraints": {fullname: constraint}})


def _local_param(fullname: str, leaf: Any, constraint: Constraint, event_dim: int | None) -> Any:
    """A param statement whose leaf stays out of the store."""
    entry = Entry(leaf, constraint)
    if not handler_stack():
        return entry.value()
    options = {"constraint": constraint, "event_dim": event_dim, "module_local": True}
    msg = new_message("param", fullname, lambda *_, **__: entry.value(), (fullname,), options)
    return apply_stack(msg)["value"]


def register_module(child: nn.Module, fullname: str, call: Call) -> None:
    """Param statements for the parameters of an ordinary module, called `FULLNAME$$$PARAMETER`."""
    if call.local is None:
        _connect_all(child, fullname)
        module(fullname, child)
        return
    for key, leaf in child.named_parameters():
        if leaf.requires_grad:
            _local_param(param_with_module_name(fullname, key), leaf, constraints.real, None)


def _connect_all(child: nn.Module, fullname: str) -> None:
    connected: dict[int, tuple[Any, Any]] = {}  # before and after, by id: tied parameters stay tied
    for path, part in child.named_modules():
        for key, leaf in part._parameters.items():
            if leaf is None or not leaf.requires_grad or PARAM_STORE.param_name(leaf) is not None:
                continue
            if id(leaf) in connected:
                part._parameters[key] = connected[id(leaf)][1]
                continue
            name = param_with_module_name(fullname, f"{path}.{key}" if path else key)
            _connect(part._parameters, name, key, constraints.real)
            connected[id(leaf)] = (leaf, part._parameters[key])
