"""Programs with chains and plates, added to `CASES`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Bernoulli, Normal, Poisson
from sumprod.handlers import mask, scale
from sumprod.ops.indexing import Vindex
from tests.infer.vectorized_programs import (
    BATCH,
    CASES,
    ONE,
    STEPS,
    TONES,
    Chain,
    Loop,
    Tables,
    bits,
    case,
    data,
    see,
    state,
)

__all__ = ["CASES"]

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


@case(2, LEFT, move=(2, 2), loc=(2,))
def data_of_the_state_before(p: Tables, loop: Loop) -> None:
    seen = data(STEPS, BATCH)
    with sumprod.plate("sequences", BATCH, dim=-1):
        x: Any = torch.tensor(0)
        for t in loop("time", STEPS, -2):
            before, x = x, state(f"x_{t}", p["move"][x])
            see(f"y_{t}", p["loc"][before], seen[t])


@case(2, Chain(("a", "b", "c"), 2, -1), a=(2,), b=(2,), c=(2, 2, 2))
def a_state_outside_follows_into_a_plate(p: Tables, loop: Loop) -> None:
    """c depends on this and the last a, which are outside the plate; b is alone."""
    plate = sumprod.plate("parts", TONES, dim=-2)
    a: Any = 0
    for t in loop("time", 2, -1):
        before, a = a, state(f"a_{t}", p["a"])
        with plate:
            state(f"b_{t}", p["b"])
            state(f"c_{t}", Vindex(p["c"])[a, before])


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


@case(2, Chain(("x",), 3, -2), move=(2, 2), loc=(2,))
def nothing_differs_along_an_inner_plate(p: Tables, loop: Loop) -> None:
    seen, parts = data(3, 1), sumprod.plate("parts", 5, dim=-1)
    x: Any = 0
    for t in loop("time", 3, -2):
        x = state(f"x_{t}", p["move"][x])
        with parts:
            see(f"y_{t}", p["loc"][x], seen[t])
            sumprod.factor(f"f_{t}", p["loc"][x])
