"""Random plated factor graphs, small enough to enumerate."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

PLATES = "pqr"


@st.composite
def graphs(draw):
    """Factors over up to five variables and three plates, and the sizes of all dims."""
    variables = "abcde"[: draw(st.integers(1, 5))]
    sizes = {dim: draw(st.integers(1, 2)) for dim in variables + PLATES}
    dims = st.builds(
        lambda v, p: "".join(v) + "".join(p),
        st.lists(st.sampled_from(variables), max_size=3, unique=True),
        st.lists(st.sampled_from(PLATES), max_size=2, unique=True),
    )
    return draw(st.lists(dims, min_size=1, max_size=6)), sizes


def tables_for(factors, sizes, seed=0):
    """A table of standard normal log-weights per factor."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[sizes[dim] for dim in dims]) for dims in factors]
