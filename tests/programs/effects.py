"""Effect handlers: conditioning, intervention, replay, blocking and the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.programs.support import Draws, Outcome, params_of, program, trace_of


def scale_model(pyro: Any) -> Any:
    """Guess a weight, weigh it once."""
    dist = pyro.distributions

    def model(guess: float = 8.5) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(guess, 1.0))
        noise = pyro.param("noise", torch.tensor(0.75))
        return pyro.sample("measurement", dist.Normal(weight, noise))

    return model


@program()
def conditioning(pyro: Any) -> Outcome:
    """By dict, by trace, by decorator; values override observed ones; `None` makes a site latent again."""
    poutine, model = pyro.poutine, scale_model(pyro)
    data = {"measurement": torch.tensor(9.5)}
    by_dict = poutine.trace(pyro.condition(model, data=data)).get_trace(8.0)
    by_trace = poutine.trace(poutine.condition(model, data=by_dict)).get_trace()
    with poutine.trace() as block, poutine.condition(data=data):
        returned = model()
    other = poutine.condition(poutine.condition(model, data=data), data={"measurement": torch.tensor(1.0)})
    again = poutine.trace(poutine.uncondition(pyro.condition(model, data=data))).get_trace()
    return {
        "dict": trace_of(by_dict),
        "trace": trace_of(by_trace),
        "with": trace_of(block.trace),
        "returned": returned,
        "twice": trace_of(poutine.trace(other).get_trace()),
        "uncondition": trace_of(again),
        "was observed": bool(again.nodes["measurement"]["infer"]["was_observed"]),
    }


@program()
def interventions(pyro: Any) -> Outcome:
    """The effect of doing against that of seeing, in a model with a confounder."""
    dist, poutine = pyro.distributions, pyro.poutine

    def model(n: int) -> Tensor:
        with pyro.plate("people", n):
            u = pyro.sample("u", dist.Bernoulli(0.5))
            treated = pyro.sample("treated", dist.Bernoulli(0.1 + 0.8 * u))
            return pyro.sample("well", dist.Bernoulli(0.2 + 0.3 * treated + 0.4 * u))

    treat = pyro.do(model, data={"treated": torch.ones(400)})
    see = pyro.condition(model, data={"treated": torch.ones(400)})
    traces = {"do": poutine.trace(treat).get_trace(400), "see": poutine.trace(see).get_trace(400)}
    report: dict[str, Any] = {name: trace_of(trace) for name, trace in traces.items()}
    both = poutine.trace(poutine.do(scale_model(pyro), data={"weight": 3.0})).get_trace()
    return {**report, "number": {name: site["type"] for name, site in both.nodes.items()}}


@program()
def replay_and_block(pyro: Any) -> Outcome:
    """Latents from another trace; sites hidden by name, by type, by predicate, and all but some."""
    poutine, model = pyro.poutine, scale_model(pyro)
    first = poutine.trace(model).get_trace()
    replayed = poutine.trace(poutine.replay(model, trace=first)).get_trace()
    with poutine.replay(trace=first):
        inside = model()

    def names(function: Any) -> list[str]:
        return list(poutine.trace(function).get_trace().nodes)

    observed = pyro.condition(model, data={"measurement": torch.tensor(9.0)})
    return {
        "first": trace_of(first),
        "replayed": trace_of(replayed),
        "inside": inside,
        "all": names(poutine.block(model)),
        "hide": names(poutine.block(model, hide=["weight"])),
        "expose": names(poutine.block(model, expose=["weight"])),
        "hide types": names(poutine.block(model, hide_types=["param"])),
        "expose types": names(poutine.block(model, expose_types=["param"])),
        "hide observed": names(poutine.block(observed, hide_types=["observe"])),
        "hide fn": names(poutine.block(model, hide_fn=lambda site: site["name"].startswith("w"))),
        "expose fn": names(poutine.block(model, expose_fn=lambda site: site["type"] == "param")),
    }


@program()
def replay_of_parameters(pyro: Any) -> Outcome:
    """Substituted values of parameters: `replay(params=)` and `substitute`."""
    poutine, model = pyro.poutine, scale_model(pyro)
    poutine.trace(model).get_trace()
    stored = {"noise": pyro.get_param_store()["noise"]}
    replayed = poutine.trace(poutine.replay(model, params=stored)).get_trace()
    with poutine.trace() as traced, poutine.substitute(data={"noise": torch.tensor(2.0)}):
        model()
    return {"replayed": trace_of(replayed), "substituted": trace_of(traced.trace), "store": params_of(pyro)}


@program()
def seeds(pyro: Any) -> Outcome:
    """A seeded call gives the same draw wherever it stands and leaves the stream outside alone."""
    poutine, dist = pyro.poutine, pyro.distributions
    before = pyro.sample("a", dist.Normal(0.0, 1.0))
    seeded = poutine.seed(scale_model(pyro), rng_seed=7)
    values = [seeded().detach(), seeded().detach()]
    with poutine.seed(rng_seed=8):
        values.append(scale_model(pyro)().detach())
    after = pyro.sample("b", dist.Normal(0.0, 1.0))
    return {"before": before, "values": values, "after": after}


@program()
def infer_options(pyro: Any) -> Outcome:
    """`infer=` at a site, merged with what `infer_config` says; the caller's dict is not changed."""
    dist, poutine = pyro.distributions, pyro.poutine
    given = {"tag": "mine", "both": 1}

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), infer=given)
        pyro.sample("y", dist.Normal(0.0, 1.0), infer=given)
        pyro.param("p", torch.zeros(1))

    def config(site: Any) -> dict[str, Any]:
        return {"both": 2, "new": site["name"]} if site["name"] != "y" else {}

    trace = poutine.trace(poutine.infer_config(model, config_fn=config)).get_trace()
    keys = ("tag", "both", "new")
    kept = {
        name: {key: site["infer"][key] for key in keys if key in site["infer"]}
        for name, site in trace.nodes.items()
        if site["type"] in ("sample", "param")
    }
    return {"kept": kept, "given": given, "log_prob": trace.log_prob_sum()}


