"""Programs with chains, loops and trees of enumerated sites, small enough for all assignments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Bernoulli, Categorical, Normal

PROGRAMS: dict[str, Callable[[], None]] = {}
MARK = {"enumerate": "parallel"}
START = torch.tensor(0)
SEEN = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1, -0.4, 1.6, 0.1], dtype=torch.float64)


def program(fn: Callable[[], None]) -> Callable[[], None]:
    PROGRAMS[fn.__name__] = fn
    return fn


def hidden(name: str, *parents: Tensor, size: int = 2) -> Tensor:
    """A latent site whose probabilities depend on its parents and differ between names."""
    position = 0.4 + 0.1 * (sum(map(ord, name)) % 7)
    for i, parent in enumerate(parents):
        position = position + (i + 1.3) * parent
    logits = torch.sin(torch.as_tensor(position, dtype=torch.float64)[..., None] + torch.arange(size))
    value: Tensor = sumprod.sample(name, Categorical(logits=2 * logits), infer=MARK)
    return value


def observe(name: str, index: int, *parents: Tensor) -> None:
    loc = sum((i + 1.0) * parent.double() for i, parent in enumerate(parents))
    sumprod.sample(name, Normal(loc, torch.tensor(1.2, dtype=torch.float64)), obs=SEEN[index])


@program
def history_0() -> None:
    for t in sumprod.markov(range(4), history=0):
        observe(f"x{t}", t, hidden(f"z{t}"))


@program
def history_1() -> None:
    z = START
    for t in sumprod.markov(range(6)):
        z = hidden(f"z{t}", z)
        observe(f"x{t}", t, z)


@program
def history_2() -> None:
    before, z = START, START
    for t in sumprod.markov(range(6), history=2):
        before, z = z, hidden(f"z{t}", z, before)
        observe(f"x{t}", t, z, before)


@program
def observed_two_steps_back() -> None:
    """Only observations depend on the state before the last."""
    states = [START, START]
    for t in sumprod.markov(range(6), history=2):
        states.append(hidden(f"z{t}"))
        observe(f"x{t}", t, states[-1], states[-3])


@program
def two_loops_and_a_site_after_them() -> None:
    ends = []
    for chain in range(2):
        z = ends[-1] if ends else START
        for t in sumprod.markov(range(3)):
            z = hidden(f"z{chain}_{t}", z)
            observe(f"x{chain}_{t}", t, z)
        ends.append(z)
    w = hidden("w", *ends, size=3)
    observe("y", 6, w, *ends)


@program
def site_after_a_loop_with_history_2() -> None:
    before, z = START, START
    for t in sumprod.markov(range(5), history=2):
        before, z = z, hidden(f"z{t}", z, before)
    observe("y", 6, hidden("w", z, before, size=3), before)


@program
def global_before_a_loop() -> None:
    g = hidden("g", size=3)
    z = START
    for t in sumprod.markov(range(4)):
        z = hidden(f"z{t}", z, g)
        observe(f"x{t}", t, z, g)


@program
def chain_in_a_plate() -> None:
    with sumprod.plate("sequences", 2, dim=-1):
        z = START
        for t in sumprod.markov(range(3)):
            z = hidden(f"z{t}", z)
            sumprod.sample(f"x{t}", Normal(z.double(), 1.0), obs=SEEN[t : t + 2])


@program
def plates_in_a_chain() -> None:
    z = START
    tones = sumprod.plate("tones", 2, dim=-1)
    for t in sumprod.markov(range(2)):
        z = hidden(f"z{t}", z)
        with tones:
            y = hidden(f"y{t}", z)
            sumprod.sample(f"x{t}", Normal((z + 2 * y).double(), 1.0), obs=SEEN[t : t + 2])


@program
def chains_in_a_sequential_plate() -> None:
    g = hidden("g")
    for i in sumprod.plate("sequences", 2):
        z = g
        for t in sumprod.markov(range(2)):
            z = hidden(f"z{i}_{t}", z, g)
            observe(f"x{i}_{t}", i + t, z)
        observe(f"y{i}", 4 + i, hidden(f"w{i}", z))


@program
def variable_of_another_iteration_after_a_chain() -> None:
    """The variable may get a dim of the chain, which is out of its sight."""
    w = START
    for i in sumprod.plate("parts", 2):
        z = START
        for t in sumprod.markov(range(3 * (1 - i))):
            z = hidden(f"z{t}", z)
            observe(f"x{t}", t, z)
        if i == 1:
            w = hidden("w")
    observe("y", 4, w)


@program
def nested_loops() -> None:
    x = START
    for i in sumprod.markov(range(2)):
        x = hidden(f"x{i}", x)
        y = x
        for j in sumprod.markov(range(2)):
            y = hidden(f"y{i}_{j}", y, x)
            observe(f"s{i}_{j}", 2 * i + j, y, x)
        observe(f"r{i}", 4 + i, hidden(f"w{i}", y, x))


@program
def break_out_of_a_loop() -> None:
    z = START
    for t in sumprod.markov(range(100)):
        z = hidden(f"z{t}", z)
        observe(f"x{t}", t, z)
        if t == 3:
            break
    w = START
    for t in sumprod.markov(range(2)):
        w = hidden(f"w{t}", w, z if t == 0 else START)
    observe("y", 6, w)


@program
def contexts() -> None:
    """The same chain as a loop, by hand."""
    step = sumprod.markov(history=1)
    with step:
        a = hidden("a")
        with step:
            b = hidden("b", a)
            with step:
                c = hidden("c", b)
                observe("x", 0, c, b)
                with step:
                    observe("y", 1, hidden("d", c))


@program
def recursion() -> None:
    @sumprod.markov
    def grow(t: int, z: Tensor) -> None:
        z = hidden(f"z{t}", z)
        observe(f"x{t}", t, z)
        if t < 5:
            grow(t + 1, z)

    grow(0, START)


@program
def tree() -> None:
    """Branches that depend on their common root only."""

    @sumprod.markov
    def grow(name: str, parent: Tensor, depth: int) -> None:
        z = hidden(name, parent)
        observe("x" + name, len(name), z)
        if depth:
            grow(name + "l", z, depth - 1)
            grow(name + "r", z, depth - 1)

    grow("z", START, 2)


@program
def tree_with_dependent_branches() -> None:
    """A right branch depends on the left one, by `keep`."""

    @sumprod.markov(keep=True)
    def grow(name: str, parent: Tensor, sibling: Tensor, depth: int) -> Tensor:
        z = hidden(name, parent, sibling)
        observe("x" + name, len(name), z, sibling)
        if depth:
            left = grow(name + "l", z, START, depth - 1)
            grow(name + "r", z, left, depth - 1)
        return z

    grow("z", START, START, 2)


@program
def different_families() -> None:
    z: Any = torch.tensor(0.0, dtype=torch.float64)
    for t in sumprod.markov(range(3)):
        z = sumprod.sample(f"z{t}", Bernoulli(torch.sigmoid(z - 0.3 * t)), infer=MARK)
        y = hidden(f"y{t}", z, size=3)
        observe(f"x{t}", t, z, y)
