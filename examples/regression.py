"""Bayesian linear regression: automatic guides against the exact posterior.

    python examples/regression.py              # half a minute, writes regression.png
    python examples/regression.py --help

The data are 442 diabetes patients, ten measurements each, and the progression of the disease after a year
(Efron et al. 2004; bundled with scikit-learn). With all columns standardised, the model is

    v ~ InverseGamma(2, 1)    w_k ~ N(0, v s^2), k = 0 ... 10    y_i ~ N(w_0 + sum_k x_ik w_k, v)

It is conjugate: w | y is a multivariate t, v | y an inverse gamma, and the evidence p(y) and the predictive
density of an unseen patient have closed forms. So one can see what variational guides get right. Some of the
blood measurements are nearly collinear, and their weights strongly correlated: a guide with full covariance
follows, one with independent components becomes far too sure of each weight. Predictions hardly suffer.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import InverseGamma, Normal
from sumprod.infer import SVI, Predictive, Trace_ELBO
from sumprod.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, init_to_value
from sumprod.optim import ExponentialLR

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sklearn.datasets import load_diabetes

    from options import at_least, picture
except ModuleNotFoundError as error:
    package = {"sklearn": "scikit-learn"}.get(name := (error.name or "").partition(".")[0], name)
    if package not in {"matplotlib", "scikit-learn"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

SHAPE, RATE = 2.0, 1.0  # of the prior of the noise variance
PRIOR_SCALE = 1.0  # of the weights, in units of the noise's standard deviation
TEST_SHARE = 0.25


# ---- the data --------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Standardised by the mean and standard deviation of the training part."""

    names: list[str]  # of the columns of x; the first is the constant
    x: Tensor  # [N, 11]
    y: Tensor  # [N]
    test_x: Tensor  # [M, 11]
    test_y: Tensor  # [M]


def load(seed: int, limit: int | None) -> Data:
    """Training and test patients, drawn at random; only `limit` of all if given."""
    bunch = load_diabetes(scaled=False)
    x, y = (torch.from_numpy(values).float() for values in (bunch.data, bunch.target))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:limit]
    tests = max(1, round(TEST_SHARE * len(order)))
    test, train = order[:tests], order[tests:]

    def standardise(values: Tensor) -> Tensor:
        return (values - values[train].mean(0)) / values[train].std(0)

    x, y = torch.cat([torch.ones(len(y), 1), standardise(x)], -1), standardise(y)
    return Data(["constant", *bunch.feature_names], x[train], y[train], x[test], y[test])


# ---- the model -------------------------------------------------------------------------------------------


