"""A model run with its enumerated sites drawn from their joint posterior."""

import time

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Normal, OneHotCategorical
from sumprod.errors import SupportError
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer.traceenum_elbo import BackwardSampleMessenger
from sumprod.runtime import handler_stack
from tests.infer.chain_draws import (
    COPIES,
    DATA,
    EMISSION,
    PARALLEL,
    TRANSITION,
    chain,
    counts_of,
    p_value,
    weights,
)


@pytest.fixture(autouse=True)
def empty_stack():
    yield
    assert not handler_stack()


def nothing(*args, **kwargs):
    pass


def traces(model, guide=nothing, *, max_plate_nesting=1, args=(), densities=True):
    """Traces as a program makes them that calls the handlers itself."""
    guide_trace = handlers.trace(handlers.enum(guide, first_available_dim=-1 - max_plate_nesting)).get_trace(
        *args
    )
    model_trace = handlers.trace(handlers.replay(handlers.enum(model), trace=guide_trace)).get_trace(*args)
    model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    if densities:
        for one in (guide_trace, model_trace):
            one.compute_log_prob()
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)
    return model_trace, guide_trace


@pytest.mark.parametrize("densities", [True, False])
def test_joint_draws(densities):
    """Chi-square over all 8 assignments; fails with probability 1e-4 for another generator."""
    model_trace, guide_trace = traces(chain, densities=densities)
    sumprod.set_rng_seed(0)
    with BackwardSampleMessenger(model_trace, guide_trace):
        values = handlers.replay(chain, trace=guide_trace)()
    assert all(value.shape == (COPIES,) for value in values)
    assert p_value(counts_of(values), weights()) > 1e-4


def test_equal_seeds_give_equal_draws_and_traces_can_be_used_again():
    pair = traces(chain)
    runs = []
    for seed in (3, 3, 4):
        sumprod.set_rng_seed(seed)
        with BackwardSampleMessenger(*pair):
            runs.append(torch.stack(chain()))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_outer_trace_sees_the_draws():
    pair = traces(chain)
    with handlers.trace() as recorder, BackwardSampleMessenger(*pair):
        values = chain()
    for t, value in enumerate(values):
        site = recorder.trace.nodes[f"z{t}"]
        assert site["value"] is value
        assert not site["is_observed"]
        assert "_enumerate_dim" not in site["infer"]
        assert isinstance(site["fn"], Categorical)


def test_given_the_draws_of_a_guide():
    """The model's plate of 20,000 copies sees one draw of the guide's."""

    def model():
        loc = sumprod.sample("loc", Normal(0.0, 1.0))
        with sumprod.plate("copies", COPIES):
            z = sumprod.sample("z", Bernoulli(0.3), infer=PARALLEL)
            sumprod.sample("x", Normal(loc * z, 1.0), obs=torch.tensor(1.2))
        return loc, z

    def guide():
        sumprod.sample("loc", Normal(2.0, 0.1))

    sumprod.set_rng_seed(1)
    model_trace, guide_trace = traces(model, guide)
    with BackwardSampleMessenger(model_trace, guide_trace):
        loc, z = handlers.replay(model, trace=guide_trace)()
    assert loc is guide_trace.nodes["loc"]["value"]
    joint = (
        torch.tensor([0.7, 0.3])
        * Normal(torch.stack([torch.zeros(()), loc]), 1.0).log_prob(torch.tensor(1.2)).exp()
    )
    assert p_value(torch.bincount(z.long(), minlength=2), joint.double()) > 1e-4


