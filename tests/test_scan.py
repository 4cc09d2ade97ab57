"""`sumprod.scan`: chains by a carry, against the loop written out."""

import pytest
import torch

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.handlers import mask, trace
from sumprod.infer import Predictive, TraceEnum_ELBO, infer_discrete
from sumprod.ops.indexing import Vindex
from tests.infer.vectorized_programs import data, see, state
from tests.infer.vectorized_runs import nothing

MOVE = torch.tensor([[0.3, -0.5], [1.0, 0.2]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 1.5], dtype=torch.float64)
ZERO = torch.tensor(0)
STEPS, BATCH = 5, 3
SEEN = data(STEPS)
WIDE = data(STEPS, BATCH, 2)
THERE = torch.arange(STEPS)[:, None] < torch.tensor([5, 1, 3])
PROGRAMS = {}


def pair(*, nesting):
    """A function that gives (scan, loop)."""

    def add(fn):
        PROGRAMS[fn.__name__] = (*fn(), nesting)
        return fn

    return add


def step(x, seen):
    """A state that follows the last one, and is seen."""
    x = state("x", MOVE[x])
    see("y", LOC[x], seen)
    return x, x


@pair(nesting=1)
def hmm():
    def loop():
        x = ZERO
        for t in sumprod.markov(range(STEPS)):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x], SEEN[t])

    return lambda: sumprod.scan(step, ZERO, SEEN, dim=-1), loop


@pair(nesting=1)
def without_data():
    def step(x, nothing):
        assert nothing is None
        return state("x", MOVE[x]), None

    def loop():
        x = ZERO
        for t in sumprod.markov(range(4)):
            x = state(f"x_{t}", MOVE[x])

    return lambda: sumprod.scan(step, ZERO, None, 4, dim=-1), loop


@pair(nesting=1)
def from_the_last_step():
    def loop():
        x = ZERO
        for t in sumprod.markov(range(STEPS)):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x], SEEN[STEPS - 1 - t])

    return lambda: sumprod.scan(step, ZERO, SEEN, reverse=True, dim=-1), loop


@pair(nesting=1)
def two_steps_back():
    def step(carry, x):
        before, last = carry
        new = state("x", MOVE[last] + 0.5 * MOVE[before])
        see("y", LOC[new], x["seen"])
        return (last, new), {"state": new}

    def loop():
        before = last = ZERO
        for t in sumprod.markov(range(STEPS), history=2):
            before, last = last, state(f"x_{t}", MOVE[last] + 0.5 * MOVE[before])
            see(f"y_{t}", LOC[last], SEEN[t])

    return lambda: sumprod.scan(step, (ZERO, ZERO), {"seen": SEEN}, history=2, dim=-1), loop


@pair(nesting=2)
def ragged_sequences():
    """A dict is carried; data are masked, and some of them are events."""

    def step(carry, xs):
        seen, there = xs
        with mask(mask=there):
            w = state("w", MOVE[carry["w"]])
            x = state("x", Vindex(MOVE + LOC[:, None, None])[w, carry["x"]])
            loc = torch.stack([LOC[w] + x, LOC[x] + w], -1)
            fn = Normal(loc, torch.ones((), dtype=torch.float64)).to_event(1)
            sumprod.sample("y", fn, obs=seen)
        return {"w": w, "x": x}, (w, x)

    def program():
        with sumprod.plate("rows", BATCH, dim=-1):
            return sumprod.scan(step, {"w": ZERO, "x": ZERO}, (WIDE, THERE), dim=-2)

    def loop():
        w = x = ZERO
        with sumprod.plate("rows", BATCH, dim=-1):
            for t in sumprod.markov(range(STEPS)):
                with mask(mask=THERE[t]):
                    w = state(f"w_{t}", MOVE[w])
                    x = state(f"x_{t}", Vindex(MOVE + LOC[:, None, None])[w, x])
                    loc = torch.stack([LOC[w] + x, LOC[x] + w], -1)
                    fn = Normal(loc, torch.ones((), dtype=torch.float64)).to_event(1)
                    sumprod.sample(f"y_{t}", fn, obs=WIDE[t])

    return program, loop


EACH = pytest.mark.parametrize(("program", "loop", "nesting"), PROGRAMS.values(), ids=PROGRAMS)


@EACH
def test_loss(program, loop, nesting):
    for options in ({"max_plate_nesting": nesting}, {}):
        elbo = TraceEnum_ELBO(**options)
        assert elbo.loss(program, nothing) == pytest.approx(elbo.loss(loop, nothing), rel=1e-12, abs=1e-14)


@EACH
def test_one_site_stands_for_many_steps(program, loop, nesting):
    decoded = trace(infer_discrete(program, first_available_dim=-1 - nesting, temperature=0)).get_trace()
    steps = sum(name.startswith("x_") for name in trace(loop).get_trace().nodes)
    names = [name for name in decoded.nodes if name.startswith("x_")]
    history = 2 if program is PROGRAMS["two_steps_back"][0] else 1
    assert names == [*(f"x_{t}" for t in range(history)), f"x_slice({history}, {steps}, None)"]


