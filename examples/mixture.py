"""Handwritten digits sorted by a mixture of normals, the assignments summed out exactly.

    python examples/mixture.py              # some seconds, writes mixture.png
    python examples/mixture.py --help

The data are 1,797 digits bundled with scikit-learn, each reduced to D principal components x of unit
variance. The model does not know which digit is which; it says that each belongs to one of K components:

    z ~ Categorical(weights)    x ~ Normal(means[z], covariances[z])

`TraceEnum_ELBO` sums z out and `SVI` finds the most probable weights, means, scales and correlations under
weak priors. scikit-learn's `GaussianMixture` climbs to a maximum of the likelihood alone, by expectation
maximisation from the same kind of start (k-means). Both are scored on digits that neither has seen; there,
`infer_discrete` assigns each digit, and `compute_marginals` says how surely.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Categorical, Dirichlet, LKJCholesky, LogNormal, MultivariateNormal, Normal
from sumprod.handlers import block
from sumprod.infer import SVI, TraceEnum_ELBO, infer_discrete
from sumprod.infer.autoguide import AutoDelta, init_to_value
from sumprod.optim import ClippedAdam

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import hsv_to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from tqdm import tqdm

    from options import at_least, picture
except ModuleNotFoundError as error:
    package = {"sklearn": "scikit-learn"}.get(name := (error.name or "").partition(".")[0], name)
    if package not in {"matplotlib", "scikit-learn", "tqdm"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

TEST_SHARE = 0.2
LEARNING_RATE, LAST_RATE = 0.03, 0.003
SHARPNESS = 4.0  # of the prior of correlations: 1 is flat, more pulls towards none


# ---- the data --------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Digits as principal components, and what they are."""

    x: Tensor  # [N, D]
    test_x: Tensor  # [M, D]
    labels: Tensor  # [N]: 0 ... 9, for the score only
    test_labels: Tensor  # [M]
    components: PCA  # from pixels to principal components and back, fitted to the training digits


def load(seed: int, limit: int | None, size: int) -> Data:
    """Training and test digits, drawn at random."""
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(seed))[:limit].numpy()
    tests = max(1, round(TEST_SHARE * len(order)))
    train, test = order[tests:], order[:tests]
    components = PCA(size, whiten=True, svd_solver="full").fit(digits.data[train])
    x, test_x = (torch.from_numpy(components.transform(digits.data[part])).float() for part in (train, test))
    labels, test_labels = (torch.from_numpy(digits.target[part]) for part in (train, test))
    return Data(x, test_x, labels, test_labels, components)


# ---- the model -------------------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """Everything but the assignments."""

    weights: Tensor  # [K]
    means: Tensor  # [K, D]
    scales: Tensor  # [K, D]: standard deviations
    correlations: Tensor  # [K, D, D]: Cholesky factors of the correlations

    def roots(self) -> Tensor:
        """Cholesky factors of the covariances: [K, D, D]."""
        return self.scales[..., None] * self.correlations


def points(parameters: Parameters, x: Tensor) -> Tensor:
    """The digits [N, D], each with a component, given the parameters; returns the components [N]."""
    roots = parameters.roots()
    with sumprod.plate("digits", len(x)):
        z = sumprod.sample("z", Categorical(parameters.weights), infer={"enumerate": "parallel"})
        sumprod.sample("x", MultivariateNormal(parameters.means[z], scale_tril=roots[z]), obs=x)
    return z


def program(x: Tensor, count: int) -> None:
    """The whole model: parameters of `count` components, and the digits."""
    size = x.shape[-1]
    weights = sumprod.sample("weights", Dirichlet(torch.full((count,), 2.0)))
    with sumprod.plate("components", count):
        means = sumprod.sample("means", Normal(torch.zeros(size), 2.0).to_event(1))
        scales = sumprod.sample("scales", LogNormal(torch.full((size,), math.log(0.5)), 1.0).to_event(1))
        correlations = sumprod.sample("correlations", LKJCholesky(size, SHARPNESS))
    points(Parameters(weights, means, scales, correlations), x)


