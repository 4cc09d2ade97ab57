"""A thousand steps leave no objects and no memory behind, and a step leaves no reference cycles."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sumprod as pyro

STEPS = 1000
# Caches of the interpreter and of torch fill now and then; one object kept in ten steps is a failure.
SLACK_OBJECTS = STEPS // 10
SLACK_BYTES = 2 * 2**20


def plain_sites() -> Callable[[], float]:
    """Latents, parameters with constraints, observed data in a plate."""
    dist = pyro.distributions

    def model() -> None:
        z = [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)) for i in range(5)]
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(torch.stack(z), 1.0), obs=torch.ones(5))

    def guide() -> None:
        for i in range(5):
            scale = pyro.param(f"s{i}", torch.tensor(0.5), constraint=dist.constraints.positive)
            pyro.sample(f"z{i}", dist.Normal(pyro.param(f"m{i}", torch.tensor(0.0)), scale))

    return stepper(model, guide, pyro.infer.TraceMeanField_ELBO())


def subsampled_with_scores() -> Callable[[], float]:
    """Random subsets, discrete latents, two particles."""
    dist = pyro.distributions

    def model() -> None:
        with pyro.plate("rows", 20, subsample_size=4) as i:
            z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=i.float())

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(20))
        with pyro.plate("rows", 20, subsample_size=4) as i:
            pyro.sample("z", dist.Bernoulli(logits=logits[i]))

    return stepper(model, guide, pyro.infer.Trace_ELBO(num_particles=2))


def network_and_particles() -> Callable[[], float]:
    """`pyro.module`, vectorised particles, Renyi's bound."""
    dist, net = pyro.distributions, torch.nn.Linear(2, 2)
    data = torch.ones(6, 2)

    def model() -> None:
        with pyro.plate("rows", 6, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(6, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide() -> None:
        pyro.module("net", net)
        with pyro.plate("rows", 6, dim=-1):
            pyro.sample("z", dist.Normal(net(data), 1.0).to_event(1))

    loss = pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return stepper(model, guide, loss)


def automatic_guide() -> Callable[[], float]:
    dist = pyro.distributions

    def model() -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 6):
            z = pyro.sample("z", dist.Normal(0.0, tau))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(6))

    return stepper(model, pyro.infer.autoguide.AutoNormal(model), pyro.infer.Trace_ELBO())


def stepper(model: Any, guide: Any, loss: Any) -> Callable[[], float]:
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    return svi.step


PROGRAMS = [plain_sites, subsampled_with_scores, network_and_particles, automatic_guide]


def resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the resident size can be read on Linux only")
    return int(statm.read_text().split()[1]) * 4096


@pytest.mark.usefixtures("new_objects_only")
@pytest.mark.parametrize("make", PROGRAMS)
def test_nothing_grows(make: Callable[[], Callable[[], float]]) -> None:
    step = make()
    for _ in range(200):
        step()
    gc.collect()
    objects, size = len(gc.get_objects()), resident_bytes()
    for _ in range(STEPS):
        step()
    gc.collect()
    assert len(gc.get_objects()) - objects < SLACK_OBJECTS
    assert resident_bytes() - size < SLACK_BYTES


@pytest.mark.usefixtures("new_objects_only")
@pytest.mark.parametrize("make", PROGRAMS)
def test_steps_need_no_garbage_collector(make: Callable[[], Callable[[], float]]) -> None:
    """Graphs and traces are freed when a step ends, not when the collector next runs."""
    step = make()
    for _ in range(20):
        step()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            step()
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert unreachable == 0
