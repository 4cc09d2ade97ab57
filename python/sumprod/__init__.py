"""Fast, exact inference over discrete latent variables for PyTorch.

Programs are written with `sample`, `param` and `plate`, as in Pyro: `import sumprod as pyro`.
Distributions are in `sumprod.distributions`, inference in `sumprod.infer`, optimisers in
`sumprod.optim`, effect handlers in `sumprod.handlers`, also called `sumprod.poutine`.

The operators are in `sumprod.ops`: log-space products, importance weights, and hidden Markov
models (log normaliser, filtering, smoothing, Viterbi, exact sampling) for ragged batches.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    from sumprod import _native, ops
    from sumprod.errors import SupportError
    from sumprod.ops import logsumexp
except ImportError as error:
    # `python -m sumprod.doctor` imports this package first: let it say what is wrong.
    from sumprod import doctor

    if doctor.requested():
        raise SystemExit(doctor.main(error)) from None
    raise

try:
    __version__ = version("sumprod")
except PackageNotFoundError:  # running from a build folder
    __version__ = _native.build_info()["version"]

from sumprod import _aliases, distributions, handlers, params, settings
from sumprod._random import set_rng_seed
from sumprod.primitives import (
    barrier,
    clear_param_store,
    condition,
    deterministic,
    do,
    enable_validation,
    factor,
    get_param_store,
    iarange,
    irange,
    markov,
    module,
    param,
    plate,
    plate_stack,
    random_module,
    sample,
    scan,
    subsample,
    validation_enabled,
    vectorized_markov,
)

if TYPE_CHECKING:
    from sumprod import compat, contrib, generic, infer, interop, nn, optim, poutine, util
    from sumprod.infer import explain

_aliases.install()

# Loaded when first used, so that `import sumprod` for the operators alone stays quick.
_LAZY = ("compat", "contrib", "generic", "infer", "interop", "nn", "optim", "poutine", "util")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"sumprod.{name}")
    if name == "explain":
        return import_module("sumprod.infer").explain
    raise AttributeError(f"module 'sumprod' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "explain"})


__all__ = [
    "SupportError",
    "__version__",
    "barrier",
    "clear_param_store",
    "compat",
    "condition",
    "contrib",
    "deterministic",
    "distributions",
    "do",
    "enable_validation",
    "explain",
    "factor",
    "generic",
    "get_param_store",
    "handlers",
    "iarange",
    "infer",
    "interop",
    "irange",
    "logsumexp",
    "markov",
    "module",
    "nn",
    "ops",
    "optim",
    "param",
    "params",
    "plate",
    "plate_stack",
    "poutine",
    "random_module",
    "sample",
    "scan",
    "set_rng_seed",
    "settings",
    "subsample",
    "util",
    "validation_enabled",
    "vectorized_markov",
]
