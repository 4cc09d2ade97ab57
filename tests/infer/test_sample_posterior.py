"""`TraceEnum_ELBO.sample_posterior`: what its run of the model is given, and who sees it."""

import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Categorical, Normal
from sumprod.infer import TraceEnum_ELBO
from tests.infer.chain_draws import PARALLEL, chain, counts_of, p_value, weights


def nothing(*args):
    pass


def test_sample_posterior_draws_jointly():
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    sumprod.set_rng_seed(5)
    values = elbo.sample_posterior(chain, nothing)
    assert p_value(counts_of(values), weights()) > 1e-4


def test_sample_posterior_keeps_the_indices_of_subsampled_plates():
    def model():
        with sumprod.plate("data", 100, subsample_size=10) as index:
            z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(z.float(), 0.01), obs=(index % 2).float())
        return index, z

    def guide():
        sumprod.plate("data", 100, subsample_size=10)

    for one in (nothing, guide):
        index, z = TraceEnum_ELBO(max_plate_nesting=1).sample_posterior(model, one)
        assert torch.equal(index % 2, z)


def test_sample_posterior_redraws_what_depends_on_an_enumerated_site():
    def model():
        a = sumprod.sample("a", Normal(0.0, 1.0))
        z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)
        y = sumprod.sample("y", Normal(10.0 * z, 0.01))
        sumprod.sample("x", Normal(10.0 * z, 1.0), obs=torch.tensor(10.0))
        seen.append(a)
        return a, z, y

    seen = []
    a, z, y = TraceEnum_ELBO(max_plate_nesting=0).sample_posterior(model, nothing)
    assert z.item() == 1
    assert y.shape == ()
    assert 9.5 < y < 10.5
    assert a is seen[-2] is seen[-1]
    assert len(seen) == 2


def test_sample_posterior_shows_outer_handlers_the_last_run_only():
    visits = []

    class Count(handlers.messenger.Messenger):
        def _pyro_sample(self, msg):
            visits.append(msg["name"])

    with Count():
        TraceEnum_ELBO(max_plate_nesting=1).sample_posterior(chain, nothing, 5)
    assert visits == ["copies", "z0", "x0", "z1", "x1", "z2", "x2"]
