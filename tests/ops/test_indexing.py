"""Broadcasting indexing against loops over single elements, and against Pyro."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.ops import indexing as pyro_indexing
from torch import Tensor

from sumprod.ops.indexing import Index, Vindex, index, vindex

pytestmark = pytest.mark.host("a formula of torch's own operations, on tensors made beforehand")

TABLE = torch.arange(120.0).reshape(2, 3, 4, 5)
COLUMN, ROW = torch.tensor([[0], [1]]), torch.tensor([0, 2, 1])


def by_loops(tensor: Tensor, args: tuple[object, ...]) -> np.ndarray:
    """One element at a time: the batch dims of all positions, then what the slices leave."""
    ellipsis = args[:1] == (Ellipsis,)
    args = args[1:] if ellipsis else args
    rank = tensor.dim() - len(args) if ellipsis else 0
    args = (*args, *[slice(None)] * (tensor.dim() - rank - len(args)))
    batch = np.broadcast_shapes(
        tuple(tensor.shape[:rank]), *(np.shape(arg) for arg in args if not isinstance(arg, slice))
    )
    choices = [
        range(*arg.indices(size))
        for arg, size in zip(args, tensor.shape[rank:], strict=True)
        if isinstance(arg, slice)
    ]
    result = np.zeros((*batch, *map(len, choices)))
    table = tensor.numpy()
    for at in np.ndindex(*batch):
        for where in itertools.product(*(range(len(choice)) for choice in choices)):
            left = iter(choice[i] for choice, i in zip(choices, where, strict=True))
            element = list(at[len(at) - rank :]) if rank else []
            for arg in args:
                if isinstance(arg, slice):
                    element.append(next(left))
                else:
                    element.append(int(np.broadcast_to(np.asarray(arg), batch)[at]))
            result[(*at, *where)] = table[tuple(element)]
    return result


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    ellipsis = draw(st.booleans())
    rank = draw(st.integers(0, len(sizes))) if ellipsis else 0
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    if rank:  # compatible with the dims that the ellipsis covers
        batch = sizes[:rank]
    args: list[object] = [Ellipsis] if ellipsis else []
    count = len(sizes) - rank
    for size in sizes[rank : rank + (count if ellipsis else draw(st.integers(1, count)))]:
        kind = draw(st.sampled_from(["integer", "slice", "range", "tensor", "tensor"]))
        if kind == "integer":
            args.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            args.append(slice(None))
        elif kind == "range":
            args.append(slice(draw(st.integers(0, size - 1)), None, draw(st.integers(1, 2))))
        else:
            own = [draw(st.sampled_from([1, n])) for n in batch[draw(st.integers(0, len(batch))) :]]
            seed = draw(st.integers(0, 9))
            generator = torch.Generator().manual_seed(seed)
            args.append(torch.randint(-size, size, own, generator=generator))
    table = torch.randn(sizes, generator=torch.Generator().manual_seed(len(sizes)))
    return table, tuple(args)


@given(cases())
def test_against_loops(case):
    table, args = case
    np.testing.assert_array_equal(Vindex(table)[args].numpy(), by_loops(table, args))


PYRO_CASES = [
    (Ellipsis,),
    (),
    1,
    COLUMN,
    (1, 2),
    (slice(None), 1),
    (COLUMN, slice(None), ROW),
    (Ellipsis, 1),
    (Ellipsis, 1, slice(None)),
    (Ellipsis, -1, ROW * 0 - 1),
    (1, slice(None), ROW),
    (1, 2, ROW, slice(None)),
    (slice(None), slice(None), ROW, slice(None)),
    (slice(None), ROW),
    slice(None),
    (COLUMN, 1, slice(None), ROW),
    (Ellipsis, torch.tensor(1), slice(None), slice(None)),
]


@pytest.mark.parametrize("args", PYRO_CASES, ids=str)
def test_against_pyro(args):
    try:
        expected = pyro_indexing.vindex(TABLE, args)
    except IndexError:
        with pytest.raises(IndexError):
            vindex(TABLE, args)
        return
    assert torch.equal(vindex(TABLE, args), expected)
    assert torch.equal(Vindex(TABLE)[args], expected)


NESTED = [
    ((0, 1), slice(None)),
    (Ellipsis, (Ellipsis, COLUMN)),
    ((Ellipsis, 0), COLUMN),
    ((), 0),
    (0, (1, (2,))),
    (Ellipsis, (Ellipsis, COLUMN), 0),
    ((Ellipsis, (Ellipsis, 1)),),
    COLUMN,
    (None, COLUMN, slice(1, 2)),
]


@pytest.mark.parametrize("args", NESTED, ids=str)
def test_index_splices_tuples_like_pyro(args):
    expected = pyro_indexing.index(TABLE, args)
    assert torch.equal(index(TABLE, args), expected)
    assert torch.equal(Index(TABLE)[args], expected)


def test_an_enumerated_index_keeps_its_dims_on_the_left():
    # As in a model: the table has a plate dim, the state is enumerated to its left.
    table, state = torch.randn(7, 4, 5), torch.arange(4).reshape(4, 1)
    assert torch.equal(Vindex(table)[..., state, :], table.transpose(0, 1))


def test_gradient():
    table = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: Vindex(t)[..., ROW[:2], :], table)
    assert torch.autograd.gradcheck(lambda t: Vindex(t)[COLUMN, :, ROW], table)


def test_lists_are_tensors():
    expected = Vindex(TABLE)[torch.tensor([1, 0]), :, torch.tensor([2, 3])]
    assert torch.equal(Vindex(TABLE)[[1, 0], :, [2, 3]], expected)


@pytest.mark.parametrize("args", [(), (Ellipsis,), (slice(None),)], ids=str)
def test_never_the_tensor_itself(args):
    result = vindex(TABLE, args)
    assert result is not TABLE
    assert torch.equal(result, TABLE)


def test_errors():
    with pytest.raises(NotImplementedError, match="Non-leading Ellipsis is not supported"):
        Vindex(TABLE)[0, ...]
    with pytest.raises(NotImplementedError, match="None is not an index"):
        Vindex(TABLE)[..., None, COLUMN]
    with pytest.raises(IndexError, match=r"at most 4 indices of a tensor of shape \(2, 3, 4, 5\), got 5"):
        Vindex(TABLE)[0, 0, 0, 0, 0]
    with pytest.raises(IndexError, match=r"broadcast with the batch dims, got shapes .*\(7,\)"):
        Vindex(TABLE)[..., torch.zeros(7, dtype=torch.int64)]
    with pytest.raises(IndexError, match="out of bounds"):
        Vindex(TABLE)[..., torch.tensor(5)]
    with pytest.raises(IndexError, match=r"integer tensor as index, got one of torch.bool"):
        Vindex(TABLE)[..., torch.tensor([True, False])]
    with pytest.raises(IndexError, match=r"got one of torch.float32"):
        Vindex(TABLE)[torch.zeros(2)]
    with pytest.raises(IndexError, match="got True"):
        Vindex(TABLE)[True]
