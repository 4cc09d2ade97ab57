"""What to do with samples: importance sampling, empirical marginals, prediction, information criteria."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from tests.programs.support import Draws, Outcome, fit, program, trace_of

DATA = torch.tensor([0.9, 1.7, 0.2, 1.1, 1.4])


def normal_model(pyro: Any) -> Any:
    dist = pyro.distributions

    def model(data: Tensor | None = DATA) -> Tensor:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5 if data is None else len(data)):
            pyro.sample("x", dist.Normal(mean, 0.5), obs=data)
        return 2.0 * mean

    return model


def normal_guide(pyro: Any) -> Any:
    dist = pyro.distributions

    def guide(data: Tensor | None = DATA) -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.tensor(0.3), constraints.positive)))

    return guide


@program()
def importance_from_the_prior(pyro: Any) -> Outcome:
    """No guide: weights are likelihoods; evidence, effective sample size, marginals of sites and return."""
    infer, model = pyro.infer, normal_model(pyro)
    posterior = infer.Importance(model, num_samples=60).run(DATA)
    by_site = infer.EmpiricalMarginal(posterior, sites="mean")
    by_return = infer.EmpiricalMarginal(posterior)
    several = infer.EmpiricalMarginal(posterior, sites=["mean", "_RETURN"])
    return {
        "weights": torch.stack([torch.as_tensor(weight) for weight in posterior.log_weights]).detach(),
        "evidence": posterior.get_log_normalizer().detach(),
        "normalised": posterior.get_normalized_weights().detach(),
        "ess": posterior.get_ESS().detach(),
        "mean": [by_site.mean, by_site.variance, by_return.mean, several.mean],
        "support": by_site.enumerate_support(),
        "shapes": [tuple(several.event_shape), tuple(several.batch_shape), by_site.sample_size],
        "first": trace_of(posterior.exec_traces[0]),
    }


@program()
def importance_with_a_guide(pyro: Any) -> Outcome:
    """A better proposal; draws by weight agree in distribution."""
    infer = pyro.infer
    posterior = infer.Importance(normal_model(pyro), normal_guide(pyro), num_samples=40).run(DATA)
    marginal = infer.EmpiricalMarginal(posterior, "mean")
    drawn = torch.stack([posterior().nodes["mean"]["value"] for _ in range(400)])
    sampled = marginal.sample((400,))
    criterion = posterior.information_criterion()
    return {
        "evidence": posterior.get_log_normalizer().detach(),
        "log weights": posterior.get_normalized_weights(log_scale=True).detach(),
        "drawn": Draws(drawn.detach()),
        "sampled": Draws(sampled.detach()),
        "observed are gone": "x" in posterior().nodes,
        "criterion": {name: torch.as_tensor(value).detach() for name, value in sorted(criterion.items())},
    }


@program()
def marginal_of_many_sites(pyro: Any) -> Outcome:
    """`TracePosterior.marginal`: supports and empirical distributions by site, discrete ones as well."""
    dist, infer = pyro.distributions, pyro.infer

    def model() -> Tensor:
        coin = pyro.sample("coin", dist.Bernoulli(0.4))
        die = pyro.sample("die", dist.Categorical(torch.ones(6) / 6.0))
        vector = pyro.sample("vector", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(coin + vector.sum(), 1.0), obs=torch.tensor(1.0))
        return die

    posterior = infer.Importance(model, num_samples=30).run()
    marginals = posterior.marginal(sites=["coin", "die", "vector"])
    die = marginals.empirical["die"]
    return {
        "support": dict(marginals.support()),
        "log prob": die.log_prob(torch.tensor(3)),
        "means": [marginals.empirical[name].mean for name in ("coin", "vector")],
        "type": die.enumerate_support().dtype == torch.int64,
    }


@program()
def empirical_distribution(pyro: Any) -> Outcome:
    """Weighted samples as a distribution: batches, densities, moments, draws."""
    empirical = pyro.distributions.Empirical
    samples = torch.tensor([[0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 4.0, 5.0]])
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]).log()
    batched = empirical(samples, weights)
    vectors = empirical(torch.stack([samples, -samples], -1).reshape(8, 2), weights.reshape(8))
    return {
        "shapes": [tuple(batched.batch_shape), tuple(vectors.event_shape), batched.sample_size],
        "log prob": batched.log_prob(torch.tensor([1.0, 3.0])),
        "missing": batched.log_prob(torch.tensor([2.0, 5.0])),
        "moments": [batched.mean, batched.variance, vectors.mean, vectors.variance],
        "draws": Draws(batched.sample((500,))),
    }


@program()
def predictions(pyro: Any) -> Outcome:
    """`Predictive` from a guide, from samples, from the prior; one by one and in parallel.

    Pyro runs the model once beforehand to learn about plates, which advances its stream of random numbers.
    """
    infer, model, guide = pyro.infer, normal_model(pyro), normal_guide(pyro)
    fitted = fit(pyro, model, guide, DATA, steps=5)
    given = {"mean": torch.linspace(-1.0, 1.0, 200)}
    everything = ("x", "mean", "_RETURN")
    return {
        "fitted": fitted,
        "guide": drawn_by(infer.Predictive(model, guide=guide, num_samples=200), None),
        "prior": drawn_by(infer.Predictive(model, num_samples=200), None),
        "samples": drawn_by(infer.Predictive(model, given, return_sites=everything), None),
        "parallel": drawn_by(infer.Predictive(model, given, parallel=True), None),
    }


def drawn_by(predictive: Any, *args: Any) -> dict[str, Draws]:
    """What a predictive returns, by name; nothing of it requires gradients."""
    samples = predictive(*args)
    assert not any(value.requires_grad for value in samples.values())
    return {name: Draws(samples[name]) for name in sorted(samples)}


@program()
def predictions_in_distribution(pyro: Any) -> Outcome:
    """Posterior predictive draws from an automatic guide, with plates and several global latents."""
    dist, infer = pyro.distributions, pyro.infer
    x = torch.linspace(-1.0, 1.0, 6)

    def model(y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.3))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(slope * x, sigma), obs=y)

    guide = infer.autoguide.AutoDiagonalNormal(model)
    fit(pyro, model, guide, 0.8 * x, steps=10)
    return drawn_by(infer.Predictive(model, guide=guide, num_samples=300, parallel=True))


@program()
def vectorised_weights(pyro: Any) -> Outcome:
    """All importance weights in one run, and how heavy their tail is."""
    importance, model, guide = pyro.infer.importance, normal_model(pyro), normal_guide(pyro)
    weights, model_trace, guide_trace = importance.vectorized_importance_weights(
        model, guide, DATA, num_samples=50, max_plate_nesting=1
    )
    diagnostic = importance.psis_diagnostic(model, guide, DATA, num_particles=400, max_plate_nesting=1)
    return {
        "weights": weights.detach(),
        "x": model_trace.nodes["x"]["log_prob"].detach(),
        "mean": guide_trace.nodes["mean"]["value"].detach(),
        "tail": float(diagnostic),
    }


@program()
def predictive_of_a_trained_svi(pyro: Any) -> Outcome:
    """Latents in a plate and discrete observations, `return_sites`, no gradient attached."""
    dist, infer = pyro.distributions, pyro.infer

    def model(counts: Tensor | None = None) -> None:
        with pyro.plate("groups", 3, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            with pyro.plate("days", 4, dim=-2):
                pyro.sample("count", dist.Poisson(rate), obs=counts)

    def guide(counts: Tensor | None = None) -> None:
        a = pyro.param("a", 3.0 * torch.ones(3), constraint=constraints.positive)
        with pyro.plate("groups", 3, dim=-1):
            pyro.sample("rate", dist.Gamma(a, 1.0))

    counts = torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 5.0], [0.0, 0.0, 3.0], [1.0, 2.0, 6.0]])
    outcome = fit(pyro, model, guide, counts, steps=8)
    predictive = infer.Predictive(model, guide=guide, num_samples=200, return_sites=["count", "rate"])
    return {**outcome, "drawn": drawn_by(predictive)}


def posterior_of_svi(pyro: Any, num_samples: int) -> Any:
    """A trained SVI that is itself a posterior, as older programs use it."""
    loss = pyro.infer.Trace_ELBO()
    optim = pyro.optim.Adam({"lr": 0.05})
    svi = pyro.infer.SVI(
        normal_model(pyro), normal_guide(pyro), optim, loss=loss, num_samples=num_samples, num_steps=10
    )
    return svi.run(DATA)


@program()
def svi_as_a_posterior(pyro: Any) -> Outcome:
    """`SVI.run` trains and collects traces; marginals and the information criterion come from them."""
    posterior = posterior_of_svi(pyro, num_samples=25)
    marginal = pyro.infer.EmpiricalMarginal(posterior, sites="mean")
    criterion = posterior.information_criterion()
    return {
        "number": len(posterior.exec_traces),
        "mean": [marginal.mean.detach(), marginal.variance.detach()],
        "support": marginal.enumerate_support().detach(),
        "criterion": [torch.as_tensor(criterion[name]).detach() for name in ("waic", "p_waic")],
        "pointwise": posterior.information_criterion(pointwise=True)["waic"].detach(),
    }


@program()
def predictive_of_traces(pyro: Any) -> Outcome:
    """`TracePredictive`, the older way to predict, for global latents."""
    posterior = posterior_of_svi(pyro, num_samples=20)
    predictive = pyro.infer.abstract_infer.TracePredictive(normal_model(pyro), posterior, num_samples=200)
    predictive.run(None)
    marginal = pyro.infer.EmpiricalMarginal(predictive, sites="x")
    drawn = marginal.enumerate_support().detach()
    return {"number": len(predictive.exec_traces), "shape": tuple(drawn.shape), "x": Draws(drawn)}
