"""Weights of costs: enumerated, sampled, in plates."""

import math

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.infer._dice import Dice, Factor, compute_site_dice_factor, expectation
from sumprod.infer._enum_sites import Term

NONE: frozenset[str] = frozenset()
PLATE = frozenset({"p"})


def test_costs_without_factors_are_added_up():
    costs = [Term(NONE, (), torch.tensor(float(i))) for i in range(5)]
    costs.append(Term(PLATE, ("p",), torch.tensor([10.0, 20.0])))
    assert expectation([], costs).item() == 40.0
    assert expectation([], []) == 0.0


def test_parallel_enumeration_is_an_average():
    q = torch.tensor([0.2, 0.8])
    cost = torch.tensor([3.0, 5.0])
    factor = Factor(NONE, (0,), q.log(), normalized=0)
    assert expectation([factor], [Term(NONE, (0,), cost)]).item() == pytest.approx(4.6)
    # A cost that does not depend on the variable counts once.
    assert expectation([factor], [Term(NONE, (), torch.tensor(7.0))]).item() == 7.0


def test_marginal_of_a_chain():
    """The cost depends on the last of three variables only; all plates' slices differ."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, generator=generator, dtype=torch.float64).log_softmax(-1)
    b = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64).log_softmax(-1)  # plate, a, b
    c = torch.randn(4, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    cost = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    factors = [
        Factor(NONE, (0,), a, normalized=0),
        Factor(PLATE, ("p", 0, 1), b, normalized=1),
        Factor(PLATE, (1, 2), c, normalized=2),
    ]
    expected = torch.einsum("a,pab,bc,pc->", a.exp(), b.exp(), c.exp(), cost)
    found = expectation(factors, [Term(PLATE, ("p", 2), cost)])
    torch.testing.assert_close(found, expected)


def test_probability_zero_does_not_count():
    logits = torch.tensor([0.0, -math.inf], requires_grad=True)
    cost = torch.tensor([2.0, -math.inf], requires_grad=True)
    found = expectation([Factor(NONE, (0,), logits, normalized=0)], [Term(NONE, (0,), cost)])
    found.backward()
    assert found.item() == 2.0
    assert cost.grad.tolist() == [1.0, 0.0]
    assert logits.grad.tolist() == [2.0, 0.0]


def test_sequential_total_divides_costs_in_other_plates():
    """Of n runs, each counts a cost that the site does not influence in full; together they count it once."""
    factor = Factor(PLATE, ("p",), torch.tensor([0.3, 0.6]).log(), log_denom=math.log(4))
    inside = Term(PLATE, ("p",), torch.tensor([1.0, 1.0]))
    outside = Term(NONE, (), torch.tensor(8.0))
    assert expectation([factor], [inside]).item() == pytest.approx(0.9)
    assert expectation([factor], [outside]).item() == pytest.approx(2.0)


def test_sampled_factor_has_derivatives_of_any_order():
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def surrogate(z):
        log_q = torch.distributions.Bernoulli(theta).log_prob(z)
        cost = Term(NONE, (), theta * z + z)
        return expectation([Factor(NONE, (), log_q - log_q.detach())], [cost])

    exact = theta * (theta + 1)
    want = torch.autograd.grad(exact, theta, create_graph=True)[0]
    want2 = torch.autograd.grad(want, theta)[0]
    first, second = 0.0, 0.0
    for z, weight in ((1.0, 0.3), (0.0, 0.7)):
        one = surrogate(torch.tensor(z, dtype=torch.float64))
        gradient = torch.autograd.grad(one, theta, create_graph=True)[0]
        first += weight * gradient.item()
        second += weight * torch.autograd.grad(gradient, theta)[0].item()
    assert first == pytest.approx(want.item())
    assert second == pytest.approx(want2.item())


def packed_trace(program, first_available_dim=-2):
    with handlers.enum(first_available_dim=first_available_dim):
        one = handlers.trace(program).get_trace()
    one = handlers.util.prune_subsample_sites(one)
    one.compute_score_parts()
    one.pack_tensors()
    return one


def program():
    sumprod.sample("a", Categorical(torch.tensor([0.1, 0.9])), infer={"enumerate": "parallel"})
    with handlers.scale(scale=5.0), handlers.mask(mask=torch.tensor([True, False])), sumprod.plate("p", 2):
        sumprod.sample("b", Bernoulli(torch.tensor([0.25, 0.5])))
        sumprod.sample("c", Normal(0.0, 1.0))
        sumprod.sample("d", Normal(0.0, 1.0), infer={"enumerate": "parallel", "num_samples": 3})


def test_site_factors():
    one = packed_trace(program)
    factors = {
        name: compute_site_dice_factor(site) for name, site in one.nodes.items() if site["type"] == "sample"
    }
    a, log_denom = factors["a"]
    # Neither the scale nor the mask of the site has a part in it.
    torch.testing.assert_close(a.exp(), torch.tensor([0.1, 0.9]))
    assert a._pyro_dims == one.nodes["a"]["packed"]["log_prob"]._pyro_dims
    assert log_denom == 0.0
    b, _ = factors["b"]
    assert b.tolist() == [0.0, 0.0]
    assert factors["c"] == (0, 0.0)
    d, _ = factors["d"]
    assert torch.all(d == -math.log(3))


def test_dice_of_a_packed_trace():
    one = packed_trace(program)
    symbol = one.plate_to_symbol["p"]
    ordering = {name: frozenset() if name == "a" else frozenset(symbol) for name in "abcd"}
    dice = Dice(one, ordering)
    cost = one.nodes["a"]["packed"]["log_prob"]
    assert dice.compute_expectation({frozenset(): [cost, 1.0]}).item() == pytest.approx(
        1.0 + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    )


def test_sequential_factor_counts_its_values():
    def sequential():
        sumprod.sample("z", Bernoulli(0.25), infer={"enumerate": "sequential"})

    for one in sumprod.infer.enum.iter_discrete_traces("flat", sequential):
        one.compute_score_parts()
        one.pack_tensors()
        factor, log_denom = compute_site_dice_factor(one.nodes["z"])
        assert factor.exp().item() == pytest.approx(0.25 if one.nodes["z"]["value"] else 0.75)
        assert log_denom == pytest.approx(math.log(2))
