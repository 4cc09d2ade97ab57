"""Every family with arguments, so that tests can run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

Shape = tuple[int, ...]
Arguments = dict[str, Any]


class Case(NamedTuple):
    """One family.

    name: of the class, the same in torch and Pyro.
    arguments: from a batch shape and a dtype, the keyword arguments; the parameters are ordinary numbers.
    reference: from float64 arguments and a value, the log-density by scipy; None where scipy has none.
    bad: an argument that violates its constraint, by name.
    outside: a value outside the support.
    """

    name: str
    arguments: Callable[[Shape, torch.dtype], Arguments]
    reference: Callable[[Arguments, Any], Any] | None = None
    bad: Arguments | None = None
    outside: Any = torch.nan

    @property
    def label(self) -> str:
        return f"{self.name}({', '.join(self.arguments((), torch.float64))})"


def _spread(low: float, high: float) -> Callable[[Shape, torch.dtype], Tensor]:
    """Distinct numbers between two, a third of the range apart from the ends."""

    def make(shape: Shape, dtype: torch.dtype) -> Tensor:
        count = max(torch.Size(shape).numel(), 1)
        step = (high - low) / (count + 1)
        return torch.linspace(low + step, high - step, count, dtype=dtype).reshape(shape)

    return make


def _of(**parameters: Any) -> Callable[[Shape, torch.dtype], Arguments]:
    return lambda shape, dtype: {
        name: make(shape, dtype) if callable(make) else make for name, make in parameters.items()
    }


def _rows(low: float, high: float, width: int = 3) -> Callable[[Shape, torch.dtype], Tensor]:
    spread = _spread(low, high)
    return lambda shape, dtype: spread((*shape, width), dtype)


def _matrix(shape: Shape, dtype: torch.dtype) -> Tensor:
    root = _spread(-0.4, 0.6)((*shape, 3, 3), dtype)
    return root @ root.mT + torch.eye(3, dtype=dtype)


def _simplex(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.softmax(_rows(-1, 1)(shape, dtype), -1)


BATCHES = [(), (4,), (3, 1, 2)]

REAL, POSITIVE, UNIT = _spread(-1.5, 2), _spread(0.4, 3), _spread(0.1, 0.9)

CASES = [
    Case(
        "Bernoulli",
        _of(probs=UNIT),
        lambda a, x: stats.bernoulli.logpmf(x, a["probs"]),
        {"probs": 1.5},
        2.0,
    ),
    Case("Bernoulli", _of(logits=REAL), bad={"logits": torch.nan}, outside=-1.0),
    Case(
        "Beta",
        _of(concentration1=POSITIVE, concentration0=_spread(0.5, 4)),
        lambda a, x: stats.beta.logpdf(x, a["concentration1"], a["concentration0"]),
        {"concentration1": 0.0},
        1.5,
    ),
    Case(
        "Binomial",
        _of(total_count=5, probs=UNIT),
        lambda a, x: stats.binom.logpmf(x, 5, a["probs"]),
        {"probs": -0.5},
        6.0,
    ),
    Case("Categorical", _of(probs=_simplex), bad={"probs": -1.0}, outside=3),
    Case("Categorical", _of(logits=_rows(-1, 1)), bad={"logits": torch.nan}, outside=-1),
    Case(
        "Cauchy",
        _of(loc=REAL, scale=POSITIVE),
        lambda a, x: stats.cauchy.logpdf(x, a["loc"], a["scale"]),
        {"scale": -1.0},
    ),
    Case("Chi2", _of(df=POSITIVE), lambda a, x: stats.chi2.logpdf(x, a["df"]), {"df": 0.0}, -1.0),
    Case("ContinuousBernoulli", _of(probs=UNIT), outside=1.5),
    Case(
        "Dirichlet",
        _of(concentration=_rows(0.5, 3)),
        lambda a, x: _by_row(stats.dirichlet.logpdf, x, a["concentration"]),
        {"concentration": -1.0},
        0.5,
    ),
    Case(
        "Exponential",
        _of(rate=POSITIVE),
        lambda a, x: stats.expon.logpdf(x, scale=1 / a["rate"]),
        {"rate": 0.0},
        -1.0,
    ),
    Case(
        "FisherSnedecor",
        _of(df1=POSITIVE, df2=_spread(2, 5)),
        lambda a, x: stats.f.logpdf(x, a["df1"], a["df2"]),
        {"df1": -1.0},
        -1.0,
    ),
    Case(
        "Gamma",
        _of(concentration=POSITIVE, rate=_spread(0.5, 4)),
        lambda a, x: stats.gamma.logpdf(x, a["concentration"], scale=1 / a["rate"]),
        {"rate": 0.0},
        -1.0,
    ),
    Case(
        "GeneralizedPareto",
        _of(loc=REAL, scale=POSITIVE, concentration=UNIT),
        lambda a, x: stats.genpareto.logpdf(x, a["concentration"], a["loc"], a["scale"]),
        {"scale": -1.0},
        -100.0,
    ),
    Case(
        "Geometric",
        _of(probs=UNIT),
        lambda a, x: stats.geom.logpmf(x + 1, a["probs"]),
        {"probs": 2.0},
        -1.0,
    ),
    Case(
        "Gumbel",
        _of(loc=REAL, scale=POSITIVE),
        lambda a, x: stats.gumbel_r.logpdf(x, a["loc"], a["scale"]),
        {"scale": 0.0},
    ),
    Case(
        "HalfCauchy",
        _of(scale=POSITIVE),
        lambda a, x: stats.halfcauchy.logpdf(x, scale=a["scale"]),
        {"scale": -1.0},
        -1.0,
    ),
    Case(
        "HalfNormal",
        _of(scale=POSITIVE),
        lambda a, x: stats.halfnorm.logpdf(x, scale=a["scale"]),
        {"scale": 0.0},
        -1.0,
    ),
    Case(
        "Kumaraswamy",
        _of(concentration1=POSITIVE, concentration0=_spread(0.5, 4)),
        bad={"concentration1": 0.0},
        outside=1.5,
    ),
    Case(
        "LKJCholesky", lambda shape, dtype: {"dim": 3, "concentration": POSITIVE(shape, dtype)}, outside=2.0
    ),
    Case(
        "Laplace",
        _of(loc=REAL, scale=POSITIVE),
        lambda a, x: stats.laplace.logpdf(x, a["loc"], a["scale"]),
        {"scale": 0.0},
    ),
    Case(
        "LogNormal",
        _of(loc=REAL, scale=POSITIVE),
        lambda a, x: stats.lognorm.logpdf(x, a["scale"], scale=a["loc"].exp()),
        {"loc": torch.nan},
        -1.0,
    ),
    Case("LogisticNormal", _of(loc=_rows(-1, 1, 2), scale=_rows(0.5, 2, 2)), outside=0.9),
    Case(
        "LowRankMultivariateNormal",
        lambda shape, dtype: {
            "loc": _rows(-1, 1)(shape, dtype),
            "cov_factor": _spread(-1, 1)((*shape, 3, 1), dtype),
            "cov_diag": _rows(0.5, 2)(shape, dtype),
        },
        bad={"cov_diag": -1.0},
    ),
    Case(
        "Multinomial",
        _of(total_count=4, probs=_simplex),
        lambda a, x: stats.multinomial.logpmf(x.numpy(), 4, a["probs"].numpy()),
        {"probs": -1.0},
        7.0,
    ),
    Case(
        "MultivariateNormal",
        _of(loc=_rows(-1, 1), covariance_matrix=_matrix),
        lambda a, x: _by_row(stats.multivariate_normal.logpdf, x, a["loc"], a["covariance_matrix"], values=1),
        {"loc": torch.nan},
    ),
    Case(
        "NegativeBinomial",
        _of(total_count=POSITIVE, probs=UNIT),
        lambda a, x: stats.nbinom.logpmf(x, a["total_count"], 1 - a["probs"]),
        {"probs": 1.5},
        -1.0,
    ),
    Case(
        "Normal",
        _of(loc=REAL, scale=POSITIVE),
        lambda a, x: stats.norm.logpdf(x, a["loc"], a["scale"]),
        {"scale": 0.0},
    ),
    Case("OneHotCategorical", _of(probs=_simplex), bad={"probs": -1.0}, outside=0.5),
    Case(
        "OneHotCategoricalStraightThrough", _of(logits=_rows(-1, 1)), bad={"logits": torch.nan}, outside=0.5
    ),
    Case(
        "Pareto",
        _of(scale=POSITIVE, alpha=_spread(0.5, 4)),
        lambda a, x: stats.pareto.logpdf(x, a["alpha"], scale=a["scale"]),
        {"alpha": 0.0},
        0.01,
    ),
    Case("Poisson", _of(rate=POSITIVE), lambda a, x: stats.poisson.logpmf(x, a["rate"]), {"rate": -1.0}, 1.5),
    Case("RelaxedBernoulli", lambda s, d: {"temperature": torch.tensor(0.7, dtype=d), "probs": UNIT(s, d)}),
    Case(
        "RelaxedOneHotCategorical",
        lambda s, d: {"temperature": torch.tensor(0.7, dtype=d), "probs": _simplex(s, d)},
        bad={"probs": -1.0},
        outside=0.9,
    ),
    Case(
        "StudentT",
        _of(df=_spread(2, 6), loc=REAL, scale=POSITIVE),
        lambda a, x: stats.t.logpdf(x, a["df"], a["loc"], a["scale"]),
        {"df": 0.0},
    ),
    Case(
        "Uniform",
        _of(low=REAL, high=_spread(2.1, 5)),
        lambda a, x: stats.uniform.logpdf(x, a["low"], a["high"] - a["low"]),
        {"low": 10.0},
        6.0,
    ),
    Case(
        "VonMises",
        _of(loc=REAL, concentration=POSITIVE),
        lambda a, x: stats.vonmises.logpdf(x, a["concentration"], a["loc"]),
        {"concentration": 0.0},
    ),
    Case(
        "Weibull",
        _of(scale=POSITIVE, concentration=_spread(0.7, 4)),
        lambda a, x: stats.weibull_min.logpdf(x, a["concentration"], scale=a["scale"]),
        {"scale": 0.0},
        -1.0,
    ),
    Case(
        "Wishart",
        lambda s, d: {"df": _spread(6, 9)(s, d), "covariance_matrix": _matrix(s, d)},
        outside=-1.0,
    ),
]

LABELS = [case.label for case in CASES]

# Those whose constructor, draw and density are written here and not taken from torch.
LEAN = [
    case
    for case in CASES
    if case.name
    in {
        "Bernoulli",
        "Beta",
        "Categorical",
        "Cauchy",
        "Dirichlet",
        "Exponential",
        "Gamma",
        "HalfCauchy",
        "HalfNormal",
        "Laplace",
        "LogNormal",
        "Normal",
        "Poisson",
        "Uniform",
    }
]


def _by_row(density: Callable[..., Any], value: Any, *parameters: Any, values: int = 1) -> Any:
    """scipy's multivariate densities take one set of parameters at a time."""
    value = torch.as_tensor(value)
    batch = value.shape[:-values]
    rows = []
    for index in torch.cartesian_prod(*(torch.arange(n) for n in batch)).reshape(-1, len(batch)).tolist():
        own = [p[tuple(index)] if p.dim() > 1 else p for p in parameters]
        x = value[tuple(index)]
        rows.append(float(density(_on_simplex(x) if density is stats.dirichlet.logpdf else x, *own)))
    return torch.tensor(rows, dtype=torch.float64).reshape(batch)


def _on_simplex(x: Tensor) -> Tensor:
    return x / x.sum()


def make(module, case, batch, dtype=torch.float64, **options):
    return getattr(module, case.name)(**case.arguments(batch, dtype), **options)


def draw(d, sample_shape=(), seed=0):
    torch.manual_seed(seed)
    return d.sample(torch.Size(sample_shape))


def leaves(case, batch, dtype=torch.float64):
    """Arguments that collect gradients."""
    return {
        name: a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a
        for name, a in case.arguments(batch, dtype).items()
    }


def peer_dtype(case):
    """torch's density of one family fails for float64; scipy's is compared in its place."""
    return torch.float32 if case.name == "GeneralizedPareto" else torch.float64
