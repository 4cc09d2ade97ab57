"""Described programs (tests.oracles.program) as programs that can be run."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.handlers.messenger import Messenger
from tests.oracles.program import Program, Site

DIMS = {"p": -1, "q": -2}
DEPTH = 2
Marks = dict[str, dict[str, Any]]


def run(program: Program, marks: Marks, draws: int = 0, masks_of_distributions: bool = False) -> Any:
    """Run a program, with `infer` options by site; return its values. `draws`: so many times, in a plate."""
    return _Run(program, marks, masks_of_distributions).run(draws)


class _Run:
    def __init__(self, program: Program, marks: Marks, masks_of_distributions: bool) -> None:
        self.program, self.marks, self.masks_of_distributions = program, marks, masks_of_distributions
        self.values: dict[str, Tensor] = {}
        self.indices: dict[str, Tensor] = {}

    def run(self, draws: int) -> dict[str, Tensor]:
        program = self.program
        self.plates = {name: self.plate(name) for name in program.plates}
        with ExitStack() as around:
            if program.subsampled is None:
                around.enter_context(handlers.scale(scale=program.scale))
            if draws:
                around.enter_context(sumprod.plate("draws", draws, dim=-1 - DEPTH))
            steps = [site.step for site in program.sites if site.step is not None]
            positions = [i for i, site in enumerate(program.sites) if site.step is not None]
            first, last = (positions[0], positions[-1] + 1) if positions else (len(program.sites),) * 2
            self.sites(program.sites[:first])
            for step in sumprod.markov(range(min(steps), max(steps) + 1), program.history) if steps else ():
                self.sites(tuple(site for site in program.sites if site.step == step))
            self.sites(program.sites[last:])
        return self.values

    def plate(self, name: str) -> Any:
        size, dim = self.program.plates[name], DIMS[name]
        self.indices[name] = torch.arange(size).reshape(-1, *(1,) * (-dim - 1))
        if name != self.program.subsampled:
            return sumprod.plate(name, size, dim=dim)
        whole = round(size * self.program.scale)
        return sumprod.plate(name, whole, subsample=torch.arange(size), dim=dim)

    def sites(self, sites: tuple[Site, ...]) -> None:
        for site in sites:
            self.values[site.name] = self.sample(site)

    def sample(self, site: Site) -> Tensor:
        place = [self.indices[plate] for plate in site.plates]
        parents = [_number(self.program[name], self.values[name]) for name in site.parents]
        table = site.table[(*parents, *place)] if parents or place else site.table
        fn = _distribution(site, table)
        with ExitStack() as around:
            if site.mask is not None:
                mask = site.mask[tuple(place)] if place else site.mask
                if self.masks_of_distributions:
                    fn = fn.mask(mask)
                else:
                    around.enter_context(handlers.mask(mask=mask))
            for plate in site.plates:
                around.enter_context(self.plates[plate])
            observed = site.observed
            if observed is not None:
                observed = observed[tuple(place)] if place else observed
                observed = observed.long() if site.family == "categorical" else observed.double()
            infer = dict(self.marks.get(site.name, {}))
            return sumprod.sample(site.name, fn, obs=observed, infer=infer)


def _number(site: Site, value: Tensor) -> Tensor:
    """The number of a site's value."""
    return value.argmax(-1) if site.family == "one_hot" else value.long()


def _distribution(site: Site, table: Tensor) -> Any:
    if site.family == "categorical":
        return dist.Categorical(logits=table)
    if site.family == "one_hot":
        return dist.OneHotCategorical(logits=table)
    parameter = table[..., 0]
    if site.family == "bernoulli":
        return dist.Bernoulli(logits=parameter)
    if site.family == "binomial":
        return dist.Binomial(site.size - 1, logits=parameter)
    if site.family == "poisson":
        return dist.Poisson(parameter.exp())
    return dist.Normal(parameter, torch.ones((), dtype=parameter.dtype))


def numbers(program: Program, values: dict[str, Tensor], name: str, draws: int) -> Tensor:
    """[draws, *plates]: the numbers of a site's values in a run with `draws`."""
    site = program[name]
    found = _number(site, values[name])
    wide = [draws, *(program.plates[plate] for plate in ("q", "p"))]
    for plate in ("q", "p"):
        if plate not in site.plates:
            wide[1 + DEPTH + DIMS[plate]] = 1
    found = found.expand(wide)
    dims = [1 + DEPTH + DIMS[plate] for plate in site.plates]
    others = [dim for dim in (1, 2) if dim not in dims]
    return found.permute(0, *dims, *others).reshape(draws, *(program.plates[plate] for plate in site.plates))


def place(site: Site, table: Tensor, index: tuple[int, ...]) -> Tensor:
    """The row of a table [*batch, size] at a position in a site's plates."""
    position = dict(zip(site.plates, index, strict=True))
    batch = table.dim() - 1
    entry = []
    for dim in range(-batch, 0):
        plate = next(name for name in DIMS if DIMS[name] == dim)
        entry.append(position.get(plate, 0) if table.shape[dim - 1] > 1 else 0)
    return table[tuple(entry)]


class Forced(Messenger):
    """Gives the sampled sites of a guide chosen values instead of draws.

    chosen: numbers of the values by site, [samples, *plates]; several samples go along the dim that
    enumeration has given the site.
    """

    def __init__(self, program: Program, chosen: dict[str, Tensor]) -> None:
        super().__init__()
        self.program, self.chosen = program, chosen

    def _pyro_sample(self, msg: Any) -> None:
        found = self.chosen.get(msg["name"])
        if found is None:
            return
        site = self.program[msg["name"]]
        order = sorted(range(len(site.plates)), key=lambda i: DIMS[site.plates[i]])
        rank = max((-DIMS[plate] for plate in site.plates), default=0)
        shape = [1] * rank
        for plate in site.plates:
            shape[DIMS[plate]] = self.program.plates[plate]
        wide = found.permute(0, *(1 + i for i in order))
        dim = msg["infer"].get("_enumerate_dim")
        if len(found) == 1:
            value = wide.reshape(shape)
        else:
            value = wide.reshape(-1, *(1,) * (-dim - 1 - rank), *shape)
        if site.family == "one_hot":
            value = torch.nn.functional.one_hot(value, site.size)
        msg["value"] = value if site.family == "categorical" else value.double()
        msg["done"] = True
