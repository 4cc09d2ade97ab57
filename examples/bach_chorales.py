"""Harmony found in Bach's four-part chorales by a hidden Markov model.

    python examples/bach_chorales.py              # all chorales, 16 states, writes bach.png
    python examples/bach_chorales.py --help

Every chorale is a sequence of piano-roll rows x_1 ... x_T, one per quarter note, each 88 keys on or off. The
model says that a hidden state z_t moves along a Markov chain and switches every key on by its own coin:

    p(x, z) = p(z_1) prod_t p(z_t | z_{t-1}) prod_t prod_k Bernoulli(x_tk; sigmoid(keys[z_t, k]))

Nothing in it knows what a chord is. It is fitted by gradient to the probability of the music, with z summed
out by `sumprod.ops.hmm_log_normalizer`; yet its states become chords, and its transitions their successions.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from sumprod import ops

try:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import hsv_to_rgb
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from chorale_data import KEYS, LOWEST_KEY, PITCH_CLASSES, Roll, load_chorales, pitch_name
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in {"matplotlib", "music21", "numpy", "tqdm"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

PSEUDO_COUNT = 0.1  # every state is taken to have met each key on, and off, this many times more than it has
LEARNING_RATE = 0.1
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


def split(chorales: dict[str, Roll], seed: int) -> tuple[Batch, Batch]:
    """Training and test chorales, drawn at random; at least one of each."""
    names = list(chorales)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    tests = max(1, round(TEST_SHARE * len(names)))
    test, train = ({names[i]: chorales[names[i]] for i in part} for part in (order[:tests], order[tests:]))
    return pad(train), pad(test)


# ---- the model ---------------------------------------------------------------------------------------------


class ChoraleHMM(torch.nn.Module):
    """A hidden Markov model with S states whose emissions are 88 coins; all parameters are logits."""

    def __init__(self, states: int, mean: Tensor, generator: torch.Generator) -> None:
        """Start near `mean`, the share of steps at which each key is on: [88].

        States that start equal stay equal, for they receive the same gradient: random keys tell them apart.
        Staying in a state starts out more likely than moving to any one other.
        """
        super().__init__()
        self.initial = torch.nn.Parameter(torch.zeros(states))
        self.transition = torch.nn.Parameter(torch.eye(states))
        self.keys = torch.nn.Parameter(mean.logit() + torch.randn(states, KEYS, generator=generator))

    def potentials(self, rolls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For rolls [B, T, 88]: log p(z_1) [S], log p(z_t | z_{t-1}) [S, S], log p(x_t | z_t) [B, T, S].

        With l = keys[s, k], log Bernoulli(x; sigmoid(l)) = x l - softplus(l), which is linear in x: all keys
        together are a matrix product, and no tensor of shape [B, T, S, 88] ever exists.
        """
        emission = rolls @ self.keys.T - softplus(self.keys).sum(-1)
        return self.initial.log_softmax(-1), self.transition.log_softmax(-1), emission

    def forward(self, batch: Batch) -> Tensor:
        """Compute log p(x) of every chorale, the hidden states summed out: [B]."""
        return ops.hmm_log_normalizer(*self.potentials(batch.rolls), lengths=batch.lengths)

    def log_prior(self) -> Tensor:
        """What PSEUDO_COUNT adds to the objective: without it, a key no state has met would be impossible."""
        return -PSEUDO_COUNT * (softplus(self.keys) + softplus(-self.keys)).sum()

    @torch.no_grad()
    def sort_states(self, batch: Batch) -> None:
        """Number the states by how much of the music they explain: state 0 most."""
        marginals = ops.hmm_marginals(*self.potentials(batch.rolls), lengths=batch.lengths).exp()
        order = marginals.sum(dim=(0, 1)).argsort(descending=True)
        self.initial.copy_(self.initial[order])
        self.transition.copy_(self.transition[order][:, order])
        self.keys.copy_(self.keys[order])


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


