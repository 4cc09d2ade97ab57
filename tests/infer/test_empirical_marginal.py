"""EmpiricalMarginal and Marginals: what a posterior says of its sites, against Pyro and direct sums."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer import EmpiricalMarginal as PyroEmpiricalMarginal
from pyro.infer.abstract_infer import Marginals as PyroMarginals
from pyro.infer.abstract_infer import TracePosterior as PyroTracePosterior
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod.infer.abstract_infer import EmpiricalMarginal, Marginals
from tests.infer.posterior_cases import FromRuns, counted

WEIGHTS = [0.3, -1.0, 2.0, 0.0, 0.7, -0.2]
VALUES = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 4.0], [0.0, 5.0], [2.0, 6.0]])


def program(library: Any, family: Any) -> Any:
    """Sites u, v, a vector, and a return value, of known values in successive runs."""
    rows = iter(VALUES.tolist() * 3)

    def model() -> Tensor:
        first, second = next(rows)
        u = library.sample("u", family.Delta(torch.tensor(first)))
        v = library.sample("v", family.Delta(torch.tensor(second)))
        library.sample("vector", family.Delta(torch.tensor([first, second, 1.0]), event_dim=1))
        return u + 10 * v  # type: ignore[no-any-return]

    return model


class PyroRuns(PyroTracePosterior):
    def __init__(self, num_chains: int) -> None:
        super().__init__(num_chains)
        self.model = program(pyro, pyro_dist)

    def _traces(self) -> Any:
        for number, weight in enumerate(WEIGHTS):
            trace = pyro.poutine.trace(self.model).get_trace()
            yield trace, torch.tensor(weight), number % self.num_chains


def ours(num_chains: int = 1) -> FromRuns:
    weights = [torch.tensor(weight) for weight in WEIGHTS]
    return FromRuns(program(sumprod, dist), weights, num_chains=num_chains).run()


@pytest.mark.parametrize("num_chains", [1, 2, 3])
@pytest.mark.parametrize("sites", [None, "u", "vector", ["u"], ["v", "u"]])
def test_equals_pyro(sites: Any, num_chains: int) -> None:
    marginal = EmpiricalMarginal(ours(num_chains), sites)
    peer = PyroEmpiricalMarginal(PyroRuns(num_chains).run(), sites)
    assert marginal.batch_shape == peer.batch_shape
    assert marginal.event_shape == peer.event_shape
    assert marginal.sample_size == peer.sample_size
    assert torch.equal(marginal.enumerate_support(), peer.enumerate_support())
    torch.testing.assert_close(marginal.log_weights, peer.log_weights)
    torch.testing.assert_close(marginal.mean, peer.mean)
    torch.testing.assert_close(marginal.variance, peer.variance)
    value = peer.enumerate_support()[(0,) if num_chains == 1 else (slice(None), 0)]
    torch.testing.assert_close(marginal.log_prob(value), peer.log_prob(value))


@pytest.mark.parametrize("num_chains", [1, 2])
def test_draws_are_those_of_pyro(num_chains: int, seed: int) -> None:
    marginal, peer = (
        EmpiricalMarginal(ours(num_chains), "u"),
        PyroEmpiricalMarginal(PyroRuns(num_chains).run(), "u"),
    )
    torch.manual_seed(seed)
    expected = peer.sample((7,))
    torch.manual_seed(seed)
    assert torch.equal(marginal.sample((7,)), expected)


def test_log_prob_is_the_weight_of_equal_values() -> None:
    marginal = EmpiricalMarginal(ours(), "u")
    share = torch.tensor(WEIGHTS).softmax(0)
    for value in (0.0, 1.0, 2.0):
        expected = share[VALUES[:, 0] == value].sum().log()
        torch.testing.assert_close(marginal.log_prob(torch.tensor(value)), expected)
    assert marginal.log_prob(torch.tensor(3.0)) == -math.inf


def test_trap_39_a_list_of_sites_is_stacked_on_a_new_leading_event_dim() -> None:
    samples = EmpiricalMarginal(ours(), ["u", "v"])
    assert samples.event_shape == (2,)
    assert torch.equal(samples.enumerate_support(), VALUES)
    assert torch.equal(EmpiricalMarginal(ours(), ("u", "v")).enumerate_support(), VALUES)
    chains = EmpiricalMarginal(ours(2), ["vector", "vector"])
    assert chains.batch_shape == (2,)
    assert chains.event_shape == (2, 3)


def test_says_what_is_wrong() -> None:
    posterior = ours()
    with pytest.raises(
        AssertionError, match="trace_dist must be trace posterior distribution object, got dict"
    ):
        EmpiricalMarginal({}, "u")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="trace_dist must be trace posterior distribution object"):
        Marginals({}, "u")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no site 'w' in trace 0: its sites are"):
        EmpiricalMarginal(posterior, "w")
    with pytest.raises(
        ValueError, match=r"only sites of equal shape can be stacked, got \{'u': \(\), 'vector': \(3,\)\}"
    ):
        EmpiricalMarginal(posterior, ["u", "vector"])
    with pytest.raises(ValueError, match="sites is empty"):
        EmpiricalMarginal(posterior, [])
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        EmpiricalMarginal(FromRuns(counted(), [0.0]), "number")
    with pytest.raises(
        ValueError, match=r"chains must have equally many traces to be a batch dim, got \[2, 2, 1, 1\]"
    ):
        EmpiricalMarginal(ours(4), "u")
    with pytest.raises(TypeError, match="the value of site '_RETURN' is not a tensor but tuple"):
        EmpiricalMarginal(FromRuns(lambda: (1, 2), [0.0]).run())


@pytest.mark.parametrize("num_chains", [1, 2])
@pytest.mark.parametrize("sites", [None, "u", ["u", "vector"]])
def test_marginals_equal_pyro(sites: Any, num_chains: int) -> None:
    marginals = ours(num_chains).marginal(sites)
    peer = PyroRuns(num_chains).run().marginal(sites)
    assert isinstance(marginals, Marginals)
    assert isinstance(peer, PyroMarginals)
    assert marginals.sites == peer.sites
    assert list(marginals.empirical) == peer.sites
    assert all(isinstance(entry, EmpiricalMarginal) for entry in marginals.empirical.values())
    for flatten in (False, True):
        support, expected = marginals.support(flatten=flatten), peer.support(flatten=flatten)
        assert type(support) is type(expected)
        assert list(support) == list(expected)
        for site, samples in support.items():
            assert torch.equal(samples, expected[site])


def test_marginals_take_a_tuple_and_sites_of_other_shapes() -> None:
    marginals = Marginals(ours(), ("vector", "v"))
    assert marginals.sites == ["vector", "v"]
    assert [tuple(samples.shape) for samples in marginals.support().values()] == [(6, 3), (6,)]


def test_weights_may_be_numbers_and_of_any_normalisation() -> None:
    shifted = FromRuns(program(sumprod, dist), [weight + 500 for weight in WEIGHTS]).run()
    torch.testing.assert_close(EmpiricalMarginal(shifted, "u").mean, EmpiricalMarginal(ours(), "u").mean)
    mixed = FromRuns(program(sumprod, dist), [WEIGHTS[0], *map(torch.tensor, WEIGHTS[1:])]).run()
    torch.testing.assert_close(EmpiricalMarginal(mixed, "u").mean, EmpiricalMarginal(ours(), "u").mean)
