"""Hidden Markov programs with vectorised time, and the same programs as the peers would have them.

The data are piano rolls [B, T, D] of zeros and ones. One chain of S states, or several chains side by side
that switch the keys on together (a factorial model), move by learned logits; so do the keys, each on with its
own probability in every joint state. The keys of a step are one event or a plate. All states start from the
first row of their transitions. The libraries write it each in the fairest form they offer:

* ours: `scan` under `TraceEnum_ELBO`; and, as a column of its own, `vectorized_markov`, which has to pick the
  data of each round by index;
* Pyro, loop: `markov(range(T))` under `TraceEnum_ELBO`, without a dim for time;
* Pyro, funsor: the same body as ours, `vectorized_markov` under `TraceMarkovEnum_ELBO`;
* NumPyro: `scan`, one compiled `SVI.update` in float32, waited for. Its `TraceEnum_ELBO` treats the steps of
  a `scan` as independent, so that its loss is wrong; the loss here is minus the `log_density` of the program
  under `enum`, which is what a guide without latent variables leaves of the bound.

Those that scan get the data with time first.

Parameters, data and Adam are the same, and the losses of the first steps must agree before any is timed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod
from _enum import piano_rolls
from _harness import Bench, DisagreementError, Peer, guarded, optional_import
from _svi import AGREEING_STEPS, LOSS_RTOL, THREADS, Step, stepper

pyro = optional_import("pyro")
funsor = optional_import("funsor")
jax = optional_import("jax")
numpyro = optional_import("numpyro")
PACKAGES = ("pyro-ppl", "funsor", "numpyro", "jax")
LEARNING_RATE = 0.01
PARALLEL = {"enumerate": "parallel"}  # copied for each site: the libraries write into it


@dataclass(frozen=True)
class Chains:
    """A row of a table: sizes, and how the keys of a step are written."""

    batch: int
    steps: int
    states: tuple[int, ...]  # of each chain
    keys: int
    in_plate: bool

    @property
    def label(self) -> str:
        sizes = f"({self.batch},{self.steps},{'x'.join(map(str, self.states))},{self.keys})"
        return f"{sizes}, keys are {'a plate' if self.in_plate else 'an event'}"

    @property
    def rolls(self) -> Tensor:
        return piano_rolls(self.batch, self.steps, self.keys)

    def start(self) -> dict[str, Tensor]:
        """The logits that learning starts from."""
        draw = torch.Generator().manual_seed(1)
        logits = {
            f"transition{k}": torch.randn(size, size, generator=draw) for k, size in enumerate(self.states)
        }
        return {**logits, "keys": torch.randn(*self.states, self.keys, generator=draw) - 2}


# ---- this library and Pyro


class Language(NamedTuple):
    """What a program is written with; `prefix` keeps apart parameters that share a store."""

    primitives: Any  # param, sample, plate, markov, vectorized_markov
    dist: Any
    Vindex: Any
    prefix: str = ""


def language(library: ModuleType) -> Language:
    """How `sumprod`, or Pyro with its own backend, is written."""
    indexing = importlib.import_module(f"{library.__name__}.ops.indexing")
    return Language(library, library.distributions, indexing.Vindex)


def parameters(words: Language, start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: words.primitives.param(words.prefix + name, x) for name, x in start.items()}


Program = Callable[[Tensor], None]
State = tuple[Tensor, ...]


def time_step(
    words: Language, chains: Chains, tones: Any, logits: dict[str, Tensor]
) -> Callable[[Any, State | None, Tensor], State]:
    """A function of time, the states before and the keys now that gives the states now."""
    sample, dist = words.primitives.sample, words.dist

    def step(t: Any, before: State | None, observed: Tensor) -> State:
        rows = [
            logits[f"transition{k}"][0 if before is None else before[k]] for k in range(len(chains.states))
        ]
        now = tuple(
            sample(f"z{k}_{t}", dist.Categorical(logits=row), infer=dict(PARALLEL))
            for k, row in enumerate(rows)
        )
        if tones is None:
            keys = dist.Bernoulli(logits=logits["keys"][now]).to_event(1)
            sample(f"x_{t}", keys, obs=observed)
        else:
            with tones:
                keys = dist.Bernoulli(logits=logits["keys"][tuple(z.squeeze(-1) for z in now)])
                sample(f"x_{t}", keys, obs=observed)
        return now

    return step


def tones_plate(words: Language, chains: Chains) -> Any:
    return words.primitives.plate("tones", chains.keys, dim=-1) if chains.in_plate else None


def loop(words: Language, chains: Chains) -> Program:
    """A Python loop over time."""
    start = chains.start()

    def model(rolls: Tensor) -> None:
        step = time_step(words, chains, tones_plate(words, chains), parameters(words, start))
        with words.primitives.plate("sequences", chains.batch, dim=-1 - chains.in_plate):
            states = None
            for t in words.primitives.markov(range(chains.steps)):
                states = step(t, states, rolls[:, t])

    return model


def vectorized(words: Language, chains: Chains) -> Program:
    """All steps but the first at once."""
    start = chains.start()
    rows = torch.arange(chains.batch)[:, None]

    def model(rolls: Tensor) -> None:
        step = time_step(words, chains, tones_plate(words, chains), parameters(words, start))
        with words.primitives.plate("sequences", chains.batch, dim=-2 - chains.in_plate):
            states = None
            times = words.primitives.vectorized_markov(
                name="time", size=chains.steps, dim=-1 - chains.in_plate
            )
            for t in times:
                states = step(t, states, words.Vindex(rolls)[rows, t])

    return model


def scanned(words: Language, chains: Chains) -> Program:
    """The same in the carry style; data have time first. `scan` adds the steps to names of sites."""
    start = chains.start()

    def model(rolls: Tensor) -> None:
        step = time_step(words, chains, tones_plate(words, chains), parameters(words, start))

        def transition(states: State | None, observed: Tensor) -> tuple[State, None]:
            return step("", states, observed), None

        with words.primitives.plate("sequences", chains.batch, dim=-1 - chains.in_plate):
            words.primitives.scan(transition, None, rolls, dim=-2 - chains.in_plate)

    return model


def nothing_else(rolls: Tensor) -> None:
    """The guide: besides the states, which are summed out, nothing is latent."""


def ours(chains: Chains, as_loop: bool = False) -> Step:
    """Two of them can learn side by side."""
    if not as_loop:
        sumprod.clear_param_store()
    loss = sumprod.infer.TraceEnum_ELBO(max_plate_nesting=2 + chains.in_plate)
    words = language(sumprod)._replace(prefix="loop." if as_loop else "")
    program = vectorized(words, chains) if as_loop else scanned(words, chains)
    rolls = chains.rolls if as_loop else chains.rolls.transpose(0, 1).contiguous()
    optimizer = sumprod.optim.Adam({"lr": LEARNING_RATE})
    return stepper(sumprod, program, nothing_else, loss, optimizer, (rolls,))


def pyro_loop(chains: Chains) -> Step:
    """Needs Pyro's parameter store to be empty."""
    assert pyro is not None
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1 + chains.in_plate)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    return stepper(pyro, loop(language(pyro), chains), nothing_else, loss, optimizer, (chains.rolls,))


