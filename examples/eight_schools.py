"""Eight schools: variational inference for a hierarchical model, checked by importance sampling and exactly.

    python examples/eight_schools.py              # half a minute, writes eight_schools.png
    python examples/eight_schools.py --help

In eight schools, pupils were coached for a test; y_j is the estimated gain of school j and sigma_j its
standard error (Rubin 1981). How far do the schools really differ?

    mu ~ N(0, 100^2)    tau ~ U(0, 100)    theta_j ~ N(mu, tau^2)    y_j ~ N(theta_j, sigma_j^2)

The posterior is a funnel: where tau is small, all theta_j are tied to mu. The same model is written in two
ways, *centred* as above and *non-centred*, theta_j = mu + tau z_j with z_j ~ N(0, 1), and fitted by automatic
guides: independent or correlated normals, trained by the ELBO or by the Rényi bound with alpha = 0, which
punishes a guide more for being too narrow. A guide is an approximation, so each fit is used as the proposal
of importance sampling, which says how good it is (effective sample size, Pareto k) and corrects it. Here the
truth is known: given tau everything is Gaussian, so that one integral over tau, on a grid, gives the exact
posterior.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod
from sumprod.distributions import Normal, Uniform
from sumprod.infer import ELBO, SVI, Importance, Predictive, RenyiELBO, Trace_ELBO
from sumprod.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from sumprod.optim import ExponentialLR

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from options import at_least, picture
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package != "matplotlib":
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

# Rubin (1981), "Estimation in Parallel Randomized Experiments", Journal of Educational Statistics 6.
SCHOOLS = "ABCDEFGH"
EFFECTS = torch.tensor([28.39, 7.94, -2.75, 6.82, -0.64, 0.63, 18.01, 12.16])
ERRORS = torch.tensor([14.9, 10.2, 16.3, 11.0, 9.4, 11.4, 10.4, 17.6])
# Posterior medians of the schools, from 200 draws under flat priors: Gelman et al., "Bayesian Data Analysis",
# section 5.5.
BOOK_MEDIANS = [10, 8, 7, 8, 5, 6, 10, 8]

MU_SCALE = 100.0
TAU_MAX = 100.0


# ---- the model, twice ------------------------------------------------------------------------------------


def centred() -> Tensor:
    """Each school's gain is drawn around mu."""
    mu = sumprod.sample("mu", Normal(0.0, MU_SCALE))
    tau = sumprod.sample("tau", Uniform(0.0, TAU_MAX))
    with sumprod.plate("schools", len(EFFECTS)):
        theta = sumprod.sample("theta", Normal(mu, tau))
        sumprod.sample("y", Normal(theta, ERRORS), obs=EFFECTS)
    return theta


def non_centred() -> Tensor:
    """Each school's gain is mu plus tau times a standard normal: the same density, another geometry."""
    mu = sumprod.sample("mu", Normal(0.0, MU_SCALE))
    tau = sumprod.sample("tau", Uniform(0.0, TAU_MAX))
    with sumprod.plate("schools", len(EFFECTS)):
        z = sumprod.sample("z", Normal(0.0, 1.0))
        theta = sumprod.deterministic("theta", mu + tau * z, event_dim=0)
        sumprod.sample("y", Normal(theta, ERRORS), obs=EFFECTS)
    return theta


# ---- the truth -------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """The posterior, by quadrature over tau in double precision."""

    log_evidence: float
    tau: Tensor  # [G] grid
    tau_density: Tensor  # [G] p(tau | y)
    means: Tensor  # [10] of tau, mu, theta_1 ... theta_8
    sds: Tensor  # [10]
    medians: Tensor  # [8] of theta_j


