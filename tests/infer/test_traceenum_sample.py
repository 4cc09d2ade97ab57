"""Posterior draws from the last loss."""

import itertools
import weakref

import pytest
import scipy.stats
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.errors import SupportError
from sumprod.infer import SVI, TraceEnum_ELBO, TraceEnumSample_ELBO, discrete
from sumprod.infer._enum_factors import FactorGraph
from sumprod.optim import Adam
from sumprod.runtime import handler_stack

PARALLEL = {"enumerate": "parallel"}
COPIES = 20_000
DATA = (0, 1, 1)
LOSSES = ["loss", "differentiable_loss", "loss_and_grads"]


@pytest.fixture(autouse=True)
def clean():
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()
    assert not handler_stack()


def nothing(*args):
    pass


def chain(copies=COPIES):
    initial = sumprod.param(
        "initial", torch.tensor([0.3, 0.7]), constraint=sumprod.distributions.constraints.simplex
    )
    transition, emission = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    z, values = None, []
    with sumprod.plate("copies", copies):
        for t in sumprod.markov(range(3)):
            z = sumprod.sample(f"z{t}", Categorical(initial if z is None else transition[z]), infer=PARALLEL)
            sumprod.sample(f"x{t}", Categorical(emission[z]), obs=torch.tensor(DATA[t]))
            values.append(z)
    return values


def weights(initial):
    transition, emission = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    return torch.stack(
        [
            initial[a] * transition[a, b] * transition[b, c] * emission[[a, b, c], list(DATA)].prod()
            for a, b, c in itertools.product(range(2), repeat=3)
        ]
    ).double()


def fits(values, expected):
    """Whether a chi-square test lets draws pass; for another generator it fails once in 10,000."""
    counts = torch.bincount(values[0] * 4 + values[1] * 2 + values[2], minlength=8)
    expected = expected / expected.sum() * counts.sum()
    return scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("method", LOSSES)
def test_draws_from_the_posterior_of_the_last_call(method):
    elbo = TraceEnumSample_ELBO(max_plate_nesting=1)
    getattr(elbo, method)(chain, nothing)
    sumprod.set_rng_seed(0)
    for _ in range(2):  # two draws, independent of each other
        values = elbo.sample_saved()
        assert fits(values, weights(torch.tensor([0.3, 0.7])))
    first = torch.stack(values)
    assert not torch.equal(torch.stack(elbo.sample_saved()), first)


