"""Modules whose attributes are parameters and random variables of a program.

A `PyroModule` is a `torch.nn.Module`. While the root of a tree of them is being called, reading an
attribute is a statement of the program: an `nn.Parameter` or `PyroParam` is a `param` site, a
`PyroSample` a `sample` site, and an ordinary `nn.Module` registers its parameters like
`sumprod.module`. Sites are called by the dotted path of the attribute from the root, preceded by the
root's name if it has one: `decoder.fc1.weight`.

    >>> import torch
    >>> import sumprod
    >>> from sumprod.distributions import Normal
    >>> class Line(PyroModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.slope = PyroSample(Normal(0.0, 1.0))
    ...         self.intercept = PyroParam(torch.tensor(1.0))
    ...     def forward(self, x):
    ...         return self.slope * x + self.intercept
    >>> trace = sumprod.handlers.trace(Line()).get_trace(torch.zeros(3))
    >>> [(name, site["type"]) for name, site in trace.nodes.items() if name[0] != "_"]
    [('slope', 'sample'), ('intercept', 'param')]

Parameters of a module are leaves of the process-wide store as soon as the module has run. Where the
store already holds a parameter of that name, e.g. from a file, the module takes it over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sumprod.nn._context import Call, Context
from sumprod.nn._sites import param_site, register_module, trainable
from sumprod.nn._specs import PyroParam, PyroSample
from sumprod.params._entry import Entry, make_leaf
from sumprod.params.param_store import PARAM_STORE, param_with_module_name
from sumprod.primitives import deterministic, sample

__all__ = [
    "PyroModule",
    "PyroModuleList",
    "PyroParam",
    "PyroSample",
    "clear",
    "pyro_method",
    "to_pyro_module_",
]

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="PyroModule")

SUFFIX = "_unconstrained"  # a PyroParam `x` is the nn.Parameter `x_unconstrained` of its module
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they hand out children without getattr


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class _PyroModuleMeta(type):
    """Makes `PyroModule[nn.Linear]` the class `PyroLinear`, a subclass of both."""

    _mixins: ClassVar[dict[type, type]] = {}

    def __getitem__(cls, base: type) -> Any:
        if not (isinstance(base, type) and issubclass(base, nn.Module)):
            raise AssertionError(f"PyroModule[...] expects a subclass of torch.nn.Module, got {base!r}")
        if base is nn.Module:
            return PyroModule
        if issubclass(base, PyroModule):
            return base
        mixin = _PyroModuleMeta._mixins.get(base)
        if mixin is None:
            attributes: dict[str, Any] = {"__module__": __name__, "__doc__": base.__doc__}
            if issubclass(base, nn.RNNBase):
                attributes["_flat_weights"] = _FlatWeights()
            mixin = type(cls)(f"Pyro{base.__name__}", (base, PyroModule), attributes)
            _PyroModuleMeta._mixins[base] = mixin
        return mixin


class _FlatWeights:
    """Recurrent modules keep a second list of their weights: make it from the attributes at each use."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return [getattr(instance, name) for name in instance._flat_weights_names]

    def __set__(self, instance: Any, value: Any) -> None:
        """Ignore what torch writes: the attributes themselves change."""


def _restore_mixin(base: type) -> Any:
    """An object of the class `PyroModule[base]`, which cannot be found by its name in a module."""
    return PyroModule.__new__(PyroModule[base])


