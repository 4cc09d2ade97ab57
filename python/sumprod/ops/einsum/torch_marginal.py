"""Logs of weights; log-marginals flow back."""

from sumprod.ops.einsum._backend import Backend

__all__ = ["einsum", "tensordot", "transpose"]

_BACKEND = Backend(__name__)
einsum, tensordot, transpose = _BACKEND.einsum, _BACKEND.tensordot, _BACKEND.transpose
