"""Random chains: steps that run at once, against the loop over them."""

import torch
from hypothesis import given, settings

from tests.infer.random_chains import chains
from tests.infer.vectorized_programs import at_once, one_by_one
from tests.infer.vectorized_runs import assert_alike, best_score, derivatives, marginals


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains())
def test_as_the_loop(case):
    torch.testing.assert_close(
        derivatives(case, at_once), derivatives(case, one_by_one), rtol=1e-9, atol=1e-10
    )
    assert_alike(marginals(case, at_once), marginals(case, one_by_one))
    torch.testing.assert_close(
        best_score(case, at_once), best_score(case, one_by_one), rtol=1e-10, atol=1e-10
    )
