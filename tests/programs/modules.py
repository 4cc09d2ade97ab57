"""Programs written as classes: `PyroModule` with learnable, random and plain attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from tests.programs.support import Draws, Outcome, data_generator, fit, params_of, program, trace_of

X = torch.randn(12, 3, generator=data_generator(51))
Y = X @ torch.tensor([1.0, -1.0, 0.5]) + 0.1


@program()
def bayesian_linear_layer(pyro: Any) -> Outcome:
    """A `PyroModule[nn.Linear]` whose weight and bias get priors after construction."""
    dist, pnn = pyro.distributions, pyro.nn

    class Regression(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = pnn.PyroModule[nn.Linear](3, 1)
            self.linear.weight = pnn.PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
            self.linear.bias = pnn.PyroSample(dist.Normal(0.0, 5.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 2.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
            return mean

    model = Regression()
    guide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    outcome = fit(pyro, model, guide, X, Y, steps=8)
    sites = ("linear.weight", "obs", "_RETURN")
    trace = trace_of(pyro.poutine.trace(model).get_trace(X, Y))
    drawn = pyro.infer.Predictive(model, guide=guide, num_samples=200, return_sites=sites)(X)
    return {**outcome, "trace": trace, "drawn": {name: Draws(drawn[name]) for name in sites}}


@program()
def learnable_attributes(pyro: Any) -> Outcome:
    """`PyroParam` with constraints, a plain `nn.Parameter`, a nested module and a dependent prior."""
    dist, pnn = pyro.distributions, pyro.nn

    class Inner(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.0))

        @pnn.PyroSample
        def noise(self) -> Any:
            return dist.HalfNormal(self.gain.abs())

    class Model(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.scale = pnn.PyroParam(torch.tensor(2.0), constraint=constraints.positive)
            self.inner = Inner()
            self.lazy = pnn.PyroParam(lambda: torch.zeros(3))

        def forward(self) -> Tensor:
            noise = self.inner.noise
            with pyro.plate("data", len(X)):
                pyro.sample("y", dist.Normal(X @ self.lazy, self.scale + noise), obs=Y)
            return noise - self.inner.noise

    model = Model()

    def guide() -> None:
        pyro.sample("inner.noise", dist.LogNormal(pyro.param("loc", torch.tensor(-1.0)), 0.1))

    outcome = fit(pyro, model, guide, steps=8)
    return {
        **outcome,
        "same in one call": model().detach(),
        "names": sorted(name for name, _ in model.named_parameters()),
    }


@program()
def guide_as_a_module(pyro: Any) -> Outcome:
    """A class for the guide, a method marked `pyro_method`, and `torch.optim` on an `ELBOModule`."""
    dist, pnn = pyro.distributions, pyro.nn

    class Model(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(0.0))

        def forward(self) -> None:
            w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("data", len(X)):
                pyro.sample("y", dist.Normal(X @ w + self.offset, 0.5), obs=Y)

    class Guide(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))
            self.scale = pnn.PyroParam(torch.ones(3), constraint=constraints.positive, event_dim=1)

        @pnn.pyro_method
        def where(self) -> tuple[Tensor, Tensor]:
            return self.loc, self.scale

        def forward(self) -> None:
            loc, scale = self.where()
            pyro.sample("w", dist.Normal(loc, scale).to_event(1))

    elbo = pyro.infer.Trace_ELBO(num_particles=2)(Model(), Guide())
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = elbo()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    values = {name: value.detach() for name, value in elbo.named_parameters()}
    return {"losses": losses, "values": dict(sorted(values.items()))}


@program()
def list_of_modules(pyro: Any) -> Outcome:
    """A stack of layers in a `PyroModuleList`, parameters in the store by dotted names."""
    dist, pnn = pyro.distributions, pyro.nn

    class Network(pnn.PyroModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = pnn.PyroModuleList([pnn.PyroModule[nn.Linear](3, 3) for _ in range(2)])
            self.layers[1].bias = pnn.PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))

        def forward(self, x: Tensor) -> None:
            for layer in self.layers:
                x = layer(x).tanh()
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=Y)

    model = Network()
    guide = pyro.infer.autoguide.AutoNormal(model)
    outcome = fit(pyro, model, guide, X, steps=6, loss=pyro.infer.TraceMeanField_ELBO())
    return {**outcome, "names": sorted(params_of(pyro))}
