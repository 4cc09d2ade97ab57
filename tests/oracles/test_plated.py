"""The oracle of plated factor graphs against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracles.plated import log_total

RNG = np.random.default_rng(0)


def test_without_plates():
    f, g = RNG.normal(size=(2, 3)), RNG.normal(size=(3,))
    expected = np.log(sum(np.exp(f[a, b] + g[b]) for a in range(2) for b in range(3)))
    assert log_total([("ab", f), ("b", g)], {"a": 2, "b": 3}, frozenset()) == pytest.approx(expected)


def test_a_plated_variable_has_one_copy_per_slice():
    f = RNG.normal(size=(2, 4))  # variable a, plate p
    expected = sum(np.log(np.exp(f[:, p]).sum()) for p in range(4))
    assert log_total([("ap", f)], {"a": 2, "p": 4}, frozenset("p")) == pytest.approx(expected)


def test_a_global_variable_sees_every_slice():
    prior, f = RNG.normal(size=(2,)), RNG.normal(size=(2, 3))  # a; a, plate p
    expected = np.log(sum(np.exp(prior[a] + f[a].sum()) for a in range(2)))
    assert log_total([("a", prior), ("ap", f)], {"a": 2, "p": 3}, frozenset("p")) == pytest.approx(expected)


def test_global_and_local():
    prior, f = RNG.normal(size=(2,)), RNG.normal(size=(2, 3, 4))  # a; a, b, plate p
    expected = np.log(
        sum(np.exp(prior[a]) * np.prod([np.exp(f[a, :, p]).sum() for p in range(4)]) for a in range(2))
    )
    assert log_total([("a", prior), ("abp", f)], {"a": 2, "b": 3, "p": 4}, frozenset("p")) == pytest.approx(
        expected
    )


def test_fixed_variables_and_impossible_weights():
    f = np.array([[0.0, -np.inf], [1.0, 2.0]])
    sizes = {"a": 2, "b": 2}
    assert log_total([("ab", f)], sizes, frozenset(), fixed={"a": 0}) == 0.0
    assert log_total([("ab", f)], sizes, frozenset(), fixed={"a": 0, "b": 1}) == -np.inf
