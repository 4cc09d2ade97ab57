"""Names of parameters that belong to a module: `module name + "$$$" + parameter name`."""

from __future__ import annotations

DIVIDER = "$$$"


def param_with_module_name(pyro_name: str, param_name: str) -> str:
    """The store's name of the parameter `param_name` of the module registered as `pyro_name`.

    >>> param_with_module_name("encoder", "fc.weight")
    'encoder$$$fc.weight'
    """
    return f"{pyro_name}{DIVIDER}{param_name}"


def module_from_param_with_module_name(param_name: str) -> str:
    """The module's part of a name in the store; the whole name when it has none."""
    return param_name.split(DIVIDER)[0]


def user_param_name(param_name: str) -> str:
    """The parameter's part of a name in the store; the whole name when it has no module's part."""
    return param_name.split(DIVIDER)[1] if DIVIDER in param_name else param_name


def normalize_param_name(name: str) -> str:
    """The dotted form of a name in the store.

    >>> normalize_param_name("encoder$$$fc.weight")
    'encoder.fc.weight'
    """
    return name.replace(DIVIDER, ".")
