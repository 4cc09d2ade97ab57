"""Packed tensors: dims with names."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sumprod.ops import packed


def named(dims, *sizes):
    tensor = torch.randn(*sizes)
    tensor._pyro_dims = dims
    return tensor


@st.composite
def shaped(draw):
    """A shape with some dims of size 1, and names for its dims."""
    shape = draw(st.lists(st.integers(1, 3), max_size=5))
    letters = draw(st.permutations("abcdefg"))
    return shape, {dim - len(shape): letters[dim] for dim in range(len(shape))}


@given(shaped())
def test_unpack_inverts_pack(case):
    shape, dim_to_symbol = case
    value = torch.randn(shape)
    result = packed.pack(value, dim_to_symbol)
    assert 1 not in result.shape
    assert [dim_to_symbol[d] for d in range(-len(shape), 0) if shape[d] != 1] == list(result._pyro_dims)
    back = packed.unpack(result, {symbol: dim for dim, symbol in dim_to_symbol.items()})
    assert torch.equal(back, value.reshape(back.shape))
    assert torch.equal(torch.broadcast_to(back, shape), value)


def test_pack_leaves_the_callers_tensor_alone():
    value = torch.randn(2, 3)
    result = packed.pack(value, {-1: "a", -2: "b"})
    assert not hasattr(value, "_pyro_dims")
    assert result._pyro_dims == "ba"
    assert result.data_ptr() == value.data_ptr()
    assert packed.pack(2.5, {}) == 2.5


def test_pack_errors():
    with pytest.raises(ValueError, match=r"Invalid tensor shape(.|\n)*Allowed dims: -1(.|\n)*\(2, 3\)"):
        packed.pack(torch.zeros(2, 3), {-1: "a"})
    with pytest.raises(AssertionError, match="packed already"):
        packed.pack(packed.pack(torch.zeros(3), {-1: "a"}), {-1: "a"})


def test_expanded_tensors_stay_views():
    value = torch.randn(3, 1).expand(3, 1000)
    result = packed.pack(value, {-1: "a", -2: "b"})
    assert result.stride() == (1, 0)


def test_broadcast_all():
    x, y = named("ab", 2, 3), named("cb", 4, 3)
    bx, by, number = packed.broadcast_all(x, y, 2.0)
    assert bx._pyro_dims == by._pyro_dims == "abc"
    assert bx.shape == by.shape == (2, 3, 4)
    torch.testing.assert_close(by[1], y.t())
    assert number == 2.0
    (bz,) = packed.broadcast_all(x, dims="ba")
    torch.testing.assert_close(bz, x.t())
    with pytest.raises(ValueError, match="to name exactly"):
        packed.broadcast_all(x, dims="a")


def test_gather():
    value, index = named("abz", 2, 3, 5), torch.randint(5, (3, 4))
    index._pyro_dims = "bc"
    result = packed.gather(value, index, "z")
    assert result._pyro_dims == "abc"
    for a in range(2):
        for b in range(3):
            for c in range(4):
                assert result[a, b, c] == value[a, b, index[b, c]]
    same = packed.gather(value, index, "q")
    assert same is not value
    assert torch.equal(same, value)
    assert same._pyro_dims == "abz"


def test_arithmetic():
    x, y = named("a", 2), named("b", 3)
    product = packed.mul(x, y)
    assert product._pyro_dims == "ab"
    torch.testing.assert_close(product, torch.outer(x, y))
    assert packed.mul(x, 2.0)._pyro_dims == "a"
    assert packed.mul(2.0, 3.0) == 6.0
    torch.testing.assert_close(packed.neg(x), -x)
    assert packed.exp(x)._pyro_dims == "a"
    assert packed.neg(2.0) == -2.0
    assert packed.exp(1.0) == pytest.approx(math.e)


def test_scale_and_mask():
    value = named("a", 3)
    value[1] = -math.inf
    value.requires_grad_()
    mask = torch.tensor([True, False, True])
    mask._pyro_dims = "a"
    result = packed.scale_and_mask(value, 2.0, mask)
    assert result._pyro_dims == "a"
    assert result[1] == 0.0
    result.sum().backward()
    assert value.grad.tolist() == [2.0, 0.0, 2.0]
    assert packed.scale_and_mask(value, 1.0, None) is value
    assert packed.scale_and_mask(value, 2.0, False) == 0.0
    assert packed.scale_and_mask(3.0, 2.0, mask).tolist() == [6.0, 0.0, 6.0]


def test_rename_equation_as_the_peer():
    peer = pytest.importorskip("pyro.ops.packed")
    x, y = named("ca", 2, 3), named("ad", 3, 4)
    for equation in ("ab,bc->ac", "xy,yz->", "xy,yz->zx"):
        assert packed.rename_equation(equation, x, y) == peer.rename_equation(equation, x, y)


def test_symbols_are_distinct_characters():
    symbols = [packed.symbol(i) for i in range(60_000)]
    assert len(set(symbols)) == len(symbols)
    assert all(len(s) == 1 for s in symbols)
    assert symbols[:3] == ["a", "b", "c"]
    "".join(symbols).encode()  # no surrogates
