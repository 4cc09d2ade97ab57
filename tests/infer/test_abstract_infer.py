"""TracePosterior: collecting weighted traces and drawing from them."""

from __future__ import annotations

import io
import math
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer.abstract_infer import TracePosterior as PyroTracePosterior

from sumprod import handlers
from sumprod.infer.abstract_infer import TracePosterior
from tests.infer.posterior_cases import FromRuns, counted, normal_model

INF = math.inf


# ---- run


def test_run_collects_traces_weights_and_chains() -> None:
    weights = [torch.tensor(0.5), -1.0, torch.tensor(2.0)]
    posterior = FromRuns(counted(), weights, num_chains=2)
    assert posterior.run() is posterior
    assert len(posterior.exec_traces) == 3
    assert [trace.nodes["number"]["value"].item() for trace in posterior.exec_traces] == [0.0, 1.0, 2.0]
    assert [float(weight) for weight in posterior.log_weights] == [0.5, -1.0, 2.0]
    assert posterior.chain_ids == [0, 1, 0]
    assert posterior.num_chains == 2


def test_pairs_belong_to_chain_zero() -> None:
    class Pairs(TracePosterior):
        def _traces(self) -> Any:
            yield handlers.trace(counted()).get_trace(), 0.0

    assert Pairs().run().chain_ids == [0]


def test_run_forgets_the_run_before() -> None:
    posterior = FromRuns(counted(), [0.0, 0.0]).run()
    posterior.run()
    assert posterior.stack("number").tolist() == [2.0, 3.0]
    assert len(posterior.log_weights) == len(posterior.chain_ids) == 2


def test_no_traces_leave_empty_lists() -> None:
    # Pyro's run fails without traces.
    posterior = FromRuns(counted(), []).run()
    assert posterior.exec_traces == []
    assert posterior.log_weights == []
    assert posterior.chain_ids == []
    assert posterior.information_criterion() == {}


def test_traces_are_equal_to_no_other_list() -> None:
    traces = FromRuns(counted(), [0.0]).run().exec_traces
    assert traces != []
    assert traces != list(traces)
    assert traces == traces
    assert repr(traces) == "<1 traces>"


@pytest.mark.parametrize(
    "use",
    [
        lambda posterior: posterior(),
        lambda posterior: posterior.marginal("number"),
        lambda posterior: posterior.stack("number"),
        lambda posterior: posterior.summary(),
        lambda posterior: posterior.to_arviz(),
        lambda posterior: posterior.save(io.BytesIO()),
        lambda posterior: posterior.log_likelihood(),
    ],
)
def test_use_before_run_says_to_run(use: Any) -> None:
    with pytest.raises(RuntimeError, match=r"FromRuns holds no traces: call run\(\) first"):
        use(FromRuns(counted(), [0.0]))


@pytest.mark.parametrize("num_chains", [0, -1, 1.5, "2"])
def test_num_chains_is_a_positive_int(num_chains: Any) -> None:
    with pytest.raises(ValueError, match="FromRuns: num_chains must be a positive int, got"):
        FromRuns(counted(), [], num_chains=num_chains)


@pytest.mark.parametrize("chain", [2, -1])
def test_chain_number_out_of_range(chain: int) -> None:
    class Wrong(TracePosterior):
        def _traces(self) -> Any:
            yield handlers.trace(counted()).get_trace(), 0.0, chain

    with pytest.raises(
        ValueError, match=rf"trace 0 has chain number {chain}, expected 0 <= number < num_chains = 2"
    ):
        Wrong(num_chains=2).run()


def test_outer_handlers_do_not_see_the_runs() -> None:
    with handlers.trace() as outer:
        FromRuns(normal_model, [0.0, 0.0]).run()
    assert list(outer.trace.nodes) == []


# ---- draws


def test_trap_37_a_draw_is_the_trace_whose_weight_was_drawn() -> None:
    # With two chains Pyro returns trace 5 here: it takes the number of a trace for a place in a chain.
    for chosen in range(6):
        weights = [0.0 if number == chosen else -INF for number in range(6)]
        posterior = FromRuns(counted(), weights, num_chains=2).run()
        assert posterior().nodes["number"]["value"] == chosen


def test_draws_follow_the_weights() -> None:
    posterior = FromRuns(counted(), [math.log(0.2), math.log(0.5), math.log(0.3)], num_chains=3).run()
    counts = torch.zeros(3, dtype=torch.float64)
    for _ in range(2000):
        counts[int(posterior().nodes["number"]["value"])] += 1
    expected = torch.tensor([400.0, 1000.0, 600.0], dtype=torch.float64)
    # Chi-square with 2 degrees of freedom: above 18.4 once in 10,000 seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 18.4


def test_draws_are_those_of_pyro(seed: int) -> None:
    weights = torch.randn(20).tolist()

    class Peer(PyroTracePosterior):
        def _traces(self) -> Any:
            for number, weight in enumerate(weights):
                model = lambda: pyro.sample("number", pyro_dist.Delta(torch.tensor(float(number))))  # noqa: B023, E731
                yield pyro.poutine.trace(model).get_trace(), torch.tensor(weight)

    peer, posterior = Peer().run(), FromRuns(counted(), [torch.tensor(w) for w in weights]).run()
    torch.manual_seed(seed)
    expected = [peer().nodes["number"]["value"].item() for _ in range(50)]
    torch.manual_seed(seed)
    assert [posterior().nodes["number"]["value"].item() for _ in range(50)] == expected


def test_a_drawn_trace_has_no_observed_sites_and_is_a_copy() -> None:
    posterior = FromRuns(normal_model, [0.0]).run()
    drawn = posterior()
    assert [name for name, site in drawn.nodes.items() if site["type"] == "sample"] == ["loc", "data"]
    drawn.nodes["loc"]["value"] = None
    drawn.remove_node("data")
    assert posterior().nodes["loc"]["value"] is not None
    assert "x" in posterior.exec_traces[0]


@pytest.mark.parametrize(
    ("weights", "found"), [([-INF, -INF], "-inf"), ([0.0, INF], "inf"), ([math.nan, 0.0], "nan")]
)
def test_a_draw_needs_a_finite_weight(weights: list[float], found: str) -> None:
    posterior = FromRuns(counted(), weights).run()
    with pytest.raises(ValueError, match=f"cannot draw a trace: the largest log-weight is {found}"):
        posterior()
