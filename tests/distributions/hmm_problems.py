"""Problems for `DiscreteHMM`: parameters of every broadcast form, and the models as oracles read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from sumprod.distributions.hmm import DiscreteHMM
from sumprod.distributions.torch import Normal
from tests.oracles import enumeration
from tests.oracles.model import Floats, Ints, Model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """A model with normal observations of scale 1, and a value."""

    initial: Tensor
    transition: Tensor
    loc: Tensor
    value: Tensor
    lengths: Tensor | None = None
    first_emits: bool = False

    def dist(self, **options: object) -> DiscreteHMM:
        given = {"first_emits": self.first_emits, "lengths": self.lengths, **options}
        return DiscreteHMM(self.initial, self.transition, Normal(self.loc, 1.0), **given)  # type: ignore[arg-type]

    @property
    def steps(self) -> int:
        return self.value.shape[-1]

    @property
    def states(self) -> int:
        return self.initial.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """The full batch shape of the answer."""
        shapes = [
            self.initial.shape[:-1],
            self.transition.shape[:-3],
            self.loc.shape[:-2],
            self.value.shape[:-1],
        ]
        if self.lengths is not None:
            shapes.append(self.lengths.shape)
        return torch.broadcast_shapes(*shapes)

    def length(self, index: Shape) -> int:
        return self.steps if self.lengths is None else int(self.lengths.expand(self.batch)[index])

    def model(self, index: Shape) -> Model:
        """One sequence as written down in the docstring: a silent z_0 is a step of its own."""
        length = self.length(index)
        initial = log_softmax(self.initial.expand(*self.batch, -1)[index])
        matrix = self.transition
        matrix = matrix.reshape(-1, *matrix.shape[-2:])[None, 0] if matrix.dim() == 2 else matrix
        matrix = matrix.expand(*self.batch, *matrix.shape[-3:])[index]
        moves = length - 1 if self.first_emits else length
        matrix = log_softmax(matrix.expand(max(moves, matrix.shape[0]), -1, -1)[: max(moves, 0)])
        loc = self.loc if self.loc.dim() > 1 else self.loc[None]
        loc = loc.expand(*self.batch, self.steps, self.states)[index].double().numpy()
        value = self.value.expand(*self.batch, self.steps)[index].double().numpy()
        emission = (-0.5 * (value[:, None] - loc) ** 2 - 0.5 * math.log(2 * math.pi))[:length]
        if not self.first_emits:
            emission = np.concatenate([np.zeros((1, self.states)), emission])
        return Model(initial[None], matrix[None], emission[None], np.array([len(emission)]), (1,))

    def path_weights(self, index: Shape) -> tuple[Ints, Floats]:
        """All paths of the states behind the observations, and log p(path, x), a silent z_0 summed out."""
        model = self.model(index)
        full = enumeration.all_paths(model.states, model.steps)
        scores = enumeration.path_scores(model, full)
        if self.first_emits:
            return full, scores
        paths = enumeration.all_paths(model.states, model.steps - 1)
        by_start = scores.reshape(model.states, len(paths))
        return paths, np.array([enumeration.log_sum(column) for column in by_start.T])


def log_softmax(logits: Tensor) -> Floats:
    values = logits.detach().double().numpy()
    with np.errstate(divide="ignore"):
        return values - np.log(np.exp(values).sum(-1, keepdims=True))


def build(
    *,
    states: int = 3,
    steps: int = 4,
    batches: tuple[Shape, Shape, Shape, Shape] = ((), (), (), ()),
    times: tuple[int | None, int | None] = (None, None),
    lengths: Shape | None = None,
    first_emits: bool = False,
    zeros: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Random parameters.

    batches: of initial, transition, observation and value. times: time dims of transition and observation
    (0: one entry per step). lengths: batch shape of random lengths. zeros: share of the logits that is -inf.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def sparse(logits: Tensor) -> Tensor:
        drop = torch.rand(logits.shape, generator=generator) < zeros
        drop[..., 0] = False
        return logits.masked_fill(drop, -math.inf)

    def with_time(batch: Shape, time: int | None, per_step: int) -> Shape:
        if time is None and not batch:
            return ()
        return (*batch, per_step if time == 0 else 1)

    # An empty sequence whose first state emits has "minus one" transitions, which only a shared one can say.
    moves = max(steps - 1, int(steps == 0)) if first_emits else steps
    transition = normal(*with_time(batches[1], times[0], moves), states, states)
    loc = 2 * normal(*with_time(batches[2], times[1], steps), states)
    real = None
    if lengths is not None:
        real = torch.randint(0, steps + 1, lengths, generator=generator)
    return Problem(
        sparse(normal(*batches[0], states)),
        sparse(transition),
        loc,
        normal(*batches[3], steps) * 2,
        real,
        first_emits,
    )


FULL = (2, 3)
PARTS: list[Shape] = [(), (3,), (1,), (2, 1), (2, 3)]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Every broadcast form of a small problem."""
    return build(
        states=draw(st.integers(1, 3)),
        steps=draw(st.integers(0, 4)),
        batches=tuple(draw(st.sampled_from(PARTS)) for _ in range(4)),  # type: ignore[arg-type]
        times=(draw(st.sampled_from([None, 1, 0])), draw(st.sampled_from([None, 1, 0]))),
        lengths=draw(st.sampled_from([None, *PARTS])),
        first_emits=draw(st.booleans()),
        zeros=draw(st.sampled_from([0.0, 0.4])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        seed=draw(st.integers(0, 1000)),
    )
