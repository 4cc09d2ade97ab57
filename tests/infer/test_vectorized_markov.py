"""Chains whose steps run at once have the numbers of the loop over them."""

import pytest
import torch

import sumprod
from sumprod.infer import _enum_hmm
from tests.infer import vectorized_plates
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


@pytest.mark.parametrize("lengths", [[4, 1, 3], [0, 2, 4]], ids=str)
@pytest.mark.parametrize("name", ["ragged_sequences", "only_the_data_are_masked", "tones"])
def test_steps_past_the_end_of_sequences_are_left_out(name, lengths, monkeypatch):
    """As they are of large batches."""
    case, found, lengths_of = CASES[name], [], _enum_hmm._lengths

    def recorded(*args):
        found.append(lengths_of(*args))
        return found[-1]

    monkeypatch.setattr(_enum_hmm, "WORTH_LENGTHS", 0)
    monkeypatch.setattr(_enum_hmm, "_lengths", recorded)
    monkeypatch.setattr(vectorized_plates, "LENGTHS", torch.tensor(lengths))
    vectorized = derivatives(case, at_once)
    assert found[0].tolist() == [max(1, length) for length in lengths]
    torch.testing.assert_close(vectorized, derivatives(case, one_by_one), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["coupled_states", "second_order", "factorial"])
def test_too_many_combinations_are_eliminated_step_by_step(name, monkeypatch):
    case = CASES[name]
    monkeypatch.setattr(_enum_hmm, "MOST_COMBINED", 1)
    report = sumprod.explain(case.model(at_once), lambda: None)
    assert "combinations, more than 1" in str(report)
    torch.testing.assert_close(
        derivatives(case, at_once), derivatives(case, one_by_one), rtol=1e-10, atol=1e-11
    )
    assert_alike(marginals(case, at_once), marginals(case, one_by_one))