@pytest.mark.parametrize("masked_site", ["z", "x", "distribution"])
def test_masks(masked_site):
    """A mask on the variable has no effect, a mask on what depends on it takes that out."""
    off = torch.tensor(False)

    def model():
        with sumprod.plate("copies", COPIES):
            prior = Bernoulli(0.1).mask(masked_site != "distribution")
            with handlers.mask(mask=off if masked_site == "z" else ~off):
                z = sumprod.sample("z", prior, infer=PARALLEL)
            with handlers.mask(mask=off if masked_site == "x" else ~off):
                sumprod.sample("x", Bernoulli(0.2 + 0.6 * z), obs=torch.tensor(1.0))
        return z

    pair = traces(model)
    sumprod.set_rng_seed(0)
    with BackwardSampleMessenger(*pair):
        z = model()
    likelihood = torch.tensor([1.0, 1.0] if masked_site == "x" else [0.2, 0.8], dtype=torch.float64)
    expected = torch.tensor([0.9, 0.1], dtype=torch.float64) * likelihood
    assert p_value(torch.bincount(z.long(), minlength=2), expected) > 1e-4


def test_the_trace_is_left_alone():
    model_trace, guide_trace = traces(chain)
    before = {name: dict(site) for name, site in model_trace.nodes.items()}
    with BackwardSampleMessenger(model_trace, guide_trace):
        chain()
    for name, site in model_trace.nodes.items():
        assert site.keys() == before[name].keys()
        assert all(site[key] is value for key, value in before[name].items())


# ---- sites that get other values


def test_later_sites_are_drawn_given_another_value():
    model_trace, guide_trace = traces(chain)
    sumprod.set_rng_seed(2)
    first = torch.zeros(COPIES, dtype=torch.long)
    with BackwardSampleMessenger(model_trace, guide_trace):
        values = handlers.condition(chain, data={"z0": first})()
    assert values[0] is first
    assert p_value(counts_of(values), weights(fixed=(0,))) > 1e-4


def test_other_value_in_the_middle():
    """Earlier sites are drawn without it, later ones given it."""
    model_trace, guide_trace = traces(chain)
    sumprod.set_rng_seed(3)
    with BackwardSampleMessenger(model_trace, guide_trace):
        values = handlers.condition(chain, data={"z1": torch.tensor(1).expand(COPIES)})()
    posterior = weights().reshape(2, 2, 2)
    assert p_value(torch.bincount(values[0], minlength=2), posterior.sum((1, 2))) > 1e-4
    assert p_value(torch.bincount(values[2], minlength=2), posterior[0, 1]) > 1e-4


def test_value_from_a_handler_outside():
    model_trace, guide_trace = traces(chain)
    sumprod.set_rng_seed(2)
    first = torch.zeros(COPIES, dtype=torch.long)
    with handlers.condition(data={"z0": first}), BackwardSampleMessenger(model_trace, guide_trace):
        values = chain()
    assert values[0] is first
    assert p_value(counts_of(values), weights(fixed=(0,))) > 1e-4


def test_impossible_value():
    def logits(*rows):
        return torch.tensor(rows).log()

    def model():
        z = sumprod.sample("z", Categorical(logits=logits(0.5, 0.0, 0.5)), infer=PARALLEL)
        w = sumprod.sample(
            "w", Categorical(logits=logits([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])[z]), infer=PARALLEL
        )
        return sumprod.sample("v", Categorical(logits=logits([1.0, 0.0], [0.0, 1.0])[w]), infer=PARALLEL)

    pair = traces(model, max_plate_nesting=0)
    for values in ({"z": torch.tensor(0), "w": torch.tensor(1)}, {"z": torch.tensor(1)}):
        with pytest.raises(SupportError, match="no assignment"), BackwardSampleMessenger(*pair):
            handlers.condition(model, data=values)()
    with BackwardSampleMessenger(*pair):
        assert handlers.condition(model, data={"z": torch.tensor(2)})().item() == 1


def test_sites_with_event_dims():
    def model():
        with sumprod.plate("rows", 3):
            z = sumprod.sample("z", OneHotCategorical(torch.ones(4)), infer=PARALLEL)
            return z, sumprod.sample("w", Categorical(0.99 * z + 0.0), infer=PARALLEL)

    wanted = torch.eye(4)[[3, 0, 2]]
    with BackwardSampleMessenger(*traces(model)):
        z, w = handlers.condition(model, data={"z": wanted})()
    assert z is wanted
    assert w.tolist() == [3, 0, 2]
    with BackwardSampleMessenger(*traces(model)):
        z, w = model()
    assert z.shape == (3, 4)
    assert torch.equal(z.argmax(-1), w)


