"""Chains whose steps run at once have the numbers of the loop over them."""

import pytest
import torch

from tests.infer.vectorized_plates import CASES
from tests.infer.vectorized_programs import at_once, one_by_one
from tests.infer.vectorized_runs import assert_alike, best_score, derivatives, marginals

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
def test_loss_and_derivatives(case):
    torch.testing.assert_close(
        derivatives(case, at_once), derivatives(case, one_by_one), rtol=1e-10, atol=1e-11
    )


@EACH
def test_marginals(case):
    assert_alike(marginals(case, at_once), marginals(case, one_by_one))


@EACH
def test_most_probable_assignment(case):
    torch.testing.assert_close(
        best_score(case, at_once), best_score(case, one_by_one), rtol=1e-12, atol=1e-12
    )