@program()
def broadcasting(pyro: Any) -> Outcome:
    """Distributions without batch dims grow to the plates around them."""
    dist, poutine = pyro.distributions, pyro.poutine

    @poutine.broadcast
    def model() -> None:
        with pyro.plate("a", 3, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0))
            with pyro.plate("b", 2, dim=-3):
                pyro.sample("y", dist.Normal(torch.zeros(5), 1.0).to_event(1))
                pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand([3]))
                pyro.sample("w", dist.Categorical(torch.ones(2, 1, 1, 4) / 4.0))

    return trace_of(poutine.trace(model).get_trace())


@program()
def handlers_as_decorators_and_blocks(pyro: Any) -> Outcome:
    """The same stack of handlers in three spellings gives the same trace."""
    dist, poutine = pyro.distributions, pyro.poutine
    kept = torch.tensor([True, True, False])

    def model() -> Tensor:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            return pyro.sample("y", dist.Normal(x, 1.0))

    @poutine.scale(scale=2.0)
    @poutine.condition(data={"x": torch.tensor(0.5)})
    @poutine.mask(mask=kept)
    def decorated() -> Tensor:
        return model()

    def wrapped() -> Tensor:
        inner = poutine.mask(model, mask=kept)
        return poutine.scale(poutine.condition(inner, data={"x": torch.tensor(0.5)}), scale=2.0)()

    def blocks() -> Tensor:
        half, conditioned = poutine.mask(mask=kept), poutine.condition(data={"x": torch.tensor(0.5)})
        with poutine.scale(scale=2.0), conditioned, half:
            return model()

    outcome = {}
    for label, function in {"decorated": decorated, "wrapped": wrapped, "blocks": blocks}.items():
        pyro.set_rng_seed(12)
        outcome[label] = trace_of(poutine.trace(function).get_trace())
    return outcome


@program()
def traces_by_hand(pyro: Any) -> Outcome:
    """Editing a trace: copies, removal, node lists, filters, and reading a graph of a dense trace."""
    dist, poutine = pyro.distributions, pyro.poutine

    def model(x: Tensor) -> Tensor:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        for i in pyro.plate("loop", 2):
            b = pyro.sample(f"b_{i}", dist.Normal(a, 1.0))
            pyro.sample(f"c_{i}", dist.Normal(b, 1.0), obs=x)
        return pyro.param("p", torch.ones(())) * a

    tracer = poutine.trace(model, graph_type="dense")
    value = tracer(torch.tensor(0.5))
    trace = tracer.trace
    edges = sorted(trace.edges)
    copy = trace.copy()
    copy.remove_node("c_1")
    only_a = trace.log_prob_sum(site_filter=lambda name, site: name == "a")
    return {
        "value": value,
        "sites": list(trace.nodes),
        "edges": edges,
        "after b_0": sorted(trace.successors("b_0")),
        "before c_1": sorted(trace.predecessors("c_1")),
        "order": trace.topological_sort()[-1] in trace.nodes,
        "copy": [list(copy.nodes), len(trace.nodes) - len(copy.nodes)],
        "lists": [trace.observation_nodes, trace.param_nodes, trace.stochastic_nodes],
        "only a": only_a,
        "contains": ["a" in trace, "nothing" in trace, len(list(trace))],
        "params only": list(poutine.trace(model, param_only=True).get_trace(torch.zeros(())).nodes),
    }


@program()
def systematic_search_by_queue(pyro: Any) -> Outcome:
    """All executions of a program with two coins and a die, one by one."""
    from queue import LifoQueue

    dist, poutine = pyro.distributions, pyro.poutine

    def model() -> Tensor:
        a = pyro.sample("a", dist.Bernoulli(0.25))
        b = pyro.sample("b", dist.Bernoulli(0.5 if a else 0.125))
        if b:
            return pyro.sample("die", dist.Categorical(torch.tensor([0.5, 0.25, 0.25])))
        return a

    queue: LifoQueue[Any] = LifoQueue()
    queue.put(poutine.Trace())
    search = poutine.trace(poutine.queue(model, queue=queue))
    found = {}
    while not queue.empty():
        trace = search.get_trace()
        key = ",".join(
            f"{name}={int(site['value'])}"
            for name, site in trace.nodes.items()
            if "fn" in site and name[0] != "_"
        )
        found[key] = float(trace.log_prob_sum().exp())
    return {"found": dict(sorted(found.items())), "total": sum(found.values())}


@program()
def simulation_without_inference(pyro: Any) -> Outcome:
    """Plain sampling, outside any handler: a program with branches, loops and recursion."""
    dist = pyro.distributions

    def geometric(p: float, t: int = 0) -> int:
        return t if pyro.sample(f"x_{t}", dist.Bernoulli(p)) else geometric(p, t + 1)

    def boxes() -> Tensor:
        mu = pyro.sample("latent", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.StudentT(3.0, mu, 1.0))

    return {
        "geometric": [geometric(0.5) for _ in range(50)],
        "heavy tail": torch.stack([boxes() for _ in range(20)]),
        "geometric law": Draws(torch.tensor([geometric(0.5) for _ in range(300)])),
    }
