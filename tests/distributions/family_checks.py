"""What every family must do, and exact tests of samplers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tests.goodness_of_fit import FAILURE_RATE, Floats, chi_square


def assert_counts_follow(draws: Tensor, probabilities: Tensor) -> None:
    """Draws of 0, 1, 2, ... against their probabilities; larger values count as one more cell."""
    known = probabilities.double().numpy()
    assert known.sum() <= 1 + 1e-6
    cells = np.append(known, max(1 - known.sum(), 0.0))
    cells[-1] = 0.0 if cells[-1] < 1e-6 else cells[-1]
    values = draws.long().clamp(max=len(known)).reshape(-1).numpy()
    assert chi_square(np.bincount(values, minlength=len(cells)).astype(float), cells) > FAILURE_RATE


def assert_draws_follow(draws: Tensor, cdf: Callable[[Floats], Floats]) -> None:
    """Kolmogorov-Smirnov test of continuous draws."""
    assert stats.kstest(draws.double().reshape(-1).numpy(), cdf).pvalue > FAILURE_RATE


def check_contract(
    make: Callable[..., Any], parameters: dict[str, Tensor], value: Tensor | None = None
) -> None:
    """Shapes, expansion, support, dtype and gradients of one family.

    make: builds the distribution from the parameters, given by name, and `validate_args`.
    value: where log_prob is differentiable in the parameters; a draw when omitted.
    """
    leaves = {
        name: p.detach().clone().requires_grad_(p.is_floating_point()) for name, p in parameters.items()
    }
    plain = make(**parameters)
    draws = plain.sample(torch.Size((3, 2)))
    assert draws.shape == (3, 2, *plain.batch_shape, *plain.event_shape) == plain.shape((3, 2))
    assert not draws.requires_grad
    assert plain.support.check(draws).all()
    point = plain.sample() if value is None else value
    distribution = make(**leaves)
    log_prob = distribution.log_prob(point)
    assert log_prob.shape == plain.batch_shape
    assert log_prob.dtype == torch.float64
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, name
            assert leaf.grad.isfinite().all(), name
    check_expansion(make, parameters, point)
    check_wrappers(plain, point)


def check_expansion(make: Callable[..., Any], parameters: dict[str, Tensor], value: Tensor) -> None:
    """More batch dims: the same numbers, the same storage, the same options."""
    for validate in (True, False):
        plain = make(**parameters, validate_args=validate)
        wide = plain.expand(torch.Size((4, *plain.batch_shape)))
        assert type(wide) is type(plain)
        assert wide.batch_shape == (4, *plain.batch_shape)
        assert wide.event_shape == plain.event_shape
        assert wide._validate_args is validate
        assert torch.equal(wide.log_prob(value), plain.log_prob(value).expand(wide.batch_shape))
        assert wide.sample(torch.Size((2,))).shape == (2, 4, *plain.batch_shape, *plain.event_shape)
        again = wide.expand(torch.Size((2, *wide.batch_shape)))
        assert again.log_prob(value).shape == again.batch_shape
        for name in parameters:
            own, kept = getattr(plain, name, None), getattr(wide, name, None)
            if isinstance(own, Tensor):
                assert isinstance(kept, Tensor), name
                assert own.data_ptr() == kept.data_ptr(), f"{name} was copied"


def check_wrappers(plain: Any, value: Tensor) -> None:
    """to_event, mask, deepcopy and pickle."""
    log_prob = plain.log_prob(value)
    torch.testing.assert_close(plain.to_event().log_prob(value), log_prob.sum())
    assert (plain.mask(torch.tensor(False)).log_prob(value) == 0).all()
    for other in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(other.log_prob(value), log_prob)


def monte_carlo(values: Tensor, expected: Tensor, sigmas: float = 5.0) -> None:
    """The mean over the first dim, within `sigmas` standard errors (5: about 6e-7 per number)."""
    error = (values.mean(0) - expected).abs()
    assert (error <= sigmas * values.std(0) / len(values) ** 0.5 + 1e-12).all(), error.max()