def nothing_else(parameters: Parameters, x: Tensor) -> None:
    """The guide of `points`: besides the assignments, which are summed out, it has nothing latent."""


def k_means(x: Tensor, count: int, seed: int) -> Parameters:
    """Where to start: clusters by k-means, without correlations."""
    found = KMeans(count, n_init=1, random_state=seed).fit(x.numpy())
    labels = torch.from_numpy(found.labels_)
    means = torch.from_numpy(found.cluster_centers_)
    shares = torch.bincount(labels, minlength=count) / len(x)
    spread = (x - means[labels]).square().mean(0).sqrt()
    unit = torch.eye(x.shape[-1]).expand(count, -1, -1)
    return Parameters(shares, means, spread.expand_as(means), unit)


# ---- fitting and scoring ---------------------------------------------------------------------------------


def fit(data: Data, count: int, steps: int, seed: int) -> tuple[Parameters, list[float]]:
    """The most probable parameters, and the loss per digit by step."""
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    values = k_means(data.x, count, seed)._asdict()
    guide = AutoDelta(block(program, expose=list(values)), init_loc_fn=init_to_value(values=values))
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": (LAST_RATE / LEARNING_RATE) ** (1 / steps)})
    svi = SVI(program, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    losses = []
    with tqdm(range(steps), desc="fitting", unit="step") as bar:
        for _ in bar:
            losses.append(svi.step(data.x, count) / len(data.x))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    fitted = guide.median()
    return Parameters(*(fitted[name].detach() for name in Parameters._fields)), losses


def expectation_maximisation(data: Data, count: int, seed: int) -> Parameters:
    """What scikit-learn finds."""
    found = GaussianMixture(count, random_state=seed, max_iter=1000).fit(data.x.double().numpy())
    roots = torch.linalg.cholesky(torch.from_numpy(found.covariances_)).float()
    scales = roots.square().sum(-1).sqrt()
    weights, means = (torch.from_numpy(array).float() for array in (found.weights_, found.means_))
    return Parameters(weights, means, scales, roots / scales[..., None])


def log_likelihood(parameters: Parameters, x: Tensor) -> float:
    """Mean log p(x) per digit, the assignments summed out."""
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(points, nothing_else, parameters, x) / len(x)


def responsibilities(parameters: Parameters, x: Tensor) -> Tensor:
    """p(z | x) of each digit: [N, K]."""
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    probs: Tensor = elbo.compute_marginals(points, nothing_else, parameters, x)["z"].probs
    return probs


def assign(parameters: Parameters, x: Tensor) -> Tensor:
    """The most probable component of each digit: [N]."""
    z: Tensor = infer_discrete(points, first_available_dim=-2, temperature=0)(parameters, x)
    return z


def recognised(parameters: Parameters, data: Data) -> float:
    """The share of test digits that are what most training digits of their component are."""
    table = torch.zeros(len(parameters.weights), 10)
    table.index_put_((assign(parameters, data.x), data.labels), torch.tensor(1.0), accumulate=True)
    names = table.argmax(-1)
    return float((names[assign(parameters, data.test_x)] == data.test_labels).double().mean())


# ---- table and picture -----------------------------------------------------------------------------------


def compare(fits: dict[str, Parameters], data: Data) -> str:
    """A table, one line per fit."""
    lines = [f"{'':36}{'log p(x), training':>20}{'test':>8}{'test digits recognised':>26}"]
    for name, parameters in fits.items():
        scores = [log_likelihood(parameters, x) for x in (data.x, data.test_x)]
        lines.append(f"{name:36}{scores[0]:20.3f}{scores[1]:8.3f}{recognised(parameters, data):26.1%}")
    return "\n".join(lines)


def draw(out: Path, parameters: Parameters, losses: Sequence[float], data: Data) -> None:
    """Write a picture: test digits by component, the components' means as digits, the loss."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.3, 1, 0.9])
    draw_components(left, parameters, data)
    columns = math.ceil(math.sqrt(len(parameters.weights)))
    images = data.components.inverse_transform(parameters.means.numpy()).reshape(-1, 8, 8)
    for place, k in enumerate(parameters.weights.argsort(descending=True).tolist()):
        x, y = place % columns, place // columns
        extent = (x + 0.05, x + 0.95, y + 0.95, y + 0.15)
        middle.imshow(images[k], cmap="gray_r", vmin=0, vmax=16, extent=extent)
        middle.text(x + 0.5, y + 0.1, f"{parameters.weights[k]:.0%}", ha="center", fontsize=8)
    middle.set(xlim=(0, columns), ylim=(math.ceil(len(images) / columns), 0), xticks=[], yticks=[])
    middle.set_title("The components' means, and their weights", loc="left")
    right.plot(range(1, len(losses) + 1), losses)
    right.set(xlabel="step", ylabel="loss per digit (nats)", xscale="log")
    right.set_title("SVI", loc="left")
    figure.savefig(out, dpi=130)


def draw_components(axes: Axes, parameters: Parameters, data: Data) -> None:
    """The test digits in two dims, and ellipses of 1.5 standard deviations of the components."""
    count = len(parameters.weights)
    hues = [(k / count, 0.75, 0.85 if k % 2 else 0.65) for k in range(count)]
    colours = hsv_to_rgb(hues)
    blended = responsibilities(parameters, data.test_x).numpy() @ colours
    axes.scatter(*data.test_x[:, :2].T.numpy(), s=0)  # sets the limits
    for (x, y), label, colour in zip(
        data.test_x[:, :2].tolist(), data.test_labels.tolist(), blended, strict=True
    ):
        axes.text(x, y, str(label), color=colour.clip(0, 1), fontsize=7, ha="center", va="center")
    roots = parameters.roots()
    covariances = (roots @ roots.mT)[:, :2, :2]
    lengths, axes_of = torch.linalg.eigh(covariances)
    for k in range(count):
        angle = math.degrees(math.atan2(float(axes_of[k, 1, 1]), float(axes_of[k, 0, 1])))
        short, long = (2 * 1.5 * lengths[k].sqrt()).tolist()
        ellipse = Ellipse(
            parameters.means[k, :2].tolist(), long, short, angle=angle, fill=False, color=colours[k], lw=1.5
        )
        axes.add_patch(ellipse)
    axes.set(xlabel="first principal component", ylabel="second")
    axes.set_title("Test digits, coloured by responsibility", loc="left")


# ---- the program -----------------------------------------------------------------------------------------


def run(*, digits: int | None, size: int, components: int, steps: int, seed: int, out: Path) -> None:
    """Fit, compare, draw."""
    data = load(seed, digits, size)
    print(f"training on {len(data.x)} digits, testing on {len(data.test_x)}; {size} principal components")
    fitted, losses = fit(data, components, steps, seed)
    fits = {
        "one component": expectation_maximisation(data, 1, seed),
        f"{components} components, scikit-learn": expectation_maximisation(data, components, seed),
        f"{components} components, SVI": fitted,
    }
    print("\n" + compare(fits, data))
    sure = float((responsibilities(fitted, data.test_x).amax(-1) > 0.9).double().mean())
    print(f"\n{sure:.0%} of the test digits belong to their component with probability 0.9 or more")
    draw(out, fitted, losses, data)
    print(f"\nwrote {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Sort handwritten digits by a mixture of normals.")
    add = parser.add_argument
    add("--digits", type=at_least(50), metavar="N", help="use only N digits (all 1797)")
    add("--size", type=at_least(2), default=12, metavar="D", help="principal components (%(default)s)")
    add("--components", type=at_least(1), default=16, metavar="K", help="of the mixture (%(default)s)")
    add("--steps", type=at_least(1), default=300, metavar="N", help="gradient steps (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split and start (%(default)s)")
    add("--out", type=picture, default="mixture.png", metavar="FILE", help="picture (%(default)s)")
    run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
