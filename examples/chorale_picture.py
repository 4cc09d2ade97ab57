"""What the hidden states of a chorale stand for: names, a table, and the picture of a decoded chorale."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import one_hot

from chorale_data import KEYS, LOWEST_KEY, PITCH_CLASSES, pitch_name

# ---- what the states stand for -----------------------------------------------------------------------------


def pitch_class_probabilities(keys: Tensor) -> Tensor:
    """The chance that a pitch class sounds in any octave, by state: [S, 12], C first; `keys` is [S, 88]."""
    silent = 1 - keys  # a pitch class is silent when all its keys are
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


def describe_states(transition: Tensor, keys: Tensor, path: Tensor) -> str:
    """A table, one line per state: how often it is decoded, how it moves, which pitch classes it means.

    Probabilities [S, S] and [S, 88]; the path holds decoded states and, where there is none, -1.
    """
    probabilities = pitch_class_probabilities(keys)
    triads = closest_triads(probabilities)
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


def plot_chorale(
    out: Path, name: str, roll: Tensor, paths: Tensor, marginals: Tensor, triads: list[Triad]
) -> None:
    """Write a picture of a chorale: what sounds, the decoded states, and how sure the model is of them.

    The roll is [T, 88]; paths are [P, T], the most probable one first; marginals are [T, S].
    """
    steps, states = marginals.shape
    colours = state_colours(triads)
    labels = [f"{s} · {triad}" for s, triad in enumerate(triads)]
    marginal_inches = min(max(0.19 * states, 1.0), 8.0)
    width = min(max(0.19 * steps + 1.5, 9.0), 26.0)
    figure = Figure(figsize=(width, 6.6 + marginal_inches), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[4.4, 1.5, marginal_inches])
    title = name.removeprefix("bach/").upper().replace("BWV", "BWV ")
    figure.suptitle(f"{title}: a chorale decoded by a hidden Markov model with {states} states", fontsize=14)

    draw_roll(top, roll.numpy(), colours[paths[0]])

    middle.imshow(colours[paths], aspect="auto", interpolation="none", extent=(0, steps, len(paths), 0))
    rows = ["Viterbi"] + [f"sample {i}" for i in range(1, len(paths))]
    middle.set_yticks(np.arange(len(paths)) + 0.5, rows)
    middle.set_title("Decoded states: the most probable path, and paths drawn from the posterior", loc="left")
    label_runs(middle, paths[0].tolist(), [str(triad) for triad in triads], width / steps * 72)

    # White where a state is impossible, its own colour where it is certain.
    shade = 1 - marginals.T.numpy()[..., None] * (1 - colours[:, None])
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