@contextmanager
def funsor_backend(name: str) -> Iterator[None]:
    """Pyro's and NumPyro's use of funsor, each with its own backend, in one process."""
    assert funsor is not None
    before = funsor.get_backend()
    funsor.set_backend(name)
    try:
        yield
    finally:
        funsor.set_backend(before)


def pyro_funsor(chains: Chains) -> Step:
    assert pyro is not None
    assert funsor is not None
    funsor.set_backend("torch")  # stays: a step looks it up
    backend = importlib.import_module("pyro.contrib.funsor")
    importlib.import_module("pyro.contrib.funsor.infer")
    words = language(pyro)._replace(primitives=backend, prefix="funsor.")
    loss = backend.infer.TraceMarkovEnum_ELBO(max_plate_nesting=2 + chains.in_plate)
    svi = backend.infer.SVI(
        vectorized(words, chains), nothing_else, pyro.optim.Adam({"lr": LEARNING_RATE}), loss
    )
    rolls = chains.rolls
    return lambda: svi.step(rolls)


# ---- NumPyro


def numpyro_model(chains: Chains) -> Callable[[Any], None]:
    """A compiled loop over time that carries the states."""
    assert numpyro is not None
    assert jax is not None
    dist, sample = numpyro.distributions, numpyro.sample
    scan = importlib.import_module("numpyro.contrib.control_flow").scan
    take = importlib.import_module("numpyro.ops.indexing").Vindex
    start = {name: jax.numpy.array(x.numpy()) for name, x in chains.start().items()}

    def model(rolls: Any) -> None:
        logits = {name: numpyro.param(name, x) for name, x in start.items()}

        def step(before: Any, observed: Any) -> tuple[Any, None]:
            with numpyro.plate("sequences", chains.batch, dim=-1 - chains.in_plate):
                rows = [take(logits[f"transition{k}"])[z] for k, z in enumerate(before)]
                now = tuple(
                    sample(f"z{k}", dist.Categorical(logits=row), infer=dict(PARALLEL))
                    for k, row in enumerate(rows)
                )
                if chains.in_plate:
                    with numpyro.plate("tones", chains.keys, dim=-1):
                        keys = dist.Bernoulli(logits=logits["keys"][tuple(z.squeeze(-1) for z in now)])
                        sample("x", keys, obs=observed)
                else:
                    sample("x", dist.Bernoulli(logits=logits["keys"][now]).to_event(1), obs=observed)
            return now, None

        shape = (chains.batch, 1) if chains.in_plate else (chains.batch,)
        first = tuple(jax.numpy.zeros(shape, dtype=int) for _ in chains.states)
        scan(step, first, rolls)

    return model


