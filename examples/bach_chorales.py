"""Harmony found in Bach's four-part chorales by a hidden Markov model, written as a program.

    python examples/bach_chorales.py              # all chorales, 16 states, writes bach.png
    python examples/bach_chorales.py --help

Every chorale is a sequence of piano-roll rows x_1 ... x_T, one per quarter note, each 88 keys on or off. The
model says that a hidden state z_t moves along a Markov chain and switches every key on by its own coin:

    p(x, z) = p(z_1) prod_t p(z_t | z_{t-1}) prod_t prod_k Bernoulli(x_tk; keys[z_t, k])

Nothing in it knows what a chord is. `TraceEnum_ELBO` sums z out and `SVI` fits the rest, most probable values
under weak priors, to the music; yet the states become chords, and the transitions their successions. The same
program, given to `infer_discrete`, decodes chorales that it has not seen.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

import sumprod
from sumprod.distributions import Bernoulli, Beta, Categorical, Dirichlet
from sumprod.handlers import block, mask, scale
from sumprod.infer import SVI, TraceEnum_ELBO, infer_discrete
from sumprod.infer.autoguide import AutoDelta, init_to_value
from sumprod.optim import ClippedAdam

try:
    from tqdm import tqdm

    from chorale_data import KEYS, Roll, load_chorales
    from chorale_picture import closest_triads, describe_states, pitch_class_probabilities, plot_chorale
    from options import at_least, picture
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in {"matplotlib", "music21", "numpy", "tqdm"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

PSEUDO_COUNT = 0.1  # every state is taken to have met each key on, and off, this many times more than it has
PARTS = 16  # minibatches of the training chorales
LEARNING_RATE, LAST_RATE = 0.1, 0.02
TEST_SHARE = 0.2
SAMPLES = 6  # posterior samples drawn per test chorale

Result = TypeVar("Result")


# ---- the data ----------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Chorales of different lengths in one tensor."""

    names: list[str]
    rolls: Tensor  # [B, T, 88] float32: 1 where a key is on; zeros after a chorale's end
    lengths: Tensor  # [B] int64: the steps that count


def pad(chorales: dict[str, Roll]) -> Batch:
    """Stack rolls of shape [T_b, 88] into a batch as long as the longest."""
    lengths = torch.tensor([len(roll) for roll in chorales.values()])
    rolls = torch.zeros(len(chorales), int(lengths.max()), KEYS)
    for row, roll in zip(rolls, chorales.values(), strict=True):
        row[: len(roll)] = torch.from_numpy(roll)
    return Batch(list(chorales), rolls, lengths)


def select(batch: Batch, rows: Tensor) -> Batch:
    """Some chorales of a batch, cut to the longest of them."""
    lengths = batch.lengths[rows]
    names = [batch.names[row] for row in rows.tolist()]
    return Batch(names, batch.rolls[rows, : int(lengths.max())], lengths)


def split(chorales: dict[str, Roll], seed: int) -> tuple[Batch, Batch]:
    """Training and test chorales, drawn at random; at least one of each."""
    names = list(chorales)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    tests = max(1, round(TEST_SHARE * len(names)))
    test, train = ({names[i]: chorales[names[i]] for i in part} for part in (order[:tests], order[tests:]))
    return pad(train), pad(test)


# ---- the model ---------------------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """Everything but the states: probabilities."""

    initial: Tensor  # [S]: p(z_1)
    transition: Tensor  # [S, S]: p(z_t | z_{t-1}), a row for each state to come from
    keys: Tensor  # [S, 88]: p(x_tk = 1 | z_t)


