"""`vectorized_markov`: what its loop yields, what traces show, and what it refuses."""

import pytest
import torch

import sumprod
from sumprod.distributions import Categorical
from sumprod.handlers import condition, do, replay, trace
from sumprod.infer import TraceEnum_ELBO
from tests.infer.vectorized_programs import at_once, data, one_by_one, see, state

MOVE = torch.tensor([[0.3, -0.5], [1.0, 0.2]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 1.5], dtype=torch.float64)
SEEN = data(50)


def hmm(loop=at_once, size=6, dim=-1, history=1, mark="parallel"):
    x, steps = torch.tensor(0), []
    for t in loop("time", size, dim, history):
        steps.append(t)
        x = sumprod.sample(f"x_{t}", Categorical(logits=MOVE[x]), infer={"enumerate": mark} if mark else {})
        see(f"y_{t}", LOC[x], SEEN[t])
    return steps


def nothing():
    pass


def enumerated(model, nesting=1):
    """The trace of a model in which states are enumerated."""
    (pair,) = TraceEnum_ELBO(max_plate_nesting=nesting)._get_traces(model, nothing, (), {})
    return pair[0]


def loss(model, nesting=1, **options):
    return TraceEnum_ELBO(max_plate_nesting=nesting, **options).loss(model, nothing)


# ---- what the loop yields


@pytest.mark.parametrize("history", [0, 1, 2, 3])
def test_steps_that_run_at_once(history):
    steps = enumerated(lambda: hmm(history=history)).nodes["_RETURN"]["value"]
    numbers, tensors = steps[:history], steps[history:]
    assert numbers == list(range(history))
    assert all(type(t) is int for t in numbers)
    assert [t.tolist() for t in tensors] == [list(range(k, 6 - history + k)) for k in range(history + 1)]
    assert all(isinstance(t, torch.Tensor) and t.dtype == torch.int64 for t in tensors)
    assert [str(t) for t in tensors] == [f"slice({k}, {6 - history + k}, None)" for k in range(history + 1)]
    assert f"{tensors[-1]}" == str(tensors[-1])


def test_steps_are_ordinary_in_operations():
    last = enumerated(hmm).nodes["_RETURN"]["value"][-1]
    assert type(last + 1) is torch.Tensor
    assert type(last < 3) is torch.Tensor
    assert (SEEN[last] == SEEN[1:6]).all()
    assert last.unsqueeze(-1).shape == (5, 1)


@pytest.mark.parametrize("size", [2, 6, 50])
def test_a_trace_shows_the_first_steps_and_all_others_as_one(size):
    found = enumerated(lambda: hmm(size=size))
    rest = f"slice(1, {size}, None)"
    assert list(found.nodes) == ["_INPUT", "x_0", "y_0", f"x_{rest}", f"y_{rest}", "_RETURN"]
    frames = [
        [(f.name, f.dim, f.size) for f in s["cond_indep_stack"]] for s in found.nodes.values() if "fn" in s
    ]
    assert frames == [[], [], [("time", -1, size - 1)], [("time", -1, size - 1)]]


def test_a_plain_run_is_the_loop():
    torch.manual_seed(0)
    found = trace(hmm).get_trace()
    torch.manual_seed(0)
    expected = trace(lambda: hmm(one_by_one)).get_trace()
    assert list(found.nodes) == list(expected.nodes)
    assert found.nodes["_RETURN"]["value"] == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(found.log_prob_sum(), expected.log_prob_sum(), rtol=0, atol=0)
    assert not any(site.get("cond_indep_stack") for site in found.nodes.values())


def test_an_iterator_runs_again_and_again():
    steps = sumprod.vectorized_markov(name="time", size=6, dim=-1)
    expected = loss(hmm)
    assert [loss(lambda: hmm(lambda *args: steps)) for _ in range(3)] == [expected] * 3

    def twice(loop):
        hmm(loop)
        x = torch.tensor(1)
        for t in loop("time", 6, -1):
            x = state(f"w_{t}", MOVE[x])
            see(f"v_{t}", LOC[x], SEEN[t])

    assert loss(lambda: twice(lambda *args: steps)) == pytest.approx(
        loss(lambda: twice(one_by_one)), rel=1e-12
    )


def test_a_loop_left_early_leaves_nothing_active():
    def stop(at):
        for i, t in enumerate(at_once("time", 6, -1)):
            state(f"x_{t}", MOVE[0])
            if i == at:
                raise KeyError("stop")

    for at in range(3):
        with pytest.raises(KeyError):
            loss(lambda at=at: stop(at))
        assert not sumprod.runtime.handler_stack()
    assert loss(hmm) == pytest.approx(loss(lambda: hmm(one_by_one)), rel=1e-12)


# ---- when the steps run one by one


@pytest.mark.parametrize("handler", [condition, do])
def test_given_states(handler):
    pair = [
        loss(handler(lambda by=by: hmm(by), data={"x_0": torch.tensor(1)})) for by in (at_once, one_by_one)
    ]
    assert pair[0] == pytest.approx(pair[1], rel=1e-12)


def test_a_given_state_in_the_middle():
    given = {"x_3": torch.tensor(1)}
    found = enumerated(condition(hmm, data=given))
    assert found.nodes["_RETURN"]["value"] == list(range(6))
    expected = loss(condition(lambda: hmm(one_by_one), data=given))
    assert loss(condition(hmm, data=given)) == pytest.approx(expected, rel=1e-12)