def model(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Progression given measurements x [N, 11]; y [N] is observed if given."""
    variance = sumprod.sample("variance", InverseGamma(SHAPE, RATE))
    scale = PRIOR_SCALE * variance.sqrt()
    weights = sumprod.sample("weights", Normal(torch.zeros(x.shape[-1]), scale.unsqueeze(-1)).to_event(1))
    mean = (x * weights).sum(-1)  # broadcasts over particles, too
    with sumprod.plate("patients", len(x)):
        return sumprod.sample("y", Normal(mean, variance.sqrt()), obs=y)


# ---- the truth -------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """The conjugate posterior: v ~ InverseGamma(shape, rate), w | v ~ N(mean, v covariance)."""

    mean: Tensor  # [11]
    covariance: Tensor  # [11, 11], in units of v
    shape: float
    rate: float
    log_evidence: float

    def sds(self) -> Tensor:
        """Standard deviations of the weights, whose marginals are t with 2 shape degrees of freedom: [11]."""
        return (self.covariance.diagonal() * self.rate / (self.shape - 1)).sqrt()

    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-densities of unseen patients, each by itself, which are t: [M]."""
        spread = 1 + ((x @ self.covariance) * x).sum(-1)
        scale = (self.rate / self.shape * spread).sqrt()
        return torch.distributions.StudentT(2 * self.shape, x @ self.mean, scale).log_prob(y)


def exact_posterior(data: Data) -> Exact:
    """The conjugate update, in double precision (e.g. Bishop 2006, section 3.3; Murphy 2012, section 7.6)."""
    x, y = data.x.double(), data.y.double()
    n, k = x.shape
    precision = torch.eye(k, dtype=torch.float64) / PRIOR_SCALE**2 + x.T @ x
    covariance = precision.inverse()
    mean = covariance @ x.T @ y
    shape = SHAPE + n / 2
    rate = RATE + 0.5 * float(y @ y - mean @ precision @ mean)
    log_evidence = (
        -0.5 * n * math.log(2 * math.pi)
        - 0.5 * float(precision.logdet())
        - k * math.log(PRIOR_SCALE)
        + SHAPE * math.log(RATE)
        - shape * math.log(rate)
        + math.lgamma(shape)
        - math.lgamma(SHAPE)
    )
    return Exact(mean, covariance, shape, rate, log_evidence)


# ---- fits ------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """A trained guide."""

    name: str
    losses: list[float]  # by step
    elbo: float
    weights: Tensor  # [S, 11] draws
    variance: Tensor  # [S] draws
    predicted: Tensor  # [S, M] draws of the test patients' y
    log_predictive: Tensor  # [M] log of the mean density of each test patient's y


def fit(family: Any, data: Data, steps: int, samples: int, seed: int) -> Fit:
    """Train a guide by SVI and draw from the posterior predictive distribution of the test patients."""
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    guide = family(model, init_loc_fn=init_to_value(values={"weights": 0.0, "variance": 1.0}))
    optimiser = ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.01 ** (1 / steps)}
    )
    particles: dict[str, Any] = {"max_plate_nesting": 1, "vectorize_particles": True}
    svi = SVI(model, guide, optimiser, Trace_ELBO(8, **particles), progress={"desc": f"{family.__name__:22}"})
    svi.fit(steps, args=(data.x, data.y), callbacks=[lambda *_: optimiser.step()])
    elbo = -SVI(model, guide, optimiser, Trace_ELBO(500, **particles)).evaluate_loss(data.x, data.y)

    draws = Predictive(model, guide=guide, num_samples=samples, parallel=True, squeeze=True)(data.test_x)
    weights, variance = draws["weights"], draws["variance"]
    densities = Normal(weights @ data.test_x.T, variance.sqrt()[:, None]).log_prob(data.test_y)
    log_predictive = densities.logsumexp(0) - math.log(samples)
    return Fit(family.__name__, svi.losses, elbo, weights, variance, draws["y"], log_predictive)


# ---- tables ----------------------------------------------------------------------------------------------


def compare_fits(fits: Sequence[Fit], exact: Exact, data: Data) -> str:
    """A table, one line per posterior: the evidence (of a guide, the ELBO), and its predictions."""
    alone = Normal(data.y.mean(), data.y.std()).log_prob(data.test_y).mean()
    truth = exact.log_predictive(data.test_x.double(), data.test_y.double()).mean()
    lines = [
        f"{'':24}{'log p(y)':>10}{'held-out log density':>22}{'in 90% interval':>17}",
        f"{'without measurements':24}{'':10}{alone:22.4f}",
        f"{'exact posterior':24}{exact.log_evidence:10.2f}{truth:22.4f}",
    ]
    for fit in fits:
        low, high = fit.predicted.quantile(torch.tensor([0.05, 0.95]), dim=0)
        covered = ((data.test_y >= low) & (data.test_y <= high)).double().mean()
        lines.append(f"{fit.name:24}{fit.elbo:10.2f}{fit.log_predictive.mean():22.4f}{covered:17.0%}")
    return "\n".join(lines)


def compare_weights(fits: Sequence[Fit], exact: Exact, data: Data) -> str:
    """A table, one line per weight: mean and standard deviation, in truth and by guide."""
    names = "".join(f"{fit.name:>25}" for fit in fits)
    lines = [
        f"{'':10}{'exact posterior':>18}{names}",
        f"{'weight':10}{'mean':>10}{'sd':>8}" + f"{'mean':>11}{'sd':>7}{'share':>7}" * len(fits),
    ]
    for k, name in enumerate(data.names):
        sd = exact.sds()[k]
        line = f"{name:10}{exact.mean[k]:10.3f}{sd:8.3f}"
        for fit in fits:
            found = fit.weights[:, k].std()
            line += f"{fit.weights[:, k].mean():11.3f}{found:7.3f}{found / sd:7.0%}"
        lines.append(line)
    noise = (exact.rate / (exact.shape - 1)) ** 0.5
    line = f"{'noise':10}{noise:10.3f}{'':8}"
    lines.append(line + "".join(f"{fit.variance.mean().sqrt():11.3f}{'':14}" for fit in fits))
    return "\n".join(lines)


