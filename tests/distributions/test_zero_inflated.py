"""Zero-inflated distributions: the mixture formula, exact at both ends of the gate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as peer
import pytest
import torch
from torch import Tensor

import sumprod.distributions as dist
from sumprod.distributions import ZeroInflatedDistribution, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from tests.distributions.family_checks import assert_counts_follow, check_contract

F64 = torch.float64


def mixture(base: Tensor, gate: float, k: Tensor) -> Tensor:
    return ((k == 0) * gate + (1 - gate) * base.exp()).log()


@pytest.mark.parametrize("gate", [0.0, 1e-12, 0.3, 1 - 1e-12, 1.0])
def test_log_prob_is_the_mixture(gate: float) -> None:
    k = torch.arange(12.0, dtype=F64)
    base = dist.Poisson(torch.tensor(2.5, dtype=F64))
    expected = mixture(base.log_prob(k), gate, k)
    by_gate = ZeroInflatedPoisson(torch.tensor(2.5, dtype=F64), gate=torch.tensor(gate, dtype=F64))
    torch.testing.assert_close(by_gate.log_prob(k), expected)
    logits = torch.tensor(gate, dtype=F64).logit()
    by_logits = ZeroInflatedPoisson(torch.tensor(2.5, dtype=F64), gate_logits=logits)
    torch.testing.assert_close(by_logits.log_prob(k), expected, rtol=1e-5, atol=1e-9)
    assert by_gate.log_prob(torch.arange(60.0, dtype=F64)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("gate", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("rate", [0.1, 30.0, 700.0])
def test_the_gradient_at_zero_is_exact_everywhere(gate: float, rate: float) -> None:
    """log(g + (1-g) p) has slope (1-p) / (g + (1-g) p) in g and -(1-g) p / (...) in the rate."""
    g = torch.tensor(gate, dtype=F64, requires_grad=True)
    r = torch.tensor(rate, dtype=F64, requires_grad=True)
    log_prob = ZeroInflatedPoisson(r, gate=g).log_prob(torch.tensor(0.0, dtype=F64))
    log_prob.backward()
    p = math.exp(-rate)
    total = gate + (1 - gate) * p
    assert log_prob.item() == pytest.approx(math.log(total) if total else -math.inf, rel=1e-12, abs=1e-15)
    assert g.grad is not None
    assert r.grad is not None
    if rate < 600:  # beyond, exp(rate) comes close to the largest number
        assert g.grad.item() == pytest.approx((1 - p) / total, rel=1e-9)
    assert r.grad.item() == pytest.approx(-(1 - gate) * p / total, rel=1e-9, abs=1e-15)


def test_gradients_are_finite_in_float32_at_the_ends_of_the_gate() -> None:
    gate = torch.tensor([0.0, 0.0, 1.0, 0.5], requires_grad=True)
    rate = torch.tensor([3.0, 200.0, 200.0, 1e6], requires_grad=True)
    log_prob = ZeroInflatedPoisson(rate, gate=gate).log_prob(torch.zeros(4))
    assert log_prob.tolist() == pytest.approx([-3.0, -200.0, 0.0, math.log(0.5)])
    log_prob.sum().backward()
    for leaf in (gate, rate):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    logits = torch.tensor([-math.inf, math.inf, 0.0], requires_grad=True)
    log_prob = ZeroInflatedPoisson(torch.tensor(3.0), gate_logits=logits).log_prob(torch.zeros(3))
    assert log_prob.tolist() == pytest.approx([-3.0, 0.0, math.log(0.5 + 0.5 * math.exp(-3))])
    log_prob.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("parameter", ["gate", "gate_logits"])
def test_derivatives(parameter: str) -> None:
    k = torch.tensor([0.0, 0.0, 2.0], dtype=F64)

    def log_prob(gate: Tensor, rate: Tensor) -> Tensor:
        return ZeroInflatedPoisson(rate, **{parameter: gate}).log_prob(k)  # type: ignore[arg-type]

    inputs = [torch.tensor([0.2, 0.9, 0.5], dtype=F64), torch.tensor([0.5, 4.0, 2.0], dtype=F64)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def make_negative_binomial(**parameters: object) -> ZeroInflatedNegativeBinomial:
    return ZeroInflatedNegativeBinomial(**parameters)  # type: ignore[arg-type]


def make_binomial(
    count: Tensor, probs: Tensor, gate: Tensor, validate_args: bool | None = None
) -> ZeroInflatedDistribution:
    return ZeroInflatedDistribution(dist.Binomial(count, probs), gate=gate, validate_args=validate_args)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (ZeroInflatedPoisson, {"rate": torch.tensor([1.0, 5.0]), "gate": torch.tensor([0.2, 0.7])}),
        (ZeroInflatedPoisson, {"rate": torch.tensor([1.0, 5.0]), "gate_logits": torch.tensor(-0.3)}),
        (
            make_negative_binomial,
            {"total_count": torch.tensor([1.0, 5.0]), "probs": torch.tensor(0.3), "gate": torch.tensor(0.2)},
        ),
        (
            make_negative_binomial,
            {
                "total_count": torch.tensor(4.0),
                "logits": torch.tensor([[0.3], [-1.0]]),
                "gate": torch.tensor(0.2),
            },
        ),
        (
            make_binomial,
            {"count": torch.tensor([5.0, 2.0]), "probs": torch.tensor(0.4), "gate": torch.tensor(0.2)},
        ),
    ],
)
def test_contract(make: Callable[..., ZeroInflatedDistribution], parameters: dict[str, Tensor]) -> None:
    parameters = {name: p.double() for name, p in parameters.items()}
    check_contract(make, parameters)
    plain = make(**parameters)
    k = torch.arange(200.0, dtype=F64).reshape(-1, *(1 for _ in plain.batch_shape))
    if make is make_binomial:
        k = k[:3]
        plain = make(**{**parameters, "count": torch.tensor([2.0, 2.0], dtype=F64)})
    probs = plain.log_prob(k).exp()
    mean = (probs * k).sum(0)
    torch.testing.assert_close(plain.mean, mean)
    torch.testing.assert_close(plain.variance, (probs * (k - mean) ** 2).sum(0))
    draws = plain.sample((10_000,)).reshape(10_000, -1)
    for i, known in enumerate(probs.reshape(len(k), -1).T):
        assert_counts_follow(draws[:, i], known)


def test_one_gate_exactly() -> None:
    for given in ({}, {"gate": 0.1, "gate_logits": 0.2}):
        with pytest.raises(
            ValueError, match=r"Either `gate` or `gate_logits` must be specified, but not both\."
        ):
            ZeroInflatedPoisson(torch.tensor(1.0), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected empty base_dist.event_shape but got"):
        ZeroInflatedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), gate=0.1)


def test_parameters_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match=r"Expected parameter gate .*ZeroInflatedPoisson"):
        ZeroInflatedPoisson(1.0, gate=1.2)
    with pytest.raises(ValueError, match=r"Expected parameter rate .*ZeroInflatedPoisson"):
        ZeroInflatedPoisson(-1.0, gate=0.2)
    with pytest.raises(ValueError, match=r"Expected parameter probs .*ZeroInflatedNegativeBinomial"):
        ZeroInflatedNegativeBinomial(2.0, probs=torch.tensor(1.5), gate=0.2)
    with pytest.raises(ValueError, match="within the support"):
        ZeroInflatedPoisson(1.0, gate=0.2).log_prob(torch.tensor(-1.0))


def test_gates_are_derived_from_one_another() -> None:
    both = ZeroInflatedPoisson(1.0, gate=torch.tensor(0.3))
    assert both.gate_logits.item() == pytest.approx(math.log(0.3 / 0.7))
    assert both.expand((2,)).gate.tolist() == pytest.approx([0.3, 0.3])  # reading the logits changes nothing
    other = ZeroInflatedPoisson(1.0, gate_logits=torch.tensor(0.3))
    assert other.gate.item() == pytest.approx(1 / (1 + math.exp(-0.3)))
    assert other.expand((2,)).gate_logits.tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("ZeroInflatedPoisson", (torch.tensor([1.0, 2.0]),), {"gate": torch.tensor(0.3)}),
        ("ZeroInflatedPoisson", (torch.tensor([1.0, 2.0]),), {"gate_logits": torch.tensor([[0.3], [-4.0]])}),
        (
            "ZeroInflatedNegativeBinomial",
            (torch.tensor([1.0, 2.0]),),
            {"probs": torch.tensor(0.6), "gate": torch.tensor(0.3)},
        ),
        (
            "ZeroInflatedNegativeBinomial",
            (torch.tensor([1.0, 2.0]),),
            {"logits": torch.tensor(0.6), "gate_logits": torch.tensor(0.3)},
        ),
    ],
)
def test_streams_and_numbers_of_pyro(
    name: str, arguments: tuple[Tensor, ...], options: dict[str, Tensor]
) -> None:
    ours, theirs = getattr(dist, name)(*arguments, **options), getattr(peer, name)(*arguments, **options)
    torch.manual_seed(0)
    draws = ours.sample((200,))
    torch.manual_seed(0)
    assert torch.equal(draws, theirs.sample((200,)))
    torch.testing.assert_close(ours.log_prob(draws), theirs.log_prob(draws))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
