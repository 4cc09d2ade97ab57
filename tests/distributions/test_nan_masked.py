"""Normals with missing data: NaN entries are marginalised."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

from sumprod.distributions import MultivariateNormal, NanMaskedMultivariateNormal, NanMaskedNormal, Normal
from tests.distributions.family_checks import check_contract

F64 = torch.float64
NAN = math.nan


def test_a_missing_number_counts_nothing() -> None:
    loc = torch.tensor([1.0, 2.0, 3.0], dtype=F64, requires_grad=True)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=F64, requires_grad=True)
    value = torch.tensor([NAN, 1.0, NAN], dtype=F64)
    log_prob = NanMaskedNormal(loc, scale).log_prob(value)
    assert log_prob[[0, 2]].tolist() == [0, 0]
    torch.testing.assert_close(log_prob[1], Normal(2.0, 2.0).log_prob(value[1]))
    log_prob.sum().backward()
    for leaf in (loc, scale):
        assert leaf.grad is not None
        assert (leaf.grad != 0).tolist() == [False, True, False]
    assert value.isnan().tolist() == [True, False, True]


def test_missing_entries_are_marginalised_exactly() -> None:
    factor = torch.randn(4, 4, dtype=F64)
    covariance = factor @ factor.T + torch.eye(4, dtype=F64)
    loc, full = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    values, expected = [], []
    for present in itertools.product([False, True], repeat=4):
        keep = torch.tensor(present)
        values.append(full.masked_fill(~keep, NAN))
        if keep.any():
            marginal = MultivariateNormal(loc[keep], covariance[keep][:, keep])
            expected.append(marginal.log_prob(full[keep]))
        else:
            expected.append(torch.zeros((), dtype=F64))
    dist = NanMaskedMultivariateNormal(loc, covariance)
    torch.testing.assert_close(dist.log_prob(torch.stack(values)), torch.stack(expected))
    alone = torch.stack([dist.log_prob(value) for value in values])
    torch.testing.assert_close(alone, torch.stack(expected))
    theirs = peer.NanMaskedMultivariateNormal(loc, covariance)
    torch.testing.assert_close(dist.log_prob(torch.stack(values)), theirs.log_prob(torch.stack(values)))


def test_gradients_of_partly_missing_vectors() -> None:
    value = torch.tensor([[0.5, NAN, -1.0], [NAN, NAN, 0.3], [NAN, NAN, NAN]], dtype=F64)

    def log_prob(loc: Tensor, factor: Tensor) -> Tensor:
        return NanMaskedMultivariateNormal(
            loc, scale_tril=factor.tril() + 2 * torch.eye(3, dtype=F64)
        ).log_prob(value)

    inputs = [torch.randn(3, dtype=F64, requires_grad=True), torch.randn(3, 3, dtype=F64, requires_grad=True)]
    assert torch.autograd.gradcheck(log_prob, inputs)
    grads = torch.autograd.grad(log_prob(*inputs)[2], inputs)
    assert all((grad == 0).all() for grad in grads)


def test_contracts() -> None:
    loc = torch.tensor([0.5, -1.0], dtype=F64)
    value = torch.tensor([NAN, 1.0], dtype=F64)
    check_contract(NanMaskedNormal, {"loc": loc, "scale": torch.tensor(2.0, dtype=F64)})
    check_contract(NanMaskedNormal, {"loc": loc, "scale": torch.tensor(2.0, dtype=F64)}, value)
    factor = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=F64)
    check_contract(NanMaskedMultivariateNormal, {"loc": loc.expand(3, 2), "scale_tril": factor})
    check_contract(NanMaskedMultivariateNormal, {"loc": loc.expand(3, 2), "scale_tril": factor}, value)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        NanMaskedMultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(torch.tensor([NAN, 1.0, 2.0]))
