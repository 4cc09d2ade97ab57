"""Parameters: the store, its naming scheme, and how constraints are written to files."""

from sumprod.params import param_store
from sumprod.params.constraint_codec import register_constraint
from sumprod.params.param_store import *  # noqa: F403

__all__ = ["register_constraint"]
__all__ += param_store.__all__
