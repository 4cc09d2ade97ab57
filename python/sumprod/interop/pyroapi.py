"""Importing this module registers the backend `sumprod` with the package `pyroapi` (pip install pyro-api).

import sumprod.interop.pyroapi
from pyroapi import distributions as dist, infer, optim, pyro, pyro_backend

with pyro_backend("sumprod"):
    ...
"""

from __future__ import annotations

try:
    import pyroapi as _pyroapi  # type: ignore[import-untyped, import-not-found, unused-ignore]
except ImportError as error:
    raise ImportError("sumprod.interop.pyroapi needs the package pyroapi: pip install pyro-api") from error

BACKEND = {
    "distributions": "sumprod.distributions",
    "handlers": "sumprod.handlers",
    "infer": "sumprod.infer",
    "ops": "torch",
    "optim": "sumprod.optim",
    "pyro": "sumprod",
}

_pyroapi.register_backend("sumprod", BACKEND)
