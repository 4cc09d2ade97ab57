"""The contraction engine where a plate, a message or a sum is large, against float64 torch written by hand.

Kernels divide such work among blocks of threads, and add up again what they have divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sumprod.ops.contraction import contract, draw

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Case(NamedTuple):
    shapes: list[tuple[int, ...]]
    dims: list[Sequence[str]]
    plates: str
    total: Callable[..., Tensor]
    """in torch"""


def _chain(initial: Tensor, matrix: Tensor, *unary: Tensor) -> Tensor:
    message = initial
    for own in unary:
        message = torch.logsumexp(message[:, :, None] + matrix, 1) + own
    return torch.logsumexp(message, 1).sum()


CASES = {
    "many slices of one sum": Case(
        [(1, 3), (20000, 3)], ["pz", "pz"], "p", lambda a, b: torch.logsumexp(a + b, 1).sum()
    ),
    "many slices given a variable outside": Case(
        [(4,), (1, 4, 3), (3000, 3)],
        ["g", "pgz", "pz"],
        "p",
        lambda a, b, c: torch.logsumexp(a + torch.logsumexp(b + c[:, None], 2).sum(0), 0),
    ),
    "many slices of slices": Case(
        [(4,), (50, 4, 3), (50, 200, 3, 2), (1, 1, 2)],
        ["g", "pgz", "pqzw", "pqw"],
        "pq",
        lambda a, b, c, d: torch.logsumexp(
            a + torch.logsumexp(b + torch.logsumexp(c + d[..., None, :], 3).sum(1)[:, None], 2).sum(0), 0
        ),
    ),
    "a chain in many slices": Case([(300, 5), (1, 5, 5), *[(300, 5)] * 8], [], "p", _chain),
    "few slices, large tables": Case(
        [(2, 400), (1, 400, 500), (2, 500)],
        ["pa", "pab", "pb"],
        "p",
        lambda a, b, c: torch.logsumexp(torch.logsumexp(a[:, :, None] + b, 1) + c, 1).sum(),
    ),
    "large tables without plates": Case(
        [(400,), (400, 500), (500,)],
        ["a", "ab", "b"],
        "",
        lambda a, b, c: torch.logsumexp(torch.logsumexp(a[:, None] + b, 0) + c, 0),
    ),
    "one long sum": Case(
        [(300000,), (300000,)], ["a", "a"], "", lambda a, b: torch.logsumexp(a + b, 0)
    ),
    "one long plate": Case(
        [(200000, 1), (2,)], ["pa", "a"], "p", lambda a, b: torch.logsumexp(a.sum(0) + b, 0)
    ),
}  # fmt: skip


def _tensors(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Sequence[str]]]:
    """Leaves, and the factors with their dims; a chain's matrix is many factors."""
    generator = torch.Generator().manual_seed(len(case.shapes))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in case.shapes]
    if case.total is not _chain:
        return leaves, leaves, case.dims
    tensors: list[Tensor] = [leaves[0]]
    dims: list[Sequence[str]] = [["p", "x0"]]
    for t, own in enumerate(leaves[2:]):
        tensors += [leaves[1], own]
        dims += [["p", f"x{t}", f"x{t + 1}"], ["p", f"x{t + 1}"]]
    return leaves, tensors, dims


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_total_and_gradients(name, dtype):
    case = CASES[name]
    leaves, tensors, dims = _tensors(case, dtype)
    for leaf in leaves:
        leaf.requires_grad_()
    total = sum(result.double().sum() for _, result in contract(tensors, dims, case.plates))
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = case.total(*copies)
    torch.testing.assert_close(total, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    found = torch.autograd.grad(total, leaves)
    for gradient, other in zip(found, torch.autograd.grad(expected, copies), strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(gradient.double(), other, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("name", CASES)
def test_the_most_probable_assignment(name):
    case = CASES[name]
    _, tensors, dims = _tensors(case, torch.float64)
    best = draw(tensors, dims, case.plates, maximise=True)
    sizes: dict[str, int] = {}
    for tensor, own in zip(tensors, dims, strict=True):
        for dim, size in zip(own, tensor.shape, strict=True):
            sizes[dim] = max(size, sizes.get(dim, 1))
    weight = sum(
        _entries(
            tensor, own, [(plate, sizes[plate]) for plate in own if plate in case.plates], best.values
        ).sum()
        for tensor, own in zip(tensors, dims, strict=True)
    )
    torch.testing.assert_close(weight, sum(total.sum() for _, total in best.totals), rtol=1e-12, atol=1e-9)


def _entries(tensor: Tensor, dims: Sequence[str], plates: list[tuple[str, int]], values: dict) -> Tensor:
    """A factor's entries at these values, for all slices of its plates."""
    index = []
    for dim, size in zip(dims, tensor.shape, strict=True):
        is_plate = any(dim == plate for plate, _ in plates)
        own, value = ((dim,), torch.arange(size)) if is_plate else values[dim]
        shape = [value.shape[own.index(plate)] if plate in own else 1 for plate, _ in plates]
        index.append(torch.zeros((), dtype=torch.long) if size == 1 else value.reshape(shape))
    return tensor[tuple(index)].expand([size for _, size in plates])
