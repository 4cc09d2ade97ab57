"""Log-densities of an exponential family, summed over data dims by matrix products.

    sum_d log p(v_d; theta_d) = sum_d sum_k s_k(v_d) eta_k(theta_d) + sum_d h(v_d)

Parameters that depend on a state and data that depend on a batch element make a table of all states and
all elements. Written with statistics s and natural parameters eta (see `_sufficient_forms`) it is a sum of
products of two matrices: the table of states x elements x data dims never exists.

Where eta_k is -inf the statistic is never negative: 0 contributes nothing, and elsewhere the sum is -inf.
"""

from __future__ import annotations

import functools
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

__all__ = ["gains_without_sum", "has_statistics", "pays", "summed_log_prob"]


def has_statistics(family: type) -> bool:
    """Whether `summed_log_prob` knows a family."""
    return family in FORMS


def pays(family: type, entries: int) -> bool:
    """Whether `summed_log_prob` is faster than densities of so many entries, one for each event entry.

    A small product costs its operators; a small density has fewer, and takes no memory to speak of.
    """
    return entries >= FORMS[family].pays


def gains_without_sum(family: type) -> bool:
    """Whether a density of that family is cheaper by `summed_log_prob` even with no dim to sum.

    So are those whose parameters have a dim of their own: one by one, states x elements x that dim.
    """
    return family in FORMS and own_dims(family) > 0


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
    plan = _plan(of_parameters, of_data, tuple(summed))
    observed = _matrix(value, plan.data)
    chosen = None if mask is None else _matrix(mask, plan.data)
    tables = [_matrix(parameter, plan.parameters) for parameter in parameters]
    dtype = tables[0].dtype
    if value.dtype != dtype and own != events + 1:  # but for an index
        dtype = torch.promote_types(value.dtype, dtype)
        observed, tables = observed.to(dtype), [table.to(dtype) for table in tables]
    total = _total(with_parameters(fn, names, tables), observed, chosen)
    if total is None:
        return None
    # States are innermost in memory, as recursions over them want to read.
    total = (total if total.dtype == dtype else total.to(dtype)).mT.reshape(plan.result)
    return total if plan.order is None else total.permute(plan.order)


class _Matrix(NamedTuple):
    """How a tensor becomes [batch, rows, summed dims, own dims], without the batch if that is empty."""

    rank: int  # how many dims are not its own
    expanded: tuple[int, ...] | None  # sizes to expand to
    order: tuple[int, ...] | None  # of dims; None where it is right
    shape: tuple[int, ...]


class _Plan(NamedTuple):
    data: _Matrix
    parameters: _Matrix
    result: tuple[int, ...]  # the shape of the product
    order: tuple[int, ...] | None


@functools.lru_cache(maxsize=1024)
def _plan(of_parameters: torch.Size, of_data: torch.Size, summed: tuple[int, ...]) -> _Plan:
    """The roles of dims in the product, by the shapes of both sides."""
    positions = range(len(of_parameters))
    rest = [i for i in positions if i not in summed]
    both = [i for i in rest if of_parameters[i] > 1 and of_data[i] > 1]
    left = [i for i in rest if of_parameters[i] > 1 and of_data[i] == 1]
    right = [i for i in rest if of_parameters[i] == 1]
    sizes = {i: max(of_parameters[i], of_data[i]) for i in summed}
    alike = all(of_parameters[i] == 1 for i in summed)  # then statistics are summed before the product
    along = dict.fromkeys(summed, 1) if alike else sizes
    shape = [1 if i in sizes else max(of_parameters[i], of_data[i]) for i in positions]
    order = (*both, *left, *right, *summed)
    in_order = _in_order(order, shape)
    return _Plan(
        data=_matrix_of(of_data, both, right, sizes),
        parameters=_matrix_of(of_parameters, both, left, along),
        result=tuple(shape if in_order else [shape[i] for i in order]),
        order=None if in_order else tuple([order.index(i) for i in positions]),
    )


def _in_order(order: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether to permute is to reshape: dims of size 1 may be anywhere."""
    wide = [i for i in order if shape[i] != 1]
    return wide == sorted(wide)


def _matrix_of(shape: torch.Size, batch: list[int], rows: list[int], summed: dict[int, int]) -> _Matrix:
    expanded = tuple([summed.get(i, size) for i, size in enumerate(shape)])
    order = (*batch, *rows, *[i for i in range(len(shape)) if i not in (*batch, *rows, *summed)], *summed)
    sizes = prod([shape[i] for i in rows]), prod(summed.values())
    return _Matrix(
        rank=len(shape),
        expanded=None if expanded == shape else expanded,
        order=None if _in_order(order, expanded) else order,
        shape=(prod([shape[i] for i in batch]), *sizes) if batch else sizes,
    )


def _matrix(part: Tensor, plan: _Matrix) -> Tensor:
    own = part.shape[plan.rank :]
    if plan.expanded is not None:
        part = part.expand(plan.expanded + own)
    if plan.order is not None:
        part = part.permute(*plan.order, *range(plan.rank, part.dim()))
    return part.reshape(plan.shape + own)


def _total(fn: Any, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """[batch, rows of data, rows of parameters]; None where it cannot be trusted."""
    form = FORMS[type(fn)]
    if fn._validate_args and not form.checks and not _valid(fn.support, value):
        return None
    found = form.expand(fn, value)
    if found is None:
        return None
    if isinstance(found, Lookup):
        return _looked_up(found.table, found.indices, mask)
    along = -1 - len(fn._event_shape)  # the position of the summed dims
    count = found.statistic[0].shape[along]
    alike = found.natural[0].shape[along] < count
    naturals, statistics = [], []
    total: Tensor | None = None
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
        total = (constant.squeeze(-1) * count if alike else constant.sum(-1)).unsqueeze(-2)
    for natural, statistic in zip(naturals, statistics, strict=True):
        total = _plus_product(total, statistic, natural, found.vanishing)
    assert total is not None
    if carrier is not None:
        carrier = carrier if mask is None else torch.where(mask, carrier, 0.0)
        total = total + carrier.sum(-1, keepdim=True)
    if found.fragile and not _finite(total):
        return None
    return total


def _valid(support: Any, value: Tensor) -> bool:
    return satisfied(support, value) or bool(support.check(value).all())


def _looked_up(table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """sum_k table[..., s, k, index[..., n, k]] over those k where the mask is True."""
    if table.shape[-2] == 1 and table.shape[-1] <= index.shape[-1]:
        frequencies = counts(index, mask, table.shape[-1]).to(table.dtype)
        return _plus_product(None, frequencies, table.squeeze(-2), True)
    return summed_rows(table, index, mask)


def _finite(table: Tensor) -> bool:
    return math.isfinite((table.detach() if table.requires_grad else table).sum().item())


def _plus_product(total: Tensor | None, observed: Tensor, table: Tensor, vanishing: bool) -> Tensor:
    """total + observed @ table^T, where 0 times -inf in the table is 0."""
    if vanishing and not _finite(table):
        impossible = table == -torch.inf
        contradicted = observed.detach() @ impossible.to(observed.dtype).mT > 0
        product = _plus_product(total, observed, table.masked_fill(impossible, 0.0), False)
        return torch.where(contradicted, -torch.inf, product)
    # By their names: what `@` and `mT` find out takes as long as a small product.
    if table.dim() == 2:
        table = table.t()
        return observed.mm(table) if total is None else torch.addmm(total, observed, table)
    table = table.transpose(1, 2)
    return observed.bmm(table) if total is None else torch.baddbmm(total, observed, table)