@EACH
def test_decoding(program, loop, nesting):
    """The result has the states of all steps along dim 0: those of the loop."""
    carry, ys = infer_discrete(program, first_available_dim=-1 - nesting, temperature=0)()
    best = trace(infer_discrete(loop, first_available_dim=-1 - nesting, temperature=0)).get_trace().nodes
    states = [site["value"] for name, site in best.items() if name.startswith("x_")]
    expected = torch.stack(torch.broadcast_tensors(*states))
    if program is PROGRAMS["without_data"][0]:
        assert ys is None
        assert carry.reshape(()) == expected[-1]
        return
    found = ys["state"] if isinstance(ys, dict) else ys[1] if isinstance(ys, tuple) else ys
    last = carry["x"] if isinstance(carry, dict) else carry[1] if isinstance(carry, tuple) else carry
    if program is PROGRAMS["from_the_last_step"][0]:
        expected = expected.flip(0)
        assert (last.reshape(-1) == expected[0].reshape(-1)).all()
    else:
        assert (last.reshape(-1) == expected[-1].reshape(-1)).all()
    assert found.reshape(expected.shape).equal(expected)


@EACH
def test_a_plain_run_is_the_loop(program, loop, nesting):
    torch.manual_seed(0)
    found = trace(program).get_trace()
    torch.manual_seed(0)
    expected = trace(loop).get_trace()
    assert list(found.nodes) == list(expected.nodes)
    torch.testing.assert_close(found.log_prob_sum(), expected.log_prob_sum(), rtol=0, atol=0)


def test_results_of_a_plain_run():
    torch.manual_seed(0)
    nodes = trace(PROGRAMS["hmm"][0]).get_trace().nodes
    carry, ys = nodes["_RETURN"]["value"]
    states = torch.stack([nodes[f"x_{t}"]["value"] for t in range(STEPS)])
    assert ys.equal(states)
    assert carry == states[-1]


def test_results_while_states_are_enumerated():
    results = []

    def model():
        results.append(PROGRAMS["hmm"][0]())
        carry = results[-1][0]
        see("end", LOC[carry], torch.tensor(0.5).double())

    def loop():
        x = ZERO
        for t in sumprod.markov(range(STEPS)):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x], SEEN[t])
        see("end", LOC[x], torch.tensor(0.5).double())

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert elbo.loss(model, nothing) == pytest.approx(elbo.loss(loop, nothing), rel=1e-12)
    assert results[-1][1] is None


def test_the_transition_runs_three_times():
    calls = []

    def step(x, seen):
        calls.append(seen.shape)
        x = state("x", MOVE[x])
        see("y", LOC[x], seen)
        return x, None

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    elbo.loss(lambda: sumprod.scan(step, ZERO, data(400), dim=-1), nothing)
    assert calls == [(), (399,), (399,)]


def test_predictive():
    torch.manual_seed(0)
    found = Predictive(PROGRAMS["hmm"][0], num_samples=3)()
    assert {name: value.shape for name, value in found.items()} == {
        f"{name}_{t}": (3,) for t in range(STEPS) for name in "xy"
    }


@pytest.mark.parametrize(
    ("xs", "length", "error", "text"),
    [
        (None, None, TypeError, "scan: expected xs, or length"),
        ((SEEN, data(4)), None, ValueError, r"one length, got shapes \(5,\), \(4,\)"),
        (SEEN, 4, ValueError, "must have one length"),
        ((SEEN, torch.tensor(1.0)), None, TypeError, "all steps along dim 0, got tensor"),
        ([1, 2], None, TypeError, "xs must hold tensors"),
        (data(0), None, ValueError, "Expected size > 0, got 0"),
        (None, -1, ValueError, "Expected size > 0, got -1"),
    ],
)
def test_arguments(xs, length, error, text):
    with pytest.raises(error, match=text):
        sumprod.scan(lambda x, y: (state("x", MOVE[x]), None), ZERO, xs, length)


def test_steps_must_be_left_of_plates():
    def model():
        with sumprod.plate("rows", BATCH, dim=-2):
            sumprod.scan(lambda x, y: (state("x", MOVE[x]), None), ZERO, WIDE, dim=-1)

    with pytest.raises(
        ValueError, match=r"plate 'rows' at dim -2 is left of the steps at dim -1(.|\n)*dim=-3"
    ):
        TraceEnum_ELBO(max_plate_nesting=2).loss(model, nothing)


@pytest.mark.parametrize(("result", "got"), [(None, "NoneType"), (ZERO, "Tensor"), ((ZERO,), "tuple")])
def test_a_transition_that_returns_no_pair(result, got):
    with pytest.raises(TypeError, match=rf"must return a pair \(carry, y\), got {got}"):
        sumprod.scan(lambda x, y: result, ZERO, SEEN)


def test_a_continuous_state():
    """Steps with a continuous state run one by one."""

    def step(x, seen):
        z = sumprod.sample("z", Normal(torch.as_tensor(x).double(), torch.ones(()).double()))
        sumprod.sample("y", Categorical(logits=torch.stack([z, -z], -1)), obs=(seen > 0).long())
        return z, z

    torch.manual_seed(0)
    nodes = trace(lambda: sumprod.scan(step, torch.zeros(()), SEEN)).get_trace().nodes
    _, ys = nodes["_RETURN"]["value"]
    assert ys.equal(torch.stack([nodes[f"z_{t}"]["value"] for t in range(STEPS)]))
