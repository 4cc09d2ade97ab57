"""Objectives of one's own, and the ones in the box used in other ways than through `SVI.step`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from tests.programs.support import Outcome, fit, params_of, program

DATA = torch.tensor([0.3, 1.1, -0.4, 0.8])


def pair(pyro: Any) -> tuple[Any, Any]:
    """A scale mixture with a local latent per row, and its guide."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.zeros(len(data))), 0.3))

    return model, guide


@program()
def simple_elbo_by_hand(pyro: Any) -> Outcome:
    """A function that traces guide and model and returns minus the difference of their densities."""
    poutine = pyro.poutine

    def simple_elbo(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return -(model_trace.log_prob_sum() - guide_trace.log_prob_sum())

    return fit(pyro, *pair(pyro), DATA, loss=simple_elbo)


@program()
def annealed_elbo_that_reads_nodes(pyro: Any) -> Outcome:
    """A loss that walks over the nodes and weights latents differently from data."""
    poutine = pyro.poutine

    def annealed(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        factor = kwargs.pop("factor")
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        elbo = torch.zeros(())
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                weight = 1.0 if site["is_observed"] else factor
                elbo = elbo + weight * site["log_prob_sum"]
        for site in guide_trace.nodes.values():
            if site["type"] == "sample":
                elbo = elbo - factor * site["log_prob"].sum()
        return -elbo

    model, guide = pair(pyro)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=annealed)
    losses = [svi.step(DATA, factor=0.1 * step) for step in range(10)]
    return {"losses": losses, "evaluated": svi.evaluate_loss(DATA, factor=1.0), "params": params_of(pyro)}


@program()
def regularised_loss_beside_the_elbo(pyro: Any) -> Outcome:
    """`differentiable_loss` plus a penalty, stepped by a torch optimiser on unconstrained leaves."""
    model, guide = pair(pyro)
    loss = pyro.infer.Trace_ELBO(num_particles=2).differentiable_loss
    with pyro.poutine.trace(param_only=True) as captured:
        loss(model, guide, DATA)
    leaves = [site["value"].unconstrained() for site in captured.trace.nodes.values()]
    optimiser = torch.optim.Adam(leaves, lr=0.05)
    values = []
    for _ in range(10):
        objective = loss(model, guide, DATA) + 0.5 * pyro.param("loc").square()
        objective.backward()
        optimiser.step()
        optimiser.zero_grad()
        values.append(objective.item())
    return {"values": values, "names": list(captured.trace.nodes), "params": params_of(pyro)}


@program()
def gradients_without_an_optimiser(pyro: Any) -> Outcome:
    """`loss_and_grads` of three estimators leaves its gradients in the leaves."""
    infer = pyro.infer
    outcome: dict[str, Any] = {}
    for label, elbo in {
        "trace": infer.Trace_ELBO(num_particles=3, retain_graph=True),
        "mean field": infer.TraceMeanField_ELBO(),
        "renyi": infer.RenyiELBO(alpha=-1.0, num_particles=3),
        "vectorised": infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    }.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(8)
        model, guide = pair(pyro)
        value = elbo.loss_and_grads(model, guide, DATA)
        leaves = pyro.get_param_store().named_parameters()
        outcome[label] = {
            "value": value,
            "loss": elbo.loss(model, guide, DATA),
            "gradients": {name: leaf.grad.clone() for name, leaf in leaves},
        }
    return outcome


@program()
def elbo_as_a_module(pyro: Any) -> Outcome:
    """`elbo(model, guide)` with a learning rate per module, `torch.optim` and no SVI object."""
    model, _ = pair(pyro)
    guide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    guide(DATA)
    elbo = pyro.infer.Trace_ELBO()(model, guide)
    losses = [elbo(DATA).item()]
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.05)
    for _ in range(10):
        optimiser.zero_grad()
        loss = elbo(DATA)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "names": sorted(name for name, _ in elbo.named_parameters()),
        "median": {name: value.detach() for name, value in guide.median().items()},
    }


@program()
def subclass_with_a_penalty(pyro: Any) -> Outcome:
    """A user's ELBO that overrides how traces are made: it counts them and adds noise-free terms."""
    made = []

    class Counting(pyro.infer.Trace_ELBO):  # type: ignore[misc,name-defined]
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
            made.append(sorted(guide_trace.nodes))
            return model_trace, guide_trace

    outcome = fit(pyro, *pair(pyro), DATA, steps=4, loss=Counting(num_particles=2))
    return {**outcome, "made": made}


@program()
def loss_with_its_own_gradients(pyro: Any) -> Outcome:
    """SVI with a pair of functions: one for the value, one that also fills gradients."""
    model, guide = pair(pyro)
    elbo = pyro.infer.Trace_ELBO()
    calls: list[str] = []

    def loss(*args: Any) -> float:
        calls.append("loss")
        return float(elbo.loss(*args))

    def loss_and_grads(*args: Any) -> float:
        calls.append("grads")
        return float(elbo.loss_and_grads(*args))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss, loss_and_grads)
    losses = [svi.step(DATA), svi.evaluate_loss(DATA), svi.step(DATA)]
    return {"losses": losses, "calls": calls, "params": params_of(pyro)}


@program()
def maximum_likelihood_loss(pyro: Any) -> Outcome:
    """Empty guide and `TraceMeanField_ELBO`; the loss is minus the log-likelihood, exactly."""
    dist = pyro.distributions

    def model(data: Tensor) -> None:
        probs = pyro.param("probs", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Geometric(probs), obs=data)

    counts = torch.tensor([0.0, 3.0, 1.0, 2.0])
    outcome = fit(pyro, model, lambda data: None, counts, loss=pyro.infer.TraceMeanField_ELBO())
    return {**outcome, "exact": -dist.Geometric(pyro.param("probs").detach()).log_prob(counts).sum()}