def exact_posterior(points: int = 20_000) -> Exact:
    """Integrate over tau by the midpoint rule.

    Given tau, y_j ~ N(mu, V_j) with V_j = sigma_j^2 + tau^2, so mu | tau, y is Gaussian with precision
    A = 1 / MU_SCALE^2 + sum_j 1 / V_j, and theta_j | mu, tau, y shrinks y_j towards mu.
    """
    y, sigma = EFFECTS.double(), ERRORS.double()
    tau = (torch.arange(points, dtype=torch.float64) + 0.5) * (TAU_MAX / points)
    v = sigma**2 + tau[:, None] ** 2
    precision = 1 / MU_SCALE**2 + (1 / v).sum(-1)
    mu = (y / v).sum(-1) / precision
    log_likelihood = -0.5 * (
        (2 * math.pi * v).log().sum(-1)
        + (MU_SCALE**2 * precision).log()
        + (y**2 / v).sum(-1)
        - mu**2 * precision
    )
    log_evidence = log_likelihood.logsumexp(0) - math.log(points)  # the prior of tau is 1 / TAU_MAX
    weights = (log_likelihood - log_evidence).exp() / points  # of the grid points; they sum to 1

    kept = tau[:, None] ** 2 / v  # the share of y_j in theta_j; the rest is mu's
    theta = kept * y + (1 - kept) * mu[:, None]
    theta_variance = kept * sigma**2 + (1 - kept) ** 2 / precision[:, None]
    values = torch.cat([tau[:, None], mu[:, None], theta], -1)
    variances = torch.cat([torch.zeros_like(tau)[:, None], 1 / precision[:, None], theta_variance], -1)
    means = weights @ values
    second = weights @ (variances + values**2)
    return Exact(
        float(log_evidence),
        tau,
        weights * points / TAU_MAX,
        means,
        (second - means**2).sqrt(),
        mixture_medians(weights, theta, theta_variance.sqrt()),
    )


def mixture_medians(weights: Tensor, means: Tensor, sds: Tensor) -> Tensor:
    """Medians of mixtures of normals, by bisection; weights [G], means and sds [G, J]: [J]."""
    low, high = means.amin(0) - 10 * sds.amax(0), means.amax(0) + 10 * sds.amax(0)
    for _ in range(60):
        middle = (low + high) / 2
        below = weights @ torch.special.ndtr((middle - means) / sds) < 0.5
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


# ---- fits ------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """A guide for one way to write the model, trained and used as a proposal."""

    name: str
    elbo: float
    log_evidence: float  # estimated by importance sampling
    ess: float  # effective number of the samples
    pareto_k: float  # of the weights; above 0.7 they are not to be trusted
    tau: Tensor  # [N] draws of the guide
    weighted_tau: Tensor  # [N] other draws,
    weights: Tensor  # [N] and their weights
    means: Tensor  # [10] of the guide: tau, mu, theta_1 ... theta_8
    sds: Tensor  # [10]
    corrected_means: Tensor  # [10] by importance sampling
    corrected_sds: Tensor  # [10]
    corrected_medians: Tensor  # [8]


PARTICLES: dict[str, Any] = {"max_plate_nesting": 1, "vectorize_particles": True}


class Task(NamedTuple):
    """What is fitted, and how."""

    name: str
    model: Callable[[], Tensor]
    family: Any
    loss: ELBO


def tasks() -> list[Task]:
    """The fits that are compared."""
    elbo, renyi = Trace_ELBO(16, **PARTICLES), RenyiELBO(0, 64, **PARTICLES)
    return [
        Task("centred, independent", centred, AutoNormal, elbo),
        Task("non-centred, independent", non_centred, AutoNormal, elbo),
        Task("non-centred, correlated", non_centred, AutoMultivariateNormal, elbo),
        Task("non-centred, correlated, Rényi", non_centred, AutoMultivariateNormal, renyi),
    ]


