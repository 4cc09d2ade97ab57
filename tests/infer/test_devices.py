"""Whole programs on a GPU: nothing mixes devices, and the numbers are those of the CPU.

With `--device cuda`, or on a pretended GPU with `--device pretend`. Data and parameters are put on the
device; what the library makes has to follow them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sumprod as pyro
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import (
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
    infer_discrete,
)
from tests import devices

DATA = [0.3, 1.9, -0.4, 2.2, 0.1, 1.5]


@pytest.fixture
def gpu() -> torch.device:
    if devices.device().type == "cpu":
        # A device that torch learns of in the middle of a run would be in the way of other tests.
        pytest.skip("needs another device: give --device pretend, or cuda")
    return devices.device()


def put(values: object, device: torch.device) -> Tensor:
    return torch.tensor(values).to(device)


def mixture(device: torch.device) -> Callable[..., object]:
    data = put(DATA, device)

    def model() -> Tensor:
        weights = pyro.param("weights", put([0.4, 0.6], device), constraint=dist.constraints.simplex)
        means = pyro.param("means", put([0.0, 2.0], device))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=data)
        return z

    return model


def chain(device: torch.device) -> Callable[..., object]:
    data = put(DATA, device)

    def model() -> list[Tensor]:
        initial = pyro.param("initial", put([0.7, 0.3], device), constraint=dist.constraints.simplex)
        move = pyro.param("move", put([[0.8, 0.2], [0.3, 0.7]], device), constraint=dist.constraints.simplex)
        means = pyro.param("means", put([0.0, 2.0], device))
        states = []
        z = None
        for t in pyro.markov(range(len(data))):
            probs = initial if z is None else move[z]
            z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=data[t])
            states.append(z)
        return states

    return model


def vectorized_chain(device: torch.device) -> Callable[..., object]:
    data = put(DATA, device)

    def model() -> None:
        move = pyro.param("move", put([[0.8, 0.2], [0.3, 0.7]], device), constraint=dist.constraints.simplex)
        means = pyro.param("means", put([0.0, 2.0], device))
        z: Tensor | int = 0
        for t in pyro.vectorized_markov(name="time", size=len(data), dim=-1):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=data[t])

    return model


def continuous(device: torch.device, size: int = 4) -> tuple[Callable[..., object], Callable[..., object]]:
    data = put(DATA, device)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(put(0.0, device), put(1.0, device)))
        with pyro.plate("data", len(data), subsample_size=size, device=str(device)) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide() -> None:
        loc = pyro.param("loc", put(0.5, device))
        scale = pyro.param("scale", put(0.7, device), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale))

    return model, guide


def nothing() -> None:
    pass


ENUMERATED = {"mixture": mixture, "chain": chain, "vectorized_chain": vectorized_chain}


def loss_and_gradients(model: Callable[..., object]) -> list[Tensor]:
    pyro.clear_param_store()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, nothing)
    store = pyro.get_param_store()
    leaves = [store._params[name] for name in sorted(store.keys())]
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("name", sorted(ENUMERATED))
def test_enumerated_losses_and_gradients(name: str, gpu: torch.device) -> None:
    here = loss_and_gradients(ENUMERATED[name](gpu))
    there = loss_and_gradients(ENUMERATED[name](torch.device("cpu")))
    for actual, expected in zip(here, there, strict=True):
        assert actual.device == gpu
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ENUMERATED))
def test_marginals(name: str, gpu: torch.device) -> None:
    found = []
    for device in (gpu, torch.device("cpu")):
        pyro.clear_param_store()
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        marginals = elbo.compute_marginals(ENUMERATED[name](device), nothing)
        found.append({site: marginal.logits for site, marginal in marginals.items()})
    assert found[0]
    for site, logits in found[0].items():
        assert logits.device == gpu
        torch.testing.assert_close(logits.cpu(), found[1][site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", ["mixture", "chain"])
def test_infer_discrete(name: str, temperature: int, gpu: torch.device) -> None:
    model = infer_discrete(
        config_enumerate(ENUMERATED[name](gpu)), first_available_dim=-2, temperature=temperature
    )
    result = model()
    values = result if isinstance(result, list) else [result]
    assert all(value.device == gpu for value in values)
    if temperature == 0:
        pyro.clear_param_store()
        there = infer_discrete(
            config_enumerate(ENUMERATED[name](torch.device("cpu"))), first_available_dim=-2, temperature=0
        )()
        expected = there if isinstance(there, list) else [there]
        assert all(torch.equal(a.cpu(), b) for a, b in zip(values, expected, strict=True))


@pytest.mark.parametrize("optimiser", [pyro.optim.Adam, pyro.optim.ClippedAdam, pyro.optim.SGD])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_training(elbo: type, optimiser: Callable[..., object], gpu: torch.device) -> None:
    model, guide = continuous(gpu, 6 if elbo is RenyiELBO else 4)
    options = {"num_particles": 2, "vectorize_particles": True}
    svi = SVI(model, guide, optimiser({"lr": 0.01}), elbo(**options))
    losses = [svi.step() for _ in range(3)]
    assert all(isinstance(loss, float) for loss in losses)
    assert all(pyro.param(name).device == gpu for name in ("loc", "scale"))


def test_training_of_an_enumerated_model(gpu: torch.device) -> None:
    svi = SVI(mixture(gpu), nothing, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step() for _ in range(5)]
    assert losses[-1] < losses[0]


def test_importance_and_prediction(gpu: torch.device) -> None:
    model, guide = continuous(gpu)
    posterior = Importance(model, guide, num_samples=5).run()
    assert posterior.get_ESS().device == gpu
    samples = Predictive(model, guide=guide, num_samples=4)()
    assert samples["x"].device == gpu


def test_hmm_distribution(gpu: torch.device) -> None:
    found = []
    logits, value = torch.randn(3, 3), torch.randn(4)
    for device in (gpu, torch.device("cpu")):
        observation = dist.Normal(put([0.0, 1.0, 2.0], device), 1.0)
        hmm = dist.DiscreteHMM(put([0.1, 0.2, 0.3], device), logits.to(device), observation, duration=4)
        found.append((hmm.log_prob(value.to(device)), hmm.filter(value.to(device)).logits))
    for actual, expected in zip(*found, strict=True):
        assert actual.device == gpu
        torch.testing.assert_close(actual.cpu(), expected)


def test_traces_and_handlers(gpu: torch.device) -> None:
    model = mixture(gpu)
    trace = handlers.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.log_prob_sum().device == gpu
    again = handlers.trace(
        handlers.replay(handlers.uncondition(model), handlers.trace(handlers.uncondition(model)).get_trace())
    ).get_trace()
    assert again.nodes["x"]["value"].device == gpu
    masked = handlers.trace(handlers.mask(model, put([True] * 5 + [False], gpu))).get_trace()
    assert masked.log_prob_sum().device == gpu
