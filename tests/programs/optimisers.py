"""Optimisers with options per parameter, clipping, schedulers, and saved state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from tests.programs.support import Outcome, data_generator, fit, params_of, program

DATA = torch.randn(8, 2, generator=data_generator(31)) * 2.0 + 1.0


def gaussian(pyro: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """A model with three parameters in it and a guide with two."""
    dist = pyro.distributions

    def model() -> None:
        scale = pyro.param("noise.scale", torch.ones(2), constraint=constraints.positive)
        weight = pyro.param("weight", torch.ones(2))
        offset = pyro.param("offset", torch.tensor(0.5))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 8):
            pyro.sample("x", dist.Normal(weight * z + offset, scale).to_event(1), obs=DATA)

    def guide() -> None:
        loc = pyro.param("guide.loc", torch.zeros(2))
        scale = pyro.param("guide.scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


@program()
def every_torch_optimiser(pyro: Any) -> Outcome:
    """Each by its name, from the same start; some steps of each."""
    options: dict[str, dict[str, Any]] = {
        "Adam": {"lr": 0.05, "weight_decay": 0.01},
        "AdamW": {"lr": 0.05},
        "Adamax": {"lr": 0.05},
        "NAdam": {"lr": 0.05},
        "RAdam": {"lr": 0.05},
        "Adagrad": {"lr": 0.1},
        "Adadelta": {"lr": 1.0},
        "ASGD": {"lr": 1e-3},
        "RMSprop": {"lr": 0.01, "momentum": 0.5},
        "Rprop": {"lr": 0.01},
        "SGD": {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
        "ClippedAdam": {"lr": 0.05, "clip_norm": 0.5, "lrd": 0.9, "weight_decay": 0.01},
        "AdagradRMSProp": {"eta": 0.3, "delta": 1e-8, "t": 0.2},
    }
    outcome = {}
    for name, given in options.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide = gaussian(pyro)
        outcome[name] = fit(pyro, model, guide, steps=6, optim=getattr(pyro.optim, name)(given))
        outcome[name]["options"] = sorted(given)
    return outcome


@program()
def options_per_parameter(pyro: Any) -> Outcome:
    """A function from names to options: some parameters learn fast, one stands still."""
    asked = []

    def options(name: str) -> dict[str, Any]:
        asked.append(name)
        if name == "offset":
            return {"lr": 0.0}
        return {"lr": 0.1} if name.startswith("guide") else {"lr": 0.01, "betas": (0.8, 0.99)}

    model, guide = gaussian(pyro)
    outcome = fit(pyro, model, guide, optim=pyro.optim.Adam(options))
    return {**outcome, "asked": sorted(asked)}


@program()
def clipping(pyro: Any) -> Outcome:
    """By norm, by value, both per parameter; and clip options chosen by name."""
    outcome = {}
    for label, clip in {
        "norm": {"clip_norm": 0.5},
        "value": {"clip_value": 0.3},
        "both": {"clip_norm": 2.0, "clip_value": 1.0},
        "by name": lambda module, name: {"clip_value": 0.1} if name == "offset" else {"clip_norm": 1.0},
    }.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        model, guide = gaussian(pyro)
        optim = pyro.optim.SGD({"lr": 0.05}, clip)
        outcome[label] = fit(pyro, model, guide, steps=6, optim=optim)
    return outcome


@program()
def schedulers(pyro: Any) -> Outcome:
    """Learning rates that change by torch's schedulers, stepped by hand after each epoch."""
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}}
    sgd = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}}
    outcome = {}
    for name, given in {
        "ExponentialLR": {**adam, "gamma": 0.5},
        "StepLR": {**sgd, "step_size": 2, "gamma": 0.1},
        "MultiStepLR": {**adam, "milestones": [2, 4], "gamma": 0.2},
        "CosineAnnealingLR": {**adam, "T_max": 5},
        "LambdaLR": {**adam, "lr_lambda": lambda epoch: 1.0 / (1 + epoch)},
        "CyclicLR": {**sgd, "base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 2, "cycle_momentum": False},
    }.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        model, guide = gaussian(pyro)
        optim = getattr(pyro.optim, name)(given, {"clip_norm": 10.0})
        svi = pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO())
        losses = []
        for _ in range(6):
            losses += [svi.step(), svi.step()]
            optim.step()
        outcome[name] = {"losses": losses, "params": params_of(pyro)}
    return outcome


@program()
def reduce_on_plateau(pyro: Any) -> Outcome:
    """The scheduler that wants the loss."""
    model, guide = gaussian(pyro)
    given = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "patience": 1, "factor": 0.5}
    optim = pyro.optim.ReduceLROnPlateau(given)
    svi = pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO())
    losses = []
    for _ in range(10):
        losses.append(svi.step())
        optim.step(losses[-1])
    return {"losses": losses, "params": params_of(pyro)}


@program()
def parameters_that_appear_late(pyro: Any) -> Outcome:
    """A parameter first used in step three; another that is skipped in some steps keeps its moments."""
    dist = pyro.distributions

    def model(step: int) -> None:
        mean = pyro.param("mean", torch.tensor(0.0))
        if step >= 3:
            mean = mean + pyro.param("late", torch.tensor(0.1))
        if step % 2 == 0:
            mean = mean + pyro.param("even", torch.tensor(-0.1))
        with pyro.plate("data", 8):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:, 0])

    optim = pyro.optim.Adam({"lr": 0.1})
    svi = pyro.infer.SVI(model, lambda step: None, optim, pyro.infer.Trace_ELBO())
    losses = [svi.step(step) for step in range(8)]
    return {"losses": losses, "params": params_of(pyro), "state": sorted(optim.get_state())}


@program()
def two_phases_with_blocked_parameters(pyro: Any) -> Outcome:
    """First the guide learns with the model's parameters hidden, then the other way round."""
    model, guide = gaussian(pyro)
    block = pyro.poutine.block
    elbo = pyro.infer.Trace_ELBO()
    hide_model = block(model, hide=["noise.scale", "weight", "offset"])
    hide_guide = block(guide, hide_fn=lambda site: site["type"] == "param")
    first = pyro.infer.SVI(hide_model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    second = pyro.infer.SVI(model, hide_guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    losses = [first.step() for _ in range(4)]
    halfway = params_of(pyro)
    losses += [second.step() for _ in range(4)]
    return {"losses": losses, "halfway": halfway, "params": params_of(pyro)}


@program()
def optimiser_state_moves_on(pyro: Any) -> Outcome:
    """`get_state` and `set_state` carry moments over to a new optimiser."""
    model, guide = gaussian(pyro)
    optim = pyro.optim.Adam({"lr": 0.1})
    fit(pyro, model, guide, steps=3, optim=optim)
    state = optim.get_state()
    names = sorted(state)
    other = pyro.optim.Adam({"lr": 0.1})
    other.set_state(state)
    more: dict[str, Tensor] = fit(pyro, model, guide, steps=3, optim=other)
    return {"names": names, "more": more}
