"""Five hidden Markov models of Bach's chorales, each as a loop over time and with vectorised time.

    python examples/hmm.py              # all chorales, some seconds per model
    python examples/hmm.py --help

The models are those with which the paper "Tensor Variable Elimination for Plated Factor Graphs" (Obermeyer et
al., ICML 2019) explains polyphonic music. x and w are hidden and summed out exactly, y_t are the 88 keys that
are on or off at step t:

    HMM            x_t | x_{t-1}                       y_t | x_t
    autoregressive x_t | x_{t-1}                       y_t | x_t, y_{t-1}   each key remembers itself
    parallel       x_t | x_{t-1}       w_t | w_{t-1}   y_t | x_t, w_t       two chains that do not meet
    factorial      x_t | x_{t-1}, w_t  w_t | w_{t-1}   y_t | x_t, w_t       one chain moves the other
    second order   x_t | x_{t-1}, x_{t-2}              y_t | x_t

Every model is one function. What it takes for `times` decides how it runs: `markov(range(T))` is a loop of T
steps, `vectorized_markov` goes through its body a few times only, the last time for all remaining steps at
once. Likelihoods are the same; the table at the end shows them for chorales that no model has seen, and what
a step of `SVI` takes in either form.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Bernoulli, Beta, Categorical, Dirichlet, Distribution
from sumprod.handlers import block, mask, scale
from sumprod.infer import SVI, TraceEnum_ELBO
from sumprod.infer.autoguide import AutoDelta, init_to_value
from sumprod.ops.indexing import Vindex
from sumprod.optim import ClippedAdam

try:
    from tqdm import tqdm

    from bach_chorales import PSEUDO_COUNT, Batch, independent_nll, key_means, select, split
    from chorale_data import KEYS, Roll, load_chorales
    from options import at_least
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in {"matplotlib", "music21", "numpy", "tqdm"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

PARTS = 8  # minibatches of the training chorales
LEARNING_RATE, LAST_RATE = 0.1, 0.02
TIMED_STEPS = 5
PLATES = 3  # chorales, time, keys

Parameters = dict[str, Tensor]
Times = Callable[[int, int], Iterable[Any]]  # of the number of steps and the history


# ---- time --------------------------------------------------------------------------------------------------


def one_by_one(steps: int, history: int) -> Iterable[Any]:
    """The loop: 0, 1, ..., steps - 1."""
    return sumprod.markov(range(steps), history=history)


def all_at_once(steps: int, history: int) -> Iterable[Any]:
    """The first steps one by one, then tensors of steps, along dim -2."""
    return sumprod.vectorized_markov(name="time", size=steps, dim=-2, history=history)


# ---- what the models have in common ------------------------------------------------------------------------


class Music:
    """A batch of chorales as the models use it: chorales on dim -3, time on dim -2, keys on dim -1."""

    def __init__(self, batch: Batch) -> None:
        self.count, self.steps = batch.rolls.shape[:2]
        self._lengths = batch.lengths[:, None, None]
        self._rows = torch.arange(self.count)[:, None]
        silence = torch.zeros(self.count, 1, KEYS)
        self._rolls = torch.cat([silence, batch.rolls], 1)

    def plates(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return sumprod.plate("chorales", self.count, dim=-3), sumprod.plate("keyboard", KEYS, dim=-1)

    def sounding(self, t: Any) -> AbstractContextManager[Any]:
        """Leaves out what is after a chorale's end: the batch is as long as the longest."""
        goes_on = t < self._lengths if isinstance(t, int) else t[:, None] < self._lengths
        return mask(mask=goes_on)

    def keys(self, t: Any) -> Tensor:
        """Which keys are on at step t, an int or a tensor of steps [n]: [B, 1, 88] or [B, n, 88]."""
        return Vindex(self._rolls)[self._rows, t + 1]

    def on_before(self, t: Any) -> Tensor:
        """Whether they were a step earlier; nothing is on before the start."""
        return Vindex(self._rolls)[self._rows, t] > 0


def move(name: str, t: Any, probabilities: Tensor) -> Tensor:
    """A hidden state at step t, to be summed out."""
    return sumprod.sample(f"{name}_{t}", Categorical(probabilities), infer={"enumerate": "parallel"})


# ---- the models --------------------------------------------------------------------------------------------


def hmm(p: Parameters, music: Music, times: Times) -> None:
    chorales, keyboard = music.plates()
    with chorales:
        x = None
        for t in times(music.steps, 1):
            with music.sounding(t):
                x = move("x", t, p["initial"] if x is None else p["transition"][x])
                with keyboard:
                    sumprod.sample(f"y_{t}", Bernoulli(p["keys"][x.squeeze(-1)]), obs=music.keys(t))


