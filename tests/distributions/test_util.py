"""Shapes, zeros, masks and switches of `distributions.util`, against Pyro's where it has them."""

from __future__ import annotations

import gc
import math
import weakref

import pyro.distributions.util as pyro_util
import pytest
import torch
import torch.distributions as td
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import constraint_registry
from torch.distributions.utils import broadcast_all

import sumprod
from sumprod import distributions, ops
from sumprod import settings as switches
from sumprod.distributions import delta, empirical, torch_distribution, unit, util
from sumprod.distributions import torch as families


@pytest.mark.parametrize(
    ("x", "zero", "one"),
    [
        *((x, True, False) for x in (0, 0.0, -0.0, False)),
        *((x, False, True) for x in (1, 1.0, True)),
        *((x, False, False) for x in (2, math.nan, None, "0")),
        *((x, False, False) for x in (torch.tensor(0.0), torch.ones(()), torch.zeros(0))),
    ],
    ids=str,
)
def test_identically_zero_and_one(x, zero, one):
    assert util.is_identically_zero(x) is zero
    assert util.is_identically_one(x) is one


sizes = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4).map(tuple)


@given(st.lists(sizes, max_size=4), st.booleans())
def test_broadcast_shape_equals_torchs(shapes, strict):
    try:
        expected = pyro_util.broadcast_shape(*shapes, strict=strict)
    except ValueError:
        with pytest.raises(ValueError, match="shape mismatch: objects cannot be broadcast to a single shape"):
            util.broadcast_shape(*shapes, strict=strict)
        return
    assert util.broadcast_shape(*shapes, strict=strict) == expected
    if not strict:
        assert expected == tuple(torch.broadcast_shapes(*shapes))


def test_broadcast_shape_names_all_shapes():
    with pytest.raises(ValueError, match=r"\(3,\) vs \(1, 4\) vs \(\)"):
        util.broadcast_shape(torch.Size((3,)), (1, 4), ())


@given(sizes.filter(all), st.sampled_from([-3, -2, -1, 0, 1, 2, 3, 4, math.inf]))
def test_sums_equal_pyros(shape, dim):
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    if dim < -len(shape):
        return
    torch.testing.assert_close(util.sum_rightmost(x, dim), pyro_util.sum_rightmost(x, dim))
    if dim != -len(shape) or not shape:
        torch.testing.assert_close(util.sum_leftmost(x, dim), pyro_util.sum_leftmost(x, dim))


def test_sums_of_numbers():
    assert util.sum_rightmost(2.0, 1) == 2.0
    assert util.sum_leftmost(2.0, math.inf) == 2.0
    x = torch.ones(2, 3)
    assert util.sum_rightmost(x, 0) is x
    assert util.sum_leftmost(x, 0) is x


class TestScaleAndMask:
    MASK = torch.tensor([True, False, True])

    @pytest.mark.parametrize(
        "scale", [1.0, 2, 0.5, torch.tensor(3.0), torch.tensor([1.0, 2.0, 3.0])], ids=str
    )
    @pytest.mark.parametrize("mask", [None, MASK, MASK.expand(2, 3), MASK[:1]], ids=["none", "1d", "2d", "1"])
    def test_equals_pyro(self, scale, mask):
        x = torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(
            util.scale_and_mask(x, scale, mask), pyro_util.scale_and_mask(x, scale, mask)
        )

    def test_bools(self):
        x = torch.tensor([1.0, math.inf])
        assert util.scale_and_mask(x, 1.0, True) is x
        assert util.scale_and_mask(x, 2.0, True)[0] == 2.0
        assert util.scale_and_mask(x, 2.0, False).tolist() == [0.0, 0.0]

    def test_numbers(self):
        assert util.scale_and_mask(0, 2.0, self.MASK) == 0
        assert util.scale_and_mask(0.0, torch.tensor(2.0), False) == 0.0
        assert util.scale_and_mask(3.0, 2.0) == 6.0
        assert util.scale_and_mask(3.0, 2.0, False) == 0.0
        assert util.scale_and_mask(3.0, 2.0, self.MASK).tolist() == [6.0, 0.0, 6.0]

    @pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
    def test_masked_entries_leak_neither_into_value_nor_gradient(self, bad):
        x = torch.tensor([1.0, bad, 3.0], requires_grad=True)
        masked = util.scale_and_mask(x, 2.0, self.MASK)
        assert masked.tolist() == [2.0, 0.0, 6.0]
        (gradient,) = torch.autograd.grad(masked.sum(), x)
        assert gradient.tolist() == [2.0, 0.0, 2.0]

    def test_keeps_dtype(self):
        x = torch.ones(3, dtype=torch.float64)
        assert util.scale_and_mask(x, 2.0, self.MASK).dtype == torch.float64


