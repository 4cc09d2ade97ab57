"""`ImproperUniform`: a flat density on any support."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import biject_to

import sumprod.distributions as dist
from sumprod.distributions import constraints


@pytest.mark.parametrize(
    ("support", "batch", "event", "value"),
    [
        (constraints.positive, (3,), (2,), torch.ones(2, 3, 2)),
        (constraints.real, (), (), torch.tensor(-7.0)),
        (constraints.simplex, (4,), (3,), torch.full((4, 3), 1 / 3)),
        (constraints.corr_cholesky, (), (2, 2), torch.eye(2)),
        (constraints.ordered_vector, (2, 1), (4, 3), torch.arange(3.0).expand(4, 3)),
    ],
    ids=["positive", "real", "simplex", "corr_cholesky", "ordered"],
)
def test_density_is_one(support, batch, event, value):
    d = dist.ImproperUniform(support, batch, event)
    assert (d.batch_shape, d.event_shape) == (batch, event)
    assert d.support.event_dim == len(event)
    expected = torch.broadcast_shapes(batch, value.shape[: value.dim() - len(event)])
    assert d.log_prob(value).tolist() == torch.zeros(expected).tolist()
    assert d.expand((2, *batch)).log_prob(value).sum() == 0
    assert d.expand((2, *batch)).batch_shape == (2, *batch)
    assert biject_to(d.support).codomain.event_dim == len(event)


def test_says_what_is_wrong():
    d = dist.ImproperUniform(constraints.positive, (3,), ())
    with pytest.raises(NotImplementedError, match="ImproperUniform does not support sampling"):
        d.sample()
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(-torch.ones(3))
    with pytest.raises(ValueError, match="at least 1 dims"):
        dist.ImproperUniform(constraints.simplex, (3,), ())
    unchecked = dist.ImproperUniform(constraints.positive, (3,), (), validate_args=False)
    assert unchecked.log_prob(-torch.ones(3)).tolist() == [0.0] * 3
    assert repr(d) == "ImproperUniform(GreaterThan(lower_bound=0.0), batch_shape: (3,), event_shape: ())"
