"""`vectorized_markov` under each algorithm, guide and option: the numbers of the loop."""

import gc
from contextlib import nullcontext

import pytest
import torch

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.handlers import condition, replay, scale, trace
from sumprod.infer import (
    SVI,
    Importance,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
    infer_discrete,
)
from sumprod.ops.indexing import Vindex
from tests.infer.vectorized_programs import MARK, at_once, data, one_by_one, see, state
from tests.infer.vectorized_runs import nothing

MOVE = torch.tensor([[0.3, -0.5], [1.0, 0.2]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 1.5], dtype=torch.float64)
STEPS = 6
SEEN = data(STEPS)
ONE = torch.ones((), dtype=torch.float64)
EACH = pytest.mark.parametrize("loop", [one_by_one, at_once])


def hmm(loop, marks=MARK):
    x = torch.tensor(0)
    for t in loop("time", STEPS, -1):
        x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE[x]), infer=marks)
        see(f"y_{t}", LOC[x], SEEN[t])


def both(run):
    """What a run has of each form, from the same state of the generators."""
    found = []
    for loop in (at_once, one_by_one):
        sumprod.clear_param_store()
        sumprod.set_rng_seed(3)
        found.append(run(loop))
    return found


def assert_same(run):
    torch.testing.assert_close(*both(run), rtol=1e-10, atol=1e-12)


# ---- guides


def with_latents(loop):
    """Transitions and locations have priors; a guide samples them."""
    move = sumprod.sample("move", Normal(torch.zeros(2, 2).double(), 1.0).to_event(2))
    with sumprod.plate("components", 2, dim=-1):
        loc = sumprod.sample("loc", Normal(0 * ONE, 2 * ONE))
    x = torch.tensor(0)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", Vindex(move)[..., x, :])
        see(f"y_{t}", Vindex(loc.unsqueeze(-2))[..., x], SEEN[t])


def guide_of_latents():
    where = sumprod.param("where", torch.tensor([[0.1, 0.2], [-0.3, 0.5]], dtype=torch.float64))
    sumprod.sample("move", Normal(where, 0.5 * ONE).to_event(2))
    with sumprod.plate("components", 2, dim=-1):
        sumprod.sample("loc", Normal(sumprod.param("m", LOC.clone()), 0.3 * ONE))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_plate_nesting": 1},
        {"max_plate_nesting": 3},
        {"num_particles": 3},
        {"num_particles": 3, "vectorize_particles": True},
        {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1},
    ],
    ids=str,
)
def test_a_guide_samples_global_parameters(options):
    def run(loop):
        elbo = TraceEnum_ELBO(**options)
        first = elbo.loss_and_grads(lambda: with_latents(loop), guide_of_latents)
        gradients = [sumprod.param(name).grad for name in ("where", "m")]
        return [torch.tensor(first, dtype=torch.float64), *gradients]

    found, expected = both(run)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for gradient in found[1:])


def test_training():
    def run(loop):
        svi = SVI(
            lambda: with_latents(loop), guide_of_latents, sumprod.optim.Adam({"lr": 0.05}), TraceEnum_ELBO()
        )
        return [torch.tensor(svi.step(), dtype=torch.float64) for _ in range(5)]

    assert_same(run)


def guide_of_states(loop, marks):
    def guide():
        x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE.flip(0)[x]), infer=marks)

    return guide


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceEnum_ELBO])
def test_a_guide_samples_the_states(elbo):
    def run(loop):
        return torch.tensor(elbo().loss(lambda: hmm(loop, {}), guide_of_states(loop, {})))

    enumerates = elbo is TraceEnum_ELBO
    with pytest.warns(UserWarning, match="no sample sites configured") if enumerates else nullcontext():
        assert_same(run)


@pytest.mark.parametrize("marks", [MARK, {"enumerate": "sequential"}], ids=["parallel", "sequential"])
def test_a_guide_enumerates_the_states(marks):
    assert_same(
        lambda loop: torch.tensor(
            TraceEnum_ELBO(max_plate_nesting=1).loss(lambda: hmm(loop, {}), guide_of_states(loop, marks))
        )
    )


def test_one_state_of_two_is_not_enumerated():
    """The guide samples w, so that the steps run one by one."""

    def model(loop):
        w = x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            w = sumprod.sample(f"w_{t}", Categorical(logits=MOVE[w]))
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x] + w, SEEN[t])

    def guide():
        for t in range(STEPS):
            sumprod.sample(f"w_{t}", Categorical(logits=MOVE[0]))

    assert_same(lambda loop: torch.tensor(TraceEnum_ELBO().loss(lambda: model(loop), guide)))
    report = sumprod.explain(lambda: model(at_once), guide)
    assert "chain 'time' run one by one: its site 'w_0' is not enumerated in the model" in str(report)


