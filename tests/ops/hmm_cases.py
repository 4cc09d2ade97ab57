"""Hidden Markov models to test with: every structure, shape, broadcast form and memory layout.

A Spec says everything about a case in a few words (a failing one can be pasted into a test); `build` makes
its tensors. Values are drawn in float64 and cast, and the oracle reads the cast tensors, so that it answers
exactly the question the operator was asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.oracles import recursion
from tests.oracles.model import Floats, Model, from_tensors

INF = math.inf
# Log-probabilities below this may be reported as -inf: float32 exponents need not reach further.
LOWEST_REPORTED = -1e6


@dataclass(frozen=True)
class Case:
    """The arguments of an HMM operator."""

    initial: Tensor
    transition: Tensor
    emission: Tensor
    lengths: Tensor | None = None

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.initial, self.transition, self.emission

    @property
    def batch(self) -> torch.Size:
        return self.emission.shape[:-2]

    @property
    def model(self) -> Model:
        return from_tensors(self.initial, self.transition, self.emission, self.lengths)

    def alive(self) -> Case:
        """The same sequences, each stopped before its first step without support."""
        model = self.model
        dead = recursion.forward(model).first_dead
        lengths = np.where(dead >= 0, dead, model.lengths)
        return replace(self, lengths=torch.as_tensor(lengths).reshape(self.batch))

    def to(self, dtype: torch.dtype) -> Case:
        return Case(*(part.to(dtype) for part in self.args), self.lengths)

    def requires_grad(self) -> Case:
        """Fresh leaves with the same values, shapes and strides."""
        return Case(*(part.detach().requires_grad_() for part in self.args), self.lengths)

    def sequence(self, index: tuple[int, ...]) -> Case:
        """One sequence alone: no batch dims, no padding, no lengths."""
        length = self.emission.shape[-2] if self.lengths is None else int(self.lengths[index])
        steps, states = self.emission.shape[-2:]
        first = self.initial.expand(*self.batch, states)[index]
        matrix = self.transition
        if matrix.ndim > 2:
            matrix = matrix.expand(*self.batch, steps - 1, states, states)[index][: max(length - 1, 0)]
        return Case(first, matrix, self.emission[index][:length])


@dataclass(frozen=True)
class Spec:
    """A case in words; the fields name entries of the tables below."""

    kind: str = "dense"
    batch: tuple[int, ...] = (3,)
    steps: int = 7
    states: int = 4
    scale: float = 1.0
    initial_form: str = "S"
    transition_form: str = "SS"
    lengths_form: str = "none"
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    seed: int = 0


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def forward_only(states: int) -> Tensor:
    """[S, S]: stay or move on to the next state."""
    return torch.eye(states, dtype=torch.bool) | torch.ones(states, states).triu(1).tril(1).bool()


def dense_transition(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return normal(generator, *shape).log_softmax(-1)


def left_right(generator: torch.Generator, shape: tuple[int, ...], zero: float = -INF) -> Tensor:
    return dense_transition(generator, shape).masked_fill(~forward_only(shape[-1]), zero)


def sparse_transition(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Half of the entries -inf, the diagonal kept."""
    keep = (uniform(generator, *shape) < 0.5) | torch.eye(shape[-1], dtype=torch.bool)
    return dense_transition(generator, shape).masked_fill(~keep, -INF)