def chain(parameters: Parameters, music: Batch, alone: bool = False) -> Tensor:
    """States and keys of a batch of chorales; returns the states, [T, B].

    After a chorale's end nothing is heard. With `alone`, any state is then as likely as any other, whatever
    was before, so that the end of a short chorale is decoded as if it stood alone; the likelihood is the same
    without. Where the states are summed out, `scan` runs all steps but the first at once.
    """
    anywhere = torch.full_like(parameters.initial, 1 / len(parameters.initial))

    def step(before: Tensor | None, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keys, goes_on = now
        state = parameters.initial if before is None else parameters.transition[before]
        if alone:
            state = state.where(goes_on[..., None], anywhere)
        z = sumprod.sample("z", Categorical(state), infer={"enumerate": "parallel"})
        with mask(mask=goes_on):
            sumprod.sample("x", Bernoulli(parameters.keys[z]).to_event(1), obs=keys)
        return z, z

    steps = music.rolls.transpose(0, 1), sounding(music).T
    with sumprod.plate("chorales", len(music.names), dim=-1):
        _, states = sumprod.scan(step, None, steps, dim=-2)
    return states


def program(music: Batch, states: int, weight: float) -> None:
    """The whole model: parameters, and a batch of chorales that stands for `weight` such batches.

    The prior of the keys is what PSEUDO_COUNT says: without it, a key that no state has met would be
    impossible. The others are flat.
    """
    beta = torch.full((states, KEYS), 1 + PSEUDO_COUNT)
    parameters = Parameters(
        sumprod.sample("initial", Dirichlet(torch.ones(states))),
        sumprod.sample("transition", Dirichlet(torch.ones(states, states)).to_event(1)),
        sumprod.sample("keys", Beta(beta, beta).to_event(2)),
    )
    with scale(scale=weight):
        chain(parameters, music)


def nothing_else(parameters: Parameters, music: Batch, alone: bool = False) -> None:
    """The guide of `chain`: besides the states, which are summed out, it has nothing latent."""


def start(mean: Tensor, states: int) -> Parameters:
    """Parameters near `mean`, the share of steps at which each key is on: [88].

    States that start equal stay equal, for they receive the same gradient: random keys tell them apart.
    Staying in a state starts out more likely than moving to any one other.
    """
    keys = (mean.logit() + torch.randn(states, KEYS)).sigmoid()
    return Parameters(torch.full((states,), 1 / states), torch.eye(states).softmax(-1), keys)


def key_means(batch: Batch) -> Tensor:
    """The probability of each key when every step is alike, pseudo-counts included: [88]."""
    return (batch.rolls.sum(dim=(0, 1)) + PSEUDO_COUNT) / (batch.lengths.sum() + 2 * PSEUDO_COUNT)


def independent_nll(train: Batch, batch: Batch) -> Tensor:
    """-log p(x) of every chorale under the model without hidden states, fitted to `train`: [B].

    Each key is on with its own probability at every step, whatever came before and whatever else sounds.
    It is the hidden Markov model with one state; its best fit, under the same pseudo-counts, is the mean.
    """
    logits = key_means(train).logit()
    return batch.lengths * softplus(logits).sum() - (batch.rolls @ logits).sum(-1)


def nll(parameters: Parameters, batch: Batch) -> float:
    """-log p(x) of all chorales of a batch together, the states summed out."""
    return TraceEnum_ELBO(max_plate_nesting=2).loss(chain, nothing_else, parameters, batch)


def fit(batch: Batch, states: int, epochs: int, seed: int) -> tuple[Parameters, list[float]]:
    """The fitted parameters, and by epoch the loss per time step, averaged while it falls.

    The loss is the negative log-likelihood and, a little, minus the log prior. A minibatch has chorales of
    about the same length, so that hardly any step is padding.
    """
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    parts = [select(batch, rows) for rows in batch.lengths.argsort().tensor_split(PARTS) if len(rows)]
    values = start(key_means(batch), states)._asdict()
    guide = AutoDelta(block(program, expose=list(values)), init_loc_fn=init_to_value(values=values))
    decay = (LAST_RATE / LEARNING_RATE) ** (1 / (epochs * len(parts)))
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": decay})
    svi = SVI(program, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=2))
    history = []
    with tqdm(range(epochs), desc="fitting", unit="epoch") as bar:
        for _ in bar:
            order = torch.randperm(len(parts)).tolist()
            losses = [svi.step(parts[i], states, float(len(parts))) for i in order]
            history.append(sum(losses) / len(parts) / int(batch.lengths.sum()))
            bar.set_postfix(loss=f"{history[-1]:.3f}", refresh=False)
    fitted = guide.median()
    parameters = Parameters(*(fitted[name].detach() for name in Parameters._fields))
    return sort_states(parameters, batch), history


def sort_states(parameters: Parameters, batch: Batch) -> Parameters:
    """Number the states by how much of the music they explain: state 0 most."""
    order = smoothed(parameters, batch).sum(dim=(0, 1)).argsort(descending=True)
    initial, transition, keys = parameters
    return Parameters(initial[order], transition[order][:, order], keys[order])


# ---- decoding ----------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """What the model makes of a batch."""

    path: Tensor  # [B, T] int64: the most probable states together (Viterbi); -1 after a chorale's end
    samples: Tensor  # [SAMPLES, B, T] int64: paths drawn from p(z | x); -1 after a chorale's end
    marginals: Tensor  # [B, T, S]: p(z_t = s | x); 0 after a chorale's end
    seconds: dict[str, float]  # the time that each decoder took, from piano roll to paths


def decode(parameters: Parameters, batch: Batch, seed: int) -> Decoded:
    """Decode every chorale in each of three ways."""
    sumprod.set_rng_seed(seed)
    path, path_seconds = timed(lambda: best_paths(parameters, batch))
    samples, sample_seconds = timed(lambda: drawn_paths(parameters, batch))
    seconds = {"Viterbi": path_seconds, "sampling": sample_seconds}
    return Decoded(path, samples, smoothed(parameters, batch), seconds)


def sounding(batch: Batch) -> Tensor:
    """Whether a step is one of the chorale's: [B, T]."""
    return torch.arange(batch.rolls.shape[1]) < batch.lengths[:, None]


def best_paths(parameters: Parameters, batch: Batch) -> Tensor:
    """`Decoded.path`."""
    best = infer_discrete(chain, first_available_dim=-3, temperature=0)
    return best(parameters, batch, alone=True).T.where(sounding(batch), -1)