@given(sizes.filter(all), st.integers(1, 2), st.integers(-3, -1), st.integers(0, 3))
def test_gather_broadcasts(shape, count, dim, extra):
    shape = (*shape, 2, 3, 2)
    value = torch.randn(shape)
    index_shape = [1] * len(shape)
    index_shape[dim] = count
    index = torch.randint(shape[dim], (2,) * extra + tuple(index_shape))
    result = util.gather(value, index, dim)
    full = [*torch.broadcast_shapes(value.shape[:dim], index.shape[:dim]), count]
    if dim != -1:
        full += list(shape[dim + 1 :])
    assert list(result.shape) == full
    expected = torch.take_along_dim(
        value.expand(*index.shape[:extra], *value.shape) if extra else value, index, dim
    )
    torch.testing.assert_close(result, expected)


def test_gather_wants_a_negative_dim():
    with pytest.raises(ValueError, match="negative dim"):
        util.gather(torch.zeros(2), torch.tensor([0]), 0)


def test_likes():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert util.scalar_like(x, 3).dtype == torch.float64
    assert util.scalar_like(x, 3).shape == ()
    assert util.eye_like(x, 2).tolist() == [[1, 0], [0, 1]]
    assert util.eye_like(x, 2, 3).shape == (2, 3)
    assert util.eye_like(x, 2).dtype == torch.float64


def test_logsumexp_is_the_operator():
    assert util.logsumexp is ops.logsumexp
    assert util.logsumexp is sumprod.logsumexp


def test_weakmethod_makes_no_cycle():
    class Cell:
        def __init__(self):
            self.stored = self.describe

        @util.weakmethod
        def describe(self, word, *, end="."):
            """Says who it is."""
            return type(self).__name__ + word + end

    cell = Cell()
    assert cell.stored(" here", end="!") == "Cell here!"
    assert Cell.describe.__doc__ == "Says who it is."
    gone, stored = weakref.ref(cell), cell.stored
    gc.disable()
    try:
        del cell
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match=r"Cell\.describe .* no longer exists"):
        stored("")


def test_copy_docs_from():
    class Source:
        def run(self):
            """Runs."""

        @property
        def size(self):
            """How large."""

    def make():
        class Target:
            def run(self):
                pass

            def own(self):
                """Mine."""

            @property
            def size(self):
                return 3

        return Target

    full = util.copy_docs_from(Source, full_text=True)(make())
    assert (full.run.__doc__, full.own.__doc__, full.size.__doc__) == ("Runs.", "Mine.", "How large.")
    assert full().size == 3
    assert "Source.run" in util.copy_docs_from(Source)(make()).run.__doc__


class TestValidationSwitches:
    def test_context_restores_after_an_error(self):
        assert util.is_validation_enabled()

        def fail():
            with util.validation_enabled(False):
                assert not util.is_validation_enabled()
                assert not td.Distribution._validate_args
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert util.is_validation_enabled()
        assert td.Distribution._validate_args

    def test_switch_leaves_the_other_layers_alone(self):
        with util.validation_enabled():
            util.enable_validation(False)
            assert not switches.state.validate_distributions_pyro
            assert switches.state.validate_infer
            assert switches.state.validate_poutine
            util.enable_validation()
            assert util.is_validation_enabled()


def test_paths_that_programs_import():
    assert util.broadcast_all is broadcast_all
    assert distributions.constraint_registry is constraint_registry
    for name in families.__all__:
        assert getattr(distributions, name) is getattr(families, name)
    assert distributions.Independent is torch_distribution.Independent
    assert distributions.Delta is delta.Delta
    assert distributions.Empirical is empirical.Empirical
    assert distributions.Unit is unit.Unit
    for name in distributions.__all__:
        assert hasattr(distributions, name)
