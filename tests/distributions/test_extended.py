"""Binomials on all integers: impossible values have probability zero instead of an error."""

from __future__ import annotations

import math

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

from sumprod.distributions import BetaBinomial, Binomial, ExtendedBetaBinomial, ExtendedBinomial
from tests.distributions.family_checks import check_expansion

F64 = torch.float64
COUNT = torch.tensor([3, 0, -1, -4])
VALUES = torch.arange(-3.0, 6.0, dtype=F64)[:, None]


def parameters() -> dict[str, Tensor]:
    return {
        "probs": torch.tensor(0.3, dtype=F64, requires_grad=True),
        "logits": torch.tensor(-0.4, dtype=F64, requires_grad=True),
        "concentration1": torch.tensor(0.7, dtype=F64, requires_grad=True),
        "concentration0": torch.tensor(2.0, dtype=F64, requires_grad=True),
    }


@pytest.mark.parametrize("names", [("probs",), ("logits",), ("concentration1", "concentration0")])
def test_inside_as_the_plain_family_and_impossible_outside(names: tuple[str, ...]) -> None:
    given = {name: parameters()[name] for name in names}
    family, plain = (ExtendedBetaBinomial, BetaBinomial) if len(names) == 2 else (ExtendedBinomial, Binomial)
    law = family(total_count=COUNT, **given)
    log_prob = law.log_prob(VALUES)
    assert log_prob.shape == (9, 4)
    inside = (VALUES >= 0) & (VALUES <= COUNT)
    assert (log_prob[~inside] == -math.inf).all()
    assert inside.sum() == 5
    for column, count in enumerate((3, 0)):
        kept = VALUES[inside[:, column], 0]
        torch.testing.assert_close(
            log_prob[inside[:, column], column], plain(total_count=count, **given).log_prob(kept)
        )
    grads = torch.autograd.grad(
        torch.where(inside, log_prob, 0.0).sum(), list(given.values()), retain_graph=True
    )
    everything = torch.autograd.grad(log_prob[:, 1:].sum(), list(given.values()))
    for grad in grads:
        assert grad.isfinite().all()
        assert (grad != 0).all()
    for grad in everything:
        assert grad == 0  # a count of 0 says nothing, and neither do impossible values


def test_values_must_be_integers() -> None:
    with pytest.raises(ValueError, match=r"within the support \(Integer"):
        ExtendedBinomial(3, torch.tensor(0.3)).log_prob(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"within the support \(Integer"):
        ExtendedBetaBinomial(1.0, 1.0, 3).log_prob(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"Expected parameter total_count .*ExtendedBetaBinomial"):
        ExtendedBetaBinomial(1.0, 1.0, 2.5)  # type: ignore[arg-type]


def test_expansion_and_samples() -> None:
    count = torch.tensor([3.0, 5.0], dtype=F64)
    value = torch.tensor([2.0, 9.0], dtype=F64)
    a = torch.tensor([0.5, 1.5], dtype=F64)
    check_expansion(
        ExtendedBinomial, {"total_count": count, "probs": torch.tensor([0.5, 0.2], dtype=F64)}, value
    )
    check_expansion(
        ExtendedBetaBinomial, {"concentration1": a, "concentration0": a, "total_count": count}, value
    )
    law = ExtendedBinomial(COUNT, torch.tensor(0.9))
    draws = law.sample((100,))
    assert law.support.check(draws).all()
    assert (draws[:, 0] <= 3).all()
    assert (draws[:, 0] > 0).any()
    assert ExtendedBinomial(3, torch.tensor(0.3)).enumerate_support().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["ExtendedBinomial", "ExtendedBetaBinomial"])
def test_numbers_of_pyro(name: str) -> None:
    arguments = (COUNT, torch.tensor(0.3, dtype=F64)) if name == "ExtendedBinomial" else None
    if arguments is None:
        arguments = (torch.tensor(0.5, dtype=F64), torch.tensor(1.5, dtype=F64), COUNT.double())
    theirs = getattr(peer, name)(*arguments).log_prob(VALUES)
    torch.testing.assert_close(globals()[name](*arguments).log_prob(VALUES), theirs)