def autoregressive(p: Parameters, music: Music, times: Times) -> None:
    """The keys that are on and the keys that are off have their own probabilities, and a site each."""
    fresh, held = p["keys"].unbind(-2)
    chorales, keyboard = music.plates()
    with chorales:
        x = None
        for t in times(music.steps, 1):
            with music.sounding(t):
                x = move("x", t, p["initial"] if x is None else p["transition"][x])
                with keyboard, mask(mask=music.on_before(t)):
                    sumprod.sample(f"held_{t}", Bernoulli(held[x.squeeze(-1)]), obs=music.keys(t))
                with keyboard, mask(mask=~music.on_before(t)):
                    sumprod.sample(f"fresh_{t}", Bernoulli(fresh[x.squeeze(-1)]), obs=music.keys(t))


def parallel(p: Parameters, music: Music, times: Times) -> None:
    chorales, keyboard = music.plates()
    with chorales:
        w = x = None
        for t in times(music.steps, 1):
            with music.sounding(t):
                w = move("w", t, p["first"] if w is None else p["moves"][w])
                x = move("x", t, p["initial"] if x is None else p["transition"][x])
                with keyboard:
                    keys = p["keys"][w.squeeze(-1), x.squeeze(-1)]
                    sumprod.sample(f"y_{t}", Bernoulli(keys), obs=music.keys(t))


def factorial(p: Parameters, music: Music, times: Times) -> None:
    chorales, keyboard = music.plates()
    with chorales:
        w = x = None
        for t in times(music.steps, 1):
            with music.sounding(t):
                w = move("w", t, p["first"] if w is None else p["moves"][w])
                x = move("x", t, p["initial"][w] if x is None else p["transition"][w, x])
                with keyboard:
                    keys = p["keys"][w.squeeze(-1), x.squeeze(-1)]
                    sumprod.sample(f"y_{t}", Bernoulli(keys), obs=music.keys(t))


def second_order(p: Parameters, music: Music, times: Times) -> None:
    chorales, keyboard = music.plates()
    with chorales:
        x: list[Tensor] = []
        for t in times(music.steps, 2):
            with music.sounding(t):
                if len(x) < 2:
                    moves = p["second"][x[-1]] if x else p["initial"]
                else:
                    moves = p["transition"][x[-2], x[-1]]
                x.append(move("x", t, moves))
                with keyboard:
                    sumprod.sample(f"y_{t}", Bernoulli(p["keys"][x[-1].squeeze(-1)]), obs=music.keys(t))


class Family(NamedTuple):
    """A model and the shapes of its parameters; the last dim of each of `moves` is a distribution."""

    title: str
    body: Callable[[Parameters, Music, Times], None]
    moves: dict[str, tuple[int, ...]]
    keys: tuple[int, ...]

    def priors(self) -> dict[str, Distribution]:
        """Flat, but for keys: `PSEUDO_COUNT` keeps a key that no state has met from being impossible."""
        beta = torch.full(self.keys, 1 + PSEUDO_COUNT)
        flat = {
            name: Dirichlet(torch.ones(shape)).to_event(len(shape) - 1) for name, shape in self.moves.items()
        }
        return {**flat, "keys": Beta(beta, beta).to_event(len(self.keys))}

    def start(self, mean: Tensor) -> Parameters:
        """Keys near `mean`, the share of steps at which each is on [88], apart at random; states that stay.

        States that start equal stay equal, for they receive the same gradient.
        """
        values = {
            name: (torch.eye(shape[-1]) if len(shape) > 1 else torch.zeros(shape)).softmax(-1).expand(shape)
            for name, shape in self.moves.items()
        }
        return {**values, "keys": (mean.logit() + torch.randn(self.keys)).sigmoid()}


def families(states: int) -> list[Family]:
    """The models, of about as many hidden states each as can be told apart at a step."""
    side, half, s = max(1, round(math.sqrt(states))), max(1, states // 2), states
    chain = {"initial": (s,), "transition": (s, s)}
    sides = {"first": (side,), "moves": (side, side)}
    own = {"initial": (side,), "transition": (side, side)}
    moved = {"initial": (side, side), "transition": (side, side, side)}
    second = {"initial": (half,), "second": (half, half), "transition": (half, half, half)}
    return [
        Family(f"HMM, {s} states", hmm, chain, (s, KEYS)),
        Family(f"autoregressive, {s} states", autoregressive, chain, (s, 2, KEYS)),
        Family(f"parallel, {side} x {side} states", parallel, {**sides, **own}, (side, side, KEYS)),
        Family(f"factorial, {side} x {side} states", factorial, {**sides, **moved}, (side, side, KEYS)),
        Family(f"second order, {half} states", second_order, second, (half, KEYS)),
    ]


# ---- learning ----------------------------------------------------------------------------------------------


def program(family: Family, music: Music, times: Times, weight: float) -> None:
    """A model with its priors, and a batch of chorales that stands for `weight` such batches."""
    parameters = {name: sumprod.sample(name, prior) for name, prior in family.priors().items()}
    with scale(scale=weight):
        family.body(parameters, music, times)


def learner(family: Family, mean: Tensor, steps: int) -> tuple[SVI, AutoDelta]:
    """`SVI` of the most probable parameters, in `steps` steps from new ones."""
    sumprod.clear_param_store()
    values = family.start(mean)
    guide = AutoDelta(block(program, expose=list(values)), init_loc_fn=init_to_value(values=values))
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": (LAST_RATE / LEARNING_RATE) ** (1 / steps)})
    return SVI(program, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=PLATES)), guide


