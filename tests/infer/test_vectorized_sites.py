"""Kinds of sites inside `vectorized_markov`, and guides that sample beside it: the numbers of the loop."""

import re

import pytest
import torch

import sumprod
from sumprod import distributions as dist
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.handlers import scale, trace
from sumprod.infer import TraceEnum_ELBO, config_enumerate, infer_discrete
from tests.infer.vectorized_programs import MARK, at_once, data, one_by_one, see, state
from tests.infer.vectorized_runs import nothing

MOVE = torch.tensor([[0.3, -0.5], [1.0, 0.2]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 1.5], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)
STEPS = 6
SEEN = data(STEPS)
NUMBERS = torch.tensor([0, 1, 1, 0, 1, 0])
SOME = torch.tensor([True, False, True, True, False, False])
PROGRAMS = {}


def chain(start):
    """A program from what happens at one step: (state before, step) -> state."""

    def add(step):
        def model(loop):
            x = start
            for t in loop("time", STEPS, -1):
                x = step(x, t)

        PROGRAMS[step.__name__] = model
        return step

    return add


ZERO = torch.tensor(0)


@chain(ZERO)
def factor(x, t):
    x = state(f"x_{t}", MOVE[x])
    sumprod.factor(f"f_{t}", LOC[x] * SEEN[t])
    return x


@chain(ZERO)
def deterministic(x, t):
    x = state(f"x_{t}", MOVE[x])
    see(f"y_{t}", sumprod.deterministic(f"d_{t}", LOC[x]), SEEN[t])
    return x


@chain(torch.tensor([1.0, 0.0], dtype=torch.float64))
def one_hot(x, t):
    x = sumprod.sample(f"x_{t}", dist.OneHotCategorical(logits=x @ MOVE), infer=MARK)
    see(f"y_{t}", x @ LOC, SEEN[t])
    return x


@chain(0 * ONE)
def bernoulli(x, t):
    x = sumprod.sample(f"x_{t}", Bernoulli(logits=x - 0.3), infer=MARK)
    see(f"y_{t}", x, SEEN[t])
    return x


@chain(0 * ONE)
def binomial(x, t):
    x = sumprod.sample(f"x_{t}", dist.Binomial(2, logits=x - 0.3), infer=MARK)
    see(f"y_{t}", x, SEEN[t])
    return x


@chain(ZERO)
def some_states_are_observed(x, t):
    x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE[x]), obs=NUMBERS[t], obs_mask=SOME[t], infer=MARK)
    see(f"y_{t}", LOC[x], SEEN[t])
    return x


@chain(ZERO)
def masked_densities(x, t):
    x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE[x]).mask(SOME[t]), infer=MARK)
    sumprod.sample(f"y_{t}", Normal(LOC[x], ONE).mask(~SOME[t]), obs=SEEN[t])
    return x


@chain(ZERO)
def parameters(x, t):
    x = state(f"x_{t}", sumprod.param("move", lambda: MOVE.clone())[x])
    see(f"y_{t}", LOC[x], SEEN[t])
    return x


@chain(ZERO)
def inputs(x, t):
    """Transitions depend on data that are sites themselves."""
    k = sumprod.sample(f"k_{t}", Categorical(logits=MOVE[0]), obs=NUMBERS[t])
    x = state(f"x_{t}", MOVE[x] + LOC[k][..., None])
    see(f"y_{t}", LOC[x], SEEN[t])
    return x


@chain(ZERO)
def arithmetic_with_steps(x, t):
    drift = 0.1 * torch.as_tensor(t, dtype=torch.float64).unsqueeze(-1)
    x = state(f"x_{t}", MOVE[x] + drift * LOC)
    see(f"y_{t}", LOC[x] * (t % 2), SEEN[t])
    return x


@chain(ZERO)
def a_state_of_one_value(x, t):
    x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE[:1, :1][x]), infer=MARK)
    see(f"y_{t}", LOC[state(f"z_{t}", MOVE[x])], SEEN[t])
    return x


EACH = pytest.mark.parametrize("model", PROGRAMS.values(), ids=PROGRAMS)


