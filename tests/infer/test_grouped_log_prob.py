"""Log-densities of many sites in one call."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO, _grouped_log_prob
from sumprod.infer.trace_elbo import compute_guide_densities


def families() -> None:
    for i in range(4):
        sumprod.sample(f"normal{i}", dist.Normal(0.1 * i, 1.0 + i))
        sumprod.sample(f"laplace{i}", dist.Laplace(0.1 * i, 1.0 + i))
        sumprod.sample(f"cauchy{i}", dist.Cauchy(0.1 * i, 1.0 + i))
        sumprod.sample(f"gamma{i}", dist.Gamma(2.0 + i, 1.0 + i))
        sumprod.sample(f"exponential{i}", dist.Exponential(1.0 + i))
        sumprod.sample(f"poisson{i}", dist.Poisson(1.0 + i))
        sumprod.sample(f"double{i}", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        sumprod.sample(f"event{i}", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1 + i // 2))
        with sumprod.plate(f"rows{i}", 5):
            sumprod.sample(f"plate{i}", dist.Normal(0.0, 1.0))
            sumprod.sample(f"both{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sumprod.sample(f"bernoulli{i}", dist.Bernoulli(0.1 + 0.2 * i))
        sumprod.sample(f"logits{i}", dist.Bernoulli(logits=torch.tensor(0.3 * i)))
        sumprod.sample(f"categorical{i}", dist.Categorical(torch.tensor([0.1, 0.2 + i, 0.4])))
        sumprod.sample(f"classes{i}", dist.Categorical(logits=torch.tensor([0.1, 0.2 + i, 0.4])))
        sumprod.sample(f"uniform{i}", dist.Uniform(-1.0, 1.0 + i))
        sumprod.sample(f"beta{i}", dist.Beta(1.0 + i, 2.0))
        sumprod.sample(f"lognormal{i}", dist.LogNormal(0.1 * i, 1.0))
        with handlers.scale(scale=2.0):
            sumprod.sample(f"scaled{i}", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=torch.tensor(2.0)):
            sumprod.sample(f"tensor{i}", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=3.0 + i):
            sumprod.sample(f"own{i}", dist.Normal(0.0, 1.0))
        with handlers.mask(mask=torch.tensor(True)):
            sumprod.sample(f"masked{i}", dist.Normal(0.0, 1.0))
        sumprod.sample(f"other{i}", dist.Gumbel(1.0 + i, 2.0))
    sumprod.sample("large", dist.Normal(torch.zeros(1000), 1.0).to_event(1))


def copies() -> tuple[Any, Any]:
    trace = handlers.util.prune_subsample_sites(handlers.trace(families).get_trace())
    twin = trace.copy()
    for name, site in trace.nodes.items():
        twin.nodes[name] = dict(site)
    return trace, twin


def test_stacked_log_probs_are_those_of_the_trace() -> None:
    trace, twin = copies()
    _grouped_log_prob.compute_log_probs(trace)
    twin.compute_log_prob()
    grouped = set()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            expected = twin.nodes[name]
            for key in ("log_prob", "log_prob_sum", "unscaled_log_prob"):
                assert site[key].shape == expected[key].shape, name
                assert site[key].dtype == expected[key].dtype, name
                torch.testing.assert_close(site[key], expected[key], rtol=1e-6, atol=1e-6)
            if "log_prob_group" in site:
                grouped.add(name.rstrip("0123456789"))
    assert grouped == {
        *("normal", "laplace", "cauchy", "gamma", "exponential", "poisson", "uniform", "beta", "lognormal"),
        *("double", "plate", "both", "scaled", "bernoulli", "logits", "categorical", "classes"),
    }
    assert _grouped_log_prob.log_prob_total(trace).item() == pytest.approx(
        twin.log_prob_sum().item(), rel=1e-6
    )


def test_stacked_log_probs_have_the_gradients_of_single_ones() -> None:
    leaves = [torch.tensor(0.1 * i, requires_grad=True) for i in range(5)]

    def program() -> None:
        for i, leaf in enumerate(leaves):
            sumprod.sample(f"x{i}", dist.Normal(leaf, leaf.exp()), obs=torch.tensor(1.0 - i))

    gradients = []
    for stacked in (True, False):
        trace = handlers.trace(program).get_trace()
        if stacked:
            _grouped_log_prob.compute_log_probs(trace)
            assert "log_prob_group" in trace.nodes["x0"]
        gradients.append(
            torch.autograd.grad(
                _grouped_log_prob.log_prob_total(trace) if stacked else trace.log_prob_sum(), leaves
            )
        )
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("exact", [False, True])
def test_stacked_categoricals_keep_their_treatment_of_zeros(exact: bool) -> None:
    def program() -> None:
        with sumprod.settings.context(exact_zeros=exact):
            fn = dist.Categorical(torch.tensor([0.0, 1.0]))
        for i in range(3):
            sumprod.sample(f"x{i}", fn, obs=torch.tensor(0))

    loss = Trace_ELBO().loss(program, lambda: None)
    assert loss == math.inf if exact else loss == pytest.approx(3 * 15.942385)


def test_score_parts_from_stacked_log_probs_are_those_of_the_trace() -> None:
    def program() -> None:
        for i in range(4):
            with handlers.scale(scale=2.0):
                sumprod.sample(f"bernoulli{i}", dist.Bernoulli(0.1 + 0.2 * i))
            sumprod.sample(f"normal{i}", dist.Normal(0.1 * i, 1.0))
            sumprod.sample(f"switched{i}", dist.Normal(0.1 * i, 1.0).has_rsample_(False))
            sumprod.sample(f"masked{i}", dist.Bernoulli(0.1 + 0.2 * i).mask(torch.tensor(i < 2)))
            with handlers.mask(mask=torch.tensor(i < 2)):
                sumprod.sample(f"hidden{i}", dist.Bernoulli(0.1 + 0.2 * i))

    trace = handlers.trace(program).get_trace()
    twin = trace.copy()
    for name, site in trace.nodes.items():
        twin.nodes[name] = dict(site)
    compute_guide_densities(trace)
    twin.compute_score_parts()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            for part, expected in zip(site["score_parts"], twin.nodes[name]["score_parts"], strict=True):
                assert type(part) is type(expected), name
                torch.testing.assert_close(torch.as_tensor(part), torch.as_tensor(expected))


def test_a_subclass_is_not_stacked() -> None:
    class Shifted(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            result: Tensor = super().log_prob(value) + 1
            return result

    def program() -> None:
        for i in range(4):
            sumprod.sample(f"x{i}", Shifted(0.0, 1.0), obs=torch.tensor(0.0))

    zero = -0.5 * math.log(2 * math.pi)
    assert Trace_ELBO().loss(program, lambda: None) == pytest.approx(-4 * (zero + 1))


def test_an_impossible_value_among_stacked_sites_is_named() -> None:
    def program() -> None:
        for i in range(5):
            with sumprod.plate(f"rows{i}", 2):
                sumprod.sample(f"x{i}", dist.Exponential(1.0), obs=torch.full((2,), -1.0 if i == 3 else 1.0))

    with pytest.raises(
        ValueError, match="Error while computing log_prob at site 'x3' in plate 'rows3'"
    ) as caught:
        Trace_ELBO().loss(program, lambda: None)
    assert caught.value.site == "x3"
    assert "Trace Shapes:" in str(caught.value)


def test_values_that_broadcast_are_not_stacked() -> None:
    def program() -> None:
        with sumprod.plate("rows", 3):
            for i in range(4):
                sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    one = dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    assert Trace_ELBO().loss(program, lambda: None) == pytest.approx(-12 * one)


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_changes_to_stacked_sites_count(change: str) -> None:
    """A subclass may edit the traces it makes."""

    def program() -> None:
        for i in range(4):
            sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    class Edited(Trace_ELBO):
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            pair = super()._get_trace(model, guide, args, kwargs)
            if change == "remove":
                pair[0].remove_node("x1")
            else:
                site = pair[0].nodes["x1"]
                site["log_prob_sum"] = site["log_prob_sum"] * 0
            return pair

    zero = -0.5 * math.log(2 * math.pi)
    assert Edited().loss(program, lambda: None) == pytest.approx(-3 * zero)
    assert Edited().loss_and_grads(program, lambda: None) == pytest.approx(-3 * zero)


@pytest.mark.usefixtures("new_objects_only")
def test_traces_and_graphs_are_freed() -> None:
    """No growth: nothing of a call is alive after it, apart from the parameters."""
    sumprod.param("loc", torch.tensor(0.0))

    def model() -> None:
        for i in range(5):
            sumprod.sample(f"z{i}", dist.Normal(0.0, 1.0))
        sumprod.sample("c", dist.Bernoulli(0.5))

    def guide() -> None:
        for i in range(5):
            sumprod.sample(f"z{i}", dist.Normal(sumprod.param("loc"), 1.0))
        sumprod.sample("c", dist.Bernoulli(logits=sumprod.param("loc")))

    elbo = Trace_ELBO(num_particles=2)

    def count() -> int:
        elbo.loss_and_grads(model, guide)
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    count()
    assert count() == count()
