"""The state of all random generators at once: torch, Python's `random`, and NumPy's global one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "preserve_rng_state", "set_rng_seed", "set_rng_state"]


def set_rng_seed(rng_seed: int) -> None:
    """Seeds torch (every device), `random` and NumPy's global generator with `rng_seed`.

    NumPy takes only 32 bits; larger or negative seeds are reduced modulo 2**32 for it.
    """
    torch.manual_seed(rng_seed)
    random.seed(rng_seed)
    np.random.seed(rng_seed % 2**32)  # noqa: NPY002 - programs draw from the global generator


def get_rng_state() -> dict[str, Any]:
    """The states of the generators, for `set_rng_state`: keys `torch`, `random`, `numpy`, and perhaps `cuda`.

    `cuda` is there once CUDA is in use; reading it waits for the devices.
    """
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what `get_rng_state` returned; keys that are missing leave their generator as it is."""
    if "torch" in state:
        torch.set_rng_state(state["torch"])
    if "random" in state:
        random.setstate(state["random"])
    if "numpy" in state:
        np.random.set_state(state["numpy"])  # noqa: NPY002
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Whatever the block draws, the generators continue afterwards as if it had not run."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
        if "cuda" not in state and torch.cuda.is_initialized():
            # CUDA came up inside the block, so its generators still stood at their first number before.
            for generator in torch.cuda.default_generators:
                generator.manual_seed(generator.initial_seed())
