"""Beta-binomial, Dirichlet-multinomial and Gamma-Poisson against exact rational numbers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pyro.distributions as peer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sumprod.distributions import BetaBinomial, DirichletMultinomial, GammaPoisson, NegativeBinomial, Poisson
from tests.distributions.family_checks import assert_counts_follow, check_contract
from tests.goodness_of_fit import FAILURE_RATE, chi_square


def rising(a: Fraction, k: int) -> Fraction:
    """a (a + 1) ... (a + k - 1)."""
    return math.prod((a + i for i in range(k)), start=Fraction(1))


def slope(a: float, k: int) -> float:
    """d log rising / da."""
    return math.fsum(1 / (a + i) for i in range(k))


def log(x: Fraction) -> float:
    return math.log(x.numerator) - math.log(x.denominator)


def beta_binomial(a: float, b: float, n: int, k: int) -> float:
    a, b = Fraction(a), Fraction(b)  # type: ignore[assignment]
    return log(math.comb(n, k) * rising(a, k) * rising(b, n - k) / rising(a + b, n))  # type: ignore[arg-type, operator]


CONCENTRATIONS = st.sampled_from([2.0**-20, 0.25, 0.5, 1.0, 3.0, 40.5, 2.0**14, 2.0**20, 2.0**30, 2.0**60])


@given(
    CONCENTRATIONS,
    CONCENTRATIONS,
    st.integers(0, 12),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_beta_binomial_is_exact(a: float, b: float, n: int, data: st.DataObject, dtype: torch.dtype) -> None:
    k = data.draw(st.integers(0, n))
    concentration = torch.tensor([a, b], dtype=dtype, requires_grad=True)
    log_prob = BetaBinomial(concentration[0], concentration[1], n).log_prob(torch.tensor(k, dtype=dtype))
    eps = 50 * torch.finfo(dtype).eps
    expected = beta_binomial(a, b, n, k)
    size = k * abs(math.log(a)) + (n - k) * abs(math.log(b)) + n * abs(math.log(a + b))
    assert log_prob.item() == pytest.approx(expected, rel=eps, abs=1e-14 * (1 + size) + eps)
    log_prob.backward()
    assert concentration.grad is not None
    wanted = [slope(a, k) - slope(a + b, n), slope(b, n - k) - slope(a + b, n)]
    largest = max(slope(a, k), slope(b, n - k), slope(a + b, n))
    assert concentration.grad.tolist() == pytest.approx(wanted, rel=eps, abs=1e-9 * largest + 1e-30)


def test_beta_binomial_sums_to_one_and_has_its_moments() -> None:
    a = torch.tensor([[0.3, 2.0], [7.0, 1.0]], dtype=torch.float64)
    dist = BetaBinomial(a, 2 * a.T, 9)
    support = dist.enumerate_support()
    assert support.shape == (10, 2, 2)
    assert dist.enumerate_support(expand=False).shape == (10, 1, 1)
    probs = dist.log_prob(support).exp()
    torch.testing.assert_close(probs.sum(0), torch.ones_like(a))
    mean = (probs * support).sum(0)
    torch.testing.assert_close(dist.mean, mean)
    torch.testing.assert_close(dist.variance, (probs * (support - mean) ** 2).sum(0))


def test_beta_binomial_samples() -> None:
    dist = BetaBinomial(torch.tensor([0.5, 3.0]), torch.tensor([0.7, 1.0]), torch.tensor([4, 6]))
    draws = dist.sample((20_000,))
    for i, n in enumerate((4, 6)):
        alone = BetaBinomial(dist.concentration1[i], dist.concentration0[i], n)
        assert_counts_follow(draws[:, i], alone.log_prob(alone.enumerate_support()).exp())


def test_beta_binomial_does_not_round_its_concentrations_to_integer_counts() -> None:
    dist = BetaBinomial(0.5, 1.5, torch.tensor([3, 4]))
    assert dist.concentration1.tolist() == [0.5, 0.5]
    expected = [beta_binomial(0.5, 1.5, n, 2) for n in (3, 4)]
    assert dist.log_prob(torch.tensor(2.0)).tolist() == pytest.approx(expected, rel=1e-6)
    assert dist.expand((3, 2)).total_count.shape == (3, 2)


def test_beta_binomial_refuses_mixed_counts_and_bad_parameters() -> None:
    with pytest.raises(
        NotImplementedError, match="Inhomogeneous total count not supported by `enumerate_support`"
    ):
        BetaBinomial(1.0, 1.0, torch.tensor([3, 4])).enumerate_support()
    for name, arguments in [
        ("concentration1", (-1.0, 1.0, 2)),
        ("concentration0", (1.0, 0.0, 2)),
        ("total_count", (1.0, 1.0, -2)),
    ]:
        with pytest.raises(ValueError, match=f"Expected parameter {name} .*BetaBinomial"):
            BetaBinomial(*arguments)
    with pytest.raises(ValueError, match=r"within the support \(IntegerInterval"):
        BetaBinomial(1.0, 1.0, 4).log_prob(torch.tensor(5.0))
    with pytest.raises(ValueError, match="shape mismatch"):
        BetaBinomial(torch.ones(2), torch.ones(2), torch.tensor([3, 4, 5]))


def dirichlet_multinomial(a: list[float], counts: tuple[int, ...]) -> float:
    parts = [Fraction(x) for x in a]
    ways = Fraction(math.factorial(sum(counts)), math.prod(math.factorial(k) for k in counts))
    return log(ways * math.prod(map(rising, parts, counts)) / rising(sum(parts), sum(counts)))  # type: ignore[arg-type]


@given(
    st.lists(CONCENTRATIONS, min_size=1, max_size=5),
    st.data(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_dirichlet_multinomial_is_exact(
    a: list[float], data: st.DataObject, sparse: bool, dtype: torch.dtype
) -> None:
    counts = tuple(data.draw(st.integers(0, 5)) for _ in a)
    dist = DirichletMultinomial(torch.tensor(a, dtype=dtype), sum(counts), is_sparse=sparse)
    size = sum(k * abs(math.log(x)) for k, x in zip(counts, a, strict=True)) + sum(counts) * abs(
        math.log(sum(a))
    )
    tol = 50 * torch.finfo(dtype).eps
    actual = dist.log_prob(torch.tensor(counts, dtype=dtype)).item()
    expected = dirichlet_multinomial(a, counts)
    assert actual == pytest.approx(expected, rel=tol, abs=1e-14 * (1 + size) + tol)


def test_sparse_counts_have_the_same_gradients() -> None:
    concentration = torch.rand(3, 6, dtype=torch.float64) + 0.1
    value = torch.tensor([[0.0, 2, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.float64)
    grads = []
    for sparse in (False, True):
        leaf = concentration.clone().requires_grad_()
        DirichletMultinomial(leaf, 6, is_sparse=sparse).log_prob(value).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1])


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    return [c for c in itertools.product(range(total + 1), repeat=parts) if sum(c) == total]


def test_dirichlet_multinomial_samples_and_moments_with_mixed_counts() -> None:
    concentration = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for counts in (torch.tensor([2, 4]), torch.tensor([3, 3])):
        dist = DirichletMultinomial(concentration, counts)
        assert dist.batch_shape == (2,)
        draws = dist.sample((20_000,))
        assert (draws.sum(-1) == counts).all()
        for i, n in enumerate(counts.tolist()):
            values = torch.tensor(compositions(n, 3), dtype=torch.float64)
            probs = DirichletMultinomial(concentration, n).log_prob(values).exp()
            assert probs.sum().item() == pytest.approx(1)
            observed = (draws[:, i, None] == values).all(-1).double().sum(0)
            assert chi_square(observed.numpy(), probs.numpy()) > FAILURE_RATE
            mean = (probs[:, None] * values).sum(0)
            torch.testing.assert_close(dist.mean[i], mean)
            torch.testing.assert_close(dist.variance[i], (probs[:, None] * (values - mean) ** 2).sum(0))


def test_dirichlet_multinomial_errors() -> None:
    with pytest.raises(ValueError, match=r"concentration must have shape \[\*B, K\], got \[\]"):
        DirichletMultinomial(torch.tensor(1.0), 2)
    with pytest.raises(ValueError, match=r"Expected parameter concentration .*DirichletMultinomial"):
        DirichletMultinomial(torch.tensor([1.0, -1.0]), 2)
    with pytest.raises(ValueError, match="within the support"):
        DirichletMultinomial(torch.ones(3), 5).log_prob(torch.tensor([1.0, 1.0, 8.0]))


@given(st.integers(1, 6), CONCENTRATIONS, st.integers(0, 12), st.sampled_from([torch.float32, torch.float64]))
def test_gamma_poisson_is_exact(a: int, rate: float, k: int, dtype: torch.dtype) -> None:
    r = Fraction(rate)
    expected = log(rising(Fraction(a), k) / math.factorial(k) * (r / (1 + r)) ** a / (1 + r) ** k)
    dist = GammaPoisson(torch.tensor(float(a), dtype=dtype), torch.tensor(rate, dtype=dtype))
    tol = 50 * torch.finfo(dtype).eps
    assert dist.log_prob(torch.tensor(k, dtype=dtype)).item() == pytest.approx(expected, rel=tol, abs=tol)


def test_gamma_poisson_is_a_negative_binomial_and_tends_to_a_poisson() -> None:
    concentration, rate = torch.tensor([0.4, 2.5]).double(), torch.tensor([0.3, 4.0]).double()
    k = torch.arange(30.0).double()[:, None]
    other = NegativeBinomial(concentration, probs=1 / (1 + rate))
    dist = GammaPoisson(concentration, rate)
    torch.testing.assert_close(dist.log_prob(k), other.log_prob(k))
    torch.testing.assert_close(dist.mean, other.mean)
    torch.testing.assert_close(dist.variance, other.variance)
    for dtype in (torch.float32, torch.float64):
        large = GammaPoisson(torch.tensor(3e12, dtype=dtype), torch.tensor(1e12, dtype=dtype))
        torch.testing.assert_close(large.log_prob(k.to(dtype)), Poisson(3.0).log_prob(k.to(dtype)))
    draws = GammaPoisson(concentration[1], rate[1]).sample((20_000,))
    assert_counts_follow(draws, dist.log_prob(k).exp()[:, 1])


def test_contracts() -> None:
    two = torch.tensor([0.7, 3.0], dtype=torch.float64)
    check_contract(
        BetaBinomial,
        {"concentration1": two, "concentration0": two.flip(0), "total_count": torch.tensor([3, 5])},
    )
    check_contract(
        DirichletMultinomial, {"concentration": two.expand(3, 2).clone(), "total_count": torch.tensor(4)}
    )
    check_contract(GammaPoisson, {"concentration": two, "rate": two.flip(0)})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BetaBinomial", (torch.tensor([1.0, 2.0]), torch.tensor(3.0), torch.tensor([4.0, 7.0]))),
        (
            "DirichletMultinomial",
            (torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 9.0]]), torch.tensor([5.0, 5.0])),
        ),
        ("GammaPoisson", (torch.tensor([1.0, 2.0]), torch.tensor(3.0))),
    ],
)
def test_streams_and_numbers_of_pyro(name: str, arguments: tuple[torch.Tensor, ...]) -> None:
    ours, theirs = globals()[name](*arguments), getattr(peer, name)(*arguments)
    torch.manual_seed(0)
    draws = ours.sample((200,))
    torch.manual_seed(0)
    assert torch.equal(draws, theirs.sample((200,)))
    torch.testing.assert_close(ours.log_prob(draws), theirs.log_prob(draws), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
