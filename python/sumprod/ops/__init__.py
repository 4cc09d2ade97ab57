"""Operators: differentiable, compilable, exact about -inf.

Each is one native call. Inputs are log potentials; -inf is weight zero, and every result says so
exactly: a total of weight zero is -inf with zero gradient, never NaN.
"""

from sumprod.ops import packed, stats
from sumprod.ops.hmm_filter import hmm_filter
from sumprod.ops.hmm_log_normalizer import hmm_log_normalizer
from sumprod.ops.hmm_marginals import hmm_marginals
from sumprod.ops.hmm_pairwise import hmm_pairwise
from sumprod.ops.hmm_sample import hmm_sample
from sumprod.ops.hmm_viterbi import HMMViterbi, hmm_viterbi
from sumprod.ops.logmatmulexp import logmatmulexp
from sumprod.ops.logsumexp import logsumexp
from sumprod.ops.maxmatmul import MaxMatmul, maxmatmul
from sumprod.ops.normalize_weights import NormalizedWeights, normalize_weights

__all__ = [
    "HMMViterbi",
    "MaxMatmul",
    "NormalizedWeights",
    "hmm_filter",
    "hmm_log_normalizer",
    "hmm_marginals",
    "hmm_pairwise",
    "hmm_sample",
    "hmm_viterbi",
    "logmatmulexp",
    "logsumexp",
    "maxmatmul",
    "normalize_weights",
    "packed",
    "stats",
]
