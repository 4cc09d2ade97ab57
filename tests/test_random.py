"""The generators of torch, Python and NumPy as one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sumprod._random import get_rng_state, preserve_rng_state, set_rng_seed, set_rng_state


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002


def test_seed_repeats_all_generators() -> None:
    set_rng_seed(3)
    first = draw()
    assert draw() != first
    set_rng_seed(3)
    assert draw() == first
    set_rng_seed(4)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_seed_is_that_of_torch() -> None:
    set_rng_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert drawn.equal(torch.rand(3))


@pytest.mark.parametrize("seed", [2**40 + 1, -1])
def test_seeds_that_numpy_cannot_take(seed: int) -> None:
    set_rng_seed(seed)
    first = draw()
    set_rng_seed(seed)
    assert draw() == first


def test_state_round_trip() -> None:
    set_rng_seed(0)
    state = get_rng_state()
    assert {"torch", "random", "numpy"} <= state.keys()
    first = draw()
    set_rng_state(state)
    assert draw() == first


def test_partial_state_leaves_the_others() -> None:
    set_rng_seed(0)
    state = get_rng_state()
    first = draw()
    set_rng_state({"torch": state["torch"]})
    second = draw()
    assert second[0] == first[0]
    assert second[1:] != first[1:]


def test_preserve_after_an_exception() -> None:
    set_rng_seed(0)
    first = draw()
    set_rng_seed(0)

    def draw_and_fail() -> None:
        with preserve_rng_state():
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        draw_and_fail()
    assert draw() == first