def test_sites_of_one_value_have_it():
    def model():
        with sumprod.plate("rows", 3):
            return sumprod.sample("z", Categorical(torch.ones(3, 1)), infer=PARALLEL)

    with BackwardSampleMessenger(*traces(model)):
        assert model().shape in [(1,), (3,)]


def test_sites_that_the_trace_does_not_have_are_left_alone():
    def more():
        extra = sumprod.sample("extra", Normal(5.0, 0.01))
        return chain(5), extra

    with BackwardSampleMessenger(*traces(lambda: chain(5))):
        _, extra = more()
    assert 4.9 < extra < 5.1


# ---- wrong use


def test_trap_54_leaves_the_stack_before_it_names_sites_that_were_not_visited():
    pair = traces(lambda: chain(5))
    with pytest.raises(ValueError, match="'z1', 'z2' were not visited"), BackwardSampleMessenger(*pair):
        chain(5, DATA[:1])
    assert not handlers.am_i_wrapped()
    with pytest.raises(ValueError, match="'z0', 'z1', 'z2' were not visited"), BackwardSampleMessenger(*pair):
        handlers.block(lambda: chain(5))()


def test_second_use_is_refused():
    messenger = BackwardSampleMessenger(*traces(lambda: chain(5)))
    with messenger:
        chain(5)
    with pytest.raises(ValueError, match="serves one run"), messenger:
        chain(5)
    messenger = BackwardSampleMessenger(*traces(lambda: chain(5)))
    with pytest.raises(ValueError, match="site 'z0' is visited twice"), messenger:
        [chain(5) for _ in range(2)]


def test_enumerated_run_inside_is_refused():
    model_trace, guide_trace = traces(lambda: chain(5))
    with (
        pytest.raises(ValueError, match="site 'z0' is enumerated again"),
        BackwardSampleMessenger(model_trace, guide_trace),
    ):
        handlers.enum(lambda: chain(5), first_available_dim=-2)()
    with (
        pytest.raises(ValueError, match="site 'z0' is enumerated again"),
        BackwardSampleMessenger(model_trace, guide_trace),
    ):
        handlers.replay(lambda: chain(5), trace=model_trace)()


def test_exceptions_of_the_program_come_through():
    def failing():
        chain(5)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), BackwardSampleMessenger(*traces(lambda: chain(5))):
        failing()


def test_guide_enumeration_is_refused():
    def model():
        sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)

    with pytest.raises(NotImplementedError, match="not compatible with guide enumeration, as at site 'z'"):
        BackwardSampleMessenger(*traces(model, model))


def test_impossible_evidence():
    def model():
        z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)
        sumprod.sample("x", Categorical(torch.eye(2)[z]), obs=torch.tensor(0))
        sumprod.sample("y", Categorical(logits=torch.tensor([[0.0, -torch.inf]] * 2)[z]), obs=torch.tensor(1))
        return z

    pair = traces(model, max_plate_nesting=0)
    with pytest.raises(SupportError) as caught, BackwardSampleMessenger(*pair):
        model()
    assert caught.value.site == "y"
    with sumprod.validation_enabled(False), BackwardSampleMessenger(*pair):
        assert model().item() == 0


# ---- cost


def test_cost_is_linear_in_the_length_of_a_chain():
    """Eight times the steps take at most 16 times as long: 64 if each site redid the rest of the chain."""

    def seconds(length):
        def model():
            z = torch.tensor(0)
            for t in sumprod.markov(range(length)):
                z = sumprod.sample(f"z{t}", Categorical(TRANSITION[z]), infer=PARALLEL)
                sumprod.sample(f"x{t}", Categorical(EMISSION[z]), obs=torch.tensor(1))

        pair = traces(model, max_plate_nesting=0)
        start = time.thread_time()
        with BackwardSampleMessenger(*pair):
            model()
        return time.thread_time() - start

    short = min(seconds(60) for _ in range(4))
    assert min(seconds(480) for _ in range(2)) < 16 * short