def test_states_given_for_many_steps():
    """Under the name that a trace has for them; those of the other states are summed out."""

    def model(loop):
        w = x = torch.tensor(0)
        for t in loop("time", 6, -1):
            w = state(f"w_{t}", MOVE[w])
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x] + w, SEEN[t])

    numbers = torch.tensor([1, 0, 1, 1, 0, 1])
    given = condition(lambda: model(at_once), data={"w_0": numbers[0], "w_slice(1, 6, None)": numbers[1:]})
    by_step = {f"w_{t}": number for t, number in enumerate(numbers)}
    expected = loss(condition(lambda: model(one_by_one), data=by_step))
    assert loss(given) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"'x_slice.* has no values, but other states have values for many"):
        given()


def test_interventions_are_for_single_steps():
    given = {"x_0": torch.tensor(0), "x_slice(1, 6, None)": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(ValueError, match="stands for many steps; give each by its own name, as 'x_0'"):
        loss(do(hmm, data=given))


def test_replayed_states():
    drawn = trace(hmm).get_trace()
    again = trace(replay(hmm, trace=drawn)).get_trace()
    torch.testing.assert_close(again.log_prob_sum(), drawn.log_prob_sum(), rtol=0, atol=0)


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, TypeError, "'time' needs its number of steps: size="),
        ({"size": True}, TypeError, "size of vectorized_markov 'time' to be an int, got True"),
        ({"size": 2.0}, TypeError, "to be an int, got 2.0"),
        ({"size": torch.tensor(3)}, TypeError, r"to be an int, got tensor\(3\)"),
        ({"size": 0}, ValueError, "Expected size > 0, got 0"),
        ({"size": -1}, ValueError, "Expected size > 0, got -1"),
        ({"size": 3, "dim": 0}, ValueError, "Expected dim < 0 to index from the right, actual 0"),
        ({"size": 3, "dim": 2}, ValueError, "Expected dim < 0 to index from the right, actual 2"),
        ({"size": 3, "dim": -1.0}, ValueError, "Expected dim < 0 to index from the right, actual -1.0"),
        ({"size": 3, "history": -1}, ValueError, "Expected history to be an int >= 0, got -1"),
        ({"size": 3, "history": True}, ValueError, "Expected history to be an int >= 0, got True"),
        ({"size": 3, "history": 1.0}, ValueError, "Expected history to be an int >= 0, got 1.0"),
        ({"fn": range(3), "size": 3}, NotImplementedError, "for t in vectorized_markov"),
    ],
)
def test_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        sumprod.vectorized_markov(**arguments)


def test_the_dim_is_taken():
    def model():
        with sumprod.plate("rows", 3, dim=-1):
            hmm()

    with pytest.raises(ValueError, match="at plates 'time' and 'rows', collide at dim=-1"):
        loss(model)
    trace(model).get_trace()  # one by one there is no such dim


def test_the_dim_is_left_of_max_plate_nesting():
    with pytest.raises(ValueError, match=r"'time' are at dim -1(.|\n)*max_plate_nesting to at least 1"):
        loss(hmm, nesting=0)


def test_steps_with_other_sites():
    def model():
        x = torch.tensor(0)
        for t in at_once("time", 4, -1):
            x = state(f"x_{t}", MOVE[x])
            if isinstance(t, int):
                state(f"z_{t}", MOVE[x])

    with pytest.raises(ValueError, match=r"same latent sites.*\['x_0', 'z_0'\] and \['x_slice\(1, 4"):
        loss(model)


def test_steps_with_other_numbers_of_values():
    def model():
        x = None
        for t in at_once("time", 4, -1):
            x = state(f"x_{t}", torch.zeros(3) if x is None else torch.zeros(3, 2)[x])

    with pytest.raises(ValueError, match=r"same numbers of values at all steps, but found \[3\] and \[2\]"):
        loss(model)


@pytest.mark.parametrize("rounds", [2, 3])
def test_break(rounds):
    """Steps that run at once cannot be left; the first ones can."""

    def model(loop, rounds):
        x = torch.tensor(0)
        for i, t in enumerate(loop("time", 6, -1)):
            x = state(f"x_{t}", MOVE[x])
            see(f"y_{t}", LOC[x], SEEN[t])
            if i + 1 == rounds:
                break

    with pytest.raises(ValueError, match=r"left before its end, by `break`(.|\n)*Use markov\(range\(n\)\)"):
        loss(lambda: model(at_once, rounds))
    assert loss(lambda: model(at_once, 1)) == pytest.approx(loss(lambda: model(one_by_one, 1)), rel=1e-12)
    torch.manual_seed(0)
    names = list(trace(lambda: model(at_once, rounds)).get_trace().nodes)
    assert names[1:-1] == [f"{name}_{t}" for t in range(rounds) for name in "xy"]


def test_one_name_for_all_steps():
    def model():
        for _ in at_once("time", 4, -1):
            state("x", MOVE[0])

    with pytest.raises(RuntimeError, match="Multiple sample sites named 'x'"):
        loss(model)


def test_a_state_two_steps_back_needs_a_longer_history():
    def model(loop):
        x = before = torch.tensor(0)
        for t in loop("time", 5, -1):
            before, x = x, state(f"x_{t}", MOVE[x] + before[..., None])
            see(f"y_{t}", LOC[x], SEEN[t])

    for by in (one_by_one, at_once):
        with pytest.raises(ValueError, match="history"):
            loss(lambda by=by: model(by))
