"""Random programs with discrete latent sites, for Hypothesis."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from tests.oracles.program import Program, Site

Plates = tuple[str, ...]

LAYOUTS: list[list[Plates]] = [
    [()],
    [(), ("p",)],
    [("p",)],
    [(), ("p",), ("p", "q")],
    [(), ("p", "q")],
    [(), ("p",), ("q",)],
]
LATENT = ["categorical", "categorical", "one_hot", "bernoulli", "binomial"]
OBSERVED = ["normal", "bernoulli", "categorical", "poisson"]
MOST_LATENT = 6


class _Builder:
    """Adds sites one by one."""

    def __init__(self, draw: Any, plates: dict[str, int], zeros: bool, masks: bool) -> None:
        self.draw, self.plates, self.zeros, self.masks = draw, plates, zeros, masks
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        self.sites: list[Site] = []

    def random(self, shape: list[int]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def flip(self, probability: float) -> bool:
        """Random, but not worth Hypothesis's attention."""
        return float(torch.rand((), generator=self.generator)) < probability

    def latent(self) -> list[Site]:
        return [site for site in self.sites if site.observed is None]

    def add(
        self,
        plates: Plates,
        observed: bool,
        candidates: list[Site],
        always: tuple[Site, ...] = (),
        step: int | None = None,
    ) -> Site:
        """A site in some plates, with at most three parents among the candidates outside of it."""
        outside = [site for site in candidates if site.plates == plates[: len(site.plates)]]
        chosen = list(always)
        if outside:
            least = int(observed and not always)
            room = 3 - len(always)
            parents = st.lists(st.sampled_from(outside), unique_by=id, min_size=least, max_size=room)
            chosen += [site for site in self.draw(parents) if site not in always]
        family = self.draw(st.sampled_from(OBSERVED if observed else LATENT))
        size = 2 if family == "bernoulli" or len(self.latent()) > 3 else self.draw(st.integers(2, 3))
        batch = [self.plates[plate] for plate in plates]
        table = self.random([*(p.size for p in chosen), *batch, size if family in LOGITS else 1])
        if self.zeros and family in LOGITS:
            # The first value stays possible.
            impossible = torch.rand(table.shape, generator=self.generator) < 0.25
            impossible[..., 0] = False
            table = table.masked_fill(impossible, -math.inf)
        site = Site(
            name=f"{'x' if observed else 'z'}{len(self.sites)}",
            family=family,
            size=1 if observed else size,
            parents=tuple(p.name for p in chosen),
            plates=plates,
            table=table,
            observed=self.observation(family, batch, size) if observed else None,
            mask=torch.rand(batch, generator=self.generator) < 0.6 if self.masks and self.flip(0.4) else None,
            step=step,
        )
        self.sites.append(site)
        return site

    def observation(self, family: str, batch: list[int], size: int) -> torch.Tensor:
        if family == "normal":
            return self.random(batch)
        sizes = {"poisson": 4, "bernoulli": 2, "categorical": size}
        return torch.randint(sizes[family], batch, generator=self.generator)


LOGITS = ("categorical", "one_hot")


@st.composite
def programs(draw: Any, zeros: bool = True, masks: bool = True) -> Program:
    """Up to 6 latent sites and 10 observed ones, 2 plates of size 1 to 3, one chain of history 1 or 2."""
    layout = draw(st.sampled_from(LAYOUTS))
    plates = {name: draw(st.integers(1, 3)) for name in ("p", "q")}
    builder = _Builder(draw, plates, zeros and draw(st.booleans()), masks)
    builder.add(draw(st.sampled_from(layout)), False, [])
    for _ in range(draw(st.integers(0, 3))):
        _plain_site(builder, layout, builder.latent())
    history = draw(st.integers(1, 2))
    ends = _chain(builder, layout, history, draw(st.sampled_from([0, 0, 2, 3, 4])))
    before = [site for site in builder.latent() if site.step is None]
    for _ in range(draw(st.integers(1, 3))):
        site = _plain_site(builder, layout, before + ends)
        if site.observed is None:
            before.append(site)
    scale, subsampled = draw(st.sampled_from([(1.0, None), (0.5, None), (3.0, None), (2.0, "p")]))
    return Program(tuple(builder.sites), plates, scale, subsampled, history)


def _plain_site(builder: _Builder, layout: list[Plates], candidates: list[Site]) -> Site:
    full = len(builder.latent()) >= MOST_LATENT
    observed = full or builder.draw(st.booleans())
    return builder.add(builder.draw(st.sampled_from(layout)), observed, candidates)


def _chain(builder: _Builder, layout: list[Plates], history: int, steps: int) -> list[Site]:
    """A chain in some plates, each step with a latent site and perhaps observed ones; its visible end."""
    before = builder.latent()
    plates = builder.draw(st.sampled_from(layout))
    below = [deeper for deeper in layout if deeper[: len(plates)] == plates]
    states: list[Site] = []
    for step in range(min(steps, MOST_LATENT - len(before))):
        recent = states[-history:]
        state = builder.add(plates, False, before + recent, tuple(recent[-1:]), step)
        states.append(state)
        for _ in range(builder.draw(st.integers(0, 1))):
            builder.add(
                builder.draw(st.sampled_from(below)), True, before + states[-1 - history :], (state,), step
            )
    return states[-history:]


@st.composite
def guides(draw: Any, program: Program, most: int = 512) -> Program:
    """A guide of some of a program's latent sites, with tables of its own, of at most `most` assignments."""
    builder = _Builder(draw, dict(program.plates), zeros=False, masks=False)
    names: list[str] = []
    sites: list[Site] = []
    number = 1
    for site in program.latent:
        number_then = number * site.size ** math.prod(program.plates[plate] for plate in site.plates)
        if number_then > most or not draw(st.sampled_from([True, True, False])):
            continue
        number = number_then
        names.append(site.name)
        parents = tuple(name for name in site.parents if name in names)
        shape = [
            *(program[name].size for name in parents),
            *(program.plates[plate] for plate in site.plates),
            site.table.shape[-1],
        ]
        table = builder.random(shape)
        if table.shape == site.table.shape:
            table = table.masked_fill(site.table == -math.inf, -math.inf)  # what is impossible stays so
        sites.append(
            Site(
                site.name,
                site.family,
                site.size,
                parents,
                site.plates,
                table,
                mask=site.mask,
                step=site.step,
            )
        )
    return Program(tuple(sites), program.plates, program.scale, program.subsampled, program.history)