def numpyro_scan(chains: Chains) -> Step:
    """Call it and its first steps, which compile, with funsor's backend for JAX."""
    assert numpyro is not None
    assert jax is not None
    enumeration = importlib.import_module("numpyro.contrib.funsor")
    first_dim = -2 - chains.in_plate

    class MinusLogDensity(numpyro.infer.elbo.ELBO):  # type: ignore[misc,name-defined]
        """Minus the bound under a guide that has nothing latent."""

        can_infer_discrete = True

        def loss(self, key: Any, found: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
            exact = enumeration.enum(model, first_dim)
            return -enumeration.infer_util.log_density(exact, args, kwargs, found)[0]

    optimizer = numpyro.optim.Adam(LEARNING_RATE)
    svi = numpyro.infer.SVI(numpyro_model(chains), nothing_else, optimizer, MinusLogDensity())
    rolls = jax.device_put(chains.rolls.transpose(0, 1).contiguous().numpy())
    held = {"state": svi.init(jax.random.PRNGKey(0), rolls)}
    update = jax.jit(svi.update)

    def step() -> float:
        held["state"], loss = jax.block_until_ready(update(held["state"], rolls))
        return float(loss)

    return step


# ---- the race


class Targets(NamedTuple):
    """How many times faster than each peer a step must be; a peer without a target is only shown."""

    loop: float | None = None
    funsor: float | None = None
    numpyro: float | None = None


def first_losses(step: Step) -> list[float]:
    return [step() for _ in range(AGREEING_STEPS)]


def peers(chains: Chains) -> dict[str, tuple[Step, list[float]] | None]:
    """Each peer's step, and its first losses; None for one that is not installed."""
    found: dict[str, tuple[Step, list[float]] | None] = dict.fromkeys(("Pyro loop", "Pyro funsor", "NumPyro"))
    if numpyro is not None and jax is not None and funsor is not None:
        importlib.import_module("numpyro.contrib.funsor")  # sets the backend when it is imported first
        with funsor_backend("jax"):
            step = numpyro_scan(chains)
            found["NumPyro"] = step, first_losses(step)
    if pyro is not None:
        pyro.clear_param_store()
        step = pyro_loop(chains)
        found["Pyro loop"] = step, first_losses(step)
        if funsor is not None:
            step = pyro_funsor(chains)
            found["Pyro funsor"] = step, first_losses(step)
    return found


def require_equal_losses(
    label: str, mine: list[float], others: dict[str, tuple[Step, list[float]] | None]
) -> None:
    for name, peer in others.items():
        for number, (left, right) in enumerate(zip(mine, peer[1] if peer else [], strict=bool(peer))):
            if not math.isfinite(right) or not math.isclose(left, right, rel_tol=LOSS_RTOL):
                raise DisagreementError(f"{label}, step {number}: loss {left:.9g}, {name}'s {right:.9g}")


def race(title: str, description: str, rows: dict[Chains, Targets]) -> int:
    """Check and time the rows that the command line asks for; returns the exit status."""

    def main() -> int:
        bench = Bench(title, description, PACKAGES, threads=THREADS)
        if jax is not None:
            jax.config.update("jax_platforms", "cpu")
        for chains, targets in rows.items():
            if not bench.wants(chains.label, heavy=chains.batch > 8):
                continue
            others = peers(chains)
            step = ours(chains)
            require_equal_losses(chains.label, first_losses(step), others)
            at_least = dict(zip(others, targets, strict=True))
            contenders = [Peer(name, p and p[0], at_least[name]) for name, p in others.items()]
            loop = ours(chains, as_loop=True)
            require_equal_losses(chains.label, first_losses(loop), others)
            contenders.append(Peer("vectorized_markov", loop, None))
            bench.case(chains.label, step, contenders)
        return bench.finish()

    return guarded(main)
