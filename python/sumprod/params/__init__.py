"""Parameters: the store, its naming scheme, and how constraints are written to files."""

from sumprod.params.constraint_codec import register_constraint
from sumprod.params.param_store import (
    PARAM_STORE,
    ParamStoreDict,
    StateDict,
    clear_param_store,
    get_param_store,
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
    "register_constraint",
    "user_param_name",
]
