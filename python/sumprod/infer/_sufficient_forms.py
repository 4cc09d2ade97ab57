"""Natural parameters and sufficient statistics of families.

    log p(v; theta) = sum_k s_k(v) eta_k(theta) + c(theta) + h(v)

Each form is chosen such that the sum is about as accurate as that of the densities one by one: either all
terms have one sign, or the density itself adds the same terms. The exception is the normal family, whose
squares are expanded around a centre and in double precision (see `_normal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs
from torch.nn.functional import logsigmoid

from sumprod.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    Geometric,
    LogNormal,
    Multinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)
from sumprod.distributions._checks import is_within, satisfied

__all__ = ["FORMS", "Expansion", "Form", "Lookup"]


class Expansion(NamedTuple):
    """log p as above. Parameters are (..., S, K or 1), data (..., N, K), both perhaps with event dims."""

    natural: tuple[Tensor, ...]
    statistic: tuple[Tensor, ...]
    constant: Tensor | None = None  # c, of the parameters
    carrier: Tensor | None = None  # h, of the data
    vanishing: bool = False  # eta may be -inf, where s >= 0
    fragile: bool = False  # s or eta may be infinite for good arguments


class Lookup(NamedTuple):
    """log p = table[..., v]."""

    table: Tensor
    indices: Tensor


class Form(NamedTuple):
    """How a family's densities are summed."""

    expand: Callable[[Any, Tensor], Expansion | Lookup | None]  # of a distribution and data
    checks: bool = False  # `expand` is None for data outside the support
    pays: int = 1 << 13  # states x elements x data dims from which it is faster than the density, as measured


def _log_odds(fn: Any) -> tuple[tuple[Tensor, Tensor], bool]:
    """Logarithms of p and 1 - p, and whether they may be -inf."""
    if "logits" in fn.__dict__:
        return (logsigmoid(fn.logits), logsigmoid(-fn.logits)), True
    probs = fn.probs
    bound = torch.finfo(probs.dtype).eps
    if not is_within(probs, bound, 1 - bound):  # cheaper than the gradient of a clamp that does nothing
        probs = clamp_probs(probs)
    return (probs.log(), torch.log1p(-probs)), False


def _bernoulli(fn: Any, value: Tensor) -> Expansion | None:
    rest = 1 - value
    if fn._validate_args:
        ones, zeros = value.reshape(-1), rest.reshape(-1)
        if value.requires_grad:
            ones, zeros = ones.detach(), zeros.detach()
        # Within [0, 1] no product is negative, so that their sum is 0 only where all are.
        if not is_within(ones, 0, 1) or torch.dot(ones, zeros).item() != 0:
            return None
    natural, vanishing = _log_odds(fn)
    return Expansion(natural, (value, rest), vanishing=vanishing)


def _binomial(fn: Any, value: Tensor) -> Expansion | None:
    trials = fn.total_count
    if trials.shape[-2] > 1:
        if not torch.equal(trials, trials[..., :1, :].expand_as(trials)):
            return None
        trials = trials[..., :1, :]
    rest = trials - value
    if fn._validate_args and not (satisfied(Poisson.support, value) and bool((rest >= 0).all())):
        return None
    natural, vanishing = _log_odds(fn)
    carrier = (trials + 1).lgamma() - (value + 1).lgamma() - (rest + 1).lgamma()
    return Expansion(natural, (value, rest), carrier=carrier, vanishing=vanishing)


def _geometric(fn: Any, value: Tensor) -> Expansion:
    probs = fn.probs
    certain = probs == 1
    # The inner choice keeps the infinite slope of log at 0 out of the gradient.
    failure = torch.where(certain, -torch.inf, torch.log1p(-torch.where(certain, 0.0, probs)))
    return Expansion((failure,), (value,), constant=probs.log(), vanishing=True)


def _poisson(fn: Any, value: Tensor) -> Expansion:
    carrier = (value + 1).lgamma().neg()
    return Expansion((fn.rate.log(),), (value,), constant=-fn.rate, carrier=carrier, vanishing=True)


