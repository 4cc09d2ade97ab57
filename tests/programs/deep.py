"""Neural networks inside programs: autoencoders, Bayesian networks, networks in the guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.programs.support import Outcome, data_generator, fit, params_of, program, trace_of

IMAGES = (torch.rand(16, 12, generator=data_generator(5)) < 0.4).float()
INPUTS = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1)
OUTPUTS = torch.sin(3.0 * INPUTS).squeeze(-1)


class Encoder(nn.Module):
    """Location and positive scale of two latent variables."""

    def __init__(self, inputs: int = 12, hidden: int = 8, latent: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.softplus(self.first(x))
        return self.loc(hidden), self.log_scale(hidden).exp()


def decoder(inputs: int = 2) -> nn.Module:
    """Logits of twelve pixels."""
    return nn.Sequential(nn.Linear(inputs, 8), nn.Softplus(), nn.Linear(8, 12))


def autoencoder(pyro: Any, loss: Any, batch: int | None = None) -> Outcome:
    """A variational autoencoder with `pyro.module`, optionally in minibatches."""
    dist = pyro.distributions
    encode, decode = Encoder(), decoder()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), torch.ones(len(x), 2)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("data", len(x)):
            loc, scale = encode(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1.0e-2}), loss=loss)
    losses = []
    for _ in range(6):
        for x in IMAGES.split(batch or len(IMAGES)):
            losses.append(svi.step(x))
    trained = {name: value.detach() for name, value in decode.state_dict().items()}
    return {"losses": losses, "params": params_of(pyro), "decoder": trained}


@program()
def variational_autoencoder(pyro: Any) -> Outcome:
    return autoencoder(pyro, pyro.infer.Trace_ELBO())


@program()
def variational_autoencoder_in_minibatches(pyro: Any) -> Outcome:
    return autoencoder(pyro, pyro.infer.TraceMeanField_ELBO(), batch=5)


@program()
def importance_weighted_autoencoder(pyro: Any) -> Outcome:
    loss = pyro.infer.RenyiELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    return autoencoder(pyro, loss)


@program()
def conditional_autoencoder_with_annealing(pyro: Any) -> Outcome:
    """Labels as extra inputs, divergence annealed by `poutine.scale`, Adagrad."""
    dist, poutine = pyro.distributions, pyro.poutine
    encode, decode = Encoder(inputs=15), decoder(inputs=5)
    labels = torch.eye(3)[torch.arange(16) % 3]

    def model(x: Tensor, y: Tensor, annealing: float) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=annealing):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(2), torch.ones(2)).expand([len(x), 2]).to_event(1)
                )
            logits = decode(torch.cat([z, y], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor, annealing: float) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("data", len(x)), poutine.scale(scale=annealing):
            loc, scale = encode(torch.cat([x, y], -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adagrad({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step(IMAGES, labels, annealing=0.1 * (1 + step)) for step in range(8)]
    return {"losses": losses, "params": params_of(pyro)}


@program()
def semi_supervised_autoencoder(pyro: Any) -> Outcome:
    """A discrete label, sampled by the guide when it is not given: score function plus pathwise terms."""
    dist = pyro.distributions
    encode, decode, classify = Encoder(inputs=15), decoder(inputs=5), nn.Linear(12, 3)
    label = torch.eye(3)[torch.arange(16) % 3]

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3.0), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(torch.cat([z, y], -1))).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.module("classifier", classify)
                y = pyro.sample("y", dist.OneHotCategorical(logits=classify(x)))
            loc, scale = encode(torch.cat([x, y], -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = [svi.step(IMAGES, label) if step % 2 else svi.step(IMAGES) for step in range(10)]
    return {"losses": losses, "params": params_of(pyro)}


@program()
def bayesian_network_by_random_module(pyro: Any) -> Outcome:
    """A network with a prior on every weight; the guide draws whole networks, too."""
    dist = pyro.distributions
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def normal(name: str, like: Tensor, learn: bool) -> Any:
        loc, scale = torch.zeros_like(like), torch.ones_like(like)
        if learn:
            loc = pyro.param(f"loc_{name}", 0.1 * torch.randn(like.shape))
            scale = pyro.param(f"scale_{name}", 0.1 * scale, constraint=dist.constraints.positive)
        return dist.Normal(loc, scale).to_event(like.dim())

    def networks(learn: bool) -> Any:
        prior = {name: normal(name, value.detach(), learn) for name, value in net.named_parameters()}
        return pyro.random_module("net", net, prior)

    def model(x: Tensor) -> None:
        mean = networks(False)()(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=OUTPUTS)

    def guide(x: Tensor) -> nn.Module:
        return networks(True)()

    outcome = fit(pyro, model, guide, INPUTS, steps=10)
    return {**outcome, "prediction": guide(INPUTS)(INPUTS)}


@program()
def network_with_lifted_parameters(pyro: Any) -> Outcome:
    """`poutine.lift` turns the weights of `pyro.module` into latents with priors by name."""
    dist = pyro.distributions
    net = nn.Linear(1, 1)
    priors = {
        "weight": dist.Normal(torch.zeros(1, 1), torch.ones(1, 1)).to_event(2),
        "bias": dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1),
    }

    def regression(x: Tensor) -> None:
        weight = pyro.param("weight", torch.zeros(1, 1))
        bias = pyro.param("bias", torch.zeros(1))
        mean = (x @ weight.transpose(-1, -2) + bias).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=OUTPUTS)

    model = pyro.poutine.lift(regression, prior=priors)

    def guide(x: Tensor) -> None:
        w, b = (
            pyro.param("w_loc", net.weight.detach().clone()),
            pyro.param("b_loc", net.bias.detach().clone()),
        )
        pyro.sample("weight", dist.Normal(w, 0.1).to_event(2))
        pyro.sample("bias", dist.Normal(b, 0.1).to_event(1))

    outcome = fit(pyro, model, guide, INPUTS)
    return {**outcome, "model": trace_of(pyro.poutine.trace(model).get_trace(INPUTS))}


@program()
def lift_with_one_prior_for_all(pyro: Any) -> Outcome:
    """One distribution for every parameter, constrained or not, each drawn once."""
    dist = pyro.distributions

    def model() -> Tensor:
        a = pyro.param("a", torch.tensor(1.0))
        b = pyro.param("b", torch.tensor(2.0), constraint=dist.constraints.positive)
        return a + b + pyro.param("a")

    lifted = pyro.poutine.lift(model, prior=dist.Exponential(1.0))
    return {"lifted": trace_of(pyro.poutine.trace(lifted).get_trace()), "params": params_of(pyro)}


@program()
def recurrent_guide(pyro: Any) -> Outcome:
    """An inference network over time: a GRU in the guide, one site per time step."""
    dist = pyro.distributions
    series = torch.randn(4, 5, 2, generator=data_generator(2))
    cell, head, emit = nn.GRUCell(2, 6), nn.Linear(6, 1), nn.Linear(1, 2)

    def model() -> None:
        pyro.module("emit", emit)
        with pyro.plate("series", 4):
            z = torch.zeros(4, 1)
            for t in range(5):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 0.5).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(emit(z), 1.0).to_event(1), obs=series[:, t])

    def guide() -> None:
        pyro.module("cell", cell)
        pyro.module("head", head)
        hidden = torch.zeros(4, 6)
        with pyro.plate("series", 4):
            for t in range(5):
                hidden = cell(series[:, t], hidden)
                pyro.sample(f"z_{t}", dist.Normal(head(hidden), 0.3).to_event(1))

    optim = pyro.optim.ClippedAdam({"lr": 0.01})
    return fit(pyro, model, guide, steps=5, optim=optim, loss=pyro.infer.TraceMeanField_ELBO())