# ---- the picture -----------------------------------------------------------------------------------------


def draw(out: Path, fits: Sequence[Fit], exact: Exact, data: Data) -> None:
    """Write a picture: the weights by posterior, the ELBO by step, the test patients."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1, 1])
    draw_weights(left, fits, exact, data)
    for fit, colour in zip(fits, ("tab:blue", "tab:orange"), strict=True):
        middle.plot(
            range(1, len(fit.losses) + 1), [-loss for loss in fit.losses], color=colour, label=fit.name
        )
    middle.axhline(exact.log_evidence, color="black", label="log p(y)")
    lowest = min(fit.elbo for fit in fits)
    middle.set(xscale="log", xlabel="step", ylim=(lowest - 40, exact.log_evidence + 8))
    middle.set_title("ELBO", loc="left")
    middle.legend(fontsize=9)

    low, centre, high = fits[0].predicted.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    right.vlines(
        data.test_y.tolist(), low.tolist(), high.tolist(), color="tab:blue", alpha=0.3, linewidth=1.5
    )
    right.plot(data.test_y.tolist(), centre.tolist(), "o", markersize=3, color="tab:blue")
    right.axline((0, 0), slope=1, color="black", linewidth=0.8)
    right.set(xlabel="observed (standardised)", ylabel="predicted: median and 90% interval")
    right.set_title(f"Test patients, {fits[0].name}", loc="left")
    figure.savefig(out, dpi=130)


def draw_weights(axes: Axes, fits: Sequence[Fit], exact: Exact, data: Data) -> None:
    """Means and two standard deviations of the weights."""
    rows = [("exact posterior", exact.mean, exact.sds(), "black")]
    for fit, colour in zip(fits, ("tab:blue", "tab:orange"), strict=True):
        rows.append((fit.name, fit.weights.mean(0), fit.weights.std(0), colour))
    for k, (label, means, sds, colour) in enumerate(rows):
        height = [j + 0.24 * (k - 1) for j in range(len(data.names))]
        axes.errorbar(
            means.tolist(),
            height,
            xerr=(2 * sds).tolist(),
            fmt="o",
            markersize=3.5,
            color=colour,
            label=label,
        )
    axes.set_yticks(range(len(data.names)), data.names)
    axes.invert_yaxis()
    axes.set_xlabel("mean and two standard deviations")
    axes.set_title("Weights", loc="left")
    axes.legend(fontsize=9, loc="lower left")


# ---- the program -----------------------------------------------------------------------------------------


def run(*, patients: int | None, steps: int, samples: int, seed: int, out: Path) -> None:
    """Fit two guides, compare with the truth, draw."""
    data = load(seed, patients)
    print(f"training on {len(data.y)} patients, testing on {len(data.test_y)}")
    exact = exact_posterior(data)
    fits = [
        fit(family, data, steps, samples, seed) for family in (AutoMultivariateNormal, AutoDiagonalNormal)
    ]
    print("\n" + compare_fits(fits, exact, data))
    print("\nweights, and the share of the exact standard deviation that a guide has:\n")
    print(compare_weights(fits, exact, data))
    full, diagonal = (exact.log_evidence - fit.elbo for fit in fits)
    print(
        f"\nThe guide with full covariance is {full:.2f} nats from the posterior, the diagonal one"
        f"\n{diagonal:.2f}: its means are right, but it is too sure of weights whose measurements are alike."
    )
    draw(out, fits, exact, data)
    print(f"\nwrote {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description="Fit a linear regression by automatic guides and compare with the exact posterior."
    )
    add = parser.add_argument
    add("--patients", type=at_least(20), metavar="N", help="use only N patients (all 442)")
    add("--steps", type=at_least(1), default=3000, metavar="N", help="gradient steps per guide (%(default)s)")
    add("--samples", type=at_least(100), default=4000, metavar="N", help="draws of a guide (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split, fits and draws (%(default)s)")
    add("--out", type=picture, default="regression.png", metavar="FILE", help="picture (%(default)s)")
    options = parser.parse_args(arguments)
    run(
        patients=options.patients,
        steps=options.steps,
        samples=options.samples,
        seed=options.seed,
        out=options.out,
    )


if __name__ == "__main__":
    main()
