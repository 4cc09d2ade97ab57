"""Programs with chains, written once for `markov(range(size))` and for `vectorized_markov`.

A body takes its tables (logits, which losses are differentiated by) and a loop: `one_by_one` or `at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.ops.indexing import Vindex

Tables = Mapping[str, Tensor]
Loop = Callable[..., Iterable[Any]]
MARK = {"enumerate": "parallel"}
BATCH, STEPS, TONES = 3, 4, 2


def one_by_one(name: str, size: int, dim: int, history: int = 1) -> Any:
    return sumprod.markov(range(size), history=history)


def at_once(name: str, size: int, dim: int, history: int = 1) -> Any:
    return sumprod.vectorized_markov(name=name, size=size, dim=dim, history=history)


@dataclass(frozen=True)
class Chain:
    """states: names of its latent sites, without the number of the step."""

    states: tuple[str, ...]
    size: int
    dim: int
    history: int = 1


@dataclass(frozen=True)
class Case:
    """nesting: of plates, that of the steps included."""

    body: Callable[[Tables, Loop], None]
    shapes: Mapping[str, tuple[int, ...]]
    nesting: int
    chains: tuple[Chain, ...]

    def tables(self, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
            for name, shape in self.shapes.items()
        }

    def model(self, loop: Loop, tables: Tables | None = None) -> Callable[[], None]:
        tables = self.tables() if tables is None else tables
        return lambda: self.body(tables, loop)

    def step_by_step(self, found: Mapping[str, Tensor], events: int = 0) -> dict[str, Tensor]:
        """Values by site as a loop has them: `x_slice(1, 4, None)` becomes `x_1` to `x_3`.

        events: how many dims of the values are right of the batch dims.
        """
        result = dict(found)
        for chain in self.chains:
            dim = chain.dim - events
            for state in chain.states:
                value = result.pop(f"{state}_{slice(chain.history, chain.size)}", None)
                if value is None:
                    continue
                apart = -dim <= value.dim() and value.shape[dim] > 1
                for i in range(chain.size - chain.history):
                    name = f"{state}_{i + chain.history}"
                    result[name] = value.narrow(dim, i, 1) if apart else value
        return result


CASES: dict[str, Case] = {}


def case(nesting: int, *chains: Chain, **shapes: tuple[int, ...]) -> Any:
    def add(body: Callable[[Tables, Loop], None]) -> Callable[[Tables, Loop], None]:
        CASES[body.__name__] = Case(body, shapes, nesting, chains)
        return body

    return add


def data(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(*shape: int) -> Tensor:
    return (data(*shape) > 0).double()


def state(name: str, logits: Tensor) -> Tensor:
    value: Tensor = sumprod.sample(name, Categorical(logits=logits), infer=MARK)
    return value


def see(name: str, loc: Tensor, value: Tensor) -> None:
    sumprod.sample(name, Normal(loc, torch.ones((), dtype=torch.float64)), obs=value)


ONE = Chain(("x",), STEPS, -1)


@case(1, ONE, init=(3,), move=(3, 3), loc=(3,))
def hmm(p: Tables, loop: Loop) -> None:
    x, seen = None, data(STEPS)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["init"] if x is None else p["move"][x])
        see(f"y_{t}", p["loc"][x], seen[t])


@case(1, ONE, move=(3, 3))
def no_observations_and_a_state_zero(p: Tables, loop: Loop) -> None:
    x: Any = 0
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["move"][x])


@case(1, ONE, init=(2,), move=(STEPS, 2, 2), loc=(STEPS, 2))
def everything_differs_by_step(p: Tables, loop: Loop) -> None:
    x, seen = None, data(STEPS)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["init"] if x is None else Vindex(p["move"])[t, x])
        see(f"y_{t}", Vindex(p["loc"])[t, x], seen[t])


@case(1, Chain(("x",), 5, -1, 2), init=(2,), second=(2, 2), move=(2, 2, 2), loc=(2,))
def second_order(p: Tables, loop: Loop) -> None:
    x = before = None
    seen = data(5)
    for t in loop("time", 5, -1, 2):
        logits = p["init"]
        if x is not None:
            logits = p["second"][x] if before is None else p["move"][before, x]
        before, x = x, state(f"x_{t}", logits)
        see(f"y_{t}", p["loc"][x], seen[t])


@case(1, Chain(("x",), 5, -1, 2), init=(2,), move=(2, 2), loc=(2, 2))
def observed_two_steps_back(p: Tables, loop: Loop) -> None:
    """Only the data depend on the state before the last."""
    x: Any = 0
    older: Any = 0
    seen = data(5)
    for t in loop("time", 5, -1, 2):
        before, x = x, state(f"x_{t}", p["move"][x])
        see(f"y_{t}", p["loc"][older, x], seen[t])
        older = before


@case(1, Chain(("x",), STEPS, -1, 0), weights=(3,), loc=(3,))
def history_0(p: Tables, loop: Loop) -> None:
    seen = data(STEPS)
    for t in loop("time", STEPS, -1, 0):
        x = state(f"x_{t}", p["weights"])
        see(f"y_{t}", p["loc"][x], seen[t])


@case(1, Chain(("w", "x"), STEPS, -1), start=(2,), w=(2, 2), x=(2, 3, 3), loc=(2, 3))
def coupled_states(p: Tables, loop: Loop) -> None:
    """w moves alone, x with w; both are seen together."""
    w: Any = 0
    x: Any = 0
    seen = data(STEPS)
    for t in loop("time", STEPS, -1):
        w = state(f"w_{t}", p["w"][w])
        x = state(f"x_{t}", Vindex(p["x"])[w, x])
        see(f"y_{t}", Vindex(p["loc"])[w, x], seen[t])


@case(1, Chain(("w", "x"), STEPS, -1), w=(2, 2), x=(3, 3), loc=(2, 3))
def factorial(p: Tables, loop: Loop) -> None:
    w: Any = 0
    x: Any = 0
    seen = data(STEPS)
    for t in loop("time", STEPS, -1):
        w = state(f"w_{t}", p["w"][w])
        x = state(f"x_{t}", p["x"][x])
        see(f"y_{t}", Vindex(p["loc"])[w, x], seen[t])


@case(1, Chain(("x", "k"), STEPS, -1), move=(2, 2), weights=(2, 3), loc=(2, 3))
def mixture_at_each_step(p: Tables, loop: Loop) -> None:
    """k never reaches the next step."""
    x: Any = 0
    seen = data(STEPS)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["move"][x])
        k = state(f"k_{t}", p["weights"][x])
        see(f"y_{t}", Vindex(p["loc"])[x, k], seen[t])


@case(1, ONE, g=(2,), init=(2, 2), move=(2, 2, 2), loc=(2, 2))
def global_before(p: Tables, loop: Loop) -> None:
    g = state("g", p["g"])
    x, seen = None, data(STEPS)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["init"][g] if x is None else Vindex(p["move"])[g, x])
        see(f"y_{t}", Vindex(p["loc"])[g, x], seen[t])


@case(1, ONE, move=(3, 3), last=(3, 2), loc=(2,))
def site_after(p: Tables, loop: Loop) -> None:
    x: Any = 0
    seen = data(STEPS)
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["move"][x])
        see(f"y_{t}", x.double(), seen[t])
    see("end", p["loc"][state("z", p["last"][x])], torch.tensor(0.3, dtype=torch.float64))


@case(1, ONE, Chain(("z",), 3, -1), move=(2, 2), second=(2, 2), loc=(2,))
def two_chains(p: Tables, loop: Loop) -> None:
    seen = data(STEPS)
    x: Any = 0
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["move"][x])
        see(f"y_{t}", p["loc"][x], seen[t])
    z: Any = 1
    for t in loop("later", 3, -1):
        z = state(f"z_{t}", p["second"][z])
        see(f"v_{t}", p["loc"][z], seen[t])


@case(1, ONE, Chain(("z",), 3, -1), move=(2, 2), second=(2, 2), loc=(2,))
def a_chain_goes_on_with_other_tables(p: Tables, loop: Loop) -> None:
    seen = data(STEPS)
    x: Any = 0
    for t in loop("time", STEPS, -1):
        x = state(f"x_{t}", p["move"][x])
        see(f"y_{t}", p["loc"][x], seen[t])
    for t in loop("later", 3, -1):
        x = state(f"z_{t}", p["second"][x])
        see(f"v_{t}", p["loc"][x], seen[t])


@case(1, Chain(("x0", "x1"), 3, -1), g=(2,), move=(2, 2, 2), loc=(2,))
def in_a_sequential_plate(p: Tables, loop: Loop) -> None:
    g = state("g", p["g"])
    seen = data(2, 3)
    for i in sumprod.plate("parts", 2):
        x: Any = 0
        for t in loop(f"time{i}", 3, -1):
            x = state(f"x{i}_{t}", Vindex(p["move"])[g, x])
            see(f"y{i}_{t}", p["loc"][x], seen[i, t])


@case(1, Chain(("x",), 2, -1), move=(2, 2), loc=(2,))
def one_step_at_once(p: Tables, loop: Loop) -> None:
    x: Any = 0
    seen = data(2)
    for t in loop("time", 2, -1):
        x = state(f"x_{t}", p["move"][x])
        see(f"y_{t}", p["loc"][x], seen[t])


@case(1, Chain(("x",), 2, -1, 2), move=(2, 2, 2), loc=(2,))
def nothing_at_once(p: Tables, loop: Loop) -> None:
    x: Any = 0
    before: Any = 1
    seen = data(2)
    for t in loop("time", 2, -1, 2):
        before, x = x, state(f"x_{t}", Vindex(p["move"])[before, x])
        see(f"y_{t}", p["loc"][x], seen[t])
