"""A batch of hidden Markov models in one plain form that both HMM oracles read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """N sequences of log potentials, all float64, every broadcast written out (as views).

    initial: [N, S]; transition: [N, T-1, S, S], axes (sequence, step, from, to); emission: [N, T, S];
    lengths: [N], the number of real steps; batch: the batch dims that were flattened into N.
    """

    initial: Floats
    transition: Floats
    emission: Floats
    lengths: Ints
    batch: tuple[int, ...]

    @property
    def sequences(self) -> int:
        return self.emission.shape[0]

    @property
    def steps(self) -> int:
        return self.emission.shape[1]

    @property
    def states(self) -> int:
        return self.emission.shape[2]

    def bad(self) -> NDArray[np.bool_]:
        """[N]: the sequence *uses* a NaN or +inf potential, so its answer is NaN; padding is not used."""

        def is_bad(values: Floats) -> NDArray[np.bool_]:
            return np.isnan(values) | np.isposinf(values)

        step = np.arange(self.steps)
        used_emission = step[None, :] < self.lengths[:, None]
        used_transition = step[None, 1:] < self.lengths[:, None]
        first = is_bad(self.initial).any(-1) & (self.lengths > 0)
        emitted = (is_bad(self.emission).any(-1) & used_emission).any(-1)
        moved = (is_bad(self.transition).any((-2, -1)) & used_transition).any(-1)
        return np.asarray(first | emitted | moved)

    def one(self, index: int) -> Model:
        """The sequence `index` alone, cut to its real steps."""
        length = int(self.lengths[index])
        return Model(
            self.initial[index : index + 1],
            self.transition[index : index + 1, : max(length - 1, 0)],
            self.emission[index : index + 1, :length],
            self.lengths[index : index + 1],
            (1,),
        )


def to_numpy(tensor: torch.Tensor) -> Floats:
    """The tensor's values as float64: exact for every dtype up to float64."""
    return np.asarray(tensor.detach().to(torch.float64).cpu().numpy())


def from_tensors(
    initial: torch.Tensor,
    transition: torch.Tensor,
    emission: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> Model:
    """Read the arguments of the HMM operators: [*B|1, S], [S, S] or [*B|1, T-1|1, S, S], [*B, T, S], [*B]."""
    potentials = to_numpy(emission)
    *batch, steps, states = potentials.shape
    count = int(np.prod(batch, dtype=np.int64))
    moves = max(steps - 1, 0)
    first = np.broadcast_to(to_numpy(initial), (*batch, states))
    matrix = np.broadcast_to(to_numpy(transition), (*batch, moves, states, states))
    real = np.full(batch, steps) if lengths is None else np.asarray(lengths.cpu().numpy())
    return Model(
        first.reshape(count, states),
        flatten_batch(matrix, batch, count),
        potentials.reshape(count, steps, states),
        real.reshape(count).astype(np.int64),
        tuple(batch),
    )


def flatten_batch(matrix: Floats, batch: list[int], count: int) -> Floats:
    """Merge the batch dims; a transition shared by the whole batch stays a stride-0 view."""
    core = matrix.shape[len(batch) :]
    shared = all(stride == 0 or size == 1 for size, stride in zip(batch, matrix.strides, strict=False))
    if count and shared:
        return np.broadcast_to(matrix[(0,) * len(batch)], (count, *core))
    return matrix.reshape(count, *core)
