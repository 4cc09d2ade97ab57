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
        value: within the support of `fn`. All three broadcast; dim 0 has one size in all.
        mask: of dtype bool.
        summed: the dims to sum, not 0. No other dim but 0 may have more than one entry both in the
            parameters and in the value or the mask.

    Returns:
        Tensor of the broadcast shape, with size 1 along `summed`.
    """
    form = _FORMS[type(fn)]
    naturals = torch.broadcast_tensors(*form.naturals(fn))
    statistics = form.statistics(value)
    if mask is not None:
        statistics = tuple(statistic * mask for statistic in statistics)
    statistics = torch.broadcast_tensors(*statistics)
    own, data = naturals[0].shape, statistics[0].shape
    rank = len(own)
    left = [i for i in range(1, rank) if i not in summed and own[i] > 1]
    right = [i for i in range(1, rank) if i not in summed and i not in left]
    sizes = {i: max(own[i], data[i]) for i in summed}
    table = _matrix(naturals, left, right, sizes)
    observed = _matrix(statistics, right, left, sizes)
    total = _product(table, observed)
    shape = [own[i] if i in left else 1 for i in (*left, *summed)] + [data[i] for i in right]
    order = (0, *left, *summed, *right)
    return total.reshape(own[0], *shape).permute([order.index(i) for i in range(rank)])


def _matrix(parts: Sequence[Tensor], rows: list[int], absent: list[int], summed: dict[int, int]) -> Tensor:
    """[dim 0, rows, parts x summed dims]: each part's columns side by side."""
    columns = []
    for part in parts:
        if any(part.shape[i] != size for i, size in summed.items()):
            part = part.expand([summed.get(i, size) for i, size in enumerate(part.shape)])
        part = part.permute(0, *rows, *absent, *summed)
        columns.append(part.reshape(len(part), prod(part.shape[i + 1] for i in range(len(rows))), -1))
    return torch.cat(columns, -1) if len(columns) > 1 else columns[0]


def _product(table: Tensor, observed: Tensor) -> Tensor:
    """table @ observed^T, where -inf in the table times 0 is 0."""
    if table.numel() and float(table.detach().amin()) == -torch.inf:
        impossible = table == -torch.inf
        contradicted = impossible.to(observed.dtype) @ observed.detach().mT > 0
        table = table.masked_fill(impossible, 0.0)
        return torch.where(contradicted, -torch.inf, table @ observed.mT)
    return table @ observed.mT