def drawn_paths(parameters: Parameters, batch: Batch) -> Tensor:
    """`Decoded.samples`: a draw for each of several copies of every chorale."""
    copies = select(batch, torch.arange(len(batch.names)).repeat(SAMPLES))
    draw = infer_discrete(chain, first_available_dim=-3, temperature=1)
    paths = draw(parameters, copies, alone=True).T.where(sounding(copies), -1)
    return paths.reshape(SAMPLES, *batch.rolls.shape[:2])


def smoothed(parameters: Parameters, batch: Batch) -> Tensor:
    """`Decoded.marginals`."""
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    marginals = elbo.compute_marginals(chain, nothing_else, parameters, batch, alone=True)
    first, others = (marginal.probs for marginal in marginals.values())
    return torch.cat([first[None], others]).transpose(0, 1) * sounding(batch)[..., None]


def timed(function: Callable[[], Result], repeats: int = 3) -> tuple[Result, float]:
    """The result and the median seconds of a call, after one call to warm up."""
    result = function()
    seconds = []
    for _ in range(repeats):
        begin = perf_counter()
        function()
        seconds.append(perf_counter() - begin)
    return result, sorted(seconds)[repeats // 2]


# ---- the program -------------------------------------------------------------------------------------------


def compare(parameters: Parameters, train: Batch, test: Batch) -> str:
    """A table of likelihoods, without and with hidden states."""
    free = [independent_nll(train, batch) for batch in (train, test)]
    by_chorale = torch.tensor(
        [nll(parameters, select(test, row)) for row in torch.arange(len(test.names))[:, None]]
    )
    lines = [f"{'negative log-likelihood per time step (nats)':46}{'train':>7}{'test':>9}"]
    rows = (
        ("keys independent, no hidden states", float(free[0].sum()), float(free[1].sum())),
        (f"HMM, {len(parameters.keys)} states", nll(parameters, train), float(by_chorale.sum())),
    )
    for name, trained, tested in rows:
        scores = trained / int(train.lengths.sum()), tested / int(test.lengths.sum())
        lines.append(f"  {name:44}{scores[0]:7.3f}{scores[1]:9.3f}")
    better = int((by_chorale < free[1]).sum())
    lines.append(f"the HMM is better on {better} of {len(test.names)} test chorales")
    return "\n".join(lines)


def run(chorales: dict[str, Roll], *, states: int, epochs: int, seed: int, out: Path) -> None:
    """Fit, score, decode, describe, draw."""
    train, test = split(chorales, seed)
    sizes = [f"{len(b.names)} chorales ({int(b.lengths.sum())} quarter notes)" for b in (train, test)]
    print(f"training on {sizes[0]}, testing on {sizes[1]}")
    parameters, _ = fit(train, states, epochs, seed)
    print("\n" + compare(parameters, train, test))

    decoded = decode(parameters, test, seed)
    real = sounding(test)
    agreement = (decoded.samples == decoded.path)[:, real].double().mean()
    print("\ntime steps decoded per second, from piano roll to states:")
    print(f"  Viterbi   {real.sum() / decoded.seconds['Viterbi']:14,.0f}")
    print(f"  sampling  {SAMPLES * real.sum() / decoded.seconds['sampling']:14,.0f}")
    print(f"a posterior sample agrees with the Viterbi path at {agreement:.0%} of the steps")

    print("\n" + describe_states(parameters.transition, parameters.keys, decoded.path))
    typical = int(test.lengths.argsort()[len(test.lengths) // 2])  # the chorale of median length
    length = int(test.lengths[typical])
    plot_chorale(
        out,
        test.names[typical],
        test.rolls[typical, :length],
        torch.cat([decoded.path[None, typical, :length], decoded.samples[:, typical, :length]]),
        decoded.marginals[typical, :length],
        closest_triads(pitch_class_probabilities(parameters.keys)),
    )
    print(f"\nwrote {out}: {test.names[typical]} decoded")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the chorales, run."""
    parser = argparse.ArgumentParser(
        description="Fit a hidden Markov model to Bach's four-part chorales and draw what it decodes."
    )
    add = parser.add_argument
    add("--states", type=at_least(1), default=16, metavar="S", help="hidden states (%(default)s)")
    add("--chorales", type=at_least(2), metavar="N", help="use only the first N chorales (all)")
    add("--epochs", type=at_least(1), default=30, metavar="N", help="passes over the data (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split, start and samples (%(default)s)")
    add("--out", type=picture, default="bach.png", metavar="FILE", help="picture to write (%(default)s)")
    options = parser.parse_args(arguments)
    chorales = load_chorales(options.chorales)
    if options.chorales is not None and len(chorales) < options.chorales:
        print(f"the corpus has only {len(chorales)} four-part chorales", file=sys.stderr)
    run(chorales, states=options.states, epochs=options.epochs, seed=options.seed, out=options.out)


if __name__ == "__main__":
    main()
