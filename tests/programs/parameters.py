"""Parameters under constraints, and the store that holds them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.programs.support import Outcome, data_generator, fit, params_of, program

SYMMETRIC = torch.tensor([[2.0, 0.3], [0.3, 1.0]])


def unconstrained_of(pyro: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}


@program()
def constraints_of_many_kinds(pyro: Any) -> Outcome:
    """A parameter for each constraint, all pulled in a random direction by one loss."""
    c = pyro.distributions.constraints
    initial = {
        "real": (torch.tensor([0.5, -0.5]), c.real),
        "positive": (torch.tensor([0.5, 2.0]), c.positive),
        "nonnegative": (torch.tensor([0.5, 2.0]), c.nonnegative),
        "unit_interval": (torch.tensor([0.2, 0.9]), c.unit_interval),
        "interval": (torch.tensor([0.0, 2.5]), c.interval(-1.0, 3.0)),
        "half_open_interval": (torch.tensor([0.0, 2.5]), c.half_open_interval(-1.0, 3.0)),
        "greater_than": (torch.tensor([2.5, 4.0]), c.greater_than(2.0)),
        "greater_than_eq": (torch.tensor([2.5, 4.0]), c.greater_than_eq(2.0)),
        "less_than": (torch.tensor([-2.5, 0.5]), c.less_than(1.0)),
        "simplex": (torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), c.simplex),
        "lower_cholesky": (torch.tensor([[1.0, 0.0], [0.5, 2.0]]), c.lower_cholesky),
        "corr_cholesky": (torch.tensor([[1.0, 0.0], [0.6, 0.8]]), c.corr_cholesky),
        "positive_definite": (SYMMETRIC, c.positive_definite),
        "independent": (torch.tensor([0.5, 2.0]), c.independent(c.positive, 1)),
        "softplus_positive": (torch.tensor([0.5, 2.0]), c.softplus_positive),
        "softplus_lower_cholesky": (torch.tensor([[1.0, 0.0], [0.5, 2.0]]), c.softplus_lower_cholesky),
        "ordered_vector": (torch.tensor([-1.0, 0.0, 2.0]), c.ordered_vector),
        "positive_ordered_vector": (torch.tensor([0.1, 0.5, 2.0]), c.positive_ordered_vector),
        "unit_lower_cholesky": (torch.tensor([[1.0, 0.0], [0.5, 1.0]]), c.unit_lower_cholesky),
    }
    weights = {
        name: torch.randn(value.shape, generator=data_generator(number))
        for number, (name, (value, _)) in enumerate(initial.items())
    }

    def model() -> None:
        for name, (value, constraint) in initial.items():
            x = pyro.param(name, value, constraint=constraint)
            pyro.factor(f"pull_{name}", (weights[name] * x).sum() - 0.1 * x.square().sum())

    outcome = fit(pyro, model, lambda: None, steps=5)
    return {**outcome, "unconstrained": unconstrained_of(pyro)}


@program()
def store_like_a_dict(pyro: Any) -> Outcome:
    """Item access, defaults, replacement, deletion, matching and names of leaves."""
    store, positive = pyro.get_param_store(), pyro.distributions.constraints.positive
    pyro.param("net.scale", torch.tensor(2.0), constraint=positive)
    pyro.param("net.loc", lambda: torch.ones(2))
    pyro.param("net.loc", lambda: torch.full((2,), 9.0))
    store["fresh"] = torch.tensor([1.0, 2.0])
    store["net.scale"] = torch.tensor(3.0)
    store.setdefault("fresh", torch.zeros(1))
    store.setdefault("count", torch.tensor(4.0), positive)
    leaf = store["net.scale"].unconstrained()
    before = params_of(pyro)
    del store["net.loc"]
    return {
        "before": before,
        "after": params_of(pyro),
        "leaves": unconstrained_of(pyro),
        "name": store.param_name(leaf),
        "match": sorted(store.match("net")),
        "length": len(store),
        "has": ["fresh" in store, "net.loc" in store, bool(store)],
        "is leaf": [leaf.is_leaf, leaf.requires_grad],
    }


@program()
def save_and_load(pyro: Any) -> Outcome:
    """Train, save, forget, load, train on: as if nothing had happened in between."""
    dist = pyro.distributions
    data = torch.tensor([1.0, 2.0, 0.5])

    def model() -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(loc, scale), obs=data)

    optim = pyro.optim.Adam({"lr": 0.1})
    first = fit(pyro, model, lambda: None, steps=4, optim=optim)
    with tempfile.TemporaryDirectory() as folder:
        pyro.get_param_store().save(str(Path(folder) / "params"))
        optim.save(str(Path(folder) / "optim"))
        pyro.clear_param_store()
        cleared = len(pyro.get_param_store())
        load_pickled(pyro, Path(folder))
        again = pyro.optim.Adam({"lr": 0.1})
        again.load(str(Path(folder) / "optim"))
    second = fit(pyro, model, lambda: None, steps=4, optim=again)
    return {"first": first, "cleared": cleared, "second": second}


def load_pickled(pyro: Any, folder: Path) -> None:
    """Pyro's files hold pickled constraints, which torch refuses unless it is told to trust them."""
    original = torch.load
    try:
        torch.load = lambda *args, **kwargs: original(*args, **{**kwargs, "weights_only": False})
        pyro.get_param_store().load(str(folder / "params"))
    finally:
        torch.load = original


@program()
def states_and_scopes(pyro: Any) -> Outcome:
    """Two sets of parameters side by side, each with its own values."""
    store, positive = pyro.get_param_store(), pyro.distributions.constraints.positive
    pyro.param("a", torch.tensor(1.0), constraint=positive)
    state = store.get_state()
    with store.scope() as inner:
        empty = len(store)
        pyro.param("a", torch.tensor(5.0))
        inside = params_of(pyro)
    outside = params_of(pyro)
    with store.scope(inner):
        again = params_of(pyro)
    store.clear()
    store.set_state(state)
    return {
        "keys": sorted(state),
        "empty": empty,
        "inside": inside,
        "outside": outside,
        "again": again,
        "restored": params_of(pyro),
    }


@program()
def minimum_of_a_function(pyro: Any) -> Outcome:
    """Rosenbrock's valley as a factor: SVI as a plain optimiser."""

    def model() -> None:
        x = pyro.param("x", torch.tensor([-1.2, 1.0]))
        pyro.factor("valley", -(100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2))

    return fit(pyro, model, lambda: None, steps=60, optim=pyro.optim.Adam({"lr": 0.05}))