def fit(batch: Batch, states: int, steps: int, seed: int) -> tuple[ChoraleHMM, list[float]]:
    """The fitted model, and the negative log-likelihood per time step before each of the full-batch steps."""
    model = ChoraleHMM(states, key_means(batch), torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    total = batch.lengths.sum()
    history = []
    with tqdm(range(steps), desc="fitting", unit="step") as bar:
        for _ in bar:
            optimizer.zero_grad()
            log_likelihood = model(batch).sum()
            loss = -(log_likelihood + model.log_prior()) / total
            loss.backward()
            optimizer.step()
            history.append(-log_likelihood.item() / total.item())
            bar.set_postfix(nll=f"{history[-1]:.3f}", refresh=False)
    model.sort_states(batch)
    return model, history


# ---- decoding ----------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """What the model makes of a batch."""

    path: Tensor  # [B, T] int64: the most probable states together (Viterbi); -1 after a chorale's end
    samples: Tensor  # [SAMPLES, B, T] int64: paths drawn from p(z | x); -1 after a chorale's end
    marginals: Tensor  # [B, T, S]: p(z_t = s | x); 0 after a chorale's end
    seconds: dict[str, float]  # the time that each decoder took, from piano roll to paths


@torch.no_grad()
def decode(model: ChoraleHMM, batch: Batch, seed: int) -> Decoded:
    """Decode every chorale in one call per decoder."""

    def viterbi() -> Tensor:
        return ops.hmm_viterbi(*model.potentials(batch.rolls), lengths=batch.lengths).path

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        potentials = model.potentials(batch.rolls)
        return ops.hmm_sample(*potentials, lengths=batch.lengths, num_samples=SAMPLES, generator=generator)

    path, viterbi_seconds = timed(viterbi)
    samples, sample_seconds = timed(sample)
    marginals = ops.hmm_marginals(*model.potentials(batch.rolls), lengths=batch.lengths).exp()
    return Decoded(path, samples, marginals, {"Viterbi": viterbi_seconds, "sampling": sample_seconds})


def timed(function: Callable[[], Result], repeats: int = 9) -> tuple[Result, float]:
    """The result and the median seconds of a call, after one call to warm up."""
    result = function()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return result, sorted(seconds)[repeats // 2]


# ---- what the states stand for -----------------------------------------------------------------------------


def pitch_class_probabilities(model: ChoraleHMM) -> Tensor:
    """The chance that a pitch class sounds in any octave, by state: [S, 12], C first."""
    silent = torch.sigmoid(-model.keys.detach())  # a pitch class is silent when all its keys are
    classes = (torch.arange(KEYS) + LOWEST_KEY) % 12
    return torch.stack([1 - silent[:, classes == c].prod(-1) for c in range(12)], dim=-1)


class Triad(NamedTuple):
    root: int  # pitch class, C = 0
    kind: str  # "" major, "m" minor, "dim" diminished

    def __str__(self) -> str:
        return PITCH_CLASSES[self.root] + self.kind


def closest_triads(probabilities: Tensor) -> list[Triad]:
    """For each row of [S, 12], the triad whose 0/1 vector is at the smallest angle: a name, not a claim."""
    intervals = {"": (0, 4, 7), "m": (0, 3, 7), "dim": (0, 3, 6)}
    triads = [Triad(root, kind) for kind in intervals for root in range(12)]
    tones = torch.tensor([[(t.root + step) % 12 for step in intervals[t.kind]] for t in triads])
    templates = one_hot(tones, 12).sum(1).to(probabilities.dtype)  # all have the same norm
    return [triads[i] for i in (probabilities @ templates.T).argmax(-1).tolist()]


def describe_states(model: ChoraleHMM, path: Tensor) -> str:
    """A table, one line per state: how often it is decoded, how it moves, which pitch classes it means."""
    probabilities = pitch_class_probabilities(model)
    triads = closest_triads(probabilities)
    transition = model.transition.detach().softmax(-1)
    states = len(transition)
    share = torch.bincount(path[path >= 0], minlength=states) / (path >= 0).sum()
    lines = [
        "what the states stand for (share of the test steps; chance to stay; likeliest next state)",
        "state  triad  share  stays  moves on to  pitch classes (chance to sound, if 0.2 or more)",
    ]
    for s in range(states):
        onward = transition[s].clone()
        onward[s] = -1
        target = int(onward.argmax())
        moves = f"{target:3d} ({onward[target]:.2f})" if states > 1 else ""
        ranked = [c for c in probabilities[s].argsort(descending=True).tolist() if probabilities[s, c] >= 0.2]
        classes = "  ".join(f"{PITCH_CLASSES[c]} {probabilities[s, c]:.2f}" for c in ranked)
        lines.append(
            f"{s:5d}  {triads[s]!s:5}  {share[s]:5.1%}  {transition[s, s]:5.2f}  {moves:11}  {classes}"
        )
    return "\n".join(lines)


# ---- the picture -------------------------------------------------------------------------------------------


def state_colours(triads: list[Triad]) -> np.ndarray:
    """RGB for every state, [S, 3]: the hue is the root's place on the circle of fifths.

    Minor is darker than major, diminished darker still; states that share a triad differ in strength.
    """
    value = {"": 0.96, "m": 0.72, "dim": 0.5}
    colours = []
    for s, triad in enumerate(triads):
        again = triads[:s].count(triad)
        colours.append((triad.root * 7 % 12 / 12, max(0.25, 0.7 - 0.25 * again), value[triad.kind]))
    return hsv_to_rgb(np.array(colours))


def plot_chorale(out: Path, batch: Batch, decoded: Decoded, triads: list[Triad], b: int) -> None:
    """Write a picture of chorale `b`: what sounds, the decoded states, and how sure the model is of them."""
    steps, states = int(batch.lengths[b]), len(triads)
    paths = torch.cat([decoded.path[None, b, :steps], decoded.samples[:, b, :steps]])
    colours = state_colours(triads)
    labels = [f"{s} · {triad}" for s, triad in enumerate(triads)]
    marginal_inches = min(max(0.19 * states, 1.0), 8.0)
    width = min(max(0.19 * steps + 1.5, 9.0), 26.0)
    figure = Figure(figsize=(width, 6.6 + marginal_inches), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[4.4, 1.5, marginal_inches])
    title = batch.names[b].removeprefix("bach/").upper().replace("BWV", "BWV ")
    figure.suptitle(f"{title}: a chorale decoded by a hidden Markov model with {states} states", fontsize=14)

    draw_roll(top, batch.rolls[b, :steps].numpy(), colours[paths[0]])

    middle.imshow(colours[paths], aspect="auto", interpolation="none", extent=(0, steps, len(paths), 0))
    rows = ["Viterbi"] + [f"sample {i}" for i in range(1, len(paths))]
    middle.set_yticks(np.arange(len(paths)) + 0.5, rows)
    middle.set_title("Decoded states: the most probable path, and paths drawn from the posterior", loc="left")
    label_runs(middle, paths[0].tolist(), [str(triad) for triad in triads], width / steps * 72)

    # White where a state is impossible, its own colour where it is certain.
    shade = 1 - decoded.marginals[b, :steps].T.numpy()[..., None] * (1 - colours[:, None])
    bottom.imshow(shade, aspect="auto", interpolation="none", extent=(0, steps, states, 0))
    every = -(-states // 40)
    bottom.set_yticks(np.arange(0, states, every) + 0.5, labels[::every])
    bottom.set_title("Smoothing marginals p(state | whole chorale): white is 0, full colour is 1", loc="left")
    bottom.set_ylabel("state · closest triad")
    bottom.set_xticks(range(0, steps + 1, 4))
    bottom.set_xlabel("time (quarter notes)")
    for axes, height in ((middle, len(paths)), (bottom, states)):
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.hlines(range(1, height), 0, steps, color="0.85", linewidth=0.5)
    figure.savefig(out, dpi=130)


def draw_roll(axes: Axes, roll: np.ndarray, background: np.ndarray) -> None:
    """The notes of a roll [T, 88] in black, on columns tinted with the colour [T, 3] of the decoded state."""
    used = np.flatnonzero(roll.any(axis=0))
    low, high = used.min() - 1, used.max() + 2
    image = np.where(roll.T[low:high, :, None] > 0, 0.1, 1 - 0.45 * (1 - background))
    axes.imshow(image, aspect="auto", interpolation="none", origin="lower", extent=(0, len(roll), low, high))
    naturals = [key for key in range(low, high) if pitch_name(key)[:-1] in {"C", "E", "G", "A"}]
    axes.set_yticks([key + 0.5 for key in naturals], [pitch_name(key) for key in naturals], fontsize=8)
    axes.set_title("Piano roll, tinted by the decoded state (hue: root on the circle of fifths)", loc="left")


def label_runs(axes: Axes, path: list[int], labels: list[str], points: float) -> None:
    """Write labels[state] on each of its runs in the first row, if `points` per step leave room for it."""
    starts = [t for t in range(len(path)) if t == 0 or path[t] != path[t - 1]]
    for start, end in zip(starts, [*starts[1:], len(path)], strict=True):
        label = labels[path[start]]
        if (end - start) * points > 6.0 * len(label):
            axes.text((start + end) / 2, 0.5, label, ha="center", va="center", fontsize=7.5)


# ---- the program -------------------------------------------------------------------------------------------


def run(chorales: dict[str, Roll], *, states: int, steps: int, seed: int, out: Path) -> None:
    """Fit, score, decode, describe, draw."""
    train, test = split(chorales, seed)
    sizes = [f"{len(b.names)} chorales ({int(b.lengths.sum())} quarter notes)" for b in (train, test)]
    print(f"training on {sizes[0]}, testing on {sizes[1]}")

    model, _ = fit(train, states, steps, seed)
    free = [independent_nll(train, b) for b in (train, test)]
    with torch.no_grad():
        hidden = [-model(b) for b in (train, test)]
    print(f"\n{'negative log-likelihood per time step (nats)':46}{'train':>7}{'test':>9}")
    for name, nll in (("keys independent, no hidden states", free), (f"HMM, {states} states", hidden)):
        scores = [float(n.sum() / b.lengths.sum()) for n, b in zip(nll, (train, test), strict=True)]
        print(f"  {name:44}{scores[0]:7.3f}{scores[1]:9.3f}")
    print(f"the HMM is better on {int((hidden[1] < free[1]).sum())} of {len(test.names)} test chorales")

    decoded = decode(model, test, seed)
    real = decoded.path >= 0
    agreement = (decoded.samples == decoded.path)[:, real].double().mean()
    print("\ntime steps decoded per second, from piano roll to states:")
    print(f"  Viterbi   {real.sum() / decoded.seconds['Viterbi']:14,.0f}")
    print(f"  sampling  {SAMPLES * real.sum() / decoded.seconds['sampling']:14,.0f}")
    print(f"a posterior sample agrees with the Viterbi path at {agreement:.0%} of the steps")

    print("\n" + describe_states(model, decoded.path))
    typical = int(test.lengths.argsort()[len(test.lengths) // 2])  # the chorale of median length
    plot_chorale(out, test, decoded, closest_triads(pitch_class_probabilities(model)), typical)
    print(f"\nwrote {out}: {test.names[typical]} decoded")


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers for argparse."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return whole_number


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message when a value cannot work."""
    parser = argparse.ArgumentParser(
        description="Fit a hidden Markov model to Bach's four-part chorales and draw what it decodes."
    )
    add = parser.add_argument
    add("--states", type=at_least(1), default=16, metavar="S", help="hidden states (%(default)s)")
    add("--chorales", type=at_least(2), metavar="N", help="use only the first N chorales (all)")
    add("--steps", type=at_least(1), default=200, metavar="N", help="gradient steps (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split, start and samples (%(default)s)")
    add("--out", type=Path, default=Path("bach.png"), metavar="FILE", help="picture to write (%(default)s)")
    options = parser.parse_args(arguments)
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if options.out.suffix.removeprefix(".").lower() not in formats:
        parser.error(f"argument --out: {str(options.out)!r} must end in one of .{', .'.join(formats)}")
    if not options.out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {str(options.out.parent)!r}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the chorales, run."""
    options = parse_arguments(arguments)
    chorales = load_chorales(options.chorales)
    if options.chorales is not None and len(chorales) < options.chorales:
        print(f"the corpus has only {len(chorales)} four-part chorales", file=sys.stderr)
    run(chorales, states=options.states, steps=options.steps, seed=options.seed, out=options.out)


if __name__ == "__main__":
    main()
