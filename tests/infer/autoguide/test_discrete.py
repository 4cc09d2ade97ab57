"""The automatic guide of discrete variables, against guides written by hand."""

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Dirichlet,
    Normal,
    OneHotCategorical,
    constraints,
)
from sumprod.infer import SVI, TraceEnum_ELBO, config_enumerate
from sumprod.infer.autoguide import AutoDelta, AutoDiscreteParallel, AutoGuideList, AutoNormal
from sumprod.optim import Adam

DATA = torch.tensor([0.3, -1.0, 2.0])
PARALLEL = {"enumerate": "parallel"}


@config_enumerate
def model():
    b = sumprod.sample("b", Bernoulli(0.3))
    with sumprod.plate("data", 3):
        c = sumprod.sample("c", Categorical(torch.tensor([0.2, 0.3, 0.5])))
        o = sumprod.sample("o", OneHotCategorical(torch.tensor([0.4, 0.6])))
        sumprod.sample("x", Normal(b + c + o[..., 1], 1.0), obs=DATA)


def by_hand():
    b = sumprod.param("b_probs", torch.tensor(0.3), constraint=constraints.unit_interval)
    c = sumprod.param("c_probs", torch.tensor([0.2, 0.3, 0.5]).repeat(3, 1), constraint=constraints.simplex)
    o = sumprod.param("o_probs", torch.tensor([0.4, 0.6]).repeat(3, 1), constraint=constraints.simplex)
    sumprod.sample("b", Bernoulli(b), infer=PARALLEL)
    with sumprod.plate("data", 3):
        sumprod.sample("c", Categorical(c), infer=PARALLEL)
        sumprod.sample("o", OneHotCategorical(o), infer=PARALLEL)


def test_value_and_gradient_of_a_guide_by_hand():
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    results = []
    guide = AutoDiscreteParallel(model)
    for one in (guide, by_hand):
        loss = elbo.loss_and_grads(model, one)
        prefix = "AutoDiscreteParallel." if one is guide else ""
        parameters = [sumprod.get_param_store()._params[f"{prefix}{name}_probs"] for name in "bco"]
        results.append([torch.tensor(loss), *(parameter.grad for parameter in parameters)])
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)
        assert expected.abs().max() > 0


def test_parameters_and_values():
    guide = AutoDiscreteParallel(model)
    values = guide()
    assert {name: tuple(value.shape) for name, value in values.items()} == {"b": (), "c": (3,), "o": (3, 2)}
    store = sumprod.get_param_store()
    assert sorted(store) == [f"AutoDiscreteParallel.{name}_probs" for name in "bco"]
    torch.testing.assert_close(guide.c_probs.detach(), torch.tensor([0.2, 0.3, 0.5]).repeat(3, 1))
    assert {name for name, _ in guide.named_parameters()} == {f"{name}_probs_unconstrained" for name in "bco"}
    sites = handlers.trace(guide).get_trace().nodes
    assert all(sites[name]["infer"]["enumerate"] == "parallel" for name in "bco")


def test_optimum_is_the_posterior():
    """Two independent variables: the mean-field optimum is exact."""

    def independent():
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", Bernoulli(0.3))
            sumprod.sample("x", Normal(2 * z, 1.0), obs=DATA)

    guide = AutoDiscreteParallel(independent)
    svi = SVI(independent, guide, Adam({"lr": 0.1}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(300):
        svi.step()
    odds = 3 / 7 * torch.exp(2 * DATA - 2)
    torch.testing.assert_close(guide.z_probs.detach(), odds / (1 + odds), atol=5e-3, rtol=0)


def test_part_of_a_list():
    @config_enumerate
    def mixture():
        weights = sumprod.sample("weights", Dirichlet(torch.ones(2)))
        loc = sumprod.sample("loc", Normal(0.0, 1.0))
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", Categorical(weights))
            sumprod.sample("x", Normal(loc * z, 1.0), obs=DATA)

    guide = AutoGuideList(mixture)
    guide.append(AutoDelta(handlers.block(mixture, expose=["weights"])))
    guide.append(AutoNormal(handlers.block(mixture, expose=["loc"])))
    guide.append(AutoDiscreteParallel(handlers.block(mixture, expose=["z"])))
    svi = SVI(mixture, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    sumprod.set_rng_seed(0)
    losses = [svi.step() for _ in range(100)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert "AutoGuideList.2.z_probs" in sumprod.get_param_store()


def test_subsampled_plate():
    def subsampled():
        with sumprod.plate("data", 6, subsample_size=2):
            sumprod.sample("z", Categorical(torch.ones(2)))

    guide = AutoDiscreteParallel(subsampled)
    assert guide()["z"].shape == (2,)
    assert guide.z_probs.shape == (6, 2)


@pytest.mark.parametrize(
    ("fn", "infer", "match"),
    [
        (Normal(0.0, 1.0), {}, 'Expected sample site "z" to be discrete and configured for parallel'),
        (Bernoulli(0.5), {"enumerate": "sequential"}, 'Expected sample site "z" to be discrete'),
        (Binomial(2, torch.tensor(0.5)), {}, "Binomial is not supported"),
        (Categorical(torch.ones(2)).mask(False), {}, "MaskedDistribution is not supported"),
    ],
)
def test_sites_that_it_does_not_have(fn, infer, match):
    guide = AutoDiscreteParallel(lambda: sumprod.sample("z", fn, infer=infer))
    with pytest.raises(NotImplementedError, match=match):
        guide()


def test_against_pyro():
    """Loss and gradients of Pyro's guide of the same name."""
    pyro = pytest.importorskip("pyro")
    from pyro.infer.autoguide import AutoDiscreteParallel as Peer

    def program(lib):
        dist = lib.distributions

        def run():
            b = lib.sample("b", dist.Bernoulli(0.3))
            with lib.plate("data", 3):
                c = lib.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
                lib.sample("x", dist.Normal(b + c, 1.0), obs=DATA)

        return lib.infer.config_enumerate(run)

    results = []
    for lib, kind in ((sumprod, AutoDiscreteParallel), (pyro, Peer)):
        lib.clear_param_store()
        one = program(lib)
        guide = kind(one)
        guide()
        with torch.no_grad():
            dict(guide.named_parameters())["c_probs_unconstrained"][:, 0] += 0.7
        loss = lib.infer.TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(one, guide)
        results.append([torch.tensor(loss), *(p.grad for _, p in sorted(guide.named_parameters()))])
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)