@EACH
def test_loss(model):
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    expected = elbo.loss(lambda: model(one_by_one), nothing)
    assert elbo.loss(lambda: model(at_once), nothing) == pytest.approx(expected, rel=1e-12)


@EACH
def test_marginals(model):
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    expected = elbo.compute_marginals(lambda: model(one_by_one), nothing)
    found = elbo.compute_marginals(lambda: model(at_once), nothing)
    for name, one in expected.items():
        t = int(re.search(r"_(\d+)", name)[1])
        many = re.sub(r"_\d+", f"_{slice(1, STEPS)}", name)
        values = one.enumerate_support(expand=False)
        logs = found[many].log_prob(values.unsqueeze(1))[:, t - 1] if t else found[name].log_prob(values)
        torch.testing.assert_close(logs.exp(), one.log_prob(values).exp(), rtol=1e-9, atol=1e-12)


@EACH
def test_most_probable_assignment(model):
    scores = [
        trace(infer_discrete(lambda by=by: model(by), first_available_dim=-2, temperature=0)).get_trace()
        for by in (at_once, one_by_one)
    ]
    torch.testing.assert_close(*(found.log_prob_sum() for found in scores), rtol=1e-12, atol=0)


# ---- guides


def one_per_sequence(loop, family):
    with sumprod.plate("sequences", 3, dim=-1):
        shift = sumprod.sample("shift", family)
        x = ZERO
        for t in loop("time", STEPS, -2):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x] + shift, data(STEPS, 3)[t])


def sampled(family):
    with sumprod.plate("sequences", 3, dim=-1):
        sumprod.sample("shift", family(sumprod.param("q", torch.zeros(3, dtype=torch.float64))))


@pytest.mark.parametrize("kind", ["reparameterised", "score function", "enumerated"])
def test_a_guide_samples_in_the_plate(kind):
    """Weights of score functions are the costs of each sequence, all its steps included."""
    if kind == "reparameterised":
        prior, guide = Normal(0 * ONE, ONE), lambda: sampled(lambda q: Normal(q, 0.3 * ONE))
    else:
        prior, guide = Bernoulli(0.3 * ONE), lambda: sampled(lambda q: Bernoulli(logits=q))
    if kind == "enumerated":
        guide = config_enumerate(guide, default="parallel")
    found = []
    for loop in (at_once, one_by_one):
        sumprod.clear_param_store()
        sumprod.set_rng_seed(0)
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        loss = elbo.loss_and_grads(lambda loop=loop: one_per_sequence(loop, prior), guide)
        found.append([torch.tensor(loss, dtype=torch.float64), sumprod.param("q").grad])
    assert (found[0][1] != 0).all()
    torch.testing.assert_close(*found, rtol=1e-11, atol=0)


# ---- errors that both forms share


@pytest.mark.parametrize("loop", [at_once, one_by_one])
def test_scales_that_differ(loop):
    def data_only():
        x = ZERO
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", MOVE[x])
            with scale(scale=0.5):
                see(f"y_{t}", LOC[x], SEEN[t])

    def by_step():
        x = ZERO
        for t in loop("time", STEPS, -1):
            with scale(scale=SEEN.abs()[t]):
                x = state(f"x_{t}", MOVE[x])

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"found 1 at site 'x_0' and 0\.5 at site 'y_0'"):
        elbo.loss(data_only, nothing)
    with pytest.raises(ValueError, match=r"poutine\.scale"):
        elbo.loss(by_step, nothing)


def test_what_is_the_same_all_along_a_plate():
    """Each slice of the plate counts, though the density is computed once."""

    def model(loop):
        four = sumprod.plate("four", 4, dim=-2)
        x = ZERO
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", MOVE[x])
            with four:
                state(f"m_{t}", MOVE[0])
                see(f"y_{t}", LOC[x], ONE)

    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    expected = elbo.loss(lambda: model(one_by_one), nothing)
    assert elbo.loss(lambda: model(at_once), nothing) == pytest.approx(expected, rel=1e-12)