def peaked(gap: float) -> Callable[[torch.Generator, tuple[int, ...]], Tensor]:
    """Stay for free, leave for between -gap/2 and -gap: the smallest entries underflow in linear space."""

    def transition(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        leave = -gap * (0.5 + 0.5 * uniform(generator, *shape))
        return leave.masked_fill(torch.eye(shape[-1], dtype=torch.bool), 0.0)

    return transition


def single_entry_rows(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """One finite entry per row, a random next state."""
    following = (uniform(generator, *shape[:-1]) * shape[-1]).long()
    keep = torch.nn.functional.one_hot(following, shape[-1]).bool()
    return normal(generator, *shape).masked_fill(~keep, -INF)


def offset_transition(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return dense_transition(generator, shape) + 300.0


def masked_with(value: float) -> Callable[[torch.Generator, tuple[int, ...]], Tensor]:
    return lambda generator, shape: left_right(generator, shape, value)


KINDS: dict[str, Callable[[torch.Generator, tuple[int, ...]], Tensor]] = {
    "dense": dense_transition,
    "offset": offset_transition,
    "left_right": left_right,
    "sparse": sparse_transition,
    "peaked_50": peaked(50),
    "peaked_100": peaked(100),
    "peaked_500": peaked(500),
    "single": single_entry_rows,
    "mask_1e9": masked_with(-1e9),
    "mask_min": masked_with(torch.finfo(torch.float32).min),
}
INITIAL_FORMS = ("S", "1S", "BS", "mixedS")
TRANSITION_FORMS = ("SS", "1TSS", "TSS", "B1SS", "BTSS", "mixedTSS")
LENGTHS_FORMS = ("none", "full", "random", "short")
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def initial_shape(spec: Spec) -> tuple[int, ...]:
    ones = (1,) * len(spec.batch)
    mixed = (*spec.batch[:1], *ones[1:])
    lead = {"S": (), "1S": ones, "BS": spec.batch, "mixedS": mixed}[spec.initial_form]
    return (*lead, spec.states)


def transition_shape(spec: Spec) -> tuple[int, ...]:
    ones, moves = (1,) * len(spec.batch), spec.steps - 1
    mixed = (*spec.batch[:1], *ones[1:])
    lead = {
        "SS": (),
        "1TSS": (*ones, moves),
        "TSS": (moves,),
        "B1SS": (*spec.batch, 1),
        "BTSS": (*spec.batch, moves),
        "mixedTSS": (*mixed, moves),
    }[spec.transition_form]
    return (*lead, spec.states, spec.states)


def draw_initial(generator: torch.Generator, spec: Spec) -> Tensor:
    values = normal(generator, *initial_shape(spec)).log_softmax(-1)
    if spec.kind in ("left_right", "mask_1e9", "mask_min"):
        zero = {"left_right": -INF, "mask_1e9": -1e9, "mask_min": torch.finfo(torch.float32).min}[spec.kind]
        values[..., 1:] = zero
    elif spec.kind == "sparse":
        values[uniform(generator, *values.shape) < 0.3] = -INF
    return values - 5000.0 if spec.kind == "offset" else values


def draw_emission(generator: torch.Generator, spec: Spec) -> Tensor:
    values = normal(generator, *spec.batch, spec.steps, spec.states) * spec.scale
    if spec.kind == "sparse":
        values[uniform(generator, *values.shape) < 0.1] = -INF
    if spec.kind == "offset":
        values = values + 1e4 * normal(generator, *spec.batch, spec.steps, 1)
    return values


def draw_lengths(generator: torch.Generator, spec: Spec) -> Tensor | None:
    if spec.lengths_form == "none":
        return None
    if spec.lengths_form == "full":
        return torch.full(spec.batch, spec.steps)
    top = spec.steps if spec.lengths_form == "random" else min(spec.steps, 2)
    lengths = torch.randint(0, top + 1, spec.batch, generator=generator)
    if spec.lengths_form == "random" and lengths.numel() > 2:
        lengths.view(-1)[:3] = torch.tensor([spec.steps, 0, 1])
    return lengths


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout ("expanded" repeats the first slice with stride 0)."""
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = torch.full((*values.shape[:-1], 2 * values.shape[-1] + 1), math.nan, dtype=values.dtype)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "expanded" and values.numel():
        return values[:1].expand_as(values)
    return values


def build(spec: Spec) -> Case:
    """The tensors of a Spec."""
    generator = torch.Generator().manual_seed(spec.seed)
    initial = draw_initial(generator, spec).to(spec.dtype)
    transition = KINDS[spec.kind](generator, transition_shape(spec)).to(spec.dtype)
    emission = draw_emission(generator, spec).to(spec.dtype)
    laid_out = [lay_out(part, spec.layout) for part in (transition, emission)]
    start = initial if spec.layout == "transposed" else lay_out(initial, spec.layout)
    return Case(start, *laid_out, draw_lengths(generator, spec))


STATES = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 31, 33]), st.integers(1, 20))
BATCHES = st.one_of(
    st.sampled_from([(), (0,), (1,), (2, 3), (3, 0), (2, 1, 2), (16,), (17,), (40,)]),
    st.integers(0, 40).map(lambda size: (size,)),
)


def specs(**fixed: object) -> st.SearchStrategy[Spec]:
    """Specs over every structure; keyword arguments fix or replace a field's choices."""
    choices: dict[str, st.SearchStrategy[object]] = {
        "kind": st.sampled_from(sorted(KINDS)),
        "batch": BATCHES,
        "steps": st.integers(1, 40),
        "states": STATES,
        "scale": st.sampled_from([1.0, 30.0, 1e3, 1e4]),
        "initial_form": st.sampled_from(INITIAL_FORMS),
        "transition_form": st.sampled_from(TRANSITION_FORMS),
        "lengths_form": st.sampled_from(LENGTHS_FORMS),
        "layout": st.sampled_from(LAYOUTS),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "seed": st.integers(0, 10_000),
    }
    for name, value in fixed.items():
        choices[name] = value if isinstance(value, st.SearchStrategy) else st.just(value)
    return st.builds(Spec, **choices)  # type: ignore[arg-type]


def many_states() -> list[Case]:
    """More states than a register block or a cache line holds, at several batch sizes."""
    return [
        build(Spec(kind, (batch,), 5, states, 3.0, "BS", form, "random", dtype=dtype, seed=states))
        for states, batch, form in ((64, 3, "SS"), (100, 18, "SS"), (130, 2, "BTSS"), (257, 17, "1TSS"))
        for kind in ("dense", "left_right", "peaked_100")
        for dtype in (torch.float32, torch.float64)
    ]


def near_underflow() -> list[Case]:
    """Thousands of sequences with weights about the smallest of linear space, exp(-87) or exp(-708).

    With so many, some lose everything but a path that looked negligible, or have their largest emission in
    a state that is impossible.
    """
    return [
        build(Spec(kind, (300,), steps, states, scale, "BS", form, dtype=dtype, seed=states))
        for kind in ("dense", "left_right", "sparse", "single", "peaked_50")
        for states, steps, form in ((2, 3, "SS"), (3, 8, "1TSS"), (5, 20, "SS"))
        for dtype, scales in ((torch.float32, (25.0, 50.0)), (torch.float64, (250.0,)))
        for scale in scales
    ]


def rounding(case: Case) -> Floats:
    """[N]: allowed error of a log quantity: 16 units in the last place of the sum of what was added up.

    A step rounds each potential it adds a few times and its sum of S positive terms about log2(S) times.
    """
    model = case.model
    dtype = torch.promote_types(case.emission.dtype, torch.float32)
    return np.asarray(16 * torch.finfo(dtype).eps * (recursion.magnitude(model) + 4 * model.lengths + 1))


def assert_log_close(actual: Tensor, expected: Floats, tolerance: Floats) -> None:
    """Equal infinities; finite values within `tolerance` (broadcast) plus rounding of the value itself.

    Where the oracle lies below LOWEST_REPORTED, -inf is accepted too.
    """
    values = actual.detach().double().numpy().reshape(expected.shape)
    with np.errstate(over="ignore"):  # beyond the dtype's range the right answer is -inf
        rounded = expected.astype(values.dtype if actual.dtype == torch.float64 else np.float32)
    assert not np.isnan(values).any()
    must_be_zero = np.isneginf(rounded)
    assert np.isneginf(values[must_be_zero]).all(), "finite where the answer is -inf"
    reported = expected > LOWEST_REPORTED
    assert np.isfinite(values[reported]).all(), "not finite where the answer is"
    compared = np.isfinite(values) & ~must_be_zero
    own = 16 * torch.finfo(actual.dtype).eps * np.abs(expected[compared])
    limit = np.broadcast_to(tolerance, expected.shape)[compared] + own
    error = np.abs(values[compared] - expected[compared])
    worst = np.argmax(error - limit) if error.size else 0
    assert (error <= limit).all(), f"error {error[worst]} over {limit[worst]} at {expected[compared][worst]}"


def assert_probabilities_close(actual: Tensor, expected: Floats, tolerance: Floats) -> None:
    """Exp of log-probabilities: 1e-4 in float32 (the contract), 1e-9 in float64, or `tolerance` if less."""
    values = np.exp(actual.detach().double().numpy().reshape(expected.shape))
    limit = np.minimum(1e-9 if actual.dtype == torch.float64 else 1e-4, tolerance)
    error = np.abs(values - np.exp(expected))
    assert (error <= limit).all(), f"error {error.max()} over {limit.min()}"


def assert_log_probabilities(actual: Tensor, expected: Floats, case: Case) -> None:
    """Exact support, probabilities to the contract's tolerance, and log values to rounding."""
    expected = expected.reshape(actual.shape) if actual.ndim == expected.ndim else expected
    flat = actual.reshape(len(expected), *actual.shape[len(case.batch) :])
    assert flat.shape == expected.shape
    tolerance = rounding(case).reshape(-1, *([1] * (expected.ndim - 1)))
    assert_log_close(flat, expected, tolerance)
    assert_probabilities_close(flat, expected, tolerance)


def impossible_at(step: int, *, steps: int = 6, dtype: torch.dtype = torch.float32) -> Case:
    """Three sequences of which the middle one has no support from `step` on."""
    case = build(Spec(batch=(3,), steps=steps, dtype=dtype, seed=11))
    emission = case.emission.clone()
    emission[1, step] = -INF
    return replace(case, emission=emission)


def forced_path(gap: float, dtype: torch.dtype = torch.float32) -> Case:
    """Two sequences that can only move 0 -> 1 -> 2 -> 3 -> 4; the first pays `gap` at every step for it."""
    states = 5
    transition = torch.full((states, states), -INF, dtype=dtype)
    transition[torch.arange(4), torch.arange(1, 5)] = -3.0
    initial = torch.tensor([0.0, *[-INF] * 4], dtype=dtype)
    emission = torch.zeros(2, states, states, dtype=dtype)
    emission[0].fill_diagonal_(-gap)
    return Case(initial, transition, emission)


def indices(batch: tuple[int, ...] | torch.Size) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in batch)))
