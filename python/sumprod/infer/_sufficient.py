"""Log-densities of an exponential family, summed over data dims by one matrix product.

    sum_d log p(v_d; theta_d) = sum_d sum_k s_k(v_d) eta_k(theta_d) + sum_d h(v_d)

Parameters that depend on a state and data that depend on a batch element make a table of all states and
all elements. Written with statistics s and natural parameters eta it is a product of two matrices: the
table of states x elements x data dims never exists.

Statistics are never negative here, and eta_k may be -inf: where s_k is 0 that contributes nothing, and
elsewhere the sum is -inf. Statistics are chosen so that all terms have one sign, which keeps the sum as
accurate as that of the densities one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs
from torch.nn.functional import logsigmoid

from sumprod.distributions import Bernoulli

__all__ = ["has_statistics", "summed_log_prob"]


class _Form(NamedTuple):
    naturals: Callable[[Any], tuple[Tensor, ...]]  # of a distribution
    statistics: Callable[[Tensor], tuple[Tensor, ...]]  # of a value


def _bernoulli_naturals(fn: Any) -> tuple[Tensor, ...]:
    if "logits" in fn.__dict__:
        return logsigmoid(fn.logits), logsigmoid(-fn.logits)
    probs = clamp_probs(fn.probs)
    return probs.log(), torch.log1p(-probs)


_FORMS: dict[type, _Form] = {Bernoulli: _Form(_bernoulli_naturals, lambda value: (value, 1 - value))}


def has_statistics(family: type) -> bool:
    """Whether `summed_log_prob` knows a family."""
    return family in _FORMS


def summed_log_prob(fn: Any, value: Tensor, mask: Tensor | None, summed: Sequence[int]) -> Tensor:
    """The log-density of `value`, 0 where `mask` is False, summed over the dims `summed`.

    Args:
        fn: a distribution of a family that `has_statistics`, with parameters of the dims of `value`.
        value: within the support of `fn`. All three broadcast.
        mask: of dtype bool.
        summed: positions of the dims to sum.

    Returns:
        Tensor of the broadcast shape, with size 1 along `summed`. Dims along which both parameters and data
        vary are the batch of the matrix product.
    """
    form = _FORMS[type(fn)]
    naturals = torch.broadcast_tensors(*form.naturals(fn))
    statistics = form.statistics(value)
    if mask is not None:
        statistics = tuple([torch.where(mask, statistic, 0.0) for statistic in statistics])
    own, data = naturals[0].shape, statistics[0].shape
    rank = len(own)
    rest = [i for i in range(rank) if i not in summed]
    both = [i for i in rest if own[i] > 1 and data[i] > 1]
    left = [i for i in rest if own[i] > 1 and data[i] == 1]
    right = [i for i in rest if own[i] == 1]
    sizes = {i: max(own[i], data[i]) for i in summed}
    products = [
        _product(_matrix(natural, both, left, right, sizes), _matrix(statistic, both, right, left, sizes))
        for natural, statistic in zip(naturals, statistics, strict=True)
    ]
    total = functools.reduce(torch.add, products)
    order = (*both, *left, *right, *summed)
    shape = [own[i] for i in (*both, *left)] + [data[i] for i in right] + [1] * len(summed)
    return total.reshape(shape).permute([order.index(i) for i in range(rank)])


def _matrix(
    part: Tensor, batch: list[int], rows: list[int], absent: list[int], summed: dict[int, int]
) -> Tensor:
    """[batch, rows, summed dims]."""
    if any(part.shape[i] != size for i, size in summed.items()):
        part = part.expand([summed.get(i, size) for i, size in enumerate(part.shape)])
    sizes = part.shape
    part = part.permute(*batch, *rows, *absent, *summed)
    return part.reshape(prod(sizes[i] for i in batch), prod(sizes[i] for i in rows), -1)


def _product(table: Tensor, observed: Tensor) -> Tensor:
    """table @ observed^T, where -inf in the table times 0 is 0."""
    if table.numel() and float(table.detach().amin()) == -torch.inf:
        impossible = table == -torch.inf
        contradicted = impossible.to(observed.dtype) @ observed.detach().mT > 0
        table = table.masked_fill(impossible, 0.0)
        return torch.where(contradicted, -torch.inf, table @ observed.mT)
    return table @ observed.mT
