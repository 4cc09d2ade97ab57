"""Traces: what is recorded, densities, graph, shape tables."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Gamma, Normal


def regression(x, y=None):
    weight = sumprod.sample("weight", Normal(torch.zeros(2), 1.0).to_event(1))
    noise = sumprod.param("noise", torch.tensor(0.5))
    with sumprod.plate("data", len(x)), handlers.scale(scale=2.0):
        return sumprod.sample("y", Normal(x @ weight, noise), obs=y)


X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = torch.tensor([1.0, 2.0, 3.0])


def test_get_trace_records_inputs_sites_and_result():
    trace = handlers.trace(regression).get_trace(X, y=Y)
    assert list(trace.nodes) == ["_INPUT", "weight", "noise", "data", "y", "_RETURN"]
    assert trace.nodes["_INPUT"]["args"] == (X,)
    assert trace.nodes["_INPUT"]["kwargs"] == {"y": Y}
    assert trace.nodes["_RETURN"]["value"] is Y
    assert trace.observation_nodes == ["y"]
    assert trace.param_nodes == ["noise"]
    assert trace.stochastic_nodes == ["weight", "data"]
    assert trace.reparameterized_nodes == ["weight"]
    assert trace.nonreparam_stochastic_nodes == ["data"]
    assert [name for name, _ in trace.iter_stochastic_nodes()] == ["weight", "data"]
    assert "y" in trace
    assert len(trace) == 6
    assert list(trace) == list(trace.nodes)


def test_calling_the_handler_returns_the_value_and_keeps_the_trace():
    traced = handlers.trace(regression)
    assert traced(X, Y) is Y
    assert "weight" in traced.trace
    first = traced.trace
    traced(X, Y)
    assert traced.trace is not first


def test_with_form_has_no_input_and_return():
    with handlers.trace() as trace:
        regression(X, Y)
    assert list(trace.trace.nodes) == ["weight", "noise", "data", "y"]


def test_param_only():
    trace = handlers.trace(regression, param_only=True).get_trace(X, Y)
    assert [n for n, s in trace.nodes.items() if s["type"] in ("sample", "param")] == ["noise"]


def test_do_not_trace():
    def program():
        sumprod.sample("hidden", Normal(0.0, 1.0), infer={"_do_not_trace": True})
        sumprod.sample("seen", Normal(0.0, 1.0))

    assert "hidden" not in handlers.trace(program).get_trace()


def test_log_prob_sum_against_the_formula():
    trace = handlers.trace(regression).get_trace(X, Y)
    weight = trace.nodes["weight"]["value"].double()
    prior = (-0.5 * weight**2 - 0.5 * math.log(2 * math.pi)).sum()
    residual = (Y.double() - X.double() @ weight) / 0.5
    likelihood = (-0.5 * residual**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum()
    torch.testing.assert_close(trace.log_prob_sum().double(), prior + 2.0 * likelihood, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        trace.log_prob_sum(lambda name, site: name == "weight").double(), prior, rtol=1e-5, atol=1e-5
    )


def test_compute_log_prob_fills_the_sites():
    trace = handlers.trace(regression).get_trace(X, Y)
    trace.compute_log_prob()
    site = trace.nodes["y"]
    assert site["log_prob"].shape == (3,)
    torch.testing.assert_close(site["log_prob"], 2.0 * site["unscaled_log_prob"])
    torch.testing.assert_close(site["log_prob_sum"], site["log_prob"].sum())
    torch.testing.assert_close(
        trace.log_prob_sum(), trace.nodes["weight"]["log_prob_sum"] + site["log_prob_sum"]
    )


def test_compute_score_parts():
    def program():
        sumprod.sample("r", Normal(0.0, 1.0))
        with handlers.scale(scale=3.0), handlers.mask(mask=torch.tensor([True, False])):
            sumprod.sample("s", Bernoulli(torch.tensor([0.3, 0.6])))

    trace = handlers.trace(program).get_trace()
    trace.compute_score_parts()
    r, s = trace.nodes["r"]["score_parts"], trace.nodes["s"]["score_parts"]
    assert r.score_function == 0
    assert r.entropy_term is r.log_prob
    # Neither scaled nor masked:
    torch.testing.assert_close(s.score_function, trace.nodes["s"]["unscaled_log_prob"])
    assert s.entropy_term == 0
    torch.testing.assert_close(s.log_prob, 3.0 * s.score_function * torch.tensor([1.0, 0.0]))
    assert trace.nodes["s"]["log_prob"] is s.log_prob


def test_densities_are_computed_once():
    trace = handlers.trace(regression).get_trace(X, Y)
    before = trace.log_prob_sum()
    trace.nodes["weight"]["value"] = torch.full((2,), 100.0)
    assert torch.equal(trace.log_prob_sum(), before)


def test_empty_trace():
    trace = handlers.trace(lambda: None).get_trace()
    assert trace.log_prob_sum() == 0.0
    assert isinstance(trace.log_prob_sum(), float)
    trace.compute_log_prob()
    trace.compute_score_parts()


@pytest.mark.parametrize("method", ["log_prob_sum", "compute_log_prob", "compute_score_parts"])
def test_density_errors_name_site_and_shapes(method):
    def program():
        sumprod.sample("fine", Normal(0.0, 1.0))
        with sumprod.plate("data", 2):
            sumprod.sample("bad", Gamma(1.0, 1.0), obs=torch.tensor([1.0, -1.0]))
        sumprod.sample("later", Normal(0.0, 1.0))

    trace = handlers.trace(program).get_trace()
    what = {"log_prob_sum": "log_prob_sum", "compute_log_prob": "log_prob"}.get(method, "score_parts")
    with pytest.raises(ValueError, match=f"Error while computing {what} at site 'bad'") as caught:
        getattr(trace, method)()
    text = str(caught.value)
    assert caught.value.site == "bad"
    assert "plate 'data'" in text
    assert "fine dist" in text
    assert "later" not in text


@pytest.mark.parametrize(
    ("log_prob", "pattern"), [(math.nan, "Encountered NaN.*'f'"), (math.inf, r"Encountered \+inf.*'f'")]
)
def test_nan_and_positive_infinity_warn(log_prob, pattern):
    trace = handlers.trace(lambda: sumprod.factor("f", torch.tensor(log_prob))).get_trace()
    with pytest.warns(UserWarning, match=pattern):
        trace.log_prob_sum()


def test_negative_infinity_is_fine():
    trace = handlers.trace(lambda: sumprod.factor("f", torch.tensor(-math.inf))).get_trace()
    assert trace.log_prob_sum() == -math.inf


def test_masked_out_infinities_do_not_leak():
    logits = torch.tensor([0.0, -math.inf], requires_grad=True)

    def program():
        with handlers.mask(mask=torch.tensor([True, False])), handlers.scale(scale=2.0):
            sumprod.factor("f", logits * 3.0)

    trace = handlers.trace(program).get_trace()
    total = trace.log_prob_sum()
    assert total == 0.0
    total.backward()
    assert logits.grad.tolist() == [6.0, 0.0]


def test_missing_data_under_a_mask():
    loc = torch.tensor(0.5, requires_grad=True)
    data = torch.tensor([1.0, math.nan, math.inf])

    def program():
        with sumprod.plate("data", 3), handlers.mask(mask=torch.tensor([True, False, False])):
            sumprod.sample("x", Normal(loc, 1.0), obs=data)

    trace = handlers.trace(program).get_trace()
    total = trace.log_prob_sum()
    torch.testing.assert_close(total, Normal(0.5, 1.0).log_prob(torch.tensor(1.0)))
    total.backward()
    assert loc.grad.item() == pytest.approx(0.5)


def test_gradients_that_are_not_finite_warn():
    x = torch.tensor(0.0, requires_grad=True)
    trace = handlers.trace(lambda: sumprod.factor("f", x * 1.0)).get_trace()
    total = trace.log_prob_sum()
    with pytest.warns(UserWarning, match="Encountered NaN: backward log_prob_sum at site 'f'"):
        (total * math.nan).backward()


def test_names_must_be_unique():
    def twice():
        sumprod.sample("x", Normal(0.0, 1.0))
        sumprod.sample("x", Normal(0.0, 1.0))

    def mixed():
        sumprod.param("x", torch.tensor(1.0))
        sumprod.sample("x", Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="Multiple sample sites named 'x'"):
        handlers.trace(twice).get_trace()
    with pytest.raises(RuntimeError, match="'x' is already in the trace as a param"):
        handlers.trace(mixed).get_trace()


def test_param_twice_is_fine():
    def program():
        return sumprod.param("p", torch.tensor(1.0)) + sumprod.param("p")

    assert handlers.trace(program).get_trace().nodes["_RETURN"]["value"] == 2.0


def test_dense_graph_against_sequential_plates():
    def program():
        sumprod.sample("a", Normal(0.0, 1.0))
        for i in sumprod.plate("loop", 2):
            sumprod.sample(f"b{i}", Normal(0.0, 1.0))
            sumprod.sample(f"c{i}", Normal(0.0, 1.0))
        sumprod.sample("d", Normal(0.0, 1.0))

    trace = handlers.trace(program, graph_type="dense").get_trace()
    edges = set(trace.edges)
    assert ("a", "b0") in edges
    assert ("b0", "c0") in edges
    assert ("b0", "b1") not in edges
    assert ("c0", "b1") not in edges
    assert ("c1", "d") in edges
    assert trace.predecessors("c1") == ["a", "b1"]
    assert trace.successors("b1") == ["c1", "d"]
    order = trace.topological_sort()
    assert all(order.index(a) < order.index(b) for a, b in edges)
    assert trace.topological_sort(reverse=True) == order[::-1]
    trace.remove_node("b1")
    assert trace.predecessors("c1") == ["a"]


def test_flat_graph_has_no_edges():
    trace = handlers.trace(regression).get_trace(X, Y)
    assert list(trace.edges) == []
    with pytest.raises(ValueError, match="graph_type 'flat' or 'dense', got 'deep'"):
        handlers.trace(regression, graph_type="deep")
    with pytest.raises(KeyError, match="no site 'nothing'"):
        trace.add_edge("weight", "nothing")


def test_copy_is_shallow():
    trace = handlers.trace(regression).get_trace(X, Y)
    duplicate = trace.copy()
    duplicate.remove_node("y")
    assert "y" in trace
    assert duplicate.nodes["weight"] is trace.nodes["weight"]
    assert list(copy.copy(trace).nodes) == list(trace.nodes)


def test_detach():
    loc = torch.tensor(0.0, requires_grad=True)
    trace = handlers.trace(lambda: sumprod.sample("x", Normal(loc, 1.0))).get_trace()
    assert trace.nodes["x"]["value"].requires_grad
    trace.detach_()
    assert not trace.nodes["x"]["value"].requires_grad


def test_shape_table():
    def program():
        sumprod.param("loc", torch.zeros(7))
        with sumprod.plate("a", 10), sumprod.plate("b", 3):
            sumprod.sample("x", Normal(torch.zeros(5), 1.0).to_event(1))

    trace = handlers.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.format_shapes().splitlines() == [
        "Trace Shapes:",
        " Param Sites:",
        "          loc     7",
        "Sample Sites:",
        "       a dist       |",
        "        value    10 |",
        "     log_prob       |",
        "       b dist       |",
        "        value     3 |",
        "     log_prob       |",
        "       x dist  3 10 | 5",
        "        value  3 10 | 5",
        "     log_prob  3 10 |",
    ]
    assert "x dist" not in trace.format_shapes(last_site="b")
    assert trace.format_shapes(title="Guide:").startswith("Guide:\n")


def test_same_sizes_in_the_table_as_the_peer():
    pyro = pytest.importorskip("pyro")

    def program(p):
        p.param("w", torch.ones(3))
        with p.plate("a", 4, dim=-1):
            p.sample("x", p.distributions.Normal(0.0, 1.0))
            with p.plate("b", 3):
                p.sample("y", p.distributions.Normal(torch.zeros(5), 1.0).to_event(1))

    def cells(p, poutine):
        trace = poutine.trace(program).get_trace(p)
        trace.compute_log_prob()
        return [line.split() for line in trace.format_shapes().splitlines()]

    pyro.clear_param_store()
    assert cells(sumprod, handlers) == cells(pyro, pyro.poutine)


def test_symbols_and_packing():
    def program():
        a, b = sumprod.plate("a", 2), sumprod.plate("b", 3, dim=-2)
        with a, b:
            sumprod.sample("x", Normal(torch.zeros(2), 1.0))
        with b:
            sumprod.sample("y", Normal(0.0, 1.0))

    trace = handlers.trace(program).get_trace()
    trace.compute_log_prob()
    trace.pack_tensors()
    assert trace.plate_to_symbol == {"a": "a", "b": "c"}
    assert trace.nodes["x"]["packed"]["log_prob"]._pyro_dims == "ca"
    assert trace.nodes["y"]["packed"]["log_prob"]._pyro_dims == "c"
    assert trace.nodes["y"]["packed"]["scale"] == 1.0
    other = handlers.trace(program).get_trace()
    assert other.symbolize_dims({"z": "a"}) == {"z": "a", "a": "c", "b": "e"}

    def unplated():
        sumprod.sample("x", Normal(torch.zeros(2), 1.0))

    bad = handlers.trace(unplated).get_trace()
    bad.compute_log_prob()
    with pytest.raises(
        ValueError, match=r"Error while packing tensors at site 'x'(.|\n)*Invalid tensor shape"
    ):
        bad.pack_tensors()


def test_traces_are_freed():
    trace = handlers.trace(regression).get_trace(X, Y)
    trace.log_prob_sum()
    reference = weakref.ref(trace)
    del trace
    gc.collect()
    assert reference() is None
