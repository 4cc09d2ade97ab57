"""Log-densities of an exponential family, summed over data dims by matrix products.

    sum_d log p(v_d; theta_d) = sum_d sum_k s_k(v_d) eta_k(theta_d) + sum_d h(v_d)

Parameters that depend on a state and data that depend on a batch element make a table of all states and
all elements. Written with statistics s and natural parameters eta (see `_sufficient_forms`) it is a sum of
products of two matrices: the table of states x elements x data dims never exists.

Where eta_k is -inf the statistic is never negative: 0 contributes nothing, and elsewhere the sum is -inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sumprod.distributions._checks import satisfied
from sumprod.distributions.util import broadcast_shape
from sumprod.infer._stacked_family import own_dims, parameters_of, with_parameters
from sumprod.infer._sufficient_forms import FORMS, Lookup
from sumprod.infer._sufficient_lookup import counts, summed_rows

__all__ = ["gains_without_sum", "has_statistics", "summed_log_prob"]


def has_statistics(family: type) -> bool:
    """Whether `summed_log_prob` knows a family."""
    return family in FORMS


def gains_without_sum(family: type) -> bool:
    """Whether a density of that family is cheaper by `summed_log_prob` even with no dim to sum.

    So are those whose parameters have a dim of their own: one by one, states x elements x that dim.
    """
    return family in FORMS and own_dims(family) > 0


class _Dims(NamedTuple):
    """Batch dims by role, as positions."""

    both: list[int]  # parameters and data vary: the batch of the product
    left: list[int]  # parameters vary
    right: list[int]  # data vary, or nothing does
    sizes: dict[int, int]  # of the summed dims


def summed_log_prob(fn: Any, value: Tensor, mask: Tensor | None, summed: Sequence[int]) -> Tensor | None:
    """The log-density of `value`, 0 where `mask` is False, summed over the dims `summed`.

    Args:
        fn: a distribution of a family that `has_statistics`, with parameters of as many dims as `value`.
        value: data. All three broadcast; event dims are to the right of the others.
        mask: of dtype bool, of the batch dims. It does nothing but choose which terms are summed.
        summed: positions of the dims to sum, counted from the left.

    Returns:
        Tensor of the broadcast batch shape, with size 1 along `summed`. Dims along which both parameters and
        data vary are the batch of the matrix product. None where the product is not sure to be as good as
        the density itself: for a value outside the support of a distribution that validates, and where
        statistics overflow or cancel.
    """
    if not value.numel() or forward_ad._current_level >= 0:  # there the density itself knows best
        return None
    found = parameters_of(fn)
    assert found is not None
    names, parameters = found
    own, events = own_dims(type(fn)), len(fn._event_shape)
    if len(parameters) > 1:
        parameters = list(torch.broadcast_tensors(*parameters))
    rank = parameters[0].dim() - own
    of_parameters, of_data = parameters[0].shape[:rank], value.shape[:rank]
    if mask is not None:
        of_data = torch.Size(broadcast_shape(of_data, mask.shape))
        value = value.expand(of_data + value.shape[rank:])
        mask = mask.expand(of_data)
    dims = _dims(of_parameters, of_data, summed)
    observed = _matrix(value, dims.both, dims.right, dims.sizes, rank)
    chosen = None if mask is None else _matrix(mask, dims.both, dims.right, dims.sizes, rank)
    alike = all(of_parameters[i] == 1 for i in summed)  # then statistics are summed before the product
    along = dict.fromkeys(summed, 1) if alike else dims.sizes
    tables = [_matrix(x, dims.both, dims.left, along, rank) for x in parameters]
    dtype = tables[0].dtype
    if value.dtype != dtype and own != events + 1:  # but for an index
        dtype = torch.promote_types(value.dtype, dtype)
        observed, tables = observed.to(dtype), [table.to(dtype) for table in tables]
    total = _total(with_parameters(fn, names, tables), observed, chosen)
    if total is None:
        return None
    total = total if total.dtype == dtype else total.to(dtype)
    order = (*dims.both, *dims.left, *dims.right, *summed)
    shape = [of_parameters[i] for i in (*dims.both, *dims.left)]
    shape += [of_data[i] for i in dims.right] + [1] * len(summed)
    total = total.reshape(shape)
    return total if order == tuple(range(rank)) else total.permute([order.index(i) for i in range(rank)])


def _dims(of_parameters: torch.Size, of_data: torch.Size, summed: Sequence[int]) -> _Dims:
    rest = [i for i in range(len(of_parameters)) if i not in summed]
    return _Dims(
        both=[i for i in rest if of_parameters[i] > 1 and of_data[i] > 1],
        left=[i for i in rest if of_parameters[i] > 1 and of_data[i] == 1],
        right=[i for i in rest if of_parameters[i] == 1],
        sizes={i: max(of_parameters[i], of_data[i]) for i in summed},
    )


def _matrix(part: Tensor, batch: list[int], rows: list[int], summed: dict[int, int], rank: int) -> Tensor:
    """[batch, rows, summed dims, other dims], without the batch where that is empty."""
    shape, others = part.shape[:rank], part.shape[rank:]
    if any(shape[i] != size for i, size in summed.items()):
        part = part.expand([summed.get(i, size) for i, size in enumerate(shape)] + list(others))
    kept = [*batch, *rows, *summed]
    wide = [i for i in kept if part.shape[i] > 1]
    if wide != sorted(wide):
        absent = [i for i in range(rank) if i not in kept]
        part = part.permute(*batch, *rows, *absent, *summed, *range(rank, part.dim()))
    sizes = [prod([shape[i] for i in rows]), prod(summed.values()), *others]
    return part.reshape([prod([shape[i] for i in batch]), *sizes] if batch else sizes)


def _total(fn: Any, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """[batch, rows of parameters, rows of data]; None where it cannot be trusted."""
    form = FORMS[type(fn)]
    if fn._validate_args and not form.checks and not _valid(fn.support, value):
        return None
    found = form.expand(fn, value)
    if found is None:
        return None
    if isinstance(found, Lookup):
        return _looked_up(found.table, found.index, mask)
    along = -1 - len(fn._event_shape)  # the position of the summed dims
    count = found.statistic[0].shape[along]
    alike = found.natural[0].shape[along] < count
    naturals, statistics, total = [], [], None
    for natural, statistic in zip(found.natural, found.statistic, strict=True):
        if mask is not None:
            statistic = torch.where(mask if along == -1 else mask.unsqueeze(-1), statistic, 0.0)
        if alike:
            statistic = statistic.sum(along, keepdim=True)
        naturals.append(natural if along == -1 else natural.flatten(along))
        statistics.append(statistic if along == -1 else statistic.flatten(along))
    constant, carrier = found.constant, found.carrier
    if constant is not None and mask is not None:
        naturals.append(constant)
        statistics.append((mask.sum(-1, keepdim=True) if alike else mask).to(constant.dtype))
    elif constant is not None:
        total = constant * count if alike else constant.sum(-1, keepdim=True)
    for natural, statistic in zip(naturals, statistics, strict=True):
        total = _plus_product(total, natural, statistic, found.vanishing)
    assert total is not None
    if carrier is not None:
        carrier = carrier if mask is None else torch.where(mask, carrier, 0.0)
        total = total + carrier.sum(-1).unsqueeze(-2)
    if found.fragile and not math.isfinite(total.detach().sum().item()):
        return None
    return total


def _valid(support: Any, value: Tensor) -> bool:
    return satisfied(support, value) or bool(support.check(value).all())


def _looked_up(table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """sum_k table[..., s, k, index[..., n, k]] over those k where the mask is True."""
    if table.shape[-2] == 1 and table.shape[-1] <= index.shape[-1]:
        frequencies = counts(index, mask, table.shape[-1]).to(table.dtype)
        return _plus_product(None, table.squeeze(-2), frequencies, True)
    return summed_rows(table, index, mask)


def _plus_product(total: Tensor | None, table: Tensor, observed: Tensor, vanishing: bool) -> Tensor:
    """total + table @ observed^T, where -inf in the table times 0 is 0."""
    if vanishing and not math.isfinite(table.detach().sum().item()):
        impossible = table == -torch.inf
        contradicted = impossible.to(observed.dtype) @ observed.detach().mT > 0
        product = _plus_product(total, table.masked_fill(impossible, 0.0), observed, False)
        return torch.where(contradicted, -torch.inf, product)
    if total is None:
        return table @ observed.mT
    return (torch.addmm if table.dim() == 2 else torch.baddbmm)(total, table, observed.mT)
