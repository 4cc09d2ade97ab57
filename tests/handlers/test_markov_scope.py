"""A site that depends on an enumerated variable out of its sight is found, and named."""

import pytest
import torch

import sumprod
from sumprod import runtime
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.handlers import mask, trace
from sumprod.handlers._scope_check import CHECKED_RUNS
from sumprod.infer import TraceEnum_ELBO, infer_discrete

MARK = {"enumerate": "parallel"}
HINT = "Try increasing pyro.markov history size"
START = torch.tensor(0)
MATRIX = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)


def nothing(*args, **kwargs):
    pass


def hidden(name, parent=START):
    return sumprod.sample(name, Categorical(MATRIX[parent]), infer=MARK)


def observe(name, *parents):
    sumprod.sample(name, Bernoulli((1 + sum(parents)) / (2.0 + len(parents))), obs=ONE)


def chain(steps, history, lag, only=None):
    """Observations depend on the state `lag` steps back; those of one step, or of all."""

    def model():
        states = []
        for t in sumprod.markov(range(steps), history=history):
            states.append(hidden(f"z{t}", states[-1] if states and history else START))
            if t >= lag and only in (None, t):
                observe(f"x{t}", states[t - lag])

    return model


ENGINES = {
    "loss": lambda model: TraceEnum_ELBO(max_plate_nesting=1).loss(model, nothing),
    "compute_marginals": lambda model: TraceEnum_ELBO().compute_marginals(model, nothing),
    "sample_posterior": lambda model: TraceEnum_ELBO().sample_posterior(model, nothing),
    "infer_discrete": lambda model: infer_discrete(model, first_available_dim=-2)(),
    "infer_discrete, guessed": lambda model: infer_discrete(model, temperature=0)(),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("history", "lag"), [(0, 1), (1, 2), (1, 3), (2, 3), (2, 4)])
def test_site_and_variable_are_named(engine, history, lag):
    with pytest.raises(ValueError, match=rf"Enumeration dim conflict at site 'x{lag}'.*'z0'") as caught:
        engine(chain(8, history, lag))
    assert HINT in str(caught.value)


@pytest.mark.parametrize("history", [0, 1, 2, 3])
def test_every_lag_in_a_loop(history):
    for lag in range(30):
        elbo, model = TraceEnum_ELBO(max_plate_nesting=0), chain(45, history, lag)
        if lag <= history:
            elbo.loss(model, nothing)
        else:
            with pytest.raises(ValueError, match=HINT):
                elbo.loss(model, nothing)


def is_found(elbo, model):
    try:
        elbo.loss(model, nothing)
    except ValueError as error:
        return HINT in str(error)
    return False


def test_a_single_dependence():
    """On recent variables it is found at once; on older ones, with rare exceptions, in the first runs."""
    found = []
    for lag in range(2, 50):
        elbo, model = TraceEnum_ELBO(max_plate_nesting=0), chain(50, 1, lag, only=49)
        found.append([is_found(elbo, model) for _ in range(CHECKED_RUNS)])
    assert all(first for first, *_ in found[:10])
    assert sum(first for first, *_ in found) > 38
    assert sum(any(runs) for runs in found) >= 47