def by_length(batch: Batch) -> list[Batch]:
    """Minibatches of chorales of about the same length, so that hardly any step is padding."""
    return [select(batch, rows) for rows in batch.lengths.argsort().tensor_split(PARTS) if len(rows)]


def fit(family: Family, batch: Batch, epochs: int, seed: int, times: Times = all_at_once) -> Parameters:
    """The most probable parameters."""
    sumprod.set_rng_seed(seed)
    parts = [Music(part) for part in by_length(batch)]
    svi, guide = learner(family, key_means(batch), epochs * len(parts))
    count = int(batch.lengths.sum())
    with tqdm(range(epochs), desc=f"{family.title:28}", unit="epoch") as bar:
        for _ in bar:
            order = torch.randperm(len(parts)).tolist()
            losses = [svi.step(family, parts[i], times, float(len(parts))) for i in order]
            bar.set_postfix(loss=f"{sum(losses) / len(losses) / count:.3f}", refresh=False)
    return {name: value.detach() for name, value in guide.median().items()}


def log_likelihood(family: Family, parameters: Parameters, batch: Batch, times: Times = all_at_once) -> float:
    """log p(y) of all chorales of a batch together, the states summed out."""
    loss = TraceEnum_ELBO(max_plate_nesting=PLATES)
    return -loss.loss(family.body, nothing_else, parameters, Music(batch), times)


def nothing_else(parameters: Parameters, music: Music, times: Times) -> None:
    """The guide of a model with given parameters: nothing is latent but what is summed out."""


def step_seconds(family: Family, batch: Batch, times: Times) -> float:
    """The median time of a step of `SVI` on the middle one of the minibatches, once it is warm."""
    parts = by_length(batch)
    music = Music(parts[len(parts) // 2])
    svi, _ = learner(family, key_means(batch), TIMED_STEPS)
    seconds = []
    for _ in range(TIMED_STEPS + 1):
        begin = perf_counter()
        svi.step(family, music, times, 1.0)
        seconds.append(perf_counter() - begin)
    return sorted(seconds[1:])[TIMED_STEPS // 2]


# ---- the program -------------------------------------------------------------------------------------------


def run(chorales: dict[str, Roll], *, states: int, epochs: int, seed: int) -> None:
    """Fit every model, score it on unseen chorales, time it."""
    train, test = split(chorales, seed)
    sizes = [f"{len(b.names)} chorales ({int(b.lengths.sum())} quarter notes)" for b in (train, test)]
    print(f"training on {sizes[0]}, testing on {sizes[1]}", flush=True)
    steps, notes = int(test.lengths.sum()), int(test.rolls.sum())
    baseline = -float(independent_nll(train, test).sum())
    lines = [f"  {'keys independent, nothing hidden':34}{baseline / steps:9.3f}{baseline / notes:9.3f}"]
    for family in families(states):
        parameters = fit(family, train, epochs, seed)
        score = log_likelihood(family, parameters, test)
        again = log_likelihood(family, parameters, test, one_by_one)
        if not math.isclose(score, again, rel_tol=1e-4):
            raise RuntimeError(f"{family.title}: log p(y) is {score} with vectorised time, {again} as a loop")
        loop, vectorised = (step_seconds(family, train, times) for times in (one_by_one, all_at_once))
        lines.append(
            f"  {family.title:34}{score / steps:9.3f}{score / notes:9.3f}"
            f"{1e3 * loop:11.1f}{1e3 * vectorised:13.1f}{loop / vectorised:8.1f}x"
        )
    print(f"\n{'':36}{'test log p(y) per':^18}{'ms per SVI step':>23}")
    print(f"{'':36}{'step':>9}{'note':>9}{'loop':>11}{'vectorised':>13}{'ratio':>9}")
    print("\n".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the chorales, run."""
    parser = argparse.ArgumentParser(
        description="Fit five hidden Markov models to Bach's chorales, with vectorised time; time both forms."
    )
    add = parser.add_argument
    add("--states", type=at_least(1), default=16, metavar="S", help="hidden states of the HMM (%(default)s)")
    add("--chorales", type=at_least(2), metavar="N", help="use only the first N chorales (all)")
    add("--epochs", type=at_least(1), default=20, metavar="N", help="passes over the data (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split and start (%(default)s)")
    options = parser.parse_args(arguments)
    chorales = load_chorales(options.chorales)
    if options.chorales is not None and len(chorales) < options.chorales:
        print(f"the corpus has only {len(chorales)} four-part chorales", file=sys.stderr)
    run(chorales, states=options.states, epochs=options.epochs, seed=options.seed)


if __name__ == "__main__":
    main()