def _exponential(fn: Any, value: Tensor) -> Expansion:
    return Expansion((-fn.rate,), (value,), constant=fn.rate.log())


def _gamma(fn: Any, value: Tensor) -> Expansion:
    shape, rate = fn.concentration, fn.rate
    constant = shape * rate.log() - shape.lgamma()
    return Expansion((shape - 1, -rate), (value.log(), value), constant=constant, fragile=True)


def _beta(fn: Any, value: Tensor) -> Expansion:
    a, b = fn.concentration1, fn.concentration0
    constant = (a + b).lgamma() - (a.lgamma() + b.lgamma())
    statistic = value.log(), torch.log1p(-value)
    return Expansion((a - 1, b - 1), statistic, constant=constant, fragile=True)


def _normal(fn: Any, value: Tensor) -> Expansion | None:
    """-(v - loc)^2 / (2 scale^2) with both v and loc counted from a centre, expanded.

    Let R be the largest (|v - centre| + |loc - centre|) / scale. Terms of size R^2 / 2 are added, while what
    they add up to may be of size 1. In double precision R^2 / 2 is rounded by 2^-54 R^2: up to R = 2^14 no
    worse than a float density of size 1, whose rounding is 2^-25. Data in double precision take this way up
    to R = 64, where it is 5e-13. Beyond, and where R is NaN, as it is for NaN data, the answer is None.
    """
    loc, scale = fn.loc.double(), fn.scale.double()
    with torch.no_grad():  # the sum does not depend on the centre
        centre = torch.stack(torch.aminmax(loc, dim=-2, keepdim=True)).mean(0)
    deviation, offset = value - centre, loc - centre
    square = deviation.square()
    with torch.no_grad():
        reach = ((square.amax(-2, keepdim=True).sqrt() + offset.abs()) / scale).amax().item()
    if not reach <= _REACH.get(fn.loc.dtype, 2.0**14):
        return None
    precision = scale.square().reciprocal()
    slope = offset * precision
    constant = -0.5 * offset * slope - scale.log() - 0.5 * math.log(2 * math.pi)
    return Expansion((-0.5 * precision, slope), (square, deviation), constant=constant)


_REACH = {torch.float64: 64.0}


def _log_normal(fn: Any, value: Tensor) -> Expansion | None:
    log = value.double().log()  # NaN or -inf outside the support
    found = _normal(fn, log)
    return None if found is None else found._replace(carrier=-log)


def _categorical(fn: Any, value: Tensor) -> Expansion | Lookup | None:
    # Checked also when nobody asks for it: no index may miss its row of the table.
    if not satisfied(fn.support, value):
        return None
    return Lookup(fn.logits, value.long())


def _one_hot(fn: Any, value: Tensor) -> Lookup:
    return Lookup(fn.logits, value.max(-1)[1])


def _multinomial(fn: Any, value: Tensor) -> Expansion:
    carrier = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
    given = "logits" in fn._categorical.__dict__
    return Expansion((fn.logits,), (value,), carrier=carrier, vanishing=given)


FORMS: dict[type, Form] = {
    # Always: at infinite logits the density itself is NaN.
    Bernoulli: Form(_bernoulli, checks=True, pays=0),
    Beta: Form(_beta),
    Binomial: Form(_binomial, checks=True),
    Categorical: Form(_categorical, checks=True, pays=1 << 15),
    Exponential: Form(_exponential, pays=1 << 15),
    Gamma: Form(_gamma),
    Geometric: Form(_geometric),
    LogNormal: Form(_log_normal, checks=True, pays=1 << 16),
    Multinomial: Form(_multinomial),
    Normal: Form(_normal, checks=True, pays=1 << 16),
    OneHotCategorical: Form(_one_hot, pays=1 << 16),
    Poisson: Form(_poisson, pays=1 << 14),
}
