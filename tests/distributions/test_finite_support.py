"""FiniteSupport: any law over finitely many values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import FiniteSupport
from tests.distributions.family_checks import check_contract
from tests.goodness_of_fit import FAILURE_RATE, chi_square

F64 = torch.float64
VALUES = torch.tensor([-1.0, 0.0, 2.0, 2.0], dtype=F64)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)


def test_equal_values_add_their_weights() -> None:
    law = FiniteSupport(VALUES, WEIGHTS.log() + 5)
    log_prob = law.log_prob(torch.tensor([-1.0, 0.0, 2.0], dtype=F64))
    torch.testing.assert_close(log_prob.exp(), torch.tensor([0.1, 0.2, 0.7], dtype=F64))
    torch.testing.assert_close(law.probs, WEIGHTS)
    assert law.mean.item() == pytest.approx(1.3)
    assert law.variance.item() == pytest.approx(0.1 + 0.7 * 4 - 1.3**2)
    assert law.entropy().item() == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.2, 0.7)))
    assert law.mode.item() == 2


def test_other_values_are_impossible() -> None:
    law = FiniteSupport(VALUES, WEIGHTS.log(), validate_args=False)
    assert law.log_prob(torch.tensor(1.0)) == -math.inf
    with pytest.raises(ValueError, match=r"within the support \(OneOf"):
        FiniteSupport(VALUES, WEIGHTS.log()).log_prob(torch.tensor(1.0))


def test_weights_of_zero() -> None:
    logits = torch.tensor(
        [[0.0, -math.inf, 0.0, 0.0], [-math.inf, 1.0, -math.inf, -math.inf]], requires_grad=True
    )
    law = FiniteSupport(VALUES, logits)
    log_prob = law.log_prob(torch.tensor([[0.0], [2.0]], dtype=F64))
    assert log_prob.tolist() == [[-math.inf, 0.0], [pytest.approx(math.log(2 / 3)), -math.inf]]
    log_prob[1, 0].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits == -math.inf] == 0).all()
    assert law.entropy()[1] == 0
    assert (law.sample((50,))[:, 1] == 0).all()


SHAPES = st.sampled_from([(), (2,), (3, 1), (3, 2)])


@given(SHAPES, SHAPES, st.sampled_from([(), (2,), (2, 1)]), st.integers(1, 4), st.integers(0, 100))
def test_shapes_and_sums(
    of_values: tuple[int, ...], of_logits: tuple[int, ...], event: tuple[int, ...], n: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 3, (*of_values, n, *event), generator=generator)
    logits = torch.randn(*of_logits, n, generator=generator, dtype=F64)
    law = FiniteSupport(values, logits, event_dim=len(event))
    batch = torch.broadcast_shapes(of_values, of_logits)
    assert law.batch_shape == batch
    assert law.event_shape == event
    draws = law.sample((5,))
    assert draws.dtype == torch.int64
    assert draws.shape == (5, *batch, *event)
    assert law.log_prob(draws).isfinite().all()
    support = law.enumerate_support()
    assert support.shape == (n, *batch, *event)
    thin = law.enumerate_support(expand=False)
    assert thin.shape == (n, *(1,) * (len(batch) - len(of_values)), *of_values, *event)
    assert torch.equal(thin.expand(support.shape), support)
    # Each distinct value once: its probability is the sum over its copies.
    probs = law.log_prob(support).exp()
    copies = (support.unsqueeze(0) == support.unsqueeze(1)).reshape(n, n, *batch, -1).all(-1).sum(0)
    torch.testing.assert_close((probs / copies).sum(0), torch.ones(batch, dtype=F64))
    weights = law.probs.movedim(-1, 0).reshape(n, *batch, *(1 for _ in event))
    torch.testing.assert_close(law.mean, (weights * support).sum(0))
    assert law.mode.shape == (*batch, *event)


def test_samples() -> None:
    law = FiniteSupport(torch.tensor([[5, 6, 7], [1, 2, 3]]), torch.tensor([0.2, 0.3, 0.5]).log())
    draws = law.sample((20_000,))
    for i, first in enumerate((5, 1)):
        counts = torch.bincount(draws[:, i] - first, minlength=3).double().numpy()
        assert chi_square(counts, torch.tensor([0.2, 0.3, 0.5]).double().numpy()) > FAILURE_RATE


def make(values: Tensor, logits: Tensor, validate_args: bool | None = None) -> FiniteSupport:
    return FiniteSupport(values, logits, validate_args=validate_args)


def test_contract() -> None:
    def from_logits(logits: Tensor, validate_args: bool | None = None) -> FiniteSupport:
        return make(VALUES, logits, validate_args)

    check_contract(from_logits, {"logits": torch.randn(3, 4, dtype=F64)})
    wide = make(VALUES, WEIGHTS.log()).expand((7,))
    assert wide.values.data_ptr() == VALUES.data_ptr()


def test_the_support_of_a_binomial_reweighted() -> None:
    family = dist.Binomial(3, torch.tensor([0.2, 0.7], dtype=F64))
    values = family.enumerate_support(expand=False)
    law = FiniteSupport(values.reshape(-1), family.log_prob(values).T)
    torch.testing.assert_close(law.mean, family.mean)
    torch.testing.assert_close(law.variance, family.variance)
    torch.testing.assert_close(law.log_prob(values), family.log_prob(values))


@pytest.mark.parametrize(
    ("values", "logits", "event_dim"),
    [
        (torch.zeros(3), torch.zeros(4), 0),
        (torch.zeros(()), torch.zeros(1), 0),
        (torch.zeros(3), torch.zeros(3), 1),
        (torch.zeros(0), torch.zeros(0), 0),
        (torch.zeros(2, 3), torch.zeros(5, 3), 0),
    ],
)
def test_shape_errors(values: Tensor, logits: Tensor, event_dim: int) -> None:
    with pytest.raises(ValueError, match=r"FiniteSupport: values must have shape \[n, \*event\]"):
        FiniteSupport(values, logits, event_dim)


def test_type_errors() -> None:
    with pytest.raises(TypeError, match=r"values must be a torch.Tensor, got list"):
        FiniteSupport([1.0], torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch.int64"):
        FiniteSupport(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="parameter logits"):
        FiniteSupport(torch.zeros(2), torch.tensor([0.0, math.nan]))
