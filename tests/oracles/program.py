"""Programs with discrete latent sites by brute force: every assignment, slice by slice of plates, float64.

The weight of an assignment is the product, over sites and slices of their plates, of the density of the
site's value given those of its parents. What is inside a plate is independent along it given what is
outside, so that the sum over assignments is taken slice by slice; nothing else is ever factored out.

A mask leaves out an observed site, or one whose value comes from a guide. A latent site that is summed out
counts everywhere, so that it stays a distribution. A scale multiplies the logarithm of a sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Copy = tuple[str, tuple[int, ...]]  # a site's name, and a position in its plates
Rows = Mapping[Copy, Tensor]  # number of the value of each copy, in each row


@dataclass(frozen=True, eq=False)
class Site:
    """One sample statement.

    family: of latent sites "categorical", "one_hot", "bernoulli" or "binomial"; of observed ones "normal",
    "poisson", "bernoulli" or "categorical". size: how many values a latent site has. plates: outermost
    first; parents' plates are the first of these. table: [*parents, *plates, parameters], logits (Normal:
    location, of scale 1; Poisson: log rate). observed, mask: [*plates]. step: number of the step of the
    chain, for sites inside it.
    """

    name: str
    family: str
    size: int
    parents: tuple[str, ...]
    plates: tuple[str, ...]
    table: Tensor
    observed: Tensor | None = None
    mask: Tensor | None = None
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """Sites in the order of the program.

    plates: size of each plate. scale: of all sites; with `subsampled`, only of those inside that plate.
    history: of the chain.
    """

    sites: tuple[Site, ...]
    plates: Mapping[str, int]
    scale: float = 1.0
    subsampled: str | None = None
    history: int = 1

    @property
    def latent(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.observed is None)

    def __getitem__(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def scale_of(self, site: Site) -> float:
        return self.scale if self.subsampled is None or self.subsampled in site.plates else 1.0

    def with_tables(self, tables: Mapping[str, Tensor]) -> Program:
        return replace(self, sites=tuple(replace(site, table=tables[site.name]) for site in self.sites))

    def copies(self, names: Iterable[str]) -> list[Copy]:
        """All copies of some sites, along their plates."""
        return [
            (name, index)
            for name in names
            for index in itertools.product(*(range(self.plates[plate]) for plate in self[name].plates))
        ]


def log_table(site: Site) -> Tensor:
    """[*parents, *plates, values]: log-densities; of an observed site [*parents, *plates]."""
    table = site.table
    if site.family == "normal":
        return -0.5 * (site.observed - table[..., 0]) ** 2 - 0.5 * math.log(2 * math.pi)
    if site.family == "poisson":
        rate, count = table[..., 0], site.observed.double()
        return count * rate - rate.exp() - torch.lgamma(count + 1)
    if site.family in ("categorical", "one_hot"):
        logs = table - log_sum(table).unsqueeze(-1)
    else:
        trials = 1 if site.family == "bernoulli" else site.size - 1
        yes, no = -torch.log1p(torch.exp(-table)), -torch.log1p(torch.exp(table))
        counts = torch.arange(trials + 1, dtype=table.dtype)
        ways = torch.tensor([math.log(math.comb(trials, k)) for k in range(trials + 1)], dtype=table.dtype)
        logs = ways + counts * yes + (trials - counts) * no
    if site.observed is None:
        return logs
    which = site.observed.long().expand(logs.shape[:-1]).unsqueeze(-1)
    return logs.gather(-1, which).squeeze(-1)


def log_sum(values: Tensor) -> Tensor:
    """log sum exp along the last dim; -inf, with zero gradient, where all values are -inf."""
    top = values.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    total = torch.where(values == -math.inf, 0.0, values - top).exp() * (values > -math.inf)
    total = total.sum(-1)
    logs = torch.where(total > 0, total, 1.0).log() + top.squeeze(-1)
    return torch.where(total > 0, logs, -math.inf)


# ---- sums over assignments


def log_weight(
    program: Program,
    given: Rows | None = None,
    *,
    only: Iterable[str] | None = None,
    known: Iterable[str] = (),
    maximise: bool = False,
) -> Tensor:
    """[rows]: log of the sum (or of the largest) of the weights of all assignments with some values given.

    Without scales. only: names of the sites that count; the others must be given or not matter.
    known: latent sites that masks count for.
    """
    names, fixed = [site.name for site in program.sites] if only is None else list(only), list(known)
    sites = [
        (
            site if site.observed is not None or site.name in fixed else replace(site, mask=None),
            log_table(site),
        )
        for site in program.sites
        if site.name in names
    ]
    rows = dict(given or {})
    count = len(next(iter(rows.values()))) if rows else 1
    return _slice_weight(program, sites, (), (), rows, count, maximise)


def _slice_weight(
    program: Program,
    sites: Sequence[tuple[Site, Tensor]],
    plates: tuple[str, ...],
    index: tuple[int, ...],
    rows: dict[Copy, Tensor],
    count: int,
    maximise: bool,
) -> Tensor:
    """[count]: what one slice of the given plates contributes, and all inside it."""
    local = [(site, table) for site, table in sites if site.plates == plates]
    free = [site for site, _ in local if site.observed is None and (site.name, index) not in rows]
    assignments = torch.tensor(list(itertools.product(*(range(site.size) for site in free))))
    number = len(assignments)
    rows = {copy: values.repeat_interleave(number) for copy, values in rows.items()}
    for column, site in enumerate(free):
        rows[site.name, index] = assignments[:, column].repeat(count)
    score = torch.zeros(count * number, dtype=torch.float64)
    for site, table in local:
        score = score + _density(program, site, table, index, rows)
    depth = len(plates)
    inside = {site.plates[depth]: None for site, _ in sites if len(site.plates) > depth}
    for plate in inside:
        deeper = [pair for pair in sites if pair[0].plates[: depth + 1] == (*plates, plate)]
        for i in range(program.plates[plate]) if deeper else ():
            score = score + _slice_weight(
                program, deeper, (*plates, plate), (*index, i), rows, len(score), maximise
            )
    table = score.reshape(count, number)
    return table.amax(-1) if maximise else log_sum(table)


def _density(program: Program, site: Site, table: Tensor, index: tuple[int, ...], rows: Rows) -> Tensor:
    """[rows]: log-density of one copy of a site; 0 where it is masked."""
    if site.mask is not None and not site.mask[index]:
        return torch.zeros((), dtype=torch.float64)
    parents = [rows[name, index[: len(program[name].plates)]] for name in site.parents]
    own = [rows[site.name, index]] if site.observed is None else []
    place = [torch.tensor(i) for i in index]
    entry = (*parents, *place, *own)
    return table[entry] if entry else table


def rows_of(program: Program, copies: Sequence[Copy]) -> dict[Copy, Tensor]:
    """Every joint assignment of some copies, one per row."""
    ranges = [range(program[name].size) for name, _ in copies]
    assignments = torch.tensor(list(itertools.product(*ranges)))
    return {copy: assignments[:, column] for column, copy in enumerate(copies)}


def joint(program: Program, copies: Sequence[Copy]) -> Tensor:
    """[*sizes]: the joint posterior of some copies of latent sites; a marginal, of one copy."""
    weights = log_weight(program, rows_of(program, copies))
    return (weights - log_sum(weights)).exp().reshape([program[name].size for name, _ in copies])


def evidence(program: Program) -> Tensor:
    """log of the probability of what is observed, scaled. All sites around latent ones share a scale."""
    return bound(program, replace(program, sites=()))


# ---- the bound


def touched(program: Program, known: Iterable[str]) -> list[Site]:
    """The sites that are, or directly depend on, latent sites that are not known."""
    known = set(known)
    hidden = {site.name for site in program.latent} - known
    return [site for site in program.sites if site.name in hidden or hidden & set(site.parents)]


def bound(program: Program, guide: Program) -> Tensor:
    """E_q [log p - log q] over all assignments of the guide's sites; the others are summed out of p.

    Masks: of observed sites, and of the guide's in log p and log q, but not in the weights q.
    """
    known = [site.name for site in guide.sites]
    inner = touched(program, known)
    scales = {program.scale_of(site) for site in inner} or {1.0}
    assert len(scales) == 1, "sites around latent sites have several scales"
    rows = rows_of(program, program.copies(known))
    log_q, costs = _guide_density(guide, rows)
    total = log_weight(program, rows, only=[site.name for site in inner], known=known) * scales.pop() - costs
    for site in program.sites:
        if site not in inner:
            total = total + program.scale_of(site) * _sum_of_copies(program, site, rows)
    possible = log_q > -math.inf
    weight = torch.where(possible, torch.where(possible, log_q, 0.0).exp(), 0.0)
    return (weight * torch.where(possible, total, 0.0)).sum()


def _guide_density(guide: Program, rows: Rows) -> tuple[Tensor, Tensor]:
    """[rows]: log q; and the same with the guide's scales and masks."""
    log_q = costs = torch.zeros((), dtype=torch.float64)
    for site in guide.sites:
        log_q = log_q + _sum_of_copies(guide, replace(site, mask=None), rows)
        costs = costs + guide.scale_of(site) * _sum_of_copies(guide, site, rows)
    shape = (len(next(iter(rows.values()))) if rows else 1,)
    return log_q.expand(shape), costs.expand(shape)


def _sum_of_copies(program: Program, site: Site, rows: Rows) -> Tensor:
    """[rows] or []: log-density of all copies of a site whose parents and value are given."""
    table, total = log_table(site), torch.zeros((), dtype=torch.float64)
    for _, index in program.copies([site.name]):
        total = total + _density(program, site, table, index, rows)
    return total
