"""One `SVI.step` of programs with neural networks, against Pyro."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _svi import Step, SviProgram, race_programs, stepper

PIXELS, HIDDEN, LATENT = 64, 32, 5


class Encoder(nn.Module):
    """Location and positive scale of the latent variables."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, HIDDEN)
        self.loc = nn.Linear(HIDDEN, LATENT)
        self.log_scale = nn.Linear(HIDDEN, LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.softplus(self.first(x))
        return self.loc(hidden), self.log_scale(hidden).exp()


def autoencoder(batch: int, make_loss: Callable[[Any], Any]) -> Any:
    """Binary images of 8 by 8 pixels, one hidden layer on each side."""
    images = (torch.rand(batch, PIXELS, generator=torch.Generator().manual_seed(1)) < 0.4).float()

    def build(pyro: Any) -> Step:
        dist = pyro.distributions
        encode = Encoder()
        decode = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))

        def model(x: Tensor) -> None:
            pyro.module("decoder", decode)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encode)
            with pyro.plate("data", len(x)):
                loc, scale = encode(x)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        return stepper(pyro, model, guide, make_loss(pyro), args=(images,))

    return build


def bayesian_network(pyro: Any) -> Step:
    """A prior on every weight of a small network; the guide learns a location and scale for each."""
    dist = pyro.distributions
    shapes = {"w1": (16, 1), "b1": (16,), "w2": (16, 16), "b2": (16,), "w3": (1, 16), "b3": (1,)}
    x = torch.linspace(-1.0, 1.0, 50).unsqueeze(-1)
    y = (3.0 * x).sin().squeeze(-1)

    def model() -> None:
        p = {
            name: pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
            for name, shape in shapes.items()
        }
        hidden = torch.tanh(nn.functional.linear(x, p["w1"], p["b1"]))
        hidden = torch.tanh(nn.functional.linear(hidden, p["w2"], p["b2"]))
        mean = nn.functional.linear(hidden, p["w3"], p["b3"]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.1), obs=y)

    def guide() -> None:
        for name, shape in shapes.items():
            loc = pyro.param(f"{name}.loc", lambda shape=shape: 0.1 * torch.randn(shape))
            positive = dist.constraints.positive
            scale = pyro.param(
                f"{name}.scale", lambda shape=shape: torch.full(shape, 0.1), constraint=positive
            )
            pyro.sample(name, dist.Normal(loc, scale).to_event(len(shape)))

    return stepper(pyro, model, guide, pyro.infer.TraceMeanField_ELBO())


PROGRAMS = (
    SviProgram("autoencoder, batch 64, Trace_ELBO", autoencoder(64, lambda p: p.infer.Trace_ELBO()), 1.5),
    SviProgram(
        "autoencoder, batch 64, TraceMeanField_ELBO",
        autoencoder(64, lambda p: p.infer.TraceMeanField_ELBO()),
        1.5,
    ),
    SviProgram(
        "autoencoder, batch 64, RenyiELBO, 5 vectorised particles",
        autoencoder(
            64, lambda p: p.infer.RenyiELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
        ),
    ),
    SviProgram("autoencoder, batch 1024, Trace_ELBO", autoencoder(1024, lambda p: p.infer.Trace_ELBO())),
    SviProgram("Bayesian network, TraceMeanField_ELBO", bayesian_network),
)

if __name__ == "__main__":
    sys.exit(race_programs("SVI.step: programs with networks", __doc__ or "", PROGRAMS))
