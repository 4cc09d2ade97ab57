"""Automatic guides, each on a model with global, local, constrained and multivariate latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.programs.support import Outcome, data_generator, fit, params_of, program, trace_of

DATA = torch.randn(5, 3, generator=data_generator(41)) + 0.5


def model_for(pyro: Any) -> Callable[..., Any]:
    """A variance, a simplex, a vector and a row effect in a plate."""
    dist = pyro.distributions

    def model(data: Tensor = DATA) -> None:
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        share = pyro.sample("share", dist.Dirichlet(2.0 * torch.ones(3)))
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("rows", 5, dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            loc = mean + share * effect.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, sigma.unsqueeze(-1)).to_event(1), obs=data)

    return model


def detached(samples: Any) -> Any:
    if isinstance(samples, Tensor):
        return samples.detach().clone()
    if isinstance(samples, dict):
        return {name: detached(value) for name, value in samples.items()}
    return [detached(value) for value in samples]


def parameters_of(guide: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in guide.named_parameters()}


def trained(pyro: Any, guide: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
    """Fit, then everything one asks a guide for."""
    outcome = fit(pyro, model or model_for(pyro), guide, steps=6, **kwargs)
    trace = pyro.poutine.trace(guide).get_trace()
    return {
        **outcome,
        "modules": parameters_of(guide),
        "trace": trace_of(trace),
        "samples": detached(guide()),
        "median": detached(guide.median()),
    }


@program()
def auto_delta(pyro: Any) -> Outcome:
    """Maximum a posteriori."""
    return trained(pyro, pyro.infer.autoguide.AutoDelta(model_for(pyro)))


@program()
def auto_normal(pyro: Any) -> Outcome:
    guide = pyro.infer.autoguide.AutoNormal(model_for(pyro), init_scale=0.2)
    outcome = trained(pyro, guide)
    return {**outcome, "quantiles": detached(guide.quantiles([0.1, 0.5, 0.9]))}


@program()
def auto_normal_with_analytic_divergences(pyro: Any) -> Outcome:
    """Mean-field loss on a model whose latents are all real, vectorised particles."""
    dist = pyro.distributions

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 5, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 0.5), obs=DATA[:, 0])

    loss = pyro.infer.TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return trained(pyro, pyro.infer.autoguide.AutoNormal(model), model, loss=loss)


@program()
def auto_diagonal_normal(pyro: Any) -> Outcome:
    guide = pyro.infer.autoguide.AutoDiagonalNormal(model_for(pyro))
    outcome = trained(pyro, guide, loss=pyro.infer.Trace_ELBO(num_particles=2))
    posterior = guide.get_posterior()
    return {
        **outcome,
        "quantiles": detached(guide.quantiles([0.25, 0.75])),
        "latent": guide.sample_latent().detach(),
        "posterior": [posterior.mean.detach(), posterior.stddev.detach()],
    }


@program()
def auto_multivariate_normal(pyro: Any) -> Outcome:
    guide = pyro.infer.autoguide.AutoMultivariateNormal(model_for(pyro), init_scale=0.3)
    outcome = trained(pyro, guide)
    return {
        **outcome,
        "quantiles": detached(guide.quantiles([0.25, 0.75])),
        "covariance": guide.get_posterior().covariance_matrix.detach(),
    }


@program()
def auto_low_rank_multivariate_normal(pyro: Any) -> Outcome:
    guide = pyro.infer.autoguide.AutoLowRankMultivariateNormal(model_for(pyro), rank=2)
    outcome = {**trained(pyro, guide), "quantiles": detached(guide.quantiles([0.25, 0.75]))}
    pyro.clear_param_store()
    default = pyro.infer.autoguide.AutoLowRankMultivariateNormal(model_for(pyro))
    default()
    return {
        **outcome,
        "default rank": [tuple(value.shape) for value in default.parameters()],
    }


@program(rtol=2e-3, atol=1e-4)
def auto_laplace_approximation(pyro: Any) -> Outcome:
    """The mode by training, then the curvature there."""
    model = model_for(pyro)
    guide = pyro.infer.autoguide.AutoLaplaceApproximation(model)
    outcome = fit(pyro, model, guide, steps=40, optim=pyro.optim.Adam({"lr": 0.05}))
    curved = guide.laplace_approximation()
    return {
        **outcome,
        "mode": detached(curved.median()),
        "covariance": curved.get_posterior().covariance_matrix.detach(),
        "samples": detached(curved()),
    }


@program()
def auto_guide_list(pyro: Any) -> Outcome:
    """Point estimates, a joint normal, independent normals and a function, each for some of the latents."""
    autoguide, poutine, dist = pyro.infer.autoguide, pyro.poutine, pyro.distributions
    model = model_for(pyro)

    def means(data: Tensor = DATA) -> dict[str, Tensor]:
        loc = pyro.param("mean_loc", torch.zeros(3))
        return {"mean": pyro.sample("mean", dist.Normal(loc, 0.3).to_event(1))}

    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["sigma"])))
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["share"])))
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["effect"])))
    guide.append(autoguide.AutoCallable(model, means, lambda: {"mean": pyro.param("mean_loc")}))
    outcome = fit(pyro, model, guide, steps=6)
    return {**outcome, "median": detached(guide.median()), "samples": detached(guide())}


@program()
def init_strategies(pyro: Any) -> Outcome:
    """Where each strategy puts the start of a point estimate."""
    autoguide = pyro.infer.autoguide
    model = model_for(pyro)
    values = {"mean": torch.tensor([1.0, 2.0, 3.0]), "sigma": torch.tensor(0.7)}
    strategies = {
        "feasible": autoguide.init_to_feasible,
        "mean": autoguide.init_to_mean,
        "median": autoguide.init_to_median,
        "median of 50": lambda site: autoguide.init_to_median(site, num_samples=50),
        "sample": autoguide.init_to_sample,
        "uniform": autoguide.init_to_uniform,
        "near zero": autoguide.init_to_uniform(radius=0.1),
        "value": autoguide.init_to_value(values=values),
        "generated": autoguide.init_to_generated(generate=lambda: autoguide.init_to_value(values=values)),
    }
    outcome = {}
    for label, strategy in strategies.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(6)
        guide = autoguide.AutoDelta(model, init_loc_fn=strategy)
        outcome[label] = detached(guide())
    return outcome


@program()
def guide_with_subsampled_plate(pyro: Any) -> Outcome:
    """`create_plates` subsamples for an automatic guide; its parameters stay full-size."""
    dist, autoguide = pyro.distributions, pyro.infer.autoguide
    data = torch.randn(20, generator=data_generator(42))

    def model(data: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, subsample_size=6, dim=-1):
            batch = pyro.subsample(data, event_dim=0)
            z = pyro.sample("z", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch)

    def create_plates(data: Tensor) -> Any:
        return pyro.plate("rows", 20, subsample_size=6, dim=-1)

    guide = autoguide.AutoNormal(model, create_plates=create_plates)
    return {**fit(pyro, model, guide, data, steps=8), "modules": parameters_of(guide)}


@program()
def guide_for_the_continuous_half(pyro: Any) -> Outcome:
    """A discrete latent hidden from the automatic guide and sampled by hand beside it.

    Not `AutoNormal`: its auxiliary sites count as costs of the score here, and do not under Pyro.
    """
    dist, poutine = pyro.distributions, pyro.poutine

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.4))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("rows", 5):
            pyro.sample("x", dist.Normal(loc[k.long()], 1.0), obs=DATA[:, 1])

    automatic = pyro.infer.autoguide.AutoDelta(poutine.block(model, hide=["k"]))

    def guide() -> None:
        automatic()
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    return {**fit(pyro, model, guide, steps=8), "modules": parameters_of(automatic)}


@program()
def guides_in_the_param_store(pyro: Any) -> Outcome:
    """Names under which an automatic guide's parameters appear, and their constrained values."""
    names = {}
    for name in ("AutoDelta", "AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        model = model_for(pyro)
        fit(pyro, model, getattr(pyro.infer.autoguide, name)(model), steps=1)
        names[name] = params_of(pyro)
    return names