# ---- marks, scales and options


def test_config_enumerate():
    marked = TraceEnum_ELBO(max_plate_nesting=1).loss(lambda: hmm(at_once), nothing)
    by_handler = config_enumerate(lambda: hmm(at_once, {}), default="parallel")
    assert TraceEnum_ELBO(max_plate_nesting=1).loss(by_handler, nothing) == pytest.approx(marked, rel=1e-12)


@pytest.mark.parametrize("around", ["all", "step"])
def test_scales(around):
    def model(loop):
        x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            with scale(scale=0.5):
                x = state(f"x_{t}", MOVE[x])
                see(f"y_{t}", LOC[x], SEEN[t])

    def whole(loop):
        with scale(scale=0.5):
            hmm(loop)

    program = model if around == "step" else whole
    assert_same(lambda loop: torch.tensor(TraceEnum_ELBO().loss(lambda: program(loop), nothing)))


@pytest.mark.parametrize("validate", [True, False])
def test_validation(validate):
    def run(loop):
        with sumprod.validation_enabled(validate):
            return torch.tensor(TraceEnum_ELBO().loss(lambda: hmm(loop), nothing))

    assert_same(run)


def test_single_precision():
    """Of long chains, where errors would add up."""
    move, seen = MOVE.float(), data(500).float()

    def model(loop, dtype):
        x = torch.tensor(0)
        for t in loop("time", 500, -1):
            x = state(f"x_{t}", move.to(dtype)[x])
            sumprod.sample(f"y_{t}", Normal(LOC.to(dtype)[x], ONE.to(dtype)), obs=seen.to(dtype)[t])

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    exact = elbo.loss(lambda: model(one_by_one, torch.float64), nothing)
    assert elbo.loss(lambda: model(at_once, torch.float32), nothing) == pytest.approx(exact, rel=2e-7)
    assert elbo.loss(lambda: model(at_once, torch.float64), nothing) == pytest.approx(exact, rel=1e-13)


def test_the_body_runs_three_times():
    def model(size):
        x = torch.tensor(0)
        for t in at_once("time", size, -1):
            runs.append(t)
            x = state(f"x_{t}", MOVE[x])

    for size in (2, 1000):
        runs = []
        TraceEnum_ELBO(max_plate_nesting=1).loss(lambda size=size: model(size), nothing)
        assert len(runs) == 3


# ---- loops in loops


@pytest.mark.parametrize("size", [3, 4])
def test_a_loop_in_a_loop(size):
    def model(outer, inner):
        x = torch.tensor(0)
        for t in outer("outer", 3, -1):
            y = x = state(f"x_{t}", MOVE[x])
            for s in inner("inner", size, -2):
                y = state(f"y_{t}_{s}", MOVE[y])
                see(f"v_{t}_{s}", LOC[y], SEEN[0])
            see(f"u_{t}", LOC[x], SEEN[1])

    elbo, found = TraceEnum_ELBO(max_plate_nesting=2), []
    for outer in (one_by_one, at_once):
        for inner in (one_by_one, at_once):
            found.append(elbo.loss(lambda outer=outer, inner=inner: model(outer, inner), nothing))
    assert found == pytest.approx([found[0]] * 4, rel=1e-12)


# ---- draws


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_of_the_prior(parallel):
    def run(loop):
        return Predictive(lambda: hmm(loop), num_samples=4, parallel=parallel)()

    found, expected = both(run)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_importance():
    def run(loop):
        posterior = Importance(lambda: hmm(loop), num_samples=5).run()
        return torch.stack([torch.as_tensor(weight) for weight in posterior.log_weights])

    assert_same(run)


def test_decoding_returns_what_the_program_returns():
    def model(loop):
        x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", 3 * LOC[x], 4 * SEEN[t])
        return x

    found = both(lambda loop: infer_discrete(lambda: model(loop), first_available_dim=-2, temperature=0)())
    assert found[0].reshape(()) == found[1]


# ---- what is impossible

ONLY = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)