def fit(task: Task, steps: int, samples: int, seed: int) -> Fit:
    """Train a guide by SVI, then draw from it and weigh the draws."""
    name, model, family, loss = task
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    start = init_to_value(values={"mu": 8.0, "tau": 5.0, "theta": EFFECTS, "z": 0.0})
    guide = family(model, init_loc_fn=start, init_scale=1.0)
    optimiser = ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.02 ** (1 / steps)}
    )
    svi = SVI(model, guide, optimiser, loss, progress={"desc": f"{name:30}"})
    svi.fit(steps, callbacks=[lambda *_: optimiser.step()])
    elbo = -SVI(model, guide, optimiser, Trace_ELBO(samples, **PARTICLES)).evaluate_loss()

    sites = ("tau", "mu", "theta")
    drawn = Predictive(model, guide=guide, num_samples=samples, return_sites=sites, parallel=True)()
    values = torch.cat([drawn[site].reshape(samples, -1) for site in sites], -1)
    posterior = Importance(model, guide, samples, vectorized=True).run()
    weights = posterior.get_normalized_weights().double()
    weighed = torch.cat([posterior.stack(site).reshape(samples, -1) for site in sites], -1).double()
    means = weights @ weighed
    return Fit(
        name,
        elbo,
        float(posterior.get_log_normalizer()),
        float(posterior.get_ESS()),
        float(posterior.psis().pareto_k),
        values[:, 0],
        weighed[:, 0],
        weights,
        values.mean(0),
        values.std(0),
        means,
        (weights @ (weighed - means) ** 2).sqrt(),
        weighted_medians(weights, weighed[:, 2:]),
    )


def weighted_medians(weights: Tensor, values: Tensor) -> Tensor:
    """Medians of values [N, J] with weights [N]: [J]."""
    values, order = values.sort(0)
    reached = (weights[order].cumsum(0) >= 0.5).int().argmax(0)
    return values.gather(0, reached[None])[0]


# ---- tables ----------------------------------------------------------------------------------------------


def compare_fits(fits: Sequence[Fit], exact: Exact, samples: int) -> str:
    """A table, one line per fit: how near it comes, before and after importance sampling."""

    def error(means: Tensor) -> Tensor:
        """The largest error of a mean, in posterior standard deviations."""
        return ((means - exact.means) / exact.sds).abs().max()

    lines = [
        f"log p(y) = {exact.log_evidence:.3f}; E[tau | y] = {exact.means[0]:.2f}, sd {exact.sds[0]:.2f}",
        "error: the largest of the ten posterior means, in posterior standard deviations\n",
        f"{'':31}{'guide':>27}   {'reweighted':>39}",
        f"{'':31}{'ELBO':>8}{'E[tau]':>9}{'error':>10}   {'log p(y)':>9}{'E[tau]':>8}{'error':>8}{'ESS':>7}"
        f"{'k':>7}",
    ]
    for fit in fits:
        lines.append(
            f"{fit.name:31}{fit.elbo:8.2f}{fit.means[0]:9.2f}{error(fit.means):10.2f}   "
            f"{fit.log_evidence:9.2f}{fit.corrected_means[0]:8.2f}{error(fit.corrected_means):8.2f}"
            f"{fit.ess / samples:7.0%}{fit.pareto_k:7.2f}"
        )
    return "\n".join(lines)


def compare_schools(best: Fit, exact: Exact) -> str:
    """A table, one line per school: the data, the book, the truth, the fit."""
    lines = [
        f"{'':8}{'data':>14}{'book':>10}{'exact posterior':>24}{'reweighted guide':>25}{'guide':>18}",
        f"{'school':8}{'effect':>8}{'s.e.':>6}{'median':>10}{'median':>10}{'mean':>8}{'sd':>6}"
        f"{'median':>11}{'mean':>8}{'sd':>6}{'mean':>12}{'sd':>6}",
    ]
    for j, school in enumerate(SCHOOLS):
        i = j + 2  # after tau and mu
        lines.append(
            f"{school:8}{EFFECTS[j]:8.1f}{ERRORS[j]:6.1f}{BOOK_MEDIANS[j]:10d}"
            f"{exact.medians[j]:10.1f}{exact.means[i]:8.1f}{exact.sds[i]:6.1f}"
            f"{best.corrected_medians[j]:11.1f}{best.corrected_means[i]:8.1f}{best.corrected_sds[i]:6.1f}"
            f"{best.means[i]:12.1f}{best.sds[i]:6.1f}"
        )
    return "\n".join(lines)