class PyroModule(nn.Module, metaclass=_PyroModuleMeta):
    """A module whose attributes are sites of a program while it is being called.

    Args:
        name: of a root module, put before the names of its sites.

    `PyroModule[nn.Linear]` is `nn.Linear` as a `PyroModule`; weights may then be assigned to a
    `PyroSample`. Methods other than `forward` that read such attributes need `@pyro_method`.
    """

    _pyro_name: str
    _pyro_context: Context  # shared by the whole tree
    _pyro_params: dict[str, tuple[Constraint, int | None]]
    _pyro_samples: dict[str, Any]  # priors

    def __init__(self, name: str = "") -> None:
        _prepare(self, name)
        super().__init__()

    # ---- the tree

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child; a `PyroModule` becomes part of this tree."""
        if isinstance(module, PyroModule):
            module._pyro_set_supermodule(self._pyro_get_fullname(name), self._pyro_context)
        super().add_module(name, module)

    def _pyro_set_supermodule(self, name: str, context: Context) -> None:
        """Become the part called `name` of the tree that `context` belongs to."""
        self.__dict__["_pyro_name"] = name
        self.__dict__["_pyro_context"] = context
        for key, child in self._modules.items():
            if isinstance(child, PyroModule):
                child._pyro_set_supermodule(self._pyro_get_fullname(key), context)

    def _pyro_get_fullname(self, name: str) -> str:
        """The name of an attribute's site."""
        return _join(self._pyro_name, name)

    def named_pyro_params(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Any]]:
        """Names and constrained values of the parameters, `PyroParam` or not."""
        seen: set[int] = set()
        modules = self.named_modules(prefix=prefix) if recurse else [(prefix, self)]
        for path, part in modules:
            constrained = getattr(part, "_pyro_params", {})
            for key, leaf in part._parameters.items():
                if leaf is None or id(leaf) in seen:
                    continue
                seen.add(id(leaf))
                name = key.removesuffix(SUFFIX)
                name = name if name in constrained else key
                yield _join(path, name), getattr(part, name)

    # ---- running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`; attributes are sites meanwhile."""
        with self._pyro_context as call:
            if isinstance(self, _CONTAINERS):
                _register_children(self, call)
            return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        spec = own["_pyro_params"].get(name) if "_pyro_params" in own else None
        if spec is not None:
            return self._pyro_param(name, *spec)
        if "_pyro_samples" in own and name in own["_pyro_samples"]:
            return self._pyro_draw(name, own["_pyro_samples"][name])
        value = super().__getattr__(name)
        if isinstance(value, nn.Parameter):
            if value.requires_grad and not (
                name.endswith(SUFFIX) and name[: -len(SUFFIX)] in own["_pyro_params"]
            ):
                call = own["_pyro_context"].call()
                if call is not None:
                    return param_site(
                        self._parameters, self._pyro_get_fullname(name), name, constraints.real, None, call
                    )
        elif isinstance(value, nn.Module):
            call = own["_pyro_context"].call()
            if call is not None:
                if not isinstance(value, PyroModule):
                    register_module(value, self._pyro_get_fullname(name), call)
                elif isinstance(value, _CONTAINERS):
                    _register_children(value, call)
        return value

    def _pyro_param(self, name: str, constraint: Constraint, event_dim: int | None) -> Any:
        call = self._pyro_context.call()
        if call is None:
            return Entry(self._parameters[name + SUFFIX], constraint).value()  # type: ignore[arg-type]
        return param_site(
            self._parameters, self._pyro_get_fullname(name), name + SUFFIX, constraint, event_dim, call
        )

    def _pyro_draw(self, name: str, prior: Any) -> Any:
        """The value of a `PyroSample`: drawn at its first use in a call."""
        call = self._pyro_context.call()
        fullname = self._pyro_get_fullname(name)
        if call is not None and fullname in call.drawn:
            return call.drawn[fullname]
        made = prior if hasattr(prior, "log_prob") else prior(self)
        is_value = isinstance(made, torch.Tensor)
        if call is None:
            return made if is_value else made()
        value = deterministic(fullname, made) if is_value else sample(fullname, made)
        call.drawn[fullname] = value
        return value

    # ---- changing

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, PyroParam):
            self._pyro_set_param(name, value)
            self._pyro_unshadow(name)
            return
        if isinstance(value, PyroSample):
            self._pyro_forget(name)
            self._pyro_unshadow(name)
            self._pyro_samples[name] = value.prior
            return
        own = self.__dict__
        if isinstance(value, nn.Parameter):
            if own["_parameters"].get(name) is not value:
                self._pyro_forget(name)
        elif isinstance(value, torch.Tensor) and name in own.get("_pyro_params", ()):
            self._pyro_assign(name, value)
            return
        elif name in own.get("_pyro_params", ()) or name in own.get("_pyro_samples", ()):
            self._pyro_forget(name)
        if isinstance(value, PyroModule):
            value._pyro_set_supermodule(self._pyro_get_fullname(name), self._pyro_context)
        super().__setattr__(name, value)

    def _pyro_set_param(self, name: str, spec: PyroParam) -> None:
        """Add a parameter, whatever other attribute of this name there is."""
        leaf = trainable(name, spec.init_value, spec.constraint)
        self._pyro_forget(name)
        self._pyro_params[name] = (spec.constraint, spec.event_dim)
        self._parameters[name + SUFFIX] = leaf

    def _pyro_unshadow(self, name: str) -> None:
        """Remove a plain attribute, buffer or module that would be found before `__getattr__` runs."""
        for space in (self.__dict__, self._buffers, self._modules):
            space.pop(name, None)

    def _pyro_assign(self, name: str, value: torch.Tensor) -> None:
        """Give a `PyroParam` a new value, in the leaf that optimisers hold if the shape is the same."""
        constraint, event_dim = self._pyro_params[name]
        new, leaf = make_leaf(name, value, constraint), self._parameters[name + SUFFIX]
        if leaf is not None and new.shape == leaf.shape and new.dtype == leaf.dtype:
            with torch.no_grad():
                leaf.copy_(new)
        else:
            setattr(self, name, PyroParam(value, constraint, event_dim))

    def __delattr__(self, name: str) -> None:
        if name in self._pyro_params or name in self._pyro_samples or name in self._parameters:
            self._pyro_forget(name)
        else:
            super().__delattr__(name)

    def _pyro_forget(self, name: str) -> None:
        """Remove the parameter or random variable of this name, also from the store."""
        self._pyro_samples.pop(name, None)
        key = name + SUFFIX if self._pyro_params.pop(name, None) is not None else name
        leaf = self._parameters.pop(key, None)
        if leaf is not None and self._pyro_context.used:
            fullname = self._pyro_get_fullname(name)
            if fullname in PARAM_STORE and PARAM_STORE[fullname].unconstrained() is leaf:  # type: ignore[attr-defined]
                del PARAM_STORE[fullname]

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = type(self).__bases__[0]
        if _PyroModuleMeta._mixins.get(base) is type(self):
            return _restore_mixin, (base,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled."""
        return self.__dict__.copy()


def _prepare(instance: PyroModule, name: str) -> None:
    """What a module needs before its first attribute is set."""
    instance.__dict__.update(_pyro_name=name, _pyro_context=Context(), _pyro_params={}, _pyro_samples={})


def _register_children(container: PyroModule, call: Call) -> None:
    for key, child in container._modules.items():
        if child is not None and not isinstance(child, PyroModule):
            register_module(child, container._pyro_get_fullname(key), call)


_ListBase: Any = PyroModule[nn.ModuleList]


class PyroModuleList(_ListBase):  # type: ignore[misc]
    """A list of modules that are parts of one tree."""

    def __init__(self, modules: Iterable[nn.Module] | None = None) -> None:
        super().__init__(modules)

    def __getitem__(self, index: int | slice) -> Any:
        """One module; or, for a slice, an ordinary list of modules, whose names stay what they are here."""
        if isinstance(index, slice):
            return nn.ModuleList([*self][index])
        one: nn.Module = super().__getitem__(index)
        return one


def pyro_method(fn: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """Decorate a method of a `PyroModule` that reads parameters or random variables, like `forward`."""

    @functools.wraps(fn)
    def method(self: M, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._pyro_context:
            return fn(self, *args, **kwargs)

    return method  # type: ignore[return-value]


def clear(mod: PyroModule) -> None:
    """Remove a module's parameters and children, and their parameters in the store. Priors stay.

    Raises:
        TypeError: `mod` is not a `PyroModule`.
    """
    if not isinstance(mod, PyroModule):
        raise TypeError(f"Expected a PyroModule, got {mod!r}")
    for name in list(mod._pyro_params):
        delattr(mod, name)
    for name in list(mod._parameters):
        delattr(mod, name)
    for name, child in list(mod._modules.items()):
        if isinstance(child, PyroModule):
            clear(child)
        elif child is not None:
            for key, _ in child.named_parameters():
                stored = param_with_module_name(mod._pyro_get_fullname(name), key)
                if stored in PARAM_STORE:
                    del PARAM_STORE[stored]
        delattr(mod, name)


def to_pyro_module_(m: nn.Module, recurse: bool = True) -> None:
    """Turn a module into a `PyroModule`, in place: its class becomes `PyroModule[type(m)]`.

    Args:
        recurse: do so with its descendants.

    Raises:
        TypeError: `m` is not an instance of `nn.Module`.
    """
    if not isinstance(m, nn.Module):
        raise TypeError(f"Expected an nn.Module instance but got a {type(m)}: {m!r}")
    if not isinstance(m, PyroModule):
        m.__class__ = PyroModule[type(m)]
        assert isinstance(m, PyroModule)
        _prepare(m, "")
        if isinstance(m, nn.RNNBase):
            m.__dict__.pop("_flat_weights", None)
    if recurse:
        for name, child in list(m._modules.items()):
            if child is not None:
                to_pyro_module_(child)
                setattr(m, name, child)