def impossible(loop, table=ONLY):
    """Sequence 1 shows another state at step 4 than the one it cannot leave."""
    seen = torch.zeros(3, STEPS, dtype=torch.int64)
    seen[1, 4] = 1
    rows = torch.arange(3)[:, None]
    with sumprod.plate("rows", 3, dim=-2):
        x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", table[x])
            sumprod.sample(f"y_{t}", Categorical(logits=table[x]), obs=Vindex(seen)[rows, t])


@EACH
@pytest.mark.parametrize("algorithm", ["loss", "infer_discrete"])
def test_impossible_data_say_where(loop, algorithm):
    def model():
        impossible(loop)

    def loss():
        TraceEnum_ELBO(max_plate_nesting=2).loss(model, nothing)

    run = loss if algorithm == "loss" else infer_discrete(model, first_available_dim=-3)
    with pytest.raises(sumprod.SupportError, match="'y_4', at index 1 of plate 'rows'") as caught:
        run()
    assert (caught.value.site, caught.value.time, dict(caught.value.plate_index)) == ("y_4", 4, {"rows": 1})


@EACH
def test_impossible_data_without_validation(loop):
    table = ONLY.clone().requires_grad_()
    with sumprod.validation_enabled(False):
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        loss = elbo.differentiable_loss(lambda: impossible(loop, table), nothing)
        assert loss == torch.inf
        assert (torch.autograd.grad(loss, table)[0] == 0).all()


def test_names_of_decoded_sites():
    decoded = infer_discrete(lambda: hmm(at_once), first_available_dim=-2, temperature=0)
    nodes = trace(decoded).get_trace().nodes
    assert [name for name in nodes if name[0] == "x"] == ["x_0", "x_slice(1, 6, None)"]
    assert nodes["x_slice(1, 6, None)"]["value"].shape == (5,)


def decoded_trace():
    decoded = infer_discrete(lambda: hmm(at_once), first_available_dim=-2, temperature=0)
    return trace(decoded).get_trace()


def test_what_was_decoded_can_be_replayed():
    found = decoded_trace()
    again = trace(replay(lambda: hmm(at_once), trace=found)).get_trace()
    torch.testing.assert_close(again.log_prob_sum(), found.log_prob_sum(), rtol=1e-12, atol=0)


def test_what_was_decoded_can_be_given():
    found = decoded_trace()
    data = {name: site["value"] for name, site in found.nodes.items() if name.startswith("x_")}
    again = trace(condition(lambda: hmm(at_once), data=data)).get_trace()
    torch.testing.assert_close(again.log_prob_sum(), found.log_prob_sum(), rtol=1e-12, atol=0)


def test_predictive_of_the_posterior():
    """Decoded for each sample of other sites."""

    def model(loop):
        loc = sumprod.sample("loc", Normal(0 * ONE, ONE))
        x = torch.tensor(0)
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x] + loc, SEEN[t])

    samples = {"loc": data(3)}
    found, expected = both(
        lambda loop: Predictive(lambda: model(loop), posterior_samples=samples, infer_discrete=0)()
    )
    states = torch.cat([found["x_0"].reshape(3, 1), found["x_slice(1, 6, None)"].reshape(3, 5)], -1)
    assert states.equal(torch.stack([expected[f"x_{t}"].reshape(3) for t in range(STEPS)], -1))


@pytest.mark.parametrize("loop", [one_by_one, at_once])
def test_a_step_leaves_nothing_to_collect(loop):
    """Tensors of a step are freed when it ends, not when cycles are looked for."""

    @config_enumerate
    def model():
        x = torch.tensor(0)
        for t in loop("time", 5, -1):
            x = sumprod.sample(f"x_{t}", Categorical(torch.tensor([[0.9, 0.1], [0.2, 0.8]])[x]))

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(5):  # the first runs of a program are looked at more closely
        elbo.loss(model, nothing)
    gc.collect()
    gc.disable()
    try:
        elbo.loss(model, nothing)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("loop", [one_by_one, at_once])
def test_factors_of_impossible_evidence_are_named_once(loop):
    @config_enumerate
    def model():
        x = torch.tensor(0)
        for t in loop("time", 4, -1):
            x = sumprod.sample(f"x_{t}", Categorical(torch.tensor([[0.9, 0.1], [0.2, 0.8]])[x]))
            possible = (torch.as_tensor(t) != 2).float().unsqueeze(-1).log()
            sumprod.factor(f"f_{t}", possible.squeeze(-1) + 0.0 * x)

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.raises(sumprod.SupportError) as caught:
        elbo.compute_marginals(model, nothing)
    assert caught.value.site == "f_2"
    assert len(set(caught.value.factors)) == len(caught.value.factors)
