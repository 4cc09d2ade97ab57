"""Fast, exact inference over discrete latent variables for PyTorch.

The operators are in `sumprod.ops`: log-space products, importance weights, and hidden Markov
models (log normaliser, filtering, smoothing, Viterbi, exact sampling) for ragged batches.
"""

from importlib.metadata import PackageNotFoundError, version

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

__all__ = ["SupportError", "__version__", "logsumexp", "ops"]
