"""Each handler's effect."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from queue import LifoQueue, Queue

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Delta, Gamma, Normal
from sumprod.handlers import Trace
from sumprod.handlers.util import all_escape, mc_extend, site_is_factor


def model():
    p = sumprod.param("p", torch.tensor(0.5))
    x = sumprod.sample("x", Normal(p, 1.0))
    sumprod.sample("y", Normal(x, 1.0), obs=torch.tensor(3.0))
    return x


def names(trace):
    return [n for n, s in trace.nodes.items() if s["type"] in ("sample", "param")]


# ---- replay


def test_replay_takes_value_and_infer():
    guide = handlers.trace(lambda: sumprod.sample("x", Normal(9.0, 0.1), infer={"mark": 1})).get_trace()
    replayed = handlers.trace(handlers.replay(model, trace=guide)).get_trace()
    assert replayed.nodes["x"]["value"] is guide.nodes["x"]["value"]
    assert replayed.nodes["x"]["infer"] == {"mark": 1}
    assert replayed.nodes["y"]["value"] == 3.0
    assert replayed.nodes["x"]["fn"].loc == 0.5


# Trap 8
def test_trap_08_replay_hands_over_infer_without_sharing_it():
    guide = handlers.trace(lambda: sumprod.sample("x", Normal(0.0, 1.0), infer={"mark": 1})).get_trace()
    with handlers.infer_config(config_fn=lambda site: {"extra": 2}):
        handlers.trace(handlers.replay(model, trace=guide)).get_trace()
    assert guide.nodes["x"]["infer"] == {"mark": 1}


def test_replay_refuses_other_kinds_of_site():
    observed = handlers.trace(
        lambda: sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(1.0))
    ).get_trace()
    with pytest.raises(RuntimeError, match="site 'x' must be sampled in trace"):
        handlers.replay(model, trace=observed)()
    param = handlers.trace(lambda: sumprod.param("x", torch.tensor(1.0))).get_trace()
    with pytest.raises(RuntimeError, match=r"must be sampled in trace.*a param site"):
        handlers.replay(model, trace=param)()
    with pytest.raises(ValueError, match="must provide trace or params"):
        handlers.replay(model)


def test_replay_of_params():
    sumprod.param("p", torch.tensor(0.5))
    other = sumprod.param("q", torch.tensor(7.0))
    trace = handlers.trace(handlers.replay(model, params={"p": other})).get_trace()
    assert trace.nodes["x"]["fn"].loc == 7.0
    assert trace.nodes["p"]["value"] is other
    with pytest.raises(TypeError, match="param 'p' to be replayed has no attribute 'unconstrained'"):
        handlers.replay(model, params={"p": torch.tensor(1.0)})()


# ---- condition, uncondition


def test_condition():
    trace = handlers.trace(handlers.condition(model, data={"x": torch.tensor(2.0)})).get_trace()
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["value"] == 2.0
    again = handlers.trace(handlers.condition(model, data={"y": torch.tensor(8.0)})).get_trace()
    assert again.nodes["y"]["value"] == 8.0
    latent = handlers.trace(handlers.condition(model, data={"y": None})).get_trace()
    assert not latent.nodes["y"]["is_observed"]
    from_trace = handlers.trace(handlers.condition(data=trace)(model)).get_trace()
    assert from_trace.nodes["x"]["is_observed"]
    assert (
        handlers.trace(handlers.condition({"x": torch.tensor(2.0)})(model)).get_trace().nodes["x"]["value"]
        == 2
    )
    with pytest.raises(ValueError, match="condition needs data"):
        handlers.condition(model)


def test_condition_warns_of_unknown_names():
    conditioned = handlers.condition(model, data={"absent": torch.tensor(2.0)})
    with pytest.warns(UserWarning, match="no sample site named 'absent'"):
        conditioned()
    with handlers.validation_enabled(False):
        conditioned()


def test_uncondition():
    trace = handlers.trace(handlers.uncondition(model)).get_trace()
    site = trace.nodes["y"]
    assert not site["is_observed"]
    assert site["value"] != 3.0
    assert site["infer"] == {"was_observed": True, "obs": torch.tensor(3.0)}


# ---- do


def test_do_splits_the_site():
    def program():
        with sumprod.plate("data", 3), handlers.scale(scale=2.0):
            x = sumprod.sample("x", Normal(0.0, 1.0))
            sumprod.sample("y", Normal(x, 1.0))
            return x

    trace = handlers.trace(handlers.do(program, data={"x": torch.tensor([5.0, 6.0, 7.0])})).get_trace()
    assert trace.nodes["_RETURN"]["value"].tolist() == [5.0, 6.0, 7.0]
    assert names(trace) == ["data", "x", "y"]
    x = trace.nodes["x"]
    assert not x["is_observed"]
    assert x["value"].shape == (3,)
    assert x["value"].tolist() != [5.0, 6.0, 7.0]
    assert x["scale"] == 2.0
    assert [f.name for f in x["cond_indep_stack"]] == ["data"]
    assert trace.nodes["y"]["fn"].loc.tolist() == [5.0, 6.0, 7.0]


def test_do_edges():
    with pytest.warns(RuntimeWarning, match="multiple times"):
        handlers.do(handlers.do(model, data={"x": 1.0}), data={"x": 2.0})()
    with pytest.raises(NotImplementedError, match=r"Interventions of type str.*'x'"):
        handlers.do(model, data={"x": "no"})()
    with pytest.raises(ValueError, match="do needs data"):
        handlers.do(model)
    assert handlers.do({"x": 4.0})(model)() == 4.0
    observed = handlers.trace(
        handlers.do(handlers.condition(model, data={"x": torch.tensor(2.0)}), data={"x": 4.0})
    ).get_trace()
    assert observed.nodes["x"]["value"] == 2.0
    assert observed.nodes["_RETURN"]["value"] == 4.0


# ---- block


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"hide": ["x"]}, ["p", "y"]),
        ({"expose": ["x"]}, ["x"]),
        ({"hide_types": ["observe"]}, ["p", "x"]),
        ({"hide_types": ["sample"]}, ["p", "y"]),
        ({"expose_types": ["param", "observe"]}, ["p", "y"]),
        ({"hide": ["x"], "hide_types": ["param"]}, ["y"]),
        ({"expose_all": True}, ["p", "x", "y"]),
        ({"hide_all": False}, ["p", "x", "y"]),
        ({"hide_fn": lambda site: site["name"] == "y"}, ["p", "x"]),
        ({"expose_fn": lambda site: site["name"] == "y"}, ["y"]),
    ],
)
def test_block(arguments, expected):
    assert names(handlers.trace(handlers.block(model, **arguments)).get_trace()) == expected


def test_a_block_can_be_pickled():
    copied = pickle.loads(pickle.dumps(handlers.block(hide=["x"])))
    assert names(handlers.trace(copied(model)).get_trace()) == ["p", "y"]


def test_block_conflicts():
    with pytest.raises(ValueError, match="Only specify one of hide_fn or expose_fn"):
        handlers.block(model, hide_fn=bool, expose_fn=bool)
    with pytest.raises(AssertionError, match=r"cannot hide and expose a site: .'x'"):
        handlers.block(model, hide=["x"], expose=["x", "y"])


def test_handlers_inside_a_block_still_act():
    with handlers.trace() as outside, handlers.block(), handlers.trace() as inside:
        model()
    assert names(outside.trace) == []
    assert names(inside.trace) == ["p", "x", "y"]


# ---- scale, mask


def test_scale():
    with handlers.scale(scale=2.0), handlers.scale(scale=torch.tensor([1.0, 3.0])), handlers.trace() as trace:
        sumprod.sample("x", Normal(torch.zeros(2), 1.0), obs=torch.zeros(2))
    assert trace.trace.nodes["x"]["scale"].tolist() == [2.0, 6.0]
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="Expected scale > 0"):
            handlers.scale(scale=bad)
    with pytest.raises(ValueError, match="Expected scale > 0"):
        handlers.scale(scale=torch.tensor([1.0, 0.0]))
    with handlers.validation_enabled(False):
        handlers.scale(scale=torch.tensor([1.0, 0.0]))
    with pytest.raises(TypeError, match="Expected scale to be a number or a tensor, got str"):
        handlers.scale(scale="2")


def test_mask():
    outer, inner = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    with handlers.trace() as trace, handlers.mask(mask=outer), handlers.mask(mask=inner):
        value = sumprod.sample("x", Normal(torch.zeros(3), 1.0))
    assert trace.trace.nodes["x"]["mask"].tolist() == [True, False, False]
    trace.trace.compute_log_prob()
    assert trace.trace.nodes["x"]["log_prob"][1:].tolist() == [0.0, 0.0]
    assert (value != 0).all()
    with handlers.trace() as trace, handlers.mask(mask=torch.tensor([1, 0, 1], dtype=torch.uint8)):
        sumprod.sample("x", Normal(torch.zeros(3), 1.0))
    assert trace.trace.nodes["x"]["mask"].tolist() == [True, False, True]
    for bad in (1.0, torch.ones(3), None):
        with pytest.raises(ValueError, match="Expected mask to be"):
            handlers.mask(mask=bad)


def test_mask_false_skips_the_density():
    with handlers.trace() as trace, handlers.mask(mask=False):
        sumprod.sample("x", Normal(0.0, 1.0))
    assert trace.trace.log_prob_sum() == 0.0


# ---- lift, substitute


def test_lift_by_distribution_dict_and_callable():
    def program():
        return sumprod.param("a", torch.tensor(0.0)), sumprod.param("b", torch.tensor(0.0))

    trace = handlers.trace(handlers.lift(program, prior=Normal(5.0, 0.1))).get_trace()
    assert {n: trace.nodes[n]["type"] for n in "ab"} == {"a": "sample", "b": "sample"}
    assert trace.nodes["a"]["value"] > 3.0
    trace = handlers.trace(handlers.lift(program, prior={"a": Normal(5.0, 0.1)})).get_trace()
    assert {n: trace.nodes[n]["type"] for n in "ab"} == {"a": "sample", "b": "param"}
    draws = handlers.lift(program, prior=lambda *args: torch.tensor(7.0))()
    assert [d.item() for d in draws] == [7.0, 7.0]
    with pytest.warns(UserWarning, match="prior did not find params 'absent'"):
        handlers.lift(program, prior={"absent": Normal(0.0, 1.0)})()
    with pytest.raises(TypeError, match="Expected prior to be"):
        handlers.lift(program, prior=3)


def test_lift_draws_a_param_once_per_run():
    def program():
        return sumprod.param("a", torch.tensor(0.0)), sumprod.param("a")

    lifted = handlers.lift(program, prior=Normal(0.0, 1.0))
    trace = handlers.trace(lifted).get_trace()
    first, second = trace.nodes["_RETURN"]["value"]
    assert first is second
    assert lifted()[0] != first


def test_substitute():
    trace = handlers.trace(handlers.substitute(model, data={"p": torch.tensor(100.0)})).get_trace()
    assert trace.nodes["x"]["fn"].loc == 100.0
    assert "p" not in sumprod.get_param_store()
    with pytest.warns(UserWarning, match="no param named 'q'"):
        handlers.substitute(model, data={"q": torch.tensor(1.0)})()


# ---- seed, infer_config, broadcast


def test_seed_restores_the_generator():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = handlers.seed(model, rng_seed=1)()

    @handlers.seed(rng_seed=1)
    def fails():
        assert model() == first
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(torch.rand(2), expected)
    assert handlers.seed(1)(model)() == first
    with pytest.raises(ValueError, match="needs rng_seed"):
        handlers.seed(model)
    with pytest.raises(TypeError, match="rng_seed to be an int, got str"):
        handlers.seed(model, rng_seed="1")


def test_infer_config():
    trace = handlers.trace(handlers.infer_config(model, config_fn=lambda s: {"seen": s["name"]})).get_trace()
    assert [trace.nodes[n]["infer"]["seen"] for n in ("p", "x", "y")] == ["p", "x", "y"]


def test_infer_is_copied():
    options = {"mine": 1}
    with handlers.infer_config(config_fn=lambda site: {"other": 2}), handlers.trace() as trace:
        sumprod.sample("x", Normal(0.0, 1.0), infer=options)
    assert options == {"mine": 1}
    assert trace.trace.nodes["x"]["infer"] == {"mine": 1, "other": 2}


# ---- queue, escape


def discrete_model():
    a = sumprod.sample("a", Bernoulli(0.5))
    b = sumprod.sample("b", Categorical(torch.ones(3) / 3)) if a else torch.tensor(0)
    return int(a), int(b)


@pytest.mark.parametrize("make_queue", [Queue, LifoQueue])
def test_queue_visits_every_combination(make_queue):
    queue = make_queue()
    queue.put(Trace())
    run = handlers.queue(discrete_model, queue)
    results = []
    while not queue.empty():
        results.append(run())
    assert sorted(results) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_queue_edges():
    with pytest.raises(AssertionError, match="empty queue"):
        handlers.queue(discrete_model, Queue())()
    queue = Queue()
    queue.put(Trace())
    with pytest.raises(ValueError, match=r"max tries \(2\) exceeded"):
        handlers.queue(
            lambda: [discrete_model(), model(), sumprod.sample("c", Bernoulli(0.5))], queue, max_tries=2
        )()
    queue = Queue()
    queue.put(Trace())
    run = handlers.queue(discrete_model, queue, escape_fn=all_escape, extend_fn=mc_extend, num_samples=4)
    run()
    assert not queue.empty()


def test_queue_inside_plates_and_loops_leaves_no_dims_behind():
    def program():
        total = 0
        with sumprod.plate("rows", 2):
            for t in sumprod.markov(range(2)):
                total = total + sumprod.sample(f"z{t}", Bernoulli(0.5))
        return total

    queue = LifoQueue()
    queue.put(Trace())
    run = handlers.queue(program, queue)
    count = 0
    while not queue.empty():
        assert run().shape == (2,)
        count += 1
    assert count == 4
    assert sumprod.runtime.dim_allocator()._names == []


def test_escape():
    with pytest.raises(handlers.NonlocalExit) as exit:
        handlers.escape(model, escape_fn=lambda site: site["name"] == "x")()
    assert exit.value.site["name"] == "x"


# ---- markov


def scopes(program):
    trace = handlers.trace(program).get_trace()
    return {n: s["infer"].get("_markov_scope") for n, s in trace.nodes.items() if s["type"] == "sample"}


@pytest.mark.parametrize("history", [0, 1, 2])
def test_markov_scope_along_a_chain(history):
    def program():
        sumprod.sample("global", Normal(0.0, 1.0))
        for t in sumprod.markov(range(4), history=history):
            sumprod.sample(f"x{t}", Normal(0.0, 1.0))
        sumprod.sample("after", Normal(0.0, 1.0))

    found = scopes(program)
    assert found["global"] is None
    assert found["after"] is None
    for t in range(4):
        assert found[f"x{t}"] == Counter([f"x{s}" for s in range(max(0, t - history), t)])


def test_markov_context_and_decorator():
    def chain():
        with sumprod.markov() as contexts:
            sumprod.sample("a", Normal(0.0, 1.0))
            with contexts:
                sumprod.sample("b", Normal(0.0, 1.0))
            with contexts:
                sumprod.sample("c", Normal(0.0, 1.0))

    found = scopes(chain)
    assert found["b"] == Counter(["a"])
    assert found["c"] == Counter(["a"])

    @sumprod.markov
    def recurse(depth):
        if depth:
            sumprod.sample(f"x{depth}", Normal(0.0, 1.0))
            recurse(depth - 1)

    found = scopes(lambda: recurse(3))
    assert found == {"x3": Counter(), "x2": Counter(["x3"]), "x1": Counter(["x2"])}


def test_markov_keep_lets_siblings_see_each_other():
    def tree(keep):
        @sumprod.markov(keep=keep)
        def grow(name, depth):
            sumprod.sample(name, Normal(0.0, 1.0))
            if depth:
                grow(name + "l", depth - 1)
                grow(name + "r", depth - 1)

        return lambda: grow("t", 1)

    assert scopes(tree(False))["tr"] == Counter(["t"])
    assert scopes(tree(True))["tr"] == Counter(["t", "tl"])


def test_markov_depth_and_subsample_sites():
    def program():
        for t in sumprod.markov(range(2)):
            for u in sumprod.markov(range(2)):
                with sumprod.plate(f"p{t}{u}", 4, subsample_size=2):
                    sumprod.sample(f"x{t}{u}", Normal(0.0, 1.0))

    trace = handlers.trace(program).get_trace()
    assert trace.nodes["x11"]["infer"]["_markov_depth"] == 2
    assert "_markov_scope" not in trace.nodes["p11"]["infer"]


def test_markov_errors():
    with pytest.raises(ValueError, match="history to be an int >= 0, got -1"):
        sumprod.markov(range(3), history=-1)
    with pytest.raises(NotImplementedError, match="dim"):
        sumprod.markov(range(3), dim=-1)
    with pytest.raises(TypeError, match="markov without an iterable"):
        next(iter(sumprod.markov()))


def test_break_out_of_markov():
    for _ in sumprod.markov(range(10)):
        break
    with handlers.trace() as trace:
        sumprod.sample("x", Normal(0.0, 1.0))
    assert "_markov_scope" not in trace.trace.nodes["x"]["infer"]


# ---- helpers


def test_site_is_factor():
    def program():
        with sumprod.plate("p", 2), handlers.mask(mask=torch.tensor([True, False])):
            sumprod.factor("f", torch.zeros(2))
            sumprod.sample("x", Delta(torch.zeros(2)))
            sumprod.sample("g", Gamma(1.0, 1.0).mask(True))

    nodes = handlers.trace(program).get_trace().nodes
    assert [n for n, s in nodes.items() if site_is_factor(s)] == ["f"]