@pytest.mark.parametrize(
    "make",
    [
        lambda z: (Normal(z.double(), 1.0).mask(z == 1), ONE),
        lambda z: (Normal(0.0, ONE), z.double()),
        lambda z: (Normal(z[..., None].double(), torch.ones(3)).to_event(1), torch.zeros(3).double()),
    ],
    ids=["mask of the distribution", "value", "event dims"],
)
def test_wherever_the_dim_is(make):
    def model():
        states = []
        for t in sumprod.markov(range(4)):
            states.append(hidden(f"z{t}"))
            fn, value = make(states[-3] if t == 3 else states[-1])
            sumprod.sample(f"x{t}", fn, obs=value)

    with pytest.raises(ValueError, match=r"Enumeration dim conflict at site 'x3'.*'z1'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)


def test_in_a_mask():
    def model():
        states = []
        for t in sumprod.markov(range(4)):
            states.append(hidden(f"z{t}"))
            with mask(mask=states[max(0, t - 2)] == 1):
                observe(f"x{t}", states[-1])

    with pytest.raises(ValueError, match=r"Enumeration dim conflict at site 'x2'.*'z0'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)


def test_of_a_guide():
    def guide():
        states = []
        for t in sumprod.markov(range(4)):
            states.append(hidden(f"z{t}", states[-2] if t > 1 else START))

    def model():
        for t in sumprod.markov(range(4)):
            observe(f"x{t}", sumprod.sample(f"z{t}", Categorical(MATRIX[0])))

    with pytest.raises(ValueError, match=r"Enumeration dim conflict at site 'z2'.*'z0'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, guide)


def test_of_a_model_on_the_variables_of_its_guide():
    def guide():
        for t in sumprod.markov(range(4)):
            hidden(f"z{t}")

    def model():
        states = []
        for t in sumprod.markov(range(4)):
            states.append(sumprod.sample(f"z{t}", Categorical(MATRIX[0])))
            observe(f"x{t}", states[max(0, t - 2)])

    with pytest.raises(ValueError, match=r"Enumeration dim conflict at site 'x2'.*'z0'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, guide)


def test_between_branches_of_a_tree():
    @sumprod.markov
    def grow(name, parent, sibling, depth):
        z = hidden(name, parent)
        observe("x" + name, z, sibling)
        if depth:
            left = grow(name + "l", z, START, depth - 1)
            grow(name + "r", z, left, depth - 1)
        return z

    with pytest.raises(ValueError, match=r"at site 'xzr'.*'zl'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(lambda: grow("z", START, START, 1), nothing)


def test_after_a_loop():
    def model():
        states = []
        for t in sumprod.markov(range(5)):
            states.append(hidden(f"z{t}", states[-1] if states else START))
        observe("after", states[2])

    with pytest.raises(ValueError, match=r"at site 'after'.*'z2'"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)


def test_between_iterations_of_a_long_sequential_plate():
    def model(steps):
        z = START
        for i in sumprod.plate("rows", steps):
            z = hidden(f"z{i}", z)

    TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing, 30)
    with pytest.raises(ValueError, match="Enumeration dim conflict"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing, 100)


# ---- when it is looked for


def dims_of(elbo, model, *args, guide=nothing):
    [(model_trace, _)] = elbo._get_traces(model, guide, args, {})
    infers = [site["infer"] for site in model_trace.nodes.values() if site["type"] == "sample"]
    return [infer["_enumerate_dim"] for infer in infers if "_enumerate_dim" in infer]


def test_only_the_first_runs_spread_their_dims():
    elbo, model = TraceEnum_ELBO(max_plate_nesting=0), chain(20, 1, 0)
    dims = [dims_of(elbo, model) for _ in range(CHECKED_RUNS + 2)]
    assert all(10 < len(set(run)) <= 18 for run in dims[:CHECKED_RUNS])
    assert dims[0] != dims[1] != dims[2]
    assert dims[CHECKED_RUNS] == dims[-1] == [-1, -2] * 10


def test_other_arguments_are_looked_at_again():
    def model(data, lag):
        states = []
        for t in sumprod.markov(range(len(data))):
            states.append(hidden(f"z{t}"))
            observe(f"x{t}", states[max(0, t - lag)])

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    for _ in range(5):
        elbo.loss(model, nothing, torch.zeros(4), 1)
    assert set(dims_of(elbo, model, torch.zeros(4), 1)) == {-1, -2}
    assert len(set(dims_of(elbo, model, torch.zeros(20), 1))) > 10
    with pytest.raises(ValueError, match=HINT):
        elbo.loss(model, nothing, torch.zeros(4), 2)


def test_new_sites_are_looked_at_in_the_next_run():
    changed = False

    def model():
        before, z = START, START
        for t in sumprod.markov(range(6)):
            first, before, z = before, z, hidden(f"z{t}", z)
            if changed:
                observe(f"x{t}", first)

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    for _ in range(5):
        elbo.loss(model, nothing)
    changed = True
    elbo.loss(model, nothing)
    with pytest.raises(ValueError, match=HINT):
        elbo.loss(model, nothing)


def test_the_error_comes_every_time():
    elbo, model = TraceEnum_ELBO(max_plate_nesting=0), chain(6, 1, 2)
    for _ in range(CHECKED_RUNS + 3):
        with pytest.raises(ValueError, match=HINT):
            elbo.loss(model, nothing)


def test_not_without_validation():
    model = chain(20, 1, 0)
    with sumprod.validation_enabled(False):
        assert set(dims_of(TraceEnum_ELBO(max_plate_nesting=0), model)) == {-1, -2}


def test_nothing_else_changes():
    """Loss, gradients, draws and the random stream are those of the run without the check."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def model():
        table = sumprod.param("table", logits)
        with sumprod.plate("data", 5):
            z = START
            for t in sumprod.markov(range(12)):
                z = sumprod.sample(f"z{t}", Categorical(logits=table[z]), infer=MARK)
                sumprod.sample(f"x{t}", Normal(z.double(), 1.0), obs=torch.linspace(-1, 3, 5).double())

    def results():
        sumprod.clear_param_store()
        sumprod.set_rng_seed(1)
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, nothing)
        gradient = sumprod.param("table").grad
        drawn = trace(infer_discrete(model, first_available_dim=-2)).get_trace().nodes
        return loss, gradient, [drawn[f"z{t}"]["value"] for t in range(12)], torch.rand(3)

    spread = results()
    with sumprod.validation_enabled(False):
        compact = results()
    assert spread[0] == compact[0]
    torch.testing.assert_close(spread[1:], compact[1:], rtol=1e-12, atol=1e-14)


def test_vectorized_particles_are_recognised():
    """The loss wraps the model anew in each call; it is still the same program."""

    def guide():
        sumprod.sample("loc", Normal(0.0, 1.0))

    def model():
        loc = sumprod.sample("loc", Normal(0.0, 1.0))
        z = START
        for t in sumprod.markov(range(20)):
            z = hidden(f"z{t}", z)
            sumprod.sample(f"x{t}", Normal(loc + z, 1.0), obs=torch.tensor(0.5))

    elbo = TraceEnum_ELBO(max_plate_nesting=0, num_particles=3, vectorize_particles=True)
    dims = [dims_of(elbo, model, guide=guide) for _ in range(CHECKED_RUNS + 1)]
    assert len(set(dims[0])) > 10
    assert set(dims[-1]) == {-2, -3}


# ---- loops that are left early


def test_a_loop_that_is_left_while_someone_holds_its_generator():
    """It closes when the program ends, so that the stack is as before."""
    held = []

    def model(hold):
        z = START
        steps = iter(sumprod.markov(range(10)))
        if hold:
            held.append(steps)
        for t in steps:
            z = hidden(f"z{t}", z)
            if t == 3:
                break
        del steps
        observe("x", hidden("after", z), z)

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    losses = [elbo.loss(model, nothing, hold) for hold in (False, True, True)]
    assert runtime._PYRO_STACK == []
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-12)
    held.clear()
    assert runtime._PYRO_STACK == []


def test_an_error_inside_a_loop_closes_it():
    def model():
        for t in sumprod.markov(range(3)):
            hidden(f"z{t}")
            if t == 1:
                raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)
        assert runtime._PYRO_STACK == []
