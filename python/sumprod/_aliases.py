"""Module paths of Pyro that lead to modules of ours, and clear errors for what is out of scope.

An alias is the same module object under a second name, so that classes are the same objects under every path:
`sumprod.poutine.trace_messenger` is `sumprod.handlers.trace`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["AliasFinder", "install"]

# Alias to target. What is not listed below an aliased package leads to the same name below its target.
ALIASES: dict[str, str] = {
    "sumprod.poutine": "sumprod.handlers",
    "sumprod.poutine.block_messenger": "sumprod.handlers.block",
    "sumprod.poutine.broadcast_messenger": "sumprod.handlers.broadcast",
    "sumprod.poutine.condition_messenger": "sumprod.handlers.condition",
    "sumprod.poutine.do_messenger": "sumprod.handlers.do",
    "sumprod.poutine.enum_messenger": "sumprod.handlers.enumerate",
    "sumprod.poutine.escape_messenger": "sumprod.handlers.escape",
    "sumprod.poutine.handlers": "sumprod.handlers",
    "sumprod.poutine.indep_messenger": "sumprod.handlers.plate",
    "sumprod.poutine.infer_config_messenger": "sumprod.handlers.infer_config",
    "sumprod.poutine.lift_messenger": "sumprod.handlers.lift",
    "sumprod.poutine.markov_messenger": "sumprod.handlers.markov",
    "sumprod.poutine.mask_messenger": "sumprod.handlers.mask",
    "sumprod.poutine.plate_messenger": "sumprod.handlers.plate",
    "sumprod.poutine.replay_messenger": "sumprod.handlers.replay",
    "sumprod.poutine.runtime": "sumprod.runtime",
    "sumprod.poutine.scale_messenger": "sumprod.handlers.scale",
    "sumprod.poutine.seed_messenger": "sumprod.handlers.seed",
    "sumprod.poutine.subsample_messenger": "sumprod.handlers.plate",
    "sumprod.poutine.substitute_messenger": "sumprod.handlers.substitute",
    "sumprod.poutine.trace_messenger": "sumprod.handlers.trace",
    "sumprod.poutine.uncondition_messenger": "sumprod.handlers.uncondition",
    "sumprod.contrib.indexing": "sumprod.ops.indexing",
    "sumprod.distributions.nanmasked": "sumprod.distributions.nan_masked",
    "sumprod.infer.autoguide.guides": "sumprod.infer.autoguide",
}

_SEE_PYRO = "use it from the package pyro-ppl, which can be installed beside sumprod"

# Packages of Pyro that are out of scope, with one sentence on what to do.
OUT_OF_SCOPE: dict[str, str] = {
    "sumprod.contrib.autoname": "sumprod does not name sites by itself; give each `sample` a name",
    "sumprod.contrib.easyguide": "write the guide as a function, or use sumprod.infer.autoguide",
    "sumprod.contrib.examples": "it loads the data of Pyro's examples; load data with the library you prefer",
    "sumprod.contrib.funsor": (
        "enumeration needs no funsor here; `vectorized_markov` is sumprod.vectorized_markov, under"
        " TraceEnum_ELBO and infer_discrete"
    ),
    "sumprod.contrib.minipyro": "read sumprod.primitives, sumprod.runtime and sumprod.handlers instead",
    **{
        f"sumprod.contrib.{name}": _SEE_PYRO
        for name in (
            *("bnn", "cevae", "conjugate", "epidemiology", "forecast", "gp", "mue", "oed", "randomvariable"),
            *("timeseries", "tracking", "util", "zuko"),
        )
    },
}


class AliasFinder(MetaPathFinder):
    """Finds modules below `package` that `aliases` maps to others, and refuses those in `refused`."""

    def __init__(self, package: str, aliases: dict[str, str], refused: dict[str, str]) -> None:
        self._prefix = package + "."
        self._aliases = aliases
        self._refused = refused

    def target(self, name: str) -> str | None:
        """The real name of the module `name`; None when it is not an alias."""
        exact = self._aliases.get(name)
        if exact is not None:
            return exact
        parent, _, child = name.rpartition(".")
        while parent:
            base = self._aliases.get(parent)
            if base is not None:
                return f"{base}.{child}"
            parent, _, left = parent.rpartition(".")
            child = f"{left}.{child}"
        return None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an alias. Raises ImportError for what is out of scope."""
        if not fullname.startswith(self._prefix):
            return None
        refusal = self._refused.get(fullname)
        if refusal is not None:
            raise ImportError(f"{fullname} is not part of sumprod: {refusal}", name=fullname)
        real = self.target(fullname)
        return None if real is None else alias_spec(fullname, real)


def alias_spec(name: str, real: str) -> ModuleSpec:
    """A specification that makes `name` the module `real`. ModuleNotFoundError when that is missing."""
    try:
        module = importlib.import_module(real)
    except ModuleNotFoundError as error:
        if error.name == real:
            # Blame the name that was asked for.
            raise ModuleNotFoundError(f"No module named {name!r}", name=name) from None
        raise
    is_package = hasattr(module, "__path__")
    return ModuleSpec(name, _AliasLoader(module), origin=real, is_package=is_package)


class _AliasLoader(Loader):
    """Hands out a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just described the module by its alias.
        module.__spec__ = self._spec


_FINDER = AliasFinder("sumprod", ALIASES, OUT_OF_SCOPE)


def install() -> None:
    """Makes the aliases importable. Those of loaded modules are entered at once. May be called again."""
    for name, module in _loaded().items():
        sys.modules.setdefault(name, module)
        parent, _, child = name.rpartition(".")
        # The name of a handler stays the function, not the module that defines it.
        if parent in sys.modules and child not in vars(sys.modules[parent]):
            setattr(sys.modules[parent], child, module)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _loaded() -> dict[str, ModuleType]:
    """The aliases of loaded modules, parents first, and all other loaded modules below `sumprod.handlers`."""
    found = {alias: sys.modules[real] for alias, real in ALIASES.items() if real in sys.modules}
    for name, module in list(sys.modules.items()):
        if name.startswith("sumprod.handlers."):
            found.setdefault(name.replace("sumprod.handlers", "sumprod.poutine", 1), module)
    return found
