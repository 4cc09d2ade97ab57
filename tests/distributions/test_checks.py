"""The cheap checks: True only if torch's own check passes, and True on ordinary data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sumprod.distributions import _checks, constraints

CONSTRAINTS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.greater_than(-1.5),
    constraints.greater_than_eq(2),
    constraints.unit_interval,
    constraints.interval(-2.0, 3.0),
    constraints.boolean,
    constraints.nonnegative_integer,
    constraints.positive_integer,
    constraints.integer_interval(0, 3),
    constraints.simplex,
    constraints.real_vector,
    constraints.independent(constraints.positive, 1),
    constraints.interval(torch.tensor(0.0), torch.tensor(1.0)),
    constraints.greater_than(torch.tensor(0.0)),
    constraints.integer_interval(0, torch.tensor(3)),
    constraints.half_open_interval(0.0, 1.0),
    constraints.one_hot,
]

entries = st.sampled_from(
    [0.0, 1.0, 0.5, 0.25, 2.0, 3.0, 4.0, -1.0, -2.0, -0.0, 1e-30, -1e-30, torch.inf, -torch.inf, torch.nan]
)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool]
)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@given(values=st.lists(entries, max_size=5), dtype=dtypes, scalar=st.booleans())
@example(values=[torch.inf, 1.0], dtype=torch.float32, scalar=False)
@example(values=[torch.nan, 1.0], dtype=torch.float64, scalar=False)
@example(values=[1.0, torch.nan], dtype=torch.float64, scalar=True)
@example(values=[], dtype=torch.float32, scalar=False)
def test_never_true_by_mistake(constraint, values, dtype, scalar):
    if not dtype.is_floating_point:
        values = [v for v in values if v == v and abs(v) != torch.inf]
        if dtype is torch.uint8:
            values = [abs(v) for v in values]
    scalar = scalar and bool(values) and constraint.event_dim == 0
    x = torch.tensor(values[0] if scalar else values, dtype=dtype)
    if x.dtype in (torch.bool, torch.uint8) and constraint is constraints.simplex:
        return  # torch's own check does not take these
    if _checks.satisfied(constraint, x):
        assert bool(constraint.check(x).all())


GOOD = {
    constraints.real: torch.tensor([-1.0, 0.0, torch.inf]),
    constraints.positive: torch.tensor([1e-30, 2.0]),
    constraints.nonnegative: torch.tensor([0.0, 2.0]),
    constraints.unit_interval: torch.tensor([0.0, 0.5, 1.0]),
    constraints.boolean: torch.tensor([0.0, 1.0]),
    constraints.nonnegative_integer: torch.tensor([0, 7]),
    constraints.integer_interval(0, 3): torch.tensor([0.0, 3.0]),
    constraints.simplex: torch.tensor([[0.2, 0.8], [1.0, 0.0]]),
    constraints.real_vector: torch.tensor([[0.2, -0.8]]),
}


@pytest.mark.parametrize("constraint", GOOD, ids=repr)
def test_true_on_ordinary_data(constraint):
    x = GOOD[constraint]
    assert _checks.satisfied(constraint, x)
    assert _checks.satisfied(constraint, x.expand(3, *x.shape))
    if x.is_floating_point():
        assert _checks.satisfied(constraint, x.requires_grad_())
    if constraint.event_dim == 0:
        assert _checks.satisfied(constraint, x[0])


def test_nan_in_one_storage_is_seen():
    """torch.equal of a tensor with itself must not take the short way over NaN."""
    x = torch.tensor([0.0, torch.nan])
    assert not _checks.is_real(x)
    assert not _checks.is_real(x[1])
    assert not _checks.is_real(torch.full((1,), torch.nan).expand(5))
    assert not _checks.is_finite(torch.tensor([0.0, torch.inf]))
    assert _checks.is_finite(torch.tensor([0.0, 3e38]))


def test_no_graph_is_recorded():
    x = torch.rand(3, requires_grad=True)
    for check in (_checks.is_real, _checks.is_positive, _checks.is_nonnegative, _checks.is_boolean):
        check(x)
    assert _checks.is_within(x, 0, 1)
    assert x.grad_fn is None
    assert x.grad is None


def test_eager():
    assert _checks.eager()
    seen = []
    torch.func.vmap(lambda x: seen.append(_checks.eager()) or x)(torch.zeros(2))
    with torch._subclasses.FakeTensorMode():
        seen.append(_checks.eager())
    assert seen == [False, False]
    assert _checks.eager()