# ---- the picture -----------------------------------------------------------------------------------------


def draw(out: Path, fits: Sequence[Fit], best: Fit, exact: Exact) -> None:
    """Write a picture: the schools, and the density of tau by guide and in truth."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    draw_schools(left, best, exact)
    right.plot(exact.tau.tolist(), exact.tau_density.tolist(), color="black", linewidth=2, label="exact")
    bins: dict[str, Any] = {"bins": 80, "range": (0, 40), "density": True}
    for fit in fits:
        right.hist(fit.tau.tolist(), histtype="step", linewidth=1.3, label=fit.name, **bins)
    right.hist(
        best.weighted_tau.tolist(),
        weights=best.weights.tolist(),
        color="tab:red",
        alpha=0.25,
        label=f"{best.name}, reweighted",
        **bins,
    )
    right.set(xlim=(0, 40), xlabel="tau: how far schools differ", ylabel="posterior density")
    right.set_title("What the guides make of tau", loc="left")
    right.legend(fontsize=9)
    figure.savefig(out, dpi=130)


def draw_schools(axes: Axes, best: Fit, exact: Exact) -> None:
    """Means and standard deviations of the schools: data, truth, guide, guide after reweighting."""
    rows = (
        ("data", EFFECTS, ERRORS, "0.6"),
        ("exact posterior", exact.means[2:], exact.sds[2:], "black"),
        (f"guide ({best.name})", best.means[2:], best.sds[2:], "tab:orange"),
        ("guide, reweighted", best.corrected_means[2:], best.corrected_sds[2:], "tab:blue"),
    )
    for k, (label, means, sds, colour) in enumerate(rows):
        height = [j + 0.18 * (k - 1.5) for j in range(len(SCHOOLS))]
        axes.errorbar(
            means.tolist(), height, xerr=sds.tolist(), fmt="o", markersize=4, color=colour, label=label
        )
    axes.set_yticks(range(len(SCHOOLS)), list(SCHOOLS))
    axes.invert_yaxis()
    axes.set(xlabel="gain by coaching (mean and standard deviation)", ylabel="school")
    axes.set_title("Partial pooling", loc="left")
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


# ---- the program -----------------------------------------------------------------------------------------


def run(*, steps: int, samples: int, seed: int, out: Path) -> None:
    """Fit in four ways, compare, draw."""
    exact = exact_posterior()
    fits = [fit(task, steps, samples, seed) for task in tasks()]
    print("\n" + compare_fits(fits, exact, samples))
    best = max(fits, key=lambda fit: fit.ess)
    print(f"\nthe schools, by the guide with the largest effective sample size: {best.name}\n")
    print(compare_schools(best, exact))
    print(
        "\nWritten with a centre, the posterior is a funnel that no normal follows. Without, it is nearly"
        "\nnormal, but the ELBO makes guides too narrow for the long tail of tau. The Rényi bound makes them"
        "\nwide enough for importance sampling, which corrects what is left."
    )
    draw(out, fits, best, exact)
    print(f"\nwrote {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description="Fit the eight-schools model by automatic guides and compare with the exact posterior."
    )
    add = parser.add_argument
    add("--steps", type=at_least(1), default=1000, metavar="N", help="gradient steps per fit (%(default)s)")
    add("--samples", type=at_least(100), default=20_000, metavar="N", help="draws of a guide (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of fits and draws (%(default)s)")
    add("--out", type=picture, default="eight_schools.png", metavar="FILE", help="picture (%(default)s)")
    options = parser.parse_args(arguments)
    run(steps=options.steps, samples=options.samples, seed=options.seed, out=options.out)


if __name__ == "__main__":
    main()