def test_no_density_is_computed_again(monkeypatch):
    elbo = TraceEnumSample_ELBO(max_plate_nesting=1)
    elbo.loss(chain, nothing)

    def refuse(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(Categorical, "log_prob", refuse)
    monkeypatch.setattr(FactorGraph, "add", refuse)
    sumprod.set_rng_seed(0)
    assert fits(elbo.sample_saved(), weights(torch.tensor([0.3, 0.7])))


def test_the_posterior_is_that_of_the_loss_and_not_of_later_parameters():
    elbo = TraceEnumSample_ELBO(max_plate_nesting=1)
    svi = SVI(chain, nothing, Adam({"lr": 1.0}), elbo)
    svi.step()
    assert (sumprod.param("initial") - torch.tensor([0.3, 0.7])).abs().max() > 0.1
    sumprod.set_rng_seed(0)
    assert fits(elbo.sample_saved(), weights(torch.tensor([0.3, 0.7])))


def test_losses_and_gradients_are_those_of_traceenum_elbo():
    results = []
    for kind in (TraceEnum_ELBO, TraceEnumSample_ELBO):
        sumprod.clear_param_store()
        elbo = kind(max_plate_nesting=1)
        first = elbo.loss(chain, nothing)
        second = elbo.differentiable_loss(chain, nothing).item()
        third = elbo.loss_and_grads(chain, nothing)
        results.append([first, second, third, sumprod.param("initial").unconstrained().grad.tolist()])
    assert results[0] == results[1]
    assert isinstance(TraceEnumSample_ELBO(), TraceEnum_ELBO)
    assert discrete.TraceEnumSample_ELBO is TraceEnumSample_ELBO


def test_before_any_call_and_after_clearing():
    elbo = TraceEnumSample_ELBO(max_plate_nesting=1)
    with pytest.raises(RuntimeError, match=r"call loss\(\)"):
        elbo.sample_saved()
    elbo.compute_marginals(chain, nothing, 2)  # which is no loss
    with pytest.raises(RuntimeError, match=r"call loss\(\)"):
        elbo.sample_saved()
    elbo.loss(chain, nothing, 2)
    elbo.sample_saved()
    elbo.clear_saved()
    with pytest.raises(RuntimeError, match=r"call loss\(\)"):
        elbo.sample_saved()


def test_clearing_frees_the_traces():
    seen = []

    def model():
        fn = Categorical(logits=torch.zeros(3))
        seen.append(weakref.ref(fn))
        sumprod.sample("z", fn, infer=PARALLEL)

    elbo = TraceEnumSample_ELBO(max_plate_nesting=0)
    elbo.loss(model, nothing)
    assert seen[-1]() is not None
    elbo.clear_saved()
    assert seen[-1]() is None


def test_given_the_draws_of_the_guide():
    def model():
        loc = sumprod.sample("loc", Normal(0.0, 10.0))
        z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
        sumprod.sample("x", Normal(loc * z, 0.001), obs=loc.detach())
        return loc, z

    def guide():
        sumprod.sample("loc", Normal(3.0, 1.0))

    elbo = TraceEnumSample_ELBO(max_plate_nesting=0)
    elbo.loss(model, guide)
    recorder = handlers.trace(elbo.sample_saved)
    (loc, z), (again, _) = recorder(), elbo.sample_saved()
    assert loc == again
    assert z.item() == 1
    assert recorder.trace.nodes["loc"]["value"] is loc


def test_particles():
    """Of particles in a loop the last one, of vectorised ones all."""

    def model():
        loc = sumprod.sample("loc", Normal(0.0, 10.0))
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(loc * (2 * z - 1), 0.01), obs=torch.tensor([1.0, -1.0]))
        return loc, z

    draws = []

    def guide():
        draws.append(sumprod.sample("loc", Normal(0.0, 1.0)))

    elbo = TraceEnumSample_ELBO(max_plate_nesting=1, num_particles=3)
    elbo.loss(model, guide)
    loc, z = elbo.sample_saved()
    assert loc is draws[-1]
    assert z.shape == (2,)
    elbo = TraceEnumSample_ELBO(max_plate_nesting=1, num_particles=3, vectorize_particles=True)
    elbo.loss(model, guide)
    loc, z = elbo.sample_saved()
    assert loc.shape == (3, 1)
    assert torch.equal(z, (loc * torch.tensor([1.0, -1.0]) > 0).long())


def test_indices_of_subsampled_plates_stay():
    def model():
        with sumprod.plate("data", 100, subsample_size=10) as index:
            z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(z.float(), 0.01), obs=(index % 2).float())
        return index, z

    elbo = TraceEnumSample_ELBO(max_plate_nesting=1)
    elbo.loss(model, nothing)
    (index, z), (again, _) = elbo.sample_saved(), elbo.sample_saved()
    assert torch.equal(index % 2, z)
    assert torch.equal(index, again)


@pytest.mark.parametrize("mark", ["parallel", "sequential"])
def test_guide_enumeration(mark):
    """The loss is that of `TraceEnum_ELBO`; there is no posterior to draw from."""

    def program():
        sumprod.sample("z", Bernoulli(0.5), infer={"enumerate": mark})

    elbo = TraceEnumSample_ELBO(max_plate_nesting=0)
    assert elbo.loss(program, program) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(
        NotImplementedError, match=r"sample_saved\(\) is not compatible with guide enumeration"
    ):
        elbo.sample_saved()


def test_impossible_evidence():
    def model():
        z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)
        sumprod.sample("x", Categorical(logits=torch.tensor([[0.0, -torch.inf]] * 2)[z]), obs=torch.tensor(1))
        return z

    elbo = TraceEnumSample_ELBO(max_plate_nesting=0)
    with pytest.raises(SupportError):
        elbo.loss(model, nothing)
    with pytest.raises(SupportError):
        elbo.sample_saved()
    with sumprod.validation_enabled(False):
        assert elbo.sample_saved().item() == 0


def test_a_program_without_enumerated_sites_runs_again():
    elbo = TraceEnumSample_ELBO(max_plate_nesting=0, strict_enumeration_warning=False)
    elbo.loss(lambda: sumprod.sample("x", Normal(0.0, 1.0)), lambda: sumprod.sample("x", Normal(5.0, 0.01)))
    assert 4.9 < elbo.sample_saved() < 5.1
