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
from sumprod.distributions import Bernoulli, Categorical, Normal, Poisson
from sumprod.handlers import mask, scale
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


# ---- without plates


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


# ---- with plates

LEFT = Chain(("x",), STEPS, -2)  # of a plate at -1
LENGTHS = torch.tensor([4, 1, 3])


def ragged(t: Any) -> Tensor:
    """[steps, BATCH]: which steps there are; [BATCH] of one step."""
    return torch.as_tensor(t)[..., None] < LENGTHS


@case(2, LEFT, init=(2,), move=(2, 2), loc=(2,))
def ragged_sequences(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    with sumprod.plate("sequences", BATCH, dim=-1):
        x = None
        for t in loop("time", STEPS, -2):
            with mask(mask=ragged(t)):
                x = state(f"x_{t}", p["init"] if x is None else p["move"][x])
                see(f"y_{t}", p["loc"][x], seen[t])


@case(2, LEFT, move=(2, 2), loc=(2,), first=(BATCH, 2))
def only_the_data_are_masked(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    with sumprod.plate("sequences", BATCH, dim=-1):
        x = None
        for t in loop("time", STEPS, -2):
            x = state(f"x_{t}", p["first"] if x is None else p["move"][x])
            with mask(mask=ragged(t)):
                see(f"y_{t}", p["loc"][x], seen[t])


@case(2, LEFT, move=(2, 2), loc=(2,), first=(BATCH, 2))
def plate_inside_the_loop(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    x = None
    plate = sumprod.plate("sequences", BATCH, dim=-1)
    for t in loop("time", STEPS, -2):
        with plate:
            x = state(f"x_{t}", p["first"] if x is None else p["move"][x])
            see(f"y_{t}", p["loc"][x], seen[t])


@case(2, ONE, move=(STEPS, 2, 2), loc=(BATCH, 2))
def steps_right_of_the_plate(p: Tables, loop: Loop) -> None:
    """Each sequence has its locations, each step its moves."""
    seen, rows = data(BATCH, STEPS), torch.arange(BATCH)[:, None]
    with sumprod.plate("sequences", BATCH, dim=-2):
        x: Any = 0
        for t in loop("time", STEPS, -1):
            x = state(f"x_{t}", Vindex(p["move"])[t, x])
            see(f"y_{t}", Vindex(p["loc"])[rows, x], seen[:, t] if isinstance(t, Tensor) else seen[:, [t]])


@case(3, Chain(("x",), STEPS, -2), move=(2, 2), keys=(2, TONES))
def tones(p: Tables, loop: Loop) -> None:
    """Sequences outside, a plate of data inside."""
    seen, rows, keys = bits(BATCH, STEPS, TONES), torch.arange(BATCH)[:, None], torch.arange(TONES)
    inner = sumprod.plate("tones", TONES, dim=-1)
    with sumprod.plate("sequences", BATCH, dim=-3):
        x: Any = 0
        for t in loop("time", STEPS, -2):
            there = (torch.as_tensor(t) < LENGTHS[:, None]).unsqueeze(-1)
            with mask(mask=there):
                x = state(f"x_{t}", p["move"][x])
                with inner:
                    logits = Vindex(p["keys"])[x, keys]
                    sumprod.sample(f"y_{t}", Bernoulli(logits=logits), obs=Vindex(seen)[rows, t])


@case(3, Chain(("x",), STEPS, -2), move=(2, 2), keys=(2, 2, TONES))
def autoregressive(p: Tables, loop: Loop) -> None:
    """A tone depends on the state and on the tone before."""
    seen, rows, keys = bits(BATCH, STEPS, TONES), torch.arange(BATCH)[:, None], torch.arange(TONES)
    inner = sumprod.plate("tones", TONES, dim=-1)
    with sumprod.plate("sequences", BATCH, dim=-3):
        x: Any = 0
        y: Any = torch.zeros((), dtype=torch.int64)
        for t in loop("time", STEPS, -2):
            x = state(f"x_{t}", p["move"][x])
            with inner:
                logits = Vindex(p["keys"])[x, y, keys]
                y = sumprod.sample(f"y_{t}", Bernoulli(logits=logits), obs=Vindex(seen)[rows, t]).long()


@case(2, Chain(("w", "x"), 3, -2), w=(2, 2), x=(2, 2, 2), loc=(2, 2))
def event_dims(p: Tables, loop: Loop) -> None:
    seen = data(3, BATCH, TONES)
    with sumprod.plate("sequences", BATCH, dim=-1):
        w: Any = 0
        x: Any = 0
        for t in loop("time", 3, -2):
            w = state(f"w_{t}", p["w"][w])
            x = state(f"x_{t}", Vindex(p["x"])[w, x])
            loc = Vindex(p["loc"])[w, x]
            loc = torch.stack([loc, 0.5 * loc], -1)
            fn = Normal(loc, torch.ones((), dtype=torch.float64)).to_event(1)
            sumprod.sample(f"y_{t}", fn, obs=seen[t])


@case(2, Chain(("x", "k"), 3, -2), move=(2, 2), weights=(2, 2), loc=(2, 2))
def a_plate_of_variables_at_each_step(p: Tables, loop: Loop) -> None:
    """Each state has several variables of its own below it."""
    seen, parts = data(3, TONES), sumprod.plate("parts", TONES, dim=-1)
    x: Any = 0
    for t in loop("time", 3, -2):
        x = state(f"x_{t}", p["move"][x])
        with parts:
            k = state(f"k_{t}", p["weights"][x])
            see(f"y_{t}", Vindex(p["loc"])[x, k], seen[t])


@case(2, Chain(("w",), 3, -2), Chain(("x",), 3, -2), w=(2, 2), x=(2, 2, 2), loc=(2, 2))
def parallel_chains_below_a_chain(p: Tables, loop: Loop) -> None:
    """A chain of w, and for each part a chain of x that follows it: only the data join them."""
    seen, parts = data(3, TONES), sumprod.plate("parts", TONES, dim=-1)
    w: Any = 0
    x: Any = 0
    for t in loop("time", 3, -2):
        w = state(f"w_{t}", p["w"][w])
        with parts:
            x = state(f"x_{t}", p["x"][0][x])
            see(f"y_{t}", (1.0 * x).double(), seen[t])
        see(f"u_{t}", p["loc"][0][w], seen[t][..., :1])


@case(2, LEFT, g=(BATCH, 2), move=(2, 2, 2), loc=(2,))
def a_variable_of_each_sequence(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    with sumprod.plate("sequences", BATCH, dim=-1):
        g = state("g", p["g"])
        x: Any = 0
        for t in loop("time", STEPS, -2):
            x = state(f"x_{t}", Vindex(p["move"])[g, x])
            sumprod.sample(f"y_{t}", Poisson((0.3 * p["loc"][x]).exp()), obs=seen[t].abs().round())


@case(2, LEFT, move=(2, 2), loc=(2,))
def scaled(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    with scale(scale=2.5), sumprod.plate("sequences", BATCH, dim=-1):
        x: Any = 0
        for t in loop("time", STEPS, -2):
            x = state(f"x_{t}", p["move"][x])
            see(f"y_{t}", p["loc"][x], seen[t])


@case(2, LEFT, move=(2, 2), loc=(2,))
def subsampled(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, 5)
    with sumprod.plate("sequences", 5, subsample=torch.tensor([1, 4, 2]), dim=-1) as rows:
        x: Any = 0
        for t in loop("time", STEPS, -2):
            with mask(mask=ragged(t)):
                x = state(f"x_{t}", p["move"][x])
                see(f"y_{t}", p["loc"][x], seen[t][..., rows])
